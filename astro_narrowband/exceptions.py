"""
One base for the errors of this package, one for its warnings.

A message is one line: what (file, or argument), which keyword and value, what
was done about it, and what to do.
"""

from astropy.utils.exceptions import AstropyUserWarning

__all__ = [
    "AlignmentError",
    "CalibrationError",
    "InputError",
    "InputTypeError",
    "MissingFileError",
    "NarrowbandError",
    "NarrowbandWarning",
    "ProductError",
    "SharedNoiseWarning",
]


class NarrowbandError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(NarrowbandError, ValueError):
    """A file, header value, unit, shape or argument that cannot be used."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that is not there."""


class InputTypeError(InputError, TypeError):
    """An argument of a type that cannot be used."""


class CalibrationError(NarrowbandError):
    """A calibration that would give a wrong answer (applied twice, out of range, ...)."""


class AlignmentError(NarrowbandError):
    """No alignment that can be trusted was found."""


class ProductError(NarrowbandError, OSError):
    """A product could not be written, or what is on disk is not what was written."""


class NarrowbandWarning(AstropyUserWarning):
    """Base of every warning of this package."""


class SharedNoiseWarning(NarrowbandWarning):
    """Frames do not say what noise they share, so that a coadd's error may be too small."""
