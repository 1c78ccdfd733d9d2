"""
One set of star fluxes from all frames, and how each frame's transparency differs from it.

Private to `astro_narrowband.coaddition`. Cloud dims; it does so in a part of a frame; and any
frame may have it, the reference as well. So the frame that most others agree with in the
*pattern* of their fluxes is the standard (the most transparent one, if several are), and all
that agree with it make the fluxes that every frame is measured against.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from astro_narrowband._engine.statistics import MAD_TO_STD, mad_std
from astro_narrowband.coaddition._surface import Surface, n_terms, terms

#: Relative error of a star's flux that no photon count takes away (flat, centring, PSF).
FLUX_FLOOR = 0.003
#: Frames that may be the standard, and stars over which patterns are compared: more tell no more.
CANDIDATES, PATTERN_STARS = 9, 150
#: Frames that others agree with nearly as well as with the best: two differ from each other by
#: -30 or +43 %, as one or the other is taken for the standard.
ALIKE = 1.6
#: What is off by less than this is no pattern of clouds (part of a star's flux).
EVEN = 0.01
#: Where stars are too few to be judged by their neighbours, each may be off by this: nebula in
#: apertures that grow with the seeing, a faint neighbour.
EVEN_ALONE = 0.12
#: Cloud with an edge: a line parts so few stars into two levels that differ by more than this,
#: where chance does so, in all ways to draw the line, with no more than this probability.
EDGE, EDGE_CHANCE, DIRECTIONS = 0.04, 1e-4, 24
#: Fewer stars show no such line.
LEAST_OF_EDGE = 5
#: The clear part of a frame is as bright as another that is clear, to this.
AS_CLEAR = 0.03
#: In the half of a frame that most others have under cloud, it is brighter by more than this.
CLOUD_BANK = 0.1
#: More than this many times what is usual in the other frames is patchy.
UNUSUAL = 3.0
#: Patterns that are larger than so many times their error count.
SIGNIFICANT = 3.0
#: Largest degree of a map, stars for each of its terms, by how much more than the Bayesian
#: criterion chi2 must fall for it, and the least rms of a map.
MAP_DEGREE, STARS_PER_TERM, EVIDENCE, LEAST_MAP = 3, 3, 15.0, 0.005
#: A map may not be less certain than this anywhere in the image.
MAP_ERROR = 0.03
#: Variance of the median of a few values over that of their mean.
MEDIAN_OF_FEW = 1.45
#: Scales of clear frames: known to this, and as near to the middle of all (relative).
SURE, ONE_NIGHT = 0.02, 0.03
#: A frame that is dimmer than the clearest one by more than this was taken through haze.
HAZE = 0.1
#: Fluxes that are off by more than so many sigma do not count.
CLIP = 4.0


@dataclass(eq=False)
class Consensus:
    """Scales and what the stars say of them; see `Transparency`, whose attributes these are."""

    scale: np.ndarray
    error: np.ndarray
    maps: list
    chi2: np.ndarray
    uneven: np.ndarray
    patchy: np.ndarray
    reference: int


def star_consensus(xy, flux, error, reference, shape):
    """
    Compare the fluxes of stars in all frames.

    Parameters
    ----------
    xy : `~numpy.ndarray`, (n_stars, 2)
        Positions on the grid.
    flux, error : `~numpy.ndarray`, (n, n_stars)
        NaN where a frame does not have the star.
    reference : int
        The frame that scales refer to, unless its own is uneven or it has no stars.
    shape : tuple of int

    Returns
    -------
    `Consensus`
        NaN where there is nothing to compare.
    """
    n = len(flux)
    error = np.hypot(error, FLUX_FLOOR * flux)
    standard = _standard(xy, flux, error, reference)
    agree = np.zeros(n, bool)
    agree[standard] = True
    scale = np.full(n, np.nan)
    for _ in range(3):
        common, common_err = _mean_fluxes(flux, error, scale, agree)
        scale, scale_err = _scales(flux, error, common, common_err)
        patterns = [_pattern(xy, flux[i], error[i], common, common_err) for i in range(n)]
        agree = np.array([not off > max(EVEN, SIGNIFICANT * sure) for off, sure in patterns])
        agree &= np.isfinite(scale)
        agree[standard] = True
    base = reference if agree[reference] else standard
    fits = [_map(xy, flux[i], error[i], common, common_err, shape) for i in range(n)]
    alone = [_n_near(np.sum(np.isfinite(each) & np.isfinite(common))) == 1 for each in flux]
    even = np.where(alone, EVEN_ALONE, EVEN)
    consensus = _consensus(scale, scale_err, fits, base, even)
    # Which of three is off, and whether by cloud, nobody can tell.
    consensus.patchy &= np.isfinite(flux).sum(axis=1) > 3
    if agree.sum() == 1:
        consensus.uneven[standard] = _doubt(flux, common, patterns, standard)
    return consensus


def _consensus(scale, scale_err, fits, base, even):
    maps, level, chi2, uneven, pattern, sure, edge = zip(*fits, strict=True)
    scale = np.where([m is None for m in maps], scale, level)
    uneven, pattern, sure = np.array(uneven), np.array(pattern), np.array(sure)
    known = np.isfinite(pattern)
    # (Of two frames one is even by definition: the lower of the middle values.)
    usual = float(np.sort(pattern[known])[(known.sum() - 1) // 2]) if known.any() else 0.0
    with np.errstate(invalid="ignore"):
        patchy = pattern > np.maximum(np.maximum(even, UNUSUAL * usual), SIGNIFICANT * sure)
    patchy |= edge
    patchy[base] = False
    scale, scale_err = _drawn_together(scale, scale_err / scale)
    base = clearest(scale, scale_err, uneven, patchy | [m is not None for m in maps], base)
    error = np.hypot(scale_err, scale_err[base])
    scale = scale / scale[base]
    error = error * scale
    error[base] = 0.0
    return Consensus(scale, error, list(maps), np.array(chi2), uneven, patchy, base)


def clearest(scale, error, uneven, sloping, base):
    """
    The frame that fluxes refer to: this one, unless it is dimmed and another is clear.

    Parameters
    ----------
    scale, error : `~numpy.ndarray`, (n,)
        ``error`` is relative, NaN where it is not known.
    uneven : `~numpy.ndarray`, (n,)
        By how much parts of a frame are off.
    sloping : `~numpy.ndarray` of bool, (n,)
        Whether no number is the scale of all of a frame.
    base : int
    """
    known = np.sort(uneven[np.isfinite(uneven)])
    usual = known[(len(known) - 1) // 2] if len(known) else 0.0
    even = ~sloping & ~(uneven > max(EVEN, usual))
    good = even & np.isfinite(error)
    if not good.any():
        return base
    clear = good & (scale >= (1.0 - ONE_NIGHT) * scale[good].max())
    best = int(np.argmin(np.where(clear, error, np.inf)))
    least = HAZE + SIGNIFICANT * math.hypot(error[best], error[base]) if even[base] else 0.0
    return best if scale[best] > (1.0 + least) * scale[base] else base


def _doubt(flux, common, patterns, base):
    """
    By how much a frame that no other agrees with may be uneven itself; NaN where none is known.

    Not at all where another is as bright, and no brighter, in a part of the image: both are
    clear there, as a rule.
    """
    least = math.nan
    for i, (off, _) in enumerate(patterns):
        if i != base and np.isfinite(off):
            ratio = np.sort((flux[i] / common)[np.isfinite(flux[i] / common)])
            clear = abs(ratio[-max(2, len(ratio) // 5) :] - 1.0).max() < AS_CLEAR
            least = np.fmin(least, 0.0 if clear else off)
    return least


def _drawn_together(scale, error):
    """
    Draw scales together that differ by no more than their errors: a clear night has one.

    The scatter beyond the errors is estimated (DerSimonian & Laird 1986), and each scale moves
    towards the mean by what of its distance is error. Errors stay those that the largest
    scatter which these few frames may have leaves. Scales that stand apart or are little
    known are as they were.

    Parameters
    ----------
    scale, error : `~numpy.ndarray`, (n,)
        ``error`` is relative.

    Returns
    -------
    scale, error : `~numpy.ndarray`, (n,)
    """
    log = np.log(scale)
    with np.errstate(invalid="ignore"):
        near = error < SURE
        near &= np.abs(log - np.median(log[near])) < ONE_NIGHT if near.any() else False
    if near.sum() < 2:
        return scale, error
    square, weight = error[near] ** 2, error[near] ** -2.0
    off = log[near] - weight @ log[near] / weight.sum()
    free, norm = near.sum() - 1, weight.sum() - weight @ weight / weight.sum()
    scatter = max(weight @ off**2 - free, 0.0) / norm
    most = scatter + math.sqrt(2.0 * free) / norm
    scale, error = scale.copy(), error.copy()
    scale[near] *= np.exp(off * (scatter / (scatter + square) - 1.0))
    error[near] *= np.sqrt(most / (most + square))
    return scale, error


def _n_near(n_stars):
    """How many stars that are near each other are judged together: itself where there are few."""
    return 1 if n_stars < 20 else 3 if n_stars < 40 else 5


def _standard(xy, flux, error, reference):
    """The frame that most others agree with, the most transparent one if several are."""
    n_stars = np.isfinite(flux).sum(axis=1)
    if not n_stars.any():
        return reference
    # The brightest stars, which most frames have.
    clear = np.nan_to_num(flux / error).sum(axis=0)
    if flux.shape[1] > PATTERN_STARS:
        stars = np.sort(np.argsort(-clear, kind="stable")[:PATTERN_STARS])
        xy, flux, error = xy[stars], flux[:, stars], error[:, stars]
    candidates = np.argsort(-n_stars, kind="stable")[:CANDIDATES]
    candidates = np.sort(candidates[n_stars[candidates] > 0])
    score, bright = np.full((2, len(candidates)), math.inf)
    for k, i in enumerate(candidates):
        off = [_pattern(xy, f, e, flux[i], error[i])[0] for f, e in zip(flux, error, strict=True)]
        off = np.delete(np.minimum(np.nan_to_num(off, nan=0.3), 0.3), i)
        score[k] = off.mean() if off.size else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.clip(flux[i] / flux, 0.1, 10.0)
        # (Not the median: half of a frame may be as bright as the other's.)
        bright[k] = -np.mean(np.log(ratio[np.isfinite(ratio)]))
    usable = n_stars[candidates] >= 0.5 * n_stars[candidates].max()
    best = usable & (score <= ALIKE * score[usable].min() + 0.5 * EVEN)
    standard = int(candidates[best][np.argmin(bright[best])])
    # Cloud only dims: who is brighter in a half and nowhere dimmer is clear, though most are not.
    for i in candidates[usable & (n_stars[candidates] > 3)]:
        ratio = flux[i] / flux[standard]
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio) > 3:
            dimmest, higher = np.quantile(ratio, (0.1, 0.75))
            if dimmest > 1.0 - AS_CLEAR and higher > (1.0 + CLOUD_BANK) * dimmest:
                standard = int(i)
    return standard


def _mean_fluxes(flux, error, scale, agree):
    """Flux of each star on the scale of the standard, and its error, from frames that agree."""
    if agree.sum() == 1:
        (i,) = np.flatnonzero(agree)
        return flux[i], error[i]
    seen = np.isfinite(flux)
    good = seen & agree[:, None]
    # A star that only others have is seen by them alone.
    good |= seen & ~good.any(axis=0)
    each, sigma = flux / scale[:, None], error / scale[:, None]
    # A frame in which a star is hit is one of many. (About the median: a mean goes with the hit,
    # and away from all the others.)
    seen, middle = good.any(axis=0), np.full(flux.shape[1], np.nan)
    middle[seen] = np.nanmedian(np.where(good, each, np.nan)[:, seen], axis=0)
    with np.errstate(invalid="ignore"):
        off = np.abs(each - middle) > CLIP * np.hypot(sigma, FLUX_FLOOR * middle)
    weight = np.where(good & ~(off & (good.sum(axis=0) > 2)), sigma**-2.0, 0.0)
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(weight > 0, weight * each, 0.0).sum(axis=0) / total
    with np.errstate(divide="ignore"):
        return np.where(total > 0, mean, np.nan), np.where(total > 0, total**-0.5, np.nan)


def _scales(flux, error, common, common_err):
    """Flux of each frame over the common one, by least squares, and the error."""
    scale, scale_err = np.full((2, len(flux)), np.nan)
    for i, (f, e) in enumerate(zip(flux, error, strict=True)):
        good = np.isfinite(f) & np.isfinite(common)
        if good.any():
            (scale[i],), covariance = _fit(common[good, None], f[good], e[good])
            model = scale[i] * common[good]
            variance = (e[good] / model) ** 2 + (common_err[good] / common[good]) ** 2
            scatter = _excess(f[good] / model - 1.0, variance)
            scale_err[i] = math.hypot(math.sqrt(covariance[0, 0]), scatter * scale[i])
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, scale, np.nan), np.where(scale > 0, scale_err, np.nan)


def _excess(off, variance):
    """
    Scatter of stars that their errors do not explain; 0 where chance may.

    It is an error of all stars together: neighbours in apertures that grow with the seeing
    only add light.
    """
    square = np.minimum(off**2, CLIP**2 * max(np.median(off**2), np.median(variance)))
    weight = 1.0 / (variance + np.median(square))
    excess = weight @ (square - variance) / weight.sum()
    chance = math.sqrt(2.0 * np.sum((weight * variance) ** 2)) / weight.sum()
    return math.sqrt(excess) if excess > chance else 0.0


def _fit(basis, flux, error):
    """Coefficients by weighted least squares, clipped, and their covariance."""
    use, width = np.ones(len(flux), bool), 1.0
    matrix, values = basis / error[:, None], flux / error
    if basis.shape[1] == 1 and len(flux) > 3:
        # One star of a few that a cosmic ray hits draws their mean so far that it is not clipped.
        pull = np.abs(values - np.median(flux / basis[:, 0]) * matrix[:, 0])
        use = pull <= CLIP * max(1.0, MAD_TO_STD * float(np.median(pull)))
        # (Many are no hits, but cloud.)
        use |= 4 * use.sum() < 3 * len(use)
    for _ in range(4):
        solution = np.linalg.lstsq(matrix[use], values[use], rcond=None)[0]
        pull = np.abs(values - matrix @ solution)
        # Where errors are too small for the scatter, they are enlarged and not believed.
        free = max(use.sum() - len(solution), 1)
        width = max(1.0, MAD_TO_STD * float(np.median(pull)) * math.sqrt(use.sum() / free))
        keep = pull <= CLIP * width
        if (keep == use).all() or keep.sum() <= len(solution):
            break
        use = keep
    return solution, np.linalg.pinv(matrix[use].T @ matrix[use]) * width**2


def _pattern(xy, flux, error, common, common_err, *, model=None, robust=True):
    """
    By how much neighbours together are off, as a part of their flux (rms), and its error.

    A single star that is off (variable, hit, blended) is no pattern, if ``robust``.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = flux / common if model is None else flux / model
        relative = np.hypot(error / flux, common_err / common)
    good = np.isfinite(ratio) & np.isfinite(relative) & (ratio > 0)
    if good.sum() < 3:
        return math.nan, math.nan
    off = ratio[good] / np.median(ratio[good]) - 1.0
    # Neighbours that this frame has: through cloud it lacks those that are faint.
    k = _n_near(good.sum())
    near = cKDTree(xy[good]).query(xy[good], k)[1].reshape(-1, k)
    local = np.median(off[near], axis=1)
    variance = np.mean(relative[good][near] ** 2, axis=1)
    if k > 1:
        variance *= MEDIAN_OF_FEW / k
    weight = relative[good] ** -2.0
    if k == 1 and robust and len(local) > 3:
        even = np.argsort(np.abs(local), kind="stable")[:-1]
        local, variance, weight = local[even], variance[even], weight[even]
    weight = weight / weight.sum()
    square = np.clip(local - np.sum(weight * local), -0.5, 0.5) ** 2
    excess = float(np.sum(weight * (square - variance)))
    # Neighbours share stars: there are fewer independent ones than stars.
    sure = math.sqrt(2.0 * k * np.sum((weight * variance) ** 2))
    return math.sqrt(max(excess, 0.0)), math.sqrt(sure)


