"""
From a night to emission lines
==============================

Halpha, [SII] and a broad r filter: a night is reduced, the stars and the nebula's continuum are
taken out, and the line fluxes and their ratio are compared with the truth.
"""

# %%
# The night
# ---------
#
# Simulated with spectra: a 7 nm filter at Halpha passes [NII] as well, and r holds both lines.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage as ndi
from astropy.nddata import CCDData

from astro_narrowband import (
    FilterCurve,
    line_ratio,
    reduce_night,
    simulate_night,
    subtract_continuum,
)
from astro_narrowband.lines import correct_blend, line_in_continuum, restore_lines
from astro_narrowband.simulate import NightModel, SpectralModel

folder = Path(tempfile.mkdtemp())
spectra = SpectralModel(slope_scatter=0.3)
truth = simulate_night(
    folder / "night",
    shape=(320, 320),
    filters=("Halpha", "SII", "r"),
    n_bias=6,
    n_darks=4,
    n_flats=4,
    light_exposures=(120.0,) * 3,
    dark_exposures=(120.0,),
    write_wcs=True,
    spectra=spectra,
    model=NightModel(star_density=900, brightest=2000.0, fwhm_scatter=0.05),
    seed=5,
)
record = reduce_night(folder / "night", folder / "reduced")
coadds = {
    group["filter"]: CCDData.read(folder / "reduced" / group["products"]["coadd"])
    for group in record["groups"]
}
for name, ccd in coadds.items():
    print(f"{name:7s} {ccd.header['NCOMBINE']} frames, sky {ccd.header['SKYLEVEL']:.2f} {ccd.unit}")

# %%
# Filters
# -------
#
# A curve for each filter. In a fast beam a narrow filter moves to the blue, and loses light of the
# line: at f/2.8 a 3 nm filter has lost two fifths of Halpha.

curves = {name: FilterCurve.from_shape(*spectra.bands[name][:2], peak=0.9) for name in coadds}
narrow = FilterCurve.from_shape(656.3, 3.0, peak=0.9)
fig, ax = plt.subplots(layout="constrained")
wavelength = np.linspace(648, 664, 600)
for f_ratio, label in ((None, "parallel beam"), (5.0, "f/5"), (2.8, "f/2.8"), (2.0, "f/2")):
    curve = narrow if f_ratio is None else narrow.in_beam(f_ratio, obstruction=0.3)
    passed = curve.response("Halpha") / narrow.response("Halpha")
    ax.plot(wavelength, [curve(w) for w in wavelength], label=f"{label}: {100 * passed:.0f} %")
for line, at in (("[NII]", 654.8), ("Halpha", 656.3), ("[NII]", 658.4)):
    ax.axvline(at, color="0.7", lw=0.8)
    ax.text(at, 0.93, line, fontsize=8, ha="center")
ax.set_xlabel("wavelength [nm]")
ax.set_ylabel("transmission of a 3 nm filter")
ax.legend(title="Halpha passed", frameon=False)

# %%
# The continuum
# -------------
#
# r is scaled by the stars and subtracted, after the sharper image was brought to the shape of the
# other's stars. What r holds of both lines is given back to both maps.

maps = {name: subtract_continuum(coadds[name], coadds["r"]) for name in ("Halpha", "SII")}
parts = {name: line_in_continuum(curves[name], curves["r"], name) for name in maps}
maps = restore_lines(maps, parts)
for name, line_map in maps.items():
    h = line_map.header
    print(f"{name}: k = {h['KCONT']:.4f} +- {h['KCONTERR']:.4f} of {h['KSTARS']} stars,", end=" ")
    print(f"{100 * parts[name]:.1f} % of the line was in r")

fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for ax, image, title in (
    (axes[0], coadds["Halpha"].data, "as observed"),
    (axes[1], maps["Halpha"].data, "without continuum"),
):
    low, high = np.nanpercentile(image, [10, 99])
    ax.imshow(image, origin="lower", cmap="inferno", vmin=low, vmax=high)
    ax.set_title(f"Halpha and [NII], {title} [electron/s]", loc="left", fontsize=9)

# %%
# How well the stars are gone says how well the continuum is known:

