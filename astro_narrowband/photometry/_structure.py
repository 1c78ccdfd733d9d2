"""
What the sky does under a star that the annulus around it does not tell.

An annulus measures the level around a star. In a nebula, or between stars too
faint to be seen, the level under the star is another one, and no annulus can say
by how much. The image can: at blank places, circles less their annuli scatter by
noise and by that.
"""

import itertools
import math

import numpy as np
from scipy.spatial import cKDTree

from astro_narrowband._engine import apertures
from astro_narrowband._engine.annuli import N_SECTORS
from astro_narrowband.photometry._measure import UNEVEN, measure_sky, split_variance

__all__ = ["structure_variance"]

#: Blank places that are looked at in an image, and the least number that says anything.
N_PROBES, MIN_PROBES = 900, 6
#: Where the reach of the sources covers the image so many times, and there are so many, it is a
#: crowd; there, circles count whose rims are this part of the annulus' outer radius from sources.
CROWDED, MIN_CROWD, BESIDE = 2.5, 40, 0.2
#: Radii at which structure is measured; between them it is interpolated.
N_RADII = 4
#: How many of the nearest blank annuli (None: all), and what weight of a star's own one, may
#: tell how uneven the sky is there.
NEAREST, WORTH = (12, 48, None), (0.0, 0.15, 0.4, 0.8)
#: Mean of the log of chi2 per degree of freedom of the sectors of an annulus.
LOG_MEAN = -0.2131
#: Of the noise of a sector: structure that can be present where sectors show none.
UNSEEN = 0.05
#: A blank circle that is above its level by more than so many sigma counts as by that many.
MOST = 6.0
#: A circle has a star in it where its highest pixel is so many sigma, and so many times the
#: circle's mean, above its median.
STAR = 4.5, 1.5


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
    Blank circles with a star that nobody listed do not count. The excess of the others
    over noise is shared out over the image by how uneven the annuli are, as chi2 of the
    means of their sectors: that of the nearest blank ones, and a star's own. By
    empirical Bayes: how many of the nearest, what weight for its own and how much
    structure a given unevenness means are those by which the blank circles are likeliest.
    The excess x is lowered by its own error e to x**3 / (x**2 + 4 e**2). Where there
    are fewer than six blank circles only annuli that are plainly uneven have structure.
    """
    radii = np.asarray(radii, float)
    own = _sector_noise(level)
    spread = np.nan_to_num(level.spread, nan=1.0)
    plain = np.where(level.uneven, own * (spread - 1), 0.0)
    if not len(x):
        return np.zeros((0, len(radii)))
    at = np.unique(np.linspace(0, len(radii) - 1, min(N_RADII, len(radii))).astype(int))
    *blank, distance = _blank_places(image, x, y, radii, r_out)
    around = measure_sky(image, *blank, r_in=r_in, r_out=r_out, sky=sky, clip=clip)
    good = np.isfinite(around.spread) & (around.spread > 0) & np.isfinite(around.err)
    if good.sum() < MIN_PROBES:
        return np.repeat(plain[:, None], len(radii), axis=1)
    blank, distance = tuple(values[good] for values in blank), distance[good]
    around = around.rows(good)
    near = _Nearest(blank, around, (x, y), spread)
    sectors = _sector_noise(around)
    mean, noise = _blank_circles(image, blank, around, radii[at])
    mean[distance[:, None] < radii[at] + BESIDE * r_out] = np.nan
    fits = [_likeliest(mean[:, j], noise[:, j], sectors, near) for j in range(len(at))]
    out = np.zeros((len(x), len(at)))
    for j, (ratio, blend) in enumerate(fits):
        if j and np.isfinite(mean[:, j]).sum() < MIN_PROBES:
            # No such circle is blank: the level is that under smaller ones.
            out[:, j] = out[:, j - 1]
            continue
        here = near.of_stars(*blend)
        out[:, j] = ratio * own * (np.maximum(here - 1, 0) + UNSEEN)
        # An annulus that is not like the others speaks for itself.
        alone = level.uneven & (spread > UNEVEN * here)
        out[alone, j] = max(ratio, 1) * plain[alone]
    return np.array([np.interp(radii, radii[at], row) for row in out]).reshape(len(x), -1)


def _sector_noise(level):
    """Variance that noise gives the mean of a sector of each annulus; 0 where unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(level.std**2 * N_SECTORS / level.n * level.excess)


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


