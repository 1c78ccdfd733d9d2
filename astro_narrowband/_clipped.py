"""Means of a few frames, without cosmic rays: clipped against the noise that is expected."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

__all__ = ["ClippedMean", "clipped_mean", "read_stack", "sample_level", "sample_noise"]

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
        with np.errstate(invalid="ignore"):
            centre = _masked_median(stack, good)
    elif n == 2:
        # The lower of two: cosmic rays only add. Their difference has twice the variance.
        centre = stack.min(axis=0)
    else:
        centre = np.median(stack, axis=0)
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
        mean = np.tensordot(weights, stack, axes=1)
        total = np.tensordot(weights, keep.astype(np.float32), axes=1)
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


def _masked_median(stack, good):
    filled = np.where(good, stack, np.float32(np.inf))
    filled.sort(axis=0)
    count = good.sum(axis=0)
    low = np.take_along_axis(filled, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]
    high = np.take_along_axis(filled, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    centre = low + (high - low) * np.float32(0.5)
    return np.where(count > 0, centre, np.float32(0.0))


def _sample(frame, size=1 << 18):
    """Rows spread over a frame, about ``size`` good pixels of them."""
    ny, nx = frame.shape
    step = max(1, ny * nx // size)
    bands = [frame.read(slice(y, y + 1)) for y in range(step // 2, ny, step)]
    data = np.concatenate([b.data for b in bands])
    good = np.isfinite(data)
    for i, band in enumerate(bands):
        if band.mask is not None:
            good[i] &= ~band.mask[0]
    return data, good


def _clip(values):
    """Mean and standard deviation without outliers; whole numbers do no harm to either."""
    centre = np.median(values)
    width = max(1.4826 * np.median(np.abs(values - centre)), 0.5)
    for _ in range(3):
        kept = values[np.abs(values - centre) <= 4 * width]
        centre, width = kept.mean(dtype=float), max(kept.std(dtype=float), 1e-6)
    return float(centre), float(width)


def sample_level(frame, reference=None):
    """Return the level of a frame (clipped mean), or of its difference from ``reference``."""
    data, good = _sample(frame)
    if reference is not None:
        other, other_good = _sample(reference)
        data, good = data - other, good & other_good
    return _clip(data[good])[0] if good.any() else float("nan")


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
