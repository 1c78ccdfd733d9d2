"""Which frames fit which lights: settings, temperature, rotator, pointing; which are taken."""

import math
import statistics
from datetime import date
from itertools import combinations, pairwise

import numpy as np
from astropy.coordinates import angular_separation

from astro_narrowband.filters import lines_of, pixels_of
from astro_narrowband.night.plan._group import HARD_KEYS, SAME_ANGLE, Group, angle_apart


def close(a, b):
    """Whether two exposure times are one, within 2 %."""
    return abs(a - b) <= 0.02 * max(a, b)


def median_temperature(rows):
    """Median of the temperatures that are known, or NaN."""
    known = [row.temperature for row in rows if not math.isnan(row.temperature)]
    return statistics.median(known) if known else math.nan


class Candidates:
    """The used rows of a table, which values every setting has among them, and why not."""

    def __init__(self, table):
        self.rows = [row for row in table if row.used]
        for row in self.rows:
            row.serves = {}
        self.refused = {}
        self._values = {}

    def of_kind(self, *kinds):
        """Rows of some kinds that are still used."""
        return [row for row in self.rows if row.kind in kinds and row.used]

    def refuse(self, row, why):
        """Keep the first reason why a row does not serve."""
        self.refused.setdefault(row.path, why)

    def values(self, key, shape, camera):
        """Return the values of a setting among the frames that may be of one camera."""
        if (key, shape, camera) not in self._values:
            self._values[key, shape, camera] = {
                getattr(row, key)
                for row in self.rows
                if row.shape == shape
                and not row.library
                and (row.camera == camera or not (row.camera and camera))
            } - {None, ""}
        return self._values[key, shape, camera]

    def differs(self, row, group):
        """Return why ``row`` does not fit a group, in words; ``""`` if it does."""
        if row.mosaic:
            return self._differs_as_colour(row, group)
        if group.colour and not row.bayer and not row.master:
            return "BAYERPAT is missing: give --set BAYERPAT=RGGB (or the pattern of the camera)"
        setup = group.setup
        for key in ("binning", *HARD_KEYS):  # it explains a shape that differs as well
            name = HARD_KEYS[key]
            mine, wanted = getattr(row, key), setup[key]
            if mine == wanted or (mine in (None, "") and wanted in (None, "")):
                continue
            if mine in (None, "") or wanted in (None, ""):
                if not row.master and len(self.values(key, setup["shape"], setup["camera"])) > 1:
                    which = "its" if mine in (None, "") else "the lights'"
                    return f"{which} {name} is not in the header, and the night has several"
                continue
            if row.master and key == "row_order":
                continue  # kept by few programs, and then of what they wrote
            return f"{name} {_say(mine)} is not {_say(wanted)}"
        return self._turned(row, group)

    def _differs_as_colour(self, row, group):
        """As `differs`, of a master that was made of one colour of a mosaic."""
        size = tuple(2 * side for side in row.shape)
        if row.mosaic != group.colour:
            return f"is of the {row.mosaic} pixels, not of the {group.colour or 'lights'}"
        full = group.setup["shape"]
        fits = all(whole - twice in (0, 1) for whole, twice in zip(full, size, strict=True))
        return "" if fits else f"shape {_say(row.shape)} is not half of {_say(full)}"

    def _turned(self, row, group):
        """Why a flat was taken at another angle of the rotator than the lights, or ``""``."""
        if row.kind != "flat" or not group.lights:
            return ""
        apart = [angle_apart(light, row) for light in group.lights]
        if any(angle <= SAME_ANGLE or angle >= 180 - SAME_ANGLE for angle in apart):
            return ""  # which of them it is for is said by `Group.sides`
        return (
            f"{row.rotator[2]} = {row.rotator[0]:g} deg, the lights "
            f"{group.lights[0].rotator[0]:g}: take flats at the angle of the lights"
        )

    def groups(self, filters=None):
        """
        Group the lights of some filters, default all.

        Where a keyword is missing, the only value the night has is meant.
        """
        groups = {}
        lights = self.of_kind("light")
        names = panels(lights)
        for row in lights:
            lines = [pair for pair in _lines(row) if filters is None or pair[0] in filters]
            if not lines:
                row.ignore(f"filter {row.filter} is not asked for")
            setup = {key: self._setting(row, key) for key in HARD_KEYS}
            for line, colour in lines:
                identity = (names[row.path], line, colour, row.filter, *setup.values())
                group = Group(names[row.path], line, setup, beam=row.filter, colour=colour)
                groups.setdefault(identity, group).lights.append(row)
        return sorted(
            groups.values(), key=lambda g: (g.object, g.filter, repr(g.setup), g.lights[0].name)
        )

    def libraries(self, filters=None):
        """
        Group raw calibration frames that are there without lights, by settings.

        Each run of darks (by temperature) is a group, and each filter of flats, with the
        darks whose temperature is nearest.
        """
        sets = {}
        for row in self.of_kind("bias", "dark", "flat-dark", "flat"):
            if row.master:
                row.ignore("is a master already, and there is no light")
            elif row.kind == "flat" and filters is not None and row.filter not in filters:
                row.ignore(f"filter {row.filter} is not asked for")
            else:
                setup = {key: self._setting(row, key) for key in HARD_KEYS}
                sets.setdefault(repr(setup), (setup, []))[1].append(row)
        groups = []
        for setup, rows in sets.values():
            biases = [row for row in rows if row.kind == "bias"]
            lamps = [row for row in rows if row.kind == "flat"]
            runs = dark_runs([row for row in rows if row.kind.endswith("dark")]) or [[]]
            beams = {}
            for row in lamps:
                angle = row.rotator and round(row.rotator[0] / SAME_ANGLE)
                beams.setdefault((row.filter, angle), []).append(row)
            for (beam, _), flats in beams.items():
                group = _library(beam, setup, runs, biases, _nearest_run(runs, flats))
                group.flats = flats
                groups.append(group)
            served = [group.darks for group in groups]
            groups += [_library("", setup, runs, biases, run) for run in runs if run not in served]
            for group in groups:
                if group.setup is setup:
                    group.lamps = lamps
        return groups

    def _setting(self, row, key):
        value = getattr(row, key)
        if value in (None, ""):
            values = self.values(key, row.shape, row.camera)
            value = min(values) if len(values) == 1 else value
        return value

    def fitting(self, group, kinds):
        """Return the rows of ``kinds`` that fit the group; why others do not is kept."""
        rows = []
        for row in self.of_kind(*kinds):
            why = self.differs(row, group)
            if "flat" in kinds and not why and row.filter not in (group.beam, group.filter):
                why = f"filter {row.filter} has no light"
            elif "flat" in kinds and not why and row.filter != group.beam and not row.mosaic:
                why = f"filter {row.filter} is not {group.beam}"
            if why:
                self.refuse(row, why)
            else:
                rows.append(row)
        return rows

    def chosen(self, group, rows):
        """
        Return those of some fitting rows that are taken, of one origin.

        The night's own before those of a folder of calibration frames, raw frames before
        masters, unless only the later ones have the exposure time of the lights. Of masters
        of one kind and time, that of the nearest date.
        """
        times = [row.exposure for row in group.lights]

        def matches(some_rows):
            return any(close(row.exposure, t) for row in some_rows for t in times)

        origins = {}
        for row in rows:
            origins.setdefault((row.library, row.master), []).append(row)
        ordered = [origins[key] for key in sorted(origins)]
        if not ordered:
            return []
        best = ordered[0]
        if best[0].kind in ("dark", "flat-dark") and not matches(best):
            best = next((option for option in ordered if matches(option)), best)
        if best[0].master:
            best = _nearest_in_time(best, group.lights)
        for row in rows:
            if row not in best:
                self.refuse(row, "there are others that are taken before it")
        return best


