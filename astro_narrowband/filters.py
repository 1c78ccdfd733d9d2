"""Narrowband filters: one table of canonical names, wavelengths and spellings."""

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from astro_narrowband.exceptions import InputError, InputTypeError

__all__ = [
    "FILTERS",
    "NO_FILTER",
    "UNKNOWN_FILTER",
    "Filter",
    "canonical_filter",
    "filter_key",
    "is_known_filter",
    "lines_of",
    "pixels_of",
]


class Filter(NamedTuple):
    """A narrowband filter: canonical name, wavelength of its line [nm], spellings."""

    name: str
    wavelength: float
    spellings: tuple[str, ...]


#: The filters that are known by name. Spellings are compared without case, blanks
#: and punctuation; makers, bandwidths and the line's wavelength may stand around
#: them (``"H-alpha 7nm"``, ``"Baader [O III] 5007"``).
FILTERS = (
    Filter("Halpha", 656.28, ("halpha", "halfa", "ha", "hydrogenalpha", "f656n")),
    Filter("OIII", 500.68, ("oiii", "o3", "o111", "oxygeniii", "oxygen3", "f502n")),
    Filter("SII", 672.40, ("sii", "s2", "s11", "sulfurii", "sulphurii", "f673n")),
    Filter("NII", 658.35, ("nii", "n2", "n11", "nitrogenii", "f658n")),
    Filter("Hbeta", 486.13, ("hbeta", "hb", "hydrogenbeta", "f487n")),
)

#: The name of a beam without a filter (``Open``, ``None``, ``Empty``).
NO_FILTER = "none"
#: The name where neither header nor file name tells the filter.
UNKNOWN_FILTER = "unknown"

_BROAD = {
    **dict.fromkeys(("luminance", "lum"), "Luminance"),
    **dict.fromkeys(("clear", "clr"), "Clear"),
    **{colour.lower(): colour for colour in ("Red", "Green", "Blue")},
    **dict.fromkeys(("none", "open", "empty", "air", "nofilter", "blank", "hole"), NO_FILTER),
}
#: Single letters are names in which case tells g (Sloan) from G (green).
_LETTERS = set("UBVRIGLugrizyw")
_SLOAN = re.compile(r"(?:sdss|sloan)([ugrizyw])p?|([ugrizyw])(?:sdss|sloan|p|prime)")
_BESSELL = re.compile(r"(?:johnson|bessell?|cousins)([ubvri])|([ubvri])(?:johnson|bessell?)")

#: Filters that let two lines through, for one-shot-colour cameras: the lines, and what of a
#: `filter_key` tells them. Those of sulphur first, for makers have one name for both.
_DUAL = {
    "SII+OIII": re.compile(
        r"lsynergy|(?:sii|s2|sulfurii|sulphurii)(?:oiii|o3)|colou?rmagicd2|^soo?$"
        r"|(?:alpt|duoband|dualband).*so$|^so(?:duo|dual)band"
    ),
    "Halpha+OIII": re.compile(
        r"l(?:extreme|ultimate|enhance|para)|alpt|nb[zx]|(?:duo|dual|tri|quad)(?:narrow)?band"
        r"|(?:duo|dual)nb|triad|colou?rmagicd1|sv220|^hoo?$|h(?:alph)?a(?:oiii|o3)"
    ),
}
#: Pixels of a one-shot-colour camera that see a line.
_PIXELS = {
    **dict.fromkeys(("Halpha", "SII", "NII"), "red"),
    **dict.fromkeys(("OIII", "Hbeta"), "green+blue"),
}

_LENGTHS = {"nm": 1.0, "a": 0.1, "ang": 0.1, "angstrom": 0.1, "angstroms": 0.1, "å": 0.1}
#: Words around a filter's name that do not make it another filter.
_HARMLESS = frozenset(
    re.split(
        " ",
        "narrow narrowband band nb filter line astrodon baader chroma optolong antlia astronomik "
        "idas custom scientific ultra highspeed pro mm inch f cmos ccd edge slot pos position no",
    )
)


#: Numbers that observatories give to their filters (KPNO ``k1009``, Gemini ``G0310``).
_SERIAL = re.compile(r"(?<![a-z0-9])[kg]\d{4}(?![a-z0-9])")


def _pattern(spelling):
    """A spelling as a pattern that lets blanks and signs stand between its characters."""
    return r"[^a-z0-9]*".join(re.escape(c) for c in spelling)


_NAMES = [
    (
        f,
        re.compile(
            r"(?<![a-z0-9])(?:"
            + "|".join(_pattern(s) for s in sorted(f.spellings, key=len, reverse=True))
            + r")(?![a-z])"
        ),
    )
    for f in FILTERS
]


