"""
Annulus photometry with a full error budget.

The flux of a star is the sum over a circle, less the area of the circle times
the level of an annulus around it. Its error has the noise of the pixels in the
circle and the error of the level; both are stated, and each can be looked at.
"""

import enum
import math

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import QTable

from astro_narrowband._engine import apertures
from astro_narrowband._engine.annuli import sky_levels
from astro_narrowband._engine.detection import stamps
from astro_narrowband._engine.door import door, items, whole_numbers
from astro_narrowband._engine.validate import bare
from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry._draw import draw_aperture
from astro_narrowband.photometry._measure import (
    close_pairs,
    correlation_factor,
    measurable,
    measure_sky,
    number_in,
    read_image,
    split_variance,
    warn_of_errors,
)
from astro_narrowband.photometry._positions import read_apertures
from astro_narrowband.photometry._structure import level_errors

#: An annulus with fewer usable pixels than this is flagged.
MIN_SKY = 30


class Flag(enum.IntFlag):
    """What may be wrong with a measurement: the bits of the column ``flags``."""

    EDGE = 1
    MASKED = 2
    SATURATED = 4
    SKY_FEW = 8
    SKY_EDGE = 16
    ANNULUS_OVERLAP = 32
    NEIGHBOUR = 64
    CENTROID_FAILED = 128
    NEGATIVE = 256
    NO_DATA = 512
    EXTENDED = 1024
    UNCORRECTED = 2048
    SKY_UNEVEN = 4096
    PARTIAL = 8192
    BLENDED = 16384


#: What each flag says.
FLAGS = {
    Flag.EDGE: "part of the aperture is outside the image; the flux is that of the part inside",
    Flag.MASKED: "masked or non-finite pixels in the aperture; the flux is without them",
    Flag.SATURATED: "saturated pixels in the aperture; the flux is too low",
    Flag.SKY_FEW: f"fewer than {MIN_SKY} usable pixels in the annulus",
    Flag.SKY_EDGE: "part of the annulus is outside the image",
    Flag.ANNULUS_OVERLAP: "the aperture reaches into the annulus",
    Flag.NEIGHBOUR: "the aperture overlaps that of another position of the list",
    Flag.CENTROID_FAILED: "no position or centroid; measured where it was asked for, if anywhere",
    Flag.NEGATIVE: "the flux is below zero",
    Flag.NO_DATA: "no usable pixel in the aperture; there is no flux",
    Flag.EXTENDED: "wider than the stars of this image; the aperture correction does not apply",
    Flag.UNCORRECTED: "no star was fit for a correction: that of another filter, or the usual one",
    Flag.SKY_UNEVEN: "the sky differs around the annulus; its error has that as well",
    Flag.PARTIAL: "some frames lack it (saturated, or at the edge): its profile may be another",
    Flag.BLENDED: "not the shape of the stars around it: two or more, and the flux is of them all",
}


@door(flags=whole_numbers)
def decode_flags(flags):
    """
    Say which flags are set.

    Parameters
    ----------
    flags : int or array_like of int

    Returns
    -------
    list of str, or list of such lists for an array
        Names of `Flag`; `FLAGS` has a sentence on each.

    Examples
    --------
    >>> from astro_narrowband.photometry import decode_flags
    >>> decode_flags(3), decode_flags([0, 256])
    (['EDGE', 'MASKED'], [[], ['NEGATIVE']])
    """
    if np.ndim(flags):
        return [decode_flags(value) for value in np.asarray(flags)]
    return [flag.name for flag in Flag if int(flags) & flag]


@door(conditions=items)
def flag_where(conditions):
    """
    Return flags from a dict of `Flag` to arrays of bool of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.photometry import Flag, flag_where
    >>> flag_where({Flag.EDGE: np.array([True, False]), Flag.MASKED: np.array([True, True])})
    array([3, 2], dtype=int32)
    """
    return sum(
        np.where(condition, np.int32(flag), np.int32(0)) for flag, condition in conditions.items()
    )


