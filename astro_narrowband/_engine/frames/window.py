"""Rows that several frames need, read once: those of a band, or all of them."""

import threading

import numpy as np

__all__ = ["HeldRows", "RowWindow"]

#: Rows that a window may grow by at either end: frames are dithered by less, as a rule.
SLACK = 64
#: Rows that are read at a time where all of them are held.
BAND = 64


class RowWindow:
    """
    Planes that frames have in common, for the rows asked for last.

    The frames of a band need nearly the same rows, moved by their dithers: what is
    here is kept, and only rows that are missing are read. Not for two threads at once.

    Parameters
    ----------
    read : callable
        Takes a slice of rows, returns a tuple of arrays (n_rows, nx), or None for
        planes that there are not.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.frames.window import RowWindow
    >>> def read(rows):
    ...     print("read", rows.start, rows.stop)
    ...     return (np.arange(rows.start, rows.stop)[:, None] * np.ones(3),)
    >>> window = RowWindow(read)
    >>> for rows in (slice(100, 103), slice(101, 104)):
    ...     print(window.planes(rows)[0][:, 0])
    read 100 103
    [100. 101. 102.]
    read 103 104
    [101. 102. 103.]
    """

    def __init__(self, read):
        self._read = read
        self._planes, self._height = None, 0
        # Row of the frame at the top of the planes, and the rows of it that are here.
        self._base = self._first = self._last = 0

    def planes(self, rows):
        """
        Return the planes of some rows: views, which must not be written to.

        They stay as they are until rows are asked for that are not here.
        """
        start, stop = rows.start, rows.stop
        touching = start <= self._last and stop >= self._first
        if not touching or start < self._base or stop > self._base + self._height:
            self._put(rows, fresh=True)
        if start < self._first:
            self._put(slice(start, self._first))
        if stop > self._last:
            self._put(slice(self._last, stop))
        here = slice(start - self._base, stop - self._base)
        return tuple(None if plane is None else plane[here] for plane in self._planes)

    def _put(self, rows, fresh=False):
        found = self._read(rows)
        n_rows = rows.stop - rows.start
        if fresh:
            if self._planes is None or n_rows > self._height - 2 * SLACK:
                self._height = n_rows + 2 * SLACK
                self._planes = [
                    None if plane is None else np.empty((self._height, plane.shape[1]), plane.dtype)
                    for plane in found
                ]
            self._base = rows.start - (self._height - n_rows) // 2
            self._first, self._last = rows.start, rows.stop
        for plane, values in zip(self._planes, found, strict=True):
            if plane is not None:
                plane[rows.start - self._base : rows.stop - self._base] = values
        self._first, self._last = min(self._first, rows.start), max(self._last, rows.stop)


class HeldRows:
    """
    Planes that frames have in common, all rows of them, read when they are first asked for.

    For any number of threads.

    Parameters
    ----------
    read : callable
        As of `RowWindow`.
    n_rows : int
        Rows of the planes.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.frames.window import HeldRows
    >>> held = HeldRows(lambda rows: (np.arange(rows.start, rows.stop)[:, None], None), 200)
    >>> held.planes(slice(150, 153))[0].ravel()
    array([150, 151, 152])
    """

    def __init__(self, read, n_rows):
        self._read, self._n_rows = read, n_rows
        self._planes, self._lock = None, threading.Lock()

    def planes(self, rows):
        """Return the planes of some rows: views, which must not be written to."""
        with self._lock:
            if self._planes is None:
                self._planes = self._all()
        return tuple(None if plane is None else plane[rows] for plane in self._planes)

    def _all(self):
        whole = None
        for start in range(0, self._n_rows, BAND):
            rows = slice(start, min(start + BAND, self._n_rows))
            found = self._read(rows)
            if whole is None:
                whole = [
                    None if p is None else np.empty((self._n_rows, p.shape[1]), p.dtype)
                    for p in found
                ]
            for plane, values in zip(whole, found, strict=True):
                if plane is not None:
                    plane[rows] = values
        return whole
