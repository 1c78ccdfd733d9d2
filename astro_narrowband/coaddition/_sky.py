"""
The sky of each frame against that of all: a low-order surface of their differences.

Private to `astro_narrowband.coaddition`. Nebula is the same in all frames and stays; so
does the weighted mean of the frames' skies, whatever its shape, at the level of those that are
as clear as the frame of the flux scale. (Cloud dims stars and not the sky before it: on the
common scale the sky of such a frame is too bright.) What is taken from a
frame is what its sky has more than that: level, and gradient where there is evidence
of one (meridian flip, field rotation, moonlight, light pollution). As the mean stays, the
error of the surfaces drops out of the sum wherever all frames count.
"""

import math
from dataclasses import dataclass

import numpy as np

from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.coaddition._statistics import cell_centres
from astro_narrowband.coaddition._surface import Surface, interpolate, n_terms, terms

#: Largest degree of a surface, and cells for each of its terms.
MAX_DEGREE, CELLS_PER_TERM = 3, 2.5
#: A frame whose scale is off 1 by this does not count for the level of the sky that is kept.
CLEAR = 0.03
#: A higher degree is taken where chi2 of the cells of a frame falls by more than the Bayesian
#: criterion asks for and so much more (differences of interpolated cells are not independent:
#: chi2 is up to four times what it seems), and where a surface then is off by more than this
#: part of the noise of a pixel (rms): less than that changes nothing that is measured.
EVIDENCE, MATERIAL = 20.0, 0.02
#: Cells that are off by more than so many sigma are no sky.
CLIP = 4.0
#: Rounds of the fit: one is enough where all frames see the same cells.
ROUNDS, CONVERGED = 30, 1e-4


@dataclass(eq=False)
class Skies:
    """
    What is taken from each frame, in the unit of the coadd.

    Attributes
    ----------
    degree : int
        Of the surfaces; 0 is a constant, -1 where nothing was matched.
    surfaces : list of `Surface`
    error : `~numpy.ndarray`, (n,)
        Standard error of a frame's surface, rms over the image.
    chi2 : `~numpy.ndarray`, (n,)
        Variance of the cells about the surfaces, over what their noise lets expect.
    """

    degree: int
    surfaces: list
    error: np.ndarray
    chi2: np.ndarray

    @property
    def offset(self):
        """Level that is taken from each frame, (n,)."""
        return np.array([surface.coefficients[0] for surface in self.surfaces])

    @property
    def gradient(self):
        """Rms of each surface about its level, (n,)."""
        return np.array([surface.samples().std() for surface in self.surfaces])

    @classmethod
    def given(cls, levels, shape):
        """Return constant levels."""
        unknown = np.full(len(levels), np.nan)
        return cls(-1, [Surface(np.array([v]), shape) for v in levels], unknown, unknown)


def cell_levels(statistics, matrices, shape):
    """
    Return the sky of each frame in the cells of the grid, (n, n_cells), and their x and y.

    In the unit of the frame; NaN where it has none.
    """
    x, y = (axis.ravel() for axis in np.meshgrid(*cell_centres(shape)))
    levels = np.array([
        interpolate(one.cells, one.centres, *apply_matrix(np.linalg.inv(matrix), x, y))
        for one, matrix in zip(statistics, matrices, strict=True)
    ])  # fmt: skip
    return levels, x, y


def match_skies(statistics, matrices, seen, weight, shape):
    """
    Fit what the sky of each frame has more than the one that is kept.

    Parameters
    ----------
    statistics : list of `FrameStatistics`
    matrices : list of array (3, 3)
        From each frame's pixels to the grid of the coadd.
    seen : `Transparency`
        On whose scale the frames are put; those near to 1 have the level that is kept.
    weight : `~numpy.ndarray`, (n,)
        Their sum is 1.
    shape : tuple of int

    Returns
    -------
    `Skies`
    """
    levels, x, y = cell_levels(statistics, matrices, shape)
    scale = seen.scale
    levels /= scale[:, None]
    for i, factor in enumerate(seen.maps):
        if factor is not None:
            levels[i] /= factor(x, y)
    noise = np.array([one.cell_noise for one in statistics]) / scale
    sky = np.array([one.sky for one in statistics]) / scale
    pixel = np.sqrt([one.variance for one in statistics]) / scale
    enough = int(np.isfinite(levels).any(axis=0).sum() / CELLS_PER_TERM)
    highest = max((d for d in range(MAX_DEGREE + 1) if n_terms(d) <= enough), default=0)
    basis = terms(x, y, highest, shape)
    fits = [_fit(levels, basis[:, : n_terms(d)], weight, sky) for d in range(highest + 1)]
    degree = _degree(fits, basis, pixel)
    coefficients, rest, good = fits[degree]
    clear = weight * np.maximum(1.0 - ((scale - 1.0) / CLEAR) ** 2, 0.0)
    clear *= np.isfinite(coefficients[:, 0])
    if clear.any():
        coefficients[:, 0] -= clear @ np.nan_to_num(coefficients[:, 0]) / clear.sum()
    scatter = _scatter(rest, good)
    size = np.maximum(np.where(np.isfinite(scatter), scatter, noise), noise)
    return Skies(
        degree,
        [Surface(c, tuple(shape)) for c in coefficients],
        size * _leverage(basis[:, : n_terms(degree)], good),
        np.divide(scatter**2, noise**2, out=np.full(len(noise), np.nan), where=noise > 0),
    )


