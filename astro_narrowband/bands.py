"""
Frames that are read by bands of rows.

Everything heavy in this package pulls on one small protocol, `Frame`: an image
that gives the rows asked for, with their variance and mask. A file on disk, a
`~astropy.nddata.CCDData` in memory, a frame that calibrates or resamples
another one: all of them are frames, so a chain of them is evaluated band by
band, and memory is set by the size of a band and not by the number of frames.
"""

import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband._validate import as_mask
from astro_narrowband.exceptions import InputError

__all__ = [
    "Band",
    "FitsFrame",
    "FitsImage",
    "Frame",
    "MemoryFrame",
    "as_ccd",
    "as_frame",
    "map_bands",
    "row_bands",
    "usable_cores",
]

#: Suffixes that astropy decompresses while it reads.
COMPRESSED = (".gz", ".bz2", ".fz", ".xz", ".zst", ".Z")


class Band(NamedTuple):
    """
    Some rows of a frame.

    Attributes
    ----------
    data : `~numpy.ndarray` of float32, (n_rows, nx)
    variance : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Variance of ``data`` that is this frame's own, in its unit squared.
    mask : `~numpy.ndarray` of bool, (n_rows, nx), or None
        `True` where a pixel must not be used. ``None`` where all may.
    """

    data: np.ndarray
    variance: np.ndarray | None = None
    mask: np.ndarray | None = None


@runtime_checkable
class Frame(Protocol):
    """An image that can be read by bands of rows, from any thread."""

    name: str
    shape: tuple[int, int]
    unit: u.UnitBase | None
    header: fits.Header

    def read(self, rows: slice) -> Band:
        """Return the rows ``rows.start`` to ``rows.stop`` (both given, within the frame)."""
        ...


# --------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FitsImage:
    """
    Where the pixels of one image lie in an uncompressed FITS file, and how they are coded.

    Attributes
    ----------
    path : `~pathlib.Path`
    offset : int
        Byte at which the first pixel starts.
    stored : `~numpy.dtype`
        The big-endian type on disk.
    shape : tuple of int
    scale, zero : float
        BSCALE and BZERO.
    blank : int or None
        BLANK: the integer on disk that stands for no value.
    """

    path: Path
    offset: int
    stored: np.dtype
    shape: tuple[int, int]
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    @property
    def native(self):
        """The type that holds every value exactly: uint16 stays uint16."""
        kind, size = self.stored.kind, self.stored.itemsize
        if kind == "f" or (self.scale == 1.0 and self.zero == 0.0 and self.blank is None):
            return self.stored.newbyteorder("=") if self._plain else np.dtype(np.float32)
        if self.blank is None and self.scale == 1.0 and kind == "i":
            if self.zero == 2.0 ** (8 * size - 1):
                return np.dtype(f"u{size}")
        if kind == "u" and self.scale == 1.0 and self.zero == -128.0:
            return np.dtype(np.int8)
        return np.dtype(np.float32)

    @property
    def _plain(self):
        return self.scale == 1.0 and self.zero == 0.0

    def read_stored(self, rows):
        """Return rows as they lie on disk: big-endian, not scaled."""
        n_rows = rows.stop - rows.start
        row_bytes = self.shape[1] * self.stored.itemsize
        out = np.empty((n_rows, self.shape[1]), self.stored)
        view = memoryview(out).cast("B") if out.size else memoryview(b"")
        position = self.offset + rows.start * row_bytes
        try:
            with open(self.path, "rb", buffering=0) as file:
                done = 0
                while done < len(view):
                    n = os.preadv(file.fileno(), [view[done:]], position + done)
                    if n == 0:
                        raise InputError(
                            f"{self.path}: the file ends {len(view) - done} bytes before row "
                            f"{rows.stop}; it was cut while it was read: copy it again"
                        )
                    done += n
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read any more ({error.strerror}): "
                "it must stay where it is until the run ends"
            ) from None
        return out

    def to_native(self, stored, out=None):
        """Convert rows as they lie on disk into ``out`` (native byte order, scaled)."""
        native = self.native
        if out is None:
            out = np.empty(stored.shape, native)
        if native.kind == "u" and self.stored.kind == "i":
            # BZERO = 2**(n-1) flips the sign bit, whatever the width.
            signed = out.view(self.stored.newbyteorder("="))
            np.copyto(signed, stored)
            np.bitwise_xor(out, native.type(1 << (8 * native.itemsize - 1)), out=out)
        elif self._plain and self.blank is None:
            np.copyto(out, stored, casting="same_kind")
        else:
            scaled = stored * np.float64(self.scale) + np.float64(self.zero)
            if self.blank is not None and self.stored.kind != "f":
                scaled[stored == self.blank] = np.nan
            np.copyto(out, scaled, casting="unsafe")
        return out

    def read(self, rows):
        """Return rows in native byte order, in the type that holds them exactly."""
        return self.to_native(self.read_stored(rows))


