"""A narrow filter in a fast beam, and what a continuum filter takes of a line."""

import matplotlib.pyplot as plt
import numpy as np

from astro_narrowband import FilterCurve
from astro_narrowband.lines import line_in_continuum

narrow = FilterCurve.from_shape(656.3, 3.0)
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.3))
wavelength = np.linspace(650, 662, 500)
for f_ratio in (None, 5.0, 2.8, 2.0):
    curve = narrow if f_ratio is None else narrow.in_beam(f_ratio, obstruction=0.3)
    label = "parallel" if f_ratio is None else f"f/{f_ratio:g}"
    passed = 100 * curve.response("Halpha") / narrow.response("Halpha")
    axes[0].plot(wavelength, [curve(w) for w in wavelength], label=f"{label}: {passed:.0f} %")
axes[0].axvline(656.28, color="0.6", lw=0.8)
axes[0].set_xlabel("wavelength [nm]")
axes[0].set_ylabel("transmission")
axes[0].legend(title="of Halpha passed", frameon=False, fontsize=8)
widths = np.linspace(2, 12, 30)
for name, broad in (("r, 130 nm", FilterCurve.from_shape(625.0, 130.0)),
                    ("30 nm", FilterCurve.from_shape(650.0, 30.0))):  # fmt: skip
    lost = [line_in_continuum(FilterCurve.from_shape(656.3, w), broad, "Halpha") for w in widths]
    axes[1].plot(widths, 100 * np.array(lost), label=f"continuum filter: {name}")
axes[1].set_xlabel("width of the line filter [nm]")
axes[1].set_ylabel("of Halpha taken with the continuum [%]")
axes[1].legend(frameon=False, fontsize=8)
