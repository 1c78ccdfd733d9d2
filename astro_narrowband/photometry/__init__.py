"""Photometry of stars and nebulae: in annuli, as growth curves, as catalogues of many images."""

from astro_narrowband.photometry._annulus import (
    FLAGS,
    Flag,
    annulus_photometry,
    decode_flags,
    flag_where,
    plot_aperture,
)
from astro_narrowband.photometry._catalog import Catalog, make_catalog
from astro_narrowband.photometry._correction import ApertureCorrection, aperture_correction
from astro_narrowband.photometry._curves import diagnose_background, optimal_radius
from astro_narrowband.photometry._growth import GrowthCurves, growth_curves

__all__ = [
    "FLAGS",
    "ApertureCorrection",
    "Catalog",
    "Flag",
    "GrowthCurves",
    "annulus_photometry",
    "aperture_correction",
    "decode_flags",
    "diagnose_background",
    "flag_where",
    "growth_curves",
    "make_catalog",
    "optimal_radius",
    "plot_aperture",
]
