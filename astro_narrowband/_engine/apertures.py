"""
Sums over circles, for many stars at once.

Circles overlap pixels exactly. The area of a circle of radius ``r`` below and
left of a point (x, y) is, inside the circle,
``x y + (H(x) + H(y)) / 2 - pi r**2 / 4`` with
``H(x) = x sqrt(r**2 - x**2) + r**2 arcsin(x / r) + pi r**2 / 2``, the area left
of x; outside it is a sum of H alone. H depends on one coordinate, so a stamp of
k x k pixels needs 2 k of them, and the overlap of a pixel is the second
difference of the areas at its corners. Pixels cover -0.5 to 0.5 around their
integer positions.
"""

import math
from typing import NamedTuple

import numpy as np

#: Pixels of one block of stamps or annuli: their arrays stay in the cache, and their products
#: with a few sectors are too small for BLAS to start threads of its own.
BLOCK = 40_000
#: Less of a pixel than this is rounding.
TINY = 1e-9


class Pixels(NamedTuple):
    """
    An image as the kernels read it: stamp by stamp, never copied as a whole.

    Attributes
    ----------
    data : `~numpy.ndarray`, (ny, nx)
        Any number type and byte order.
    noise : `~numpy.ndarray`, (ny, nx), or None
    kind : str
        What ``noise`` is: ``"std"``, ``"var"`` or ``"ivar"``.
    mask : `~numpy.ndarray` of bool, (ny, nx), or None
    gain : float, `~numpy.ndarray` (ny, nx), or None
        Electrons per unit of ``data``.
    common : `~numpy.ndarray`, (ny, nx), or None
        Variance from the masters.
    saturation : float or None
    """

    data: np.ndarray
    noise: np.ndarray | None = None
    kind: str = "var"
    mask: np.ndarray | None = None
    gain: float | np.ndarray | None = None
    common: np.ndarray | None = None
    saturation: float | None = None

    def around(self, iy, ix, oy, ox, *, narrow=False):
        """
        Return the pixels at offsets ``oy``, ``ox`` from each of ``iy``, ``ix``.

        Parameters
        ----------
        iy, ix : `~numpy.ndarray` of int, (n,)
        oy, ox : `~numpy.ndarray` of int, of one shape s
        narrow : bool, optional
            Leave float32 as it is; otherwise all is float64.

        Returns
        -------
        data, variance : `~numpy.ndarray`, (n, *s)
            0 where a pixel is not usable; ``variance`` may be None.
        good : `~numpy.ndarray` of bool, or None where all are usable
        inside : `~numpy.ndarray` of bool, or None where all are
        index : `~numpy.ndarray` of int
            Into the flattened image; that of the nearest pixel for those outside.
        """
        ny, nx = self.data.shape
        inside = None
        lead = (slice(None), *(None,) * oy.ndim)
        crosses = (
            iy.min() + oy.min() < 0 or iy.max() + oy.max() >= ny
            or ix.min() + ox.min() < 0 or ix.max() + ox.max() >= nx
        )  # fmt: skip
        if crosses:
            y, x = iy[lead] + oy, ix[lead] + ox
            inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
            index = np.clip(y, 0, ny - 1) * nx + np.clip(x, 0, nx - 1)
            if inside.all():
                inside = None
        else:
            index = (iy * nx + ix)[lead] + (oy * nx + ox)
        wide = np.float64
        if narrow and self.data.dtype.kind == "f" and self.data.dtype.itemsize == 4:
            wide = np.float32
        data = np.take(self.data, index).astype(wide, copy=False)
        good = np.isfinite(data)
        variance = None
        if self.noise is not None:
            variance = np.take(self.noise, index).astype(wide, copy=False)
            if self.kind == "std":
                variance *= variance
            elif self.kind == "ivar":
                with np.errstate(divide="ignore"):
                    variance = 1 / variance
            good &= np.isfinite(variance)
        if self.mask is not None:
            good &= ~np.take(self.mask, index)
        if inside is not None:
            good &= inside
        if good.all():
            good = None
        else:
            data[~good] = 0
            if variance is not None:
                variance[~good] = 0
        return data, variance, good, inside, index


