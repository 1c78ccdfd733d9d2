"""Electrons per second to erg per second and square centimetre, by stars of known spectra."""

import math
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.constants import c, h

from astro_narrowband._engine.door import a_table, array, door, items_of, of_class, of_two, quantity
from astro_narrowband._engine.validate import as_unit, bare, number, positive
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._filters import line_named
from astro_narrowband.lines._map import REFERENCES, pixel_area
from astro_narrowband.lines._starscale import robust_mean

FLUX = u.erg / u.s / u.cm**2
#: What a flux scale is not known better than, relative, unless the user knows: the absolute
#: calibration of the references, and what a filter curve is not known.
FLOOR = 0.03


#: Columns of AB magnitudes in catalogues, and their wavelengths [nm].
BANDS = {"g": 475.0, "r": 622.0, "i": 763.0, "z": 905.0}


@dataclass(frozen=True)
class FluxScale:
    """
    What one electron/s of a line is.

    Attributes
    ----------
    value : float
        [erg/(s cm2) per electron/s], through the filter curve, for one line.
    random, floor : float
        Relative errors: of the mean of the stars with what their measurement has in common, and
        what is not known of the references.
    n_stars : int
    scatter : float
        From star to star beyond their errors, relative.
    colour_slope, colour_slope_err : float
        Change of ln value with the stars' colour; 0 where it does not show.
    used : array of bool or None
        Of the stars given.
    residuals : array or None
        ln of each star's own scale over the model.
    """

    value: float
    random: float
    floor: float
    n_stars: int = 0
    scatter: float = math.nan
    colour_slope: float = 0.0
    colour_slope_err: float = math.nan
    used: np.ndarray | None = None
    residuals: np.ndarray | None = None

    @property
    def error(self):
        """Relative error, all of it common to all pixels of a map."""
        return math.hypot(self.random, self.floor)


@door(wavelength=quantity(u.nm, ndim=1), density=quantity(FLUX / u.nm))
def flux_from_spectra(curve, line, *, wavelength, density, velocity=0.0):
    """
    Flux of a line that gives as many counts as a star.

    Parameters
    ----------
    curve : FilterCurve
    line : str or Line
    wavelength : `~astropy.units.Quantity` (n,)
        Of the spectra, ascending, as GaiaXPy's ``sampling`` (nm) or a CALSPEC file (Angstrom).
    density : `~astropy.units.Quantity` (..., n)
        Flux per wavelength, as GaiaXPy's ``flux`` in W/(nm m2).
    velocity : float, optional
        Of the source of the line [km/s].

    Returns
    -------
    `~astropy.units.Quantity` (...)
        [erg/(s cm2)].

    Notes
    -----
    Integral of f_lambda T lambda over lambda_L T(lambda_L), after Jacoby, Quigley & Africano 1987,
    PASP 99, 672. Gaia XP spectra are coarser than narrow filters: use stars of a smooth continuum,
    without strong Balmer lines or molecular bands.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy import units as u
    >>> from astro_narrowband.lines import FilterCurve, flux_from_spectra
    >>> flat = np.full(400, 1e-14) * u.erg / u.s / u.cm**2 / u.nm
    >>> curve = FilterCurve.from_shape(656.3, 7.0)
    >>> flux = flux_from_spectra(curve, "Halpha", wavelength=np.linspace(400, 900, 400) * u.nm,
    ...                          density=flat)
    >>> print(f"{flux:.2e}")
    7.33e-14 erg / (s cm2)
    """
    response = curve.checked_response(line, velocity=velocity)
    return curve.integral(wavelength, density) / response * FLUX


