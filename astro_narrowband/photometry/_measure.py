"""
What photometry and growth curves share: images, skies and variances.

Every image that a user may give becomes an `Image` here, once.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.nddata import NDData
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from astro_narrowband._engine import apertures
from astro_narrowband._engine.annuli import sky_constants, sky_levels
from astro_narrowband._engine.frames import as_ccd, as_frame
from astro_narrowband._engine.headers import exposures_in
from astro_narrowband._engine.lanczos import noise_lags
from astro_narrowband._engine.validate import as_array, as_mask, as_pixels, choice, finite, positive
from astro_narrowband.exceptions import InputError, warn

#: Estimators of the sky.
SKY = ("clipped_mean", "median", "mean", "mode")
#: Chi2 of the sectors of an annulus, per degree of freedom, that noise reaches in 0.1 %.
UNEVEN = 4.1


# --------------------------------------------------------------------------- input


class Image(NamedTuple):
    """
    An image ready to be measured.

    Attributes
    ----------
    pixels : `~astro_narrowband._engine.apertures.Pixels`
    unit : `~astropy.units.UnitBase` or None
    wcs : `~astropy.wcs.WCS` or None
        Celestial.
    correlation : float
        NOISECOR.
    kernel : str
        RESAMPLE: how it was interpolated, if it was.
    errors : str
        What its errors stand on.
    common_err : float
        FLUXERR: relative error that all its fluxes share; 0 where the header has none.
    """

    pixels: apertures.Pixels
    unit: u.UnitBase | None
    wcs: WCS | None
    correlation: float
    kernel: str
    errors: str
    common_err: float = 0.0

    @property
    def has_variance(self):
        """Whether the image came with an uncertainty."""
        return self.pixels.noise is not None


def read_image(
    image,
    *,
    effective_gain=None,
    mask=None,
    common=None,
    saturation=None,
    noise_correlation=None,
):
    """
    Return an `Image` of anything that photometry takes; nothing of it is copied.

    Parameters are those of `~astro_narrowband.photometry.annulus_photometry`.
    """
    ccd = getattr(image, "ccd", image)
    if isinstance(ccd, np.ndarray | u.Quantity):
        ccd = NDData(as_pixels(ccd))
    elif not isinstance(ccd, NDData):
        ccd = as_ccd(as_frame(ccd))
    data = np.asarray(ccd.data)
    as_pixels(data)
    unit = None if ccd.unit == u.dimensionless_unscaled else ccd.unit
    noise, kind = _noise(ccd, data.shape)
    bad = as_mask(ccd.mask, data.shape)
    if mask is not None:
        mask = as_mask(mask, data.shape)
        bad = mask if bad is None else bad | mask
    if noise_correlation is None:
        noise_correlation = ccd.meta.get("NOISECOR", 1.0)
    noise_correlation = positive(noise_correlation, "NOISECOR")
    if noise_correlation > 1:
        raise InputError(f"NOISECOR = {noise_correlation}: it must be 1 or less")
    if effective_gain is None and unit == u.electron / u.s:
        effective_gain = _exposure_map(image)
    gain = _gain(effective_gain, unit, ccd.meta, data.shape)
    if noise is not None and noise_correlation == 1:
        # The uncertainty has the photons.
        gain = None
    pixels = apertures.Pixels(
        data=_flat(data),
        noise=_flat(noise),
        kind=kind,
        mask=_flat(bad),
        gain=gain if gain is None or np.ndim(gain) == 0 else _flat(gain),
        common=None if common is None else _flat(_plane(common, data.shape, "common")),
        saturation=None if saturation is None else number_in(saturation, unit, "saturation"),
    )
    if noise is not None:
        errors = "the uncertainty of the image"
    elif gain is not None:
        errors = "the scatter of the annulus, and photons by the effective gain"
    else:
        errors = "the scatter of the annulus; the photon noise of the source is not counted"
    return Image(
        pixels, unit, _wcs(ccd), noise_correlation, str(ccd.meta.get("RESAMPLE", "")), errors,
        float(ccd.meta.get("FLUXERR", 0.0)),
    )  # fmt: skip


def _flat(values):
    """An array that can be indexed as one line without being copied each time."""
    return None if values is None else np.ascontiguousarray(values)


def _noise(ccd, shape):
    if ccd.uncertainty is None:
        return None, "var"
    kind = ccd.uncertainty.uncertainty_type
    if kind not in ("std", "var", "ivar"):
        raise InputError(
            f"the uncertainty is of type {kind!r}: "
            "use StdDevUncertainty, VarianceUncertainty or InverseVariance"
        )
    noise = np.asarray(ccd.uncertainty.array)
    if noise.shape != shape:
        raise InputError(f"the uncertainty has shape {noise.shape}, the image {shape}")
    given = ccd.uncertainty.unit
    if given is not None and ccd.unit is not None:
        wanted = {"std": ccd.unit, "var": ccd.unit**2, "ivar": ccd.unit**-2}[kind]
        factor = given.to(wanted)
        if factor != 1:
            noise = noise * factor
    return noise, kind


def _plane(values, shape, name, unit=None):
    values = as_array(values, name, unit)
    if values.shape != shape:
        raise InputError(f"{name} has shape {values.shape}, the image {shape}")
    return values


def number_in(value, unit, name):
    """A number in the unit of the image; one without a unit is taken to be in it."""
    return finite(value, name, unit=u.one if unit is None else unit)


def _exposure_map(image):
    """The effective exposure [s] that a `~astro_narrowband.coaddition.Coadd` has for each pixel."""
    exposure = getattr(image, "exposure", None)
    return exposure if np.ndim(exposure) == 2 and np.any(exposure) else None


def _gain(effective_gain, unit, header, shape):
    """Electrons per unit of the image: as given, or as unit and header say it."""
    if effective_gain is not None:
        per = u.electron / (u.one if unit is None else unit)
        if isinstance(effective_gain, int | float | u.Quantity) and np.ndim(effective_gain) == 0:
            return positive(effective_gain, "effective_gain", unit=per)
        return _plane(effective_gain, shape, "effective_gain", per)
    if unit == u.electron:
        # In a mean of frames each electron counted stands for several.
        return 1.0 if header.get("NCOMBINE", 1) == 1 else None
    if unit == u.electron / u.s:
        seconds = [t for _, t in exposures_in(header) if not isinstance(t, InputError) and t > 0]
        return seconds[0] if seconds else None
    return None


def _wcs(ccd):
    wcs = getattr(ccd, "wcs", None)
    if wcs is None and "CTYPE1" in ccd.meta:
        with warnings.catch_warnings():
            # Odd cards are put right by wcslib; its remarks on that are not ours.
            warnings.simplefilter("ignore", AstropyWarning)
            wcs = WCS(ccd.meta, naxis=2)
    return wcs if wcs is not None and wcs.has_celestial else None


# --------------------------------------------------------------------------- sky


class Sky(NamedTuple):
    """
    Levels of annuli, each (n,).

    Attributes
    ----------
    level, err : `~numpy.ndarray`
        Per pixel; the error is that of noise.
    std : `~numpy.ndarray`
        Scatter of single pixels.
    n : `~numpy.ndarray` of int
        Pixels kept.
    n_good : `~numpy.ndarray` of int
        Usable pixels, before clipping.
    pixel : `~numpy.ndarray`
        Variance of a pixel of the background, for sums over many; NaN where
        nothing says it.
    off_edge : `~numpy.ndarray` of bool
        Part of the annulus is outside the image.
    uneven : `~numpy.ndarray` of bool
        The level differs around the annulus more than noise and a tilt explain.
    spread : `~numpy.ndarray`
        By how much: variance of the means of sectors, over that of noise.
    structure : `~numpy.ndarray`, (n, 3)
        Variance of the means of sectors, square of the step between the inner and the outer
        half, and variance of pixels, each less that of noise.
    """

    level: np.ndarray
    err: np.ndarray
    std: np.ndarray
    n: np.ndarray
    n_good: np.ndarray
    pixel: np.ndarray
    off_edge: np.ndarray
    uneven: np.ndarray
    spread: np.ndarray
    structure: np.ndarray

    def rows(self, index):
        """Return some of the annuli."""
        return Sky(*(values[index] for values in self))


def measure_sky(image, x, y, *, r_in, r_out, sky, clip):
    """
    Return the `Sky` around positions.

    ``sky`` may be a number: then nothing is measured, and the level has no error.
    """
    n = len(x)
    if not isinstance(sky, str):
        level = np.full(n, number_in(sky, image.unit, "sky"))
        unknown, none = np.full(n, np.nan), np.zeros(n, int)
        return Sky(
            level, np.zeros(n), unknown, none, none, unknown, none > 0, none > 0, unknown,
            np.zeros((n, 3)),
        )  # fmt: skip
    choice(sky, SKY, "sky")
    if r_in is None or r_out is None:
        raise InputError("r_in and r_out are needed to measure the sky; sky=0 subtracts none")
    if sky == "mean":
        clip = None
    levels = sky_levels(image.pixels, x, y, r_in, r_out, clip=clip)
    constants = sky_constants(clip)
    if sky in ("clipped_mean", "mean"):
        level, eta = levels.mean, constants.mean
    elif sky == "median":
        level, eta = levels.median, constants.median
    else:
        # SExtractor's: 2.5 median - 1.5 mean, but the median where they differ much.
        with np.errstate(invalid="ignore"):
            crowded = np.abs(levels.mean - levels.median) > 0.3 * levels.std
        level = np.where(crowded, levels.median, 2.5 * levels.median - 1.5 * levels.mean)
        eta = 6.25 * constants.median + 2.25 * constants.mean - 7.5 * constants.joint
    with np.errstate(divide="ignore", invalid="ignore"):
        # The scatter loses one degree of freedom to the mean.
        scatter = levels.std**2 / constants.shrink**2 * levels.n / (levels.n - 1)
        # Neighbours share noise: their mean is that much worse, a median's own excess is not.
        err = np.sqrt(scatter * (1 / image.correlation + eta - 1) / levels.n)
        spread = levels.uneven * image.correlation
        uneven = spread > UNEVEN
    scatter[levels.n < 2] = err[levels.n < 2] = np.nan
    pixel = levels.variance if image.has_variance else scatter / image.correlation
    structure = np.column_stack(
        [levels.structure - pixel[:, None] * levels.thin, scatter - pixel * image.correlation]
    )
    return Sky(
        level, err, np.sqrt(scatter), levels.n, levels.n_good, pixel, levels.off_edge, uneven,
        spread, structure,
    )  # fmt: skip


# --------------------------------------------------------------------------- noise


def split_variance(image, sums, sky, radii):
    """
    Split the variance of aperture sums into source and background.

    Parameters
    ----------
    image : `Image`
    sums : `~astro_narrowband._engine.apertures.CircleSums`
    sky : `Sky`
    radii : sequence of float, (m,)

    Returns
    -------
    source, background : `~numpy.ndarray`, (n, m)
        In the unit of the image squared. ``background`` has sky, dark current,
        read noise and masters, times the correlation factor.
    """
    pixel = sky.pixel[:, None]
    photons = np.zeros_like(sums.total)
    if sums.photons is not None:
        photons = np.maximum(sums.photons - sky.level[:, None] * sums.per_gain, 0)
    factor = np.array([correlation_factor(image, r) for r in radii])
    if not image.has_variance:
        return photons, pixel * sums.area2 * factor
    # What the pixels have more than those of the annulus is the source's. Interpolation has
    # smoothed it in the variance; in the data it has not, if photons can be counted there.
    excess = np.where(np.isfinite(pixel), sums.variance - pixel * sums.area2, 0.0)
    excess = np.clip(excess, 0, sums.variance)
    return np.maximum(excess, photons), (sums.variance - excess) * factor


def correlation_factor(image, r):
    """
    Return the variance of a circle's sum of correlated noise over that of independent noise.

    Both for the same sum of variances over wide areas. The correlation is that of
    the interpolation named in the header (Lanczos-3 if none is), scaled to NOISECOR.
    """
    if image.correlation == 1.0:
        return 1.0
    axis = noise_lags(image.correlation, image.kernel)
    half = math.ceil(r) + 1
    weights = apertures.overlap(np.array([0.25]), np.array([0.25]), r, half)[0]
    size = weights.shape[0] + len(axis)
    overlaps = np.fft.irfft2(np.abs(np.fft.rfft2(weights, (size, size))) ** 2, (size, size))
    lags = np.arange(len(axis)) - len(axis) // 2
    return float(axis @ overlaps[np.ix_(lags, lags)] @ axis / overlaps[0, 0])


def warn_of_errors(image):
    """Warn if the errors of an image will lack the photon noise of the sources."""
    if image.pixels.noise is None and image.pixels.gain is None:
        warn(
            "the image has no uncertainty: errors are of the sky's scatter alone; "
            "give it one, or effective_gain (electrons per unit) for the photons of the stars",
            stacklevel=3,
        )


def measurable(image, x, y, reach):
    """Which positions are finite, and which of them have some of the image within ``reach``."""
    known = np.isfinite(x) & np.isfinite(y)
    ny, nx = image.pixels.data.shape
    reach = reach + 1
    with np.errstate(invalid="ignore"):
        reached = known & (x > -reach) & (x < nx + reach) & (y > -reach) & (y < ny + reach)
    return known, reached


def close_pairs(x, y, distance):
    """Return which positions have another one nearer than ``distance`` [pix]."""
    close = np.zeros(len(x), bool)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(known) > 1:
        from scipy.spatial import cKDTree

        tree = cKDTree(np.column_stack([x[known], y[known]]))
        pairs = tree.query_pairs(distance, output_type="ndarray")
        close[known[pairs.ravel()]] = True
    return close
