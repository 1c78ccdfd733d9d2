"""
A night from raw frames to coadds, catalogues and a report: the order of the steps.

There is no arithmetic here. Every step is a public function of another module,
and may be used without this one.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._validate import choice
from astro_narrowband.bands import FitsFrame, as_ccd, usable_cores
from astro_narrowband.calibrate import CalibratedFrame, Recipe
from astro_narrowband.coadd import coadd
from astro_narrowband.darks import DarkModel
from astro_narrowband.detect import detect_stars
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import (
    InputError,
    NarrowbandError,
    NarrowbandWarning,
    ProductError,
)
from astro_narrowband.files import safe_name, unique_name
from astro_narrowband.filters import canonical_filter
from astro_narrowband.frames import FrameRow, FrameTable, printable
from astro_narrowband.masters import check_flats, master_bias, master_flat
from astro_narrowband.plan import Group, make_plan
from astro_narrowband.products import Inputs, Products, software
from astro_narrowband.record import frames_table, group_record, read_frames, with_frames
from astro_narrowband.register import Alignment, align, choose_reference
from astro_narrowband.resample import ResampledFrame
from astro_narrowband.weights import FrameStatistics, measure_frame

__all__ = ["Settings", "inspection", "reduce_night"]

#: Status of a night of which nothing, or not everything, could be made.
NOTHING, PARTIAL = 3, 4
#: Settings that say how the work is done and change no pixel.
_HOW = ("filters", "keep_calibrated", "workers", "memory", "scheduler", "resume", "strict")


@dataclass(frozen=True)
class Settings:
    """
    What a user may choose about a reduction; the options of ``astro-narrowband reduce``.

    Attributes
    ----------
    filters : sequence of str or None
        Only these filters.
    gain, read_noise, saturation : float or None
        [electron/adu], [electron], [adu]; default is what headers say, or what is
        measured from pairs of flats and biases.
    registration : {"stars", "astroalign", "centroid", "none"}
    stars : sequence of (x, y)
        Stars to align on in the reference frame, for ``"centroid"``.
    weights : {"background", "exptime", "equal", "point_source"}
    reject : bool
        Reject outliers.
    set_keywords : sequence of (keyword, value)
        For frames that lack them.
    max_extrapolation : float
        Longest light over the longest dark.
    max_pixels : int or None
        The largest image that is opened.
    keep_calibrated : bool
    workers : int or None
    memory : float or None
        Bytes that the bands under way may take together.
    scheduler : str or None
        Address of a Dask scheduler, or ``"local"``.
    resume : bool
        Use products of an earlier run again where inputs and settings agree.
    strict : bool
        A warning makes the status 3.
    """

    filters: tuple | None = None
    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    registration: str = "stars"
    stars: tuple = ()
    weights: str = "background"
    reject: bool = True
    set_keywords: tuple = ()
    max_extrapolation: float = 3.0
    max_pixels: int | None = None
    keep_calibrated: bool = False
    workers: int | None = None
    memory: float | None = None
    scheduler: str | None = None
    resume: bool = True
    strict: bool = False

    def of_pixels(self):
        """Return the settings that change a result."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}


class Master(NamedTuple):
    """A master, the name of its product, and what that was made of."""

    value: object
    name: str
    key: object


@dataclass(eq=False)
class Light:
    """A light on its way: what is known of it grows from step to step."""

    row: FrameRow
    group: Group
    frame: CalibratedFrame
    stars: QTable | None = None
    statistics: FrameStatistics | None = None
    alignment: Alignment | None = None


def inspection(table, *, filters=None):
    """
    Return what `reduce_night` would do with the files of a table, as lines of text.

    Parameters
    ----------
    table : `~astro_narrowband.frames.FrameTable`
    filters : sequence of str, optional

    Returns
    -------
    list of str
        The plan with every problem, and each file with what it is taken for.
    """
    plan = make_plan(table, filters=_canonical(filters))
    counts = ", ".join(f"{n} {what}" for what, n in table.counts.items())
    return [*table.lines(), "", f"{counts}", "", *plan.lines()]


