"""
What headers say, in whatever spelling: one table of keywords, one of frame types.

Every ``read_*`` function takes a header (`~astropy.io.fits.Header` or a mapping),
never changes it, and returns a plain Python value in the unit of its docstring.
A keyword that is absent gives ``None`` (or `InputError` where a frame is of no
use without it); one that is there and cannot be believed raises `InputError`
that names keyword and value. Nothing is guessed in silence.
"""

import datetime
import math
import re

from astro_narrowband._engine.headers._geometry import (
    read_bayer_shift,
    read_binning,
    read_overscan,
    read_trim,
    read_window,
)
from astro_narrowband._engine.headers.spellings import (
    COUNTS,
    KEYWORDS,
    KINDS,
    REDUCED,
    SPELLINGS,
    Spellings,
    clean_text,
    key_of,
    kind_of,
    one_value,
    parse_number,
    raw_values,
    show,
)
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import filter_key

__all__ = [
    "KEYWORDS",
    "KINDS",
    "Spellings",
    "clean_text",
    "exposures_in",
    "kind_of",
    "parse_number",
    "raw_values",
    "read_bayer",
    "read_bayer_shift",
    "read_binning",
    "read_camera",
    "read_date",
    "read_egain",
    "read_exposure",
    "read_filter",
    "read_gain",
    "read_gain_setting",
    "read_kind",
    "read_noise",
    "read_object",
    "read_offset",
    "read_overscan",
    "read_readout",
    "read_saturation",
    "read_temperature",
    "read_trim",
    "read_window",
    "reduced_by",
]

_OFF = {
    "",
    "f",
    "n",
    "0",
    "no",
    "none",
    "false",
    "off",
    "omit",
    "omitted",
    "skipped",
    "raw",
    "not",
    "perform",
}
_NO_OBJECT = re.compile("unknown|none|noname|undefined|na|nan|null|true|false|object")
_EMPTY = re.compile("((clear|open|none|empty|air|nofilter|blank|hole|nan|clr|free)[0-9]{0,2})?")
_WITH_UNIT = re.compile(r"(.*?[\d.])\s*([a-zµμ°\"]+\.?)?", re.IGNORECASE | re.ASCII)
_SECONDS = {
    1.0: {"s", "sec", "secs", "second", "seconds", '"'},
    1e-3: {"ms", "msec", "millisecond", "milliseconds"},
    1e-6: {"us", "usec", "µs", "μs", "microsecond", "microseconds"},
    60.0: {"min", "mins", "minute", "minutes"},
}
_TIME_UNIT = {word: factor for factor, words in _SECONDS.items() for word in words}
_UNIT_IN_COMMENT = re.compile(
    r"\b(ms|msec|milliseconds?|us|usec|µs|microseconds?|minutes?|(?<=\[)mins?(?=\]))\b",
    re.IGNORECASE,
)
#: No single exposure lasts longer than a day [s]: it was written in another unit.
LONGEST = 86400.0
#: A GAIN above this is a camera setting, not electron/adu.
LARGEST_GAIN = 20.0


def _numbers(header, name, spellings, *, low=-math.inf, high=math.inf, say="is out of range"):
    """Yield ``(keyword, number or InputError, comment)`` for every keyword that has a value."""
    for keyword in spellings.keywords[name]:
        try:
            found = one_value(header, keyword)
            if found is None or (isinstance(found[0], str) and not found[0].strip()):
                continue
            number = parse_number(found[0])
        except InputError as error:
            yield keyword, error, ""
            continue
        except (ValueError, TypeError, OverflowError) as error:
            yield keyword, InputError(f"{keyword} = {show(found[0])} {error}"), found[1]
            continue
        if not low <= number <= high:
            yield keyword, InputError(f"{keyword} = {show(found[0])} {say}"), found[1]
            continue
        yield keyword, number, found[1]


def _first_number(header, name, spellings, **limits):
    """First believable number as ``(value, keyword, comment)``; the first error if none; None."""
    first = None
    for keyword, number, comment in _numbers(header, name, spellings, **limits):
        if not isinstance(number, InputError):
            return number, keyword, comment
        first = first or number
    if first is not None:
        raise first
    return None


def _first_text(header, name, spellings):
    for keyword in spellings.keywords[name]:
        found = one_value(header, keyword)
        if found is not None and (text := clean_text(found[0])):
            return text, keyword
    return None


# ------------------------------------------------------------------ exposure, temperature


