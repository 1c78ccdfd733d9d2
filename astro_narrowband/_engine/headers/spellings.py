"""
The tables behind `astro_narrowband._engine.headers`, and header values as they are.

Keywords, frame types, and the two functions that get a value out of a damaged
card without changing it. `Spellings` puts a user's own on top.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from astropy.io import fits

from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import filter_key


def _words(text):
    # A dot stands for a blank: ESO.DPR.TYPE is HIERARCH ESO DPR TYPE.
    return tuple(word.replace(".", " ") for word in text.split())


#: Keywords of each property, the one that is believed first in front.
KEYWORDS = MappingProxyType(
    {
        "kind": _words(
            "IMAGETYP IMAGTYP IMAGETYPE IMGTYPE IMAGE-TY OBSTYPE FRAME FRAMETYP FRAMETYPE "
            "EXPTYPE CCDTYPE ESO.DPR.TYPE"
        ),
        "exposure": _words(
            "EXPTIME EXPOSURE EXP_TIME EXP-TIME EXPTIM EXPOTIME EXPOSED ITIME TEXP EXPOINUS "
            "EXPOINMS"
        ),
        "filter": _words(
            "FILTER FILTERS FILTNAME FILTNAM FILTERID INSFILTE FILT_ID FILTER1 FILTER2 FILTER3 "
            "FWNAME FILTER-A FILTER-B WFFBAND ESO.INS.FILT1.NAME ESO.INS.FILT2.NAME"
        ),
        "object": _words("OBJECT OBJNAME TARGET TARGNAME OBJ_NAME"),
        "temperature": _words(
            "CCD-TEMP CCDTEMP CCD_TEMP CCDATEMP DET-TEMP DETTEMP DET_TEMP CAM-TEMP CAMTEMP "
            "SENSTEMP TEMPERAT SET-TEMP SETTEMP CCDSETTE"
        ),
        "egain": _words("EGAIN E-GAIN EPADU EPERDN ELECGAIN ESO.DET.OUT1.CONAD"),
        "gain": _words("GAIN GAINDL GAINRAW CCDGAIN GAINE CAMGAIN GAINSET ISOSPEED ISO"),
        "noise": _words(
            "RDNOISE READNOIS READNOISE RDNOIS RON RONOISE ENOISE RNOISE RN ESO.DET.OUT1.RON"
        ),
        "saturation": _words("SATURATE SATLEVEL SATURATI SATURATION SATUR SATVAL FULLWELL MAXADU"),
        "offset": _words("OFFSET BLKLEVEL BLACKLEV BLKLVL CAMOFFS"),
        "readout": _words("READOUTM READMODE RDMODE READOUT READ-MOD ROMODE"),
        "camera": _words("INSTRUME CAMERA CAMNAME DETECTOR DETNAM DETNAME CCDNAME CAMMODEL"),
        "date": _words("DATE-OBS DATE-BEG DATEOBS DATE_OBS DATE-STA"),
        "bayer": _words("BAYERPAT BAYER BAYERPATTERN CFA CFAPAT CFA-PAT COLORPAT"),
    }
)

#: What frames are called, without case, blanks and punctuation. Frames of kind
#: ``other`` (focus, lamps, snapshots) belong to no reduction.
KINDS = MappingProxyType(
    {
        spelling: kind
        for kind, spellings in {
            "bias": "bias biases zero zeros zeroexposure offset offsets biasdark",
            "dark": "dark darks darkcurrent",
            "flat": (
                "flat flats flatfield flatfields domeflat domeflats skyflat skyflats twilightflat "
                "twilightflats twiflat twilight twilightsky panelflat lampflat flatlamp flatsky "
                "dflat sflat tflat internalflat internalflats domeflatlamp"
            ),
            "light": (
                "light lights object objects science sciences sci target targets lightfield "
                "stellar subs sub expose standard std objectastf objectother"
            ),
            "flat-dark": (
                "flatdark flatdarks darkflat darkflats darkforflat darksforflats darkflatfield"
            ),
            "other": (
                "focus focusing test tests arc lamp comp comparison guide guider guiding pointing "
                "snapshot preview acquisition acq align alignment tricolor tricolour truth"
            ),
        }.items()
        for spelling in spellings.split()
    }
)

#: Flags that a reduction leaves in a header, and the calibration they stand for.
REDUCED = _words(
    "BIASSUB DARKSUB FLATCOR GAINCOR EXPNORM ZEROCOR BIASCOR DARKCOR FLATDIV FLATTED CALSTAT "
    "SUBBIAS SUBDARK CALIBRAT COMBINED BIASCORR DARKCORR FLATCORR L1STATBI L1STATDA L1STATFL"
)
#: What such a flag says, in lower case, where nothing was done.
OFF = {"", *_words("f n 0 no none false off omit omitted skipped raw not perform")}
#: Keywords that count the frames that were joined into one.
COUNTS = _words(
    "NCOMBINE STACKCNT NSTACK NUMSTACK STACKED SNAPSHOT LIGH_CNT DARK_CNT FLAT_CNT BIAS_CNT"
)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([ed][+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Spellings:
    """
    Spellings of a user, on top of the tables of this package.

    Parameters
    ----------
    keywords : mapping of str to sequence of str
        More keywords for a property of `KEYWORDS`; they are believed first.
    kinds : mapping of str to str
        Frame types: spelling to ``bias``, ``dark``, ``flat``, ``light``,
        ``flat-dark`` or ``other``.
    filters : mapping of str to str
        Filters: spelling to the name that is wanted.

    Raises
    ------
    InputError
        If a property or kind is not known.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import HeaderReader, Spellings
    >>> mine = Spellings(kinds={"himmelsfeld": "flat"})
    >>> HeaderReader(mine).read_kind({"IMAGETYP": "Himmels-Feld"})
    ('flat', 'IMAGETYP')
    """

    keywords: Mapping = field(default_factory=dict)
    kinds: Mapping = field(default_factory=dict)
    filters: Mapping = field(default_factory=dict)

    def __post_init__(self):
        for name in self.keywords:
            if name not in KEYWORDS:
                raise InputError(f"spellings: keywords.{name} is not one of {', '.join(KEYWORDS)}")
        merged = {
            name: tuple(k.upper() for k in self.keywords.get(name, ())) + tuple(keys)
            for name, keys in KEYWORDS.items()
        }
        for spelling, kind in self.kinds.items():
            if kind not in set(KINDS.values()):
                raise InputError(
                    f"spellings: kinds.{spelling} = {kind!r} is not one of "
                    f"{', '.join(sorted(set(KINDS.values())))}"
                )
        kinds = KINDS | {key_of(spelling): kind for spelling, kind in self.kinds.items()}
        filters = {filter_key(spelling): str(name) for spelling, name in self.filters.items()}
        object.__setattr__(self, "keywords", merged)
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "filters", filters)

    @classmethod
    def read(cls, path):
        """
        Read spellings from a TOML file with tables ``keywords``, ``kinds``, ``filters``.

        Raises
        ------
        InputError
            If the file cannot be read or holds something else.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"{path}: no spellings can be read from it ({error})") from None
        tables = {name: content.pop(name, {}) for name in ("keywords", "kinds", "filters")}
        if content or not all(isinstance(table, dict) for table in tables.values()):
            raise InputError(f"{path}: only the tables keywords, kinds and filters are known")
        lists = tables["keywords"]
        texts = [*tables["kinds"].values(), *tables["filters"].values()]
        for value in lists.values():
            texts += value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}: spellings must be text")
        tables["keywords"] = {k: [v] if isinstance(v, str) else v for k, v in lists.items()}
        return cls(**tables)


