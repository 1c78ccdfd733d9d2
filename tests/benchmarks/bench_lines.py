"""
Measure line maps of simulated nights against their truth: fluxes of regions, scales, stars.

::

    python tests/benchmarks/bench_lines.py --nights 30 --size 1024

Every night has four filters (Halpha with [NII] in it, [OIII], [SII] and a broad r), stars of
different spectra, a nebula of lines and a continuum of its own, and passes through
``astro-narrowband reduce`` and ``lines`` as a user runs them. What the references have in common
(``--floor``) and the error of the [NII] ratio that is given (``--nii-error``) are drawn from what
is claimed, and are next to nothing by default: then the other errors are judged. Columns:

* *pull*: (flux - truth) / error of 20 circles: mean, half of the middle 68.3 %, standard
  deviation, part beyond 3.
* *bias*: median of flux / truth - 1 where the flux is above 30 times its error, without what
  the flux scale and [NII] were drawn off.
* *k*: pull of the scale of the continuum: that of a spectrum of the stars' mean slope.
* *stars*: median of the part of a star's light that is left.
"""

import argparse
import json
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable, vstack
from astropy.wcs import WCS

from astro_narrowband.cli import main
from astro_narrowband.simulate import NightModel, SpectralModel, simulate_night

LINES = ("Halpha", "OIII", "SII")
#: [NII]/Halpha; wavelengths of the spectra [nm].
NII = 0.35
WAVELENGTH = np.linspace(380, 1000, 311)


def references(truth, path, factor):
    """Write the spectra of the brighter stars, all off by one factor."""
    stars = truth.stars[truth.stars["flux_Halpha"].value > 8]
    table = QTable({"ra": stars["ra"], "dec": stars["dec"]})
    power = (WAVELENGTH / 600) ** stars["slope"][:, None]
    table["spectrum"] = stars["density"][:, None] * power * factor
    table.meta["sampling"] = WAVELENGTH.tolist()
    table.write(path)


def draw_regions(rng, size, path, count=20):
    """Write circles in the inner part, and a sky in the corners."""
    radius = rng.uniform(0.02, 0.045, count) * size
    x, y = rng.uniform(0.2 * size, 0.8 * size, (2, count))
    lines = [
        f"circle({a + 1:.3f},{b + 1:.3f},{r:.3f})" for a, b, r in zip(x, y, radius, strict=True)
    ]
    near, side = 0.08 * size, 0.13 * size
    for a, b in (
        (near, near),
        (near, size - near),
        (size - near, near),
        (size - near, size - near),
    ):
        lines.append(f"box({a + 1:.3f},{b + 1:.3f},{side:.3f},{side:.3f},0) # text={{sky}}")
    path.write_text("image\n" + "\n".join(lines) + "\n")


def true_fluxes(truth, line, folder):
    """Fluxes of the regions as `region_fluxes` means them, of the truth on the map's grid."""
    from astropy.nddata import CCDData, StdDevUncertainty
    from scipy.ndimage import map_coordinates

    from astro_narrowband.lines import read_regions, region_fluxes

    with fits.open(next((folder / "out").glob(f"line-*-{line}.fits"))) as hdul:
        wcs, shape = WCS(hdul[0].header), hdul[0].data.shape
    plane = truth.line_flux(line)
    y, x = np.mgrid[: shape[0], : shape[1]]
    own = WCS(truth_header(truth))
    place = own.wcs_world2pix(*wcs.wcs_pix2world(x.ravel(), y.ravel(), 0), 0)
    moved = map_coordinates(plane, [place[1], place[0]], order=3, mode="nearest").reshape(shape)
    any_error = StdDevUncertainty(np.ones(shape))
    ccd = CCDData(moved, unit="erg / (s cm2)", uncertainty=any_error)
    inside, sky = read_regions(folder / "r.reg")
    return region_fluxes(ccd, inside, sky=sky)["flux"].value


def truth_header(truth):
    """The WCS of the reference frame: tangential, north up, as the simulator writes it."""
    name = next(str(row["name"]) for row in truth.frames if row["kind"] == "light")
    header = fits.getheader(truth.folder / name)
    matrix = truth.frame(name)["matrix"]
    place = matrix @ [header["CRPIX1"] - 1, header["CRPIX2"] - 1, 1]
    cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    cd = cd @ np.linalg.inv(matrix[:2, :2])
    for i in (1, 2):
        header[f"CRPIX{i}"] = place[i - 1] + 1
        for j in (1, 2):
            header[f"CD{i}_{j}"] = cd[i - 1, j - 1]
    return header


