"""
The files of a night over time.

Private to `astro_narrowband.night.table`.
"""

from astropy.time import Time

from astro_narrowband._engine.plots import new_axes


def draw_table(ax, table):
    """Draw the exposure times of the rows of a `FrameTable` over their dates; return the axes."""
    if ax is None:
        ax = new_axes(width=8.0, height=3.6)
    points = {}
    for row in table:
        try:
            day = Time(row.date, format="isot").plot_date
        except ValueError:
            continue
        what = row.kind or "unknown"
        if row.kind in ("light", "flat"):
            what += f" {row.filter}"
        label, marker = (what, "o") if row.used else (f"{what}, not used", "x")
        points.setdefault((label, marker), []).append((day, row.exposure))
    for (label, marker), rows in sorted(points.items()):
        days, exposures = zip(*rows, strict=True)
        ax.scatter(days, exposures, marker=marker, s=24, label=label)
    ax.xaxis_date()
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_xlabel("time [UTC]")
    ax.set_ylabel("exposure [s]")
    if points:
        ax.legend(fontsize=8, frameon=False)
    return ax