def dark_runs(darks):
    """Darks by set point: those of one run drift; a gap parts two. What has none is one run."""
    runs = []
    for row in sorted(darks, key=lambda row: row.temperature):
        if runs and not row.temperature - runs[-1][-1].temperature > 1.0:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _nearest_run(runs, rows):
    wanted = median_temperature(rows)
    off = [abs(median_temperature(run) - wanted) for run in runs]
    return runs[min(range(len(runs)), key=lambda k: math.inf if math.isnan(off[k]) else off[k])]


def _library(beam, setup, runs, biases, darks):
    where = f" at {median_temperature(darks):.0f} C" if len(runs) > 1 else ""
    group = Group(f"calibration{where}", beam, setup, library=True, beam=beam)
    group.bias, group.darks = list(biases), list(darks)
    return group


def _nearest_in_time(masters, lights):
    """Of masters of one exposure time only that of the nearest date; a dark model is enough."""
    middle = statistics.median_low(sorted(row.date for row in lights))
    models = [row for row in masters if row.model]
    times = {}
    for row in models or masters:
        times.setdefault((row.kind, "" if models else round(row.exposure, 2)), []).append(row)

    def apart(row):
        return (not row.date, _days(row.date, middle), row.name)

    return [min(rows, key=apart) for rows in times.values()]


