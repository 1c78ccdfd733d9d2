"""What weights by exposure time, and equal ones, cost."""

import matplotlib.pyplot as plt
import numpy as np

exposures = np.array([60.0, 60, 120, 120, 300, 300])
read_noise = 8.0
sky = np.geomspace(0.003, 30, 100)
variance = (sky[:, None] * exposures + read_noise**2) / exposures**2  # of rates, one row a sky


def of_mean(weights):
    """Variance of the weighted mean."""
    return np.sum(weights**2 * variance, axis=1) / np.sum(weights, axis=1) ** 2


best = of_mean(1 / variance)
fig, ax = plt.subplots()
for name, weights in (("equal", np.ones_like(variance)), ("exposure time", exposures[None, :])):
    ax.plot(sky, of_mean(weights * np.ones_like(variance)) / best, label=f"weights: {name}")
ax.axhline(1, color="0.5", lw=0.8, label="one over the variance of blank sky")
ax.set_xscale("log")
ax.set_xlabel("sky [electron/s]; read noise 8 electron, lights of 60, 120 and 300 s")
ax.set_ylabel("variance over the smallest")
ax.set_ylim(0.9, None)
ax.legend(frameon=False)
