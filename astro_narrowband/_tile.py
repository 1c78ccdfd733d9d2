"""
Statistics along the stack of a tile: ``n`` frames of a few thousand pixels each.

A tile is an array ``(n, pixels)``: row ``i`` holds the same pixels of frame
``i``. `reduce_tile` is what `~astro_narrowband.stack.combine` runs on every
tile, and what other modules use for stacks of their own.

Every tile is first sorted along the stack. What is rejected is then a number of
values at the low and at the high end of every pixel, and all that is summed is
summed in the order of the values: results do not depend on the order of the
frames, nor on how the image was cut into tiles, to the last bit. Where values
are told apart by a weight or a variance of their own, sums are made exact
instead (see `_exact_sum`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from astro_narrowband._network import select_rows, sort_rows
from astro_narrowband._validate import choice
from astro_narrowband.exceptions import InputError

__all__ = ["Reduced", "Rejection", "reduce_tile"]

#: Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_STD = 1.482602218505602
#: Variance of a median over that of a mean, for many normal values (1.2533 squared).
MEDIAN_VARIANCE = np.pi / 2
#: Values that are weighted are worked on in blocks of so many numbers (16 MiB of float64).
BLOCK = 1 << 21


@dataclass(frozen=True)
class Rejection:
    """
    Which values of a stack are left out.

    The tests are made in this order: ``limits``, ``extrema``, ``percentile``,
    ``sigma``; each sees only what those before it left.

    Attributes
    ----------
    limits : (float or None, float or None)
        Values below the first or above the second are left out.
    extrema : (int, int)
        So many of the lowest and of the highest values are left out.
    percentile : (float, float) or None
        Values further than these fractions of the median below or above it.
    sigma : (float or None, float or None) or None
        Values further than so many ``deviation`` below or above ``center``.
    center : {"median", "mean"}
    deviation : {"mad_std", "std", "winsorized"}
        ``std`` divides by n, as `numpy.std` does. ``winsorized`` is the standard
        deviation times 1.134 after values beyond 1.5 of it from the median were
        pulled in, repeated until it changes by less than 0.05 percent.
    maxiters : int or None
        How often the ``sigma`` test is made on what is left; ``None`` is
        until nothing more is rejected.
    """

    limits: tuple = (None, None)
    extrema: tuple = (0, 0)
    percentile: tuple | None = None
    sigma: tuple | None = None
    center: str = "median"
    deviation: str = "mad_std"
    maxiters: int | None = 1

    def __post_init__(self):
        choice(self.center, ("median", "mean"), "center")
        choice(self.deviation, ("mad_std", "std", "winsorized"), "deviation")
        if min(self.extrema) < 0:
            raise InputError(f"extrema = {self.extrema}: must not be negative")
        if self.maxiters is not None and self.maxiters < 1:
            raise InputError(f"maxiters = {self.maxiters}: must be 1 or more, or None")
        for pair in (self.percentile or (), self.sigma or ()):
            for threshold in (pair,) if isinstance(pair, float | int) else pair or ():
                if threshold is not None and not threshold >= 0:
                    raise InputError(f"a threshold of {threshold} cannot be used: it is negative")

    @property
    def any(self):
        """Whether anything at all may be left out."""
        return (
            self.limits != (None, None)
            or any(self.extrema)
            or self.percentile is not None
            or self.sigma is not None
        )


class Reduced(NamedTuple):
    """
    What became of a tile.

    Attributes
    ----------
    value : `~numpy.ndarray` of float, (pixels,)
        NaN where no value was left.
    variance : `~numpy.ndarray` of float, (pixels,), or None
        Variance of ``value``; NaN where it is not known (one value without a
        variance of its own).
    count : `~numpy.ndarray` of uint8 or uint16, (pixels,)
        How many values went in.
    """

    value: np.ndarray
    variance: np.ndarray | None
    count: np.ndarray


def reduce_tile(
    tile,
    bad=None,
    *,
    method="average",
    rejection=None,
    variance=None,
    weights=None,
    error=True,
    dtype=np.float32,
    overwrite=False,
):
    """
    Reduce a tile along the stack: median, average or sum of what is not rejected.

    Parameters
    ----------
    tile : `~numpy.ndarray`, (n, pixels)
        Integers or floats; integers are compared as integers. Values that are
        not finite are left out.
    bad : `~numpy.ndarray` of bool, (n, pixels), optional
        `True` for values to leave out.
    method : {"average", "median", "sum"}
    rejection : `Rejection`, optional
        Default rejects nothing.
    variance : `~numpy.ndarray`, (n, pixels), optional
        Variance of each value; makes ``variance`` of the result the propagated
        one. Without it that is found from the scatter of the values used.
    weights : array-like, (n,) or (n, pixels), optional
        Not for medians. A value of weight zero is left out.
    error : bool
        `False` saves the time for the variance.
    dtype : float32 or float64
        Type of the result, and precision of the sums of integers.
    overwrite : bool
        Whether the contents of ``tile`` may be spoilt, which saves a copy.

    Returns
    -------
    `Reduced`

    Notes
    -----
    For an average of c values with weights w the variance is ``sum(w**2 v) /
    sum(w)**2`` where the v are given; without, ``sum(w (x - mean)**2) / ((c -
    1) sum(w))``, that is s**2 / c for equal weights. For a median both are those
    of an average times pi/2 (for more than two values), the limit of many normal
    values: up to 8 percent too large an error for few. What rejection does to the
    scatter of the values that stay is not made good.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.stack import reduce_tile
    >>> tile = np.array([[1, 7], [2, 8], [9, 9]], np.uint16)
    >>> print(reduce_tile(tile, method="median").value)
    [2. 8.]
    """
    choice(method, ("average", "median", "sum"), "method")
    rejection = rejection or Rejection()
    dtype = np.dtype(dtype)
    tile = np.asarray(tile)
    if tile.dtype.kind not in "iuf" or not tile.dtype.isnative or tile.dtype.itemsize < 2:
        tile, overwrite = tile.astype(np.result_type(tile.dtype, np.int16)), True
    if tile.dtype == np.float16:
        tile, overwrite = tile.astype(np.float32), True
    if weights is not None and method == "median":
        raise InputError("weights have no meaning for a median: use method='average'")
    bad = _all_bad(tile, bad, weights)
    if bad is not None:
        whole = bad.all(axis=1)
        if whole.any():
            # Frames that give nothing here cost nothing.
            used = ~whole
            if not used.any():
                return _nothing(tile.shape, dtype, error)
            tile, bad, overwrite = tile[used], bad[used], True
            variance = None if variance is None else variance[used]
            weights = None if weights is None else np.asarray(weights)[used]
            bad = bad if bad.any() else None
    # Columns without a good value hold rubbish until they are set to NaN at the end.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if weights is not None or (variance is not None and error):
            return _reduce_frames(tile, bad, method, rejection, variance, weights, error, dtype)
        stack = tile if overwrite else tile.copy()
        return _reduce_values(stack, bad, method, rejection, error, dtype)


def _all_bad(tile, bad, weights):
    """Everything that must not be used, or None."""
    if bad is not None and not bad.any():
        bad = None
    if tile.dtype.kind == "f":
        for i, row in enumerate(tile):
            finite = np.isfinite(row)
            if not finite.all():
                if bad is None:
                    bad = np.zeros(tile.shape, bool)
                elif not bad.flags.writeable or i == 0 or bad.base is not None:
                    bad = bad.copy()
                bad[i] |= ~finite
    if weights is not None:
        weights = np.asarray(weights)
        zero = weights == 0
        if zero.any():
            zero = zero if zero.ndim == 2 else zero[:, None]
            bad = np.broadcast_to(zero, tile.shape) if bad is None else bad | zero
    return bad


def _nothing(shape, dtype, error):
    nan = np.full(shape[1], np.nan, dtype)
    return Reduced(nan, nan.copy() if error else None, np.zeros(shape[1], np.uint8))


# ------------------------------------------------------------------ values alone


def _reduce_values(tile, bad, method, rejection, error, dtype):
    if method == "median" and not error and not rejection.any:
        return _plain_median(tile, bad, dtype)
    rows, low, high = _kept(tile, bad, rejection)
    return _summarize(rows, low, high, method, error, dtype)


def _plain_median(tile, bad, dtype):
    """The median by the pruned network; columns with bad values are sorted apart."""
    n = len(tile)
    value = np.empty(tile.shape[1], dtype)
    count = np.full(tile.shape[1], n, _counter(n))
    columns = None if bad is None else np.flatnonzero(bad.any(axis=0))
    if columns is not None:
        few, few_bad = tile[:, columns], bad[:, columns]
        tile[:, columns] = 0  # NaN would only cost time
    if columns is None or columns.size < value.size:
        rows = list(tile)
        middle = ((n - 1) // 2, n // 2)
        select_rows(rows, np.empty_like(rows[0]), middle)
        _middle(rows[middle[0]], rows[middle[1]], out=value)
    if columns is not None:
        rows, low, high = _kept(few, few_bad, Rejection())
        part = _summarize(rows, low, high, "median", False, dtype)
        value[columns], count[columns] = part.value, part.count
    return Reduced(value, None, count)


def _middle(a, b, out):
    """The mean of two rows into a row of floats."""
    np.copyto(out, a, casting="same_kind")
    if a is not b:
        other = b.astype(out.dtype)
        # Half of each first: the sum may be beyond the largest float.
        if a.dtype.kind == "f":
            out *= 0.5
            other *= 0.5
            out += other
        else:
            out += other
            out *= 0.5
    return out


def _counter(n):
    return np.uint8 if n < 256 else np.uint16 if n < 65536 else np.int64


def _highest(dtype):
    """What bad values are replaced with, to be sorted last; finite, so that 0 times it is 0."""
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


def _kept(tile, bad, rejection):
    """
    Sort a tile in place and find what is kept of it.

    Returns
    -------
    rows : list of `~numpy.ndarray`
        Sorted along the stack; bad values last.
    low, high : int, or `~numpy.ndarray` of int, (pixels,)
        ``rows[low]`` to ``rows[high - 1]`` are kept. Plain integers where that
        is the same for every pixel.
    """
    n, pixels = tile.shape
    counter = _counter(n)
    low, high = 0, n
    odd = np.zeros(0, np.intp)  # columns that are not like the others
    if bad is not None:
        odd = np.flatnonzero(bad.any(axis=0))
        if odd.size:
            few, few_bad = tile[:, odd], bad[:, odd]
            few[few_bad] = _highest(tile.dtype)
            tile[:, odd] = few
            high = np.full(pixels, n, counter)
            high[odd] -= few_bad.sum(axis=0, dtype=counter)
    rows = list(tile)
    sort_rows(rows, np.empty_like(rows[0]))

    below, above = rejection.limits
    beyond = np.zeros(pixels, bool)
    if below is not None:
        beyond |= rows[0] < below
    if above is not None:
        beyond |= rows[-1] > above
    if beyond.any():
        columns = np.flatnonzero(beyond)
        few = _columns(rows, columns)
        low, high = _as_arrays(low, high, pixels, counter)
        low[columns], high[columns] = _within(few, low[columns], high[columns], below, above)
        odd = np.union1d(odd, columns)
    if any(rejection.extrema):
        nlow, nhigh = rejection.extrema
        if isinstance(high, np.ndarray):
            signed_low = np.asarray(low, np.intp) + nlow
            signed_high = np.maximum(high.astype(np.intp) - nhigh, 0)
            low = np.minimum(signed_low, signed_high).astype(counter)
            high = np.maximum(signed_high, low).astype(counter)
        else:
            low, high = min(nlow, n), max(n - nhigh, 0)
            low = min(low, high)
    if rejection.percentile is None and rejection.sigma is None:
        return rows, low, high
    return _clip(rows, low, high, odd, rejection)


def _clip(rows, low, high, odd, rejection):
    """Reject by percentile and sigma; ``odd`` are the columns with bounds of their own."""
    n, pixels, counter = len(rows), rows[0].size, _counter(len(rows))
    same = (rejection.extrema[0], n - rejection.extrema[1])
    if same[0] >= same[1]:
        return rows, low, high
    low, high = _as_arrays(low, high, pixels, counter)
    todo = odd
    iteration = 0
    if (
        rejection.percentile is None
        and rejection.deviation != "winsorized"
        and odd.size < pixels // 2
    ):
        # The common case, fast: all columns have the same number of values.
        bounds = _same_bounds(rows[slice(*same)], rejection)
        first, last = _count_beyond(rows[slice(*same)], *bounds, counter)
        first += counter(same[0])
        np.subtract(counter(same[1]), last, out=last)
        np.maximum(first, 0, out=first)
        np.maximum(last, first, out=last)
        changed = (first != same[0]) | (last != same[1])
        kept_low, kept_high = low[odd], high[odd]
        low, high = first, last
        low[odd], high[odd] = kept_low, kept_high
        _clip_columns(rows, low, high, odd, rejection, rejection.maxiters)
        if rejection.maxiters != 1:
            changed[odd] = False
            more = None if rejection.maxiters is None else rejection.maxiters - 1
            _clip_columns(rows, low, high, np.flatnonzero(changed), rejection, more)
        return rows, low, high
    del todo, iteration
    _clip_columns(rows, low, high, np.arange(pixels), rejection, rejection.maxiters)
    return rows, low, high


def _clip_columns(rows, low, high, columns, rejection, maxiters):
    """Reject in some columns, each with bounds of its own; ``low`` and ``high`` are updated."""
    columns = columns[high[columns] > low[columns]]
    if not columns.size:
        return
    few = _columns(rows, columns)
    first, last = low[columns].astype(np.intp), high[columns].astype(np.intp)
    if rejection.percentile is not None:
        center = _median(few, first, last)
        size = np.abs(center)
        below, above = rejection.percentile
        bounds = center - below * size, center + above * size
        first, last = _within(few, first, last, *bounds)
    if rejection.sigma is not None:
        active = np.flatnonzero(last > first)
        done = 0
        while active.size:
            part = few if active.size == few.shape[1] else few[:, active]
            old = first[active], last[active]
            new = _within(part, *old, *_bounds(part, *old, rejection))
            first[active], last[active] = new
            done += 1
            if done == maxiters:
                break
            changed = (new[0] != old[0]) | (new[1] != old[1])
            active = active[changed & (new[1] > new[0])]
    low[columns], high[columns] = first, last


def _columns(rows, columns):
    if columns.size == rows[0].size:
        return np.stack(rows)
    return np.stack([row.take(columns) for row in rows])


def _as_arrays(low, high, pixels, counter):
    if not isinstance(low, np.ndarray):
        low = np.full(pixels, low, counter)
    if not isinstance(high, np.ndarray):
        high = np.full(pixels, high, counter)
    return low, high


def _fine(dtype):
    """The type in which bounds are found: exact for integers of 16 bit and their medians."""
    return np.dtype(np.float32) if dtype == np.float32 else np.dtype(np.float64)


# ---- all columns alike


def _same_bounds(rows, rejection):
    """Lowest and highest value to keep, of the rows' type, where all columns are full."""
    n, native = len(rows), rows[0].dtype
    fine = _fine(native)
    a, b = rows[(n - 1) // 2], rows[n // 2]
    if rejection.center == "mean" or rejection.deviation == "std":
        total, squares = _moments(rows, a, 0, n, fine, squares=True)
        total /= n
    middle = _middle(a, b, np.empty(a.shape, fine))
    center = total + a if rejection.center == "mean" else middle
    if rejection.deviation == "std":
        squares /= n
        squares -= total * total
        np.maximum(squares, 0, out=squares)
        spread = np.sqrt(squares, out=squares)
    else:
        spread = _same_mad(rows, fine)
        spread *= MAD_TO_STD
    below, above = rejection.sigma
    return (
        None if below is None else _to_native(center - spread * fine.type(below), native, np.ceil),
        None if above is None else _to_native(center + spread * fine.type(above), native, np.floor),
    )


def _to_native(bound, native, rounding):
    """A bound as a number of the data's type that lets through the same values."""
    if native.kind != "f":
        limits = np.iinfo(native)
        rounding(bound, out=bound)
        np.clip(bound, limits.min, limits.max, out=bound)
        if native.itemsize == 8:
            return bound
    return bound.astype(native, copy=False)


def _same_mad(rows, fine):
    """
    Median absolute deviation of sorted, full rows.

    The k + 1 values nearest to the median are neighbours in the sorted stack,
    so the k-th lowest deviation is the least, over such windows, of the larger
    deviation of the window's two ends. No second sort is needed. Deviations are
    measured from the two middle values, so that integers stay integers.
    """
    n = len(rows)
    half = n // 2
    a, b = rows[(n - 1) // 2], rows[half]
    # Unsigned, so that differences of signed integers cannot overflow.
    kind = rows[0].dtype
    if kind.kind == "i":
        kind = np.dtype(f"u{kind.itemsize}")
    ends = [np.subtract(a, row).view(kind) for row in rows[:half]]
    ends += [np.subtract(row, b).view(kind) for row in rows[half:]]
    mad = np.zeros(a.shape, fine)
    buffer, least = np.empty(a.shape, kind), np.empty(a.shape, kind)
    for k in {(n - 1) // 2, half}:
        for j in range(n - k):
            out = least if j == 0 else buffer
            if j < half <= j + k:
                np.maximum(ends[j], ends[j + k], out=out)
            else:
                np.copyto(out, ends[j] if j + k < half else ends[j + k])
            if j:
                np.minimum(least, buffer, out=least)
        mad += least
    if n % 2 == 0:
        mad += np.subtract(b, a).view(kind)
        mad *= 0.5
    return mad


def _count_beyond(rows, lowest, highest, counter):
    """How many values of every column are below ``lowest``, and above ``highest``."""
    pixels = rows[0].shape
    below, above = np.zeros(pixels, counter), np.zeros(pixels, counter)
    test = np.empty(pixels, bool)
    # The rows are sorted: once nothing is beyond, nothing further in can be.
    if lowest is not None:
        for row in rows:
            np.less(row, lowest, out=test)
            if not test.any():
                break
            below += test
    if highest is not None:
        for row in reversed(rows):
            np.greater(row, highest, out=test)
            if not test.any():
                break
            above += test
    return below, above


# ---- every column with its own number of values


def _pick(few, index):
    """``few[index[j], j]`` for every column j."""
    n, columns = few.shape
    flat = np.clip(index, 0, n - 1) * columns
    flat += np.arange(columns)
    return few.ravel().take(flat)


def _median(few, first, last):
    fine = _fine(few.dtype)
    a = _pick(few, (first + last - 1) // 2)
    b = _pick(few, (first + last) // 2)
    return _middle(a, b, np.empty(a.shape, fine))


def _mad(few, first, last, center):
    """As `_same_mad`, by bisection: the ends' deviations fall and rise with the window."""
    fine = center.dtype
    count = last - first
    total = np.zeros(center.shape, fine)
    for k in ((count - 1) // 2, count // 2):
        start, stop = first.copy(), last - 1 - k
        # The first window whose upper end is at least as far out as its lower one.
        while True:
            open_ = start < stop
            if not open_.any():
                break
            j = (start + stop) // 2
            upper = _pick(few, j + k).astype(fine) - center
            lower = center - _pick(few, j)
            reached = upper >= lower
            stop = np.where(open_ & reached, j, stop)
            start = np.where(open_ & ~reached, j + 1, start)
        best = np.maximum(center - _pick(few, start), _pick(few, start + k) - center)
        before = np.maximum(start - 1, first)
        other = np.maximum(center - _pick(few, before), _pick(few, before + k) - center)
        total += np.minimum(best, other)
    total *= 0.5
    return total


def _bounds(few, first, last, rejection):
    """Lowest and highest value to keep, as floats."""
    fine = _fine(few.dtype)
    middle = _median(few, first, last)
    center = middle
    rows, count = list(few), last - first
    if rejection.center == "mean" or rejection.deviation != "mad_std":
        pivot = _pick(few, (first + last - 1) // 2)
        total, squares = _moments(rows, pivot, first, last, fine, squares=True)
        shift = total / count
        spread = np.sqrt(np.maximum(squares / count - shift * shift, 0))
        if rejection.center == "mean":
            center = shift + pivot
    if rejection.deviation == "mad_std":
        spread = MAD_TO_STD * _mad(few, first, last, middle)
    elif rejection.deviation == "winsorized":
        spread = _winsorized(rows, first, last, middle, spread)
    below, above = rejection.sigma
    return (
        None if below is None else center - below * spread,
        None if above is None else center + above * spread,
    )


def _winsorized(rows, first, last, center, spread):
    count = last - first
    going = np.ones(center.shape, bool)
    for _ in range(20):
        lowest, highest = center - 1.5 * spread, center + 1.5 * spread
        pulled = [np.clip(row, lowest, highest) for row in rows]
        total, squares = _moments(pulled, center, first, last, center.dtype, squares=True)
        total /= count
        new = 1.134 * np.sqrt(np.maximum(squares / count - total * total, 0))
        small = np.abs(new - spread) <= 0.0005 * spread
        # A column stops by itself: it must not matter which others are in the tile.
        spread = np.where(going, new, spread)
        going &= ~small
        if not going.any():
            break
    return spread


def _within(few, first, last, lowest, highest):
    """Bounds of the sorted values that are neither below ``lowest`` nor above ``highest``."""
    kind = np.asarray(first).dtype
    new_first, new_last = first, last
    if lowest is not None:
        below = np.zeros(few.shape[1], kind)
        for row in few:
            test = row < lowest
            if not test.any():
                break
            below += test
        new_first = np.minimum(np.maximum(first, below), last)
    if highest is not None:
        above = np.zeros(few.shape[1], kind)
        for row in few[::-1]:
            test = row > highest
            if not test.any():
                break
            above += test
        new_last = np.maximum(np.minimum(last, len(few) - above), new_first)
    return new_first, new_last


# ------------------------------------------------------------------ sums


def _moments(rows, pivot, low, high, dtype, *, squares):
    """
    Sum of (x - pivot), and of its square, over the kept values, lowest first.

    Sums are taken about a value from the middle of the stack, where they lose
    no digits: a mean is never further from a median than a standard deviation.
    Single precision is summed over 16 rows at most, then in double.
    """
    count = len(rows)
    same = not isinstance(low, np.ndarray) and not isinstance(high, np.ndarray)
    if same:
        start, stop, all_from, all_to = low, high, low, high
    else:
        low, high = np.asarray(low), np.asarray(high)
        start, stop = int(low.min()), int(high.max())
        all_from, all_to = int(low.max()), int(high.min())
    pivot = pivot.astype(dtype, copy=False)
    total = np.zeros(pivot.shape, dtype)
    total2 = np.zeros(pivot.shape, dtype) if squares else None
    wide = wide2 = None
    difference = np.empty(pivot.shape, dtype)
    for k, i in enumerate(range(start, min(stop, count))):
        np.copyto(difference, rows[i], casting="same_kind")
        difference -= pivot
        if not all_from <= i < all_to:
            difference *= (low <= i) & (high > i)
        total += difference
        if squares:
            difference *= difference
            total2 += difference
        if dtype == np.float32 and k % 16 == 15:
            wide = total.astype(np.float64) if wide is None else wide + total
            total[:] = 0
            if squares:
                wide2 = total2.astype(np.float64) if wide2 is None else wide2 + total2
                total2[:] = 0
    if wide is not None:
        total = wide + total
        total2 = wide2 + total2 if squares else None
    return total, total2


def _summarize(rows, low, high, method, error, dtype):
    """Value, variance and count of what is kept of sorted rows."""
    n, native = len(rows), rows[0].dtype
    counter = _counter(n)
    same = not isinstance(low, np.ndarray) and not isinstance(high, np.ndarray)
    if same and low >= high:
        return _nothing((n, rows[0].size), dtype, error)
    work = dtype
    if native.itemsize > 4 or (native.kind in "iu" and native.itemsize > 2):
        work = np.dtype(np.float64)
    if same:
        count = np.full(rows[0].shape, high - low, counter)
        divisor = work.type(high - low)
        a, b = rows[(low + high - 1) // 2], rows[(low + high) // 2]
    else:
        count = np.subtract(high, low, dtype=counter)
        divisor = np.maximum(count, 1).astype(work)
        a, b = _middle_rows(rows, low, high, both=method == "median")
    variance = None
    if method != "median" or error:
        total, squares = _moments(rows, a, low, high, work, squares=error)
    if method == "median":
        value = _middle(a, b, np.empty(a.shape, work))
    elif method == "average":
        value = np.add(total / divisor, a, dtype=work, casting="same_kind")
    else:
        value = np.add(total, a * divisor, dtype=work, casting="same_kind")
    if error:
        total *= total
        total /= divisor
        squares -= total
        np.maximum(squares, 0, out=squares)
        factor = divisor if method != "sum" else 1 / divisor
        if method == "median":
            squares *= _median_factor(count, work) if not same else _median_factor(divisor)
        variance = squares / ((divisor - 1) * factor)
        variance = variance.astype(dtype, copy=False)
    value = value.astype(dtype, copy=False)
    if not same and count.min() < 2:
        none = np.flatnonzero(count == 0)
        value[none] = np.nan
        if error:
            variance[count < 2] = np.nan
    elif same and error and high - low < 2:
        variance[:] = np.nan
    return Reduced(value, variance, count)


def _median_factor(count, dtype=None):
    """Variance of a median over that of a mean; a median of two is a mean."""
    if dtype is None:
        return count.dtype.type(MEDIAN_VARIANCE if count > 2 else 1.0)
    return np.where(count > 2, dtype.type(MEDIAN_VARIANCE), dtype.type(1))


def _middle_rows(rows, low, high, *, both):
    """The two middle values of what is kept in every column; the lower one twice unless both."""
    sums = np.asarray(low, np.int32) + high
    lower, upper = np.maximum(sums - 1, 0) // 2, np.minimum(sums // 2, len(rows) - 1)
    few = np.stack(rows)
    a = _pick(few, lower)
    return a, _pick(few, upper) if both else a


# ------------------------------------------------------------------ frames that differ


def _reduce_frames(tile, bad, method, rejection, variance, weights, error, dtype):
    """As `_reduce_values` where every value has a weight or a variance of its own."""
    n, pixels = tile.shape
    step = max(1024, BLOCK // n)
    parts = []
    weights = None if weights is None else np.asarray(weights, np.float64)
    for start in range(0, pixels, step):
        cut = slice(start, start + step)
        parts.append(
            _reduce_block(
                tile[:, cut],
                None if bad is None else bad[:, cut],
                method,
                rejection,
                None if variance is None else variance[:, cut],
                weights[:, cut] if weights is not None and weights.ndim == 2 else weights,
                error,
                dtype,
            )
        )
    if len(parts) == 1:
        return parts[0]
    return Reduced(*(None if p[0] is None else np.concatenate(p) for p in zip(*parts, strict=True)))


def _reduce_block(tile, bad, method, rejection, variance, weights, error, dtype):
    n, pixels = tile.shape
    share = None  # how much of each value is used; None is all of it
    if bad is not None:
        share = (~bad).astype(np.float64)
    value = count = None
    if rejection.any or method == "median":
        rows, low, high = _kept(tile.copy(), bad, rejection)
        if method == "median":
            value, _, count = _summarize(rows, low, high, "median", False, np.dtype(dtype))
        if rejection.any:
            low, high = _as_arrays(low, high, pixels, np.intp)
            share = _shares(tile, rows, low.astype(np.intp), high.astype(np.intp), bad)
            count = (high - low).astype(_counter(n))
    if count is None:
        count = np.full(pixels, n, _counter(n))
        if share is not None:
            count = share.sum(axis=0).astype(_counter(n))
    weight = share
    if weights is not None:
        column = weights if weights.ndim == 2 else weights[:, None]
        weight = column if share is None else column * share
    empty = count == 0
    total = count.astype(np.float64) if weights is None else _exact_sum(weight, pixels)
    x = tile.astype(np.float64)
    if bad is not None:
        x[bad] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "average":
            value = _exact_sum(x if weight is None else x * weight, pixels) / total
        elif method == "sum":
            value = _exact_sum(x if weight is None else x * weight, pixels)
        result = None
        if error and variance is not None:
            v = variance.astype(np.float64)
            if share is not None:
                v[share == 0] = 0.0
            if weights is not None:
                v *= column * column
            if share is not None:
                v *= share
            result = _exact_sum(v, pixels)
        elif error:
            mean = value if method == "average" else value / total
            x -= mean
            x *= x
            if weight is not None:
                x *= weight
            result = _exact_sum(x, pixels) * total / (count - 1.0)
            empty_error = count < 2
            result[empty_error] = np.nan
        if result is not None:
            if method != "sum":
                result /= total * total
            if method == "median":
                result *= _median_factor(count, np.dtype(np.float64))
            result[empty] = np.nan
            result = result.astype(dtype)
    value = value.astype(dtype, copy=False)
    value[empty] = np.nan
    return Reduced(value, result, count)


def _shares(tile, rows, low, high, bad):
    """
    How much of each value is kept: 1 or 0, or a fraction of those equal to the last one kept.

    Of equal values at a bound some may be kept and some not; which ones is not
    defined, so that all of them count in part.
    """
    few = np.stack(rows)
    lowest, highest = _pick(few, low), _pick(few, high - 1)
    share = ((tile >= lowest) & (tile <= highest)).astype(np.float64)
    if bad is not None:
        share[bad] = 0.0
    kept = high - low
    share[:, kept <= 0] = 0.0
    partial = np.flatnonzero((share.sum(axis=0) != kept) & (kept > 0))
    if partial.size:
        x, part = tile[:, partial], share[:, partial]
        lowest, highest, kept = lowest[partial], highest[partial], kept[partial]
        few, low, high = few[:, partial], low[partial], high[partial]
        at_low, at_high = (x == lowest) & (part > 0), (x == highest) & (part > 0)
        kept_rows = (np.arange(len(few))[:, None] >= low) & (np.arange(len(few))[:, None] < high)
        of_high = ((few == highest) & kept_rows).sum(axis=0) / at_high.sum(axis=0)
        of_low = ((few == lowest) & kept_rows).sum(axis=0) / at_low.sum(axis=0)
        part = np.where(at_high, of_high, np.where(at_low, of_low, part))
        share[:, partial] = part
    return share


def _exact_sum(terms, pixels):
    """
    Sum along the stack that does not depend on the order, to the last bit.

    All terms of a column are first rounded to multiples of one power of two, so
    small that it does not matter and so large that every partial sum is exact
    (J. Demmel and H. D. Nguyen, "Parallel reproducible summation", 2015, with
    one bin). The error is below ``n**2 2**-52`` of the largest term.
    """
    n = len(terms)
    if terms.shape[1] != pixels:
        terms = np.broadcast_to(terms, (n, pixels))
    largest = np.maximum(terms.max(axis=0), -terms.min(axis=0))
    exponent = np.frexp(largest * n)[1]
    big = np.ldexp(1.5, exponent + 1)
    rounded = terms + big
    rounded -= big
    return rounded.sum(axis=0)
