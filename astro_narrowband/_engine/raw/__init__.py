"""Raw frames before they are used: overscan and trim, and what must be alike in two of them."""

from astro_narrowband._engine.raw.camera import master_header, refuse_other_camera
from astro_narrowband._engine.raw.overscan import OverscanFrame, prepared
from astro_narrowband._engine.raw.pedestal import ScaledFrame, full_scale, without_pedestal