class _Nearest:
    """How uneven the sky is near blank places and near stars: chi2 of sectors."""

    def __init__(self, blank, around, at, spread):
        tree = cKDTree(np.column_stack(blank))
        self.spread, self.own = around.spread, spread
        most = min(max(n for n in NEAREST if n), len(self.spread) - 1)
        logs = np.log(self.spread) - LOG_MEAN
        self.mean = logs.mean()
        self.of_blanks = logs[tree.query(np.column_stack(blank), most + 1)[1][:, 1:]]
        self.near = logs[tree.query(np.column_stack(at), most)[1].reshape(-1, most)]

    def of_blank(self, nearest, worth):
        """Of blank places, each seen as a star would be."""
        return (1 - worth) * self._prior(self.of_blanks, nearest) + worth * self.spread

    def of_stars(self, nearest, worth):
        """Of stars."""
        return (1 - worth) * self._prior(self.near, nearest) + worth * self.own

    def _prior(self, logs, nearest):
        return np.exp(self.mean if nearest is None else logs[:, :nearest].mean(axis=1))


def _blank_circles(image, blank, around, radii):
    """Means of blank circles less their levels, (n, m), NaN for those with a star; variances."""
    sums = apertures.circle_sums(image.pixels, *blank, radii)
    source, background = split_variance(image, sums, around, radii)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums.total / sums.area - around.level[:, None]
        noise = (source + background) / sums.area**2 + around.err[:, None] ** 2
    iy, ix = (np.rint(values).astype(int) for values in blank[::-1])
    star = np.empty(mean.shape, bool)
    for j, radius in enumerate(radii):
        half = math.ceil(radius) + 1
        oy, ox = (grid.ravel() for grid in np.mgrid[-half : half + 1, -half : half + 1])
        data = image.pixels.around(iy, ix, oy, ox, narrow=True)[0]
        height = data.max(axis=1) - np.median(data, axis=1)
        star[:, j] = height > STAR[0] * around.std + STAR[1] * np.maximum(mean[:, j], 0)
    whole = sums.area > 0.9 * math.pi * radii**2
    mean[~whole | star | ~(noise > 0)] = np.nan
    return mean, noise


def _likeliest(mean, noise, sectors, near):
    """Structure over what sectors show of it, and how to look at them: (nearest, worth)."""
    use = np.isfinite(mean)
    if use.sum() < MIN_PROBES:
        return 0.0, (NEAREST[0], 0.0)
    mean, noise, sectors = mean[use], noise[use], sectors[use]
    best = (math.inf, 0.0, (NEAREST[0], 0.0))
    for blend in itertools.product(NEAREST, WORTH):
        share = sectors * (np.maximum(near.of_blank(*blend)[use] - 1, 0) + UNSEEN)
        ratio, err, cost = _fit_ratio(mean, noise, share)
        if cost < best[0] - 1:
            best = (cost, ratio**3 / (ratio**2 + 4 * err**2) if ratio > 0 else 0.0, blend)
    return best[1:]


def _fit_ratio(mean, noise, share):
    """Fit variance = noise + ratio share to ``mean``: ratio, its error, -2 log likelihood."""
    ratio, last = 0.0, math.inf
    for _ in range(30):
        whole = noise + ratio * share
        square = np.where(mean > 0, np.minimum(mean**2, MOST**2 * whole), mean**2)
        information = np.sum((share / whole) ** 2)
        step = np.sum((square - whole) * share / whole**2) / information
        ratio = max(ratio + step, 0.0)
        if abs(ratio - last) <= 1e-3 * ratio:
            break
        last = ratio
    return ratio, math.sqrt(2 / information), np.sum(square / whole + np.log(whole))
