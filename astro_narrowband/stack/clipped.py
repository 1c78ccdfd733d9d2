"""Means of a few frames, without cosmic rays: clipped against the noise that is expected."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from astro_narrowband.bands import FitsFrame, row_bands
from astro_narrowband.stack.network import select_rows, sort_rows

__all__ = [
    "READ",
    "ClippedMean",
    "clipped_mean",
    "keep_memory",
    "quick_median",
    "read_tiles",
    "sample_frames",
    "sample_levels",
    "sample_noise",
]

#: Rows that are read at a time, and pixels that are worked on at a time: a stack of them
#: stays in the cache of a core.
READ, TILE = 32, 1 << 14
#: Just below the largest threshold of glibc.
KEEP_BYTES = 31 << 20

#: Frames beyond this many sigma of *expected* noise from the median are left
#: out. The scatter of a dozen frames is a poor guide (3 sigma of median and MAD
#: throws good pixels away: 2.56 adu rms where the plain mean has 2.41), while
#: gain and read noise say what to expect; 5 sigma then costs nothing.
N_SIGMA = 5.0


class ClippedMean(NamedTuple):
    """
    Mean of a stack.

    Attributes
    ----------
    mean : `~numpy.ndarray` of float32, (n_rows, nx)
        NaN where no frame is good.
    count : `~numpy.ndarray` of float32, (n_rows, nx)
        Frames in the mean.
    square : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Sum of squared deviations of these frames from the mean.
    """

    mean: np.ndarray
    count: np.ndarray
    square: np.ndarray | None


def clipped_mean(stack, variance, *, good=None, n_sigma=N_SIGMA, weights=None, squares=True):
    """
    Return the mean over the first axis, without frames that are off by ``n_sigma``.

    Parameters
    ----------
    stack : `~numpy.ndarray` of float32, (n, n_rows, nx)
        Finite; without ``weights`` it is spoilt.
    variance : callable
        Takes the median, (n_rows, nx), and returns the expected variance of one
        frame, broadcastable to that; with ``weights`` to the stack.
    good : `~numpy.ndarray` of bool, (n, n_rows, nx), optional
    n_sigma : float, optional
    weights : `~numpy.ndarray` of float32, (n,), optional
        Of the frames, in the mean only.
    squares : bool, optional
        Whether squares are summed; they are not where there are weights.

    Returns
    -------
    ClippedMean
    """
    n, shape = len(stack), stack.shape[1:]
    apart = None
    if good is not None:
        apart = np.flatnonzero(~good.all(axis=0))
        apart_stack = stack.reshape(n, -1)[:, apart]
        apart_good = good.reshape(n, -1)[:, apart]
    if weights is None:
        rows = list(stack)
        spare = sort_rows(rows, np.empty(shape, np.float32))
        centre = _middle(rows)
    else:
        rows = list(stack.copy())
        spare = select_rows(rows, np.empty(shape, np.float32), ((n - 1) // 2, n // 2))
        centre, rows = _middle(rows), list(stack)
    if apart is not None:
        with np.errstate(invalid="ignore"):
            centre.ravel()[apart] = _masked_median(apart_stack, apart_good)
    limit = np.asarray(variance(centre), np.float32)
    limit = limit * np.float32(n_sigma * n_sigma * (2.0 if n == 2 else 1.0))
    # Nearly all pixels keep all frames; the others are done again below.
    if weights is None:
        mean, square, lost = _whole_mean(rows, centre, limit, spare, squares)
    else:
        (mean, lost), square = _whole_weighted_mean(rows, centre, limit, spare, weights), None
    count = np.full(shape, n, np.float32)
    columns = np.flatnonzero(lost)
    if apart is not None:
        columns = np.union1d(columns, apart)
    if columns.size:
        few = np.stack([row.ravel().take(columns) for row in rows])
        few_good = np.ones(few.shape, bool)
        if apart is not None:
            place = np.searchsorted(columns, apart)
            few[:, place], few_good[:, place] = apart_stack, apart_good
        few_limit = np.broadcast_to(limit, stack.shape)[:, *np.unravel_index(columns, shape)]
        few_centre = centre.ravel()[columns]
        part = _clip_columns(few, few_good, few_centre, few_limit, weights)
        mean.ravel()[columns], count.ravel()[columns] = part.mean, part.count
        if square is not None:
            square.ravel()[columns] = part.square
    return ClippedMean(mean, count, square)


def _whole_mean(rows, centre, limit, work, squares):
    """Mean and sum of squares of all of sorted rows, and where one is beyond the limit."""
    np.subtract(rows[-1], centre, out=work)
    np.multiply(work, work, out=work)
    lost = work > limit
    np.subtract(rows[0], centre, out=work)
    np.multiply(work, work, out=work)
    lost |= work > limit
    mean = np.zeros_like(centre)
    square = np.zeros_like(centre) if squares else None
    for row in rows:
        np.subtract(row, centre, out=work)
        mean += work
        if squares:
            np.multiply(work, work, out=work)
            square += work
    if squares:
        np.multiply(mean, mean, out=work)
        work *= np.float32(1 / len(rows))
        square -= work
        np.maximum(square, 0, out=square)
    mean /= np.float32(len(rows))
    mean += centre
    return mean, square, lost


def _whole_weighted_mean(frames, centre, limit, work, weights):
    """Weighted mean of all frames, and where one of them is beyond its limit."""
    mean = np.zeros_like(centre)
    lost, beyond = np.zeros(centre.shape, bool), np.empty(centre.shape, bool)
    term = np.empty_like(centre)
    limit = np.broadcast_to(limit, (len(frames), *centre.shape))
    for frame, weight, largest in zip(frames, weights, limit, strict=True):
        np.subtract(frame, centre, out=work)
        mean += np.multiply(work, weight, out=term)
        np.multiply(work, work, out=work)
        lost |= np.greater(work, largest, out=beyond)
    mean /= weights.sum()
    mean += centre
    return mean, lost


def _clip_columns(stack, good, centre, limit, weights):
    """Do what `clipped_mean` does for some pixels, (n, pixels), of which frames are left out."""
    keep = good & ((stack - centre) ** 2 <= limit)
    count = keep.sum(axis=0, dtype=np.float32)
    available = good.sum(axis=0, dtype=np.float32)
    # A pixel that loses more than a third of its frames is not hit by so many
    # cosmic rays: it is noisier than expected. Its scatter must be seen.
    noisy = count < available * np.float32(2 / 3) - np.float32(0.5)
    keep |= noisy & good
    count = keep.sum(axis=0, dtype=np.float32)
    rest = (stack - centre) * keep
    if weights is None:
        mean, total = rest.sum(axis=0), count
    else:
        weights = weights[:, None]
        mean, total = (rest * weights).sum(axis=0), (keep * weights).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = mean / total
    square = ((rest - mean) ** 2 * keep).sum(axis=0)
    return ClippedMean(mean + centre, count, square)


def keep_memory():
    """
    Let malloc keep what bands work in.

    What is freed goes back to the system above a threshold that malloc learns from the
    largest block freed so far: here one that is never touched.
    """
    np.empty(KEEP_BYTES, np.uint8)


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
    part : slice
        Rows, counted from ``rows.start``.
    stack : `~numpy.ndarray` of float32, (n, n_rows, nx)
        Of these; zero where not good. May be spoilt, and is until the next one.
    good : `~numpy.ndarray` of bool, (n, n_rows, nx), or None
    """
    nx = frames[0].shape[1]
    parts = row_bands(rows.stop - rows.start, TILE // nx)
    whole = np.empty((len(frames), parts[0].stop, nx), np.float32)
    bands = [_read(frame, rows) for frame in frames]
    for part in parts:
        stack, good = whole[:, : part.stop - part.start], None
        for j, (image, data, mask) in enumerate(bands):
            values = data[part] if image is None else image.to_native(data[part])
            np.copyto(stack[j], values, casting="same_kind")
            bad = None
            if mask is not None and mask[part].any():
                bad = mask[part] | (values >= saturation)
            # NaN stand under a mask.
            elif values.max() >= saturation:
                bad = values >= saturation
            if levels is not None:
                stack[j] -= levels[j]
            if bad is not None:
                if good is None:
                    good = np.ones(stack.shape, bool)
                np.logical_not(bad, out=good[j])
                stack[j][bad] = 0
        yield part, stack, good


def _read(frame, rows):
    """Rows of a frame, with their mask; of plain integers as they are stored, with the image."""
    if isinstance(frame, FitsFrame) and frame._mask is None and frame._uncertainty is None:
        image = frame.image
        if image.native.kind in "iu" and image.blank is None:
            return image, image.read_stored(rows), None
    band = frame.read(rows)
    return None, band.data, band.mask


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
    >>> from astro_narrowband.stack.clipped import quick_median
    >>> print(quick_median(np.arange(1000001, dtype=np.float32)))
    500000.0
    """
    values = values.reshape(-1)
    good = None if bad is None or not bad.any() else ~bad.reshape(-1)
    n = values.size if good is None else np.count_nonzero(good)
    if n > 1 << 18:
        step = n >> 14
        sample = values[::step] if good is None else values[::step][good[::step]]
        sample = np.sort(sample)
        middle = sample.size // 2
        # Eight times the error of the sample's median.
        reach = 4 * int(sample.size**0.5)
        low, high = sample[max(middle - reach, 0)], sample[min(middle + reach, sample.size - 1)]
        inside = values >= low
        if good is not None:
            inside &= good
        first = n - np.count_nonzero(inside)
        inside &= values <= high
        inside = values[inside]
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
    part = values[:: max(1, values.size // 16384)]
    centre = np.median(part)
    width = max(1.4826 * np.median(np.abs(part - centre)), 0.5)
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
