"""
Which bias, darks and flats serve which lights, and why others do not.

Lights are grouped by object, filter and the settings of the camera. A group is
served by frames of the same settings only: there is no substitute for another
binning, window, gain, read mode or camera. Temperature and exposure time have a
tolerance. Nothing is read here but the table of frames.
"""

import math
import statistics
from dataclasses import dataclass, field

from astro_narrowband._engine.validate import positive
from astro_narrowband.night.table import FrameTable, Problem, problems_of

__all__ = ["HARD_KEYS", "Group", "Plan", "make_plan"]

#: What must agree, and what to call it.
HARD_KEYS = {
    "shape": "shape",
    "binning": "binning",
    "window": "window",
    "gain": "gain setting",
    "offset": "offset setting",
    "readout": "read mode",
    "camera": "camera",
    "row_order": "row order",
    "bayer": "Bayer pattern",
    "changed": "processing",
}


@dataclass(eq=False)
class Group:
    """
    Lights that become one coadd, and the frames that calibrate them.

    Attributes
    ----------
    object, filter : str
    setup : dict
        Value of each of `HARD_KEYS`; ``None`` or ``""`` where no header gives it.
    label : str
        What tells this group from every other one of the plan.
    lights, bias, darks, flats : list of `~astro_narrowband.night.table.FrameRow`
        ``darks`` holds flat-darks too: frames of any exposure time that are used
        to model the dark current.
    lost : list of `~astro_narrowband.night.table.FrameRow`
        Lights that it had to do without.
    reason : str
        Why the group cannot be reduced; ``""`` if it can.
    notes : list of str
        What a user should know about its calibration.
    """

    object: str
    filter: str
    setup: dict
    label: str = ""
    lights: list = field(default_factory=list)
    bias: list = field(default_factory=list)
    darks: list = field(default_factory=list)
    flats: list = field(default_factory=list)
    lost: list = field(default_factory=list)
    reason: str = ""
    notes: list = field(default_factory=list)

    @property
    def failed(self):
        """Whether the group cannot be reduced."""
        return bool(self.reason)

    @property
    def rows(self):
        """All frames of the group."""
        return [*self.lights, *self.bias, *self.darks, *self.flats]

    def drop(self, row, reason):
        """Go on without one frame, for ``reason``."""
        for rows in (self.lights, self.bias, self.darks, self.flats):
            if row in rows:
                rows.remove(row)
        if row.kind == "light":
            self.lost.append(row)
        row.leave_out_of(self.label, reason)

    def fail(self, reason):
        """Give up the group for ``reason``; what serves no other one is left out."""
        self.reason = reason
        for row in self.rows:
            row.leave_out_of(self.label, f"its group is not reduced: {reason}")

    @property
    def setup_label(self):
        """The settings in short, such as ``bin2x2 512x512``."""
        return _setup_label(self.setup, self.setup)


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
            lines.append(f"{group.label}: {_count(group.lights, 'light')}, {group.setup_label}")
            if group.failed:
                lines.append(f"  cannot be reduced: {group.reason}")
            for name in ("bias", "darks", "flats"):
                rows = getattr(group, name)
                lines.append(f"  {name:5}  {_count(rows, '') if rows else 'none'}")
            lines.extend(f"  note: {note}" for note in group.notes)
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


def make_plan(
    table, *, filters=None, temperature_warning=0.5, temperature_limit=5.0, matched_exposure=0.02
):
    """
    Decide which frames calibrate which lights.

    Parameters
    ----------
    table : `~astro_narrowband.night.table.FrameTable`
        Its verdicts are changed: what serves no group is left out, with the reason.
    filters : sequence of str, optional
        Canonical names of the filters that are wanted; default is all.
    temperature_warning, temperature_limit : float, optional
        Difference between darks and lights [K] that is warned of, and beyond
        which darks are not used.
    matched_exposure : float, optional
        Relative difference within which two exposure times are one.

    Returns
    -------
    `Plan`

    Notes
    -----
    A keyword that is missing from one of two frames agrees with anything only if
    the whole night has not more than one value of it.

    A group needs flats of its filter, and bias frames or darks of two exposure
    times (whose model has the bias in it). Without bias, darks of one exposure
    time serve if lights and flats have that time. Without any dark the bias alone
    is subtracted, and said so; darks that are there and do not fit fail the group,
    for the user meant them to be used.
    """
    positive(temperature_limit, "temperature_limit")
    limits = (temperature_warning, temperature_limit, matched_exposure)
    night = _Night(table)
    problems = list(table.problems)
    for row in table.of_kind("light"):
        if filters is not None and row.filter not in filters:
            row.ignore(f"filter {row.filter} is not asked for")
    groups = night.groups()
    for group in groups:
        _label(group, groups)
        _serve(group, night, limits)
    for group in groups:
        problems += [Problem("warning", group.label, note) for note in group.notes]
        if group.failed:
            problems.append(Problem("error", group.label, f"not reduced: {group.reason}"))
    problems += problems_of(_settle(groups, night))
    return Plan(table, groups, problems)


