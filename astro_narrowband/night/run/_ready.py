"""
Masters that were made elsewhere, and frames that were calibrated elsewhere: their noise measured.

What such an image does not say is measured: its scale and noise, whether a master dark or
flat has the bias in it.
"""

from dataclasses import replace

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import Band, Frame, as_ccd, new_ccd
from astro_narrowband._engine.provenance import without_file
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.darks import DarkModel, same_exposure
from astro_narrowband.exceptions import CalibrationError, InputError

#: So many times the exposure time of the longest dark are looked at.
LONGEST, STEPS = 100.0, 41
#: A light has at least this part of the variance of its photons.
LEAST_NOISE = 0.6


def pixel_noise(data):
    """
    Return the noise of one pixel, from differences to the mean of two neighbours in its row.

    A pattern of single pixels counts as noise: it is at most too large.
    """
    rows = data[:: max(1, data.shape[0] // 512)].astype(float)
    rest = rows[:, 1:-1] - (rows[:, :-2] + rows[:, 2:]) / 2
    rest = rest[np.isfinite(rest)]
    return mad_std(rest) / 1.5**0.5


def _in_adu(frame):
    """Data [adu], uncertainty or None, mask of a master."""
    ccd = as_ccd(frame)
    if ccd.unit not in (None, u.adu, u.dimensionless_unscaled):
        raise InputError(f"{frame.name}: its unit is {ccd.unit}: a master must be in adu")
    data = np.asarray(ccd.data, np.float32)
    good = np.isfinite(data) if ccd.mask is None else np.isfinite(data) & ~ccd.mask
    return data, None if ccd.uncertainty is None else np.asarray(ccd.uncertainty.array), ~good


def _made(frame, data, sigma, mask, unit, noise):
    header = without_file(frame.header)
    n = max(keywords.read_combined(header), 1)
    header["NCOMBINE"] = (n, "frames combined, as its header said")
    if sigma is None:
        measured = pixel_noise(np.where(mask, np.nan, data))
        said = noise / np.sqrt(n) if n > 1 else measured
        sigma = np.full(data.shape, min(measured, said), np.float32)
    return new_ccd((data, np.asarray(sigma, np.float32), mask), header, unit)


def ready_bias(frame, detector):
    """Return a master bias [adu] with its noise; see the notes of this module."""
    data, sigma, mask = _in_adu(frame)
    made = _made(frame, data, sigma, mask, u.adu, detector.noise_adu)
    made.header["RDNOISEA"] = (detector.noise_adu, "[adu] noise of one frame, of the detector")
    made.header["BIASLEV"] = (float(np.median(data[~mask])), "[adu] level")
    return made


def ready_dark(frames, exposures, bias, detector, *, light=None):
    """
    Return the dark model of master darks.

    Parameters
    ----------
    frames : sequence of `~astro_narrowband.Frame`
    exposures : sequence of float
        [s]
    bias : `~astropy.nddata.CCDData` or None
        Master bias [adu].
    detector : `~astro_narrowband.detector.Detector`
    light : `~astro_narrowband.Frame`, optional
        One that they are for, which tells whether the bias is in them where there is none.

    Returns
    -------
    `~astro_narrowband.darks.DarkModel`

    Raises
    ------
    CalibrationError
        If a dark has lost its bias, and there is none.
    """
    images = [_in_adu(frame) for frame in frames]
    levels = [float(np.median(data[~mask])) for data, _, mask in images]
    offset = float(np.median(bias.data)) if bias else None
    darks = []
    for frame, (data, sigma, mask), level, time in zip(
        frames, images, levels, exposures, strict=True
    ):
        if bias is None:
            _check_offset(frame, level, light, detector)
        lost = bias is not None and level < 0.5 * offset
        current = level if lost else level - offset if bias else 0.0
        if bias is None and len(frames) > 1:
            rate = (max(levels) - min(levels)) / (max(exposures) - min(exposures))
            current = rate * time
        electrons = detector.floor + max(current, 0.0) * detector.gain
        made = _made(frame, data, sigma, mask, u.adu, electrons**0.5 / detector.gain)
        made.header["BIASSUB"] = (bool(lost), "told by its level")
        darks.append(made)
    order = np.argsort(exposures)
    darks, exposures = [darks[i] for i in order], [float(exposures[i]) for i in order]
    if bias is not None or len(darks) == 1:
        return DarkModel.from_masters(bias=bias, dark=darks[-1], exposure=exposures[-1])
    # Two exposure times: the line through them has the offset at 0.
    (first, last), (t1, t2) = (darks[0], darks[-1]), (exposures[0], exposures[-1])
    v1, v2, span = first.uncertainty.array**2, last.uncertainty.array**2, t2 - t1
    model = DarkModel.from_masters(bias=first, dark=last, exposure=t2)
    rate = (last.data - first.data) / span
    planes = model.planes | {
        "rate": rate,
        "offset": first.data - rate * t1,
        "var_rate": (v1 + v2) / span**2,
        "var_offset": (t2**2 * v1 + t1**2 * v2) / span**2,
        "cov": -(t2 * v1 + t1 * v2) / span**2,
    }
    planes = {k: p if k == "flags" else np.asarray(p, np.float32) for k, p in planes.items()}
    times = {"exposures": (t1, t2), "n_frames": tuple(d.header["NCOMBINE"] for d in (first, last))}
    return replace(model, planes=planes, token="", **times)


def _check_offset(frame, level, light, detector):
    """Raise where a dark has no offset: lights have less noise than what is above it would have."""
    quiet = level < 3 * detector.noise_adu
    if light is not None:
        data = as_ccd(light).data
        signal = float(np.nanmedian(data)) - level
        quiet |= pixel_noise(data) ** 2 < LEAST_NOISE * signal / detector.gain
    if quiet:
        raise CalibrationError(
            f"{frame.name}: its level is {level:.1f} adu, and that of lights with their noise is "
            "higher: the bias was subtracted from this master dark, and there is none: give the "
            "bias as well"
        )


def ready_flat(frame, dark, detector, exposure):
    """
    Return a master flat with median 1, and what was assumed of it, as text or ``""``.

    One that is normalised lost its bias. Of another one the pattern of the bias in it tells;
    where it does not, what its header says; where that is silent, it is taken as a mean of
    raw flats, and the difference is in its error.
    """
    ccd = as_ccd(frame)
    data = np.asarray(ccd.data, np.float32)
    mask = ~np.isfinite(data) if ccd.mask is None else ~np.isfinite(data) | ccd.mask
    level, note, extra = float(np.median(data[~mask])), "", 0.0
    sigma = None if ccd.uncertainty is None else np.asarray(ccd.uncertainty.array, np.float32)
    noise = 1.0
    if not 0.2 < level < 5 or float(data[~mask].max()) > 50:
        data, sigma, mask = _in_adu(frame)
        if dark is not None:
            offset = dark.values(0.0 if np.isnan(exposure) else exposure, slice(0, data.shape[0]))
            holds, sure = _holds(data, offset, frame.header)
            level = float(np.median(offset))
            if holds:
                data = data - offset
            if not sure:
                note = (
                    f"{frame.name}: nothing tells whether this master flat has its bias in it: it "
                    f"is taken to have {'it' if holds else 'none'}; give raw flats to be sure"
                )
                extra = level / max(float(np.median(data[~mask])), 1.0)
        level = float(np.median(data[~mask]))
        noise = np.sqrt(detector.floor + level * detector.gain) / detector.gain
    if not level > 0:
        raise CalibrationError(f"{frame.name}: has a level of {level:.4g}: it is no flat")
    if sigma is None and 0.2 < level < 5:
        noise = pixel_noise(data) * np.sqrt(max(keywords.read_combined(frame.header), 1))
    made = _made(frame, data, sigma, mask, u.dimensionless_unscaled, noise)
    values = made.data / np.float32(level)
    error = np.hypot(made.uncertainty.array / level, extra * np.abs(1 - values))
    mask = mask | ~(values >= 0.05)
    values[mask] = 1
    made.header["FLATSCAT"] = (float(np.median(error[~mask])), "typical uncertainty")
    error = np.asarray(error, np.float32)
    return new_ccd((values, error, mask), made.header, made.unit), note


def _holds(data, offset, header):
    """Whether a master flat has its bias in it, and whether that is sure: by the bias pattern."""

    def fine(image):
        return image[:, 1:-1] - (image[:, :-2] + image[:, 2:]) / 2

    pattern, flat = fine(offset.astype(float)), fine(data.astype(float))
    usual = np.abs(pattern) < 6 * np.median(np.abs(pattern)) + 1e-6
    usual &= np.abs(flat) < 6 * np.median(np.abs(flat)) + 1e-6
    x, y = pattern[usual], flat[usual]
    power = float((x * x).sum())
    if power > 0:
        slope = float((x * y).sum()) / power
        error = float(np.std(y - slope * x) / np.sqrt(power))
        if error < 0.2 and abs(slope - 0.5) > 1.5 * error:
            return slope > 0.5, True
    flags = [header.get(key) for key in ("BIASSUB", "SUBBIAS", "ZEROCOR", "CALSTAT")]
    if any(flag not in (None, False, "", "F", "M", "MF") for flag in flags):
        return False, True
    # Programs whose pixels go from 0 to 1 calibrate flats before they join them, as a rule.
    return "ADUSCALE" not in header, False


def flat_dark(group, model, detector):
    """Return the model that flats lose; a lone master dark gives what it may have of offset."""
    if model.model != "matched" or not group.darks[0].master:
        return model
    (time,) = model.exposures
    if all(np.isfinite(row.exposure) and same_exposure(row.exposure, time) for row in group.flats):
        return model
    image = as_ccd(group.darks[0].open(group.colour))
    noise = pixel_noise(image.data) * max(group.darks[0].n_combined, 1) ** 0.5
    return offset_of_darks(model, noise, detector.gain)


def offset_of_darks(model, noise, gain):
    """
    Return the offset that darks of one exposure time have in them, as a model of any time.

    Without a bias nobody knows how much of their level is dark current. It is not more than
    what the noise of a frame allows, for it has shot noise: from nothing to that, half of it
    is taken, with the error of an even distribution. Pixels that stand out of their row do so
    by dark current.

    Parameters
    ----------
    model : `~astro_narrowband.darks.DarkModel`
        ``"matched"``
    noise : float
        Of a pixel of one dark [adu].
    gain : float
        [electron/adu]
    """
    (time,) = model.exposures
    rows = slice(0, model.shape[0])
    dark = model.values(time, rows)
    bound = noise**2 * gain
    middle = np.median(dark, axis=1, keepdims=True)
    spread = mad_std(dark - middle, 0.0)
    excess = np.where(dark - middle > 5 * spread, dark - middle, 0) + np.float32(bound / 2)
    even = np.float32(bound**2 / 12)
    planes = {
        "offset": dark - excess,
        "rate": excess / np.float32(time),
        "var_offset": model.variance(time, rows) + even,
        "var_rate": np.full(model.shape, even / time**2, np.float32),
        "cov": np.full(model.shape, -even / time, np.float32),
        "flags": np.asarray(model.planes["flags"][rows]),
    }
    return replace(model, planes=planes, model="rate", token="")


def dark_of_colour(model, pixels):
    """
    Return the dark model of some pixels of every cell of a mosaic, added as these are.

    Parameters
    ----------
    model : `~astro_narrowband.darks.DarkModel`
    pixels : sequence of (int, int)
        Row and column in the cell, as `~astro_narrowband._engine.bayer.MosaicFrame` has them.
    """
    ny, nx = (side // 2 for side in model.shape)
    planes = {}
    for name, plane in model.planes.items():
        whole = np.asarray(plane[slice(0, model.shape[0])])
        parts = [whole[y::2, x::2][:ny, :nx] for y, x in pixels]
        add = np.bitwise_or if name == "flags" else np.add
        planes[name] = add.reduce(parts)
    return replace(model, planes=planes, shape=(ny, nx), measured={}, token="")


def reach(model, detector):
    """
    Return the longest exposure time [s] that a dark model serves at a price, without any sky.

    The noise of such a light is that of its dark current and its reading; any sky makes the
    dark cheaper. None where the darks serve their own time only.
    """
    if model.model in ("matched", "bias"):
        return None
    middle = slice(model.shape[0] // 2, model.shape[0] // 2 + 1)
    rate = max(float(np.median(model.lines(middle)[1])), 0.0)
    longest = best = max(model.exposures)
    for time in longest * np.geomspace(1, LONGEST, STEPS)[1:]:
        noise = (detector.noise_adu**2 + rate * time / detector.gain) ** 0.5
        if model.price(time, noise=noise).too_high:
            break
        best = float(time)
    return best


class MeasuredFrame(Frame):
    """
    A light in electron/s that comes without an error: that of its sky, measured, and photons.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
        In electron/s, electron, adu/s or adu; its own uncertainty is kept if it has one.
    exposure : float
        [s]
    gain : float or None
        [electron/adu]; needed where the unit is adu.
    """

    def __init__(self, frame, exposure, gain):
        self.frame, self.exposure = frame, exposure
        self.name, self.shape, self.unit = frame.name, tuple(frame.shape), u.electron / u.s
        unit = frame.unit or u.adu
        factor = 1.0
        if unit in (u.adu, u.adu / u.s):
            if gain is None:
                raise InputError(f"{frame.name}: is in {unit}: give the gain with --gain")
            factor *= gain
        elif unit not in (u.electron, u.electron / u.s):
            raise InputError(f"{frame.name}: its unit is {unit}: adu or electron are needed")
        if unit in (u.adu, u.electron):
            factor /= exposure
        self.factor = np.float32(factor)
        self.masters = "none"
        self.header = without_file(frame.header)
        self.header["EXPTIME"] = (exposure, "[s] exposure time")
        step = max(1, self.shape[0] // 256)
        bands = [frame.read(slice(y, y + 1)) for y in range(step // 2, self.shape[0], step)]
        rows = [
            np.where(False if b.mask is None else b.mask, np.nan, b.data) * self.factor
            for b in bands
        ]
        sample = np.concatenate(rows)
        self.sky = np.float32(np.nanmedian(sample))
        self.noise = np.float32(pixel_noise(sample))

    def read(self, rows, *, variance=True):
        """Return a `~astro_narrowband.Band` [electron/s]."""
        band = self.frame.read(rows, variance=variance)
        data = band.data * self.factor
        if not variance:
            return Band(data, None, band.mask)
        if band.variance is not None:
            return Band(data, band.variance * self.factor**2, band.mask)
        signal = np.maximum(data - self.sky, 0) / np.float32(self.exposure)
        # Only what stands out of the noise is light of a star; the rest is the noise itself.
        signal[data - self.sky < 3 * self.noise] = 0
        return Band(data, signal + self.noise**2, band.mask)

    def with_held_masters(self, recipe):  # noqa: ARG002
        """There are none."""
        return self
