"""What the error of a flux is made of, from faint to bright stars."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband import annulus_photometry

rng = np.random.default_rng(6)
fluxes = np.geomspace(100, 3e5, 12)
y, x = np.mgrid[:60, : 60 * len(fluxes)]
model = np.full(x.shape, 40.0)
for k, flux in enumerate(fluxes):
    model += flux / (2 * np.pi * 2) * np.exp(-((x - 30.3 - 60 * k) ** 2 + (y - 30.2) ** 2) / 4)
image = rng.poisson(model) + rng.normal(0, 5, model.shape)
ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model + 25))
positions = [(30.3 + 60 * k, 30.2) for k in range(len(fluxes))]
fig, ax = plt.subplots()
table = annulus_photometry(ccd, positions, r=5, r_in=9, r_out=14, read_noise=5, budget=True)
names = {
    "err_source": "photons of the star",
    "err_sky": "photons of the sky",
    "err_read": "read noise",
    "err_sky_level": "level of the sky, from the annulus",
}
ax.plot(fluxes, table["flux_err"].value / fluxes, color="0.2", lw=2, label="all")
for name, words in names.items():
    ax.plot(fluxes, table[name].value / fluxes, label=words)
ax.plot(fluxes, np.abs(table["flux"].value - fluxes) / fluxes, "o", ms=4, label="measured - true")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_ylim(1e-4, 2)
ax.set_xlabel("flux [electron]")
ax.set_ylabel("relative error")
ax.legend(frameon=False, fontsize=8)
