"""Stars without neighbours, and what the field puts into the circles of such stars all the same."""

import math
from dataclasses import replace

import numpy as np
from scipy.spatial import cKDTree

from astro_narrowband._engine.apertures import circle_sums
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.photometry._measure import measure_sky

#: A neighbour with more than this part of the flux spoils a growth curve.
NEIGHBOUR_FLUX = 0.01
#: With fewer sources than this within reach of a place, those that matter are seen.
CROWDED = 0.5
#: Places without a star that are looked at, and the least number that tells something.
N_PLACES, MIN_PLACES = 1600, 20
#: As many of them are measured, those with the faintest neighbours.
MEASURED = 800
#: A place is brighter than any listed source near it where its light is so many times its scatter.
NOISE = 5.0


def isolated_stars(x, y, flux, good, reach):
    """Which of the ``good`` sources have no neighbour within ``reach`` [pix] that disturbs them."""
    good = good.copy()
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(reach, output_type="ndarray")
    for a, b in (pairs.T, pairs[:, ::-1].T):
        # A neighbour that could not be measured may be bright.
        good[a[~(flux[b] <= NEIGHBOUR_FLUX * flux[a])]] = False
    return good


def without_field(image, curves, sources, reach, *, r_from, **annulus):
    """
    Take off growth curves what faint neighbours and the sky's estimator put into them.

    Parameters
    ----------
    image : `~astro_narrowband.photometry._measure.Image`
    curves : `~astro_narrowband.photometry.GrowthCurves`
        Of stars of `isolated_stars`.
    sources : tuple of `~numpy.ndarray`, (n,)
        x, y and flux of all.
    reach : float
        As for `isolated_stars` [pix].
    r_from : float
        Radius from which the curves will be corrected [pix].
    **annulus
        As for `measure_sky`.

    Returns
    -------
    curves : `~astro_narrowband.photometry.GrowthCurves`
    err : float
        What the correction to the last radius is uncertain by for that.

    Notes
    -----
    The mean of curves at places that are as isolated as each star: no source near them is
    brighter than that part of the star's flux. Their scatter beyond that of the emptiest
    places is a star's own, and in the variance of its largest circle.
    """
    if len(sources[0]) * math.pi * reach**2 < CROWDED * image.pixels.data.size:
        return curves, 0.0
    x, y, brightest = _places(sources, image.pixels.data.shape, reach)
    sums = circle_sums(image.pixels._replace(noise=None, gain=None), x, y, curves.radii)
    level = measure_sky(image, x, y, **annulus).level[:, None]
    use = np.isfinite(level[:, 0]) & ~(sums.off_edge | (sums.n_masked > 0)).any(axis=1)
    if use.sum() < MIN_PLACES:
        return curves, 0.0
    light = (sums.total - sums.area * level)[use]
    a, b = curves.index_of(r_from), len(curves.radii) - 1
    # What nobody listed is a source as well.
    brightest = np.fmax(brightest[use], light[:, b] - NOISE * mad_std(light[:, b]))
    order = np.argsort(brightest, kind="stable")
    light, brightest = light[order], brightest[order]
    star = curves.flux[:, a]
    gain = light[:, b] - light[:, a] * np.nanmedian(curves.flux[:, b] / star)
    count = np.searchsorted(brightest, NEIGHBOUR_FLUX * star, side="right")
    enough = count >= MIN_PLACES
    if not enough.any():
        return curves, 0.0
    n = np.arange(1, len(light) + 1)
    # Light adds; less than none is that of neighbours in annuli, which stars need not have.
    mean = np.maximum(np.cumsum(light, axis=0) / n[:, None], 0)
    last = np.maximum(count, 1) - 1
    scatter = np.sqrt(np.maximum(np.cumsum(gain**2) / n - (np.cumsum(gain) / n) ** 2, 0))
    # Stars count by their light, as they do in the mean.
    err = (scatter[last] / np.sqrt(n[last]) * star)[enough].sum() / (star[enough] ** 2).sum()
    # What a star's own neighbours have more or less than the mean, noise aside.
    other = np.maximum(scatter[last] ** 2 - scatter[max(len(n) // 4, MIN_PLACES) - 1] ** 2, 0)
    variance = curves.pixel_variance.copy()
    variance[:, b] += np.where(enough, other, 0)
    # Where no place is as empty as that its own emptiness is all that is known.
    flux = curves.flux - np.where(enough[:, None], mean[last], 0)
    return replace(curves, flux=flux, pixel_variance=variance), float(err)


def _places(sources, shape, reach):
    """Places that are no one's, x and y, and the flux of the brightest source near each; sorted."""
    *xy, flux = sources
    step = math.sqrt(shape[0] * shape[1] / N_PLACES)
    x, y = (
        grid.ravel()
        for grid in np.meshgrid(*(np.arange(reach, size - reach, step) for size in shape[::-1]))
    )
    near = cKDTree(np.column_stack([x, y])).sparse_distance_matrix(
        cKDTree(np.column_stack(xy)), reach, output_type="ndarray"
    )
    brightest = np.zeros(len(x))
    np.maximum.at(brightest, near["i"], np.nan_to_num(flux, nan=np.inf)[near["j"]])
    order = np.argsort(brightest, kind="stable")[:MEASURED]
    return x[order], y[order], brightest[order]
