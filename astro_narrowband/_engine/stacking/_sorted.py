"""
Sorted stacks: what is kept of them, and sums over it.

A tile of ``n`` frames is sorted along the stack, once; rejecting is then a
matter of two numbers a pixel, ``low`` and ``high``: the values ``low`` to
``high - 1`` are kept. Where they are the same for all pixels, as in the first
round of clipping of images without masks, the work is done on whole rows;
elsewhere pixels are picked out of the sorted stack.
"""

import numpy as np

from astro_narrowband._engine.stacking.network import sort_rows
from astro_narrowband._engine.statistics import MAD_TO_STD

#: So many values are summed in single precision; longer sums are folded into double.
LONGEST_SINGLE = 16


def middle(a, b, out):
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


def counter_for(n):
    return np.uint8 if n < 256 else np.uint16 if n < 65536 else np.int64


def _highest(dtype):
    """What bad values are replaced with, to be sorted last; finite, so that 0 times it is 0."""
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


def kept(tile, bad, rejection):
    """
    Sort a tile in place and find what is kept of it.

    Returns
    -------
    rows : list of `~numpy.ndarray`
        Sorted along the stack; bad values last.
    low, high : int, or `~numpy.ndarray` of int, (pixels,)
        ``rows[low]`` to ``rows[high - 1]`` are kept. Plain integers where that
        is the same for every pixel.
    pivot : `~numpy.ndarray`, (pixels,)
        What sums are taken about: the lower middle one of the values that were
        left before clipping by percentile and sigma, or after it where that one
        is gone.
    """
    n, pixels = tile.shape
    counter = counter_for(n)
    low, high = 0, n
    odd = np.zeros(0, np.intp)  # columns that are not like the others
    if bad is not None:
        odd = np.flatnonzero(bad.any(axis=0))
        if odd.size:
            picked, picked_bad = tile[:, odd], bad[:, odd]
            picked[picked_bad] = _highest(tile.dtype)
            tile[:, odd] = picked
            high = np.full(pixels, n, counter)
            high[odd] -= picked_bad.sum(axis=0, dtype=counter)
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
        picked = _columns(rows, columns)
        low, high = as_arrays(low, high, pixels, counter)
        low[columns], high[columns] = _within(picked, low[columns], high[columns], below, above)
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
    rank = _middle_rank(low, high)
    pivot = row_at(rows, rank) if np.ndim(rank) else rows[rank]
    if rejection.percentile is None and rejection.sigma is None:
        return rows, low, high, pivot
    low, high = _clip(rows, low, high, odd, rejection)
    if isinstance(low, np.ndarray):
        gone = np.flatnonzero((low > rank) | (high <= rank))
        if gone.size:
            pivot = pivot.copy()
            pivot[gone] = pick(_columns(rows, gone), _middle_rank(low[gone], high[gone]))
    return rows, low, high, pivot


def _middle_rank(low, high):
    if isinstance(low, np.ndarray) or isinstance(high, np.ndarray):
        return np.maximum(np.add(low, high, dtype=np.intp) - 1, 0) // 2
    return max(low + high - 1, 0) // 2


def row_at(rows, ranks):
    """The value of rank ``ranks[j]`` in every column j; most ranks are expected to be equal."""
    usual = int(np.bincount(ranks).argmax())
    row = rows[usual]
    others = np.flatnonzero(ranks != usual)
    if others.size:
        row = row.copy()
        row[others] = pick(_columns(rows, others), ranks[others])
    return row


def _clip(rows, low, high, odd, rejection):
    """Reject by percentile and sigma; ``odd`` are the columns with bounds of their own."""
    n, pixels, counter = len(rows), rows[0].size, counter_for(len(rows))
    same = (rejection.extrema[0], n - rejection.extrema[1])
    if same[0] >= same[1]:
        return low, high
    low, high = as_arrays(low, high, pixels, counter)
    if (
        rejection.percentile is None
        and rejection.deviation != "winsorized"
        and odd.size < pixels // 2
    ):
        # The common case, fast: all columns have the same number of values.
        bounds = _same_bounds(rows, *same, rejection)
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
        return low, high
    _clip_columns(rows, low, high, np.arange(pixels), rejection, rejection.maxiters)
    return low, high


