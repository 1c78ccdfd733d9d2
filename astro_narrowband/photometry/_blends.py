"""Sources that are not single stars: seen by their shape, or counted on where it hides them."""

import math

import numpy as np

from astro_narrowband._engine.apertures import circle_sums
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.photometry._measure import read_image

__all__ = ["hidden_error", "unlike_stars"]

#: Bright stars that tell the usual shape: least signal to noise, how many, and at least how many.
SHAPE_SNR, MAX_SHAPES, MIN_SHAPES = 20.0, 500, 12
#: Most of a crowd may be blends: the usual shape is that of the smallest quarter.
SMALLEST = 0.25
#: So many more of the stars, or one, must be near a surface for each of its terms.
PER_TERM = 0.02
#: A blend differs by more than so many sigma.
UNLIKE = 4.0
#: Errors of width, roundness and concentration in units of 1 / snr, and the least scatter of each.
SHAPE_NOISE, SHAPE_FLOOR = (1.1, 1.3, 0.75), (0.01, 0.01, 0.003)
#: Farther away than this [FWHM] a neighbour is a source of its own, or outside the aperture.
APART = 1.25
#: As many of the stars may have a hidden neighbour of more than five times their error.
HIDDEN = 0.007
#: Sources that tell how dense the field is around each, and the least number in an image.
NEAREST, MIN_COUNTS = 30, 40
#: Of all sources, at most so many times those that were seen are there.
UNSEEN = 1.5


def unlike_stars(ccd, stars, table, r):
    """
    Find sources that are wider, longer or less dense than single stars of their place.

    Parameters
    ----------
    ccd : `~astropy.nddata.CCDData`
    stars : `~astropy.table.QTable`
        From `~astro_narrowband.detect_stars`.
    table : `~astropy.table.QTable`
        The same sources from `~astro_narrowband.photometry.annulus_photometry`.
    r : float
        Radius of their apertures [pix].

    Returns
    -------
    unlike : `~numpy.ndarray` of bool, (n,)
    allowed : `~numpy.ndarray`, (n,)
        What the concentration may differ by, as a part of it.

    Notes
    -----
    The usual shape is a surface over the field: the quantile regression of the lowest
    quarter of the bright stars, for most of a field may be pairs, then the mean of those near it.
    """
    x, y = (stars[name].value for name in ("x_center", "y_center"))
    core = circle_sums(read_image(ccd).pixels._replace(noise=None, gain=None), x, y, [r / 2])
    sky, flux = (_bare(table[name]) for name in ("sky", "flux"))
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = flux / (core.total - sky[:, None] * core.area)[:, 0]
        own = np.maximum(_bare(table["snr"]), 1.0)
    snr = np.maximum(_bare(stars["snr"]), 1.0)
    good = (snr > SHAPE_SNR) & (own > SHAPE_SNR) & ~np.asarray(stars["saturated"])
    unlike, allowed = np.zeros(len(stars), bool), np.full(len(stars), np.inf)
    for value, noise, absolute, unit, floor in zip(
        (_bare(stars["fwhm"]), _bare(stars["roundness"]), whole),
        (1 / snr, 1 / snr, 1 / own), (False, True, False), SHAPE_NOISE, SHAPE_FLOOR, strict=True,
    ):  # fmt: skip
        use = np.flatnonzero(good & np.isfinite(value))
        if len(use) < MIN_SHAPES:
            continue
        use = use[np.argsort(-snr[use], kind="stable")][:MAX_SHAPES]
        value = value if absolute else value / np.median(value[use])
        usual, scatter = _usual(x, y, value, unit * noise, use, floor)
        allowed = UNLIKE * np.hypot(scatter, unit * noise)
        with np.errstate(invalid="ignore"):
            unlike |= value - usual > allowed
    return unlike & ~np.asarray(stars["saturated"]), allowed