stars = maps["Halpha"].stars
used = np.asarray(stars["used"], bool)
ratios, errors = (np.asarray(stars[name], float) for name in ("ratio", "ratio_err"))
header = maps["Halpha"].header
fig, ax = plt.subplots(layout="constrained")
for which, label in ((used, "used"), (~used, "left out")):
    ax.errorbar(1 / errors[which], ratios[which], errors[which], fmt="o", ms=3, lw=0.8, label=label)
k, error = header["KCONT"], header["KCONTERR"]
ax.axhspan(k - error, k + error, alpha=0.3, color="0.5", label="k and its error")
ax.set_xscale("log")
ax.set_xlabel("1 / error of a star's ratio")
ax.set_ylabel("Halpha over r of stars")
ax.set_ylim(0.7 * k, 1.3 * k)
ax.legend(frameon=False)

# %%
# Halpha without [NII]
# --------------------
#
# Of the [NII] in the filter only the ratio is known, 0.35 +- 0.05, and so it is divided out.

halpha = correct_blend(maps["Halpha"], 0.35, ratio_err=0.05, curve=curves["Halpha"])
print(f"divided by {halpha.header['BLEND']:.3f} +- {halpha.header['BLENDERR']:.3f}")

# %%
# Against the truth
# -----------------
#
# The truth is brought to the grid of the coadd, and to electron/s. The zero of the map is free: it
# is taken where there is no nebula. In bins of 100 pixels by true brightness, the measured means:

name = "/".join(Path(record["groups"][0]["reference"]).parts[-3:])
matrix = truth.frame(name)["matrix"]
y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
place = np.tensordot(matrix, np.stack([x, y, np.ones(x.shape)]), axes=1)


def true_rate(line):
    """Of a line on the grid of the coadd [electron/s], as bright as its reference saw it."""
    flux = ndi.map_coordinates(truth.line_flux(line), place[1::-1], order=1)
    clear = truth.frame(name)["transparency"]
    at = {"Halpha": 656.3, "SII": 672.4}[line]
    return flux * spectra.line_rate(line, at) * clear


true = true_rate("Halpha")
star = ndi.binary_dilation(coadds["r"].data > np.nanpercentile(coadds["r"].data, 97), iterations=6)
good = ~star & ~halpha.mask & np.isfinite(halpha.data)
zero = np.median((halpha.data - true)[good & (true < 0.02 * true.max())])
order = np.argsort(true[good])
n = len(order) // 100
bins = [np.mean(v[good][order][: n * 100].reshape(n, 100), axis=1) for v in (true, halpha.data)]
fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.plot(bins[0], bins[1] - zero, ".", ms=3)
ax.axline((0, 0), slope=1, color="0.5", lw=0.8)
ax.set_xlabel("true Halpha [electron/s]")
ax.set_ylabel("measured [electron/s]")
slope = np.sum(bins[0] * (bins[1] - zero)) / np.sum(bins[0] ** 2)
print(f"measured over true: {slope:.3f}")

# %%
# The ratio
# ---------
#
# [SII] over Halpha tells shocks from light. A pixel of the map is a number where both lines are
# clear (3 sigma), a limit where one is, and nothing elsewhere.

ratio = line_ratio(maps["SII"], halpha)
counts = np.bincount(ratio.kind.ravel(), minlength=4) / ratio.kind.size
words = ("nothing", "measured", "upper limit", "lower limit")
print(", ".join(f"{word} {100 * part:.0f} %" for word, part in zip(words, counts, strict=True)))

fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
with np.errstate(divide="ignore", invalid="ignore"):
    expected = np.where(np.isfinite(ratio.ratio), true_rate("SII") / true, np.nan)
for ax, image, title in ((axes[0], ratio.ratio, "measured"), (axes[1], expected, "true")):
    shown = ax.imshow(image, origin="lower", cmap="viridis", vmin=0, vmax=1)
    ax.set_title(f"[SII] / Halpha, {title}", loc="left", fontsize=9)
fig.colorbar(shown, ax=axes, shrink=0.8)

# %%
# On the command line this is ``astro-narrowband lines reduced -o lines``: see
# :doc:`/user_guide/lines`.
