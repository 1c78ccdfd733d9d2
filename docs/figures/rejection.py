"""Cosmic rays in a mean, and in a coadd; and the cores of stars when the seeing changes."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import coadd

rng = np.random.default_rng(4)
y, x = np.mgrid[:160, :200]
stars = [(rng.uniform(8, 192), rng.uniform(8, 152), 10 ** rng.uniform(1, 3.3)) for _ in range(30)]
lights = []
for width in (1.2, 1.3, 1.25, 1.7, 1.4):
    scene = np.full(x.shape, 1.0)
    for a, b, f in stars:
        scene += f / (2 * np.pi * width**2) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2 / width**2)
    sigma = np.sqrt((scene * 120 + 25) / 120**2)
    data = rng.normal(scene, sigma)
    for _ in range(25):  # tracks of cosmic rays
        a, b, angle = rng.uniform(0, 200), rng.uniform(0, 160), rng.uniform(0, np.pi)
        for step in np.arange(rng.uniform(1, 9)):
            i, j = int(b + step * np.sin(angle)), int(a + step * np.cos(angle))
            if 0 <= i < 160 and 0 <= j < 200:
                data[i, j] += rng.uniform(2, 20)
    header = fits.Header({"EXPTIME": 120.0, "MASTERID": "none"})
    lights.append(CCDData(data.astype("f4"), unit="electron/s", header=header,
                          uncertainty=StdDevUncertainty(sigma.astype("f4"))))  # fmt: skip
mean = coadd(lights, reject=False, flux_scale="none")
made = coadd(lights, flux_scale="none")
fig, axes = plt.subplots(1, 3, figsize=(9, 2.9))
for ax, image, title in (
    (axes[0], mean.ccd.data, "mean"),
    (axes[1], made.ccd.data, "coadd"),
    (axes[2], made.n_rejected, "values rejected"),
):
    low, high = (0.9, 2.5) if title != "values rejected" else (0, 2)
    ax.imshow(image, origin="lower", cmap="gray", vmin=low, vmax=high)
    ax.set_title(title, loc="left", fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
