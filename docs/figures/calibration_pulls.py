"""Pulls of calibrated pixels over sixty nights, by how their dark came about."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import DarkModel, calibrate, master_flat
from astro_narrowband.simulate import simulate_frames

warnings.simplefilter("ignore")
times = (60.0, 90.0, 300.0)
nights = simulate_frames(60, shape=(48, 48), sky=30.0, light_exposures=times, seed=3)
model = nights.model


def ccd(data, exposure):
    """A raw frame of the camera."""
    cards = {"EXPTIME": exposure, "EGAIN": model.gain, "RDNOISE": model.read_noise}
    return CCDData(data, unit="adu", header=fits.Header(cards))


pulls = {time: [] for time in times}
for night in range(60):
    darks = [ccd(d, t) for t, group in nights.darks.items() for d in group[night]]
    dark = DarkModel.fit(darks, bias=[ccd(b, 0.0) for b in nights.bias[night]])
    flat = master_flat([ccd(f, nights.flat_exposure) for f in nights.flats[night]], dark=dark)
    for k, time in enumerate(times):
        light = calibrate(ccd(nights.lights[night, k], time), dark=dark, flat=flat)
        pull = (light.data - nights.rate[k]) / light.uncertainty.array
        pulls[time].append(pull[~light.mask])

bins = np.linspace(-5, 5, 81)
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), sharey=True)
for ax, time, words in zip(axes, times, ("matched", "interpolated", "extrapolated"), strict=True):
    values = np.concatenate(pulls[time])
    ax.hist(values, bins=bins, density=True, color="#6ea8fe")
    ax.plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), color="0.2", lw=1)
    ax.set_title(f"{time:.0f} s, {words}: {values.std():.2f} wide", loc="left", fontsize=9)
    ax.set_xlabel("(measured - true) / error")
    ax.set_yscale("log")
    ax.set_ylim(1e-5, 1)
