"""Weighted straight lines through a few points of every pixel, and limits of chi-squared."""

import numpy as np

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


def same_rate(y, v, t):
    """Rate and its variance, of planes as `same_line` takes them."""
    w = 1 / v
    lever = t - (w * t).sum(axis=0) / w.sum(axis=0)
    wl = w * lever
    var_rate = 1 / (wl * lever).sum(axis=0)
    along = wl * var_rate
    rate = y[0] * along[1]
    work = np.empty_like(rate)
    for plane, a in zip(y[1:], along[2:], strict=True):
        rate += np.multiply(plane, a, out=work)
    return rate, var_rate


def same_line(y, v, t, *, out):
    """
    As `line`, where the variances ``v``, (n, 1) or (n, nx), are alike and the first point is zero.

    ``y`` are the planes of the other points. The line goes through the first two, and
    each point more moves it by its part of what it lies off: the same fit, in few
    passes over the pixels. Puts rate and offset into the two arrays ``out``; returns
    the variance of the rate, that of the offset, their covariance, and chi-squared.
    """
    rate, offset = out
    v, t = np.asarray(v, float), np.ravel(t).astype(float)
    span = t[1] - t[0]
    np.multiply(y[0], np.float32(1 / span), out=rate)
    np.multiply(rate, np.float32(-t[0]), out=offset)
    var_rate = (v[0] + v[1]) / span**2
    var_offset = (t[1] ** 2 * v[0] + t[0] ** 2 * v[1]) / span**2
    cov = -(t[1] * v[0] + t[0] * v[1]) / span**2
    chi2, off, work = np.zeros_like(rate), np.empty_like(rate), np.empty_like(rate)
    for plane, variance, time in zip(y[1:], v[2:], t[2:], strict=True):
        np.multiply(rate, np.float32(time), out=off)
        off += offset
        np.subtract(plane, off, out=off)
        of_rate, of_offset = cov + time * var_rate, var_offset + time * cov
        total = variance + of_offset + time * of_rate
        for sums, gain in ((rate, of_rate / total), (offset, of_offset / total)):
            sums += np.multiply(off, gain.astype(np.float32), out=work)
        off *= off
        chi2 += np.multiply(off, (1 / total).astype(np.float32), out=off)
        var_rate = var_rate - of_rate * of_rate / total
        var_offset = var_offset - of_offset * of_offset / total
        cov = cov - of_rate * of_offset / total
    return *(x.astype(np.float32) for x in (var_rate, var_offset, cov)), chi2


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
