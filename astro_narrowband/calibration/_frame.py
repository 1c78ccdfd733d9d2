"""A raw frame that is calibrated while it is read."""

import math
from copy import copy
from functools import cached_property

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.door import door, of_class, real
from astro_narrowband._engine.frames import Band, Frame
from astro_narrowband._engine.provenance import drop_camera, without_file, write_creator
from astro_narrowband._engine.raw import prepared, refuse_other_camera
from astro_narrowband._engine.validate import positive
from astro_narrowband.calibration._recipe import divisor
from astro_narrowband.calibration._rows import calibrate_rows
from astro_narrowband.exceptions import CalibrationError, InputError, warn
from astro_narrowband.noise import SharedNoise, sample_rows, signal_variance

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

#: About how many rows tell the level of a frame.
PRICED = 16


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
    masters : str
        What frames that share their masters have in common, "none" without masters.
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

    @door(recipe=of_class("Recipe"), exposure=real(u.s))
    def __init__(self, frame, recipe, *, exposure=None):
        frame = prepared(frame)
        self.frame, self.recipe = frame, recipe
        self.name, self.shape = frame.name, tuple(frame.shape)
        self.unit, self.wcs = u.electron / u.s, frame.wcs
        self.masters = recipe.masters
        dark = recipe.dark
        refuse_twice(
            frame,
            bias=dark is not None,
            dark=dark is not None and dark.model != "bias",
            flat=recipe.flat is not None,
        )
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

    @cached_property
    def header(self):
        """That of the raw frame, with what was done to it and what its masters' noise is."""
        header = self._header()
        self.shared_noise(included=False).to_header(header)
        return header

    def shared_noise(self, *, included):
        """
        Return the noise of the masters as parts of the variance of blank sky.

        Parameters
        ----------
        included : bool
            Whether that variance is meant with it or without.

        Returns
        -------
        `~astro_narrowband.noise.SharedNoise`
        """
        if self.masters == "none":
            return SharedNoise("none")
        t, samples, flats = self.exposure, [], []
        for rows in sample_rows(self.shape[0]):
            band = self.read(rows)
            good = ~band.mask
            planes = [0.0 if plane is None else plane[good] for plane in self.master_noise(rows)]
            var_offset, cov, var_rate, var_flat = planes
            terms = (var_offset / t**2, 2 * cov / t, var_rate, var_flat * band.data[good] ** 2)
            shape = band.variance[good].shape
            samples.append([np.broadcast_to(v, shape) for v in (band.variance[good], *terms)])
            flats.append(np.broadcast_to(var_flat, shape))
        pixel_noise, *terms = np.concatenate(samples, axis=1)
        if not pixel_noise.size:
            return SharedNoise(self.masters, included=included)
        blank = float(np.median(pixel_noise + sum(terms) if included else pixel_noise))
        parts = [float(np.median(term)) / blank for term in terms]
        flat_error = math.sqrt(float(np.median(np.concatenate(flats))))
        return SharedNoise(self.masters, *parts, flat_error, included=included)

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
            warn(f"{text}: hot pixels will remain", stacklevel=3)

    def _header(self):
        recipe, header = self.recipe, without_file(self.frame.header)
        dark = recipe.dark
        done = {
            "BIASSUB": dark is not None,
            "DARKSUB": dark is not None and dark.model != "bias",
            "FLATCOR": recipe.flat is not None,
            "GAINCOR": True,
            "EXPNORM": True,
        }
        for key, value in done.items():
            if value or not _was_done(header, key):
                header[key] = (value, STEPS[key])
        header["DARKPOL"] = (self.policy, "how the dark was had")
        header["EXPTIME"] = (self.exposure, "[s] exposure time")
        drop_camera(header)
        header["GAIN"] = (self.exposure, "effective: electron for one electron/s")
        write_creator(header)
        header["GAINUSED"] = (recipe.detector.gain, "[electron/adu]")
        header["RNUSED"] = (recipe.detector.read_noise, "[electron] read noise")
        if recipe.detector.gain_err:
            # Of a gain that was given nobody knows the error.
            relative = round(recipe.detector.gain_err / recipe.detector.gain, 6)
            header["GAINERR"] = (relative, "relative error of the gain")
            header["FLUXERR"] = (relative, "relative error common to all fluxes")
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
            plane, _ = divisor(flat)
            out[:2] /= plane
            if flat.variance is not None:
                data = self.read(rows).data if data is None else data
                np.divide(np.sqrt(flat.variance), plane, out=out[2])
                out[2] *= data
        return out

    def master_noise(self, rows):
        """Return what the variance of this frame's masters is made of, see `Frame.master_noise`."""
        return self.recipe.master_noise(rows, self.exposure)

    def common(self, rows, data):
        """Return the sum of squares of `shared`, [(electron/s)**2], without taking it apart."""
        recipe, total = self.recipe, None
        flat = None if recipe.flat is None else recipe.flat.read(rows)
        if recipe.dark is not None:
            total = recipe.dark.variance(self.exposure, rows)
            total *= np.float32((recipe.detector.gain / self.exposure) ** 2)
        if flat is None:
            return total
        plane, _ = divisor(flat)
        if flat.variance is not None:
            variance = np.multiply(flat.variance, data)
            variance *= data
            total = variance if total is None else np.add(total, variance, out=total)
        if total is not None:
            total /= plane
            total /= plane
        return total


def refuse_twice(frame, *, bias, dark, flat):
    """Refuse a frame that lost its bias, dark or flat before, if it is to lose it now."""
    wanted = {"BIASSUB": bias, "DARKSUB": dark, "FLATCOR": flat, "GAINCOR": True, "EXPNORM": True}
    for key, step in wanted.items():
        if step and (name := _was_done(frame.header, key)):
            raise CalibrationError(
                f"{frame.name}: {name} = {frame.header[name]!r}: it was {STEPS[key]} before, and "
                "would be twice: give the raw frame"
            )


def _was_done(header, key):
    """Return the keyword that says that a step was done, or None."""
    for name in (key, CCDPROC_STEPS[key]):
        value = header.get(name)
        if value is not None and value is not False and str(value) != "F":
            return name
    return None