@door(bands=items_of(array(u.ABmag)))
def flux_from_magnitudes(curve, line, *, bands, velocity=0.0):
    """
    As `flux_from_spectra`, of AB magnitudes on both sides of the filter.

    Parameters
    ----------
    curve, line, velocity
        As for `flux_from_spectra`.
    bands : dict of float to array (n_stars,)
        Wavelength of each band [nm] to its AB magnitudes: two at least.

    Returns
    -------
    `~astropy.units.Quantity` (n_stars,)
        [erg/(s cm2)]; the spectrum is a power law from band to band.
    """
    wavelength, density = _power_laws(bands)
    if not min(bands) <= curve.centre <= max(bands):
        raise InputError(
            f"bands from {min(bands):g} to {max(bands):g} nm do not enclose the filter "
            f"{curve.name} at {curve.centre:.1f} nm"
        )
    return flux_from_spectra(curve, line, wavelength=wavelength, density=density, velocity=velocity)


def _power_laws(bands):
    """Wavelengths and spectra of AB magnitudes, a power law from band to band and beyond."""
    if len(bands) < 2:
        raise InputError("bands: AB magnitudes of two bands are needed, one on each side")
    at = np.array(sorted(number(wavelength, "bands") for wavelength in bands))
    # f_lambda = f_nu c / lambda^2, in logarithms.
    log = np.array([-0.4 * (bands[w] + 48.6) * math.log(10) for w in at])
    log += np.log(c.to_value(u.nm / u.s) / at**2)[:, None]
    grid = np.geomspace(0.6 * at[0], 1.6 * at[-1], 1000)
    near = np.clip(np.searchsorted(at, grid) - 1, 0, len(at) - 2)
    share = np.log(grid / at[near]) / np.log(at[near + 1] / at[near])
    density = np.exp(log[near].T * (1 - share) + log[near + 1].T * share)
    return grid * u.nm, density * FLUX / u.nm


@door(stars=a_table)
def reference_fluxes(stars, curve, line, *, velocity=0.0, source="the references"):
    """
    Flux of a line that gives as many counts as each star of a table.

    Parameters
    ----------
    stars : `~astropy.table.Table`
        With spectra in ``spectrum`` (flux per wavelength, (n_stars, n)) and their wavelengths [nm]
        in ``meta["sampling"]``, or AB magnitudes in two of g, r, i and z, as catalogues name them.
    curve, line, velocity
        As for `flux_from_spectra`.
    source : str, optional
        Where the table is from, for messages.

    Returns
    -------
    flux : `~astropy.units.Quantity` (n_stars,)
        [erg/(s cm2)].
    colour : array (n_stars,) or None
        Difference of the two bluest magnitudes; None of spectra.
    """
    if "spectrum" not in stars.colnames:
        bands = _bands_of(stars, source)
        flux = flux_from_magnitudes(curve, line, bands=bands, velocity=velocity)
        return flux, np.subtract(*(bands[wavelength] for wavelength in sorted(bands)[:2]))
    wavelength, density = _spectra_of(stars, source)
    return flux_from_spectra(
        curve, line, wavelength=wavelength, density=density, velocity=velocity
    ), None


@door(stars=a_table, curves=of_two(of_class("FilterCurve")))
def reference_colours(stars, curves, *, source="the references"):
    """
    Light of each star of a table in one filter over that in another, as a logarithm.

    Parameters
    ----------
    stars, source
        As for `reference_fluxes`.
    curves : (FilterCurve, FilterCurve)
        Of the line filter and of the continuum filter.

    Returns
    -------
    array (n_stars,)
        But for a constant, what `subtract_continuum` expects of each star: its ``colour``.
    """
    wavelength, density = (values.value for values in _spectra_of(stars, source))
    first, second = (curve.integral(wavelength, density) for curve in curves)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(first / second)


def _spectra_of(stars, source):
    """Wavelengths and spectra of a table of stars, as they are or by magnitudes."""
    if "spectrum" not in stars.colnames:
        return _power_laws(_bands_of(stars, source))
    sampling = stars.meta.get("sampling")
    if sampling is None or stars["spectrum"].unit is None:
        raise InputError(
            f"{source}: spectra need a unit, and meta['sampling'], their "
            "wavelengths in nm (GaiaXPy's sampling)"
        )
    return np.asarray(sampling, float) * u.nm, u.Quantity(stars["spectrum"])