SPELLINGS = Spellings()

# ------------------------------------------------------------------ values, as they are


def raw_values(header, keyword):
    """
    Return every ``(value, comment)`` of ``keyword``, in order; damaged cards as text.

    An undefined value is ``None``. The header is not changed (astropy's own
    ``verify("fix")`` would rewrite the card).
    """
    if keyword not in header:
        return []
    if not isinstance(header, fits.Header):
        return [(header[keyword], "")]
    values = []
    for index in range(header.count(keyword)):
        card = header.cards[(keyword, index)]
        try:
            value, comment = card.value, card.comment
        except Exception:  # astropy: VerifyError, ValueError, ... by the kind of damage
            image = str(getattr(card, "_image", "") or "")
            value, _, comment = image.partition("=")[2].partition("/")
            value = value.strip().strip("'")
        if isinstance(value, fits.card.Undefined):
            value = None
        values.append((value, str(comment)))
    return values


def parse_number(value):
    """
    Return ``value`` as a finite float: a number, or text such as ``"1.22"`` or ``"0,5"``.

    A comma is the decimal sign; where it may as well part thousands (``"1,200"``)
    the text is refused, for a factor of 1000 is not to be guessed.

    Raises
    ------
    ValueError
        If it is not a number, not finite, or ambiguous.
    """
    if isinstance(value, bool | complex) or value is None:
        raise ValueError("is not a number")
    if not isinstance(value, str):
        try:
            number = float(value)
        except (TypeError, OverflowError):
            raise ValueError("is not a number") from None
    else:
        text = value.strip(" =\t'\"")
        if re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text, re.ASCII):
            raise ValueError("may be a decimal comma or thousands")
        text = text.replace(",", ".", 1)
        if not _NUMBER.fullmatch(text):
            raise ValueError("is not a number")
        number = float(text.lower().replace("d", "e"))
    if not math.isfinite(number):
        raise ValueError("is not finite")
    return number


