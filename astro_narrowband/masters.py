"""Master bias and master flat: what the camera and the optics do to every frame."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.door import door
from astro_narrowband._engine.frames import as_frames, map_bands, new_ccd, row_bands
from astro_narrowband._engine.heap import keep_memory
from astro_narrowband._engine.raw import master_header, prepared
from astro_narrowband._engine.stacking.clipped import (
    READ,
    clipped_band,
    quick_median,
    sample_frames,
    sample_levels,
    sample_noise,
)
from astro_narrowband._engine.validate import same_shape
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import CalibrationError, InputError, warn

__all__ = ["FlatCheck", "check_flats", "master_bias", "master_flat"]

#: A flat pixel below this fraction of the median is dead.
MIN_FLAT = 0.05
#: Pixels of a flat that are looked at, in rows all over it: enough for its level to better than
#: 1e-4, and for a saturated part of 1 % unless it is a stripe between these rows. A saturated
#: pixel enters no mean, whatever is found here.
CHECKED = 1 << 18


@door
def master_bias(frames, *, detector=None, n_sigma=5.0, workers=None):
    """
    Return the mean of bias frames.

    Each frame is brought to the mean level of all, so that a drifting pedestal
    neither counts as noise nor is taken for cosmic rays; pixels that are
    ``n_sigma`` of the expected noise off the median are left out.

    Parameters
    ----------
    frames : sequence of path, `~astropy.nddata.CCDData` or Frame
        Raw biases [adu].
    detector : `~astro_narrowband.detector.Detector`, optional
        Its noise is used for a single frame; of two or more it is measured.
    n_sigma : float, optional
        Limit for cosmic rays.
    workers : int, optional
        Threads.

    Returns
    -------
    `~astropy.nddata.CCDData`
        [adu], with uncertainty and mask. Its header has NCOMBINE, RDNOISEA (noise
        of one frame [adu]), BIASLEV and BIASDRFT (level, and its range [adu]).

    Raises
    ------
    InputError
        If there are no frames, or their shapes differ.

    Examples
    --------
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import master_bias
    >>> from astro_narrowband.simulate import simulate_frames
    >>> night = simulate_frames(1, seed=1)
    >>> biases = [CCDData(frame, unit="adu") for frame in night.bias[0]]
    >>> bias = master_bias(biases)
    >>> bias.unit, bias.header["NCOMBINE"]
    (Unit("adu"), 12)
    """
    frames = as_frames(frames, "biases", convert=prepared)
    shape = same_shape(frames, "biases")
    keep_memory()
    samples = sample_frames(frames)
    noise = detector.noise_adu if detector and len(frames) == 1 else sample_noise(samples)
    offsets = sample_levels(samples)
    for frame, level in zip(frames, offsets, strict=True):
        if not np.isfinite(level):
            raise InputError(f"{frame.name}: has no good pixel: leave it out of the biases")
    offsets -= offsets.mean()
    drift = float(np.ptp(offsets))
    if drift > max(noise, 1.0):
        warn(
            f"{len(frames)} biases: their level drifts by {drift:.1f} adu; they were brought to "
            "the mean level: take biases close to the lights",
            stacklevel=2,
        )
    data = np.empty(shape, np.float32)
    error = np.empty(shape, np.float32)
    mask = np.zeros(shape, bool)
    errors = (noise / np.sqrt(np.maximum(np.arange(len(frames) + 1), 1))).astype(np.float32)

    def work(rows):
        # The threads put their results in place themselves.
        result = clipped_band(
            frames, rows, floor=noise**2, levels=offsets.astype(np.float32), n_sigma=n_sigma
        )
        data[rows], error[rows] = result.mean, errors[-1]
        error[rows].ravel()[result.columns] = errors[result.count.astype(np.intp)]
        mask[rows].ravel()[result.columns] = result.count == 0

    for _ in map_bands(work, row_bands(shape[0], READ), workers=workers):
        pass
    header = master_header(frames[0], "bias", len(frames))
    header["RDNOISEA"] = (round(noise, 5), "[adu] noise of one frame")
    header["BIASLEV"] = (
        round(float(np.mean(data[~mask] if mask.any() else data, dtype=float)), 4),
        "[adu] mean level",
    )
    header["BIASDRFT"] = (round(drift, 4), "[adu] range of the levels of the frames")
    return new_ccd((data, error, mask), header, u.adu)


class FlatCheck(NamedTuple):
    """
    What became of one flat.

    Attributes
    ----------
    name : str
    level : float
        Median above bias and dark [adu].
    exposure : float
        [s]
    reason : str
        Why it cannot be used; empty if it can.
    """

    name: str
    level: float
    exposure: float
    reason: str


@door
def check_flats(frames, *, bias=None, dark=None, detector=None, max_extrapolation=None):
    """
    Say which flats can be used, and why the others cannot.

    A flat is of no use if more than 1 % of its pixels are saturated, if its level
    is at or below that of bias and dark, or if it is so faint that its noise is
    above 10 % per pixel.

    Parameters
    ----------
    frames : sequence of path, `~astropy.nddata.CCDData` or Frame
        Raw flats [adu].
    bias, dark, detector
        As in `master_flat`.

    Returns
    -------
    list of FlatCheck
        In the order of ``frames``.
    """
    frames = as_frames(frames, "flats", convert=prepared)
    detector = detector or decide_detector(frames[0].header)
    model = _model(bias, dark)
    return _checks(frames, model, detector, max_extrapolation)


def _model(bias, dark):
    if isinstance(dark, DarkModel):
        return dark
    if bias is None and dark is None:
        raise InputError("a flat needs bias= or dark=: a flat with its bias in it is not flat")
    return DarkModel.from_masters(bias=bias, dark=dark)


def _checks(frames, model, detector, max_extrapolation):
    """One `FlatCheck` for each frame, from rows all over it."""
    ny, nx = model.shape
    step = max(1, ny * nx // CHECKED)
    rows = [slice(y, y + 1) for y in range(step // 2, ny, step)]
    good = ~np.concatenate([model.mask(row) for row in rows])

    @cache
    def dark(exposure):
        return np.concatenate([model.values(exposure, row) for row in rows])

    checks = []
    for frame in frames:
        exposure = _exposure(frame, model)
        check = _check(frame, exposure, rows, good, dark(exposure), detector)
        if not check.reason:
            noise = (detector.floor + check.level * detector.gain) ** 0.5 / detector.gain
            try:
                model.check(
                    exposure, noise=noise, what="flats", max_extrapolation=max_extrapolation
                )
            except CalibrationError as error:
                check = check._replace(reason=f"has no dark: {error}")
        checks.append(check)
    return checks


def _check(frame, exposure, rows, good, dark, detector):
    bands = [frame.read(row) for row in rows]
    if any(band.mask is not None for band in bands):
        good = good.copy()
        for row, band in zip(good, bands, strict=True):
            if band.mask is not None:
                row &= ~band.mask[0]
    values = np.concatenate([band.data for band in bands])
    counts = [frame.raw_counts(row, band.data) for row, band in zip(rows, bands, strict=True)]
    saturated = np.count_nonzero((np.concatenate(counts) >= detector.saturation) & good)
    total = np.count_nonzero(good)
    values -= dark
    bad = None if total == good.size else ~good
    level = float(quick_median(values, bad)) if total else float("nan")
    reason = ""
    noise = (detector.floor + max(level, 0) * detector.gain) ** 0.5 / detector.gain
    if not total:
        reason = "has no good pixel"
    elif saturated > 0.01 * total:
        reason = (
            f"is saturated: {100 * saturated / total:.1f} % of its pixels are at or above "
            f"{detector.saturation:g} adu"
        )
    elif level <= 0:
        reason = f"lies below its bias and dark (level {level:.1f} adu)"
    elif noise > 0.1 * level:
        reason = f"is too faint: {level:.1f} adu above bias and dark, noise {noise:.1f} adu"
    return FlatCheck(frame.name, level, exposure, reason)


def _exposure(frame, model):
    """Exposure time of a flat; without darks it does not matter, and may be missing."""
    if model.model == "bias":
        return 0.0
    return keywords.read_exposure(frame.header)


@door
def master_flat(
    frames,
    *,
    bias=None,
    dark=None,
    detector=None,
    checks=None,
    min_value=MIN_FLAT,
    n_sigma=5.0,
    max_extrapolation=None,
    workers=None,
):
    """
    Return the flat field of one filter, with median 1 over its good pixels.

    Each flat loses bias and dark of its own exposure time, and is divided by its
    own median over good pixels; so flats whose exposures all differ (automatic
    sky flats) are one group. They are averaged with weights that follow their
    level; pixels ``n_sigma`` off the median are left out.

    Parameters
    ----------
    frames : sequence of path, `~astropy.nddata.CCDData` or Frame
        Raw flats [adu].
    bias : `~astropy.nddata.CCDData`, optional
        Master bias [adu].
    dark : `~astro_narrowband.darks.DarkModel` or `~astropy.nddata.CCDData`, optional
        Of flat-darks: ``DarkModel.fit(flat_darks)``.
    detector : `~astro_narrowband.detector.Detector`, optional
        Default is that of the first header.
    checks : list of FlatCheck, optional
        What `check_flats` says of ``frames``, where it was asked before.
    min_value : float, optional
        Pixels below it are masked.
    n_sigma : float, optional
        Limit for outliers.
    max_extrapolation : float, optional
        Longest flat in units of the longest dark. Default is no limit but the price: what
        the dark costs a flat in units of its own error.
    workers : int, optional
        Threads.

    Returns
    -------
    `~astropy.nddata.CCDData`
        Dimensionless; dead, low and saturated pixels are masked, and 1 there.

    Raises
    ------
    CalibrationError
        If no flat can be used; the message names each with its reason.
    InputError
        If shapes differ, or neither bias nor dark is given.

    Examples
    --------
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import DarkModel, Detector, master_bias, master_flat
    >>> from astro_narrowband.simulate import simulate_frames
    >>> night = simulate_frames(1, seed=1)
    >>> biases = [CCDData(frame, unit="adu") for frame in night.bias[0]]
    >>> camera = Detector(gain=night.model.gain, read_noise=night.model.read_noise)
    >>> darks = [
    ...     CCDData(frame, unit="adu", header={"EXPTIME": time})
    ...     for time, frames in night.darks.items()
    ...     for frame in frames[0]
    ... ]
    >>> dark = DarkModel.fit(darks, bias=master_bias(biases), detector=camera)
    >>> flats = [
    ...     CCDData(frame, unit="adu", header={"EXPTIME": night.flat_exposure})
    ...     for frame in night.flats[0]
    ... ]
    >>> flat = master_flat(flats, dark=dark, detector=camera)
    >>> float(abs(flat.data / night.flat - 1).max()) < 0.02
    True
    """
    frames = as_frames(frames, convert=prepared)
    shape = same_shape(frames, "flats")
    detector = detector or decide_detector(frames[0].header)
    model = _model(bias, dark)
    if tuple(model.shape) != shape:
        raise InputError(f"flats are {shape}, bias or dark {tuple(model.shape)}")
    if checks is None:
        checks = _checks(frames, model, detector, max_extrapolation)
    if len(checks) != len(frames):
        raise InputError(f"checks: {len(checks)} for {len(frames)} flats: give one for each")
    frames, checks = _used(frames, checks)
    average = _Average(frames, checks, model, detector, n_sigma)
    for _ in map_bands(average.work, row_bands(shape[0], READ), workers=workers):
        pass
    average.find_scale(min_value)
    for _ in map_bands(average.finish, row_bands(shape[0], READ), workers=workers):
        pass
    header = master_header(frames[0], "flat", len(frames), "FILTER")
    rows = _enough(average.mask)
    scatter = float(quick_median(average.variance[rows], average.mask[rows]))
    if not math.isfinite(scatter):
        raise InputError("flat: the uncertainty of its bias or dark is not a number: leave it out")
    header["FLATSCAT"] = (scatter, "typical uncertainty")
    planes = (average.data, average.variance, average.mask)
    return new_ccd(planes, header, u.dimensionless_unscaled)


def _used(frames, checks):
    """Return the flats that can be used, with their checks; name the others."""
    used = [(f, c) for f, c in zip(frames, checks, strict=True) if not c.reason]
    for check in checks:
        if check.reason:
            warn(f"{check.name}: {check.reason}: left out of the flat", stacklevel=3)
    if not used:
        raise CalibrationError(
            "no flat can be used: " + "; ".join(f"{c.name} {c.reason}" for c in checks)
        )
    return zip(*used, strict=True)


class _Average:
    """The weighted mean of flats, each over its own level, by bands that are put in place."""

    def __init__(self, frames, checks, model, detector, n_sigma):
        self.frames, self.checks, self.model = frames, checks, model
        self.detector, self.n_sigma = detector, n_sigma
        self.data, self.variance = (np.empty(model.shape, np.float32) for _ in range(2))
        self.mask = np.zeros(model.shape, bool)
        levels = np.array([c.level for c in checks], np.float32)
        # Weights: inverse variance of a typical pixel of the scaled flat, in 1 / adu.
        weights = levels**2 / (detector.floor / detector.gain**2 + levels / detector.gain)
        self.weights = (weights / weights.sum()).astype(np.float32)
        self.floor = (detector.floor / detector.gain**2 / levels**2).astype(np.float32)
        self.photon = (1 / (detector.gain * levels)).astype(np.float32)
        # By exposure time, what part of its dark is taken off the mean.
        self.share = {}
        for check, weight in zip(checks, self.weights / levels, strict=True):
            self.share[check.exposure] = self.share.get(check.exposure, 0) + weight
        self.factors = (1 / levels)[:, None, None]
        self.scale = np.float32(1)

    def work(self, rows):
        """Average some rows."""
        darks = {exposure: self.model.values(exposure, rows) for exposure in self.share}

        def prepare(stack, tile):
            if len(darks) == 1:
                stack -= next(iter(darks.values()))[tile]
            else:
                for frame, check in zip(stack, self.checks, strict=True):
                    frame -= darks[check.exposure][tile]
            stack *= self.factors

        # The lamp's pattern may change by a little from frame to frame.
        result = clipped_band(
            self.frames,
            rows,
            floor=self.floor + np.float32(1e-4),
            slope=self.photon,
            saturation=self.detector.saturation,
            prepare=prepare,
            n_sigma=self.n_sigma,
            weights=self.weights,
        )
        bad = self.model.mask(rows)
        # Variance of the mean is linear in its level, as that of every frame is.
        photons = np.maximum(result.mean, 0)
        photons *= (self.weights**2 * self.photon).sum()
        photons += (self.weights**2 * self.floor).sum()
        number, pixel = len(self.frames), result.columns
        photons.ravel()[pixel] *= number / np.maximum(result.count, 1)
        # Those that are good in no frame, and not a number, among them.
        bad.ravel()[pixel] |= result.count * 2 <= number
        np.add(self._common_variance(rows), photons, out=self.variance[rows])
        self.data[rows], self.mask[rows] = result.mean, bad

    def _common_variance(self, rows):
        """Variance of what darks take off all flats."""
        if len(self.share) == 1:
            ((exposure, share),) = self.share.items()
            return self.model.variance(exposure, rows) * np.float32(share * share)
        common = np.zeros((2, rows.stop - rows.start, self.model.shape[1]), np.float32)
        for exposure, share in self.share.items():
            modes = self.model.modes(exposure, rows)
            modes *= share
            common += modes
        common *= common
        return common[0] + common[1]

    def find_scale(self, min_value):
        """Find the median of good pixels, and mask those that are low."""
        # A part of the rows says well enough which are low, and only good ones have a say.
        for rows in (_enough(self.mask), slice(None)):
            data, mask = self.data[rows], self.mask[rows]
            self.scale = np.float32(np.nan) if self.mask.all() else quick_median(data, mask)
            if not self.scale > 0:
                raise CalibrationError("the flat has no good pixel")
            self.mask |= self.data < min_value * self.scale

    def finish(self, rows):
        """Divide some rows by that median; the variance becomes the error."""
        self.data[rows] /= self.scale
        self.data[rows][self.mask[rows]] = 1
        self.variance[rows] /= self.scale * self.scale
        np.sqrt(self.variance[rows], out=self.variance[rows])


def _enough(mask):
    """Rows that are enough for the median of a frame, or all, where they have no good pixel."""
    rows = slice(None, None, max(1, mask.size // CHECKED))
    return slice(None) if mask[rows].all() else rows
