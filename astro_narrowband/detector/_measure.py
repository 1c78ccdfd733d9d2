"""What frames tell of a camera: gain and read noise by differences, its full level by a pile."""

from itertools import combinations, pairwise

import numpy as np

from astro_narrowband._engine.door import a_sequence, door, real
from astro_narrowband._engine.frames import as_frame, as_frames, row_bands
from astro_narrowband._engine.raw import prepared
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import same_shape
from astro_narrowband.exceptions import InputError

#: Pixels of a row that share one scale.
WIDTH = 64
#: Pixels of a frame that are looked at, for a value that is to be used.
SAMPLE = 1 << 20
#: Levels of the sky that tell a gain (parts of all pieces), bins of them, and how well they must.
SKY_LEVELS, BINS, CERTAIN = (0.02, 0.9), 12, 0.05
#: Variance of a variance that is had by the median deviation, over its square, of one value.
VARIANCE_BY_MAD = 5.4
#: Flats of which all pairs are compared.
FEW = 5
#: Pairs of flats agree in their noise within this factor.
ALIKE = 1.2
#: Values further than this many sigma off are left out, and what that takes from a variance.
CLIP = 4.5
KEPT = 1 - 2 * CLIP * np.exp(-(CLIP**2) / 2) / np.sqrt(2 * np.pi)
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


def photon_transfer(flats, biases, *, saturation=None, sample=SAMPLE):
    """
    Measure gain and, of two biases or more, read noise.

    The variance of ``f1 - k f2`` of two flats is ``level (1 + k) / gain`` plus
    the read noise. ``k`` is taken anew for every 64 pixels of a row, odd and even
    columns apart: a lamp that flickers under a rolling shutter, and the colours
    of a Bayer mosaic, then do not count as noise (on a real CMOS camera one ``k``
    for each frame gives a gain four times too small). A lone bias is taken for a master
    without noise: what a flat has of it, some 1e-3, counts as that of its light.

    Returns
    -------
    dict
        ``gain``, ``gain_err`` [electron/adu]; ``read_noise``, ``read_noise_err``
        [electron].
    """
    flats = as_frames(flats, "flats", convert=prepared)
    biases = as_frames(biases, "biases", convert=prepared)
    shape = same_shape([*biases, *flats], "biases and flats")
    _enough_pixels(shape)
    limit = np.inf if saturation is None else saturation
    dark = [_segments(b, sample)[0] for b in biases]
    bias, inner = np.mean(dark, axis=0, dtype=np.float32), 0.0
    values = {}
    if len(dark) > 1:
        # Row noise is noise of a pixel, but not of a difference of scaled rows.
        noise, noise_err = _noise_of(dark, _level)
        inner, _ = _noise_of(dark, _own_mean_off)
    images, counts = zip(*(_segments(f, sample) for f in flats), strict=True)
    levels = [float(np.nanmedian(image - bias)) for image in images]
    order = np.argsort(levels, kind="stable")
    noises = []
    # A few flats in all pairs, whose mean has the error of n - 1 that are independent; of many
    # each is in one pair only.
    all_pairs = len(order) <= FEW
    for i, j in combinations(order, 2) if all_pairs else list(pairwise(order))[::2]:
        if levels[i] > 0 and levels[j] > 0:
            full = (counts[i] >= limit) | (counts[j] >= limit)
            noises.append(_noise_per_adu(images[i] - bias, images[j] - bias, inner, full))
    # Two flats of different shapes only have more noise than photons.
    noises = [noise for noise in noises if np.isfinite(noise).any()]
    means = [float(np.nanmedian(noise)) for noise in noises]
    noises = [n for n, mean in zip(noises, means, strict=True) if mean < ALIKE * min(means)]
    per_adu, error = _mean(noises) if noises else (0.0, 0.0)
    error *= (len(order) / 2) ** 0.5 if all_pairs else 1.0
    if not (per_adu > 0 and per_adu > 5 * error):
        raise InputError(
            "the gain cannot be measured: the flats hold no more noise than the biases, or are "
            f"saturated (levels above bias: {', '.join(f'{v:.0f}' for v in levels)} adu): "
            "give the gain"
        )
    gain, gain_err = 1 / per_adu, error / per_adu**2
    values = {"gain": float(gain), "gain_err": float(gain_err)}
    if len(dark) > 1:
        values |= _read_noise(gain, gain_err, noise, noise_err)
    return values


