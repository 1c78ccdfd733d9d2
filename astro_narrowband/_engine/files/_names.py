"""Names and one-line texts that are safe, whatever a header or a file name holds."""

import re
import unicodedata

__all__ = ["ascii_text", "safe_name", "safe_text", "unique_name"]

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
    found = _LETTER.search(unicodedata.name(base, ""))
    if not found:
        return unknown
    word = found[2].replace(" ", "")
    return word.lower() if found[1] == "SMALL" else word.capitalize()


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
    >>> from astro_narrowband._engine.files import safe_name
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
    >>> from astro_narrowband._engine.files import unique_name
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


def safe_text(text):
    r"""
    Return ``text`` as one line without control characters, for a terminal or a table.

    Examples
    --------
    >>> from astro_narrowband._engine.files import safe_text
    >>> safe_text("a\x1b[31mb\nc")
    'a [31mb c'
    """
    text = str(text)
    if text.isprintable():
        return text
    # Cc, Cf: control and direction-changing characters; Cs: undecodable bytes of file names.
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else " " for c in text
    )
