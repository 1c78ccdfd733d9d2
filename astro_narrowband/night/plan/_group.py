"""Lights that become one coadd, and what calibrates them."""

from dataclasses import dataclass, field

#: Angles of a rotator [deg] that are one.
SAME_ANGLE = 2.0

#: What must agree, and what to call it.
HARD_KEYS = {
    "shape": "shape",
    "binning": "binning",
    "window": "window",
    "gain": "gain setting",
    "offset": "offset setting",
    "readout": "read mode",
    "camera": "camera",
    "row_order": "row order",
    "bayer": "Bayer pattern",
    "changed": "processing",
}


def angle_apart(one, other):
    """Degrees between the rotator's angles of two frames; 0 where they do not both say it."""
    if one.rotator is None or other.rotator is None or one.rotator[2] != other.rotator[2]:
        return 0.0
    period = one.rotator[1]
    return abs((one.rotator[0] - other.rotator[0] + period / 2) % period - period / 2)


@dataclass(eq=False)
class Group:
    """
    Lights that become one coadd, and the frames that calibrate them.

    Attributes
    ----------
    object, filter : str
    setup : dict
        Value of each of `HARD_KEYS`; ``None`` or ``""`` where no header gives it.
    library : bool
        Whether there is no light, and only masters are made of its frames.
    beam : str
        Filter in the header: that of the flats. It may let several lines through.
    colour : str
        Pixels of a colour mosaic that are taken, ``""`` for all.
    without : tuple of str
        Kinds of frames that it goes without, as the user said.
    label : str
        What tells this group from every other one of the plan.
    lights, bias, darks, flats : list of `~astro_narrowband.night.table.FrameRow`
        ``darks`` holds flat-darks too: frames of any exposure time that are used
        to model the dark current.
    lamps : list of `~astro_narrowband.night.table.FrameRow`
        Of a library, flats that tell the gain, if only that.
    lost : list of `~astro_narrowband.night.table.FrameRow`
        Lights that it had to do without.
    reason : str
        Why the group cannot be reduced; ``""`` if it can.
    notes : list of str
        What a user should know about its calibration.
    """

    object: str
    filter: str
    setup: dict
    library: bool = False
    beam: str = ""
    colour: str = ""
    without: tuple = ()
    calibrated: bool = False
    label: str = ""
    lights: list = field(default_factory=list)
    bias: list = field(default_factory=list)
    darks: list = field(default_factory=list)
    flats: list = field(default_factory=list)
    lamps: list = field(default_factory=list)
    lost: list = field(default_factory=list)
    reason: str = ""
    notes: list = field(default_factory=list)
    costs: list = field(default_factory=list)

    @property
    def failed(self):
        """Whether the group cannot be reduced."""
        return bool(self.reason)

    @property
    def first(self):
        """The frame whose header speaks for the camera."""
        return (self.lights or self.flats or self.darks or self.bias)[0]

    @property
    def alone(self):
        """Whether the lights are combined as they are, with their noise measured."""
        return self.calibrated or not (self.bias or self.darks or self.flats)

    def sides(self):
        """
        Return the lights of each angle of the rotator, and the flats of that angle.

        Where none is of it, those of the other side of the pier serve, half a turn away.
        """
        sides = {}
        for light in self.lights:
            near = [row for row in self.flats if angle_apart(light, row) <= SAME_ANGLE]
            over = [row for row in self.flats if angle_apart(light, row) >= 180 - SAME_ANGLE]
            flats = near or over
            key = bool(near), tuple(row.path for row in flats)
            sides.setdefault(key, ([], flats))[0].append(light)
        return list(sides.values())

    @property
    def rows(self):
        """All frames of the group."""
        return [*self.lights, *self.bias, *self.darks, *self.flats]

    def drop(self, row, reason):
        """Go on without one frame, for ``reason``."""
        for rows in (self.lights, self.bias, self.darks, self.flats):
            if row in rows:
                rows.remove(row)
        if row.kind == "light":
            self.lost.append(row)
        row.leave_out_of(self.label, reason)

    def fail(self, reason):
        """Give up the group for ``reason``; what serves no other one is left out."""
        self.reason = reason
        for row in self.rows:
            row.leave_out_of(self.label, f"its group is not reduced: {reason}")

    @property
    def setup_label(self):
        """The settings in short, such as ``bin2x2 512x512``."""
        return setup_label(self.setup, self.setup)


def setup_label(setup, keys):
    parts = []
    for key in keys:
        value = setup[key]
        if value in (None, "") or (key, value) == ("changed", "none"):
            continue
        if key == "shape":
            parts.append(f"{value[1]}x{value[0]}")
        elif key == "binning":
            parts.append("bin" + "x".join(map(str, value)))
        elif key == "window":
            parts.append("at" + ",".join(map(str, value)))
        else:
            parts.append(f"{key}={value}")
    return " ".join(parts)
