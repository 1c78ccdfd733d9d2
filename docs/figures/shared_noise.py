"""Noise of a coadd against the number of lights, when all have the same masters."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import DarkModel, calibrate, coadd
from astro_narrowband.simulate import simulate_frames

warnings.simplefilter("ignore")
numbers = (2, 4, 8, 16)
nights = simulate_frames(
    16, shape=(48, 48), sky=5.0, light_exposures=(60.0,) * 16, n_bias=3, n_darks=3, n_flats=0,
    dark_exposures=(60.0,), seed=2,
)  # fmt: skip
model = nights.model


def ccd(data, exposure):
    """A raw frame of the camera."""
    cards = {"EXPTIME": exposure, "EGAIN": model.gain, "RDNOISE": model.read_noise}
    return CCDData(data, unit="adu", header=fits.Header(cards))


off, stated, alone = ({n: [] for n in numbers} for _ in range(3))
for night in range(16):
    darks = [ccd(d, 60.0) for d in nights.darks[60.0][night]]
    dark = DarkModel.fit(darks, bias=[ccd(b, 0.0) for b in nights.bias[night]], shrink=False)
    lights = [calibrate(ccd(frame, 60.0), dark=dark) for frame in nights.lights[night]]
    for n in numbers:
        made = coadd(lights[:n], flux_scale="none", sky="none", reject=False)
        off[n].append(made.ccd.data - nights.rate[0] * nights.flat)
        stated[n].append(np.median(made.ccd.uncertainty.array))
        each = [np.median(one.uncertainty.array) for one in lights[:n]]
        alone[n].append(np.sqrt(np.sum(np.square(each))) / n)
fig, ax = plt.subplots()
ax.plot(numbers, [np.std(off[n]) for n in numbers], "o", label="measured, over 16 nights")
ax.plot(numbers, [np.mean(stated[n]) for n in numbers], label="stated by the coadd")
ax.plot(numbers, [np.mean(alone[n]) for n in numbers], "--", label="as if lights were independent")
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.set_xlabel("lights, with three biases and three darks for all of them")
ax.set_ylabel("error of a pixel [electron/s]")
ax.legend(frameon=False)
