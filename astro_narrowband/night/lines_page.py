"""The page of lines: maps, ratios, scales with their residuals, and how sure a flux is."""

import base64
import hashlib
import io
import math
from pathlib import Path

import numpy as np

from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import ProductError
from astro_narrowband.night import figures

__all__ = ["render_lines"]

_TEMPLATES = Path(__file__).parent / "templates"
_SIZE = 640
#: Of this page: pictures on narrow screens, and tables of two columns.
_STYLE = "img { max-width: 100%; height: auto; } table { width: auto; max-width: 100%; }"


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
    try:
        import jinja2
        import matplotlib as mpl  # noqa: F401 - said here, before anything is done
    except ImportError as error:
        raise ProductError(
            f"lines.html: needs {error.name}, which is not installed: "
            "pip install 'astro-narrowband[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if hasattr(v, "__html__") else one_line(str(v)),
    )
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8") + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    shown = {k: v for k, v in settings.items() if v not in (None, (), [], "")}
    return environment.get_template("lines.html").render(
        style=style, style_hash=digest, objects=[_view(each) for each in fields], settings=shown
    )


def _view(each):
    lines = [
        {"name": name, "picture": _picture(line_map.data, line_map.mask, name),
         "scale": _scale_plot(each, name), "facts": each.facts[name],
         "rows": _rows(each.facts[name])}
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


def _table(each):
    """One row per region, as a paper prints it: fluxes of all lines, then their ratios."""
    lines, fluxes = list(each.maps), each.regions
    unit = f"[{fluxes['flux'].unit}]"
    columns = [["", "", *fluxes["region"][: len(fluxes) // len(lines)]]]
    for line in lines:
        chosen = fluxes[fluxes["line"] == line]
        cells = [f"{row['flux'].value:.4g} ± {row['flux_err'].value:.2g}" for row in chosen]
        columns.append([line, unit, *cells])
    for pair in dict.fromkeys(each.region_ratios["lines"]) if each.region_ratios else ():
        chosen = each.region_ratios[each.region_ratios["lines"] == pair]
        columns.append([pair, "", *map(_ratio_cell, chosen)])
    return list(zip(*columns, strict=True))


def _ratio_cell(row):
    if row["kind"] == "measured":
        up, down = row["upper"] - row["ratio"], row["ratio"] - row["lower"]
        return f"{row['ratio']:.4g} +{up:.2g} −{down:.2g}"
    limits = {"upper": f"< {row['upper']:.2g}", "lower": f"> {row['lower']:.2g}"}
    return limits.get(row["kind"], "–")


def _number(value):
    value = getattr(value, "value", value)
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _rows(facts):
    """The numbers of a map that have a name a reader knows."""
    labels = (
        ("KFILTER", "Continuum filter"), ("KCONT", "Scale k"), ("KCONTERR", "its error"),
        ("KSTARS", "stars"), ("KRATIO", "k of apertures"), ("KSLOPE", "k of pixels"),
        ("KMODE", "k of the mode"), ("KSCATTER", "star to star"), ("KLOST", "part of line lost"),
        ("FLUXCAL", "erg/(s cm2) of 1 electron/s"), ("FLUXRAN", "its random error"),
        ("FLUXFLO", "its floor"), ("FLUXSTAR", "reference stars"), ("BLEND", "over, for [NII]"),
        ("BLENDERR", "its error"),
    )  # fmt: skip
    return [(label, _number(facts[key])) for key, label in labels if key in facts]


def _picture(data, mask, tint, *, linear=False):
    image, _ = figures.downsample(
        np.nan_to_num(data), ~np.isfinite(data) if mask is None else mask, size=_SIZE
    )
    if not np.isfinite(image).any():
        return None
    stretch = figures.Stretch.linear(image, percentile=2) if linear else figures.Stretch.of(image)
    png = figures.palette_png(stretch(image), figures.palette(tint))
    low, high = stretch.black, stretch.white
    return {"png": _url(png), "low": _number(float(low)), "high": _number(float(high))}


def _scale_plot(each, name):
    """Residuals of the stars of the two scales, against their flux."""
    panels = []
    stars = each.maps[name].stars
    if stars is not None:
        y = np.log(np.asarray(stars["pixel_slope"] / stars["scale"], float))
        panels.append(
            (np.asarray(stars["flux"]), y, np.asarray(stars["used"]), "ln of a star's k / k")
        )
    if name in each.scales and each.scales[name][1] is not None:
        scale, match = each.scales[name]
        flux = np.asarray(match.stars["star_flux"].value)
        panels.append((flux, scale.residuals, scale.used, "ln of a star's flux scale / mean"))
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 2.8), dpi=100, facecolor=figures.PLATE)
    FigureCanvasAgg(figure)
    for number, (x, y, used, label) in enumerate(panels, start=1):
        ax = figure.add_subplot(1, len(panels), number, facecolor=figures.PLATE)
        ax.semilogx(x[used], y[used], "o", ms=4, color="#4fb3bf")
        ax.semilogx(x[~used], y[~used], "x", ms=5, color="#d0705a")
        ax.axhline(0, color=figures.INK, lw=0.8)
        reach = np.nanmax(np.abs(y[used])) if used.any() else math.nan
        if math.isfinite(reach) and reach > 0:
            ax.set_ylim(-2 * reach, 2 * reach)
        ax.set_xlabel("electron/s in the line filter", color=figures.INK)
        ax.set_ylabel(label, color=figures.INK)
        ax.tick_params(colors=figures.INK, which="both")
        ax.xaxis.set_minor_formatter("")
        ax.grid(color=figures.GRID)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return _url(out.getvalue())


def _url(png):
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704
