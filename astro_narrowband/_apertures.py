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
    "SkyLevels",
    "circle_sums",
    "overlap",
    "sky_constants",
    "sky_levels",
]

#: Pixels of one block of stamps: its arrays stay in the level 2 cache.
BLOCK = 40_000


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
    gain : `~numpy.ndarray`, (ny, nx), or None
        Electrons per unit of ``data`` (a map; one number is not kept here).
    common : `~numpy.ndarray`, (ny, nx), or None
        Variance from the masters.
    saturation : float or None
    """

    data: np.ndarray
    noise: np.ndarray | None = None
    kind: str = "var"
    mask: np.ndarray | None = None
    gain: np.ndarray | None = None
    common: np.ndarray | None = None
    saturation: float | None = None

    def at(self, iy, ix):
        """Return data, variance (or None) and good at pixel indices that may be outside."""
        ny, nx = self.data.shape
        inside = None
        if iy.size and (iy.min() < 0 or ix.min() < 0 or iy.max() >= ny or ix.max() >= nx):
            inside = (iy >= 0) & (iy < ny) & (ix >= 0) & (ix < nx)
            iy, ix = np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)
        index = iy * nx + ix
        data = np.take(self.data, index).astype(float)
        good = np.isfinite(data)
        variance = None
        if self.noise is not None:
            variance = np.take(self.noise, index).astype(float)
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
        0 to 1; exact to some 1e-13 for circles of tens of pixels.
    """
    edges = np.arange(-half, half + 2) - 0.5
    area = math.pi * radius * radius
    x, y = edges - dx[:, None], edges - dy[:, None]
    left, below = _area_left(x, radius), _area_left(y, radius)
    right, above = x > 0, y > 0
    corner = y[:, :, None] * x[:, None, :]
    corner += (0.5 * left - 0.25 * area)[:, None, :]
    corner += (0.5 * below)[:, :, None]
    outside = (y * y - radius * radius)[:, :, None] + (x * x)[:, None, :] >= 0
    other = below[:, :, None] * right[:, None, :]
    other += (left - area * right)[:, None, :] * above[:, :, None]
    np.copyto(corner, other, where=outside)
    rows = corner[:, 1:] - corner[:, :-1]
    out = rows[:, :, 1:] - rows[:, :, :-1]
    return np.clip(out, 0, 1, out=out)


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
    photons : sum of w**2 d / gain, with a map of the gain
    per_gain : sum of w**2 / gain, with a map of the gain
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


def _blocks(n, pixels):
    step = max(1, BLOCK // pixels)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _dot(a, b):
    return np.einsum("nij,nij->n", a, b)


def circle_sums(pixels, x, y, radii, *, n_nested=0):
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
        with each.

    Returns
    -------
    `CircleSums`
    """
    n, m = len(x), len(radii)
    shape = (n, m)
    has_variance, has_gain = pixels.noise is not None, pixels.gain is not None
    zeros = lambda wanted=True: np.zeros(shape) if wanted else None  # noqa: E731
    out = CircleSums(
        zeros(), zeros(), zeros(), zeros(has_variance), np.zeros((*shape, n_nested)), zeros(),
        zeros(has_gain), zeros(has_gain), zeros(pixels.common is not None),
        np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool),
    )  # fmt: skip
    if n == 0:
        return out
    half = math.ceil(radii[-1])
    offset = np.arange(-half, half + 1)
    for rows in _blocks(n, offset.size**2):
        _sum_block(pixels, x[rows], y[rows], radii, offset, n_nested, out, rows)
    return out


def _sum_block(pixels, x, y, radii, offset, n_nested, out, rows):
    half = offset[-1]
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    dx, dy = x - ix, y - iy
    yy, xx = np.broadcast_arrays(iy[:, None, None] + offset[:, None], ix[:, None, None] + offset)
    data, variance, good, inside, index = pixels.at(yy, xx)
    spread = variance if good is None or variance is not None else good.astype(float)
    if pixels.gain is not None:
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
            touched = w > 0
            if inside is None:
                out.n_masked[rows, j] = (touched & ~usable).sum(axis=(1, 2))
            else:
                here = inside[cut]
                out.n_masked[rows, j] = (touched & ~usable & here).sum(axis=(1, 2))
                out.off_edge[rows, j] = (touched & ~here).any(axis=(1, 2))
        if variance is not None:
            out.variance[rows, j] = _dot(ww, variance[cut])
            if n_nested:
                out.linear[rows, j] = _dot(w, variance[cut])
        else:
            out.linear[rows, j] = out.area[rows, j]
        if pixels.gain is not None:
            out.photons[rows, j] = _dot(ww, photons[cut])
            out.per_gain[rows, j] = _dot(ww, per_gain[cut])
        if pixels.common is not None:
            out.common[rows, j] = _dot(ww, common[cut])
        if saturated is not None:
            out.n_saturated[rows, j] = (saturated[cut] & (w > 0)).sum(axis=(1, 2))
        for k in range(1, min(n_nested, j) + 1):
            inner, inner_size = weights[j - k]
            core = (slice(None),) + (slice(size - inner_size, size + inner_size + 1),) * 2
            both = inner * w[core]
            if spread is None:
                out.nested[rows, j - k, k - 1] = both.sum(axis=(1, 2))
            else:
                cut = (slice(None),) + (slice(half - inner_size, half + inner_size + 1),) * 2
                out.nested[rows, j - k, k - 1] = _dot(both, spread[cut])
        if j >= n_nested:
            weights[j - n_nested] = None


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
    """

    mean: np.ndarray
    median: np.ndarray
    std: np.ndarray
    n: np.ndarray
    n_good: np.ndarray
    variance: np.ndarray
    off_edge: np.ndarray


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
        np.full(n, np.nan), np.zeros(n, bool),
    )  # fmt: skip
    reach = np.arange(-math.ceil(r_out), math.ceil(r_out) + 1)
    distance = np.hypot(reach[:, None], reach)
    # Every pixel that is in the annulus for some position within the central pixel.
    oy, ox = np.nonzero((distance >= r_in - 0.71) & (distance < r_out + 0.71))
    oy, ox = reach[oy], reach[ox]
    for rows in _blocks(n, oy.size):
        _sky_block(pixels, x[rows], y[rows], oy, ox, (r_in, r_out), clip, max_iterations, out, rows)
    return out


