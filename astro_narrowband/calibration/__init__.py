"""
Raw frame to electron per second: bias once, dark, gain, flat, exposure time.

`calibrate` is the function on `~astropy.nddata.CCDData`; `CalibratedFrame` is the
same code read by bands of rows. A frame's own noise (photons, read-out,
rounding) is kept apart from the noise of the masters, which all frames share.
"""

from astro_narrowband.calibration._calibrate import calibrate
from astro_narrowband.calibration._frame import CalibratedFrame
from astro_narrowband.calibration._recipe import Recipe

__all__ = ["CalibratedFrame", "Recipe", "calibrate"]
