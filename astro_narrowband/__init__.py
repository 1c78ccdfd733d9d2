"""
Narrowband astronomical imaging on top of ccdproc.

A night of raw frames goes in; calibrated, registered, inverse-variance coadds
in electron/s, catalogues and growth curves come out, with error bars.

The names below are loaded when they are first used, so that importing the
package costs nothing.
"""

from importlib import import_module

_HOME = {
    "Alignment": "registration",
    "Band": "_engine.frames",
    "Coadd": "coaddition",
    "DarkModel": "darks",
    "Detector": "detector",
    "FilterCurve": "lines",
    "Frame": "_engine.frames",
    "FrameTable": "night.table",
    "GrowthCurves": "photometry",
    "InverseVarianceCombiner": "coaddition",
    "LineMap": "lines",
    "align": "registration",
    "annulus_photometry": "photometry",
    "aperture_correction": "photometry",
    "calibrate": "calibration",
    "calibrate_flux": "lines",
    "canonical_filter": "filters",
    "coadd": "coaddition",
    "citations": "citation",
    "combine": "coaddition",
    "detect_stars": "registration",
    "diagnose_background": "photometry",
    "flux_scale": "lines",
    "growth_curves": "photometry",
    "line_ratio": "lines",
    "make_catalog": "photometry",
    "master_bias": "masters",
    "master_flat": "masters",
    "match_catalogue": "lines",
    "optimal_radius": "photometry",
    "reduce_night": "night.pipeline",
    "region_fluxes": "lines",
    "region_ratios": "lines",
    "resample": "resampling",
    "simulate_night": "simulate",
    "subtract_continuum": "lines",
    "subtract_sky": "lines",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("astro-narrowband")
    if name == "__citation__":
        text = import_module("importlib.resources").files(__name__).joinpath("CITATION")
        return text.read_text(encoding="utf-8").replace("VERSION", __getattr__("__version__"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__, "__citation__", "__version__"])
