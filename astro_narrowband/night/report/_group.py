"""
What the page shows of one object in one filter, and of one of its lights.

Private to `astro_narrowband.night.report`.
"""

import math
import re

import numpy as np
from astropy.io import fits
from astropy.table import Table

from astro_narrowband._engine.headers import read_pixel_scale
from astro_narrowband.night import figures
from astro_narrowband.night.charts import growth_png, self_test_png
from astro_narrowband.night.report._words import cause_of, headline, messages_of

#: Longest side of the small pictures, in pixels.
SMALL = 320
#: Stars whose growth curves are shown.
STARS = 3


class GroupView:
    """One object in one filter."""

    def __init__(self, folder, group, pictures, *, messages=(), alone=False, camera=None):
        self.folder = folder
        self.messages = messages
        self.alone = alone
        self.camera = camera
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
            "frames": [self._frame(frame) for frame in self.group.get("frames") or []],
            "products": self.group.get("products") or {},
            "date": "",
            "unit": "electron/s",
            "headline": [],
        }
        view["frames"].sort(key=lambda frame: str(frame.get("date") or ""))
        view["n_frames"] = len(view["frames"])
        self.stars = []
        self.positions = {}
        view["catalog"] = self._catalog()
        view["growth"] = self._growth()
        view.update(self._coadd())
        view["night"] = self.pictures.night(view["frames"], self.filter)
        view["light"] = self.pictures.light_of(view["products"].get("coadd"))
        if view.get("cards") and (png := self_test_png(view["cards"])):
            view["night"] = [*view["night"], ("self-test", png)]
        worst = messages_of(self.messages, view, alone=self.alone)
        view["warning"] = worst[0] if worst else None
        if view.get("cards"):
            view["headline"] = headline(view, view["cards"], view["catalog"])
            combined = view["cards"]["NCOMBINE"]
            if combined not in (None, view["n_used"]):
                self.notes.append(
                    f"the coadd says NCOMBINE = {combined}, night.json {view['n_used']}"
                )
        view["top_weight"] = max((f.get("weight") or 0 for f in view["frames"]), default=0)
        view["notes"] = self.notes
        return view

    def _frame(self, frame):
        """A frame with the cause why it is out, and the noise that its camera predicts."""
        cause, rest = cause_of(frame.get("reason"))
        name = str(frame.get("path") or "").rpartition("/")[2]
        words = {"name": name, "cause": cause, "rest": rest}
        return {**frame, **words, "predicted": self._predicted(frame)}

    def _predicted(self, frame):
        """Noise of a pixel of blank sky by photons, dark current and read-out [electron/s]."""
        if self.camera is None:
            return None
        dark, read_noise = self.camera
        time, sky = frame.get("exposure"), frame.get("sky")
        numbers = [dark, read_noise, time, sky]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or time <= 0:
            return None
        return math.sqrt(max(sky + dark, 0.0) / time + (read_noise / time) ** 2)

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
        verdicts = table.meta.get("background") or {}
        for star in dict.fromkeys(np.asarray(table["id"]).tolist()):
            rows = table[np.asarray(table["id"]) == star]
            flux = np.ma.filled(np.ma.asarray(rows["flux"], float), math.nan)
            if not np.isfinite(flux).any():
                continue
            if len(curves) == STARS:
                break
            verdict = str(verdicts.get(int(star), "")) if isinstance(verdicts, dict) else ""
            x, y = self.positions.get(star, (None, None))
            title = f"star {star}" if x is None else f"star {star} at ({x:.1f}, {y:.1f})"
            curves.append(
                {
                    "id": star,
                    "title": title,
                    "verdict": verdict.replace("+-", "±").replace("electron / s", "electron/s"),
                    "x": x,
                    "y": y,
                    "radius": np.asarray(rows["radius"], float),
                    "flux": flux,
                    "flux_err": np.ma.filled(np.ma.asarray(rows["flux_err"], float), math.nan),
                    "raw": np.ma.filled(np.ma.asarray(rows["aperture_sum"], float), math.nan),
                }
            )
        if not curves:
            return None
        self.stars = curves
        annulus = tuple(table.meta[key] for key in ("r_in", "r_out"))
        return [
            {**curve, "png": growth_png(curve, filter_name=self.filter, annulus=annulus)}
            for curve in curves
        ]

    def _catalog(self):
        return self._read("catalog", self._read_catalog)

    def _read_catalog(self, path):
        # The reader in C, for a few columns of numbers: that for ECSV takes many times as long.
        columns = ("id", "x_center", "y_center", "snr")
        text = path.read_text(encoding="utf-8").splitlines()
        table = Table.read(text, format="ascii.fast_basic", guess=False, include_names=columns)
        view = {"n": len(table), "n_seen": None, **_aperture(text)}
        columns = [np.asarray(table[c]).tolist() for c in ("id", "x_center", "y_center")]
        self.positions = {i: (x, y) for i, x, y in zip(*columns, strict=True)}
        if "snr" in table.colnames:
            snr = np.ma.filled(np.ma.asarray(table["snr"], float), math.nan)
            view["n_seen"] = int(np.sum(snr > 5))
        return view


