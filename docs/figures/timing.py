"""Times of the comparison, as bars."""

import matplotlib.pyplot as plt

times = {
    "medians of 12 frames": {"this package": 0.76, "Siril": 6.3, "IRAF": 7.7, "ccdproc": 32.5},
    "a night in three filters": {"this package": 49, "Siril": 99},
}
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for ax, (title, bars) in zip(axes, times.items(), strict=True):
    drawn = ax.barh(list(bars)[::-1], list(bars.values())[::-1], color="#6ea8fe")
    ax.bar_label(drawn, fmt=" %g s")
    ax.set_title(title, loc="left", fontsize=9)
    ax.set_xscale("log")
    ax.margins(x=0.25)
