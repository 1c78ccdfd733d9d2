"""
The dark model: dark current and bias, fitted per pixel, for any exposure time.

A `DarkModel` holds for every pixel an offset (the bias) [adu] and a rate
[adu/s] with their covariance, fitted by weighted least squares over bias frames
(t = 0) and darks of any number of exposure times. `DarkModel.at` gives the dark
of an exposure with its error, and says when that is an extrapolation.
"""

import hashlib
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.frames import FitsImage, row_bands
from astro_narrowband._engine.raw import master_header, prepared
from astro_narrowband._engine.validate import choice, finite, same_shape
from astro_narrowband.darks._fit import FLAGS, PLANES, empty_planes, fit_planes
from astro_narrowband.exceptions import CalibrationError, InputError, NarrowbandWarning

__all__ = ["FLAGS", "DarkModel", "decode_flags"]

#: Exposures that differ by less than this fraction (or 50 ms) match.
MATCH = 0.005
#: Rows of a plane that are read at a time.
READ = 32


def decode_flags(value):
    """
    Return the names of the flags in a value of the flag plane.

    Examples
    --------
    >>> from astro_narrowband.darks import decode_flags
    >>> decode_flags(3)
    ('NONLINEAR', 'SATURATED')
    """
    return tuple(name for name, bit in FLAGS.items() if int(value) & bit)