def read_noise_of(frames, gain, *, bias=None):
    """
    Measure the read noise from frames without light, of a gain that is known.

    Parameters
    ----------
    frames : sequence of path, `~astropy.nddata.CCDData` or Frame
        Two or more, raw [adu].
    gain : float
        [electron/adu]
    bias : frame, optional
        Where ``frames`` have light, what they show without: shot noise is taken off.
        What stars leave where frames are dithered counts as noise.

    Returns
    -------
    dict
        ``read_noise``, ``read_noise_err`` [electron].
    """
    kind = "biases" if bias is None else "lights"
    frames = as_frames(frames, kind, convert=prepared)
    shape = same_shape(frames, kind)
    _enough_pixels(shape)
    images = [_segments(frame)[0] for frame in frames]
    if bias is None:
        noise, error = _noise_of(images, _level)
        return _read_noise(gain, 0.0, noise, error)
    noise, error = _noise_of(images, _own_mean_off)
    light = np.nanmedian(images) - np.nanmedian(_segments(*as_frames([bias]))[0])
    return _read_noise(gain, 0.0, max(noise - max(float(light), 0.0) / gain, 1 / 12), error)


@door
def gain_of_lights(lights):
    """
    Measure the gain from raw lights: how their noise grows with the level of their sky.

    Of differences of two lights, which what is fixed in them does not enter; stars are outliers.
    The sky must differ within the image, as it does in the colours of a mosaic. The offset
    need not be known.

    Parameters
    ----------
    lights : sequence of path, `~astropy.nddata.CCDData` or Frame
        Raw [adu], not interpolated; those that follow each other are compared.

    Returns
    -------
    dict
        ``gain``, ``gain_err`` [electron/adu]; empty where they tell less than `CERTAIN`.
    """
    lights = as_frames(lights, convert=prepared)
    _enough_pixels(same_shape(lights, "lights"))
    points = []
    for pair in zip(lights[::2], lights[1::2], strict=False):
        one, two = (_segments(light)[0] for light in pair)
        level = np.nanmedian(one + two, axis=2) / 2
        rest = np.moveaxis(_own_mean_off(one - two), 2, -1)
        edges = np.linspace(*np.nanquantile(level, SKY_LEVELS), BINS + 1)
        for low, high in pairwise(edges):
            near = (level >= low) & (level < high)
            if near.any():
                noise = mad_std(rest[near], 0.0) ** 2 / 2
                error = noise * (VARIANCE_BY_MAD / rest[near].size) ** 0.5
                points.append([float(np.median(level[near])), noise, error])
    level, noise, error = np.array(points).reshape(-1, 3).T
    if len(points) < 4 or not (noise > 0).all():
        return {}
    line, covariance = np.polyfit(level, noise, 1, w=1 / error, cov="unscaled")
    chi2 = np.sum(((noise - np.polyval(line, level)) / error) ** 2) / (len(points) - 2)
    slope, slope_err = line[0], (covariance[0, 0] * max(chi2, 1.0)) ** 0.5
    if not slope_err < CERTAIN * slope:
        return {}
    return {"gain": float(1 / slope), "gain_err": float(slope_err / slope**2)}


def _read_noise(gain, gain_err, noise, noise_err):
    """Read noise and its error [electron], of the variance of a pixel [adu**2]."""
    value = gain * max(noise - 1 / 12, 0) ** 0.5
    error = np.hypot(value * gain_err / gain, gain * noise_err / (2 * noise**0.5))
    return {"read_noise": float(value), "read_noise_err": float(error)}


def _enough_pixels(shape):
    if min(shape) < 2 or shape[0] * shape[1] < WIDTH * WIDTH // 4:
        raise InputError(f"frames of shape {shape} are too small to measure a gain from")


