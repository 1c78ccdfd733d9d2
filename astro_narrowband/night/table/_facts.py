"""
What one frame is: from its header first, then from its file and folder names, then from the user.

Nothing here opens a file, so that any header (a damaged one too) can be tried.
"""

import math
import re
from dataclasses import dataclass, field

from astropy.io import fits

from astro_narrowband._engine import headers as kw
from astro_narrowband._engine.headers.spellings import KINDS, SPELLINGS, show
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import (
    FILTERS,
    UNKNOWN_FILTER,
    canonical_filter,
    filter_key,
    is_known_filter,
)

__all__ = ["Facts", "Note", "facts_of"]

#: A bias with a longer exposure time [s] is not a bias.
LONGEST_BIAS = 1.0

#: Words of file and folder names that tell a kind. The other spellings of headers
#: (object, target, test, sub, ...) are too common in names to mean anything there.
_NAME_KINDS = {
    word: kind
    for word, kind in KINDS.items()
    if re.fullmatch(r"(bias|biases|zeros?|(\w*flats?\w*)|darks?|lights?|darkflats?)", word)
}
#: What may follow ``dark`` where frames are meant; ``Dark Shark`` and ``dark sky`` are not.
_AFTER_DARK = re.compile(
    r".*\d.*|frames?|fields?|images?|lib|library|current|bin|for|raws?|masters?|cal\w*|sec|s|iso|gain"
    r"|temp|minus|c|k|set|and|bias\w*|\w*flats?\w*|lights?"
)
#: In a name these are as often the second session or the third star.
_TOO_SHORT = frozenset(["n2", "s2", "o3", "n11", "s11", "o111", "l"])
_NARROW = frozenset(f.name for f in FILTERS)
#: Folders with these names say nothing about the object in them.
_NO_OBJECT = re.compile(
    r"(data|raw|raws|fits|images?|frames?|night\d*|session\d*|nights?|science|calib\w*|cals?|obs\w*"
    r"|(19|20)\d{6}|n\d+|s\d+|bin\d(x\d)?|\d+(x\d+)?|sample|tmp|temp\w*|incoming|unknown|captures?)?"
)


@dataclass(frozen=True)
class Note:
    """One thing that was noticed: keyword, value as text, what was done, what to do."""

    keyword: str
    value: str
    done: str
    todo: str = ""

    def __str__(self):
        what = f"{self.keyword} = {self.value}" if self.value else self.keyword
        return ": ".join(part for part in (what, self.done, self.todo) if part)


@dataclass(eq=False)
class Facts:
    """
    What a frame is. Times in s, temperatures in deg C, NaN where not known.

    ``refusal`` says why the frame cannot be used ("" if it can), ``notes`` what
    else was noticed.
    """

    kind: str = ""
    object: str = ""
    filter: str = UNKNOWN_FILTER
    exposure: float = math.nan
    temperature: float = math.nan
    binning: tuple | None = None
    window: tuple | None = None
    gain: str = ""
    offset: str = ""
    readout: str = ""
    camera: str = ""
    row_order: str = ""
    changed: str = "none"
    date: str = ""
    bayer: str = ""
    refusal: str = ""
    notes: list = field(default_factory=list)


def words_of(text):
    """Return the words of a file or folder name, lower case: cut at signs, never inside a word."""
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def _kinds_in(name, spellings):
    """Return the kinds that one name tells, those it may tell, and whether one is a master."""
    words = words_of(name)
    sure, maybe, master, skip = set(), set(), False, False
    for i, word in enumerate(words):
        if skip:
            skip = False
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        bare = re.sub(r"\d+.*$", "", word)
        stem = re.sub(r"^(master|super)", "", bare)
        kind = _NAME_KINDS.get(stem) or _NAME_KINDS.get(re.sub(r"(frame|field|image)s?$", "", stem))
        master |= stem != bare or bare == "stacked"
        if _NAME_KINDS.get(bare + following) == "flat-dark":
            sure.add("flat-dark")
            skip = True
        elif kind == "dark" and following and not _AFTER_DARK.fullmatch(following):
            maybe.add(kind)
        elif kind:
            sure.add(kind)
        elif spellings is not SPELLINGS and word in spellings.kinds and word not in KINDS:
            sure.add(spellings.kinds[word])
    return sure, maybe, master


