"""The stars of two images brought to one shape: the broader wins."""

import math

import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.ndimage import shift as spline_shift
from scipy.optimize import curve_fit

from astro_narrowband._engine.frames import Threads, usable_cores
from astro_narrowband._engine.lanczos import noise_lags
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import (
    LineMap,
    add_common,
    noise_correlation,
    random_variance,
    unusable,
)

#: Shapes that differ by less than this part of the width are left alone.
SAME_WIDTH = 0.01
#: Half-width of the stamps of stars in units of the width.
REACH = 4.0
#: A pixel is masked where bad ones have more than this part of the kernel.
MAX_BAD = 0.1
#: A pixel is masked where a hole beside it may have more of its light than so many standard errors.
MAX_LOST = 1.0
#: Stars that a shape is made of, at most.
MAX_STARS = 60
#: Regularisation of the kernel, as a part of the power of the source's transfer function.
REGULARIZATION = 1e-5


def star_shape(data, bad, stars, half):
    """
    Mean shape of stars.

    Parameters
    ----------
    data : array (ny, nx)
    bad : array of bool (ny, nx)
    stars : array (n, 2)
        x, y [pix], brightest first.
    half : int
        Half-width of the stamp.

    Returns
    -------
    array (2 half + 1, 2 half + 1)
        Of sum 1, centred: the median of the stars, moved by splines, each less the median of its
        rim and over its own flux.

    Raises
    ------
    InputError
        If fewer than three stars are usable.
    """
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(x, y)
    rim, core = radius > 0.85 * half, radius < 0.5 * half
    stamps = []
    for x0, y0 in stars[:MAX_STARS]:
        i, j = round(float(y0)), round(float(x0))
        rows, columns = slice(i - half - 2, i + half + 3), slice(j - half - 2, j + half + 3)
        if min(rows.start, columns.start) < 0 or bad[rows, columns].any():
            continue
        stamp = np.array(data[rows, columns], float)
        if stamp.shape != (2 * half + 5,) * 2:
            continue
        stamp = spline_shift(stamp, (i - y0, j - x0), order=3, mode="nearest")[2:-2, 2:-2]
        stamp -= np.median(stamp[rim])
        if stamp[core].sum() > 0:
            stamps.append(stamp / stamp[core].sum())
    if len(stamps) < 3:
        raise InputError(
            f"only {len(stamps)} of {len(stars)} stars are whole and apart: the widths "
            "of the stars cannot be matched; give k and match=False, or more stars"
        )
    return _with_wings(np.median(stamps, axis=0), radius, half)


def moffat_of(shape):
    """Width and exponent of the Moffat profile that fits a star's shape, and its level."""

    def moffat(r, peak, width, beta, level):
        return peak * (1 + (r / width) ** 2) ** -beta + level

    half = len(shape) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(x, y)
    start = (shape.max(), half / REACH, 3.0, 0.0)
    bounds = ([0, 0.3, 1.1, -np.inf], [np.inf, half, 30.0, np.inf])
    (peak, width, beta, level), _ = curve_fit(
        moffat, radius.ravel(), shape.ravel(), start, bounds=bounds
    )
    return moffat(radius, peak, width, beta, 0.0), float(width), float(beta), float(level)


def _with_wings(shape, radius, half):
    """The shape with the wings of the Moffat profile that fits it, where noise is all there is."""
    wings, _, _, level = moffat_of(shape)
    # The rim that a star was measured against has light of its own: that is the level.
    inner = np.clip((0.6 * half - radius) / (0.1 * half) + 0.5, 0, 1)
    shape = inner * (shape - level) + (1 - inner) * wings
    return shape / shape.sum()


def width_of(shape):
    """Width of a star's shape: that of the Gaussian with the same sum of squares [pix]."""
    return math.sqrt(4 * math.log(2) / (2 * math.pi * float(np.sum(shape**2) / shape.sum() ** 2)))


def match_shapes(a, b, stars, *, fwhm):
    """
    Convolve the sharper one of two images on one grid with the kernel that makes it the broader.

    Parameters
    ----------
    a, b : `~astropy.nddata.CCDData`
    stars : array (n, 2)
        Isolated, unsaturated stars of both, brightest first: x, y [pix].
    fwhm : float
        Of the broader one [pix].

    Returns
    -------
    a, b : `~astropy.nddata.CCDData`
        One of them as it was.
    widths : (float, float)
        Of the stars before [pix].

    Notes
    -----
    The kernel is `photutils.psf_matching.make_wiener_kernel` of the two mean shapes, made of the
    same stars moved by the same splines, so that what the pixels and the splines do to a star
    cancels. The variance plane is blurred by a Gaussian as compact as the kernel, so that its
    sum over many pixels remains right; what single pixels lose goes into NOISECOR. Shapes that
    change over the field are matched in the mean.
    """
    half = max(6, math.ceil(REACH * fwhm))
    bad_a, bad_b = unusable(a), unusable(b)
    shapes = [star_shape(ccd.data, bad, stars, half) for ccd, bad in ((a, bad_a), (b, bad_b))]
    widths = tuple(width_of(shape) for shape in shapes)
    if abs(widths[0] - widths[1]) < SAME_WIDTH * max(widths):
        return a, b, widths
    if widths[0] < widths[1]:
        return _convolved(a, bad_a, _kernel(*shapes)), b, widths
    return a, _convolved(b, bad_b, _kernel(*shapes[::-1])), widths


def _kernel(source, target):
    from photutils.psf_matching import make_wiener_kernel

    kernel = make_wiener_kernel(
        source_psf=source, target_psf=target, regularization=REGULARIZATION, penalty="laplacian"
    )
    return kernel / kernel.sum()


