"""Intervals of a ratio of two lines: how often they hold the truth."""

import matplotlib.pyplot as plt
import numpy as np
from astropy.nddata import StdDevUncertainty

from astro_narrowband import LineMap, line_ratio

rng = np.random.default_rng(2)
shape, true = (200, 200), 0.4
signals = np.geomspace(3, 60, 12)
held, naive, measured = [], [], []
for signal in signals:
    a, b = (
        LineMap(rng.normal(level, 1, shape), unit="electron/s",
                uncertainty=StdDevUncertainty(np.ones(shape)))
        for level in (true * signal / 0.4, signal)
    )  # fmt: skip
    truth = true / 0.4
    ratio = line_ratio(a, b)
    seen = ratio.kind == 1
    measured.append(seen.mean())
    held.append(np.mean((ratio.lower[seen] < truth) & (truth < ratio.upper[seen])))
    value = a.data / b.data
    error = np.abs(value) * np.hypot(1 / a.data, 1 / b.data)
    naive.append(np.mean(np.abs(value - truth)[b.data > 0] < error[b.data > 0]))
fig, ax = plt.subplots()
ax.plot(signals, held, "o-", label="Fieller's interval, where both lines are seen")
ax.plot(signals, naive, "s--", ms=4, label="propagated error, everywhere")
ax.plot(signals, measured, color="0.6", label="pixels where both are seen")
ax.axhline(0.683, color="0.4", lw=0.8)
ax.set_xscale("log")
ax.set_ylim(0, 1)
ax.set_xlabel("true signal to noise of both lines")
ax.set_ylabel("part that holds the truth")
ax.legend(frameon=False)
