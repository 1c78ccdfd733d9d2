"""The pixels of one image in an uncompressed FITS file: where they lie, how they are coded."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from astro_narrowband.exceptions import InputError

__all__ = ["FitsImage"]


@dataclass(frozen=True)
class FitsImage:
    """
    Where the pixels of one image lie in an uncompressed FITS file, and how they are coded.

    Attributes
    ----------
    path : `~pathlib.Path`
    offset : int
        Byte at which the first pixel starts.
    stored : `~numpy.dtype`
        The big-endian type on disk.
    shape : tuple of int
    scale, zero : float
        BSCALE and BZERO.
    blank : int or None
        BLANK: the integer on disk that stands for no value.
    keep : any
        What must live as long as this, such as the temporary file at ``path``.
    """

    path: Path
    offset: int
    stored: np.dtype
    shape: tuple[int, int]
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None
    keep: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def native(self):
        """The type that holds every value exactly: uint16 stays uint16."""
        kind, size = self.stored.kind, self.stored.itemsize
        if kind == "f" or (self.scale == 1.0 and self.zero == 0.0 and self.blank is None):
            return self.stored.newbyteorder("=") if self._plain else np.dtype(np.float32)
        exact = self.blank is None and self.scale == 1.0
        if exact and kind == "i" and self.zero == 2.0 ** (8 * size - 1):
            return np.dtype(f"u{size}")
        if exact and kind == "u" and self.zero == -128.0:
            return np.dtype(np.int8)
        return np.dtype(np.float32)

    @property
    def _plain(self):
        return self.scale == 1.0 and self.zero == 0.0

    def read_stored(self, rows):
        """Return rows as they lie on disk: big-endian, not scaled."""
        n_rows = rows.stop - rows.start
        row_bytes = self.shape[1] * self.stored.itemsize
        out = np.empty((n_rows, self.shape[1]), self.stored)
        view = memoryview(out).cast("B") if out.size else memoryview(b"")
        position = self.offset + rows.start * row_bytes
        try:
            # Not `open`, which takes longer than a few rows do.
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(view):
                    n = os.preadv(file, [view[done:]], position + done)
                    if n == 0:
                        raise InputError(
                            f"{self.path}: the file ends {len(view) - done} bytes before row "
                            f"{rows.stop}; it was cut while it was read: copy it again"
                        )
                    done += n
            finally:
                os.close(file)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read any more ({error.strerror}): "
                "it must stay where it is until the run ends"
            ) from None
        return out

    def to_native(self, stored, out=None):
        """Convert rows as they lie on disk into ``out`` (native byte order, scaled)."""
        native = self.native
        if out is None:
            out = np.empty(stored.shape, native)
        if native.kind == "u" and self.stored.kind == "i":
            # BZERO = 2**(n-1) flips the sign bit, whatever the width.
            signed = out.view(self.stored.newbyteorder("="))
            np.copyto(signed, stored)
            np.bitwise_xor(out, native.type(1 << (8 * native.itemsize - 1)), out=out)
        elif self._plain and self.blank is None:
            np.copyto(out, stored, casting="same_kind")
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = stored * np.float64(self.scale) + np.float64(self.zero)
                if self.blank is not None and self.stored.kind != "f":
                    scaled[stored == self.blank] = np.nan
                np.copyto(out, scaled, casting="unsafe")
        return out

    def __getitem__(self, rows):
        """As `read`, for any slice of rows, so that an image on disk is used as an array is."""
        start, stop, _ = rows.indices(self.shape[0])
        return self.read(slice(start, stop))

    def read(self, rows):
        """Return rows in native byte order, in the type that holds them exactly."""
        return self.to_native(self.read_stored(rows))
