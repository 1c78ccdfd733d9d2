"""What darks cost frames of other exposure times: told by a strip of rows, before a run."""

from dataclasses import replace

import numpy as np

from astro_narrowband._engine.bayer import MosaicFrame
from astro_narrowband._engine.frames import Frame
from astro_narrowband._engine.raw import prepared
from astro_narrowband.darks import DarkModel, same_exposure
from astro_narrowband.exceptions import CalibrationError, listening
from astro_narrowband.masters import check_flats, master_bias
from astro_narrowband.night.run._ready import dark_of_colour, flat_dark, ready_bias, ready_dark

#: A flat may lose a dark whose error is this part of its level; it is in the flat's own error.
MOST_OF_FLAT = 0.01

#: Rows in the middle of the frames that tell.
STRIP = 64


class _Strip(Frame):
    """Some rows of a frame, as a frame of their own."""

    def __init__(self, frame):
        self.frame, n = frame, min(STRIP, frame.shape[0])
        self.first, self.shape = (frame.shape[0] - n) // 2, (n, frame.shape[1])
        self.name, self.unit, self.header = frame.name, frame.unit, frame.header
        self.n_added = frame.n_added

    def _rows(self, rows):
        return slice(rows.start + self.first, rows.stop + self.first)

    def read(self, rows, *, variance=True, out=None):
        """Return a `Band` of the frame's rows."""
        return self.frame.read(self._rows(rows), variance=variance, out=out)

    def raw_counts(self, rows, data):
        """Return what the camera counted there."""
        return self.frame.raw_counts(self._rows(rows), data)


def dark_costs(group, detector, *, max_extrapolation=None):
    """
    Return one line for each kind of frames whose dark is not of their own exposure time.

    Parameters
    ----------
    group : `~astro_narrowband.night.plan.Group`
    detector : `~astro_narrowband.detector.Detector`
    max_extrapolation : float, optional
        A limit that takes the place of the price.

    Returns
    -------
    list of str
        What the dark of the longest of them costs, in parts of the frame's own noise.

    Raises
    ------
    CalibrationError
        If it costs each of the lights too much.
    """
    if not (group.darks or group.bias):
        return []
    model, limit = _model(group, detector), max_extrapolation
    lines = _flats(group, flat_dark(group, model, detector), detector, limit)
    times = sorted({round(t, 6) for row in group.darks for t in row.model or (row.exposure,)})
    source = f"{' + '.join(f'{t:g}' for t in times)} s" + (" and biases" if group.bias else "")
    for kind in ("lights", "flats") if times else ():
        used = flat_dark(group, model, detector) if kind == "flats" else model
        rows = [
            row
            for row in getattr(group, kind)
            if not (row.master or any(same_exposure(row.exposure, t) for t in times))
        ]
        refused = 0
        for row in sorted(rows, key=lambda row: row.exposure):
            strip = _strips([row], group)[0]
            data = strip.read(slice(0, strip.shape[0]), variance=False).data
            level = float(np.nanmedian(data - used.planes["offset"]))
            noise = (detector.floor + max(level, 0.0) * detector.gain) ** 0.5 / detector.gain
            price = used.price(row.exposure, noise=noise)
            text = (
                f"dark of {row.exposure:g} s for {len(rows)} {kind}, {price.policy} from darks of "
                f"{source}: costs {100 * price.total:.2g} % of their own noise"
            )
            if price.too_high and limit is None:
                refused += 1
                text += f": too much for {row.name}: take darks of {row.exposure:g} s"
        if rows and kind == "lights" and refused == len(group.lights):
            raise CalibrationError(text)
        lines += [text] if rows else []
    return lines


def _flats(group, model, detector, limit):
    """Say what is the matter with raw flats; raise where none can be used."""
    rows, said = [row for row in group.flats if not row.master], []
    if not rows:
        return said
    with listening(lambda text, _: said.append(text)):
        checks = check_flats(
            _strips(rows, group), dark=model, detector=detector, max_extrapolation=limit
        )
    reasons = [check.reason or flat_price(model, check.exposure, check.level) for check in checks]
    if all(reasons) and len(rows) == len(group.flats):
        raise CalibrationError(f"none of its flats can be used: {rows[0].name}: {reasons[0]}")
    return said + [f"{row.name}: {why}" for row, why in zip(rows, reasons, strict=True) if why]


def flat_price(model, exposure, level):
    """Say why the dark of a flat of some level [adu] costs too much, ``""`` if it does not."""
    middle = slice(model.shape[0] // 2, model.shape[0] // 2 + 1)
    error = float(np.median(model.variance(exposure, middle))) ** 0.5
    if error <= MOST_OF_FLAT * level:
        return ""
    return (
        f"the dark of {exposure:g} s is known to {error:.1f} adu only, "
        f"{100 * error / level:.1f} % of its level: give darks of that time, or biases"
    )


def _strips(rows, group):
    return [_Strip(prepared(row.open(group.colour))) for row in rows]


def _model(group, detector):
    """The dark model of some rows of a group's frames, raw ones or masters."""
    bias = _strips(group.bias, group) or None
    darks = _strips(group.darks, group)
    if group.bias and group.bias[0].master:
        bias = ready_bias(bias[0], detector)
    if not darks:
        bias = bias if group.bias[0].master else master_bias(bias, detector=detector)
        return DarkModel.from_masters(bias=bias)
    if not group.darks[0].master:
        return DarkModel.fit(darks, bias=bias, detector=detector)
    if not group.darks[0].model:
        times = [row.exposure for row in group.darks]
        light = next(iter(_strips(group.lights[:1], group)), None)
        return ready_dark(darks, times, bias, detector, light=light)
    model, frame = DarkModel.read(group.darks[0].path), darks[0].frame
    if isinstance(frame, MosaicFrame):
        model = dark_of_colour(model, frame.pixels)
    rows = slice(darks[0].first, darks[0].first + darks[0].shape[0])
    planes = {name: np.asarray(plane[rows]) for name, plane in model.planes.items()}
    return replace(model, planes=planes, shape=darks[0].shape, token="")
