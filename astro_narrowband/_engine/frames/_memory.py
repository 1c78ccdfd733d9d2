"""A CCDData as a frame, and a frame as a CCDData."""

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine.files import clean_header
from astro_narrowband._engine.frames._frame import Band, Frame, handed
from astro_narrowband._engine.validate import as_mask, as_pixels, as_variance
from astro_narrowband._engine.wcs import fits_wcs, put_wcs, read_wcs
from astro_narrowband.exceptions import InputError


def as_header(meta, name):
    """Return the meta of an image as a header: as it is, or made of a plain mapping."""
    if isinstance(meta, fits.Header):
        return meta
    try:
        return clean_header(meta)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{name}: its meta cannot be a FITS header ({error}): give a Header, or a dict of "
            "numbers and text"
        ) from None


class MemoryFrame(Frame):
    """
    A `~astropy.nddata.CCDData` that is read by bands; the CCDData is not changed.

    Parameters
    ----------
    ccd : `~astropy.nddata.CCDData`
        Its uncertainty may be of any class that represents a variance.
    name : str, optional
        What the frame is called in messages.
    """

    def __init__(self, ccd, name="CCDData"):
        as_pixels(ccd.data, name)
        self.name = name
        self.ccd = ccd
        self.shape = ccd.data.shape
        self.unit = ccd.unit
        self.header = as_header(ccd.meta, name)
        self.wcs = fits_wcs(ccd.wcs, ccd.shape, self.name)
        as_mask(ccd.mask, self.shape, f"{name}: mask")
        if ccd.uncertainty is not None:
            # What is read later by rows is checked whole, once.
            with np.errstate(all="ignore"):
                as_variance(ccd.uncertainty, self.shape, self.unit, name)

    def read(self, rows, *, variance=True, out=None):
        """Return a `Band` of float32 rows."""
        ccd = self.ccd
        data = np.ascontiguousarray(ccd.data[rows], np.float32)
        mask = as_mask(ccd.mask, self.shape)
        mask = None if mask is None else mask[rows]
        if ccd.data.dtype.kind == "f":
            bad = ~np.isfinite(data)
            if bad.any():
                mask = bad if mask is None else mask | bad
        squared = None
        if variance and ccd.uncertainty is not None:
            squared = as_variance(ccd.uncertainty[rows], data.shape, self.unit, self.name)
            squared = squared.astype(np.float32, copy=False)
        return handed(Band(data, squared, mask), out=out)


def as_ccd(frame):
    """
    Read a whole frame into a new `~astropy.nddata.CCDData`.

    Its uncertainty is a `~astropy.nddata.StdDevUncertainty` if the frame has a
    variance; its header is a copy.
    """
    if frame.unit is None:
        raise InputError(f"{frame.name}: has no unit (BUNIT): give unit=, such as unit='adu'")
    band = frame.read(slice(0, frame.shape[0]))
    sigma = None if band.variance is None else np.sqrt(band.variance)
    mask = None if band.mask is None else band.mask.copy()
    header, wcs = frame.header.copy(), frame.wcs
    if wcs is None:
        wcs = read_wcs(header, frame.name)
    return new_ccd((band.data.copy(), sigma, mask), header, frame.unit, wcs)


def new_ccd(planes, header, unit, wcs=None):
    """
    Return a `~astropy.nddata.CCDData` of planes that were just made; nothing is copied.

    Parameters
    ----------
    planes : (`~numpy.ndarray`, `~numpy.ndarray` or None, `~numpy.ndarray` or None)
        Values, their standard deviations, and the mask.
    header : `~astropy.io.fits.Header`
        Changed in place: it gets the cards of the WCS.
    unit : unit-like
    wcs : `~astropy.wcs.WCS`, optional
        Default is none.
    """
    data, sigma, mask = planes
    uncertainty = None if sigma is None else StdDevUncertainty(sigma, copy=False)
    beside = {"header": header, "unit": unit, "wcs": put_wcs(header, wcs)}
    return CCDData(data, uncertainty=uncertainty, mask=mask, **beside)
