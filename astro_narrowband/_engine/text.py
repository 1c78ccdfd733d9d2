"""Names and texts of one line that are safe, whatever a header or a file name holds."""

import os
import re
import unicodedata

_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_LETTER = re.compile(r"(SMALL|CAPITAL)? ?LETTER (?:FINAL )?([A-Z ]+?)(?: WITH .*)?$")
#: What `unicodedata.name` would spell in a way that nobody does.
_SPELLED = {
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "þ": "th", "Þ": "Th", "ı": "i", "λ": "lambda", "Λ": "Lambda",
    "°": "deg", "µ": "u", "μ": "u", "±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "Å": "A",
    "′": "'", "″": '"', "’": "'", "‘": "'", "“": '"', "”": '"', "→": "->",
}  # fmt: skip


def ascii_text(text, unknown):
    """Spell ``text`` with ASCII characters; what has no spelling becomes ``unknown``."""
    if text.isascii():
        return text
    out = []
    for character in text:
        if character.isascii():
            out.append(character)
        elif character in _SPELLED:
            out.append(_SPELLED[character])
        else:
            out.append(_spell(character, unknown))
    return "".join(out)


def _spell(character, unknown):
    plain = unicodedata.normalize("NFKD", character)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    if plain and plain.isascii():
        return plain
    if unicodedata.combining(character):
        return ""
    base = plain[:1] or character
    if base in _SPELLED:
        return _SPELLED[base]
    letter = _LETTER.search(unicodedata.name(base, ""))
    if not letter:
        return unknown
    word = letter[2].replace(" ", "")
    return word.lower() if letter[1] == "SMALL" else word.capitalize()


def safe_name(text):
    """
    Turn any text into a name that is safe as (a part of) a file name.

    Parameters
    ----------
    text : object
        An object's or filter's name, say, as a header has it.

    Returns
    -------
    str
        1 to 80 characters of ``[A-Za-z0-9._+-]`` that do not start with a dot
        or a dash; letters of other alphabets are spelled out. ``"unnamed"``
        where nothing is left. Different texts may give the same name: see
        `unique_name`.

    Examples
    --------
    >>> from astro_narrowband._engine.text import safe_name
    >>> safe_name("../../../etc/passwd"), safe_name("M 31/NGC 206"), safe_name("Hα Pelícan")
    ('etc_passwd', 'M_31_NGC_206', 'Halpha_Pelican')
    """
    name = _UNSAFE.sub("_", ascii_text(str(text), "_"))
    name = name.lstrip("._-")[:80].rstrip("._-")
    return name or "unnamed"


def unique_name(text, taken):
    """
    Return `safe_name` of ``text``, with ``-2``, ``-3``, ... where that name is taken.

    Parameters
    ----------
    text : object
    taken : set of str
        Names given so far, without case (file systems may ignore it). The new
        name is added.

    Returns
    -------
    str

    Examples
    --------
    >>> from astro_narrowband._engine.text import unique_name
    >>> taken = set()
    >>> [unique_name(text, taken) for text in ("M 31", "m:31", "M_31")]
    ['M_31', 'm_31-2', 'M_31-3']
    """
    base = name = safe_name(text)
    number = 1
    while name.casefold() in taken:
        number += 1
        tail = f"-{number}"
        name = base[: 80 - len(tail)] + tail
    taken.add(name.casefold())
    return name


def one_line(text):
    r"""
    Return ``text`` as one line without control characters, for a terminal or a table.

    Examples
    --------
    >>> from astro_narrowband._engine.text import one_line
    >>> one_line("a\x1b[31mb\nc")
    'a [31mb c'
    """
    text = str(text)
    if not text.isprintable():
        # Cc, Cf: control and direction-changing characters; Cs: undecodable bytes of file names.
        text = "".join(" " if unicodedata.category(c) in _CONTROL else c for c in text)
    return text


def clean_text(value):
    """
    Return ``value`` as `one_line` has it, with single blanks between words and none around.

    Examples
    --------
    >>> from astro_narrowband._engine.text import clean_text
    >>> clean_text("  M 31 " + chr(27) + "[31m ")
    'M 31 [31m'
    """
    return " ".join(one_line(value).split())


def show_value(value):
    """Return a header value as a message shows it: quoted, and not too long."""
    text = clean_text(value) if isinstance(value, str) else value
    return repr(text if not isinstance(text, str) or len(text) <= 60 else text[:57] + "...")


def path_text(path):
    """Return a path as one line of text that can be shown and written as UTF-8."""
    return clean_text(os.fsencode(path).decode("utf-8", "backslashreplace"))