def _aperture(lines):
    """The aperture of a catalogue and its correction, of the notes at the head of an ECSV file."""
    notes = "".join(line for line in lines[:200] if line.startswith("#"))
    values = {}
    for name in ("r", "r_in", "r_out", "correction"):
        match = re.search(rf"\{{{name}: ([-+.\deE]+)\}}", notes)
        values[name] = float(match[1]) if match else None
    return values


def draw_coadd(path, filter_name, size):
    with open_product(path) as hdul:
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
            "cards": _cards(hdul),
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


def _cards(hdul):
    """What the headline needs of a coadd."""
    header = hdul[0].header
    scale = read_pixel_scale(header) * 3600
    cards = {"scale": scale if 0 < scale < 3600 else None, "blank": None}
    for key in ("NOISEPIX", "NOISEAPR", "NOISEBLK", "NOISELIN", "ERRSCALE", "NCOMBINE"):
        value = header.get(key)
        cards[key] = value if isinstance(value, int | float) else None
    if "UNCERT" in hdul:
        thin = max(1, hdul[0].data.size // (1 << 20))
        data, sigma = (hdul[name].data[::thin].astype(float) for name in (0, "UNCERT"))
        good = np.isfinite(data) & np.isfinite(sigma)
        if good.any():
            # The darker half of an image is its sky.
            blank = good & (data <= np.median(data[good]))
            cards["blank"] = float(np.median(sigma[blank]))
    return cards


def open_product(path):
    return fits.open(path, memmap=True, do_not_scale_image_data=True)


def _coverage(hdu):
    # A map of the file has no scaling: uint16 is int16 and a zero point there.
    thin = max(1, hdu.data.shape[0] // (3 * SMALL))
    data = hdu.data[::thin, ::thin].astype(np.int32) + int(hdu.header.get("BZERO", 0))
    image, _ = figures.downsample(data, size=SMALL)
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


def colour_views(groups):
    """Return the composites of the filters of one object that share a grid, the best first."""
    images, shape = {}, None
    for group in groups:
        if group["image"] is None or group["filter"] in images:
            continue
        shape = shape or group["shape"]
        if group["shape"] == shape:
            images[group["filter"]] = group["image"]
    views = []
    for name, recipe in figures.recipes(images).items():
        ny, nx = images[next(iter(recipe))].shape
        png = figures.composite(images, recipe)
        views.append(
            {"name": name, "png": png, "width": nx, "height": ny, "words": _mix(name, recipe)}
        )
    return views


def _mix(name, recipe):
    """What is red, green and blue in a composite."""
    if name == "natural":
        return f"{', '.join(recipe)}, each in about its own colour"
    channels = [
        "+".join(filter_name for filter_name, weights in recipe.items() if weights[k]) or "nothing"
        for k in range(3)
    ]
    return f"red, green and blue are {', '.join(channels)}"


#: Side of the square that is shown, one pixel of it for one of the frame.
SIDE = 240


def draw_light(product, frame, matrix, filter_name):
    """
    Return PNG of one square of the sky: in a raw light, calibrated, and in the coadd.

    Parameters
    ----------
    product : path
        Of the coadd.
    frame : `~astro_narrowband.calibration.CalibratedFrame`
    matrix : array-like, (3, 3)
        From pixels of the frame to those of the coadd; turned by a half turn where it does that,
        moved by whole pixels. A field that is rotated otherwise is not turned.
    filter_name : str
        Gives the colour.

    Returns
    -------
    dict
        ``name``, ``raw``, ``calibrated``, ``coadd``; ``side`` [pix].
    """
    matrix = np.asarray(matrix, float)
    with open_product(product) as hdul:
        height, width = hdul[0].data.shape
        side = min(SIDE, height, width, *frame.shape)
        corner = np.array([(width - side) // 2, (height - side) // 2])
        cut = np.s_[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
        coadd = np.array(hdul[0].data[cut], np.float32)
        coadd[hdul["MASK"].data[cut] != 0] = np.nan
    middle = np.linalg.solve(matrix, [*(corner + (side - 1) / 2), 1.0])[:2]
    x, y = (
        int(np.clip(round(m - (side - 1) / 2), 0, n - side))
        for m, n in zip(middle, frame.shape[::-1], strict=True)
    )
    rows, turn = slice(y, y + side), -1 if matrix[0, 0] < 0 else 1
    pieces = []
    for source in (frame.frame, frame):
        band = source.read(rows, variance=False)
        piece = np.array(band.data[:, x : x + side], np.float32)
        if band.mask is not None and source is frame:
            piece[band.mask[:, x : x + side]] = np.nan
        pieces.append(piece[::turn, ::turn])
    raw, calibrated = pieces
    stretch = figures.Stretch.of(calibrated)
    colours = figures.palette(filter_name)
    return {
        "name": frame.name,
        "side": side,
        "raw": figures.palette_png(figures.Stretch.linear(raw)(raw), figures.palette()),
        "calibrated": figures.palette_png(stretch(calibrated), colours),
        "coadd": figures.palette_png(stretch(coadd), colours),
    }