@door
def annulus_photometry(
    image,
    positions,
    *,
    r=None,
    r_in=None,
    r_out=None,
    sky="clipped_mean",
    clip=3.0,
    recentre=False,
    budget=False,
    effective_gain=None,
    read_noise=None,
    common=None,
    saturation=None,
    mask=None,
    noise_correlation=None,
):
    """
    Measure stars in circular apertures, with the sky of an annulus around each.

    Parameters
    ----------
    image : `~astropy.nddata.CCDData`, `~astro_narrowband.Coadd`, array, Frame or path-like
        (ny, nx), in any unit. Its uncertainty (standard deviation, variance or
        inverse variance) is that of single pixels, all noise included.
    positions : array_like (n, 2), `~astropy.coordinates.SkyCoord`, table or aperture
        x, y [pix], the centre of the first pixel being 0, 0. A table (of photutils, of sep) or
        a structured array has columns ``x_center``, ``xcentroid``, ``x`` or the like, or ``ra``
        and ``dec``. A `~photutils.aperture.CircularAperture`, a
        `~photutils.aperture.CircularAnnulus` or a list of both brings its radii along.
    r : float or `~astropy.units.Quantity`
        Radius of the aperture [pix].
    r_in, r_out : float or `~astropy.units.Quantity`
        Radii of the annulus [pix]: pixels whose centres have r_in <= d < r_out.
    sky : {"clipped_mean", "median", "mean", "mode"} or number, optional
        How the level of the annulus is estimated, or the level itself
        (``sky=0`` subtracts nothing). The mode is 2.5 median - 1.5 mean; its
        variance is 4.5 times that of the mean.
    clip : float or `~astropy.stats.SigmaClip`, optional
        Pixels of the annulus that are so many standard deviations away from the
        median are left out, until none is; not for ``"mean"``.
    recentre : bool, optional
        Measure at windowed centroids, not where the positions are.
    budget : bool, optional
        Add a column for each term of the error; ``meta["terms"]`` names them,
        their squares add up to that of ``flux_err``.
    effective_gain : number, `~astropy.units.Quantity` or array (ny, nx), optional
        Electrons per unit of the image: for electron/s the exposure time [s], a
        map for a coadd. Default is 1 for an image in electron (unless NCOMBINE says
        that it is made of several), and the exposure time in the header, or the
        map of a Coadd, for one in electron/s. Needed only for an image
        without uncertainty.
    read_noise : number or `~astropy.units.Quantity`, optional
        Of one pixel, in the unit of the image. Only for its column in the
        budget: it is contained in the uncertainty and in the scatter of the sky.
    common : array (ny, nx), optional
        Variance that the masters left in the image. Only for its column in the
        budget: it is contained in the uncertainty.
    saturation : number or `~astropy.units.Quantity`, optional
        Level from which a pixel is saturated.
    mask : array_like of bool (ny, nx), optional
        Pixels not to be used, besides the image's own mask and what is not
        finite.
    noise_correlation : float, optional
        Variance of single pixels over what the uncertainty says, in a resampled
        image whose uncertainty is meant for sums, as that of
        `~astro_narrowband.resampling.resample`. Default is NOISECOR of the header,
        or 1.

    Returns
    -------
    `~astropy.table.QTable`
        One row for every position, in their order:

        ``id`` (1, 2, ...), ``x_center``, ``y_center`` [pix], ``ra``, ``dec`` (with
        a WCS); ``flux``, ``flux_err``, (``flux_err_common``, where the header has
        FLUXERR), ``snr``; ``mag``, ``mag_err``
        (instrumental: -2.5 log10 flux); ``aperture_sum`` (sky included);
        ``area`` (pixels used); ``sky``, ``sky_err``, ``sky_std`` (per pixel),
        ``n_sky`` (pixels kept); with ``budget``: ``err_source``, ``err_sky``
        (sky and dark current; and read noise and masters unless these are
        given), ``err_read``, ``err_sky_level``, ``err_common``; ``flags``: see
        `Flag` and `decode_flags`. ``meta`` has the radii and ``errors``, what
        the errors stand on.

    Raises
    ------
    InputError
        If the aperture reaches into the annulus, or an argument cannot be used.

    Warns
    -----
    NarrowbandWarning
        If the image has neither uncertainty nor a known gain: the error then is
        that of the sky alone.

    Notes
    -----
    The variance of a flux is::

        sum(w**2 V) k**2 + A**2 eta sigma**2 / n

    with w the part of a pixel in the circle (exact), V the variance of the
    pixel, A the area used, sigma the scatter and n the number of the pixels
    kept in the annulus; eta is 1 for the mean, pi/2 for the median, 1.03 for
    the clipped mean. k is the correlation factor of resampled images; it works
    on the background. Weights enter squared: photutils 3.0 and sep add up w V,
    which overstates the error, by 6 % for r = 3.

    Masked, non-finite and outside pixels are left out of the sum *and* of the
    area that the sky is subtracted for; nothing is filled in for them. The flux
    then is that of the pixels used, and a flag says so.

    An error of a common factor is no scatter between stars, and cancels in their
    ratios: it is not in ``flux_err``. Where the header knows it (FLUXERR: a measured
    gain, the flux scales of the frames of a coadd) the column ``flux_err_common`` is it,
    and the error of a flux by itself is the root of the sum of both squares.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband.photometry import annulus_photometry
    >>> y, x = np.mgrid[:60, :60]
    >>> model = 100 + 500 * np.exp(-((x - 30.2) ** 2 + (y - 29.6) ** 2) / 8)
    >>> image = np.random.default_rng(1).poisson(model).astype(float)
    >>> ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model))
    >>> table = annulus_photometry(ccd, [(30.2, 29.6), (1, 50)], r=8, r_in=12, r_out=18)
    >>> truth = 2 * np.pi * 4 * 500
    >>> bool(abs(table["flux"][0].value - truth) < 2 * table["flux_err"][0].value)
    True
    >>> decode_flags(table["flags"])
    [[], ['EDGE', 'SKY_EDGE']]
    """
    image = read_image(
        image, effective_gain=effective_gain, mask=mask, common=common, saturation=saturation,
        noise_correlation=noise_correlation,
    )  # fmt: skip
    x, y, r, r_in, r_out = read_apertures(positions, image.wcs, r=r, r_in=r_in, r_out=r_out)
    warn_of_errors(image)
    flags = np.zeros(len(x), np.int32)
    if recentre:
        x, y, failed = _recentred(image, x, y, r)
        flags[failed] |= Flag.CENTROID_FAILED
    known, reached = measurable(image, x, y, r if r_out is None else r_out)
    x_in, y_in = x[reached], y[reached]
    sums = apertures.circle_sums(image.pixels, x_in, y_in, [r])
    annulus = {"r_in": r_in, "r_out": r_out, "sky": sky, "clip": clip}
    level = measure_sky(image, x_in, y_in, **annulus)
    level = level._replace(err=level_errors(image, x_in, y_in, level, radii=[r], **annulus)[:, 0])
    columns, terms = _columns(image, sums, level, r, read_noise)
    table = _new_table(image, x, y)
    for name, (values, unit) in columns.items():
        if name in terms and not budget:
            continue
        full = np.full(len(x), 0 if name in ("n_sky", "area") else np.nan, values.dtype)
        full[reached] = values
        table[name] = full if unit is None else full * unit
    flags[reached] |= circle_flags(sums, level, sky)[:, 0]
    with np.errstate(invalid="ignore"):
        table["flags"] = flags | flag_where(
            {
                Flag.CENTROID_FAILED: ~known,
                Flag.NO_DATA: ~reached,
                Flag.EDGE: known & ~reached,
                Flag.NEIGHBOUR: close_pairs(x, y, 2 * r),
                Flag.NEGATIVE: bare(table["flux"]) < 0,
            }
        )
    table.meta = _meta(image, level, terms if budget else None)
    table.meta |= {"r": r, "r_in": r_in, "r_out": r_out, "sky": str(sky)}
    return table


