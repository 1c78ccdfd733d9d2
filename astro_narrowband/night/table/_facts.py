"""
What one frame is: from its header first, then from its file and folder names, then from the user.

Nothing here opens a file, so that any header (a damaged one too) can be tried.
"""

import math
import re
from dataclasses import dataclass, field

from astropy.io import fits

from astro_narrowband._engine import headers as kw
from astro_narrowband._engine.headers.spellings import SPELLINGS
from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import UNKNOWN_FILTER, canonical_filter, is_known_filter
from astro_narrowband.night.table._path_words import PathReader, exposure_from_names

#: A bias with a longer exposure time [s] is not a bias.
LONGEST_BIAS = 1.0


@dataclass(eq=False)
class Facts:
    """
    What a frame is. Times in s, temperatures in deg C, NaN where not known.

    ``mosaic`` is the colour that was taken of a mosaic, ``master`` whether frames were
    joined into this one, ``n_combined`` of them (0 if unsaid), ``model`` the exposure
    times of a dark model. ``rotator`` is as `read_rotator` gives it, ``pointing`` and
    ``pixel_scale`` are in deg. ``refusal`` says why the frame cannot be used ("" if it
    can), ``reduced`` why it is not raw, ``notes`` what else was noticed, one line each.
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
    mosaic: str = ""
    master: bool = False
    n_combined: int = 0
    model: tuple = ()
    rotator: tuple | None = None
    pointing: tuple | None = None
    pixel_scale: float = math.nan
    refusal: str = ""
    reduced: str = ""
    notes: list = field(default_factory=list)


def _guarded(read, header, name):
    """Return what ``read`` has of a header; `InputError` for all that a damaged one may raise."""
    try:
        return read(header)
    except InputError:
        raise
    except Exception as error:  # beyond what astropy itself foresees
        raise InputError(f"{name} cannot be read ({type(error).__name__})") from None


class FactReader:
    """
    Read facts by the keywords of the user, and one table of spellings.

    Parameters
    ----------
    set_keywords : mapping, optional
        Values of the user for keywords that a header lacks or spoils.
    spellings : `~astro_narrowband._engine.headers.Spellings`, optional
    mono : bool, optional
        Whether what a header says of colour filters is wrong.
    """

    def __init__(self, *, set_keywords=None, spellings=SPELLINGS, mono=False):
        self.fallback = header_from(set_keywords)
        self.spellings, self.mono = spellings, mono
        self.headers, self.names = kw.HeaderReader(spellings), PathReader(spellings)

    def facts(self, header, parts):
        """
        Return the `Facts` of one frame; never raises for anything a header may hold.

        Parameters
        ----------
        header : `~astropy.io.fits.Header` or mapping
        parts : sequence of str
            Folder names and, last, the file's name without suffix.
        """
        facts = Facts()
        self._kind(facts, header, parts)
        self._camera(facts, header)
        facts.object = self._ask(facts, self.headers.read_object, header, "object") or ""
        if not facts.object and facts.kind == "light":
            facts.object = self.names.object_from_names(parts) or "unknown"
        if facts.kind in ("light", "flat"):
            self._filter(facts, header, parts)
        self._exposure(facts, header, parts)
        try:
            facts.reduced = kw.reduced_by(header)
            self._place(facts, header)
        except Exception as error:  # a header damaged beyond what astropy itself foresees
            facts.reduced = f"its flags cannot be read ({type(error).__name__})"
        return facts

    def _place(self, facts, header):
        """Where it points and how it is turned; how many frames it was made of."""
        facts.rotator, facts.pointing = kw.read_rotator(header), kw.read_pointing(header)
        facts.pixel_scale = kw.read_pixel_scale(header)
        facts.n_combined = kw.read_combined(header)
        facts.row_order = _word(header, "ROWORDER")
        # A capture program says that it turned the pixels.
        flipped = _word(header, "FLIPSTAT")
        if not re.fullmatch(r"[-+]?0*\.?0*|none|no|false", flipped):
            facts.changed = f"FLIPSTAT {flipped}"
        facts.mosaic = clean_text(header.get("MOSAIC", "")).partition(" ")[0]
        if facts.kind in ("bias", "dark", "flat", "flat-dark"):
            facts.master |= facts.n_combined > 1 or facts.reduced.startswith("COMBINED")
        elif facts.master:
            facts.reduced = facts.reduced or "is a stack of frames"

    def _ask(self, facts, read, header, name):
        """Return what ``read`` finds in the header, else in the user's keywords; else refuse."""
        wrong = None
        for source in (header, self.fallback):
            try:
                value = _guarded(read, source, name)
            except InputError as error:
                wrong = wrong or error
                continue
            if value not in (None, "", ("", "")):
                if wrong is not None:
                    facts.notes.append(f"{wrong}: the value of --set is used")
                return value
        if wrong:
            facts.refusal = facts.refusal or str(wrong)
        return None

    def _camera(self, facts, header):
        """The settings of the camera, and its temperature."""
        for name, read in (
            ("gain", self.headers.read_gain_setting),
            ("offset", self.headers.read_offset),
            ("readout", self.headers.read_readout),
            ("camera", self.headers.read_camera),
            ("bayer", self.headers.read_bayer),
            ("date", self.headers.read_date),
        ):
            if not (self.mono and name == "bayer"):
                setattr(facts, name, self._ask(facts, read, header, name) or "")
        facts.binning = self._ask(facts, kw.read_binning, header, "binning")
        facts.window = self._ask(facts, kw.read_window, header, "window")
        celsius = self._ask(facts, self.headers.read_temperature, header, "temperature")
        facts.temperature = math.nan if celsius is None else celsius
        if celsius is None and (trouble := self.headers.temperature_trouble(header)):
            facts.notes.append(f"{trouble}: its temperature is taken as not known")

    def _kind(self, facts, header, parts):
        try:
            kind, keyword = _guarded(self.headers.read_kind, header, "IMAGETYP") or ("", "")
        except InputError as error:
            facts.refusal = str(error)
            return
        named, where = self.names.kind_from_names(parts)
        if says := self.names.contradiction(self._object_text(header), kind, parts):
            # Capture programs write "Light" by default; nobody writes "Flat" by default, but
            # sets it and forgets it.
            facts.kind = kind
            text = show_value(kw.raw_values(header, keyword)[0][0])
            facts.refusal = f"{keyword} = {text}, but {says}: correct the header or the name"
            return
        if not kind:
            kind = self._kind_unsaid(facts, header, keyword, named, where)
            if not kind:
                return
        facts.kind = kind.removeprefix("master ")
        facts.master = facts.kind != kind or self.names.is_master(parts, facts.kind)
        facts.model = _model_times(header) if facts.master and facts.kind == "dark" else ()

    def _kind_unsaid(self, facts, header, keyword, named, where):
        """The kind of a frame whose header does not tell it; ``""``, and a refusal, if none."""
        if not named:
            by_object = kw.kind_of(self._object_text(header))[0]
            if by_object not in ("", "light", "other"):
                named, where = by_object, "OBJECT"
        value = show_value(kw.raw_values(header, keyword)[0][0]) if keyword else ""
        if named:
            if keyword:
                facts.notes.append(f"{keyword} = {value}: is not known: {named} by its {where}")
            return named
        try:
            said = self.headers.read_kind(self.fallback)
        except InputError as error:
            facts.refusal = str(error)
            return ""
        if said and said[0]:
            return said[0]
        what = f"{keyword} = {value} is not known" if keyword else "IMAGETYP is missing"
        tail = where or "neither its file name nor its folder tells the kind"
        facts.refusal = f"{what}, and {tail}: give --set IMAGETYP=light, or name the folder"
        return ""

    def _object_text(self, header):
        try:
            return self.headers.read_object(header)
        except InputError:
            return ""

    def _filter(self, facts, header, parts):
        spellings = self.spellings.filters
        try:
            text = _guarded(self.headers.read_filter, header, "FILTER")
        except InputError as error:
            facts.refusal = facts.refusal or str(error)
            return
        if text:
            # Two filters in the beam were joined by a plus; a filter's own name may have one.
            names = [canonical_filter(name, spellings=spellings) for name in text.split("+")]
            whole = canonical_filter(text, spellings=spellings)
            joined = "+".join(dict.fromkeys(n for n in names if n))
            facts.filter = whole if is_known_filter(whole, spellings=spellings) else joined
            if not all(is_known_filter(name, spellings=spellings) for name in names):
                facts.notes.append(
                    f"FILTER = {show_value(text)}: is not a known spelling: it is a filter of its "
                    "own"
                )
            return
        name, where = self.names.filter_from_names(parts)
        if name:
            facts.filter = name
            facts.notes.append(f"FILTER is missing: {name} by its {where}")
            return
        text = self.headers.read_filter(self.fallback)
        facts.filter = canonical_filter(text, spellings=spellings) if text else UNKNOWN_FILTER

    def _exposure(self, facts, header, parts):
        problem, times = "", []
        if facts.model:
            facts.exposure = max(facts.model)
            return
        try:
            times = _guarded(self.headers.exposures_in, header, "EXPTIME")
            facts.exposure = self.headers.read_exposure(header)
        except InputError as error:
            problem, times = str(error), []
        if facts.kind in ("light", "flat") and facts.exposure == 0:
            problem = f"{times[0][0]} = 0: a {facts.kind} needs a time"
        if problem:
            self._exposure_unsaid(facts, parts, problem)
        good = [(k, s) for k, s in times if not isinstance(s, InputError)]
        if len(good) > 1:
            longest, shortest = max(s for _, s in good), min(s for _, s in good)
            if longest - shortest > max(0.01 * longest, 0.002):
                text = ", ".join(f"{k} = {s:g} s" for k, s in good)
                believed = next((k for k, s in good if s == facts.exposure), good[0][0])
                facts.notes.append(f"{text}: disagree: {believed} is believed")
        if facts.kind == "bias" and facts.exposure > LONGEST_BIAS and not facts.master:
            facts.refusal = facts.refusal or (
                f"is a bias by its type, but EXPTIME = {facts.exposure:g}: correct the header"
            )
        elif facts.kind == "dark" and facts.exposure == 0 and not facts.master:
            facts.kind = "bias"
            facts.notes.append("EXPTIME = 0: a dark of no length is taken as a bias")

    def _exposure_unsaid(self, facts, parts, problem):
        """The exposure time by the file's name, or the user; of what needs none, 0."""
        needs = facts.kind in ("light", "flat", "dark", "flat-dark")
        needs &= not (facts.master and facts.kind == "flat")
        seconds, source = math.nan, "its name"
        if "different values" not in problem:
            seconds = exposure_from_names(parts)
            if math.isnan(seconds) or (seconds == 0 and needs):
                source = "--set"
                try:
                    seconds = self.headers.read_exposure(self.fallback)
                except InputError:
                    seconds = math.nan
        if seconds > 0:
            facts.exposure = seconds
            if source == "its name":
                facts.notes.append(f"{problem.split(':')[0]}: {seconds:g} s by {source}")
        elif facts.kind == "bias":
            facts.exposure = 0.0
        elif needs:
            facts.exposure = math.nan
            facts.refusal = facts.refusal or problem


def _model_times(header):
    """Exposure times of a dark model of this package, ``()`` of anything else."""
    try:
        return tuple(float(header[f"DARKT{k}"]) for k in range(header["DARKNEXP"]))
    except Exception:  # as above
        return ()


def _word(header, keyword):
    """The first value of a keyword in lower case, ``""`` where there is none."""
    value = next((value for value, _ in kw.raw_values(header, keyword)), None)
    return "" if value is None else clean_text(value).lower()


def header_from(set_keywords):
    """Return the user's keywords as a mapping with upper-case keys, checked for being text."""
    if isinstance(set_keywords, fits.Header):
        return set_keywords
    return {str(key).upper(): value for key, value in dict(set_keywords or {}).items()}
