"""
What headers say, in whatever spelling: one table of keywords, one of frame types.

Every ``read_*`` function, a method of `HeaderReader`, takes a header
(`~astropy.io.fits.Header` or a mapping), never changes it, and returns a plain
Python value in the unit of its docstring.
A keyword that is absent gives ``None`` (or `InputError` where a frame is of no
use without it); one that is there and cannot be believed raises `InputError`
that names keyword and value. Nothing is guessed in silence.
"""

from astro_narrowband._engine.headers._geometry import (
    read_bayer_shift,
    read_binning,
    read_combined,
    read_overscan,
    read_pixel_scale,
    read_pointing,
    read_rotator,
    read_trim,
    read_window,
)
from astro_narrowband._engine.headers._reader import HeaderReader, reduced_by
from astro_narrowband._engine.headers.spellings import (
    KEYWORDS,
    KINDS,
    Spellings,
    kind_of,
    one_value,
    parse_number,
    raw_values,
)

# In the spellings of this package; those of a user need a `HeaderReader` of their own.
_STANDARD = HeaderReader()
exposures_in = _STANDARD.exposures_in
read_exposure = _STANDARD.read_exposure
read_temperature = _STANDARD.read_temperature
read_egain = _STANDARD.read_egain
read_gain = _STANDARD.read_gain
read_noise = _STANDARD.read_noise
read_saturation = _STANDARD.read_saturation
read_gain_setting = _STANDARD.read_gain_setting
read_offset = _STANDARD.read_offset
read_readout = _STANDARD.read_readout
read_camera = _STANDARD.read_camera
read_bayer = _STANDARD.read_bayer
read_kind = _STANDARD.read_kind
read_filter = _STANDARD.read_filter
read_object = _STANDARD.read_object
read_date = _STANDARD.read_date
temperature_trouble = _STANDARD.temperature_trouble
