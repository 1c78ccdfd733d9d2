"""
Frames whose uncertainty has the noise of their masters in it, with that taken apart.

Private to `astro_narrowband.coaddition`. A calibrated `~astropy.nddata.CCDData` carries in its
header which masters it was made with and how much noise they left in blank sky
(`~astro_narrowband.noise.SharedNoise`); where the masters are at hand, they say it exactly.
"""

import math
from copy import copy

import numpy as np

from astro_narrowband._engine.frames import Frame, handed
from astro_narrowband._engine.headers import exposures_in, read_exposure
from astro_narrowband._engine.headers.spellings import OFF
from astro_narrowband.calibration import Recipe
from astro_narrowband.coaddition._common_noise import shared_noise_of
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import InputError, SharedNoiseWarning, warn
from astro_narrowband.noise import SharedNoise, sample_rows
from astro_narrowband.registration import Alignment

#: A frame's own variance is at least this part of the whole, whatever is said of its masters.
LEAST_OWN = 0.02


def exposure_of(frame):
    """Exposure of a frame [s], NaN where nothing says it."""
    if frame.exposure is not None:
        return float(frame.exposure)
    if "NCOMBINE" in frame.header:  # a coadd of coadds: more than a day is possible
        return float(frame.header.get("EXPTIME", math.nan))
    return read_exposure(frame.header) if exposures_in(frame.header) else math.nan


def own_noise(frames, masters=None):
    """
    Return frames with their own variance only, that know what their masters add, where they can.

    Parameters
    ----------
    frames : sequence of Frame
    masters : Recipe or DarkModel, optional
        That they were calibrated with.
    """
    frames, groups = [_own_noise_of(frame, masters) for frame in frames], {}
    for frame in frames:
        if isinstance(frame.calibrated, _Told):
            groups.setdefault(frame.masters, []).append(frame.calibrated)
    for group in groups.values():
        # Whatever each was multiplied by: what they share has one level (of the largest, so
        # that none is 0 for some of them, and in no order of the frames).
        levels = np.max([frame.levels for frame in group], axis=0)
        covariances = [frame.levels[1] for frame in group]
        levels[1] = max(covariances, key=abs)
        for frame in group:
            frame.scale_to(levels)
    return frames


def _own_noise_of(frame, masters):
    if frame.masters is not None:
        if masters is not None:
            raise InputError(f"{frame.name}: knows the noise of its masters: leave out masters")
        return frame
    inner = frame.calibrated
    cards = SharedNoise.from_header(inner.header)
    if cards and cards.masters != "none" and not cards.places and _is_combined(inner.header):
        cards = None  # of the first of its frames: the combination is not ours
    if masters is not None:
        apart = _WithMasters(inner, masters, cards)
    elif cards is None:
        return frame
    elif cards.masters == "none":
        apart = copy(inner)
        apart.masters = "none"
    else:
        apart = _Told(inner, cards)
    if frame.alignment is None:
        return apart
    outer = copy(frame)
    outer.frame, outer.masters = apart, apart.masters
    return outer


def _is_combined(header):
    """Whether frames were joined, as ccdproc's guide (COMBINED) or others (NCOMBINE) say it."""
    return header.get("COMBINED") is True or header.get("NCOMBINE", 1) not in (1, "1")


def _done_elsewhere(header):
    """What says that something else than `calibrate` applied a master, or None."""
    for keyword in ("SUBBIAS", "SUBDARK", "BIASSUB", "DARKSUB", "FLATCOR"):
        value = header.get(keyword)
        if isinstance(value, str) and value.strip().lower() not in OFF:  # as ccdproc writes them
            return f"{keyword} = {value!r}"
        if value is True and (
            header.get("MASTERID") == "none"
            or (keyword != "FLATCOR" and header.get("DARKPOL") == "none")
        ):
            return f"{keyword} = {value!r}"
    return None


def warn_of_unknown(frames):
    """Warn once of frames that do not say what noise they share, or not all of it."""
    unknown = [frame.name for frame in frames if frame.masters is None]
    steps = {frame.name: step for frame in frames if (step := _done_elsewhere(frame.header))}
    if len(frames) < 2 or not (unknown or steps):
        return
    if unknown:
        text = (
            f"{unknown[0]}{' and others' if len(unknown) > 1 else ''}: {len(unknown)} of "
            f"{len(frames)} frames do not say which masters they were calibrated with"
        )
    else:
        name, step = next(iter(steps.items()))
        text = f"{name}: {step}: not by astro_narrowband, and how noisy that master is not known"
    warn(
        f"{text}: noise of bias, dark and flat that they share is taken to average down: "
        "calibrate them with astro_narrowband, or give masters",
        SharedNoiseWarning,
        stacklevel=3,
    )


