"""The bands of `combine`: read of all frames, rejected, reduced, put in place."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.stats import sigma_clip

from astro_narrowband._engine.executors import run_bands
from astro_narrowband._engine.frames import (
    Band,
    FitsFrame,
    MemoryFrame,
    map_bands,
    row_bands,
    usable_cores,
)
from astro_narrowband._engine.heap import keep_memory
from astro_narrowband._engine.stacking.tile import Rejection, kept_values, reduce_tile
from astro_narrowband._engine.validate import as_count, as_variance
from astro_narrowband.exceptions import InputError

#: A row of a tile: large enough that threads rarely wait for each other, small enough for caches.
ROW_BYTES = 1 << 18
#: All rows of a tile, and the least number of pixels in one.
TILE_BYTES = 6 << 20
LEAST_PIXELS = 1 << 13


def _is_plain(frame):
    """Whether it is a file without mask and uncertainty, whose pixels may be read directly."""
    return isinstance(frame, FitsFrame) and frame._mask is None and frame._uncertainty is None


def native_type(frame):
    """The type that holds the pixels of a frame exactly, of 16 bit at least."""
    if isinstance(frame, FitsFrame):
        native = frame.image.native
    elif isinstance(frame, MemoryFrame):
        native = frame.ccd.data.dtype.newbyteorder("=")
    else:
        native = np.dtype(np.float32)
    if native.kind not in "iuf":
        native = np.dtype(np.float32)
    if native.itemsize < 2 or native == np.float16:
        return np.dtype(np.float32 if native.kind == "f" else np.int16)
    return native


@dataclass
class BandReducer:
    """Reads a band of all frames and reduces it; can be sent to another process."""

    frames: list
    native: np.dtype
    method: str
    rejection: Rejection
    weights: Any
    scale: Any
    propagate: bool
    error: bool
    dtype: np.dtype
    deviation: Any = None

    def __call__(self, rows):
        n, nx = len(self.frames), self.frames[0].shape[1]
        pixels = (rows.stop - rows.start) * nx
        tile = np.empty((n, pixels), self.native)
        variance = np.empty((n, pixels), self.dtype) if self.propagate else None
        bad = None
        for i, frame in enumerate(self.frames):
            band = self._read(frame, rows, tile[i].reshape(-1, nx))
            if band.mask is not None:
                if bad is None:
                    bad = np.zeros((n, pixels), bool)
                bad[i] = band.mask.reshape(-1)
            if self.propagate:
                if band.variance is None:
                    raise InputError(f"{frame.name}: has an uncertainty in some rows only")
                variance[i] = band.variance.reshape(-1)
        rejection = self.rejection
        if self.scale is not None:
            tile, bad, variance = self._scaled(tile, bad, variance)
            rejection = replace(rejection, limits=(None, None))
        if callable(rejection.center) or callable(rejection.deviation):
            bad = _clipped_by_functions(tile, bad, rejection)
            rejection = replace(rejection, sigma=None)
        weights = self.weights
        if weights is not None and weights.ndim == 3:
            weights = weights[:, rows].reshape(n, -1)
        reduced = reduce_tile(
            tile,
            bad,
            method=self.method,
            rejection=rejection,
            variance=variance,
            weights=weights,
            error=self.error and self.deviation is None,
            dtype=self.dtype,
            overwrite=self.deviation is None,
        )
        if self.deviation is None:
            return reduced
        return reduced._replace(variance=self._variance(kept_values(tile, bad, rejection), reduced))

    def _variance(self, stack, reduced):
        """As ccdproc has it from a function: over n for a mean or median, times n for a sum."""
        count = reduced.count.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            square = np.asarray(self.deviation(stack, axis=0), np.float64) ** 2 / count
        if self.method == "sum":
            square *= count**2
        return square.astype(self.dtype)

    def _read(self, frame, rows, out):
        """Read rows into ``out``, exactly; return a band for their mask and variance."""
        if _is_plain(frame):
            image = frame.image
            stored = image.read_stored(rows)
            if image.native == out.dtype:
                image.to_native(stored, out=out)
            else:
                np.copyto(out, image.to_native(stored), casting="same_kind")
            return Band(data=out)
        with np.errstate(over="ignore", under="ignore"):  # what counts is read below
            band = frame.read(rows)
        data = band.data
        if out.dtype != np.float32:
            if isinstance(frame, FitsFrame):
                data = frame.image.read(rows)
            elif isinstance(frame, MemoryFrame):
                ccd = frame.ccd
                data = ccd.data[rows]
                if self.propagate and ccd.uncertainty is not None:
                    variance = as_variance(ccd.uncertainty[rows], data.shape, ccd.unit, frame.name)
                    band = band._replace(variance=variance)
        np.copyto(out, data, casting="unsafe")
        return band

    def _scaled(self, tile, bad, variance):
        low, high = self.rejection.limits
        for outside in (
            None if low is None else tile < low,
            None if high is None else tile > high,
        ):
            if outside is not None and outside.any():
                bad = outside if bad is None else bad | outside
        fine = np.float64 if tile.dtype.itemsize > 4 or self.dtype == np.float64 else np.float32
        if tile.dtype.kind != "f" and tile.dtype.itemsize > 2:
            fine = np.float64
        factor = self.scale.astype(fine)[:, None]
        if variance is not None:
            variance *= (self.scale**2).astype(variance.dtype)[:, None]
        return tile * factor, bad, variance


def _clipped_by_functions(tile, bad, rejection):
    """Clip by functions of the user's own, which astropy calls on what is not masked."""
    stack = tile.astype(np.float64)
    if bad is not None:
        stack[bad] = np.nan
    low, high = rejection.sigma or (None, None)
    if low is None and high is None:
        return bad
    clipped = sigma_clip(
        np.ma.masked_invalid(stack),
        sigma_lower=np.inf if low is None else low,
        sigma_upper=np.inf if high is None else high,
        cenfunc=rejection.center,
        stdfunc=rejection.deviation,
        maxiters=rejection.maxiters,
        axis=0,
    )
    return np.ma.getmaskarray(clipped)