def kind_from_names(parts, spellings=SPELLINGS):
    """
    Return ``(kind, where)`` from the path's parts, the file's stem last.

    The file name is asked first, then the folders from the nearest. Where they
    disagree on whether it is a light, nobody knows: ``""``.
    """
    own, maybe, master = _kinds_in(parts[-1], spellings)
    around = set()
    for part in reversed(parts[:-1]):
        around, _, master_folder = _kinds_in(part, spellings)
        if around:
            master |= master_folder
            break
    prefix = "master " if master else ""
    if len(own) > 1 or not own:
        own = (own or maybe) & around
    if len(own) == 1:
        (kind,) = own
        if around and around != own and "light" in (own | around):
            return "", "file and folder name disagree"
        return prefix + kind, "file name"
    if len(around) == 1 and (not maybe or around == {"light"}):
        (kind,) = around
        return prefix + kind, "folder name"
    return "", ""


def _contradiction(header, kind, parts, spellings):
    """Say what names or OBJECT call a frame, if that cannot be what its header says."""
    if kind in ("flat", "dark", "bias"):
        kinds = _kinds_in(parts[-1], spellings)[0]
        others = {"dark", "bias"} if kind == "flat" else {"flat"}
        return f"its file name says {min(kinds)}" if kinds and kinds <= others else ""
    if kind != "light":
        return ""
    where = [(_kinds_in(parts[-1], spellings)[0], "file name")]
    if len(parts) > 1:
        where.append((_kinds_in(parts[-2], spellings)[0], "folder name"))
    for kinds, what in where:
        if kinds:
            return "" if "light" in kinds else f"its {what} says {min(kinds)}"
    text = _object_text(header, spellings)
    named = kw.kind_of(text)[0]
    return f"OBJECT = {show(text)}" if named in ("bias", "dark", "flat", "flat-dark") else ""


def filter_from_names(parts, spellings=SPELLINGS):
    """Return ``(canonical filter, where)`` from file name, then folders; ``("", "")`` if none."""
    for part, where in [(parts[-1], "file name")] + [
        (part, "folder name") for part in reversed(parts[:-1])
    ]:
        words = re.findall(r"[^\W_]+", part)
        found = set()
        for size in (3, 2, 1):
            for i in range(len(words) - size + 1):
                gram = words[i : i + size]
                key = filter_key("".join(gram))
                if key in _TOO_SHORT or len(key) < 2 or any(w.isdigit() for w in gram):
                    continue
                name = canonical_filter(" ".join(gram), spellings=spellings.filters)
                if name in _NARROW or key in spellings.filters or key in ("luminance", "lum"):
                    found.add(name)
        if len(found) == 1:
            return found.pop(), where
        if found:
            return "", ""
    return "", ""


def exposure_from_names(parts):
    """Return the exposure time [s] that file or folder name give (``300s``, ``0.5sec``), or NaN."""
    for part in reversed(parts):
        times = {
            float(number) * (1e-3 if unit.lower().startswith("m") else 1.0)
            for number, unit in re.findall(
                r"(?<![^\W_])(\d{1,5}(?:\.\d{1,6})?)\s?(s|sec|secs|ms|msec)(?![^\W_])",
                part,
                re.IGNORECASE | re.ASCII,
            )
        }
        if len(times) == 1:
            return times.pop()
    return math.nan


def object_from_names(parts, spellings=SPELLINGS):
    """Return the nearest folder's name that is not about kinds, filters or dates, or ``""``."""
    for part in reversed(parts[:-1]):
        text = kw.clean_text(part)
        words = words_of(text)
        told = _kinds_in(text, spellings)[0]
        is_filter = canonical_filter(text, spellings=spellings.filters)
        if told or is_filter in _NARROW or all(_NO_OBJECT.fullmatch(w) for w in words):
            continue
        return text
    return ""


def _ask(facts, read, header, fallback, name):
    """Return what ``read`` finds in the header, else in the user's keywords; note what is wrong."""
    wrong = None
    for source in (header, fallback):
        try:
            value = read(source)
        except InputError as error:
            wrong = wrong or error
            continue
        except Exception as error:  # a header damaged beyond what astropy itself foresees
            wrong = wrong or InputError(f"{name} cannot be read ({type(error).__name__})")
            continue
        if value not in (None, "", ("", "")):
            if wrong is not None:
                facts.notes.append(Note(str(wrong), "", "the value of --set is used"))
            return value, None
    return None, wrong


