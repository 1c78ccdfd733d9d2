"""A light on its way through a run."""

from concurrent.futures import Future
from dataclasses import dataclass

from astropy.io import fits
from astropy.table import QTable
from astropy.time import Time

from astro_narrowband.calibration import CalibratedFrame
from astro_narrowband.coaddition import FrameStatistics
from astro_narrowband.night.plan import Group
from astro_narrowband.night.run._ready import MeasuredFrame
from astro_narrowband.night.table import FrameRow
from astro_narrowband.registration import Alignment


@dataclass(eq=False)
class Light:
    """A light on its way: what is known of it grows from step to step."""

    row: FrameRow
    group: Group
    frame: CalibratedFrame | MeasuredFrame
    stars: QTable | None = None
    measuring: Future | None = None
    statistics: FrameStatistics | None = None
    alignment: Alignment | None = None
    grid: fits.Header | None = None


def times_of(lights):
    """Dates of lights as days, or None where one of them cannot be trusted."""
    try:
        return list(Time([light.row.date for light in lights], format="isot").mjd)
    except ValueError:
        return None
