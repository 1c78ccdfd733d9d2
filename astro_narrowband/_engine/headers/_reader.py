"""Header values by one table of spellings, bound once, and what a program did to a frame."""

import datetime
import math
import re

from astro_narrowband._engine.headers.spellings import (
    COUNTS,
    OFF,
    REDUCED,
    SPELLINGS,
    key_of,
    kind_of,
    number_of,
    one_value,
    parse_number,
    raw_values,
    text_of,
)
from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import filter_key

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
#: No single exposure lasts longer than a day [s]: it was written in another unit. Nor is one
#: shorter than a microsecond, but for a bias, which may have none at all.
SHORTEST, LONGEST = 1e-6, 86400.0
#: A GAIN above this is a camera setting, not electron/adu.
LARGEST_GAIN = 20.0


def _seconds(header, keyword):
    """An exposure time [s], its unit in the text, the keyword or the comment; None if absent."""
    if keyword not in header:
        return None
    value, comment = one_value(header, keyword) or ("", "")
    if not clean_text(value):
        raise InputError(f"{keyword} is there and has no value")
    shown = f"{keyword} = {show_value(value)}"
    match = _WITH_UNIT.fullmatch(clean_text(value)) if isinstance(value, str) else None
    unit = match and match[2] and match[2].rstrip(".").lower()
    factor = {"EXPOINUS": 1e-6, "EXPOINMS": 1e-3}.get(keyword, 1.0)
    if unit in _TIME_UNIT:
        value, factor = match[1], _TIME_UNIT[unit]
    elif factor == 1.0 and (match := _UNIT_IN_COMMENT.search(comment)):
        factor = _TIME_UNIT[match[1].lower()]
    try:
        seconds = parse_number(value) * factor
    except ValueError as error:
        raise InputError(f"{shown} {error}") from None
    if seconds < 0:
        raise InputError(f"{shown} is below zero")
    if 0 < seconds < SHORTEST:
        raise InputError(f"{shown} is below a microsecond: it is not in seconds")
    if seconds > LONGEST:
        raise InputError(f"{shown} is longer than a day: it is not in seconds")
    return seconds


def _setting(text, form):
    """A setting of the camera as text: a number in one form, however it is written."""
    try:
        return form.format(parse_number(text))
    except ValueError:
        return text.lower()