def night(folder, seed, size, floor=1e-4, nii_err=1e-4):
    """Simulate, reduce and measure a night; one row per line and region."""
    rng = np.random.default_rng(10_000 + seed)
    spectra = SpectralModel()
    truth = simulate_night(
        folder / "raw", shape=(size, size), filters=(*LINES, "r"), n_bias=5, n_darks=3, n_flats=3,
        dark_exposures=(120.0,), light_exposures=(120.0,) * 3, write_wcs=True,
        spectra=spectra, seed=seed, model=NightModel(),
    )  # fmt: skip
    factor, nii = math.exp(floor * rng.standard_normal()), NII + nii_err * rng.standard_normal()
    references(truth, folder / "references.ecsv", factor)
    draw_regions(rng, size, folder / "r.reg")
    run(["reduce", str(folder / "raw"), "-o", str(folder / "red"), "--quiet"])
    curves = [f"{n}={c},{w}" for n, (c, w, _) in spectra.bands.items() if n in (*LINES, "r")]
    run(["lines", str(folder / "red"), "-o", str(folder / "out"), "--nii", f"{nii},{nii_err}",
         "--floor", str(floor), "--references", str(folder / "references.ecsv"), "--regions",
         str(folder / "r.reg"), *(t for c in curves for t in ("--curve", c))])  # fmt: skip
    table = QTable.read(next((folder / "out").glob("regions-*.ecsv")))
    record = json.loads((folder / "out" / "lines.json").read_text())["objects"][0]["lines"]
    rows = []
    for line in LINES:
        part = table[table["line"] == line]
        part["truth"] = true_fluxes(truth, line, folder)
        facts = record[line]
        stars = QTable.read(next((folder / "out").glob(f"scale-*-{line}.ecsv")))
        part["residual"] = np.median(np.abs(stars["residual"]))
        part["k_pull"] = (facts["KCONT"] - true_k(folder, truth, spectra, line)) / facts["KCONTERR"]
        part["seed"], part["factor"], part["nii"] = seed, factor, nii
        rows.append(part)
    return vstack(rows, metadata_conflicts="silent")


def true_k(folder, truth, spectra, line):
    """k of a spectrum of the stars' mean slope, in the air that the two coadds have."""
    record = json.loads((folder / "red" / "night.json").read_text())
    seen = {}
    for group in record["groups"]:
        if group["filter"] not in (line, "r"):
            continue
        used = [f for f in group["frames"] if f["verdict"] == "used"]
        total = sum(f["weight"] for f in used)
        air = [
            truth.frame(Path(f["path"]).resolve())["transparency"] / f["scale"] * f["weight"]
            for f in used
        ]
        seen[group["filter"]] = sum(air) / total
    rate = {n: spectra.continuum_rate(n, spectra.slope)[0] * seen[n] for n in seen}
    return rate[line] / rate["r"]


def run(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(arguments)
    if status:
        raise SystemExit(f"{' '.join(arguments[:1])} ended with {status}")


def width(values):
    low, high = np.percentile(values, [15.87, 84.13])
    return (high - low) / 2


def report(table):
    print(f"{len(set(table['seed']))} nights")
    print(
        f"{'':8}{'mean':>7}{'width':>7}{'std':>7}{'>3':>7}{'bias %':>8}{'S/N>30':>8}{'k mean':>8}{'k width':>8}{'stars %':>8}"
    )
    for line in LINES:
        part = table[table["line"] == line]
        flux, truth = part["flux"].value, part["truth"]
        pull = (flux - truth) / part["flux_err"].value
        own = [part[name].value for name in ("err_noise", "err_sky", "err_continuum")]
        bright = flux > 30 * np.sqrt(np.sum(np.square(own), axis=0))
        bias = (
            np.median(flux[bright] / (part["factor"] * truth)[bright]) - 1
            if bright.any()
            else math.nan
        )
        first = np.unique(part["seed"], return_index=True)[1]
        k = part["k_pull"][first]
        print(
            f"{line:8}{pull.mean():7.2f}{width(pull):7.2f}{pull.std():7.2f}{(abs(pull) > 3).mean():7.3f}{100 * bias:8.2f}"
            f"{bright.sum():8d}{k.mean():8.2f}{k.std():8.2f}{100 * np.median(part['residual'][first]):8.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--first", type=int, default=1, help="seed of the first night")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--floor", type=float, default=1e-4)
    parser.add_argument("--nii-error", type=float, default=1e-4)
    parser.add_argument("--table", help="where the rows are kept (ECSV)")
    options = parser.parse_args()
    tables = []
    for seed in range(options.first, options.first + options.nights):
        with tempfile.TemporaryDirectory() as folder:
            tables.append(night(Path(folder), seed, options.size, options.floor, options.nii_error))
        every = vstack(tables, metadata_conflicts="silent")
        if options.table:
            every.write(options.table, overwrite=True)
        report(every)
