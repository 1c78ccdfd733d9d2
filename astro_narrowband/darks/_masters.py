"""A dark model made of a master bias and a master dark, its own or those of other programs."""

import numpy as np
from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.raw import master_header, prepared
from astro_narrowband._engine.validate import same_shape
from astro_narrowband.darks._planes import FLAGS, empty_planes
from astro_narrowband.exceptions import CalibrationError, InputError


def fields_of_masters(bias, dark, exposure):
    """Return the fields of a model made of masters; see `DarkModel.from_masters`."""
    frames = {k: prepared(m) for k, m in (("bias", bias), ("dark", dark)) if m is not None}
    if not frames:
        raise InputError("neither bias nor dark was given")
    shape = same_shape(frames.values(), "masters")
    rows = slice(0, shape[0])
    planes = empty_planes(shape)
    data, variance = {}, {}
    for name, frame in frames.items():
        if frame.unit not in (None, u.adu):
            raise InputError(
                f"{name}: its unit is {frame.unit}: a master must be in adu, as the raw frames are"
            )
        band = frame.read(rows)
        data[name], variance[name] = band.data, band.variance
        if band.variance is None:
            variance[name] = np.zeros(shape, np.float32)
        if band.mask is not None:
            planes["flags"][band.mask] |= FLAGS["UNCERTAIN"]
    first = "bias" if "bias" in frames else "dark"
    planes["offset"], planes["var_offset"] = data[first], variance[first]
    fields = {"planes": planes, "shape": shape}
    if "dark" not in frames:
        return fields | {"model": "bias", "header": master_header(frames["bias"], "bias", 1)}
    header = frames["dark"].header
    fields["header"] = master_header(frames["dark"], "dark", 1)
    temperature = keywords.read_temperature(header)
    fields["temperatures"] = None if temperature is None else (temperature, temperature)
    if exposure is None:
        exposure = keywords.read_exposure(header)
    n = keywords.one_value(header, "NCOMBINE")
    fields |= {
        "exposures": (float(exposure),),
        "n_frames": (int(n[0]) if n else 1,),
        "notes": ("one dark exposure time: its linearity could not be tested",),
    }
    without_bias = bool(header.get("BIASSUB") or header.get("SUBBIAS"))
    if "bias" not in frames:
        if without_bias:
            raise CalibrationError(
                "the dark has lost its bias (BIASSUB or SUBBIAS in its header) and no bias was "
                "given: give bias= as well"
            )
        return fields | {"model": "matched"}
    _check_levels(data, without_bias)
    t = np.float32(exposure)
    # Either way the error of the bias is in that of the rate, with the sign turned.
    if without_bias:
        planes["rate"] = data["dark"] / t
        planes["var_rate"] = np.maximum(variance["dark"], variance["bias"]) / (t * t)
    else:
        planes["rate"] = (data["dark"] - data["bias"]) / t
        planes["var_rate"] = (variance["dark"] + variance["bias"]) / (t * t)
    planes["cov"] = -variance["bias"] / t
    return fields | {"model": "rate"}


def _check_levels(data, without_bias):
    """Find a dark that says, or leaves unsaid, the wrong thing about its bias."""
    bias, dark = (float(np.nanmedian(data[k][::8])) for k in ("bias", "dark"))
    if not without_bias and dark < 0.5 * bias:
        raise CalibrationError(
            f"the dark (median {dark:.1f} adu) lies far below the bias ({bias:.1f} adu): it seems "
            "to have lost its bias already: set BIASSUB = True in its header if so"
        )
