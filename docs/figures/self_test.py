"""The self-test of error bars: a right gain, a wrong one, and rows that share noise."""

import matplotlib.pyplot as plt
import numpy as np

from astro_narrowband.confront import TOLERANCE, compare_noise

rng = np.random.default_rng(4)
shape = (700, 700)
sigma = np.ones(shape)
rows = rng.normal(0, 0.25, (700, 1))
fig, ax = plt.subplots(figsize=(7, 3.2))
for k, (name, data) in enumerate(
    (
        ("errors that hold", rng.normal(0, 1, shape)),
        ("gain given 1.7 times too large", rng.normal(0, 1.3, shape)),
        ("rows that share a quarter of the noise", rng.normal(0, 1, shape) + rows),
    )
):
    test = compare_noise(data, sigma)
    ratios, errors = np.transpose(list(test.ratios.values()))
    at = np.arange(len(ratios)) + 0.22 * (k - 1)
    ax.errorbar(at, ratios, 3 * errors, fmt="o", label=name)
for k, limit in enumerate(TOLERANCE.values()):
    ax.fill_between([k - 0.4, k + 0.4], 1 - limit, 1 + limit, color="0.88", zorder=0)
ax.set_xticks(range(len(TOLERANCE)), TOLERANCE)
ax.set_ylabel("noise of blank sky,\nmeasured over predicted")
ax.legend(frameon=False, fontsize=8)
