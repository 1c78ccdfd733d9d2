"""
A night from raw frames to coadds, catalogues and a report: the order of the steps.

There is no arithmetic here. Every step is a public function of another module,
and may be used without this one.
"""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from astro_narrowband._engine.door import (
    RULES,
    a_sequence,
    a_text,
    check_fields,
    door,
    each,
    of_class,
)
from astro_narrowband._engine.executors import open_executor
from astro_narrowband._engine.files import Identity, sha256
from astro_narrowband._engine.frames import usable_cores
from astro_narrowband._engine.headers import Spellings
from astro_narrowband._engine.text import clean_text, path_text
from astro_narrowband._engine.validate import choice
from astro_narrowband.detector import POSSIBLE
from astro_narrowband.exceptions import InputError, NarrowbandError
from astro_narrowband.filters import canonical_filter
from astro_narrowband.night.inputs import Inputs
from astro_narrowband.night.messages import Messages
from astro_narrowband.night.plan import make_plan
from astro_narrowband.night.products import Products, finished, provenance_key, version_of
from astro_narrowband.night.screen import screen_plan
from astro_narrowband.night.table import FrameTable, Problem, find_files

__all__ = ["Settings", "inspection", "reduce_night"]

#: Settings that say how the work is done and change no pixel.
_HOW = (
    "filters",
    "keep_calibrated",
    "workers",
    "memory",
    "scheduler",
    "resume",
    "strict",
    "overwrite",
)


#: What settings must be; those whose name has a rule of its own for every function, too.
_RULES = RULES | {
    **{name: POSSIBLE[name] for name in ("gain", "read_noise", "saturation")},
    "filters": each(a_text),
    **dict.fromkeys(("stars", "set_keywords", "without"), a_sequence),
    **dict.fromkeys(("keep_calibrated", "resume", "strict"), RULES["reject"]),
}


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
    max_extrapolation : float or None
        Longest exposure over the longest dark; default is what the dark costs the frame.
    max_pixels : int or None
        The largest image that is opened.
    bayer : {None, "red", "green", "blue", "superpixel", "mono"}
        Leave out colour mosaics, take the pixels of one colour, or take them as they
        are.
    calibration : sequence of path-like
        Folders of bias, darks, flats and masters, for what the night lacks.
    without : sequence of {"flat", "dark", "bias"}
        What to go on without.
    calibrated : bool
        The lights are calibrated.
    spellings : path-like or None
        TOML file of the user's own keywords, kinds and filters.
    catalogue : path-like or None
        Stars of known places: the coadds get the WCS that they say.
    keep_calibrated : bool
    workers : int or None
    memory : float or None
        Bytes that the bands under way may take together, beside images held whole.
    scheduler : str or None
        Address of a Dask scheduler, or ``"local"``.
    resume : bool
        Use products of an earlier run again where inputs and settings agree.
    strict : bool
        A warning makes the status 3.
    overwrite : bool
        Replace files of others that have the names of products.
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
    max_extrapolation: float | None = None
    max_pixels: int | None = None
    bayer: str | None = None
    calibration: tuple = ()
    without: tuple = ()
    calibrated: bool = False
    spellings: str | None = None
    catalogue: str | None = None
    keep_calibrated: bool = False
    workers: int | None = None
    memory: float | None = None
    scheduler: str | None = None
    resume: bool = True
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self):
        check_fields(self, **_RULES)

    def of_pixels(self):
        """Return the settings that change a result."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}


@door(table=of_class("FrameTable"))
def inspection(table, *, settings=None):
    """
    Return what `reduce_night` would do with the files of a table.

    Parameters
    ----------
    table : `~astro_narrowband.night.table.FrameTable`
    settings : Settings, optional

    Returns
    -------
    lines : list of str
        The plan, every problem, and each file with what it is taken for.
    status : int
        0 if everything can be reduced as far as headers and a look at the pixels say,
        3 if nothing can be, 4 if some groups cannot.
    """
    from astro_narrowband.night.run import NOTHING, PARTIAL, dark_costs, decide_for, try_alone

    settings = settings or Settings()
    plan = _planned(table, settings)
    for group in plan.groups:
        if not group.failed:
            try:
                if group.alone:
                    sentences = try_alone(group, settings)
                else:
                    detector, sentences = decide_for(group, settings)
                    limit = settings.max_extrapolation
                    group.costs = dark_costs(group, detector, max_extrapolation=limit)
                plan.problems += [Problem("warning", group.label, text) for text in sentences]
            except NarrowbandError as error:
                group.fail(str(error))
                plan.problems.append(Problem("error", group.label, f"not reduced: {error}"))
    counts = ", ".join(f"{n} {what}" for what, n in table.counts.items())
    failed = [group.failed for group in plan.groups]
    status = NOTHING if all(failed) else PARTIAL if any(failed) else 0
    return [*plan.lines(), "", counts, "", *table.lines()], status


@door
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
        Default is that of the command line without options.
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

    Examples
    --------
    >>> import tempfile
    >>> from astro_narrowband import reduce_night
    >>> from astro_narrowband.simulate import simulate_night
    >>> folder = tempfile.mkdtemp()
    >>> truth = simulate_night(folder + "/night", shape=(256, 256), filters=["Halpha"], seed=1)
    >>> record = reduce_night(folder + "/night", folder + "/reduced")
    >>> record["status"], [group["label"] for group in record["groups"]]
    (0, ['Crown Nebula Halpha'])
    """
    settings = settings or Settings()
    # Read once: what the files of the user say is part of what products are made of.
    spellings = None if settings.spellings is None else Spellings.read(settings.spellings)
    _apart(nights, output)
    if settings.catalogue is not None:
        from astro_narrowband.lines import read_catalogue  # which few runs need

        read_catalogue(settings.catalogue)  # one that cannot be used is refused at once
    choice(settings.registration, ("stars", "astroalign", "centroid", "none"), "registration")
    made_of = {
        **settings.of_pixels(),
        # What is in the files of the user, whatever they are called.
        "spellings": spellings and asdict(spellings),
        "catalogue": settings.catalogue and sha256(settings.catalogue),
    }
    workers = settings.workers or usable_cores()
    key = _key_of_all(nights, output, settings, made_of)
    with ExitStack() as stack:
        messages = stack.enter_context(Messages())
        if settings.resume and (record := finished(output, key, workers=workers)):
            for message in record["messages"]:
                messages.say(message["text"], message["level"])
            return record
        from astro_narrowband.night.run import Night  # which loads most of the package

        table = FrameTable.from_paths(
            nights,
            set_keywords=dict(settings.set_keywords),
            max_pixels=settings.max_pixels,
            bayer=settings.bayer,
            saturation=settings.saturation,
            spellings=spellings,
            ignore=[output],
            calibration=settings.calibration,
            calibrated=settings.calibrated,
        )
        plan = _planned(table, settings)
        for problem in plan.problems:
            messages.say(str(problem), problem.level)
        if not plan.groups:
            raise InputError(_no_lights(table, nights, settings.filters))
        used = {row.path: row.identity for row in table if row.verdict == "used"}
        inputs = stack.enter_context(Inputs(used, workers=workers))
        products = stack.enter_context(
            Products(
                output,
                settings=made_of,
                inputs=inputs,
                resume=settings.resume,
                overwrite=settings.overwrite,
            )
        )
        executor = stack.enter_context(open_executor(settings.scheduler, workers=settings.workers))
        night = Night(
            table, settings, products, messages, executor, progress or _silent, len(plan.groups)
        )
        targets = _targets(plan)
        night.claim(targets)
        for target in targets:
            night.reduce(target)
        return night.finish(inputs, key)


