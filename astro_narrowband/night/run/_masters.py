"""The masters of a run: made once for all groups that they serve, or read again."""

from dataclasses import asdict
from typing import NamedTuple

from astropy import units as u

from astro_narrowband._engine.files import safe_name, set_card
from astro_narrowband._engine.frames import FitsFrame, as_ccd
from astro_narrowband._engine.headers import read_egain, read_noise
from astro_narrowband.calibration import Recipe
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector, decide_detector
from astro_narrowband.exceptions import InputError
from astro_narrowband.masters import check_flats, master_bias, master_flat

__all__ = ["Masters"]

#: Pixels of a frame that tell whether its gain is far off: they measure it to a percent.
GAIN_CHECK = 1 << 17


class Master(NamedTuple):
    """A master, the name of its product, and what that was made of."""

    value: object
    name: str
    key: object


class Masters:
    """
    What calibrates the groups of a run.

    Parameters
    ----------
    night : `~astro_narrowband.night.run.Night`
        Whose settings, products and record are used, and which is told what is left out.
    """

    def __init__(self, night):
        self.night, self.settings, self.products = night, night.settings, night.products
        self.record, self.workers = night.record, night.workers
        self.made = {}

    def recipe(self, group):
        """Return what calibrates a group, and the keys of its masters."""
        detector = self.detector(group)
        bias = self.bias(group, detector) if group.bias else None
        dark = flat = None
        if group.darks:
            dark = self.dark(group, detector, bias)
        elif bias is not None:
            dark = bias._replace(value=DarkModel.from_masters(bias=as_ccd(bias.value)))
        if group.flats:
            flat = self.flat(group, detector, dark)
        recipe = Recipe(
            detector,
            dark=None if dark is None else dark.value,
            flat=None if flat is None else flat.value,
            max_extrapolation=self.settings.max_extrapolation,
        )
        masters = [master for master in (bias, dark, flat) if master is not None]
        return recipe, [(master.name, master.key) for master in masters]

    def detector(self, group):
        """Return gain, read noise and saturation of a group's camera."""
        identity = ("detector", *(row.path for row in (*group.bias, *group.flats)))
        if identity not in self.made:
            settings, frame = self.settings, group.lights[0].open()
            # What a user gives is of a pixel of the camera; a mosaic may add some of them.
            n = getattr(frame, "n_added", 1)
            self.made[identity] = decide_detector(
                frame.header,
                gain=_quantity(settings.gain, u.electron / u.adu),
                read_noise=_quantity(settings.read_noise, n**0.5 * u.electron),
                saturation=_quantity(settings.saturation, n * u.adu),
                flats=[row.open() for row in group.flats],
                biases=[row.open() for row in group.bias],
            )
            self.check_detector(self.made[identity], group, frame.header)
        self.record["detector"][group.label] = asdict(self.made[identity])
        return self.made[identity]

    def check_detector(self, detector, group, header):
        """Say what the header has wrong, and where flats and biases show another gain."""
        for read, what in ((read_egain, "gain"), (read_noise, "read_noise")):
            if "measured" in detector.sources[what]:
                try:
                    read(header)
                except InputError as error:
                    self.night.messages.say(f"{group.label}: {error}: it was measured instead")
        pairs = group.flats[:2], group.bias[:2]
        if "measured" in detector.sources["gain"] or min(map(len, pairs)) < 2:
            return
        try:
            flats, biases = ([row.open() for row in rows] for rows in pairs)
            found = Detector.measure(
                flats, biases, saturation=detector.saturation, sample=GAIN_CHECK
            )
        except InputError:
            return  # frames that cannot tell
        if not 1 / 1.5 < detector.gain / found.gain < 1.5:
            self.night.messages.say(
                f"{group.label}: the gain is {detector.gain:.4g} electron/adu "
                f"({detector.sources['gain']}), but flats and biases show {found.gain:.3g}: "
                "counts and errors follow it: check it, or give --gain"
            )

    def bias(self, group, detector):
        """Return the master bias of a group."""

        def make(frames):
            return master_bias(frames, detector=detector, workers=self.workers)

        master = self.master("bias", group.bias, make, FitsFrame)
        header = master.value.header
        self.note_master(
            "bias",
            master,
            group,
            n_frames=header["NCOMBINE"],
            level=header["BIASLEV"],
            noise=header["RDNOISEA"],
        )
        return master

    def dark(self, group, detector, bias):
        """Return the dark model of a group."""

        def make(frames):
            return DarkModel.fit(
                frames,
                bias=bias and bias.value,
                detector=detector,
                workers=self.workers,
            )

        master = self.master(
            "dark", group.darks, make, DarkModel.read, needs=[bias], depends=asdict(detector)
        )
        model = master.value
        self.note_master(
            "dark",
            master,
            group,
            model=model.model,
            exposures=model.exposures,
            n_frames=model.n_frames,
            temperatures=model.temperatures,
            notes=list(model.notes),
        )
        return master

    def flat(self, group, detector, dark):
        """Return the master flat of a group; flats that are of no use are left out by name."""
        if dark is None:
            raise InputError("its flats have neither bias nor dark to lose: add bias frames")
        limits = {
            "dark": dark.value,
            "detector": detector,
            "max_extrapolation": self.settings.max_extrapolation,
        }
        rows, checks, left_out = [], [], []
        for row, check in zip(
            group.flats, check_flats([row.open() for row in group.flats], **limits), strict=True
        ):
            if check.reason:
                self.night.leave_out(row, check.reason, group)
                left_out.append(row.name)
            else:
                rows.append(row)
                checks.append(check)
        if not rows:
            raise InputError("none of its flats can be used")

        def make(frames):
            ccd = master_flat(frames, checks=checks, workers=self.workers, **limits)
            for keyword in ("FILTER", "FILTUSED"):
                set_card(ccd.header, keyword, group.filter)
            return ccd

        master = self.master(
            f"flat-{safe_name(group.filter)}",
            rows,
            make,
            _read_flat,
            needs=[dark],
            depends=asdict(detector),
        )
        self.note_master(
            "flat",
            master,
            group,
            filter=group.filter,
            n_frames=len(rows),
            left_out=left_out,
            exposure=[row.exposure for row in rows],
        )
        return master

    def master(self, title, rows, make, read, *, needs=(), depends=None):
        """Return a `Master`: one that was made for another group, read again, or made now."""
        identity = (title, *(row.path for row in rows))
        if identity not in self.made:
            name = f"masters/{self.night.name(title)}.fits"
            needed = [(master.name, master.key) for master in needs if master is not None]
            key = self.products.key(
                [row.path for row in rows] + needed, product=title, depends=depends
            )
            if not self.products.have(name, key):
                made = make([row.open() for row in rows])
                image = made.to_hdul() if hasattr(made, "to_hdul") else made
                self.products.write_fits(name, image, key)
            # Masters stay on disk and are read by bands: memory does not grow with the filters.
            self.made[identity] = Master(read(self.products.path(name)), name, key)
        return self.made[identity]

    def note_master(self, kind, master, group, **facts):
        """Put a master into the record, with the groups that it serves."""
        masters = self.record["masters"]
        entry = next((entry for entry in masters if entry["path"] == master.name), None)
        if entry is None:
            entry = {"kind": kind, "path": master.name, "groups": [], **facts}
            masters.append(entry)
        entry["groups"].append(group.label)


def _quantity(value, unit):
    return None if value is None else value * unit


def _read_flat(path):
    # A dimensionless BUNIT is an empty one.
    return FitsFrame(path, unit=u.dimensionless_unscaled)