def _spelt(name):
    text = unicodedata.normalize("NFKC", str(name)).lower()
    return text.replace("α", "alpha").replace("β", "beta")


def filter_key(name):
    """
    Return what two spellings of one name have in common: lower case letters and digits.

    Examples
    --------
    >>> from astro_narrowband.filters import filter_key
    >>> filter_key("[O III]"), filter_key("Slot_0")
    ('oiii', 'slot0')
    """
    return re.sub(r"[^a-z0-9]+", "", _spelt(name))


def _is_harmless(text, wavelength):
    """Whether what stands around a name is maker, bandwidth or wavelength [nm] of the line."""
    text = _SERIAL.sub(" ", text)
    tokens = re.findall(r"\d+(?:[.,]\d+)?|[^\W\d_]+", text)
    for i, token in enumerate(tokens):
        if not token[0].isdigit():
            follows_number = i and tokens[i - 1][0].isdigit()
            if token not in _HARMLESS and not (token in _LENGTHS and follows_number):
                return False
            continue
        number = float(token.replace(",", "."))
        unit = _LENGTHS.get(tokens[i + 1]) if i + 1 < len(tokens) else None
        widths_and_lines = [number * f for f in ([unit] if unit else [1.0, 0.1])]
        # Redshifted sets (H-alpha 6649) are other filters than the line at rest.
        if not any(0 < n <= 20 or abs(n - wavelength) <= 1.5 for n in widths_and_lines):
            return False
    return True


def _checked(spellings):
    if spellings is not None and not isinstance(spellings, Mapping):
        raise InputTypeError(f"spellings: {type(spellings).__name__} is no dict of text to text")
    return spellings or {}


def canonical_filter(name, *, spellings=None):
    """
    Return the canonical name of a filter.

    Parameters
    ----------
    name : str
        The filter as a header, a folder or a user spells it.
    spellings : mapping of str to str, optional
        More spellings (as `filter_key` makes them) and their names; they are
        looked at first.

    Returns
    -------
    str
        ``"Halpha"``, ``"OIII"``, ``"SII"``, ``"NII"`` or ``"Hbeta"`` for a known
        spelling; ``"Halpha+OIII"`` or ``"SII+OIII"`` for a dual-band filter; ``"none"`` for
        an open beam; ``"Luminance"``, ``"Red"``, ... and
        single letters for broadband filters; any other name as it was, on one
        line and stripped of outer blanks. A name with the wavelength of another
        line (``"Ha 6649"``) is another filter.

    Examples
    --------
    >>> from astro_narrowband.filters import canonical_filter
    >>> canonical_filter(" H-Alpha 7nm "), canonical_filter("[O III]"), canonical_filter("g")
    ('Halpha', 'OIII', 'g')
    """
    spellings = _checked(spellings)
    text = " ".join(str(name).split())
    key = filter_key(text)
    if key in spellings:
        return spellings[key]
    spelt = _spelt(text)
    if len(spelt) <= 100:
        for known, pattern in _NAMES:
            for match in pattern.finditer(spelt):
                around = f"{spelt[: match.start()]} {spelt[match.end() :]}"
                if _is_harmless(around, known.wavelength):
                    return known.name
    for dual, pattern in _DUAL.items():
        if len(key) <= 100 and pattern.search(key):
            return dual
    letter = text.strip("'\"` ")
    if letter in _LETTERS:
        return "Luminance" if letter == "L" else letter
    if key in _BROAD:
        return _BROAD[key]
    for pattern, change in ((_SLOAN, str.lower), (_BESSELL, str.upper)):
        if match := pattern.fullmatch(key):
            return change(match[1] or match[2])
    return text


def lines_of(name):
    """
    Return the lines that a filter lets through, of those that are known.

    Examples
    --------
    >>> from astro_narrowband.filters import canonical_filter, lines_of
    >>> lines_of("Halpha"), lines_of(canonical_filter("Optolong L-eXtreme 2in")), lines_of("Red")
    (('Halpha',), ('Halpha', 'OIII'), ())
    """
    lines = tuple(canonical_filter(line) for line in str(name).split("+"))
    return lines if all(line in _PIXELS for line in lines) else ()


def pixels_of(line):
    """Return the pixels of a one-shot-colour camera that see a line: red, or green and blue."""
    if canonical_filter(line) not in _PIXELS:
        raise InputError(f"line = {line!r} is not known: use one of {', '.join(_PIXELS)}")
    return _PIXELS[canonical_filter(line)]


def is_known_filter(name, *, spellings=None):
    """Return whether a canonical name is in the tables of this package (or in ``spellings``)."""
    known = {f.name for f in FILTERS} | set(_BROAD.values()) | _LETTERS | {UNKNOWN_FILTER}
    return str(name) in {*known, *_DUAL, *_checked(spellings).values()}