def _image_of(hdu, path, offset):
    header = hdu.header
    shape = hdu.shape
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        raise InputError(
            f"{path}: has shape {hdu.shape} and is not one 2-D image: split it into planes first"
        )
    stored = np.dtype(
        {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[header["BITPIX"]]
    )
    # astropy hides BZERO and BSCALE of an image once its data are read, not before.
    return FitsImage(
        path=Path(path),
        offset=offset,
        stored=stored,
        shape=tuple(shape),
        scale=float(header.get("BSCALE", 1.0)),
        zero=float(header.get("BZERO", 0.0)),
        blank=header.get("BLANK"),
    )


def _first_image(hdul):
    for hdu in hdul:
        if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2:
            return hdu
    return None


def _spill(path, keep):
    """Write the images of a compressed file to a plain temporary one, removed with ``keep``."""
    descriptor, name = tempfile.mkstemp(prefix="astro-narrowband-", suffix=".fits")
    os.close(descriptor)
    weakref.finalize(keep, _remove, name)
    with fits.open(path, memmap=False, do_not_scale_image_data=True) as hdul:
        plain = fits.HDUList()
        for hdu in hdul:
            kind = fits.PrimaryHDU if not plain else fits.ImageHDU
            if hdu.is_image:
                copy = kind(data=hdu.data, header=hdu.header, do_not_scale_image_data=True)
                plain.append(copy)
        plain.writeto(name, overwrite=True, output_verify="silentfix")
    return name


def _remove(name):
    try:
        os.unlink(name)
    except FileNotFoundError:
        return


@dataclass(eq=False)
class FitsFrame:
    """
    The first image of a FITS file, read by bands.

    Plain files are read where they lie; compressed ones (``.gz``, ``.bz2``,
    ``.fz``) are expanded once by astropy into a temporary file that goes with
    the frame. ``UNCERT`` and ``MASK`` extensions, as
    `~astropy.nddata.CCDData` writes them, become the band's variance and mask.
    NaN and BLANK pixels are masked.

    Parameters
    ----------
    path : path-like
        The file.
    unit : unit-like, optional
        The unit of the pixels where the header has no BUNIT.

    Raises
    ------
    InputError
        If the file is absent, not a regular file, not FITS, truncated, or has
        no 2-D image.
    """

    path: Path
    unit: u.UnitBase | None = None
    name: str = field(init=False)
    shape: tuple[int, int] = field(init=False)
    header: fits.Header = field(init=False, repr=False)
    image: FitsImage = field(init=False, repr=False)

    def __post_init__(self):
        self.path = Path(self.path)
        self.name = self.path.name
        if not self.path.is_file():
            what = "is not a regular file" if self.path.exists() else "does not exist"
            raise InputError(f"{self.path}: {what}: give the path of a FITS file")
        try:
            self._open()
        except InputError:
            raise
        except Exception as error:  # astropy raises almost any type on damaged files
            raise InputError(
                f"{self.path}: cannot be read as FITS ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no details'}): "
                "copy it again or take it out of the folder"
            ) from error

    def _open(self):
        plain = self.path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.path.name.endswith(COMPRESSED):
                plain = _spill(self.path, self)
            with fits.open(plain, memmap=False) as hdul:
                hdu = _first_image(hdul)
                if hdu is None and any(isinstance(h, fits.CompImageHDU) for h in hdul):
                    plain = _spill(self.path, self)
                    return self._open_plain(plain)
        return self._open_plain(plain)

    def _open_plain(self, plain):
        size = os.stat(plain).st_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(plain, memmap=False) as hdul:
                hdu = _first_image(hdul)
                if hdu is None:
                    raise InputError(f"{self.path}: holds no image: take it out of the folder")
                header = hdu.header.copy()
                if hdu is not hdul[0]:
                    header.extend(hdul[0].header.cards, unique=True, update=False)
                self.image = self._checked(hdu, plain, size)
                self._uncertainty = self._mask = None
                for extension in hdul[1:]:
                    if extension is hdu or not extension.is_image:
                        continue
                    if extension.name in ("UNCERT", "MASK") and extension.shape == hdu.shape:
                        image = self._checked(extension, plain, size)
                        if extension.name == "MASK":
                            self._mask = image
                        else:
                            kind = extension.header.get("UTYPE", "StdDevUncertainty")
                            self._uncertainty = (kind, image)
        self.header = header
        self.shape = self.image.shape
        if header.get("BUNIT"):
            self.unit = _unit(header["BUNIT"], self.path)
        elif self.unit is not None:
            self.unit = u.Unit(self.unit)

    def _checked(self, hdu, plain, size):
        image = _image_of(hdu, plain, hdu.fileinfo()["datLoc"])
        needed = image.offset + image.stored.itemsize * image.shape[0] * image.shape[1]
        if size < needed:
            raise InputError(
                f"{self.path}: is truncated: {size} bytes, its header "
                f"(NAXIS1 = {image.shape[1]}, NAXIS2 = {image.shape[0]}) needs {needed}: "
                "copy it again"
            )
        return image

    def __getstate__(self):
        return {"path": self.path, "unit": self.unit}

    def __setstate__(self, state):
        # A temporary file of this process is of no use to another one.
        self.__init__(**state)

    def read(self, rows):
        """Return a `Band` of float32 rows."""
        data = self.image.read(rows).astype(np.float32, copy=False)
        mask = None
        if self._mask is not None:
            mask = self._mask.read(rows) != 0
        if self.image.stored.kind == "f" or self.image.blank is not None:
            bad = ~np.isfinite(data)
            if bad.any():
                mask = bad if mask is None else mask | bad
        variance = None
        if self._uncertainty is not None:
            kind, image = self._uncertainty
            variance = _to_variance(kind, image.read(rows).astype(np.float32, copy=False))
        return Band(data, variance, mask)


def _to_variance(kind, values):
    if kind in ("StdDevUncertainty", "std"):
        return values * values
    if kind in ("InverseVariance", "ivar"):
        with np.errstate(divide="ignore"):
            return np.float32(1.0) / values
    return values


def _unit(text, path):
    """The unit that BUNIT means; ``e-`` and ``counts`` are what cameras write for astropy's words."""
    text = str(text).strip()
    words = {"e-": "electron", "e": "electron", "counts": "adu", "count": "adu", "dn": "adu"}
    parts = [words.get(part.strip().lower(), part.strip()) for part in text.split("/")]
    try:
        return u.Unit("/".join(parts))
    except ValueError:
        try:
            return u.Unit(text.lower())
        except ValueError:
            raise InputError(
                f"{path}: BUNIT = {text!r} is not a unit: write adu, electron or electron/s"
            ) from None


# --------------------------------------------------------------------------- memory


class MemoryFrame:
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
        if np.ndim(ccd.data) != 2:
            raise InputError(f"{name}: has shape {np.shape(ccd.data)}: a 2-D image is needed")
        self.name = name
        self.ccd = ccd
        self.shape = ccd.data.shape
        self.unit = ccd.unit
        self.header = ccd.header
        self._kind = ccd.uncertainty.uncertainty_type if ccd.uncertainty is not None else None
        if self._kind not in (None, "std", "var", "ivar"):
            raise InputError(
                f"{name}: its uncertainty is of type {self._kind!r}: "
                "use StdDevUncertainty, VarianceUncertainty or InverseVariance"
            )

    def read(self, rows):
        """Return a `Band` of float32 rows."""
        ccd = self.ccd
        data = np.ascontiguousarray(ccd.data[rows], np.float32)
        mask = as_mask(ccd.mask, self.shape)
        mask = None if mask is None else mask[rows]
        if ccd.data.dtype.kind == "f":
            bad = ~np.isfinite(data)
            if bad.any():
                mask = bad if mask is None else mask | bad
        variance = None
        if self._kind is not None:
            values = np.ascontiguousarray(ccd.uncertainty.array[rows], np.float32)
            variance = _to_variance(self._kind, values)
        return Band(data, variance, mask)


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
    if isinstance(image, CCDData):
        return MemoryFrame(image)
    if isinstance(image, str | os.PathLike):
        return FitsFrame(Path(image), unit=unit)
    if isinstance(image, Frame):
        return image
    raise InputError(
        f"{type(image).__name__} is not an image: give a path, a CCDData or a Frame "
        "(a bare array has no unit: CCDData(array, unit='adu'))"
    )


def as_ccd(frame):
    """
    Read a whole frame into a new `~astropy.nddata.CCDData`.

    Its uncertainty is a `~astropy.nddata.StdDevUncertainty` if the frame has a
    variance; its header is a copy.
    """
    band = frame.read(slice(0, frame.shape[0]))
    uncertainty = None
    if band.variance is not None:
        uncertainty = VarianceUncertainty(band.variance).represent_as("std")
    return CCDData(
        band.data.copy(),
        uncertainty=uncertainty,
        mask=None if band.mask is None else band.mask.copy(),
        header=frame.header.copy(),
        unit=frame.unit,
    )


# --------------------------------------------------------------------------- loops


def usable_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_bands(n_rows, band_rows):
    """
    Return the slices that cut ``n_rows`` rows into bands of ``band_rows``.

    Examples
    --------
    >>> from astro_narrowband.bands import row_bands
    >>> row_bands(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    band_rows = max(1, int(band_rows))
    return [slice(y, min(y + band_rows, n_rows)) for y in range(0, n_rows, band_rows)]


def map_bands(
    function: Callable, bands: Iterable[slice], *, executor: Executor | None = None, workers=None
) -> Iterator:
    """
    Yield ``(rows, function(rows))`` for every band, in order.

    At most a few bands more than there are workers are under way, so that
    results do not pile up while the consumer writes.

    Parameters
    ----------
    function : callable
        Takes a slice of rows. Must be picklable where the executor is not a
        pool of threads.
    bands : iterable of slice
    executor : `~concurrent.futures.Executor`, optional
        Where the work is done. Default is a pool of ``workers`` threads.
    workers : int, optional
        Number of threads, or of bands under way. Default is the number of
        usable cores.
    """
    if workers is None:
        workers = usable_cores()
    if executor is None and workers == 1:
        for rows in bands:
            yield rows, function(rows)
        return
    own = ThreadPoolExecutor(workers) if executor is None else None
    pool = own or executor
    under_way = []
    try:
        for rows in bands:
            under_way.append((rows, pool.submit(function, rows)))
            if len(under_way) > workers + 1:
                first, future = under_way.pop(0)
                yield first, future.result()
        while under_way:
            first, future = under_way.pop(0)
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()
        if own is not None:
            own.shutdown()