def _clip_columns(rows, low, high, columns, rejection, maxiters):
    """Reject in some columns, each with bounds of its own; ``low`` and ``high`` are updated."""
    columns = columns[high[columns] > low[columns]]
    if not columns.size:
        return
    picked = _columns(rows, columns)
    first, last = low[columns].astype(np.intp), high[columns].astype(np.intp)
    if rejection.percentile is not None:
        center = _median(picked, first, last)
        size = np.abs(center)
        below, above = rejection.percentile
        bounds = center - below * size, center + above * size
        first, last = _within(picked, first, last, *bounds)
    if rejection.sigma is not None:
        active = np.flatnonzero(last > first)
        done = 0
        while active.size:
            subset = picked if active.size == picked.shape[1] else picked[:, active]
            old = first[active], last[active]
            new = _within(subset, *old, *_bounds(subset, *old, rejection))
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


def as_arrays(low, high, pixels, counter):
    if not isinstance(low, np.ndarray):
        low = np.full(pixels, low, counter)
    if not isinstance(high, np.ndarray):
        high = np.full(pixels, high, counter)
    return low, high


def _fine(dtype):
    """The type in which bounds are found: exact for integers of 16 bit and their medians."""
    return np.dtype(np.float32) if dtype == np.float32 else np.dtype(np.float64)


# ---- all columns alike


