"""
Line plots of the page of a night, as PNG bytes; each small enough for a phone.

They are matplotlib's, through its object interface: no state of pyplot, no display, and no
text is taken for mathematics.
"""

import io
import math

import numpy as np
from astropy.time import Time

from astro_narrowband.confront import TOLERANCE
from astro_narrowband.night.figures import GRID, INK, PLATE, TINTS

__all__ = ["dark_png", "growth_png", "load", "night_charts", "price_png", "self_test_png"]

#: Effort of zlib, as for pictures.
_LEVEL = 1


def load():
    """Load what draws, and its fonts, by drawing nothing."""
    _finish(_figure()[0])


def _figure(width=4.6, height=2.7):
    """A figure with axes, in the colours of a plate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, facecolor=PLATE, layout="none")
    FigureCanvasAgg(figure)
    # Set by hand: the layout engines draw everything twice.
    figure.subplots_adjust(
        left=0.72 / width, right=1 - 0.26 / width, top=1 - 0.32 / height, bottom=0.52 / height
    )
    ax = figure.subplots()
    ax.set_facecolor(PLATE)
    ax.tick_params(colors=INK, labelsize=9, length=3)
    ax.locator_params(nbins=5)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    return figure, ax


def _label(ax, x, y, title=None):
    ax.set_xlabel(x, color=INK, fontsize=9, parse_math=False)
    ax.set_ylabel(y, color=INK, fontsize=9, parse_math=False)
    if title:
        # With a height of its own: to find one, all ticks are laid out once more.
        ax.set_title(title, y=1.0, color=INK, fontsize=9.5, loc="left", parse_math=False)


def _legend(ax, place="best"):
    ax.legend(fontsize=8, loc=place, labelcolor=INK, facecolor=PLATE, edgecolor=GRID)


def _colour(name):
    return "#" + "".join(f"{c:02x}" for c in TINTS.get(name, (110, 168, 254)))


def _finish(figure):
    out = io.BytesIO()
    figure.canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"compress_level": _LEVEL})
    return out.getvalue()


def stars_png(flux, away, used, label):
    """A chart of what stars are off by, against their flux: dots were used, crosses left out."""
    figure, ax = _figure()
    ax.set_xscale("log")
    ax.plot(flux[used], away[used], "o", ms=3, color=_colour("OIII"))
    ax.plot(flux[~used], away[~used], "x", ms=4, color=_colour("SII"))
    ax.axhline(0, color=INK, lw=0.8)
    if used.any() and (reach := float(np.abs(away[used]).max())) > 0:
        ax.set_ylim(-2 * reach, 2 * reach)
    ax.xaxis.set_minor_formatter("")
    _label(ax, "electron/s in the line filter", label)
    return _finish(figure)


def growth_png(curve, *, filter_name="", annulus=None):
    """
    Plot a growth curve with its error band.

    Parameters
    ----------
    curve : dict
        ``title``, ``radius``, ``flux``, ``flux_err`` and, where it is known,
        ``raw``: the same before the sky was subtracted.
    filter_name : str, optional
        Gives the colour.
    annulus : tuple of float, optional
        Inner and outer radius of the sky annulus [pix], shaded.

    Returns
    -------
    bytes
        PNG.
    """
    figure, ax = _figure(height=3.0)
    colour = _colour(filter_name)
    radius, flux, error = (np.asarray(curve[k], float) for k in ("radius", "flux", "flux_err"))
    ax.fill_between(radius, flux - error, flux + error, color=colour, alpha=0.3, linewidth=0)
    ax.plot(radius, flux, color=colour, linewidth=1.8, marker=".", markersize=4, label="net")
    top = np.nanmax(flux + np.nan_to_num(error), initial=0.0)
    low = min(0.0, float(np.nanmin(flux - np.nan_to_num(error), initial=0.0)))
    if curve.get("raw") is not None:
        raw = np.asarray(curve["raw"], float)
        ax.plot(radius, raw, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="with sky")
        top = max(top, min(float(np.nanmax(raw, initial=0.0)), 1.6 * top))
    right = float(radius.max())
    if annulus is not None:
        ax.axvspan(*annulus, color=INK, alpha=0.1, linewidth=0, label="sky annulus")
        right = max(right, min(float(annulus[1]), 1.6 * right))
    ax.set_xlim(0, right * 1.02)
    if top > low:
        ax.set_ylim(low * 1.05, top * 1.08)
    _label(ax, "radius [pix]", "flux [electron/s]", curve["title"])
    _legend(ax, "lower right")
    return _finish(figure)


def night_charts(frames, *, filter_name=""):
    """
    Plot sky, seeing, weight, noise and shift of the frames of a filter over the time of night.

    Parameters
    ----------
    frames : sequence of dict
        With ``verdict``, ``date`` (UTC, ISO 8601), ``sky``, ``fwhm``, ``weight``, ``noise``,
        ``predicted``, ``dx`` and ``dy``, None where not known.
    filter_name : str, optional
        Gives the colour.

    Returns
    -------
    list of (str, bytes)
        What is plotted, and the PNG. Frames that were left out are hollow. Where a date is
        missing the axis is the number of the frame.
    """
    frames, times, axis = _in_time(frames)
    colour = _colour(filter_name)
    used = np.array([frame.get("verdict") == "used" for frame in frames])

    def column(name):
        values = [frame.get(name) for frame in frames]
        known = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
        return np.array([float(v) if k else math.nan for v, k in zip(values, known, strict=True)])

    def points(ax, x, y):
        ax.scatter(x[used], y[used], s=26, color=colour, linewidth=0, zorder=3)
        ax.scatter(x[~used], y[~used], s=26, facecolor="none", edgecolor=INK, linewidth=0.9)

    charts = []
    for name, label, factor in (
        ("sky", "sky [electron/s]", 1),
        ("fwhm", "seeing [pix]", 1),
        ("weight", "weight [%]", 100),
        ("noise", "noise of a pixel [electron/s]", 1),
    ):
        values = column(name) * factor
        if not np.isfinite(values).any():
            continue
        figure, ax = _figure()
        points(ax, times, values)
        predicted = column("predicted") if name == "noise" else np.full(len(times), math.nan)
        if np.isfinite(predicted).any():
            ax.scatter(times, predicted, marker="_", s=150, color=INK, label="predicted")
            _legend(ax)
        if name == "weight":
            ax.set_ylim(0, 1.08 * np.nanmax(values, initial=0) or None)
        axis(ax)
        ax.margins(x=0.08)
        _label(ax, ax.get_xlabel(), "", label)
        charts.append((label, _finish(figure)))
    if np.isfinite(column("dx")).any():
        figure, ax = _figure()
        points(ax, column("dx"), column("dy"))
        ax.axhline(0, color=GRID, linewidth=1, zorder=0)
        ax.axvline(0, color=GRID, linewidth=1, zorder=0)
        ax.margins(0.15)
        ax.set_aspect("equal", adjustable="datalim")
        _label(ax, "dx [pix]", "dy [pix]", "shift")
        charts.append(("shift", _finish(figure)))
    return charts


def _in_time(frames):
    """Frames in the order they were taken, where on the axis they are, and what labels it."""
    try:
        days = Time([str(frame.get("date") or "") for frame in frames], format="isot").plot_date
    except ValueError:
        numbers = np.arange(1.0, len(frames) + 1)

        def count(ax):
            ax.locator_params(axis="x", integer=True)
            ax.set_xlabel("frame")

        return list(frames), numbers, count
    order = np.argsort(days, kind="stable")

    def clock(ax):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=6)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        ax.set_xlabel("time [UTC]")

    return [frames[i] for i in order], days[order], clock


def self_test_png(cards):
    """
    Plot the noise of blank sky over what was predicted, with what is taken for right.

    Parameters
    ----------
    cards : dict
        NOISEPIX, NOISEBLK, NOISEAPR and NOISELIN of a coadd, None where not known.

    Returns
    -------
    bytes or None
        PNG; None where nothing is known.
    """
    names = dict(zip(TOLERANCE, ("NOISEPIX", "NOISEBLK", "NOISEAPR", "NOISELIN"), strict=True))
    known = {name: cards[key] for name, key in names.items() if cards.get(key) is not None}
    if not known:
        return None
    figure, ax = _figure()
    for place, (name, ratio) in enumerate(known.items()):
        limit, bad = TOLERANCE[name], abs(ratio - 1) > TOLERANCE[name]
        ax.fill_between(
            [place - 0.35, place + 0.35], 1 - limit, 1 + limit, color="#4cc38f", alpha=0.25, lw=0
        )
        ax.plot(place, ratio, "o", color="#e5ae4a" if bad else INK, markersize=6)
    ax.axhline(1, color=INK, linewidth=0.8)
    ax.set_xticks(range(len(known)), known)
    ax.set_xlim(-0.6, len(known) - 0.4)
    _label(ax, "blank sky, by what is summed", "", "self-test: noise measured over predicted")
    return _finish(figure)


def dark_png(rates, is_hot, is_bent):
    """
    Plot how the dark current is spread over the pixels.

    Parameters
    ----------
    rates : `~numpy.ndarray`, (n,)
        Of pixels all over the detector [adu/s].
    is_hot, is_bent : `~numpy.ndarray` of bool, (n,)
        Which of them are hot; which are not linear in time.

    Returns
    -------
    bytes
        PNG.
    """
    figure, ax = _figure()
    good = np.isfinite(rates)
    rates, is_hot, is_bent = rates[good], is_hot[good], is_bent[good]
    low, high = np.percentile(rates, [0.05, 99.99]) if rates.size else (0.0, 1.0)
    rates = np.clip(rates, low, max(high, low + 1e-6))
    bins = np.linspace(low, max(high, low + 1e-6), 81)
    ax.hist(rates, bins=bins, color=_colour(None), log=True, label="all")
    ax.hist(rates[is_hot], bins=bins, color="#e5ae4a", log=True, histtype="step", label="hot")
    if is_bent.any():
        ax.hist(rates[is_bent], bins=bins, color="#ff7b72", log=True, histtype="step",
                label="not linear")  # fmt: skip
    _legend(ax, "upper right")
    _label(ax, "dark current [adu/s]", "pixels", "dark current")
    return _finish(figure)


def price_png(exposures, stated, unstated, *, measured=(), frames=()):
    """
    Plot the error of a dark over its exposure time.

    Parameters
    ----------
    exposures, stated, unstated : sequence of float
        Exposure time [s]; error that the uncertainty says, and what may be wrong beyond it
        [adu].
    measured : sequence of float, optional
        Exposure times of the darks [s].
    frames : sequence of (float, float), optional
        Exposure time [s] and noise of a pixel [adu] of lights.

    Returns
    -------
    bytes
        PNG.
    """
    figure, ax = _figure()
    total = np.hypot(stated, unstated)
    ax.plot(exposures, total, color=_colour(None), linewidth=1.8, label="error of the dark")
    ax.plot(exposures, stated, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as stated")
    for k, time in enumerate(measured):
        ax.axvline(time, color="#e5ae4a", linewidth=0.9, label="darks" if k == 0 else None)
    if len(frames):
        time, noise = np.transpose(frames)
        ax.scatter(time, noise, s=24, color="#4cc38f", zorder=3, label="noise of a light")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _legend(ax)
    _label(ax, "exposure [s]", "adu, a typical pixel", "price of the dark")
    return _finish(figure)
