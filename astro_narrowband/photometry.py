"""
Annulus photometry with a full error budget.

The flux of a star is the sum over a circle, less the area of the circle times
the level of an annulus around it. Its error has the noise of the pixels in the
circle and the error of the level; both are stated, and each can be looked at.
"""

import enum
import math
import warnings
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.nddata import NDData
from astropy.table import QTable, Table
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from astro_narrowband import _apertures, _stamps
from astro_narrowband._validate import as_mask, choice, finite, positive
from astro_narrowband.bands import as_ccd, as_frame
from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.keywords import exposures_in
from astro_narrowband.resample import noise_factor

__all__ = ["FLAGS", "Flag", "annulus_photometry", "decode_flags"]

#: Estimators of the sky.
SKY = ("clipped_mean", "median", "mean", "mode")
#: Fewer pixels than this in an annulus are flagged.
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
    Flag.UNCORRECTED: "no star was good enough for an aperture correction; the flux is without it",
}


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


# --------------------------------------------------------------------------- input


class Image(NamedTuple):
    """An image ready to be measured, and what its errors stand on."""

    pixels: _apertures.Pixels
    unit: u.UnitBase | None
    wcs: WCS | None
    gain: float | None
    correlation: float
    errors: str
    meta: dict

    @property
    def has_variance(self):
        """Whether the image came with an uncertainty."""
        return self.pixels.noise is not None

    @property
    def has_gain(self):
        """Whether photons can be counted."""
        return self.gain is not None or self.pixels.gain is not None


def read_image(image, *, effective_gain=None, mask=None, common=None, saturation=None,
               noise_correlation=None):  # fmt: skip
    """
    Return an `Image` of anything that `annulus_photometry` takes.

    Parameters are those of `annulus_photometry`.
    """
    ccd = getattr(image, "ccd", image)
    if isinstance(ccd, np.ndarray | u.Quantity):
        ccd = NDData(ccd)
    elif not isinstance(ccd, NDData):
        ccd = as_ccd(as_frame(ccd))
    data = np.asarray(ccd.data)
    if data.ndim != 2 or data.size == 0:
        raise InputError(f"the image has shape {data.shape}: a 2-D image is needed")
    if data.dtype.kind not in "fiu":
        raise InputError(f"the image is of type {data.dtype}: real numbers are needed")
    unit = ccd.unit
    if unit == u.dimensionless_unscaled:
        unit = None
    noise, kind = _noise(ccd, data.shape)
    bad = as_mask(ccd.mask, data.shape)
    if mask is not None:
        mask = as_mask(mask, data.shape)
        bad = mask if bad is None else bad | mask
    header = ccd.meta
    if noise_correlation is None:
        noise_correlation = header.get("NOISECOR", 1.0)
    noise_correlation = positive(noise_correlation, "NOISECOR")
    if noise_correlation > 1:
        raise InputError(f"NOISECOR = {noise_correlation}: it must be 1 or less")
    gain = _gain(effective_gain, unit, header, data.shape)
    pixels = _apertures.Pixels(
        data, noise, kind, bad,
        None if gain is None or np.ndim(gain) == 0 else gain,
        None if common is None else _plane(common, data.shape, "common"),
        None if saturation is None else _number(saturation, unit, "saturation"),
    )  # fmt: skip
    gain = float(gain) if gain is not None and np.ndim(gain) == 0 else None
    if noise is not None:
        errors = "uncertainty of the image"
    elif gain is not None or pixels.gain is not None:
        errors = "scatter of the annulus, and photons by the effective gain"
    else:
        errors = "scatter of the annulus; photon noise of the source is not counted"
    return Image(pixels, unit, _wcs(ccd), gain, noise_correlation, errors, dict(header))


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


def _plane(values, shape, name):
    values = np.asarray(getattr(values, "data", values))
    if values.shape != shape:
        raise InputError(f"{name} has shape {values.shape}, the image {shape}")
    return values


