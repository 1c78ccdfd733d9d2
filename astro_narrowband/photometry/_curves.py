"""What growth curves tell: the best radius, and whether the sky is right."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._engine.door import door, or_of, real
from astro_narrowband.exceptions import InputError

#: Radii beyond the core that a test of the background needs.
MIN_RADII = 5
#: What is known beforehand of 1/beta of a Moffat profile: mean and spread.
PRIOR = (0.3, 0.1)


@door
def optimal_radius(curves, *, profile=None):
    """
    Return the radius that gives each star its best signal to noise.

    Parameters
    ----------
    curves : `~astro_narrowband.photometry.GrowthCurves`
        With errors.
    profile : `~astro_narrowband.photometry.GrowthCurves`, optional
        With one star, at the same radii: the shape of all stars, from
        ``curves.stacked()``. The flux of each star is fitted to it, so that the
        noise of a faint star does not choose its radius. Default is to take each
        curve as it is.

    Returns
    -------
    `~astropy.table.QTable`
        ``id``, ``radius`` [pix] (between the measured ones, by a parabola),
        ``snr`` there; NaN where there is none.

    Raises
    ------
    InputError
        If the profile has other radii.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband import growth_curves, optimal_radius
    >>> y, x = np.mgrid[:60, :60]
    >>> model = 100 + 500 * (1 + ((x - 30.2) ** 2 + (y - 29.6) ** 2) / 9) ** -3.0
    >>> image = np.random.default_rng(1).poisson(model).astype(float)
    >>> ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model))
    >>> curves = growth_curves(ccd, [(30.2, 29.6)], range(1, 20), r_in=22, r_out=28)
    >>> print(optimal_radius(curves)["radius"].round(1))
    [3.3] pix
    """
    flux = curves.flux
    if profile is not None:
        if len(profile) != 1 or not np.array_equal(profile.radii, curves.radii):
            raise InputError("profile must be one curve at the same radii: curves.stacked()")
        shape = profile.flux[0]
        weight = 1 / np.where(curves.flux_err > 0, curves.flux_err, np.nan) ** 2
        scale = np.nansum(weight * shape * flux, axis=1) / np.nansum(weight * shape**2, axis=1)
        flux = scale[:, None] * shape
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = flux / curves.flux_err
    radius, best = np.full(len(curves), np.nan), np.full(len(curves), np.nan)
    for i, row in enumerate(snr):
        if np.isfinite(row).any():
            radius[i], best[i] = _peak(curves.radii, row, int(np.nanargmax(row)))
    table = QTable()
    table["id"], table["radius"], table["snr"] = curves.id, radius * u.pix, best
    return table


def _peak(x, y, j):
    """Position and height of the parabola through the points around ``j``."""
    if j in (0, len(x) - 1) or not np.isfinite(y[j - 1 : j + 2]).all():
        return x[j], y[j]
    a, b, c = np.polyfit(x[j - 1 : j + 2] - x[j], y[j - 1 : j + 2], 2)
    if a >= 0:
        return x[j], y[j]
    return x[j] - b / (2 * a), c - b * b / (4 * a)


# --------------------------------------------------------------------------- background


@door(wing=or_of(str, real(above=2)))
def diagnose_background(curves, *, wing="moffat", r_min=None):
    """
    Say whether the sky under growth curves is right: a number, its error, and in words.

    The flux that a curve gains from radius to radius is that of the star's wing,
    and whatever level was left under it: ``dF = db dA + wing``. Both are fitted;
    db is the level that is left, per pixel: above zero where too little sky was
    taken off, below where too much was.

    Parameters
    ----------
    curves : `~astro_narrowband.photometry.GrowthCurves`
        To radii of several times the FWHM.
    wing : {"moffat"} or float, optional
        A Moffat profile whose flux, width and exponent are fitted along with db;
        or the wing falls as r to the minus this power, above 2, 6 for a Moffat profile
        with beta = 3. The power law needs a larger ``r_min``; it has fewer unknowns.
    r_min : float, optional
        Radius from which increments count [pix]. Default is the radius that holds
        half the light for the Moffat profile, and three times it for a power.

    Returns
    -------
    `~astropy.table.QTable`
        ``id``; ``residual``, ``residual_err``: db, the error of the sky level
        included; ``z``, their ratio; ``unsubtracted``, ``unsubtracted_err``: the same
        for the curve without sky subtraction; ``r_min`` [pix]; ``n_radii``;
        ``chi2`` (per degree of freedom; errors are scaled up where it is above 1);
        ``verdict``: ``"right"`` (abs(z) < 2), ``"doubtful"`` (< 3), ``"too low"``, ``"too
        high"`` (of the sky that was subtracted) or ``"untested"``; ``words``.

    Raises
    ------
    InputError
        If ``wing`` is neither.

    Notes
    -----
    The increments of neighbouring radii share pixels: the fit uses their full
    covariance. For the Moffat profile, 1/beta has a prior of 0.3 with a spread of
    0.1, which faint stars need and bright ones overrule.

    A neighbour, a nebula or a galaxy under the star looks like sky to this test:
    it says that the curve is not that of a star on the level subtracted, not why.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband import diagnose_background, growth_curves
    >>> y, x = np.mgrid[:60, :60]
    >>> model = 100 + 500 * (1 + ((x - 30.2) ** 2 + (y - 29.6) ** 2) / 9) ** -3.0
    >>> image = np.random.default_rng(1).poisson(model).astype(float)
    >>> ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model))
    >>> curves = growth_curves(ccd, [(30.2, 29.6)], range(1, 20), r_in=22, r_out=28)
    >>> print(diagnose_background(curves)["verdict"][0])
    right
    """
    if isinstance(wing, str) and wing != "moffat":
        raise InputError(f"wing = {wing!r} is not known: use 'moffat' or a power")
    half = _half_light(curves)
    matrix = curves.covariance(sky=False)
    rows = [
        _diagnose(curves, i, matrix[i], wing, r_min, half[i]) for i in range(len(curves))
    ]  # fmt: skip
    unit = 1 if curves.unit is None else curves.unit
    table = QTable()
    table["id"] = curves.id
    for name in ("residual", "residual_err"):
        table[name] = np.array([row[name] for row in rows], float) * unit
    table["z"] = np.array([row["z"] for row in rows], float)
    for name in ("unsubtracted", "unsubtracted_err"):
        table[name] = np.array([row[name] for row in rows], float) * unit
    table["r_min"] = np.array([row["r_min"] for row in rows], float) * u.pix
    table["n_radii"] = np.array([row["n_radii"] for row in rows], int)
    table["chi2"] = np.array([row["chi2"] for row in rows], float)
    for name in ("verdict", "words"):
        table[name] = np.array([row[name] for row in rows], dtype=str)
    return table


def _half_light(curves):
    """Radii of half the light, the level that the outer third still gains taken off."""
    n = max(2, len(curves.radii) // 3)
    if len(curves.radii) < n + 1:
        return curves.radius_at(0.5)
    gain = curves.flux[:, -1] - curves.flux[:, -1 - n]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = gain / (curves.area[:, -1] - curves.area[:, -1 - n])
    return replace(curves, flux=curves.flux - level[:, None] * curves.area).radius_at(0.5)


def _diagnose(curves, i, matrix, wing, r_min, half):
    nan = math.nan
    names = ("residual", "residual_err", "z", "unsubtracted", "unsubtracted_err", "chi2")
    row = dict.fromkeys(names, nan) | {"n_radii": 0, "verdict": "untested"}
    start = r_min if r_min is not None else half * (1.0 if wing == "moffat" else 3.0)
    row["r_min"] = start
    flux = curves.flux[i]
    if not (math.isfinite(start) and np.isfinite(flux).all() and np.isfinite(matrix).all()):
        row["words"] = "not tested: the curve has no half-light radius, or holes"
        return row
    j = np.flatnonzero(curves.radii >= start - 1e-9)
    row["n_radii"] = len(j)
    if len(j) < MIN_RADII + 1:
        row["words"] = f"not tested: fewer than {MIN_RADII + 1} radii from {start:.3g} pix outwards"
        return row
    increments = _increments(curves, i, matrix, j)
    if increments is None:
        row["words"] = "not tested: the errors of its increments contradict each other"
        return row
    if wing == "moffat":
        fitted = _fit_moffat(*increments, half)
        residual, err = fitted.parameters[1], math.sqrt(fitted.covariance[1, 1])
        chi2, n_free = fitted.chi2, fitted.n_free
    else:
        residual, err, chi2, n_free = _fit_power(*increments, wing)
    scatter = max(chi2 / max(n_free, 1), 1.0)
    err *= math.sqrt(scatter)
    row["residual"], row["chi2"] = residual, chi2 / max(n_free, 1)
    row["residual_err"] = math.hypot(err, curves.sky_err[i])
    row["z"] = residual / row["residual_err"]
    row["unsubtracted"], row["unsubtracted_err"] = residual + curves.sky[i], err
    row["verdict"], row["words"] = _words(row, curves.unit)
    return row


def _increments(curves, i, matrix, j):
    """Increments of a curve between radii ``j``, whitened: y, whitening, areas, radii; or None."""
    step = np.diff(np.eye(len(j)), axis=0)
    covariance = step @ matrix[np.ix_(j, j)] @ step.T
    if np.linalg.eigvalsh(covariance)[0] <= 0:
        return None
    root = np.linalg.cholesky(covariance)
    whiten = np.linalg.solve(root, np.eye(len(root)))
    return (
        whiten @ (step @ curves.flux[i, j]), whiten, step @ curves.area[i, j], curves.radii[j]
    )  # fmt: skip


def _fit_power(y, whiten, areas, r, power):
    """Level left, its error, chi2 and degrees of freedom, for a wing that is a power of r."""
    p = power - 2
    wing = 2 * math.pi / p * (r[:-1] ** -p - r[1:] ** -p)
    design = whiten @ np.column_stack([areas, wing / wing.max()])
    solution, *_ = np.linalg.lstsq(design, y)
    normal = np.linalg.inv(design.T @ design)
    chi2 = ((y - design @ solution) ** 2).sum()
    return solution[0], math.sqrt(normal[0, 0]), chi2, len(y) - 2


class _MoffatFit(NamedTuple):
    """Parameters (flux, level left, log of the half-light radius, 1/beta) and how sure they are."""

    parameters: np.ndarray
    covariance: np.ndarray
    chi2: float
    n_free: int


def _within(r, log_width, inverse_beta):
    """Part of the light of a Moffat profile within r; 1/beta -> 0 is a Gaussian."""
    beta = 1 / max(inverse_beta, 1e-3)
    alpha2 = math.exp(2 * log_width) / (2 ** (1 / (beta - 1)) - 1)
    return -np.expm1((1 - beta) * np.log1p(np.square(r) / alpha2))


def _fit_moffat(y, whiten, areas, r, half):
    """Fit a Moffat profile and a level to increments, as `_MoffatFit`."""
    from scipy.optimize import least_squares

    level = whiten @ areas

    def light(*shape):
        return whiten @ np.diff(_within(r, *shape))

    def solve(shape):
        design = np.column_stack([light(*shape), level])
        solution, *_ = np.linalg.lstsq(design, y)
        return solution, y - design @ solution

    def residuals(shape):
        return np.append(solve(shape)[1], (shape[1] - PRIOR[0]) / PRIOR[1])

    start = [math.log(half), PRIOR[0]]
    bounds = ([math.log(half / 4), 1e-3], [math.log(half * 4), 0.6])
    shape = least_squares(residuals, start, bounds=bounds, x_scale=[0.1, 0.1]).x
    (flux, db), left = solve(shape)
    # Errors of all four: flux, level, width and exponent.
    columns = [light(*shape), level]
    for k, tiny in enumerate((1e-4, 1e-4)):
        up, down = shape.copy(), shape.copy()
        up[k], down[k] = up[k] + tiny, down[k] - tiny
        columns.append(flux * (light(*up) - light(*down)) / (2 * tiny))
    design = np.column_stack(columns)
    scale = np.sqrt((design**2).sum(axis=0))
    scale[scale == 0] = 1.0
    normal = (design / scale).T @ (design / scale)
    normal[3, 3] += 1 / (PRIOR[1] * scale[3]) ** 2
    covariance = np.linalg.pinv(normal) / np.outer(scale, scale)
    return _MoffatFit(
        np.array([flux, db, *shape]), covariance, float((left**2).sum()), max(len(y) - 3, 1)
    )


def _words(row, unit):
    """The verdict on the sky-subtracted curve, and a sentence on both curves."""
    per = f" {unit.to_string()}/pix" if unit is not None else " per pix"
    with_sky = _with_error(row["residual"], row["residual_err"]) + per
    without = _with_error(row["unsubtracted"], row["unsubtracted_err"]) + per
    z, raw = row["z"], row["unsubtracted"] / row["unsubtracted_err"]
    where = f"beyond {row['r_min']:.3g} pix, the star's wing aside,"
    if abs(z) < 2:
        if abs(raw) < 2:
            return "right", (
                f"both curves are right: {where} neither rises or falls ({with_sky} with the sky "
                f"subtracted, {without} without)"
            )
        return "right", (
            f"the curve with the sky subtracted is right: {where} it is flat ({with_sky}); "
            f"without subtraction it changes by {without}"
        )
    if abs(z) < 3:
        return "doubtful", (
            f"the curve with the sky subtracted is doubtful: {where} it changes by {with_sky} "
            f"({abs(z):.1f} sigma); without subtraction by {without}"
        )
    verdict, motion = ("too low", "rises") if z > 0 else ("too high", "falls")
    other = (
        "the curve without subtraction is right" if abs(raw) < 2 else "neither curve is right"
    )  # fmt: skip
    return verdict, (
        f"{other}: {where} the one with the sky subtracted {motion} by {with_sky} "
        f"({abs(z):.1f} sigma): the sky was taken {verdict}; without subtraction {without}"
    )


def _with_error(value, err):
    """A value with its error, to the two digits of the error that mean something."""
    digits = 1 - math.floor(math.log10(err)) if err > 0 else 6
    if 0 <= digits <= 6:
        return f"{value:+.{digits}f} +- {err:.{digits}f}"
    return f"{value:+.3g} +- {err:.2g}"
