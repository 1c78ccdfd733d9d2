"""Figures of photometry: the aperture over the star, and growth curves. On light paper."""

import math

import numpy as np

from astro_narrowband._engine.plots import new_axes

#: Sky subtracted; not subtracted; the annulus; text and lines.
BLUE, ORANGE, BAND, INK = "#1b5e9b", "#c8741f", "#d9d3c4", "#333333"


def _tidy(ax):
    ax.grid(color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")
    ax.tick_params(colors=INK, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)


def _shade(ax, r_in, r_out, right):
    """Shade the annulus as far as it is on the plot; return where the plot ends."""
    if r_in is None:
        return right
    right = max(right, r_in + 0.35 * (r_out - r_in))
    ax.axvspan(r_in, min(r_out, right), color=BAND, alpha=0.55, linewidth=0, zorder=0)
    ax.annotate(
        "sky annulus", (r_in, 0.5), xycoords=("data", "axes fraction"), xytext=(5, 0),
        textcoords="offset points", rotation=90, va="center", ha="left", color="#7a725f",
        fontsize=9,
    )  # fmt: skip
    return right


def draw_growth(ax, curves, star):
    """Draw one star of `GrowthCurves`: sky subtracted with its error, and as it was summed."""
    if ax is None:
        ax = new_axes(width=6.4, height=4.2)
    radii, flux, err = curves.radii, curves.flux[star], curves.flux_err[star]
    err = np.nan_to_num(err)
    top = float(np.nanmax(flux + err, initial=0.0)) or 1.0
    low = min(float(np.nanmin(flux - err, initial=0.0)), 0.0)
    ax.axhline(0, color="#999999", linewidth=0.8)
    total = curves.total[star]
    if np.isfinite(total).any() and np.any(total != flux):
        ax.plot(radii, total, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)),
                label="sky not subtracted")  # fmt: skip
        highest = float(np.nanmax(total))
        top = max(top, min(highest, 1.3 * top))
    ax.fill_between(radii, flux - err, flux + err, color=BLUE, alpha=0.22, linewidth=0)
    ax.plot(radii, flux, color=BLUE, linewidth=1.8, marker="o", markersize=3.2,
            label="sky subtracted, ±1σ")  # fmt: skip
    right = _shade(ax, curves.r_in, curves.r_out, float(radii[-1]) * 1.02)
    ax.set_xlim(0, right)
    ax.set_ylim(low - 0.03 * (top - low), top + 0.08 * (top - low))
    unit = f" [{curves.unit.to_string()}]" if curves.unit is not None else ""
    ax.set_xlabel("radius [pix]")
    ax.set_ylabel(f"flux within radius{unit}" if unit else "flux within radius")
    ax.set_title(
        f"star {curves.id[star]}  at  {curves.x[star]:.1f}, {curves.y[star]:.1f}",
        loc="left", fontsize=10, color=INK,
    )  # fmt: skip
    legend = ax.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9)
    legend.get_frame().set_edgecolor("#dddddd")
    _tidy(ax)
    return ax


def draw_stack(ax, curves, mean):
    """Draw all normalised curves thinly, their mean with its error on top."""
    if ax is None:
        ax = new_axes(width=6.4, height=4.2)
    ax.axhline(1, color="#999999", linewidth=0.8)
    for row in curves.flux:
        ax.plot(curves.radii, row, color=BLUE, linewidth=0.6, alpha=0.25)
    flux, err = mean.flux[0], mean.flux_err[0]
    ax.fill_between(mean.radii, flux - err, flux + err, color=BLUE, alpha=0.3, linewidth=0)
    n = mean.meta.get("n_stars", len(curves))
    ax.plot(mean.radii, flux, color=BLUE, linewidth=2, label=f"mean of {n} stars")
    right = _shade(ax, curves.r_in, curves.r_out, float(curves.radii[-1]) * 1.02)
    ax.set_xlim(0, right)
    ax.set_ylim(0, max(1.12, float(np.nanmax(flux)) * 1.05))
    ax.set_xlabel("radius [pix]")
    ax.set_ylabel("part of the flux")
    ax.legend(loc="lower right", fontsize=9, frameon=False)
    _tidy(ax)
    return ax


def draw_aperture(ax, data, x, y, r, r_in, r_out):
    """Draw the image around a star, with its aperture and annulus."""
    if ax is None:
        ax = new_axes(width=4.6, height=4.4)
    reach = math.ceil(1.15 * (r_out or 2.5 * r))
    ny, nx = data.shape
    x0, y0 = round(x), round(y)
    left, right = max(x0 - reach, 0), min(x0 + reach + 1, nx)
    bottom, top = max(y0 - reach, 0), min(y0 + reach + 1, ny)
    stamp = np.asarray(data[bottom:top, left:right], float)
    good = stamp[np.isfinite(stamp)]
    low, middle, high = np.percentile(good, [5, 50, 99.7]) if good.size else (0, 0, 1)
    soft = max(middle - low, 1e-12 * max(abs(high), 1e-300), (high - low) / 1e4) or 1.0
    shown = np.arcsinh((stamp - low) / soft)
    ax.imshow(
        shown, origin="lower", cmap="gray_r", interpolation="nearest",
        extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5),
        vmin=0, vmax=max(float(np.arcsinh((high - low) / soft)), 1e-9),
    )  # fmt: skip
    angle = np.linspace(0, 2 * math.pi, 181)
    for radius, label, style in (
        (r, "aperture", {"color": BLUE, "linewidth": 1.8}),
        (r_in, "sky annulus", {"color": ORANGE, "linewidth": 1.3, "linestyle": (0, (4, 2))}),
        (r_out, None, {"color": ORANGE, "linewidth": 1.3, "linestyle": (0, (4, 2))}),
    ):
        if radius is not None:
            ax.plot(x + radius * np.cos(angle), y + radius * np.sin(angle), label=label, **style)
    ax.plot(x, y, marker="+", color=BLUE, markersize=7, markeredgewidth=1.2)
    ax.set_xlim(x - reach, x + reach)
    ax.set_ylim(y - reach, y + reach)
    ax.set_aspect("equal")
    ax.set_xlabel("x [pix]")
    ax.set_ylabel("y [pix]")
    ax.legend(loc="upper right", fontsize=8.5, frameon=True, framealpha=0.9)
    _tidy(ax)
    ax.grid(visible=False)
    return ax
