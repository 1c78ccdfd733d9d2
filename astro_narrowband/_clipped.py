"""Means of a few frames, without cosmic rays: clipped against the noise that is expected."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from astro_narrowband._network import select_rows

__all__ = ["ClippedMean", "clipped_mean", "read_stack", "sample_levels", "sample_noise"]

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
    square : `~numpy.ndarray` of float32, (n_rows, nx)
        Sum of squared deviations of these frames from the mean.
    """

    mean: np.ndarray
    count: np.ndarray
    square: np.ndarray


def clipped_mean(stack, variance, *, good=None, n_sigma=N_SIGMA, weights=None):
    """
    Return the mean over the first axis, without frames that are off by ``n_sigma``.

    Parameters
    ----------
    stack : `~numpy.ndarray` of float32, (n, n_rows, nx)
        Finite; changed.
    variance : callable
        Takes the median, (n_rows, nx), and returns the expected variance of one
        frame, broadcastable to the stack.
    good : `~numpy.ndarray` of bool, (n, n_rows, nx), optional
    n_sigma : float, optional
    weights : `~numpy.ndarray` of float32, (n,), optional
        Of the frames, in the mean only.

    Returns
    -------
    ClippedMean
    """
    n = len(stack)
    if good is not None:
        centre = _median(stack) if n > 2 else stack.min(axis=0)
        # Columns with a bad pixel are few; they went in as zeros, and are done again.
        some = ~good.all(axis=0)
        with np.errstate(invalid="ignore"):
            centre[some] = _masked_median(stack[:, some], good[:, some])
    elif n == 2:
        # The lower of two: cosmic rays only add. Their difference has twice the variance.
        centre = stack.min(axis=0)
    else:
        centre = _median(stack)
    expected = np.asarray(variance(centre), np.float32)
    keep = np.empty(stack.shape, bool)
    deviation = np.empty(stack.shape[1:], np.float32)
    limit = np.float32(n_sigma * n_sigma * (2.0 if n == 2 else 1.0)) * expected
    limit = np.broadcast_to(limit, stack.shape)
    for j in range(n):
        np.subtract(stack[j], centre, out=deviation)
        np.multiply(deviation, deviation, out=deviation)
        np.less_equal(deviation, limit[j], out=keep[j])
    if good is not None:
        keep &= good
    count = keep.sum(axis=0, dtype=np.float32)
    available = np.float32(n) if good is None else good.sum(axis=0, dtype=np.float32)
    # A pixel that loses more than a third of its frames is not hit by so many
    # cosmic rays: it is noisier than expected. Its scatter must be seen.
    noisy = count < available * np.float32(2 / 3) - np.float32(0.5)
    if noisy.any():
        keep |= noisy if good is None else noisy & good
        count = keep.sum(axis=0, dtype=np.float32)
    stack -= centre
    stack *= keep
    if weights is None:
        mean, total = stack.sum(axis=0, dtype=np.float32), count
    else:
        mean, total = np.zeros_like(centre), np.zeros_like(centre)
        for weight, frame, kept in zip(weights, stack, keep, strict=True):
            mean += np.multiply(frame, weight, out=deviation)
            total += np.multiply(kept, weight, out=deviation)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean /= total
    square = np.zeros_like(mean)
    for j in range(n):
        np.subtract(stack[j], mean, out=deviation)
        deviation *= keep[j]
        deviation *= deviation
        square += deviation
    mean += centre
    return ClippedMean(mean, count, square)


def read_stack(frames, rows, saturation=np.inf):
    """Return rows of all frames, (n, n_rows, nx), and what is good in them (or None)."""
    stack = np.empty((len(frames), rows.stop - rows.start, frames[0].shape[1]), np.float32)
    good = None
    for j, frame in enumerate(frames):
        band = frame.read(rows)
        stack[j] = band.data
        bad = band.data >= saturation
        if band.mask is not None:
            bad |= band.mask
        if bad.any():
            if good is None:
                good = np.ones(stack.shape, bool)
            good[j] = ~bad
            stack[j][bad] = 0
    return stack, good


def _median(stack):
    rows = list(stack.copy())
    n = len(rows)
    wanted = ((n - 1) // 2, n // 2) if n % 2 == 0 else (n // 2,)
    select_rows(rows, np.empty_like(rows[0]), wanted)
    if n % 2:
        return rows[n // 2]
    centre = np.add(rows[n // 2 - 1], rows[n // 2])
    centre *= np.float32(0.5)
    return centre


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


def sample_levels(frames):
    """Return the levels of frames over that of the first: clipped means of differences."""
    first, first_good = _sample(frames[0])
    levels = [0.0]
    for frame in frames[1:]:
        data, good = _sample(frame)
        good &= first_good
        levels.append(_clip((data - first)[good])[0] if good.any() else 0.0)
    return np.array(levels)


def sample_noise(frames):
    """Return the noise of one frame [its unit]: from differences, or of one frame its spread."""
    samples = [_sample(frame) for frame in frames[:8]]
    if len(samples) == 1:
        data, good = samples[0]
        return _clip(data[good])[1]
    variances = []
    for (a, good_a), (b, good_b) in pairwise(samples):
        variances.append(_clip((a - b)[good_a & good_b])[1] ** 2 / 2)
    return float(np.mean(variances) ** 0.5)