def _number(value, unit, name):
    """A number in the unit of the image; one without a unit is taken to be in it."""
    if isinstance(value, u.Quantity):
        try:
            value = value.to_value(unit if unit is not None else u.dimensionless_unscaled)
        except u.UnitConversionError:
            raise InputError(f"{name} = {value} cannot be converted to {unit}") from None
    return finite(value, name)


def _gain(effective_gain, unit, header, shape):
    """Electrons per unit of the image: as given, or as unit and header say it."""
    if effective_gain is not None:
        if isinstance(effective_gain, u.Quantity):
            per = u.electron / (unit if unit is not None else u.dimensionless_unscaled)
            try:
                effective_gain = effective_gain.to_value(per)
            except u.UnitConversionError:
                raise InputError(
                    f"effective_gain in {effective_gain.unit}: it must be in {per}"
                ) from None
        if np.ndim(effective_gain):
            return _plane(effective_gain, shape, "effective_gain")
        return positive(effective_gain, "effective_gain")
    if unit == u.electron:
        return 1.0
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


def read_positions(positions, wcs):
    """
    Return pixel positions of anything that holds some.

    Parameters
    ----------
    positions : array_like (n, 2) or (2,), `~astropy.coordinates.SkyCoord` or table
        x, y [pix]; a table has ``x_center`` and ``y_center`` (or ``x`` and
        ``y``, ``xcentroid``, ...), or ``ra`` and ``dec`` (or ``sky_centroid``).
    wcs : `~astropy.wcs.WCS` or None

    Returns
    -------
    x, y : `~numpy.ndarray` of float, (n,)
        NaN where there is none.
    """
    if isinstance(positions, Table):
        positions = _from_table(positions)
    if isinstance(positions, SkyCoord):
        if wcs is None:
            raise InputError("positions on the sky need a WCS, and the image has none")
        x, y = wcs.world_to_pixel(positions)
        return np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
    if isinstance(positions, u.Quantity):
        positions = positions.to_value(u.pix)
    xy = np.asarray([] if positions is None else positions, float)
    if xy.size == 0:
        return np.zeros(0), np.zeros(0)
    if xy.ndim == 1 and xy.size == 2:
        xy = xy[None]
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"positions of shape {xy.shape}: give (x, y) pairs, shape (n, 2)")
    return xy[:, 0].copy(), xy[:, 1].copy()


def _from_table(table):
    pairs = [("x_center", "y_center"), ("x_centroid", "y_centroid"), ("xcenter", "ycenter"),
             ("xcentroid", "ycentroid"), ("x", "y")]  # fmt: skip
    for names in pairs:
        if set(names) <= set(table.colnames):
            columns = [np.ma.filled(np.ma.asarray(_bare(table[name])), np.nan) for name in names]
            return np.column_stack(columns)
    for name in ("sky_centroid", "sky_center", "skycoord"):
        if name in table.colnames:
            return table[name]
    if {"ra", "dec"} <= set(table.colnames):
        return SkyCoord(_degrees(table["ra"]), _degrees(table["dec"]))
    raise InputError(
        f"the table of positions has columns {', '.join(table.colnames)}: "
        "x_center and y_center, or ra and dec, are needed"
    )


def _bare(column):
    return np.asarray(getattr(column, "value", column), float)


def _degrees(column):
    return u.Quantity(column, column.unit or u.deg)


# --------------------------------------------------------------------------- sky


class Sky(NamedTuple):
    """Level of the annuli, each (n,); ``pixel`` is the variance of one pixel, for sums."""

    level: np.ndarray
    err: np.ndarray
    std: np.ndarray
    n: np.ndarray
    pixel: np.ndarray
    flags: np.ndarray