def facts_of(header, parts, *, set_keywords=None, spellings=SPELLINGS, mono=False):
    """
    Return the `Facts` of one frame.

    Parameters
    ----------
    header : `~astropy.io.fits.Header` or mapping
    parts : sequence of str
        Folder names and, last, the file's name without suffix.
    set_keywords : mapping, optional
        Values of the user for keywords that the header lacks or spoils.
    spellings : `~astro_narrowband._engine.headers.Spellings`, optional
    mono : bool, optional
        Whether what a header says of colour filters is wrong.

    Returns
    -------
    `Facts`
        Never raises for anything a header may hold.
    """
    facts = Facts()
    fallback = dict(set_keywords or {})

    def ask(read, name):
        return _ask(facts, lambda h: read(h, spellings=spellings), header, fallback, name)

    _kind(facts, header, parts, fallback, spellings)
    for name, read in (
        ("gain", kw.read_gain_setting),
        ("offset", kw.read_offset),
        ("readout", kw.read_readout),
        ("camera", kw.read_camera),
        ("bayer", kw.read_bayer),
        ("date", kw.read_date),
    ):
        if mono and name == "bayer":
            continue
        value, wrong = ask(read, name)
        setattr(facts, name, value or "")
        if wrong:
            facts.refusal = facts.refusal or str(wrong)
    for name, read in (("binning", kw.read_binning), ("window", kw.read_window)):
        value, wrong = _ask(facts, read, header, fallback, name)
        setattr(facts, name, value)
        if wrong:
            facts.refusal = facts.refusal or str(wrong)
    value, wrong = ask(kw.read_temperature, "temperature")
    facts.temperature = math.nan if value is None else value
    if wrong:
        facts.notes.append(Note(str(wrong), "", "its temperature is taken as not known"))
    facts.row_order = _row_order(header)
    facts.changed = _changed(header)
    value, wrong = ask(kw.read_object, "object")
    facts.object = value or ""
    if wrong:
        facts.refusal = facts.refusal or str(wrong)
    if not facts.object and facts.kind == "light":
        facts.object = object_from_names(parts, spellings) or "unknown"
    if facts.kind in ("light", "flat"):
        _filter(facts, header, parts, fallback, spellings)
    _exposure(facts, header, parts, fallback, spellings)
    try:
        why = kw.reduced_by(header)
    except Exception as error:  # as above
        why = f"its flags cannot be read ({type(error).__name__})"
    if why and not facts.refusal:
        facts.refusal = f"{why}: is not a raw frame: give the raw ones"
    return facts


def _row_order(header):
    try:
        values = kw.raw_values(header, "ROWORDER")
    except Exception:  # as above
        return ""
    return kw.clean_text(values[0][0]).lower() if values and values[0][0] is not None else ""


def _changed(header):
    """What capture programs say they did to the pixels: PEDESTAL added, FLIPSTAT turned."""
    done = []
    for keyword in ("PEDESTAL", "FLIPSTAT"):
        try:
            found = kw.one_value(header, keyword)
        except Exception:  # noqa: S112 - as above
            continue
        text = kw.clean_text(found[0]) if found else ""
        if text and not re.fullmatch(r"[-+]?0*\.?0*|none|no|false", text.lower()):
            done.append(f"{keyword} {text.lower().removesuffix('.0')}")
    return " ".join(done) or "none"


def _kind(facts, header, parts, fallback, spellings):
    found, wrong = None, None
    try:
        found = kw.read_kind(header, spellings=spellings)
    except InputError as error:
        wrong = error
    except Exception as error:  # as above
        wrong = InputError(f"IMAGETYP cannot be read ({type(error).__name__})")
    kind, keyword = found or ("", "")
    named, where = kind_from_names(parts, spellings)
    if wrong:
        facts.refusal = str(wrong)
        return
    if says := _contradiction(header, kind, parts, spellings):
        # Capture programs write "Light" by default; nobody writes "Flat" by default, but sets it
        # and forgets it.
        facts.kind = kind
        text = show(kw.raw_values(header, keyword)[0][0])
        facts.refusal = f"{keyword} = {text}, but {says}: correct the header or the name"
        return
    if not kind and not named:
        kind_by_object = kw.kind_of(_object_text(header, spellings))[0]
        if kind_by_object not in ("", "light", "other"):
            named, where = kind_by_object, "OBJECT"
    if not kind:
        kind = named
        value = show(kw.raw_values(header, keyword)[0][0]) if keyword else ""
        if kind and keyword:
            facts.notes.append(Note(keyword, value, f"is not known: {kind} by its {where}"))
        if not kind:
            try:
                found = kw.read_kind(fallback, spellings=spellings)
            except InputError as error:
                facts.refusal = str(error)
                return
            kind = found[0] if found else ""
        if not kind:
            what = f"{keyword} = {value} is not known" if keyword else "IMAGETYP is missing"
            tail = where or "neither its file name nor its folder tells the kind"
            facts.refusal = f"{what}, and {tail}: give --set IMAGETYP=light, or name the folder"
            return
    if kind.startswith("master "):
        facts.refusal = "is a combined master: give the single raw frames"
        kind = kind.removeprefix("master ")
    elif named == f"master {kind}":
        facts.refusal = f"its {where} says master {kind}: give the single raw frames"
    facts.kind = kind