class _Apart(Frame):
    """A frame whose variance is its own: what `_shared` gives is taken from it."""

    def __init__(self, frame, masters, *, included=True):
        self.frame, self.masters, self.included = frame, masters, included
        self._amount = np.float32(1)
        self.name, self.shape, self.unit = frame.name, tuple(frame.shape), frame.unit
        self.header, self.wcs, self.exposure = frame.header, frame.wcs, exposure_of(frame)
        self.noise_correlation = frame.noise_correlation
        self._places = super().placements
        if not self.exposure > 0:
            raise InputError(
                f"{self.name}: has no exposure time, which the noise of its masters depends on: "
                "give EXPTIME"
            )

    @property
    def placements(self):
        """Where the detector's pixels went, as the header has it."""
        moved = Alignment.from_header(self.header)
        weights, matrices = self._places
        return weights, matrices if moved is None else moved.matrix @ matrices

    def read(self, rows, *, variance=True, out=None):
        """Rows of the frame, its own noise only."""
        band = self.frame.read(rows, variance=variance)
        if band.variance is not None and self.included:
            total = band.variance
            shared = self._amount * self._shared(rows, band.data)
            least = np.float32(LEAST_OWN) * total
            band = band._replace(variance=np.maximum(total - shared, least))
        return handed(band, variance=variance, out=out)

    def _shared(self, rows, data):
        """Variance of the masters in these rows."""
        var_offset, cov, var_rate, var_flat = self.master_noise(rows)
        of_offset, of_rate = (np.float32(scale) for scale in self.dark_scale)
        a, total = of_offset / np.float32(self.dark_exposure), np.float32(0)
        if var_offset is not None:
            total = a * a * var_offset + 2 * a * of_rate * cov + of_rate * of_rate * var_rate
        if var_flat is not None:
            total = total + var_flat * data * data
        return total


class _Told(_Apart):
    """A frame whose header tells the noise of its masters: the same in every pixel."""

    def __init__(self, frame, cards):
        super().__init__(frame, cards.masters, included=cards.included)
        self._exposure = cards.exposure
        if cards.places:
            weight, a, b, dx, dy = np.array(cards.places).T
            zero, one = np.zeros_like(a), np.ones_like(a)
            rows = ((a, -b, dx), (b, a, dy), (zero, zero, one))
            self._places = weight, np.moveaxis(np.array(rows), 2, 0)
            self._amount = np.float32(shared_noise_of([self], self.shape)[0, 0])
        variances, values = [], []
        for rows in sample_rows(self.shape[0]):
            band = frame.read(rows)
            if band.variance is None:
                raise InputError(
                    f"{self.name}: was calibrated with an uncertainty that is not there any more: "
                    "keep it, or take MASTERID out of its header"
                )
            good = np.isfinite(band.variance)
            if band.mask is not None:
                good &= ~band.mask
            variances.append(band.variance[good])
            values.append(band.data[good])
        variances, values = np.concatenate(variances), np.concatenate(values)
        blank, level = (float(np.median(v)) if v.size else 0.0 for v in (variances, values))
        t, flat = self.dark_exposure, cards.flat_error**2
        # What the flat left in sky that was subtracted since is there all the same.
        gone = max(cards.flat * blank - flat * level**2, 0.0)
        levels = (
            cards.offset * blank * t**2, cards.covariance * blank * t / 2,
            cards.rate * blank + gone, flat,
        )  # fmt: skip
        self.levels = self._common = np.array(levels) / self._amount

    def scale_to(self, levels):
        """Let `master_noise` be that of ``levels``, which other frames have in common."""
        self._common = levels
        largest = np.where(levels > 0, levels, 1.0)
        ratio = np.sqrt(np.where(levels > 0, self.levels / largest, 1.0))
        self.dark_scale = float(ratio[0]), float(ratio[2])

    @property
    def dark_exposure(self):
        """Of the frames of a coadd, as its header has it."""
        return self._exposure if self._exposure > 0 else self.exposure

    def master_noise(self, rows):
        """As of a `~astro_narrowband.calibration.CalibratedFrame`, the same in every pixel."""
        shape = rows.stop - rows.start, self.shape[1]
        return tuple(np.full(shape, level, np.float32) for level in self._common)


class _WithMasters(_Apart):
    """A frame as the detector saw it, with the masters that it was calibrated with."""

    def __init__(self, frame, masters, cards):
        if Alignment.from_header(frame.header) is not None or (cards and cards.places):
            raise InputError(
                f"{frame.name}: is no single frame as the detector saw it: masters is for those; "
                "the header of what calibrate made says it of others"
            )
        if isinstance(masters, DarkModel):
            masters = _recipe(frame, masters)
        if cards is not None and cards.masters not in ("none", masters.masters):
            raise InputError(
                f"{frame.name}: MASTERID = {cards.masters}: was calibrated with other masters than "
                f"those given ({masters.masters}): give those, or leave out masters"
            )
        for master in (masters.dark, masters.flat):
            if master is not None and tuple(master.shape) != tuple(frame.shape):
                raise InputError(
                    f"{frame.name}: is {tuple(frame.shape)}, its masters {tuple(master.shape)}: "
                    "masters is for whole frames: leave it out where they were cut"
                )
        super().__init__(frame, masters.masters)
        self.recipe = masters

    def master_noise(self, rows):
        """As of a `~astro_narrowband.calibration.CalibratedFrame`."""
        return self.recipe.master_noise(rows, self.exposure)


def _recipe(frame, model):
    """What a dark model alone says: the flat is not known, and taken as 1."""
    values = [frame.header.get(keyword) for keyword in ("GAINUSED", "RNUSED")]
    if None in values:
        raise InputError(
            f"{frame.name}: masters needs GAINUSED [electron/adu] and RNUSED [electron] in its "
            "header, as calibrate writes them"
        )
    gain, read_noise = (float(value) for value in values)
    detector = Detector(gain=gain, read_noise=read_noise)
    token = str(frame.header.get("MASTERID", model.token))
    return Recipe(detector, dark=model, masters=token)
