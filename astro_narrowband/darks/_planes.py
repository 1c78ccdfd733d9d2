"""Names of the planes of a dark model, its flags, and what they are set from."""

import numpy as np

from astro_narrowband._engine.door import door, whole_numbers

__all__ = ["FAR", "FLAGS", "NOISY", "PLANES", "decode_flags", "empty_planes"]

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
