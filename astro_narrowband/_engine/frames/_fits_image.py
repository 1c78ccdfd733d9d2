"""The pixels of one image in a FITS file: where they lie, how they are coded."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from astro_narrowband._engine.files import FileError, Identity, open_regular, unreadable
from astro_narrowband._engine.frames._packed import plain_copy
from astro_narrowband._engine.frames._tiles import TileError, tiled_rows


class PlainFile(NamedTuple):
    """A file that is not compressed."""

    path: Path
    identity: Identity

    def fill(self, view, position, rows):  # noqa: ARG002
        """Fill a view with the bytes at a position; return how many there are."""
        try:
            file, identity = open_regular(self.path, self.identity)
            try:
                done = _fill(file, view, position)
                # Written to while it was read: the bytes may be of before or after.
                identity.check(self.path, os.fstat(file))
            finally:
                os.close(file)
        except OSError as error:
            raise unreadable(self.path, error) from None
        return done


class PackedFile(NamedTuple):
    """A file in gzip, bzip2 or xz: its pixels are in a copy, which is made where there is none."""

    path: Path
    identity: Identity
    expand: Any

    def fill(self, view, position, rows):  # noqa: ARG002
        """As of a `PlainFile`."""
        return _fill(self.copy().descriptor, view, position)

    def copy(self):
        """Return the copy, which stays while it is held."""
        return plain_copy(self.path, self.identity, self.expand)


class TiledFile(NamedTuple):
    """A file with a tile-compressed image: only the tiles that are needed are decompressed."""

    path: Path
    identity: Identity
    index: int
    pixels: int
    #: The file on disk that has the tiles, if it is a copy of the packed one at ``path``.
    copy: Any = None

    def fill(self, view, position, rows):  # noqa: ARG002
        """As of a `PlainFile`."""
        source = self.copy.path if self.copy else self.path
        try:
            content = tiled_rows(source, self.identity, self.index, rows, pixels=self.pixels)
        except TileError as error:
            self.identity.check_path(self.path)
            raise FileError(self.path, f"is damaged ({error}): copy it again") from None
        if self.copy is None:
            self.identity.check_path(self.path)
        done = min(len(content), len(view))
        view[:done] = content[:done]
        return done


def _fill(file, view, position):
    done = 0
    while done < len(view) and (n := os.preadv(file, [view[done:]], position + done)):
        done += n
    return done


@dataclass(frozen=True)
class FitsImage:
    """
    Where the pixels of one image lie in a FITS file, and how they are coded.

    Attributes
    ----------
    source : `PlainFile`, `PackedFile` or `TiledFile`
    offset : int
        Byte at which the first pixel starts, in the file or its copy.
    stored : `~numpy.dtype`
        The big-endian type on disk.
    shape : tuple of int
    scale, zero : float
        BSCALE and BZERO.
    blank : int or None
        BLANK: the integer on disk that stands for no value.
    """

    source: PlainFile | PackedFile | TiledFile = field(repr=False, compare=False)
    offset: int
    stored: np.dtype
    shape: tuple[int, int]
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    @classmethod
    def of_file(cls, path, offset, stored, shape):
        """Return an image in a plain file as it is now, by where it lies."""
        return cls(
            PlainFile(Path(path).absolute(), Identity.of(os.stat(path))), offset, stored, shape
        )

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
        done = self.source.fill(view, self.offset + rows.start * row_bytes, rows)
        if done < len(view):
            raise FileError(
                self.source.path,
                f"ends {len(view) - done} bytes before row {rows.stop}: copy it again",
            )
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
