"""
Raw frame to electron per second: bias once, dark, gain, flat, exposure time.

`calibrate` is the function on `~astropy.nddata.CCDData`; `CalibratedFrame` is the
same code read by bands of rows. A frame's own noise (photons, read-out,
rounding) is kept apart from the noise of the masters, which all frames share.
"""

import hashlib
import os
import warnings
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import (
    Band,
    Frame,
    HeldRows,
    as_frame,
    map_bands,
    row_bands,
)
from astro_narrowband._engine.raw import prepared, refuse_other_camera
from astro_narrowband._engine.validate import positive, value_in
from astro_narrowband.calibration._rows import calibrate_rows
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector, decide_detector
from astro_narrowband.exceptions import CalibrationError, InputError, NarrowbandWarning
from astro_narrowband.noise import signal_variance

__all__ = ["CalibratedFrame", "Recipe", "calibrate"]

#: A flat pixel below this fraction of the median is dead, and never divides.
MIN_FLAT = 0.05
#: Rows `calibrate` asks for at a time, rows that tell a level, bytes of what masters are known by.
ROWS, PRICED, TOKEN = 64, 16, 6

#: What a calibrated header says; each step is refused where it was done before.
STEPS = {
    "BIASSUB": "bias subtracted",
    "DARKSUB": "dark subtracted",
    "FLATCOR": "divided by a flat",
    "GAINCOR": "multiplied by the gain",
    "EXPNORM": "divided by the exposure time",
}
#: ccdproc's short names of the same steps.
CCDPROC_STEPS = {
    "BIASSUB": "SUBBIAS",
    "DARKSUB": "SUBDARK",
    "FLATCOR": "FLATCOR",
    "GAINCOR": "GAINCOR",
    "EXPNORM": "EXPNORM",
}


@dataclass(frozen=True, eq=False)
class Recipe:
    """
    What lights are calibrated with.

    Parameters
    ----------
    detector : `~astro_narrowband.detector.Detector`
    dark : `~astro_narrowband.darks.DarkModel`, optional
        Offset (bias) and rate; `Recipe.make` turns masters into one.
    flat : `~astro_narrowband.Frame`, optional
        Dimensionless, median 1.
    max_extrapolation : float, optional
        Longest exposure in units of the longest dark. Default is no limit but the price:
        what the dark costs the frame in units of its own error.
    max_temperature_difference : float, optional
        Between light and darks [K].
    """

    detector: Detector
    dark: DarkModel | None = None
    flat: Frame | None = None
    max_extrapolation: float | None = None
    max_temperature_difference: float = 5.0
    masters: tuple = ()
    _held: HeldRows = field(init=False, repr=False)

    def __post_init__(self):
        if self.flat is not None:
            flat = as_frame(self.flat)
            object.__setattr__(self, "flat", flat)
            if flat.unit not in (None, u.dimensionless_unscaled):
                raise InputError(
                    f"flat: its unit is {flat.unit}: it must be dimensionless with median 1; "
                    "make it with master_flat"
                )
            if self.dark is not None and tuple(flat.shape) != tuple(self.dark.shape):
                raise InputError(
                    f"flat is {tuple(flat.shape)}, bias or dark {tuple(self.dark.shape)}: "
                    "take masters of one camera, binning and window"
                )
        if not self.masters:
            token = (
                None if self.dark is None else self.dark.token,
                None if self.flat is None else _token(self.flat),
            )
            object.__setattr__(self, "masters", token)
        object.__setattr__(self, "_held", HeldRows(self._read))

    def __reduce__(self):
        # What is held stays in this process.
        return partial(
            type(self), **{f.name: getattr(self, f.name) for f in fields(self) if f.init}
        ), ()

    def planes(self, rows):
        """
        Return the masters for some rows; what this thread asked for last is not read again.

        Returns
        -------
        offset, rate : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Of the dark [adu], [adu/s].
        weight : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Gain over flat [electron/adu].
        bad : `~numpy.ndarray` of bool, (n_rows, nx), or None
            Flagged by the dark, or dead in the flat.
        """
        return self._held.planes(rows)

    def hold(self):
        """Return the same recipe with its masters in memory, for frames that are read whole."""
        held = copy(self)
        master = self.flat if self.dark is None else self.dark
        if master is not None:
            object.__setattr__(held, "_held", HeldRows(self._read, master.shape[0]))
        return held

    def _read(self, rows):
        offset = rate = weight = bad = None
        if self.dark is not None:
            offset, rate = self.dark.lines(rows)
            bad = self.dark.mask(rows)
        if self.flat is not None:
            # The variance of a flat on disk is not needed here.
            flat, dead = _divisor(self.flat.read(rows, variance=False))
            weight = np.float32(self.detector.gain) / flat
            bad = dead if bad is None else bad | dead
        return offset, rate, weight, bad

    @classmethod
    def make(cls, *, detector, bias=None, dark=None, flat=None, **limits):
        """
        Return a recipe from masters of any form.

        Parameters
        ----------
        detector : `~astro_narrowband.detector.Detector`
        bias : path, `~astropy.nddata.CCDData` or Frame, optional
            Master bias [adu]; not needed, and not used, with a `DarkModel`.
        dark : `~astro_narrowband.darks.DarkModel`, path, CCDData or Frame, optional
            A master dark [adu] holds its bias unless its header says BIASSUB = T.
        flat : path, CCDData or Frame, optional
        **limits
            ``max_extrapolation``, ``max_temperature_difference``.
        """
        if isinstance(dark, str | os.PathLike) and _is_model(dark):
            dark = DarkModel.read(dark)
        if not isinstance(dark, DarkModel) and (bias is not None or dark is not None):
            dark = DarkModel.from_masters(bias=bias, dark=dark)
        return cls(detector, dark=dark, flat=flat, **limits)


