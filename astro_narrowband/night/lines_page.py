"""The page of lines: maps, ratios, scales with their residuals, and how sure a flux is."""

import math

import numpy as np

from astro_narrowband.night import charts, figures
from astro_narrowband.night.report import rendered

__all__ = ["render_lines"]

_SIZE = 640
#: Keywords of a map that a reader knows by another name.
LABELS = {
    "KFILTER": "Continuum filter", "KCONT": "Scale k", "KCONTERR": "its error",
    "KSTARS": "stars", "KRATIO": "k of apertures", "KSLOPE": "k of pixels",
    "KMODE": "k of the mode", "KSCATTER": "star to star", "KLOST": "part of line lost",
    "ZEROSKY": "sky left, taken off", "ZEROERR": "its error",
    "FLUXCAL": "erg/(s cm2) of 1 electron/s", "FLUXRAN": "its random error",
    "FLUXFLO": "its floor", "FLUXSTAR": "reference stars", "BLEND": "over, for [NII]",
    "BLENDERR": "its error",
}  # fmt: skip
#: Of this page: pictures on narrow screens, tables of two columns, and settings that are long.
_STYLE = """img { max-width: 100%; height: auto; } table { width: auto; max-width: 100%; }
.facts { grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.facts dd { font-size: 14px; overflow-wrap: anywhere; }"""


def render_lines(fields, settings):
    """
    Return the page as text.

    Parameters
    ----------
    fields : sequence
        What `~astro_narrowband.night.lines.make_lines` made of each object.
    settings : dict

    Returns
    -------
    str

    Raises
    ------
    ProductError
        If matplotlib or jinja2 is not installed.
    """
    shown = {k: _setting(v) for k, v in settings.items() if v not in (None, (), [], "")}
    return rendered(
        "lines.html", lambda: {"objects": [_view(each) for each in fields], "settings": shown},
        more_style=_STYLE,
    )  # fmt: skip


def _view(each):
    lines = [
        {"name": name, "picture": _picture(line_map.data, line_map.mask, name),
         "scales": _scale_plots(each, name), "facts": each.facts[name],
         "rows": [(label, _number(each.facts[name][key])) for key, label in LABELS.items()
                  if key in each.facts[name]]}
        for name, line_map in each.maps.items()
    ]  # fmt: skip
    ratios = []
    for (a, b), ratio in each.ratios.items():
        counts = np.bincount(ratio.kind.ravel(), minlength=4).tolist()
        picture = _picture(ratio.ratio, None, None, linear=True) if counts[1] else None
        ratios.append(
            {"name": f"{a}/{b}", "picture": picture, "counts": counts, "common": ratio.common}
        )
    return {
        "name": each.name, "notes": each.notes, "lines": lines, "ratios": ratios,
        "table": None if each.regions is None else _table(each),
    }  # fmt: skip


def facts_of(line_map, name):
    """What is known of a map: numbers for the record, and one sentence."""
    meta = line_map.meta
    noise = float(np.nanmedian(line_map.uncertainty.array))
    bright = np.nan_to_num(line_map.data) > 5 * np.nan_to_num(
        line_map.uncertainty.array, nan=np.inf
    )
    facts = {key: meta[key] for key in LABELS if key in meta}
    facts |= {"unit": line_map.unit.to_string(), "noise": noise}
    total = float(np.sum(line_map.data[bright], dtype=float))
    if not bright.any() or total <= 0:
        return facts | {"sentence": f"{name} is seen in no pixel at 5 standard deviations."}
    shares = {
        "noise": math.sqrt(float(np.sum(line_map.uncertainty.array[bright] ** 2, dtype=float)))
    }
    for what, plane in line_map.patterns().items():
        shares[what] = abs(float(np.sum(plane[bright], dtype=float)))
    shares = {k: v / total for k, v in shares.items()}
    error, limit = math.hypot(*shares.values()), max(shares, key=shares.get)
    return facts | {
        "flux": total, "flux_err": total * error, "shares": shares,
        "sentence": f"The {name} flux in its {int(bright.sum())} pixels "
        f"at 5 standard deviations is {total:.3g} {line_map.unit.to_string()}, known to "
        f"{100 * error:.2g} %; what limits it is the {limit} ({100 * shares[limit]:.2g} %).",
    }  # fmt: skip


