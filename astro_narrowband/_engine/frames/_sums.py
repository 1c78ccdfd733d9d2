"""Whether the data of a FITS file are those that were written: its DATASUM cards."""

import numpy as np

from astro_narrowband._engine.files import FileError, open_regular
from astro_narrowband._engine.frames._fits_image import PackedFile, TiledFile

#: Bytes of a block of a FITS file.
BLOCK = 2880


def damage_of(structure):
    """
    Return why the data of a file are not those that were written, or ``""``.

    DATASUM of every HDU that has one is compared (the ones' complement sum of the
    data as 32-bit words); CHECKSUM is not, since programs that edit a header let
    it grow stale. Tiles without sums are decompressed, all of them. Packed files have
    sums of their own, which were compared when they were expanded.

    Parameters
    ----------
    structure : `Structure`

    Raises
    ------
    InputError
        If the file cannot be read any more.
    """
    source = structure.image.source
    if isinstance(source, PackedFile):
        return ""
    for i, start, size, text in structure.sums:
        total = _data_sum(source, start, size)
        if total != int(text):
            return f"DATASUM = {text} in HDU {i}, but its data have {total}"
    if isinstance(source, TiledFile) and not structure.sums:
        try:
            n_rows = max(1, (1 << 20) // structure.image.shape[1])
            for y in range(0, structure.image.shape[0], n_rows):
                rows = slice(y, min(y + n_rows, structure.image.shape[0]))
                structure.image.read_stored(rows)
        except FileError as error:
            return error.what
    return ""


def sums_of(hdus):
    """Return ``(index, offset, bytes, DATASUM)`` of the HDUs that have a sum to compare with."""
    sums = []
    for i, hdu in enumerate(hdus):
        try:
            text = str(hdu.header.get("DATASUM", "")).strip()
        except Exception:  # noqa: S112 - a damaged card holds no sum to compare with
            continue
        if text.isdecimal() and text.isascii() and len(text) <= 10 and hdu.size:
            sums.append((i, hdu.offset, hdu.size, text))
    return sums


def _data_sum(source, offset, size):
    total, left = 0, -(-size // BLOCK) * BLOCK
    file, _ = open_regular(source.path, source.identity)
    with open(file, "rb") as stream:
        stream.seek(offset)
        while left > 0 and (block := stream.read(min(left, 1 << 22))):
            left -= len(block)
            block += b"\0" * (-len(block) % 4)
            total += int(np.frombuffer(block, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total
