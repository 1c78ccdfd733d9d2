"""
Count what is said of clean nights, of which nothing ought to be said.

::

    python tests/benchmarks/bench_clean.py --nights 200

Each night has one filter and a sky, a seeing, exposures, a camera, a nebula, a dither and a density
of stars of its own (one in three is sparse: 4 to 12 stars), and nothing that the model of the
noise does not know; nights with fewer than 4 stars that serve are passed over. Printed are the
messages and the frames left out, by kind; how many errors were scaled; and, over all nights, noise measured over predicted and the pulls of the stars'
fluxes: single ones, and the medians of nights with the error that all stars of a night share.
"""

import argparse
import collections
import json
import re
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from astropy.io import fits

from astro_narrowband import simulate_night
from astro_narrowband.demo import compare
from astro_narrowband.night.pipeline import Settings, reduce_night
from astro_narrowband.simulate import NightModel

#: Light exposures of a night [s].
EXPOSURES = ((60.0, 120.0, 300.0), (300.0,) * 4, (30.0, 60.0, 60.0), (120.0,) * 6, (60.0,) * 5)
#: Stars that a night must have, further from the edge than this [pix].
LEAST, MARGIN = 4, 20
RATIOS = ("NOISEPIX", "NOISEBLK", "NOISEAPR", "NOISELIN")


def night(seed):
    """Arguments of `simulate_night` for the night of a seed."""
    rng = np.random.default_rng([17, seed])
    size = int(rng.choice([320, 384, 512]))
    sparse = rng.random() < 1 / 3
    n_stars = rng.uniform(4, 12) if sparse else 10 ** rng.uniform(1.3, 2.3)
    model = NightModel(
        sky=10 ** rng.uniform(-1, 0.7),
        sky_gradient=rng.uniform(0, 0.2),
        fwhm=rng.uniform(2.2, 5.0),
        moffat_beta=rng.uniform(2.5, 4.5),
        read_noise=rng.choice([1.5, 3.5, 5.0, 12.0]),
        gain=rng.choice([0.25, 0.6, 1.4]),
        dark_rate=rng.choice([0.003, 0.03, 0.3]),
        nebula=rng.choice([0.0, 0.5, 2.0, 5.0]),
        star_density=1e6 * n_stars / size**2,
        # What is meant by a star of a sparse field is one that can be seen.
        faintest=60.0 if sparse else 5.0,
        full_well=1e5,  # no pile of full pixels below what 16 bits hold
        transparency_scatter=rng.choice([0.02, 0.08, 0.15]),
    )
    exposures = EXPOSURES[rng.integers(len(EXPOSURES))]
    return {
        "shape": (size, size),
        "filters": (str(rng.choice(["Halpha", "OIII", "SII"])),),
        "light_exposures": exposures,
        "dark_exposures": sorted(set(exposures)),
        "dither": float(rng.choice([0.0, 3.0, 10.0])),
        "rotation": float(rng.choice([0.0, 0.0, 0.3])),
        "meridian_flip": bool(rng.random() < 0.25),
        "model": model,
        "seed": seed,
    }


def n_usable(truth):
    """How many stars are well inside the field and saturate in no light."""
    lights, model = truth.frames[truth.frames["kind"] == "light"], truth.model
    x, y = truth.stars["x"].value, truth.stars["y"].value
    ny, nx = truth.shape
    flux = truth.stars[f"flux_{truth.filters[0]}"].value
    # A circle with the area of a pixel, centred on the star.
    core = truth.aperture_fraction(0.5642, fwhm=lights["fwhm"].value.min())
    peak = flux * core * lights["exposure"].value.max() / model.gain
    inside = (x > MARGIN) & (x < nx - MARGIN) & (y > MARGIN) & (y < ny - MARGIN)
    return np.count_nonzero(inside & (peak + model.pedestal < 50_000))


def judge(seed):
    """
    Reduce the night of a seed: its messages, and what its coadd says against its truth.

    None for a night by whose stars, fewer than `LEAST`, nobody could register its frames.
    """
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        truth = simulate_night(folder / "night", **night(seed))
        if n_usable(truth) < LEAST:
            return None
        record = reduce_night(folder / "night", folder / "reduced", settings=Settings(workers=1))
        said = [message["text"] for message in record["messages"]]
        figures = {}
        for group in record["groups"]:
            if group["status"] != "done":
                continue
            header = fits.getheader(folder / "reduced" / group["products"]["coadd"])
            figures = {key: header[key] for key in (*RATIOS, "ERRSCALE") if key in header}
            figures["left out"] = sum(f["verdict"] != "used" for f in group["frames"])
            row = compare(truth, record, folder / "reduced")[0]
            if row["n_stars"] >= 5:
                figures["star pulls"] = row["pull_width"]
                figures["stars"] = row["n_stars"]
                figures["bias"] = row["flux_bias"] / row["flux_bias_err"]
        figures["sparse"] = night(seed)["model"].faintest > 50
    return said, json.loads(json.dumps(figures, default=float))


def kind(text):
    """A message without what differs from night to night."""
    text = re.sub(r"\S*\.fits", "FILE", text)
    return re.sub(r"[-+]?\d[\d.e+-]*", "N", text)[:150]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first night")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.nights)
    kinds, rows, loud = collections.Counter(), [], set()
    with ProcessPoolExecutor(options.processes) as pool:
        nights = {pool.submit(judge, seed): seed for seed in seeds}
        for done in as_completed(nights):
            if done.result() is None:
                continue
            said, figures = done.result()
            rows.append(figures)
            for text in said:
                kinds[kind(text)] += 1
                loud.add(nights[done])
                print(f"night {nights[done]}: {text}", flush=True)
    print(f"{len(rows)} nights: {len(loud)} of which something was said")
    for text, count in kinds.most_common():
        print(f"{count:5d}  {text}")
    print(f"errors scaled: {sum(row.get('ERRSCALE', 1.0) != 1.0 for row in rows)}")
    print(f"frames left out: {sum(row.get('left out', 0) for row in rows)}")
    print("measured over predicted: median over nights, its error, and the middle 68 % of nights")
    for key in (*RATIOS, "star pulls"):
        values = [row[key] for row in rows if np.isfinite(row.get(key, np.nan))]
        if values:
            low, middle, high = np.percentile(values, [15.9, 50, 84.1])
            error = 1.25 * (high - low) / 2 / np.sqrt(len(values))
            print(f"{key:10s} {middle:.3f} +- {error:.3f}  {low:.3f} to {high:.3f}"
                  f"  ({len(values)} nights)")  # fmt: skip
    judged = [row for row in rows if np.isfinite(row.get("star pulls", np.nan))]
    stars = np.array([row["stars"] for row in judged])
    pulls = np.sqrt(np.average([row["star pulls"] ** 2 for row in judged], weights=stars))
    print(f"star pulls of all {stars.sum()} stars: {pulls:.3f} +- {0.93 / stars.sum() ** 0.5:.3f}")
    bias = np.array([row["bias"] for row in rows if "bias" in row])
    print(f"bias of a night's fluxes over its error: rms {np.sqrt(np.mean(bias**2)):.2f}")


if __name__ == "__main__":
    main()