def reduce_night(nights, output, *, settings=None, progress=None):
    """
    Reduce one or more nights.

    Parameters
    ----------
    nights : path-like or sequence of path-like
        Folders of raw frames; only read.
    output : path-like
        Folder of the products.
    settings : Settings, optional
    progress : callable, optional
        ``progress(iterable, total=, description=)`` returns the iterable, and may
        show how far it is.

    Returns
    -------
    dict
        The record that is written to ``night.json``; its ``"status"`` is 0 (done),
        3 (nothing could be made, or ``strict`` and a warning) or 4 (a filter could
        not be made, the others are there).

    Raises
    ------
    InputError
        If there is no folder, or no light in it that could be reduced.
    ProductError
        If a product cannot be written.
    """
    settings = settings or Settings()
    choice(settings.registration, ("stars", "astroalign", "centroid", "none"), "registration")
    with ExitStack() as stack:
        messages = stack.enter_context(Messages())
        table = FrameTable.from_paths(
            nights,
            set_keywords=dict(settings.set_keywords),
            max_pixels=settings.max_pixels,
            ignore=[output],
        )
        plan = make_plan(table, filters=_canonical(settings.filters))
        for problem in plan.problems:
            messages.say(str(problem), problem.level)
        if not plan.groups:
            raise InputError(_no_lights(table, nights))
        used = [row.path for row in table if row.verdict == "used"]
        workers = settings.workers or usable_cores()
        inputs = stack.enter_context(Inputs(used, workers=workers))
        products = stack.enter_context(
            Products(output, settings=settings.of_pixels(), inputs=inputs, resume=settings.resume)
        )
        executor = stack.enter_context(_executor(settings))
        night = Night(table, settings, products, messages, executor, progress or _silent)
        for target in _targets(plan):
            night.reduce(target)
        return night.finish(inputs)


