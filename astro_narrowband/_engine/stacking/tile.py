"""
Statistics along the stack of a tile: ``n`` frames of a few thousand pixels each.

A tile is an array ``(n, pixels)``: row ``i`` holds the same pixels of frame
``i``. `reduce_tile` is what `~astro_narrowband.coaddition.combine` runs on every
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

from astro_narrowband._engine.stacking._sorted import (
    LONGEST_SINGLE,
    as_arrays,
    counter_for,
    kept,
    middle,
    moments,
    pick,
    row_at,
)
from astro_narrowband._engine.stacking.network import select_rows
from astro_narrowband._engine.validate import choice
from astro_narrowband.exceptions import InputError

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
        `combine` takes functions as well, here and in ``deviation``.
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
        for value, name, known in (
            (self.center, "center", ("median", "mean")),
            (self.deviation, "deviation", ("mad_std", "std", "winsorized")),
        ):
            if not callable(value):
                choice(value, known, name)
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
    >>> from astro_narrowband.coaddition import reduce_tile
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
    n = len(tile)
    bad = _all_bad(tile, bad, weights)
    if bad is not None:
        whole = bad.all(axis=1)
        if whole.any():
            # Frames that give nothing here cost nothing.
            used = ~whole
            if not used.any():
                return _nothing(tile.shape, dtype, error)
            # The way of summing must not depend on what else is in the tile.
            lacking = min(n, LONGEST_SINGLE + 1) - np.count_nonzero(used)
            if n > LONGEST_SINGLE and lacking > 0:
                used[np.flatnonzero(whole)[:lacking]] = True
            tile, bad, overwrite = tile[used], bad[used], True
            variance = None if variance is None else variance[used]
            weights = None if weights is None else np.asarray(weights)[used]
            bad = bad if bad.any() else None
    # Columns without a good value hold rubbish until they are set to NaN at the end.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if weights is not None or (variance is not None and error):
            return _reduce_frames(tile, bad, method, rejection, variance, weights, error, dtype, n)
        stack = tile if overwrite else tile.copy()
        return _reduce_values(stack, bad, method, rejection, error, dtype)


def kept_values(tile, bad, rejection):
    """
    Return the values of a tile that are used, sorted along the stack, NaN where they are not.

    For functions of the user's own that take a stack and ``axis=0``: float64, (n, pixels).
    ``tile``, ``bad`` and ``rejection`` are as of `reduce_tile`.
    """
    n, pixels = tile.shape
    rows, low, high, _ = kept(tile.copy(), _all_bad(tile, bad, None), rejection)
    low, high = as_arrays(low, high, pixels, np.intp)
    stack = np.stack(rows).astype(np.float64)
    rank = np.arange(n)[:, None]
    stack[(rank < low) | (rank >= high)] = np.nan
    return stack


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
    return _summarize(*kept(tile, bad, rejection), method, error, dtype)


def _plain_median(tile, bad, dtype):
    """The median by the pruned network; columns with bad values are sorted apart."""
    n = len(tile)
    value = np.empty(tile.shape[1], dtype)
    count = np.full(tile.shape[1], n, counter_for(n))
    columns = None if bad is None else np.flatnonzero(bad.any(axis=0))
    if columns is not None:
        picked, picked_bad = tile[:, columns], bad[:, columns]
        tile[:, columns] = 0  # NaN would only cost time
    if columns is None or columns.size < value.size:
        rows = list(tile)
        ranks = ((n - 1) // 2, n // 2)
        select_rows(rows, np.empty_like(rows[0]), ranks)
        value[:] = middle(
            rows[ranks[0]], rows[ranks[1]], np.empty(value.shape, _work(tile.dtype, dtype))
        )
    if columns is not None:
        medians = _summarize(*kept(picked, picked_bad, Rejection()), "median", False, dtype)
        value[columns], count[columns] = medians.value, medians.count
    return Reduced(value, None, count)


def _work(native, dtype):
    """The type to compute in: no less precise than the data or the result."""
    if native.itemsize > 4 or (native.kind in "iu" and native.itemsize > 2):
        return np.dtype(np.float64)
    return dtype


def _summarize(rows, low, high, pivot, method, error, dtype):
    """Value, variance and count of what is kept of sorted rows."""
    n = len(rows)
    same = not isinstance(low, np.ndarray) and not isinstance(high, np.ndarray)
    if same and low >= high:
        return _nothing((n, rows[0].size), dtype, error)
    work = _work(rows[0].dtype, dtype)
    if same:
        count = np.full(rows[0].shape, high - low, counter_for(n))
        divisor = work.type(high - low)
    else:
        count = np.subtract(high, low, dtype=counter_for(n))
        divisor = np.maximum(count, 1).astype(work)
    if method != "median" or error:
        total, squares = moments(rows, pivot, low, high, work, squares=error)
    if method == "median":
        value = middle(*_middle_rows(rows, low, high), np.empty(pivot.shape, work))
    elif method == "average":
        value = total / divisor + pivot.astype(work, copy=False)
    else:
        value = total + pivot.astype(work, copy=False) * divisor
    value = value.astype(dtype, copy=False)
    variance = None
    if error:
        total *= total
        total /= divisor
        squares -= total
        np.maximum(squares, 0, out=squares)
        if method == "median":
            squares *= _median_factor(divisor if same else count).astype(work)
        squares /= (divisor - 1) / divisor if method == "sum" else (divisor - 1) * divisor
        variance = squares.astype(dtype)
    if not same and count.min() < 2:
        value[count == 0] = np.nan
        if error:
            variance[count < 2] = np.nan
    elif same and error and high - low < 2:
        variance[:] = np.nan
    return Reduced(value, variance, count)


def _median_factor(count):
    """Variance of a median over that of a mean; a median of two is a mean."""
    return np.where(count > 2, MEDIAN_VARIANCE, 1.0)


def _middle_rows(rows, low, high):
    """The two middle values of what is kept in every column."""
    if not isinstance(low, np.ndarray) and not isinstance(high, np.ndarray):
        return rows[(low + high - 1) // 2], rows[(low + high) // 2]
    sums = np.add(low, high, dtype=np.intp)
    upper = np.minimum(sums // 2, len(rows) - 1)
    return row_at(rows, np.maximum(sums - 1, 0) // 2), row_at(rows, upper)


# ------------------------------------------------------------------ frames that differ


def _reduce_frames(tile, bad, method, rejection, variance, weights, error, dtype, terms):
    """As `_reduce_values` where every value has a weight or a variance of its own."""
    pixels = tile.shape[1]
    step = max(1024, BLOCK // terms)
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
                terms,
            )
        )
    if len(parts) == 1:
        return parts[0]
    return Reduced(*(None if p[0] is None else np.concatenate(p) for p in zip(*parts, strict=True)))


def _reduce_block(tile, bad, method, rejection, variance, weights, error, dtype, terms):
    n, pixels = tile.shape
    share = None  # how much of each value is used; None is all of it
    if bad is not None:
        share = (~bad).astype(np.float64)
    value = count = None
    if rejection.any or method == "median":
        rows, low, high, pivot = kept(tile.copy(), bad, rejection)
        if method == "median":
            value, _, count = _summarize(rows, low, high, pivot, "median", False, dtype)
        if rejection.any:
            low, high = as_arrays(low, high, pixels, np.intp)
            share = _shares(tile, rows, low.astype(np.intp), high.astype(np.intp), bad)
            count = (high - low).astype(counter_for(n))
    if count is None:
        count = np.full(pixels, n, counter_for(n))
        if share is not None:
            count = share.sum(axis=0).astype(counter_for(n))
    weight = share
    if weights is not None:
        column = weights if weights.ndim == 2 else weights[:, None]
        weight = column if share is None else column * share
    empty = count == 0
    total = count.astype(np.float64) if weights is None else _exact_sum(weight, pixels, terms)
    x = tile.astype(np.float64)
    if bad is not None:
        x[bad] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == "average":
            value = _exact_sum(x if weight is None else x * weight, pixels, terms) / total
        elif method == "sum":
            value = _exact_sum(x if weight is None else x * weight, pixels, terms)
        result = None
        if error and variance is not None:
            result = _propagated(variance, share, None if weights is None else column, terms)
        elif error:
            x -= value if method == "average" else value / total
            x *= x
            if weight is not None:
                x *= weight
            result = _exact_sum(x, pixels, terms) * total / (count - 1.0)
            result[count < 2] = np.nan
        if result is not None:
            if method != "sum":
                result /= total * total
            if method == "median":
                result *= _median_factor(count)
            result[empty] = np.nan
            result = result.astype(dtype)
    value = value.astype(dtype, copy=False)
    value[empty] = np.nan
    return Reduced(value, result, count)


def _propagated(variance, share, weights, terms):
    """Sum of the variances of a sum of weighted values, of each of which a share counts."""
    v = variance.astype(np.float64)
    if weights is not None:
        v *= weights * weights
    if share is not None:
        v[share == 0] = 0.0
        v *= share
    return _exact_sum(v, v.shape[1], terms)


def _shares(tile, rows, low, high, bad):
    """
    How much of each value is kept: 1 or 0, or a fraction of those equal to the last one kept.

    Of equal values at a bound some may be kept and some not; which ones is not
    defined, so that all of them count in part.
    """
    picked = np.stack(rows)
    lowest, highest = pick(picked, low), pick(picked, high - 1)
    share = ((tile >= lowest) & (tile <= highest)).astype(np.float64)
    if bad is not None:
        share[bad] = 0.0
    kept = high - low
    share[:, kept <= 0] = 0.0
    partial = np.flatnonzero((share.sum(axis=0) != kept) & (kept > 0))
    if partial.size:
        x, split = tile[:, partial], share[:, partial]
        lowest, highest, kept = lowest[partial], highest[partial], kept[partial]
        picked, low, high = picked[:, partial], low[partial], high[partial]
        at_low, at_high = (x == lowest) & (split > 0), (x == highest) & (split > 0)
        kept_rows = (np.arange(len(picked))[:, None] >= low) & (
            np.arange(len(picked))[:, None] < high
        )
        of_high = ((picked == highest) & kept_rows).sum(axis=0) / at_high.sum(axis=0)
        of_low = ((picked == lowest) & kept_rows).sum(axis=0) / at_low.sum(axis=0)
        split = np.where(at_high, of_high, np.where(at_low, of_low, split))
        share[:, partial] = split
    return share


def _exact_sum(values, pixels, n):
    """
    Sum along the stack that does not depend on the order, to the last bit.

    All values of a column are first rounded to multiples of one power of two, so
    small that it does not matter and so large that every partial sum is exact
    (J. Demmel and H. D. Nguyen, "Parallel reproducible summation", 2015, with
    one bin). The error is below ``n**2 2**-52`` of the largest value. ``n`` is
    the number of frames, also of those that were left out before.
    """
    if values.shape[1] != pixels:
        values = np.broadcast_to(values, (len(values), pixels))
    largest = np.maximum(values.max(axis=0), -values.min(axis=0))
    big = np.ldexp(1.5, np.frexp(largest * n)[1] + 1)
    rounded = values + big
    rounded -= big
    return rounded.sum(axis=0)
