"""What growth curves tell: aperture correction, best radius, and whether the sky is right."""

import math
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband.exceptions import InputError

__all__ = ["ApertureCorrection", "aperture_correction", "diagnose_background", "optimal_radius"]


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
    """

    factor: float
    err: float
    scatter: float
    n_used: int
    r_from: float
    r_to: float

    def apply(self, flux, flux_err):
        """Return corrected fluxes and errors, that of the correction included."""
        return flux * self.factor, np.sqrt((flux_err * self.factor) ** 2 + (flux * self.err) ** 2)


def aperture_correction(curves, r_from, r_to, *, use=None, min_snr=50.0, clip=4.0):
    """
    Return the factor from the flux in a small aperture to that in a large one.

    Parameters
    ----------
    curves : `GrowthCurves`
        Both radii are among its radii.
    r_from, r_to : float
        [pix]
    use : array_like of bool, (n,), optional
        Which stars. Default is those without a flag within ``r_to`` and brighter
        than ``min_snr`` times their noise within ``r_from``.
    min_snr : float, optional
    clip : float, optional
        Stars further than this many times their error (with the scatter) from
        the mean are left out.

    Returns
    -------
    `ApertureCorrection`

    Raises
    ------
    InputError
        If there is no such star.
    """
    a, b = curves._at(r_from, "r_from"), curves._at(r_to, "r_to")
    flux_a, flux_b = curves.flux[:, a], curves.flux[:, b]
    if use is None:
        use = (curves.flags[:, b] | curves.flags[:, a]) == 0
        with np.errstate(invalid="ignore", divide="ignore"):
            use = use & (flux_a > min_snr * curves.flux_err[:, a])
    use = np.flatnonzero(np.asarray(use, bool) & np.isfinite(flux_b) & (flux_a > 0))
    if not use.size:
        raise InputError(
            f"no star for the aperture correction from {r_from:g} to {r_to:g} pix: none is "
            f"without flags and above {min_snr:g} times its noise; give use="
        )
    ratio = flux_b[use] / flux_a[use]
    matrix = curves[use].covariance()
    variance = (
        matrix[:, b, b] + ratio**2 * matrix[:, a, a] - 2 * ratio * matrix[:, a, b]
    ) / flux_a[use] ** 2  # fmt: skip
    variance = np.maximum(variance, 1e-16)
    keep = np.ones(len(use), bool)
    for _ in range(10):
        mean, err, scatter = _mean_with_scatter(ratio[keep], variance[keep])
        good = np.abs(ratio - mean) <= clip * np.sqrt(variance + scatter**2)
        if not good.any() or (good == keep).all():
            break
        keep = good
    return ApertureCorrection(mean, err, scatter, int(keep.sum()), float(r_from), float(r_to))


def _mean_with_scatter(values, variance):
    """Weighted mean, its error, and the scatter that makes chi2 as it should be."""
    n, scatter2 = len(values), 0.0
    if n > 1:
        low, high = 0.0, float(np.var(values, ddof=1)) + float(variance.max())
        for _ in range(60):
            scatter2 = 0.5 * (low + high)
            w = 1 / (variance + scatter2)
            mean = (w * values).sum() / w.sum()
            excess = (w * (values - mean) ** 2).sum() > n - 1
            low, high = (scatter2, high) if excess else (low, scatter2)
    w = 1 / (variance + scatter2)
    return float((w * values).sum() / w.sum()), float(w.sum() ** -0.5), math.sqrt(scatter2)


def optimal_radius(curves):
    """
    Return the radius of the best signal to noise.

    Parameters
    ----------
    curves : `GrowthCurves`

    Returns
    -------
    `~astropy.table.QTable`
        ``id``, ``radius`` [pix], ``snr``; NaN where there is none.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = curves.flux / curves.flux_err
    radius, best = np.full(len(curves), np.nan), np.full(len(curves), np.nan)
    for i, row in enumerate(snr):
        if np.isfinite(row).any():
            j = int(np.nanargmax(row))
            radius[i], best[i] = curves.radii[j], row[j]
    table = QTable()
    table["id"], table["radius"], table["snr"] = curves.id, radius * u.pix, best
    return table


def diagnose_background(curves, *, r_min=None, wing_exponent=6.0):
    """
    Say whether the sky under growth curves is right, with a number.

    Outside the core the increments of a curve are fitted with
    ``dF = db dA + c dA r**-wing_exponent``: a level that is left, and the wing of
    the star.

    Parameters
    ----------
    curves : `GrowthCurves`
    r_min : float, optional
        Radius from which increments count [pix]. Default is three times the
        radius that holds half the light.
    wing_exponent : float, optional
        6 is that of a Moffat profile with beta = 3.

    Returns
    -------
    `~astropy.table.QTable`
        ``id``; ``residual``, ``residual_err`` (per pixel; above zero where the
        sky was taken too low); ``z``; ``wing``; ``n_radii``; ``verdict``.
    """
    n = len(curves)
    half = curves.radius_at(0.5)
    columns = {name: np.full(n, np.nan) for name in ("residual", "residual_err", "z", "wing")}
    n_radii = np.zeros(n, int)
    verdict = []
    full = curves.covariance(sky=False)
    for i in range(n):
        start = r_min if r_min is not None else 3 * half[i]
        j = np.flatnonzero(curves.radii >= start) if np.isfinite(start) else np.zeros(0, int)
        if len(j) < 4 or not np.isfinite(curves.flux[i, j]).all():
            verdict.append("not tested: fewer than 4 radii outside the core")
            continue
        r = curves.radii[j]
        increments = np.diff(curves.flux[i, j])
        areas = np.diff(curves.area[i, j])
        p = wing_exponent - 2
        wing = 2 * math.pi / p * (r[:-1] ** -p - r[1:] ** -p)
        step = np.diff(np.eye(len(j)), axis=0)
        matrix = step @ full[i][np.ix_(j, j)] @ step.T
        design = np.column_stack([areas, wing])
        inverse = np.linalg.inv(matrix)
        normal = np.linalg.inv(design.T @ inverse @ design)
        db, c = normal @ (design.T @ inverse @ increments)
        err = math.hypot(math.sqrt(normal[0, 0]), curves.sky_err[i])
        columns["residual"][i], columns["residual_err"][i] = db, err
        columns["z"][i], columns["wing"][i] = db / err, c
        n_radii[i] = len(j)
        verdict.append("right" if abs(db) < 2 * err else "wrong")
    unit = 1 if curves.unit is None else curves.unit
    table = QTable()
    table["id"] = curves.id
    table["residual"] = columns["residual"] * unit
    table["residual_err"] = columns["residual_err"] * unit
    table["z"], table["wing"], table["n_radii"] = columns["z"], columns["wing"], n_radii
    table["verdict"] = np.array(verdict, dtype=str)
    return table