def _object_text(header, spellings):
    try:
        return kw.read_object(header, spellings=spellings)
    except InputError:
        return ""


def _filter(facts, header, parts, fallback, spellings):
    try:
        text = kw.read_filter(header, spellings=spellings)
    except InputError as error:
        facts.refusal = facts.refusal or str(error)
        return
    except Exception as error:  # as above
        facts.refusal = facts.refusal or f"FILTER cannot be read ({type(error).__name__})"
        return
    if text:
        # Two filters in the beam were joined by a plus; a filter's own name may have one.
        names = [canonical_filter(part, spellings=spellings.filters) for part in text.split("+")]
        whole = canonical_filter(text, spellings=spellings.filters)
        joined = "+".join(n for n in names if n)
        facts.filter = whole if is_known_filter(whole, spellings=spellings.filters) else joined
        if not all(is_known_filter(name, spellings=spellings.filters) for name in names):
            facts.notes.append(
                Note("FILTER", show(text), "is not a known spelling: it is a filter of its own")
            )
        return
    name, where = filter_from_names(parts, spellings)
    if name:
        facts.filter = name
        facts.notes.append(Note("FILTER is missing", "", f"{name} by its {where}"))
        return
    text = kw.read_filter(fallback, spellings=spellings)
    facts.filter = canonical_filter(text, spellings=spellings.filters) if text else UNKNOWN_FILTER


def _exposure(facts, header, parts, fallback, spellings):
    wrong, found = None, []
    try:
        found = kw.exposures_in(header, spellings=spellings)
        facts.exposure = kw.read_exposure(header, spellings=spellings)
    except InputError as error:
        wrong = error
    except Exception as error:  # as above
        wrong = InputError(f"EXPTIME cannot be read ({type(error).__name__})")
    needs = facts.kind in ("light", "flat", "dark", "flat-dark")
    if wrong or (facts.kind in ("light", "flat") and facts.exposure == 0):
        problem = str(wrong) if wrong else f"{found[0][0]} = 0: a {facts.kind} needs a time"
        if "different values" not in problem:
            seconds = exposure_from_names(parts)
            source = "its name"
            if math.isnan(seconds) or (seconds == 0 and needs):
                source = "--set"
                try:
                    seconds = kw.read_exposure(fallback, spellings=spellings)
                except InputError:
                    seconds = math.nan
        else:
            seconds = math.nan
        if seconds > 0:
            facts.exposure = seconds
            if source == "its name":
                facts.notes.append(Note(problem.split(":")[0], "", f"{seconds:g} s by {source}"))
        elif facts.kind == "bias":
            facts.exposure = 0.0
        elif needs:
            facts.exposure = math.nan
            facts.refusal = facts.refusal or problem
    good = [(k, s) for k, s in found if not isinstance(s, InputError) and s > 0]
    if len(good) > 1 and not wrong:
        longest, shortest = max(s for _, s in good), min(s for _, s in good)
        if longest - shortest > max(0.01 * longest, 0.002):
            text = ", ".join(f"{k} = {s:g} s" for k, s in good)
            facts.notes.append(Note(text, "", f"disagree: {good[0][0]} is believed"))
    if facts.kind == "bias" and facts.exposure > LONGEST_BIAS:
        facts.refusal = facts.refusal or (
            f"is a bias by its type, but EXPTIME = {facts.exposure:g}: correct the header"
        )
    elif facts.kind == "dark" and facts.exposure == 0:
        facts.kind = "bias"
        facts.notes.append(Note("EXPTIME", "0", "a dark of no length is taken as a bias"))


def header_from(set_keywords):
    """Return the user's keywords as a mapping with upper-case keys, checked for being text."""
    if isinstance(set_keywords, fits.Header):
        return set_keywords
    return {str(key).upper(): value for key, value in dict(set_keywords or {}).items()}
