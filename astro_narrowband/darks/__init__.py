"""
The dark model: dark current and bias, fitted per pixel, for any exposure time.

A `DarkModel` holds for every pixel an offset (the bias) [adu] and a rate
[adu/s] with their covariance, fitted by weighted least squares over bias frames
(t = 0) and darks of any number of exposure times. `DarkModel.at` gives the dark
of an exposure with its error, and says when that is an extrapolation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from astropy import units as u
from astropy.io import fits

from astro_narrowband._engine.door import AXES, DAY, door, or_of, real
from astro_narrowband._engine.frames import new_ccd
from astro_narrowband._engine.plots import picture_html
from astro_narrowband._engine.validate import choice
from astro_narrowband.darks._draw import draw_dark
from astro_narrowband.darks._fit import fit_planes
from astro_narrowband.darks._glow import GlowMap
from astro_narrowband.darks._masters import fields_of_masters
from astro_narrowband.darks._planes import (
    FLAGS,
    bad_pixels,
    decode_flags,
    model_hdul,
    read_fields,
    token_of,
)
from astro_narrowband.darks._price import DarkPrice, pay, policy_of, same_exposure, tolerance
from astro_narrowband.exceptions import CalibrationError

__all__ = ["FLAGS", "DarkModel", "DarkPrice", "decode_flags", "same_exposure"]

#: Rows of a plane that are read at a time, and about how many tell what is typical.
READ, SAMPLED = 32, 16


@door(
    ax=AXES, model=None, exposure=real(u.s, least=0, most=DAY),
    noise=or_of(Callable, real(above=0)),
)  # fmt: skip
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
        For a reader of a report.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import DarkModel
    >>> bias, dark = (CCDData(np.full((8, 8), level), unit="adu") for level in (100.0, 112.0))
    >>> model = DarkModel.from_masters(bias=bias, dark=dark, exposure=60.0)
    >>> float(model.values(300.0, slice(0, 1))[0, 0])
    160.0
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
    pedestals: tuple = ()
    glow: dict = field(default_factory=dict)
    token: str = ""

    def __post_init__(self):
        if not self.token:
            self.token = token_of(self.planes, self.shape, self.exposures)

    @classmethod
    def fit(cls, darks, *, bias=None, detector=None, model=None, shrink=False, workers=None):
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
        model : {"rate", "linear"}, optional
            ``"rate"`` takes the bias for the point at t = 0. ``"linear"`` fits the
            offset from the darks alone, as some CMOS cameras need, whose bias
            differs from the offset of a long exposure; two exposure times at least.
            Default is ``"rate"`` where biases are given, else ``"linear"``; one
            exposure time without a bias is ``"matched"``: the dark of that time, and
            elsewhere an offset whose error is stated.
        shrink : bool, optional
            Shrink the rates of ordinary pixels towards their neighbourhood: for lights no
            longer than the darks, see the user guide. A lone warm pixel that no test can
            find then has too small an error, the more so the longer the light.
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
        if model is not None:
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
        return cls(**fields_of_masters(bias, dark, exposure))

    # ------------------------------------------------------------------ asking

    def policy(self, exposure, *, max_extrapolation=None):
        """
        Say how the dark of ``exposure`` [s] is had; what that costs is said by `price`.

        Returns
        -------
        str
            ``"matched"``, ``"scaled"`` (between what was measured), ``"extrapolated"``
            (above the longest dark, or without a bias below the shortest), ``"offset"``
            (one exposure time and no bias: that dark stands for the offset of another
            time, and the error of its dark current is stated) or ``"bias"`` (no darks).

        Raises
        ------
        CalibrationError
            Beyond ``max_extrapolation`` times the longest dark, where that is given; or
            if the model is one master dark that nothing says the dark current of.
        """
        return policy_of(self, exposure, max_extrapolation)

    def _match(self, exposure):
        times = enumerate(self.exposures)
        return next((k for k, t in times if same_exposure(exposure, t)), None)

    def _sample(self, read):
        """Median of what ``read`` gives for rows all over the frame."""
        ny = self.shape[0]
        step = max(1, ny // SAMPLED)
        return float(np.median([read(slice(y, y + 1)) for y in range(step // 2, ny, step)]))

    def typical(self, name):
        """Return the median of a plane, from rows all over the frame."""
        choice(name, self.planes, "name")
        return self._sample(lambda rows: self.planes[name][rows])

    def variance_factor(self, exposure):
        """Return var(dark at ``exposure``) over var(dark at the longest), for a typical pixel."""
        asked, longest = (
            self._sample(partial(self.variance, t)) for t in (exposure, max(self.exposures))
        )
        return asked / longest if longest > 0 else float("nan")

    def price(self, exposure, *, noise):
        """
        Return what the dark of ``exposure`` costs a frame, whose own error decides.

        Parameters
        ----------
        exposure : float
            [s]
        noise : float
            The error of a typical pixel of the frame, without its masters [adu].

        Returns
        -------
        DarkPrice

        Examples
        --------
        Darks of 10 s, whose dark current is 0.5 adu/s. For a narrowband flat of 300 s
        that is nothing, for a light of 300 s too much:

        >>> import numpy as np
        >>> from astropy.nddata import CCDData, StdDevUncertainty
        >>> from astro_narrowband import DarkModel
        >>> error = StdDevUncertainty(np.full((8, 8), 0.1))
        >>> bias = CCDData(np.full((8, 8), 1000.0), unit="adu", uncertainty=error)
        >>> dark = CCDData(np.full((8, 8), 1005.0), unit="adu", uncertainty=error)
        >>> model = DarkModel.from_masters(bias=bias, dark=dark, exposure=10.0)
        >>> flat, light = (model.price(300.0, noise=noise) for noise in (140.0, 13.0))
        >>> print(f"{flat.total:.2f} {flat.too_high} {light.total:.2f} {light.too_high}")
        0.08 False 0.88 True
        """
        policy = self.policy(exposure)
        measured = [*self.exposures, *([0.0] if self.model in ("rate", "bias") else [])]
        unstated = 0.0
        if policy not in ("matched", "bias"):
            apart = min(abs(exposure - t) for t in measured)
            unstated = tolerance() * max(self.typical("rate"), 0.0) * apart
        stated = self._sample(partial(self.variance, exposure)) ** 0.5
        return DarkPrice(policy, stated, unstated, noise)

    def check(self, exposure, *, noise=None, name="", what="frames", max_extrapolation=None):
        """
        As `policy`; raise where the price is too high, warn where it is worth a word.

        Parameters
        ----------
        exposure : float
            [s]
        noise : float or callable, optional
            As in `price`; a function is called only where something is to be priced.
            Without it nothing is priced: an extrapolation is warned of.
        name, what : str, optional
            The frame, and its kind, which the messages name.
        max_extrapolation : float, optional
            A limit in place of the price: the exposure over that of the longest dark.

        Raises
        ------
        CalibrationError
            If the dark would cost the frame more than it is worth, or is beyond the limit.
        """
        name = f"{name}: " if name else ""
        try:
            policy = self.policy(exposure, max_extrapolation=max_extrapolation)
        except CalibrationError as error:
            raise CalibrationError(f"{name}{error}") from None
        if policy in ("extrapolated", "offset"):
            limited = max_extrapolation is not None
            pay(self, exposure, policy, noise=noise, name=name, what=what, limited=limited)
        return policy

    def measured_at(self, exposure, rows):
        """
        Return the pixels of some rows that do not follow their straight line.

        At an exposure time [s] that was measured, pixels flagged NONLINEAR, and hot ones
        whose line is worth less than it, have the mean of the darks of that time; all
        others follow their straight line, which is what has the least noise.

        Returns
        -------
        place : `~numpy.ndarray` of int
            Flat indices in these rows, sorted.
        mean, variance : `~numpy.ndarray` of float32
            [adu], bias included; [adu**2]
        """
        k = self._match(exposure)
        if k is None or not self.measured:
            return np.empty(0, np.int64), *np.empty((2, 0), np.float32)
        nx = self.shape[1]
        pixel = self.measured["pixel"]
        first, last = np.searchsorted(pixel, [rows.start * nx, rows.stop * nx])
        mean = self.measured["mean"][k, first:last]
        known = np.isfinite(mean)
        place = pixel[first:last][known] - rows.start * nx
        return place, mean[known], self.measured["variance"][k, first:last][known]

    @cached_property
    def _glow(self):
        return GlowMap(self.glow, self.shape) if self.glow else None

    def rest_at(self, exposure, rows):
        """
        Return what the dark of an exposure time [s] that was measured has beyond its line [adu].

        The glow of an amplifier that does not grow in proportion to time, and the level that
        the darks of that time have in common; None where there is neither.
        """
        k = self._match(exposure)
        if k is None:
            return None
        level = np.float32(self.pedestals[k]) if self.pedestals else np.float32(0)
        if self._glow is not None:
            return self._glow.rest_at(k, rows) + level
        return level if level else None

    def lines(self, rows):
        """
        Return offset [adu] and rate [adu/s] of some rows: the dark is offset + rate * exposure.

        But for what `measured_at` and `rest_at` return.

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
        rest = self.rest_at(exposure, rows)
        if rest is not None:
            dark += rest
        place, mean, _ = self.measured_at(exposure, rows)
        dark.ravel()[place] = mean
        return dark

    def covariance(self, rows, exposure):
        """
        Return the variance of the offset, its covariance with the rate, the variance of the rate.

        As they are for the dark of ``exposure`` [s]: glow makes the rate less well known at a time
        that was not measured, and NONLINEAR pixels may go on as t**0.5 or t**1.5 beyond all.

        Returns
        -------
        var_offset, cov, var_rate : `~numpy.ndarray` of float32, (n_rows, nx)
            [adu**2], [adu**2/s], [adu**2/s**2]; not to be changed.
        """
        planes = (self.planes[name][rows] for name in ("var_offset", "cov", "var_rate"))
        var_offset, cov, var_rate = planes
        if exposure > 0 and self._glow is not None and self._match(exposure) is None:
            unknown = self._glow.error_at(exposure, rows) / np.float32(exposure)
            var_rate = var_rate + unknown * unknown
        beyond = exposure / max(self.exposures, default=np.inf) - 1.0
        if beyond > 0 and self._match(exposure) is None:
            bent = self.planes["flags"][rows] & FLAGS["NONLINEAR"] > 0
            unknown = np.where(bent, np.float32(0.5 * beyond) * self.planes["rate"][rows], 0)
            var_rate = var_rate + unknown * unknown
        return var_offset, cov, var_rate

    def variance(self, exposure, rows):
        """Return the variance [adu**2] of what `values` returns."""
        t = np.float32(exposure)
        var_offset, cov, var_rate = self.covariance(rows, exposure)
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
        var_offset, cov, var_rate = self.covariance(rows, exposure)
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
        return bad_pixels(self.planes["flags"], self.shape, READ)

    def at(self, exposure, *, max_extrapolation=None):
        """
        Return the dark of ``exposure``, bias included, with its uncertainty.

        Parameters
        ----------
        exposure : float or `~astropy.units.Quantity`
            [s]
        max_extrapolation : float, optional
            How many times the longest dark is still allowed. No frame is there to price
            the dark for: an extrapolation is warned of.

        Returns
        -------
        `~astropy.nddata.CCDData`
            [adu], masked where flagged SATURATED or UNCERTAIN.

        Raises
        ------
        CalibrationError
            Beyond ``max_extrapolation``, or from one exposure time without a bias.
        """
        policy = self.check(exposure, max_extrapolation=max_extrapolation)
        rows = slice(0, self.shape[0])
        header = self.header.copy()
        header["EXPTIME"] = (exposure, "[s]")
        header["DARKPOL"] = (policy, "how this dark was had")
        header["BIASSUB"] = (False, "the bias is in it")
        sigma = np.sqrt(self.variance(exposure, rows))
        return new_ccd((self.values(exposure, rows), sigma, self.mask(rows)), header, u.adu)

    # ------------------------------------------------------------------ files

    def __repr__(self):
        times = zip(self.n_frames, self.exposures, strict=False)
        darks = ", ".join(f"{n} x {t:g} s" for n, t in times)
        ny, nx = self.shape
        return f"<DarkModel {self.model!r} of {darks or 'no darks'}, {nx} x {ny} pixels>"

    def _repr_html_(self):
        return picture_html(repr(self), self.plot, 2)

    def plot(self, ax=None):
        """
        Draw how the dark current is spread, and the error of a dark over its exposure time.

        Parameters
        ----------
        ax : sequence of two `~matplotlib.axes.Axes`, optional
            Default is a new figure.

        Returns
        -------
        sequence of two `~matplotlib.axes.Axes`
        """
        return draw_dark(ax, self)

    def to_hdul(self):
        """Return the model as an `~astropy.io.fits.HDUList`; the offset is the primary image."""
        return model_hdul(self)

    def write(self, path, *, overwrite=False):
        """Write a FITS file, whole or not at all; ProductError where one is, by default."""
        from astro_narrowband._engine.files import check_absent, write_fits

        check_absent(path, overwrite=overwrite)
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
        return cls(**read_fields(path))
