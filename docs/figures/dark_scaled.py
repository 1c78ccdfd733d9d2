"""The dark of 300 s from darks of 60 and 120 s, two ways, and the error of each."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import DarkModel
from astro_narrowband.simulate import NightModel, simulate_frames

camera = NightModel(cosmic_rate=0.0)
nights = simulate_frames(1, shape=(256, 256), n_flats=0, model=camera, seed=6)


def ccd(data, exposure):
    """A raw frame of the camera."""
    cards = {"EXPTIME": exposure, "EGAIN": camera.gain, "RDNOISE": camera.read_noise}
    return CCDData(data, unit="adu", header=fits.Header(cards))


biases = [ccd(frame, 0.0) for frame in nights.bias[0]]
darks = [ccd(frame, t) for t, group in nights.darks.items() for frame in group[0]]
bias = nights.bias[0].mean(axis=0)
dark = nights.darks[120.0][0].mean(axis=0)
fig, ax = plt.subplots()
bins = np.linspace(-12, 12, 121)
for name, made in (
    ("(mean of 120 s - bias) x 2.5", bias + 2.5 * (dark - bias)),
    ("line through each pixel", DarkModel.fit(darks, bias=biases, shrink=False).at(300).data),
    ("and its neighbourhood", DarkModel.fit(darks, bias=biases).at(300).data),
):
    off = made - nights.bias_level - 300 * nights.dark_rate / camera.gain
    spread = 1.4826 * np.median(np.abs(off))
    ax.hist(off.ravel(), bins=bins, histtype="step", label=f"{name}: {spread:.2f} adu", lw=1.4)
ax.set_xlabel("dark of 300 s less the truth [adu]")
ax.set_ylabel("pixels")
ax.legend(frameon=False)