def _fit(levels, basis, weight, sky):
    """Coefficients (n, k), residuals (n, n_cells) and which cells count, twice clipped."""
    good = np.isfinite(levels)
    for _ in range(3):
        coefficients, rest = _solve(np.where(good, levels, 0.0), good, basis, weight, sky)
        limit = CLIP * _scatter(rest, good)[:, None]
        keep = good & ~(np.abs(rest) > limit)
        if (keep == good).all():
            break
        good = keep
    return coefficients, rest, good


def _solve(levels, good, basis, weight, sky):
    """
    Fit surfaces and the image that all frames share, in turn.

    The weighted mean of the surfaces is kept at nil. Frames that share no cell with
    another one have their median sky for a level.
    """
    n, k = len(levels), basis.shape[1]
    share = good * np.maximum(weight, 1e-12)[:, None]
    total = share.sum(axis=0)
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    normal = (good @ products).reshape(n, k, k)
    # (Terms of which the cells of a frame say nothing stay at nil.)
    normal = normal + 1e-9 * (1.0 + np.trace(normal, axis1=1, axis2=2))[:, None, None] * np.eye(k)
    coefficients = np.zeros((n, k))
    coefficients[:, 0] = sky
    coefficients[~np.isfinite(coefficients)] = 0.0
    coefficients -= weight @ coefficients
    for _ in range(ROUNDS):
        free = levels - coefficients @ basis.T
        common = np.divide(
            (share * free).sum(axis=0), total, where=total > 0, out=np.zeros_like(total)
        )
        rest = np.where(good, free - common, 0.0)
        step = np.linalg.solve(normal, (rest @ basis)[:, :, None])[:, :, 0]
        step -= weight @ step
        coefficients += step
        spread = np.sqrt((rest**2).sum(axis=1) / np.maximum(good.sum(axis=1), 1) ** 2)
        if (np.abs(step).max(axis=1) <= CONVERGED * spread).all():
            break
    return coefficients, np.where(good, levels - coefficients @ basis.T - common, 0.0)


def _scatter(rest, good):
    """Robust standard deviation of each row, NaN where there is nothing."""
    out = np.full(len(rest), math.nan)
    for i, (row, use) in enumerate(zip(rest, good, strict=True)):
        if use.any():
            out[i] = mad_std(row[use], 0.0)
    return out


def _degree(fits, basis, pixel):
    """The degree that the differences ask for."""
    sigma = _scatter(*fits[-1][1:])
    # A frame that makes up most of the mean has next to no residuals of its own.
    sigma = np.maximum(sigma, 1e-3 * pixel)
    degree = 0
    for other in range(1, len(fits)):
        (low, before, good), (high, after, still) = fits[degree], fits[other]
        both = good & still
        fall = np.where(both, before**2 - after**2, 0.0).sum(axis=1) / sigma**2
        price = (n_terms(other) - n_terms(degree)) * np.log(np.maximum(both.sum(axis=1), 2))
        change = high.copy()
        change[:, : low.shape[1]] -= low
        change = np.sqrt(np.mean((change[:, 1:] @ basis[:, 1 : high.shape[1]].T) ** 2, axis=1))
        with np.errstate(invalid="ignore"):
            clear = (fall > price + EVIDENCE + 2 * math.log(len(fall))) & (
                change > MATERIAL * pixel
            )
        if clear.any():
            degree = other
    return degree


def _leverage(basis, good):
    """Error of a surface over that of a cell, rms over the cells of the image."""
    out = np.full(len(good), np.nan)
    for i, use in enumerate(good):
        if use.sum() >= basis.shape[1]:
            inverse = np.linalg.pinv(basis[use].T @ basis[use])
            out[i] = math.sqrt(np.einsum("ij,jk,ik->i", basis, inverse, basis).mean())
    return out
