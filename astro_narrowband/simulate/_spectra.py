"""What stars and nebula send at each wavelength, and what filters make of it."""

import math
from dataclasses import dataclass, field

import numpy as np

from astro_narrowband._engine.door import array, check_fields, door, items_of, real
from astro_narrowband.exceptions import InputError

#: h c [erg nm].
_HC = 1.986445857e-9
#: Lines in air [nm], the shape they have in the sky, and their flux over that of the shape's line.
_LINES = {
    "Halpha": (656.28, "Halpha"),
    "Hbeta": (486.13, "Halpha"),
    "NII6583": (658.35, "Halpha"),
    "NII6548": (654.80, "Halpha"),
    "OIII5007": (500.68, "OIII"),
    "OIII4959": (495.89, "OIII"),
    "SII6716": (671.64, "SII"),
    "SII6731": (673.08, "SII"),
}


@door(slope=array())
@dataclass(frozen=True, kw_only=True)
class SpectralModel:
    """
    Spectra of a simulated night, and the filters before its camera.

    Attributes
    ----------
    bands : dict of str to (float, float, float)
        Centre, width [nm] and peak of the transmission of each filter, by canonical name:
        peak / (1 + (2 (wavelength - centre) / width)^6).
    area : float
        Collecting area times throughput [cm2].
    nii : float
        [NII] 6583 over Halpha.
    balmer : float
        Halpha over Hbeta.
    sii : float
        [SII] 6716 over 6731.
    equivalent_width : float
        Of Halpha over the nebula's own continuum, which is flat [nm].
    slope, slope_scatter : float
        s in f ~ wavelength^s of the stars: mean and scatter. Stars have no lines.

    Examples
    --------
    >>> from astro_narrowband.simulate import SpectralModel
    >>> print(f"{SpectralModel().transmission('Halpha', 656.3):.2f}")
    0.90
    """

    bands: dict = field(
        default_factory=lambda: {
            "Halpha": (656.3, 7.0, 0.9),
            "OIII": (500.7, 7.0, 0.9),
            "SII": (672.4, 7.0, 0.9),
            "NII": (658.4, 3.0, 0.9),
            "Hbeta": (486.1, 7.0, 0.9),
            "r": (622.0, 138.0, 0.95),
            "g": (475.0, 140.0, 0.95),
            "Luminance": (550.0, 300.0, 0.97),
        }
    )
    area: float = 200.0
    nii: float = 0.35
    balmer: float = 2.86
    sii: float = 1.35
    equivalent_width: float = 100.0
    slope: float = 0.0
    slope_scatter: float = 0.8

    def __post_init__(self):
        names = ("area", "balmer", "sii", "equivalent_width")
        check_fields(
            self, bands=items_of(array(ndim=1)), nii=real(least=0), slope=real(),
            slope_scatter=real(least=0), **dict.fromkeys(names, real(above=0)),
        )  # fmt: skip
        bands = {name: tuple(np.ravel(band).tolist()) for name, band in self.bands.items()}
        object.__setattr__(self, "bands", bands)
        for name, band in self.bands.items():
            if len(band) != 3 or not all(math.isfinite(b) and b > 0 for b in band):
                raise InputError(f"band {name} = {band!r}: centre, width [nm] and peak are needed")

    def transmission(self, name, wavelength):
        """Transmission of a filter at wavelengths [nm]."""
        centre, width, peak = self._band(name)
        return peak / (1 + (2 * (np.asarray(wavelength, float) - centre) / width) ** 6)

    def _band(self, name):
        if name not in self.bands:
            raise InputError(f"filter {name!r} has no band: the model has {', '.join(self.bands)}")
        return self.bands[name]

    def continuum_rate(self, name, slope):
        """Rate [electron/s] of a spectrum f = (wavelength / 600 nm)^slope erg/(s cm2 nm)."""
        centre, width, _ = self._band(name)
        grid = centre + width * np.sinh(np.linspace(-3.5, 3.5, 4001)) / 4
        grid = grid[grid > 50]
        weight = self.transmission(name, grid) * grid * self.area / _HC
        slope = np.ravel(slope)
        return np.trapezoid((grid / 600.0) ** slope[:, None] * weight, grid, axis=1)

    def line_rate(self, name, wavelength):
        """Rate [electron/s] of a line of 1 erg/(s cm2)."""
        return self.transmission(name, wavelength) * wavelength * self.area / _HC

    def sky_factor(self, name):
        """How much brighter the sky is than through 7 nm."""
        _, width, peak = self._band(name)
        return width * peak / 6.3

    def line_shares(self):
        """Flux of each line over that of the line whose shape it has."""
        return {
            "Halpha": 1.0,
            "Hbeta": 1 / self.balmer,
            "NII6583": self.nii,
            "NII6548": self.nii / 3.05,
            "OIII5007": 1.0,
            "OIII4959": 1 / 2.98,
            "SII6716": self.sii / (1 + self.sii),
            "SII6731": 1 / (1 + self.sii),
        }


class SpectralNebula:
    """
    A `Nebula` whose rates [electron/s] are fluxes of lines, seen through filters.

    The shapes of ``nebula`` are the rates that their line alone would have at a transmission
    of 1.
    """

    def __init__(self, nebula, spectra):
        self._nebula, self._spectra = nebula, spectra

    def flux(self, line, matrix):
        """Flux [erg/(s cm2)] of a line in each pixel; SII is the sum of its two."""
        wavelengths = {"Halpha": 656.28, "OIII": 500.68, "SII": 672.40}
        spectra = self._spectra
        shape = {"NII": "Halpha", "Hbeta": "Halpha"}.get(line, line)
        share = {"NII": spectra.nii, "Hbeta": 1 / spectra.balmer}.get(line, 1.0)
        unit = share * _HC / (wavelengths[shape] * spectra.area)
        return self._nebula.rate(shape, matrix).astype(np.float64) * unit

    def rate(self, name, matrix):
        """Rate [electron/s] that a frame sees in one filter, (ny, nx) float32."""
        spectra, shares = self._spectra, self._spectra.line_shares()
        factors = dict.fromkeys(("Halpha", "OIII", "SII"), 0.0)
        for line, (wavelength, shape) in _LINES.items():
            factors[shape] += shares[line] * spectra.line_rate(name, wavelength)
        factors["Halpha"] += float(spectra.continuum_rate(name, 0.0)[0]) / spectra.equivalent_width
        image = sum(
            factor * self.flux(shape, matrix)
            for shape, factor in factors.items()
            if factor > 1e-6 * max(factors.values())
        )
        return image.astype(np.float32)
