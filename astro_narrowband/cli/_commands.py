"""The commands, and the status that each of them ends with."""

import os
import tempfile
import traceback
import warnings

from astro_narrowband import __version__
from astro_narrowband._engine.text import one_line
from astro_narrowband.cli._options import parser
from astro_narrowband.cli._process import progress_bar, say, stop_in
from astro_narrowband.cli._text import columns, sensible, show, summary
from astro_narrowband.exceptions import InputError, NarrowbandError, ProductError, listening, warn

#: Exit status: what a script may rely on.
DONE, USAGE, INPUT, ENVIRONMENT, BUG = 0, 2, 3, 5, 70
OUT_OF_MEMORY = "out of memory: give a smaller --memory, or fewer --workers"


def run(args):
    """Run the command that ``args`` name; return its status, once every problem has been said."""
    try:
        with warnings.catch_warnings(), listening(lambda text, level: say(f"{level}: {text}")):
            warnings.simplefilter("ignore")  # those of other libraries are not for the user
            return _run(args)
    except ProductError as error:
        problem, status = error, ENVIRONMENT
    except NarrowbandError as error:
        problem, status = error, INPUT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        problem, status = f"{where}{error.strerror or error}", ENVIRONMENT
    except MemoryError:
        problem, status = OUT_OF_MEMORY, ENVIRONMENT
    except ImportError as error:
        no_room = "map segment" in str(error)
        problem = OUT_OF_MEMORY if no_room else f"{error}: install astro-narrowband again"
        status = ENVIRONMENT
    except Exception as error:  # a bug: the user gets one line, the traceback goes to a file
        if (stop := stop_in(error)) is not None:
            raise stop from None
        problem = f"a bug in astro-narrowband {__version__}; please report {_log()}"
        status = BUG
    say(problem)
    return status


def _run(args):
    try:
        options = parser().parse_args(args)
    except SystemExit as stop:
        show()  # of what --help has written
        return int(stop.code or 0)
    return COMMANDS[options.command](options)


def _log():
    with tempfile.NamedTemporaryFile(
        "w", prefix="astro-narrowband-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exc(file=log)
    return log.name


def _reduce(options):
    from astro_narrowband.night.pipeline import Settings, reduce_night

    if options.registration == "centroid" and not options.stars:
        say("--registration centroid needs the star to align on: give --star X,Y")
        return USAGE
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    progress = None if options.quiet else progress_bar
    record = reduce_night(options.nights, options.output, settings=settings, progress=progress)
    if not options.quiet:
        show(*summary(record, options.output))
    return record["status"]


def _inspect(options):
    from astro_narrowband.night.pipeline import Settings, inspection
    from astro_narrowband.night.table import FrameTable

    table = FrameTable.from_paths(
        options.nights,
        set_keywords=dict(options.set_keywords),
        max_pixels=options.max_pixels,
        bayer=options.bayer,
        saturation=options.saturation,
        spellings=options.spellings,
        calibration=options.calibration,
        calibrated=options.calibrated,
    )
    names = set(Settings.__dataclass_fields__) & set(vars(options))
    settings = Settings(**{name: getattr(options, name) for name in names})
    lines, status = inspection(table, settings=settings)
    show(*map(one_line, lines))
    return status


def _simulate(options):
    from astro_narrowband.simulate import simulate_night

    simulate_night(options.output, shape=(options.size, options.size), seed=options.seed)
    show(options.output)
    return DONE


def _demo(options):
    from astro_narrowband.demo import run_demo

    progress = None if options.quiet else progress_bar
    rows, sentence, page, status = run_demo(
        options.output, size=options.size, seed=options.seed, progress=progress
    )
    show("measured against the truth", *columns(rows), one_line(sentence), one_line(page))
    return status


def _photometry(options):
    from astropy.coordinates import SkyCoord

    from astro_narrowband._engine.files import check_absent
    from astro_narrowband._engine.frames import as_ccd, as_frame
    from astro_narrowband.photometry import annulus_photometry, growth_curves

    if options.output:
        _not_the_image(options)
        check_absent(options.output, overwrite=options.overwrite)
    frame = as_frame(options.image, unit=options.unit)
    if frame.unit is None:
        warn(f"{options.image}: has no BUNIT: the results have no unit either; give --unit")
        frame = as_frame(options.image, unit="")
    image = as_ccd(frame)
    positions = options.at or SkyCoord([_sky_coord(text) for text in options.radec])
    r_in, r_out = options.annulus
    if options.growth:
        radii = _radii(options.radius)
        table = growth_curves(image, positions, radii, r_in=r_in, r_out=r_out).to_table()
    else:
        table = annulus_photometry(image, positions, r=options.radius, r_in=r_in, r_out=r_out)
    if options.output:
        from astro_narrowband._engine.files import write_table

        write_table(options.output, table)
    else:
        show(*sensible(table).pformat(max_lines=-1, max_width=-1))
    return DONE


def _lines(options):
    from astro_narrowband.night.lines import LineSettings, make_lines

    values = {name: getattr(options, name) for name in LineSettings.__dataclass_fields__}
    for name in ("curves", "images", "scales", "widths"):
        values[name] = tuple(values[name])
    record = make_lines(options.reduced, options.output, settings=LineSettings(**values))
    for each in record["objects"]:
        for facts in each["lines"].values():
            show(one_line(f"{each['name']}: {facts['sentence']}"))
    show(os.path.join(options.output, "lines.html"))
    return DONE


def _not_the_image(options):
    if os.path.exists(options.output) and os.path.samefile(options.image, options.output):
        raise ProductError(f"{options.output}: is the image that is measured: give another -o")


def _radii(largest):
    import numpy as np

    return np.linspace(1.0, largest, max(2, round(2 * largest) - 1)) if largest > 1 else [largest]


def _sky_coord(text):
    from astropy.coordinates import SkyCoord

    ra, comma, dec = text.partition(",")
    unit = ("hourangle", "deg") if ":" in ra or "h" in ra else "deg"
    try:
        return SkyCoord(ra.strip(), dec.strip(), unit=unit) if comma else SkyCoord(text, unit=unit)
    except ValueError as error:
        raise InputError(f"--radec {text!r} is not a position ({error}): give RA,DEC") from None


COMMANDS = {
    "reduce": _reduce,
    "inspect": _inspect,
    "simulate": _simulate,
    "demo": _demo,
    "photometry": _photometry,
    "lines": _lines,
}