def facts_of_ratio(ratio):
    """What is known of a ratio: numbers for the record."""
    counts = np.bincount(ratio.kind.ravel(), minlength=4)
    median = float(np.nanmedian(ratio.ratio)) if counts[1] else math.nan
    return {"measured": int(counts[1]), "upper limits": int(counts[2]),
            "lower limits": int(counts[3]), "median": median, "common": ratio.common}  # fmt: skip


def _table(each):
    """One row per region, as a paper prints it: fluxes of all lines, then their ratios."""
    lines, fluxes = list(each.maps), each.regions
    unit = f"[{fluxes['flux'].unit}]"
    columns = [["", "", *fluxes["region"][: len(fluxes) // len(lines)]]]
    for line in lines:
        chosen = fluxes[fluxes["line"] == line]
        columns.append([line, unit, *map(_flux_cell, chosen)])
    for pair in dict.fromkeys(each.region_ratios["lines"]) if each.region_ratios else ():
        chosen = each.region_ratios[each.region_ratios["lines"] == pair]
        columns.append([pair, "", *map(_ratio_cell, chosen)])
    return list(zip(*columns, strict=True))


def _flux_cell(row):
    flux, error = row["flux"].value, row["flux_err"].value
    return f"{flux:.4g} ± {error:.2g}" if math.isfinite(flux) else "–"


def _ratio_cell(row):
    if row["kind"] == "measured":
        up, down = row["upper"] - row["ratio"], row["ratio"] - row["lower"]
        return f"{row['ratio']:.4g} +{up:.2g} −{down:.2g}"
    if row["kind"] == "upper" and math.isfinite(row["upper"]):
        return f"< {row['upper']:.2g}"
    return f"> {row['lower']:.2g}" if row["kind"] == "lower" and row["lower"] else "–"


def _setting(value):
    """A setting as it was given: numbers, or pairs of a name and what it is."""
    pairs = isinstance(value, tuple) and isinstance(value[0], tuple)
    every = [f"{k} = {v}" for k, v in value] if pairs else np.atleast_1d(value).tolist()
    return ", ".join(map(_number, every)) if not pairs else "; ".join(every)


def _number(value):
    value = getattr(value, "value", value)
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _picture(data, mask, tint, *, linear=False):
    image, _ = figures.downsample(
        np.nan_to_num(data), ~np.isfinite(data) if mask is None else mask, size=_SIZE
    )
    if not np.isfinite(image).any():
        return None
    stretch = figures.Stretch.linear(image, percentile=2) if linear else figures.Stretch.of(image)
    colours = figures.palette(tint)
    if linear:
        from matplotlib import colormaps

        colours[1:] = np.rint(255 * colormaps["viridis"](np.linspace(0, 1, 255))[:, :3])
    png = figures.palette_png(stretch(image), colours)
    low, high = stretch.black, stretch.white
    return {"png": png, "low": _number(float(low)), "high": _number(float(high))}


def _scale_plots(each, name):
    """What the stars of the two scales are off by, against their flux."""
    plots, stars = [], each.maps[name].stars
    if stars is not None:
        off = np.log(np.asarray(stars["pixel_slope"] / stars["scale"], float))
        flux, used = np.asarray(stars["flux"]), np.asarray(stars["used"])
        plots.append(charts.stars_png(flux, off, used, "ln of a star's k / k"))
    scale, match = each.scales.get(name, (None, None))
    if match is not None:
        flux = match.stars["star_flux"].value
        plots.append(
            charts.stars_png(flux, scale.residuals, scale.used, "ln of a star's flux scale / mean")
        )
    return plots