def _noise_of(images, rest):
    """Variance of a pixel of frames without light, and its error, from pairs [adu**2]."""
    step = _step(images[0])
    pairs = zip(images[::2], images[1::2], strict=False)
    noise, error = _mean([_variance(rest(a - b), step) / 2 for a, b in pairs])
    if not noise > 0:
        raise InputError(
            "gain and read noise cannot be measured: the biases do not differ from each other: "
            "give both values"
        )
    return noise, error


def _segments(frame, sample=SAMPLE):
    """
    Rows spread over a frame, cut into pieces, and their raw counts.

    Both are (n_rows, n_pieces, WIDTH / 2, 2) float32; of a narrower frame, one piece a row.
    """
    ny, nx = frame.shape
    step = max(1, ny * nx // sample)
    rows = [slice(y, y + 1) for y in range(step // 2, ny, step)]
    bands = [frame.read(row) for row in rows]
    data = np.concatenate([band.data for band in bands])
    for i, band in enumerate(bands):
        if band.mask is not None:
            data[i][band.mask[0]] = np.nan
    counts = [frame.raw_counts(row, one[None]) for row, one in zip(rows, data, strict=True)]
    width = min(WIDTH, nx // 2 * 2)
    pieces = nx // width
    return [
        each[:, : pieces * width].reshape(len(data), pieces, width // 2, 2)
        for each in (data, np.concatenate(counts))
    ]


def _own_mean_off(difference):
    """Take the mean of each segment off, and make good for the degree of freedom it costs."""
    n = difference.shape[2]
    centre = np.nanmedian(difference, axis=2, keepdims=True)
    rest = difference - centre
    far = np.abs(rest) > CLIP * mad_std(rest, 0.0)
    centre += np.nanmean(np.where(far, np.nan, rest), axis=2, keepdims=True)
    return (difference - centre) * np.float32((n / (n - 1)) ** 0.5)


def _level(difference):
    """Take off what a drift leaves: the mean of every column of pieces."""
    return difference - np.nanmedian(difference, axis=(0, 2), keepdims=True)


def _step(data):
    """Step of the digits [adu]; data of 12 bits that are multiplied by 16 have one of 16."""
    values = np.unique(data[np.isfinite(data)])
    return float(np.diff(values).min()) if values.size > 1 else 1.0


def _variance(difference, step):
    """Clipped variance of each piece; NaN where nothing is left. Two ``step`` are no outlier."""
    width = mad_std(difference, 0.0)
    kept = np.abs(difference) <= CLIP * max(width, 0.5 * step)
    square = np.where(kept, difference * difference, 0).sum(axis=(2, 3), dtype=float)
    count = kept.sum(axis=(2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(2 * count > kept[0, 0].size, square / count / KEPT, np.nan)


def _noise_per_adu(first, second, noise, full):
    """Photon noise per adu of signal of each piece: 1 / gain, before it is averaged."""
    n = first.shape[2]
    first, second = np.where(full, np.nan, first), np.where(full, np.nan, second)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (np.nanmean(x, axis=2, keepdims=True) for x in (first, second))
        k = a / b
        # In units of the noise expected for one electron per adu, so that all
        # pieces can be clipped alike.
        unit = np.sqrt(np.abs(a) * (1 + k))
        scaled = (first - k * second) / unit * np.float32((n / (n - 1)) ** 0.5)
        offset = (noise * (1 + k * k) / unit**2).mean(axis=(2, 3))
    return _variance(scaled, 0.0) - offset


def _mean(values):
    """
    Mean over pieces of all pairs, and its standard error.

    The error is that of the scatter of the pieces, or that of the scatter of the
    pairs where they disagree more.
    """
    kept = [v[np.isfinite(v)] for v in values]
    kept = [v for v in kept if v.size > 1]
    if not kept:
        return 0.0, 0.0
    every = np.concatenate(kept)
    centre = np.median(every)
    width = mad_std(every, centre)
    near = [v[np.abs(v - centre) <= 6 * width] if width > 0 else v for v in kept]
    means = np.array([v.mean() for v in near])
    errors = np.array([v.std() / v.size**0.5 for v in near])
    error = float(np.sqrt((errors**2).sum()) / len(means))
    if len(means) > 1:
        error = max(error, float(means.std(ddof=1) / len(means) ** 0.5))
    return float(means.mean()), error


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