def _seconds(value, keyword, comment):
    """An exposure time [s] from a value, its unit in the text, the keyword or the comment."""
    factor = {"EXPOINUS": 1e-6, "EXPOINMS": 1e-3}.get(keyword, 1.0)
    if isinstance(value, str):
        match = _WITH_UNIT.fullmatch(clean_text(value))
        unit = match and match[2] and match[2].rstrip(".").lower()
        if unit in _TIME_UNIT:
            return parse_number(match[1]) * _TIME_UNIT[unit]
    if factor == 1.0 and (match := _UNIT_IN_COMMENT.search(comment)):
        factor = _TIME_UNIT[match[1].lower()]
    return parse_number(value) * factor


def exposures_in(header, *, spellings=SPELLINGS):
    """
    Return what every exposure keyword says: a list of ``(keyword, seconds or InputError)``.

    Times below zero (``-1``) mean that the camera did not know, times above a
    day that the unit was another one: both are errors here.
    """
    found = []
    for keyword in spellings.keywords["exposure"]:
        try:
            one = one_value(header, keyword)
            if one is None or (isinstance(one[0], str) and not clean_text(one[0])):
                if keyword in header:
                    found.append((keyword, InputError(f"{keyword} is there and has no value")))
                continue
            seconds = _seconds(one[0], keyword, one[1])
        except InputError as error:
            found.append((keyword, error))
            continue
        except (ValueError, TypeError, OverflowError) as error:
            found.append((keyword, InputError(f"{keyword} = {show(one[0])} {error}")))
            continue
        if seconds < 0:
            seconds = InputError(f"{keyword} = {show(one[0])} is below zero")
        elif seconds > LONGEST:
            seconds = InputError(
                f"{keyword} = {show(one[0])} is longer than a day: it is not in seconds"
            )
        found.append((keyword, seconds))
    return found


def read_exposure(header, *, spellings=SPELLINGS):
    """
    Return the exposure time [s].

    Parameters
    ----------
    header : `~astropy.io.fits.Header` or mapping
    spellings : `Spellings`, optional

    Returns
    -------
    float
        In seconds; 0 is possible (a bias has it, a light with it is of no use).
        The first keyword of `KEYWORDS` ``["exposure"]`` that can be believed; if
        that is 0 and a later one above 0, the later one.

    Raises
    ------
    InputError
        If there is none, or all are undefined, text, below zero or longer than a
        day, or a keyword stands twice with different values.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import read_exposure
    >>> read_exposure({"EXPTIME": "0,5"}), read_exposure({"EXPTIME": -1, "EXPOSURE": 60})
    (0.5, 60.0)
    """
    found = exposures_in(header, spellings=spellings)
    good = [seconds for _, seconds in found if not isinstance(seconds, InputError)]
    for _, error in found:
        if isinstance(error, InputError) and "different values" in str(error):
            raise error
    if good:
        return next((seconds for seconds in good if seconds > 0), good[0])
    if found:
        raise found[0][1]
    raise InputError(
        "EXPTIME is missing (and so is EXPOSURE): there is no exposure time: "
        "give it with --set EXPTIME=SECONDS"
    )


def read_temperature(header, *, spellings=SPELLINGS):
    """
    Return the temperature of the detector [deg C], or ``None``.

    The measured one before the set point. Values of 100 to 350 are kelvin;
    what is left outside -200 to 100 deg C (-999, 0 K) is no temperature.

    Raises
    ------
    InputError
        If a keyword is there and holds no temperature, and no other one does.
    """
    first = None
    for keyword, number, _ in _numbers(header, "temperature", spellings):
        if isinstance(number, InputError):
            first = first or number
            continue
        celsius = number - 273.15 if 100 < number <= 350 else number
        if -200 < celsius <= 100:
            return round(celsius, 6)
        first = first or InputError(f"{keyword} = {number:g} is not a temperature in deg C or K")
    if first is not None:
        raise first
    return None


# ------------------------------------------------------------------ the detector


def read_egain(header, *, spellings=SPELLINGS):
    """Return ``(gain [electron/adu], keyword)`` from EGAIN and its kin, or ``None``."""
    found = _first_number(
        header, "egain", spellings, low=1e-4, high=1e4, say="is not a gain in electron/adu"
    )
    return found and found[:2]