def overlap(dx, dy, radius, half):
    """
    Return the part of every pixel of a stamp that lies in a circle.

    Parameters
    ----------
    dx, dy : `~numpy.ndarray`, (n,)
        Centres of the circles from the stamps' central pixels [pix].
    radius : float
        [pix]
    half : int
        Stamps are 2 half + 1 pixels wide. What is outside a stamp is lost.

    Returns
    -------
    `~numpy.ndarray`, (n, 2 half + 1, 2 half + 1)
        0 to 1, within some 1e-13 for circles of tens of pixels.
    """
    n, k = len(dx), 2 * half + 2
    edges = np.arange(-half, half + 2) - 0.5
    area = math.pi * radius * radius
    x, y = edges - dx[:, None], edges - dy[:, None]
    left, below = _area_left(x, radius), _area_left(y, radius)
    right, above = x > 0, y > 0
    # Sums of products of a function of x and one of y: matrix products are the fastest way.
    of_y, of_x = np.empty((n, k, 3)), np.empty((n, 3, k))
    of_y[:, :, 0], of_y[:, :, 1], of_y[:, :, 2] = y, 1, 0.5 * below - 0.25 * area
    of_x[:, 0], of_x[:, 1], of_x[:, 2] = x, 0.5 * left, 1
    corner = of_y @ of_x
    of_y[:, :, 0], of_y[:, :, 1] = below, above
    of_x[:, 0], of_x[:, 1] = right, left - area * right
    other = of_y[:, :, :2] @ of_x[:, :2]
    outside = (y * y - radius * radius)[:, :, None] + (x * x)[:, None, :] >= 0
    np.copyto(corner, other, where=outside)
    rows = corner[:, 1:] - corner[:, :-1]
    return rows[:, :, 1:] - rows[:, :, :-1]


def _area_left(x, radius):
    """Area of the circle left of x."""
    x = np.clip(x, -radius, radius)
    return (
        x * np.sqrt(radius * radius - x * x)
        + radius * radius * (np.arcsin(x / radius) + 0.5 * math.pi)
    )  # fmt: skip


class CircleSums(NamedTuple):
    """
    Sums over circles, each (n, m): ``w`` is the part of a pixel in the circle.

    Attributes
    ----------
    total : sum of w d
    area : sum of w over usable pixels [pix]
    area2 : sum of w**2 over usable pixels [pix]
    variance : sum of w**2 V; None without a variance
    nested : (n, m, k); sum of w_j w_l V (of w_j w_l without a variance) of circle j
        and the next l = j + 1, ..., j + k; empty where it was not asked for
    linear : sum of w V (of w without a variance)
    photons, per_gain : sums of w**2 d / gain and w**2 / gain; None without a gain
    common : sum of w**2 C, with a map of the masters' variance
    n_masked : number of unusable pixels touched, inside the image
    n_saturated : number of pixels at or above saturation touched
    off_edge : bool; part of the circle is outside the image
    """

    total: np.ndarray
    area: np.ndarray
    area2: np.ndarray
    variance: np.ndarray | None
    nested: np.ndarray
    linear: np.ndarray
    photons: np.ndarray | None
    per_gain: np.ndarray | None
    common: np.ndarray | None
    n_masked: np.ndarray
    n_saturated: np.ndarray
    off_edge: np.ndarray


def blocks(n, pixels):
    """Yield slices of n stamps or annuli of so many pixels that are a BLOCK each."""
    step = max(1, BLOCK // pixels)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _dot(a, b):
    return np.einsum("nij,nij->n", a, b)


def circle_sums(pixels, x, y, radii, *, n_nested=None):
    """
    Sum over circles of ``radii`` around ``x``, ``y``.

    Parameters
    ----------
    pixels : `Pixels`
    x, y : `~numpy.ndarray`, (n,)
        Finite.
    radii : sequence of float
        Increasing [pix].
    n_nested : int, optional
        For covariances between radii: how many larger circles are multiplied
        with each. Default is to leave ``nested`` empty and ``linear`` zero.

    Returns
    -------
    `CircleSums`
    """
    n, m = len(x), len(radii)
    shape = (n, m)
    has_variance = pixels.noise is not None
    has_gain = pixels.gain is not None
    zeros = lambda wanted=True: np.zeros(shape) if wanted else None  # noqa: E731
    out = CircleSums(
        zeros(), zeros(), zeros(), zeros(has_variance), np.zeros((*shape, n_nested or 0)), zeros(),
        zeros(has_gain), zeros(has_gain), zeros(pixels.common is not None),
        np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool),
    )  # fmt: skip
    if n == 0:
        return out
    half = math.ceil(radii[-1])
    offset = np.arange(-half, half + 1)
    for rows in blocks(n, offset.size**2):
        _sum_block(pixels, x[rows], y[rows], radii, offset, n_nested, out, rows)
    return out


