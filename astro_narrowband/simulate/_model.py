"""The physics of a simulated night in one table of numbers; what its arguments may be."""

import zlib
from dataclasses import dataclass, fields

import numpy as np

from astro_narrowband._engine.door import real
from astro_narrowband.exceptions import InputError

_ABOVE_ZERO = {
    "gain",
    "full_well",
    "glow_scale",
    "flat_level",
    "flat_exposure",
    "fwhm",
    "faintest",
    "brightest",
    "slope",
    "pixel_scale",
}
_ANY = {"temperature"}
_UP_TO_ONE = {"warm_fraction", "hot_fraction", "vignetting", "dead_fraction", "sky_gradient"}


@dataclass(frozen=True, kw_only=True)
class NightModel:
    """
    Camera and sky of a simulated night.

    Attributes
    ----------
    gain : float
        Gain [electron/adu].
    read_noise : float
        Read noise [electron].
    full_well : float
        Electrons that a pixel holds [electron]. What a 16-bit number cannot hold is
        clipped at 65535 adu as well.
    pedestal, bias_columns, bias_gradient : float
        Bias [adu]: level, scatter from column to column, excess of the first row
        read, which decays over a fifth of the rows.
    dark_rate, dark_scatter : float
        Dark rate of ordinary pixels [electron/s] and its relative scatter.
    glow, glow_scale : float
        Glow of the amplifier in its corner [electron/s], and its e-folding length as
        a part of the longer side.
    warm_fraction, hot_fraction : float
        Part of the pixels with a dark rate of about 0.5 (lognormal), and of 5 to 500
        electron/s.
    vignetting : float
        Light lost in the corners (1 is all).
    dust : int
        Grains of dust on the sensor's window, and as many on each filter.
    response_rms, dead_fraction : float
        Scatter of the response from pixel to pixel, and part of the pixels that see
        less than 60 %.
    flat_level, flat_exposure : float
        Mean level of a flat above the bias [adu], its exposure time [s].
    fwhm, fwhm_scatter : float
        Seeing [pixel], and its relative scatter from frame to frame.
    moffat_beta : float
        Exponent of the stars' Moffat profile (above 1).
    star_density : float
        Stars per million pixels.
    faintest, brightest, slope : float
        Limits of the stars' fluxes [electron/s], and s in N(>F) ~ F^-s.
    sky, sky_scatter, sky_gradient : float
        Brightness of the sky [electron/s], its relative scatter from frame to frame,
        its relative change from one side to the other.
    transparency_scatter : float
        Scatter of the transparency from frame to frame; 1 is a clear sky, the clearest.
    nebula : float
        Rate in the brightest parts of the nebula in Halpha [electron/s].
    cosmic_rate : float
        Cosmic rays per second and million pixels.
    temperature : float
        Of the sensor [degree Celsius], written into the headers.
    pixel_scale : float
        Angle a pixel sees [arcsec].

    Raises
    ------
    InputError
        If a value is not finite, or negative, or zero where that has no meaning.

    Examples
    --------
    >>> from astro_narrowband.simulate import NightModel
    >>> NightModel(gain=1.5, read_noise=3.0).read_noise
    3.0
    """

    gain: float = 0.6
    read_noise: float = 5.0
    full_well: float = 50_000.0
    pedestal: float = 1000.0
    bias_columns: float = 2.0
    bias_gradient: float = 8.0
    dark_rate: float = 0.03
    dark_scatter: float = 0.1
    glow: float = 0.6
    glow_scale: float = 0.08
    warm_fraction: float = 1e-3
    hot_fraction: float = 1e-4
    vignetting: float = 0.25
    dust: int = 6
    response_rms: float = 0.005
    dead_fraction: float = 1e-5
    flat_level: float = 25_000.0
    flat_exposure: float = 3.0
    fwhm: float = 3.0
    fwhm_scatter: float = 0.1
    moffat_beta: float = 3.0
    star_density: float = 400.0
    faintest: float = 5.0
    brightest: float = 10_000.0
    slope: float = 0.55
    sky: float = 0.5
    sky_scatter: float = 0.15
    sky_gradient: float = 0.05
    transparency_scatter: float = 0.08
    nebula: float = 2.0
    cosmic_rate: float = 0.1
    temperature: float = -10.0
    pixel_scale: float = 1.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            value = real()(value, field.name)
            if value < 0 and field.name not in _ANY:
                raise InputError(f"{field.name} = {value!r} must not be negative")
            if value == 0 and field.name in _ABOVE_ZERO:
                raise InputError(f"{field.name} = {value!r} must be greater than zero")
            if value > 1 and field.name in _UP_TO_ONE:
                raise InputError(f"{field.name} = {value!r} must not be greater than 1")
        if self.moffat_beta <= 1:
            raise InputError(
                f"moffat_beta = {self.moffat_beta!r} gives a star without a finite flux: "
                "it must be greater than 1"
            )
        if self.faintest >= self.brightest:
            raise InputError(
                f"faintest = {self.faintest!r} must be less than brightest = {self.brightest!r}"
            )


def stream(seed, *names):
    """Random numbers that depend on the seed and on what they are for, not on the order."""
    key = [zlib.crc32(name.encode()) for name in names]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=key)))