def read_gain(header, *, spellings=SPELLINGS):
    """
    Return ``(gain [electron/adu], keyword)``, or ``None`` where no keyword speaks of it.

    EGAIN is believed before GAIN. A whole-numbered GAIN, or one above 20, is a
    setting of the camera and not electron/adu, unless its comment names that unit.

    Raises
    ------
    InputError
        If what is there is a camera setting, zero, negative or text.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import read_gain
    >>> read_gain({"GAIN": "1.22", "EGAIN": 0.25}), read_gain({"GAIN": "1.22"})
    ((0.25, 'EGAIN'), (1.22, 'GAIN'))
    """
    refused = None
    try:
        if (found := read_egain(header, spellings=spellings)) is not None:
            return found
    except InputError as error:
        refused = error
    settings = ("ISO", "ISOSPEED", "GAINSET", "CAMGAIN", "GAINRAW")
    for keyword, number, comment in _numbers(header, "gain", spellings):
        if isinstance(number, InputError):
            refused = refused or number
            continue
        unit = re.sub(r"[\s()\[\]]", "", comment.lower())
        named = re.search(r"e(lectrons?|-)?[-.]?(/|per)(adu|dn|count)", unit)
        if re.search(r"(adu|dn|counts?)(/|per)(e|electrons?|photo)", unit):
            refused = refused or InputError(
                f"{keyword} = {number:g} is in adu/electron by its comment: "
                f"give --gain {1 / number if number else 0:.4g} (electron/adu)"
            )
        elif number <= 0 or (
            not named and (keyword in settings or number == int(number) or number > LARGEST_GAIN)
        ):
            what = "is not a gain" if number < 0 else "is a camera setting and not electron/adu"
            refused = refused or InputError(
                f"{keyword} = {number:g} {what}: give the gain with --gain"
            )
        else:
            return number, keyword
    if refused is not None:
        raise refused
    return None


def read_noise(header, *, spellings=SPELLINGS):
    """
    Return ``(read noise [electron], keyword)``, or ``None``.

    Raises
    ------
    InputError
        If it is not above zero, above 1000, text, or in adu by its comment.
    """
    found = _first_number(
        header, "noise", spellings, low=1e-3, high=1e3, say="is not a read noise in electron"
    )
    if found is None:
        return None
    number, keyword, comment = found
    if re.search(r"\b(adu|dn|counts?)\b", comment.lower()) and "e" not in re.findall(
        r"[a-z]+", comment.lower()
    ):
        raise InputError(
            f"{keyword} = {number:g} is in adu by its comment: give --read-noise in electron"
        )
    return number, keyword


def read_saturation(header, *, spellings=SPELLINGS):
    """Return ``(saturation level [adu], keyword)``, or ``None``; text or <= 0 raises."""
    found = _first_number(
        header, "saturation", spellings, low=1e-3, say="is not a level in adu above zero"
    )
    return found and found[:2]


def read_gain_setting(header, *, spellings=SPELLINGS):
    """Return what tells the amplification of two frames apart (GAIN or EGAIN), as text, or ''."""
    parts = []
    for name in ("gain", "egain"):
        for keyword in spellings.keywords[name]:
            found = one_value(header, keyword)
            if found is None or not clean_text(found[0]):
                continue
            try:
                parts.append(f"{'e' if name == 'egain' else ''}{parse_number(found[0]):.4g}")
            except (ValueError, TypeError, OverflowError):
                parts.append(clean_text(found[0]).lower())
            break
    return " ".join(parts)


def read_offset(header, *, spellings=SPELLINGS):
    """Return the offset (black level) setting of the camera as text, or ''."""
    for keyword in spellings.keywords["offset"]:
        found = one_value(header, keyword)
        if found is not None and clean_text(found[0]):
            try:
                return f"{parse_number(found[0]):.6g}"
            except (ValueError, TypeError, OverflowError):
                return clean_text(found[0]).lower()
    return ""


def read_readout(header, *, spellings=SPELLINGS):
    """Return the read mode, lower case, or ''."""
    found = _first_text(header, "readout", spellings)
    return found[0].lower() if found else ""


def read_camera(header, *, spellings=SPELLINGS):
    """Return the camera's name, lower case without punctuation, or ''."""
    found = _first_text(header, "camera", spellings)
    # Drivers of one camera agree on its name but for these words.
    text = re.sub(r"\b(ccd|camera)\b", " ", found[0], flags=re.IGNORECASE) if found else ""
    return (key_of(text) or found[0].lower()) if found else ""


def read_bayer(header, *, spellings=SPELLINGS):
    """
    Return the Bayer pattern (``"RGGB"``, ...) of a colour mosaic, or ``""`` for none.

    Raises
    ------
    InputError
        If a keyword names a pattern that is not one of the four.
    """
    found = _first_text(header, "bayer", spellings)
    if found is None or found[0].lower() in _OFF | {"mono", "monochrome", "null", "nan"}:
        return ""
    pattern = found[0].upper().replace("TRUE", "").strip()
    if pattern in {"RGGB", "BGGR", "GRBG", "GBRG"}:
        return pattern
    raise InputError(f"{found[1]} = {show(found[0])} is not a Bayer pattern (RGGB, BGGR, ...)")


