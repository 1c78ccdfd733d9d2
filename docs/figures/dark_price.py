"""A dark model drawn: its rates, and what a dark costs."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import DarkModel
from astro_narrowband.simulate import NightModel, simulate_frames

camera = NightModel(cosmic_rate=0.0, hot_fraction=2e-3)
nights = simulate_frames(1, shape=(256, 256), n_flats=0, model=camera, seed=5)


def ccd(data, exposure):
    """A raw frame of the camera."""
    cards = {"EXPTIME": exposure, "EGAIN": camera.gain, "RDNOISE": camera.read_noise}
    return CCDData(data, unit="adu", header=fits.Header(cards))


biases = [ccd(frame, 0.0) for frame in nights.bias[0]]
darks = [ccd(frame, t) for t, group in nights.darks.items() for frame in group[0]]
model = DarkModel.fit(darks, bias=biases)
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
model.plot(axes)
times = np.geomspace(20, 900, 40)
sky = 0.5
light = np.sqrt((sky + camera.dark_rate) * times + camera.read_noise**2) / camera.gain
axes[1].plot(times, light, color="0.4", label="noise of a light, dark sky")
axes[1].legend(frameon=False, fontsize=8)
