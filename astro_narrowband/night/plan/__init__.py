"""
Which bias, darks and flats serve which lights, and why others do not.

Lights are grouped by object, filter and the settings of the camera. A group is
served by frames of the same settings only: there is no substitute for another
binning, window, gain, read mode or camera. Temperature and exposure time have a
tolerance. Nothing is read here but the table of frames.
"""

import math
import statistics
from dataclasses import dataclass

from astro_narrowband.night.plan._group import (
    HARD_KEYS,
    SAME_ANGLE,
    Group,
    angle_apart,
    setup_label,
)
from astro_narrowband.night.plan._match import Candidates, close, dark_runs, median_temperature
from astro_narrowband.night.table import FrameTable, Problem, problems_of

__all__ = ["HARD_KEYS", "Group", "Plan", "make_plan"]

#: Difference between darks and lights [K] that is said, and beyond which darks are not used.
WARMER, TOO_WARM = 0.5, 5.0
NO_LIGHT = (
    "no light is there: the calibration frames become masters: give their folder to reduce with "
    "--calibration, for nights that have lights"
)


@dataclass(eq=False)
class Plan:
    """
    The groups of a night.

    Attributes
    ----------
    table : `~astro_narrowband.night.table.FrameTable`
        With the verdicts that follow from the plan.
    groups : list of `Group`
        By object, filter, settings; failed ones too.
    problems : list of `~astro_narrowband.night.table.Problem`
        Those of the table and those of the matching.
    """

    table: FrameTable
    groups: list
    problems: list

    def lines(self):
        """Return the plan as lines of text: what calibrates what, and every problem."""
        lines = []
        for group in self.groups:
            pixels = f", {group.colour.replace('+', ' and ')} pixels" if group.colour else ""
            what = "masters" if group.library else _count(group.lights, "light")
            lines.append(f"{group.label}: {what}, {group.setup_label}{pixels}")
            if group.failed:
                lines.append(f"  cannot be reduced: {group.reason}")
            for name in ("bias", "darks", "flats"):
                rows = getattr(group, name)
                lines.append(f"  {name:5}  {_count(rows, '') if rows else 'none'}")
            lines.extend(f"  note: {note}" for note in group.notes)
            lines.extend(f"  cost: {cost}" for cost in group.costs)
        if not self.groups:
            lines.append("no lights: there is nothing to reduce")
        lines.extend(f"{problem.level}: {problem}" for problem in self.problems)
        return lines


def _count(rows, what):
    times = sorted({round(row.exposure, 6) for row in rows if not math.isnan(row.exposure)})
    text = f"{len(rows)} {what}{'s' if what and len(rows) != 1 else ''}".strip()
    if len(times) > 3:
        text += f" of {times[0]:g} to {times[-1]:g} s"
    elif times:
        text += f" of {', '.join(f'{t:g}' for t in times)} s"
    return text


def make_plan(table, *, filters=None, without=(), calibrated=False):
    """
    Decide which frames calibrate which lights.

    Parameters
    ----------
    table : `~astro_narrowband.night.table.FrameTable`
        Its verdicts are changed: what serves no group is left out, with the reason.
    filters : sequence of str, optional
        Canonical names of the filters that are wanted; default is all.
    without : sequence of {"flat", "dark", "bias"}, optional
        What to go on without.
    calibrated : bool, optional
        Whether the lights are calibrated and need none of them.

    Returns
    -------
    `Plan`

    Notes
    -----
    A keyword that is missing from one of two frames agrees with anything only if
    the whole night has not more than one value of it.

    A group needs flats of its filter, and bias frames or darks of two exposure
    times (whose model has the bias in it). Without bias, darks of one exposure
    time serve lights of that time. Without any dark the bias alone is subtracted,
    and said so; darks that are there and do not fit fail the group, for the user
    meant them to be used. ``without`` lifts each of these rules.

    A light behind a filter of two lines becomes two images of a colour camera. Panels of
    a mosaic under one object are targets of their own, where the headers say where they
    point.
    """
    for row in table:
        if row.used and row.kind.removeprefix("flat-") in without:
            row.ignore(f"--without {row.kind.removeprefix('flat-')}")
    night = Candidates(table)
    problems = list(table.problems)
    # Without a single light, not even one that is left out: a library is to be made.
    groups = night.groups(filters)
    if not any(row.kind == "light" for row in table) and (groups := night.libraries(filters)):
        problems.append(Problem("warning", "", NO_LIGHT))
    for group in groups:
        group.without, group.calibrated = tuple(without), calibrated
        _label(group, groups)
        if not group.library:
            _serve(group, night)
    _count_lost(groups, table)
    for group in groups:
        problems += [Problem("warning", group.label, note) for note in group.notes]
        if group.failed:
            problems.append(Problem("error", group.label, f"not reduced: {group.reason}"))
    problems += problems_of(_settle(groups, night))
    return Plan(table, groups, problems)