def _meta(image, level, terms):
    """What the errors of a table stand on."""
    meta = {"errors": image.errors, "noise_correlation": image.correlation}
    if terms:
        meta["terms"] = terms
    if image.common_err:
        meta["flux_err_common"] = image.common_err
    if image.has_variance and np.isfinite(level.std).any():
        # 1 where the uncertainty says what the sky really scatters.
        meta["noise_ratio"] = float(
            np.nanmedian(level.std / np.sqrt(level.pixel * image.correlation))
        )
    return meta


@door
def plot_aperture(image, position, *, r=None, r_in=None, r_out=None, ax=None):
    """
    Draw the image around a position, with the aperture and the annulus over it.

    Parameters
    ----------
    image, position, r, r_in, r_out
        As for `annulus_photometry`; one position.
    ax : `~matplotlib.axes.Axes`, optional
        Default is a new figure.

    Returns
    -------
    `~matplotlib.axes.Axes`
    """
    image = read_image(image)
    x, y, r, r_in, r_out = read_apertures(
        position, image.wcs, r=r, r_in=r_in, r_out=r_out, allow_overlap=True
    )
    if len(x) != 1 or not measurable(image, x, y, r)[1].all():
        raise InputError(f"plot_aperture draws one position in the image; {position!r} is not one")
    return draw_aperture(ax, image.pixels.data, x[0], y[0], r, r_in, r_out)


