"""The aperture correction: from the flux in a small circle to the whole light, over the field."""

import math
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.door import door, real
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import alike
from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry._curves import (
    MIN_RADII,
    _fit_moffat,
    _half_light,
    _increments,
    _within,
)

#: From so many stars on their scatter says more of their mean than their errors do.
MANY = 10
#: Light of a star beyond the largest radius of its curve: mean and spread, as parts of it.
USUAL = 0.01, 0.02
#: Of that light, the error of a fit to Moffat profiles; and what it is off for sums of them and
#: others: a third in all.
FIT, MODEL = 0.1, 0.32
#: Light in circles depends on where in its pixel a star is, in each radius of its own: relative, at
#: half the light; it falls outwards.
SAMPLING = 0.003
#: A surface that chance makes as good as this is none.
CHANCE = 1e-3
#: Of less than this part of a star nobody can tell: wings of neighbours in annuli hide it.
LEAST = 0.005
#: How much of what stars are less dense by their correction is larger: for one of 1, its slope,
#: the most, and the error of that.
FOLLOWS = 0.12, 3.0, 0.75, 0.2


@door
class ApertureCorrection(NamedTuple):
    """
    Flux within ``r_to`` over flux within ``r_from``.

    Attributes
    ----------
    factor, err : float
        The ratio and its error.
    scatter : float
        Of the stars, beyond their errors.
    n_used : int
    r_from, r_to : float
        [pix]
    beyond : float
        Part of ``err`` that comes from the light beyond the largest radius.
    surface : `Surface` or None
        The ratio over the field, in units of its mean, where it is not one number.
    model : float
        Part of ``err`` that no star tells: of the profile by which light was extrapolated.
    """

    factor: float
    err: float
    scatter: float
    n_used: int
    r_from: float
    r_to: float
    beyond: float = 0.0
    surface: "Surface | None" = None
    model: float = 0.0

    def at(self, x, y):
        """Return factor and error of single stars at ``x``, ``y`` [pix]: the scatter is in it."""
        alike(x=x, y=y)
        factor, variance = np.full(np.shape(x), self.factor), self.err**2
        if self.surface is not None:
            shape, variance = self.surface.at(x, y)
            factor, variance = self.factor * shape, self.factor**2 * variance + self.beyond**2
        return factor, np.sqrt(variance + self.scatter**2)

    def apply(self, flux, flux_err, x=None, y=None):
        """
        Return corrected fluxes and errors, that of the correction and its scatter included.

        With positions ``x``, ``y`` [pix] the correction is that of the place.
        """
        factor, err = self.factor, math.hypot(self.err, self.scatter)
        if x is not None:
            factor, err = self.at(x, y)
        alike(flux=flux, flux_err=flux_err, **({} if x is None else {"x": x, "y": y}))
        if getattr(flux, "unit", None) != getattr(flux_err, "unit", None):
            raise InputError("flux and flux_err are in different units: give both in one")
        return flux * factor, np.sqrt((flux_err * factor) ** 2 + (flux * err) ** 2)


class Surface(NamedTuple):
    """A polynomial over the field: where it is 0, its unit of length, coefficients, covariance."""

    middle: np.ndarray
    half: float
    coefficients: np.ndarray
    covariance: np.ndarray

    def at(self, x, y):
        """Return values and their variances."""
        terms = terms_of((x - self.middle[0]) / self.half, (y - self.middle[1]) / self.half)
        terms = terms[..., : len(self.coefficients)]
        return terms @ self.coefficients, np.sum((terms @ self.covariance) * terms, axis=-1)


