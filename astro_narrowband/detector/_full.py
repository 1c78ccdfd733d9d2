"""The level at which a camera is full, measured: the pile that it leaves in a histogram."""

import numpy as np

from astro_narrowband._engine.door import a_sequence, door, real
from astro_narrowband._engine.frames import as_frame, row_bands
from astro_narrowband._engine.statistics import mad_std

#: Width of a bin, over the highest level; the pile is looked for in so many of the topmost.
BIN, TOP = 1e-3, 20
#: What a pile must have: pixels, times the fullest bins below it, and pixels that touch another.
LEAST, TIMES, TOUCHING = 10, 4, 0.5
#: Bins below the mode of the pile, and those that it is compared with, up to this level.
BELOW, COMPARED = 8, 0.7
#: A frame whose median is above this part of its highest level is evenly lit.
EVEN = 0.7
#: Width of a pile over the shot noise of its level, at most: of stars, of an even light.
SHOT, SHOT_EVEN = 0.7, 0.5
#: What is below the middle of a pile by so many of its widths is not believed either.
SIGMA = 4.0
#: Pixels that tell whether full ones touch each other; strips that tell about a frame, their rows.
ASKED, STRIPS, ROWS = 4096, 16, 16


@door(frames=a_sequence, gain=real(above=0))
def measure_saturation(frames, *, gain=None):
    """
    Measure the level from which pixels are full, where frames show one.

    Full pixels pile up at one level, or near to it, with nothing above: in the histogram a
    hill at its very end, narrower than shot noise, of pixels that touch each other (the
    middles of bright stars). The peaks of stars that are not full thin out towards the highest.

    Parameters
    ----------
    frames : sequence of path, `~astropy.nddata.CCDData` or Frame
        Raw lights or flats [adu].
    gain : float, optional
        [electron/adu] Without it nothing is told from frames that are evenly lit, as flats
        are, and an even disk (a planet) may be taken for full.

    Returns
    -------
    float or None
        The lower edge of the pile [adu]; None where there is none. Cameras that stop being
        linear far below it are not recognized.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband.detector import measure_saturation
    >>> y, x = np.mgrid[:64, :64] - 32
    >>> star = 400 + 90000 * np.exp(-(x * x + y * y) / 20)
    >>> measure_saturation([CCDData(np.minimum(star, 45000).round(), unit="adu")])
    45000.0
    >>> measure_saturation([CCDData((star / 2).round(), unit="adu")]) is None
    True
    """
    levels, highest = [], 0.0
    for frame in map(as_frame, frames):
        values, place, even = _bright(frame)
        edge = _edge(values, place, even, gain)
        highest = max(highest, _top(values))
        if edge is not None:
            levels.append(edge)
    # A level that another frame goes beyond is not where the camera is full.
    believed = (level for level in levels if level > (1 - 2 * TOP * BIN) * highest)
    return min(believed, default=None)


def _bright(frame):
    """
    Return the upper third of the levels, their flat indices, and whether light is even.

    Of a frame that is evenly lit strips are enough.
    """
    ny, nx = frame.shape
    starts = range(0, ny, max(ROWS, ny // STRIPS))
    values, place = _above(frame, [slice(y, min(y + ROWS, ny)) for y in starts], -np.inf)
    even = values.size > 0 and np.median(values) > EVEN * _top(values)
    if not even:
        floor = COMPARED * _top(values)
        values, place = _above(frame, row_bands(ny, max(1, (1 << 20) // nx)), floor)
    chosen = values > COMPARED * _top(values)
    return values[chosen], place[chosen], even


def _above(frame, bands, floor):
    """Return the pixels above ``floor``, which rises with what is seen, and where they are."""
    values, place = [], []
    for rows in bands:
        band = frame.read(rows)
        counts = frame.raw_counts(rows, band.data)
        good = counts > floor
        if band.mask is not None:
            good &= ~band.mask
        index = np.flatnonzero(good)
        values.append(counts.ravel()[index].astype(float))
        place.append(index + rows.start * frame.shape[1])
        if np.isfinite(floor):
            floor = max(floor, COMPARED * _top(values[-1]))
    return np.concatenate(values), np.concatenate(place)


def _top(values):
    """Return the third highest level: two pixels may be anything."""
    return float(np.partition(values, -3)[-3]) if values.size > 2 else 0.0


def _edge(values, place, even, gain):
    """Return the lower edge of the pile at the end of a histogram, or None."""
    top = _top(values)
    if values.size < LEAST or not top > 0 or (even and gain is None):
        return None
    counts = np.bincount(np.clip((top - values) / (BIN * top), 0, None).astype(int))
    counts = np.pad(counts, (0, max(0, round((1 - COMPARED) / BIN) - counts.size)))
    # Soft piles are a few bins wide, and the highest of many pixels lie far above the mode.
    three = np.convolve(counts, np.ones(3), "same")
    mode = int(np.argmax(three[:TOP]))
    if mode == TOP - 1 or three[mode] < LEAST + TIMES * three[mode + BELOW :].max():
        return None
    pile = values > (1 - BIN * (mode + BELOW // 2)) * top
    asked = place[pile][:: max(1, np.count_nonzero(pile) // ASKED)]
    middle = float(np.median(values[pile]))
    upper = values[values >= middle] - middle
    sigma = mad_std(values[pile], middle)
    if gain is not None:
        shot = (middle / gain) ** 0.5
        if mad_std(upper, 0.0) > (SHOT_EVEN if even else SHOT) * shot:
            return None
    beside = np.isin(asked + 1, place[pile]) | np.isin(asked - 1, place[pile])
    return middle - SIGMA * sigma if beside.mean() > TOUCHING else None
