"""Where two measures of position put a star, against where it falls on its pixel."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty
from photutils.centroids import centroid_quadratic

from astro_narrowband import detect_stars

phases = np.linspace(-0.5, 0.5, 21)
off = {"windowed": [], "quadratic, box of 5": []}
y, x = np.mgrid[:120, :120]
fine = (np.arange(5) - 2) / 5
width2 = (1.5 / np.sqrt(2 ** (1 / 3) - 1)) ** 2
for phase in phases:
    image = np.full(x.shape, 10.0)
    for a in range(20, 120, 40):
        for b in range(20, 120, 40):
            for u in fine:
                for v in fine:
                    r2 = (x + u - a - phase) ** 2 + (y + v - b) ** 2
                    image += 5e4 / 25 * 2 / np.pi / width2 * (1 + r2 / width2) ** -3
    error = StdDevUncertainty(np.sqrt(image))
    noisy = image + np.random.default_rng(1).normal(0, 1, image.shape)
    stars = detect_stars(CCDData(noisy, unit="electron", uncertainty=error))
    at = np.asarray(stars["x_center"], float)
    off["windowed"].append(np.mean(at - phase - 20 - 40 * np.rint((at - phase - 20) / 40)))
    guess = centroid_quadratic(noisy[40:81, 40:81] - 10, xpeak=20, ypeak=20, fit_boxsize=5)[0]
    off["quadratic, box of 5"].append(guess - 20 - phase)
fig, ax = plt.subplots()
for name, values in off.items():
    ax.plot(phases, values, "o-", ms=3, label=f"{name}: rms {np.std(values):.3f} pix")
ax.axhline(0, color="0.5", lw=0.8)
ax.set_xlabel("place of the star on its pixel [pix]")
ax.set_ylabel("measured - true [pix]")
ax.legend(frameon=False)