def _bands_of(stars, source):
    """AB magnitudes of a table of stars by the wavelength of their band."""
    lower = {c.lower().replace("'", "").removesuffix("mag").rstrip("_"): c for c in stars.colnames}
    bands = {
        wavelength: bare(stars[lower[band]]) for band, wavelength in BANDS.items() if band in lower
    }
    if len(bands) < 2:
        raise InputError(
            f"{source}: has neither spectra (spectrum) nor AB magnitudes in two of "
            f"{', '.join(BANDS)}"
        )
    return bands


@door(reference=quantity(FLUX))
def flux_scale(rate, reference, *, rate_err, reference_err=0.0, rate_common=0.0, colour=None,
               floor=FLOOR, extinction=0.0, airmass=(1.0, 1.0)):  # fmt: skip
    """
    What one electron/s of a line is, by reference stars.

    Parameters
    ----------
    rate : array (n_stars,)
        Of the stars in the line filter, all of their light [electron/s].
    reference : `~astropy.units.Quantity` (n_stars,)
        What `flux_from_spectra` or `flux_from_magnitudes` gives.
    rate_err : array (n_stars,)
        [electron/s].
    reference_err : float or array (n_stars,), optional
        Relative.
    rate_common : float, optional
        Relative error that all rates share, as that of an aperture correction: no number of
        stars averages it down.
    colour : array (n_stars,), optional
        Of the stars; a slope that shows is taken out, at the mean colour.
    floor : float, optional
        Relative error that all references share.
    extinction : float, optional
        Of the air [mag per airmass], where the references are a standard star's own frames.
    airmass : (float, float), optional
        Of the target and of the standard star.

    Returns
    -------
    FluxScale
        With its random error and its floor.

    Raises
    ------
    InputError
        If no star is usable. A single star has no scatter: its error is its own.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy import units as u
    >>> from astro_narrowband import flux_scale
    >>> rate = np.array([200.0, 340.0, 120.0])
    >>> reference = rate * [1.01, 0.99, 1.0] * 2e-16 * u.erg / u.s / u.cm**2
    >>> scale = flux_scale(rate, reference, rate_err=0.01 * rate)
    >>> print(f"{scale.value:.3g} +- {100 * scale.random:.1f} % +- {100 * scale.floor:.0f} %")
    2e-16 +- 0.6 % +- 3 %
    """
    known = reference
    if colour is not None:
        _same_length(rate, colour=np.atleast_1d(colour))
    _same_length(rate, rate_err=rate_err, reference=known, reference_err=reference_err)
    with np.errstate(invalid="ignore", divide="ignore"):
        log, err = np.log(known / rate), np.hypot(rate_err / rate, reference_err)
        good = (rate > 3 * rate_err) & (rate_err > 0) & (known > 0) & np.isfinite(known + err)
    if not good.any():
        raise InputError(
            f"flux scale: none of {len(rate)} reference stars has a known flux and is measured at "
            "three times its error"
        )
    values, err = np.where(good, log, np.nan), np.where(good, err, np.nan)
    mean, random, used, scatter, term = robust_mean(values, err, colour)
    air = 0.4 * math.log(10) * extinction * (airmass[0] - airmass[1])
    model = mean + (term[1] * (colour - term[0]) if term[1] else 0.0)
    return FluxScale(
        math.exp(mean + air), math.hypot(random, rate_common), floor,
        int(used.sum()), float(scatter), term[1], term[2], used, values - model,
    )  # fmt: skip


def _same_length(rate, **others):
    """`InputError` for what is neither one number nor one for each rate, in a row."""
    for name, values in others.items():
        if rate.ndim != 1 or np.shape(values) not in ((), rate.shape):
            raise InputError(f"{name}: {np.size(values)} for {rate.size} stars: give one for each")


