"""
Raw frame to electron per second: bias once, dark, gain, flat, exposure time.

`calibrate` is the function on `~astropy.nddata.CCDData`; `CalibratedFrame` is the
same code read by bands of rows. A frame's own noise (photons, read-out,
rounding) is kept apart from the noise of the masters, which all frames share.
"""

import os
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import keywords
from astro_narrowband._overscan import prepared
from astro_narrowband._validate import positive, value_in
from astro_narrowband.bands import Band, as_frame, map_bands, row_bands
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector, decide_detector
from astro_narrowband.exceptions import CalibrationError, InputError
from astro_narrowband.noise import expected_variance

__all__ = ["CalibratedFrame", "Recipe", "calibrate"]

#: Pixels that are worked on at a time: a plane of a tile is 128 KiB.
TILE = 32768

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
    flat : `~astro_narrowband.bands.Frame`, optional
        Dimensionless, median 1.
    max_extrapolation : float, optional
        Of the dark.
    """

    detector: Detector
    dark: DarkModel | None = None
    flat: object = None
    max_extrapolation: float = 3.0
    masters: tuple = ()

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

    @classmethod
    def make(cls, *, detector, bias=None, dark=None, flat=None, max_extrapolation=3.0):
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
        max_extrapolation : float, optional
        """
        if isinstance(dark, str | os.PathLike) and _is_model(dark):
            dark = DarkModel.read(dark)
        if not isinstance(dark, DarkModel) and (bias is not None or dark is not None):
            dark = DarkModel.from_masters(bias=bias, dark=dark)
        return cls(detector, dark=dark, flat=flat, max_extrapolation=max_extrapolation)


def _is_model(path):
    return "DARKMODL" in as_frame(path, unit=u.adu).header


def _token(frame):
    path = getattr(frame, "path", None)
    if path is not None:
        stat = os.stat(path)
        return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    return id(frame.ccd) if hasattr(frame, "ccd") else id(frame)


