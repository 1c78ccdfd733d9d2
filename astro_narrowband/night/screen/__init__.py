"""
Frames that are not what they are called, by a look at some of their rows.

Headers say what a frame is meant to be. Whether the camera, the disk or the copy
kept to it is seen in the pixels: nothing but one value, rows that were never
written, a level far from that of its like, a light below its bias.
"""

import statistics
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.headers import read_saturation
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.detector import FULL_SCALE
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import lines_of
from astro_narrowband.night.screen._flats import coarse, odd_flats, turned
from astro_narrowband.night.table import Problem, problems_of

__all__ = ["Look", "look_at", "misfits", "screen_plan", "why_below"]

#: Rows of a frame that are looked at.
ROWS = 33
#: Pixels of these rows that level and scatter are taken from.
SAMPLE = 16384
#: Levels of bias and darks of one exposure time agree within so many scatters of their pixels.
LEVELS = 10.0
#: Scatters of pixels of like frames agree within this factor.
SCATTERS = 5.0
PATTERN = (
    "BAYERPAT is missing: give --set BAYERPAT=RGGB (or the pattern that the camera has), "
    "--bayer superpixel, or --bayer mono if the sensor has no colour filters"
)
#: Neighbouring columns of a flat differ by more than this (logarithm) behind colour filters.
COLOURED = 0.1
#: A light may lie so many scatters below its bias (whose level drifts through the night).
BELOW = 5.0


class Look(NamedTuple):
    """
    What some rows of a frame show.

    Attributes
    ----------
    level, scatter : float
        Median, and standard deviation by the median deviation [adu]; NaN where there
        is no good pixel.
    reason : str
        Why it cannot be used; ``""`` if it may.
    grid : `~numpy.ndarray` or None
        Levels on a coarse grid [adu].
    phases : `~numpy.ndarray` or None
        Levels of even and odd columns [adu], of even and of odd rows, (2, 2).
    """

    level: float
    scatter: float
    reason: str = ""
    grid: np.ndarray | None = None
    phases: np.ndarray | None = None


