"""
Measure coadds: pulls over many simulated nights, memory and time over the number of frames.

::

    python tests/benchmarks/bench_coadd.py pulls --nights 2000
    python tests/benchmarks/bench_coadd.py memory
    python tests/benchmarks/bench_coadd.py speed --shape 4096

``pulls`` reduces small nights from raw frames (12 bias, 2 x 10 darks, 10 flats, lights) and
compares every pixel of their coadds with the truth, in the 27 cells of sky {1, 30, 300}
electron x frames {3, 6, 10} x {undithered, integer, fractional} shifts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import Frame

EXPOSURE = 60.0
#: How the frames of a night are shifted.
KINDS = ("undithered", "integer", "fractional")


def shifts_of(kind, n):
    """Dithers of some pixels, no two alike; whole pixels, or with fractions."""
    k = np.arange(n)
    if kind == "undithered":
        return np.zeros((n, 2))
    shifts = np.stack([(2 * k) % 5 - 2.0, (3 * k) % 7 - 3.0], axis=1)
    if kind == "fractional":
        shifts += np.stack([(0.37 * k) % 1, (0.61 * k) % 1], axis=1)
    shifts[0] = 0
    return shifts


def raw(image, exposure):
    return CCDData(image, unit="adu", header=fits.Header({"EXPTIME": exposure}))


def recipes(n_nights, seed, shape):
    """Masters of independent nights with one detector."""
    from astro_narrowband.calibration import Recipe
    from astro_narrowband.darks import DarkModel
    from astro_narrowband.detector import Detector
    from astro_narrowband.masters import master_flat
    from astro_narrowband.simulate import simulate_frames

    made = []
    for first in range(0, n_nights, 50):
        night = simulate_frames(
            min(50, n_nights - first), shape=shape, light_exposures=(EXPOSURE,), seed=seed + first
        )
        detector = Detector(
            gain=night.model.gain, read_noise=night.model.read_noise, saturation=60000.0
        )
        for i in range(len(night.lights)):
            bias = [raw(a, 0.0) for a in night.bias[i]]
            darks = [raw(a, t) for t, part in night.darks.items() for a in part[i]]
            dark = DarkModel.fit(darks, bias=bias, detector=detector, workers=1)
            flats = [raw(a, night.flat_exposure) for a in night.flats[i]]
            flat = master_flat(flats, dark=dark, detector=detector, workers=1)
            made.append(Recipe.make(detector=detector, dark=dark, flat=flat))
    return made


def pulls(masters, seed, *, sky, n_frames, kind, shape):
    """Pulls of the pixels of the coadds of all nights of a cell."""
    from astro_narrowband._engine.frames import MemoryFrame
    from astro_narrowband.calibration import CalibratedFrame
    from astro_narrowband.coaddition import coadd
    from astro_narrowband.registration import Alignment
    from astro_narrowband.resampling import ResampledFrame
    from astro_narrowband.simulate import simulate_frames

    shifts = shifts_of(kind, n_frames)
    found = []
    for first in range(0, len(masters), 50):
        some = masters[first : first + 50]
        night = simulate_frames(
            len(some), shape=shape, sky=sky, light_exposures=(EXPOSURE,) * n_frames,
            shifts=shifts, n_bias=0, n_darks=0, n_flats=0, seed=seed + first,
        )  # fmt: skip
        for recipe, lights in zip(some, night.lights, strict=True):
            frames = [
                CalibratedFrame(MemoryFrame(raw(a, EXPOSURE), f"light{k}"), recipe)
                for k, a in enumerate(lights)
            ]
            if kind != "undithered":
                frames = [
                    ResampledFrame(f, Alignment.translation(*-s))
                    for f, s in zip(frames, shifts, strict=True)
                ]
            made = coadd(frames, flux_scale="none", workers=1)
            sigma = made.ccd.uncertainty.array * np.sqrt(made.ccd.header["NOISECOR"])
            pull = (made.ccd.data - sky / EXPOSURE) / sigma
            inner = slice(None) if kind == "undithered" else slice(8, -8)
            pull = pull[inner, inner]
            found.append(pull[np.isfinite(pull)].astype(np.float32))
    return found


class Tally:
    """Pulls of a cell: what their moments and coverage need, night by night."""

    def __init__(self):
        self.n, self.sums, self.inside, self.nights = 0, np.zeros(2), np.zeros(2), []

    def add(self, pulls):
        q = pulls.astype(float)
        self.n += q.size
        self.sums += q.sum(), (q * q).sum()
        self.inside += [np.count_nonzero(np.abs(q) < k) for k in (1, 2)]
        self.nights.append(q.mean())

    def line(self, kind):
        """Figures, and what is outside the limits."""
        mean, square = self.sums / self.n
        width = np.sqrt(square - mean**2)
        error = np.std(self.nights) / np.sqrt(len(self.nights))
        one, two = 100 * self.inside / self.n
        # Whole pixels are not interpolated: nothing of their noise is lost to correlation.
        room = 0.03 if kind == "fractional" else 0.02
        wrong = {"mean": abs(mean) > 0.02, "width": abs(width - 1) > room,
                 "coverage": abs(one - 68.3) > 0.7}  # fmt: skip
        told = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        figures = f"{mean:+.4f} +- {error:.4f}  {width:.4f}  {one:14.2f}  {two:9.2f}"
        return f"{figures}  {told and 'outside: ' + told}".rstrip()


def run_pulls(options):
    """All cells with the same masters, 50 nights at a time."""
    shape, started = (64, 64), time.process_time()
    cells = {
        (kind, sky, n): Tally()
        for kind in options.kinds for sky in (1.0, 30.0, 300.0) for n in (3, 6, 10)
    }  # fmt: skip
    for first in range(0, options.nights, 50):
        seed = options.seed + first
        masters = recipes(min(50, options.nights - first), seed, shape)
        for (kind, sky, n), tally in cells.items():
            for found in pulls(masters, seed, sky=sky, n_frames=n, kind=kind, shape=shape):
                tally.add(found)
        if sys.stderr.isatty():
            print(f"\r{first + len(masters)} nights", end="\r", file=sys.stderr, flush=True)
    print("goals: |mean| <= 0.02, width 0.98 to 1.02 (fractional: 0.97 to 1.03), 67.6 to 69.0 %")
    print("shift       sky  n   mean +- error      width  inside 1 sigma %  2 sigma %")
    for (kind, sky, n), tally in cells.items():
        print(f"{kind:10s} {sky:4.0f} {n:2d}  {tally.line(kind)}")
    print(f"{options.nights} nights in each cell, {time.process_time() - started:.0f} s of CPU")


# --------------------------------------------------------------------------- memory and time


class Synthetic(Frame):
    """A frame of any size whose rows cost little: noise that is rolled along."""

    pool = np.random.default_rng(1).normal(0.5, 0.1, (64, 1 << 13)).astype(np.float32)

    def __init__(self, k, shape):
        from astropy import units as u

        self.k, self.shape = k, shape
        self.name, self.unit = f"frame{k:05d}", u.electron / u.s
        self.header = fits.Header({"EXPTIME": 60.0})

    def read(self, rows):
        from astro_narrowband._engine.frames import Band

        y = np.arange(rows.start, rows.stop)
        start = (37 * self.k) % 4000
        data = self.pool[(y * 7 + self.k) % 64, start : start + self.shape[1]]
        return Band(data, np.full(data.shape, 0.01, np.float32), None)


def run_one(options):
    """Coadd synthetic frames in this process; print what it took."""
    from astro_narrowband.coaddition import coadd

    shape = (options.shape, options.shape)
    frames = [Synthetic(k, shape) for k in range(options.frames)]
    started = time.time()
    coadd(frames, flux_scale="none", workers=options.workers)
    wall = time.time() - started
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    files = len(os.listdir("/proc/self/fd"))
    print(json.dumps({"wall": wall, "rss": rss, "files": files}))


def run_memory(options):
    print("frames  wall s  peak RSS MiB")
    for n in options.counts:
        out = subprocess.run(
            [sys.executable, __file__, "one", "--frames", str(n), "--shape", str(options.shape),
             "--workers", str(options.workers)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        found = json.loads(out.splitlines()[-1])
        print(f"{n:5d}  {found['wall']:6.1f}  {found['rss']:7.0f}", flush=True)


# --------------------------------------------------------------------------- speed


def run_speed(options):
    """Six frames in files, calibrated in advance: weigh, reject, sum, with variance and mask."""
    from astro_narrowband.coaddition import coadd, measure_frame

    rng = np.random.default_rng(3)
    n = options.shape
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for k, t in enumerate((60, 60, 120, 120, 300, 300)):
            sigma = np.sqrt(0.1 * t + 25) / t
            image = rng.standard_normal((n, n), np.float32) * np.float32(sigma)
            mask = np.zeros((n, n), np.uint8)
            mask.ravel()[rng.integers(0, n * n, n * n // 1000)] = 1
            image.ravel()[rng.integers(0, n * n, n * n // 3000)] += 3000 / t
            hdul = fits.HDUList(
                [
                    fits.PrimaryHDU(image, fits.Header({"EXPTIME": t, "BUNIT": "electron / s"})),
                    fits.ImageHDU(np.full((n, n), sigma, np.float32), name="UNCERT"),
                    fits.ImageHDU(mask, name="MASK"),
                ]
            )
            hdul["UNCERT"].header["UTYPE"] = "StdDevUncertainty"
            paths.append(Path(folder) / f"light{k}.fits")
            hdul.writeto(paths[-1])
        found = [measure_frame(p) for p in paths]
        for _ in range(options.repeat):
            started, cpu = time.time(), time.process_time()
            coadd(paths, statistics=found, flux_scale="none", workers=options.workers)
            print(
                f"{n} x {n} x 6: {time.time() - started:.2f} s wall, "
                f"{time.process_time() - cpu:.2f} s CPU",
                flush=True,
            )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, run in (
        ("pulls", run_pulls), ("memory", run_memory), ("one", run_one), ("speed", run_speed),
    ):  # fmt: skip
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--nights", type=int, default=200)
        command.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--shape", type=int, default=4096)
        command.add_argument("--workers", type=int, default=2)
        command.add_argument("--frames", type=int, default=20)
        command.add_argument("--repeat", type=int, default=3)
        command.add_argument("--counts", type=int, nargs="+", default=[20, 40, 80])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.run(options)


if __name__ == "__main__":
    main()
