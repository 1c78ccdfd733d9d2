"""The dark of a single exposure time without a bias: no line, but a price for other times."""

import numpy as np

from astro_narrowband._engine.frames import row_bands
from astro_narrowband.darks._blocks import SIDE, block_median
from astro_narrowband.darks._planes import FAR, FLAGS, NOISY
from astro_narrowband.darks._straight import limit


def fit_single(planes, rows, averages, point, *, gain):
    """Put the mean of the only point into the offset of some rows: without a second no line."""
    base, whole = averages.mean, point.number
    n = np.full(base.shape, whole, np.float32)
    n.ravel()[averages.columns] = averages.count
    square = np.zeros_like(base) if averages.square is None else averages.square
    enough = n * 2 > whole
    flags = np.where(enough, np.uint8(0), np.uint8(FLAGS["SATURATED"]))
    n, square = (np.where(enough, x, np.float32(0)) for x in (n, square))
    none = n == 0
    one = np.broadcast_to(averages.floor, base.shape)
    if point.time > 0:
        # What stands out is dark current, and has its shot noise.
        one = one + np.maximum(base - block_median(base), 0) * np.float32(1 / gain)
    inner = np.maximum(n - 1, 0)
    noisy = square > limit(inner) * one
    ratio = np.where(noisy, square / (one * np.maximum(inner, 1)), np.float32(1))
    flags[none | (noisy & (ratio > NOISY**2))] |= FLAGS["UNCERTAIN"]
    planes["offset"][rows] = base
    planes["var_offset"][rows] = one * ratio / np.maximum(n, 1)
    planes["flags"][rows] = flags


def give_prior_rate(planes, time, *, noise, detector):
    """
    Give the dark of a single exposure time a rate, so that it can be priced for others.

    What ordinary pixels collected is taken from their noise beyond that of the
    read-out, and nothing said of it but that it may be twice that or nothing. What
    stands out of the neighbourhood is dark current. At the exposure time itself the
    dark stays what it was, with its error.
    """
    t = np.float32(time)
    excess = max(float(noise) ** 2 - detector.noise_adu**2, 0.0) * detector.gain
    # The read noise of a header is good to a tenth.
    excess = max(excess, 0.2 * detector.noise_adu**2 * detector.gain)
    variance = np.float32((excess / t) ** 2)
    for rows in row_bands(planes["offset"].shape[0], SIDE):
        offset, var_offset = (planes[name][rows] for name in ("offset", "var_offset"))
        above = offset - block_median(offset)
        above[above < FAR * np.sqrt(var_offset)] = 0
        planes["rate"][rows] = (above + np.float32(excess)) / t
        offset -= t * planes["rate"][rows]
        planes["var_rate"][rows] = variance
        planes["cov"][rows] = -t * variance
        var_offset += t * t * variance
