"""
Growth curves: flux against radius, with the covariance of the radii, and what they tell.

A growth curve that still rises at large radii has a sky that was taken too low;
one that falls has a sky too high, or has walked into its own annulus. Its
increments say by how much, with an error; and the same curve gives the best
radius and the correction from a small aperture to a large one.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._engine.door import count, door, flag, or_of
from astro_narrowband._engine.plots import picture_html
from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry._annulus import Flag, apertures, circle_flags, flag_where
from astro_narrowband.photometry._correction import chosen
from astro_narrowband.photometry._draw import draw_growth, draw_stack
from astro_narrowband.photometry._measure import (
    close_pairs,
    measurable,
    measure_sky,
    read_image,
    split_variance,
    warn_of_errors,
)
from astro_narrowband.photometry._positions import read_apertures
from astro_narrowband.photometry._structure import level_errors


@door(sky=flag, star=or_of(type(None), count(0)))
@dataclass(frozen=True, eq=False, repr=False)
class GrowthCurves:
    """
    Fluxes of n stars within m radii.

    Attributes
    ----------
    id : `~numpy.ndarray` of int, (n,)
    x, y : `~numpy.ndarray` [pix], (n,)
    radii : `~numpy.ndarray` [pix], (m,)
    flux, flux_err : `~numpy.ndarray`, (n, m)
        Sky subtracted, in ``unit``; the error includes that of the sky level.
    total : `~numpy.ndarray`, (n, m)
        Aperture sums, sky included.
    area : `~numpy.ndarray`, (n, m)
        Pixels used.
    sky, sky_err : `~numpy.ndarray`, (n,)
        Level of the annulus, per pixel, and its error under the largest circle.
    level_err : `~numpy.ndarray`, (n, m)
        Error of the level under each circle, the sky's own structure included.
    flags : `~numpy.ndarray` of `~astro_narrowband.photometry.Flag`, (n, m)
    pixel_variance : `~numpy.ndarray`, (n, m)
        Variance without the error of the sky level.
    nested : `~numpy.ndarray`, (n, m, k)
        Covariance, without that of the sky level and before ``scale``, of each
        radius with the next k; those further apart share all pixels of the smaller
        one: ``inner``.
    inner : `~numpy.ndarray`, (n, m)
    scale : `~numpy.ndarray`, (n, m)
        What correlated noise multiplies an error with.
    r_in, r_out : float or None
        The annulus [pix].
    unit : `~astropy.units.UnitBase` or None
    errors : str
        What the errors stand on.
    meta : dict
        ``flux_err_common``: relative error that all fluxes share (FLUXERR of the header); it
        is not in ``flux_err``.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband import growth_curves
    >>> ccd = CCDData(np.eye(60), unit="adu", uncertainty=StdDevUncertainty(np.ones((60, 60))))
    >>> growth_curves(ccd, [(30, 30)], [1, 2], r_in=9, r_out=15).flux.shape
    (1, 2)
    """

    id: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radii: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    total: np.ndarray
    area: np.ndarray
    sky: np.ndarray
    sky_err: np.ndarray
    level_err: np.ndarray
    flags: np.ndarray
    pixel_variance: np.ndarray
    nested: np.ndarray
    inner: np.ndarray
    scale: np.ndarray
    r_in: float | None = None
    r_out: float | None = None
    unit: u.UnitBase | None = None
    errors: str = ""
    meta: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.id)

    def __repr__(self):
        r = self.radii
        return f"<GrowthCurves of {len(self)} stars, {len(r)} radii from {r[0]:g} to {r[-1]:g} pix>"

    def _repr_html_(self):
        return picture_html(repr(self), self.plot) if len(self) else None

    def __getitem__(self, index):
        """Return the curves of some of the stars."""
        index = np.atleast_1d(np.arange(len(self))[index])
        names = ("id", "x", "y", "flux", "flux_err", "total", "area", "sky", "sky_err",
                 "level_err", "flags", "pixel_variance", "nested", "inner", "scale")  # fmt: skip
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def covariance(self, *, sky=True):
        """
        Return the covariance of the fluxes at all pairs of radii, (n, m, m).

        Parameters
        ----------
        sky : bool, optional
            With the error of the sky level, which all radii share as
            the product of ``area level_err`` of both. Without it, that of the pixels alone.
        """
        m = len(self.radii)
        j, k = np.indices((m, m))
        low, step = np.minimum(j, k), np.abs(j - k)
        matrix = self.inner[:, low]
        for s in range(1, self.nested.shape[2] + 1):
            where = step == s
            matrix[:, where] = self.nested[:, low[where], s - 1]
        matrix *= self.scale[:, j] * self.scale[:, k]
        matrix[:, j == k] = self.pixel_variance
        if sky:
            shared = self.area * self.level_err
            matrix = matrix + shared[:, :, None] * shared[:, None, :]
        return matrix

    def to_table(self):
        """
        Return one row for each star and radius.

        Returns
        -------
        `~astropy.table.QTable`
            ``id``, ``radius`` [pix], ``flux``, ``flux_err``, ``aperture_sum``,
            ``area`` [pix2], ``flags``.
        """
        n, m = self.flux.shape
        unit = 1 if self.unit is None else self.unit
        table = QTable()
        table["id"] = np.repeat(self.id, m)
        table["radius"] = np.tile(self.radii, n) * u.pix
        table["flux"], table["flux_err"] = self.flux.ravel() * unit, self.flux_err.ravel() * unit
        table["aperture_sum"] = self.total.ravel() * unit
        table["area"] = self.area.ravel() * u.pix**2
        table["flags"] = self.flags.ravel()
        table.meta.update(r_in=self.r_in, r_out=self.r_out, errors=self.errors)
        return table

    def index_of(self, radius, name="radius"):
        """Return the index of a radius that was measured, or raise `InputError`."""
        j = int(np.argmin(np.abs(self.radii - radius)))
        if abs(self.radii[j] - radius) > 1e-6:
            raise InputError(
                f"{name} = {radius:g} is not among the radii of the curves "
                f"({self.radii[0]:g} to {self.radii[-1]:g}): measure it too"
            )
        return j

    def normalized(self, radius=None):
        """
        Return the curves divided by their flux at one radius, without unit.

        Parameters
        ----------
        radius : float, optional
            One of ``radii``. Default is the largest.

        Returns
        -------
        `GrowthCurves`
            ``flux_err`` is that of the ratio: what both radii share cancels.
            Curves whose flux there is not above zero become NaN.
        """
        j = len(self.radii) - 1 if radius is None else self.index_of(radius, "radius")
        whole = np.where(self.flux[:, j] > 0, self.flux[:, j], np.nan)[:, None]
        ratio = self.flux / whole
        matrix = self.covariance()
        # Of the ratios: J C J^T with J = (1 - ratio (x) e_j) / whole.
        column = matrix[:, :, j]
        full = (
            matrix
            - ratio[:, :, None] * column[:, None, :]
            - column[:, :, None] * ratio[:, None, :]
            + ratio[:, :, None] * ratio[:, None, :] * column[:, j, None, None]
        ) / (whole**2)[:, :, None]
        variance = np.maximum(np.diagonal(full, axis1=1, axis2=2), 0)
        m = len(self.radii)
        nested = np.zeros((len(self), m, m - 1))
        for s in range(1, m):
            nested[:, : m - s, s - 1] = np.diagonal(full, s, axis1=1, axis2=2)
        return replace(
            self, flux=ratio, flux_err=np.sqrt(variance), total=self.total / whole,
            sky=self.sky / whole[:, 0], sky_err=np.zeros(len(self)),
            level_err=np.zeros_like(ratio),
            pixel_variance=variance, nested=nested, inner=np.zeros_like(ratio),
            scale=np.ones_like(ratio), unit=None,
        )  # fmt: skip

    def fraction_at(self, radius):
        """
        Return the part of the flux at the largest radius that is within ``radius``, (n,).

        Monotonic cubic interpolation between the radii; NaN outside them.
        """
        from scipy.interpolate import PchipInterpolator

        out = np.full(len(self), np.nan)
        good = np.isfinite(self.flux).all(axis=1) & (self.flux[:, -1] > 0)
        if good.any() and radius <= self.radii[-1]:
            r2, level = self._levels(self.flux[good])
            out[good] = PchipInterpolator(r2, level, axis=1)(radius**2)
        return out

    def _levels(self, flux):
        """Squared radii and curves from 0, over the last flux: in r**2 they start straight."""
        r2 = np.concatenate([[0.0], self.radii**2])
        return r2, np.concatenate([np.zeros((len(flux), 1)), flux / flux[:, -1:]], axis=1)

    def radius_at(self, fraction):
        """
        Return the radius [pix] that first holds ``fraction`` of the flux at the largest, (n,).

        NaN where the curve does not get there.
        """
        from scipy.interpolate import PchipInterpolator

        out = np.full(len(self), np.nan)
        good = np.isfinite(self.flux).all(axis=1) & (self.flux[:, -1] > 0)
        r2, levels = self._levels(self.flux[good])
        for i, level in zip(np.flatnonzero(good), levels, strict=True):
            above = np.flatnonzero(level >= fraction)
            if above.size:
                roots = PchipInterpolator(r2, level).solve(fraction, extrapolate=False)
                roots = roots[(roots > 0) & (roots <= r2[above[0]])]
                out[i] = math.sqrt(roots[0] if roots.size else r2[above[0]])
        return out

    def stacked(self, *, radius=None, use=None, min_snr=20.0):
        """
        Return the mean of the normalised curves: one curve, without unit.

        Parameters
        ----------
        radius : float, optional
            Where the curves are 1. Default is the largest.
        use : array_like of bool, (n,), optional
            Which stars. Default is those without a flag at any radius up to
            ``radius``, with a signal of more than ``min_snr`` times the noise
            there; all where there are none.
        min_snr : float, optional

        Returns
        -------
        `GrowthCurves`
            With one star. Weights are inverse variances at ``radius``; the error
            is the larger of the propagated one and that from the scatter.
        """
        j = len(self.radii) - 1 if radius is None else self.index_of(radius, "radius")
        with np.errstate(invalid="ignore", divide="ignore"):
            snr = self.flux[:, j] / self.flux_err[:, j]
        if use is None:
            use = (self.flags[:, : j + 1] == 0).all(axis=1) & (snr > min_snr)
            if not use.any():
                use = np.isfinite(snr) & (snr > 0)
        use = chosen(use, len(self)) & np.isfinite(self.flux).all(axis=1) & (self.flux[:, j] > 0)
        if not use.any():
            raise InputError("no star to stack: none has a flux above zero at the radius")
        one = self[use].normalized(self.radii[j])
        # The relative error of a curve at half light stands for its weight at all radii.
        weight = np.where(np.isfinite(snr[use]), snr[use], 0) ** 2
        weight = weight / weight.sum()
        mean = weight @ one.flux
        spread = weight @ (one.flux - mean) ** 2
        n = 1 / (weight**2).sum()
        propagated = weight**2 @ one.pixel_variance
        variance = np.maximum(propagated, spread / (n - 1) if n > 1.5 else 0)
        scale = np.sqrt(
            np.where(propagated > 0, variance / np.where(propagated > 0, propagated, 1), 1)
        )
        nested = np.einsum("n,nmk->mk", weight**2, one.nested)
        m = len(self.radii)
        for s in range(1, m):
            nested[: m - s, s - 1] *= scale[: m - s] * scale[s:]
        return replace(
            one, id=np.zeros(1, int), x=np.full(1, np.nan), y=np.full(1, np.nan),
            flux=mean[None], flux_err=np.sqrt(variance)[None], total=(weight @ one.total)[None],
            area=self.area[use].mean(axis=0)[None], sky=np.atleast_1d(weight @ one.sky),
            sky_err=np.zeros(1), level_err=np.zeros((1, m)), flags=np.zeros((1, m), int),
            pixel_variance=variance[None],
            nested=nested[None], inner=np.zeros((1, m)), scale=np.ones((1, m)),
            meta={"n_stars": int(use.sum())},
        )  # fmt: skip

    def plot(self, ax=None, *, star=0):
        """
        Draw a growth curve with its error, sky subtracted and not, and the annulus.

        Parameters
        ----------
        ax : `~matplotlib.axes.Axes`, optional
            Default is a new figure.
        star : int or None, optional
            Which one, counted from 0; `None` draws all of them, normalised, with
            their mean.

        Returns
        -------
        `~matplotlib.axes.Axes`
        """
        if not len(self):
            raise InputError("there is no curve to draw")
        if star is None:
            return draw_stack(ax, self.normalized(), self.stacked())
        return draw_growth(ax, self, star)


@door
def growth_curves(
    image,
    positions,
    radii,
    *,
    r_in=None,
    r_out=None,
    sky="clipped_mean",
    clip=3.0,
    allow_overlap=False,
    effective_gain=None,
    saturation=None,
    mask=None,
    noise_correlation=None,
):
    """
    Measure the flux of stars within many radii.

    Parameters
    ----------
    image, positions, r_in, r_out, sky, clip, effective_gain, saturation, mask, noise_correlation
        As for `~astro_narrowband.photometry.annulus_photometry`.
    radii : array_like (m,) or `~astropy.units.Quantity`
        Increasing [pix]. The radius of a circle among the positions does not count.
    allow_overlap : bool, optional
        Let radii reach beyond ``r_in``: flagged, not refused.

    Returns
    -------
    `GrowthCurves`
        Of all positions, in their order.

    Raises
    ------
    InputError
        If the radii do not increase or reach into the annulus.

    Notes
    -----
    The covariance of two radii is the sum of w_j w_k V over the pixels that
    they share, and the product of their areas times the variance of the level.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband.photometry import growth_curves
    >>> y, x = np.mgrid[:60, :60]
    >>> model = 100 + 5000 * np.exp(-((x - 30.2) ** 2 + (y - 29.6) ** 2) / 8)
    >>> image = np.random.default_rng(1).poisson(model).astype(float)
    >>> ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model))
    >>> curves = growth_curves(ccd, [(30.2, 29.6)], range(1, 13), r_in=14, r_out=20)
    >>> print(curves.radius_at(0.5).round(1), curves.fraction_at(2.355).round(1))
    [2.4] [0.5]
    """
    radii = np.atleast_1d(radii)
    if radii.ndim != 1 or not radii.size or not np.all(np.diff(radii) > 0) or not radii[0] > 0:
        raise InputError("radii must be greater than zero, and increase")
    if not np.isfinite(radii[-1]):
        raise InputError("radii must be finite")
    image = read_image(
        image, effective_gain=effective_gain, mask=mask, saturation=saturation,
        noise_correlation=noise_correlation,
    )  # fmt: skip
    x, y, _, r_in, r_out = read_apertures(
        positions, image.wcs, r=radii[-1], r_in=r_in, r_out=r_out, grown=True,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    warn_of_errors(image)
    _, reached = measurable(image, x, y, max(radii[-1], r_out or 0))
    return _curves(image, x, y, radii, reached, r_in, r_out, sky, clip)


def _curves(image, x, y, radii, reached, r_in, r_out, sky, clip):
    n = len(x)
    # Circles that differ by more than a pixel's diagonal share all pixels of the smaller one.
    apart = radii[None, :] - radii[:, None]
    n_nested = int(((apart > 0) & (apart < math.sqrt(2))).sum(axis=1).max(initial=0))
    sums = apertures.circle_sums(image.pixels, x[reached], y[reached], radii, n_nested=n_nested)
    annulus = {"r_in": r_in, "r_out": r_out, "sky": sky, "clip": clip}
    level = measure_sky(image, x[reached], y[reached], **annulus)
    level_err = level_errors(image, x[reached], y[reached], level, radii=radii, **annulus)
    with np.errstate(divide="ignore", invalid="ignore"):
        source, background = split_variance(image, sums, level, radii)
        pixel_variance = source + background
        variance, nested, inner = _covariances(image, sums, level, source)
        # The correlation of resampled noise works on variances, and so on covariances.
        scale = np.sqrt(pixel_variance / variance)
        flux = np.where(sums.area > 0, sums.total - sums.area * level.level[:, None], np.nan)
        error = np.sqrt(pixel_variance + (sums.area * level_err) ** 2)
        flags = circle_flags(sums, level, sky) | flag_where({Flag.NEGATIVE: flux < 0})

    def full(values, empty=np.nan):
        out = np.full((n, *values.shape[1:]), empty)
        out[reached] = values
        return out

    flags = full(flags, np.int32(Flag.NO_DATA | Flag.EDGE))
    flags[~(np.isfinite(x) & np.isfinite(y))] = Flag.NO_DATA | Flag.CENTROID_FAILED
    for j, radius in enumerate(radii):
        flags[close_pairs(x, y, 2 * radius), j] |= Flag.NEIGHBOUR
        if r_in is not None and radius > r_in:
            flags[:, j] |= Flag.ANNULUS_OVERLAP
    return GrowthCurves(
        id=np.arange(1, n + 1), x=x, y=y, radii=radii, flux=full(flux), flux_err=full(error),
        total=full(np.where(sums.area > 0, sums.total, np.nan)), area=full(sums.area, 0.0),
        sky=full(level.level), sky_err=full(level_err[:, -1]), level_err=full(level_err),
        flags=flags,
        pixel_variance=full(pixel_variance), nested=full(nested), inner=full(inner),
        scale=full(scale),
        r_in=r_in, r_out=r_out, unit=image.unit, errors=image.errors,
        meta={"flux_err_common": image.common_err},
    )  # fmt: skip


def _covariances(image, sums, level, source):
    """
    Covariance of each radius with itself, the next ones and those far beyond, noise independent.

    All are sums of products of weights over pixels, so that the matrix they make
    has no negative eigenvalue.
    """
    if image.has_variance:
        return sums.variance, sums.nested, sums.linear
    pixel = level.pixel[:, None]
    variance = pixel * sums.area2 + source
    # On the rim of a circle w**2 becomes w w' and, further out, w: for the photons as for area.
    whole = source
    if sums.photons is not None:
        signal = np.maximum(sums.total - level.level[:, None] * sums.area, 0)
        whole = np.maximum(signal * sums.per_gain / sums.area2, source)
    rim = (sums.nested - sums.area2[:, :, None]) / (sums.area - sums.area2)[:, :, None]
    photons = source[:, :, None] + rim * (whole - source)[:, :, None]
    return variance, pixel[:, :, None] * sums.nested + photons, pixel * sums.linear + whole