class _Night:
    """The used rows of a table, and which values every setting has among them."""

    def __init__(self, table):
        self.rows = [row for row in table if row.used]
        for row in self.rows:
            row.serves = {}
        self.refused = {}
        self._values = {}

    def of_kind(self, *kinds):
        return [row for row in self.rows if row.kind in kinds and row.used]

    def refuse(self, row, why):
        self.refused.setdefault(row.path, why)

    def values(self, key, shape, camera):
        """Return the values of a setting among the frames that may be of one camera."""
        if (key, shape, camera) not in self._values:
            self._values[key, shape, camera] = {
                getattr(row, key)
                for row in self.rows
                if row.shape == shape and (row.camera == camera or not (row.camera and camera))
            } - {None, ""}
        return self._values[key, shape, camera]

    def differs(self, row, setup):
        """Return why ``row`` does not fit ``setup``, in words; ``""`` if it does."""
        for key in ("binning", *HARD_KEYS):  # it explains a shape that differs as well
            name = HARD_KEYS[key]
            mine, wanted = getattr(row, key), setup[key]
            if mine == wanted or (mine in (None, "") and wanted in (None, "")):
                continue
            if mine in (None, "") or wanted in (None, ""):
                if len(self.values(key, setup["shape"], setup["camera"])) > 1:
                    which = "its" if mine in (None, "") else "the lights'"
                    return f"{which} {name} is not in the header, and the night has several"
                continue
            return f"{name} {_say(mine)} is not {_say(wanted)}"
        return ""

    def groups(self):
        """Group the lights; where a keyword is missing, the only value the night has is meant."""
        groups = {}
        for row in self.of_kind("light"):
            setup = {}
            for key in HARD_KEYS:
                value = getattr(row, key)
                if value in (None, ""):
                    values = self.values(key, row.shape, row.camera)
                    value = min(values) if len(values) == 1 else value
                setup[key] = value
            identity = (row.object, row.filter, *setup.values())
            group = groups.setdefault(identity, Group(row.object, row.filter, setup))
            group.lights.append(row)
        return sorted(groups.values(), key=lambda g: (g.object, g.filter, repr(g.setup)))


