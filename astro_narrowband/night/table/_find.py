"""The files under some folders, each once, and why some are no frames; none is opened as FITS."""

import json
import os
import re
import stat
from pathlib import Path

from astro_narrowband._engine.text import path_text
from astro_narrowband.exceptions import InputError

_SUFFIXES = (".fits", ".fit", ".fts")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".z")
#: Raw frames that are not FITS, and names of FITS files that are not there as such.
_CAMERA_FILES = re.compile(
    r"\.(xisf|ser|cr[23]|n[er][fw]|arw|dng|raf|orf|rw2|pef|sbig|st\d+|tiff?|asdf)"
)
_UNFINISHED = re.compile(r"\.(part|partial|crdownload|download|filepart|tmp)")
_ARCHIVES = re.compile(r"\.(zip|7z|rar|tar|tgz|lz4|lzma)")
#: Folders in folders that are looked into.
DEEPEST = 64
#: What the folder ``truth`` of a simulated night has.
_TRUTH_TABLES = ("stars.ecsv", "frames.ecsv")


def find_files(paths, ignore, *, calibration=()):
    """
    Yield ``(path, parts, why it is no frame or "", is in calibration)`` for every file, once.

    Products of this package are no raw frames, but those in ``calibration`` are looked into.
    """
    ignored = {os.path.realpath(folder) for folder in ignore}
    seen = set()
    for path, library in (*((p, False) for p in paths), *((p, True) for p in calibration)):
        root = Path(path)
        try:
            mode = os.stat(root).st_mode
        except OSError as error:
            raise InputError(
                f"{path_text(root)}: {error.strerror or error}: give a folder of frames"
            ) from None
        except ValueError:
            raise InputError(f"{path_text(root)!r} is not a path: give a folder") from None
        name = Path(os.path.abspath(root)).name
        if not stat.S_ISDIR(mode):
            files = _file(root, (), seen)
        else:
            files = _walk(root, (name,), ignored, seen, library)
        for file in files:
            yield *file, library


def _walk(folder, parts, ignored, seen, library):
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    if real not in ignored:
        why = "" if library else _not_raw(folder)
        yield from _list(folder, parts, ignored, seen, why, library)


def _list(folder, parts, ignored, seen, why, library):
    try:
        names = sorted(os.listdir(folder), key=os.fsencode)
    except OSError as error:
        yield Path(folder), parts, f"!cannot be listed ({error.strerror})"
        return
    for name in names:
        path = Path(folder) / name
        if os.path.isdir(path):
            if len(parts) > DEEPEST:
                yield path, parts, f"!is {DEEPEST} folders deep: is not looked into: move it up"
            elif why:
                yield from _list(path, (*parts, name), ignored, seen, why, library)
            else:
                yield from _walk(path, (*parts, name), ignored, seen, library)
        else:
            yield from _file(path, parts, seen, why)


def _file(path, parts, seen, why=""):
    real = os.path.realpath(path)
    if not why and real in seen:
        if path.is_symlink():
            yield path, parts, "a link to a file that is there already"
        return
    seen.add(real)
    yield path, (*parts, stem_of(path.name)), why or _no_frame(path)


def stem_of(name):
    """Return a file's name without its suffixes."""
    lower = name.lower()
    for suffix in (*_PACKED, ".fz", *_SUFFIXES):
        if lower.endswith(suffix):
            name, lower = name[: -len(suffix)], lower[: -len(suffix)]
    return name


def _is_fits_name(name):
    lower = name.lower()
    for suffix in _PACKED:
        lower = lower.removesuffix(suffix)
    return lower.endswith((*_SUFFIXES, ".fz"))


def _no_frame(path):
    """Why a file is not looked into, ``!`` in front where it is a frame that is lost; or ``""``."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"!cannot be read ({error.strerror}): a link to nothing, or a closed folder"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    if path.name.startswith("."):
        return "a hidden file"
    if not _is_fits_name(path.name):
        suffix = path.suffix.lower()
        if _CAMERA_FILES.fullmatch(suffix):
            return f"!is a {suffix} file: convert it to FITS, raw and without changing its pixels"
        if _UNFINISHED.fullmatch(suffix) and _is_fits_name(path.stem):
            return f"!is an unfinished download or copy ({suffix}): copy it again"
        if _ARCHIVES.fullmatch(suffix) and _is_fits_name(path.stem):
            return f"!is an archive ({suffix}): unpack it first"
        return f"no FITS file by its name ({path.suffix or 'no suffix'})"
    return ""


def _not_raw(folder):
    """Why a whole folder holds no raw frames: products of this package, or a simulated truth."""
    folder = Path(folder)
    if folder.name == "truth" and all((folder / f).is_file() for f in _TRUTH_TABLES):
        return "the truth of a simulation"
    record = folder / "night.json"
    try:
        if not record.is_file() or record.stat().st_size > 1 << 28:
            return ""
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    is_record = isinstance(content, dict) and {"software", "groups"} <= set(content)
    return "a product of an earlier run" if is_record else ""
