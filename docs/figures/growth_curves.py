"""A growth curve, and what is said of its background when the sky is right and when it is not."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband import diagnose_background, growth_curves

rng = np.random.default_rng(3)
y, x = np.mgrid[:90, :90]
model = 40 + 2e4 * 2 / (np.pi * 9) * (1 + ((x - 44.7) ** 2 + (y - 45.2) ** 2) / 9) ** -3
image = rng.poisson(model) + rng.normal(0, 5, model.shape)
ccd = CCDData(image, unit="electron", uncertainty=VarianceUncertainty(model + 25))
radii = np.arange(1, 25)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
for ax, keywords in zip(axes, ({"r_in": 26, "r_out": 36}, {"sky": 38}, {"sky": 42}), strict=True):
    curves = growth_curves(ccd, [(44.7, 45.2)], radii, **keywords)
    test = diagnose_background(curves)[0]
    curves.plot(ax)
    taken = f"sky {keywords['sky']}" if "sky" in keywords else "sky of annulus"
    level = f"{test['residual'].value:+.1f} ± {test['residual_err'].value:.1f}"
    ax.set_title(f"{taken}: {test['verdict']} ({level})", loc="left", fontsize=9)
axes[0].set_ylim(0, 40000)
