"""
What the sky does under a star that the annulus around it does not tell.

An annulus measures the level around a star. In a nebula, or between stars too
faint to be seen, the level under the star is another one, and no annulus can say
by how much. The image can: at blank places, circles less their annuli scatter by
noise and by that.
"""

import math

import numpy as np
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from astro_narrowband._engine import apertures
from astro_narrowband.photometry._measure import UNEVEN, measure_sky, split_variance

#: Blank places that are looked at in an image, and the least number that says anything.
N_PROBES, MIN_PROBES = 900, 6
#: Where the reach of the sources covers the image so many times, and there are so many, it is a
#: crowd; there, circles count whose rims are this part of the annulus' outer radius from sources.
CROWDED, MIN_CROWD, BESIDE = 2.5, 40, 0.2
#: So many blank circles beside a place tell what it is like there.
BESIDES = 24
#: Radii at which structure is measured; between them it is interpolated.
N_RADII = 4
#: Mean of the log of chi2 per degree of freedom of the sectors of an annulus.
LOG_MEAN = -0.2131
#: A blank circle that is above its level by more than so many sigma counts as by that many.
MOST = 6.0
#: A circle has a star in it where its highest pixel is above the level by so many sigma, and by
#: that part more than most of those at the radius of a star's circle (a part of r_in) around it.
STAR, SHARP, CIRCLE, MOSTLY = 4.5, 0.7, 0.42, 75


def level_errors(image, x, y, level, *, radii, **annulus):
    """Return the errors of levels under circles, (n, m): of noise, and `structure_variance`."""
    variance = np.repeat(level.err[:, None] ** 2, len(radii), axis=1)
    if isinstance(annulus["sky"], str):
        variance += structure_variance(image, x, y, level, radii=radii, **annulus)
    return np.sqrt(variance)


def structure_variance(image, x, y, level, *, radii, r_in, r_out, sky, clip):
    """
    Return the variance of the sky's level under circles beyond that of noise, (n, m).

    Parameters
    ----------
    image : `~astro_narrowband.photometry._measure.Image`
    x, y : `~numpy.ndarray`, (n,)
    level : `~astro_narrowband.photometry._measure.Sky`
        Of their annuli.
    radii : `~numpy.ndarray`, (m,)
        [pix]
    r_in, r_out, sky, clip
        Of the annuli, as for `measure_sky`.

    Notes
    -----
    Blank circles with a star that nobody listed do not count. The excess of the others over
    noise is a sum, with weights of zero or more, of what their annuli show beyond noise: the
    variance of the means of sectors about a plane, the square of the step between the inner
    and the outer half, the variance of pixels, and one number for all. The weights are the
    likeliest; what they add is lowered by g / (g + 8), g being the gain in -2 log likelihood:
    two for each weight are chance. Where there are fewer than six blank circles only annuli
    that are plainly uneven have structure.
    """
    radii = np.asarray(radii, float)
    spread = np.nan_to_num(level.spread, nan=1.0)
    plain = np.where(level.uneven, np.maximum(np.nan_to_num(level.structure[:, 0]), 0), 0.0)
    if not len(x):
        return np.zeros((0, len(radii)))
    at = np.unique(np.linspace(0, len(radii) - 1, min(N_RADII, len(radii))).astype(int))
    *blank, distance = _blank_places(image, x, y, radii, r_out)
    around = measure_sky(image, *blank, r_in=r_in, r_out=r_out, sky=sky, clip=clip)
    good = np.isfinite(around.structure).all(axis=1) & np.isfinite(around.err)
    if good.sum() < MIN_PROBES:
        return np.repeat(plain[:, None], len(radii), axis=1)
    around = around.rows(good)
    blank = [values[good] for values in blank]
    mean, noise = _blank_circles(image, blank, around, radii[at], r_in)
    mean[distance[good, None] < radii[at] + BESIDE * r_out] = np.nan
    usual = np.median(around.structure, axis=0)
    shown, seen = (_shown(structure, usual) for structure in (around.structure, level.structure))
    # An annulus that is not like the others speaks for itself.
    known = around.spread[around.spread > 0]
    alone = spread > UNEVEN * math.exp(np.mean(np.log(known)) - LOG_MEAN if known.size else 0)
    out = np.zeros((len(x), len(at)))
    for j in range(len(at)):
        if j and np.isfinite(mean[:, j]).sum() < MIN_PROBES:
            # No such circle is blank: the level is that under smaller ones.
            out[:, j] = out[:, j - 1]
            continue
        at_blank, at_star = _beside(blank, (x, y), mean[:, j], noise[:, j])
        weights = _likeliest(mean[:, j], noise[:, j], np.column_stack([shown, at_blank]))
        out[:, j] = np.column_stack([seen, at_star]) @ weights
        out[alone, j] = np.maximum(out[alone, j], plain[alone])
    return np.array([np.interp(radii, radii[at], row) for row in out]).reshape(len(x), -1)


