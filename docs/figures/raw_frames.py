"""Frames of a simulated night, as a camera wrote them."""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits

from astro_narrowband.simulate import NightModel, simulate_night

truth = simulate_night(
    tempfile.mkdtemp(), shape=(240, 320), filters=("Halpha",), n_bias=1, n_darks=1, n_flats=1,
    dark_exposures=(120.0,), light_exposures=(300.0,), seed=2,
    model=NightModel(star_density=1200, hot_fraction=1e-3, vignetting=0.5, cosmic_rate=1.0),
)  # fmt: skip
fig, axes = plt.subplots(2, 2, figsize=(8, 6))
for ax, row in zip(axes.flat, truth.frames, strict=True):
    data = fits.getdata(truth.folder / row["name"]).astype(float)
    low, high = np.percentile(data, [1, 99.5])
    shown = ax.imshow(data, origin="lower", cmap="gray", vmin=low, vmax=high)
    ax.set_title(f"{row['kind']}, {row['exposure'].value:g} s [adu]", loc="left", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    fig.colorbar(shown, ax=ax, shrink=0.8)
