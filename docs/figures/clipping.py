"""What clipping does to the noise of a mean of few frames."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData

from astro_narrowband import combine

warnings.simplefilter("ignore")
rng = np.random.default_rng(1)
numbers = (5, 7, 9, 12, 16, 24)
fig, ax = plt.subplots()
for label, keywords in (
    ("3 sigma of the MAD", {"sigma_clip": True}),
    ("4 sigma", {"sigma_clip": True, "sigma_clip_low_thresh": 4, "sigma_clip_high_thresh": 4}),
    ("5 sigma", {"sigma_clip": True, "sigma_clip_low_thresh": 5, "sigma_clip_high_thresh": 5}),
    ("median", {"method": "median"}),
):
    noise = []
    for n in numbers:
        frames = [CCDData(rng.normal(0, 1, (150, 150)), unit="adu") for _ in range(n)]
        noise.append(combine(frames, **keywords).data.std() * n**0.5)
    ax.plot(numbers, noise, "o-", ms=4, label=label)
ax.axhline(1, color="0.5", lw=0.8)
ax.set_xlabel("frames")
ax.set_ylabel("noise over that of the mean")
ax.legend(frameon=False)