@door
def scale_of_area(curve, line, *, area, error, velocity=0.0):
    """
    What one electron/s of a line is, by the collecting area: without reference stars.

    Parameters
    ----------
    curve : FilterCurve
        With all that is between the sky and the counts: optics, filter, detector.
    line : str or Line
    area : float or `~astropy.units.Quantity`
        [cm2].
    error : float
        Relative, of the area and of the curve: an error of this line alone, which ratios have.
    velocity : float, optional
        [km/s].

    Returns
    -------
    FluxScale

    Examples
    --------
    >>> from astro_narrowband.lines import FilterCurve, scale_of_area
    >>> curve = FilterCurve.from_shape(656.3, 7.0, peak=0.5)
    >>> print(f"{scale_of_area(curve, 'Halpha', area=300.0, error=0.1).value:.3e}")
    2.018e-14
    """
    response = curve.checked_response(line, velocity=velocity)
    value = (h * c).to_value(u.erg * u.nm) / (response * area)
    return FluxScale(value, error, 0.0)


@door(scale=of_class("FluxScale"))
def calibrate_flux(line_map, scale):
    """
    Return a line map in erg/(s cm2).

    Parameters
    ----------
    line_map : LineMap
        In electron/s.
    scale : FluxScale
        Of `flux_scale`.

    Returns
    -------
    LineMap
        With ``"flux scale"``, the random error, and ``"references"``, the floor, which all lines
        share and ratios have not, both relative, among what its pixels have in common. Header:
        FLUXCAL [erg/(s cm2) per electron/s], FLUXRAN and FLUXFLO (relative errors), FLUXSTAR.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy import units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from astro_narrowband import LineMap, calibrate_flux, flux_scale
    >>> noise = StdDevUncertainty(np.full((40, 40), 0.1))
    >>> line = LineMap(np.full((40, 40), 5.0), unit="electron/s", uncertainty=noise)
    >>> rate = np.array([200.0, 340.0, 120.0])
    >>> scale = flux_scale(rate, 2e-16 * rate * u.erg / u.s / u.cm**2, rate_err=0.01 * rate)
    >>> calibrated = calibrate_flux(line, scale)
    >>> print(f"{calibrated.data[0, 0]:.3g}", sorted(calibrated.common))
    1e-15 ['flux scale', 'references']
    """
    if line_map.unit != u.electron / u.s:
        raise InputError(f"line map in {line_map.unit}: a flux scale is for electron/s")
    common = {"flux scale": scale.random, REFERENCES: scale.floor}
    result = line_map.scaled(positive(scale.value, "scale"), FLUX, common=common)
    result.meta["FLUXCAL"] = (scale.value, "[erg/(s cm2)] of one electron/s")
    result.meta["FLUXRAN"] = (scale.random, "relative error of the stars' mean")
    result.meta["FLUXFLO"] = (scale.floor, "relative error that all references share")
    result.meta["FLUXSTAR"] = (scale.n_stars, "reference stars used")
    return result


@door(unit=None)
def surface_brightness(line_map, *, unit="erg / (s cm2 arcsec2)", line=None):
    """
    Return a line map per solid angle.

    Parameters
    ----------
    line_map : LineMap
        In erg/(s cm2), with a WCS.
    unit : unit-like, optional
        ``"erg / (s cm2 arcsec2)"`` or ``"R"``, Rayleigh.
    line : str or Line, optional
        Whose photons are counted, for Rayleigh.

    Returns
    -------
    LineMap

    Notes
    -----
    1 Rayleigh is 10^6 / (4 pi) photons / (s cm2 sr): 5.661e-18 erg/(s cm2 arcsec2) at Halpha.
    """
    area = pixel_area(line_map)
    per_angle = FLUX / u.arcsec**2
    if str(unit) not in ("R", "Rayleigh"):
        unit = as_unit(unit, "unit")
        return line_map.scaled(number(1 * per_angle, "unit", unit) / area, unit)
    if line is None:
        raise InputError("Rayleigh counts photons: give the line")
    wavelength = line_named(line).wavelengths[0] * u.nm
    rayleigh = 1e6 / (4 * math.pi) / u.s / u.cm**2 / u.sr * (h * c / wavelength)
    return line_map.scaled(1 / area / rayleigh.to_value(per_angle), u.R)
