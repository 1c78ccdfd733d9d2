"""
The transparency of each frame against the others: from stars, or from the nebula itself.

Private to `astro_narrowband.coaddition`. Where there are stars enough, their fluxes tell one number
for each frame, and whether one number will do: thin cloud dims a part of a frame, and its
scale is then a slow map, or the frame is left out. Where there are few, fainter ones are
measured at their places in all frames, and the structure of the nebula is compared.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import stdtr

from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.coaddition._consensus import EVEN, clearest, star_consensus
from astro_narrowband.coaddition._statistics import (
    APERTURE,
    NARROW,
    WITH_WINGS,
    cell_centres,
    forced_fluxes,
)
from astro_narrowband.coaddition._surface import interpolate, terms

#: Pixels of two frames' stars that are the same star, at most this far apart.
MATCH_RADIUS = 2.0
#: Stars of this signal to noise serve as they were found, if a frame has so many in common
#: with the others; else all are measured that are this clear in the reference.
BRIGHT, ENOUGH, FAINT = 20.0, 5, 8.0
#: The nebula tells a scale where its error is less than this, and where its structure is more
#: than this part of the sky: a flat that is off by a percent makes structure out of sky.
NEBULA_ERROR, NEBULA_OVER_SKY = 0.1, 0.03
#: Stars are believed where the nebula says otherwise by more than so many sigma.
DISAGREE = 5.0
#: Around bright stars, by their signal to noise or by a masked core, so many FWHM are not
#: compared as nebula.
WINGS = 10.0
#: Regions along each axis whose slopes are compared; a scatter over that of their errors and
#: a part of the scale that mean nothing: cells are interpolated, seeing changes the structure.
REGIONS, UNLIKELY, EVEN_NEBULA = 4, 2.5, 0.02
#: In crowds, medians of cells go as this power of the seeing, and stars with a fifth of their
#: light in neighbours as this: it is their error. A star covers so many FWHM around.
CELLS_OF_SEEING, STARS_OF_SEEING, STAR_RADIUS = 0.15, 0.4, 3.0
#: Cells are off by less than this part of the nebula (rms) on clear nights, whatever the seeing,
#: and by so many sigma of their scatter: 0.08 at the most; half of a nebula under 15 to 30 % of
#: cloud, 0.08 to 0.2.
OF_SEEING, SURE_CELLS = 0.085, 5.0
#: Frames that were registered are no further off each other [pix].
LARGEST_SHIFT = 0.6
#: Cells that make the structure of a region, and regions that of each side of an edge: fewer
#: show themselves, and no cloud.
LEAST_CELLS, LEAST_REGIONS = 2.0, 2.5
#: Lines that are tried as the edge of cloud: directions, places along each, and the regions
#: along each axis that are independent of each other.
DIRECTIONS, LINES, FINER = 12, 15, 6
#: Chance makes an edge of one line with no more than this probability; and where regions do not
#: differ otherwise, with this.
EDGE_CHANCE, EDGE_ALONE = 3e-4, 1e-5
#: More than this part of all structure is not nebula in one cell.
ONE_CELL = 0.15
#: More cells than this part of all that are off the line are cloud, and not chance.
ODD_CELLS = 0.05
#: Frames are left out where parts of the nebula are off by more than this (of the scale, rms),
#: and that on the two sides of an edge by this at least.
UNEVEN_NEBULA, UNEVEN_SIDES = 0.1, 0.05
#: Cells that a slope needs; nebula is what a surface of this degree does not describe.
MIN_CELLS, SKY_DEGREE = 24, 2


@dataclass(eq=False)
class Transparency:
    """
    Transparency of each frame over that of the reference.

    Attributes
    ----------
    scale, error : `~numpy.ndarray`, (n,)
        Mean over the image; ``error`` is NaN where it was not measured, and 0 for the
        reference or where it was given.
    method : list of str
        "reference", "stars", "faint stars", "nebula", "faint stars, nebula", "not measured",
        "given" or "none".
    maps : list of `Surface` or None
        Factor on the scale over the grid.
    chi2, uneven : `~numpy.ndarray`, (n,)
        Of the star fluxes about scale and map: reduced chi2, and the part of a star's flux
        by which neighbours together are off (rms). NaN where stars do not tell.
    patchy : `~numpy.ndarray` of bool, (n,)
        Whether that is too much to be used.
    reference : int
    """

    scale: np.ndarray
    error: np.ndarray
    method: list
    maps: list
    chi2: np.ndarray
    uneven: np.ndarray
    patchy: np.ndarray
    reference: int

    @classmethod
    def given(cls, scale, method, reference):
        """Return scales that were not measured here."""
        n = len(scale)
        unknown = np.full(n, np.nan)
        return cls(np.asarray(scale, float), np.zeros(n), [method] * n, [None] * n,
                   unknown, unknown, np.zeros(n, bool), reference)  # fmt: skip

    @property
    def dimming(self):
        """Mean of 1 / map**2, and its largest value, of each frame (n, 2)."""
        squares = [np.ones(1) if m is None else m.samples() ** -2.0 for m in self.maps]
        return np.array([(each.mean(), each.max()) for each in squares])


def measure_transparency(frames, statistics, matrices, reference, shape):
    """
    Measure the transparency of each frame.

    Parameters
    ----------
    frames : list of Frame
    statistics : list of `FrameStatistics`
    matrices : list of array (3, 3)
        From each frame's pixels to the grid of the coadd.
    reference : int
        The frame that the scale refers to, unless stars say that its own is uneven.
    shape : tuple of int

    Returns
    -------
    `Transparency`
    """
    xy, flux, error = _common_stars(statistics, matrices)
    lacking, radius = np.isfinite(flux).sum(axis=1) < ENOUGH, APERTURE
    if len(xy) < ENOUGH:
        lacking[:], radius = True, NARROW
        stars = statistics[reference].stars
        stars = stars[stars[:, 2] > FAINT * stars[:, 3]]
        xy = np.column_stack(apply_matrix(matrices[reference], stars[:, 0], stars[:, 1]))
        flux, error = np.full((2, len(frames), len(xy)), np.nan)
    flux[lacking], error[lacking] = _forced(
        frames, statistics, matrices, xy, np.flatnonzero(lacking), radius
    )
    consensus = star_consensus(xy, flux, error, reference, shape)
    scale, scale_err, base = consensus.scale.copy(), consensus.error.copy(), consensus.reference
    method = ["faint stars" if i else "stars" for i in lacking]
    uneven, sure = np.full(len(frames), np.nan), np.zeros(len(frames), bool)
    for i in np.setdiff1d(np.arange(len(frames)), base):
        pair = [(statistics[k], matrices[k]) for k in (base, i)]
        *by_nebula, uneven[i], sure[i] = nebula_scale(*pair, shape)
        if not lacking[i] and np.isfinite(scale[i]):
            continue
        of_seeing = STARS_OF_SEEING * _crowd_change(pair[0][0], pair[1][0], shape)
        by_stars = scale[i], math.hypot(scale_err[i], scale[i] * of_seeing), method[i]
        scale[i], scale_err[i], method[i] = _agreed(by_stars, (*by_nebula, "nebula"))
    scale[base], scale_err[base], method[base] = 1.0, 0.0, "reference"
    seen = np.isfinite(flux)
    covered = np.array([_covers(xy[one & seen[base]], shape) for one in seen])
    first, base = base, _add_uneven(consensus, uneven, sure, base, scale_err, covered)
    sloping = consensus.patchy | [m is not None for m in consensus.maps]
    base = clearest(scale, scale_err / scale, consensus.uneven, sloping, base)
    scale_err[first] = scale_err[base] / scale[base]
    scale, scale_err = scale / scale[base], scale_err / scale[base]
    scale_err[base], method[first], method[base] = 0.0, method[base], "reference"
    known = np.isfinite(scale_err)
    scale[~known] = np.median(scale[known])
    return Transparency(scale, scale_err, method, consensus.maps, consensus.chi2, consensus.uneven,
                        consensus.patchy, base)  # fmt: skip


def _covers(xy, shape):
    """Whether there is a star in every quarter of the image."""
    right, up = (xy > np.array(shape[::-1]) / 2).T if len(xy) else np.empty((2, 0), int)
    return len(set(zip(right, up, strict=True))) == 4


def _add_uneven(scales, uneven, sure, base, error, covered):
    """Add what the nebula says of each frame, as compared with the standard; return that."""
    # Stars all over the image that say all is even are believed.
    uneven[(scales.uneven < EVEN) & (scales.uneven[base] < EVEN) & covered] = np.nan
    others = np.isfinite(uneven)
    if not others.any():
        return base
    # Where most frames differ from the standard alike, it is this one; of two, either.
    usual = np.sort(uneven[others])[(others.sum() - 1) // 2]
    if others.sum() > 1:
        uneven[others] = np.sqrt(np.maximum(uneven[others] ** 2 - usual**2, 0.0))
    uneven[base], sure[base] = usual, 2 * sure[others].sum() > others.sum()
    # The nebula alone leaves out no frame of which there is doubt: its error grows.
    scales.patchy |= sure & (np.nan_to_num(uneven) > UNEVEN_NEBULA)
    scales.uneven[:] = np.fmax(scales.uneven, uneven)
    if others.sum() > 1 and usual > 0:
        # Cloud dims: what is darker in a part of the image is no scale for the others.
        return int(np.argmin(np.where(others & (uneven <= usual), error, np.inf)))
    scales.patchy[base] = False
    return base


def _common_stars(statistics, matrices):
    """
    The clear stars that two frames or more have in common.

    Returns
    -------
    xy : `~numpy.ndarray`, (n_stars, 2)
        On the grid.
    flux, error : `~numpy.ndarray`, (n, n_stars)
        NaN where a frame does not have the star.
    """
    lists = []
    for one, matrix in zip(statistics, matrices, strict=True):
        stars = one.stars[one.stars[:, 2] > BRIGHT * one.stars[:, 3]]
        lists.append(
            (np.column_stack(apply_matrix(matrix, stars[:, 0], stars[:, 1])), stars[:, 2:])
        )
    xy, places = np.empty((0, 2)), []
    for new, _ in sorted(lists, key=lambda item: -len(item[0])):
        xy = np.concatenate([xy, new[_nearest(xy, new) < 0]])
    for new, _ in lists:
        places.append(_nearest(xy, new))
    flux, error = np.full((2, len(lists), len(xy)), np.nan)
    for i, (place, (_, values)) in enumerate(zip(places, lists, strict=True)):
        flux[i, place], error[i, place] = values.T
    common = np.isfinite(flux).sum(axis=0) > 1
    return xy[common], flux[:, common], error[:, common]


def _nearest(xy, new):
    """Index of the star of ``xy`` that each of ``new`` is, -1 where none."""
    if not len(xy) or not len(new):
        return np.full(len(new), -1)
    distance, place = cKDTree(xy).query(new, distance_upper_bound=MATCH_RADIUS)
    return np.where(np.isfinite(distance), place, -1)


def _forced(frames, statistics, matrices, xy, which, radius):
    """Fluxes and errors (2, n, n_stars) that some of the frames have at given positions."""
    widths = np.array([one.fwhm for one in statistics])
    usual = np.median(widths[np.isfinite(widths)]) if np.isfinite(widths).any() else math.nan
    out = np.full((2, len(which), len(xy)), np.nan)
    for k, i in enumerate(which):
        if len(xy):
            width = widths[i] if np.isfinite(widths[i]) else usual
            place = apply_matrix(np.linalg.inv(matrices[i]), xy[:, 0], xy[:, 1])
            out[:, k] = forced_fluxes(frames[i].calibrated, *place, width, radius=radius).T
    return out


def nebula_scale(reference, other, shape):
    """
    Slope of the sky of one frame against that of another, over cells.

    Both have noise, so the slope is that of Deming's regression; what a surface of second
    degree describes is left out, for that may be the sky's own. Cells are compared where
    both are interpolated alike, half a step each, so that both lose the same structure.

    Parameters
    ----------
    reference, other : tuple of `FrameStatistics` and array (3, 3)
        And the matrix to the grid.
    shape : tuple of int

    Returns
    -------
    slope, error, uneven : float
        NaN where there is no nebula to tell; ``uneven`` is by how much the slopes of regions
        differ (rms), more than their errors, seeing and registration explain.
    sure : bool
        Whether they do so across an edge, beyond doubt.
    """
    x, y = np.meshgrid(*cell_centres(shape))
    grid, x, y = x.shape, x.ravel(), y.ravel()
    off = sum(_off_centre(s.centres, m, x, y) for s, m in (reference, other))
    x, y = x - 0.5 * off[0], y - 0.5 * off[1]
    a, b = (
        interpolate(s.cells, s.centres, *apply_matrix(np.linalg.inv(m), x, y)).astype(float)
        for s, m in (reference, other)
    )
    basis = terms(x, y, SKY_DEGREE, shape)
    ratio = other[0].variance / reference[0].variance
    good = np.isfinite(a) & np.isfinite(b)
    for one, matrix in (reference, other):
        good &= _off_wings(one, matrix, x, y) & _off_stars(one, matrix, x, y)
    every = good
    for _ in range(4):
        if good.sum() < MIN_CELLS or not ratio > 0:
            return math.nan, math.nan, math.nan, False
        smooth = np.linalg.lstsq(basis[good], np.column_stack([a, b])[good], rcond=None)[0]
        rest = np.column_stack([a, b]) - basis @ smooth
        slope = _deming(*rest[good].T, ratio)
        away = rest[:, 1] - slope * rest[:, 0]
        width = mad_std(away[good], 0.0)
        with np.errstate(invalid="ignore"):
            keep = good & (np.abs(away) <= 4.0 * width)
        # One cell of many that has much of it all is a star: at the edge, none is detected.
        square = rest[:, 0] ** 2
        keep &= ~(square > ONE_CELL * square[good].sum())
        if (keep == good).all():
            break
        good = keep
    # Structure without its noise; the scatter about the line is that of both frames.
    scatter = float(np.mean(away[good] ** 2))
    structure = float(np.mean(rest[good, 0] ** 2)) - scatter / (ratio + slope**2)
    if not structure > (NEBULA_OVER_SKY * reference[0].sky) ** 2 or not slope > 0:
        return math.nan, math.nan, math.nan, False
    error = math.sqrt(scatter / structure / max(good.sum() - basis.shape[1] - 1, 1))
    of_seeing = CELLS_OF_SEEING * _crowd_change(reference[0], other[0], shape)
    error = math.hypot(error, slope * of_seeing)
    if error > NEBULA_ERROR * slope:
        return math.nan, math.nan, math.nan, False
    if good.sum() < (1 - ODD_CELLS) * every.sum():
        good = every
    # Of both frames, so that its noise has nothing in common with that of what is off.
    structure = (ratio * rest[:, 0] + slope * rest[:, 1]) / (ratio + slope**2)
    left = _as_seen(away, structure, a, basis, good, grid, shape)
    x, y, structure, away = x[good], y[good], structure[good], away[good]
    region = _regions(x, y, shape, REGIONS)
    uneven = _spread(structure, left, region)
    sides, chance = _edge(x, y, structure, left, _regions(x, y, shape, FINER))
    edged = chance < (EDGE_CHANCE if uneven > 0 else EDGE_ALONE)
    uneven = max(uneven, edged * sides)
    sure = edged and sides > UNEVEN_SIDES * slope and uneven > UNEVEN_NEBULA * slope
    cubic = terms(x, y, SKY_DEGREE + 1, shape)
    left -= cubic @ np.linalg.lstsq(cubic, left, rcond=None)[0]
    uneven = max(uneven, _unexplained(left, structure, slope, reference[0], other[0]))
    if uneven < EVEN_NEBULA * slope:
        return slope, error, 0.0, False
    # (What seeing may have made takes a part of what cloud makes with it.)
    uneven = max(uneven, _spread(structure, away, region))
    return slope, error, uneven / slope, bool(sure)


def _unexplained(left, structure, slope, reference, other):
    """
    By how much cells scatter about the slope beyond noise, where that is more than seeing makes.

    Nebula of a few regions does not show an edge: what it shows is cloud, or may be.
    """
    noise = (slope * reference.cell_noise) ** 2 + other.cell_noise**2
    beyond, size = float(np.mean(left**2)) - noise, float(np.mean(structure**2))
    chance = SURE_CELLS * noise * math.sqrt(2.0 / len(left))
    if beyond < max(chance, (OF_SEEING * slope) ** 2 * size):
        return 0.0
    return math.sqrt(beyond / size)


def _regions(x, y, shape, n):
    """Which of the n x n regions of the image each place is in."""
    column, row = (
        np.clip(n * at / size, 0, n - 1).astype(int)
        for at, size in zip((x, y), shape[::-1], strict=True)
    )
    return n * column + row


def _crowd_change(reference, other, shape):
    """Logarithm of the seeing over that of the reference, times the part of it that stars cover."""
    change = abs(math.log(other.fwhm / reference.fwhm))
    covered = len(reference.detected) * math.pi * (STAR_RADIUS * reference.fwhm) ** 2
    change *= min(covered / math.prod(shape), 1.0)
    return change if math.isfinite(change) else 0.0


def _as_seen(away, structure, level, basis, good, grid, shape):
    """
    ``away`` of the good cells without what another seeing or place makes of the structure.

    To first order these are its gradient and its curvature from cell to cell: seeing lowers
    what is compact, and a shift moves light from one side of it to the other. No more of it
    than a shift can be: over half of something compact, so does cloud.
    """
    from scipy.optimize import lsq_linear

    level, columns, most = level.reshape(grid), [*basis.T, structure], [np.inf]
    most *= len(columns)
    for axis in np.flatnonzero(np.array(grid) > 1):
        along = np.gradient(level, shape[axis] / grid[axis], axis=axis)
        columns += [along.ravel(), np.gradient(along, axis=axis).ravel()]
        most += [LARGEST_SHIFT, np.inf]
    model = np.nan_to_num(np.column_stack(columns)[good])
    size = np.maximum(np.abs(model).max(axis=0), np.finfo(float).tiny)
    model, most = model / size, most * size
    return away[good] - model @ lsq_linear(model, away[good], (-most, most)).x


def _spread(structure, away, region):
    """Scatter of slopes of ``away`` against ``structure`` in regions, less that of their errors."""
    tiny = np.finfo(float).tiny
    square = np.bincount(region, structure**2)
    cells = square**2 / np.maximum(np.bincount(region, structure**4), tiny)
    weight = np.where(cells > LEAST_CELLS, square, 0.0)
    weight /= max(weight.sum(), tiny)
    if not 0 < weight @ weight <= 1 / REGIONS:
        return 0.0  # wings of a bright star, not nebula
    slope = np.bincount(region, structure * away) / np.maximum(square, tiny)
    # What is wrong in a cell goes with its structure: errors are those of its own region.
    left = np.bincount(region, (structure * (away - slope[region] * structure)) ** 2)
    variance = left / np.maximum(square**2, tiny) * cells / np.maximum(cells - 1.0, 1.0)
    error = np.sum(weight[weight > 0] * variance[weight > 0])
    spread = float(weight @ (slope - weight @ slope) ** 2)
    return math.sqrt(spread - error) if spread > UNLIKELY * error else 0.0


def _edge(x, y, structure, away, region):
    """
    Across the line that parts the cells most surely: the scatter its step makes, and how sure.

    Cloud has an edge: neighbouring regions are off alike. Errors are from sums over regions,
    for what is wrong in one cell is so in the next; so few have Student's distribution, which
    gives the probability of such a line.
    """
    product, square, size, best = structure * away, structure**2, region.max() + 1, (0.0, 1.0)
    for angle in np.arange(DIRECTIONS) * (math.pi / DIRECTIONS):
        place = x * math.cos(angle) + y * math.sin(angle)
        for line in np.quantile(place, np.linspace(0.1, 0.9, LINES)):
            side = region + size * (place > line)
            light = np.bincount(side, square, 2 * size).reshape(2, -1)
            total = np.maximum(light.sum(axis=1), np.finfo(float).tiny)
            off = np.bincount(side, product, 2 * size).reshape(2, -1)
            slope = off.sum(axis=1) / total
            off -= slope[:, None] * light
            n = total**2 / np.maximum(np.sum(light**2, axis=1), np.finfo(float).tiny)
            if n.min() < LEAST_REGIONS:
                continue
            parts = np.sum(off**2, axis=1) / total**2 * n / (n - 1.0)
            # Few regions may agree by chance, better than the scatter of cells allows.
            scatter = np.mean((away - slope[(place > line).astype(int)] * structure) ** 2)
            variance = np.sum(np.maximum(parts, scatter / total))
            step = abs(slope[1] - slope[0])
            chance = 2.0 * float(stdtr(n.sum() - 2.0, -step / math.sqrt(variance)))
            if chance < best[1]:
                share = total / total.sum()
                best = step * math.sqrt(share.prod()), chance
    return best


def _off_wings(one, matrix, x, y):
    """Which of the places x, y are not in the wings of a star, or of one whose core is masked."""
    bright = one.stars[one.stars[:, 2] > WITH_WINGS * one.stars[:, 3], :2]
    places = np.concatenate([one.spoiled, one.bright, bright])
    if not len(places) or not np.isfinite(one.fwhm):
        return np.ones(len(x), bool)
    tree = cKDTree(np.column_stack(apply_matrix(matrix, *places.T)))
    return tree.query(np.column_stack([x, y]))[0] > WINGS * one.fwhm


def _off_stars(one, matrix, x, y):
    """Which of the places x, y are in cells that no star reaches, whose light goes with seeing."""
    if not len(one.detected) or not np.isfinite(one.fwhm):
        return np.ones(len(x), bool)
    tree = cKDTree(np.column_stack(apply_matrix(matrix, *one.detected.T)))
    reach = STAR_RADIUS * one.fwhm + 0.7 * np.diff(one.centres[0][:2]).sum()
    return tree.query(np.column_stack([x, y]))[0] > reach


def _off_centre(centres, matrix, x, y):
    """How far the place of x, y in a frame is from the centre of a cell, on the grid (2, n)."""
    off = []
    for place, at in zip(apply_matrix(np.linalg.inv(matrix), x, y), centres, strict=True):
        step = (at[-1] - at[0]) / max(len(at) - 1, 1) or 1.0
        off.append(np.remainder(place - at[0] + 0.5 * step, step) - 0.5 * step)
    return matrix[:2, :2] @ np.array(off)


def _deming(a, b, ratio):
    """Slope of b against a where the variance of b's noise is ``ratio`` times that of a's."""
    aa, bb, ab = a @ a, b @ b, a @ b
    if ab == 0:
        return math.nan
    skew = bb - ratio * aa
    return (skew + math.sqrt(skew**2 + 4.0 * ratio * ab**2)) / (2.0 * ab)


def _agreed(by_stars, by_nebula):
    """Weighted mean of what two ways tell: scale, error and the names of these ways."""
    ways = [way for way in (by_stars, by_nebula) if np.isfinite(way[1])]
    if not ways:
        return math.nan, math.nan, "not measured"
    values, errors = np.array([way[:2] for way in ways]).T
    chi2 = (values[0] - values[-1]) ** 2 / np.sum(errors**2)
    if chi2 > DISAGREE**2:
        # Wings of bright stars, or a gradient, look like nebula; nothing looks like stars.
        return by_stars
    total = np.sum(errors**-2.0)
    mean = np.sum(values / errors**2) / total
    return float(mean), math.sqrt(max(chi2, 1.0) / total), ", ".join(way[2] for way in ways)
