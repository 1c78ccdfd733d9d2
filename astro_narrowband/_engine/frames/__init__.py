"""
Frames that are read by bands of rows.

Everything heavy in this package pulls on one small protocol, `Frame`: an image
that gives the rows asked for, with their variance and mask. A file on disk, a
`~astropy.nddata.CCDData` in memory, a frame that calibrates or resamples
another one: all of them are frames, so a chain of them is evaluated band by
band, and memory is set by the size of a band and not by the number of frames.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine.files import ChangedError, Identity, set_card
from astro_narrowband._engine.frames._fits_image import FitsImage
from astro_narrowband._engine.frames.fits_reader import MAX_PIXELS, damage_of, read_structure
from astro_narrowband._engine.headers import clean_text, raw_values
from astro_narrowband._engine.validate import as_mask, as_unit
from astro_narrowband.exceptions import InputError, InputTypeError

__all__ = [
    "MAX_PIXELS",
    "Band",
    "FitsFrame",
    "FitsImage",
    "Frame",
    "HeldFrame",
    "MemoryFrame",
    "as_ccd",
    "as_frame",
    "map_bands",
    "row_bands",
    "usable_cores",
]

#: Pixels that a held frame is read by: with fewer, threads wait for each other.
HELD_PIXELS = 1 << 18


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


@dataclass(eq=False)
class FitsFrame:
    """
    The image of a FITS file, read by bands.

    Plain files are read where they lie, and so are tile-compressed ones, of which the
    tiles in question are decompressed; packed ones (gzip, bzip2, xz, by their first
    bytes) are expanded once into a temporary file without a name. The image is the
    primary one, or the only one in the extensions; cubes of one plane count as images.
    ``UNCERT`` and ``MASK`` extensions, as `~astropy.nddata.CCDData` writes them, become
    the band's variance and mask. NaN and BLANK pixels are masked.

    Parameters
    ----------
    path : path-like
        The file.
    unit : unit-like, optional
        The unit of the pixels where the header has no BUNIT.
    max_pixels : int, optional
        A larger image is refused before anything is allocated or expanded.
    cards : mapping, optional
        Header values that stand in for those of the file.
    identity : `~astro_narrowband._engine.files.Identity`, optional
        What the file must still be, now and whenever it is read; default is what it
        is now.

    Raises
    ------
    ChangedError
        If the file changed, here and wherever its pixels are read.
    InputError
        If the file is absent, not a regular file, not FITS, truncated, too
        large, or has not one 2-D image.
    """

    path: Path
    unit: u.UnitBase | None = None
    max_pixels: int = field(default=MAX_PIXELS, repr=False)
    cards: Mapping = field(default_factory=dict, repr=False)
    identity: Identity | None = field(default=None, repr=False)
    name: str = field(init=False)
    shape: tuple[int, int] = field(init=False)
    header: fits.Header = field(init=False, repr=False)
    image: FitsImage = field(init=False, repr=False)

    def __post_init__(self):
        self.path = Path(self.path)
        self.name = self.path.name
        found = read_structure(self.path, max_pixels=self.max_pixels, identity=self.identity)
        self.identity = found.identity
        self.header, self.image, self.shape = found.header, found.image, found.image.shape
        self.primary = found.primary
        self._mask, self._uncertainty = found.mask, found.uncertainty
        self._kind, self._structure = found.kind, found
        for keyword, value in self.cards.items():
            set_card(self.header, keyword, value)
        bunit = [value for value, _ in raw_values(found.header, "BUNIT") if value is not None]
        if bunit and clean_text(bunit[0]):
            self.unit = _unit(clean_text(bunit[0]), self.path)
        elif self.unit is not None:
            self.unit = as_unit(self.unit, "unit")

    def __getstate__(self):
        # Absolute: a worker may be at home elsewhere.
        path = self.path.absolute()
        names = ("unit", "max_pixels", "cards", "identity")
        return {name: getattr(self, name) for name in names} | {
            "path": path,
            "offset": self.image.offset,
        }

    def __setstate__(self, state):
        # A temporary file of this process is of no use to another one.
        offset = state.pop("offset")
        self.__init__(**state)
        if self.image.offset != offset:
            raise ChangedError(self.path, "has its pixels elsewhere than before")

    @property
    def damage(self):
        """Why the data are not those that were written; empty if they are, or nobody knows."""
        return damage_of(self._structure)

    def read(self, rows):
        """Return a `Band` of float32 rows."""
        band = self.read_values(rows)
        if self._uncertainty is None:
            return band
        uncertainty = _float32(self._uncertainty.read(rows))
        return band._replace(variance=_to_variance(self._kind, uncertainty))

    def read_values(self, rows):
        """As `read`, without the variance, which stays on disk."""
        data = _float32(self.image.read(rows))
        mask = None
        if self._mask is not None:
            mask = self._mask.read(rows) != 0
        if self.image.stored.kind == "f" or self.image.blank is not None:
            bad = ~np.isfinite(data)
            if bad.any():
                mask = bad if mask is None else mask | bad
        return Band(data, None, mask)


def _float32(values):
    # What is too large for float32 becomes infinite, and so masked.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def _to_variance(kind, values):
    if kind in ("StdDevUncertainty", "std"):
        return values * values
    if kind in ("InverseVariance", "ivar"):
        with np.errstate(divide="ignore"):
            return np.float32(1.0) / values
    return values


_UNIT_WORDS = {
    **dict.fromkeys(("e-", "e", "electrons", "photo-electrons", "photoelectrons"), "electron"),
    **dict.fromkeys(("counts", "count", "dn", "adus", "digital number", "raw"), "adu"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
}


def _unit(text, path):
    """Return the unit that BUNIT means, in astropy's words or in those of cameras."""
    parts = [part.strip().lower() for part in text.strip().strip("[]()").split("/")]
    for words in ("/".join(_UNIT_WORDS.get(part, part) for part in parts), text.strip()):
        try:
            unit = u.Unit(words)
        except Exception:  # noqa: S112 - astropy: ValueError, TypeError, by the text
            continue
        if isinstance(unit, u.UnitBase):
            return unit
    raise InputError(
        f"{path}: BUNIT = {text[:60]!r} is not a unit: write adu, electron or electron/s"
    )


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


