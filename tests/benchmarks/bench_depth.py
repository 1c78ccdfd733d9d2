"""
Measure the coadds of a simulated night against its truth: depth, outliers, fluxes, errors.

::

    astro-narrowband simulate night --size 4096
    astro-narrowband reduce night -o reduced
    python tests/benchmarks/bench_depth.py night reduced

One table, a column for each filter, the goal beside every figure:

* *noise*: the scatter of means of 8 x 8 pixels of blank sky over that of perfect masters and
  perfect weights, which the truth gives pixel by pixel. Means of blocks are (almost) blind to
  what interpolation smooths; how much they are not is taken off the ideal too.
* *outliers*: pixels of the coadd that are further from the truth than 8 times their error, in
  a million. The truth has all lights with their own seeing: stars that saturate in the longer
  ones look otherwise in the coadd, which has the others. Hence three figures: all pixels, those
  more than 3 FWHM off saturated stars, and those where no star has a tenth of the noise.
* *flux*: of the brightest stars that are not saturated and alone, within 6 pixels (the same
  aperture and annulus on coadd and truth), and of the catalogue's whole light, with its
  aperture correction, as ``astro-narrowband demo`` has it; its errors are true if pulls have
  a width of 1 or less (they share the error of the correction).
* *alignment*: of the lights with the reference, over the frame.
* *pulls*: (coadd - truth) / error of pixels and of blocks of blank sky, whose width is 1 if
  the errors are true.
* *cosmic rays*: of the pixels in which one light was hit by more than 8 times its noise, the
  part where that light is not in the coadd, by the distance to the nearest bright star and by
  the strength of the hit. Pixels are those of the camera; the coadd's is the nearest one.
* *good pixels lost*: frames that pixels of the coadd lack and that nothing had spoiled there.
"""

import argparse
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from scipy.ndimage import affine_transform, maximum_filter, zoom
from scipy.spatial import cKDTree

from astro_narrowband.demo import compare
from astro_narrowband.photometry import annulus_photometry
from astro_narrowband.simulate import read_truth
from astro_narrowband.simulate._sky import add_stars

BLOCK = 8
#: Blocks of one cell of the smooth background that is taken off before blocks are compared.
CELL = 16
#: Pixels around a bad one that its interpolation spoils.
REACH = 3
#: Blank is where the light of stars is less than this part of the noise, the nebula of the sky.
BLANK = 0.1
#: Edges of the bins of distance to a bright star, in FWHM.
DISTANCES = (0, 0.5, 1, 2, 4, math.inf)
#: Edges of the bins of strength of a hit, in the noise of its pixel.
STRENGTHS = (8, 12, 20, 50, math.inf)
#: Stars that are compared: how many, within which radius, with which annulus [pix].
N_STARS, RADIUS, ANNULUS = 50, 6.0, (12.0, 20.0)


