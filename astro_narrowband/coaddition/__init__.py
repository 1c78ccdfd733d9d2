"""Frames into one: coadds with an error bar that holds, stacks, and a better Combiner."""

from astro_narrowband._engine.stacking.tile import Reduced, Rejection, reduce_tile
from astro_narrowband.coaddition._coadd import coadd
from astro_narrowband.coaddition._combine import combine
from astro_narrowband.coaddition._combiner import InverseVarianceCombiner
from astro_narrowband.coaddition._product import Coadd
from astro_narrowband.coaddition._statistics import FrameStatistics, measure_frame
from astro_narrowband.coaddition._weights import spoiled_discs, weigh

__all__ = [
    "Coadd",
    "FrameStatistics",
    "InverseVarianceCombiner",
    "Reduced",
    "Rejection",
    "coadd",
    "combine",
    "measure_frame",
    "reduce_tile",
    "spoiled_discs",
    "weigh",
]
