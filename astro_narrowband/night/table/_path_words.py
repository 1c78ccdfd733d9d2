"""What the words of file and folder names tell of a frame."""

import math
import re

from astro_narrowband._engine import headers as kw
from astro_narrowband._engine.headers.spellings import KINDS, SPELLINGS
from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband.filters import FILTERS, canonical_filter, filter_key

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
#: Of a frame that was made of others.
_JOINED = frozenset(["stacked", "combined", "integrated", "integration"])
#: In a name these are as often the second session or the third star.
_TOO_SHORT = frozenset(["n2", "s2", "o3", "n11", "s11", "o111", "l"])
_BROAD = ("luminance", "lum")
_NARROW = frozenset(f.name for f in FILTERS)
#: Folders with these names say nothing about the object in them.
_NO_OBJECT = re.compile(
    r"(data|raw|raws|fits|images?|frames?|night\d*|session\d*|nights?|science|calib\w*|cals?|obs\w*"
    r"|(19|20)\d{6}|n\d+|s\d+|bin\d(x\d)?|\d+(x\d+)?|sample|tmp|temp\w*|incoming|unknown|captures?)?"
)


def words_of(text):
    """Return the words of a file or folder name, lower case: cut at signs, never inside a word."""
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def exposure_from_names(parts):
    """Return the exposure time [s] that file or folder name give (``300s``, ``0.5sec``), or NaN."""
    for name in reversed(parts):
        times = {
            float(number) * (1e-3 if unit.lower().startswith("m") else 1.0)
            for number, unit in re.findall(
                r"(?<![^\W_])(\d{1,5}(?:\.\d{1,6})?)\s?(s|sec|secs|ms|msec)(?![^\W_])",
                name,
                re.IGNORECASE | re.ASCII,
            )
        }
        if len(times) == 1:
            return times.pop()
    return math.nan


class PathReader:
    """Read names by a table of spellings."""

    def __init__(self, spellings=SPELLINGS):
        self.spellings = spellings

    def _kinds_in(self, name):
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
            kind = _NAME_KINDS.get(stem) or _NAME_KINDS.get(
                re.sub(r"(frame|field|image)s?$", "", stem)
            )
            master |= stem != bare or bare in _JOINED
            if _NAME_KINDS.get(bare + following) == "flat-dark":
                sure.add("flat-dark")
                skip = True
            elif kind == "dark" and following and not _AFTER_DARK.fullmatch(following):
                maybe.add(kind)
            elif kind:
                sure.add(kind)
            elif word not in KINDS and word in self.spellings.kinds:
                sure.add(self.spellings.kinds[word])
        return sure, maybe, master

    def is_master(self, parts, kind):
        """Whether the name of a file, or the nearest folder of a kind, is that of such masters."""
        if self._kinds_in(parts[-1])[2]:
            return True
        folders = (self._kinds_in(name) for name in reversed(parts[:-1]))
        nearest = next((kinds for kinds in folders if kinds[0]), (set(), set(), False))
        return kind != "light" and nearest[2] and kind in nearest[0]

    def kind_from_names(self, parts):
        """
        Return ``(kind, where)`` from the path's parts, the file's stem last.

        The file name is asked first, then the folders from the nearest. Where they
        disagree on whether it is a light, nobody knows: ``""``.
        """
        kinds, maybe, _ = self._kinds_in(parts[-1])
        folders = (self._kinds_in(name)[0] for name in reversed(parts[:-1]))
        around = next(filter(None, folders), set())
        if len(kinds) > 1 or not kinds:
            kinds = (kinds or maybe) & around
        if len(kinds) == 1:
            (kind,) = kinds
            if around and around != kinds and "light" in (kinds | around):
                return "", "file and folder name disagree"
            return kind, "file name"
        if len(around) == 1 and (not maybe or around == {"light"}):
            (kind,) = around
            return kind, "folder name"
        return "", ""

    def contradiction(self, text, kind, parts):
        """Say what names or OBJECT call a frame, if that cannot be what its header says."""
        if kind in ("flat", "dark", "bias"):
            kinds = self._kinds_in(parts[-1])[0]
            others = {"dark", "bias"} if kind == "flat" else {"flat"}
            return f"its file name says {min(kinds)}" if kinds and kinds <= others else ""
        if kind != "light":
            return ""
        where = [(self._kinds_in(parts[-1])[0], "file name")]
        if len(parts) > 1:
            where.append((self._kinds_in(parts[-2])[0], "folder name"))
        for kinds, what in where:
            if kinds:
                return "" if "light" in kinds else f"its {what} says {min(kinds)}"
        named = kw.kind_of(text)[0]
        return (
            f"OBJECT = {show_value(text)}" if named in ("bias", "dark", "flat", "flat-dark") else ""
        )

    def filter_from_names(self, parts):
        """Return ``(canonical filter, where)`` by file name, then folders; ``("", "")`` if none."""
        for path_name, where in [(parts[-1], "file name")] + [
            (path_name, "folder name") for path_name in reversed(parts[:-1])
        ]:
            words = re.findall(r"[^\W_]+", path_name)
            names = set()
            for size in (3, 2, 1):
                for i in range(len(words) - size + 1):
                    gram = words[i : i + size]
                    key = filter_key("".join(gram))
                    if key in _TOO_SHORT or len(key) < 2 or any(w.isdigit() for w in gram):
                        continue
                    name = canonical_filter(" ".join(gram), spellings=self.spellings.filters)
                    if name in _NARROW or key in self.spellings.filters or key in _BROAD:
                        names.add(name)
            if len(names) == 1:
                return names.pop(), where
            if names:
                return "", ""
        return "", ""

    def object_from_names(self, parts):
        """Return the nearest folder's name that is not about kinds, filters or dates, or ``""``."""
        for name in reversed(parts[:-1]):
            text = clean_text(name)
            words = words_of(text)
            kinds = self._kinds_in(text)[0]
            is_filter = canonical_filter(text, spellings=self.spellings.filters)
            if kinds or is_filter in _NARROW or all(_NO_OBJECT.fullmatch(w) for w in words):
                continue
            return text
        return ""
