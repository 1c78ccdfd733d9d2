"""
Positions on the grid of a coadd, and smooth surfaces on it.

Private to `astro_narrowband.coaddition`.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import legendre

#: Pixels of a surface that are worked on at a time: they stay in the cache.
PIXELS = 1 << 15


def interpolate(cells, centres, x, y):
    """Linear between the centres of cells, constant to half a cell beyond the outermost."""

    def place(centres, at):
        step = centres[1] - centres[0] if len(centres) > 1 else 2.0 * centres[0] + 1.0
        position = np.interp(at, centres, np.arange(len(centres)))
        outside = (at < centres[0] - step / 2) | (at > centres[-1] + step / 2)
        low = np.minimum(position.astype(int), max(len(centres) - 2, 0))
        return low, np.minimum(low + 1, len(centres) - 1), position - low, outside

    x0, x1, fx, x_out = place(centres[0], x)
    y0, y1, fy, y_out = place(centres[1], y)

    def mixed(a, b, fraction):
        # What has no part in it may be unknown.
        return np.where(fraction > 0, (1 - fraction) * a + fraction * b, a)

    low = mixed(cells[y0, x0], cells[y0, x1], fx)
    high = mixed(cells[y1, x0], cells[y1, x1], fx)
    return np.where(x_out | y_out, np.nan, mixed(low, high, fy))


def _exponents(degree):
    """Powers of x and of y of the terms; those of a lower degree come first."""
    return [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]


def n_terms(degree):
    """Return the number of terms of a polynomial in x and y."""
    return (degree + 1) * (degree + 2) // 2


def terms(x, y, degree, shape):
    """
    Return the terms of a polynomial at some positions: Legendre, over the whole image.

    Returns
    -------
    `~numpy.ndarray`, (n, n_terms)
        Those of a lower degree are the first ones.
    """
    u, v = _unit(x, shape[1]), _unit(y, shape[0])
    table = legendre.legvander2d(u, v, [degree, degree])
    return np.stack([table[..., i * (degree + 1) + j] for i, j in _exponents(degree)], axis=-1)


def _unit(x, n):
    """-1 to 1 from the first to the last pixel."""
    return (2.0 * np.asarray(x, float) - (n - 1)) / max(n - 1, 1)


@dataclass(frozen=True, eq=False)
class Surface:
    """
    A polynomial in x and y over an image.

    Attributes
    ----------
    coefficients : `~numpy.ndarray`, (n_terms,)
        Of `terms`; the first is the mean over the image.
    shape : tuple of int
    """

    coefficients: np.ndarray
    shape: tuple
    degree: int = field(init=False)

    def __post_init__(self):
        degree = math.isqrt(2 * len(self.coefficients)) - 1
        object.__setattr__(self, "degree", degree)

    def __call__(self, x, y):
        """Return its value at some positions [pix]."""
        return terms(x, y, self.degree, self.shape) @ self.coefficients

    def samples(self, n=9):
        """Return its values at n x n points from edge to edge."""
        y, x = np.meshgrid(*(np.linspace(0, size - 1, n) for size in self.shape), indexing="ij")
        return self(x.ravel(), y.ravel())

    def blocks(self, rows):
        """
        Yield ``(start, stop, values)`` for a few rows at a time, counted from the first one.

        Values are float32, (stop - start, nx), and the same however rows are cut: no sum
        of them is left to a library that takes another order for another size.
        """
        ny, nx = self.shape
        across = legendre.legvander(_unit(np.arange(nx), nx), self.degree).T
        down = legendre.legvander(_unit(np.arange(rows.start, rows.stop), ny), self.degree)
        down = down.astype(np.float32)
        lines = np.zeros((self.degree + 1, nx))
        for (i, j), value in zip(_exponents(self.degree), self.coefficients, strict=True):
            lines[j] += value * across[i]
        lines = lines.astype(np.float32)
        step = max(1, PIXELS // nx)
        for start in range(0, rows.stop - rows.start, step):
            part = down[start : start + step]
            values = np.broadcast_to(lines[0], (len(part), nx)).copy()
            for j in range(1, self.degree + 1):
                values += part[:, j : j + 1] * lines[j]
            yield start, start + len(part), values