def terms_of(x, y):
    """Return the terms of a `Surface`, (..., 6): those of the first and second order."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def frame_of(x, y):
    """Return the middle of positions and half of their extent: the frame of a `Surface`."""
    return np.array([np.mean(x), np.mean(y)]), max(np.ptp(x), np.ptp(y), 1.0) / 2


def _surface(x, y, ratio, variance, frame):
    """The lowest surface that the ratios ask for: `Surface` or None, and the scatter about it."""
    from scipy.stats import f

    mean, _, scatter = _mean_with_scatter(ratio, variance)
    middle, half = frame
    terms = terms_of((x - middle[0]) / half, (y - middle[1]) / half)
    surface, n_terms, model = None, 1, np.full(len(ratio), mean)
    for k in (3, 6):
        if len(ratio) < k + 6:
            break
        weight = 1 / np.sqrt(variance + scatter**2)
        design = terms[:, :k] * weight[:, None]
        solution = np.linalg.lstsq(design, ratio * weight, rcond=None)[0]
        left = np.sum((ratio * weight - design @ solution) ** 2)
        n_free = len(ratio) - k
        before = np.sum(((ratio - model) * weight) ** 2)
        if f.sf((before - left) / (k - n_terms) / (left / n_free), k - n_terms, n_free) > CHANCE:
            continue
        model = terms[:, :k] @ solution
        scatter = _mean_with_scatter(ratio - model + mean, variance * n_free / len(ratio))[2]
        weight = 1 / np.sqrt(variance + scatter**2)
        design = terms[:, :k] * weight[:, None]
        covariance = np.linalg.pinv(design.T @ design)
        surface = Surface(middle, half, solution / mean, covariance / mean**2)
        n_terms = k
    return surface, scatter


@door(clip=real(least=1))
def aperture_correction(curves, r_from, r_to=math.inf, *, use=None, min_snr=50.0, clip=4.0):
    """
    Return the factor from the flux in a small aperture to that in a large one.

    Parameters
    ----------
    curves : `~astro_narrowband.photometry.GrowthCurves`
        Both radii are among its radii.
    r_from, r_to : float
        [pix]. By default the correction is to the whole light: to the largest
        radius as measured, and from there by the Moffat profile that fits the mean
        of the curves. That also gives back the light of the star that the annulus
        took for sky.
    use : array_like of bool, (n,), optional
        Which stars. Default is those without a flag within the larger radius, and
        brighter than ``min_snr`` times their noise within ``r_from``.
    min_snr : float, optional
        Signal over noise within ``r_from`` of stars that are used by default.
    clip : float, optional
        Stars further than this many times their error, scatter included, from the
        median are left out.

    Returns
    -------
    `ApertureCorrection`
        The weighted mean of the stars' ratios. Their scatter beyond the errors
        (a seeing that varies over the field) is estimated and part of the weights
        and of the error.

    Raises
    ------
    InputError
        If there is no such star, or a radius was not measured.

    Notes
    -----
    Errors use the covariance of the two radii: what they share cancels. The error
    of the sky level does not, and usually dominates. A third of what was
    extrapolated is added to the error.

    Examples
    --------
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband.photometry import aperture_correction, growth_curves
    >>> y, x = np.mgrid[:60, :60]
    >>> model = 100 + 5000 * np.exp(-((x - 30.2) ** 2 + (y - 29.6) ** 2) / 8)
    >>> ccd = CCDData(model, unit="electron", uncertainty=VarianceUncertainty(model))
    >>> curves = growth_curves(ccd, [(30.2, 29.6)], [2, 4, 12], r_in=14, r_out=20)
    >>> correction = aperture_correction(curves, 4, 12)
    >>> round(correction.factor, 2), correction.n_used
    (1.16, 1)
    """
    return correction_over_field(curves, r_from, r_to, use=use, min_snr=min_snr, clip=clip)


def correction_over_field(curves, r_from, r_to, *, use, min_snr, clip, shape=None):
    """
    As `aperture_correction`, following the shape of stars over the field.

    Parameters
    ----------
    shape : `Surface`, optional
        Light within ``r_from`` over that within half of it, of all single stars: hundreds tell
        it where few are alone enough for a growth curve.

    Notes
    -----
    Where stars are less dense by a part s their correction is larger by b s: b is 0.16 for
    a Gaussian, 0.5 for a Moffat profile with beta = 3.5 and 0.7 with 2.5, for circles of 1.25 FWHM.
    It is fitted, from what the correction itself makes likely and 0.2.
    """
    if shape is not None and len(shape.coefficients) == 1:
        shape = None
    if r_to == math.inf:
        last = float(curves.radii[-1])
        near = correction_over_field(
            curves, r_from, last, use=use, min_snr=min_snr, clip=clip, shape=shape
        )
        more, fit, model = _beyond(curves, use, min_snr)
        err = math.hypot(fit, model)
        return near._replace(
            factor=near.factor * more,
            err=math.hypot(near.err * more, near.factor * err),
            r_to=math.inf,
            beyond=near.factor * err,
            model=near.factor * model,
        )
    x, y, ratio, variance = _ratios(curves, r_from, r_to, use, min_snr)
    away = 0.0
    if shape is not None:
        unit = shape.coefficients[0]
        shape = shape._replace(
            coefficients=shape.coefficients / unit, covariance=shape.covariance / unit**2
        )
        away = shape.at(x, y)[0] - 1
    likely = min(FOLLOWS[0] + FOLLOWS[1] * max(float(np.median(ratio)) - 1, 0.0), FOLLOWS[2])
    even = ratio / (1 + likely * away)
    centre = np.median(even)
    # The scatter as the median sees it, that a few strangers cannot widen.
    usual = mad_std(even, centre)
    excess = max(usual**2 - np.median(variance), 0.0)
    keep = np.abs(even - centre) <= clip * np.sqrt(variance + excess)
    x, y, ratio, variance = x[keep], y[keep], ratio[keep], variance[keep]
    field = None
    if shape is not None:
        field = _following(shape, x, y, ratio, variance, likely)
        ratio = ratio / field.at(x, y)[0]
    mean, err, scatter = _mean_with_scatter(ratio, variance)
    n = len(ratio)
    if scatter:
        # It is itself known from these stars alone: Student's distribution is that much wider.
        err *= math.sqrt((n - 1) / max(n - 3, 0.5))
    elif n > MANY:
        # Structure that annuli see and stars do not have: stars agree better than they say.
        chi2 = float(np.sum((ratio - mean) ** 2 / variance))
        err *= math.sqrt(min(1.0, chi2 / (n - 3)))
    frame = frame_of(x, y) if shape is None else (shape.middle, shape.half)
    surface, scatter = _surface(x, y, ratio, variance, frame)
    if field is not None:
        surface = _joined(field, surface, err / mean)
    return ApertureCorrection(mean, err, scatter, n, float(r_from), float(r_to), surface=surface)


def _ratios(curves, r_from, r_to, use, min_snr):
    """Positions of the stars that serve, their ratios of fluxes within two radii, and variances."""
    a, b = curves.index_of(r_from, "r_from"), curves.index_of(r_to, "r_to")
    flux_a, flux_b = curves.flux[:, a], curves.flux[:, b]
    if use is None:
        with np.errstate(invalid="ignore"):
            bright = flux_a > min_snr * curves.flux_err[:, a]
        use = bright & ((curves.flags[:, a] | curves.flags[:, b]) == 0)
    use = chosen(use, len(curves)) & np.isfinite(flux_b) & (flux_a > 0)
    if not use.any():
        raise InputError(
            f"no star for the aperture correction from {r_from:g} to {r_to:g} pix: none is "
            f"without flags and above {min_snr:g} times its noise; choose stars with use="
        )
    ratio = flux_b[use] / flux_a[use]
    matrix = curves[use].covariance()
    variance = matrix[:, b, b] + ratio**2 * matrix[:, a, a] - 2 * ratio * matrix[:, a, b]
    # Numbers without noise have no weight of their own: they then all have the same.
    variance = np.maximum(np.nan_to_num(variance) / flux_a[use] ** 2, 1e-16)
    return curves.x[use], curves.y[use], ratio, variance


def _following(shape, x, y, ratio, variance, likely):
    """The `Surface` of corrections, in units of their mean, that follows that of shapes."""
    mean, _, scatter = _mean_with_scatter(ratio, variance)
    weight = mean**2 / (variance + scatter**2)
    away = shape.at(x, y)[0]
    middle = np.average(away, weights=weight)
    away, sure = away - middle, FOLLOWS[3] ** -2
    known = np.sum(weight * away**2) + sure
    slope = (np.sum(weight * away * (ratio / mean - 1)) + likely * sure) / known
    change = shape.coefficients.copy()
    change[0] -= middle
    return Surface(
        shape.middle, shape.half, slope * change + (np.arange(len(change)) == 0),
        slope**2 * shape.covariance + np.outer(change, change) / known,
    )  # fmt: skip


def _joined(field, surface, err):
    """A `Surface` times another, or times a mean with a relative error, as small changes add."""
    if surface is None:
        surface = Surface(field.middle, field.half, np.ones(1), np.full((1, 1), err**2))
    n = max(len(field.coefficients), len(surface.coefficients))
    coefficients, covariance = np.zeros(n), np.zeros((n, n))
    for one in (field, surface):
        k = len(one.coefficients)
        coefficients[:k] += one.coefficients
        covariance[:k, :k] += one.covariance
    coefficients[0] -= 1
    return Surface(field.middle, field.half, coefficients, covariance)


def usual_correction(r, fwhm):
    """`ApertureCorrection` of profiles from a Gaussian to a Moffat one with beta = 2.5."""
    q2 = (r / fwhm) ** 2
    outside = np.array([2.0 ** (-4 * q2), (1 + 1.58 * q2) ** -1.5])
    least, most = 1 / (1 - outside)
    return ApertureCorrection((least + most) / 2, (most - least) / 12**0.5, 0.0, 0, r, math.inf)


def chosen(use, n):
    """Which of ``n`` stars are used, as an array of bool, or `InputError`."""
    if len(use) != n:
        raise InputError(f"use: {len(use)} values for {n} stars: give one for each")
    return np.asarray(use, bool)


def _beyond(curves, use, min_snr):
    """Whole light over that within the largest radius, errors of the fit and of its profile."""
    mean = curves.stacked(use=use, min_snr=min_snr)
    half = float(_half_light(mean)[0])
    j = np.flatnonzero(mean.radii >= half - 1e-9)
    sampling = SAMPLING * np.exp(1 - mean.radii / half)
    matrix = mean.covariance()[0] + np.diag(sampling**2)
    increments = _increments(mean, 0, matrix, j) if len(j) > MIN_RADII else None
    if increments is None:
        return 1.0, 0.0, 0.0
    fit = _fit_moffat(*increments, half)
    last = mean.radii[-1]

    def missing(parameters):
        flux, _, *shape = parameters
        out = 1 - _within(last, *shape)
        if curves.r_in is not None:
            # What the annulus took for sky was taken off the whole circle.
            ring = _within(curves.r_out, *shape) - _within(curves.r_in, *shape)
            out += ring * last**2 / (curves.r_out**2 - curves.r_in**2)
        return flux * out

    value = missing(fit.parameters)
    steps = np.eye(4) * np.maximum(np.abs(fit.parameters), 1e-3) * 1e-4
    slope = np.array(
        [
            (missing(fit.parameters + step) - missing(fit.parameters - step)) / (2 * step.max())
            for step in steps
        ]
    )
    err = math.sqrt(max(slope @ fit.covariance @ slope, 0.0) * max(fit.chi2 / fit.n_free, 1.0))
    # A fit that cannot tell falls back to what stars usually have out there.
    shrink = USUAL[1] ** 2 / (USUAL[1] ** 2 + err**2)
    value = USUAL[0] + (value - USUAL[0]) * shrink
    return 1 + value, math.hypot(err * math.sqrt(shrink), FIT * value), MODEL * max(value, LEAST)


def _mean_with_scatter(values, variance):
    """Weighted mean, its error, and the scatter that makes chi2 what it should be."""
    n, scatter2 = len(values), 0.0

    def mean_of(extra):
        weight = 1 / (variance + extra)
        return (weight * values).sum() / weight.sum(), weight

    def excess(extra):
        mean, weight = mean_of(extra)
        return (weight * (values - mean) ** 2).sum() - (n - 1)

    if n > 1 and excess(0.0) > 0:
        low, high = 0.0, float(np.var(values)) * n
        for _ in range(60):
            scatter2 = 0.5 * (low + high)
            low, high = (scatter2, high) if excess(scatter2) > 0 else (low, scatter2)
        # Two of what it gains in -2 log likelihood are chance.
        gain = excess(0.0) - np.log1p(scatter2 / variance).sum()
        scatter2 *= max(gain, 0.0) / (max(gain, 0.0) + 2)
    mean, weight = mean_of(scatter2)
    return float(mean), float(weight.sum() ** -0.5), math.sqrt(scatter2)
