"""
FITS files as bytes: where the images lie, and that they are really there.

Files of a night come from anywhere: cut short, compressed, with a NAXIS that
lies, or no FITS at all. So the structure is read here, header by header, and
every size is compared with the file before anything is allocated. Pixels are
left where they are; `FitsImage` says how to get at them.
"""

import math
import os
import re
import threading
import time
import warnings
from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.files import Identity, open_regular
from astro_narrowband._engine.frames._fits_image import FitsImage, PackedFile, PlainFile, TiledFile
from astro_narrowband._engine.frames._packed import opener_of
from astro_narrowband._engine.frames._sums import BLOCK, sums_of
from astro_narrowband._engine.frames._tiles import TileError, tiled_headers
from astro_narrowband.exceptions import InputError, MissingFileError, ProductError

#: The largest image that is opened, unless told otherwise.
MAX_PIXELS = 1 << 28

#: No frame of a camera is packed tighter than this; what claims to be is a bomb, or
#: damaged, and would take long. Up to so many bytes anything is unpacked.
_TIGHTEST, _ALWAYS = 200, 1 << 26
#: A header longer than this (36 cards a block) is damage, not a header.
_MOSTBLOCKS = 2000
_MOST_HDUS = 500
#: FITS is ASCII; of what else is written, the letters of filters and units are kept.
_LETTERS = tuple(
    (letter.encode(), ascii_) for letter, ascii_ in (("α", b"a "), ("β", b"b "), ("µ", b"u "))
)
_TYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
#: What cannot be an image of the sky among several in one file.
_SIDE_IMAGES = re.compile(
    "UNCERT|MASK|ERR|ERROR|DQ|VAR|VARIANCE|WEIGHT|WHT|IVAR|BPM|NEXP|TEXP|PREVIEW|THUMBNAIL"
)
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"II*\x00": "a TIFF or camera raw file",
    b"MM\x00*": "a TIFF or camera raw file",
    b"XISF": "an XISF file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x9d": "a compressed file (.Z)",
    b"\x1f\x8b": "gzip within gzip",
    b"{": "JSON",
    b"\x28\xb5\x2f\xfd": "a compressed file (zstd)",
    b"<": "a web page or XML",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"%PDF": "a PDF document",
}
_UNPACK = ("a compressed file", "a zip archive", "gzip")


#: What was parsed of the files opened last, by path, limit and identity.
_PARSED, _MOST_PARSED, _LOCK = OrderedDict(), 512, threading.Lock()
#: Nanoseconds after which a change cannot have the time of the one before.
_SETTLED = 2_000_000_000


class Hdu(NamedTuple):
    """One header and data unit: header, offset of its first byte and of its data, bytes of data."""

    header: fits.Header
    start: int
    offset: int
    size: int

    @property
    def name(self):
        """EXTNAME, upper case."""
        return str(self.header.get("EXTNAME", "")).strip().upper()

    @property
    def is_image(self):
        """Whether it is an image of two axes at least."""
        is_table = "XTENSION" in self.header and self.header["XTENSION"].strip() != "IMAGE"
        return not is_table and self.size > 0 and self.header["NAXIS"] >= 2

    @property
    def is_tiled(self):
        """Whether it is a tile-compressed image."""
        return self.header.get("ZIMAGE") is True


class Structure(NamedTuple):
    """
    The image of a file, and what belongs to it.

    Attributes
    ----------
    header : `~astropy.io.fits.Header`
        That of the image, completed from the primary one.
    primary : `~astropy.io.fits.Header` or None
        The primary header, if the image lies in an extension.
    image, mask, uncertainty : `FitsImage` or None
    kind : str
        The class of the uncertainty.
    identity : `Identity`
        Of the file, before it was read.
    sums : list
        Of its data, as `damage_of` compares them.
    """

    header: fits.Header
    primary: fits.Header | None
    image: FitsImage
    mask: FitsImage | None
    uncertainty: FitsImage | None
    kind: str
    identity: Identity
    sums: list


# --------------------------------------------------------------------------- structure


