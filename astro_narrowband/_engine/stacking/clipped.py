"""Means of a few frames, without cosmic rays: clipped against the noise that is expected."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.frames import FitsFrame, row_bands
from astro_narrowband._engine.stacking.network import select_rows
from astro_narrowband._engine.statistics import mad_std

#: Rows that are read at a time, and pixels that are worked on at a time: with smaller ones
#: threads wait for each other more than the cache gives.
READ, TILE = 64, 1 << 16

#: Frames beyond this many sigma of *expected* noise from the median are left
#: out. The scatter of a dozen frames is a poor guide (3 sigma of median and MAD
#: throws good pixels away: 2.56 adu rms where the plain mean has 2.41), while
#: gain and read noise say what to expect; 5 sigma then costs nothing.
N_SIGMA = 5.0


class ClippedMean(NamedTuple):
    """
    Means of a band.

    Attributes
    ----------
    mean : `~numpy.ndarray` of float32, (n_rows, nx)
        NaN where no frame is good.
    square : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Sum of squared deviations from the mean of the frames in it.
    columns : `~numpy.ndarray` of int, (k,)
        Pixels of the flattened band of which frames may be missing; all others have all.
    count : `~numpy.ndarray` of float32, (k,)
        Frames in the mean of these.
    """

    mean: np.ndarray
    square: np.ndarray | None
    columns: np.ndarray
    count: np.ndarray


def clipped_band(
    frames,
    rows,
    *,
    floor,
    slope=0.0,
    below=None,
    levels=None,
    saturation=np.inf,
    prepare=None,
    n_sigma=N_SIGMA,
    weights=None,
    squares=False,
):
    """
    Return the mean of some rows of frames, without values that are off by ``n_sigma``.

    Off the median, that is, which need not be known of a pixel whose lowest and
    highest values are nearer to each other than the limit: nearly all are.

    Parameters
    ----------
    frames : sequence of Frame
    rows : slice
    floor, slope : float or array-like, (n,)
        The expected variance of a frame: ``floor + slope * max(median - below, 0)``.
    below : `~numpy.ndarray` of float32, broadcastable to (n_rows, nx), optional
        Default is 0.
    levels, saturation
        As in `read_tiles`.
    prepare : callable, optional
        ``prepare(stack, span)`` changes values in place, as `read_tiles` gives them.
    n_sigma : float, optional
    weights : `~numpy.ndarray` of float32, (n,), optional
        Of the frames, in the mean only.
    squares : bool, optional
        Whether squares are summed; not with ``weights``.

    Returns
    -------
    ClippedMean
    """
    n, shape = len(frames), (rows.stop - rows.start, frames[0].shape[1])
    floor, slope = (np.asarray(x, np.float32).reshape(-1, 1) for x in (floor, slope))
    scale = np.float32(n_sigma * n_sigma * (2.0 if n == 2 else 1.0))
    if below is not None:
        below = np.broadcast_to(below, shape)
    mean = np.empty(shape, np.float32)
    square = np.empty(shape, np.float32) if squares else None
    columns, values, usable = [], [], []
    for span, stack, good in read_tiles(frames, rows, levels=levels, saturation=saturation):
        if prepare is not None:
            prepare(stack, span)
        lowest, spread = stack.min(axis=0), stack.max(axis=0)
        spread -= lowest
        spread *= spread
        # The variance of the lowest value is not above that of the median.
        known = None if below is None else below[span]
        doubt = spread > scale * _expected(lowest, floor.min(), slope.min(), known)
        if good is not None:
            doubt |= ~good.all(axis=0)
        index = np.flatnonzero(doubt)
        if index.size:
            columns.append(index + span.start * shape[1])
            values.append(stack.reshape(n, -1).take(index, axis=1))
            if good is None:
                usable.append(np.ones(values[-1].shape, bool))
            else:
                usable.append(good.reshape(n, -1).take(index, axis=1))
        _sums(stack, lowest, weights, mean[span], square[span] if squares else None)
    if not columns:
        return ClippedMean(mean, square, np.empty(0, np.intp), np.empty(0, np.float32))
    columns = np.concatenate(columns)
    values, usable = (np.concatenate(each, axis=1) for each in (values, usable))
    centre = _medians(values, usable)
    known = None if below is None else below.ravel()[columns]
    limit = scale * _expected(centre, floor, slope, known)
    clipped, count, some_square = _clip_columns(values, usable, centre, limit, weights)
    mean.ravel()[columns] = clipped
    if squares:
        square.ravel()[columns] = some_square
    return ClippedMean(mean, square, columns, count)


def _expected(level, floor, slope, below):
    """Expected variance of values whose median is ``level``; it never falls where that rises."""
    if not slope.any():
        return floor
    out = np.maximum(level if below is None else level - below, 0) * slope
    out += floor
    return out


def _sums(stack, lowest, weights, mean, square):
    """Put the mean of all of a stack, and its sum of squares, where they belong; spoil it."""
    if weights is not None:
        np.einsum("i,ijk->jk", weights / weights.sum(), stack, out=mean)
        return
    if square is not None:
        # Squares of large numbers would lose what they differ by.
        stack -= lowest
    np.sum(stack, axis=0, out=mean)
    if square is not None:
        np.multiply(stack, stack, out=stack)
        np.sum(stack, axis=0, out=square)
        work = np.multiply(mean, mean, out=stack[0])
        work *= np.float32(1 / len(stack))
        square -= work
        np.maximum(square, 0, out=square)
    mean *= np.float32(1 / len(stack))
    if square is not None:
        mean += lowest


def _medians(stack, good):
    """Median along the first axis of what is good; of two the lower one."""
    n = len(stack)
    rows = list(stack.copy())
    select_rows(rows, np.empty_like(stack[0]), ((n - 1) // 2, n // 2))
    centre = _middle(rows)
    lacking = np.flatnonzero(~good.all(axis=0))
    if lacking.size:
        with np.errstate(invalid="ignore"):
            centre[lacking] = _masked_median(stack[:, lacking], good[:, lacking])
    return centre


def _clip_columns(stack, good, centre, limit, weights):
    """Clipped mean, frames in it and sum of squares of some pixels, (n, pixels)."""
    rest = stack - centre
    keep = good & (rest * rest <= limit)
    count = keep.sum(axis=0, dtype=np.float32)
    available = good.sum(axis=0, dtype=np.float32)
    # A pixel that loses more than a third of its frames is not hit by so many
    # cosmic rays: it is noisier than expected. Its scatter must be seen.
    noisy = count < available * np.float32(2 / 3) - np.float32(0.5)
    keep |= noisy & good
    count = keep.sum(axis=0, dtype=np.float32)
    rest *= keep
    if weights is None:
        mean, total = rest.sum(axis=0), count
    else:
        weights = weights[:, None]
        mean, total = (rest * weights).sum(axis=0), (keep * weights).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = mean / total
    rest -= mean
    rest *= keep
    rest *= rest
    return mean + centre, count, rest.sum(axis=0)


def read_tiles(frames, rows, *, levels=None, saturation=np.inf):
    """
    Read rows of all frames once, and yield them in parts that fit into the cache.

    Parameters
    ----------
    frames : sequence of Frame
    rows : slice
    levels : `~numpy.ndarray` of float32, (n,), optional
        Taken off the frames.
    saturation : float, optional
        Values from here on are not good.

    Yields
    ------
    span : slice
        Rows, counted from ``rows.start``.
    stack : `~numpy.ndarray` of float32, (n, n_rows, nx)
        Of these; zero where not good. May be spoilt, and is until the next one.
    good : `~numpy.ndarray` of bool, (n, n_rows, nx), or None
    """
    nx = frames[0].shape[1]
    spans = row_bands(rows.stop - rows.start, TILE // nx)
    whole = np.empty((len(frames), spans[0].stop, nx), np.float32)
    bands = [_read(frame, rows, saturation) for frame in frames]
    lacking = [(j, bad, bad.any(axis=1)) for j, (_, bad) in enumerate(bands) if bad is not None]
    for span in spans:
        stack, good = whole[:, : span.stop - span.start], None
        for target, (values, _) in zip(stack, bands, strict=True):
            np.copyto(target, values[span], casting="same_kind")
        if levels is not None:
            stack -= levels[:, None, None]
        for j, bad, touched in lacking:
            if touched[span].any():
                if good is None:
                    good = np.ones(stack.shape, bool)
                np.logical_not(bad[span], out=good[j])
                stack[j][bad[span]] = 0
        yield span, stack, good


def _read(frame, rows, saturation):
    """Rows of a frame, of plain integers as such, and which of them are not good, if any."""
    if isinstance(frame, FitsFrame) and frame._mask is None and frame._uncertainty is None:
        image = frame.image
        if image.native.kind in "iu" and image.blank is None:
            values = image.read(rows)
            return values, values >= saturation if values.max() >= saturation else None
    values, _, mask = frame.read(rows)
    counts = frame.raw_counts(rows, values)
    # NaN stand under a mask.
    if mask is not None or counts.max() >= saturation:
        full = counts >= saturation
        mask = full if mask is None else mask | full
    return values, mask


def _middle(rows):
    """Median of sorted rows; of two the lower one, as cosmic rays only add."""
    n = len(rows)
    if n <= 2 or n % 2:
        return rows[(n - 1) // 2].copy()
    centre = np.add(rows[n // 2 - 1], rows[n // 2])
    centre *= np.float32(0.5)
    return centre


def quick_median(values, bad=None):
    """
    Return the exact median of many numbers: a sample tells where to look for it.

    Parameters
    ----------
    values : `~numpy.ndarray` of float32
        Finite where not ``bad``.
    bad : `~numpy.ndarray` of bool, optional
        Of the same shape; not all `True`.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.stacking.clipped import quick_median
    >>> print(quick_median(np.arange(1000001, dtype=np.float32)))
    500000.0
    """
    values = values.reshape(-1)
    good = None if bad is None or not bad.any() else ~bad.reshape(-1)
    n = values.size if good is None else np.count_nonzero(good)
    if n > 1 << 18:
        step = max(n >> 16, 64)
        sample = values[::step] if good is None else values[::step][good[::step]]
        sample = np.sort(sample)
        middle = sample.size // 2
        # Eight times the error of the sample's median.
        reach = 4 * int(sample.size**0.5)
        low, high = sample[max(middle - reach, 0)], sample[min(middle + reach, sample.size - 1)]
        first, inside = 0, []
        for start in range(0, values.size, TILE):
            span = slice(start, start + TILE)
            under, within = values[span] < low, values[span] <= high
            if good is not None:
                under &= good[span]
                within &= good[span]
            first += np.count_nonzero(under)
            inside.append(values[span][np.flatnonzero(within > under)])
        inside = np.concatenate(inside)
        ranks = (n - 1) // 2 - first, n // 2 - first
        if ranks[0] >= 0 and ranks[1] < inside.size:
            inside.partition(ranks)
            return np.float32(0.5) * (inside[ranks[0]] + inside[ranks[1]])
    return np.median(values if good is None else values[good])


def _masked_median(stack, good):
    filled = np.where(good, stack, np.float32(np.inf))
    filled.sort(axis=0)
    count = good.sum(axis=0)
    low = np.take_along_axis(filled, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    high = np.take_along_axis(filled, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    centre = low + (high - low) * np.float32(0.5)
    return np.where(count > 0, centre, np.float32(0.0))


def _sample(frame, size=1 << 17):
    """Rows spread over a frame in groups of four, about ``size`` pixels, and which are good."""
    ny, nx = frame.shape
    step = max(4, ny * nx // size * 4)
    bands = [frame.read(slice(y, min(y + 4, ny))) for y in range(min(step // 2, ny - 1), ny, step)]
    data = np.concatenate([b.data for b in bands])
    good = np.isfinite(data)
    start = 0
    for band in bands:
        if band.mask is not None:
            good[start : start + len(band.data)] &= ~band.mask
        start += len(band.data)
    return data, good


def _clip(values):
    """Mean and standard deviation without outliers; whole numbers do no harm to either."""
    sample = values[:: max(1, values.size // 16384)]
    centre = np.median(sample)
    width = max(mad_std(sample, centre), 0.5)
    for _ in range(3):
        kept = values[np.abs(values - centre) <= 4 * width]
        centre, width = kept.mean(dtype=float), max(kept.std(dtype=float), 1e-6)
    return float(centre), float(width)


def sample_frames(frames):
    """Return samples of frames, as `sample_levels` and `sample_noise` take them."""
    return [_sample(frame) for frame in frames]


def sample_levels(samples):
    """Return the levels of frames over that of the first: clipped means of differences."""
    first, first_good = samples[0]
    levels = [0.0]
    for data, good in samples[1:]:
        both = good & first_good
        levels.append(_clip((data - first)[both])[0] if both.any() else 0.0)
    return np.array(levels)


def sample_noise(samples):
    """Return the noise of one frame [its unit]: from differences, or of one frame its spread."""
    if len(samples) == 1:
        data, good = samples[0]
        return _clip(data[good])[1]
    variances = []
    for (a, good_a), (b, good_b) in pairwise(samples[:8]):
        variances.append(_clip((a - b)[good_a & good_b])[1] ** 2 / 2)
    return float(np.mean(variances) ** 0.5)