@dataclass
class Frame:
    """One light that is in the coadd."""

    row: object
    matrix: np.ndarray
    weight: float
    scale: float

    def at(self, x, y):
        """Places of pixels of the coadd in this light, and which of them it has."""
        inverse = np.linalg.inv(self.matrix)
        ix = np.rint(inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(np.int32)
        iy = np.rint(inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(np.int32)
        return iy, ix


class Field:
    """A coadd beside its truth."""

    def __init__(self, truth, reduced, group):
        self.truth, self.filter = truth, group["filter"]
        path = reduced / group["products"]["coadd"]
        with fits.open(path) as hdul:
            self.data = hdul[0].data.astype(np.float32)
            # Errors are for sums; those of single pixels are less where they are interpolated.
            self.correlation = hdul[0].header.get("NOISECOR", 1.0)
            self.error = hdul["UNCERT"].data.astype(np.float32)
            self.bad = hdul["MASK"].data != 0
            self.n_exposures = hdul["NEXP"].data.astype(np.int16)
        self.bad |= ~np.isfinite(self.data) | ~np.isfinite(self.error)
        reference = truth.frame(Path(group["reference"]).resolve())
        from_truth = np.linalg.inv(reference["matrix"])
        used = [f for f in group["frames"] if f["verdict"] == "used"]
        total = sum(f["weight"] for f in used)
        self.frames = []
        for f in used:
            row = truth.frame(Path(f["path"]).resolve())
            matrix = from_truth @ row["matrix"]
            self.frames.append(Frame(row, matrix, f["weight"] / total, f["scale"]))
        #: Flux in the coadd over true flux: it is that of the reference's air.
        self.scale = sum(f.weight * f.row["transparency"] / f.scale for f in self.frames)
        x, y = truth.stars["x"].value, truth.stars["y"].value
        self.x, self.y = from_truth[:2, :2] @ [x, y] + from_truth[:2, 2:]
        self.flux = truth.stars[f"flux_{self.filter}"].value
        self.nebula = self._nebula(reference["matrix"])
        self.stars = np.zeros_like(self.data)
        for f in self.frames:
            add_stars(
                self.stars, self.x, self.y, f.weight * self.flux, fwhm=f.row["fwhm"].value,
                beta=truth.model.moffat_beta, exposure=3600.0,
            )  # fmt: skip
        self.residual = self.data - np.float32(self.scale) * (self.stars + self.nebula)

        #: Light of the brightest pixel of each star over that at which the first light saturates.
        model, peaks = truth.model, []
        well = min(model.full_well, (65535 - model.pedestal) * model.gain)
        for f in self.frames:
            row = f.row
            part = truth.aperture_fraction(0.5642, fwhm=row["fwhm"].value)
            peaks.append(self.flux * row["transparency"] * row["exposure"].value * part / well)
        self.full = np.max(peaks, axis=0)
        self.seeing = float(np.mean([f.row["fwhm"].value for f in self.frames]))

    def _nebula(self, matrix):
        """The nebula [electron/s above the clouds] on the grid of the coadd."""
        seen = self.truth.nebula(self.filter)
        order = [1, 0]
        return affine_transform(
            seen, matrix[:2, :2][np.ix_(order, order)], matrix[:2, 2][order], order=3,
            cval=np.nan, output=np.float32,
        )  # fmt: skip

    def variance(self, frame, iy, ix, y, x):
        """Variance of pixels of one light [electron/s]**2, above the clouds, by the truth."""
        model, row = self.truth.model, frame.row
        t = row["exposure"].value
        ny, nx = self.truth.shape
        sky = row["sky"].value + row["sky_slope_x"].value * (ix / (nx - 1) - 0.5)
        sky = sky + row["sky_slope_y"].value * (iy / (ny - 1) - 0.5)
        light = sky + row["transparency"] * np.maximum(self.nebula[y, x] + self.stars[y, x], 0)
        flat = self.flat[iy, ix]
        electrons = t * (self.truth.dark[iy, ix] + flat * light)
        # Read noise, and the steps of the converter.
        electrons = electrons + model.read_noise**2 + model.gain**2 / 12
        return electrons / (t * flat * row["transparency"]) ** 2

    @property
    def flat(self):
        if not hasattr(self, "_flat"):
            self._flat = self.truth.flat(self.filter)
        return self._flat


def blocks(plane, reduce=np.mean):
    ny, nx = (n // BLOCK for n in plane.shape)
    part = plane[: ny * BLOCK, : nx * BLOCK].reshape(ny, BLOCK, nx, BLOCK)
    return reduce(part, axis=(1, 3))


def smooth(means, blank):
    """The background that changes slowly over the blank blocks."""
    ny, nx = (max(1, n // CELL) for n in means.shape)
    cells = np.full((ny, nx), np.nan)
    for j in range(ny):
        for i in range(nx):
            part = np.s_[j * CELL : (j + 1) * CELL, i * CELL : (i + 1) * CELL]
            if blank[part].sum() > CELL:
                cells[j, i] = np.median(means[part][blank[part]])
    known = np.isfinite(cells)
    y, x = np.nonzero(known)
    _, nearest = cKDTree(np.stack([y, x], 1)).query(np.stack(np.nonzero(~known), 1))
    cells[~known] = cells[y[nearest], x[nearest]]
    return zoom(cells, (means.shape[0] / ny, means.shape[1] / nx), order=1, grid_mode=True,
               mode="nearest")  # fmt: skip


def width(values):
    """Half the range of the middle 68.3 %."""
    low, high = np.percentile(values, [15.87, 84.13])
    return (high - low) / 2


def kept(matrix):
    """What Lanczos-3 leaves of the variance of a mean of a block: shifts by whole pixels, all."""
    if not np.allclose(matrix[:2, :2], np.eye(2), atol=1e-9):
        shifts = np.linspace(0, 1, 21)
        return np.mean([_kept(s) for s in shifts]) ** 2
    return _kept(matrix[0, 2]) * _kept(matrix[1, 2])


def _kept(shift):
    part = shift - math.floor(shift)
    x = np.arange(-3, 4) - part
    kernel = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return (np.convolve(np.ones(BLOCK), kernel / kernel.sum()) ** 2).sum() / BLOCK


def depth(field):
    """Noise of blocks of blank sky, and pulls."""
    single = field.error * math.sqrt(field.correlation)
    star = field.scale * field.stars
    sky = np.median([f.row["sky"].value for f in field.frames])
    dark = ~field.bad & (star < BLANK * single) & (field.nebula < BLANK * sky)
    blank = blocks(dark, np.all)
    blank[:4] = blank[-4:] = blank[:, :4] = blank[:, -4:] = False
    means = blocks(field.residual)
    background = smooth(means, blank)
    by, bx = np.nonzero(blank)
    inner = np.arange(BLOCK)
    y = (by * BLOCK)[:, None, None] + inner[:, None]
    x = (bx * BLOCK)[:, None, None] + inner
    y, x = np.broadcast_arrays(y, x)
    weight = np.zeros(y.shape)
    for f in field.frames:
        iy, ix = f.at(x, y)
        ny, nx = field.truth.shape
        inside = (iy >= 0) & (iy < ny) & (ix >= 0) & (ix < nx)
        iy, ix = np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)
        weight += inside / (field.variance(f, iy, ix, y, x) * kept(f.matrix))
    ideal = field.scale * np.sqrt((1 / weight).mean(axis=(1, 2))) / BLOCK
    off = means[blank] - background[blank]
    pulls = ((field.residual[y, x] - background[blank][:, None, None]) / single[y, x]).ravel()
    error = np.sqrt((field.error[y, x] ** 2).mean(axis=(1, 2))) / BLOCK
    weights = [f.weight for f in field.frames]
    lost = np.average([kept(f.matrix) for f in field.frames], weights=weights)
    block_pulls = off / (error * math.sqrt(lost))
    field.background = zoom(background, [n / m for n, m in zip(field.data.shape, background.shape, strict=True)],
                 order=1, grid_mode=True, mode="nearest")  # fmt: skip
    far = np.abs(field.residual - field.background) > 8 * single
    good = ~field.bad & np.isfinite(field.residual)
    no_star = good & (star < BLANK * single)
    ordinary = good.copy()
    for x, y in zip(field.x[field.full > 0.8], field.y[field.full > 0.8], strict=True):
        r = math.ceil(3 * field.seeing)
        at = np.s_[max(round(y) - r, 0) : max(round(y) + r + 1, 0),
                   max(round(x) - r, 0) : max(round(x) + r + 1, 0)]  # fmt: skip
        ordinary[at] = False

    def per_million(where):
        return 1e6 * np.count_nonzero(far & where) / np.count_nonzero(where)

    return {
        "blank blocks": (len(off), None),
        "noise of blocks over ideal, 68.3 %": (width(off / ideal), "<= 1.03"),
        "the same, root mean square": (np.sqrt(np.mean((off / ideal) ** 2)), "<= 1.03"),
        "outliers > 8 sigma per Mpx": (per_million(good), "< 20"),
        "outliers off saturated stars": (per_million(ordinary), "< 20"),
        "outliers where there is no star": (per_million(no_star), "< 20"),
        "pulls of blank pixels: width": (np.sqrt(np.mean(pulls**2)), "0.97 to 1.03"),
        "pulls of blank pixels: inside 1 sigma %": (100 * np.mean(np.abs(pulls) < 1), "68.3"),
        "pulls of blank blocks: width": (np.sqrt(np.mean(block_pulls**2)), "0.97 to 1.03"),
    }  # fmt: skip


def fluxes(field):
    """Bright stars within a radius in the coadd over the same in the truth, less 1."""
    ny, nx = field.truth.shape
    tree = cKDTree(np.stack([field.x, field.y], 1))
    chosen = []
    for k in np.argsort(-field.flux):
        x, y = field.x[k], field.y[k]
        near = tree.query_ball_point([x, y], ANNULUS[1])
        inside = 30 < x < nx - 30 and 30 < y < ny - 30
        alone = field.flux[near].sum() < 1.02 * field.flux[k]
        if inside and alone and field.full[k] < 0.8 and len(chosen) < N_STARS:
            chosen.append(k)
    places = np.stack([field.x[chosen], field.y[chosen]], 1)
    model = np.float32(field.scale) * (field.stars + field.nebula)
    measured = []
    for image, mask in ((field.data, field.bad), (model, None)):
        ccd = CCDData(
            image, unit="electron/s", mask=mask, uncertainty=StdDevUncertainty(field.error)
        )
        table = annulus_photometry(
            ccd, places, r=RADIUS, r_in=ANNULUS[0], r_out=ANNULUS[1],
            noise_correlation=field.correlation,
        )  # fmt: skip
        measured.append(table["flux"].value)
        error = table["flux_err"].value
    off, error = measured[0] / measured[1] - 1, error / measured[1]
    return {
        "stars, brightest that are not saturated": (len(off), None),
        "flux within 6 pix: bias %": (100 * np.median(off), "within 0.1"),
        "flux within 6 pix: scatter %": (100 * width(off), None),
        "flux within 6 pix: errors, median %": (100 * np.median(error), None),
    }


def cosmic_rays(field, reduced):
    """What became of the hits, and of the pixels that nothing hit."""
    truth, shape = field.truth, field.truth.shape
    ny, nx = shape
    hits = truth.cosmic_rays
    y, x = np.mgrid[:ny, :nx].astype(np.int32)
    spoiled = detector_flaws(truth, reduced)
    there, touched = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    seeing = field.seeing
    single = field.error * math.sqrt(field.correlation)
    peak = field.flux * field.scale * truth.aperture_fraction(0.5642, fwhm=seeing)
    bright = peak > 50 * np.nanmedian(single)
    tree = cKDTree(np.stack([field.x[bright], field.y[bright]], 1))
    found = []
    for f in field.frames:
        mine = hits[hits["frame"] == truth._row(f.row["name"])]
        hy, hx = np.asarray(mine["y"]), np.asarray(mine["x"])
        hit = np.zeros(shape, bool)
        hit[hy, hx] = True
        flawed = maximum_filter(spoiled | hit, 2 * REACH + 1)
        iy, ix = f.at(x, y)
        inside = (iy >= REACH) & (iy < ny - REACH) & (ix >= REACH) & (ix < nx - REACH)
        iy, ix = np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)
        there += inside
        touched += inside & flawed[iy, ix]
        place = f.matrix[:2, :2] @ [hx, hy] + f.matrix[:2, 2:]
        cx, cy = np.rint(place).astype(int)
        keep = (cx >= 8) & (cx < nx - 8) & (cy >= 8) & (cy < ny - 8) & ~spoiled[hy, hx]
        cx, cy, hy, hx, place = cx[keep], cy[keep], hy[keep], hx[keep], place[:, keep]
        t = f.row["exposure"].value * f.row["transparency"] * field.flat[hy, hx]
        noise = np.sqrt(field.variance(f, hy, hx, cy, cx)) * t
        strength = mine["charge"].value[keep] / noise
        strong = strength > STRENGTHS[0]
        distance = tree.query(place.T)[0] / seeing
        found.append((cy[strong], cx[strong], distance[strong], strength[strong]))
    found = [np.concatenate(part) for part in zip(*found, strict=True)]
    # Along the edges, where some lights do not look, exposures do not tell that one is lacking.
    complete = there[found[0], found[1]] == len(field.frames)
    cy, cx, distance, strength = (part[complete] for part in found)
    gone = (field.n_exposures[cy, cx] < len(field.frames)) | field.bad[cy, cx]
    left = np.abs(field.residual[cy, cx] - field.background[cy, cx]) > 5 * single[cy, cx]
    out = {
        "hits > 8 sigma": (len(gone), None),
        "rejected %": (100 * gone.mean(), ">= 99"),
        "more than 5 sigma off in the coadd %": (100 * left.mean(), None),
    }
    for values, edges, what in (
        (distance, DISTANCES, "FWHM off a star"), (strength, STRENGTHS, "sigma"),
    ):  # fmt: skip
        for low, high in pairwise(edges):
            some = (values >= low) & (values < high)
            span = f"{low:g} to {high:g}" if math.isfinite(high) else f"more than {low:g}"
            out[f"  {span} {what}: hits"] = (np.count_nonzero(some), None)
            part = 100 * gone[some].mean() if some.any() else math.nan
            out[f"  {span} {what}: rejected %"] = (part, ">= 99")
    inner = np.s_[16:-16, 16:-16]
    lacking = (there - np.minimum(field.n_exposures, there))[inner]
    lost = np.maximum(lacking - touched[inner], 0)
    out["good pixels lost %"] = (100 * lost.sum() / there[inner].sum(), "< 0.2")
    return out


def detector_flaws(truth, reduced):
    """Pixels that are bad in every light: hot ones, and those of which the dark says so."""
    dark = truth.dark
    middle = np.median(dark)
    flaws = dark > middle + 20 * 1.4826 * np.median(np.abs(dark - middle))
    for path in (reduced / "masters").glob("dark*.fits"):
        with fits.open(path) as hdul:
            flaws |= hdul["FLAGS"].data != 0
    return flaws


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("night", type=Path, help="folder from astro-narrowband simulate")
    parser.add_argument("reduced", type=Path, help="folder from astro-narrowband reduce")
    options = parser.parse_args()
    truth = read_truth(options.night)
    record = json.loads((options.reduced / "night.json").read_text())
    stars = compare(truth, record, options.reduced)
    columns = {}
    for group in record["groups"]:
        if group["status"] != "done":
            continue
        field = Field(truth, options.reduced, group)
        row = stars[stars["filter"] == group["filter"]][0]
        columns[group["filter"]] = depth(field) | {
            "whole flux of the catalogue: bias %": (100 * row["flux_bias"], "within 0.1"),
            "whole flux: scatter %": (100 * row["flux_scatter"], None),
            "whole flux: width of pulls": (row["pull_width"], "<= 1"),
            "alignment rms [pix]": (row["align_rms"], None),
        }
        columns[group["filter"]] |= fluxes(field) | cosmic_rays(field, options.reduced)
    print(f"{'':48}" + "".join(f"{name:>10}" for name in columns) + "   goal")
    for name, (_, goal) in next(iter(columns.values())).items():
        figures = "".join(f"{_text(column[name][0]):>10}" for column in columns.values())
        print(f"{name:48}{figures}   {goal or ''}".rstrip())


def _text(value):
    if isinstance(value, int | np.integer):
        return str(value)
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
