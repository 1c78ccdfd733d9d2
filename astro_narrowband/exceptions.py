"""
One base for the errors of this package, one for its warnings.

A message is one line: what (file, or argument), which keyword and value, what
was done about it, and what to do.

Warnings of this package go through `warn`: a run has its own ears, whatever other threads do
with the filters of `warnings`, which all threads share.
"""

import inspect
import warnings
from contextlib import contextmanager
from contextvars import ContextVar

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
    "listening",
    "warn",
]

_LISTENER = ContextVar("listener", default=None)


class NarrowbandError(Exception):
    """Base of every error that this package raises on purpose; its text is one line."""

    def __init__(self, *args):
        super().__init__(*(" ".join(a.split()) if isinstance(a, str) else a for a in args))


class InputError(NarrowbandError, ValueError):
    """A file, header value, unit, shape or argument that cannot be used."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that is not there."""


class InputTypeError(InputError, TypeError):
    """An argument of a type that cannot be used."""


class CalibrationError(NarrowbandError, ValueError):
    """A calibration that would give a wrong answer (applied twice, out of range, ...)."""


class AlignmentError(NarrowbandError, ValueError):
    """No alignment that can be trusted was found."""


class ProductError(NarrowbandError, OSError, ValueError):
    """A product could not be written, or what is on disk is not what was written."""


class NarrowbandWarning(AstropyUserWarning):
    """Base of every warning of this package."""


class SharedNoiseWarning(NarrowbandWarning):
    """Frames do not say what noise they share, so that a coadd's error may be too small."""


def warn(text, category=NarrowbandWarning, *, level="warning", stacklevel=1):
    """
    Tell who listens in this context, or else warn as `warnings.warn` does.

    Parameters
    ----------
    text : str
        One line.
    category : type, optional
        A `NarrowbandWarning`.
    level : {"warning", "error"}, optional
        For those who listen.
    stacklevel : int, optional
        As of `warnings.warn`.
    """
    listener = _LISTENER.get()
    if listener is None:
        # A function behind a door is called by it, and the user by that.
        stack = [frame.function for frame in inspect.stack(0)[1 : stacklevel + 1]]
        warnings.warn(text, category, stacklevel=stacklevel + 1 + stack.count("through_door"))
    else:
        listener(text, level)


@contextmanager
def listening(listener):
    """
    Let ``listener(text, level)`` hear what is said with `warn`, in this context.

    Another thread hears it where its work was submitted with this context, as by `Threads`.
    Yields who listened before, or ``None``.
    """
    before = _LISTENER.get()
    token = _LISTENER.set(listener)
    try:
        yield before
    finally:
        _LISTENER.reset(token)
