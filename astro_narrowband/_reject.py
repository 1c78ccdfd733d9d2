"""
The arithmetic of a coadd on one band: a robust reference, outliers, weighted sums.

Works on stacks of float32 planes in tiles that fit the cache; what concerns
few pixels (masked ones, candidates for rejection) is done on lists of pixels.
No pixel's result depends on how the rows were cut into bands or tiles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["HALO", "Rules", "find_outliers", "reference", "smooth", "weighted_sums"]

#: Pixels worked on at a time: one plane of a tile is 128 KiB.
TILE = 32768
#: Rows around a band that its result depends on: 2 of the smoothed variance, 2 of the
#: neighbours of outliers, 2 of the structure around each of those.
HALO = 6
#: Frames of which the reference is one exact median; of more, it is a median of medians.
GROUP = 15


# --------------------------------------------------------------------------- median


@lru_cache(maxsize=64)
def _median_network(n):
    """Comparators ``(low, high)`` that bring the lower median of ``n`` values to its place."""
    pairs = []
    p = 1
    while p < n:  # Batcher's odd-even merge sort, for any n
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed = {(n - 1) // 2}
    kept = []
    for low, high in reversed(pairs):
        want = (low in needed, high in needed)
        if any(want):
            kept.append((low, high, *want))
            needed |= {low, high}
    return tuple(reversed(kept))


def _median(planes):
    """Lower median over the first axis; ``planes`` (n, size) is overwritten."""
    n = len(planes)
    spare = np.empty_like(planes[0])
    rows = list(planes)
    for low, high, want_low, want_high in _median_network(n):
        a, b = rows[low], rows[high]
        if want_low and want_high:
            np.minimum(a, b, out=spare)
            np.maximum(a, b, out=b)
            rows[low], spare = spare, a
        elif want_low:
            np.minimum(a, b, out=a)
        else:
            np.maximum(a, b, out=b)
    return rows[(n - 1) // 2]


def _median_of_some(values, n):
    """Lower median of the ``n`` finite values of each column, of none 0."""
    values = np.sort(values, axis=0)  # +inf, the masked ones, go last
    middle = values[np.maximum(n - 1, 0) // 2, np.arange(values.shape[1])]
    middle[n == 0] = 0.0
    return middle


def reference(stack, n_good):
    """
    Return the robust reference of a stack: the lower median of the pixels that are good.

    Of an even number of values the lower of the two in the middle is taken,
    of two the smaller one: cosmic rays only add, and where they hit half of
    the frames the mean of the two would lie between all frames and sky.

    Parameters
    ----------
    stack : `~numpy.ndarray` of float32, (n_frames, size)
        +inf where a pixel is masked.
    n_good : `~numpy.ndarray` of int, (size,)
        How many are not.

    Returns
    -------
    `~numpy.ndarray` of float32, (size,)
        0 where none is good. Of more than 15 frames, the median of the medians
        of groups of them, which is nearly as good and takes time in proportion
        to their number.
    """
    n, size = stack.shape
    if n > GROUP:
        n_groups = -(-n // GROUP)
        parts = [stack[k::n_groups] for k in range(n_groups)]
        medians = np.empty((n_groups, size), np.float32)
        for k, part in enumerate(parts):
            good = np.isfinite(part).sum(axis=0, dtype=np.int32)
            medians[k] = reference(part, good)
            medians[k, good == 0] = np.inf
        return reference(medians, np.isfinite(medians).sum(axis=0, dtype=np.int32))
    out = np.empty(size, np.float32)
    scratch = np.empty((n, min(TILE, size)), np.float32)
    for start in range(0, size, TILE):
        tile = slice(start, min(start + TILE, size))
        work = scratch[:, : tile.stop - start]
        np.copyto(work, stack[:, tile])
        some = np.flatnonzero(n_good[tile] < n)
        repaired = _median_of_some(work[:, some], n_good[tile][some]) if some.size else None
        if some.size < work.shape[1]:
            out[tile] = _median(work)
        if some.size:
            out[start + some] = repaired
    return out


def reference_noise(n):
    """
    Variance of the reference of ``n`` equal values over the variance of one.

    The median of n Gaussian values (exact for 3 and 5, 1.5708 / n with the usual
    correction beyond); of 2 the smaller, counted with its bias.
    """
    n = np.asarray(n, float)
    return np.where(n <= 2, 1.0, (np.pi / 2) / (n + (np.pi / 2 - 1) * 0.86))


# --------------------------------------------------------------------------- outliers


@dataclass(frozen=True)
class Rules:
    """What an outlier is: see `astro_narrowband.coadd.coadd`."""

    n_sigma: float = 4.0
    gradient_tolerance: float = 0.7
    n_sigma_neighbour: float = 2.0


def _structure(image, pixels, width, limit):
    """
    How much ``image`` changes within 2 pixels of each of ``pixels``.

    The largest difference to the 20 pixels around (5 x 5 without its corners).
    Beyond the edge nothing is known, and nothing counts.
    """
    height = image.size // width
    y, x = np.divmod(pixels, width)
    here = image[pixels]
    largest = np.zeros(pixels.size, np.float32)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if abs(dy) + abs(dx) in (0, 4):
                continue
            inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            other = np.where(inside, pixels + (dy * width + dx), pixels)
            np.maximum(largest, np.abs(image[other] - here), out=largest)
    return np.maximum(largest - limit, 0.0)


def find_outliers(stack, variance, ref, n_good, *, width, background, slope, rules):
    """
    Find the pixels of each frame that do not belong to the rest.

    Pixel i is an outlier where::

        |y_i - m| > n_sigma * sigma_i + gradient_tolerance * G

    with m the reference, ``sigma_i**2`` the variance of ``y_i`` as it would be
    at the reference's signal plus that of the reference itself, and G the
    largest change of m within two pixels, less what its noise makes of it: a
    star that is sharper in one frame than in the others differs most on its
    peak, where the slope of m is nil, so the slope alone does not spare it.
    A neighbour of an outlier is one from ``n_sigma_neighbour`` on.

    Parameters
    ----------
    stack : `~numpy.ndarray` of float32, (n_frames, size)
        +inf where masked.
    variance : `~numpy.ndarray` of float32, (n_frames, size)
    ref : `~numpy.ndarray` of float32, (size,)
    n_good : `~numpy.ndarray` of int, (size,)
    width : int
        Length of a row.
    background : `~numpy.ndarray` of float, (n_frames,)
        Variance of each frame in blank sky.
    slope : `~numpy.ndarray` of float, (n_frames,)
        Increase of each frame's variance per unit of signal.
    rules : `Rules`

    Returns
    -------
    list of `~numpy.ndarray` of int
        For each frame the flat indices of its outliers, sorted.
    """
    n, size = stack.shape
    sigma = np.sqrt(background)
    # The median's noise where the frames differ: (pi / 2) N / (sum 1 / sigma)^2.
    common = n / np.sum(1.0 / sigma)
    found = []
    first = reference_noise(n) * common**2
    candidates = [[] for _ in range(n)]
    r, v, e = (np.empty(min(TILE, size), np.float32) for _ in range(3))
    with np.errstate(invalid="ignore"):
        for start in range(0, size, TILE):
            tile = slice(start, min(start + TILE, size))
            length = tile.stop - start
            m, rr, vv, ee = ref[tile], r[:length], v[:length], e[:length]
            for i in range(n):
                np.subtract(stack[i, tile], m, out=rr)
                factor = np.float32(rules.n_sigma**2 * (1.0 + first / background[i]))
                np.maximum(rr, 0.0, out=ee)
                np.multiply(ee, np.float32(slope[i]), out=ee)
                np.subtract(variance[i, tile], ee, out=vv)
                np.maximum(vv, np.float32(0.5 * background[i]), out=vv)
                np.multiply(vv, factor, out=vv)
                np.multiply(rr, rr, out=rr)
                hit = np.flatnonzero((rr > vv) & (rr < np.inf))
                if hit.size:
                    candidates[i].append(hit + start)
    noise_of = reference_noise(np.arange(n + 1)) * common**2
    for i in range(n):
        pixels = np.concatenate(candidates[i]) if candidates[i] else np.empty(0, np.intp)

        def test(pixels, n_sigma, i=i):
            difference = stack[i, pixels] - ref[pixels]
            own = variance[i, pixels] - np.maximum(difference, 0.0) * np.float32(slope[i])
            own = np.maximum(own, np.float32(0.5 * background[i]))
            local = own / np.float32(background[i])
            of_ref = local * noise_of[n_good[pixels]]
            allowed = n_sigma * np.sqrt(own + of_ref)
            beyond = (np.abs(difference) > allowed) & np.isfinite(difference)
            pixels, allowed, difference = pixels[beyond], allowed[beyond], difference[beyond]
            structure = _structure(ref, pixels, width, 3.0 * np.sqrt(of_ref[beyond]))
            return pixels[np.abs(difference) > allowed + rules.gradient_tolerance * structure]

        out = test(pixels, rules.n_sigma)
        fresh = out
        for _ in range(2):
            if not fresh.size:
                break
            fresh = np.setdiff1d(_neighbours(fresh, width, size), out, assume_unique=True)
            fresh = test(fresh, rules.n_sigma_neighbour)
            out = np.union1d(out, fresh)
        found.append(out)
    return found


def _neighbours(pixels, width, size):
    """The pixels next to ``pixels`` (of the eight, those inside the image), each once."""
    y, x = np.divmod(pixels, width)
    height = size // width
    near = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
            near.append(pixels[inside] + dy * width + dx)
    return np.unique(np.concatenate(near))


# --------------------------------------------------------------------------- sums


def weighted_sums(stack, variance, bad, weights, out_data, out_variance):
    """
    Weighted mean of a stack and the sum of its weighted variances.

    Parameters
    ----------
    stack, variance : `~numpy.ndarray` of float32, (n_frames, size)
    bad : list of `~numpy.ndarray` of int
        For each frame the flat indices that do not count.
    weights : `~numpy.ndarray` of float, (n_frames,)
        Their sum is 1.
    out_data, out_variance : `~numpy.ndarray` of float32, (size,)
        Receive the mean and ``sum(w**2 V)``.

    Returns
    -------
    `~numpy.ndarray` of float64, (size,)
        Sum of the weights that count.

    Notes
    -----
    Differences to the first frame are summed, so that float32 loses nothing:
    its rounding is relative to the noise, not to the sky.
    """
    n, size = stack.shape
    total = np.ones(size)
    for i in range(n):
        total[bad[i]] -= weights[i]
        variance[i, bad[i]] = 0.0
    base = stack[0].copy()
    base[~np.isfinite(base)] = 0.0
    for i in range(n):
        stack[i, bad[i]] = base[bad[i]]
    spare = np.empty(min(TILE, size), np.float32)
    for start in range(0, size, TILE):
        tile = slice(start, min(start + TILE, size))
        tmp = spare[: tile.stop - start]
        mean, var = out_data[tile], out_variance[tile]
        mean[...] = 0.0
        var[...] = 0.0
        for i in range(n):
            np.subtract(stack[i, tile], base[tile], out=tmp)
            np.multiply(tmp, np.float32(weights[i]), out=tmp)
            np.add(mean, tmp, out=mean)
            np.multiply(variance[i, tile], np.float32(weights[i] ** 2), out=tmp)
            np.add(var, tmp, out=var)
        mean /= total[tile]
        mean += base[tile]
    return total


def smooth(ratio, width, scatter):
    """
    Take the noise out of a plane of relative variance, and leave its structure.

    A variance that follows each pixel's own counts is high where the counts
    are high by chance: the pixels that came out low then seem the sure ones,
    and the mean pull is not 0 (it is -1 / (2 sqrt(electrons))). So the variance
    of a pixel is the mean of 5 x 5, unless it differs from that mean by more
    than noise can, as on stars and hot pixels.

    Parameters
    ----------
    ratio : `~numpy.ndarray` of float32, (size,)
        Finite.
    width : int
    scatter : float
        Standard deviation of ``ratio`` in blank sky.

    Returns
    -------
    `~numpy.ndarray` of float32, (size,)
    """
    plane = ratio.reshape(-1, width)
    # Sums in a fixed order of shifted planes: no running sum, whose rounding
    # would depend on where the band begins.
    sums, count = _box(_box(plane, 0), 1), _box_count(plane.shape)
    mean = sums / count
    limit = np.float32(3.0 * scatter) * np.sqrt(np.maximum(mean, 0.0))
    return np.where(np.abs(plane - mean) > limit, plane, mean).ravel()


def _box(plane, axis):
    out = plane.copy()
    for d in (1, 2):
        if plane.shape[axis] <= d:
            continue
        ahead = (slice(d, None), slice(None))[:: 1 if axis == 0 else -1]
        back = (slice(None, -d), slice(None))[:: 1 if axis == 0 else -1]
        out[back] += plane[ahead]
        out[ahead] += plane[back]
    return out


def _box_count(shape):
    def counts(n):
        k = np.arange(n)
        return np.minimum(k + 2, n - 1) - np.maximum(k - 2, 0) + 1

    return np.outer(counts(shape[0]), counts(shape[1])).astype(np.float32)