class HeldFrame:
    """
    The pixels of a frame in memory, for several functions that look at all of them.

    Parameters
    ----------
    frame : `Frame`
        Each of its rows is read once.
    spare : `HeldFrame`, optional
        One that is done with: where its arrays fit they are written over, for new
        ones of this size take as long as what is done with them.
    variance : bool, optional
        `False`: without its variance.

    Attributes
    ----------
    name, shape, unit, header
        As of the frame.
    data : `~numpy.ndarray` of float32, (ny, nx)
    variance : `~numpy.ndarray` of float32, (ny, nx), or None
    mask : `~numpy.ndarray` of bool, (ny, nx), or None
        `True` also where ``data`` is not finite; ``None`` where it is nowhere.

    Examples
    --------
    A light is calibrated once, and not for each of two measurements:

    >>> from astro_narrowband._engine.frames import HeldFrame
    >>> from astro_narrowband import detect_stars
    >>> from astro_narrowband.coaddition import measure_frame
    >>> def measure(light):
    ...     held = HeldFrame(light)
    ...     return measure_frame(held, stars=detect_stars(held))
    """

    def __init__(self, frame, *, spare=None, variance=True):
        self.name, self.shape, self.unit = frame.name, tuple(frame.shape), frame.unit
        self.header = frame.header
        fits = spare is not None and spare.shape == self.shape

        def plane(name, dtype):
            old = getattr(spare, name) if fits else None
            return np.empty(self.shape, dtype) if old is None else old

        self.data, self.variance, self.mask = plane("data", np.float32), None, None
        # Frames that are made while they are read are made where they will lie.
        make = getattr(frame, "read_into", None)
        if make is not None:
            self.mask = plane("mask", bool)
            if variance:
                self.variance = plane("variance", np.float32)
        read = frame.read if variance else getattr(frame, "read_values", frame.read)
        ny, nx = self.shape
        for rows in row_bands(ny, HELD_PIXELS // max(nx, 1)):
            if make is not None:
                band = self.read(rows)
                make(rows, band)
            else:
                band = read(rows)
                self.data[rows] = band.data
                if variance and band.variance is not None:
                    if self.variance is None:
                        self.variance = plane("variance", np.float32)
                    self.variance[rows] = band.variance
            bad = _unusable(band)
            if self.mask is None and bad is not None:
                self.mask = plane("mask", bool)
                self.mask[: rows.start] = False
            if self.mask is not None:
                self.mask[rows] = False if bad is None else bad

    def read(self, rows):
        """Return a `Band` of the held rows, not copied: it must not be written to."""
        planes = (self.data, self.variance, self.mask)
        return Band(*(None if plane is None else plane[rows] for plane in planes))


def _unusable(band):
    """Where a band is masked or not finite, or None where it is nowhere."""
    bad = band.mask if band.mask is not None and band.mask.any() else None
    # The sum tells in one quick pass whether there is anything to look for.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(band.data.sum())
    if not finite:
        lost = ~np.isfinite(band.data)
        if lost.any():
            bad = lost if bad is None else bad | lost
    return bad


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
    raise InputTypeError(
        f"{type(image).__name__} is not an image: give a path, a CCDData or a Frame "
        "(a bare array has no unit: CCDData(array, unit='adu'))"
    )


def as_ccd(frame):
    """
    Read a whole frame into a new `~astropy.nddata.CCDData`.

    Its uncertainty is a `~astropy.nddata.StdDevUncertainty` if the frame has a
    variance; its header is a copy.
    """
    if frame.unit is None:
        raise InputError(f"{frame.name}: has no unit (BUNIT): give unit=, such as unit='adu'")
    band = frame.read(slice(0, frame.shape[0]))
    uncertainty = None
    if band.variance is not None:
        uncertainty = StdDevUncertainty(np.sqrt(band.variance))
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
    >>> from astro_narrowband._engine.frames import row_bands
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
