"""
One self-contained HTML page of a night, made from its record and its products.

There is no script on the page, nothing is loaded from elsewhere, and whatever
came from a header or a file name is escaped by the template. It can be made
again at any time from ``night.json`` and the products beside it.
"""

import base64
import hashlib
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from astro_narrowband._engine.files import safe_text, write_text
from astro_narrowband.exceptions import ProductError
from astro_narrowband.night import figures
from astro_narrowband.night.products import strict_json

__all__ = ["Pictures", "can_render", "render_report", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
#: Longest side of the pictures, in pixels.
_LARGE, _SMALL = 800, 320
#: Stars whose growth curves are shown.
_STARS = 3


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
        self._drawn = {}

    def load(self):
        """Load what the page is drawn with, which takes half a second."""
        figures.load()

    def coadd(self, product, filter_name):
        """Return what the page shows of a coadd, as a dict that is not to be changed."""
        return self._once(_draw_coadd, product, filter_name, self._size)

    def master(self, master):
        """Return what the page shows of a master of the record, likewise."""
        extension = "RATE" if master.get("kind") == "dark" else 0
        return self._once(_draw_master, master["path"], extension)

    def night(self, frames, filter_name):
        """Return the chart of a group's frames as the record has them, None of fewer than two."""
        shown = [f for f in frames if f.get("sky") is not None or f.get("dx") is not None]
        if len(shown) < 2:
            return None
        key = ("night", filter_name, *(f.get("path") for f in shown))
        if key not in self._drawn:
            self._drawn[key] = figures.night_png(shown, filter_name=filter_name)
        return self._drawn[key]

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
    try:
        import jinja2
        import matplotlib as mpl  # noqa: F401 - said here, before anything is done
    except ImportError as error:
        raise ProductError(
            f"report.html: needs {error.name}, which is not installed: "
            "pip install 'astro-narrowband[report]'"
        ) from None
    folder = Path(folder)
    pictures = pictures or Pictures(folder, len(record.get("groups") or ()))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
        finalize=_printed,
    )
    environment.filters["num"] = _number
    environment.filters["fixed"] = _fixed
    environment.filters["png"] = _data_url
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _page(folder, record, pictures)
    return environment.get_template("report.html").render(
        style=style, style_hash=digest, record=record, **page
    )


def _printed(value):
    """What the template prints: one line without control characters, before it is escaped."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else safe_text(value)


def _number(value, digits=3):
    """A number with ``digits`` significant ones, or a dash."""
    if value is None or (not value and value != 0):  # also what the template finds undefined
        return "–"
    if isinstance(value, str | bool):
        return value
    try:
        value = float(value)
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(value):
        return "–"
    if value == 0 or (value == int(value) and abs(value) < 1e6):
        return f"{int(value)}".replace("-", "−")
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        text = f"{value:.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def _fixed(value, decimals):
    """A number with ``decimals`` decimals, for a column, or a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.{decimals}f}".replace("-", "−")


def _data_url(png):
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704


def _page(folder, record, pictures):
    """Everything that the template shows and the record does not hold."""
    groups = [_Group(folder, group, pictures).view() for group in record.get("groups") or ()]
    names = {}
    for group in groups:
        names.setdefault(group["object"], []).append(group)
    for members in names.values():
        filters = [group["filter"] for group in members]
        for group in members:
            # One filter on two detectors, say: the label tells them apart.
            twice = filters.count(group["filter"]) > 1
            group["title"] = (twice and group["label"]) or group["filter"]
    objects = [
        {"name": name, "groups": members, "colour": _colour_view(members)}
        for name, members in names.items()
    ]
    done = [group for group in groups if group["status"] == "done"]
    dates = sorted(group["date"] for group in done if group["date"])
    return {
        "objects": objects,
        "title": ", ".join(names) or "No lights",
        "dates": sorted({dates[0][:10], dates[-1][:10]}) if dates else [],
        "n_done": len(done),
        "n_groups": len(groups),
        "n_used": sum(int(group["n_used"] or 0) for group in done),
        "n_lights": sum(len(group["frames"]) for group in groups),
        "exposure": sum(float(group["exposure_total"] or 0) for group in done),
        "detectors": _detectors(record.get("detector") or {}),
        "masters": _masters(pictures, record.get("masters") or []),
        "left_out": _left_out(folder, record, groups),
        "settings": _flat(record.get("settings") or {}),
    }


