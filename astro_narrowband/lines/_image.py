"""Images that other programs made, as line maps need them: a unit, an error, a footprint."""

import re
import warnings

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.wcs import WCS

from astro_narrowband._engine.door import a_ccd, door
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import pixel_area, total_variance

#: What is less than this part of the bright pixels is what a program left outside of its image.
UNSET = 1e-9
#: Side of the tiles whose noise is measured, and distance of the pixels that are compared.
TILE, APART = 32, 3
#: Relative error of a scale of headers: of the absolute calibration of both filters.
HEADER_ERROR = 0.03


@door
def read_image(path, *, unit=None):
    """
    Read an image that was calibrated elsewhere.

    Parameters
    ----------
    path : path-like
        FITS; a CCDData with UNCERT and MASK, or an image alone.
    unit : unit-like, optional
        Of the pixels; BUNIT by default.

    Returns
    -------
    `~astropy.nddata.CCDData`
        In electron/s where the unit is electron/s per solid angle, by the WCS. Masked where it
        is not finite, or next to nothing (1e-9 of the bright pixels): outside of the footprint.
        Without an uncertainty in the file that is measured, and NOISEEST in the header says so.

    Raises
    ------
    InputError
        If the file cannot be read, or has no unit.

    Notes
    -----
    The noise is that of differences of pixels 3 apart (x1 - 2 x2 + x3, over sqrt 6), in tiles of
    32 x 32 pixels, by median absolute deviations: detail of the object makes it larger, noise
    that is correlated over more than 3 pixels makes it too small.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ccd = _read(path, unit)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as an image with a unit ({reason})") from None
    data = np.asarray(ccd.data, np.float32)
    if data.ndim != 2:
        raise InputError(f"{path}: has {data.ndim} dimensions: an image has two")
    bad = ~np.isfinite(data)
    if not bad.all():
        bad |= np.abs(data) <= UNSET * np.percentile(np.abs(data[~bad]), 99)
    bad |= False if ccd.mask is None else ccd.mask
    factor = 1.0
    if not ccd.unit.is_equivalent(u.electron / u.s) and (ccd.unit * u.arcsec**2).is_equivalent(
        u.electron / u.s
    ):
        factor = (ccd.unit * u.arcsec**2).to(u.electron / u.s) * pixel_area(ccd)
    elif ccd.unit.is_equivalent(u.electron / u.s):
        factor = ccd.unit.to(u.electron / u.s)
    sigma = _measured_noise(data, bad) if ccd.uncertainty is None else np.sqrt(total_variance(ccd))
    header = fits.Header(ccd.header, copy=True)
    header["NOISEEST"] = (ccd.uncertainty is None, "the noise is measured on the image itself")
    return CCDData(
        data * np.float32(factor), unit=ccd.unit if factor == 1 else u.electron / u.s, mask=bad,
        header=header, wcs=ccd.wcs,
        uncertainty=StdDevUncertainty(np.float32(sigma) * np.float32(factor)),
    )  # fmt: skip


def _read(path, unit):
    with fits.open(path) as hdul:
        if "UNCERT" in hdul:
            return CCDData.read(path, unit=unit)
        hdu = next((h for h in hdul if h.is_image and h.data is not None), hdul[0])
        unit = hdu.header.get("BUNIT") if unit is None else unit
        if unit is None:
            raise InputError(f"{path}: no BUNIT says the unit of its pixels: give unit")
        wcs = WCS(hdu.header)
        return CCDData(
            np.array(hdu.data), unit=_unit_of(unit), header=hdu.header,
            wcs=wcs if wcs.has_celestial else None,
        )  # fmt: skip


def _unit_of(unit):
    """A unit of its text, which may be per solid angle as in ``electron/s/(0.04 arcsec)**2``."""
    if isinstance(unit, u.UnitBase):
        return unit
    angle = re.search(r"\s*/\s*\(\s*([\d.]+)\s*(\w+)\s*\)\s*(?:\*\*|\^)\s*2", unit)
    if angle is None:
        return u.Unit(unit)
    return u.Unit(u.Unit(unit.replace(angle[0], "")) / (float(angle[1]) * u.Unit(angle[2])) ** 2)


def _measured_noise(data, bad):
    """Noise of the pixels, one number per tile; that of the whole where a tile has too few."""
    plane = np.where(bad, np.nan, data)
    difference = plane[:, : -2 * APART] - 2 * plane[:, APART:-APART] + plane[:, 2 * APART :]
    difference /= np.sqrt(np.float32(6))
    good = difference[np.isfinite(difference)]
    if good.size < TILE:
        raise InputError(f"only {good.size} pixels are good: their noise cannot be measured")
    sigma = np.full(data.shape, np.float32(mad_std(good)))
    for i in range(0, data.shape[0], TILE):
        for j in range(0, difference.shape[1], TILE):
            tile = difference[i : i + TILE, j : j + TILE]
            tile = tile[np.isfinite(tile)]
            if tile.size > TILE:
                sigma[i : i + TILE, j + APART : j + APART + TILE] = mad_std(tile)
    return sigma


@door(line=a_ccd, continuum=a_ccd)
def header_scale(line, continuum):
    """
    Return the scale of a continuum that two headers say, by PHOTFLAM, and its error (3 %).

    Parameters
    ----------
    line, continuum : `~astropy.nddata.CCDData`
        With PHOTFLAM: the flat spectrum, per wavelength, that gives one electron/s.

    Returns
    -------
    k, k_err : float

    Raises
    ------
    InputError
        If one of them has none.
    """
    values = []
    for ccd in (line, continuum):
        value = ccd.header.get("PHOTFLAM")
        if not isinstance(value, int | float) or not value > 0:
            raise InputError(
                f"{ccd.header.get('FILTER', 'image')}: PHOTFLAM = {value!r}: the header says no "
                "scale; give it as a number"
            )
        values.append(float(value))
    k = values[1] / values[0]
    return k, HEADER_ERROR * k
