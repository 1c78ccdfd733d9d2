"""What the C library does with memory that is free: bands are fast where it keeps it."""

import contextlib
import ctypes

import numpy as np

__all__ = ["keep_memory", "release_memory"]

#: Just below the largest threshold of glibc.
KEEP_BYTES = 31 << 20


def keep_memory():
    """
    Let malloc keep what bands work in.

    What is freed goes back to the system above a threshold that malloc learns from the
    largest block freed so far: here one that is never touched.
    """
    np.empty(KEEP_BYTES, np.uint8)


def release_memory():
    """
    Give back to the system what is free, when a step of a night ends.

    Each thread has a heap of its own, which the threads of the next step do not use. Where
    the C library is not that of GNU, nothing is done.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
