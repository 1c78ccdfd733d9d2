"""The command line: argparse over the pipeline. Results on stdout, messages on stderr."""

import argparse
import math
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings

from astro_narrowband import __version__
from astro_narrowband.exceptions import InputError, NarrowbandError, NarrowbandWarning, ProductError
from astro_narrowband.night.messages import progress_bar, ready_streams, signals_as_interrupts

__all__ = ["main"]

#: Exit status: what a script may rely on.
DONE, USAGE, INPUT, PARTIAL, ENVIRONMENT, BUG = 0, 2, 3, 4, 5, 70


def main(args=None):
    """
    Run ``astro-narrowband``.

    Parameters
    ----------
    args : list of str, optional
        The arguments; default is ``sys.argv[1:]``.

    Returns
    -------
    int
        0 done, 2 usage, 3 input unusable, 4 partial (a whole filter could not
        be made), 5 environment (space, permission), 70 a bug, 130, 143 and
        129 stopped by Ctrl-C, SIGTERM and SIGHUP.
    """
    ready_streams()
    try:
        options = _parser().parse_args(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings(), signals_as_interrupts():
            _quieten()
            return options.run(options)
    except ProductError as error:
        return _fail(error, ENVIRONMENT)
    except NarrowbandError as error:
        return _fail(error, INPUT)
    except KeyboardInterrupt as stop:
        name = signal.Signals(stop.args[0]).name if stop.args else ""
        what = f"stopped by {name}" if name else "interrupted"
        return _fail(
            f"{what}; what is finished is kept, run the same command to go on",
            128 + (stop.args[0] if stop.args else signal.SIGINT),
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", ENVIRONMENT)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "map segment" not in str(error):
            return _fail(f"{error}: install astro-narrowband again", ENVIRONMENT)
        return _fail("out of memory: give a smaller --memory, or fewer --workers", ENVIRONMENT)
    except Exception:  # a bug: the user gets one line, the traceback goes to a file
        return _fail(f"a bug in astro-narrowband {__version__}; please report {_log()}", BUG)


def _fail(message, status):
    print(f"astro-narrowband: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message):
    """Text for a terminal: one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]+", " ", str(message)).strip()


def _log():
    with tempfile.NamedTemporaryFile(
        "w", prefix="astro-narrowband-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        traceback.print_exc(file=log)
    return log.name


def _quieten():
    """Our warnings are shown as one line each; other libraries' are not for the user."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", NarrowbandWarning)

    def show(message, category, filename, lineno, file=None, line=None):  # noqa: ARG001
        level = getattr(message, "level", "warning")
        line = f"astro-narrowband: {level}: {_one_line(message)}"
        if "tqdm" in sys.modules:  # a line of its own, above a bar that is under way
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)

    warnings.showwarning = show


# --------------------------------------------------------------------------- options


def _pair(text):
    try:
        x, y = (float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers X,Y")
    return x, y


def _keyword(text):
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEYWORD=VALUE")
    return name.strip().upper(), value.strip()


def _size(text):
    match = re.fullmatch(r"([\d.]+)\s*([kMGT]?)(i?B)?", text.strip())
    try:
        return float(match[1]) * 1024 ** " kMGT".index(match[2] or " ")
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 2G") from None


def _path(text):
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give a path")
    return text


def _count(text):
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def _above_zero(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def _parser():
    parser = argparse.ArgumentParser(
        prog="astro-narrowband",
        description="Narrowband frames to coadds, catalogues and growth curves with error bars.",
    )
    parser.add_argument("--version", action="version", version=f"astro-narrowband {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_reduce(commands)
    _add_inspect(commands)
    _add_simulate(commands)
    _add_demo(commands)
    _add_photometry(commands)
    _add_lines(commands)
    return parser


def _add_night(command):
    command.add_argument(
        "nights", nargs="+", type=_path, metavar="NIGHT", help="a folder of raw frames"
    )
    command.add_argument(
        "--filter", dest="filters", action="append", metavar="NAME", help="only this filter"
    )
    command.add_argument(
        "--set",
        dest="set_keywords",
        type=_keyword,
        action="append",
        default=[],
        metavar="KEYWORD=VALUE",
        help="a header value for the frames that lack it (repeatable)",
    )
    command.add_argument(
        "--bayer",
        choices=("red", "green", "blue", "superpixel", "mono"),
        help="of a one-shot-colour camera, take the pixels of this colour (red for Halpha and "
        "SII, green or blue for OIII; all four of a superpixel); mono: there are no colours",
    )
    command.add_argument(
        "--gain", type=_above_zero, metavar="G", help="gain [electron/adu], where headers lack it"
    )
    command.add_argument(
        "--read-noise", type=_above_zero, metavar="R", help="read noise [electron]"
    )
    command.add_argument("--saturation", type=_above_zero, metavar="S", help="saturation [adu]")
    command.add_argument(
        "--calibration",
        type=_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="bias, darks, flats or masters for what the night lacks (repeatable)",
    )
    command.add_argument(
        "--without",
        choices=("flat", "dark", "bias"),
        action="append",
        default=[],
        help="go on without these frames, and say so (repeatable)",
    )
    command.add_argument(
        "--calibrated", action="store_true", help="the lights are calibrated: only combine them"
    )
    command.add_argument(
        "--spellings", metavar="FILE", help="TOML file of your own keywords, kinds and filters"
    )
    command.add_argument(
        "--max-pixels",
        type=_count,
        default=None,
        metavar="N",
        help="the largest image that is opened, in pixels",
    )


def _add_reduce(commands):
    command = commands.add_parser(
        "reduce", help="reduce one or more nights", description="Reduce one or more nights."
    )
    _add_night(command)
    command.add_argument(
        "-o", "--output", required=True, type=_path, metavar="OUT", help="folder of products"
    )
    command.add_argument(
        "--registration",
        choices=("stars", "centroid", "astroalign", "none"),
        default="stars",
        help="how frames are aligned (default: stars)",
    )
    command.add_argument(
        "--star",
        dest="stars",
        type=_pair,
        action="append",
        default=[],
        metavar="X,Y",
        help="a star to align on, in the reference frame (with --registration centroid)",
    )
    command.add_argument(
        "--weights",
        choices=("background", "exptime", "equal", "point_source"),
        default="background",
        help="weights of the frames (default: background, 1 over the background's variance)",
    )
    command.add_argument("--no-reject", dest="reject", action="store_false", help="keep outliers")
    command.add_argument(
        "--max-extrapolation",
        type=_above_zero,
        default=None,
        metavar="X",
        help="longest exposure in units of the longest dark (default: decided by what the dark "
        "costs the frame)",
    )
    command.add_argument(
        "--catalogue", type=_path, metavar="FILE", help="stars of known places, for the WCS"
    )
    command.add_argument("--keep-calibrated", action="store_true", help="write calibrated/ as well")
    command.add_argument("--workers", type=_count, metavar="N", help="threads (default: all cores)")
    command.add_argument(
        "--memory", type=_size, default=None, metavar="SIZE", help="memory for bands, as 500M or 2G"
    )
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask scheduler, or 'local' for a local cluster"
    )
    command.add_argument(
        "--no-resume", dest="resume", action="store_false", help="do all of it again"
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files in OUT that were not made by this command",
    )
    command.add_argument("--strict", action="store_true", help="a warning is an error (status 3)")
    command.add_argument("--quiet", action="store_true", help="no progress, no summary")
    command.set_defaults(run=_reduce)


def _add_inspect(commands):
    command = commands.add_parser(
        "inspect",
        help="show what each file is taken for, and what will calibrate what",
        description="Show what each file is taken for and every problem; reduce nothing. The "
        "status is that of a reduction: 3 if nothing can be reduced, 4 if a part cannot.",
    )
    _add_night(command)
    command.set_defaults(run=_inspect)


def _add_simulate(commands):
    command = commands.add_parser(
        "simulate", help="write a night with its truth", description="Write a night with its truth."
    )
    command.add_argument("output", metavar="OUT")
    _add_simulation(command, size=1024)
    command.set_defaults(run=_simulate)


def _add_demo(commands):
    command = commands.add_parser(
        "demo",
        help="simulate a small night, reduce it, compare with the truth",
        description="Simulate a three-filter night, reduce it, print measured against true.",
    )
    command.add_argument("-o", "--output", required=True, type=_path, metavar="OUT")
    _add_simulation(command, size=1024)
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_demo)


def _add_simulation(command, size):
    command.add_argument(
        "--size", type=_count, default=size, help=f"pixels a side (default: {size})"
    )
    command.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")


def _add_photometry(commands):
    command = commands.add_parser(
        "photometry",
        help="measure stars in a FITS image",
        description="Annulus photometry or growth curves at the positions given.",
    )
    command.add_argument("image", metavar="IMAGE")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--at", type=_pair, action="append", metavar="X,Y", help="pixel position, from 0"
    )
    where.add_argument(
        "--radec", action="append", metavar="RA,DEC", help="degrees, or 'h:m:s,d:m:s'"
    )
    command.add_argument("--radius", type=_above_zero, default=6.0, help="aperture [pix]")
    command.add_argument(
        "--annulus", type=_pair, default=(12.0, 20.0), metavar="IN,OUT", help="annulus [pix]"
    )
    command.add_argument("--unit", help="unit of the pixels, where BUNIT is missing")
    command.add_argument("--growth", action="store_true", help="growth curves up to --radius")
    command.add_argument("-o", "--output", metavar="FILE", help="write ECSV")
    command.add_argument(
        "--overwrite", action="store_true", help="replace FILE, if it is there already"
    )
    command.set_defaults(run=_photometry)


def _curve(text):
    name, equals, curve = text.partition("=")
    if not (name.strip() and equals and curve.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILTER=FILE or FILTER=CENTRE,WIDTH")
    return name.strip(), curve.strip()


def _add_lines(commands):
    command = commands.add_parser(
        "lines",
        help="line fluxes and ratios of the products of reduce",
        description="Subtract the continuum, calibrate, divide: line maps, ratios, regions.",
    )
    command.add_argument("reduced", type=_path, metavar="REDUCED", help="products of reduce")
    command.add_argument("-o", "--output", required=True, type=_path, metavar="OUT")
    for name, kind, metavar, text in (
        ("--continuum", str, "FILTER", "continuum filter (default: the broad one nearest)"),
        ("--beam", _pair, "F,OBSTRUCTION", "f-ratio and obstruction of the beam"),
        ("--references", _path, "FILE", "stars with spectra or AB magnitudes"),
        ("--nii", _pair, "RATIO,ERROR", "[NII] 6583 over Halpha"),
        ("--regions", _path, "FILE", "regions to be measured; one named sky is the zero"),
    ):
        command.add_argument(name, type=kind, metavar=metavar, help=text)
    command.add_argument(
        "--curve", dest="curves", type=_curve, action="append", default=[], metavar="FILTER=CURVE",
        help="curve of a filter: a file, or CENTRE,WIDTH[,PEAK] in nm (repeatable)",
    )  # fmt: skip
    command.add_argument("--velocity", type=float, default=0.0, help="of the source [km/s]")
    command.add_argument(
        "--min-snr", type=_above_zero, default=3.0, help="a line is seen from here"
    )
    command.add_argument("--floor", type=_above_zero, default=0.03, help="error of all references")
    command.set_defaults(run=_lines)


# --------------------------------------------------------------------------- commands


def _reduce(options):
    from astro_narrowband.night.pipeline import Settings, reduce_night

    if options.registration == "centroid" and not options.stars:
        return _fail("--registration centroid needs the star to align on: give --star X,Y", USAGE)
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    progress = None if options.quiet else progress_bar
    record = reduce_night(options.nights, options.output, settings=settings, progress=progress)
    if not options.quiet:
        try:
            print(_summary(record, options.output), flush=True)
        except BrokenPipeError:  # nobody reads it: what was done stays
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return record["status"]


def _summary(record, output):
    rows, failed = [], []
    for group in record["groups"]:
        if group["status"] != "done":
            failed.append(f"{group['label']}: not made: {group['reason']}")
            continue
        without = ", ".join(group["without"])
        test = group.get("self_test") or {}
        rows.append(
            [
                group["label"] + (f" (without {without})" if without else ""),
                f"{group['n_used']} of {len(group['frames'])}",
                f"{group['exposure_total']:g}",
                f"{group['noise']:.3g}",
                f"{test['NOISEPIX']:.2f}" if "NOISEPIX" in test else "-",
                f"{group['fwhm']:.2f}",
            ]
        )
    heads = ["", "frames", "exposure", "noise", "over", "FWHM"]
    units = ["", "", "s", "electron/s", "predicted", "pix"]
    lines = _columns([heads, units, *rows]) if rows else []
    counts = record["files"]
    lines += [_one_line(line) for line in failed]
    lines.append(
        f"{counts['found']} files: {counts['used']} used, {counts['left out']} left out, "
        f"{counts['ignored']} ignored"
    )
    page = "report.html" if "report.html" in record["products"] else "night.json"
    lines.append(_one_line(os.path.join(output, page)))
    return "\n".join(lines)


def _columns(rows):
    """Lines of a table: the first column to the left, numbers to the right."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
    print("\n".join(_one_line_kept(line) for line in lines))
    return status


def _one_line_kept(line):
    """As `_one_line`, but leading blanks are layout."""
    return line[: len(line) - len(line.lstrip(" "))] + _one_line(line)


def _simulate(options):
    from astro_narrowband.simulate import simulate_night

    simulate_night(options.output, shape=(options.size, options.size), seed=options.seed)
    print(options.output)
    return DONE


def _demo(options):
    from astro_narrowband.demo import run_demo

    progress = None if options.quiet else progress_bar
    rows, sentence, page = run_demo(
        options.output, size=options.size, seed=options.seed, progress=progress
    )
    print("measured against the truth")
    print("\n".join([*_columns(rows), _one_line(sentence), _one_line(page)]))
    return DONE


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
        warnings.warn(
            f"{options.image}: has no BUNIT: the results have no unit either; give --unit",
            NarrowbandWarning,
            stacklevel=1,
        )
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
        print("\n".join(_sensible(table).pformat(max_lines=-1, max_width=-1)))
    return DONE


def _sensible(table):
    """A copy of a table whose numbers have the digits that their errors allow."""
    table = table.copy()
    for name in table.colnames:
        column = table[name]
        if column.dtype.kind != "f":
            continue
        error = next((e for e in (f"{name}_err", name) if e in table.colnames and "err" in e), None)
        if error is None:
            column.info.format = ".4g" if name not in ("x_center", "y_center", "radius") else ".2f"
            continue
        sizes = [abs(float(value)) for value in getattr(table[error], "value", table[error])]
        sizes = [size for size in sizes if math.isfinite(size) and size > 0]
        # Two digits of the smallest error.
        digits = max(0, 1 - math.floor(math.log10(min(sizes)))) if sizes else 3
        column.info.format = f".{min(digits, 8)}f"
    return table


def _lines(options):
    from astro_narrowband.night.lines import LineSettings, make_lines

    values = {name: getattr(options, name) for name in LineSettings.__dataclass_fields__}
    values["curves"] = tuple(values["curves"])
    record = make_lines(options.reduced, options.output, settings=LineSettings(**values))
    for each in record["objects"]:
        for facts in each["lines"].values():
            print(_one_line(f"{each['name']}: {facts['sentence']}"))
    print(os.path.join(options.output, "lines.html"))
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


if __name__ == "__main__":
    sys.exit(main())
