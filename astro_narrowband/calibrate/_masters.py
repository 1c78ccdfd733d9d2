"""Rows of the masters that lights are calibrated with, read once for all lights of a band."""

import numpy as np

__all__ = ["MIN_FLAT", "MasterRows", "divisor"]

#: A flat pixel below this fraction of the median is dead, and never divides.
MIN_FLAT = 0.05
#: Rows that a window may grow by at either end: lights are dithered by less, as a rule.
SLACK = 64


def divisor(band):
    """Return what a flat divides by (1 where it is dead), and where it is dead or None."""
    alive = band.data >= np.float32(MIN_FLAT)
    if band.mask is not None:
        alive &= ~band.mask
    if alive.all():
        return band.data, None
    return np.where(alive, band.data, np.float32(1)), ~alive


class MasterRows:
    """
    The masters of a recipe for some rows, as planes that are ready to be used.

    The lights of a band need nearly the same rows, moved by their dithers: what is
    here is kept, and only the rows that are missing are read. Not for two threads
    at once.
    """

    def __init__(self, recipe):
        self._recipe = recipe
        self._planes = {}
        self._base = self._first = self._last = 0
        self._height = 0

    def rows(self, rows):
        """Make some rows available to `planes`."""
        start, stop = rows.start, rows.stop
        first, last = min(start, self._first), max(stop, self._last)
        apart = start > self._last or stop < self._first
        if apart or first < self._base or last > self._base + self._height:
            self._height = max(self._height, stop - start + 2 * SLACK)
            spare = (self._height - (stop - start)) // 2
            self._base, self._first, self._last = start - spare, start, start
            first, last = start, stop
        if first < self._first:
            self._read(slice(first, self._first))
            self._first = first
        if last > self._last:
            self._read(slice(self._last, last))
            self._last = last

    def planes(self, rows):
        """
        Return the planes of some of the rows that are here; None for those that are not known.

        Returns
        -------
        offset, rate : `~numpy.ndarray` of float32 or None
            Of the dark [adu], [adu/s].
        weight : `~numpy.ndarray` of float32 or None
            Gain over flat [electron/adu].
        bad : `~numpy.ndarray` of bool or None
            Flagged by the dark, or dead in the flat.
        """
        here = slice(rows.start - self._base, rows.stop - self._base)
        found = (self._planes.get(name) for name in ("offset", "rate", "weight", "bad"))
        return [None if plane is None else plane[here] for plane in found]

    def _read(self, rows):
        recipe = self._recipe
        bad = None
        if recipe.dark is not None:
            offset, rate = recipe.dark.lines(rows)
            self._put("offset", rows, offset)
            self._put("rate", rows, rate)
            bad = recipe.dark.mask(rows)
        if recipe.flat is not None:
            flat, dead = divisor(recipe.flat.read(rows))
            self._put("weight", rows, np.float32(recipe.detector.gain) / flat)
            if dead is None:
                dead = np.zeros(flat.shape, bool)
            bad = dead if bad is None else bad | dead
        if bad is not None:
            self._put("bad", rows, bad)

    def _put(self, name, rows, values):
        plane = self._planes.get(name)
        if plane is None or plane.shape[0] < self._height:
            plane = np.zeros((self._height, values.shape[1]), values.dtype)
            self._planes[name] = plane
        plane[rows.start - self._base : rows.stop - self._base] = values
