"""
One run of the pipeline: masters, calibrated lights, coadds, catalogues, and the record of them.

Every step asks first whether an earlier run has left its product, made of the
same inputs in the same way.
"""

import os
import re
import threading
from dataclasses import asdict
from pathlib import Path

from astropy.io import fits

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.files import ChangedError, FileError, set_card
from astro_narrowband._engine.frames import HeldFrame, Threads, as_ccd, usable_cores
from astro_narrowband._engine.heap import release_memory
from astro_narrowband._engine.text import safe_name, unique_name
from astro_narrowband.calibration import CalibratedFrame
from astro_narrowband.coaddition import coadd, measure_frame
from astro_narrowband.exceptions import InputError, NarrowbandError, ProductError
from astro_narrowband.night.products import read_record, software
from astro_narrowband.night.record import frames_table, group_record, read_frames, with_frames
from astro_narrowband.night.report import Pictures, can_render, render_report
from astro_narrowband.night.run._align import register
from astro_narrowband.night.run._camera import decide_for, gain_alone
from astro_narrowband.night.run._coadded import catalogue, grid_of, picture, place
from astro_narrowband.night.run._light import Light
from astro_narrowband.night.run._masters import Masters
from astro_narrowband.night.run._panels import Panels, snapshot
from astro_narrowband.night.run._price import dark_costs
from astro_narrowband.night.run._ready import MeasuredFrame
from astro_narrowband.resampling import ResampledFrame

__all__ = ["NOTHING", "PARTIAL", "Night", "dark_costs", "decide_for", "try_alone"]

#: Status of a night of which nothing, or not everything, could be made.
NOTHING, PARTIAL = 3, 4
#: What is made of each group, and what it is called.
PRODUCTS = {
    "coadd": "coadd-{}.fits",
    "catalog": "catalog-{}.ecsv",
    "growth": "growth-{}.ecsv",
    "picture": "coadd-{}.png",
}
#: So many of the frames that are out for one cause are named in a message.
NAMED = 3
#: Reasons that may be gone the next time, although no file is another one.
_PASSING = re.compile("cannot be (read|listed|expanded)")
#: Longest name from headers in the name of a product, which may have 80 characters.
LONGEST = 62


def try_alone(group, settings):
    """Open a light that is combined as it is; return what is to be said, or raise."""
    light = group.lights[0]
    gain, sentences = gain_alone(group, settings)
    MeasuredFrame(light.open(group.colour), light.exposure, gain)
    return sentences