@dataclass
class _Planes:
    data: np.ndarray
    sigma: np.ndarray | None
    count: np.ndarray | None
    mask: np.ndarray | None = None


def reduce_bands(reducer, shape, mem_limit, executor, workers, want_count):
    nx = shape[1]
    workers = as_count(workers, "workers") or usable_cores()
    planes = _Planes(
        np.empty(shape, reducer.dtype),
        np.empty(shape, reducer.dtype) if reducer.error else None,
        np.empty(shape, np.int16) if want_count else None,
    )
    empty = np.zeros(shape[0], bool)

    def store(rows, reduced):
        planes.data[rows] = reduced.value.reshape(-1, nx)
        if planes.sigma is not None:
            sigma = planes.sigma[rows].reshape(-1)
            np.sqrt(reduced.variance, out=sigma)
        if planes.count is not None:
            planes.count[rows] = reduced.count.reshape(-1, nx)
        empty[rows] = (reduced.count.reshape(-1, nx) == 0).any(axis=1)

    keep_memory()
    bands = row_bands(shape[0], _band_rows(reducer, nx, mem_limit, workers))
    if executor is None:
        # The threads put their results in place themselves.
        for _ in map_bands(lambda rows: store(rows, reducer(rows)), bands, workers=workers):
            pass
    else:
        for rows, reduced in run_bands(reducer, bands, executor=executor, workers=workers):
            store(rows, reduced)
    rows = np.flatnonzero(empty)
    planes.mask = np.zeros(shape, bool)
    planes.mask[rows] = np.isnan(planes.data[rows])
    return planes


def _band_rows(reducer, nx, mem_limit, workers):
    n, size = len(reducer.frames), reducer.native.itemsize
    pixels = max(LEAST_PIXELS, min(ROW_BYTES // size, TILE_BYTES // (n * size)))
    # What a value takes on its way: as read, as sorted, deviations, and floats if it is weighted.
    value = 3 * size + 2
    if reducer.weights is not None or reducer.propagate:
        value += 4 + 5 * 8
    if reducer.scale is not None:
        value += 8
    most = mem_limit / (max(1, workers) + 2) / (n * value + 64)
    return max(1, int(min(pixels, most) // nx))