def _detectors(detectors):
    """``(labels, detector)`` of each that differs; a record may hold one, or one for each group."""
    if "gain" in detectors:
        return [("", detectors)]
    out = []
    for label, detector in detectors.items():
        same = next((entry for entry in out if entry[1] == detector), None)
        if same is None:
            out.append(([label], detector))
        else:
            same[0].append(label)
    return [(", ".join(labels) if len(out) > 1 else "", detector) for labels, detector in out]


def _flat(settings):
    """Settings that say something, as text."""
    settings = {k: v for k, v in settings.items() if v not in (None, [], {}, "")}
    return {
        key: " ".join(strict_json(value).split()) if isinstance(value, dict | list) else value
        for key, value in settings.items()
    }


# --------------------------------------------------------------------------- filters


class _Group:
    """One object in one filter."""

    def __init__(self, folder, group, pictures):
        self.folder = folder
        self.group = group
        self.pictures = pictures
        self.filter = group.get("filter") or ""
        self.notes = []

    def view(self):
        view = {
            "object": self.group.get("object") or "unknown object",
            **{key: self.group.get(key) for key in ("status", "reason", "reference", "label")},
            **{key: self.group.get(key) for key in ("exposure_total", "n_used", "sky", "noise")},
            "fwhm": self.group.get("fwhm"),
            "filter": self.filter,
            "tint": self.filter if self.filter in figures.TINTS else "other",
            "frames": self.group.get("frames") or [],
            "products": self.group.get("products") or {},
            "date": "",
        }
        self.stars = []
        self.positions = {}
        view["catalog"] = self._catalog()
        view["growth"] = self._growth()
        view.update(self._coadd())
        view["night"] = self.pictures.night(view["frames"], self.filter)
        view["top_weight"] = max((f.get("weight") or 0 for f in view["frames"]), default=0)
        view["notes"] = self.notes
        return view

    def _path(self, name):
        product = (self.group.get("products") or {}).get(name)
        return None if not product else self.folder / product

    def _read(self, name, read):
        """Read a product, or note that it cannot be read."""
        path = self._path(name)
        if path is None:
            return None
        try:
            return read(path)
        except Exception as error:  # the page says what is wrong with it, and shows the rest
            self.notes.append(f"{path.name}: cannot be shown ({type(error).__name__}: {error})")
            return None

    def _coadd(self):
        return self._read("coadd", self._read_coadd) or {"image": None, "picture": None}

    def _read_coadd(self, path):
        drawn = self.pictures.coadd(path.relative_to(self.folder).as_posix(), self.filter)
        factor, height = drawn["picture"]["factor"], drawn["picture"]["height"]
        stars = [
            {"id": s["id"], "x": (s["x"] + 0.5) / factor, "y": height - (s["y"] + 0.5) / factor}
            for s in self.stars
            if s["x"] is not None
        ]
        return {**drawn, "picture": {**drawn["picture"], "stars": stars}}

    def _growth(self):
        return self._read("growth", self._read_growth)

    def _read_growth(self, path):
        table = Table.read(path, format="ascii.ecsv", encoding="utf-8")
        curves = []
        raw = next(
            (c for c in ("flux_raw", "raw", "aperture_sum", "sum") if c in table.colnames), ""
        )
        for star in dict.fromkeys(np.asarray(table["id"]).tolist()):
            rows = table[np.asarray(table["id"]) == star]
            flux = np.ma.filled(np.ma.asarray(rows["flux"], float), math.nan)
            if not np.isfinite(flux).any():
                continue
            if len(curves) == _STARS:
                break
            x, y = self.positions.get(star, (None, None))
            title = f"star {star}" if x is None else f"star {star} at ({x:.1f}, {y:.1f})"
            curves.append(
                {
                    "id": star,
                    "title": title,
                    "x": x,
                    "y": y,
                    "radius": np.asarray(rows["radius"], float),
                    "flux": flux,
                    "flux_err": np.ma.filled(np.ma.asarray(rows["flux_err"], float), math.nan),
                    "raw": np.ma.filled(np.ma.asarray(rows[raw], float), math.nan) if raw else None,
                }
            )
        if not curves:
            return None
        self.stars = curves
        return figures.growth_png(curves, filter_name=self.filter, annulus=_annulus(table.meta))

    def _catalog(self):
        return self._read("catalog", self._read_catalog)

    def _read_catalog(self, path):
        # The reader in C, for a few columns of numbers: that for ECSV takes many times as long.
        columns = ("id", "x_center", "y_center", "flux", "flux_err")
        text = path.read_text(encoding="utf-8").splitlines()
        table = Table.read(text, format="ascii.fast_basic", guess=False, include_names=columns)
        view = {"n": len(table), "limit": None}
        columns = [np.asarray(table[c]).tolist() for c in ("id", "x_center", "y_center")]
        self.positions = {i: (x, y) for i, x, y in zip(*columns, strict=True)}
        if {"flux", "flux_err"} <= set(table.colnames) and len(table):
            error = np.ma.filled(np.ma.asarray(table["flux_err"], float), math.nan)
            flux = np.ma.filled(np.ma.asarray(table["flux"], float), math.nan)
            faint = np.isfinite(error) & (flux < np.nanpercentile(flux, 50))
            if faint.any():
                view["limit"] = 5 * float(np.median(error[faint]))
        return view


