"""From counts to emission lines: continuum, flux and ratios, each with its error."""

from astro_narrowband.lines._blend import correct_blend, restore_lines, separate_lines
from astro_narrowband.lines._catalogue import CatalogueMatch, match_catalogue, read_catalogue
from astro_narrowband.lines._continuum import RESIDUAL_STAR, subtract_continuum
from astro_narrowband.lines._filters import GENERIC, LINES, FilterCurve, Line, line_in_continuum
from astro_narrowband.lines._flux import (
    FluxScale,
    calibrate_flux,
    flux_from_magnitudes,
    flux_from_spectra,
    flux_scale,
    reference_colours,
    reference_fluxes,
    scale_of_area,
    surface_brightness,
)
from astro_narrowband.lines._image import header_scale, read_image
from astro_narrowband.lines._map import LineMap
from astro_narrowband.lines._ratio import Extinction, RatioMap, extinction, line_ratio
from astro_narrowband.lines._regions import read_regions, region_fluxes, region_ratios
from astro_narrowband.lines._starscale import Scale
from astro_narrowband.lines._zero import subtract_sky

__all__ = [
    "GENERIC",
    "LINES",
    "RESIDUAL_STAR",
    "CatalogueMatch",
    "Extinction",
    "FilterCurve",
    "FluxScale",
    "Line",
    "LineMap",
    "RatioMap",
    "Scale",
    "calibrate_flux",
    "correct_blend",
    "extinction",
    "flux_from_magnitudes",
    "flux_from_spectra",
    "flux_scale",
    "header_scale",
    "line_in_continuum",
    "line_ratio",
    "match_catalogue",
    "read_catalogue",
    "read_image",
    "read_regions",
    "reference_colours",
    "reference_fluxes",
    "region_fluxes",
    "region_ratios",
    "restore_lines",
    "scale_of_area",
    "separate_lines",
    "subtract_continuum",
    "subtract_sky",
    "surface_brightness",
]