def _sky_block(pixels, x, y, oy, ox, radii, clip, max_iterations, out, rows):
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    dx, dy = ox - (x - ix)[:, None], oy - (y - iy)[:, None]
    distance2 = dx * dx + dy * dy
    wanted = (distance2 >= radii[0] ** 2) & (distance2 < radii[1] ** 2)
    data, variance, good, inside, _ = pixels.at(iy[:, None] + oy, ix[:, None] + ox)
    usable = wanted if good is None else wanted & good
    if inside is not None:
        out.off_edge[rows] = (wanted & ~inside).any(axis=1)
    n = usable.sum(axis=1)
    out.n_good[rows] = n
    with np.errstate(divide="ignore", invalid="ignore"):
        if variance is not None:
            out.variance[rows] = (variance * usable).sum(axis=1) / n
    data[~usable] = np.inf
    data.sort(axis=1)
    each = np.arange(len(n))
    middle = _median(data, each, np.zeros_like(n), n)
    # Sums from the left of deviations from the median give mean and scatter of any range.
    deviation = data - middle[:, None]
    deviation[~np.isfinite(deviation)] = 0
    sums = np.zeros((2, len(n), data.shape[1] + 1))
    np.cumsum(deviation, axis=1, out=sums[0, :, 1:])
    np.cumsum(deviation * deviation, axis=1, out=sums[1, :, 1:])
    low, high = np.zeros_like(n), n.copy()
    todo = each[n > 0]
    for step in range(max_iterations + 1):
        a, b = low[todo], high[todo]
        count = b - a
        mean, square = (s[todo, b] - s[todo, a] for s in sums)
        mean, square = mean / count, square / count
        std = np.sqrt(np.maximum(square - mean * mean, 0))
        median = _median(data, todo, a, b)
        where = np.arange(len(out.n))[rows][todo]
        out.mean[where], out.median[where] = mean + middle[todo], median
        out.std[where], out.n[where] = std, count
        if clip is None or step == max_iterations or not todo.size:
            break
        values = data[todo]
        below = (values < (median - clip * std)[:, None]).sum(axis=1)
        above = (values <= (median + clip * std)[:, None]).sum(axis=1)
        below, above = np.maximum(below, a), np.minimum(above, b)
        low[todo], high[todo] = below, above
        todo = todo[(below != a) | (above != b)]


def _median(ordered, rows, low, high):
    """Median of ``ordered[row, low:high]``; NaN where that is empty."""
    last = ordered.shape[1] - 1
    left = np.clip((low + high - 1) // 2, 0, last)
    right = np.clip((low + high) // 2, 0, last)
    middle = 0.5 * (ordered[rows, left] + ordered[rows, right])
    return np.where(high > low, middle, np.nan)


@lru_cache(maxsize=32)
def sky_constants(clip):
    """
    Return what clipping does to Gaussian pixels.

    Parameters
    ----------
    clip : float or None
        Limit in standard deviations, iterated; `None` is no clipping.

    Returns
    -------
    shrink : float
        Standard deviation of the pixels kept, over the true one.
    mean : float
        Variance of the mean of the pixels kept, over that of the mean of as many
        unclipped ones.
    """
    if clip is None:
        return 1.0, 1.0
    shrink = 1.0
    for _ in range(100):
        limit = clip * shrink
        inside = math.erf(limit / math.sqrt(2))
        density = math.exp(-limit * limit / 2) / math.sqrt(2 * math.pi)
        second = inside - 2 * limit * density
        shrink = math.sqrt(second / inside)
    # The limits follow the median m: mean = (sum of x kept + 2 limit density m) / inside.
    edge = 2 * limit * density
    # cov(sum of x kept, m), per pixel: sqrt(pi / 2) E|x| over the pixels kept.
    joint = math.sqrt(math.pi / 2) * math.sqrt(2 / math.pi) * (1 - math.exp(-limit * limit / 2))
    variance = (second + 2 * edge * joint + edge * edge * math.pi / 2) / inside**2
    return shrink, variance * inside
