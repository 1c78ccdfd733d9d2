"""What lights are calibrated with."""

import hashlib
import math
import os
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
from astropy import units as u

from astro_narrowband._engine.door import RULES, a_text, check_fields, count, of_class
from astro_narrowband._engine.frames import Band, Frame, HeldRows, as_frame, handed
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import InputError, warn
from astro_narrowband.noise import sample_rows

#: A flat whose median over some rows is further from 1 was not normalised.
FAR_FROM_ONE = 0.15

#: A flat pixel below this fraction of the median is dead, and never divides.
MIN_FLAT = 0.05
#: Bytes of what masters are known by.
TOKEN = 6


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
    n_mean : int, optional
        Pixels of the camera that were added in one of the frame and whose mean is wanted;
        it takes a flat.
    """

    detector: Detector
    dark: DarkModel | None = None
    flat: Frame | None = None
    max_extrapolation: float | None = None
    max_temperature_difference: float = 5.0
    n_mean: int = 1
    masters: str = ""
    _held: HeldRows = field(init=False, repr=False)

    def __post_init__(self):
        check_fields(
            self, **RULES | {"dark": of_class("DarkModel"), "n_mean": count(), "masters": a_text}
        )
        if self.flat is not None:
            flat = as_frame(self.flat)
            object.__setattr__(self, "flat", flat)
            if flat.unit not in (None, u.dimensionless_unscaled):
                raise InputError(
                    f"flat: its unit is {flat.unit}: it must be dimensionless with median 1; "
                    "make it with master_flat"
                )
            if not isinstance(flat, _ScaledFlat):  # a recipe that is copied has scaled it
                flat = _normalised(flat)
                flat = flat if self.n_mean == 1 else _ScaledFlat(flat, 1 / self.n_mean)
            object.__setattr__(self, "flat", flat)
            if self.dark is not None and tuple(flat.shape) != tuple(self.dark.shape):
                raise InputError(
                    f"flat is {tuple(flat.shape)}, bias or dark {tuple(self.dark.shape)}: "
                    "take masters of one camera, binning and window"
                )
        if not self.masters:
            tokens = [
                "" if self.dark is None else self.dark.token,
                "" if self.flat is None else _token(self.flat),
            ]
            digest = hashlib.blake2b(" ".join(tokens).encode(), digest_size=TOKEN).hexdigest()
            object.__setattr__(self, "masters", digest if any(tokens) else "none")
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

    def master_noise(self, rows, exposure):
        """Return what the variance of the masters is made of, see `Frame.master_noise`."""
        planes, var_flat = (None, None, None), None
        square = self.planes(rows)[2]
        square = np.float32(self.detector.gain) if square is None else square
        square = square * square
        if self.dark is not None:
            planes = tuple(plane * square for plane in self.dark.covariance(rows, exposure))
        if self.flat is not None:
            var_flat = self.flat.read(rows).variance
            if var_flat is not None:
                var_flat = var_flat * square
                var_flat *= np.float32(self.detector.gain**-2)
        return *planes, var_flat

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
            flat, dead = divisor(self.flat.read(rows, variance=False))
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


def divisor(flat):
    """Return what the band of a flat divides by, which is 1 where it is dead, and where it is."""
    dead = ~(flat.data >= np.float32(MIN_FLAT))
    if flat.mask is not None:
        dead |= flat.mask
    return np.where(dead, np.float32(1), flat.data) if dead.any() else flat.data, dead


class _ScaledFlat(Frame):
    """A flat divided by its own median."""

    def __init__(self, flat, level):
        self.flat, self.level = flat, np.float32(level)
        self.name, self.shape, self.unit = flat.name, flat.shape, u.dimensionless_unscaled
        self.header = flat.header

    def read(self, rows, *, variance=True, out=None):
        """Rows of the flat, of median 1."""
        band = self.flat.read(rows, variance=variance)
        squared = None if band.variance is None else band.variance / self.level**2
        return handed(Band(band.data / self.level, squared, band.mask), out=out)


def _normalised(flat):
    """A flat of median 1: as it is, or, aloud, divided by its median."""
    level = _median(flat, sample_rows(flat.shape[0]))
    if abs(level - 1) < FAR_FROM_ONE:
        return flat
    level = _median(flat, [slice(0, flat.shape[0])])
    if not level > 0:
        raise InputError(f"{flat.name}: the flat's median is {level:.3g}: a flat is around 1")
    warn(
        f"{flat.name}: the flat's median is {level:.4g}, not 1: it was divided by that",
        stacklevel=4,
    )
    return _ScaledFlat(flat, level)


def _median(flat, parts):
    """Median of the good pixels of some rows, NaN where there are none."""
    values = []
    for rows in parts:
        band = flat.read(rows, variance=False)
        good = np.isfinite(band.data)
        if band.mask is not None:
            good &= ~band.mask
        values.append(band.data[good])
    values = np.concatenate(values)
    return float(np.median(values)) if values.size else math.nan


def _is_model(path):
    return "DARKMODL" in as_frame(path, unit=u.adu).header


def _token(frame):
    """What a flat is known by, in every process: its shape and some of its pixels."""
    digest = hashlib.blake2b(repr(tuple(frame.shape)).encode(), digest_size=TOKEN)
    for y in range(0, frame.shape[0], max(1, frame.shape[0] // 64)):
        digest.update(np.ascontiguousarray(frame.read(slice(y, y + 1), variance=False).data))
    return digest.hexdigest()