def _shown(structure, usual):
    """What annuli show of structure, none of it below zero, and a one; as usual where unknown."""
    known = np.where(np.isfinite(structure), structure, usual)
    return np.column_stack([np.maximum(np.nan_to_num(known), 0), np.ones(len(known))])


def _beside(blank, places, mean, noise):
    """Mean excess of the nearest blank circles, without its own: at each of them, and at places."""
    use = np.isfinite(mean)
    xy = np.column_stack(blank)
    tree = cKDTree(xy[use])
    square = np.where(mean > 0, np.minimum(mean**2, MOST**2 * noise), mean**2)
    excess = (square - noise)[use]
    n = min(BESIDES, use.sum() - 1)
    at_blank = excess[tree.query(xy, n + 1)[1][:, 1:]].mean(axis=1)
    at_places = excess[tree.query(np.column_stack(places), n)[1].reshape(-1, n)].mean(axis=1)
    return np.maximum(at_blank, 0), np.maximum(at_places, 0)


def _blank_places(image, x, y, radii, r_out):
    """A grid of places, x and y, that are no one's position."""
    ny, nx = image.pixels.data.shape
    r = radii[-1]
    step = max(2 * radii[0], math.sqrt(nx * ny / N_PROBES))
    # As far from the rim as a whole annulus is, where there is room.
    rims = [min(r_out, max(r, (size - 1 - 4 * step) / 2)) for size in (nx, ny)]
    lines = [
        np.arange(rim, size - 1 - rim + 1e-9, step) + 0.37
        for rim, size in zip(rims, (nx, ny), strict=True)
    ]
    px, py = (grid.ravel() for grid in np.meshgrid(*lines))
    listed = np.column_stack([x, y])
    distance = cKDTree(listed).query(np.column_stack([px, py]))[0]
    # Neither in the circle nor in the annulus has a listed star its light.
    keep = distance > r + r_out
    if len(x) >= MIN_CROWD and len(x) * math.pi * (r + r_out) ** 2 > CROWDED * nx * ny:
        # In a crowd every annulus has stars, as those around stars have: the circle is blank.
        keep = distance > radii[0] + BESIDE * r_out
    return px[keep], py[keep], distance[keep]


def _blank_circles(image, blank, around, radii, r_in):
    """Means of blank circles less their levels, (n, m), NaN for those with a star; variances."""
    sums = apertures.circle_sums(image.pixels, *blank, radii)
    source, background = split_variance(image, sums, around, radii)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.total / sums.area - around.level[:, None]
        noise = (source + background) / sums.area**2 + around.err[:, None] ** 2
    star = np.stack([_has_star(image, blank, around, radius, r_in) for radius in radii], axis=1)
    whole = sums.area > 0.9 * math.pi * radii**2
    mean[~whole | star | ~(noise > 0)] = np.nan
    return mean, noise


def _has_star(image, blank, around, radius, r_in):
    """Which circles have a peak that falls off as that of a star; nebula does not in all ways."""
    half = math.ceil(radius) + 1
    oy, ox = (grid.ravel() for grid in np.mgrid[-half : half + 1, -half : half + 1])
    iy, ix = (np.rint(values).astype(int) for values in blank[::-1])
    data = image.pixels.around(iy, ix, oy, ox, narrow=True)[0]
    at = data.argmax(axis=1)
    angle = np.arange(16) * np.pi / 8
    far = max(CIRCLE * r_in, 2.0)
    ring_y, ring_x = (np.rint(far * f(angle)).astype(int) for f in (np.sin, np.cos))
    ring = image.pixels.around(iy + oy[at], ix + ox[at], ring_y, ring_x, narrow=True)[0]
    height = data.max(axis=1) - around.level
    fall = data.max(axis=1) - np.percentile(ring, MOSTLY, axis=1)
    return (height > STAR * around.std) & (fall > SHARP * height)


def _likeliest(mean, noise, shown):
    """Weights of what annuli show, for which variance = noise + shown @ weights is likeliest."""
    use = np.isfinite(mean)
    weights = np.zeros(shown.shape[1])
    if use.sum() < MIN_PROBES:
        return weights
    mean, noise, shown = mean[use], noise[use], shown[use]

    def cost(weights):
        whole = noise + shown @ weights
        square = np.where(mean > 0, np.minimum(mean**2, MOST**2 * whole), mean**2)
        return np.sum(square / whole + np.log(whole)), whole, square

    empty, whole, square = cost(weights)
    for _ in range(30):
        last = weights
        weights = (last + nnls(shown / whole[:, None], (square - noise) / whole)[0]) / 2
        after, whole, square = cost(weights)
        if np.allclose(last, weights, rtol=1e-2, atol=0):
            break
    gain = max(empty - after, 0.0)
    return weights * gain / (gain + 2 * len(weights))
