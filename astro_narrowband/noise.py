"""
The variance model: what a pixel's noise is, and what signal to take it from.

In electrons, the variance of one raw pixel is that of the electrons it
collected (Poisson), of the read-out, and of rounding to integers::

    V = max(electrons, 0) + read_noise**2 + gain**2 / 12

The electrons *collected* are sky, stars and dark current, before anything is
subtracted. A pixel's own count is a bad estimate of them where the sky is
faint: its noise then makes its own error bar, so that low pixels get small
errors and high ones large errors (with a sky of 30 electron and a read noise
of 5, pulls have a mean of -0.07 in place of 0). `expected_variance` therefore
takes the signal from the eight neighbours, and from the pixel itself only
where it stands out from them (star cores, cosmic rays).
"""

import numpy as np

__all__ = ["common_variance", "expected_variance", "neighbour_mean", "pixel_variance"]

#: A pixel this many sigma away from its neighbours is believed itself.
N_SIGMA = np.float32(3.0)


def pixel_variance(electrons, *, read_noise, gain):
    """
    Return the variance of pixels that collected ``electrons`` (expected, not measured).

    Parameters
    ----------
    electrons : array_like
        Expected electrons collected: sky, source and dark current [electron].
    read_noise : float
        [electron]
    gain : float
        [electron/adu]; rounding to whole adu adds ``gain**2 / 12``.

    Returns
    -------
    `~numpy.ndarray`
        [electron**2], in the floating type of ``electrons``.

    Examples
    --------
    >>> from astro_narrowband.noise import pixel_variance
    >>> float(pixel_variance(100.0, read_noise=5.0, gain=0.6))
    125.03
    """
    electrons = np.asarray(electrons)
    return np.maximum(electrons, 0) + (read_noise**2 + gain**2 / 12)


def neighbour_mean(image, good=None):
    """
    Return the mean of the (up to) eight neighbours of every pixel, without the pixel itself.

    Parameters
    ----------
    image : `~numpy.ndarray`, (n_rows + 2, nx)
        The rows wanted with one more above and one below. Must be finite, and
        0 where ``good`` is `False`. At the left and right edge the column
        inside stands for the one outside.
    good : `~numpy.ndarray` of bool, (n_rows + 2, nx), optional
        Pixels that count.

    Returns
    -------
    `~numpy.ndarray`, (n_rows, nx)
        The pixel itself where no neighbour counts.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.noise import neighbour_mean
    >>> neighbour_mean(np.array([[1.0, 1.0, 1.0], [2.0, 99.0, 2.0], [3.0, 3.0, 3.0]]))[0, 1]
    np.float64(2.0)
    """
    total = _ring_sum(image)
    if good is None:
        total *= image.dtype.type(0.125)
        return total
    count = _ring_sum(good.astype(image.dtype))
    alone = count < 0.5
    np.divide(total, count, out=total, where=~alone)
    np.copyto(total, image[1:-1], where=alone)
    return total


def _ring_sum(image):
    columns = image[:-2] + image[1:-1]
    columns += image[2:]
    total = np.empty_like(columns)
    nx = columns.shape[1]
    if nx == 1:
        np.multiply(columns, 3, out=total)
    else:
        np.add(columns[:, :-2], columns[:, 2:], out=total[:, 1:-1])
        np.add(columns[:, 1], columns[:, 1], out=total[:, 0])
        np.add(columns[:, -2], columns[:, -2], out=total[:, -1])
        total += columns
    total -= image[1:-1]
    return total


def expected_variance(electrons, *, floor, flat=None, dark=None, good=None):
    """
    Return the variance of flat-fielded electrons, the signal taken from the neighbours.

    ``V = (max(m * flat + dark, 0) + floor) / flat**2`` with ``m`` the mean of
    the eight neighbours. Where the pixel is more than 3 sigma away from ``m``
    its own value is taken for ``m``. The noise of the masters is not in it.

    Parameters
    ----------
    electrons : `~numpy.ndarray` of float32, (n_rows + 2, nx)
        Dark-subtracted, flat-fielded, with one row more above and below; finite.
    floor : float
        Read noise squared and quantisation [electron**2].
    flat : `~numpy.ndarray` of float32, (n_rows, nx), optional
    dark : `~numpy.ndarray` of float32, (n_rows, nx), optional
        Dark current that was subtracted [electron].
    good : `~numpy.ndarray` of bool, (n_rows + 2, nx), optional
        Pixels whose value may be used for their neighbours.

    Returns
    -------
    `~numpy.ndarray` of float32, (n_rows, nx)
        [electron**2]
    """
    own = electrons[1:-1]
    mean = neighbour_mean(electrons if good is None else np.where(good, electrons, 0), good)
    floor = np.float32(floor)
    variance = _variance(mean.copy(), floor, flat, dark)
    np.subtract(own, mean, out=mean)
    np.multiply(mean, mean, out=mean)
    far = mean > N_SIGMA * N_SIGMA * variance
    if good is not None:
        far &= good[1:-1]
    index = np.flatnonzero(far)
    if index.size:
        variance.ravel()[index] = _variance(
            own[far],
            floor,
            None if flat is None else flat.ravel()[index],
            None if dark is None else dark.ravel()[index],
        )
    return variance


def _variance(signal, floor, flat, dark):
    """Turn ``signal`` into its variance, in place."""
    if flat is not None:
        signal *= flat
    if dark is not None:
        signal += dark
    np.maximum(signal, 0, out=signal)
    signal += floor
    if flat is not None:
        signal /= flat
        signal /= flat
    return signal


def common_variance(shared, weights):
    """
    Return the variance that shared masters leave in a weighted mean of frames.

    Noise of a master is the same in every frame that it calibrated: it does
    not average down. For undithered frames this is
    ``A**2 var_offset + var_rate + 2 A cov`` with ``A = sum(w/t) / sum(w)``.

    Parameters
    ----------
    shared : sequence of `~numpy.ndarray`, each (n_modes, ny, nx)
        Amplitudes of each frame, from
        `~astro_narrowband.calibrate.CalibratedFrame.shared`.
    weights : sequence of float
        One per frame.

    Returns
    -------
    `~numpy.ndarray`, (ny, nx)

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.noise import common_variance
    >>> amplitude = np.full((1, 1, 1), 3.0)
    >>> common_variance([amplitude] * 50, [1.0] * 50)  # not 9 / 50
    array([[9.]])
    """
    weights = np.asarray(weights, float)
    mean = sum(w * np.asarray(s, float) for w, s in zip(weights, shared, strict=True))
    return np.sum((mean / weights.sum()) ** 2, axis=0)
