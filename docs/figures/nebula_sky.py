"""Pulls of stars on nebulae, with and without the error that blank circles tell."""

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage as ndi
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import annulus_photometry

rng = np.random.default_rng(9)
shape, flux, strengths = (500, 500), 300.0, (0.0, 1.0, 3.0, 10.0)
y, x = np.mgrid[:40, :40]
places = [(30.0 + 40 * i, 30.0 + 40 * j) for i in range(12) for j in range(12)]
width = {"full error": [], "noise alone": []}
for strength in strengths:
    nebula = ndi.gaussian_filter(rng.normal(0, 1, shape), 8)
    image = rng.normal(0, 1, shape) + strength * nebula / nebula.std()
    for a, b in places[::2]:
        cut = np.s_[int(b) - 20 : int(b) + 20, int(a) - 20 : int(a) + 20]
        image[cut] += flux / 8 / np.pi * np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 8)
    ccd = CCDData(image, unit="electron/s", uncertainty=StdDevUncertainty(np.ones(shape)))
    table = annulus_photometry(ccd, places[::2], r=6, r_in=10, r_out=15)
    off = table["flux"].value - flux * (1 - np.exp(-36 / 8))
    alone = np.sqrt(np.pi * 36 + (np.pi * 36) ** 2 / table["n_sky"])
    for name, error in (("full error", table["flux_err"].value), ("noise alone", alone)):
        width[name].append(np.diff(np.percentile(off / error, [15.87, 84.13]))[0] / 2)
fig, ax = plt.subplots(figsize=(6, 3.2))
where = np.arange(len(strengths))
for k, (name, values) in enumerate(width.items()):
    bars = ax.bar(where + 0.4 * k, values, width=0.38, label=name)
    ax.bar_label(bars, fmt="%.1f", fontsize=8)
ax.axhline(1, color="0.4", lw=0.8)
ax.set_xticks(where + 0.2, [f"{s:g}" for s in strengths])
ax.set_xlabel("nebula over the noise of a pixel")
ax.set_ylabel("width of the pulls of 72 stars")
ax.legend(frameon=False)