def measure_sky(image, x, y, *, r_in, r_out, sky, clip):
    """Return `Sky` for the positions; ``sky`` may be a number: then nothing is measured."""
    n = len(x)
    if not isinstance(sky, str):
        level = np.full(n, _number(sky, image.unit, "sky"))
        unknown = np.full(n, np.nan)
        zero = np.zeros(n, int)
        return Sky(level, np.zeros(n), unknown, zero, unknown, zero)
    choice(sky, SKY, "sky")
    if r_in is None or r_out is None:
        raise InputError("r_in and r_out are needed to measure the sky; sky=0 subtracts none")
    if sky == "mean":
        clip = None
    levels = _apertures.sky_levels(image.pixels, x, y, r_in, r_out, clip=clip)
    shrink, mean_factor = _apertures.sky_constants(clip)
    median_factor = math.pi / 2
    if sky in ("clipped_mean", "mean"):
        level, eta = levels.mean, mean_factor
    elif sky == "median":
        level, eta = levels.median, median_factor
    else:
        # SExtractor's: 2.5 median - 1.5 mean, but the median where they differ much.
        with np.errstate(invalid="ignore"):
            crowded = np.abs(levels.mean - levels.median) > 0.3 * levels.std
        level = np.where(crowded, levels.median, 2.5 * levels.median - 1.5 * levels.mean)
        eta = 6.25 * median_factor + 2.25 * mean_factor - 7.5
    with np.errstate(divide="ignore", invalid="ignore"):
        # The scatter loses one degree of freedom to the mean.
        scatter = levels.std**2 / shrink**2 * levels.n / (levels.n - 1)
        # Neighbours share noise: their mean is that much worse, a median's own excess is not.
        err = np.sqrt(scatter * (1 / image.correlation + eta - 1) / levels.n)
    scatter[levels.n < 2] = err[levels.n < 2] = np.nan
    flags = np.where(levels.n_good < MIN_SKY, Flag.SKY_FEW, 0)
    flags = flags | np.where(levels.off_edge, Flag.SKY_EDGE, 0)
    pixel = levels.variance if image.has_variance else scatter / image.correlation
    return Sky(level, err, np.sqrt(scatter), levels.n, pixel, flags)


def check_annulus(r, r_in, r_out, *, allow_overlap=False):
    """Return the radii as floats, or raise `InputError`."""
    r = positive(r, "r")
    if r_in is None and r_out is None:
        return r, None, None
    if r_in is None or r_out is None:
        raise InputError("r_in and r_out are given together")
    r_in, r_out = finite(r_in, "r_in"), positive(r_out, "r_out")
    if r_in < 0 or r_out <= r_in:
        raise InputError(f"r_in = {r_in}, r_out = {r_out}: 0 <= r_in < r_out is needed")
    if r > r_in and not allow_overlap:
        raise InputError(
            f"r = {r} reaches into the annulus (r_in = {r_in}): "
            "the star's light would be taken for sky; give r <= r_in"
        )
    return r, r_in, r_out


# --------------------------------------------------------------------------- noise


def split_variance(image, sums, sky):
    """
    Split the variance of aperture sums into source and background.

    Parameters
    ----------
    image : `Image`
    sums : `~astro_narrowband._apertures.CircleSums`
    sky : `Sky`

    Returns
    -------
    source, background : `~numpy.ndarray`, (n, m)
        In the unit of the image squared. ``background`` has sky, dark current,
        read noise and masters, times the correlation factor.
    """
    level, pixel = sky.level[:, None], sky.pixel[:, None]
    source = np.zeros_like(sums.total)
    if image.pixels.gain is not None:
        source = sums.photons - level * sums.per_gain
    elif image.gain is not None:
        # Sum of w (d - sky) stands for the sum of w**2 (d - sky): they differ on the rim only.
        source = (sums.total - level * sums.area) * (sums.area2 / sums.area) / image.gain
    factor = noise_factor(image.correlation, sums.area) ** 2
    if not image.has_variance:
        return np.maximum(source, 0), pixel * sums.area2 * factor
    known = np.isfinite(pixel)
    excess = np.where(known, sums.variance - np.where(known, pixel, 0) * sums.area2, source)
    source = np.clip(excess, 0, sums.variance)
    return source, (sums.variance - source) * factor


