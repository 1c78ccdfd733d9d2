"""
The one place for the WCS of a header, and for 3 x 3 matrices on pixel positions.

A frame carries its WCS as cards of its header. Where pixels move, the cards are
written anew by astropy: linear maps keep SIP and TPV distortion, whose
polynomials are transformed exactly. Distortion tables in other HDUs are left
out, with a warning.
"""

import re
import warnings

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, Sip, WcsError

from astro_narrowband.exceptions import warn

#: Cards of the first WCS of a header; a letter behind them makes them those of another one.
_LINEAR = (
    r"WCSAXES|WCSNAME|RADESYS|EQUINOX|LONPOLE|LATPOLE|(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA|CNAME|"
    r"CRDER|CSYER)\d|(PC|CD)\d_\d|P[VS]\d_\d+"
)
_POLYNOMIAL = r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)|(CD|PC)00\d00\d|RADECSYS"
_TABLES = r"(CPDIS|CQDIS|D2IMDIS|CPERR|CQERR|D2IMERR)\d|D2IMARR|D2IMEXT|AXISCORR|(DP|DQ|D2IM)\d\b.*"
_FIRST = re.compile(f"{_LINEAR}|{_POLYNOMIAL}")
_LOST = re.compile(_TABLES)
_ANY = re.compile(rf"({_LINEAR})[A-Z]?|{_POLYNOMIAL}|{_TABLES}|WAT\d_\d+|WCSDIM|LT[VM]\d(_\d)?")
#: Projections whose distortion is in words of IRAF (WATj_nnn).
_OF_IRAF = re.compile("-(TNX|ZPX)$")
#: What astropy raises for cards that are damaged.
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, WcsError, fits.VerifyError)
#: Cards that must be numbers; wcslib passes text over without a word.
_NUMBER = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")