class Night:
    """One run of the pipeline: the products made so far, and the record of them."""

    def __init__(self, table, settings, products, messages, executor, progress):
        self.table, self.settings, self.products = table, settings, products
        self.messages, self.executor, self.progress = messages, executor, progress
        self.workers = settings.workers or usable_cores()
        self.made = {}
        self.names = set()
        self.record = {
            "software": software(),
            "settings": asdict(settings),
            "status": 0,
            "detector": {},
            "masters": {"bias": None, "dark": None, "flats": {}},
            "groups": [],
        }

    def reduce(self, target):
        """Reduce one target: every filter of one object on one detector, on one grid."""
        lights, keys = [], []
        for group in self.progress(target, total=len(target), description="masters"):
            made = self.attempt(group, self.calibrated)
            if made is not None:
                lights += made[0]
                keys += made[1]
        # The grid, and so every coadd, depends on all lights of the target.
        key = self.products.key([light.row.path for light in lights] + keys, product="coadds")
        names = {group: self.name(f"{safe_name(group.object)}-{safe_name(group.filter)}")
                 for group in target}  # fmt: skip
        there = {g: self.products.have(f"coadd-{names[g]}.fits", key) for g in target}
        reference = ""
        if not all(there.values()):
            self.measure(lights)
            lights, reference = self.register(lights)
        coadds = {}
        for group in self.progress(target, total=len(target), description="coadds"):
            mine = [light for light in lights if light.group is group]
            make = self.read_coadd if there[group] else self.make_coadd
            coadds[group] = self.attempt(group, make, names[group], mine, reference, key)
        self.catalogue(names, coadds, key)
        for group in target:
            self.describe(group, names[group], coadds[group])

    def attempt(self, group, step, *args):
        """Do a step for a group; if it fails the reason is kept, and the others go on."""
        if group.failed:
            return None
        try:
            return step(group, *args)
        except ProductError:
            raise
        except NarrowbandError as error:
            group.reason = str(error)
            self.messages.say(f"{group.label}: not reduced: {error}", "error")
            return None

    # ------------------------------------------------------------------ masters

    def calibrated(self, group):
        """Return the lights of a group, calibrated while they are read, and their masters' keys."""
        recipe, keys = self.recipe(group)
        lights = []
        for row in group.lights:
            try:
                lights.append(Light(row, group, CalibratedFrame(row.open(), recipe)))
            except NarrowbandError as error:
                self.leave_out(row, str(error))
        if not lights:
            raise InputError("none of its lights can be calibrated")
        return lights, keys

    def recipe(self, group):
        """Return what calibrates a group, and the keys of its masters."""
        detector = self.detector(group)
        bias = self.bias(group, detector) if group.bias else None
        dark = flat = None
        if group.darks:
            dark = self.dark(group, detector, bias)
        elif bias is not None:
            dark = bias._replace(value=DarkModel.from_masters(bias=bias.value))
        if group.flats:
            flat = self.flat(group, detector, dark)
        recipe = Recipe(
            detector,
            dark=None if dark is None else dark.value,
            flat=None if flat is None else flat.value,
            max_extrapolation=self.settings.max_extrapolation,
        )
        masters = [master for master in (bias, dark, flat) if master is not None]
        return recipe, [(master.name, master.key) for master in masters]

    def detector(self, group):
        """Return gain, read noise and saturation of a group's camera."""
        identity = ("detector", *(row.path for row in (*group.bias, *group.flats)))
        if identity not in self.made:
            settings = self.settings
            self.made[identity] = decide_detector(
                group.lights[0].open().header,
                gain=_quantity(settings.gain, u.electron / u.adu),
                read_noise=_quantity(settings.read_noise, u.electron),
                saturation=_quantity(settings.saturation, u.adu),
                flats=[row.open() for row in group.flats],
                biases=[row.open() for row in group.bias],
            )
        self.record["detector"][group.label] = asdict(self.made[identity])
        return self.made[identity]

    def bias(self, group, detector):
        """Return the master bias of a group."""

        def make(frames):
            return master_bias(frames, detector=detector, workers=self.workers)

        master = self.master("bias", group.bias, make, _read_ccd)
        header = master.value.header
        self.record["masters"]["bias"] = {
            "path": master.name, "n_frames": header["NCOMBINE"], "level": header["BIASLEV"],
            "noise": header["RDNOISEA"],
        }  # fmt: skip
        return master

    def dark(self, group, detector, bias):
        """Return the dark model of a group."""

        def make(frames):
            return DarkModel.fit(
                frames, bias=bias and bias.value, detector=detector, workers=self.workers
            )

        master = self.master(
            "dark", group.darks, make, DarkModel.read, needs=[bias], depends=asdict(detector)
        )
        model = master.value
        self.record["masters"]["dark"] = {
            "path": master.name, "model": model.model, "exposures": model.exposures,
            "n_frames": model.n_frames, "temperatures": model.temperatures,
            "notes": list(model.notes),
        }  # fmt: skip
        return master

    def flat(self, group, detector, dark):
        """Return the master flat of a group; flats that are of no use are left out by name."""
        if dark is None:
            raise InputError("its flats have neither bias nor dark to lose: add bias frames")
        limits = {
            "dark": dark.value,
            "detector": detector,
            "max_extrapolation": self.settings.max_extrapolation,
        }
        rows, left_out = [], []
        checks = check_flats([row.open() for row in group.flats], **limits)
        for row, check in zip(group.flats, checks, strict=True):
            if check.reason:
                self.leave_out(row, check.reason)
                left_out.append(row.name)
            else:
                rows.append(row)
        if not rows:
            raise InputError("none of its flats can be used")

        def make(frames):
            return master_flat(frames, workers=self.workers, **limits)

        master = self.master(
            f"flat-{safe_name(group.filter)}", rows, make, _read_ccd, needs=[dark],
            depends=asdict(detector),
        )  # fmt: skip
        self.record["masters"]["flats"][group.filter] = {
            "path": master.name, "n_frames": len(rows), "left_out": left_out,
            "exposure": [row.exposure for row in rows],
        }  # fmt: skip
        return master

    def master(self, title, rows, make, read, *, needs=(), depends=None):
        """Return a `Master`: one that was made for another group, read again, or made now."""
        identity = (title, *(row.path for row in rows))
        if identity not in self.made:
            name = f"masters/{self.name(title)}.fits"
            needed = [(master.name, master.key) for master in needs if master is not None]
            key = self.products.key(
                [row.path for row in rows] + needed, product=title, depends=depends
            )
            if self.products.have(name, key):
                value = read(self.products.path(name))
            else:
                value = make([row.open() for row in rows])
                image = value.to_hdul() if hasattr(value, "to_hdul") else value
                self.products.write_fits(name, image, key)
            self.made[identity] = Master(value, name, key)
        return self.made[identity]

    def name(self, title):
        """Return a name for a product that no other one of this run has."""
        return unique_name(title, self.names)

    # ------------------------------------------------------------------ lights

    def measure(self, lights):
        """Find the stars of every light, and what it is worth."""

        def work(light):
            light.stars = detect_stars(light.frame)
            light.statistics = measure_frame(light.frame, stars=light.stars)

        with ThreadPoolExecutor(self.workers) as pool:
            done = pool.map(work, lights)
            for _ in self.progress(done, total=len(lights), description="stars"):
                pass

    def register(self, lights):
        """Return the lights that can be aligned with the best of them, and its name."""
        if not lights or self.settings.registration == "none":
            for light in lights:
                light.alignment = Alignment.identity("none")
            return lights, ""
        stars = [light.stars for light in lights]
        reference = choose_reference(stars)
        kept = []
        for k, light in enumerate(lights):
            try:
                light.alignment = (
                    Alignment.identity() if k == reference else align(light.stars, stars[reference])
                )
                kept.append(light)
            except NarrowbandError as error:
                self.leave_out(light.row, str(error))
        return kept, lights[reference].row.name

    def make_coadd(self, group, name, lights, reference, key):
        """Coadd the lights of a group and write the product."""
        if not lights:
            raise InputError("none of its lights can be aligned")
        settings = self.settings
        made = coadd(
            [ResampledFrame(light.frame, light.alignment) for light in lights],
            weights=settings.weights,
            reject=settings.reject,
            statistics=[light.statistics for light in lights],
            executor=self.executor,
            workers=self.workers,
            **({} if settings.memory is None else {"memory": settings.memory}),
        )
        made.ccd.header["REFFRAME"] = Path(reference).name
        frames = frames_table(lights, made)
        self.products.write_fits(f"coadd-{name}.fits", with_frames(made.to_hdul(), frames), key)
        if settings.keep_calibrated:
            for light in lights:
                product = f"calibrated/{self.name(light.row.path.stem)}.fits"
                self.products.write_fits(product, as_ccd(light.frame))
        return made.ccd, frames

    def read_coadd(self, group, name, lights, reference, key):  # noqa: ARG002
        """Read the coadd that an earlier run made of the same things."""
        path = self.products.path(f"coadd-{name}.fits")
        return _read_ccd(path), read_frames(path)

    def catalogue(self, names, coadds, key):
        """Measure the sources of a target in every filter."""

    def describe(self, group, name, made):
        """Put a group into the record."""
        if made is None:
            self.record["groups"].append(group_record(group, left_out=group.lights))
            return
        ccd, frames = made
        products = {
            what: file
            for what, file in {
                "coadd": f"coadd-{name}.fits",
                "catalog": f"catalog-{name}.ecsv",
                "growth": f"growth-{name}.ecsv",
            }.items()
            if file in self.products.digests
        }
        reference = str(ccd.header.get("REFFRAME", ""))
        self.record["groups"].append(
            group_record(
                group,
                frames=frames,
                ccd=ccd,
                products=products,
                reference=reference,
                left_out=group.lights,
            )
        )

    def leave_out(self, row, reason):
        """Leave a file out of the rest of the run, and say so."""
        self.table.leave_out(row.path, reason)
        self.messages.say(f"{row.name}: left out: {reason}")

    # ------------------------------------------------------------------ the end

    def finish(self, inputs):
        """Write the table of frames, the record and the report; return the record."""
        self.products.write_table("frames.ecsv", self.table.table)
        record = self.record
        states = {group["status"] for group in record["groups"]}
        if "failed" in states:
            record["status"] = PARTIAL if "done" in states else NOTHING
        elif self.settings.strict and self.messages.found:
            record["status"] = NOTHING
        record["files"] = self.table.counts
        record["messages"] = self.messages.found
        record["inputs"] = inputs.digests()
        record["products"] = dict(self.products.digests)
        self.products.write_json("night.json", record)
        return record