def _sum_block(pixels, x, y, radii, offset, n_nested, out, rows):
    half = offset[-1]
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    dx, dy = x - ix, y - iy
    oy, ox = np.meshgrid(offset, offset, indexing="ij")
    data, variance, good, inside, index = pixels.around(iy, ix, oy, ox)
    spread = variance if good is None or variance is not None else good.astype(float)
    per_gain = common = None
    if np.ndim(pixels.gain):
        with np.errstate(divide="ignore", invalid="ignore"):
            per_gain = _usable(1 / np.take(pixels.gain, index).astype(float), good)
        photons = data * per_gain
    if pixels.common is not None:
        common = _usable(np.take(pixels.common, index).astype(float), good)
    saturated = None
    if pixels.saturation is not None:
        saturated = np.take(pixels.data, index) >= pixels.saturation
        saturated = saturated if saturated.any() else None
    weights = [None] * len(radii)
    for j, radius in enumerate(radii):
        size = math.ceil(radius)
        cut = _middle(half, size)
        w = overlap(dx, dy, radius, size)
        ww = w * w
        out.total[rows, j] = _dot(w, data[cut])
        if good is None:
            out.area[rows, j] = math.pi * radius * radius
            out.area2[rows, j] = ww.sum(axis=(1, 2))
        else:
            usable = good[cut]
            out.area[rows, j] = _dot(w, usable)
            out.area2[rows, j] = _dot(ww, usable)
            touched = w > TINY
            if inside is None:
                out.n_masked[rows, j] = (touched & ~usable).sum(axis=(1, 2))
            else:
                inside_cut = inside[cut]
                out.n_masked[rows, j] = (touched & ~usable & inside_cut).sum(axis=(1, 2))
                out.off_edge[rows, j] = (touched & ~inside_cut).any(axis=(1, 2))
        if variance is not None:
            out.variance[rows, j] = _dot(ww, variance[cut])
        if n_nested is not None:
            out.linear[rows, j] = out.area[rows, j] if variance is None else _dot(w, variance[cut])
        if per_gain is not None:
            out.photons[rows, j] = _dot(ww, photons[cut])
            out.per_gain[rows, j] = _dot(ww, per_gain[cut])
        elif pixels.gain is not None:
            out.photons[rows, j] = _dot(ww, data[cut]) / pixels.gain
            out.per_gain[rows, j] = out.area2[rows, j] / pixels.gain
        if pixels.common is not None:
            out.common[rows, j] = _dot(ww, common[cut])
        if saturated is not None:
            out.n_saturated[rows, j] = (saturated[cut] & (w > TINY)).sum(axis=(1, 2))
        if n_nested:
            weights[j] = (w, size)
            _nest(weights, spread, j, half, out.nested[rows])
            if j >= n_nested:
                weights[j - n_nested] = None


def _usable(values, good):
    """The values where they are finite and count, 0 elsewhere."""
    counts = np.isfinite(values) if good is None else good & np.isfinite(values)
    return np.where(counts, values, 0.0)


def _nest(weights, spread, j, half, nested):
    """Products of circle j with the smaller ones before it, summed over the smaller."""
    outer, size = weights[j]
    for k in range(1, min(nested.shape[2], j) + 1):
        inner, inner_size = weights[j - k]
        both = inner * outer[_middle(size, inner_size)]
        if spread is None:
            nested[:, j - k, k - 1] = both.sum(axis=(1, 2))
        else:
            nested[:, j - k, k - 1] = _dot(both, spread[_middle(half, inner_size)])


def _middle(half, size):
    """The middle 2 size + 1 pixels of stamps of 2 half + 1."""
    return (slice(None),) + (slice(half - size, half + size + 1),) * 2
