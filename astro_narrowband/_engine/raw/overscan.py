"""Overscan and trim, where BIASSEC and TRIMSEC stand in the header."""

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import Band, Frame, as_frame, handed
from astro_narrowband._engine.raw.pedestal import without_pedestal
from astro_narrowband._engine.wcs import move_header, move_wcs
from astro_narrowband.exceptions import InputError


def prepared(image, *, unit=u.adu):
    """
    Return ``image`` as a Frame, overscan subtracted and trimmed if its header says where.

    A pedestal that its header names (PEDESTAL) is taken off.

    Frames without BIASSEC and TRIMSEC, and frames that already lost them, are
    returned as they are.
    """
    frame = as_frame(image, unit=unit)
    if frame.unit not in (None, u.adu):
        raise InputError(
            f"{frame.name}: is in {frame.unit}, a raw frame must be in adu: give the raw frame, "
            "or convert it (CCDData.convert_unit_to)"
        )
    frame = without_pedestal(frame)
    if isinstance(frame, OverscanFrame) or frame.header.get("OVERSCAN") is True:
        return frame
    try:
        overscan = keywords.read_overscan(frame.header, frame.shape)
        trim = keywords.read_trim(frame.header, frame.shape)
    except InputError as error:
        raise InputError(f"{frame.name}: {error}: correct or delete the keyword") from None
    if overscan is None and trim is None:
        return frame
    return OverscanFrame(frame, overscan=overscan, trim=trim)


class OverscanFrame(Frame):
    """
    A frame with its overscan subtracted and trimmed off.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
    overscan, trim : (slice, slice), optional
        Rows and columns of BIASSEC and TRIMSEC. The median of the overscan is
        subtracted row by row, or column by column if it lies above or below.
    """

    def __init__(self, frame, *, overscan=None, trim=None):
        self.frame = frame
        self.name, self.unit = frame.name, frame.unit
        ny, nx = frame.shape
        self._rows, self._columns = trim or (slice(0, ny), slice(0, nx))
        self.shape = (
            self._rows.stop - self._rows.start,
            self._columns.stop - self._columns.start,
        )
        self.header = frame.header.copy()
        for key in ("BIASSEC", "TRIMSEC", "DATASEC", "CCDSEC"):
            self.header.remove(key, ignore_missing=True)
        moved = np.eye(3)
        moved[:2, 2] = -self._columns.start, -self._rows.start
        move_header(self.header, moved, self.name)
        if frame.wcs is not None:
            self.wcs = move_wcs(frame.wcs, moved)
        self.header["OVERSCAN"] = (True, "overscan subtracted and trimmed")
        self._overscan, self._strip = overscan, None
        self._levels = np.full(self.shape[0], np.nan, np.float32)
        if overscan is None:
            return
        rows, columns = overscan
        if rows.start <= self._rows.start and rows.stop >= self._rows.stop:
            return
        # A strip above or below is read once: it is one row of numbers.
        if columns.start > self._columns.start or columns.stop < self._columns.stop:
            raise InputError(
                f"{frame.name}: BIASSEC covers neither all rows nor all columns of TRIMSEC: "
                "correct or delete one of them"
            )
        self._strip = np.median(frame.read(rows).data[:, self._columns], axis=0)

    def raw_counts(self, rows, data):
        """The counts with the overscan of each row or column in them, see `Frame.raw_counts`."""
        level = np.float32(0) if self._strip is None else self._strip
        if self._strip is None and self._overscan is not None:
            if np.isnan(self._levels[rows]).any():
                self.read(rows, variance=False)
            level = self._levels[rows, None]
        # Rounding must not bring a full pixel below the level at which it is full.
        counts = (data + level) * np.float32(1 + 2**-22)
        return self.frame.raw_counts(rows, counts)

    def read(self, rows, *, variance=True, out=None):
        """Return a `~astro_narrowband._engine.frames.Band` of trimmed float32 rows."""
        first = self._rows.start
        raw = self.frame.read(slice(first + rows.start, first + rows.stop), variance=variance)
        squared, mask = (
            None if plane is None else plane[:, self._columns] for plane in (raw.variance, raw.mask)
        )
        data = raw.data[:, self._columns]
        if self._strip is not None:
            data = data - self._strip
        elif self._overscan is not None:
            self._levels[rows] = np.median(raw.data[:, self._overscan[1]], axis=1)
            data = data - self._levels[rows, None]
        return handed(Band(np.ascontiguousarray(data, np.float32), squared, mask), out=out)
