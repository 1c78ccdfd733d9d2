"""
Frames on one flux scale and one sky, in an order of their own.

Private to `astro_narrowband.coaddition._coadd`.
"""

import math

import numpy as np

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.validate import choice, finite, positive
from astro_narrowband.coaddition._own_noise import exposure_of
from astro_narrowband.coaddition._sky import Skies, match_skies
from astro_narrowband.coaddition._statistics import measure_frame
from astro_narrowband.coaddition._transparency import Transparency, measure_transparency
from astro_narrowband.exceptions import InputError, warn

#: From this part of a frame's pixels on, rejection is not of outliers only.
MANY_REJECTED = 0.02
#: Fluxes that may be off by this part of them are worth a sentence.
UNEVEN = 0.05


def _of_each(values, frames, what):
    values = list(values)
    if len(values) != len(frames):
        raise InputError(f"{what}: {len(values)} were given for {len(frames)} frames: one for each")
    return values


def measure_all(frames, stars, statistics, flux_scale):
    """What each frame is worth: as given, or measured here."""
    if statistics is not None:
        return _of_each(statistics, frames, "statistics")
    if stars is not None:
        stars = _of_each(stars, frames, "stars")
    elif isinstance(flux_scale, str) and flux_scale == "stars" and len(frames) > 1:
        stars = [detect_stars(frame.calibrated) for frame in frames]
    else:
        stars = [None] * len(frames)
    return [measure_frame(f.calibrated, stars=s) for f, s in zip(frames, stars, strict=True)]


def choose_reference(frames, table):
    """The frame that the others are aligned with, or the one with the least noise."""

    def rank(i):
        alignment = frames[i].alignment
        moved = alignment is not None and not np.array_equal(alignment.matrix, np.eye(3))
        noise = table[i].variance if table[i].variance > 0 else math.inf
        return (len(table[i].stars) < 3, moved, noise, frames[i].name, identity(table[i]))

    return min(range(len(frames)), key=rank)


def identity(statistics):
    """What tells frames of one name and noise apart, whatever their order: their pixels."""
    return b"" if statistics.cells is None else statistics.cells.tobytes()


def fixed_order(frames, table):
    """Indices of the frames in an order that does not depend on the one given."""

    def key(i):
        alignment = frames[i].alignment
        place = b"" if alignment is None else alignment.matrix.tobytes()
        return (
            table[i].variance,
            frames[i].name,
            exposure_of(frames[i]),
            identity(table[i]),
            place,
        )

    return np.array(sorted(range(len(frames)), key=key))


def in_order(rule, order, name):
    """A rule, or what is given for each frame, in another order."""
    if isinstance(rule, str):
        return rule
    values = _of_each(rule, order, name)
    return [values[i] for i in order]


def match_flux(rule, frames, table, matrices, *, reference, shape):
    """Transparency of the frames, by a rule or as given."""
    if not isinstance(rule, str):
        values = [positive(t, "flux_scale") for t in rule]
        return Transparency.given(values, "given", reference)
    if choice(rule, ("stars", "none"), "flux_scale") == "none" or len(frames) == 1:
        return Transparency.given(np.ones(len(frames)), "none", reference)
    return measure_transparency(frames, table, matrices, reference, shape)


def match_sky(rule, table, matrices, seen, *, weight, shape):
    """Skies of the frames, by a rule or as given."""
    if not isinstance(rule, str):
        return Skies.given([finite(s, "sky") for s in rule], shape)
    if choice(rule, ("match", "none"), "sky") == "none":
        return Skies.given(np.zeros(len(table)), shape)
    return match_skies(table, matrices, seen, weight, shape)


def warn_of_frames(frames, reasons, seen):
    """Name the frames that are left out, and those whose transparency is not known."""
    for frame, reason in zip(frames, reasons, strict=True):
        if reason:
            text = f"{frame.name}: left out of the coadd: {reason}"
            warn(text, stacklevel=3)
    lost = [
        frame.name
        for frame, method, reason in zip(frames, seen.method, reasons, strict=True)
        if method == "not measured" and not reason
    ]
    if lost:
        warn(
            f"{_listed(lost)}: transparency could not be measured, by stars or nebula in common "
            f"with {frames[seen.reference].name}: taken as usual (scale_err is NaN): through "
            "cloud, fluxes are too low: give flux_scale, or leave the frame out",
            stacklevel=3,
        )


def warn_of_uneven(seen, weight):
    """Say by how much fluxes may be off where the transparency of used frames is uneven."""
    off = math.sqrt(np.nansum((weight * seen.uneven) ** 2))
    if off > UNEVEN:
        warn(
            f"fluxes of the coadd may be off by {off:.1%} (SCALESYS) from one part of the image to "
            "another: stars or nebula of its frames differ by more than scales and slow maps "
            "describe (scale_uneven): leave out the frames that are worst",
            stacklevel=3,
        )


def warn_of_rejected(frames, rejected):
    """Name the frames of which more is rejected than outliers make up."""
    many = np.flatnonzero(rejected >= MANY_REJECTED)
    if many.size:
        warn(
            f"{_listed([frames[i].name for i in many])}: up to {rejected.max():.1%} of the pixels "
            "of a frame were rejected as outliers, where less than 2 % is usual: a trail over much "
            "of it, cloud, a wrong registration, or noise that is larger than its uncertainty: "
            "look at it, or leave it out",
            stacklevel=3,
        )


def _listed(names):
    """Up to three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
