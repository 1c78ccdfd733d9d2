"""
A coadd to look at.

Private to `astro_narrowband.coaddition`.
"""

import numpy as np

from astro_narrowband._engine.plots import new_axes

#: Pixels a side that are drawn: more are not seen.
SHOWN = 1000


def draw_coadd(axes, coadd):
    """Draw the image, its sky nearly black, and its errors, into two axes; return them."""
    if axes is None:
        axes = new_axes(2)
    ccd, unit = coadd.ccd, coadd.ccd.unit
    ny, nx = ccd.shape
    step = max(1, max(ny, nx) // SHOWN)
    extent = (-0.5, nx - 0.5, -0.5, ny - 0.5)
    for ax, values, title, cmap in (
        (axes[0], ccd.data, "coadd", "gray"),
        (axes[1], ccd.uncertainty.array, "error of a pixel", "viridis"),
    ):
        shown = np.asarray(values[::step, ::step], float)
        good = shown[np.isfinite(shown)]
        low, high = np.percentile(good, [20, 99.5]) if good.size else (0.0, 1.0)
        image = ax.imshow(
            shown, origin="lower", cmap=cmap, vmin=low, vmax=max(high, low + 1e-12),
            extent=extent, interpolation="nearest",
        )  # fmt: skip
        ax.set_title(f"{title} [{unit.to_string()}]", loc="left", fontsize=10)
        ax.set_xlabel("x [pix]")
        ax.set_ylabel("y [pix]")
        ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return axes
