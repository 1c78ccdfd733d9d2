"""Where a frame points, how it is turned, how large its pixels are, as headers give it."""

import math
import re

from astro_narrowband._engine.headers.spellings import (
    COUNTS,
    number_of,
    one_value,
    parse_number,
    raw_values,
)
from astro_narrowband._engine.text import clean_text
from astro_narrowband.exceptions import InputError

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
