"""The fit behind `astro_narrowband.darks.DarkModel`, in bands of rows."""

import numpy as np
from astropy.io import fits

from astro_narrowband import keywords
from astro_narrowband._clipped import clipped_mean, sample_noise
from astro_narrowband._overscan import prepared
from astro_narrowband._validate import same_shape
from astro_narrowband.bands import map_bands, row_bands
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import CalibrationError, InputError

__all__ = ["FLAGS", "PLANES", "fit_planes", "planes_of_masters"]

#: Bits of the flag plane.
FLAGS = {"NONLINEAR": 1, "SATURATED": 2, "UNCERTAIN": 4, "NEGATIVE": 8}

#: Names of the planes, in the order in which they are written.
PLANES = ("offset", "rate", "var_offset", "var_rate", "cov", "chi2", "dof", "flags")

BAND = 32


def read_stack(frames, rows, saturation=np.inf):
    """Return rows of all frames, (n, n_rows, nx) float32, and what is good in them (or None)."""
    stack = np.empty((len(frames), rows.stop - rows.start, frames[0].shape[1]), np.float32)
    good = None
    for j, frame in enumerate(frames):
        band = frame.read(rows)
        stack[j] = band.data
        bad = band.data >= saturation
        if band.mask is not None:
            bad |= band.mask
        if bad.any():
            if good is None:
                good = np.ones(stack.shape, bool)
            good[j] = ~bad
            stack[j][bad] = 0
    return stack, good


def is_master(image):
    return not isinstance(image, list | tuple)


def fit_planes(darks, *, bias, detector, model, shrink, workers):
    """Return the fields of a DarkModel."""
    darks = [prepared(d) for d in darks]
    if not darks:
        raise InputError("no darks were given: give at least one, or DarkModel.from_masters(bias=)")
    groups = {}
    for frame in darks:
        exposure = keywords.read_exposure(frame.header)
        if not exposure > 0:
            raise InputError(f"{frame.name}: a dark of {exposure:g} s is a bias: give it as bias=")
        match = next((t for t in groups if abs(exposure - t) <= max(0.005 * t, 0.05)), exposure)
        groups.setdefault(match, []).append(frame)
    groups = dict(sorted(groups.items()))
    biases = []
    if bias is not None:
        biases = [prepared(bias)] if is_master(bias) else [prepared(b) for b in bias]
    shape = same_shape([*darks, *biases], "darks and biases")
    if detector is None:
        detector = decide_detector(darks[0].header)
    if model == "linear":
        if len(groups) < 2:
            raise InputError("model = 'linear' needs darks of two exposure times: use 'rate'")
        biases, bias = [], None
    elif not biases and len(groups) > 1:
        raise InputError("model = 'rate' needs bias=: give the biases, or use model='linear'")
    noise = detector.noise_adu
    points = [(0.0, biases, bias is not None and is_master(bias))] if biases else []
    points += [(t, frames, False) for t, frames in groups.items()]
    single = len(points) == 1

    planes = {name: np.zeros(shape, np.float32) for name in PLANES[:6]}
    planes |= {name: np.zeros(shape, np.uint8) for name in PLANES[6:]}

    def work(rows):
        return _fit_band(points, rows, detector, noise)

    for rows, band in map_bands(work, row_bands(shape[0], BAND), workers=workers):
        for name in PLANES:
            planes[name][rows] = band[name]
    temperatures = [keywords.read_temperature(d.header) for d in darks]
    temperatures = [t for t in temperatures if t is not None]
    notes = []
    if len(groups) == 1:
        notes.append("one dark exposure time: its linearity could not be tested")
    return {
        "planes": planes,
        "shape": shape,
        "model": "matched" if single else model,
        "exposures": tuple(groups),
        "n_frames": tuple(len(frames) for frames in groups.values()),
        "temperatures": (min(temperatures), max(temperatures)) if temperatures else None,
        "notes": tuple(notes),
    }