def _days(one, other):
    """How many days two dates lie apart: 1e9 where one is not known."""
    try:
        return abs((date.fromisoformat(one[:10]) - date.fromisoformat(other[:10])).days)
    except ValueError:
        return 1e9


def _lines(row):
    """``(name, pixels)`` of each image that becomes of a light."""
    if row.bayer and not row.colour:
        return [(line, pixels_of(line)) for line in lines_of(row.filter)]
    return [(row.filter, "")]


def _say(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else repr(value)


#: Lights whose centres lie farther apart than this part of the field are of two panels.
PART_OF_FIELD = 0.4
#: Where the field is not known: a step this many times the dithers, and at least so large [deg].
STEP, LEAST_STEP = 8.0, 40 / 3600


def panels(rows):
    """
    Return the name of the target of each light, by path: its object, and its panel.

    Parameters
    ----------
    rows : sequence of `~astro_narrowband.night.table.FrameRow`
        Lights.
    """
    names = {row.path: row.object for row in rows}
    for name in set(names.values()):
        pointed = [row for row in rows if row.object == name and row.pointing is not None]
        clusters = _clusters(pointed)
        if len(clusters) > 1:
            for k, cluster in enumerate(clusters, 1):
                names.update((row.path, f"{name} panel {k}") for row in cluster)
    return names


def _clusters(rows):
    """Lights that belong together, in the order of their paths; single linkage."""
    if len(rows) < 2:
        return [rows] if rows else []
    from scipy.cluster.hierarchy import fcluster, linkage

    pointings = np.radians([row.pointing for row in rows])
    apart = [angular_separation(*one, *other) for one, other in combinations(pointings, 2)]
    tree = linkage(np.degrees(apart), "single")
    labels = fcluster(tree, _limit(rows, tree[:, 2]), "distance").tolist()
    clusters = {}
    for row, label in zip(rows, labels, strict=True):
        clusters.setdefault(label, []).append(row)
    return list(clusters.values())


def _limit(rows, links):
    """How far apart two lights of one panel may be [deg]; ``links`` join all of them, rising."""
    fields = [row.pixel_scale * min(row.shape) for row in rows if not math.isnan(row.pixel_scale)]
    if fields:
        return PART_OF_FIELD * min(fields)
    # Dithers, and the steps between panels.
    for shorter, longer in pairwise(np.maximum(links, 5 / 3600)):
        if longer > max(STEP * shorter, LEAST_STEP):
            return math.sqrt(shorter * longer)
    return math.inf
