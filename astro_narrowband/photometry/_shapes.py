"""Shapes of sources in one image: moments under a Gaussian window, with the errors of each."""

import math
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.detection import stamps

#: Pixels of stamps that are measured at a time.
BLOCK = 400_000


class Shapes(NamedTuple):
    """
    Shapes of n sources, each (n,); NaN where there is none.

    Attributes
    ----------
    fwhm : of the Gaussian that has the moments of the source [pix]; NaN if wider than the window
    size : half the trace of the moments under the window [pix2]
    plus, cross : how much they are drawn out, along x and along the diagonal [pix2]
    size_err, long_err : errors of ``size``, and of ``plus`` or ``cross``
    """

    fwhm: np.ndarray
    size: np.ndarray
    plus: np.ndarray
    cross: np.ndarray
    size_err: np.ndarray
    long_err: np.ndarray


def measure_shapes(pixels, x, y, level, noise, fwhm):
    """
    Measure moments of sources under a Gaussian window.

    Parameters
    ----------
    pixels : `~astro_narrowband._engine.apertures.Pixels`
    x, y : `~numpy.ndarray`, (n,)
        [pix]
    level, noise : `~numpy.ndarray`, (n,)
        Of the sky around each; the noise counts where the pixels have no variance.
    fwhm : float
        Of the window [pix].

    Returns
    -------
    `Shapes`
    """
    out = Shapes(*np.full((6, len(x)), np.nan))
    half = max(4, math.ceil(2 * fwhm))
    offset = np.arange(-half, half + 1)
    oy, ox = np.meshgrid(offset, offset, indexing="ij")
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    sigma = fwhm / stamps.FWHM
    step = max(1, BLOCK // ox.size)
    for start in range(0, len(x), step):
        at = slice(start, start + step)
        data, variance, good, _, _ = pixels.around(iy[at], ix[at], oy, ox, narrow=True)
        data = (data - level[at, None, None]).astype(np.float32)
        weight = None if good is None else good.astype(np.float32)
        m = stamps.windowed(data, weight, sigma, x=x[at] - ix[at], y=y[at] - iy[at])
        width = stamps.shape_of(m, sigma)[0]
        if variance is None:
            variance = np.broadcast_to(noise[at, None, None] ** 2, data.shape)
        size = (m["xx"] + m["yy"]) / 2
        moments = (size, (m["xx"] - m["yy"]) / 2, m["xy"], *_errors(m, variance, size))
        width[~(width < 2 * half)] = np.nan
        for column, values in zip(out, (width, *moments), strict=True):
            column[at] = np.where(m["total"] > 0, values, np.nan)
    return out


def _errors(m, variance, size):
    """Errors of the size and of how long a source is: the noise of its pixels."""
    spread = m["window"] ** 2 * variance
    x2, y2 = (np.square(m[name]).astype(np.float32) for name in ("dx", "dy"))
    powers = np.stack([np.ones_like(x2), x2, x2 * x2], axis=2)
    rows = np.matmul(spread.astype(np.float32), powers).astype(float)
    one, xx, xxxx = np.einsum("nik->kn", rows)
    yy, xxyy = np.einsum("ni,nik->kn", y2, rows[:, :, :2])
    yyyy = np.einsum("ni,ni->n", y2 * y2, rows[:, :, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        of_size = (xxxx + 2 * xxyy + yyyy) / 4 - size * (xx + yy) + size**2 * one
        of_length = (xxxx + 2 * xxyy + yyyy) / 8
        return (np.sqrt(np.maximum(v, 0)) / m["total"] for v in (of_size, of_length))