class HeaderReader:
    """
    Read headers by a table of keywords and frame types.

    Parameters
    ----------
    spellings : `~astro_narrowband._engine.headers.Spellings`, optional
        Those of a user; default are those of this package.
    """

    def __init__(self, spellings=SPELLINGS):
        self.spellings = spellings

    def _numbers(self, header, name, *, low=-math.inf, high=math.inf, say="is out of range"):
        """Yield ``(keyword, number or InputError, comment)`` for every keyword that has a value."""
        for keyword in self.spellings.keywords[name]:
            try:
                card = number_of(header, keyword)
            except InputError as error:
                yield keyword, error, ""
                continue
            if card is not None:
                number, comment = card
                if not low <= number <= high:
                    value = show_value(one_value(header, keyword)[0])
                    number = InputError(f"{keyword} = {value} {say}")
                yield keyword, number, comment

    def _first_number(self, header, name, **limits):
        """First believable number as ``(value, keyword, comment)``; else raise the first error."""
        first = None
        for keyword, number, comment in self._numbers(header, name, **limits):
            if not isinstance(number, InputError):
                return number, keyword, comment
            first = first or number
        if first is not None:
            raise first
        return None

    def _first_text(self, header, name):
        """The first text that one of the keywords of a property has, and which; else blank."""
        for keyword in self.spellings.keywords[name]:
            if text := text_of(header, keyword):
                return text, keyword
        return "", ""

    def exposures_in(self, header):
        """
        Return what every exposure keyword says: a list of ``(keyword, seconds or InputError)``.

        Times below zero (``-1``) mean that the camera did not know, times above a
        day that the unit was another one: both are errors here.
        """
        times = []
        for keyword in self.spellings.keywords["exposure"]:
            try:
                seconds = _seconds(header, keyword)
            except InputError as error:
                seconds = error
            if seconds is not None:
                times.append((keyword, seconds))
        return times

    def read_exposure(self, header):
        """
        Return the exposure time [s].

        Parameters
        ----------
        header : `~astropy.io.fits.Header` or mapping

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
        times = self.exposures_in(header)
        good = [seconds for _, seconds in times if not isinstance(seconds, InputError)]
        for _, error in times:
            if isinstance(error, InputError) and "different values" in str(error):
                raise error
        if good:
            return next((seconds for seconds in good if seconds > 0), good[0])
        if times:
            raise times[0][1]
        raise InputError(
            "EXPTIME is missing (and so is EXPOSURE): there is no exposure time: "
            "give it with --set EXPTIME=SECONDS"
        )

    def read_temperature(self, header):
        """
        Return the temperature of the detector [deg C], or ``None`` where it is not known.

        The measured one before the set point. Values of 100 to 350 are kelvin; text and
        what is left outside -200 to 100 deg C (-999, 0 K) is no temperature: see
        `temperature_trouble`.
        """
        return self._temperature(header)[0]

    def temperature_trouble(self, header):
        """Return what is wrong with the temperature in a header that gives none, or ``""``."""
        celsius, trouble = self._temperature(header)
        return trouble if celsius is None else ""

    def _temperature(self, header):
        trouble = ""
        for keyword, number, _ in self._numbers(header, "temperature"):
            if isinstance(number, InputError):
                trouble = trouble or str(number)
                continue
            celsius = number - 273.15 if 100 < number <= 350 else number
            if -200 < celsius <= 100:
                return round(celsius, 6), ""
            trouble = trouble or f"{keyword} = {number:g} is not a temperature in deg C or K"
        return None, trouble

    def read_egain(self, header):
        """Return ``(gain [electron/adu], keyword)`` from EGAIN and its kin, or ``None``."""
        card = self._first_number(
            header, "egain", low=1e-4, high=1e4, say="is not a gain in electron/adu"
        )
        return card and card[:2]

    def read_gain(self, header):
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
            if (gain := self.read_egain(header)) is not None:
                return gain
        except InputError as error:
            refused = error
        settings = ("ISO", "ISOSPEED", "GAINSET", "CAMGAIN", "GAINRAW")
        for keyword, number, comment in self._numbers(header, "gain"):
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
                not named
                and (keyword in settings or number == int(number) or number > LARGEST_GAIN)
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

    def read_noise(self, header):
        """
        Return ``(read noise [electron], keyword)``, or ``None``.

        Raises
        ------
        InputError
            If it is not above zero, above 1000, text, or in adu by its comment.
        """
        card = self._first_number(
            header, "noise", low=1e-3, high=1e3, say="is not a read noise in electron"
        )
        if card is None:
            return None
        number, keyword, comment = card
        if re.search(r"\b(adu|dn|counts?)\b", comment.lower()) and "e" not in re.findall(
            r"[a-z]+", comment.lower()
        ):
            raise InputError(
                f"{keyword} = {number:g} is in adu by its comment: give --read-noise in electron"
            )
        return number, keyword

    def read_saturation(self, header):
        """Return ``(saturation level [adu], keyword)``, or ``None``; text or <= 0 raises."""
        card = self._first_number(
            header, "saturation", low=1e-3, say="is not a level in adu above zero"
        )
        return card and card[:2]

    def read_gain_setting(self, header):
        """Return what tells the amplification of two frames apart (GAIN, EGAIN), or ''."""
        gain, egain = (self._first_text(header, name)[0] for name in ("gain", "egain"))
        return f"{_setting(gain, '{:.4g}')} {_setting(egain, 'e{:.4g}')}".strip()

    def read_offset(self, header):
        """Return the offset (black level) setting of the camera as text, or ''."""
        return _setting(self._first_text(header, "offset")[0], "{:.6g}")

    def read_readout(self, header):
        """Return the read mode, lower case, or ''."""
        return self._first_text(header, "readout")[0].lower()

    def read_camera(self, header):
        """Return the camera's name, lower case without punctuation, or ''."""
        text, _ = self._first_text(header, "camera")
        # Drivers of one camera agree on its name but for these words.
        return key_of(re.sub(r"\b(ccd|camera)\b", " ", text, flags=re.IGNORECASE)) or text.lower()

    def read_bayer(self, header):
        """
        Return the Bayer pattern (``"RGGB"``, ...) of a colour mosaic, or ``""`` for none.

        Raises
        ------
        InputError
            If a keyword names a pattern that is not one of the four.
        """
        text, keyword = self._first_text(header, "bayer")
        if text.lower() in OFF | {"mono", "monochrome", "null", "nan"}:
            return ""
        pattern = text.upper().replace("TRUE", "").strip()
        if pattern in {"RGGB", "BGGR", "GRBG", "GBRG"}:
            return pattern
        raise InputError(f"{keyword} = {show_value(text)} is not a Bayer pattern (RGGB, BGGR, ...)")

    def read_kind(self, header):
        """
        Return ``(kind, keyword)``, or ``None`` where no keyword tells it.

        ``kind`` is ``bias``, ``dark``, ``flat``, ``light``, ``flat-dark``, ``other``,
        with ``master `` in front for a combined frame, or ``""`` for a value that is
        not in the table.
        """
        unknown = None
        for keyword in self.spellings.keywords["kind"]:
            if text := text_of(header, keyword):
                kind, master = kind_of(text, spellings=self.spellings)
                if kind:
                    return ("master " if master else "") + kind, keyword
                unknown = unknown or ("", keyword)
        return unknown

    def read_filter(self, header):
        """
        Return the filter as the header spells it, or ``""``.

        With two wheels (FILTER1, FILTER2, or FILTER and FILTER2) what is open or clear
        in one gives way to the other; two filters in the beam are joined by ``+``.
        """
        names = {}
        for keyword in self.spellings.keywords["filter"]:
            if text := text_of(header, keyword):
                names.setdefault(filter_key(text), text)
        real = [name for key, name in names.items() if not _EMPTY.fullmatch(key)]
        return "+".join(real) or next(iter(names.values()), "")

    def read_object(self, header):
        """Return the object's name as one clean line, or ``""``."""
        text, _ = self._first_text(header, "object")
        return "" if _NO_OBJECT.fullmatch(key_of(text)) else text

    def read_date(self, header):
        """
        Return the start of the exposure as ISO text (``2025-06-03T10:22:06.179``), or ``""``.

        A blank for or before the T is forgiven, a zone is turned into UTC, a date
        without a time is completed from TIME-OBS, UTSTART or UT. What is no date
        (``26/10/92``) gives ``""``: it is never used to sort.
        """
        for keyword in self.spellings.keywords["date"]:
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
                applied = bool(words) and words[0] not in OFF
            if applied:
                return f"{keyword} = {show_value(value)}"
    for keyword in COUNTS:
        for value, _ in raw_values(header, keyword):
            try:
                if parse_number(value) > 1:
                    return f"{keyword} = {show_value(value)}"
            except ValueError:
                continue
    for value, _ in raw_values(header, "BUNIT"):
        unit = key_of("" if value is None else value)
        physical = "elec|photoelec|photon|jy|mjy|erg|nmgy|nanomagg|flux|(es?|normalized)$"
        if re.match(physical + "|dimensionless$", unit):
            return f"BUNIT = {show_value(value)}"
        if re.match(r"(adu|dn|counts?)(s|sec|second)?(s|sec|second|persec|persecond)$", unit) and (
            unit not in {"adus", "dns", "counts"} or "/" in str(value)
        ):
            return f"BUNIT = {show_value(value)}"
    return ""