def _key_of_all(nights, output, settings, made_of):
    """
    Return the provenance of a record: every file as it lies there, used or not, and the settings.

    Where a disk is mounted may change; whatever becomes of a file changes the rest of its identity.
    """
    files = {}
    nights = [nights] if isinstance(nights, str | os.PathLike) else nights
    for path, _, why, library in find_files(nights, [output], calibration=settings.calibration):
        try:
            place = Identity.of(os.stat(path))[2:]
        except OSError:
            place = None
        files[str(path)] = place, why, library
    how = {name: getattr(settings, name) for name in _HOW if name not in ("resume", "overwrite")}
    page = [version_of(name) for name in ("matplotlib", "jinja2")]
    return provenance_key(files, {"run": made_of, "how": how, "page": page})


def _apart(nights, output):
    """Refuse to look for frames in the folder of the products, which is passed over."""
    products = Path(output).resolve()
    for night in [nights] if isinstance(nights, str | os.PathLike) else nights:
        if Path(night).resolve().is_relative_to(products):
            raise InputError(
                f"{path_text(output)}: is the folder of the products, and holds the night "
                f"{path_text(night)}: choose another folder with -o"
            )


def _targets(plan):
    """Groups of one object on one detector: they share a grid."""
    targets = {}
    for group in plan.groups:
        targets.setdefault((group.object, repr(group.setup)), []).append(group)
    return list(targets.values())


def _planned(table, settings):
    """Return the plan of a table, once the frames have been looked at."""
    plan = make_plan(
        table,
        filters=_canonical(settings.filters),
        without=settings.without,
        calibrated=settings.calibrated,
    )
    screen_plan(plan, saturation=settings.saturation, mono=settings.bayer == "mono")
    return plan


def _canonical(filters):
    return None if filters is None else [canonical_filter(name) for name in filters]


def _no_lights(table, nights, filters):
    there = sorted({row.filter for row in table if row.kind == "light"} - {""})
    if filters is not None and there:
        return (
            f"no light of {', '.join(map(clean_text, filters))} is there (--filter): the lights "
            f"are of {', '.join(there)}"
        )
    counts = ", ".join(f"{n} {what}" for what, n in table.counts.items())
    where = ", ".join(path_text(night) for night in np.atleast_1d(nights))
    return (
        f"{where}: there is no light to reduce ({counts}): `astro-narrowband inspect` says what "
        "each file is taken for; --set IMAGETYP=light serves where neither header nor name says it"
    )


def _silent(iterable, *, total, description):  # noqa: ARG001
    return iterable