def _same_bounds(rows, start, stop, rejection):
    """Lowest and highest value to keep, of the rows' type, of rows that are full."""
    n, native = stop - start, rows[0].dtype
    fine = _fine(native)
    a, b = rows[start + (n - 1) // 2], rows[start + n // 2]
    if rejection.center == "mean" or rejection.deviation == "std":
        total, squares = moments(rows, a, start, stop, fine, squares=True)
        total = total / n
    median = middle(a, b, np.empty(a.shape, fine))
    center = total + a if rejection.center == "mean" else median
    if rejection.deviation == "std":
        spread = np.sqrt(np.maximum(squares / n - total * total, 0))
    else:
        spread = MAD_TO_STD * _same_mad(rows[start:stop], fine)
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
    for k in ((n - 1) // 2, half):
        for j in range(n - k):
            out = least if j == 0 else buffer
            if j < half <= j + k:
                np.maximum(ends[j], ends[j + k], out=out)
            else:
                np.copyto(out, ends[j] if j + k < half else ends[j + k])
            if j:
                np.minimum(least, buffer, out=least)
        mad += least
        if n % 2:
            return mad
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


def pick(picked, index):
    """``picked[index[j], j]`` for every column j."""
    n, columns = picked.shape
    flat = np.clip(index, 0, n - 1) * columns
    flat += np.arange(columns)
    return picked.ravel().take(flat)


def _median(picked, first, last):
    fine = _fine(picked.dtype)
    a = pick(picked, (first + last - 1) // 2)
    b = pick(picked, (first + last) // 2)
    return middle(a, b, np.empty(a.shape, fine))


def _mad(picked, first, last):
    """As `_same_mad`, by bisection: the ends' deviations fall and rise with the window."""
    fine = _fine(picked.dtype)
    count = last - first
    a = _pick_fine(picked, (first + last - 1) // 2, fine)
    b = _pick_fine(picked, (first + last) // 2, fine)
    total = np.zeros(a.shape, fine)
    for k in ((count - 1) // 2, count // 2):
        start, stop = first.copy(), last - 1 - k
        # The first window whose upper end is at least as far out as its lower one.
        while True:
            going = start < stop
            if not going.any():
                break
            j = (start + stop) // 2
            reached = _pick_fine(picked, j + k, fine) - b >= a - _pick_fine(picked, j, fine)
            stop = np.where(going & reached, j, stop)
            start = np.where(going & ~reached, j + 1, start)
        least = None
        for j in (start, np.maximum(start - 1, first)):
            end = np.maximum(a - _pick_fine(picked, j, fine), _pick_fine(picked, j + k, fine) - b)
            least = end if least is None else np.minimum(least, end)
        total += least
    total += b - a
    total *= 0.5
    return total


def _pick_fine(picked, index, fine):
    return pick(picked, index).astype(fine, copy=False)


def _bounds(picked, first, last, rejection):
    """Lowest and highest value to keep, as floats."""
    fine = _fine(picked.dtype)
    median = _median(picked, first, last)
    center = median
    rows, count = list(picked), (last - first).astype(fine)
    if rejection.center == "mean" or rejection.deviation != "mad_std":
        pivot = pick(picked, (first + last - 1) // 2)
        total, squares = moments(rows, pivot, first, last, fine, squares=True)
        shift = total / count
        spread = np.sqrt(np.maximum(squares / count - shift * shift, 0))
        if rejection.center == "mean":
            center = shift + pivot
    if rejection.deviation == "mad_std":
        spread = MAD_TO_STD * _mad(picked, first, last)
    elif rejection.deviation == "winsorized":
        spread = _winsorized(rows, first, last, median, spread)
    below, above = rejection.sigma
    return (
        None if below is None else center - below * spread,
        None if above is None else center + above * spread,
    )


def _winsorized(rows, first, last, center, spread):
    """Standard deviation after values far from ``center`` were pulled in, see `Rejection`."""
    fine = center.dtype
    # Differences from a median are exact in single precision where 16-bit integers are.
    work = np.dtype(np.float32) if rows[0].dtype.itemsize == 2 else fine
    away = np.empty((len(rows), center.size), work)
    for i, row in enumerate(rows):
        np.subtract(row, center, out=away[i], casting="same_kind")
        away[i] *= (first <= i) & (last > i)
    count = (last - first).astype(work)
    limit, result = spread.astype(work), spread.copy()
    columns = np.arange(center.size)
    for _ in range(20):
        highest = work.type(1.5) * limit
        lowest = -highest
        total, squares = np.zeros(limit.shape, work), np.zeros(limit.shape, work)
        pulled = np.empty(limit.shape, work)
        for row in away:
            np.minimum(row, highest, out=pulled)
            np.maximum(pulled, lowest, out=pulled)
            total += pulled
            pulled *= pulled
            squares += pulled
        total /= count
        total *= total
        new = work.type(1.134) * np.sqrt(np.maximum(squares / count - total, 0))
        result[columns] = new
        # A column stops by itself: it must not matter which others are in the tile.
        going = np.flatnonzero(np.abs(new - limit) > work.type(0.0005) * limit)
        if not going.size:
            break
        away, columns = away[:, going], columns[going]
        limit, count = new[going], count[going]
    return result


def _within(picked, first, last, lowest, highest):
    """Bounds of the sorted values that are neither below ``lowest`` nor above ``highest``."""
    kind = np.asarray(first).dtype
    new_first, new_last = first, last
    if lowest is not None:
        below = np.zeros(picked.shape[1], kind)
        for row in picked:
            test = row < lowest
            if not test.any():
                break
            below += test
        new_first = np.minimum(np.maximum(first, below), last)
    if highest is not None:
        above = np.zeros(picked.shape[1], kind)
        for row in picked[::-1]:
            test = row > highest
            if not test.any():
                break
            above += test
        new_last = np.maximum(np.minimum(last, len(picked) - above), new_first)
    return new_first, new_last


# ------------------------------------------------------------------ sums


def moments(rows, pivot, low, high, dtype, *, squares):
    """
    Sum of (x - pivot), and of its square, over the kept values, lowest first.

    Sums are taken about a value from the middle of the stack, where they lose
    no digits: a mean is never further from a median than a standard deviation.
    Single precision is summed over `LONGEST_SINGLE` rows at most. All of it
    depends on nothing but the values of a column and their ranks.
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
    folds = dtype == np.float32 and count > LONGEST_SINGLE
    wide = wide2 = 0.0
    difference = np.empty(pivot.shape, dtype)
    for i in range(start, min(stop, count)):
        np.copyto(difference, rows[i], casting="same_kind")
        difference -= pivot
        if not all_from <= i < all_to:
            difference *= (low <= i) & (high > i)
        total += difference
        if squares:
            difference *= difference
            total2 += difference
        if folds and i % LONGEST_SINGLE == LONGEST_SINGLE - 1:
            wide = wide + total.astype(np.float64)
            total[:] = 0
            if squares:
                wide2 = wide2 + total2.astype(np.float64)
                total2[:] = 0
    if folds:
        total = wide + total.astype(np.float64)
        total2 = wide2 + total2.astype(np.float64) if squares else None
    return total, total2