def _divisor(flat):
    """Return what the band of a flat divides by, which is 1 where it is dead, and where it is."""
    dead = ~(flat.data >= np.float32(MIN_FLAT))
    if flat.mask is not None:
        dead |= flat.mask
    return np.where(dead, np.float32(1), flat.data) if dead.any() else flat.data, dead


def _is_model(path):
    return "DARKMODL" in as_frame(path, unit=u.adu).header


def _token(frame):
    """What a flat is known by, in every process: its shape and some of its pixels."""
    digest = hashlib.blake2b(repr(tuple(frame.shape)).encode(), digest_size=TOKEN)
    for y in range(0, frame.shape[0], max(1, frame.shape[0] // 64)):
        digest.update(np.ascontiguousarray(frame.read(slice(y, y + 1), variance=False).data))
    return digest.hexdigest()


class CalibratedFrame(Frame):
    """
    A raw frame that is calibrated while it is read.

    Parameters
    ----------
    frame : path, `~astropy.nddata.CCDData` or `~astro_narrowband.Frame`
        Raw [adu]. BIASSEC and TRIMSEC in its header are obeyed.
    recipe : Recipe
    exposure : float, optional
        [s]; default is that of the header.

    Attributes
    ----------
    name, shape, unit, header
        As of any frame; the unit is electron/s.
    exposure : float
        [s]
    masters : tuple
        What frames that share their masters have in common.
    policy : str
        How the dark is had: "matched", "scaled", "extrapolated", "offset", "bias" or "none".

    Raises
    ------
    CalibrationError
        If a step was done before, or the dark cannot be had.
    InputError
        If a unit, shape or exposure time is wrong.
    """

    follows_signal = True

    def __init__(self, frame, recipe, *, exposure=None):
        frame = prepared(frame)
        self.frame, self.recipe = frame, recipe
        self.name, self.shape = frame.name, tuple(frame.shape)
        self.unit = u.electron / u.s
        self.masters = recipe.masters
        _refuse_twice(frame, recipe)
        if frame.unit not in (None, u.adu):
            raise InputError(
                f"{self.name}: its unit is {frame.unit}, a raw frame must be in adu: "
                "leave out the steps that were done, or give the raw frame"
            )
        if exposure is None:
            try:
                exposure = keywords.read_exposure(frame.header)
            except InputError as error:
                raise InputError(f"{self.name}: {error}") from None
        self.exposure = positive(exposure, f"{self.name}: exposure")
        self.policy = "none"
        for master, what in ((recipe.dark, "bias or dark"), (recipe.flat, "flat")):
            if master is not None and tuple(master.shape) != self.shape:
                raise InputError(
                    f"{self.name}: is {self.shape}, its {what} {tuple(master.shape)}: "
                    "take masters of the same camera, binning and window"
                )
            if master is not None:
                refuse_other_camera(self.name, frame.header, master.header, what)
        if recipe.dark is not None:
            self.policy = recipe.dark.check(
                self.exposure,
                noise=self._noise,
                name=self.name,
                what="lights",
                max_extrapolation=recipe.max_extrapolation,
            )
            self._check_temperature()
        self.header = self._header()

    def _noise(self):
        """Error of a typical pixel, masters left out [adu]."""
        dark, detector = self.recipe.dark, self.recipe.detector
        step = max(1, self.shape[0] // PRICED)
        levels = []
        for y in range(step // 2, self.shape[0], step):
            row = slice(y, y + 1)
            band = self.frame.read(row)
            good = np.isfinite(band.data) if band.mask is None else ~band.mask
            levels.append((band.data - dark.lines(row)[0])[good])
        levels = np.concatenate(levels)
        level = max(float(np.median(levels)), 0.0) if levels.size else 0.0
        return (detector.floor / detector.gain**2 + level / detector.gain) ** 0.5

    def _check_temperature(self):
        """Warn from 0.5 K, raise from ``max_temperature_difference`` on."""
        darks = self.recipe.dark.temperatures
        light = keywords.read_temperature(self.frame.header)
        if darks is None or light is None or self.recipe.dark.model == "bias":
            return
        apart = max(darks[0] - light, light - darks[1], 0.0)
        text = (
            f"{self.name}: was taken at {light:.1f} deg C, its darks at {darks[0]:.1f} to "
            f"{darks[1]:.1f}: the dark current doubles every 6 to 7 K"
        )
        if apart > self.recipe.max_temperature_difference:
            raise CalibrationError(
                f"{text}: take darks at that temperature, or raise max_temperature_difference"
            )
        if apart > 0.5:
            warnings.warn(f"{text}: hot pixels will remain", NarrowbandWarning, stacklevel=3)

    def _header(self):
        recipe, header = self.recipe, self.frame.header.copy()
        for key in ("BUNIT", "BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM"):
            header.remove(key, ignore_missing=True)
        dark = recipe.dark
        done = {
            "BIASSUB": dark is not None,
            "DARKSUB": dark is not None and dark.model != "bias",
            "FLATCOR": recipe.flat is not None,
            "GAINCOR": True,
            "EXPNORM": True,
        }
        for key, value in done.items():
            header[key] = (value, STEPS[key])
        header["DARKPOL"] = (self.policy, "how the dark was had")
        header["EXPTIME"] = (self.exposure, "[s] exposure time")
        header["GAINUSED"] = (recipe.detector.gain, "[electron/adu]")
        header["RNUSED"] = (recipe.detector.read_noise, "[electron] read noise")
        header["BUNIT"] = "electron / s"
        return header

    def read(self, rows, *, variance=True, out=None):
        """
        Return calibrated rows.

        Parameters
        ----------
        rows, variance, out
            As of `~astro_narrowband.Frame`.

        Returns
        -------
        `~astro_narrowband._engine.frames.Band`
            Data [electron/s]; the variance is this frame's own noise: photons,
            dark current, read-out and rounding, not that of the masters. Masked
            are saturated pixels, NaN, dead flat pixels, and what the dark flags
            as SATURATED or UNCERTAIN.
        """
        if out is None:
            data = np.empty((rows.stop - rows.start, self.shape[1]), np.float32)
            squared = np.empty_like(data) if variance else None
            out = Band(data, squared, np.empty(data.shape, bool))
        if not variance:
            out = out._replace(variance=None)
        calibrate_rows(self, rows, out)
        return out

    def noise_planes(self, rows):
        """Return what of the masters `variance_of` needs, for some rows."""
        return self.recipe.planes(rows)[1:3]

    def variance_of(self, signal, planes, *, scale, offset, out):
        """
        Return the variance of ``scale * data - offset`` where that is expected to be ``signal``.

        As the variance that `read` gives, but that the signal is known from elsewhere,
        such as other frames, and not taken from the pixels around.

        Parameters
        ----------
        signal : `~numpy.ndarray` of float32, (m, k)
        planes : sequence of `~numpy.ndarray`, (m, k), or None
            From `noise_planes`, for the detector pixels of ``signal``.
        scale, offset : float
        out : `~numpy.ndarray` of float32, (m, k)

        Returns
        -------
        `~numpy.ndarray`
            ``out``
        """
        rate, weight = planes
        detector = self.recipe.detector
        return signal_variance(
            signal, rate, weight, gain=detector.gain, floor=detector.floor,
            exposure=self.exposure, scale=scale, offset=offset, out=out,
        )  # fmt: skip

    def with_held_masters(self, recipe):
        """Return the same frame, its masters being those that `Recipe.hold` has in memory."""
        frame = copy(self)
        frame.recipe = recipe
        return frame

    def shared(self, rows, data=None):
        """
        Return the noise that this frame shares with all that have the same masters.

        Parameters
        ----------
        rows : slice
        data : `~numpy.ndarray`, (n_rows, nx), optional
            What `read` gave for these rows, if it is at hand: saves reading twice.

        Returns
        -------
        `~numpy.ndarray` of float32, (n_modes, n_rows, nx)
            Amplitudes [electron/s] of independent noise sources: two of the dark
            (offset and rate), one of the flat. Two frames have the same noise in
            mode k at one detector pixel, times their amplitudes.
        """
        recipe = self.recipe
        out = np.zeros((3, rows.stop - rows.start, self.shape[1]), np.float32)
        flat = None if recipe.flat is None else recipe.flat.read(rows)
        if recipe.dark is not None:
            out[:2] = recipe.dark.modes(self.exposure, rows)
            out[:2] *= np.float32(recipe.detector.gain / self.exposure)
        if flat is not None:
            plane, _ = _divisor(flat)
            out[:2] /= plane
            if flat.variance is not None:
                data = self.read(rows).data if data is None else data
                np.divide(np.sqrt(flat.variance), plane, out=out[2])
                out[2] *= data
        return out

    def master_noise(self, rows):
        """
        Return what the variance of this frame's masters is made of, whatever the exposure time t.

        Returns
        -------
        var_offset, cov, var_rate : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Of the dark: its variance is ``var_offset / t**2 + 2 cov / t + var_rate``
            [(electron/s)**2], but for pixels that do not follow the dark's straight line.
        var_flat : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Relative variance of the flat.
        """
        recipe = self.recipe
        planes, var_flat = (None, None, None), None
        square = recipe.planes(rows)[2]
        square = np.float32(recipe.detector.gain) if square is None else square
        square = square * square
        if recipe.dark is not None:
            planes = tuple(plane * square for plane in recipe.dark.covariance(rows))
        if recipe.flat is not None:
            var_flat = recipe.flat.read(rows).variance
            if var_flat is not None:
                var_flat = var_flat * square
                var_flat *= np.float32(recipe.detector.gain**-2)
        return *planes, var_flat

    def common(self, rows, data):
        """Return the sum of squares of `shared`, [(electron/s)**2], without taking it apart."""
        recipe, total = self.recipe, None
        flat = None if recipe.flat is None else recipe.flat.read(rows)
        if recipe.dark is not None:
            total = recipe.dark.variance(self.exposure, rows)
            total *= np.float32((recipe.detector.gain / self.exposure) ** 2)
        if flat is None:
            return total
        plane, _ = _divisor(flat)
        if flat.variance is not None:
            variance = np.multiply(flat.variance, data)
            variance *= data
            total = variance if total is None else np.add(total, variance, out=total)
        if total is not None:
            total /= plane
            total /= plane
        return total


def _refuse_twice(frame, recipe):
    wanted = {
        "BIASSUB": recipe.dark is not None,
        "DARKSUB": recipe.dark is not None and recipe.dark.model != "bias",
        "FLATCOR": recipe.flat is not None,
        "GAINCOR": True,
        "EXPNORM": True,
    }
    for key, step in wanted.items():
        for name in (key, CCDPROC_STEPS[key]):
            value = frame.header.get(name)
            if step and value is not None and value is not False and str(value) != "F":
                raise CalibrationError(
                    f"{frame.name}: {name} = {value!r}: it was {STEPS[key]} before, and would "
                    "be twice: give the raw frame"
                )


def calibrate(
    ccd,
    *,
    bias=None,
    dark=None,
    flat=None,
    gain=None,
    read_noise=None,
    saturation=None,
    exposure=None,
    detector=None,
    max_extrapolation=None,
    max_temperature_difference=5.0,
    cosmic_rays=False,
    add_keyword=True,
    workers=None,
):
    """
    Calibrate a raw frame into electron/s, with uncertainty and mask.

    Parameters
    ----------
    ccd : path, `~astropy.nddata.CCDData` or Frame
        Raw frame [adu]; not changed.
    bias : path, CCDData or Frame, optional
        Master bias [adu]. A `DarkModel` has the bias in it.
    dark : `~astro_narrowband.darks.DarkModel`, path, CCDData or Frame, optional
        A master dark [adu] holds its bias unless its header says BIASSUB = T.
    flat : path, CCDData or Frame, optional
        From `~astro_narrowband.masters.master_flat`.
    gain : `~astropy.units.Quantity`, optional
        [electron/adu]; it multiplies.
    read_noise : `~astropy.units.Quantity`, optional
        [electron]
    saturation : `~astropy.units.Quantity`, optional
        [adu]
    exposure : `~astropy.units.Quantity`, optional
        [s]; default is the header's.
    detector : `~astro_narrowband.detector.Detector`, optional
        In place of gain, read_noise and saturation.
    max_extrapolation : float, optional
        Longest exposure in units of the longest dark. Default is no limit but the price:
        what the dark costs the frame in units of its own error.
    max_temperature_difference : float, optional
        Between light and darks [K]; above 0.5 K there is a warning.
    cosmic_rays : bool or dict, optional
        Run `ccdproc.cosmicray_lacosmic` and mask what it finds; a dict holds its
        keywords.
    add_keyword : bool, optional
        Write what was done to the header, as ccdproc does.
    workers : int, optional
        Threads.

    Returns
    -------
    `~astropy.nddata.CCDData`
        [electron/s]; its uncertainty is the total one, masters included.

    Raises
    ------
    InputError
        If a unit, shape or header value is wrong or missing.
    CalibrationError
        If a step was done before, or the dark would be extrapolated too far.
    """
    frame = prepared(ccd)
    if detector is None:
        detector = decide_detector(
            frame.header, gain=gain, read_noise=read_noise, saturation=saturation
        )
    recipe = Recipe.make(
        detector=detector,
        bias=bias,
        dark=dark,
        flat=flat,
        max_extrapolation=max_extrapolation,
        max_temperature_difference=max_temperature_difference,
    )
    if exposure is not None:
        exposure = value_in(exposure, u.s, "exposure")
    calibrated = CalibratedFrame(frame, recipe, exposure=exposure)
    shape = calibrated.shape
    data = np.empty(shape, np.float32)
    error = np.empty(shape, np.float32)
    mask = np.empty(shape, bool)

    def work(rows):
        out = Band(data[rows], error[rows], mask[rows])
        calibrate_rows(calibrated, rows, out)
        common = calibrated.common(rows, out.data)
        if common is not None:
            np.add(out.variance, common, out=out.variance)
        np.sqrt(out.variance, out=out.variance)

    for _ in map_bands(work, row_bands(shape[0], ROWS), workers=workers):
        pass
    header = calibrated.header if add_keyword else frame.header.copy()
    header.pop("BUNIT", None)
    result = CCDData(
        data,
        uncertainty=StdDevUncertainty(error),
        mask=mask,
        header=header,
        unit=calibrated.unit,
    )
    if cosmic_rays:
        mask |= _cosmic_rays(result, calibrated, cosmic_rays)
    return result


def _cosmic_rays(ccd, calibrated, options):
    from ccdproc import cosmicray_lacosmic

    t = calibrated.exposure
    electrons = np.where(ccd.mask | ~np.isfinite(ccd.data), 0, ccd.data * np.float32(t))
    cleaned = cosmicray_lacosmic(
        CCDData(electrons, unit=u.electron, mask=ccd.mask.copy()),
        gain=1.0,
        gain_apply=False,
        readnoise=calibrated.recipe.detector.read_noise,
        **(options if isinstance(options, dict) else {}),
    )
    return cleaned.mask & ~ccd.mask
