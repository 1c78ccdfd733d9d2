"""Pulls of weighted means with masked pixels: ccdproc's Combiner and ours."""

import warnings

import ccdproc
import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import InverseVarianceCombiner

warnings.simplefilter("ignore")
rng = np.random.default_rng(5)
shape, sigmas = (200, 200), np.array([1.0, 1.5, 2.0, 3.0])
images = [
    CCDData(rng.normal(20, s, shape), unit="electron/s", mask=rng.random(shape) < 0.1,
            uncertainty=StdDevUncertainty(np.full(shape, s)))
    for s in sigmas
]  # fmt: skip
theirs = ccdproc.Combiner(images)
theirs.weights = 1 / sigmas**2
bins = np.linspace(0, 24, 97)
fig, ax = plt.subplots()
for name, made in (
    (f"ccdproc.Combiner {ccdproc.__version__}", theirs.average_combine()),
    ("InverseVarianceCombiner", InverseVarianceCombiner(images).average_combine()),
):
    values = np.ma.filled(np.ma.asarray(made.data), np.nan).ravel()
    label = f"{name}: mean {np.nanmean(values):.2f}"
    ax.hist(values, bins=bins, histtype="step", lw=1.4, label=label)
ax.axvline(20, color="0.4", lw=0.8)
ax.set_yscale("log")
ax.set_xlabel("weighted mean of four frames, one pixel in ten masked; the truth is 20")
ax.set_ylabel("pixels")
ax.legend(frameon=False, loc="upper left")