class Night:
    """One run of the pipeline: the products made so far, and the record of them."""

    def __init__(self, table, settings, products, messages, executor, progress, n_groups):
        self.table, self.settings, self.products = table, settings, products
        self.messages, self.executor, self.progress = messages, executor, progress
        self.workers = settings.workers or usable_cores()
        self.names, self.given, self.out, self.placed = set(), {}, {}, {}
        self.targets, self.lost, self.is_new, self.since = [], set(), True, 0
        self.held, self.drawings = threading.local(), []
        self.pictures = Pictures(products.folder, n_groups) if can_render() else None
        self.record = {
            "software": software(),
            "settings": asdict(settings),
            "status": 0,
            "detector": {},
            "masters": [],
            "groups": [],
            "pictures": [],
        }
        self.masters, self.panels = Masters(self), Panels()

    def claim(self, targets):
        """Refuse to go on where a file that no run made has the name of a product."""
        names = ["report.html", "night.json", "frames.ecsv"]
        for target in targets:
            if target[0].library:
                continue
            names.append(f"catalog-{self.merged_name(target)}.ecsv")
            names += [f"{self.colour_name(target)}{end}" for end in (".png", "-*.jpg")]
            for name in self.names_of(target).values():
                names += [form.format(name) for form in PRODUCTS.values()]
            if self.settings.keep_calibrated:
                names += [self.calibrated_name(row) for group in target for row in group.lights]
        self.products.claim(names)

    def names_of(self, target):
        """Return what the products of each group of a target are called."""
        return {g: self.name(f"{_short(g.object, 40)}-{_short(g.filter, 20)}", g) for g in target}

    def merged_name(self, target):
        """Return what the catalogue of all filters of a target is called."""
        return self.name(safe_name(target[0].object), target[0])

    def colour_name(self, target):
        """Return what the pictures of all filters of a target are called."""
        return self.name(f"colour-{_short(target[0].object, 40)}", target[0])

    def calibrated_name(self, row):
        """Return the name of the product that a calibrated light is."""
        return f"calibrated/{self.name(row.path.stem, row.path)}.fits"

    def reduce(self, target):
        """Reduce one target; again without a file that is damaged, or changes on the way."""
        if target not in self.targets:
            self.targets.append(target)
        while True:
            restore = snapshot(target)
            try:
                self.reduce_once(target)
            except FileError as error:
                restore()
                self.lose(error)
            else:
                return

    def changed(self, target):
        """Return what says that a file of a target changed since it was first looked at."""
        paths = [row.path for g in target if not g.failed for row in g.rows]
        return next(self.products.inputs.changed(paths), None)

    def lose(self, error):
        """Go on without a file: a calibration frame that changed stops the groups it serves."""
        path = os.path.abspath(error.path)
        pairs = [
            (group, row)
            for target in self.targets
            for group in target
            if not group.failed
            for row in group.rows
            if os.path.abspath(row.path) == path
        ]
        if not pairs:  # no input, but a product that was read again
            raise InputError(str(error)) from error
        self.lost.add(path)
        for group, row in pairs:
            if row in group.lights or not isinstance(error, ChangedError):
                self.leave_out(row, error.what, group)
            else:
                group.fail(f"{row.name}: {error.what}")
                self.messages.say(f"{group.label}: not reduced: {group.reason}", "error")
            if not group.lights and not group.failed:
                group.fail(f"none of its lights can be used: {row.name}: {error.what}")
        failed = {g.label for target in self.targets for g in target if g.failed}
        self.masters.forget(failed)

    def reduce_once(self, target):
        """Reduce every filter of one object on one detector, on one grid."""
        if target[0].library:
            self.make_library(target)
            return
        names = self.names_of(target)
        self.since = len(self.messages.found)
        with Threads(self.workers) as pool, Threads(1) as writer:
            try:
                coadds = [self.products.path(f"coadd-{name}.fits") for name in names.values()]
                self.is_new = not all(path.exists() for path in coadds)
                self.draw(writer, Pictures.load)
                lights, keys = self.prepare(target, names, pool)
                # The grid, and so every coadd, depends on all lights of the target.
                paths = [light.row.path for light in lights]
                key = self.products.key(paths + keys, product="coadds")
                there = {g: self.products.have(f"coadd-{names[g]}.fits", key) for g in target}
                reference = ""
                if not all(there[g] or g.failed for g in target):
                    lights = self.measured(lights, pool)
                    lights, reference = self.attempt(target, register, self, lights) or ([], "")
                    target = [g for g in target if g.lights or g.lost or g.failed]
                for master in self.record["masters"]:
                    self.draw(writer, Pictures.master, master)
                made_of = {g: [light for light in lights if light.group is g] for g in target}
                tables = self.sum_up(made_of, names, there, reference, key, writer)
                made = {g: names[g] for g in target if tables[g] is not None}
                catalogue(self, target, made, key)
                release_memory()
                picture(self, target, made, key)
                if error := self.changed(target):
                    raise error
            finally:
                self.say_left_out()
                for waiting in (pool, writer):
                    waiting.shutdown(cancel_futures=True)
        for group in target:
            self.describe(group, names[group], tables[group])
        for panel in self.panels.take():
            self.reduce(panel)

    def sum_up(self, made_of, names, there, reference, key, writer):
        """Coadd the lights of each group if that was not done; return the tables of its frames."""
        tables, writing = {}, None
        for group, lights in self.progress(
            made_of.items(), total=len(made_of), description="coadds"
        ):
            made, name = None, f"coadd-{names[group]}.fits"
            if there[group]:
                frames = self.attempt([group], self.use_coadd, group, name, lights)
            else:
                step = self.attempt([group], self.make_coadd, group, lights, reference)
                made, frames = step or (None, None)
                del step
            if writing is not None:
                writing.result()  # no more than one waits to be written
            if made is not None:
                lost = [(row.name, row.serves[group.label]) for row in group.lost]
                lost += self.panels.moved.get(group, [])
                writing = writer.submit(self.write_coadd, name, made, frames, lost, key)
            if frames is not None:
                self.draw(writer, Pictures.coadd, name, group.filter)
                self.draw(writer, Pictures.light, name, group.filter, lights, frames)
            del made  # its planes go when they are written: memory does not grow
            tables[group] = frames
        if writing is not None:
            writing.result()
        return tables

    def make_library(self, target):
        """Make the masters of calibration frames that are there without lights."""
        for group in target:
            self.attempt([group], self.masters.of, group, group.flats)
            if group.failed:
                self.describe(group, "", None)
        self.say_left_out()
        if error := self.changed(target):
            raise error

    def prepare(self, target, names, pool):
        """
        Make the masters of a target; return its lights, calibrated while they are read, and keys.

        Where a coadd is certainly to be made, because it is not there, its lights are
        measured while the masters of the next filter are made.
        """
        lights, keys = [], []
        for group in self.progress(target, total=len(target), description="masters"):
            made = self.attempt([group], self.calibrated, group)
            if made is not None:
                lights += made[0]
                keys += made[1]
                if not self.products.path(f"coadd-{names[group]}.fits").exists():
                    self.start_measuring(made[0], pool)
        return lights, keys

    def draw(self, writer, picture, *what):
        """
        Draw a picture of the page, when ``writer`` has time, while other work goes on.

        What fails is drawn again with the page, which says so. Where all coadds are there the
        page may be as well: nothing is drawn before that is known.
        """
        if self.pictures is not None and self.is_new:
            writer.submit(picture, self.pictures, *what)
        elif self.pictures is not None:
            self.drawings.append((picture, self.pictures, *what))

    def attempt(self, groups, step, *args):
        """Do a step for some groups; if it fails they do, with the reason, and the others go on."""
        groups = [group for group in groups if not group.failed]
        if not groups:
            return None
        try:
            return step(*args)
        except (ProductError, FileError):
            raise
        except NarrowbandError as error:
            for group in groups:
                group.fail(str(error))
                self.messages.say(f"{group.label}: not reduced: {error}", "error")
            return None
        finally:
            release_memory()

    def calibrated(self, group):
        """Return the lights of a group, calibrated while they are read, and their masters' keys."""
        lights, keys = [], []
        gain, sentences = gain_alone(group, self.settings) if group.alone else (None, ())
        for sentence in sentences:
            self.messages.say(f"{group.label}: {sentence}")
        for rows, flats in group.sides():
            if not group.alone:
                recipe, more = self.masters.recipe(group, flats)
                keys += more
            for row in rows:
                try:
                    frame = row.open(group.colour)
                    if group.alone:
                        frame = MeasuredFrame(frame, row.exposure, gain)
                    else:
                        frame = CalibratedFrame(frame, recipe)
                    lights.append(Light(row, group, frame))
                except NarrowbandError as error:
                    self.leave_out(row, str(error), group)
        if not lights:
            raise InputError("none of its lights can be calibrated")
        return lights, keys

    def name(self, title, owner):
        """Return the name of a product of ``owner``, which no other one of this run has."""
        if (title, owner) not in self.given:
            self.given[title, owner] = unique_name(title[:LONGEST], self.names)
        return self.given[title, owner]

    # ------------------------------------------------------------------ lights

    def measure(self, light, recipe):
        """
        Find the stars of a light, and what it is worth; return why it cannot be used, or "".

        ``recipe`` has the masters in memory, for all lights of a group.
        """
        try:
            # Calibrated once for both, in the memory of the light before.
            spare = getattr(self.held, "frame", None)
            frame = light.frame.with_held_masters(recipe)
            held = self.held.frame = HeldFrame(frame, spare=spare, variance=False)
            light.stars = detect_stars(held, gain=frame.exposure)
            light.statistics = measure_frame(frame, stars=light.stars, held=held)
        except FileError:
            raise
        except NarrowbandError as error:
            return str(error)
        return ""

    def start_measuring(self, lights, pool):
        """Measure the lights of a group in other threads; their masters go with the last one."""
        held = {}
        for light in lights:
            recipe = getattr(light.frame, "recipe", None)
            if recipe is not None and id(recipe) not in held:
                held[id(recipe)] = recipe.hold()
            light.measuring = pool.submit(self.measure, light, held.get(id(recipe)))

    def measured(self, lights, pool):
        """Return the lights that can be read, measured."""
        for group in dict.fromkeys(light.group for light in lights if not light.measuring):
            self.start_measuring([light for light in lights if light.group is group], pool)
        for light in self.progress(lights, total=len(lights), description="stars"):
            reason = light.measuring.result()
            if reason:
                self.leave_out(light.row, reason, light.group)
        pool.shutdown()  # and what its threads hold is free
        release_memory()
        return [light for light in lights if light.statistics is not None]

    def make_coadd(self, group, lights, reference):
        """Coadd the lights of a group; return the coadd and the table of its frames."""
        if not lights:
            raise InputError("none of its lights can be aligned")
        settings = self.settings
        made = coadd(
            [ResampledFrame(light.frame, light.alignment, target=light.grid) for light in lights],
            weights=settings.weights,
            reject=settings.reject,
            statistics=[light.statistics for light in lights],
            executor=self.executor,
            workers=self.workers,
            **({} if settings.memory is None else {"memory": settings.memory}),
        )
        for keyword, text in (
            ("OBJECT", group.object),
            ("FILTER", group.filter),
            ("REFFRAME", Path(reference).name),
            ("REGISTER", settings.registration),
        ):
            set_card(made.ccd.header, keyword, text)
        if group.without:
            set_card(made.ccd.header, "WITHOUT", " ".join(group.without), "not calibrated with")
        if settings.catalogue is not None:
            place(self, made.ccd, group)
        if settings.keep_calibrated:
            self.keep(lights)
        for light, reason in zip(lights, made.frames["reason"], strict=True):
            if reason:  # `coadd` has said so
                group.drop(light.row, str(reason))
        return made, frames_table(lights, made, reference)

    def keep(self, lights):
        """Write lights as they were calibrated."""
        for light in lights:
            self.products.write_fits(self.calibrated_name(light.row), as_ccd(light.frame))

    def write_coadd(self, name, made, frames, lost, key):
        """Write a coadd with the table of its frames."""
        hdul = with_frames(made.to_hdul(), frames, lost)
        self.products.write_fits(name, hdul, key, self.said())
        release_memory()

    def use_coadd(self, group, name, lights):
        """Return the frames of a coadd that an earlier run made of the same lights."""
        path = self.products.path(name)
        frames, lost = read_frames(path)
        reasons = dict(lost)
        for row in [row for row in group.lights if row.name in reasons]:
            if panel := self.panels.moved_before(reasons[row.name]):
                self.panels.move(row, group, panel)
            else:
                self.leave_out(row, reasons[row.name], group)
        header = fits.getheader(path)
        if "WCSSTARS" in header:
            self.placed.setdefault(grid_of(group), header)
        if self.settings.keep_calibrated:
            used = set(frames["path"])
            self.keep([light for light in lights if light.row.name in used])
        return frames

    def describe(self, group, name, frames):
        """Put a group into the record, with the frames of its coadd, or None."""
        groups = self.record["groups"]
        groups[:] = [entry for entry in groups if entry["label"] != group.label]
        if frames is None:
            for form in PRODUCTS.values():
                self.products.discard(form.format(name))
            groups.append(group_record(group))
            return
        files = {what: form.format(name) for what, form in PRODUCTS.items()}
        products = {what: file for what, file in files.items() if file in self.products.digests}
        coadd = self.products.path(files["coadd"])
        groups.append(group_record(group, frames=frames, coadd=coadd, products=products))

    def leave_out(self, row, reason, group):
        """Go on without a frame of a group, and say so."""
        reason = reason.removeprefix(f"{row.path.name}: ")
        group.drop(row, reason)
        # Frames that are out for one cause are said in one line.
        cause = re.sub(r"[\d.]+", "#", re.split(r"[:;]\s|\s\(", reason)[0])
        self.out.setdefault(cause, []).append((row.name, reason))

    def said(self):
        """Return text and level of the warnings about what is made of the present target."""
        said = [tuple(message.values()) for message in self.messages.found[self.since :]]
        return [(text, level) for level, text in said if level == "warning"]  # or it is tried again

    def say_left_out(self):
        """Say which frames were left out since this was asked last: a line for each cause."""
        for rows in self.out.values():
            reason, more = rows[0][1], len(rows) - NAMED
            names = ", ".join(name for name, _ in rows[:NAMED]) + f" and {more} more" * (more > 0)
            self.messages.say(f"{names}: left out: {reason}")
        self.out = {}

    # ------------------------------------------------------------------ the end

    def finish(self, inputs, key):
        """
        Write the table of frames, the record and the report; return the record.

        ``key`` is its provenance, by which a run that has nothing to do knows it again.
        """
        while again := [target for target in self.targets if self.changed(target)]:
            for target in again:
                self.reduce(target)
        order = [group.label for target in self.targets for group in target]
        self.record["groups"].sort(key=lambda entry: order.index(entry["label"]))
        self.products.write_table("frames.ecsv", self.table.table)
        record = self.record
        states = {group.failed for target in self.targets for group in target}
        if True in states:
            record["status"] = PARTIAL if False in states else NOTHING
        elif self.settings.strict and self.messages.found:
            record["status"] = NOTHING
        record["files"] = self.table.counts
        record["messages"] = self.messages.found
        record["inputs"] = {
            path: None if os.path.abspath(path) in self.lost else digest
            for path, digest in inputs.digests().items()
        }
        if self.pictures is not None:
            # What the page shows is in the record, and in products that it has the digests of.
            made_of = record | {"products": self.products.digests}
            of_page = self.products.key([], product="page", record=made_of)
            if not self.products.have("report.html", of_page):
                with Threads(1) as writer:
                    for drawing in self.drawings:
                        writer.submit(*drawing)
                page = render_report(self.products.folder, made_of, pictures=self.pictures)
                self.products.write_text("report.html", page, of_page)
        else:
            self.messages.say("no report.html: pip install 'astro-narrowband[report]' for it")
        record["products"] = dict(sorted(self.products.digests.items()))
        # What failed may not fail the next time, nor what the system could not read.
        lost = [row.reason for row in self.table if row.verdict == "left out"]
        again = True in states or any(map(_PASSING.search, lost))
        self.products.write_json("night.json", record, None if again else key)
        return read_record(self.products.path("night.json"))


def _short(text, longest):
    return safe_name(safe_name(text)[:longest])