def _usual(x, y, value, noise, use, floor):
    """The shape of single stars at all places, and its scatter beyond noise."""
    a, b = ((at - at.min()) / (np.ptp(at) or 1.0) * 2 - 1 for at in (x, y))
    terms = np.column_stack([np.ones_like(a), a, b, a * a, a * b, b * b])
    best = (-math.inf,)
    for k in (1, 3, 6):
        if len(use) < 4 * k:
            break
        solution, scatter = _lowest(terms[use, :k], value[use], noise[use], floor)
        near = np.abs(value[use] - terms[use, :k] @ solution) < 2.5 * np.hypot(noise[use], floor)
        # A surface that bends to half a field of pairs has fewer stars near it than a flat one.
        score = near.mean() - max(PER_TERM, 1 / len(use)) * k
        if score > best[0]:
            best = (score, terms[:, :k] @ solution, scatter)
    return best[1:]


def _lowest(design, seen, noise, floor):
    """Fit the lowest quarter, then the stars that are near it: coefficients and scatter."""
    error = np.hypot(noise, floor)
    weight = np.ones(len(seen))
    for _ in range(40):
        root = np.sqrt(weight)[:, None]
        solution = np.linalg.lstsq(design * root, seen * root[:, 0], rcond=None)[0]
        left = (seen - design @ solution) / error
        # Iterated weights of a quantile.
        weight = np.where(left > 0, SMALLEST, 1 - SMALLEST) / np.maximum(np.abs(left), 0.05)
    scatter = floor
    # The lowest quarter of single stars is 0.67 sigma below their mean.
    left = left - 0.67
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
    return solution, scatter


def hidden_error(x, y, flux, err, allowed, *, fwhm, shape):
    """
    Return the error that neighbours give whom no shape shows, beyond ``err``, (n,).

    Parameters
    ----------
    x, y, flux, err : `~numpy.ndarray`, (n,)
        All sources of an image.
    allowed : `~numpy.ndarray`, (n,)
        From `unlike_stars`.
    fwhm : float
        [pix]
    shape : tuple of int
        Of the image.

    Notes
    -----
    The counts of the image, a power law normalised to the density around each source, tell
    how many neighbours brighter than c are within a distance: one of a part q of the flux
    at d FWHM changes a concentration by about q d**2, and stays hidden where that is less than
    ``allowed``, no farther away than 1.25. The flux c that 0.7 % of the stars have hidden, at
    most half of what was measured, is five times the error; where that is less than ``err``
    nothing is added.
    """
    from scipy.spatial import cKDTree

    none = np.zeros(len(x))
    known = np.isfinite(flux) & (flux > 0) & np.isfinite(err)
    if known.sum() < MIN_COUNTS:
        return none
    # Half of the sources are brighter: as many of those are seen as there are.
    faintest = float(np.median(flux[known]))
    bright = np.flatnonzero(known & (flux > faintest))
    slope = float(np.clip(1 / np.mean(np.log(flux[bright] / faintest)), 0.3, 2.0))
    tree = cKDTree(np.column_stack([x[bright], y[bright]]))
    n = min(NEAREST, len(bright) - 1)
    reach = tree.query(np.column_stack([x, y]), n)[0][:, -1]
    area = np.ones(len(x))
    for at, size in ((x, shape[1]), (y, shape[0])):
        area *= np.clip(at + reach, 0, size) - np.clip(at - reach, 0, size)
    near = n / (np.pi / 4 * np.maximum(area, 1.0)) * np.pi * fwhm**2 / HIDDEN
    flux = np.where(known, flux, np.nan)
    # The integral of the counts times the area in which a neighbour of each flux is hidden.
    hidden = near * slope / (1 + slope) * allowed * flux
    neighbour = np.minimum(
        faintest * (near * APART**2) ** (1 / slope),
        (faintest**slope * hidden) ** (1 / (1 + slope)),
    )
    # The counts end where they have as many as there can be.
    end = faintest * (len(bright) / (UNSEEN * known.sum())) ** (1 / slope)
    neighbour = np.where(neighbour > end, np.minimum(neighbour, flux / 2), 0.0)
    return np.nan_to_num(np.sqrt(np.maximum((neighbour / 5) ** 2 - err**2, 0.0)))


def _bare(column):
    return np.asarray(getattr(column, "value", column), float)