def key_of(text):
    """Return what two spellings of one word have in common: its letters and digits."""
    return re.sub(r"[^a-z0-9]+", "", clean_text(text).lower())


def _same(values):
    """Whether all values of a keyword that stands twice agree."""
    try:
        numbers = [parse_number(v) for v in values]
    except ValueError:
        return len({key_of(v) for v in values}) == 1
    return max(numbers) - min(numbers) <= 1e-6 * max(map(abs, numbers))


def one_value(header, keyword):
    """Return ``(value, comment)`` of a keyword, ``None`` if absent or undefined."""
    stated = [(v, c) for v, c in raw_values(header, keyword) if v is not None]
    if not stated:
        return None
    if len(stated) > 1 and not _same([v for v, _ in stated]):
        values = " and ".join(repr(v) for v, _ in stated[:3])
        raise InputError(
            f"{keyword} = {values}: stands {len(stated)} times with different values: "
            "correct the header"
        )
    return stated[0]


def text_of(header, keyword):
    """Return the value of a keyword as one clean line, ``""`` if absent or undefined."""
    card = one_value(header, keyword)
    return "" if card is None else clean_text(card[0])


def number_of(header, keyword):
    """Return ``(number, comment)`` of a keyword, ``None`` if absent or blank; `InputError` else."""
    if not text_of(header, keyword):
        return None
    value, comment = one_value(header, keyword)
    try:
        return parse_number(value), comment
    except ValueError as error:
        raise InputError(f"{keyword} = {show_value(value)} {error}") from None


def kind_of(text, *, spellings=SPELLINGS):
    """
    Return ``(kind, is_master)`` for a frame type as headers spell it; ``("", False)`` if unknown.

    Examples
    --------
    >>> from astro_narrowband._engine.headers import kind_of
    >>> kind_of(" Light Frame "), kind_of("Master Dark"), kind_of("FLAT,LAMP")
    (('light', False), ('dark', True), ('flat', False))
    """
    key = key_of(text)
    if key in spellings.kinds:
        return spellings.kinds[key], False
    master = False
    for word in ("master", "super", "combined", "stacked", "integrated", "integration"):
        if key.startswith(word) or key.endswith(word):
            key, master = key.removeprefix(word).removesuffix(word), True
    for tail in ("frames", "frame", "fields", "field", "images", "image", "exposure", ""):
        if (kind := spellings.kinds.get(key.removesuffix(tail))) is not None:
            return kind, master
    return "", master
