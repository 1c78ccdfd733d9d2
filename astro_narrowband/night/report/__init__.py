"""
One self-contained HTML page of a night, made from its record and its products.

There is no script on the page, nothing is loaded from elsewhere, and whatever
came from a header or a file name is escaped by the template. It can be made
again at any time from ``night.json`` and the products beside it.
"""

import base64
import hashlib
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from astropy.table import Table

from astro_narrowband import __citation__
from astro_narrowband._engine.files import write_text
from astro_narrowband.calibration import CalibratedFrame
from astro_narrowband.exceptions import ProductError
from astro_narrowband.night import charts
from astro_narrowband.night.report._group import GroupView, colour_views, draw_coadd, draw_light
from astro_narrowband.night.report._masters import draw_dark, draw_master, masters_view
from astro_narrowband.night.report._words import (
    breaks,
    cause_of,
    data_url,
    fixed,
    number,
    printed,
    settings_words,
)

__all__ = ["Pictures", "can_render", "render_report", "write_report"]

_TEMPLATES = Path(__file__).parent.parent / "templates"
#: Longest side of the large pictures, in pixels.
_LARGE = 800
#: What each product is, by how its name starts.
_PRODUCTS = (
    ("colour-", "colour picture"),
    ("coadd-", "coadd, with its error, mask, coverage and frames"),
    ("catalog-", "sources"),
    ("growth-", "growth curves of bright stars"),
    ("masters/", "master"),
    ("calibrated/", "calibrated light"),
    ("frames.ecsv", "every file, with what became of it and why"),
    ("night.json", "all of this page's numbers, and the SHA-256 of every file"),
)


def write_report(folder, record):
    """
    Write ``report.html`` into the folder of the products.

    Parameters
    ----------
    folder : path-like
        Where the products are.
    record : dict
        The record of the night, as ``night.json`` has it.

    Returns
    -------
    str
        SHA-256 of the page.

    Raises
    ------
    ProductError
        If it cannot be written, or matplotlib or jinja2 is not installed.
    """
    return write_text(Path(folder) / "report.html", render_report(folder, record))


def can_render():
    """Return whether what the page is drawn with is installed."""
    return all(map(find_spec, ("matplotlib", "jinja2")))


class Pictures:
    """
    The pictures of a page that need not wait for all of it, drawn once.

    One thread at a time may draw them, as soon as the product is written; those that
    were not are drawn with the page.

    Parameters
    ----------
    folder : path-like
        Where the products are.
    n_groups : int
        Coadds on the page. Many get smaller pictures, so that the page stays a few MB.
    """

    def __init__(self, folder, n_groups):
        self.folder = Path(folder)
        self._size = int(_LARGE / max(1.0, n_groups / 4) ** 0.5)
        self._drawn, self._lights = {}, {}

    def load(self):
        """Load what the page is drawn with, which takes half a second."""
        charts.load()

    def coadd(self, product, filter_name):
        """Return what the page shows of a coadd, as a dict that is not to be changed."""
        return self._once(draw_coadd, product, filter_name, self._size)

    def light(self, product, filter_name, lights, frames):
        """Draw the light that counts most in a coadd, raw and calibrated, beside the coadd."""
        best = max(frames, key=lambda row: row["weight"])
        for light in lights:
            if light.row.name == best["path"] and isinstance(light.frame, CalibratedFrame):
                picture = draw_light(
                    self.folder / product, light.frame, best["matrix"], filter_name
                )
                self._lights[product] = picture

    def light_of(self, product):
        """Return what `light` drew for a coadd, None where nothing was."""
        return self._lights.get(product)

    def master(self, master):
        """Return what the page shows of a master of the record, likewise."""
        extension = "RATE" if master.get("kind") == "dark" else 0
        return self._once(draw_master, master["path"], extension)

    def night(self, frames, filter_name):
        """Return the charts of a group's frames, ``(words, PNG)``; none of fewer than two."""
        shown = [f for f in frames if f.get("sky") is not None or f.get("dx") is not None]
        if len(shown) < 2:
            return []
        return charts.night_charts(shown, filter_name=filter_name)

    def dark(self, product, lights):
        """Return the charts of a dark model, ``(words, PNG)``."""
        return self._once(draw_dark, product, lights)

    def _once(self, draw, product, *options):
        key = (product, *options)
        if key not in self._drawn:
            self._drawn[key] = draw(self.folder / product, *options)
        return self._drawn[key]


def render_report(folder, record, *, pictures=None):
    """
    Return the page as text; see `write_report`.

    A product that the record names and that is not there or cannot be read is
    said to be so on the page.

    Parameters
    ----------
    folder, record
        As for `write_report`.
    pictures : Pictures, optional
        Some of which may have been drawn before.

    Returns
    -------
    str
    """

    def page():
        shown = pictures or Pictures(folder, len(record.get("groups") or ()))
        return {"record": record, **_page(folder, record, shown)}

    folder = Path(folder)
    return rendered("report.html", page)


def rendered(name, page, *, more_style=""):
    """Return the text of a template, of what ``page()`` returns once its tools are known to be."""
    try:
        import jinja2
        import matplotlib as mpl  # noqa: F401 - said here, before anything is done
    except ImportError as error:
        raise ProductError(
            f"{name}: needs {error.name}, which is not installed: "
            "pip install 'astro-narrowband[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=printed,
    )
    environment.filters |= {"num": number, "fixed": fixed, "png": data_url, "breaks": breaks}
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8") + more_style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(name).render(style=style, style_hash=digest, **page())