def _recentred(image, x, y, r):
    """Windowed centroids near x, y: new x, y (the old ones where that fails), and failed."""
    x, y = x.copy(), y.copy()
    half = math.ceil(1.5 * r)
    _, near = measurable(image, x, y, 0)
    failed = ~near
    if not near.any():
        return x, y, failed
    ix, iy = np.rint(x[near]).astype(int), np.rint(y[near]).astype(int)
    offset = np.arange(-half, half + 1)
    oy, ox = np.meshgrid(offset, offset, indexing="ij")
    data, _, good, _, _ = image.pixels.around(iy, ix, oy, ox)
    level = sky_levels(image.pixels, ix, iy, r, 1.5 * r + 1).median
    data -= np.nan_to_num(level)[:, None, None]
    weight = None if good is None else good.astype(np.float32)
    if good is not None:
        data[~good] = 0
    found = stamps.windowed(
        data.astype(np.float32), weight, r / 2, x=x[near] - ix, y=y[near] - iy
    )  # fmt: skip
    new_x, new_y = ix + found["x"], iy + found["y"]
    moved = np.hypot(new_x - x[near], new_y - y[near])
    with np.errstate(invalid="ignore"):
        right = (moved <= r) & (found["total"] > 0)
    failed[near] = ~right
    where = np.flatnonzero(near)[right]
    x[where], y[where] = new_x[right], new_y[right]
    return x, y, failed


def _new_table(image, x, y):
    table = QTable()
    table["id"] = np.arange(1, len(x) + 1)
    table["x_center"], table["y_center"] = x * u.pix, y * u.pix
    if image.wcs is not None:
        world = SkyCoord(image.wcs.pixel_to_world(x, y)).icrs
        table["ra"], table["dec"] = world.ra.to(u.deg), world.dec.to(u.deg)
    return table


def circle_flags(sums, level, sky):
    """Return what circles and their annuli tell of measurements, (n, m); ``sky`` as was asked."""
    return flag_where(
        {
            Flag.EDGE: sums.off_edge,
            Flag.MASKED: sums.n_masked > 0,
            Flag.SATURATED: sums.n_saturated > 0,
            Flag.SKY_FEW: (isinstance(sky, str) & (level.n_good < MIN_SKY))[:, None],
            Flag.SKY_EDGE: level.off_edge[:, None],
            Flag.SKY_UNEVEN: level.uneven[:, None],
            Flag.NO_DATA: sums.area <= 0,
        }
    )


def _columns(image, sums, sky, r, read_noise):
    """Columns as name: (values, unit), and the names of those that are terms of the error."""
    unit = image.unit
    area, total = sums.area[:, 0], sums.total[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(area > 0, total, np.nan)
        flux = total - area * sky.level
        source, background = (column[:, 0] for column in split_variance(image, sums, sky, [r]))
        variances = {
            "err_source": source,
            **_split_background(image, sums, r, background, read_noise),
        }
        variances["err_sky_level"] = (area * sky.err) ** 2
        error = np.where(area > 0, np.sqrt(sum(variances.values())), np.nan)
        positive_flux = np.where(flux > 0, flux, np.nan)
        # Apart from flux_err: it is no scatter between stars, and cancels in their ratios.
        common_error = {"flux_err_common": (np.abs(flux) * image.common_err, unit)}
        if not image.common_err:
            common_error = {}
        columns = {
            "flux": (flux, unit),
            "flux_err": (error, unit),
            **common_error,
            "snr": (flux / error, None),
            "mag": (-2.5 * np.log10(positive_flux), u.mag),
            "mag_err": (2.5 / math.log(10) * error / positive_flux, u.mag),
            "aperture_sum": (total, unit),
            "area": (area, u.pix**2),
            "sky": (sky.level, unit),
            "sky_err": (sky.err, unit),
            "sky_std": (sky.std, unit),
            "n_sky": (sky.n, None),
        }
        for name, variance in variances.items():
            columns[name] = (np.sqrt(variance), unit)
    return columns, list(variances)


def _split_background(image, sums, r, background, read_noise):
    """Variances of the background: what is known of it apart, the rest as that of the sky."""
    known = {}
    factor = correlation_factor(image, r)
    if read_noise is not None:
        per_pixel = number_in(read_noise, image.unit, "read_noise") ** 2
        known["err_read"] = sums.area2[:, 0] * per_pixel * factor
    if sums.common is not None:
        known["err_common"] = sums.common[:, 0] * factor
    rest = background
    for name, variance in known.items():
        # A part cannot be more than the whole, whatever was said of it.
        known[name] = np.fmin(variance, rest)
        rest = rest - known[name]
    return {"err_sky": rest, **known}