def apply_matrix(matrix, x, y):
    """
    Apply a 3 x 3 matrix to pixel positions.

    Parameters
    ----------
    matrix : array (3, 3)
        Affine: its last row is 0, 0, 1.
    x, y : float or array of one shape

    Returns
    -------
    x, y : `~numpy.ndarray` of float64

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.wcs import apply_matrix
    >>> x, y = apply_matrix(np.array([[0, -1, 9], [1, 0, 2], [0, 0, 1]]), [1, 2], [3, 4])
    >>> x.tolist(), y.tolist()
    ([6.0, 5.0], [3.0, 4.0])
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    return tuple(matrix[k, 0] * x + matrix[k, 1] * y + matrix[k, 2] for k in (0, 1))


def fits_wcs(wcs, shape, name=""):
    """
    Return a WCS as FITS can hold it.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`, gwcs or any WCS of APE 14, or None
        That of gwcs is fitted with a TAN projection and SIP, to 0.01 pix. Another one is
        left out, with a warning.
    shape : tuple of int
        Of the image.
    name : str, optional
        Of the image, for messages.

    Returns
    -------
    `~astropy.wcs.WCS` or None
    """
    wcs = getattr(wcs, "low_level_wcs", wcs)
    if wcs is None or isinstance(wcs, WCS):
        return wcs
    if not hasattr(wcs, "to_fits_sip"):
        warn(f"{name}: its WCS ({type(wcs).__name__}) is none of FITS, and is left out")
        return None
    box = tuple((-0.5, n - 0.5) for n in reversed(shape))
    header = wcs.to_fits_sip(bounding_box=box, max_pix_error=0.01)
    return read_wcs(header, name)


# --------------------------------------------------------------------------- headers


def read_wcs(header, name=""):
    """
    Return the 2-D WCS of a header.

    Parameters
    ----------
    header : `~astropy.io.fits.Header` or mapping
        Only its first WCS is looked at, and nothing that is no card of it.
    name : str, optional
        Of the frame, for messages.

    Returns
    -------
    `~astropy.wcs.WCS` or None
        None where there is none, and, with a warning, where it cannot be used.

    Warns
    -----
    NarrowbandWarning
        If a card is damaged, the matrix is singular, there are not two axes, or
        distortion is in tables of the file (CPDISj, D2IMDISj) or in IRAF's words (TNX),
        which are left out.
    """
    first = str(header["CTYPE1"]).strip() if "CTYPE1" in header else ""
    if not first:
        return None
    label = f"{name}: " if name else ""
    cards, lost = _cards(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            for key in filter(_NUMBER.fullmatch, cards):
                if isinstance(cards[key], str | bool) or not np.isfinite(cards[key]):
                    raise ValueError(f"{key} = {cards[key]!r} is not a number")
            wcs = WCS(cards)
            if wcs.naxis == 2 and abs(np.linalg.det(wcs.pixel_scale_matrix)) > 0:
                problem = ""
            else:
                problem = f"it has {wcs.naxis} axes, or a singular matrix"
        except _DAMAGED as error:
            problem = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    if problem:
        _warn(f"{label}CTYPE1 = {first!r}: the WCS cannot be used ({problem}) and is left out")
        return None
    if lost:
        _warn(f"{label}{lost[0]}: the distortion cannot be kept: the WCS goes on without it")
    return wcs


def _warn(text):
    warn(text, stacklevel=4)


def _cards(header):
    """The cards of the first WCS, and the keywords of distortion tables."""
    cards, lost = fits.Header(), []
    for keyword in dict.fromkeys(header):
        if _FIRST.fullmatch(keyword):
            cards[keyword] = header[keyword]
        elif _LOST.fullmatch(keyword):
            lost.append(keyword)
    if _OF_IRAF.search(str(cards["CTYPE1"])):
        lost.append(f"CTYPE1 = {cards['CTYPE1']}")  # wcslib takes it for TAN
    return cards, lost


def strip_wcs(header):
    """Remove every card of every WCS from a header, in place; tables of distortion, too."""
    for keyword in {key for key in header if _ANY.fullmatch(key)}:
        header.remove(keyword, ignore_missing=True, remove_all=True)


def put_wcs(header, wcs):
    """
    Write a WCS into a header, in place of every other one, as astropy writes it.

    CDELTi and PCi_j (where they are not those of the unit matrix), never CDi_j or
    CROTA2; WCSAXES first.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Changed in place.
    wcs : `~astropy.wcs.WCS` or None
        None removes what is there.

    Returns
    -------
    `~astropy.wcs.WCS` or None
        What was written. A CCDData must have this one beside such a header: where
        ``CCDData.write`` leaves out an element of PCij that is that of the unit matrix, the
        header's stays.

    Warns
    -----
    NarrowbandWarning
        If cards cannot hold it: tables of distortion, a WCS of another package.
    """
    strip_wcs(header)
    if wcs is None:
        return None
    wcs = move_wcs(wcs, np.eye(3))
    if wcs is not None:
        for card in wcs.to_header(relax=True).cards:
            if _FIRST.fullmatch(card.keyword):
                header.append(card, end=True)
    return wcs


def copy_wcs(header, other):
    """Write the WCS of another header into one, card by card; return it. It must be one of ours."""
    strip_wcs(header)
    header.extend(_cards(other)[0])
    return read_wcs(header)


def move_header(header, matrix, name=""):
    """
    Move the WCS of a header with its pixels, in place.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
    matrix : array (3, 3)
        From old to new pixel positions, the centre of the first pixel at (0, 0).
    name : str, optional
        Of the frame, for messages.
    """
    wcs = read_wcs(header, name)
    put_wcs(header, None if wcs is None else move_wcs(wcs, matrix))


# --------------------------------------------------------------------------- WCS


def move_wcs(wcs, matrix):
    """
    Return the WCS of pixels that were moved by a matrix.

    SIP polynomials are those of the new pixels: with u' = L u they are
    L f(L^-1 u'), of the same order, whatever the angle. TPV stays, for it acts after
    the matrix.

    Parameters
    ----------
    wcs : `~astropy.wcs.WCS`
        Two axes.
    matrix : array (3, 3)
        From old to new pixel positions, the centre of the first pixel at (0, 0).

    Returns
    -------
    `~astropy.wcs.WCS` or None
        New, with CDELTi and PCi_j; None, with a warning, if it is none of astropy's.

    Warns
    -----
    NarrowbandWarning
        If distortion in tables (`~astropy.wcs.WCS.cpdis1`, ...) must be left out.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.wcs import WCS
    >>> from astro_narrowband._engine.wcs import move_wcs
    >>> wcs = WCS(naxis=2)
    >>> wcs.wcs.ctype, wcs.wcs.crpix = ("RA---TAN", "DEC--TAN"), (10, 20)
    >>> half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])  # cells of 2 by 2
    >>> new = move_wcs(wcs, half)
    >>> new.wcs.crpix.tolist(), new.wcs.cdelt.tolist()
    ([5.25, 10.25], [2.0, 2.0])
    """
    if not isinstance(wcs, WCS) or wcs.naxis != 2:
        _warn(
            f"the WCS ({type(wcs).__name__}) is not one of astropy with two axes, and is left out: "
            "give its FITS approximation, such as gwcs makes with to_fits_sip"
        )
        return None
    if any(getattr(wcs, table) is not None for table in ("cpdis1", "cpdis2", "det2im1", "det2im2")):
        _warn("distortion in tables cannot be kept: the WCS goes on without it")
    linear = np.asarray(matrix, float)[:2, :2]
    inverse = np.linalg.inv(linear)
    cards = wcs.to_header(relax=True)
    for keyword in list(cards):
        # Dates and places that wcslib knows are those of the header, not of the WCS.
        if not re.fullmatch(_LINEAR, keyword):
            del cards[keyword]
    cards["CRPIX1"], cards["CRPIX2"] = (
        float(at) + 1 for at in apply_matrix(matrix, *(wcs.wcs.crpix - 1))
    )
    cd = wcs.pixel_scale_matrix @ inverse
    step = np.hypot(*cd.T)
    if any(keyword.startswith("PV") for keyword in cards):
        step[:] = 1  # the polynomials of TPV act in degrees, by wcslib between PCi_j and CDELTi
    elif np.linalg.det(cd) < 0:
        step[0] *= -1
    for i in (0, 1):
        cards[f"CDELT{i + 1}"] = float(step[i])
        cards[f"CTYPE{i + 1}"] = str(wcs.wcs.ctype[i]).removesuffix("-SIP")
        for j in (0, 1):
            cards[f"PC{i + 1}_{j + 1}"] = float(cd[i, j] / step[i])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        new = WCS(cards)
    if wcs.sip is not None:
        new.sip = _moved_sip(wcs.sip, linear, inverse, new.wcs.crpix)
        new.wcs.ctype = [f"{str(text).removesuffix('-SIP')}-SIP" for text in wcs.wcs.ctype]
    return new


def _moved_sip(sip, linear, inverse, crpix):
    """Both pairs of polynomials, forth and back, in new pixels; one that is absent stays so."""
    pairs = []
    for pair in ((sip.a, sip.b), (sip.ap, sip.bp)):
        if pair[0] is None or pair[1] is None:
            pairs += [None, None]
            continue
        n = max(len(plane) for plane in pair)
        turned = np.array([_substituted(plane, inverse, n) for plane in pair])
        pairs += list(np.einsum("ij,jpq->ipq", linear, turned))
    return Sip(*pairs, crpix)


def _substituted(plane, inverse, n):
    """Coefficients in u', v' of the polynomial ``sum plane[p, q] u^p v^q`` where u = inverse u'."""
    if np.array_equal(inverse, np.eye(2)):
        return np.pad(plane, (0, n - len(plane)))
    from scipy.signal import convolve2d  # half of the time that all imports take

    u, v = (np.array([[0.0, row[1]], [row[0], 0.0]]) for row in inverse)
    out = np.zeros((n, n))
    for p, q in np.argwhere(plane != 0):
        if p + q >= len(plane):
            continue  # beyond the order: wcslib does not look at it
        term = np.array([[plane[p, q]]])
        for factor in [u] * p + [v] * q:
            term = convolve2d(term, factor)
        size = min(n, len(term))
        out[:size, :size] += term[:size, :size]
    return out
