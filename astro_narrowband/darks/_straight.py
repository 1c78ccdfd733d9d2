"""Weighted straight lines through a few points of every pixel, and limits of chi-squared."""

import numpy as np

__all__ = ["limit", "line", "same_line"]

#: Probability of a chi-squared by chance below which a pixel is flagged: 5 sigma.
CHANCE = 5.7e-7


def line(y, v, ok, t):
    """
    Weighted straight lines through points along the first axis.

    Closed form about the weighted mean time, which keeps float32 exact enough.
    Returns rate, offset, their variances, covariance, chi-squared and the number
    of points used.
    """
    w = np.where(ok, 1 / v, np.float32(0))
    total = w.sum(axis=0)
    used = ok.sum(axis=0, dtype=np.uint8)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (w * t).sum(axis=0) / total
        lever = t - centre
        wl = w * lever
        var_rate = 1 / (wl * lever).sum(axis=0)
        rate = (wl * y).sum(axis=0) * var_rate
        level = (w * y).sum(axis=0) / total
        var_offset = 1 / total + centre * centre * var_rate
        rest = y - level - rate * lever
        chi2 = (w * rest * rest).sum(axis=0)
        return rate, level - rate * centre, var_rate, var_offset, -centre * var_rate, chi2, used


def _same(v, t):
    """Weights, their sum, mean time, lever arms, and weights of a rate with its variance."""
    w = 1 / v
    total = w.sum(axis=0)
    centre = (w * t).sum(axis=0) / total
    lever = t - centre
    wl = w * lever
    var_rate = 1 / (wl * lever).sum(axis=0)
    return w, total, centre, lever, wl * var_rate, var_rate


def same_rate(y, v, t):
    """Rate and its variance, as of `same_line`."""
    *_, along, var_rate = _same(v, t)
    rate = y[0] * along[0]
    work = np.empty_like(rate)
    for plane, a in zip(y[1:], along[1:], strict=True):
        rate += np.multiply(plane, a, out=work)
    return rate, var_rate


def same_line(y, v, t, *, out):
    """
    As `line`, of planes ``y`` in which the variances ``v``, (n, 1) or (n, nx), are alike.

    Puts rate, offset and chi-squared into the three arrays ``out``; returns the variance of
    the rate, that of the offset, and their covariance.
    """
    w, total, centre, lever, along, var_rate = _same(v, t)
    rate, level, chi2 = out
    work = np.empty_like(rate)
    for k, (plane, a, b) in enumerate(zip(y, along, w / total, strict=True)):
        if k:
            rate += np.multiply(plane, a, out=work)
            level += np.multiply(plane, b, out=work)
        else:
            np.multiply(plane, a, out=rate)
            np.multiply(plane, b, out=level)
    for k, (plane, distance, weight) in enumerate(zip(y, lever, w, strict=True)):
        np.multiply(rate, distance, out=work)
        work += level
        np.subtract(plane, work, out=work)
        np.multiply(work, work, out=work)
        if k:
            chi2 += np.multiply(work, weight, out=work)
        else:
            np.multiply(work, weight, out=chi2)
    level -= np.multiply(rate, centre, out=work)
    return var_rate, 1 / total + centre * centre * var_rate, -centre * var_rate


_LIMITS = {}


def limit(dof):
    """Chi-squared that is exceeded with probability `CHANCE`; infinite without freedom."""
    top = int(dof.max(initial=0))
    table = _LIMITS.get(top)
    if table is None:
        # Not scipy.stats, which takes a second to import.
        from scipy.special import chdtri

        table = np.full(top + 1, np.inf, np.float32)
        table[1:] = chdtri(np.arange(1, top + 1), CHANCE)
        _LIMITS[top] = table
    return table[dof.astype(np.intp)]