def _map(xy, flux, error, common, common_err, shape):
    """
    The scale of a frame as a slow map, where one number will not do.

    Returns
    -------
    map : `Surface` or None
        Of mean 1.
    level : float
        The mean scale.
    chi2, uneven, pattern, sure : float
        Of what is left; see `Transparency` and `_pattern`.
    edge : bool
        Whether a line through the stars, too few to be judged by neighbours, shows in it.
    """
    good = np.isfinite(flux) & np.isfinite(common)
    if good.sum() < 3:
        return None, *[math.nan] * 5, False
    f, c = flux[good], common[good]
    e = np.hypot(error[good], common_err[good] * np.median(f / c))
    basis = terms(*xy[good].T, MAP_DEGREE, shape) * c[:, None]
    best, degree = _fit(basis[:, :1], f, e)[0], 0
    for d in range(1, MAP_DEGREE + 1):
        if n_terms(d) * STARS_PER_TERM > len(f):
            break
        solution, covariance = _fit(basis[:, : n_terms(d)], f, e)
        pulls = [(f - basis[:, : len(v)] @ v) / e for v in (best, solution)]
        width = max(1.0, mad_std(pulls[1], 0.0))
        # No single star, as far off as it may be, makes a map.
        before, after = (np.sum(np.minimum((p / width) ** 2, CLIP**2)) for p in pulls)
        price = (len(solution) - len(best)) * math.log(len(f))
        if before - after > price + EVIDENCE and _trusted(solution, covariance, shape):
            best, degree = solution, d
    model = np.full(len(flux), np.nan)
    model[good] = basis[:, : n_terms(degree)] @ best
    chi2 = float(np.sum(((f - model[good]) / e) ** 2) / max(len(f) - len(best), 1))
    off, sure = _pattern(xy, flux, error, common, common_err, model=model)
    # What one star shows is no reason to leave a frame out, but may be true.
    most, _ = _pattern(xy, flux, error, common, common_err, model=model, robust=False)
    surface = None if degree == 0 else Surface(best / best[0], tuple(shape))
    edge = _n_near(len(f)) == 1 and _has_edge(xy[good], f / model[good] - 1.0, e / model[good])
    return surface, float(best[0]), chi2, most, off, sure, edge


