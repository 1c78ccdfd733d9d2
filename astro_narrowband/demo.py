"""The demonstration: a simulated night, reduced, and measured against its truth."""

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table

from astro_narrowband._engine.door import count, door, items, of_class
from astro_narrowband.exceptions import InputError
from astro_narrowband.night.pipeline import reduce_night
from astro_narrowband.photometry import Flag
from astro_narrowband.simulate import simulate_night

__all__ = ["compare", "run_demo"]

#: The brightest unsaturated stars that are compared, and how far off they may be found [pix].
N_STARS, MATCH = 50, 2.0
#: Stars so many errors off do not count for the mean; with more of its weight none is judged by it.
STRANGE, ALONE = 5.0, 0.9
#: Stars with any of these flags are not compared.
_UNFIT = (
    Flag.EDGE | Flag.MASKED | Flag.SATURATED | Flag.NEIGHBOUR | Flag.EXTENDED
    | Flag.PARTIAL | Flag.BLENDED | Flag.UNCORRECTED
)  # fmt: skip


@door(size=count(16, 100_000))
def run_demo(output, *, size=1024, seed=1, progress=None):
    """
    Simulate a night in three filters, reduce it, and compare with the truth.

    Parameters
    ----------
    output : path-like
        A new or empty folder; gets ``night/`` and ``reduced/``.
    size : int, optional
        Pixels a side.
    seed : int, optional
    progress : callable, optional
        As for `~astro_narrowband.night.pipeline.reduce_night`.

    Returns
    -------
    rows : list of list of str
        What was measured beside what is true, a table for people to read.
    sentence : str
        What is good of it, and what is not.
    page : str
        Where to look on.
    status : int
        As that of the record of the night: 0 if every filter could be made.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder: give a new one with -o")
    truth = simulate_night(output / "night", shape=(size, size), write_wcs=True, seed=seed)
    record = reduce_night(output / "night", output / "reduced", progress=progress)
    rows = compare(truth, record, output / "reduced")
    page = "report.html" if "report.html" in record["products"] else "night.json"
    heads = ["", "frames", "aligned to", "stars", "flux off by", "scatter", "pulls"]
    where = str(output / "reduced" / page)
    return [heads, *map(_line, rows)], _sentence(rows), where, record["status"]


def _line(row):
    return [
        row["filter"],
        f"{row['n_frames']}",
        f"{row['align_rms']:.3f} pix",
        f"{row['n_stars']}",
        f"{100 * row['flux_bias']:+.2f} ± {100 * row['flux_bias_err']:.2f} %",
        f"{100 * row['flux_scatter']:.2f} %",
        f"{row['pull_width']:.2f} ± {row['pull_width_err']:.2f}",
    ]


def _sentence(rows):
    """What is good of a comparison, and what is not, in words."""
    if not len(rows):
        return "nothing could be measured"
    off = [row["filter"] for row in rows if abs(row["flux_bias"]) > 3 * row["flux_bias_err"]]
    z = {row["filter"]: (row["pull_width"] - 1) / row["pull_width_err"] for row in rows}
    words = []
    if off:
        words.append(f"the flux scale of {', '.join(off)} is off by more than 3 of its errors")
    else:
        words.append("the flux scale is true within its error in every filter")
    for what, names in (
        ("too small", [name for name, value in z.items() if value > 2]),
        ("cautious", [name for name, value in z.items() if value < -2]),
    ):
        if names:
            words.append(f"error bars of {', '.join(names)} are {what}")
    right = [name for name, value in z.items() if abs(value) <= 2]
    if right:
        words.append(f"error bars of {', '.join(right)} are those of the scatter (pulls 1 wide)")
    return "; ".join(words)


@door(truth=of_class("NightTruth"), record=items)
def compare(truth, record, folder):
    """
    Compare the products of a simulated night with its truth.

    Parameters
    ----------
    truth : `~astro_narrowband.simulate.NightTruth`
    record : dict
        From `~astro_narrowband.night.pipeline.reduce_night`.
    folder : path-like
        Of the products.

    Returns
    -------
    `~astropy.table.Table`
        One row a filter: ``align_rms`` [pix] over the frame; ``flux_bias`` and
        ``flux_scatter``, weighted mean and robust scatter of measured over true
        flux less 1; ``flux_bias_err``, with the error of what all stars share, the
        correction to the whole light and the scale of the frames; ``pull_width``, robust
        width of (measured - true) / error about that bias, where the error is a star's own:
        without what all share, nor what the bias took from the star. With ``pull_width_err``.
    """
    rows = []
    for group in record["groups"]:
        if group["status"] != "done":
            continue
        catalog = QTable.read(Path(folder) / group["products"]["catalog"])
        measured, error, true = _stars(truth, group, catalog)
        ratio, n = measured / true, len(true)
        correction = catalog.meta.get("correction_err", 0.0) / catalog.meta.get("correction", 1.0)
        scale = fits.getheader(Path(folder) / group["products"]["coadd"]).get("SCALEERR", 0.0)
        # The error of a star alone; nothing is left where the correction is all of it.
        single = np.sqrt(np.maximum(error**2 - (correction * measured) ** 2, 0.0))
        single[single < 0.01 * error] = np.inf
        bias, chance, part = _weighted_mean(ratio, single / true)
        pulls = (measured / true - bias) * true / single / np.sqrt(1 - part)
        rows.append(
            {
                "filter": group["filter"],
                "n_frames": group["n_used"],
                "align_rms": _align_rms(truth, group),
                "n_stars": len(true),
                "flux_bias": bias - 1,
                "flux_bias_err": float(np.linalg.norm([correction, scale, chance])),
                "flux_scatter": _robust(ratio),
                # A star that makes the mean alone says nothing of it.
                "pull_width": _robust(pulls[part < ALONE]),
                # Of half the middle 68 % of a normal distribution.
                "pull_width_err": 0.93 / max(n, 1) ** 0.5,
            }
        )
    return Table(rows)


def _weighted_mean(values, error):
    """Mean without strangers, its error, and the part that each value has in it."""
    if not len(values):
        return np.nan, np.nan, np.zeros(0)
    weight = error**-2.0
    order = np.argsort(values)
    middle = values[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)]
    weight[np.abs(values - middle) > STRANGE * error] = 0
    total = weight.sum()
    return (weight * values).sum() / total, total**-0.5, weight / total


def _robust(values):
    """Half the range of the middle 68.3 %, that of a normal distribution in the mean of samples."""
    if len(values) < 3:
        return np.nan
    low, high = np.percentile(values, [15.87, 84.13], method="normal_unbiased")
    return (high - low) / 2


def _align_rms(truth, group):
    """Scatter of the alignments about the true ones, over the frames and their pixels [pix]."""
    ny, nx = truth.shape
    y, x = np.mgrid[0 : ny - 1 : 9j, 0 : nx - 1 : 9j]
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    to_reference = np.linalg.inv(truth.frame(Path(group["reference"]).resolve())["matrix"])
    squares = []
    for frame in group["frames"]:
        if frame["verdict"] != "used":
            continue
        true = to_reference @ truth.frame(Path(frame["path"]).resolve())["matrix"]
        off = (np.array(frame["matrix"]) - true) @ places
        squares.append(np.mean(off[0] ** 2 + off[1] ** 2) / 2)
    # The error of the reference's own grid is not seen.
    return float(np.sqrt(np.mean(squares)))


def _brightest(truth, frame):
    """Flux [electron/s] of a star whose brightest pixel is half way to saturation in a light."""
    model, true = truth.model, truth.frame(Path(frame["path"]).resolve())
    well = min(model.full_well, (65535 - model.pedestal) * model.gain)
    # A circle with the area of a pixel, centred on the star.
    peak = truth.aperture_fraction(0.5642, fwhm=true["fwhm"].value)
    return 0.5 * well / (frame["exposure"] * true["transparency"] * peak)


def _stars(truth, group, catalog):
    """Measured flux, its error and true flux of the brightest unsaturated stars."""
    frames = [frame for frame in group["frames"] if frame["verdict"] == "used"]
    # The coadd is on the flux scale of its reference: transparency over scale is one number.
    scale = np.average(
        [truth.frame(Path(f["path"]).resolve())["transparency"] / f["scale"] for f in frames],
        weights=[f["weight"] for f in frames],
    )
    x, y = truth.positions(Path(group["reference"]).resolve())
    flux = truth.stars[f"flux_{group['filter']}"].value * scale
    brightest = min(_brightest(truth, frame) for frame in frames) * scale
    catalogued = np.stack([catalog["x_center"].value, catalog["y_center"].value])
    measured, error, true = [], [], []
    for k in np.argsort(flux)[::-1]:
        distance = np.hypot(catalogued[0] - x[k], catalogued[1] - y[k])
        if not len(distance) or distance.min() > MATCH or len(true) == N_STARS:
            continue
        row = catalog[int(np.argmin(distance))]
        near = np.hypot(x - x[k], y - y[k]) < 4 * row["fwhm"].value
        blended = flux[near].sum() > 1.01 * flux[k]
        if flux[k] > brightest or blended or row["flags"] & _UNFIT:
            continue
        measured.append(row["flux"].value)
        error.append(row["flux_err"].value)
        true.append(flux[k])
    return np.array(measured), np.array(error), np.array(true)