class CalibratedFrame:
    """
    A raw frame that is calibrated while it is read.

    Parameters
    ----------
    frame : path, `~astropy.nddata.CCDData` or `~astro_narrowband.bands.Frame`
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
        How the dark is had: "matched", "scaled", "extrapolated", "bias" or "none".

    Raises
    ------
    CalibrationError
        If a step was done before, or the dark cannot be had.
    InputError
        If a unit, shape or exposure time is wrong.
    """

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
        if recipe.dark is not None:
            self.policy = recipe.dark.check(
                self.exposure, max_extrapolation=recipe.max_extrapolation
            )
        for master, what in ((recipe.dark, "bias or dark"), (recipe.flat, "flat")):
            if master is not None and tuple(master.shape) != self.shape:
                raise InputError(
                    f"{self.name}: is {self.shape}, its {what} {tuple(master.shape)}: "
                    "take masters of the same camera, binning and window"
                )
        self.header = self._header()

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

    def read(self, rows):
        """
        Return calibrated rows.

        Returns
        -------
        `~astro_narrowband.bands.Band`
            Data [electron/s]; the variance is this frame's own noise: photons,
            dark current, read-out and rounding, not that of the masters. Masked
            are saturated pixels, NaN, dead flat pixels, and what the dark flags
            as SATURATED or UNCERTAIN.
        """
        data = np.empty((rows.stop - rows.start, self.shape[1]), np.float32)
        variance = np.empty_like(data)
        mask = np.zeros(data.shape, bool)
        step = max(1, TILE // self.shape[1])
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            part = slice(start - rows.start, stop - rows.start)
            self._tile(start, stop, data[part], variance[part], mask[part])
        return Band(data, variance, mask)

    def _tile(self, start, stop, data, variance, mask):
        recipe, detector, t = self.recipe, self.recipe.detector, np.float32(self.exposure)
        ny = self.shape[0]
        # One row more on either side, for the neighbours; mirrored at the edge.
        low, high = max(start - 1, 0), min(stop + 1, ny)
        rows, inner = slice(low, high), slice(start - low, stop - low)
        raw = self.frame.read(rows)
        bad = raw.data >= np.float32(detector.saturation)
        if raw.mask is not None:
            bad |= raw.mask
        electrons = raw.data
        current = flat = None
        if recipe.dark is not None:
            dark, current = recipe.dark.read_rows(self.exposure, rows)
            electrons = electrons - dark
            current = current[inner] * np.float32(detector.gain)
            bad |= recipe.dark.mask(rows)
            electrons *= np.float32(detector.gain)
        else:
            electrons = electrons * np.float32(detector.gain)
        if recipe.flat is not None:
            flat, dead = self._flat(rows)
            if dead is not None:
                bad |= dead
            electrons /= flat
            flat = flat[inner]
        np.divide(electrons[inner], t, out=data)
        np.copyto(mask, bad[inner])
        good = None
        if bad.any():
            good = ~bad
            if raw.mask is not None:
                electrons[~np.isfinite(electrons)] = 0
        top, bottom = (1 if low == start else 0), (1 if high == stop else 0)
        if top or bottom:
            pad = ((top, bottom), (0, 0))
            mode = "reflect" if len(electrons) > 1 else "edge"
            electrons = np.pad(electrons, pad, mode)
            good = None if good is None else np.pad(good, pad, mode)
        np.divide(
            expected_variance(electrons, floor=detector.floor, flat=flat, dark=current, good=good),
            t * t,
            out=variance,
        )

    def _flat(self, rows):
        band = self.recipe.flat.read(rows)
        dead = ~(band.data >= np.float32(0.05))
        if band.mask is not None:
            dead |= band.mask
        if not dead.any():
            return band.data, None
        return np.where(dead, np.float32(1), band.data), dead

    def shared(self, rows):
        """
        Return the noise that this frame shares with all that have the same masters.

        Returns
        -------
        `~numpy.ndarray` of float32, (n_modes, n_rows, nx)
            Amplitudes [electron/s] of independent noise sources: two of the dark
            (offset and rate), one of the flat. Two frames have the same noise in
            mode k at one detector pixel, times their amplitudes.
        """
        recipe, t = self.recipe, np.float32(self.exposure)
        out = np.zeros((3, rows.stop - rows.start, self.shape[1]), np.float32)
        flat = None
        if recipe.flat is not None:
            flat, dead = self._flat(rows)
        if recipe.dark is not None:
            out[:2] = recipe.dark.modes(self.exposure, rows)
            out[:2] *= np.float32(recipe.detector.gain) / t
            if flat is not None:
                out[:2] /= flat
        if flat is not None:
            band = recipe.flat.read(rows)
            if band.variance is not None:
                out[2] = self.read(rows).data * np.sqrt(band.variance) / flat
        return out


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
    max_extrapolation=3.0,
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
        How many times the longest dark is still allowed.
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
        detector=detector, bias=bias, dark=dark, flat=flat, max_extrapolation=max_extrapolation
    )
    if exposure is not None:
        exposure = value_in(exposure, u.s, "exposure")
    calibrated = CalibratedFrame(frame, recipe, exposure=exposure)
    shape = calibrated.shape
    data = np.empty(shape, np.float32)
    error = np.empty(shape, np.float32)
    mask = np.empty(shape, bool)

    def work(rows):
        band = calibrated.read(rows)
        shared = calibrated.shared(rows)
        return band, np.sqrt(band.variance + (shared**2).sum(axis=0))

    step = max(1, TILE // shape[1])
    for rows, (band, sigma) in map_bands(work, row_bands(shape[0], step), workers=workers):
        data[rows], error[rows], mask[rows] = band.data, sigma, band.mask
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
    _, found = cosmicray_lacosmic(
        electrons,
        gain=1.0,
        gain_apply=False,
        readnoise=calibrated.recipe.detector.read_noise,
        inmask=ccd.mask,
        **(options if isinstance(options, dict) else {}),
    )
    return found
