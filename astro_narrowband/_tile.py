"""
Statistics along the stack of a tile: ``n`` frames of a few thousand pixels each.

A tile is an array ``(n, pixels)``: row ``i`` holds the same pixels of frame
``i``. These functions are what `~astro_narrowband.stack.combine` runs on every
tile, and what the other modules use for stacks of their own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from astro_narrowband._validate import choice
from astro_narrowband.exceptions import InputError

__all__ = ["Reduced", "Rejection", "reduce_tile"]

#: Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_STD = 1.482602218505602
#: Variance of a median over that of a mean, for many normal values.
MEDIAN_VARIANCE = np.pi / 2


@dataclass(frozen=True)
class Rejection:
    """
    Which values of a stack are left out.

    The tests are made in this order: ``limits``, ``extrema``, ``percentile``,
    ``sigma``; each sees only what those before it left.

    Attributes
    ----------
    limits : (float or None, float or None)
        Values below the first or above the second are left out.
    extrema : (int, int)
        So many of the lowest and of the highest values are left out.
    percentile : (float, float) or None
        Values further than these fractions of the median below or above it.
    sigma : (float or None, float or None) or None
        Values further than so many ``deviation`` below or above ``center``.
    center : {"median", "mean"}
    deviation : {"mad_std", "std", "winsorized"}
    maxiters : int or None
        How often the ``sigma`` test is repeated on what is left; ``None`` is
        until nothing more is rejected.
    """

    limits: tuple = (None, None)
    extrema: tuple = (0, 0)
    percentile: tuple | None = None
    sigma: tuple | None = None
    center: str = "median"
    deviation: str = "mad_std"
    maxiters: int | None = 1

    def __post_init__(self):
        choice(self.center, ("median", "mean"), "center")
        choice(self.deviation, ("mad_std", "std", "winsorized"), "deviation")
        if min(self.extrema) < 0:
            raise InputError(f"extrema = {self.extrema} must not be negative")
        if self.maxiters is not None and self.maxiters < 1:
            raise InputError(f"maxiters = {self.maxiters} must be 1 or more, or None")


class Reduced(NamedTuple):
    """
    What became of a tile.

    Attributes
    ----------
    value : `~numpy.ndarray` of float, (pixels,)
        NaN where no value was left.
    variance : `~numpy.ndarray` of float, (pixels,), or None
        Variance of ``value``.
    count : `~numpy.ndarray` of int, (pixels,)
        How many values went in.
    """

    value: np.ndarray
    variance: np.ndarray | None
    count: np.ndarray


def _nan(function, x):
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(x)


def reduce_tile(
    tile, bad=None, *, method="average", rejection=None, variance=None, weights=None, error=True
):
    """Reduce a tile along the stack."""
    choice(method, ("average", "median", "sum"), "method")
    rejection = rejection or Rejection()
    x = np.array(tile, float)
    if bad is not None:
        x[bad] = np.nan
    original = x.copy()
    x[~np.isfinite(x)] = np.nan
    low, high = rejection.limits
    if low is not None:
        x[x < low] = np.nan
    if high is not None:
        x[x > high] = np.nan
    if any(rejection.extrema):
        order = np.argsort(x, axis=0, kind="stable")
        rank = np.argsort(order, axis=0, kind="stable")
        n = np.isfinite(x).sum(axis=0)
        nlow, nhigh = rejection.extrema
        x[(rank < nlow) | (rank >= n - nhigh)] = np.nan
    median = lambda a: _nan(lambda b: np.nanmedian(b, axis=0), a)  # noqa: E731
    mean = lambda a: _nan(lambda b: np.nanmean(b, axis=0), a)  # noqa: E731
    std = lambda a: _nan(lambda b: np.nanstd(b, axis=0), a)  # noqa: E731
    if rejection.percentile is not None:
        m = median(x)
        x[(x < m - rejection.percentile[0] * abs(m)) | (x > m + rejection.percentile[1] * abs(m))] = np.nan
    if rejection.sigma is not None:
        done = 0
        while True:
            m = median(x) if rejection.center == "median" else mean(x)
            if rejection.deviation == "std":
                s = std(x)
            elif rejection.deviation == "mad_std":
                s = MAD_TO_STD * median(abs(x - median(x)))
            else:
                s = _winsorized(x, median(x), std)
            out = np.zeros(x.shape, bool)
            if rejection.sigma[0] is not None:
                out |= x < m - rejection.sigma[0] * s
            if rejection.sigma[1] is not None:
                out |= x > m + rejection.sigma[1] * s
            x[out] = np.nan
            done += 1
            if not out.any() or done == rejection.maxiters:
                break
    del original
    good = np.isfinite(x)
    count = good.sum(axis=0)
    w = np.ones(x.shape) if weights is None else np.broadcast_to(
        np.reshape(weights, (len(weights), -1)), x.shape
    )
    w = np.where(good & (w > 0), w, 0.0)
    count = (w > 0).sum(axis=0)
    x0 = np.where(w > 0, x, 0.0)
    with np.errstate(all="ignore"):
        total = w.sum(axis=0)
        average = (w * x0).sum(axis=0) / total
        if method == "median":
            value = median(x)
        elif method == "sum":
            value = (w * x0).sum(axis=0)
        else:
            value = average
        var = None
        if error:
            if variance is not None:
                var = (w**2 * np.where(w > 0, variance, 0)).sum(axis=0) / total**2
            else:
                var = (w * (np.where(w > 0, x, average) - average) ** 2).sum(axis=0)
                var = np.where(count > 1, var / ((count - 1) * total), np.nan)
            if method == "sum":
                var = var * total**2
            elif method == "median":
                var = np.where(count > 2, var * MEDIAN_VARIANCE, var)
        value = np.where(count > 0, value, np.nan)
        if var is not None:
            var = np.where(count > 0, var, np.nan)
    return Reduced(value, var, count)


def _winsorized(x, m, std):
    s = std(x)
    for _ in range(20):
        y = np.clip(x, m - 1.5 * s, m + 1.5 * s)
        new = 1.134 * std(y)
        stop = abs(new - s) <= 0.0005 * s
        s = new
        if stop.all():
            break
    return s
