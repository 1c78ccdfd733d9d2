"""The masters of a run: made once for all groups that they serve, or read again."""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData

from astro_narrowband._engine.bayer import MosaicFrame
from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.frames import FitsFrame, MemoryFrame, as_ccd
from astro_narrowband._engine.text import safe_name
from astro_narrowband.calibration import Recipe
from astro_narrowband.darks import DarkModel
from astro_narrowband.exceptions import InputError, warn
from astro_narrowband.masters import check_flats, master_bias, master_flat
from astro_narrowband.night.messages import overheard
from astro_narrowband.night.run._camera import decide_for, note_camera
from astro_narrowband.night.run._price import flat_price
from astro_narrowband.night.run._ready import (
    dark_of_colour,
    flat_dark,
    reach,
    ready_bias,
    ready_dark,
    ready_flat,
)


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

    def of(self, group, flats):
        """Return the detector of a group, and its bias, dark and flat, or None."""
        detector = self.detector(group)
        bias = self.bias(group, detector) if group.bias else None
        dark = flat = None
        if group.darks:
            dark = self.dark(group, detector, bias)
        elif bias is not None:
            dark = bias._replace(value=DarkModel.from_masters(bias=as_ccd(bias.value)))
        if flats:
            flat = self.flat(group, flats, detector, dark)
        return detector, bias, dark, flat

    def recipe(self, group, flats):
        """Return what calibrates the lights of a group whose flats these are, and its keys."""
        detector, bias, dark, flat = self.of(group, flats)
        value = None if flat is None else flat.value
        n_added = group.first.open(group.colour).n_added if group.colour else 1
        if n_added > 1 and value is None:
            value = _ones(dark)
        recipe = Recipe(
            detector,
            dark=None if dark is None else dark.value,
            flat=value,
            max_extrapolation=self.settings.max_extrapolation,
            n_mean=n_added,  # lines compare if each is per pixel of the camera
        )
        masters = [master for master in (bias, dark, flat) if master is not None]
        return recipe, [(master.name, master.key) for master in masters]

    def detector(self, group):
        """Return gain, read noise and saturation of a group's camera."""
        rows = [row for row in (*group.bias, *group.flats) if not row.master]
        identity = (
            "detector",
            group.colour,
            *(row.path for row in rows or group.lights or group.darks),
        )
        if identity not in self.made:
            self.made[identity], sentences = decide_for(group, self.settings)
            for sentence in sentences:
                self.night.messages.say(f"{group.label}: {sentence}")
        detector = self.made[identity]
        n = group.first.open(group.colour).n_added
        if n > 1 and "measured" in detector.sources["saturation"]:
            # Of added pixels one may be full, which the sum does not tell.
            for row in (*group.lights, *group.flats, *group.darks):
                row.saturation = detector.saturation / n
        self.record["detector"][group.label] = asdict(detector)
        return detector

    def bias(self, group, detector):
        """Return the master bias of a group."""

        def make(frames):
            if group.bias[0].master:
                return ready_bias(frames[0], detector)
            return master_bias(frames, detector=detector, workers=self.workers)

        master = self.master("bias", group.bias, make, FitsFrame, group, detector)
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
        rows = group.darks

        def make(frames):
            if rows[0].model:
                model = DarkModel.read(rows[0].path)
                mosaic = isinstance(frames[0], MosaicFrame)
                return dark_of_colour(model, frames[0].pixels) if mosaic else model
            if rows[0].master:
                light = group.lights[0].open(group.colour) if group.lights else None
                offset = bias and as_ccd(bias.value)
                return ready_dark(frames, times, offset, detector, light=light)
            return DarkModel.fit(
                frames,
                bias=bias and bias.value,
                detector=detector,
                model="linear" if bias is None and longest > 1.01 * min(times) else "rate",
                shrink=shrink,
                workers=self.workers,
            )

        times = [row.exposure for row in rows]
        longest = max(times)
        # Lights that are longer would show what shrinking does to lone warm pixels.
        shrink = bool(group.lights) and max(row.exposure for row in group.lights) < 1.01 * longest
        master = self.master(
            "dark", rows, make, DarkModel.read, group, detector, needs=[bias], shrink=shrink
        )
        model = master.value
        for note in model.notes:
            if "disagree" in note or note.startswith("glow"):
                self.night.messages.say(f"{group.label}: {note}")
        self.note_master(
            "dark",
            master,
            group,
            model=model.model,
            exposures=model.exposures,
            n_frames=model.n_frames,
            temperatures=model.temperatures,
            notes=list(model.notes),
            reach=reach(model, detector) if group.library else None,
        )
        return master

    def flat(self, group, flats, detector, dark):
        """Return the master of some flats of a group; those of no use are left out by name."""
        if dark is None:
            raise InputError(
                "its flats have neither bias nor dark to lose: give one, or --without flat as well"
            )
        model = flat_dark(group, dark.value, detector)
        limits = {
            "dark": model,
            "detector": detector,
            "max_extrapolation": self.settings.max_extrapolation,
        }
        rows, checks, left_out = [row for row in flats if row.master], [], []
        raw = [row for row in flats if not row.master]
        frames = [row.open(group.colour) for row in raw]
        for row, check in zip(raw, check_flats(frames, **limits) if raw else (), strict=True):
            reason = check.reason or flat_price(model, check.exposure, check.level)
            if reason:
                self.night.leave_out(row, reason, group)
                left_out.append(row.name)
            else:
                rows.append(row)
                checks.append(check)
        if not rows:
            raise InputError("none of its flats can be used")

        def make(frames):
            if rows[0].master:
                ccd, note = ready_flat(frames[0], model, detector, rows[0].exposure)
                if note:
                    warn(note)
            else:
                ccd = master_flat(frames, checks=checks, workers=self.workers, **limits)
            set_card(ccd.header, "FILTER", group.filter)
            set_card(ccd.header, "FILTUSED", group.beam)
            return ccd

        master = self.master(
            f"flat-{safe_name(group.filter)}",
            rows,
            make,
            _read_flat,
            group,
            detector,
            needs=[dark],
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

    def master(self, title, rows, make, read, group, detector, *, needs=(), **options):
        """Return a `Master`: one that was made for another group, read again, or made now."""
        if group.colour:
            title = f"{title}-{group.colour.replace('+', '-')}"
        identity = (title, *(row.path for row in rows), *options.values())
        if identity not in self.made:
            name = f"masters/{self.night.name(title, identity)}.fits"
            needed = [(master.name, master.key) for master in needs if master is not None]
            key = self.products.key(
                [row.path for row in rows] + needed,
                product=title,
                depends=asdict(detector),
                **options,
            )
            if not self.products.have(name, key):
                with overheard() as said:
                    made = make([row.open(group.colour) for row in rows])
                image = made.to_hdul() if hasattr(made, "to_hdul") else made
                note_camera(getattr(image, "header", None) or image[0].header, detector)
                self.products.write_fits(name, image, key, said)
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
        if group.label not in entry["groups"]:
            entry["groups"].append(group.label)

    def forget(self, labels):
        """Remove the masters that serve no other groups than these, which are given up."""
        gone = {entry["path"] for entry in self.record["masters"] if set(entry["groups"]) <= labels}
        for name in gone:
            self.products.discard(name)
        masters = self.record["masters"]
        masters[:] = [entry for entry in masters if entry["path"] not in gone]
        self.made = {
            key: made for key, made in self.made.items() if getattr(made, "name", None) not in gone
        }


def _ones(master):
    """A flat that changes nothing, of the shape of another master."""
    ones = np.ones(master.value.shape, np.float32)
    return MemoryFrame(CCDData(ones, unit=u.dimensionless_unscaled), name="no flat")


def _read_flat(path):
    # A dimensionless BUNIT is an empty one.
    return FitsFrame(path, unit=u.dimensionless_unscaled)
