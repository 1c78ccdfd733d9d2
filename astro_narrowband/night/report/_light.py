"""
One light before and after: as it was read, calibrated, and beside the coadd.

Private to `astro_narrowband.night.report`.
"""

import numpy as np

from astro_narrowband.night import figures
from astro_narrowband.night.report._group import open_product

#: Side of the square that is shown, one pixel of it for one of the frame.
SIDE = 240


def draw_light(product, frame, matrix, filter_name):
    """
    Return PNG of one square of the sky: in a raw light, calibrated, and in the coadd.

    Parameters
    ----------
    product : path
        Of the coadd.
    frame : `~astro_narrowband.calibration.CalibratedFrame`
    matrix : array-like, (3, 3)
        From pixels of the frame to those of the coadd; turned by a half turn where it does that,
        moved by whole pixels. A field that is rotated otherwise is not turned.
    filter_name : str
        Gives the colour.

    Returns
    -------
    dict
        ``name``, ``raw``, ``calibrated``, ``coadd``; ``side`` [pix].
    """
    matrix = np.asarray(matrix, float)
    with open_product(product) as hdul:
        height, width = hdul[0].data.shape
        side = min(SIDE, height, width, *frame.shape)
        corner = np.array([(width - side) // 2, (height - side) // 2])
        cut = np.s_[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
        coadd = np.array(hdul[0].data[cut], np.float32)
        coadd[hdul["MASK"].data[cut] != 0] = np.nan
    middle = np.linalg.solve(matrix, [*(corner + (side - 1) / 2), 1.0])[:2]
    x, y = (
        int(np.clip(round(m - (side - 1) / 2), 0, n - side))
        for m, n in zip(middle, frame.shape[::-1], strict=True)
    )
    rows, turn = slice(y, y + side), -1 if matrix[0, 0] < 0 else 1
    pieces = []
    for source in (frame.frame, frame):
        band = source.read(rows, variance=False)
        piece = np.array(band.data[:, x : x + side], np.float32)
        if band.mask is not None and source is frame:
            piece[band.mask[:, x : x + side]] = np.nan
        pieces.append(piece[::turn, ::turn])
    raw, calibrated = pieces
    stretch = figures.Stretch.of(calibrated)
    colours = figures.palette(filter_name)
    return {
        "name": frame.name,
        "side": side,
        "raw": figures.palette_png(figures.Stretch.linear(raw)(raw), figures.palette()),
        "calibrated": figures.palette_png(stretch(calibrated), colours),
        "coadd": figures.palette_png(stretch(coadd), colours),
    }
