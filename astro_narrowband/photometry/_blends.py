"""Sources that are not single stars, seen by their shape."""

import math

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri

from astro_narrowband._engine.apertures import circle_sums
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import bare
from astro_narrowband.photometry._annulus import Flag
from astro_narrowband.photometry._correction import Surface, frame_of, terms_of

#: Bright stars that tell the usual shape: least signal to noise, how many, and at least how many.
SHAPE_SNR, MAX_SHAPES, MIN_SHAPES = 20.0, 500, 12
#: Most of a crowd may be blends: the usual shape is that of the smallest quarter.
SMALLEST = 0.25
#: How dense a field is at a place is told by as many sources.
NEAR = 20
#: So many more of the stars, or one, must be near a surface for each of its terms.
PER_TERM = 0.02
#: Error of the concentration in units of 1 / snr, and the least scatter of each measure.
WHOLE_NOISE, SHAPE_FLOOR = 0.75, 0.003


def unlike_stars(pixels, shapes, stars, table, *, r):
    """
    Find sources that are wider, longer or less dense than single stars of their place.

    Parameters
    ----------
    pixels : `~astro_narrowband._engine.apertures.Pixels`
    shapes : `~astro_narrowband.photometry._shapes.Shapes`
        Of all sources.
    stars : `~astropy.table.QTable`
        From `~astro_narrowband.detect_stars`.
    table : `~astropy.table.QTable`
        The same sources from `~astro_narrowband.photometry.annulus_photometry`, EXTENDED flagged.
    r : float
        Radius of their apertures [pix].

    Returns
    -------
    unlike : `~numpy.ndarray` of bool, (n,)
    whole : `~numpy.ndarray`, (n,)
        Light within the aperture over that within half of it.
    usual : `~astro_narrowband.photometry._correction.Surface` or None
        What that is for single stars; None where too few tell.

    Notes
    -----
    The usual shape is a surface over the field. Of sizes: the quantile regression of the
    lowest quarter of the bright stars, for most of a field may be pairs, then the mean of
    those near it. Sources that are plainly wide, pairs, knots or filaments, do not count. A
    neighbour in any direction adds as much to the size as to the length; both are weighed by
    their errors.
    """
    x, y = (stars[name].value for name in ("x_center", "y_center"))
    core = circle_sums(pixels._replace(noise=None, gain=None), x, y, [r / 2])
    sky, flux = (bare(table[name]) for name in ("sky", "flux"))
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = flux / (core.total - sky[:, None] * core.area)[:, 0]
        snr = np.maximum(bare(table["snr"]), 1.0)
    saturated = np.asarray(stars["saturated"])
    good = (snr > SHAPE_SNR) & ~saturated & np.isfinite(shapes.size) & np.isfinite(whole)
    wide = (table["flags"] & Flag.EXTENDED) > 0
    if (good & ~wide).sum() >= MIN_SHAPES:
        good &= ~wide
    use = np.flatnonzero(good)
    use = use[np.argsort(-snr[use], kind="stable")][:MAX_SHAPES]
    if len(use) < MIN_SHAPES:
        return np.zeros(len(x), bool), whole, None
    unit = np.median(shapes.size[use])
    away = {}
    for name, value, noise, lowest in (
        ("size", shapes.size / unit, shapes.size_err / unit, SMALLEST),
        ("plus", shapes.plus / unit, shapes.long_err / unit, 0.5),
        ("cross", shapes.cross / unit, shapes.long_err / unit, 0.5),
        ("whole", whole / np.median(whole[use]), WHOLE_NOISE / snr, SMALLEST),
    ):
        usual, scatter = _usual(x, y, value, noise, use, SHAPE_FLOOR, lowest)
        away[name] = value - usual.at(x, y)[0], np.hypot(scatter, noise)
    unit = np.median(whole[use])
    usual = usual._replace(
        coefficients=usual.coefficients * unit, covariance=usual.covariance * unit**2
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        dense = ndtr(-away["whole"][0] / away["whole"][1])
        chance = 2 * np.fmin(_chance(*away["size"], *away["plus"], away["cross"][0]), dense)
        # Knots and clusters fill part of a field.
        far = cKDTree(np.column_stack([x, y])).query(np.column_stack([x, y]), [NEAR])[0][:, 0]
        by_chance = r**2 * np.fmax(NEAR / far**2, len(x) * math.pi / pixels.data.size)
        # In a crowd blends are many, and a few single stars more do not count; elsewhere they do.
        return (chance < by_chance**1.7) & ~saturated, whole, usual


def _chance(wider, size_err, plus, long_err, cross):
    """
    Chance that noise makes a star as wide and as long as that, whatever its direction.

    Width and length, weighed by their errors, are the sum of a normal and of a Rayleigh
    variable, with weights c and s, c**2 + s**2 = 1: it is above t with a chance of
    Q(t / c) + s exp(-t**2 / 2) P(t s / c), P being the normal distribution and Q = 1 - P.
    """
    err = (size_err**-2 + long_err**-2) ** -0.5
    c, s = err / size_err, err / long_err
    t = c * wider / size_err + s * np.hypot(plus, cross) / long_err
    return ndtr(-t / c) + s * np.exp(-t * np.maximum(t, 0) / 2) * ndtr(t * s / c)


def _usual(x, y, value, noise, use, floor, lowest):
    """The shape of single stars, a `Surface`, and its scatter beyond noise."""
    middle, half = frame_of(x, y)
    terms = terms_of((x[use] - middle[0]) / half, (y[use] - middle[1]) / half)
    best = (-math.inf,)
    for k in (1, 3, 6):
        if len(use) < 4 * k:
            break
        *fit, scatter = _fit_lowest(terms[:, :k], value[use], noise[use], floor, lowest)
        near = np.abs(value[use] - terms[:, :k] @ fit[0]) < 2.5 * np.hypot(noise[use], floor)
        # A surface that bends to half a field of pairs has fewer stars near it than a flat one.
        score = near.mean() - max(PER_TERM, 1 / len(use)) * k
        if score > best[0]:
            best = (score, Surface(middle, half, *fit), scatter)
    return best[1:]


def _fit_lowest(design, seen, noise, floor, lowest):
    """Fit the quantile ``lowest``, then stars near it: coefficients, covariance, scatter."""
    error = np.hypot(noise, floor)
    weight = np.ones(len(seen))
    for _ in range(40):
        root = np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(design * root, seen * root[:, 0], rcond=None)[0]
        left = (seen - design @ solution) / error
        # Iterated weights of a quantile.
        weight = np.where(left > 0, lowest, 1 - lowest) / np.maximum(np.abs(left), 0.05)
    scatter = floor
    left = left + ndtri(lowest)
    for _ in range(6):
        width = np.hypot(noise, scatter)
        keep = np.abs(left * error) < 2.5 * width
        if keep.sum() <= 2 * design.shape[1]:
            break
        root = (1 / width[keep])[:, None]
        solution = np.linalg.lstsq(design[keep] * root, seen[keep] * root[:, 0], rcond=None)[0]
        left = (seen - design @ solution) / error
        below = (left * error)[(left < 0) & keep]
        spread = mad_std(below, 0.0) if len(below) > 5 else 0.0
        excess = spread**2 - np.median(noise[keep]) ** 2
        scatter = max(floor, math.sqrt(max(excess, 0.0)))
    weighted = design / np.hypot(noise, scatter)[:, None]
    return solution, np.linalg.pinv(weighted.T @ weighted), scatter
