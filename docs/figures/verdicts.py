"""How often a right sky is called right, and how far off a wrong one has to be to be seen."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband import diagnose_background, growth_curves

rng = np.random.default_rng(13)
y, x = np.mgrid[:60, :600]
positions = [(30 + 60 * k + rng.uniform(-0.5, 0.5), 30.2) for k in range(10)]
model = np.full(x.shape, 40.0)
for a, b in positions:
    model += 2e4 * 2 / (np.pi * 9) * (1 + ((x - a) ** 2 + (y - b) ** 2) / 9) ** -3
offsets = np.array([-2, -1, -0.5, 0, 0.5, 1, 2.0])
z = {offset: [] for offset in offsets}
for _ in range(4):
    image = rng.poisson(model) + rng.normal(0, 5, model.shape)
    ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model + 25))
    for offset in offsets:
        curves = growth_curves(ccd, positions, np.arange(1, 20), sky=40 + offset)
        test = diagnose_background(curves)
        z[offset] += list(np.asarray(test["residual"] / test["residual_err"], float))
fig, ax = plt.subplots()
ax.violinplot(list(z.values()), positions=offsets, widths=0.35, showmedians=True)
ax.axhspan(-2, 2, color="0.85", zorder=0, label="called right")
ax.set_xlabel("sky that was subtracted, less the true one [electron/pix]")
ax.set_ylabel("residual over its error")
ax.legend(frameon=False)