def annulus_photometry(
    image,
    positions,
    *,
    r,
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
    image : `~astropy.nddata.CCDData`, `~astro_narrowband.coadd.Coadd`, array, Frame or path-like
        (ny, nx), in any unit. Its uncertainty (standard deviation, variance or
        inverse variance) is that of single pixels, all noise included.
    positions : array_like (n, 2), `~astropy.coordinates.SkyCoord` or table
        x, y [pix], the centre of the first pixel being 0, 0.
    r : float
        Radius of the aperture [pix].
    r_in, r_out : float
        Radii of the annulus [pix]: pixels whose centres have r_in <= d < r_out.
    sky : {"clipped_mean", "median", "mean", "mode"} or number, optional
        How the level of the annulus is estimated, or the level itself
        (``sky=0`` subtracts nothing). The mode is 2.5 median - 1.5 mean; its
        variance is 4.6 times that of the mean.
    clip : float, optional
        Pixels of the annulus that are so many standard deviations away from the
        median are left out, iterated; not for ``"mean"``.
    recentre : bool, optional
        Measure at windowed centroids, not where the positions are.
    budget : bool, optional
        Add a column for each term of the error; ``meta["terms"]`` names them,
        their squares add up to that of ``flux_err``.
    effective_gain : number, `~astropy.units.Quantity` or array (ny, nx), optional
        Electrons per unit of the image: for electron/s the exposure time [s], a
        map for a coadd. Default is 1 for an image in electron and the exposure
        time in the header for one in electron/s. Needed only for an image
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
        image: see `~astro_narrowband.resample.noise_factor`. Default is
        NOISECOR of the header, or 1.

    Returns
    -------
    `~astropy.table.QTable`
        One row for every position, in their order:

        ``id`` (1, 2, ...), ``x_center``, ``y_center`` [pix], ``ra``, ``dec`` (with
        a WCS); ``flux``, ``flux_err``, ``snr``; ``mag``, ``mag_err``
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

    A common factor (the gain, the flux scale) is not in these errors.

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
    r, r_in, r_out = check_annulus(r, r_in, r_out)
    if clip is not None:
        clip = positive(clip, "clip")
    image = read_image(
        image, effective_gain=effective_gain, mask=mask, common=common, saturation=saturation,
        noise_correlation=noise_correlation,
    )  # fmt: skip
    warn_of_errors(image)
    x, y = read_positions(positions, image.wcs)
    flags = np.zeros(len(x), np.int32)
    if recentre:
        x, y, failed = _recentred(image, x, y, r)
        flags[failed] |= Flag.CENTROID_FAILED
    known, reached = _measurable(image, x, y, r if r_out is None else r_out)
    flags[~known] |= Flag.CENTROID_FAILED
    sums = _apertures.circle_sums(image.pixels, x[reached], y[reached], [r])
    levels = measure_sky(image, x[reached], y[reached], r_in=r_in, r_out=r_out, sky=sky, clip=clip)
    table = _new_table(image, x, y)
    _fill(table, image, sums, levels, reached, flags, budget, read_noise)
    table["flags"] |= np.where(close_pairs(x, y, 2 * r), Flag.NEIGHBOUR, 0).astype(np.int32)
    table.meta.update(
        r=r, r_in=r_in, r_out=r_out, sky=sky if isinstance(sky, str) else str(sky),
        errors=image.errors, noise_correlation=image.correlation,
    )  # fmt: skip
    return table


def warn_of_errors(image):
    """Warn if the errors of an image will lack the photon noise of the sources."""
    if not image.has_variance and not image.has_gain:
        warnings.warn(
            "the image has no uncertainty: errors are of the sky's scatter alone; "
            "give it one, or effective_gain (electrons per unit) for the photons of the stars",
            NarrowbandWarning,
            stacklevel=3,
        )


def _measurable(image, x, y, reach):
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


def _recentred(image, x, y, r):
    """Windowed centroids near x, y: new x, y (the old ones where that fails), and failed."""
    x, y = x.copy(), y.copy()
    half = math.ceil(1.5 * r)
    _, near = _measurable(image, x, y, 0)
    failed = ~near
    if not near.any():
        return x, y, failed
    ix, iy = np.rint(x[near]).astype(int), np.rint(y[near]).astype(int)
    offset = np.arange(-half, half + 1)
    yy, xx = np.broadcast_arrays(iy[:, None, None] + offset[:, None], ix[:, None, None] + offset)
    data, _, good, _, _ = image.pixels.at(yy, xx)
    level = _apertures.sky_levels(image.pixels, ix, iy, r, 1.5 * r + 1).median
    data -= np.nan_to_num(level)[:, None, None]
    weight = None if good is None else good.astype(np.float32)
    if good is not None:
        data[~good] = 0
    found = _stamps.windowed(
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


def _fill(table, image, sums, sky, reached, flags, budget, read_noise):
    """Write the measured columns of ``table``, NaN where nothing could be measured."""
    n, unit = len(table), image.unit

    def column(name, values, of=unit, empty=np.nan):
        full = np.full(n, empty, float if empty is np.nan else type(empty))
        full[reached] = values
        table[name] = full if of is None else full * of
        return full

    def one(name):
        return None if getattr(sums, name) is None else getattr(sums, name)[:, 0]

    area, total = one("area"), one("total")
    nothing = area <= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        flux = np.where(nothing, np.nan, total - area * sky.level)
        source, background = (part[:, 0] for part in split_variance(image, sums, sky))
        sky_term = (area * sky.err) ** 2
        error = np.sqrt(source + background + sky_term)
    error[nothing] = np.nan
    flux = column("flux", flux)
    error = column("flux_err", error)
    with np.errstate(divide="ignore", invalid="ignore"):
        table["snr"] = flux / error
        table["mag"] = np.where(flux > 0, -2.5 * np.log10(flux), np.nan) * u.mag
        table["mag_err"] = np.where(flux > 0, 2.5 / math.log(10) * error / flux, np.nan) * u.mag
    column("aperture_sum", np.where(nothing, np.nan, total))
    column("area", area, u.pix**2, empty=0.0)
    column("sky", sky.level)
    column("sky_err", sky.err)
    column("sky_std", sky.std)
    column("n_sky", sky.n, None, empty=0)
    if budget:
        _budget(table, column, image, sums, (source, background, sky_term), read_noise)
    bits = sky.flags.astype(np.int32)
    bits |= np.where(one("off_edge"), Flag.EDGE, 0).astype(np.int32)
    bits |= np.where(one("n_masked") > 0, Flag.MASKED, 0).astype(np.int32)
    bits |= np.where(one("n_saturated") > 0, Flag.SATURATED, 0).astype(np.int32)
    bits |= np.where(nothing, Flag.NO_DATA, 0).astype(np.int32)
    flags[reached] |= bits
    flags[~reached] |= Flag.NO_DATA
    flags[~reached & np.isfinite(table["x_center"].value)] |= Flag.EDGE
    with np.errstate(invalid="ignore"):
        flags[flux < 0] |= Flag.NEGATIVE
    table["flags"] = flags


def _budget(table, column, image, sums, parts, read_noise):
    source, background, sky_term = parts
    terms = ["err_source", "err_sky"]
    read = common = np.zeros_like(background)
    if read_noise is not None:
        terms.append("err_read")
        read = sums.area2[:, 0] * _number(read_noise, image.unit, "read_noise") ** 2
    if sums.common is not None:
        terms.append("err_common")
        common = sums.common[:, 0]
    # What is named first keeps its share where the parts exceed the whole.
    read = np.minimum(read, background)
    common = np.minimum(common, background - read)
    column("err_source", np.sqrt(source))
    column("err_sky", np.sqrt(background - read - common))
    if "err_read" in terms:
        column("err_read", np.sqrt(read))
    column("err_sky_level", np.sqrt(sky_term))
    if "err_common" in terms:
        column("err_common", np.sqrt(common))
    table.meta["terms"] = [*terms, "err_sky_level"]