# ------------------------------------------------------------------ kind, filter, object, date


def read_kind(header, *, spellings=SPELLINGS):
    """
    Return ``(kind, keyword)``, or ``None`` where no keyword tells it.

    ``kind`` is ``bias``, ``dark``, ``flat``, ``light``, ``flat-dark``, ``other``,
    with ``master `` in front for a combined frame, or ``""`` for a value that is
    not in the table.
    """
    unknown = None
    for keyword in spellings.keywords["kind"]:
        found = one_value(header, keyword)
        if found is None or not (text := clean_text(found[0])):
            continue
        kind, master = kind_of(text, spellings=spellings)
        if kind:
            return ("master " if master else "") + kind, keyword
        unknown = unknown or ("", keyword)
    return unknown


def read_filter(header, *, spellings=SPELLINGS):
    """
    Return the filter as the header spells it, or ``""``.

    With two wheels (FILTER1, FILTER2, or FILTER and FILTER2) what is open or clear
    in one gives way to the other; two filters in the beam are joined by ``+``.
    """
    names = []
    for keyword in spellings.keywords["filter"]:
        found = one_value(header, keyword)
        if found is not None and (text := clean_text(found[0])):
            key = filter_key(text)
            if all(filter_key(other) != key for other in names):
                names.append(text)
    real = [name for name in names if not _EMPTY.fullmatch(filter_key(name))]
    return "+".join(real) if real else (names[0] if names else "")


def read_object(header, *, spellings=SPELLINGS):
    """Return the object's name as one clean line, or ``""``."""
    found = _first_text(header, "object", spellings)
    text = found[0] if found else ""
    return "" if _NO_OBJECT.fullmatch(key_of(text)) else text


def read_date(header, *, spellings=SPELLINGS):
    """
    Return the start of the exposure as ISO text (``2025-06-03T10:22:06.179``), or ``""``.

    A blank for or before the T is forgiven, a zone is turned into UTC, a date
    without a time is completed from TIME-OBS, UTSTART or UT. What is no date
    (``26/10/92``) gives ``""``: it is never used to sort.
    """
    for keyword in spellings.keywords["date"]:
        for value, _ in raw_values(header, keyword)[:1]:
            text = re.sub(r"\s*T\s*|\s+", "T", clean_text(value), count=1)
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
                for clock in ("TIME-OBS", "UTSTART", "UTC-OBS", "UT", "TIME"):
                    times = [clean_text(v) for v, _ in raw_values(header, clock)[:1]]
                    if times and re.fullmatch(r"\d{2}:\d{2}:\d{2}(\.\d*)?", times[0], re.ASCII):
                        text += "T" + times[0].rstrip(".")
                        break
            try:
                moment = datetime.datetime.fromisoformat(text)
                if moment.tzinfo is not None:
                    moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
            except (ValueError, OverflowError):
                continue
            return moment.isoformat()
    return ""


def reduced_by(header):
    """
    Return why a frame is not raw, such as ``"BIASSUB = True"``, or ``""`` if it is.

    Flags of calibration, counts of combined frames and units that are not those
    of a detector (BUNIT electron) are looked at; history is not.
    """
    for keyword in REDUCED:
        for value, _ in raw_values(header, keyword):
            text = clean_text("" if value is None else value)
            words = re.findall(r"[a-z0-9]+", text.lower())
            if keyword == "CALSTAT":
                applied = re.fullmatch("[BDFMCSPT]*[BDF][BDFMCSPT]*", text.upper()) is not None
            elif isinstance(value, bool):
                applied = value
            else:
                applied = bool(words) and words[0] not in _OFF
            if applied:
                return f"{keyword} = {show(value)}"
    for keyword in COUNTS:
        for value, _ in raw_values(header, keyword):
            try:
                if parse_number(value) > 1:
                    return f"{keyword} = {show(value)}"
            except (ValueError, TypeError, OverflowError):
                continue
    for value, _ in raw_values(header, "BUNIT"):
        unit = key_of("" if value is None else value)
        if re.match(r"(elec|photoelec|photon|jy|mjy|erg|nmgy|nanomagg|flux)", unit) or unit in {
            "e",
            "es",
            "normalized",
            "dimensionless",
        }:
            return f"BUNIT = {show(value)}"
        if re.match(r"(adu|dn|counts?)(s|sec|second)?(s|sec|second|persec|persecond)$", unit) and (
            unit not in {"adus", "dns", "counts"} or "/" in str(value)
        ):
            return f"BUNIT = {show(value)}"
    return ""