def read_structure(path, *, max_pixels=MAX_PIXELS, identity=None):
    """
    Return the `Structure` of a FITS file.

    Parameters
    ----------
    path : `~pathlib.Path`
        A regular file, plain or compressed (gzip, bzip2, xz by its first bytes,
        whatever its name; tile-compressed).
    max_pixels : int, optional
        Larger images are refused before anything is allocated or expanded.
    identity : `Identity`, optional
        What the file must still be.

    Raises
    ------
    ChangedError
        If it is not that any more.
    InputError
        If it is no such file, truncated, damaged, or has not one 2-D image.
    ProductError
        If there is no space to expand it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file, identity = open_regular(path, identity)
            with open(file, "rb") as stream:
                structure = _parsed_once(stream, path, max_pixels, identity)
        header, primary = structure.header, structure.primary
        return structure._replace(header=header.copy(), primary=primary and primary.copy())
    except (InputError, ProductError):
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{path}: does not exist: give the path of a FITS file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): copy it again") from None
    except Exception as error:  # astropy raises almost any type on damaged headers
        detail = str(error).splitlines()[0][:200] if str(error) else "no details"
        raise InputError(
            f"{path}: cannot be read as FITS ({type(error).__name__}: {detail}): "
            "copy it again or take it out of the folder"
        ) from error


def _parsed_once(stream, path, max_pixels, identity):
    """As `_structure`, which is not asked twice for a file that is still the same."""
    key = path, max_pixels, identity
    with _LOCK:
        structure = _PARSED.get(key)
    if structure is None:
        structure = _structure(stream, path, max_pixels, identity)
        # One that was written just now may be written again before its times tell.
        settled = time.time_ns() - identity.changed > _SETTLED
        source = structure.image.source
        holds_copy = isinstance(source, TiledFile) and source.copy
        if settled and not holds_copy:
            with _LOCK:
                _PARSED[key] = structure
                while len(_PARSED) > _MOST_PARSED:
                    _PARSED.popitem(last=False)
    return structure


def _structure(stream, path, max_pixels, identity):
    source = PlainFile(path, identity)
    copy = None
    if opener_of(stream.read(8)):
        source = PackedFile(path, identity, partial(_expand, path=path, max_pixels=max_pixels))
        copy = source.copy()
        with open(os.dup(copy.descriptor), "rb") as expanded:
            hdus = _hdus_of(expanded, path, max_pixels)
    else:
        hdus = _hdus_of(stream, path, max_pixels)
    chosen = _choose(hdus, path)
    if chosen.is_tiled:
        images, chosen = _untiled(hdus, chosen, source, copy)
    else:
        size = identity.size if copy is None else copy.size
        images = [(hdu, source, size) for hdu in hdus]
    parts = {}
    for hdu, its_source, size in images:
        if hdu is chosen:
            image = _image_of(hdu, its_source, size, max_pixels)
        elif hdu is not hdus[0] and hdu.is_image and hdu.name in ("UNCERT", "MASK"):
            parts[hdu.name] = (hdu, its_source, size)
    header, primary = chosen.header.copy(), None
    if chosen is not hdus[0]:
        primary = hdus[0].header
        header.extend(primary.cards, unique=True, update=False)
    parts = {
        name: _image_of(*piece, max_pixels)
        for name, piece in parts.items()
        if _shape(piece[0].header) == image.shape
    }
    kind = ""
    if "UNCERT" in parts:
        hdu = next(hdu for hdu, _, _ in images if hdu.name == "UNCERT" and hdu is not chosen)
        kind = str(hdu.header.get("UTYPE", "StdDevUncertainty"))
    return Structure(
        header, primary, image, parts.get("MASK"), parts.get("UNCERT"), kind, identity,
        sums_of(hdus),
    )  # fmt: skip


def _untiled(hdus, chosen, plain, copy):
    """Return ``(hdu, source, bytes that it needs)`` of the images of a tiled file; the chosen."""
    path, identity = plain.path, plain.identity
    size = identity.size if copy is None else copy.size
    if size < chosen.offset + chosen.size:
        raise InputError(f"{path}: is truncated: copy it again")
    indices = [
        i
        for i, hdu in enumerate(hdus)
        if hdu is chosen
        or (hdu.name in ("UNCERT", "MASK") and (hdu.is_image or hdu.is_tiled) and i > 0)
    ]
    pixels = _tiled_pixels(chosen.header, path)
    if pixels * len(indices) > _TIGHTEST * chosen.size + _ALWAYS // 4:
        raise InputError(
            f"{path}: is damaged (its tiles, of {chosen.size} bytes, claim {pixels} pixels): "
            "copy it again"
        )
    tiled = [i for i in indices if hdus[i].is_tiled]
    try:
        where = path if copy is None else copy.path
        texts = tiled_headers(where, identity, tiled, pixels=pixels)
    except TileError as error:
        raise InputError(f"{path}: is damaged ({error}): copy it again") from None
    headers = dict(zip(tiled, texts, strict=True))
    images, first = [], None
    for i in indices:
        hdu, source = hdus[i], plain
        if i in headers:
            header = _checked(fits.Header.fromstring(headers[i]), path)
            hdu = Hdu(header, 0, 0, _data_size(header, path, MAX_PIXELS))
            source = TiledFile(path, identity, i, pixels, copy)
        if hdus[i] is chosen:
            first = hdu
        images.append((hdu, source, max(size, hdu.size)))
    return images, first


def _shape(header):
    shape = tuple(header[f"NAXIS{i}"] for i in range(header["NAXIS"], 0, -1))
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _choose(hdus, path):
    """Return the HDU of the image: the primary one, or the only one that may be it."""
    if hdus[0].is_image:
        return hdus[0]
    images = [hdu for hdu in hdus if hdu.is_image or hdu.is_tiled]
    wanted = [hdu for hdu in images if not _SIDE_IMAGES.fullmatch(hdu.name)] or images
    if not wanted:
        raise InputError(f"{path}: holds no image: take it out of the folder")
    science = [hdu for hdu in wanted if hdu.name == "SCI"]
    if len(wanted) > 1 and len(science) != 1:
        raise InputError(
            f"{path}: holds {len(wanted)} images (chips, or amplifiers): "
            "split it into files of one image first"
        )
    return science[0] if len(wanted) > 1 else wanted[0]


def _image_of(hdu, source, size, max_pixels):
    path, header = source.path, hdu.header
    shape = _shape(header)
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"{path}: has shape {shape} and is not one 2-D image: split it into planes first"
        )
    _check_pixels(math.prod(shape), path, max_pixels)
    stored = np.dtype(_TYPES[header["BITPIX"]])
    needed = hdu.offset + hdu.size
    if size < needed:
        raise InputError(
            f"{path}: is truncated: {size} bytes, its header (NAXIS1 = {shape[1]}, "
            f"NAXIS2 = {shape[0]}) needs {needed}: copy it again"
        )
    scale, zero = (
        _scaling(header, key, default, path) for key, default in (("BSCALE", 1.0), ("BZERO", 0.0))
    )
    blank = header.get("BLANK") if stored.kind != "f" else None
    if blank is not None and (isinstance(blank, bool) or not isinstance(blank, int)):
        raise InputError(f"{path}: BLANK = {blank!r} is not a whole number: correct the header")
    if blank is not None and not np.iinfo(stored).min <= blank <= np.iinfo(stored).max:
        blank = None
    return FitsImage(source, hdu.offset, stored, shape, scale, zero, blank)


def _scaling(header, keyword, default, path):
    value = header.get(keyword, default)
    number = float(value) if isinstance(value, int | float) else math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (keyword == "BSCALE" and not number):
        raise InputError(f"{path}: {keyword} = {value!r} is not a scale: correct the header")
    return number


def _check_pixels(pixels, path, max_pixels):
    if pixels > max_pixels:
        raise InputError(
            f"{path}: has {pixels} pixels, more than {max_pixels}: "
            "raise --max-pixels if that is right"
        )


# --------------------------------------------------------------------------- headers


def _hdus_of(file, path, max_pixels):
    """Return the HDUs of a plain file that is open, as far as they are whole headers."""
    hdus = []
    file.seek(0)
    while len(hdus) < _MOST_HDUS:
        start = file.tell()
        header = _read_header(file.read, path, first=not hdus)
        if header is None:
            break
        size = _data_size(header, path, max_pixels)
        hdus.append(Hdu(header, start, file.tell(), size))
        file.seek(-(-size // BLOCK) * BLOCK, os.SEEK_CUR)
    return hdus


def _read_header(read, path, *, first, copy=None):
    """Return the header at this place, or ``None`` where there is none."""
    blocks = []
    while True:
        block = read(BLOCK)
        if not blocks:
            if first:
                _check_start(block, path)
            elif not block.startswith(b"XTENSION"):
                return None
        if len(block) < BLOCK or len(blocks) > _MOSTBLOCKS:
            if not first:
                return None
            raise InputError(f"{path}: its header has no end: copy it again")
        blocks.append(block)
        if _has_end(block):
            break
    raw = b"".join(blocks)
    if copy is not None:
        copy(raw)
    for letter, ascii_ in _LETTERS:
        raw = raw.replace(letter, ascii_)
    return _checked(fits.Header.fromstring(raw), path)


def _checked(header, path):
    """Return a header, if it has the cards without which nothing is known of its data."""
    for keyword in ("BITPIX", "NAXIS"):
        value = header.get(keyword)
        good = value in _TYPES if keyword == "BITPIX" else isinstance(value, int) and value >= 0
        if not good or isinstance(value, bool):
            raise InputError(f"{path}: {keyword} = {value!r} is not possible: copy it again")
    return header


def _has_end(block):
    position = block.find(b"END")
    while position >= 0:
        if position % 80 == 0 and not block[position + 3 : position + 80].strip(b" \x00"):
            return True
        position = block.find(b"END", position + 1)
    return False


def _check_start(block, path):
    if block.startswith(b"SIMPLE  ="):
        return
    if not block:
        raise InputError(f"{path}: is empty: copy it again")
    start = block.lstrip()  # of text
    what = next((w for magic, w in _OTHERS.items() if start.startswith(magic)), "something else")
    todo = "unpack it first" if what.startswith(_UNPACK) else "take it out of the folder"
    raise InputError(f"{path}: is not FITS but {what}: {todo}")


def _data_size(header, path, max_pixels):
    """Return the number of bytes of data that a header announces."""
    axes = []
    for i in range(1, header["NAXIS"] + 1):
        length = header.get(f"NAXIS{i}")
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise InputError(f"{path}: NAXIS{i} = {length!r} is not a length: copy it again")
        axes.append(length)
    if header.get("GROUPS") is True and axes[:1] == [0]:
        raise InputError(f"{path}: holds random groups and no image: take it out of the folder")
    is_table = "XTENSION" in header and str(header["XTENSION"]).strip() != "IMAGE"
    counts = [header.get("PCOUNT", 0), header.get("GCOUNT", 1)] if "XTENSION" in header else [0, 1]
    if not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in counts):
        raise InputError(f"{path}: PCOUNT, GCOUNT = {counts} are not possible: copy it again")
    pixels = math.prod(axes) if axes else 0
    if not is_table:
        _check_pixels(pixels, path, max_pixels)
    if header.get("ZIMAGE") is True:
        _check_pixels(_tiled_pixels(header, path), path, max_pixels)
    return (counts[0] + pixels) * counts[1] * abs(header["BITPIX"]) // 8


def _tiled_pixels(header, path):
    """Return the pixels of a tile-compressed image, or of its largest tile if that is more."""
    naxis = header.get("ZNAXIS")
    lengths = []
    if isinstance(naxis, int) and 0 < naxis < 1000:
        lengths = [header.get(f"ZNAXIS{i}") for i in range(1, naxis + 1)]
        tiles = [header.get(f"ZTILE{i}", 1) for i in range(1, naxis + 1)]
    if not lengths or not all(isinstance(n, int) and n > 0 for n in (*lengths, *tiles)):
        raise InputError(f"{path}: its ZNAXIS cards make no image: copy it again")
    return max(math.prod(lengths), math.prod(tiles))


# --------------------------------------------------------------------------- expansion


def _expand(stream, write, path, max_pixels):
    """Copy the HDUs of a stream, and nothing behind them: what a header announces, no more."""
    budget = min(16 * max_pixels, _TIGHTEST * os.stat(path).st_size) + _ALWAYS
    for n in range(_MOST_HDUS):
        header = _read_header(stream.read, path, first=n == 0, copy=write)
        if header is None:
            return
        size = _data_size(header, path, max_pixels)
        budget -= size
        if budget < 0:
            raise InputError(
                f"{path}: expands to too much: give it unpacked (or raise --max-pixels) if it is "
                "right"
            )
        left = -(-size // BLOCK) * BLOCK
        while left and (block := stream.read(min(left, 1 << 20))):
            write(block)
            left -= len(block)
        if left:
            return
