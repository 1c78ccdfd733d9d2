"""What programs did to all pixels alike: a number added (PEDESTAL), counts brought to 0 to 1."""

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import Frame
from astro_narrowband._engine.text import clean_text
from astro_narrowband.exceptions import InputError

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