def _fourier(plane, kernel, mode="full"):
    from scipy.signal import oaconvolve  # half of the time that all imports take

    return oaconvolve(plane, kernel, mode=mode)


def _convolved(ccd, bad, kernel):
    """The image with its variance and mask after a convolution with a kernel of sum 1."""
    # Outside the image there is nothing: its rim is cut like a hole.
    data, variance = np.float32(ccd.data), random_variance(ccd)
    level = np.float32(np.median(data[::7, ::7][~bad[::7, ::7]])) if not bad.all() else 0
    planes = {"data": data - level, "variance": variance}
    planes |= {name: np.square(plane) for name, plane in ccd.shared.items()}
    planes |= {f"common {k}": v for k, v in ccd.common.items() if np.ndim(v)}
    for name, plane in planes.items():
        planes[name] = np.array(plane, np.float32)
        planes[name][bad] = 0
    kernel32 = np.float32(kernel)
    share = np.outer(*(_inside(kernel32.sum(axis=1 - k), n) for k, n in enumerate(bad.shape)))
    share -= _spread(bad.astype(np.float32), kernel32)
    mask = (share < 1 - MAX_BAD) | bad
    share[mask] = 1
    # Of variances only sums count: a Gaussian with the sum of squares of the kernel keeps them.
    sigma = 1 / math.sqrt(4 * math.pi * float(np.sum(kernel**2)))

    def blurred(name):
        if name == "data" or name.startswith("common "):
            plane = _fourier(planes[name], kernel32, mode="same")
            plane /= share
            return plane
        plane = gaussian_filter(planes[name], sigma, mode="constant", truncate=3)
        plane /= share
        return np.sqrt(np.maximum(plane, 0, out=plane), out=plane)

    with Threads(usable_cores()) as threads:
        planes = dict(zip(planes, threads.map(blurred, planes), strict=True))
    sigma = planes.pop("variance")
    mask |= _spread(_contrast(data, bad), np.abs(kernel32)) > MAX_LOST * sigma
    data = planes.pop("data")
    data += level
    data[mask] = np.nan
    header = fits.Header(ccd.header, copy=True)
    header["NOISECOR"] = (
        round(_correlation(ccd, kernel), 6),
        "pixel variance over the variance plane",
    )
    result = LineMap(
        data, unit=ccd.unit, mask=mask, header=header,
        uncertainty=StdDevUncertainty(sigma, copy=False),
        wcs=None if ccd.wcs is None else ccd.wcs.deepcopy(),
        stars=ccd.stars,
        shared={name: planes[name] * np.sign(np.nanmean(plane))
                for name, plane in ccd.shared.items()},
    )  # fmt: skip
    for name, value in ccd.common.items():
        add_common(result, name, planes[f"common {name}"] if np.ndim(value) else value)
    return result


def _inside(profile, n):
    """Part of a kernel that lies inside of n pixels, at each of them."""
    half = len(profile) // 2
    total = np.concatenate([[0], np.cumsum(profile)])
    last = np.arange(n) + half + 1
    inside = total[np.minimum(last, len(profile))] - total[np.maximum(last - n, 0)]
    return inside.astype(np.float32)


def _spread(plane, kernel):
    """Convolution of a plane that is zero nearly everywhere."""
    y, x = np.nonzero(plane)
    if y.size > 1e-3 * plane.size:
        return _fourier(plane, kernel, mode="same")
    half = len(kernel) // 2
    out = np.zeros((plane.shape[0] + 2 * half, plane.shape[1] + 2 * half), np.float32)
    for i, j in zip(y, x, strict=True):
        out[i : i + 2 * half + 1, j : j + 2 * half + 1] += plane[i, j] * kernel
    return out[half:-half, half:-half]


def _contrast(data, bad):
    """
    How different the good pixels around each bad one are, by 7 x 7 pixels; 0 elsewhere.

    A hole in smooth nebula is like its neighbours; one in a star lacks at least their light.
    """
    plane = np.zeros_like(data)
    y, x = np.nonzero(bad & ~binary_erosion(bad, iterations=3) if bad.any() else bad)
    padded = np.pad(data, 3, constant_values=np.nan)
    padded[3:-3, 3:-3][bad] = np.nan
    around = np.stack([padded[y + dy, x + dx] for dy in range(7) for dx in range(7)])
    if y.size:
        plane[y, x] = np.nan_to_num(np.fmax.reduce(around) - np.fmin.reduce(around))
    return plane


def _correlation(ccd, kernel):
    """NOISECOR after a convolution of noise that is correlated as interpolation leaves it."""
    lags = noise_lags(noise_correlation(ccd), ccd.meta.get("RESAMPLE"))
    half = len(lags) // 2
    spread = np.pad(kernel, half)
    moved = _fourier(spread, np.outer(lags, lags), mode="same")
    return min(1.0, float(np.sum(spread * moved)))


def blurred_to(a, b):
    """
    Two maps at the width of the broader one's stars (PSFWIDTH), by a Gaussian kernel.

    For maps whose stars are gone. Maps without PSFWIDTH are left as they are.
    """
    widths = [float(ccd.meta.get("PSFWIDTH", math.nan)) for ccd in (a, b)]
    if not np.isfinite(widths).all() or abs(widths[0] - widths[1]) < 2 * SAME_WIDTH * max(widths):
        return a, b
    sigma = math.sqrt(abs(widths[0] ** 2 - widths[1] ** 2) / (8 * math.log(2)))
    half = math.ceil(4 * sigma)
    axis = np.exp(-0.5 * (np.arange(-half, half + 1) / max(sigma, 0.1)) ** 2)
    kernel = np.outer(axis, axis) / axis.sum() ** 2
    if widths[0] < widths[1]:
        return _convolved(a, unusable(a), kernel), b
    return a, _convolved(b, unusable(b), kernel)
