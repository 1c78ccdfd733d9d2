"""Narrowband filters: one table of canonical names, wavelengths and spellings."""

import re
from typing import NamedTuple

__all__ = ["FILTERS", "Filter", "canonical_filter"]


class Filter(NamedTuple):
    """A narrowband filter: canonical name, wavelength of its line [nm], spellings."""

    name: str
    wavelength: float
    spellings: tuple[str, ...]


#: The filters that are known by name. Spellings are compared without case,
#: blanks, punctuation and bandwidths (``"H-alpha 7nm"`` is ``halpha``).
FILTERS = (
    Filter("Halpha", 656.28, ("halpha", "ha", "hα", "halfa", "f656n")),
    Filter("OIII", 500.68, ("oiii", "o3", "o111", "f502n")),
    Filter("SII", 672.40, ("sii", "s2", "s11", "f673n")),
    Filter("NII", 658.35, ("nii", "n2", "n11", "f658n")),
    Filter("Hbeta", 486.13, ("hbeta", "hb", "hβ", "f487n")),
)

_BANDWIDTH = re.compile(r"[\d.,]+\s*(nm|å|a|angstroms?)\b|\b\d{4}(/\d+)?\b")
_NOISE = re.compile(r"[^a-z0-9αβ]+")
_CANONICAL = {spelling: f.name for f in FILTERS for spelling in f.spellings}


def canonical_filter(name):
    """
    Return the canonical name of a filter.

    Parameters
    ----------
    name : str
        The filter as a header, a folder or a user spells it.

    Returns
    -------
    str
        ``"Halpha"``, ``"OIII"``, ``"SII"``, ``"NII"`` or ``"Hbeta"`` for a known
        spelling; any other name as it was, stripped of outer blanks.

    Examples
    --------
    >>> from astro_narrowband.filters import canonical_filter
    >>> canonical_filter(" H-Alpha 7nm "), canonical_filter("[O III]"), canonical_filter("g")
    ('Halpha', 'OIII', 'g')
    """
    text = str(name).strip()
    key = _NOISE.sub("", _BANDWIDTH.sub(" ", text.lower()))
    return _CANONICAL.get(key, text)
