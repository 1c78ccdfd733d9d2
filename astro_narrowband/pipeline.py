"""
A night from raw frames to coadds, catalogues and a report: the order of the steps.

There is no arithmetic here. Every step is a public function of another module,
and may be used without this one.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData

from astro_narrowband._validate import choice
from astro_narrowband.bands import FitsFrame, as_ccd, usable_cores
from astro_narrowband.calibrate import CalibratedFrame, Recipe
from astro_narrowband.coadd import Coadd, coadd
from astro_narrowband.darks import DarkModel
from astro_narrowband.detect import detect_stars
from astro_narrowband.detector import Detector, decide_detector
from astro_narrowband.exceptions import (
    InputError,
    NarrowbandError,
    NarrowbandWarning,
    ProductError,
)
from astro_narrowband.files import safe_name, unique_name
from astro_narrowband.filters import canonical_filter
from astro_narrowband.frames import FrameRow, FrameTable
from astro_narrowband.masters import check_flats, master_bias, master_flat
from astro_narrowband.plan import Group, make_plan
from astro_narrowband.products import Inputs, Products, software
from astro_narrowband.register import Alignment, align, choose_reference
from astro_narrowband.resample import ResampledFrame
from astro_narrowband.weights import FrameStatistics, measure_frame

__all__ = ["Settings", "inspection", "reduce_night"]

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


@dataclass(eq=False)
class Light:
    """A light on its way: what is known of it grows from step to step."""

    row: FrameRow
    group: Group
    frame: CalibratedFrame
    stars: object = None
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
    with ExitStack() as stack:
        messages = stack.enter_context(_listening())
        table = FrameTable.from_paths(
            nights,
            set_keywords=dict(settings.set_keywords),
            max_pixels=settings.max_pixels,
            ignore=[output],
        )
        plan = make_plan(table, filters=_canonical(settings.filters))
        for problem in plan.problems:
            warnings.warn(str(problem), NarrowbandWarning, stacklevel=2)
        if not plan.groups:
            raise InputError(_no_lights(table, nights))
        used = [row.path for row in table if row.verdict == "used"]
        inputs = stack.enter_context(Inputs(used, workers=settings.workers or usable_cores()))
        products = stack.enter_context(
            Products(output, settings=settings.of_pixels(), inputs=inputs, resume=settings.resume)
        )
        executor = stack.enter_context(_executor(settings))
        night = Night(table, settings, products, executor, progress or _silent)
        for target in _targets(plan):
            night.reduce(target)
        return night.finish(messages, inputs)


class Night:
    """One run of the pipeline: the products made so far, and the record of them."""

    def __init__(self, table, settings, products, executor, progress):
        self.table, self.settings, self.products = table, settings, products
        self.executor, self.progress = executor, progress
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
        """Reduce the lights of one target: every filter of one object on one detector."""
        lights = []
        for group in self.progress(target, total=len(target), description="masters"):
            lights += self.attempt(group, self.calibrated) or []
        self.measure(lights)
        lights = self.register(lights)
        coadds = {}
        for group in self.progress(target, total=len(target), description="coadds"):
            mine = [light for light in lights if light.group is group]
            coadds[group] = self.attempt(group, self.coadd, mine, lights)
        self.catalogue({group: made for group, made in coadds.items() if made is not None})

    def attempt(self, group, step, *args):
        """Do a step for a group; if it fails, the reason is kept and the others go on."""
        if group.failed:
            return None
        try:
            return step(group, *args)
        except ProductError:
            raise
        except NarrowbandError as error:
            group.reason = str(error)
            return None

    # ------------------------------------------------------------------ masters

    def calibrated(self, group):
        """Return the lights of a group as frames that are calibrated while they are read."""
        recipe = self.recipe(group)
        lights = []
        for row in group.lights:
            try:
                lights.append(Light(row, group, CalibratedFrame(row.open(), recipe)))
            except NarrowbandError as error:
                self.leave_out(row, str(error))
        if not lights:
            raise InputError(f"{group.label}: no light of it can be calibrated")
        return lights

    def recipe(self, group):
        """Return what calibrates a group; masters that serve several groups are made once."""
        settings = self.settings
        detector = self.detector(group)
        bias, dark, flat = self.bias(group, detector), None, None
        if group.darks:
            dark = self.dark(group, detector, bias)
        elif bias is not None:
            dark = DarkModel.from_masters(bias=bias)
        if group.flats:
            flat = self.flat(group, detector, dark)
        return Recipe(detector, dark=dark, flat=flat, max_extrapolation=settings.max_extrapolation)

    def detector(self, group):
        """Return gain, read noise and saturation of a group's camera."""
        wanted = [r.path for r in (*group.bias, *group.flats)]
        identity = ("detector", *wanted)
        if identity not in self.made:
            settings = self.settings
            given = {
                name: None if value is None else value * unit
                for name, value, unit in (
                    ("gain", settings.gain, u.electron / u.adu),
                    ("read_noise", settings.read_noise, u.electron),
                    ("saturation", settings.saturation, u.adu),
                )
            }
            detector = decide_detector(
                group.lights[0].open().header,
                flats=[row.open() for row in group.flats],
                biases=[row.open() for row in group.bias],
                **given,
            )
            self.made[identity] = detector
            self.record["detector"][group.label] = asdict(detector)
        return self.made[identity]

    def bias(self, group, detector):
        """Return the master bias of a group, or None where it has no bias frames."""
        if not group.bias:
            return None

        def make(name, key):
            ccd = master_bias(
                [row.open() for row in group.bias], detector=detector, workers=self.workers
            )
            self.products.write_fits(name, ccd, key)
            return ccd

        master, name, _ = self.master("bias", group.bias, make, _read_ccd)
        header = master.header
        self.record["masters"]["bias"] = {
            "path": name, "n_frames": header["NCOMBINE"], "level": header["BIASLEV"],
            "noise": header["RDNOISEA"],
        }  # fmt: skip
        return master

    def dark(self, group, detector, bias):
        """Return the dark model of a group."""

        def make(name, key):
            model = DarkModel.fit(
                [row.open() for row in group.darks], bias=bias, detector=detector,
                workers=self.workers,
            )  # fmt: skip
            self.products.write_fits(name, model.to_hdul(), key)
            return model

        rows = [*group.bias, *group.darks]
        model, name, _ = self.master("dark", rows, make, DarkModel.read, detector)
        self.record["masters"]["dark"] = {
            "path": name, "model": model.model, "exposures": model.exposures,
            "n_frames": model.n_frames, "temperatures": model.temperatures,
            "notes": list(model.notes),
        }  # fmt: skip
        return model

    def flat(self, group, detector, dark):
        """Return the master flat of a group."""
        if dark is None:
            raise InputError(f"{group.label}: its flats have neither bias nor dark to lose")
        limits = {"detector": detector, "max_extrapolation": self.settings.max_extrapolation}
        left_out = []

        def make(name, key):
            frames = [row.open() for row in group.flats]
            ccd = master_flat(frames, dark=dark, workers=self.workers, **limits)
            self.products.write_fits(name, ccd, key)
            return ccd

        for row, check in zip(
            group.flats,
            check_flats([r.open() for r in group.flats], dark=dark, **limits),
            strict=True,
        ):
            if check.reason:
                self.leave_out(row, check.reason)
                left_out.append(row.name)
        rows = [*group.bias, *group.darks, *group.flats]
        title = f"flat-{safe_name(group.filter)}"
        master, name, _ = self.master(title, rows, make, _read_ccd, detector)
        self.record["masters"]["flats"][group.filter] = {
            "path": name, "n_frames": master.header["NCOMBINE"], "left_out": left_out,
            "exposure": [row.exposure for row in group.flats],
        }  # fmt: skip
        return master

    def master(self, title, rows, make, read, *depends):
        """Return a master, its product's name and key: held, read again, or made."""
        identity = (title, *(row.path for row in rows))
        if identity not in self.made:
            name = f"masters/{unique_name(title, self.names)}.fits"
            settings = [asdict(item) for item in depends]
            key = self.products.key([row.path for row in rows], product=title, depends=settings)
            if self.products.have(name, key):
                master = read(self.products.path(name))
            else:
                master = make(name, key)
            self.made[identity] = master, name, key
        return self.made[identity]

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
        """Return the lights that could be aligned with the best of them."""
        if not lights:
            return []
        if self.settings.registration == "none":
            for light in lights:
                light.alignment = Alignment.identity("none")
            return lights
        reference = choose_reference([light.stars for light in lights])
        aligned = []
        for k, light in enumerate(lights):
            try:
                aligned.append(
                    Alignment.identity()
                    if k == reference
                    else align(light.stars, lights[reference].stars)
                )
            except NarrowbandError as error:
                aligned.append(error)
        kept = []
        for light, result in zip(lights, aligned, strict=True):
            if isinstance(result, Alignment):
                light.alignment = result
                kept.append(light)
            else:
                self.leave_out(light.row, str(result))
        return kept

    def coadd(self, group, lights, target):
        """Return the coadd of the lights of a group, and write it."""
        if not lights:
            raise InputError(f"{group.label}: no light of it could be aligned")
        name = f"coadd-{unique_name(f'{safe_name(group.object)}-{safe_name(group.filter)}', self.names)}"
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
        self.products.write_fits(f"{name}.fits", made.to_hdul())
        if settings.keep_calibrated:
            for light in lights:
                self.products.write_fits(
                    f"calibrated/{safe_name(light.row.path.stem)}.fits", as_ccd(light.frame)
                )
        return made

    def catalogue(self, coadds):
        """Measure the sources of a target in every filter."""

    def leave_out(self, row, reason):
        """Leave a file out of the rest of the run, and say so."""
        self.table.leave_out(row.path, reason)
        warnings.warn(f"{row.name}: left out: {reason}", NarrowbandWarning, stacklevel=2)

    # ------------------------------------------------------------------ the end

    def finish(self, messages, inputs):
        """Write the table of frames, the record and the report; return the record."""
        self.products.write_table("frames.ecsv", self.table.table)
        record = self.record
        record["files"] = self.table.counts
        record["messages"] = messages
        record["inputs"] = inputs.digests()
        failed = [g for g in record["groups"] if g["status"] != "done"]
        if failed:
            record["status"] = 4
        if self.settings.strict and messages:
            record["status"] = 3
        record["products"] = dict(self.products.digests)
        self.products.write_json("night.json", record)
        return record


# --------------------------------------------------------------------------- helpers


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
    return (
        f"{nights}: no light is there ({counts}): "
        "`astro-narrowband inspect` says what each file is taken for; --set IMAGETYP=light helps "
        "where neither header nor name says it"
    )


@contextmanager
def _listening():
    """Collect the warnings of this package as messages, once each, and show them as well."""
    messages, seen = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", NarrowbandWarning)
        show = warnings.showwarning

        def listen(message, category, filename, lineno, file=None, line=None):
            if not issubclass(category, NarrowbandWarning):
                show(message, category, filename, lineno, file, line)
            elif str(message) not in seen:
                seen.add(str(message))
                messages.append({"level": "warning", "text": str(message)})
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = listen
        yield messages


@contextmanager
def _executor(settings):
    yield None


def _silent(iterable, *, total, description):  # noqa: ARG001
    return iterable
