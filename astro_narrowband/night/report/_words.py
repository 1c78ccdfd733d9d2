"""
Numbers, settings and reasons as the page writes them.

Private to `astro_narrowband.night.report`.
"""

import base64
import math
import re

from astro_narrowband._engine.text import one_line


def printed(value):
    """What the template prints: one line without control characters, before it is escaped."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else one_line(value)


def number(value, digits=3):
    """A number with ``digits`` significant ones, or a dash."""
    if value is None or (not value and value != 0):  # also what the template finds undefined
        return "–"
    if isinstance(value, str | bool):
        return value
    try:
        value = float(value)
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(value):
        return "–"
    if value == 0 or (value == int(value) and abs(value) < 1e6):
        return f"{int(value)}".replace("-", "−")
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        text = f"{value:.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def fixed(value, decimals):
    """A number with ``decimals`` decimals, for a column, or a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.{decimals}f}".replace("-", "−")


def breaks(name):
    """A name of a file that a narrow page breaks after its underscores, escaped."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(text) for text in one_line(name).split("_"))


def data_url(png):
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704


def cause_of(reason):
    """
    Return a reason as its cause and the rest.

    Examples
    --------
    >>> from astro_narrowband.night.report._words import cause_of
    >>> cause_of("truncated: 20000 bytes of 205120; copy it again")
    ('truncated', '20000 bytes of 205120; copy it again')
    """
    text = one_line(reason or "")
    split = re.search(r":\s|;\s|\s\(", text)
    if split is None:
        return text, ""
    return text[: split.start()], text[split.start() :].lstrip(":; ")


def settings_words(settings):
    """
    Return the settings that say something, as text.

    Examples
    --------
    >>> from astro_narrowband.night.report._words import settings_words
    >>> settings_words({"stars": (), "gain": None, "filters": ("Halpha", "OIII"), "reject": True})
    {'filters': 'Halpha, OIII', 'reject': 'yes'}
    """
    return {name: _words(value) for name, value in settings.items() if _says(value)}


def _says(value):
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)


def _words(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{name} = {_words(item)}" for name, item in value.items()]
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, list | tuple) for item in value)
        return ("; " if nested else ", ").join(_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
