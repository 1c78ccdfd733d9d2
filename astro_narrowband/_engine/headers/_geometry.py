"""Binning, window, sections and colour pattern of a frame, as headers give them."""

import math
import re

from astro_narrowband._engine.headers.spellings import one_value, parse_number, raw_values
from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband.exceptions import InputError

_BINNING_PAIRS = [
    (p + "X" + s, p + "Y" + s)
    for p, s in (("", "BINNING"), ("CCD", "BIN"), ("BIN", ""), ("", "BIN"), ("BINNING", ""))
] + [("CCDBIN1", "CCDBIN2")]
_ORIGINS = [
    (name, name.replace("X", "Y")) for name in ("XORGSUBF", "FRAMEX", "XSTART", "STARTX", "ROIX")
]

#: The overscan of one of several amplifiers, by its number or letter.
_OF_ONE = re.compile(r"(BIASSEC|BSEC)_?(\d{1,2}|[A-H])", re.ASCII)


def read_binning(header):
    """
    Return ``(x, y)`` binning, or ``None`` where no keyword gives it.

    Raises
    ------
    InputError
        If it is not a whole number from 1 to 64.
    """
    for pair in _BINNING_PAIRS:
        cards = [one_value(header, keyword) for keyword in pair]
        if any(cards):
            values = [f[0] if f else (cards[0] or cards[1])[0] for f in cards]
            return tuple(_binning(v, k) for v, k in zip(values, pair, strict=True))
    for keyword in ("CCDSUM", "BINNING", "BIN", "CCDBIN"):
        card = one_value(header, keyword)
        if card is not None and clean_text(card[0]):
            parts = [p for p in re.split(r"[^\d.]+", clean_text(card[0])) if p]
            if len(parts) not in (1, 2):
                raise InputError(f"{keyword} = {show_value(card[0])} is not a binning such as 2x2")
            x, y = (_binning(p, keyword) for p in (parts * 2)[:2])
            return x, y
    return None


def _binning(value, keyword):
    try:
        number = parse_number(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not (1 <= number <= 64 and number == int(number)):
        raise InputError(
            f"{keyword} = {show_value(value)} is not a binning (a whole number from 1)"
        )
    return int(number)


def read_window(header):
    """Return the window's origin on the detector, ``(x, y)`` from 0, or ``None``."""
    for x, y in _ORIGINS:
        cards = [one_value(header, x), one_value(header, y)]
        if any(cards):
            origin = []
            for one, keyword in zip(cards, (x, y), strict=True):
                try:
                    origin.append(round(parse_number(one[0])) if one else 0)
                except (ValueError, TypeError, OverflowError):
                    raise InputError(f"{keyword} = {show_value(one[0])} is not a pixel") from None
            return tuple(origin)
    for keyword in ("CCDSEC", "DETSEC", "ROI", "SUBRECT"):
        card = one_value(header, keyword)
        if card is not None and (numbers := re.findall(r"\d+", str(card[0]))):
            if len(numbers) == 4 and keyword in ("CCDSEC", "DETSEC"):
                return int(numbers[0]) - 1, int(numbers[2]) - 1
            return tuple(int(n) for n in numbers[:4])
    return None


def _section(header, keyword, shape):
    card = one_value(header, keyword)
    if card is None or not clean_text(card[0]):
        return None
    match = re.fullmatch(
        r"\[\s*(\d+)\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*\]", clean_text(card[0]), re.ASCII
    )
    x1, x2, y1, y2 = (int(n) if len(n) < 10 else 0 for n in match.groups()) if match else [0] * 4
    if not (1 <= x1 <= x2 <= shape[1] and 1 <= y1 <= y2 <= shape[0]):
        raise InputError(
            f"{keyword} = {show_value(card[0])} is not a section [x1:x2,y1:y2] of this image "
            f"({shape[1]} by {shape[0]} pixels)"
        )
    return slice(y1 - 1, y2), slice(x1 - 1, x2)


def read_overscan(header, shape):
    """
    Return BIASSEC as ``(rows, columns)`` slices into an array of ``shape``, or ``None``.

    Raises
    ------
    InputError
        If it is none, or there is one for each of several amplifiers.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import read_overscan
    >>> read_overscan({"BIASSEC": "[   4:  13,   1: 520]"}, (520, 536))
    (slice(0, 520, None), slice(3, 13, None))
    """
    several = sorted({key for key in header if isinstance(key, str) and _OF_ONE.fullmatch(key)})
    if len(several) > 1 and not {"OVERSCAN", "SUBOSCAN"} & set(header):
        raise InputError(
            f"{several[0]} to {several[-1]}: each amplifier has an overscan of its own: subtract "
            "and trim each first (ccdproc.subtract_overscan, ccdproc.trim_image)"
        )
    return _section(header, "BIASSEC", shape)


def read_trim(header, shape):
    """Return TRIMSEC as ``(rows, columns)`` slices, or ``None``; the whole image is ``None``."""
    section = _section(header, "TRIMSEC", shape)
    return None if section == (slice(0, shape[0]), slice(0, shape[1])) else section


def read_bayer_shift(header, shape):
    """
    Return ``(x, y)``, 0 or 1 each: where in a Bayer pattern the first pixel of a file lies.

    XBAYROFF and YBAYROFF shift it. A pattern is written as it is seen, the top row
    first: with ROWORDER = BOTTOM-UP that is the last row of the file.

    Raises
    ------
    InputError
        If an offset is not a whole number.
    """
    shift = []
    for keywords in (("XBAYROFF", "BAYOFFX"), ("YBAYROFF", "BAYOFFY")):
        cards = [(k, one) for k in keywords if (one := one_value(header, k)) is not None]
        value = 0
        for keyword, one in cards[:1]:
            try:
                value = parse_number(one[0])
            except (ValueError, TypeError, OverflowError):
                value = math.nan
            if value != value // 1:
                raise InputError(
                    f"{keyword} = {show_value(one[0])} is not a whole number of pixels"
                )
        shift.append(int(value) % 2)
    order = [clean_text(value).upper() for value, _ in raw_values(header, "ROWORDER")[:1]]
    if order == ["BOTTOM-UP"]:
        shift[1] = (shift[1] + shape[0] - 1) % 2
    return tuple(shift)
