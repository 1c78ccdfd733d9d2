"""
Sums over circles and levels of annuli, for many stars at once.

Circles overlap pixels exactly. The area of a circle of radius ``r`` below and
left of a point (x, y) is, inside the circle,
``x y + (H(x) + H(y)) / 2 - pi r**2 / 4`` with
``H(x) = x sqrt(r**2 - x**2) + r**2 arcsin(x / r) + pi r**2 / 2``, the area left
of x; outside it is a sum of H alone. H depends on one coordinate, so a stamp of
k x k pixels needs 2 k of them, and the overlap of a pixel is the second
difference of the areas at its corners. Pixels cover -0.5 to 0.5 around their
integer positions.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = [
    "CircleSums",
    "Pixels",
    "SkyConstants",
    "SkyLevels",
    "circle_sums",
    "overlap",
    "sky_constants",
    "sky_levels",
]

#: Pixels of one block of stamps or annuli: their arrays stay in the cache, and their products
#: with a few sectors are too small for BLAS to start threads of its own.
BLOCK = 40_000
#: Less of a pixel than this is rounding.
TINY = 1e-9
#: Sectors of an annulus, and the least number of pixels in one.
N_SECTORS, MIN_SECTOR = 8, 5


def _left_by_a_plane(n):
    """Matrix that takes mean and tilt out of the values of n sectors."""
    angle = 2 * np.pi * (np.arange(n) + 0.5) / n
    plane = np.linalg.qr(np.column_stack([np.ones(n), np.cos(angle), np.sin(angle)]))[0]
    return np.eye(n) - plane @ plane.T


LEFT = _left_by_a_plane(N_SECTORS)


class Pixels(NamedTuple):
    """
    An image as the kernels read it: stamp by stamp, never copied as a whole.

    Attributes
    ----------
    data : `~numpy.ndarray`, (ny, nx)
        Any number type and byte order.
    noise : `~numpy.ndarray`, (ny, nx), or None
    kind : str
        What ``noise`` is: ``"std"``, ``"var"`` or ``"ivar"``.
    mask : `~numpy.ndarray` of bool, (ny, nx), or None
    gain : float, `~numpy.ndarray` (ny, nx), or None
        Electrons per unit of ``data``.
    common : `~numpy.ndarray`, (ny, nx), or None
        Variance from the masters.
    saturation : float or None
    """

    data: np.ndarray
    noise: np.ndarray | None = None
    kind: str = "var"
    mask: np.ndarray | None = None
    gain: float | np.ndarray | None = None
    common: np.ndarray | None = None
    saturation: float | None = None

    def around(self, iy, ix, oy, ox, *, narrow=False):
        """
        Return the pixels at offsets ``oy``, ``ox`` from each of ``iy``, ``ix``.

        Parameters
        ----------
        iy, ix : `~numpy.ndarray` of int, (n,)
        oy, ox : `~numpy.ndarray` of int, of one shape s
        narrow : bool, optional
            Leave float32 as it is; otherwise all is float64.

        Returns
        -------
        data, variance : `~numpy.ndarray`, (n, *s)
            0 where a pixel is not usable; ``variance`` may be None.
        good : `~numpy.ndarray` of bool, or None where all are usable
        inside : `~numpy.ndarray` of bool, or None where all are
        index : `~numpy.ndarray` of int
            Into the flattened image; that of the nearest pixel for those outside.
        """
        ny, nx = self.data.shape
        inside = None
        lead = (slice(None), *(None,) * oy.ndim)
        crosses = (
            iy.min() + oy.min() < 0 or iy.max() + oy.max() >= ny
            or ix.min() + ox.min() < 0 or ix.max() + ox.max() >= nx
        )  # fmt: skip
        if crosses:
            y, x = iy[lead] + oy, ix[lead] + ox
            inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
            index = np.clip(y, 0, ny - 1) * nx + np.clip(x, 0, nx - 1)
            if inside.all():
                inside = None
        else:
            index = (iy * nx + ix)[lead] + (oy * nx + ox)
        wide = np.float64
        if narrow and self.data.dtype.kind == "f" and self.data.dtype.itemsize == 4:
            wide = np.float32
        data = np.take(self.data, index).astype(wide, copy=False)
        good = np.isfinite(data)
        variance = None
        if self.noise is not None:
            variance = np.take(self.noise, index).astype(wide, copy=False)
            if self.kind == "std":
                variance *= variance
            elif self.kind == "ivar":
                with np.errstate(divide="ignore"):
                    variance = 1 / variance
            good &= np.isfinite(variance)
        if self.mask is not None:
            good &= ~np.take(self.mask, index)
        if inside is not None:
            good &= inside
        if good.all():
            good = None
        else:
            data[~good] = 0
            if variance is not None:
                variance[~good] = 0
        return data, variance, good, inside, index


def overlap(dx, dy, radius, half):
    """
    Return the part of every pixel of a stamp that lies in a circle.

    Parameters
    ----------
    dx, dy : `~numpy.ndarray`, (n,)
        Centres of the circles from the stamps' central pixels [pix].
    radius : float
        [pix]
    half : int
        Stamps are 2 half + 1 pixels wide. What is outside a stamp is lost.

    Returns
    -------
    `~numpy.ndarray`, (n, 2 half + 1, 2 half + 1)
        0 to 1, within some 1e-13 for circles of tens of pixels.
    """
    n, k = len(dx), 2 * half + 2
    edges = np.arange(-half, half + 2) - 0.5
    area = math.pi * radius * radius
    x, y = edges - dx[:, None], edges - dy[:, None]
    left, below = _area_left(x, radius), _area_left(y, radius)
    right, above = x > 0, y > 0
    # Sums of products of a function of x and one of y: matrix products are the fastest way.
    of_y, of_x = np.empty((n, k, 3)), np.empty((n, 3, k))
    of_y[:, :, 0], of_y[:, :, 1], of_y[:, :, 2] = y, 1, 0.5 * below - 0.25 * area
    of_x[:, 0], of_x[:, 1], of_x[:, 2] = x, 0.5 * left, 1
    corner = of_y @ of_x
    of_y[:, :, 0], of_y[:, :, 1] = below, above
    of_x[:, 0], of_x[:, 1] = right, left - area * right
    other = of_y[:, :, :2] @ of_x[:, :2]
    outside = (y * y - radius * radius)[:, :, None] + (x * x)[:, None, :] >= 0
    np.copyto(corner, other, where=outside)
    rows = corner[:, 1:] - corner[:, :-1]
    return rows[:, :, 1:] - rows[:, :, :-1]


def _area_left(x, radius):
    """Area of the circle left of x."""
    x = np.clip(x, -radius, radius)
    return (
        x * np.sqrt(radius * radius - x * x)
        + radius * radius * (np.arcsin(x / radius) + 0.5 * math.pi)
    )  # fmt: skip


class CircleSums(NamedTuple):
    """
    Sums over circles, each (n, m): ``w`` is the part of a pixel in the circle.

    Attributes
    ----------
    total : sum of w d
    area : sum of w over usable pixels [pix]
    area2 : sum of w**2 over usable pixels [pix]
    variance : sum of w**2 V; None without a variance
    nested : (n, m, k); sum of w_j w_l V (of w_j w_l without a variance) of circle j
        and the next l = j + 1, ..., j + k; empty where it was not asked for
    linear : sum of w V (of w without a variance)
    photons, per_gain : sums of w**2 d / gain and w**2 / gain; None without a gain
    common : sum of w**2 C, with a map of the masters' variance
    n_masked : number of unusable pixels touched, inside the image
    n_saturated : number of pixels at or above saturation touched
    off_edge : bool; part of the circle is outside the image
    """

    total: np.ndarray
    area: np.ndarray
    area2: np.ndarray
    variance: np.ndarray | None
    nested: np.ndarray
    linear: np.ndarray
    photons: np.ndarray | None
    per_gain: np.ndarray | None
    common: np.ndarray | None
    n_masked: np.ndarray
    n_saturated: np.ndarray
    off_edge: np.ndarray


def _blocks(n, pixels, block):
    step = max(1, block // pixels)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _dot(a, b):
    return np.einsum("nij,nij->n", a, b)


def circle_sums(pixels, x, y, radii, *, n_nested=None):
    """
    Sum over circles of ``radii`` around ``x``, ``y``.

    Parameters
    ----------
    pixels : `Pixels`
    x, y : `~numpy.ndarray`, (n,)
        Finite.
    radii : sequence of float
        Increasing [pix].
    n_nested : int, optional
        For covariances between radii: how many larger circles are multiplied
        with each. Default is to leave ``nested`` empty and ``linear`` zero.

    Returns
    -------
    `CircleSums`
    """
    n, m = len(x), len(radii)
    shape = (n, m)
    has_variance = pixels.noise is not None
    has_gain = pixels.gain is not None
    zeros = lambda wanted=True: np.zeros(shape) if wanted else None  # noqa: E731
    out = CircleSums(
        zeros(), zeros(), zeros(), zeros(has_variance), np.zeros((*shape, n_nested or 0)), zeros(),
        zeros(has_gain), zeros(has_gain), zeros(pixels.common is not None),
        np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool),
    )  # fmt: skip
    if n == 0:
        return out
    half = math.ceil(radii[-1])
    offset = np.arange(-half, half + 1)
    for rows in _blocks(n, offset.size**2, BLOCK):
        _sum_block(pixels, x[rows], y[rows], radii, offset, n_nested, out, rows)
    return out


def _sum_block(pixels, x, y, radii, offset, n_nested, out, rows):
    half = offset[-1]
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    dx, dy = x - ix, y - iy
    oy, ox = np.meshgrid(offset, offset, indexing="ij")
    data, variance, good, inside, index = pixels.around(iy, ix, oy, ox)
    spread = variance if good is None or variance is not None else good.astype(float)
    per_gain = None
    if np.ndim(pixels.gain):
        with np.errstate(divide="ignore", invalid="ignore"):
            per_gain = 1 / np.take(pixels.gain, index).astype(float)
        per_gain[~np.isfinite(per_gain)] = 0
        if good is not None:
            per_gain[~good] = 0
        photons = data * per_gain
    if pixels.common is not None:
        common = np.nan_to_num(np.take(pixels.common, index).astype(float))
        if good is not None:
            common[~good] = 0
    saturated = None
    if pixels.saturation is not None:
        saturated = np.take(pixels.data, index) >= pixels.saturation
        saturated = saturated if saturated.any() else None
    weights = [None] * len(radii)
    for j, radius in enumerate(radii):
        size = math.ceil(radius)
        cut = (slice(None),) + (slice(half - size, half + size + 1),) * 2
        w = overlap(dx, dy, radius, size)
        weights[j] = (w, size)
        ww = w * w
        out.total[rows, j] = _dot(w, data[cut])
        if good is None:
            out.area[rows, j] = math.pi * radius * radius
            out.area2[rows, j] = ww.sum(axis=(1, 2))
        else:
            usable = good[cut]
            out.area[rows, j] = _dot(w, usable)
            out.area2[rows, j] = _dot(ww, usable)
            touched = w > TINY
            if inside is None:
                out.n_masked[rows, j] = (touched & ~usable).sum(axis=(1, 2))
            else:
                here = inside[cut]
                out.n_masked[rows, j] = (touched & ~usable & here).sum(axis=(1, 2))
                out.off_edge[rows, j] = (touched & ~here).any(axis=(1, 2))
        if variance is not None:
            out.variance[rows, j] = _dot(ww, variance[cut])
        if n_nested is not None:
            out.linear[rows, j] = out.area[rows, j] if variance is None else _dot(w, variance[cut])
        if per_gain is not None:
            out.photons[rows, j] = _dot(ww, photons[cut])
            out.per_gain[rows, j] = _dot(ww, per_gain[cut])
        elif pixels.gain is not None:
            out.photons[rows, j] = _dot(ww, data[cut]) / pixels.gain
            out.per_gain[rows, j] = out.area2[rows, j] / pixels.gain
        if pixels.common is not None:
            out.common[rows, j] = _dot(ww, common[cut])
        if saturated is not None:
            out.n_saturated[rows, j] = (saturated[cut] & (w > TINY)).sum(axis=(1, 2))
        for k in range(1, min(n_nested or 0, j) + 1):
            inner, inner_size = weights[j - k]
            core = (slice(None),) + (slice(size - inner_size, size + inner_size + 1),) * 2
            both = inner * w[core]
            if spread is None:
                out.nested[rows, j - k, k - 1] = both.sum(axis=(1, 2))
            else:
                cut = (slice(None),) + (slice(half - inner_size, half + inner_size + 1),) * 2
                out.nested[rows, j - k, k - 1] = _dot(both, spread[cut])
        if j >= (n_nested or 0):
            weights[j - (n_nested or 0)] = None


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
        independent pixels; NaN where a sector is all but empty
    """

    mean: np.ndarray
    median: np.ndarray
    std: np.ndarray
    n: np.ndarray
    n_good: np.ndarray
    variance: np.ndarray
    off_edge: np.ndarray
    uneven: np.ndarray


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
        np.full(n, np.nan), np.zeros(n, bool), np.full(n, np.nan),
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
    sectors = (sector[:, None] == np.arange(N_SECTORS)).astype(np.float32)
    annulus = _Annulus(oy, ox, int(perhaps.sum()), sectors, r_in, r_out, clip, max_iterations)
    # Neighbours after each other, as they share pixels that are at hand then; those at the
    # edge last, as blocks without any need not ask what is inside.
    ny, nx = pixels.data.shape
    edge = np.minimum(np.minimum(x, nx - 1 - x), np.minimum(y, ny - 1 - y)) < reach[-1] + 1
    order = np.lexsort((x, y // 64, edge))
    for rows in _blocks(n, oy.size, BLOCK):
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
    part = slice(annulus.n_unsure)
    dx, dy = annulus.ox[part] - (x - ix)[:, None], annulus.oy[part] - (y - iy)[:, None]
    distance2 = dx * dx + dy * dy
    unwanted = (distance2 < annulus.r_in**2) | (distance2 >= annulus.r_out**2)
    data, variance, good, inside, _ = pixels.around(iy, ix, annulus.oy, annulus.ox, narrow=True)
    if inside is not None:
        outside = ~inside
        outside[:, part] &= ~unwanted
        out.off_edge[rows] = outside.any(axis=1)
    if good is None:
        n = data.shape[1] - unwanted.sum(axis=1)
        if variance is not None:
            variance[:, part][unwanted] = 0
    else:
        good[:, part] &= ~unwanted
        n = good.sum(axis=1)
        data[~good] = np.inf
        if variance is not None:
            variance[~good] = 0
    data[:, part][unwanted] = np.inf
    out.n_good[rows] = n
    if variance is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            out.variance[rows] = variance.sum(axis=1, dtype=float) / n
    ordered = np.sort(data, axis=1)
    low, high = _clip_block(ordered, n, annulus.clip, annulus.max_iterations, out, rows)
    out.uneven[rows] = _unevenness(data, ordered, low, high, annulus.sectors, out.mean[rows])


def _unevenness(data, ordered, low, high, sectors, mean):
    """Chi2 per degree of freedom of the means of sectors about a tilted plane."""
    each, last = np.arange(len(low)), ordered.shape[1] - 1
    kept = data >= ordered[each, np.minimum(low, last)][:, None]
    kept &= data <= ordered[each, np.clip(high - 1, 0, last)][:, None]
    deviation = np.where(kept, data - mean.astype(data.dtype)[:, None], 0)
    deviation = deviation.astype(np.float32, copy=False)
    count = kept.astype(np.float32) @ sectors
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (deviation @ sectors).astype(float) / count
        # A plane through the annulus moves its mean not at all under the star.
        left = means @ LEFT
        square = (left * left).sum(axis=1) / (N_SECTORS - 3)
        own = (deviation * deviation).sum(axis=1, dtype=float) / count.sum(axis=1)
        ratio = square / (own * (1 / count).mean(axis=1))
    ratio[count.min(axis=1) < MIN_SECTOR] = np.nan
    return ratio


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
