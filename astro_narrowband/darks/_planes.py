"""Names of the planes of a dark model, its flags, and what they are set from."""

import hashlib

import numpy as np

from astro_narrowband._engine.door import door, whole_numbers
from astro_narrowband._engine.frames import row_bands

#: Bits of the flag plane.
FLAGS = {"NONLINEAR": 1, "SATURATED": 2, "UNCERTAIN": 4, "NEGATIVE": 8}

#: Names of the planes, in the order in which they are written.
PLANES = ("offset", "rate", "var_offset", "var_rate", "cov", "flags")

#: A pixel this many sigma above its neighbourhood is believed itself.
FAR = 4.0
#: Scatter between frames, over what is expected, from which a pixel is not to be trusted.
NOISY = 3.0


def empty_planes(shape):
    """Return planes of zeros."""
    planes = {name: np.zeros(shape, np.float32) for name in PLANES[:-1]}
    return planes | {PLANES[-1]: np.zeros(shape, np.uint8)}


@door(value=whole_numbers)
def decode_flags(value):
    """
    Return the names of the flags in a value of the flag plane.

    Examples
    --------
    >>> from astro_narrowband.darks import decode_flags
    >>> decode_flags(3)
    ('NONLINEAR', 'SATURATED')
    """
    return tuple(name for name, bit in FLAGS.items() if np.any(np.bitwise_and(value, bit)))


def bad_pixels(flags, shape, n_rows):
    """Return the flat indices of pixels flagged SATURATED or UNCERTAIN, of planes read by rows."""
    bad = np.uint8(FLAGS["SATURATED"] | FLAGS["UNCERTAIN"])
    return np.concatenate(
        [
            np.flatnonzero((flags[rows] & bad) != 0) + rows.start * shape[1]
            for rows in row_bands(shape[0], n_rows)
        ]
    )


def token_of(planes, shape, exposures):
    """Return a text that is another one for another dark model, from a sample of its rows."""
    digest = hashlib.blake2b(repr((shape, exposures)).encode(), digest_size=12)
    for y in range(0, shape[0], max(1, shape[0] // 64)):
        for name in ("offset", "rate"):
            digest.update(np.ascontiguousarray(planes[name][slice(y, y + 1)]))
    return digest.hexdigest()
