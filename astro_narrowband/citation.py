"""What a result rests on, to be cited with it."""

import sys

from astropy.io import fits

from astro_narrowband.exceptions import InputTypeError

__all__ = ["citations"]

_ASTROPY = """@article{astropy2022,
  author  = {{Astropy Collaboration}},
  title   = {The Astropy Project: Sustaining and Growing a Community-oriented Open-source Project},
  journal = {The Astrophysical Journal},
  year    = {2022}, volume = {935}, pages = {167}, doi = {10.3847/1538-4357/ac7c74}
}"""
_CCDPROC = """@software{ccdproc,
  author  = {Craig, M. and Crawford, S. and Seifert, M. and others},
  title   = {astropy/ccdproc},
  doi     = {10.5281/zenodo.1069648}
}"""
_PHOTUTILS = """@software{photutils,
  author  = {Bradley, L. and Sip{\\H{o}}cz, B. and Robitaille, T. and others},
  title   = {astropy/photutils},
  doi     = {10.5281/zenodo.596036}
}"""
_ASTROALIGN = """@article{astroalign,
  author  = {Beroiz, M. and Cabral, J. B. and Sanchez, B.},
  title   = {Astroalign: A Python module for astronomical image registration},
  journal = {Astronomy and Computing},
  year    = {2020}, volume = {32}, pages = {100384}, doi = {10.1016/j.ascom.2020.100384}
}"""
_LACOSMIC = """@article{vandokkum2001,
  author  = {van Dokkum, P. G.},
  title   = {Cosmic-Ray Rejection by Laplacian Edge Detection},
  journal = {Publications of the Astronomical Society of the Pacific},
  year    = {2001}, volume = {113}, pages = {1420}, doi = {10.1086/323894}
}"""


def citations(product=None):
    """
    Return what to cite with a result: this package, and what its steps rest on.

    Parameters
    ----------
    product : `~astropy.nddata.CCDData`, `~astro_narrowband.Coadd` or header, optional
        Whose header says which steps were done. Default is all that may be.

    Returns
    -------
    dict of str to str
        Name of the software or method: its BibTeX entry. A method that no paper describes
        is this package's own: its entry is a comment of BibTeX that says so.

    Raises
    ------
    InputTypeError
        If it is none of these.

    Examples
    --------
    >>> from astropy.io import fits
    >>> from astro_narrowband import citations
    >>> list(citations(fits.Header({"BIASSUB": True, "REGMETH": "astroalign"})))
    ['astro_narrowband', 'astropy', 'ccdproc', 'astroalign']
    >>> citations(fits.Header({"REGISTER": "stars"}))["registration"]
    '% registration by stars: a method of astro_narrowband, cited with it'
    """
    header = getattr(getattr(product, "ccd", product), "header", product)
    if header is not None and not isinstance(header, fits.Header | dict):
        raise InputTypeError(
            f"citations: {type(product).__name__} has no header: give a CCDData, Coadd or header"
        )
    everything = header is None
    entries = {
        "astro_narrowband": sys.modules[__package__].__citation__.strip(),
        "astropy": _ASTROPY,
    }
    if everything or "BIASSUB" in header or "NCOMBINE" in header:
        entries["ccdproc"] = _CCDPROC
    method = "" if everything else str(header.get("REGMETH") or header.get("REGISTER") or "")
    if everything or "centroid" in method:
        entries["photutils"] = _PHOTUTILS
    if everything or "astroalign" in method:
        entries["astroalign"] = _ASTROALIGN
    elif method not in ("", "none", "header", "reference"):
        entries["registration"] = (
            f"% registration by {method}: a method of astro_narrowband, cited with it"
        )
    if everything or "LACOSMIC" in header:
        entries["L.A.Cosmic"] = _LACOSMIC
    return entries