def _say(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _matching(group, night, kinds):
    """Return the rows of ``kinds`` that fit the group; the night keeps why others do not."""
    fitting = []
    for row in night.of_kind(*kinds):
        why = night.differs(row, group.setup)
        if "flat" in kinds and not why and row.filter != group.filter:
            why = f"filter {row.filter} has no light"
        if why:
            night.refuse(row, why)
        else:
            fitting.append(row)
    return fitting


def _serve(group, night, limits):
    group.bias = _matching(group, night, ("bias",))
    darks = _matching(group, night, ("dark", "flat-dark"))
    group.flats = _matching(group, night, ("flat",))
    group.darks = _of_temperature(group, darks, night, limits)
    _check(group, night, limits[2])


def _temperature(rows):
    known = [row.temperature for row in rows if not math.isnan(row.temperature)]
    return statistics.median(known) if known else math.nan


def _of_temperature(group, darks, night, limits):
    """Return the darks of the temperature nearest to the lights'; note differences."""
    warning, limit, _ = limits
    wanted = _temperature(group.lights)
    known = [row for row in darks if not math.isnan(row.temperature)]
    if math.isnan(wanted) or not known:
        if darks and math.isnan(wanted) != (not known):
            group.notes.append("CCD-TEMP: missing in darks or lights: not compared")
        return darks
    # Darks of one run drift; a gap parts two set points.
    runs = []
    for row in sorted(known, key=lambda row: row.temperature):
        if runs and row.temperature - runs[-1][-1].temperature <= 1.0:
            runs[-1].append(row)
        else:
            runs.append([row])
    best = min(runs, key=lambda run: abs(_temperature(run) - wanted))
    middle = _temperature(best)
    chosen = {id(row) for row in best}
    for row in darks:
        if id(row) not in chosen:
            night.refuse(row, f"CCD-TEMP {row.temperature:.1f}, the lights {wanted:.1f}")
    if abs(middle - wanted) > limit:
        for row in best:
            night.refuse(row, f"CCD-TEMP {row.temperature:.1f}, the lights {wanted:.1f}")
        return []
    for row in list(group.lights):
        if abs(row.temperature - middle) > limit:
            group.drop(row, f"CCD-TEMP = {row.temperature:.1f}, the darks {middle:.1f}")
            group.notes.append(f"{row.name}: left out: {row.reason} (limit {limit:g} K)")
    known = [row.temperature for row in group.lights if not math.isnan(row.temperature)]
    off = max(abs(temperature - middle) for temperature in known)
    if off > warning:
        group.notes.append(
            f"CCD-TEMP: darks at {middle:.1f} serve lights up to {off:.1f} K away: "
            "the dark current is off by about 10 % a kelvin"
        )
    return best


def _close(a, b, tolerance):
    return abs(a - b) <= tolerance * max(a, b)


def _check(group, night, tolerance):
    """Set the reason why a group cannot be reduced, or notes on how it is."""
    times = []
    for row in sorted(group.darks, key=lambda r: r.exposure):
        if not times or not _close(row.exposure, times[-1], tolerance):
            times.append(row.exposure)
    there = night.of_kind("dark")
    if not group.flats:
        group.reason = f"no flat of {group.filter} fits: {_why(night, ('flat',), group)}"
    elif not group.bias and not times:
        group.reason = "neither bias nor darks fit: " + _why(night, ("bias", "dark"), group)
    elif not times and there:
        group.reason = "darks are there, and none fits: " + _why(night, ("dark",), group)
    elif not group.bias and len(times) == 1:
        odd = [
            row
            for row in (*group.lights, *group.flats)
            if not _close(row.exposure, times[0], tolerance)
        ]
        if odd:
            group.reason = (
                f"no bias fits, and the only darks are of {times[0]:g} s: the {odd[0].kind}s of "
                f"{odd[0].exposure:g} s cannot be corrected: add bias frames"
            )
        else:
            group.notes.append("no bias: darks of the same exposure time have it in them")
    elif not group.bias:
        group.notes.append("no bias: it is taken from the darks of several exposure times")
    elif not times:
        group.notes.append("no darks: only the bias is subtracted, dark current stays in")


def _why(night, kinds, group):
    """Why frames of ``kinds`` do not serve a group, in words, the commonest first."""
    rows = [row for row in night.rows if row.kind in kinds]
    if not rows:
        return f"there is no {' and no '.join(kinds)} among the frames"
    if kinds == ("flat",):
        same = [row for row in rows if row.filter == group.filter]
        if not same:
            return f"there are flats of {', '.join(sorted({row.filter for row in rows}))} only"
        rows = same
    reasons = [night.differs(row, group.setup) or night.refused.get(row.path, "") for row in rows]
    return statistics.mode(sorted(reasons))


def _setup_label(setup, keys):
    parts = []
    for key in keys:
        value = setup[key]
        if value in (None, "") or (key, value) == ("changed", "none"):
            continue
        if key == "shape":
            parts.append(f"{value[1]}x{value[0]}")
        elif key == "binning":
            parts.append("bin" + "x".join(map(str, value)))
        elif key == "window":
            parts.append("at" + ",".join(map(str, value)))
        else:
            parts.append(f"{key}={value}")
    return " ".join(parts)


def _label(group, groups):
    """Name a group so that no other one has that name: settings only where they are needed."""
    twins = [g for g in groups if (g.object, g.filter) == (group.object, group.filter)]
    keys = [k for k in HARD_KEYS if len({repr(g.setup[k]) for g in twins}) > 1]
    group.label = " ".join(
        part for part in (group.object, group.filter, _setup_label(group.setup, keys)) if part
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
            row.leave_out(why or "no light is there that it could serve")
            if why and not why.endswith("has no light"):
                unfit.append((row, f"left out: {why}"))
    return unfit