def _has_edge(xy, off, error):
    """
    Whether a line parts stars into two groups of different levels, as cloud with an edge does.

    Student's t of the best line of all, against the scatter within the groups where that is
    more than the errors: stars that are off one by one (neighbours, nebula) show no line.
    """
    from scipy.special import stdtr

    if len(off) > LEAST_OF_EDGE:
        # A single star, hit by a cosmic ray, makes none.
        others = np.arange(len(off)) != np.argmax(np.abs(off - np.median(off)) / error)
        xy, off, error = xy[others], off[others], error[others]
    n = len(off)
    least = max(2, n // 5)
    if n < LEAST_OF_EDGE:
        return False
    angle = np.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    order = np.argsort(xy @ [np.cos(angle), np.sin(angle)], axis=0, kind="stable")
    weight = error[order] ** -2.0
    before, light = np.cumsum(weight, axis=0), np.cumsum(weight * off[order], axis=0)
    before, light = before[least - 1 : n - least], light[least - 1 : n - least]
    after, rest = weight.sum(axis=0) - before, np.sum(off / error**2) - light
    within = np.sum((off / error) ** 2) - light**2 / before - rest**2 / after
    step = np.abs(light / before - rest / after)
    t = step / np.sqrt(np.maximum(within / (n - 2), 1.0) * (1.0 / before + 1.0 / after))
    lines = n * (n - 1) / 2
    return bool(np.any((step > EDGE) & (2.0 * lines * stdtr(n - 2, -t) < EDGE_CHANCE)))


def _trusted(fitted, covariance, shape):
    """Whether a map is more than a trifle, nowhere negative, and certain all over the image."""
    surface = Surface(fitted / fitted[0], tuple(shape))
    y, x = np.meshgrid(*(np.linspace(0, n - 1, 5) for n in shape), indexing="ij")
    basis = terms(x.ravel(), y.ravel(), surface.degree, shape)
    error = np.sqrt(np.einsum("ij,jk,ik->i", basis, covariance, basis).max()) / fitted[0]
    values = surface.samples()
    return values.std() > LEAST_MAP and values.min() > 0.1 and error < MAP_ERROR
