"""Header cards that any FITS image can be written with."""

import math
import re
import warnings

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.text import ascii_text

#: Cards that describe how the pixels lie in a file: written anew, never inherited.
_STRUCTURAL = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM"
    r"|DATASUM|ZHECKSUM|ZDATASUM|ZIMAGE|ZTABLE|ZSIMPLE|ZEXTEND|ZTENSION|ZBITPIX|ZNAXIS\d*|ZPCOUNT"
    r"|ZGCOUNT|ZCMPTYPE|ZTILE\d+|ZNAME\d+|ZVAL\d+|ZMASKCMP|ZQUANTIZ|ZDITHER0|ZBLANK|ZSCALE|ZZERO"
    r"|TFIELDS|THEAP|END|)$"
)
_PRINTABLE = re.compile(r"[^\x20-\x7e]")


def clean_header(header):
    """
    Copy a header, so that it can be written with any image.

    Cards that say how pixels lie in a file (BITPIX, BZERO, CHECKSUM, ...) are
    left out. NaN and infinite values become undefined ones; other alphabets
    are spelled in ASCII, control characters become blanks; a card that cannot
    be read is kept as a COMMENT.

    Parameters
    ----------
    header : `~astropy.io.fits.Header` or mapping

    Returns
    -------
    `~astropy.io.fits.Header`
    """
    out = fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy repairs the cards of an input as it reads them
        if isinstance(header, fits.Header):
            for card in header.cards:
                _append(out, card)
        else:
            for key, value in dict(header).items():
                value, comment = value if isinstance(value, tuple) else (value, "")
                _append(out, fits.Card, str(key), value, comment)
    if any(len(card.image) > 80 for card in out.cards) and "LONGSTRN" not in out:
        # The convention that CONTINUE cards are of must be named before them.
        out.insert(0, ("LONGSTRN", "OGIP 1.0", "The OGIP long string convention is used"))
    return out


def set_card(header, keyword, value, comment=""):
    r"""
    Set a header value to what FITS can hold of ``value``; see `clean_header`.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Changed in place.
    keyword : str
    value : object
        Text from elsewhere, say.
    comment : str, optional

    Examples
    --------
    >>> from astropy.io import fits
    >>> from astro_narrowband._engine.files import set_card
    >>> header = fits.Header()
    >>> set_card(header, "FILTER", "Hα\x1b")
    >>> header["FILTER"]
    'Halpha'
    """
    header.remove(keyword, ignore_missing=True, remove_all=True)
    if len(keyword) > 8:
        keyword = f"HIERARCH {keyword}"
    header.append((_printable(keyword), _value(value), _printable(comment)), end=True)


def _append(out, card, *parts):
    try:
        key, value, comment = parts or (card.keyword, card.value, card.comment)
        if _STRUCTURAL.match(key.upper()):
            return
        key = _printable(key)
        if key in ("COMMENT", "HISTORY"):
            out.add_history(_printable(value)) if key == "HISTORY" else out.add_comment(
                _printable(value)
            )
            return
        new = fits.Card(key, _value(value), _printable(comment or ""))
        new.image  # noqa: B018 - formats the card, and raises here rather than while writing
        out.append(new, end=True)
    except (ValueError, TypeError, AttributeError, fits.VerifyError):
        text = " ".join(str(piece) for piece in parts) if parts else _raw(card)
        out.add_comment("unreadable card: " + _printable(text).strip())


def _raw(card):
    return card._image or str(card.keyword)


def _printable(text):
    return _PRINTABLE.sub(" ", ascii_text(str(text), "?"))


def _value(value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, float | complex) and not (
        math.isfinite(value.real) and math.isfinite(value.imag)
    ):
        return None
    if isinstance(value, bool | int | float | complex | fits.card.Undefined) or value is None:
        return value
    return _printable(value)