def _count_lost(groups, table):
    """Add lights that cannot be read to the groups that miss them, where their headers say."""
    for row in table:
        if row.kind == "light" and row.verdict == "left out" and not row.serves:
            for group in groups:
                if (row.object, row.filter) == (group.object, group.beam):
                    group.lost.append(row)
                    row.serves[group.label] = row.reason


def _serve(group, night):
    if group.calibrated:
        return
    for name, kinds in (
        ("bias", ("bias",)),
        ("darks", ("dark", "flat-dark")),
        ("flats", ("flat",)),
    ):
        if name.rstrip("s") in group.without:
            continue
        rows = night.fitting(group, kinds)
        if name == "darks":
            rows = _of_temperature(group, rows, night)
        setattr(group, name, night.chosen(group, rows))
    _turn(group, night)
    _check(group, night)


def _turn(group, night):
    """Leave out lights that no flat is for by the rotator, and flats of no light; say the rest."""
    flats = list(group.flats)
    served = set()
    for lights, mine in group.sides() if flats else ():
        if not mine:
            angles = ", ".join(sorted({f"{row.rotator[0]:g}" for row in flats}))
            for row in lights:
                keyword, angle = row.rotator[2], row.rotator[0]
                group.drop(row, f"{keyword} = {angle:g} deg, the flats {angles}")
            group.notes.append(f"{lights[0].name}: left out: {lights[0].serves[group.label]}")
        elif angle_apart(lights[0], mine[0]) > SAME_ANGLE:
            keyword, angle = mine[0].rotator[2], mine[0].rotator[0]
            group.notes.append(
                f"{keyword}: flats at {angle:g} deg serve {len(lights)} lights at "
                f"{lights[0].rotator[0]:g}, on the other side of the pier: right for dust and "
                "vignetting that turn with the camera; flats of both sides are better"
            )
        served.update(row.path for row in mine)
    for row in flats:
        if row.path not in served:
            group.flats.remove(row)
            night.refuse(row, f"{row.rotator[2]} = {row.rotator[0]:g} deg: there are flats nearer "
                         "to the angle of the lights")  # fmt: skip


def _of_temperature(group, darks, night):
    """Return the darks of the temperature nearest to the lights'; note differences."""
    wanted = median_temperature(group.lights)
    known = [row for row in darks if not math.isnan(row.temperature)]
    if math.isnan(wanted) or not known:
        if darks and math.isnan(wanted) != (not known):
            group.notes.append("CCD-TEMP: missing in darks or lights: not compared")
        return darks
    best = min(dark_runs(known), key=lambda run: abs(median_temperature(run) - wanted))
    middle = median_temperature(best)
    chosen = {id(row) for row in best}
    for row in darks:
        if id(row) not in chosen:
            night.refuse(row, f"CCD-TEMP {row.temperature:.1f}, the lights {wanted:.1f}")
    if abs(middle - wanted) > TOO_WARM:
        for row in best:
            night.refuse(row, f"CCD-TEMP {row.temperature:.1f}, the lights {wanted:.1f}")
        return []
    for row in list(group.lights):
        if abs(row.temperature - middle) > TOO_WARM:
            group.drop(row, f"CCD-TEMP = {row.temperature:.1f}, the darks {middle:.1f}")
            group.notes.append(f"{row.name}: left out: {row.reason} (limit {TOO_WARM:g} K)")
    known = [row.temperature for row in group.lights if not math.isnan(row.temperature)]
    off = max(abs(temperature - middle) for temperature in known)
    if off > WARMER:
        group.notes.append(
            f"CCD-TEMP: darks at {middle:.1f} serve lights up to {off:.1f} K away: "
            "the dark current is off by about 10 % a kelvin"
        )
    return best


