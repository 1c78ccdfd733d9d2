"""
What the page shows of the masters.

Private to `astro_narrowband.night.report`.
"""

import contextlib

import numpy as np
from scipy.ndimage import median_filter

from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.text import one_line
from astro_narrowband.darks import FLAGS, DarkModel
from astro_narrowband.exceptions import NarrowbandError
from astro_narrowband.night import figures
from astro_narrowband.night.charts import dark_png, price_png
from astro_narrowband.night.report._group import SMALL, open_product
from astro_narrowband.night.report._words import number

#: A pixel whose dark current is so many robust deviations, and a median, above its neighbours is
#: called hot; so many rows of a detector tell how they are spread.
HOT, ROWS = 10.0, 200


def masters_view(pictures, masters, lights):
    """
    Return what the page shows of each master, and the groups that it serves, where not all.

    ``lights`` has exposure time [s] and noise [adu] of frames, for the price of a dark.
    """
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
        views[-1]["kind"] = kind
        views[-1]["charts"] = _dark_charts(pictures, master, lights) if kind == "dark" else []
        views[-1]["notes"] += [one_line(note) for note in master.get("notes") or ()]
    return views


def _dark_facts(dark):
    counts = dark.get("n_frames")
    counts = counts if isinstance(counts, list | tuple) else [counts] * 9
    darks = [
        f"{number(n)} × {number(t)} s"
        for n, t in zip(counts, dark.get("exposures") or (), strict=False)
    ]
    facts = [("model", dark.get("model")), ("darks", ", ".join(darks))]
    if dark.get("temperatures"):
        facts.append(("temperature [°C]", _span(dark["temperatures"])))
    if dark.get("reach"):
        facts.append(("serves, under any sky", f"lights up to {number(dark['reach'])} s"))
    return facts


def _span(values):
    """One number, or the lowest and highest of several, as text."""
    if not isinstance(values, list | tuple):
        return number(values)
    return " to ".join(dict.fromkeys(number(f(values)) for f in (min, max))) if values else "–"


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
            ("1 % to 99 %", f"{number(low)} to {number(high)}"),
        ]
        if drawn["masked"] is not None:
            view["facts"].append(("masked [%]", 100 * drawn["masked"]))
    return view


def draw_master(path, extension):
    with open_product(path) as hdul:
        if extension != 0 and extension not in hdul:
            extension = 0
        data = hdul[extension].data
        mask = hdul["MASK"].data if "MASK" in hdul else None
        # A few rows of each block are enough for a small picture.
        thin = max(1, data.shape[0] // (3 * SMALL))
        mask = None if mask is None else mask[::thin, ::thin] != 0
        data = np.asarray(data[::thin, ::thin], np.float32)
    image, _ = figures.downsample(data, mask, size=SMALL)
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


def _dark_charts(pictures, master, lights):
    """Charts of a dark: how its rates are spread, and its error over exposure time."""
    try:
        return pictures.dark(master["path"], tuple(lights))
    except Exception:  # the picture of the master says what is wrong with it
        return []


def draw_dark(path, lights):
    """Return ``(words, PNG)`` of the rates of a dark model and of its price."""
    model = DarkModel.read(path)
    if model.model == "bias":
        return []
    step = max(1, model.shape[0] // ROWS)
    rows = [slice(y, y + 1) for y in range(0, model.shape[0], step)]
    rates = np.concatenate([np.asarray(model.planes["rate"][row], float) for row in rows])
    flags = np.concatenate([np.asarray(model.planes["flags"][row]) for row in rows])
    is_bent = (flags & FLAGS["NONLINEAR"]) != 0
    # Out of its neighbours in the row: the glow of an amplifier is no hot pixel.
    beside = rates - median_filter(rates, size=(1, 15), mode="nearest")
    middle = float(np.nanmedian(rates))
    spread = mad_std(beside, 0.0)
    limit = max(HOT * spread, abs(middle))
    is_hot = beside > limit
    words = (
        f"{number(100 * float(np.mean(is_hot)), 2)} % of the pixels are hot (more than "
        f"{number(limit, 2)} adu/s above those beside them); the median is {number(middle, 2)}"
    )
    chi2 = model.header.get("DARKCHI2")
    if isinstance(chi2, int | float):
        words += (
            f"; a straight line fits with χ² = {number(chi2, 3)} per degree of freedom, and "
            f"{number(100 * float(np.mean(is_bent)), 2)} % are not linear"
        )
    charts = [(words, dark_png(rates.ravel(), is_hot.ravel(), is_bent.ravel()))]
    longest = max([*model.exposures, *(time for time, _ in lights)])
    times, prices = np.geomspace(max(1.0, longest / 100), 1.5 * longest, 24), []
    for time in times:
        with contextlib.suppress(NarrowbandError):
            prices.append((time, *model.price(time, noise=1.0)[1:3]))
    if prices:
        png = price_png(*np.transpose(prices), measured=model.exposures, frames=lights)
        charts.append(("error that the dark adds to a pixel, and the noise of the lights", png))
    return charts