def look_at(frame, saturation):
    """
    Look at some rows of a raw frame.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
    saturation : float
        [adu]

    Returns
    -------
    Look
    """
    ny = frame.shape[0]
    rows = np.unique(np.linspace(0, ny - 1, ROWS).astype(int)).tolist()
    samples, wide, counts, same = [], [], [], 0
    try:
        for y in rows:
            band = frame.read(slice(y, y + 1))
            mask = np.zeros(band.data.shape[1], bool) if band.mask is None else band.mask[0]
            good = ~mask
            values = band.data[0][good]
            counts.append(frame.raw_counts(slice(y, y + 1), band.data)[0][good])
            # The first and the last row are dead in many a camera.
            same += 0 < y < ny - 1 and values.size > 8 and values.min() == values.max()
            samples.append(values)
            wide.append(np.where(mask, np.nan, band.data[0]))
    except InputError as error:
        return Look(np.nan, np.nan, str(error))
    values = np.concatenate(samples)
    if not values.size:
        return Look(np.nan, np.nan, "has no good pixel: it holds no image")
    # An odd step: even and odd columns may be of two amplifiers, or two colours.
    sample = values[:: values.size // SAMPLE | 1]
    level = float(np.median(sample))
    scatter = mad_std(sample, level)
    full = float(np.mean(np.concatenate(counts) >= saturation))
    reason = ""
    if values.min() == values.max():
        reason = f"all its pixels are {level:g}: it holds no image"
    elif full > 0.5:
        reason = (
            f"is saturated: {100 * full:.0f} % of its pixels are at or above {saturation:g} adu"
        )
    elif same >= 2:
        reason = (
            f"{same} of {len(rows)} rows that were looked at hold one value each: it was cut off "
            "when it was written or copied: copy it again"
        )
    if reason:
        return Look(level, scatter, reason)
    phases = [
        [np.nanmedian([row[x::2] for y, row in zip(rows, wide, strict=True) if y % 2 == parity])
         for x in (0, 1)]
        for parity in (0, 1)
    ] if min(frame.shape) > 3 and len({y % 2 for y in rows}) == 2 else None  # fmt: skip
    return Look(level, scatter, grid=coarse(wide, frame.shape[1]), phases=phases)


def misfits(looks, *, what, relative=False):
    """
    Say which of some frames of one kind are unlike the others.

    Parameters
    ----------
    looks : sequence of Look
        Of bias, of darks of one exposure time, or of flats.
    what : str
        What the frames are called.
    relative : bool, optional
        Whether they may differ in level, as flats do.

    Returns
    -------
    list of str
        The reason for each; ``""`` for what may be used. Of less than three frames
        nobody can say which is the odd one.
    """
    reasons = [look.reason for look in looks]
    good = [look for look in looks if not look.reason]
    if len(good) < 3:
        return reasons
    level = statistics.median(look.level for look in good)
    scatters = [max(_scatter(look, relative), 1e-6) for look in good]
    scatter = statistics.median(scatters)
    for i, look in enumerate(looks):
        if reasons[i]:
            continue
        if _scatter(look, relative) > SCATTERS * scatter:
            reasons[i] = (
                f"its pixels scatter {_scatter(look, relative) / scatter:.0f} times as much as "
                f"those of the other {what}: is it one of them, and BZERO right?"
            )
        elif not relative and abs(look.level - level) > LEVELS * max(scatter, 1.0):
            reasons[i] = (
                f"its level is {look.level:.0f} adu, that of the other {what} {level:.0f}: is it "
                "one of them, without light, and BZERO right?"
            )
    return reasons


def _scatter(look, relative):
    return look.scatter / max(look.level, 1.0) if relative else look.scatter


def why_below(light, bias, *, what="bias"):
    """
    Say why a light or dark cannot have been taken with its bias; ``""`` if it can.

    Parameters
    ----------
    light : Look
    bias : sequence of Look
        Of bias, or of darks with the exposure time of the light.
    what : str, optional
        What they are called.
    """
    good = [look for look in bias if not look.reason]
    if not good:
        return ""
    level = statistics.median(look.level for look in good)
    scatter = statistics.median(look.scatter for look in good)
    if light.level >= level - BELOW * max(scatter, 1.0):
        return ""
    why = "the bias was subtracted before" if what == "bias" else "the darks saw light"
    return (
        f"lies below its {what} (level {light.level:.4g} adu, {what} {level:.4g}): {why}, or "
        "BZERO is wrong: give raw frames that belong together"
    )


# ------------------------------------------------------------------ the night


def screen_plan(plan, *, saturation=None, mono=False):
    """
    Leave out the frames of a plan that are not what they are called.

    Parameters
    ----------
    plan : `~astro_narrowband.night.plan.Plan`
        Its groups lose these frames, or fail if they have no others; its problems
        say so.
    saturation : float, optional
        Level of a pixel of the camera [adu]; default is that of the headers.
    mono : bool, optional
        Whether the user says that the camera has no colour filters.
    """
    seen, lost, before = {}, {}, [group for group in plan.groups if not group.failed]

    for group in before:
        colours = mono or group.alone or any(row.bayer or row.mosaic for row in group.lights)
        if not (colours or group.flats) and len(lines_of(group.beam)) > 1:
            group.reason = f"colours may part the lines of its filter {group.beam}: {PATTERN}"

        def looks(rows, colour=group.colour):
            for row in rows:
                if (row.path, colour) not in seen:
                    seen[row.path, colour] = _look(row, colour, saturation)
            return [seen[row.path, colour] for row in rows]

        for rows, reasons in _checks(group, looks):
            pairs = [(row, why) for row, why in zip(rows, reasons, strict=True) if why]
            lost.update((id(pair[0]), pair) for pair in pairs)
        for lights, flats in group.sides() or [([], group.flats)]:
            rows = [*lights, *group.bias, *group.darks, *flats]
            sound = [row for row in rows if id(row) not in lost]
            for row, why in _shapes(group, sound, looks, mono=mono):
                lost[id(row)] = row, why
    for group in before:
        kinds = (("lights", "lights"), ("bias", "biases"), ("darks", "darks"), ("flats", "flats"))
        for name, what in kinds:
            rows = list(getattr(group, name))
            unfit = [lost[id(row)] for row in rows if id(row) in lost]
            for row, why in unfit:
                group.drop(row, why)
            if unfit and len(unfit) == len(rows) and not (group.library and group.rows):
                group.reason = f"none of its {what} can be used: {unfit[0][1]}"
    for group in before:
        if group.failed:
            group.fail(group.reason)
            plan.problems.append(Problem("error", group.label, f"not reduced: {group.reason}"))
    plan.problems += problems_of([(row, f"left out: {why}") for row, why in lost.values()])


def _checks(group, looks):
    """Yield rows of a group, and the reason for each why it cannot be used, or ``""``."""
    bias, times = looks(group.bias), {}
    for row in group.darks:
        times.setdefault(round(row.exposure, 2), []).append(row)
    yield group.bias, misfits(bias, what="biases")
    for rows in times.values():
        odd = misfits(looks(rows), what="darks of its exposure time")
        reasons = [
            why or ("" if row.master else why_below(look, bias))
            for row, look, why in zip(rows, looks(rows), odd, strict=True)
        ]
        yield rows, reasons
    yield group.flats, misfits(looks(group.flats), what="flats", relative=True)
    lights = []
    for row, look in zip(group.lights, looks(group.lights), strict=True):
        darks = looks(times.get(round(row.exposure, 2), ()))
        below = why_below(look, bias) or why_below(look, darks, what="darks")
        lights.append(look.reason or below)
    yield group.lights, lights


def _shapes(group, sound, looks, *, mono):
    """Yield flats whose shape is not that of the others; the group fails if nobody can tell."""
    flats = [row for row in sound if row.kind == "flat" and not row.master]
    lights = [look.grid for look in looks([row for row in sound if row.kind == "light"])]
    dark = [row for row in sound if row.kind == "bias"] or [
        row for row in sound if row.kind in ("dark", "flat-dark")
    ]
    dark = [row for row in dark if not row.master]
    if not flats or not dark:
        return
    offset = statistics.median(look.level for look in looks(dark))
    if not (mono or group.library or group.colour or flats[0].colour or flats[0].bayer):
        group.reason = group.reason or _is_mosaic(looks(flats), offset)
    grids = [look.grid for look in looks(flats)]
    reasons, doubt = odd_flats(grids, lights, offset)
    yield from ((row, why) for row, why in zip(flats, reasons, strict=True) if why)
    kept = [grid for grid, why in zip(grids, reasons, strict=True) if not why]
    if group.library:
        yield from ((row, doubt) for row in flats if doubt)
        return
    why = turned(kept, lights, offset)
    side = [row for row in sound if row.kind == "light"]
    if why and not doubt and len(group.sides()) > 1:
        yield from ((row, why) for row in side)
    else:
        group.reason = group.reason or doubt or why


def _is_mosaic(looks, offset):
    """Say that flats have the colours of a mosaic, whose neighbours see other light; or ``""``."""
    for look in looks:
        light = None if look.phases is None else np.asarray(look.phases) - offset
        if light is None or not (light > 0.05 * abs(look.level - offset)).all():
            continue
        apart = float(np.abs(np.log(light[:, 0] / light[:, 1])).max())
        if apart > COLOURED:
            off = 100 * np.expm1(apart)
            return f"its flats are a colour mosaic: neighbours differ by {off:.0f} %: {PATTERN}"
    return ""


def _look(row, colour, saturation):
    try:
        frame = row.open(colour)
    except InputError as error:
        return Look(np.nan, np.nan, str(error).removeprefix(f"{row.path.name}: "))
    if saturation is not None:
        return look_at(frame, saturation * frame.n_added)
    try:
        level = read_saturation(frame.header)
    except InputError:
        level = None  # said where it is decided
    return look_at(frame, level[0] if level else FULL_SCALE * frame.n_added)