@dataclass(eq=False)
class DarkModel:
    """
    Offset and rate of every pixel, with their covariance.

    Made by `DarkModel.fit`, `DarkModel.from_masters` or `DarkModel.read`.

    Attributes
    ----------
    planes : dict of array-like, each (ny, nx)
        ``offset`` [adu], ``rate`` [adu/s], ``var_offset`` [adu**2], ``var_rate``
        [(adu/s)**2] and ``cov`` [adu**2/s] as float32, ``flags`` as uint8. Arrays,
        or planes of a file that are read by rows.
    shape : tuple of int
    model : {"rate", "linear", "matched", "bias"}
        ``"matched"``: one exposure time and no bias, valid for that time only;
        ``"bias"``: no darks, the rate is taken for zero.
    exposures : tuple of float
        Exposure times of the darks [s].
    n_frames : tuple of int
        Darks at each of them.
    temperatures : tuple of float or None
        Lowest and highest of the darks [deg C].
    notes : tuple of str
        What a reader of a report should know.
    """

    planes: dict
    shape: tuple
    model: str
    exposures: tuple = ()
    n_frames: tuple = ()
    temperatures: tuple | None = None
    notes: tuple = ()
    header: fits.Header = field(default_factory=fits.Header)
    measured: dict = field(default_factory=dict)
    token: str = ""

    def __post_init__(self):
        if not self.token:
            digest = hashlib.blake2b(repr((self.shape, self.exposures)).encode(), digest_size=12)
            step = max(1, self.shape[0] // 64)
            for y in range(0, self.shape[0], step):
                for name in ("offset", "rate"):
                    digest.update(np.ascontiguousarray(self.planes[name][slice(y, y + 1)]))
            self.token = digest.hexdigest()

    # ------------------------------------------------------------------ making

    @classmethod
    def fit(cls, darks, *, bias=None, detector=None, model="rate", shrink=True, workers=None):
        """
        Fit offset and rate of every pixel.

        Parameters
        ----------
        darks : sequence of path, `~astropy.nddata.CCDData` or Frame
            Raw darks [adu], of any exposure times; bias not subtracted.
        bias : sequence of frames, or one master bias, optional
            Raw biases, or a master [adu] with its uncertainty: the point at t = 0.
        detector : `~astro_narrowband.detector.Detector`, optional
            Default is that of the first dark's header.
        model : {"rate", "linear"}
            ``"rate"`` takes the bias for the point at t = 0. ``"linear"`` fits the
            offset from the darks alone, as some CMOS cameras need, whose bias
            differs from the offset of a long exposure; two exposure times at least.
        shrink : bool, optional
            Shrink the rates of ordinary pixels towards their neighbourhood.
        workers : int, optional
            Threads.

        Returns
        -------
        DarkModel

        Raises
        ------
        InputError
            If shapes differ, an exposure time is missing or not positive, or there
            are too few exposure times for ``model``.
        """
        choice(model, ("rate", "linear"), "model")
        result = fit_planes(
            darks, bias=bias, detector=detector, model=model, shrink=shrink, workers=workers
        )
        return cls(**result)

    @classmethod
    def from_masters(cls, *, bias=None, dark=None, exposure=None):
        """
        Return the model that a master bias and at most one master dark make.

        Parameters
        ----------
        bias : `~astropy.nddata.CCDData`, optional
            Master bias [adu].
        dark : `~astropy.nddata.CCDData`, optional
            Master dark [adu]. It holds the bias unless its header says BIASSUB = T
            (or ccdproc's SUBBIAS).
        exposure : float, optional
            Of ``dark`` [s].

        Returns
        -------
        DarkModel
        """
        return cls(**_from_masters(bias, dark, exposure))

    # ------------------------------------------------------------------ asking

    def policy(self, exposure, *, max_extrapolation=3.0):
        """
        Say how the dark of ``exposure`` [s] is had.

        Returns
        -------
        str
            ``"matched"``, ``"scaled"`` (below the longest dark), ``"extrapolated"``
            or ``"bias"`` (there are no darks).

        Raises
        ------
        CalibrationError
            Beyond ``max_extrapolation`` times the longest dark.
        """
        exposure = finite(exposure, "exposure")
        if exposure < 0:
            raise InputError(f"exposure = {exposure} s is negative")
        if self.model == "bias":
            return "bias"
        if self._match(exposure) is not None:
            return "matched"
        times = ", ".join(f"{t:g}" for t in self.exposures)
        if self.model == "matched":
            raise CalibrationError(
                f"the dark of {exposure:g} s cannot be had from darks of {times} s alone: "
                "without a bias they cannot be scaled: give a bias, or darks of this exposure"
            )
        longest = max(self.exposures)
        if exposure < longest:
            return "scaled"
        if exposure > max_extrapolation * longest:
            raise CalibrationError(
                f"the dark of {exposure:g} s would be extrapolated {exposure / longest:.2g} times "
                f"beyond the longest dark ({longest:g} s; max_extrapolation = "
                f"{max_extrapolation:g}): take darks of {exposure:g} s, or raise max_extrapolation"
            )
        return "extrapolated"

    def _match(self, exposure):
        for k, t in enumerate(self.exposures):
            if abs(exposure - t) <= max(MATCH * t, 0.05):
                return k
        return None

    def variance_factor(self, exposure):
        """Return var(dark at ``exposure``) over var(dark at the longest), for a typical pixel."""
        ny = self.shape[0]
        middle = slice(ny // 2, ny // 2 + 1)
        b, r, c = (np.median(self.planes[k][middle]) for k in ("var_offset", "var_rate", "cov"))
        longest = max(self.exposures)

        def variance(t):
            return b + t * t * r + 2 * t * c

        return float(variance(exposure) / variance(longest))

    def check(self, exposure, *, max_extrapolation=3.0):
        """As `policy`, and warn when it is an extrapolation."""
        policy = self.policy(exposure, max_extrapolation=max_extrapolation)
        if policy == "extrapolated":
            warnings.warn(
                f"the dark of {exposure:g} s is extrapolated from darks of at most "
                f"{max(self.exposures):g} s: its variance grows "
                f"{self.variance_factor(exposure):.3g} times; darks of {exposure:g} s would be "
                "better",
                NarrowbandWarning,
                stacklevel=3,
            )
        return policy

    def measured_at(self, exposure, rows):
        """
        Return the pixels of some rows that do not follow their straight line.

        At an exposure time [s] that was measured, pixels flagged NONLINEAR have the
        mean of the darks of that time; all others follow their straight line, which
        is what has the least noise.

        Returns
        -------
        place : `~numpy.ndarray` of int
            Flat indices in these rows, sorted.
        mean, variance : `~numpy.ndarray` of float32
            [adu], bias included; [adu**2]
        """
        k = self._match(exposure) if self.measured else None
        if k is None:
            return np.empty(0, np.int64), *np.empty((2, 0), np.float32)
        nx = self.shape[1]
        pixel = self.measured["pixel"]
        first, last = np.searchsorted(pixel, [rows.start * nx, rows.stop * nx])
        mean = self.measured["mean"][k, first:last]
        known = np.isfinite(mean)
        place = pixel[first:last][known] - rows.start * nx
        return place, mean[known], self.measured["variance"][k, first:last][known]

    def lines(self, rows):
        """
        Return offset [adu] and rate [adu/s] of some rows: the dark is offset + rate * exposure.

        But for what `measured_at` returns.

        Returns
        -------
        offset, rate : `~numpy.ndarray` of float32, (n_rows, nx)
            Not to be changed.
        """
        return self.planes["offset"][rows], self.planes["rate"][rows]

    def values(self, exposure, rows):
        """Return the dark [adu] of some rows, bias included, without its error."""
        offset, rate = self.lines(rows)
        dark = offset + rate * np.float32(exposure)
        place, mean, _ = self.measured_at(exposure, rows)
        dark.ravel()[place] = mean
        return dark

    def covariance(self, rows):
        """
        Return the variance of the offset, its covariance with the rate, the variance of the rate.

        Returns
        -------
        var_offset, cov, var_rate : `~numpy.ndarray` of float32, (n_rows, nx)
            [adu**2], [adu**2/s], [adu**2/s**2]; not to be changed.
        """
        return tuple(self.planes[name][rows] for name in ("var_offset", "cov", "var_rate"))

    def variance(self, exposure, rows):
        """Return the variance [adu**2] of what `values` returns."""
        t = np.float32(exposure)
        var_offset, cov, var_rate = self.covariance(rows)
        out = cov * (2 * t)
        out += var_offset
        out += var_rate * (t * t)
        place, _, variance = self.measured_at(exposure, rows)
        out.ravel()[place] = variance
        # What is left of large numbers may fall below zero.
        return np.maximum(out, 0, out=out)

    def modes(self, exposure, rows):
        """
        Return the error of the dark as two independent amplitudes.

        Returns
        -------
        `~numpy.ndarray` of float32, (2, n_rows, nx)
            [adu]; the sum of squares is the variance of the dark at ``exposure``.
            Each stays the same noise whatever the exposure.
        """
        t = np.float32(exposure)
        var_offset, cov, var_rate = self.covariance(rows)
        # Cholesky factor of the covariance of (offset, rate).
        offset = np.sqrt(var_offset)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(offset > 0, cov / offset, np.float32(0))
        rest = np.sqrt(np.maximum(var_rate - slope * slope, 0))
        out = np.stack([offset + t * slope, t * rest])
        place, _, variance = self.measured_at(exposure, rows)
        out[0].ravel()[place] = np.sqrt(variance)
        out[1].ravel()[place] = 0
        return out

    def mask(self, rows):
        """Return `True` where a pixel is flagged SATURATED or UNCERTAIN."""
        nx = self.shape[1]
        mask = np.zeros((rows.stop - rows.start, nx), bool)
        first, last = np.searchsorted(self._bad, [rows.start * nx, rows.stop * nx])
        mask.ravel()[self._bad[first:last] - rows.start * nx] = True
        return mask

    @cached_property
    def _bad(self):
        """Flat indices of these few pixels, which every light asks for again."""
        bad = np.uint8(FLAGS["SATURATED"] | FLAGS["UNCERTAIN"])
        found = []
        for rows in row_bands(self.shape[0], READ):
            index = np.flatnonzero((self.planes["flags"][rows] & bad) != 0)
            found.append(index + rows.start * self.shape[1])
        return np.concatenate(found)

    def at(self, exposure, *, max_extrapolation=3.0):
        """
        Return the dark of ``exposure``, bias included, with its uncertainty.

        Parameters
        ----------
        exposure : float or `~astropy.units.Quantity`
            [s]
        max_extrapolation : float, optional
            How many times the longest dark is still allowed.

        Returns
        -------
        `~astropy.nddata.CCDData`
            [adu], masked where flagged SATURATED or UNCERTAIN.

        Raises
        ------
        CalibrationError
            Beyond ``max_extrapolation``.
        """
        if isinstance(exposure, u.Quantity):
            exposure = exposure.to_value(u.s)
        policy = self.check(exposure, max_extrapolation=max_extrapolation)
        rows = slice(0, self.shape[0])
        header = self.header.copy()
        header["EXPTIME"] = (float(exposure), "[s]")
        header["DARKPOL"] = (policy, "how this dark was had")
        header["BIASSUB"] = (False, "the bias is in it")
        return CCDData(
            self.values(exposure, rows),
            uncertainty=StdDevUncertainty(np.sqrt(self.variance(exposure, rows))),
            mask=self.mask(rows),
            header=header,
            unit=u.adu,
        )

    # ------------------------------------------------------------------ files

    def to_hdul(self):
        """Return the model as an `~astropy.io.fits.HDUList`; the offset is the primary image."""
        header = self.header.copy()
        header["BUNIT"] = "adu"
        header["DARKMODL"] = (self.model, "dark = offset + rate * exposure")
        header["DARKNEXP"] = (len(self.exposures), "number of exposure times")
        for k, (t, n) in enumerate(zip(self.exposures, self.n_frames, strict=True)):
            header[f"DARKT{k}"] = (t, "[s] exposure time")
            header[f"DARKN{k}"] = (n, "darks of this exposure time")
        if self.temperatures is not None:
            header["DARKTMIN"], header["DARKTMAX"] = self.temperatures
        header["DARKTOK"] = (self.token, "what this model is known by")
        for k, note in enumerate(self.notes):
            set_card(header, f"DARKNT{k}", note)
        hdul = fits.HDUList([fits.PrimaryHDU(np.asarray(self.planes["offset"][:]), header)])
        for name in PLANES[1:]:
            hdul.append(fits.ImageHDU(np.asarray(self.planes[name][:]), name=name.upper()))
        if self.measured:
            k = len(self.exposures)
            columns = [fits.Column("pixel", "K", array=self.measured["pixel"])]
            columns += [
                fits.Column(key, f"{k}E", array=np.ascontiguousarray(self.measured[key].T))
                for key in ("mean", "variance")
            ]
            hdul.append(fits.BinTableHDU.from_columns(columns, name="MEASURED"))
        return hdul

    def write(self, path):
        """Write the model to a FITS file, whole or not at all."""
        from astro_narrowband._engine.files import write_fits

        write_fits(path, self.to_hdul())

    @classmethod
    def read(cls, path):
        """
        Return the model in a file that `write` made; its planes stay on disk.

        Raises
        ------
        InputError
            If the file is not a dark model.
        """
        path = Path(path)
        planes = {}
        try:
            with fits.open(path, memmap=False) as hdul:
                header = hdul[0].header.copy()
                for name in PLANES:
                    hdu = hdul[0] if name == "offset" else hdul[name.upper()]
                    planes[name] = FilePlane(path, hdu)
                measured = {}
                if "MEASURED" in hdul:
                    table = hdul["MEASURED"].data
                    measured["pixel"] = table["pixel"].astype(np.int64)
                    for key in ("mean", "variance"):
                        # One exposure time makes a plain column of the vector.
                        column = table[key].reshape(len(table), -1)
                        measured[key] = np.ascontiguousarray(column.T, np.float32)
                shape = hdul[0].shape
                model = header["DARKMODL"]
                n = header["DARKNEXP"]
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: is not a dark model ({error}): make it again") from error
        exposures = tuple(header[f"DARKT{k}"] for k in range(n))
        n_frames = tuple(header[f"DARKN{k}"] for k in range(n))
        temperatures = None
        if "DARKTMIN" in header:
            temperatures = header["DARKTMIN"], header["DARKTMAX"]
        return cls(
            planes=planes,
            shape=shape,
            model=model,
            exposures=exposures,
            n_frames=n_frames,
            temperatures=temperatures,
            notes=tuple(header[key] for key in header if key.startswith("DARKNT")),
            header=header,
            token=header["DARKTOK"],
            measured=measured,
        )


def _from_masters(bias, dark, exposure):
    """Return the fields of a model made of masters; see `DarkModel.from_masters`."""
    frames = {k: prepared(m) for k, m in (("bias", bias), ("dark", dark)) if m is not None}
    if not frames:
        raise InputError("neither bias nor dark was given")
    shape = same_shape(frames.values(), "masters")
    rows = slice(0, shape[0])
    planes = empty_planes(shape)
    data, variance = {}, {}
    for name, frame in frames.items():
        if frame.unit not in (None, u.adu):
            raise InputError(
                f"{name}: its unit is {frame.unit}: a master must be in adu, as the raw frames are"
            )
        band = frame.read(rows)
        data[name], variance[name] = band.data, band.variance
        if band.variance is None:
            variance[name] = np.zeros(shape, np.float32)
        if band.mask is not None:
            planes["flags"][band.mask] |= FLAGS["UNCERTAIN"]
    first = "bias" if "bias" in frames else "dark"
    planes["offset"], planes["var_offset"] = data[first], variance[first]
    fields = {"planes": planes, "shape": shape}
    if "dark" not in frames:
        return fields | {"model": "bias", "header": master_header(frames["bias"], "bias", 1)}
    header = frames["dark"].header
    fields["header"] = master_header(frames["dark"], "dark", 1)
    temperature = keywords.read_temperature(header)
    fields["temperatures"] = None if temperature is None else (temperature, temperature)
    if exposure is None:
        exposure = keywords.read_exposure(header)
    n = keywords.one_value(header, "NCOMBINE")
    fields |= {
        "exposures": (float(exposure),),
        "n_frames": (int(n[0]) if n else 1,),
        "notes": ("one dark exposure time: its linearity could not be tested",),
    }
    without_bias = bool(header.get("BIASSUB") or header.get("SUBBIAS"))
    if "bias" not in frames:
        if without_bias:
            raise CalibrationError(
                "the dark has lost its bias (BIASSUB or SUBBIAS in its header) and no bias was "
                "given: give bias= as well"
            )
        return fields | {"model": "matched"}
    _check_levels(data, without_bias)
    t = np.float32(exposure)
    # Either way the error of the bias is in that of the rate, with the sign turned.
    if without_bias:
        planes["rate"] = data["dark"] / t
        planes["var_rate"] = variance["dark"] / (t * t)
    else:
        planes["rate"] = (data["dark"] - data["bias"]) / t
        planes["var_rate"] = (variance["dark"] + variance["bias"]) / (t * t)
    planes["cov"] = -variance["bias"] / t
    return fields | {"model": "rate"}


def _check_levels(data, without_bias):
    """Find a dark that says, or leaves unsaid, the wrong thing about its bias."""
    bias, dark = (float(np.nanmedian(data[k][::8])) for k in ("bias", "dark"))
    if not without_bias and dark < 0.5 * bias:
        raise CalibrationError(
            f"the dark (median {dark:.1f} adu) lies far below the bias ({bias:.1f} adu): it seems "
            "to have lost its bias already: set BIASSUB = True in its header if so"
        )


class FilePlane:
    """A plane of a FITS file that is read by rows: ``plane[slice]``."""

    def __init__(self, path, hdu):
        stored = {8: ">u1", -32: ">f4"}[hdu.header["BITPIX"]]
        self.image = FitsImage.of_file(path, hdu.fileinfo()["datLoc"], np.dtype(stored), hdu.shape)

    def __getitem__(self, rows):
        start, stop, _ = rows.indices(self.image.shape[0])
        return self.image.read(slice(start, stop))
