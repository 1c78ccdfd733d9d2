"""Levels of annuli, for many stars at once, and how uneven the sky is around them."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.apertures import blocks

#: Sectors of an annulus, and the least number of pixels in one.
N_SECTORS, MIN_SECTOR = 8, 5
#: As much of a sector of nebula is clipped, and not of one with a star.
MOST = 0.5


def _left_by_a_plane(n):
    """Matrix that takes mean and tilt out of the values of n sectors."""
    angle = 2 * np.pi * (np.arange(n) + 0.5) / n
    plane = np.linalg.qr(np.column_stack([np.ones(n), np.cos(angle), np.sin(angle)]))[0]
    return np.eye(n) - plane @ plane.T


LEFT = _left_by_a_plane(N_SECTORS)


class SkyLevels(NamedTuple):
    """
    What the pixels of annuli say, each (n,).

    Attributes
    ----------
    mean, median, std : of the pixels that were kept; NaN where there are none
    n : number of pixels kept
    n_good : number of usable pixels before clipping
    variance : mean of the variance over usable pixels, NaN without one
    off_edge : bool; part of the annulus is outside the image
    uneven : variance of the means of eight sectors about a tilted plane, over that of
        independent pixels; NaN where most of a sector was clipped
    structure, thin : (n, 2); that variance itself, and the square of the step between the
        inner and the outer half of the annulus; what independent pixels of variance 1 give both
    """

    mean: np.ndarray
    median: np.ndarray
    std: np.ndarray
    n: np.ndarray
    n_good: np.ndarray
    variance: np.ndarray
    off_edge: np.ndarray
    uneven: np.ndarray
    structure: np.ndarray
    thin: np.ndarray


def sky_levels(pixels, x, y, r_in, r_out, *, clip=3.0, max_iterations=10):
    """
    Measure the level of annuli: pixels whose centres have ``r_in <= r < r_out``.

    Parameters
    ----------
    pixels : `Pixels`
    x, y : `~numpy.ndarray`, (n,)
        Finite.
    r_in, r_out : float
        [pix]
    clip : float or None
        Pixels further than this many standard deviations from the median are
        left out, again and again until none is. `None` keeps all.
    max_iterations : int, optional

    Returns
    -------
    `SkyLevels`
    """
    n = len(x)
    out = SkyLevels(
        *(np.full(n, np.nan) for _ in range(3)), np.zeros(n, int), np.zeros(n, int),
        np.full(n, np.nan), np.zeros(n, bool), np.full(n, np.nan), *np.full((2, n, 2), np.nan),
    )  # fmt: skip
    reach = np.arange(-math.ceil(r_out), math.ceil(r_out) + 1)
    distance = np.hypot(reach[:, None], reach)
    # A star is up to 0.71 pix from the middle of its pixel: some pixels are in the annulus
    # wherever it is, others depend on it.
    always = (distance >= r_in + 0.71) & (distance < r_out - 0.71)
    perhaps = (distance >= r_in - 0.71) & (distance < r_out + 0.71) & ~always
    oy, ox = (
        np.concatenate([reach[index] for index in pair])
        for pair in zip(np.nonzero(perhaps), np.nonzero(always), strict=True)
    )
    sector = np.floor(np.arctan2(oy, ox) * (N_SECTORS / (2 * np.pi))).astype(int) % N_SECTORS
    # Those of the inner half, then those of the outer.
    sector += N_SECTORS * (np.hypot(oy, ox) >= math.sqrt((r_in**2 + r_out**2) / 2))
    sectors = (sector[:, None] == np.arange(2 * N_SECTORS)).astype(np.float32)
    annulus = _Annulus(oy, ox, int(perhaps.sum()), sectors, r_in, r_out, clip, max_iterations)
    # Neighbours after each other, as they share pixels that are at hand then; those at the
    # edge last, as blocks without any need not ask what is inside.
    ny, nx = pixels.data.shape
    edge = np.minimum(np.minimum(x, nx - 1 - x), np.minimum(y, ny - 1 - y)) < reach[-1] + 1
    order = np.lexsort((x, y // 64, edge))
    for rows in blocks(n, oy.size):
        _sky_block(pixels, x[order[rows]], y[order[rows]], annulus, out, rows)
    back = np.argsort(order)
    return SkyLevels(*(values[back] for values in out))


class _Annulus(NamedTuple):
    """Offsets of the pixels that may be in an annulus, those that are not sure to be first."""

    oy: np.ndarray
    ox: np.ndarray
    n_unsure: int
    sectors: np.ndarray
    r_in: float
    r_out: float
    clip: float | None
    max_iterations: int


def _sky_block(pixels, x, y, annulus, out, rows):
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    chosen = slice(annulus.n_unsure)
    dx, dy = annulus.ox[chosen] - (x - ix)[:, None], annulus.oy[chosen] - (y - iy)[:, None]
    distance2 = dx * dx + dy * dy
    unwanted = (distance2 < annulus.r_in**2) | (distance2 >= annulus.r_out**2)
    data, variance, good, inside, _ = pixels.around(iy, ix, annulus.oy, annulus.ox, narrow=True)
    if inside is not None:
        outside = ~inside
        outside[:, chosen] &= ~unwanted
        out.off_edge[rows] = outside.any(axis=1)
    if good is None:
        n = data.shape[1] - unwanted.sum(axis=1)
        if variance is not None:
            variance[:, chosen][unwanted] = 0
    else:
        good[:, chosen] &= ~unwanted
        n = good.sum(axis=1)
        data[~good] = np.inf
        if variance is not None:
            variance[~good] = 0
    data[:, chosen][unwanted] = np.inf
    out.n_good[rows] = n
    if variance is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            out.variance[rows] = variance.sum(axis=1, dtype=float) / n
    ordered = np.sort(data, axis=1)
    low, high = _clip_block(ordered, n, annulus.clip, annulus.max_iterations, out, rows)
    _structure_block(data, ordered, low, high, annulus.sectors, out, rows)


def _structure_block(data, ordered, low, high, sectors, out, rows):
    """How the means of sectors differ about a tilted plane, and the inner half from the outer."""
    each, last = np.arange(len(low)), ordered.shape[1] - 1
    lowest = ordered[each, np.minimum(low, last)][:, None]
    highest = ordered[each, np.clip(high - 1, 0, last)][:, None]
    kept = (data >= lowest) & (data <= highest)
    halves = (len(low), 2, N_SECTORS)
    count = (kept.astype(np.float32) @ sectors).reshape(halves)
    # Where most of a sector was clipped it is no star that was, and its pixels count as limits.
    lost = count.sum(axis=1) < MOST * sectors.sum(axis=0).reshape(halves[1:]).sum(axis=0)
    k = np.flatnonzero(lost.any(axis=1))
    if k.size:
        kept[k] |= np.isfinite(data[k]) & (np.tile(lost[k], 2).astype(np.float32) @ sectors.T > 0)
        count[k] = (kept[k].astype(np.float32) @ sectors).reshape(len(k), *halves[1:])
        data[k] = np.clip(data[k], lowest[k], highest[k])
    deviation = np.where(kept, data - out.mean[rows].astype(data.dtype)[:, None], 0)
    deviation = deviation.astype(np.float32, copy=False)
    total = (deviation @ sectors).astype(float).reshape(halves)
    n = count.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A plane through the annulus moves its mean not at all under the star.
        left = (total.sum(axis=1) / n) @ LEFT
        around = (left * left).sum(axis=1) / (N_SECTORS - 3)
        inner, outer = (total.sum(axis=2) / count.sum(axis=2)).T
        thin = np.stack([(1 / n).mean(axis=1), (1 / count.sum(axis=2)).sum(axis=1)], axis=1)
        sky_variance = (deviation * deviation).sum(axis=1, dtype=float) / n.sum(axis=1)
        thin[n.min(axis=1) < MIN_SECTOR] = np.nan
        out.uneven[rows] = np.where(lost.any(axis=1), np.nan, around / (sky_variance * thin[:, 0]))
    out.structure[rows], out.thin[rows] = np.stack([around, (inner - outer) ** 2], axis=1), thin


def _clip_block(data, n, clip, max_iterations, out, rows):
    """Statistics of the first ``n`` of each sorted row, after clipping; what was kept."""
    each = np.arange(len(n))
    middle = _median(data, each, np.zeros_like(n), n)
    # Sums from the left of deviations from the median give mean and scatter of any range.
    deviation = np.subtract(data, middle[:, None], dtype=float)
    deviation[~np.isfinite(deviation)] = 0
    sums = np.zeros((2, len(n), data.shape[1] + 1))
    np.cumsum(deviation, axis=1, out=sums[0, :, 1:])
    np.multiply(deviation, deviation, out=deviation)
    np.cumsum(deviation, axis=1, out=sums[1, :, 1:])
    low, high = np.zeros_like(n), n.copy()
    todo = each[n > 0]
    for step in range(max_iterations + 1):
        a, b = low[todo], high[todo]
        count = b - a
        mean, square = (s[todo, b] - s[todo, a] for s in sums)
        mean, square = mean / count, square / count
        std = np.sqrt(np.maximum(square - mean * mean, 0))
        median = _median(data, todo, a, b)
        where = todo + rows.start
        out.mean[where], out.median[where] = mean + middle[todo], median
        out.std[where], out.n[where] = std, count
        if clip is None or step == max_iterations or not todo.size:
            break
        reach = clip * std
        below, above = _kept(data, todo, median - reach, median + reach)
        below, above = np.maximum(below, a), np.minimum(above, b)
        low[todo], high[todo] = below, above
        todo = todo[(below != a) | (above != b)]
    return low, high


def _kept(ordered, rows, lowest, highest):
    """How many values of ``ordered[row]`` are below ``lowest``, and how many up to ``highest``."""
    whole = 2 * len(rows) >= len(ordered)
    if not whole:
        ordered = ordered[rows]
    low, high = np.zeros((2, len(ordered), 1), ordered.dtype)
    at = rows if whole else slice(None)
    # In the type of the values, which is several times as fast; rounded inwards.
    low[at, 0], high[at, 0] = lowest, highest
    out = low[at, 0] < lowest
    low[at, 0] = np.where(out, np.nextafter(low[at, 0], np.inf, dtype=low.dtype), low[at, 0])
    out = high[at, 0] > highest
    high[at, 0] = np.where(out, np.nextafter(high[at, 0], -np.inf, dtype=low.dtype), high[at, 0])
    below = (ordered >= low).argmax(axis=1)
    above = ordered.shape[1] - (ordered[:, ::-1] <= high).argmax(axis=1)
    return below[at], above[at]


def _median(ordered, rows, low, high):
    """Median of ``ordered[row, low:high]``; NaN where that is empty."""
    last = ordered.shape[1] - 1
    left = np.minimum(np.maximum((low + high - 1) // 2, 0), last)
    right = np.minimum((low + high) // 2, last)
    middle = 0.5 * (ordered[rows, left].astype(float) + ordered[rows, right])
    return np.where(high > low, middle, np.nan)


class SkyConstants(NamedTuple):
    """
    What iterated clipping does to Gaussian pixels.

    Attributes
    ----------
    shrink : float
        Standard deviation of the pixels kept, over the true one.
    mean, median : float
        Variance of mean and median of the pixels kept, over that of the mean of as
        many pixels without clipping.
    joint : float
        Their covariance, likewise.
    """

    shrink: float
    mean: float
    median: float
    joint: float


@lru_cache(maxsize=32)
def sky_constants(clip):
    """
    Return `SkyConstants` for limits of ``clip`` standard deviations, or None.

    Notes
    -----
    To first order in the empirical distribution. The limits m - c, m + c follow
    the median m of the pixels kept: m is moved by sign(x) / 2 (f(0) - f(c)) per
    pixel x inside, the sum of the pixels kept by x + 2 c f(c) m.
    """
    if clip is None:
        return SkyConstants(1.0, 1.0, math.pi / 2, 1.0)
    shrink = 1.0
    for _ in range(200):
        limit = clip * shrink
        inside = math.erf(limit / math.sqrt(2))
        density = math.exp(-limit * limit / 2) / math.sqrt(2 * math.pi)
        second = inside - 2 * limit * density
        shrink = math.sqrt(second / inside)
    edge = 2 * limit * density
    median = inside / (4 * (1 / math.sqrt(2 * math.pi) - density) ** 2)
    mean = (second + 2 * edge + edge * edge * median) / inside**2
    joint = (1 + edge * median) / inside
    return SkyConstants(shrink, mean * inside, median * inside, joint * inside)
