"""Ratios of lines with asymmetric intervals and limits, and the extinction from Balmer lines."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from scipy.spatial import cKDTree
from scipy.special import ndtr, ndtri

from astro_narrowband._engine.door import door
from astro_narrowband._engine.frames import Threads, usable_cores
from astro_narrowband._engine.wcs import put_wcs
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import (
    CONTINUUM,
    REFERENCES,
    noise_correlation,
    on_grid_of,
    opened,
    pixel_sigma,
    unusable,
)
from astro_narrowband.lines._psf import blurred_to

#: What a pixel of a ratio is.
NOTHING, MEASURED, UPPER, LOWER = range(4)
#: Standard deviations of a limit: 97.7 % one-sided.
Z_LIMIT = 2.0
#: Rows of a band: it stays in the cache.
_ROWS = 64

#: Halpha/Hbeta without dust: case B, 10^4 K, 100 cm^-3 (Storey & Hummer 1995, MNRAS 272, 41;
#: Osterbrock & Ferland 2006, table 4.4).
BALMER = 2.86
#: A(Halpha)/A(V) and A(Hbeta)/A(V) for R_V = 3.1 (Cardelli, Clayton & Mathis 1989, ApJ 345, 245).
A_HALPHA, A_HBETA, R_V = 0.8177, 1.1643, 3.1


@dataclass(frozen=True, eq=False)
class RatioMap:
    """
    A ratio of two lines, pixel by pixel.

    Attributes
    ----------
    ratio : array (ny, nx) of float32
        Where both lines are seen; NaN elsewhere.
    lower, upper : array (ny, nx) of float32
        Where both are seen, the 68.3 % interval; where only the denominator is, ``upper`` is the
        97.7 % upper limit (infinite where chance may have shown the denominator) and ``lower`` is
        NaN; where only the numerator is, ``lower`` is the 97.7 % lower limit (0 where chance may
        have shown it) and ``upper`` is NaN; else both are NaN.
    kind : array (ny, nx) of uint8
        0 nothing is known, 1 measured, 2 upper limit, 3 lower limit.
    common : float
        Relative error that all pixels share, not in the intervals: of the two flux scales. What
        all reference stars share is an error of both lines, and not of their ratio.
    header : `~astropy.io.fits.Header`
        With the WCS of the maps.
    """

    ratio: np.ndarray = field(repr=False)
    lower: np.ndarray = field(repr=False)
    upper: np.ndarray = field(repr=False)
    kind: np.ndarray = field(repr=False)
    common: float
    header: fits.Header = field(repr=False)

    def to_hdul(self):
        """Return an `~astropy.io.fits.HDUList`: PRIMARY (ratio), LOWER, UPPER and KIND."""
        hdul = fits.HDUList([fits.PrimaryHDU(self.ratio, self.header)])
        for name, plane in (("LOWER", self.lower), ("UPPER", self.upper), ("KIND", self.kind)):
            hdul.append(fits.ImageHDU(plane, name=name))
        return hdul


@door
def line_ratio(a, b, *, min_snr=3.0):
    """
    Divide one line map by another, where that means something.

    Parameters
    ----------
    a, b : LineMap, `~astropy.nddata.CCDData` or path-like
        Numerator and denominator, in one unit, on one grid or with a WCS each.
    min_snr : float, optional
        A line is seen where it is at least so many standard deviations of the pixel; 2 at least.

    Returns
    -------
    RatioMap
        Ratios, intervals and limits, on the grid of ``a``.

    Raises
    ------
    InputError
        If the units differ, the grids cannot be brought together, or nothing is left.

    Notes
    -----
    The intervals are those of Fieller (1954, J. R. Stat. Soc. B 16, 175): all R with
    ``(a - R b)^2 <= z^2 (sigma_a^2 - 2 R sigma_ab + R^2 sigma_b^2)``, z = 1, which are exact for
    normal errors.
    Limits have z = 2, one-sided, given that one line was seen and the other was not: one just
    below ``min_snr`` is more often a brighter one than chance alone would have it, and its limit
    is higher by that (up to 2.1 sigma); one just above it is more often a fainter one, or none. A
    line that is seen at less than ``min_snr`` + 1 sigma may be none, and its upper limit is
    infinite, its lower limit 0. Where the true S/N of a line is near ``min_snr``, pixels that make
    it are too high: there intervals hold more often than they say.

    The maps are brought to one width of the stars (PSFWIDTH of their headers) by a Gaussian
    kernel. The noise that they share through one continuum image (`LineMap.shared`), and what
    stars of both scales move both by, is in the intervals as a covariance.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband.lines import line_ratio
    >>> def line(*values):
    ...     error = StdDevUncertainty(np.ones((1, len(values))))
    ...     return CCDData(np.array([values], float), unit="electron/s", uncertainty=error)
    >>> ratio = line_ratio(line(20.0, 1.0, 20.0, 1.0), line(40.0, 40.0, 1.0, 1.0))
    >>> ratio.kind[0].tolist(), ratio.ratio[0].round(3).tolist()
    ([1, 2, 3, 0], [0.5, nan, nan, nan])
    """
    a, b = comparable(a, b, min_snr)
    a, b = blurred_to(a, b)
    bad = unusable(a) | unusable(b)
    if bad.all():
        raise InputError("numerator and denominator have no good pixel in common")
    planes = [np.full(a.data.shape, np.nan, np.float32) for _ in range(3)]
    kind = np.zeros(a.data.shape, np.uint8)
    values = a.data, b.data, pixel_sigma(a), pixel_sigma(b), _covariance(a, b)

    def band(first):
        rows = slice(first, first + _ROWS)
        *lines, covariance = (np.asarray(plane[rows], np.float32) for plane in values)
        correlation = covariance / (lines[2] * lines[3])
        divide(*lines, correlation, bad[rows], min_snr, [p[rows] for p in planes], kind[rows])

    with Threads(usable_cores()) as threads:
        list(threads.map(band, range(0, len(kind), _ROWS)))
    header = fits.Header(a.header, copy=True)
    if a.wcs is not None:
        put_wcs(header, a.wcs)
    for keyword in ("BUNIT", "NOISECOR", "GAINERR", "SCALEERR", "FLUXERR"):
        header.remove(keyword, ignore_missing=True)
    header["MINSNR"] = (min_snr, "a line is seen from this S/N on")
    common = _common_factor(a, b)
    header["RATIOSYS"] = (common, "relative error that all pixels share")
    return RatioMap(*planes, kind, common, header)


def comparable(a, b, min_snr):
    """Numerator and denominator on one grid, or `InputError` where a ratio means nothing."""
    a, b = opened(a, "the numerator"), opened(b, "the denominator")
    if min_snr < Z_LIMIT:
        raise InputError(
            f"min_snr = {min_snr:g}: below {Z_LIMIT:g} a ratio has no bounded interval"
        )
    if a.unit != b.unit:
        raise InputError(
            f"numerator in {a.unit}, denominator in {b.unit}: a ratio of lines needs one unit; "
            "calibrate both, or neither"
        )
    return a, on_grid_of(b, a, "the denominator")


def _covariance(a, b):
    """Covariance of single pixels of two maps through the images that both were made of."""
    names = a.shared.keys() & b.shared.keys()
    total = np.float32(math.sqrt(noise_correlation(a) * noise_correlation(b)))
    total = sum((total * a.shared[name] * b.shared[name] for name in names), np.float32(0))
    same = np.float32(scale_correlation(a, b))
    if same:
        total = total + same * a.common[CONTINUUM] * b.common[CONTINUUM]
    return np.broadcast_to(total, a.data.shape)


def scale_correlation(a, b):
    """
    Correlation of the errors of two maps' scales, from stars that both were scaled by.

    A star whose spectrum is not the mean one moves both scales, each by its part of the mean.
    """
    if a.stars is None or b.stars is None:
        return 0.0
    stars = [table[table["used"]] for table in (a.stars, b.stars)]
    xy = [np.column_stack([table["x_center"], table["y_center"]]) for table in stars]
    apart, nearest = cKDTree(xy[1]).query(xy[0])
    off = [np.log(table["pixel_slope"] / ccd.meta["KCONT"])
           for table, ccd in zip(stars, (a, b), strict=True)]  # fmt: skip
    total = np.sum((off[0] * off[1][nearest])[apart < 1])
    errors = math.prod(ccd.meta["KCONTERR"] / ccd.meta["KCONT"] for ccd in (a, b))
    return float(np.clip(total / math.prod(map(len, off)) / errors, -1, 1))


def _common_factor(a, b):
    """What the factors do to a ratio that two maps are known to: the references do nothing."""
    both = [{n: v for n, v in ccd.common.items() if np.ndim(v) == 0} for ccd in (a, b)]
    references = [factors.pop(REFERENCES, 0.0) for factors in both]
    return math.hypot(references[0] - references[1], *both[0].values(), *both[1].values())


def divide(a, b, sigma_a, sigma_b, correlation, bad, min_snr, planes, kind):
    """Fill the planes ratio, lower, upper, and the kind, of a band of rows."""
    ratio, lower, upper = planes
    seen_a, seen_b = (a >= min_snr * sigma_a) & ~bad, (b >= min_snr * sigma_b) & ~bad
    both = seen_a & seen_b
    kind[both] = MEASURED
    ratio[both] = a[both] / b[both]
    one, other = (a, b, sigma_a, sigma_b, correlation), (b, a, sigma_b, sigma_a, correlation)
    lower[both], upper[both] = fieller(*(plane[both] for plane in one), 1.0)
    only = seen_b & ~seen_a & ~bad
    kind[only] = UPPER
    upper[only] = np.maximum(_limit(*(plane[only] for plane in one), min_snr), 0)
    only = seen_a & ~seen_b & ~bad
    kind[only] = LOWER
    limit = _limit(*(plane[only] for plane in other), min_snr)
    with np.errstate(divide="ignore"):
        lower[only] = 1 / np.maximum(limit, 0)


def _limit(a, b, sigma_a, sigma_b, correlation, min_snr):
    """
    Upper limit of a / b where a is not seen and b is: it holds as often whatever the two are.

    z sigma above x < c: Phi(-z) = Phi(-2) Phi(c - x - z), a normal law that ends at c; and z
    sigma below y > c likewise: infinite where b may have been seen by chance. The higher of the
    two counts. The last standard deviation of x below c has one limit: the law's own has no end
    there.
    """
    z = np.linspace(12, Z_LIMIT + 1e-6, 2000)
    room = z + ndtri(ndtr(-z) / ndtr(-Z_LIMIT))
    below = np.maximum(min_snr - a / sigma_a, 1)
    most = (min_snr - below + np.interp(below, room, z) - Z_LIMIT).astype(sigma_a.dtype) * sigma_a
    above = b / sigma_b
    least = (above - np.interp(above - min_snr, room, z) + Z_LIMIT).astype(sigma_b.dtype) * sigma_b
    sure = least > Z_LIMIT * sigma_b
    sigmas = sigma_a, sigma_b, correlation, Z_LIMIT
    limits = [fieller(most, b, *sigmas)[1], fieller(a, np.where(sure, least, b), *sigmas)[1]]
    return np.where(sure, np.maximum(*limits), np.inf)


def fieller(a, b, sigma_a, sigma_b, correlation, z):
    """
    Return the two ends of Fieller's interval for a / b; b must be above z sigma_b.

    In units of the errors, which keeps squares of small numbers apart from zero: the roots R of
    (y^2 - z^2) R^2 - 2 (x y - z^2 c) R + (x^2 - z^2) = 0, times sigma_a / sigma_b.
    """
    x, y, z2 = a / sigma_a, b / sigma_b, z * z
    inner = x * x + y * y - 2 * correlation * x * y - z2 * (1 - correlation**2)
    root = z * np.sqrt(np.maximum(inner, 0))
    middle = x * y - z2 * correlation
    scale = sigma_a / sigma_b / (y * y - z2)
    return (middle - root) * scale, (middle + root) * scale


class Extinction(NamedTuple):
    """E(B-V) and A(Halpha) [mag] with their 68.3 % intervals; NaN where it is not measured."""

    ebv: np.ndarray
    ebv_lower: np.ndarray
    ebv_upper: np.ndarray
    a_halpha: np.ndarray
    a_halpha_lower: np.ndarray
    a_halpha_upper: np.ndarray


@door
def extinction(balmer, *, intrinsic=BALMER):
    """
    Extinction from Halpha/Hbeta.

    Parameters
    ----------
    balmer : RatioMap
        Halpha over Hbeta, of calibrated fluxes.
    intrinsic : float, optional
        The ratio without dust.

    Returns
    -------
    Extinction
        Negative where the ratio is below the intrinsic one: clipping it would bias the mean.

    Notes
    -----
    ``A(Halpha) = 2.5 q log10(ratio / intrinsic)`` with q = A(Halpha) / (A(Hbeta) - A(Halpha)):
    dust in front, R_V = 3.1, after Cardelli, Clayton & Mathis (1989).

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband.lines import extinction, line_ratio
    >>> def line(value):
    ...     return CCDData([[value]], unit="electron/s", uncertainty=StdDevUncertainty([[1.0]]))
    >>> dust = extinction(line_ratio(line(400.0), line(100.0)))
    >>> print(f"{dust.ebv[0, 0]:.3f}")
    0.339
    """
    a_halpha = []
    for plane in (balmer.ratio, balmer.lower, balmer.upper):
        plane = np.where(balmer.kind == MEASURED, plane, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            a_halpha.append(
                2.5 * A_HALPHA / (A_HBETA - A_HALPHA) * np.log10(plane / np.float32(intrinsic))
            )
    return Extinction(*(a / np.float32(A_HALPHA * R_V) for a in a_halpha), *a_halpha)
