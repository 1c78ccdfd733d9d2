"""A number that a program added to all pixels so that none is below zero (PEDESTAL)."""

import numpy as np

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import Frame
from astro_narrowband.exceptions import InputError

__all__ = ["PedestalFrame", "without_pedestal"]


def without_pedestal(frame):
    """
    Return ``frame`` without the PEDESTAL that its header names; as it is, if there is none.

    Both conventions say that its size was added to the pixels: SBIG's (MaxIm DL) has what is to
    be added to get back, a number below zero; PixInsight's what was added, one above zero.
    Raises `InputError` where it is no number.
    """
    found = keywords.one_value(frame.header, "PEDESTAL")
    text = "" if found is None else keywords.clean_text(found[0])
    if text.lower() in ("", "none", "no", "false"):
        return frame
    try:
        pedestal = abs(keywords.parse_number(found[0]))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{frame.name}: PEDESTAL = {found[0]!r} {error}: correct it") from None
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
