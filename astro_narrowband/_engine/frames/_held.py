"""
Rows that are read once and kept, for all who ask for them again.

`HeldRows` keeps planes of any kind, those of masters as a rule: the rows asked for
last, or all of them. `HeldFrame` keeps the pixels of a frame.
"""

import threading

import numpy as np

from astro_narrowband._engine.frames._bands import row_bands
from astro_narrowband._engine.frames._frame import Band, Frame, handed

#: Rows that a window may grow by at either end: frames are dithered by less, as a rule.
SLACK = 64
#: Rows that are read at a time where all of them are held.
BAND = 64
#: Pixels that a held frame is read by: with fewer, threads wait for each other.
HELD_PIXELS = 1 << 18


class HeldRows:
    """
    Planes that frames have in common: the rows asked for last, or all of them.

    The frames of a band need nearly the same rows, moved by their dithers: each
    thread keeps what it asked for last, and only rows that are missing are read. Where
    frames are read whole, all threads share planes that are held whole.

    Parameters
    ----------
    read : callable
        Takes a slice of rows, returns a tuple of arrays (n_rows, nx), or None for
        planes that there are not.
    n_rows : int, optional
        Rows of the planes: all of them are read when they are first asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.frames import HeldRows
    >>> def read(rows):
    ...     print("read", rows.start, rows.stop)
    ...     return (np.arange(rows.start, rows.stop)[:, None] * np.ones(3),)
    >>> held = HeldRows(read)
    >>> for rows in (slice(100, 103), slice(101, 104)):
    ...     print(held.planes(rows)[0][:, 0])
    read 100 103
    [100. 101. 102.]
    read 103 104
    [101. 102. 103.]
    >>> held = HeldRows(read, 50)
    >>> held.planes(slice(10, 12))[0][:, 0], held.planes(slice(40, 42))[0][:, 0]
    read 0 50
    (array([10., 11.]), array([40., 41.]))
    """

    def __init__(self, read, n_rows=None):
        self._read, self._n_rows = read, n_rows
        self._whole, self._lock, self._of_thread = None, threading.Lock(), threading.local()

    def planes(self, rows):
        """
        Return the planes of some rows: views, which must not be written to.

        They stay as they are until this thread asks for rows that are not here.
        """
        if self._n_rows is None:
            window = self._of_thread.__dict__.setdefault("window", _Window())
            return window.planes(self._read, rows)
        with self._lock:
            if self._whole is None:
                self._whole = self._all()
        return tuple(None if plane is None else plane[rows] for plane in self._whole)

    def _all(self):
        whole = None
        for rows in row_bands(self._n_rows, BAND):
            planes = self._read(rows)
            if whole is None:
                whole = _like(planes, self._n_rows)
            _put(planes, whole, rows)
        return whole


class _Window:
    """The rows that one thread asked for last, with room for more at either end."""

    def __init__(self):
        self.held, self.height = None, 0
        # Row of the frame at the top of what is held, and the rows of it that are here.
        self.base = self.first = self.last = 0

    def planes(self, read, rows):
        start, stop = rows.start, rows.stop
        touching = start <= self.last and stop >= self.first
        if not touching or start < self.base or stop > self.base + self.height:
            self.renew(read(rows), rows)
        if start < self.first:
            self.put(read(slice(start, self.first)), slice(start, self.first))
        if stop > self.last:
            self.put(read(slice(self.last, stop)), slice(self.last, stop))
        inside = slice(start - self.base, stop - self.base)
        return tuple(None if plane is None else plane[inside] for plane in self.held)

    def renew(self, planes, rows):
        """Hold rows far from those that are here."""
        n_rows = rows.stop - rows.start
        if self.held is None or n_rows > self.height - 2 * SLACK:
            self.height = n_rows + 2 * SLACK
            self.held = _like(planes, self.height)
        self.base = rows.start - (self.height - n_rows) // 2
        self.first, self.last = rows.start, rows.stop
        self.put(planes, rows)

    def put(self, planes, rows):
        """Add rows to those that are here."""
        _put(planes, self.held, slice(rows.start - self.base, rows.stop - self.base))
        self.first, self.last = min(self.first, rows.start), max(self.last, rows.stop)


def _like(planes, n_rows):
    """Empty planes of ``n_rows`` rows, as those given."""
    return [None if p is None else np.empty((n_rows, p.shape[1]), p.dtype) for p in planes]


def _put(planes, held, rows):
    for plane, target in zip(planes, held, strict=True):
        if target is not None:
            target[rows] = plane


class HeldFrame(Frame):
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
    name, shape, unit, header, exposure
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
        self.header, self.exposure = frame.header, frame.exposure
        # Pages of a plane that is never written to are never made.
        fits = spare is not None and spare.shape == self.shape
        kinds = (np.float32, np.float32, bool)
        self._planes = spare._planes if fits else [np.empty(self.shape, k) for k in kinds]
        self.data = self._planes[0]
        self.variance = self.mask = None
        ny, nx = self.shape
        for rows in row_bands(ny, HELD_PIXELS // max(nx, 1)):
            out = Band(*(plane[rows] for plane in self._planes))
            out = out if variance else out._replace(variance=None)
            self._hold(frame.read(rows, variance=variance, out=out), rows)

    def _hold(self, band, rows):
        """Keep a band that was read into the planes; its mask is all that may not be used."""
        bad = _unusable(band)
        if self.variance is None and band.variance is not None:
            self.variance = self._planes[1]
        if self.mask is None and bad is not None:
            self.mask = self._planes[2]
            self.mask[: rows.start] = False
        if self.mask is not None:
            self.mask[rows] = False if bad is None else bad

    def read(self, rows, *, variance=True, out=None):
        """Return a `Band` of the held rows, not copied: it must not be written to."""
        planes = (self.data, self.variance, self.mask)
        band = Band(*(None if plane is None else plane[rows] for plane in planes))
        return handed(band, variance=variance, out=out)


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
