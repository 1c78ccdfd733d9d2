"""
Inside your own ccdproc script
==============================

A script that works with ccdproc need not be thrown away. Here one is kept, and three of its
lines are changed; each for a number.
"""

# %%
# The script
# ----------
#
# Eight lights of a small camera, bias and flat by ccdproc. Frames 0 and 5 were taken through cloud
# and moonlight; every frame has bad pixels.

import warnings

import ccdproc
import matplotlib.pyplot as plt
import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from photutils.aperture import CircularAperture, aperture_photometry

from astro_narrowband import InverseVarianceCombiner, annulus_photometry, combine
from astro_narrowband.exceptions import NarrowbandWarning

warnings.simplefilter("ignore", NarrowbandWarning)
rng = np.random.default_rng(3)
shape, gain, read_noise = (200, 200), 0.8, 4.0
y, x = np.mgrid[: shape[0], : shape[1]]
flux = 2000.0
star = flux / (2 * np.pi * 1.5**2) * np.exp(-((x - 100.3) ** 2 + (y - 99.6) ** 2) / (2 * 1.5**2))
sky = np.array([900.0, 60, 60, 60, 60, 900, 60, 60])


def raw(electrons):
    """A raw frame with these electrons."""
    noisy = rng.poisson(electrons) + rng.normal(0, read_noise, shape)
    return CCDData(500 + noisy / gain, unit="adu", header=fits.Header({"EXPTIME": 60.0}))


bias = ccdproc.combine([raw(np.zeros(shape)) for _ in range(15)], method="average")
lights = []
for level in sky:
    frame = ccdproc.subtract_bias(raw(level + star), bias)
    noise = {"gain": gain * u.electron / u.adu, "readnoise": read_noise * u.electron}
    frame = ccdproc.create_deviation(frame, **noise, disregard_nan=True)
    frame = ccdproc.gain_correct(frame, gain * u.electron / u.adu)
    frame.mask = rng.random(shape) < 0.01
    frame = frame.subtract(level * u.electron, handle_meta="first_found")
    lights.append(frame)

# %%
# One: the combiner
# -----------------
#
# `ccdproc.Combiner` counts the weight of pixels that are masked, and takes its error from the
# scatter of eight numbers. `~astro_narrowband.InverseVarianceCombiner` is one of its kind: the
# rest of the script stays.

weights = 1 / (sky + read_noise**2)
theirs = ccdproc.Combiner(lights)
theirs.weights = weights
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    before = theirs.average_combine()
after = InverseVarianceCombiner(lights).average_combine()

blank = np.hypot(x - 100, y - 100) > 20
hit = np.any([one.mask for one in lights], axis=0) & blank
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for ax, made, title in ((axes[0], before, "ccdproc.Combiner"),
                        (axes[1], after, "InverseVarianceCombiner")):  # fmt: skip
    ratio = np.ma.filled(made.data / made.uncertainty.array, np.nan)
    bins = np.linspace(-6, 6, 61)
    for which, label in ((blank & ~hit, "all frames good"), (hit, "one or more masked")):
        values = ratio[which & np.isfinite(ratio)]
        ax.hist(values, bins=bins, histtype="step", density=True, label=label)
        print(f"{title:24s} {label:19s} pulls {values.std():.2f} wide")
    ax.plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), color="0.5", lw=0.8)
    ax.set_title(title, loc="left", fontsize=9)
    ax.set_xlabel("sky over its error")
    ax.legend(frameon=False, fontsize=8)

# %%
# What is left, 4 %, is the noise of the bias: all eight lights lost the same one, and a script that
# goes through ccdproc does not tell. A ``SharedNoiseWarning`` says so. Of lights that
# `~astro_narrowband.calibrate` made it is known, and counted: :doc:`/user_guide/coadd`.

# %%
# Two: the photometry
# -------------------
#
# photutils adds up the errors of the pixels of the circle. The error of the sky level, which all
# of them share, and the squares of the weights at the rim are what is left to do by hand.

position = [(100.3, 99.6)]
table = aperture_photometry(
    after.data, CircularAperture(position, r=6), error=after.uncertainty.array, mask=after.mask
)
row = annulus_photometry(after, position, r=6, r_in=10, r_out=13, budget=True)[0]
print(f"photutils: {table['aperture_sum'][0]:.0f} +- {table['aperture_sum_err'][0]:.1f}")
print(f"ours:      {row['flux'].value:.0f} +- {row['flux_err'].value:.1f}")

# %%
# Which is right? Two hundred such coadds:

pulls = {"photutils": [], "annulus_photometry": []}
cut = np.s_[80:120, 80:120]
spot, r = [(20.3, 19.6)], 6
distance = np.hypot(x - 100.3, y - 99.6)[cut]
annulus = (distance > 10) & (distance < 13)
variance = (1 / np.sum(1 / (sky + read_noise**2)) + star / len(sky))[cut]
error = StdDevUncertainty(np.sqrt(variance))
inside = flux * (1 - np.exp(-(r**2) / (2 * 1.5**2)))
for _ in range(200):
    image = rng.normal(star[cut], error.array)
    one = aperture_photometry(image, CircularAperture(spot, r=r), error=error.array)[0]
    net = one["aperture_sum"] - np.median(image[annulus]) * np.pi * r**2
    pulls["photutils"].append((net - inside) / one["aperture_sum_err"])
    ccd = CCDData(image, unit="electron", uncertainty=error)
    two = annulus_photometry(ccd, spot, r=r, r_in=10, r_out=13)[0]
    pulls["annulus_photometry"].append((two["flux"].value - inside) / two["flux_err"].value)

fig, ax = plt.subplots(layout="constrained")
for name, values in pulls.items():
    label = f"{name}: {np.std(values):.2f} wide"
    ax.hist(values, bins=np.linspace(-5, 5, 31), histtype="step", density=True, label=label)
ax.plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), color="0.5", lw=0.8)
ax.set_xlabel("(flux - true) / error")
ax.legend(frameon=False)

# %%
# Three: medians of many files
# ----------------------------
#
# `~astro_narrowband.combine` takes the keywords of `ccdproc.combine`, reads files by bands and
# sorts integers as integers. Swap the import.

frames = [raw(np.zeros(shape)) for _ in range(12)]
theirs = ccdproc.combine(frames, method="median")
ours = combine(frames, method="median")
print(f"largest difference {np.abs(theirs.data - ours.data).max():.1g} adu")

# %%
# More of what goes with what: :doc:`/user_guide/with_ccdproc`.