def _draw_coadd(path, filter_name, size):
    with _open(path) as hdul:
        header = hdul[0].header
        data = hdul[0].data
        mask = hdul["MASK"].data if "MASK" in hdul else None
        image, factor = figures.downsample(data, mask, size=size)
        view = {
            "image": image,
            "date": str(header.get("DATE-OBS", "")),
            "coverage": None,
            "correlation": header.get("NOISECOR"),
            "shape": data.shape,
            "unit": str(header.get("BUNIT", "")).replace(" ", ""),
        }
        if "NEXP" in hdul:
            view["coverage"] = _coverage(hdul["NEXP"])
    stretch = figures.Stretch.of(image)
    colours = figures.palette(filter_name)
    ny, nx = image.shape
    bar = figures.scale_bar(header, nx * factor)
    view["picture"] = {
        "png": figures.palette_png(stretch(image), colours),
        "width": nx,
        "height": ny,
        "bar": bar.length / factor,
        "label": bar.label,
        "north": bar.north,
        "east": bar.east,
        "factor": factor,
        "ramp": _ramp(colours),
        "ticks": stretch.ticks(),
    }
    return view


def _open(path):
    return fits.open(path, memmap=True, do_not_scale_image_data=True)


def _annulus(meta):
    pairs = [("r_in", "r_out"), ("annulus_in", "annulus_out")]
    for inner, outer in pairs:
        if inner in meta and outer in meta:
            return tuple(float(getattr(meta[k], "value", meta[k])) for k in (inner, outer))
    return None


