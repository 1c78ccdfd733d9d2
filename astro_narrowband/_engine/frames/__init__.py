"""
Frames that are read by bands of rows.

Everything heavy in this package pulls on one small base class, `Frame`: an image
that gives the rows asked for, with their variance and mask. A file on disk, a
`~astropy.nddata.CCDData` in memory, a frame that calibrates or resamples
another one: all of them are frames, so a chain of them is evaluated band by
band, and memory is set by the size of a band and not by the number of frames.
"""

import os
from pathlib import Path

import numpy as np
from astropy.nddata import CCDData, NDData

from astro_narrowband._engine.frames._bands import Threads, map_bands, row_bands, usable_cores
from astro_narrowband._engine.frames._fits_frame import FitsFrame
from astro_narrowband._engine.frames._fits_image import FitsImage
from astro_narrowband._engine.frames._frame import Band, Frame, handed
from astro_narrowband._engine.frames._held import HeldFrame, HeldRows
from astro_narrowband._engine.frames._memory import MemoryFrame, as_ccd, new_ccd
from astro_narrowband._engine.frames.fits_reader import MAX_PIXELS
from astro_narrowband._engine.wcs import fits_wcs
from astro_narrowband.exceptions import InputError, InputTypeError


def _as_ccddata(image, unit):
    """An NDData as a CCDData, with its WCS as FITS can hold it."""
    unit = image.unit if image.unit is not None else unit
    if unit is None:
        raise InputError("NDData: has no unit: give it one, such as unit='electron/s'")
    return CCDData(
        image.data,
        uncertainty=image.uncertainty,
        mask=image.mask,
        unit=unit,
        meta=image.meta,
        wcs=fits_wcs(image.wcs, np.shape(image.data), "NDData"),
    )


def as_frames(images, what="frames", *, convert=None):
    """
    Return a list of frames from any collection of images.

    Parameters
    ----------
    images : iterable of image, or `ccdproc.ImageFileCollection`
    what : str, optional
        What they are called in messages.
    convert : callable, optional
        Makes a Frame of each; default is `as_frame`.

    Raises
    ------
    InputError
        If it is one image, no collection, or empty.
    """
    if isinstance(images, str | os.PathLike | NDData | Frame) or not np.iterable(images):
        if not hasattr(images, "files_filtered"):
            raise InputTypeError(
                f"{what}: {type(images).__name__} is no list of images: give a list of paths, "
                "CCDData or Frames"
            )
        images = images.files_filtered(include_path=True)
    convert = convert or as_frame
    frames = [convert(image) for image in images]
    if not frames:
        raise InputError(f"no {what} were given: at least one is needed")
    return frames


def as_frame(image, *, unit=None):
    """
    Return ``image`` as a `Frame`: the one parser for every form of input.

    Parameters
    ----------
    image : path-like, `~astropy.nddata.CCDData` or `Frame`
    unit : unit-like, optional
        For files without BUNIT.

    Returns
    -------
    `Frame`

    Raises
    ------
    InputError
        If it is none of these, or a file that cannot be read.
    """
    if isinstance(image, Frame):
        return image
    if isinstance(getattr(image, "ccd", None), CCDData) and not isinstance(image, Frame):
        image = image.ccd  # a Coadd
    if isinstance(image, NDData) and not isinstance(image, CCDData):
        image = _as_ccddata(image, unit)
    if isinstance(image, CCDData):
        return MemoryFrame(image)
    if isinstance(image, str | os.PathLike):
        return FitsFrame(Path(image), unit=unit)
    raise InputTypeError(
        f"{type(image).__name__} is not an image: give a path, a CCDData or a Frame (a bare array "
        "has no unit: CCDData(array, unit='adu'); a class of your own: subclass Frame)"
    )
