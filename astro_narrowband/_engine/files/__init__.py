"""
Files that are whole or absent, under names that are safe.

Everything this package writes goes through here: into a temporary file in the
same folder, flushed to the disk, then renamed. A run that is killed, a disk
that fills up, a symbolic link in the way: what has a product's name is always
a whole product, the new one or the old one.

The same pixels and header give the same bytes: the checksum cards of FITS files
do not hold the time of day.
"""

import io
import os
import warnings

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS

from astro_narrowband._engine.files._header_cards import clean_header, set_card
from astro_narrowband._engine.files._identity import (
    ChangedError,
    FileError,
    Identity,
    open_regular,
    unreadable,
)
from astro_narrowband._engine.files._whole import (
    Part,
    Temporary,
    digest,
    is_full,
    product_error,
    sweep,
    writing,
)
from astro_narrowband._engine.text import one_line
from astro_narrowband._engine.wcs import put_wcs
from astro_narrowband.exceptions import InputError, ProductError


def sha256(path, identity=None):
    """
    Return the SHA-256 of a regular file, as 64 hexadecimal digits.

    The interpreter lock is released meanwhile, so that threads do hash side by side.

    Parameters
    ----------
    path : path-like
    identity : `Identity`, optional
        What the file must be, before and after.

    Raises
    ------
    ChangedError
        If it is not that any more.
    InputError
        If it cannot be read.
    """
    try:
        descriptor, now = open_regular(path, identity)
        try:
            hashed = digest(descriptor)
            now.check(path, os.fstat(descriptor))
            return hashed
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{one_line(path)}: cannot be read ({error.strerror})") from error


def check_absent(path, *, overwrite=False):
    """
    Raise `ProductError` if there is a file that was not to be overwritten.

    Parameters
    ----------
    path : path-like
    overwrite : bool, optional
        It was.
    """
    if not overwrite and os.path.lexists(path):
        raise ProductError(
            f"{one_line(path)}: is there already, and is not overwritten: give another name, or "
            "overwrite=True (--overwrite)"
        )


def write_bytes(path, data, *, commit=None):
    """
    Write ``data`` as a file that is whole or absent.

    Parameters
    ----------
    path : path-like
        A file there, or a symbolic link, is replaced.
    data : bytes-like
    commit : callable, optional
        Called with the SHA-256 when all is on the disk and only the name is
        missing.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ProductError
        If it could not be written. What was there before is still there.
    """
    with Part(path, commit) as part:
        part.write(data)
    return part.sha256


def write_text(path, text, *, commit=None):
    """Write ``text`` as UTF-8; everything else as in `write_bytes`."""
    # Names of files may hold bytes that are not UTF-8 (lone surrogates in Python).
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), commit=commit)


def write_table(path, table, *, commit=None):
    """
    Write a table as ECSV; everything else as in `write_bytes`.

    Text cells become one line without control characters. A cell that a
    spreadsheet would run as a formula (it starts with ``=``, ``+``, ``-`` or
    ``@``) gets an apostrophe in front, as spreadsheets themselves write it.

    Parameters
    ----------
    path : path-like
    table : `~astropy.table.Table`
        Not changed.
    commit : callable, optional

    Returns
    -------
    str
        SHA-256 of the file.
    """
    table = table.copy(copy_data=False)
    for name in table.colnames:
        column = table[name]
        if getattr(column, "dtype", np.dtype(float)).kind not in "UO":
            continue
        mask = getattr(column, "mask", None)
        text = [_cell(value) if isinstance(value, str) else value for value in column.tolist()]
        if column.dtype.kind == "U":
            new = np.array(text, dtype=str) if text else np.array([], dtype="U1")
        else:
            new = np.empty(len(text), dtype=object)
            new[:] = text
        table[name] = new if mask is None else np.ma.array(new, mask=mask)
    buffer = io.StringIO()
    table.write(buffer, format="ascii.ecsv")
    return write_text(path, buffer.getvalue(), commit=commit)


def _cell(text):
    text = one_line(text)
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def write_fits(path, image, *, commit=None):
    """
    Write an image or a list of HDUs, whole or absent, with CHECKSUM and DATASUM.

    The same pixels and headers give the same bytes, at any time. Headers pass
    `clean_header`. It does not remove a card that is wrong, and it does not
    compress.

    Parameters
    ----------
    path : path-like
        A file there, or a symbolic link, is replaced.
    image : `~astropy.nddata.CCDData` or `~astropy.io.fits.HDUList`
        Not changed. A CCDData gets the extensions UNCERT and MASK, and
        ``CCDData.read`` opens them again.
    commit : callable, optional
        Called with the SHA-256 when all is on the disk and only the name is
        missing.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ProductError
        If it could not be written. What was there before is still there.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband._engine.files import write_fits
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "image.fits"
    >>> digest = write_fits(path, CCDData(np.ones((2, 3), np.float32), unit="electron/s"))
    >>> CCDData.read(path).unit
    Unit("electron / s")
    """
    hdus = _hdus(image, path) if isinstance(image, CCDData) else image
    with Part(path, commit) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # long comments are cut
        for hdu in hdus:  # one at a time: each is a copy
            with writing(path):
                hdu = _as_stored(hdu)
                hdu.add_checksum(when="when it was written")
                fits.append(part.name, hdu.data, hdu.header, verify=False)
    return part.sha256


def _as_stored(hdu):
    """A copy of an HDU that lies as it does in a file: astropy would swap the bytes in place."""
    if not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU):
        return hdu.copy()
    data = hdu.data
    if data is not None:
        if data.dtype.kind == "b":
            data = data.view(np.uint8)
        data = np.ascontiguousarray(data, data.dtype.newbyteorder(">"))
    return type(hdu)(data, clean_header(hdu.header))


def _hdus(ccd, path):
    if ccd.data.dtype.kind not in "biuf" or ccd.data.dtype in (np.float16, np.longdouble):
        raise ProductError(
            f"{one_line(path)}: pixels of type {ccd.data.dtype} cannot be written to FITS: "
            "convert them to float32 first"
        )
    header = clean_header(ccd.header)
    if isinstance(ccd.wcs, WCS):
        put_wcs(header, ccd.wcs)
    plain = CCDData(ccd.data, unit=ccd.unit, header=header, mask=ccd.mask, copy=False)
    plain.uncertainty = ccd.uncertainty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        return plain.to_hdu()