def _coverage(hdu):
    # A map of the file has no scaling: uint16 is int16 and a zero point there.
    thin = max(1, hdu.data.shape[0] // (3 * _SMALL))
    data = hdu.data[::thin, ::thin].astype(np.int32) + int(hdu.header.get("BZERO", 0))
    image, _ = figures.downsample(data, size=_SMALL)
    top = max(1, int(np.max(data)))
    colours = figures.palette()
    brightness = np.where(image > 0, 0.1 + 0.6 * image / top, np.nan)
    return {
        "png": figures.palette_png(brightness, colours),
        "max": top,
        "full": float(np.mean(data == top)),
    }


def _ramp(colours):
    return ["#" + bytes(colour).hex() for colour in colours[1::15].tolist()]


def _colour_view(groups):
    """A composite of the filters of one object that share a grid."""
    images = {}
    shape = None
    for group in groups:
        if group["image"] is None or group["filter"] in images:
            continue
        shape = shape or group["shape"]
        if group["shape"] == shape:
            images[group["filter"]] = group["image"]
    if len(images) < 2:
        return None
    png, channels = figures.composite_png(images)
    ny, nx = next(iter(images.values())).shape
    return {"png": png, "channels": channels, "width": nx, "height": ny}


# --------------------------------------------------------------------------- masters


def _masters(pictures, masters):
    """What the page shows of each master; the groups that it serves, where not all."""
    views = []
    kinds = [(master.get("kind"), master.get("filter")) for master in masters]
    for master in masters:
        kind, title = master.get("kind"), ""
        if kind == "bias":
            title, unit = "Bias", "adu"
            facts = [("frames", master.get("n_frames")), ("level [adu]", master.get("level"))]
            facts += [("noise of a frame [adu]", master.get("noise"))]
        elif kind == "dark":
            title, unit = "Dark rate", "adu/s"
            facts = _dark_facts(master)
        else:
            title, unit = f"Flat {master.get('filter') or ''}", ""
            exposure = _span(master.get("exposure"))
            facts = [("frames", master.get("n_frames")), ("exposure [s]", exposure)]
        if kinds.count((kind, master.get("filter"))) > 1:
            facts.append(("serves", ", ".join(master.get("groups") or ())))
        views.append(_master(pictures, title, master, unit, facts))
        views[-1]["notes"] += [safe_text(note) for note in master.get("notes") or ()]
    return views


def _dark_facts(dark):
    counts = dark.get("n_frames")
    counts = counts if isinstance(counts, list | tuple) else [counts] * 9
    darks = [
        f"{_number(n)} × {_number(t)} s"
        for n, t in zip(counts, dark.get("exposures") or (), strict=False)
    ]
    facts = [("model", dark.get("model")), ("darks", ", ".join(darks))]
    if dark.get("temperatures"):
        facts.append(("temperature [°C]", _span(dark["temperatures"])))
    return facts


def _span(values):
    """One number, or the lowest and highest of several, as text."""
    if not isinstance(values, list | tuple):
        return _number(values)
    return " to ".join(dict.fromkeys(_number(f(values)) for f in (min, max))) if values else "–"


def _master(pictures, title, master, unit, facts):
    view = {
        "title": title,
        "path": master.get("path"),
        "facts": facts,
        "picture": None,
        "notes": [],
    }
    if not master.get("path"):
        return view
    try:
        drawn = pictures.master(master)
    except Exception as error:  # the page says what is wrong with it, and shows the rest
        view["notes"].append(f"cannot be shown ({type(error).__name__}: {error})")
        return view
    view["picture"] = {**drawn["picture"], "unit": unit}
    if drawn["levels"] is not None:
        low, middle, high = drawn["levels"]
        label = f"median [{unit}]" if unit else "median"
        view["facts"] = [
            *facts,
            (label, middle),
            ("1 % to 99 %", f"{_number(low)} to {_number(high)}"),
        ]
        if drawn["masked"] is not None:
            view["facts"].append(("masked [%]", 100 * drawn["masked"]))
    return view


def _draw_master(path, extension):
    with _open(path) as hdul:
        if extension != 0 and extension not in hdul:
            extension = 0
        data = hdul[extension].data
        mask = hdul["MASK"].data if "MASK" in hdul else None
        # A few rows of each block are enough for a small picture.
        thin = max(1, data.shape[0] // (3 * _SMALL))
        mask = None if mask is None else mask[::thin, ::thin] != 0
        data = np.asarray(data[::thin, ::thin], np.float32)
    image, _ = figures.downsample(data, mask, size=_SMALL)
    stretch = figures.Stretch.linear(image)
    good = np.isfinite(data) if mask is None else np.isfinite(data) & ~mask
    levels = np.percentile(data[good], [1, 50, 99]).tolist() if good.any() else None
    return {
        "picture": {
            "png": figures.palette_png(stretch(image), figures.palette()),
            "black": stretch.black,
            "white": stretch.white,
        },
        "levels": levels,
        "masked": None if mask is None else float(np.mean(mask)),
    }


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
        for item in master.get("left_out") or ():
            if isinstance(item, dict):
                out.setdefault(str(item.get("path")), str(item.get("reason") or ""))
            else:
                out.setdefault(str(item), "")
    return sorted(out.items())
