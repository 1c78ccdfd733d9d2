"""Where the pixels of a frame lie, on the detector and on the sky, as headers give it."""

import math
import re

from astro_narrowband._engine.headers.spellings import (
    COUNTS,
    number_of,
    one_value,
    parse_number,
    raw_values,
    text_of,
)
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
        if text := text_of(header, keyword):
            parts = [p for p in re.split(r"[^\d.]+", text) if p]
            if len(parts) not in (1, 2):
                raise InputError(f"{keyword} = {show_value(text)} is not a binning such as 2x2")
            x, y = (_binning(p, keyword) for p in (parts * 2)[:2])
            return x, y
    return None


def _binning(value, keyword):
    try:
        number = parse_number(value)
    except ValueError:
        number = math.nan
    if not (1 <= number <= 64 and number == int(number)):
        raise InputError(
            f"{keyword} = {show_value(value)} is not a binning (a whole number from 1)"
        )
    return int(number)


def read_window(header):
    """Return the window's origin on the detector, ``(x, y)`` from 0, or ``None``."""
    for pair in _ORIGINS:
        cards = [number_of(header, keyword) for keyword in pair]
        if any(cards):
            return tuple(round(card[0]) if card else 0 for card in cards)
    for keyword in ("CCDSEC", "DETSEC", "ROI", "SUBRECT"):
        if numbers := re.findall(r"\d+", text_of(header, keyword)):
            if len(numbers) == 4 and keyword in ("CCDSEC", "DETSEC"):
                return int(numbers[0]) - 1, int(numbers[2]) - 1
            return tuple(int(n) for n in numbers[:4])
    return None


def _section(header, keyword, shape):
    text = text_of(header, keyword)
    if not text:
        return None
    number = r"\s*(\d+)\s*"
    match = re.fullmatch(rf"\[{number}:{number},{number}:{number}\]", text, re.ASCII)
    x1, x2, y1, y2 = (int(n) if len(n) < 10 else 0 for n in match.groups()) if match else [0] * 4
    if not (1 <= x1 <= x2 <= shape[1] and 1 <= y1 <= y2 <= shape[0]):
        raise InputError(
            f"{keyword} = {show_value(text)} is not a section [x1:x2,y1:y2] of this image "
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
        cards = [(card[0], k) for k in keywords if (card := number_of(header, k))]
        value, keyword = cards[0] if cards else (0, "")
        if value % 1:
            raise InputError(f"{keyword} = {value:g} is not a whole number of pixels")
        shift.append(int(value) % 2)
    order = [clean_text(value).upper() for value, _ in raw_values(header, "ROWORDER")[:1]]
    if order == ["BOTTOM-UP"]:
        shift[1] = (shift[1] + shape[0] - 1) % 2
    return tuple(shift)


#: Angles of a rotator, and of the camera on the sky, which turns by 180 deg with a German mount.
_ROTATORS = {"ROTATANG": 360, "ROTATOR": 360, "ROTANGLE": 360, "OBJCTROT": 180, "POSANGLE": 180}
_POINTINGS = (
    *(("RA", "DEC"), ("OBJCTRA", "OBJCTDEC"), ("RA_OBJ", "DEC_OBJ"), ("TELRA", "TELDEC")),
    *(("CRVAL1", "CRVAL2"),),
)


def _number(header, keyword):
    """A number, or NaN where there is none that can be read."""
    try:
        card = number_of(header, keyword)
    except InputError:
        card = None
    return card[0] if card else math.nan


def read_rotator(header):
    """
    Return ``(angle [deg], period [deg], keyword)`` of the rotator, or ``None``.

    Those of a rotator's own scale (ROTATANG, ROTATOR) have a period of 360 deg, position
    angles on the sky (OBJCTROT, POSANGLE) of 180: the mount flips them.
    """
    for keyword, period in _ROTATORS.items():
        angle = _number(header, keyword)
        if not math.isnan(angle):
            return angle % period, period, keyword
    return None


def _angle(header, keyword, *, hours):
    """An angle [deg]: a number, or text in hours or degrees, minutes and seconds."""
    try:
        card = one_value(header, keyword)
        if card is None:
            return math.nan
        text = clean_text(card[0])
        pieces = [float(piece) for piece in re.findall(r"\d+(?:\.\d+)?", text)]
        if isinstance(card[0], str) and len(pieces) in (2, 3):
            size = sum(piece / 60**i for i, piece in enumerate(pieces)) * (15 if hours else 1)
            return -size if text.startswith("-") else size
        return parse_number(card[0])
    except (InputError, ValueError):
        return math.nan


def read_pointing(header):
    """
    Return ``(right ascension, declination)`` [deg] of the frame, or ``None``.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import read_pointing
    >>> read_pointing({"OBJCTRA": "20 58 47", "OBJCTDEC": "-44 30 00"})[1]
    -44.5
    """
    for keywords in _POINTINGS:
        if keywords[0] == "CRVAL1" and "RA" not in str(header.get("CTYPE1", "")):
            continue
        ra, dec = (_angle(header, k, hours=i == 0) for i, k in enumerate(keywords))
        if 0 <= ra <= 360 and -90 <= dec <= 90:
            return ra, dec
    return None


def read_pixel_scale(header):
    """Return the side of a pixel [deg], or NaN: by the WCS, a keyword, or focal length."""
    for x, y in (("CD1_1", "CD2_1"), ("CDELT1", "")):
        sides = [0.0 if not k or math.isnan(s := _number(header, k)) else s for k in (x, y)]
        if 0 < math.hypot(*sides) < 1 and "CTYPE1" in header:
            return math.hypot(*sides)
    for keyword in ("PIXSCALE", "SECPIX", "SECPIX1", "SCALE"):
        if 0 < (scale := _number(header, keyword)) < 3600:
            return scale / 3600
    size, focal = _number(header, "XPIXSZ"), _number(header, "FOCALLEN")
    return math.degrees(size * 1e-3 / focal) if size > 0 and focal > 0 else math.nan


def read_combined(header):
    """Return how many frames were joined into this one, by NCOMBINE and its kin; 0 if unsaid."""
    counts = [n for keyword in COUNTS if not math.isnan(n := _number(header, keyword))]
    history = "\n".join(str(value) for value, _ in raw_values(header, "HISTORY"))
    counts += map(int, re.findall(r"Integration\.numberOfImages: (\d{1,6})", history))
    return int(max(counts, default=0))