# --------------------------------------------------------------------------- helpers


class Messages:
    """
    What there is to say about a run: each thing once, shown and kept.

    A context manager that listens to the warnings of this package as well.
    """

    def __init__(self):
        self.found = []
        self._seen = set()

    def __enter__(self):
        self._context = warnings.catch_warnings()
        self._context.__enter__()
        warnings.simplefilter("always", NarrowbandWarning)
        self._show = warnings.showwarning
        warnings.showwarning = self._listen
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def say(self, text, level="warning"):
        """Say something that is no warning of a library function."""
        if text not in self._seen:
            self._seen.add(text)
            self.found.append({"level": level, "text": text})
            self._show(NarrowbandWarning(text), NarrowbandWarning, "pipeline", 0)

    def _listen(self, message, category, filename, lineno, file=None, line=None):
        if issubclass(category, NarrowbandWarning):
            self.say(str(message))
        else:
            self._show(message, category, filename, lineno, file, line)


def _quantity(value, unit):
    return None if value is None else value * unit


def _read_ccd(path):
    return as_ccd(FitsFrame(path))


def _targets(plan):
    """Groups of one object on one detector: they share a grid."""
    targets = {}
    for group in plan.groups:
        targets.setdefault((group.object, repr(group.setup)), []).append(group)
    return list(targets.values())


def _canonical(filters):
    return None if filters is None else [canonical_filter(name) for name in filters]


def _no_lights(table, nights):
    counts = ", ".join(f"{n} {what}" for what, n in table.counts.items())
    where = ", ".join(printable(night) for night in np.atleast_1d(nights))
    return (
        f"{where}: there is no light to reduce ({counts}): `astro-narrowband inspect` says what "
        "each file is taken for; --set IMAGETYP=light serves where neither header nor name says it"
    )


@contextmanager
def _executor(settings):
    yield None


def _silent(iterable, *, total, description):  # noqa: ARG001
    return iterable
