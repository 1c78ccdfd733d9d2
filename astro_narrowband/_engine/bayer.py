"""
Colour mosaics: the pixels of one colour as an image of half the size.

Neighbouring pixels of a one-shot-colour camera see different light; behind a
narrowband filter most of them see nothing. `MosaicFrame` takes the pixels of one
colour out of every cell of 2 by 2, and never interpolates: the noise of a pixel
stays its own. Bias, darks and flats of the camera are taken apart the same way.
"""

import math
from contextlib import suppress

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.frames import Band, Frame, handed
from astro_narrowband._engine.headers import (
    read_bayer,
    read_bayer_shift,
    read_noise,
    read_overscan,
    read_saturation,
    read_trim,
)
from astro_narrowband._engine.headers.spellings import KEYWORDS, parse_number
from astro_narrowband._engine.validate import choice, positive
from astro_narrowband._engine.wcs import move_header
from astro_narrowband.exceptions import InputError

#: What may be made of a mosaic, and the letters of the pixels that are added.
COLOURS = {"red": "R", "green": "G", "blue": "B", "superpixel": "RGB", "green+blue": "GB"}
#: Level [adu] from which a pixel is not believed, where the header does not tell.
_FULL = 65504.0
#: Lengths that double where pixels are taken out, by the start of their keyword.
_LENGTHS = ("XPIXSZ", "YPIXSZ", "PIXSIZE", "PIXSCAL", "SECPIX", "SCALE")


class MosaicFrame(Frame):
    """
    The pixels of one colour of a Bayer mosaic.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`
        Raw, with BAYERPAT in its header (a superpixel needs none); XBAYROFF, YBAYROFF and
        ROWORDER are obeyed.
    colour : {"red", "green", "blue", "superpixel"}
        The two green pixels of a cell, or all four of a superpixel, are added: an
        electron in one of them is an electron of the sum, so the gain stays, and the
        read noise grows by the root of their number.
    saturation : float, optional
        Level of one pixel [adu] from which it is not believed; default is that of
        the header, or of 16 bits. A sum that has such a pixel in it is set to its own
        level of saturation.

    Attributes
    ----------
    pixels : list of (int, int)
        Row and column in a cell of each that is added.
    n_added : int
        Pixels of the camera in one of the image that is left.
    name, shape, unit, header
        As of any frame. RDNOISE, SATURATE, the pixel size and the WCS are those of the
        image that is left; MOSAIC says what was taken, of how many pixels.

    Raises
    ------
    InputError
        If the pattern is missing or not known, or the frame has an overscan to lose.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband._engine.frames import MemoryFrame
    >>> from astro_narrowband._engine.bayer import MosaicFrame
    >>> ccd = CCDData(np.arange(16.0).reshape(4, 4), unit="adu", meta={"BAYERPAT": "RGGB"})
    >>> MosaicFrame(MemoryFrame(ccd), "red").read(slice(0, 2)).data
    array([[ 0.,  2.],
           [ 8., 10.]], dtype=float32)
    """

    def __init__(self, frame, colour, *, saturation=None):
        choice(colour, tuple(COLOURS), "bayer")
        self.frame, self.colour = frame, colour
        self.name, self.unit = frame.name, frame.unit
        self.shape = (frame.shape[0] // 2, frame.shape[1] // 2)
        try:
            pattern = _first_cell(frame, colour)
            if read_overscan(frame.header, frame.shape) or read_trim(frame.header, frame.shape):
                raise InputError(
                    "BIASSEC, TRIMSEC: a colour mosaic with an overscan cannot be taken apart: "
                    "trim it first"
                )
            stated = read_saturation(frame.header)
        except InputError as error:
            raise InputError(f"{frame.name}: {error}") from None
        self.pixels = [divmod(i, 2) for i in range(4) if pattern[i] in COLOURS[colour]]
        self.n_added = n = len(self.pixels)
        full = stated and stated[0] if saturation is None else positive(saturation, "saturation")
        self._full = _FULL if full is None else full
        y, x = np.mean(self.pixels, axis=0)
        self.header = _header(frame.header, colour, n, full, float(x), float(y))

    def read(self, rows, *, variance=True, out=None):
        """Return a `~astro_narrowband._engine.frames.Band` of float32 rows."""
        band = self.frame.read(slice(2 * rows.start, 2 * rows.stop), variance=variance)
        ny, nx = 2 * (rows.stop - rows.start), 2 * self.shape[1]
        parts = [(slice(y, ny, 2), slice(x, nx, 2)) for y, x in self.pixels]
        data, summed, mask = band.data[parts[0]].copy(), None, None
        if band.variance is not None:
            summed = sum(band.variance[corner] for corner in parts)
        if band.mask is not None:
            mask = np.logical_or.reduce([band.mask[corner] for corner in parts])
        if len(parts) > 1:
            full = data >= self._full
            for corner in parts[1:]:
                full |= band.data[corner] >= self._full
                data += band.data[corner]
            data[full] = len(parts) * self._full
        return handed(Band(data, summed, mask), out=out)


def _first_cell(frame, colour):
    """Return the four letters of the cell that starts with the first pixel of the file."""
    pattern = read_bayer(frame.header)
    if colour == "superpixel":
        return "RGGB"  # all are added, whichever is which
    if not pattern:
        raise InputError("BAYERPAT is missing: give it with --set BAYERPAT=RGGB (or another)")
    dx, dy = read_bayer_shift(frame.header, frame.shape)
    return "".join(pattern[2 * ((y + dy) % 2) + (x + dx) % 2] for y in (0, 1) for x in (0, 1))


def _header(raw, colour, n, full, x, y):
    """The header of the image that is left; ``x, y`` is the place of its pixels in a cell."""
    header = fits.Header(raw, copy=True)
    for keyword in (*KEYWORDS["bayer"], "XBAYROFF", "YBAYROFF", "BAYOFFX", "BAYOFFY"):
        header.remove(keyword, ignore_missing=True, remove_all=True)
    header["MOSAIC"] = (f"{colour} {n}", "colour of a mosaic, pixels of a cell added")
    if n > 1:
        try:
            noise = read_noise(raw)
        except InputError:
            noise = None  # it is refused where it is needed
        if noise:
            header[noise[1]] = noise[0] * math.sqrt(n)
        if full is not None:
            header["SATURATE"] = n * full
    for keyword in list(dict.fromkeys(header)):
        if keyword.startswith(_LENGTHS):
            with suppress(Exception):  # a damaged card: astropy raises almost any type
                header[keyword] = 2 * parse_number(header[keyword])
    move_header(header, np.array([[0.5, 0, -x / 2], [0, 0.5, -y / 2], [0, 0, 1]]))
    return header
