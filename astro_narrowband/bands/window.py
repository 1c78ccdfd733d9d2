"""Rows that several frames of a band need, read once."""

import numpy as np

__all__ = ["RowWindow"]

#: Rows that a window may grow by at either end: frames are dithered by less, as a rule.
SLACK = 64


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
    >>> from astro_narrowband.bands.window import RowWindow
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
