"""Noise of sums after interpolation, and what is told of it."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import Alignment, resample
from astro_narrowband.resampling import noise_factor

rng = np.random.default_rng(7)
shape, sides = (600, 600), np.array([1, 2, 3, 4, 6, 8, 12, 16])
sky = CCDData(rng.normal(0, 1, shape), unit="electron",
              uncertainty=StdDevUncertainty(np.ones(shape)))  # fmt: skip
fig, ax = plt.subplots()
for kernel, colour in (("lanczos3", "#2f6fd6"), ("bilinear", "#c8741f")):
    moved = resample(sky, Alignment.translation(0.5, 0.5), kernel=kernel)
    data = moved.data[10:-10, 10:-10]
    scatter = []
    for n in sides:
        cut = data[: data.shape[0] // n * n, : data.shape[1] // n * n]
        sums = cut.reshape(cut.shape[0] // n, n, -1, n).sum(axis=(1, 3))
        scatter.append(sums.std() / n)
    noisecor = moved.header["NOISECOR"]
    told = [noise_factor(noisecor, n**2, kernel=kernel) for n in sides]
    ax.plot(sides, scatter, "o", color=colour, label=f"{kernel}: measured")
    ax.plot(sides, told, color=colour, label=f"{kernel}: noise_factor")
    ax.axhline(np.sqrt(noisecor), color=colour, lw=0.8, ls=":", label="scatter of single pixels")
ax.set_xscale("log", base=2)
ax.set_xlabel("side of the square [pix]")
ax.set_ylabel("noise of its sum, over that of as many\nindependent pixels")
ax.legend(frameon=False, fontsize=8, ncols=2)