def _check(group, night):
    """Set the reason why a group cannot be reduced, or notes on how it is."""
    times = []
    for row in sorted(group.darks, key=lambda r: r.exposure):
        for time in row.model or (row.exposure,):
            if not times or not close(time, times[-1]):
                times.append(time)
    has_offset = bool(group.bias) or any(row.model for row in group.darks)
    without = set(group.without)
    if without >= {"bias", "dark"}:
        without = (without - {"bias", "dark"}) | {"bias and dark"}
    for kind in sorted(without):
        option = kind.replace("and ", "--without ")
        group.notes.append(f"without {kind} (--without {option}): {_WITHOUT[kind]}")
    if not group.flats and "flat" not in group.without:
        group.reason = (
            f"no flat of {group.beam} fits: {_why(night, ('flat',), group)}: give flats, "
            "--calibration FOLDER that has some, or --without flat"
        )
    elif not has_offset and not times and not {"bias", "dark"} <= set(group.without):
        group.reason = (
            "neither bias nor darks fit: "
            + _why(night, ("bias", "dark"), group)
            + ": give some, --calibration FOLDER, or --without bias --without dark"
        )
    elif not times and night.of_kind("dark") and "dark" not in group.without:
        group.reason = (
            "darks are there, and none fits: "
            + _why(night, ("dark",), group)
            + ": give darks that do, or --without dark"
        )
    elif not has_offset and len(times) == 1:
        _one_dark(group, times[0])
    elif not has_offset and times:
        group.notes.append("no bias: it is taken from the darks of several exposure times")
    elif not times and "dark" not in group.without:
        group.notes.append("no darks: only the bias is subtracted, dark current stays in")
    kinds = (("bias", group.bias), ("dark", group.darks), ("flat", group.flats))
    if masters := [kind for kind, rows in kinds if any(row.master for row in rows)]:
        group.notes.append(
            f"{', '.join(masters)}: of another run or program: where a master does not say its "
            "noise, it is measured from it"
        )


#: What is wrong with frames that were calibrated without.
_WITHOUT = {
    "flat": "vignetting, dust and unequal pixels stay in, and in every flux",
    "dark": "dark current and hot pixels stay in, and in the sky",
    "bias": "the offset is that of the darks",
    "bias and dark": "offset, dark current and hot pixels stay in, and in the sky",
}


def _one_dark(group, time):
    """Judge what one exposure time of darks can do without a bias."""
    odd = [row for row in group.lights if not close(row.exposure, time)]
    if len(odd) == len(group.lights):
        group.reason = (
            f"no bias fits, and the only darks are of {time:g} s: the lights of "
            f"{odd[0].exposure:g} s cannot be corrected: add bias frames, or darks of that time"
        )
        return
    for row in odd:
        group.drop(
            row, f"no bias fits, and the only darks are of {time:g} s: it has {row.exposure:g} s"
        )
        group.notes.append(f"{row.name}: left out: {row.serves[group.label]}")
    group.notes.append("no bias: darks of the same exposure time have it in them")
    if any(not close(row.exposure, time) for row in group.flats):
        group.notes.append(
            f"no bias and no flat-darks: the flats lose the darks of {time:g} s, less what the "
            "noise of these allows for dark current; the error is in that of the flat"
        )


def _why(night, kinds, group):
    """Why frames of ``kinds`` do not serve a group, in words, the commonest first."""
    rows = [row for row in night.rows if row.kind in kinds]
    if not rows:
        return f"there is no {' and no '.join(kinds)} among the frames"
    if kinds == ("flat",):
        same = [row for row in rows if row.filter in (group.beam, group.filter)]
        if not same:
            return f"there are flats of {', '.join(sorted({row.filter for row in rows}))} only"
        rows = same
    reasons = [night.differs(row, group) or night.refused.get(row.path, "") for row in rows]
    return statistics.mode(sorted(reasons))


def _label(group, groups):
    """Name a group so that no other one has that name: settings only where they are needed."""
    twins = [g for g in groups if (g.object, g.filter) == (group.object, group.filter)]
    keys = [k for k in HARD_KEYS if len({repr(g.setup[k]) for g in twins}) > 1]
    group.label = " ".join(
        word for word in (group.object, group.filter, setup_label(group.setup, keys)) if word
    )
    others = [g.label for g in groups if g is not group]
    if group.label in others:
        group.label += f" ({others.count(group.label) + 1})"


def _settle(groups, night):
    """Leave out what serves no group; return what does not fit, with the reason."""
    for group in groups:
        for row in group.rows:
            row.serves.setdefault(group.label, "")
    for group in groups:
        if group.failed:
            group.fail(group.reason)
    unfit = []
    for row in night.rows:
        if row.used and not row.serves:
            why = night.refused.get(row.path, "")
            if row.library:
                row.ignore(f"is not needed: {why or 'no light is there that it could serve'}")
                continue
            row.leave_out(why or "no light is there that it could serve")
            if why and not why.endswith(("has no light", "taken before it")):
                unfit.append((row, f"left out: {why}"))
    return unfit
