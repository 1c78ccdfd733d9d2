"""
A dark model to look at: how the dark current is spread, and what a dark costs.

Private to `astro_narrowband.darks`.
"""

import contextlib

import numpy as np

from astro_narrowband._engine.plots import new_axes
from astro_narrowband.exceptions import NarrowbandError

#: Rows that tell how the dark current is spread.
ROWS = 200


def draw_dark(axes, model):
    """Draw the rates of the pixels and the error over exposure time; return the two axes."""
    if axes is None:
        axes = new_axes(2)
    step = max(1, model.shape[0] // ROWS)
    rows = [slice(y, y + 1) for y in range(0, model.shape[0], step)]
    rates = np.concatenate([model.planes["rate"][band].ravel() for band in rows])
    rates = rates[np.isfinite(rates)].astype(float)
    low, high = np.percentile(rates, [0.05, 99.99]) if rates.size else (0.0, 1.0)
    axes[0].hist(np.clip(rates, low, max(high, low + 1e-9)), bins=80, log=True)
    axes[0].set_xlabel("dark current [adu/s]")
    axes[0].set_ylabel("pixels")
    longest = max(model.exposures, default=1.0)
    points = []
    for time in np.geomspace(longest / 100, 5 * longest, 30):
        with contextlib.suppress(NarrowbandError):
            price = model.price(time, noise=1.0)
            points.append((time, price.stated, np.hypot(price.stated, price.unstated)))
    if points:
        time, stated, total = np.transpose(points)
        axes[1].loglog(time, total, label="error of the dark, all of it")
        axes[1].loglog(time, stated, linestyle="--", label="as its uncertainty says")
    for k, time in enumerate(model.exposures):
        axes[1].axvline(time, color="#999999", linewidth=0.8, label="" if k else "darks")
    axes[1].set_xlabel("exposure [s]")
    axes[1].set_ylabel("error of a typical pixel [adu]")
    axes[1].legend(frameon=False, fontsize=9)
    return axes
