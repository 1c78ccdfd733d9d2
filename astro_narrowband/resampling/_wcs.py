"""
The WCS of a resampled image.

Private to `astro_narrowband.resampling`.
"""

import re
import warnings

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, WcsError

from astro_narrowband._engine.frames import as_frame
from astro_narrowband.exceptions import NarrowbandWarning

__all__ = ["move_wcs", "wcs_of"]

_DISTORTION = ("A_", "B_", "AP_", "BP_", "PV1_", "PV2_")
_WCS_STARTS = (
    "CRPIX", "CRVAL", "CTYPE", "CUNIT", "CDELT", "CROTA", "CD1_", "CD2_", "PC1_", "PC2_",
    "LONPOLE", "LATPOLE", "WCSAXES", "RADESYS", "RADECSYS", "EQUINOX", *_DISTORTION,
)  # fmt: skip


#: Cards of a WCS that must be numbers; wcslib passes text over without a word.
_NUMBER = re.compile(r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")


def _is_no_number(value):
    return isinstance(value, str | bool) or not np.isfinite(value)


def _wcs_header_of(target):
    if isinstance(target, fits.Header):
        return target
    return as_frame(target).header


def move_wcs(header, matrix, target):
    """
    Give ``header`` the WCS of ``target``, or its own one moved by ``matrix``.

    Polynomial distortion terms survive a shift and are dropped by a rotation.
    """
    if target is not None:
        source = _wcs_header_of(target)
        for keyword in list(header):
            if keyword.startswith(_WCS_STARTS):
                del header[keyword]
        for card in source.cards:
            if card.keyword.startswith(_WCS_STARTS):
                header[card.keyword] = (card.value, card.comment)
        return
    wcs = wcs_of(header)
    if wcs is None:
        return
    linear = matrix[:2, :2]
    header["CRPIX1"], header["CRPIX2"] = (linear @ (wcs.wcs.crpix - 1) + matrix[:2, 2] + 1).tolist()
    if np.array_equal(linear, np.eye(2)):
        return
    new = wcs.pixel_scale_matrix @ np.linalg.inv(linear)
    for keyword in list(header):
        # Distortion terms, too: they are powers of pixels along the old axes.
        if keyword.startswith(("CDELT", "CROTA", "CD1_", "CD2_", "PC1_", "PC2_", *_DISTORTION)):
            del header[keyword]
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = str(header[f"CTYPE{axis}"]).replace("-SIP", "")
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = float(new[axis - 1, other - 1])


def wcs_of(header):
    """Return the 2-D WCS of a header; None where it has none, or (with a warning) one is wrong."""
    if "CTYPE1" not in header:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            for key in filter(_NUMBER.fullmatch, header):
                if _is_no_number(header[key]):
                    raise ValueError(f"{key} = {header[key]!r} is not a number")
            wcs = WCS(header)
            if wcs.naxis == 2 and abs(np.linalg.det(wcs.pixel_scale_matrix)) > 0:
                return wcs
            problem = f"it has {wcs.naxis} axes, or a singular matrix"
        except (ValueError, TypeError, KeyError, WcsError) as error:
            problem = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    warnings.warn(
        f"CTYPE1 = {header['CTYPE1']!r}: the WCS cannot be used ({problem}) and is left out",
        NarrowbandWarning,
        stacklevel=3,
    )
    for keyword in list(header):
        if keyword.startswith(_WCS_STARTS):
            del header[keyword]
    return None
