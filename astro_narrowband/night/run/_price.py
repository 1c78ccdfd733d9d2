"""What darks cost frames of other exposure times: told by a strip of rows, before a run."""

import numpy as np

from astro_narrowband._engine.frames import Frame
from astro_narrowband.darks import DarkModel, same_exposure
from astro_narrowband.exceptions import CalibrationError

__all__ = ["dark_costs"]

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
        What the dark of the longest of them costs, in parts of the frame's own noise. Nothing
        where darks or bias are masters, whose price is told when they are used.

    Raises
    ------
    CalibrationError
        If it costs each of the lights too much.
    """
    if not group.darks or any(row.master for row in (*group.darks, *group.bias)):
        return []
    times = sorted({round(row.exposure, 6) for row in group.darks})
    kinds = {
        kind: [row for row in rows if not any(same_exposure(row.exposure, t) for t in times)]
        for kind, rows in (("lights", group.lights), ("flats", group.flats))
    }
    kinds = {k: [row for row in rows if not row.master] for k, rows in kinds.items()}
    if not any(kinds.values()):
        return []

    def strips(rows):
        return [_Strip(row.open(group.colour)) for row in rows]

    model = DarkModel.fit(strips(group.darks), bias=strips(group.bias) or None, detector=detector)
    source = f"{' + '.join(f'{t:g}' for t in times)} s" + (" and biases" if group.bias else "")
    lines = []
    for kind, rows in kinds.items():
        refused = 0
        for row in sorted(rows, key=lambda row: row.exposure):
            price = model.price(row.exposure, noise=_noise(strips([row])[0], model, detector))
            text = (
                f"dark of {row.exposure:g} s for {len(rows)} {kind}, {price.policy} from darks of "
                f"{source}: costs {100 * price.total:.2g} % of their own noise"
            )
            if price.too_high and max_extrapolation is None:
                refused += 1
                text += f": too much for {row.name}: take darks of {row.exposure:g} s"
        if rows and kind == "lights" and refused == len(group.lights):
            raise CalibrationError(text)
        lines += [text] if rows else []
    return lines


def _noise(strip, model, detector):
    """Return the error of a typical pixel of a frame, its masters left out [adu]."""
    rows = slice(0, strip.shape[0])
    level = np.nanmedian(strip.read(rows, variance=False).data - model.planes["offset"])
    return (detector.floor / detector.gain**2 + max(float(level), 0.0) / detector.gain) ** 0.5