def _fit_band(points, rows, detector, noise):
    base = None
    y, v, ok, t = [], [], [], []
    flags = np.zeros((rows.stop - rows.start, points[0][1][0].shape[1]), np.uint8)
    per_adu = np.float32(1 / detector.gain)
    for time, frames, master in points:
        if master:
            band = frames[0].read(rows)
            mean, count = band.data, np.ones_like(band.data)
            variance = band.variance
            if variance is None:
                variance = np.full_like(mean, noise**2)
        else:
            stack, good = read_stack(frames, rows, detector.saturation)

            def expected(level, base=base):
                above = 0 if base is None else np.maximum(level - base, 0) * per_adu
                return np.float32(noise**2) + above

            mean, count, _ = clipped_mean(stack, expected, good=good)
            variance = expected(np.nan_to_num(mean)) / np.maximum(count, 1)
            enough = count * 2 > len(frames)
            flags[~enough] |= FLAGS["SATURATED"]
            mean = np.where(enough, mean, 0)
            count = np.where(enough, count, 0)
        if base is None:
            base = mean
        y.append(mean - base)
        v.append(variance)
        ok.append(count > 0)
        t.append(time)
    w = [np.where(o, 1 / vv, np.float32(0)) for o, vv in zip(ok, v, strict=True)]
    s = sum(w)
    used = sum(o.astype(np.uint8) for o in ok)
    out = {"flags": flags}
    if len(points) == 1:
        out |= {
            "offset": base,
            "rate": 0,
            "var_offset": v[0],
            "var_rate": 0,
            "cov": 0,
            "chi2": 0,
            "dof": 0,
        }
        return out
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = sum(wk * np.float32(tk) for wk, tk in zip(w, t, strict=True)) / s
        lever = [np.float32(tk) - centre for tk in t]
        sxx = sum(wk * d * d for wk, d in zip(w, lever, strict=True))
        rate = sum(wk * d * yk for wk, d, yk in zip(w, lever, y, strict=True)) / sxx
        level = sum(wk * yk for wk, yk in zip(w, y, strict=True)) / s
        var_rate = 1 / sxx
        var_offset = 1 / s + centre * centre * var_rate
    offset = level - rate * centre
    bad = used < 2
    chi2 = sum(
        wk * (yk - offset - rate * np.float32(tk)) ** 2 for wk, yk, tk in zip(w, y, t, strict=True)
    )
    flags[bad] |= FLAGS["UNCERTAIN"] | FLAGS["SATURATED"]
    out |= {
        "offset": np.where(bad, 0, offset) + base,
        "rate": np.where(bad, 0, rate),
        "var_offset": np.where(bad, v[0], var_offset),
        "var_rate": np.where(bad, np.float32((detector.saturation / max(t)) ** 2), var_rate),
        "cov": np.where(bad, 0, -centre * var_rate),
        "chi2": np.where(bad, 0, chi2),
        "dof": np.maximum(used, 2) - 2,
    }
    flags[(out["rate"] < -4 * np.sqrt(out["var_rate"]))] |= FLAGS["NEGATIVE"]
    return out


def planes_of_masters(*, bias, dark, exposure):
    """Return the fields of a DarkModel made of master frames."""
    frames = {k: prepared(m) for k, m in (("bias", bias), ("dark", dark)) if m is not None}
    if not frames:
        raise InputError("neither bias nor dark was given")
    shape = same_shape(frames.values(), "masters")
    rows = slice(0, shape[0])
    zero = np.zeros(shape, np.float32)
    planes = {name: zero for name in PLANES[:6]}
    planes |= {name: np.zeros(shape, np.uint8) for name in PLANES[6:]}
    flags = planes["flags"] = np.zeros(shape, np.uint8)
    data, variance = {}, {}
    for name, frame in frames.items():
        if frame.unit is not None and frame.unit.to_string() not in ("adu",):
            raise InputError(
                f"{name}: its unit is {frame.unit}: a master must be in adu, as the raw frames are"
            )
        band = frame.read(rows)
        data[name] = band.data
        variance[name] = zero if band.variance is None else band.variance
        if band.mask is not None:
            flags[band.mask] |= FLAGS["UNCERTAIN"]
    if "dark" not in frames:
        planes["offset"], planes["var_offset"] = data["bias"], variance["bias"]
        return {"planes": planes, "shape": shape, "model": "bias", "header": fits.Header()}
    header = frames["dark"].header
    if exposure is None:
        exposure = keywords.read_exposure(header)
    without_bias = bool(header.get("BIASSUB") or header.get("SUBBIAS"))
    if without_bias and "bias" not in frames:
        raise CalibrationError(
            "the dark has lost its bias (BIASSUB or SUBBIAS in its header) and no bias was "
            "given: give bias= as well"
        )
    if "bias" not in frames:
        planes["offset"], planes["var_offset"] = data["dark"], variance["dark"]
        model = "matched"
    else:
        current = data["dark"] if without_bias else data["dark"] - data["bias"]
        t = np.float32(exposure)
        planes["offset"], planes["var_offset"] = data["bias"], variance["bias"]
        planes["rate"] = current / t
        planes["var_rate"] = (variance["dark"] + variance["bias"]) / (t * t)
        planes["cov"] = -variance["bias"] / t
        model = "rate"
    return {
        "planes": planes,
        "shape": shape,
        "model": model,
        "exposures": (float(exposure),),
        "n_frames": (int(header.get("NCOMBINE", 1)),),
        "notes": ("one dark exposure time: its linearity could not be tested",),
    }
