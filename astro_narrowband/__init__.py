"""
Narrowband astronomical imaging on top of ccdproc.

A night of raw frames goes in; calibrated, registered, inverse-variance coadds
in electron/s, catalogues and growth curves come out, with error bars.

The names below are loaded when they are first used, so that importing the
package costs nothing.
"""

import sys as _sys
from importlib import import_module
from importlib.metadata import version as _version
from importlib.resources import files as _files
from types import ModuleType as _ModuleType

__version__ = _version("astro-narrowband")
__citation__ = _files(__name__).joinpath("CITATION").read_text(encoding="utf-8")

_HOME = {
    "Alignment": "register",
    "Coadd": "coadd",
    "DarkModel": "darks",
    "Detector": "detector",
    "FrameTable": "frames",
    "GrowthCurves": "growth",
    "InverseVarianceCombiner": "combiner",
    "align": "register",
    "annulus_photometry": "photometry",
    "aperture_correction": "growth",
    "calibrate": "calibrate",
    "canonical_filter": "filters",
    "coadd": "coadd",
    "combine": "stack",
    "detect_stars": "register",
    "diagnose_background": "growth",
    "growth_curves": "growth",
    "master_bias": "masters",
    "master_flat": "masters",
    "optimal_radius": "growth",
    "reduce_night": "pipeline",
    "resample": "resample",
    "simulate_night": "simulate",
}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])


class _Package(_ModuleType):
    """Keeps ``calibrate``, ``coadd`` and ``resample`` functions, also once their modules are in."""

    def __setattr__(self, name, value):
        # Python sets a submodule on its package when it loads it; those of the
        # same name as a public function would take its place.
        if not (name in _HOME and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
