"""
Raw frames before they are used: what programs added to their pixels, overscan and trim.

And what must be alike in two frames before one may calibrate the other.
"""

import numpy as np
from astropy import units as u
from astropy.io import fits

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.frames import Band, Frame, as_frame, handed
from astro_narrowband._engine.provenance import write_creator
from astro_narrowband._engine.text import clean_text
from astro_narrowband._engine.wcs import move_header, move_wcs
from astro_narrowband.exceptions import CalibrationError, InputError
from astro_narrowband.filters import canonical_filter

#: Cards of the first frame that a master keeps: they tell cameras and settings apart.
KEPT = (
    *("XBINNING", "YBINNING", "BINNING", "CCDSUM", "XORGSUBF", "YORGSUBF", "FLIPSTAT"),
    *("MOSAIC", "XBAYROFF", "YBAYROFF", "BAYOFFX", "BAYOFFY", "ROWORDER"),
    *(
        keyword
        for name in (
            *("camera", "gain", "egain", "offset", "readout", "temperature", "noise"),
            *("saturation", "bayer"),
        )
        for keyword in keywords.KEYWORDS[name]
    ),
)

#: Readers of what must be the same, and what it is called.
SAME = {
    "binning": keywords.read_binning,
    "gain": keywords.read_gain_setting,
    "read mode": keywords.read_readout,
    "window": keywords.read_window,
    "colour": lambda header: header.get("MOSAIC"),
}


def master_header(frame, kind, n, *extra):
    """Return the header of a master made of ``n`` frames, of which ``frame`` is the first."""
    header = fits.Header()
    for key in (*KEPT, *extra):
        try:
            card = keywords.one_value(frame.header, key)
        except InputError:
            continue  # a card that cannot be read says nothing, here or to anybody later
        if card is not None:
            set_card(header, key, card[0])
    header["IMAGETYP"] = (f"master {kind}", "made by astro_narrowband")
    header["NCOMBINE"] = (n, "frames combined")
    write_creator(header)
    return header


def refuse_other_camera(name, header, master, what):
    """
    Raise if a frame and its master differ in binning, gain, read mode or window.

    A flat must also be one of the same filter.

    What either of the two does not say is not compared.

    Parameters
    ----------
    name : str
        Of the frame.
    header, master : `~astropy.io.fits.Header`
    what : str
        What the master is called.

    Raises
    ------
    CalibrationError
    """
    for label, reader in SAME.items():
        ours, theirs = reader(header), reader(master)
        if ours and theirs and ours != theirs:
            raise CalibrationError(
                f"{name}: its {label} is {ours}, that of its {what} {theirs}: take a {what} of "
                f"the same {label}"
            )
    ours, theirs = (_filter(h) for h in (header, master))
    if what == "flat" and ours and theirs and ours != theirs:
        raise CalibrationError(
            f"{name}: was taken through {ours}, its flat through {theirs}: take a flat of {ours}"
        )


def _filter(header):
    """The name of the filter, as the table of frames has it, or by the header alone."""
    names = keywords.read_filter(header).split("+")
    return header.get("FILTUSED") or "+".join(dict.fromkeys(map(canonical_filter, names)))


#: Full scale of 16 bits: that of images whose pixels go from 0 to 1.
FULL = 65535.0
#: Rows of a frame that are asked for its scale; a flat above this level is one that is normalised.
ROWS, NORMALISED = 16, 0.65
#: Counts that a whole number may be off by, after 32-bit floating-point numbers from 0 to 1.
WHOLE = 0.05


def full_scale(frame, *, flat=False, raw=False):
    """
    Return the counts [adu] that 1 stands for in the file of a frame: 65535, or 1 as a rule.

    PixInsight and Siril write what they have read as floating-point numbers from 0 to 1. A
    ``flat`` may be normalised instead. The counts of a ``raw`` frame are whole numbers: where
    they are none, 1 is something else, such as the largest pixel, and `InputError` says so.
    """
    if frame.image.stored.kind != "f" or frame.unit not in (None, u.adu):
        return 1.0
    ny = frame.shape[0]
    rows = [
        frame.read(slice(y, y + 1), variance=False).data
        for y in np.unique(np.linspace(0, ny - 1, ROWS).astype(int)).tolist()
    ]
    values = np.concatenate(rows)
    values = values[np.isfinite(values)]
    if not values.size or not -0.5 < values.min() <= values.max() <= 1 or not values.any():
        return 1.0
    if flat and np.median(values) > NORMALISED:
        return 1.0
    counts = values.astype(float) * FULL
    if raw and np.mean(np.abs(counts - np.rint(counts)) > WHOLE) > 0.5:
        raise InputError(
            "its pixels go from 0 to 1, and are no parts of 65535 adu: what 1 is in adu is not "
            "known: give the frame as the camera wrote it"
        )
    return FULL


class ScaledFrame(Frame):
    """
    A frame times a number, as its header (ADUSCALE) says.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
    scale : float
        From `full_scale`.
    """

    def __init__(self, frame, scale):
        self.frame, self.scale = frame, np.float32(scale)
        self.name, self.shape, self.unit = frame.name, tuple(frame.shape), frame.unit
        self.header = frame.header.copy()
        self.header["ADUSCALE"] = (scale, "[adu] what 1 stood for in the file")

    def read(self, rows, *, variance=True):
        """Return a `~astro_narrowband.Band` of rows [adu]."""
        band = self.frame.read(rows, variance=variance)
        squared = None if band.variance is None else band.variance * self.scale**2
        return band._replace(data=band.data * self.scale, variance=squared)


def without_pedestal(frame):
    """
    Return ``frame`` without the PEDESTAL that its header names; as it is, if there is none.

    Both conventions say that its size was added to the pixels: SBIG's (MaxIm DL) has what is to
    be added to get back, a number below zero; PixInsight's what was added, one above zero.
    Raises `InputError` where it is no number.
    """
    card = keywords.one_value(frame.header, "PEDESTAL")
    text = "" if card is None else clean_text(card[0])
    if text.lower() in ("", "none", "no", "false"):
        return frame
    try:
        pedestal = abs(keywords.parse_number(card[0]))
    except ValueError as error:
        raise InputError(f"{frame.name}: PEDESTAL = {card[0]!r} {error}: correct it") from None
    return PedestalFrame(frame, pedestal) if pedestal else frame


class PedestalFrame(Frame):
    """
    A raw frame less a constant.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
    pedestal : float
        Of one pixel of the camera [adu].
    """

    def __init__(self, frame, pedestal):
        self.frame, self.n_added = frame, frame.n_added
        self.name, self.shape, self.unit = frame.name, tuple(frame.shape), frame.unit
        self.header = frame.header.copy()
        del self.header["PEDESTAL"]
        self.pedestal = np.float32(pedestal * frame.n_added)

    def read(self, rows, *, variance=True):
        """Return a `~astro_narrowband.Band` of rows without the pedestal."""
        band = self.frame.read(rows, variance=variance)
        return band._replace(data=band.data - self.pedestal)

    def raw_counts(self, rows, data):
        """The counts with the pedestal in them, see `Frame.raw_counts`."""
        return self.frame.raw_counts(rows, data + self.pedestal)


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
