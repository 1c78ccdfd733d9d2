"""The options of the commands, and what their texts mean."""

import argparse
import math
import re

from astro_narrowband import __version__
from astro_narrowband.exceptions import InputError


def _pair(text):
    try:
        x, y = (float(number) for number in re.split(r"[,\s]+", text.strip()))
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


def _place(text):
    from astro_narrowband._engine.executors import check_place

    try:
        return check_place(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Parser(argparse.ArgumentParser):
    """One line says what is wrong, and what to do."""

    def error(self, message):
        self.exit(2, f"astro-narrowband: error: {message}: see {self.prog} --help\n")


def parser():
    """Return the parser of all commands; what it returns has the name of one as ``command``."""
    whole = _Parser(
        prog="astro-narrowband",
        description="Narrowband frames to coadds, catalogues and growth curves with error bars.",
    )
    whole.add_argument("--version", action="version", version=f"astro-narrowband {__version__}")
    commands = whole.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_reduce(commands)
    _add_inspect(commands)
    _add_simulate(commands)
    _add_demo(commands)
    _add_photometry(commands)
    _add_lines(commands)
    return whole


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
        "--max-pixels", type=_count, metavar="N", help="the largest image that is opened, in pixels"
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
        metavar="X",
        help="longest exposure in units of the longest dark (default: decided by what the dark "
        "costs the frame)",
    )
    command.add_argument(
        "--catalogue", type=_path, metavar="FILE", help="stars of known places, for the WCS"
    )
    _add_run(command)


def _add_run(command):
    """How it is done, what is kept and what is said."""
    command.add_argument("--keep-calibrated", action="store_true", help="write calibrated/ as well")
    command.add_argument("--workers", type=_count, metavar="N", help="threads (default: all cores)")
    command.add_argument(
        "--memory",
        type=_size,
        metavar="SIZE",
        help="memory that the bands under way share, beside images held whole, as 500M or 2G",
    )
    command.add_argument(
        "--scheduler",
        type=_place,
        metavar="ADDRESS",
        help="a Dask scheduler, or 'local' for a local cluster",
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


def _add_inspect(commands):
    command = commands.add_parser(
        "inspect",
        help="show what each file is taken for, and what will calibrate what",
        description="Show what each file is taken for and every problem; reduce nothing. The "
        "status is that of a reduction: 3 if nothing can be reduced, 4 if a part cannot.",
    )
    _add_night(command)


def _add_simulate(commands):
    command = commands.add_parser(
        "simulate", help="write a night with its truth", description="Write a night with its truth."
    )
    command.add_argument("output", metavar="OUT")
    _add_simulation(command, size=1024)


def _add_demo(commands):
    command = commands.add_parser(
        "demo",
        help="simulate a small night, reduce it, compare with the truth",
        description="Simulate a three-filter night, reduce it, print measured against true.",
    )
    command.add_argument("-o", "--output", required=True, type=_path, metavar="OUT")
    _add_simulation(command, size=1024)
    command.add_argument("--quiet", action="store_true", help="no progress")


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


def _curve(text):
    name, equals, curve = text.partition("=")
    if not (name.strip() and equals and curve.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILTER=FILE or FILTER=CENTRE,WIDTH")
    return name.strip(), curve.strip()


def _width(text):
    name, value = _curve(text)
    return name, _above_zero(value)


def _add_lines(commands):
    command = commands.add_parser(
        "lines",
        help="line fluxes and ratios of the products of reduce",
        description="Subtract the continuum, calibrate, divide: line maps, ratios, regions.",
    )
    command.add_argument(
        "reduced", type=_path, metavar="REDUCED", nargs="?", help="products of reduce"
    )
    command.add_argument("-o", "--output", required=True, type=_path, metavar="OUT")
    for name, kind, metavar, text in (
        ("--area", _above_zero, "CM2", "collecting area, for curves that hold the throughput"),
        ("--continuum", str, "FILTER", "continuum filter (default: the broad one nearest)"),
        ("--beam", _pair, "F,OBSTRUCTION", "f-ratio and obstruction of the beam"),
        ("--references", _path, "FILE", "stars with spectra or AB magnitudes"),
        ("--nii", _pair, "RATIO,ERROR", "[NII] 6583 over Halpha"),
        ("--regions", _path, "FILE", "regions to be measured; one named sky is the zero"),
    ):
        command.add_argument(name, type=kind, metavar=metavar, help=text)
    for name, to, kind, metavar, text in (
        (
            "--curve",
            "curves",
            _curve,
            "FILTER=CURVE",
            "its curve: a file, CENTRE,WIDTH[,PEAK] in nm",
        ),
        ("--image", "images", _curve, "FILTER=FILE", "an image that another program calibrated"),
        ("--scale", "scales", _curve, "LINE=K,ERROR", "of its continuum, or header, or pixels"),
        ("--fwhm", "widths", _width, "FILTER=PIX", "width of its stars, where there are none"),
    ):
        command.add_argument(
            name, dest=to, type=kind, action="append", default=[], metavar=metavar,
            help=f"{text} (repeatable)",
        )  # fmt: skip
    command.add_argument("--velocity", type=float, default=0.0, help="of the source [km/s]")
    command.add_argument(
        "--min-snr", type=_above_zero, default=3.0, help="a line is seen from here"
    )
    command.add_argument("--floor", type=_above_zero, default=0.03, help="error of all references")
