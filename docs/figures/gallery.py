"""Three simulated nights, reduced, in the colours of SHO."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from astro_narrowband import reduce_night
from astro_narrowband.simulate import NightModel, simulate_night

fig, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for ax, seed, words in zip(axes, (1, 2, 3), ("dark sky", "many stars", "moonlight"), strict=True):
    folder = Path(tempfile.mkdtemp())
    density = 1500.0 if words == "many stars" else 500.0
    sky = 5.0 if words == "moonlight" else 0.3
    simulate_night(
        folder / "night", shape=(256, 256), n_bias=4, n_darks=3, n_flats=3, seed=seed,
        dark_exposures=(120.0,), light_exposures=(120.0, 120.0, 120.0),
        model=NightModel(star_density=density, sky=sky, nebula=3.0),
    )  # fmt: skip
    record = reduce_night(folder / "night", folder / "reduced")
    picture = next(p for p in record["pictures"] if p["name"] == "SHO")
    ax.imshow(plt.imread(folder / "reduced" / picture["path"]))
    ax.set_title(words, loc="left", fontsize=9)
    ax.axis("off")