def _page(folder, record, pictures):
    """Everything that the template shows and the record does not hold."""
    groups = [
        GroupView(
            folder,
            group,
            pictures,
            messages=record.get("messages") or (),
            alone=len(record["groups"]) == 1,
            camera=_camera(record, group.get("label"), pictures),
        ).view()
        for group in record.get("groups") or ()
    ]
    names = {}
    for group in groups:
        names.setdefault(group["object"], []).append(group)
    for members in names.values():
        filters = [group["filter"] for group in members]
        for group in members:
            # One filter on two detectors, say: the label tells them apart.
            twice = filters.count(group["filter"]) > 1
            named = group["filter"] if group["filter"] != "unknown" else "No filter named"
            group["title"] = (twice and group["label"]) or named
    objects = [
        {"name": name, "groups": members, "colours": colour_views(members)}
        for name, members in names.items()
    ]
    files = _files(folder, record)
    for each in objects:
        pngs = record.get("pictures") or ()
        labels = {group["label"] for group in each["groups"]}
        for view in each["colours"]:
            named = [
                p.get("path") for p in pngs
                if p.get("name") == view["name"] and labels >= set(p.get("groups") or [None])
            ]  # fmt: skip
            view["href"] = files.get(named[0], {}).get("href") if named else None
    done = [group for group in groups if group["status"] == "done"]
    dates = sorted(group["date"] for group in done if group["date"])
    return {
        "objects": objects,
        "title": ", ".join(names)
        or ("Calibration frames" if record.get("masters") else "No lights"),
        "dates": sorted({dates[0][:10], dates[-1][:10]}) if dates else [],
        # What cannot be had comes before what is as it should not be.
        "said": sorted(record.get("messages") or (), key=lambda m: m.get("level") != "error"),
        "one_each": len({(g["object"], g["filter"]) for g in groups}) == len(groups),
        "n_done": len(done),
        "n_groups": len(groups),
        "n_used": sum(int(group["n_used"] or 0) for group in done),
        "n_lights": sum(len(group["frames"]) for group in groups),
        "exposure": sum(float(group["exposure_total"] or 0) for group in done),
        "detectors": _detectors(record.get("detector") or {}),
        "masters": masters_view(pictures, record.get("masters") or [], _lights(record)),
        "files": files,
        "citation": __citation__,
        "left_out": _left_out(folder, record, groups),
        "settings": settings_words(record.get("settings") or {}),
    }


def _detectors(detectors):
    """``(labels, detector)`` of each that differs."""
    alike = {}
    for label, detector in detectors.items():
        alike.setdefault(repr(detector), (detector, []))[1].append(label)
    several = len(alike) > 1
    return [(", ".join(labels) * several, detector) for detector, labels in alike.values()]


def _camera(record, label, pictures):
    """Dark current [electron/s] and read noise [electron] of a group's camera, where known."""
    detector = (record.get("detector") or {}).get(label) or {}
    colour = (record.get("settings") or {}).get("bayer")
    gain, read_noise = detector.get("gain"), detector.get("read_noise")
    if colour not in (None, "mono", "red", "blue") or not isinstance(gain, int | float):
        return None
    rate = 0.0
    for master in record.get("masters") or ():
        if master.get("kind") == "dark" and label in (master.get("groups") or ()):
            try:
                rate = pictures.master(master)["levels"][1]
            except Exception:  # the card of the master says so
                return None
    return rate * gain, read_noise


def _lights(record):
    """Exposure time [s] and noise of a pixel [adu] of the lights that were used, a few of each."""
    lights = {}
    for group in record.get("groups") or ():
        detector = (record.get("detector") or {}).get(group.get("label")) or {}
        for frame in group.get("frames") or ():
            numbers = [frame.get("exposure"), frame.get("noise"), detector.get("gain")]
            if all(isinstance(n, int | float) and n > 0 for n in numbers):
                time, noise, gain = numbers
                lights.setdefault(time, noise * time / gain)
    return sorted(lights.items())


def _files(folder, record):
    """Products that are there, by name: what they are, and where the page finds them."""
    names = [*(record.get("products") or ()), "frames.ecsv", "night.json"]
    for group in record.get("groups") or ():
        names += (group.get("products") or {}).values()
    names += [master.get("path") for master in record.get("masters") or ()]
    names += [picture.get("path") for picture in record.get("pictures") or ()]
    files = {}
    for name in sorted({str(name) for name in names if name}):
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or name == "report.html":
            continue
        # The record is written after the page.
        if name != "night.json" and not (folder / name).is_file():
            continue
        words = next((words for start, words in _PRODUCTS if name.startswith(start)), "")
        if name.startswith("coadd-") and name.endswith(".png"):
            words = "the coadd at full size, to look at"
        files[name] = {"href": quote(name, safe="/"), "words": words}
    return files


def _left_out(folder, record, groups):
    """``(file, reason)`` of every frame that was found and not used."""
    out = {}
    path = folder / "frames.ecsv"
    if path.is_file():
        table = Table.read(path, format="ascii.ecsv", encoding="utf-8")
        if {"path", "verdict", "reason"} <= set(table.colnames):
            for row in table:
                if str(row["verdict"]) == "left out":
                    out[str(row["path"])] = str(row["reason"])
    for group in groups:
        for frame in group["frames"]:
            if frame.get("verdict") == "left out":
                out.setdefault(str(frame.get("path")), str(frame.get("reason") or ""))
    for master in record.get("masters") or ():
        for path in master.get("left_out") or ():
            out.setdefault(str(path), "")
    return [(path, *cause_of(reason)) for path, reason in sorted(out.items())]
