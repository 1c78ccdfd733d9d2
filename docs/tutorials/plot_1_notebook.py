"""
The notebook, done right
========================

A night of narrowband frames, reduced step by step, as a teaching notebook does it and as it
should be done; each step with what the first way gets wrong, in numbers.
"""

# %%
# A night whose truth is known
# ----------------------------
#
# One filter, six lights of three exposure times, biases, darks of 60 and 160 s, flats. Where the
# stars are, and how bright, is known.

import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage as ndi
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import FITSFixedWarning

from astro_narrowband import (
    DarkModel,
    align,
    annulus_photometry,
    calibrate,
    coadd,
    detect_stars,
    growth_curves,
    master_flat,
    resample,
    simulate_night,
)
from astro_narrowband.simulate import NightModel

warnings.simplefilter("ignore", FITSFixedWarning)
folder = Path(tempfile.mkdtemp())
truth = simulate_night(
    folder / "night",
    shape=(320, 400),
    filters=("Halpha",),
    dark_exposures=(60.0, 160.0),
    model=NightModel(star_density=700, nebula=0.0, hot_fraction=3e-4, transparency_scatter=0),
    seed=11,
)
night = truth.folder
gain, read_noise = truth.model.gain, truth.model.read_noise
gain, read_noise

# %%
# Which darks are of 60 s?
# ------------------------
#
# ``glob("*60*")`` finds the darks of 160 s as well. Exposure times stand in headers.

by_name = sorted((night / "dark").glob("dark*60s*"))
paths = sorted((night / "dark").glob("*.fits"))
by_header = [path for path in paths if fits.getval(path, "EXPTIME") == 60]
print(f"{len(by_name)} by name, {len(by_header)} by header")

# %%
# The bias, once
# --------------
#
# A master dark that is the median of raw darks holds the bias. Who subtracts it, and the bias as
# well, subtracts the bias twice. Every light is then too low by the whole bias, over its exposure
# time.

read = fits.getdata
bias = np.median([read(p).astype(float) for p in sorted((night / "bias").glob("*"))], axis=0)
dark_60 = np.median([read(p).astype(float) for p in by_header], axis=0)
light = sorted((night / "light" / "Halpha").glob("*60s*"))[0]
raw = read(light).astype(float)
print(f"twice: {np.median(raw - bias - dark_60):.1f} adu, once: {np.median(raw - dark_60):.1f} adu")

# %%
# Here a dark is a model: an offset and a rate for each pixel, of which a light loses
# ``offset + rate t``. It says what the dark of any exposure time is, and how well that is known.

darks = [CCDData.read(path, unit="adu") for path in paths]
biases = [CCDData.read(path, unit="adu") for path in sorted((night / "bias").glob("*"))]
dark = DarkModel.fit(darks, bias=biases)
dark.plot()
dark

# %%
# The dark of 300 s
# -----------------
#
# There are none. The median dark of 160 s times 300 / 160 has a part of the bias too much, and
# noise that nobody looks at. The model's has an error for every pixel, and it holds: pulls are one
# wide.

true_300 = truth.bias + truth.dark * 300 / gain
dark_160 = np.median(
    [d.data for d, p in zip(darks, paths, strict=True) if "160s" in p.name], axis=0
)
naive = dark_160 * 300 / 160
modelled = dark.at(300)
pulls = ((modelled.data - true_300) / modelled.uncertainty.array)[~modelled.mask]

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for ax, off, title in (
    (axes[0], naive - true_300, "160 s dark times 300 / 160"),
    (axes[1], modelled.data - true_300, "the model at 300 s"),
):
    middle = np.median(off)
    ax.hist((off - middle).ravel(), bins=np.linspace(-20, 20, 81))
    ax.set_title(f"{title}: off by {middle:+.1f} adu", loc="left", fontsize=9)
    ax.set_xlabel("about that [adu]")
    ax.set_yscale("log")
width = np.diff(np.percentile(pulls, [15.87, 84.13]))[0] / 2
print(f"pulls of the model's dark: {pulls.mean():+.2f} +- {width:.2f}")

# %%
# The gain multiplies
# -------------------
#
# A gain of 0.6 electron/adu is what one adu is worth. To divide by it makes every flux
# ``1 / gain**2`` times too large, and the noise with it.

print(f"divided by the gain, a star is {1 / gain**2:.2f} times too bright")

# %%
# Calibrated lights
# -----------------
#
# `~astro_narrowband.calibrate` does bias, dark, gain, flat and exposure time in one pass, with
# variance and mask, and refuses to do any of them twice.

flats = [CCDData.read(path, unit="adu") for path in sorted((night / "flat").rglob("*.fits"))]
flat = master_flat(flats, dark=dark)
paths = sorted((night / "light" / "Halpha").glob("*.fits"))
lights = [calibrate(CCDData.read(path, unit="adu"), dark=dark, flat=flat) for path in paths]
for one in lights:
    print(f"{one.header['EXPTIME']:4.0f} s: sky {np.nanmedian(one.data):.3f} {one.unit}")

# %%
# All agree but for how the sky brightens and fades. The 300 s have come with a warning: their dark
# is extrapolated, at a price in their variance that it names. With the bias subtracted twice:

for path in paths[::2]:
    t = fits.getval(path, "EXPTIME")
    rate = np.median(read(path) - bias - dark_60 * t / 60) * gain / t
    print(f"{t:4.0f} s: sky {rate:.3f} electron / s")

# %%
# To the same grid
# ----------------
#
# `~scipy.ndimage.shift` is a cubic spline without masks: a cosmic ray becomes rings, one NaN takes
# the whole frame, and the edges are filled with zeros that are averaged as if they were sky.
# `~astro_narrowband.resample` interpolates once, fills what is bad from around it and masks what
# rests on it, and knows where the frame ends.

reference = lights[2]
alignments = [align(detect_stars(one), reference) for one in lights]
x, y = truth.positions(paths[2].relative_to(night))
for path, alignment in zip(paths, alignments, strict=True):
    u, v = truth.positions(path.relative_to(night))
    off = np.hypot(*(np.array(alignment(u, v)) - (x, y)))
    print(f"{path.name}: {alignment.n_matched} stars, off by {off.max():.3f} pix at most")

moved = [resample(one, alignment) for one, alignment in zip(lights, alignments, strict=True)]
frame = lights[0]
dx, dy = alignments[0].shift
hot = np.nan_to_num(frame.data)
spline = ndi.shift(hot, (dy, dx))
away = np.array(np.nonzero(frame.mask[40:-40, 40:-40])).T[0] + 40
row, column = np.rint(away + alignments[0].shift[::-1]).astype(int)
cut = np.s_[row - 9 : row + 10, column - 9 : column + 10]
fig, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
axes[0].imshow(spline[cut], origin="lower", vmin=0, vmax=1.5, cmap="gray")
axes[0].set_title("cubic spline, bad pixel as 0", loc="left", fontsize=9)
axes[1].imshow(moved[0].data[cut], origin="lower", vmin=0, vmax=1.5, cmap="gray")
axes[1].set_title("resample", loc="left", fontsize=9)
edge = np.s_[-60:, :90]
axes[2].imshow(np.where(moved[0].mask[edge], np.nan, moved[0].data[edge]), origin="lower", vmin=0,
               vmax=1.5, cmap="gray")  # fmt: skip
axes[2].set_facecolor("#c8741f")
axes[2].set_title("the corner: masked, not 0", loc="left", fontsize=9)

# %%
# The coadd
# ---------
#
# The median of frames of 60 to 300 s gives a frame of 60 s the weight of one of 300 s. The weights
# of `~astro_narrowband.coadd` are one over the variance of each frame's blank sky.

made = coadd(moved)
stack = np.array([np.where(one.mask, np.nan, one.data) for one in moved])
rows = np.s_[20:-20, 20:-20]
blank = made.ccd.data[rows] < np.nanpercentile(made.ccd.data[rows], 60)


def noise(image):
    """Scatter of blank sky, from differences of pixels five apart."""
    step = (image[rows][:, 5:] - image[rows][:, :-5])[blank[:, 5:] & blank[:, :-5]]
    return 1.4826 * np.nanmedian(np.abs(step)) / 2**0.5


ways = {
    "median of all": noise(np.nanmedian(stack, axis=0)),
    "mean of all": noise(np.nanmean(stack, axis=0)),
    "coadd": noise(made.ccd.data),
}
for way, value in ways.items():
    print(
        f"{way:14s} {value:.4f} electron/s, {(value / ways['coadd']) ** 2:.2f} times the variance"
    )
made.plot()
made.frames["name", "exposure", "weight", "sky", "fwhm", "rejected"]

# %%
# Is its error bar true? The coadd has compared its prediction with its own blank sky:

print(f"measured over predicted: {made.ccd.header['NOISEPIX']:.2f} (pixels)")

# %%
# Growth curves
# -------------
#
# A curve whose radii go through the annulus that the sky was taken from bends down by itself. Such
# radii are refused, unless asked for:

true = truth.stars["flux_Halpha"].value
inside = (x > 45) & (x < 355) & (y > 45) & (y < 275)
alone = np.array([np.sort(np.hypot(x - a, y - b))[1] for a, b in zip(x, y, strict=True)])
star = np.flatnonzero(inside & (alone > 25) & (true < 2000))
star = star[np.argmax(true[star])]

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
position = [(x[star], y[star])]
curves = growth_curves(made.ccd, position, np.arange(1, 16), r_in=16, r_out=24)
curves.plot(axes[0])
through = growth_curves(made.ccd, position, np.arange(1, 25), r_in=7, r_out=14, allow_overlap=True)
through.plot(axes[1])
print(f"true flux                     {true[star]:.0f}")
print(f"within 15 pix                 {curves.flux[0, -1]:.0f} +- {curves.flux_err[0, -1]:.0f}")
print(f"within 24, through an annulus {through.flux[0, -1]:.0f}")

# %%
# Photometry, against the truth
# -----------------------------
#
# A circle of 5 pixels has a known part of the light of a star of known shape.

seeing = {f["name"]: f["fwhm"].value for f in truth.frames}
part = [truth.aperture_fraction(5, fwhm=seeing[p.relative_to(night).as_posix()]) for p in paths]
part = np.average(part, weights=made.frames["weight"])
chosen = inside & (alone > 12) & (true < 2000)
table = annulus_photometry(made.ccd, np.transpose([x[chosen], y[chosen]]), r=5, r_in=16, r_out=24)
good = table["flags"] == 0
flux, error = table["flux"].value[good], table["flux_err"].value[good]
expected = true[chosen][good] * part
pulls = (flux - expected) / error

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.errorbar(expected, flux / expected - 1, error / expected, fmt="o", ms=3)
ax.axhline(0, color="0.5", lw=0.8)
ax.set_xscale("log")
ax.set_ylim(-0.3, 0.3)
ax.set_xlabel("true flux within 5 pix [electron/s]")
ax.set_ylabel("measured / true - 1")
width = np.diff(np.percentile(pulls, [15.87, 84.13]))[0] / 2
print(f"{len(pulls)} stars, pulls {np.median(pulls):+.2f} +- {width:.2f}")

# %%
# All of this is one command for a whole night: ``astro-narrowband reduce night -o reduced``.
# What else such scripts do, and what it costs: :doc:`/user_guide/notebook`.
