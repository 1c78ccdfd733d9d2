"""
Reduce a whole simulated night, side by side with Siril and ccdproc.

::

    python tests/benchmarks/bench_night.py NIGHT [--with floor ours siril ccdproc] [--repeat 3]

NIGHT is a folder from ``astro-narrowband simulate``, with 12 bias, 10 darks each of 60 and
120 s, 10 flats and 6 lights in each filter; 4096 x 4096 and three filters is what the figures
in the documentation are for. Whole processes are timed, start-up included; the page cache is
warmed first. ``floor`` reads every raw frame once into float32 and writes as many planes as
the products hold. Siril does all filters with clipped stacks, dark optimisation and a
weighted, clipped coadd; ccdproc does the first filter: clipped masters, ``ccd_process`` with
uncertainties, astroalign, weighted average.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def timed(command, **keywords):
    """Run a command; return wall [s], CPU [s] and its peak RSS [MiB]."""
    started = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **keywords)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[0]} ended with {child.returncode}")
    return time.time() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def raw_files(night):
    """The raw frames by kind; flats and lights by filter."""
    found = {kind: sorted((night / kind).glob("*.fits")) for kind in ("bias", "dark")}
    for kind in ("flat", "light"):
        found[kind] = {p.name: sorted(p.glob("*.fits")) for p in sorted((night / kind).iterdir())}
    return found


# --------------------------------------------------------------------------- the floor


def floor(night, out):
    """Every raw frame into float32, one after the other, and the planes of the products."""
    from astro_narrowband._engine.frames import FitsFrame, row_bands

    plane = None
    for path in sorted(night.rglob("*.fits")):
        if "truth" in path.parts:
            continue
        frame = FitsFrame(path)
        plane = np.empty(frame.shape, np.float32) if plane is None else plane
        for rows in row_bands(frame.shape[0], 64):
            plane[rows] = frame.read(rows).data
    n_filters = len(raw_files(night)["light"])
    # Bias, dark model and, for each filter, flat and coadd: their float32 planes and masks.
    for k in range(2 + 6 + 5 * n_filters):
        plane.tofile(out / f"{k}.bin")


# --------------------------------------------------------------------------- Siril


def siril(night, out):
    """Write the script of a night and run it."""
    files = raw_files(night)
    lines = ["requires 1.0.0", "setext fits"]

    def sequence(name, paths, *steps):
        folder = out / name
        folder.mkdir()
        for k, path in enumerate(paths, 1):
            (folder / f"{name}_{k:05d}.fits").symlink_to(path.resolve())
        lines.extend([f"cd {folder}", *steps])

    sequence("bias", files["bias"], f"stack bias rej 3 3 -nonorm -out={out}/master_bias")
    long = [p for p in files["dark"] if "120s" in p.name] or files["dark"]
    sequence("dark", long, f"stack dark rej 3 3 -nonorm -out={out}/master_dark")
    for name in files["light"]:
        sequence(
            f"flat{name}", files["flat"][name],
            f"preprocess flat{name} -bias={out}/master_bias",
            f"stack pp_flat{name} rej 3 3 -norm=mul -out={out}/master_flat_{name}",
        )  # fmt: skip
        sequence(
            f"light{name}", files["light"][name],
            f"preprocess light{name} -bias={out}/master_bias -dark={out}/master_dark "
            f"-flat={out}/master_flat_{name} -opt",
            f"register pp_light{name}",
            f"stack r_pp_light{name} rej 3 3 -norm=addscale -weighted "
            f"-out={out}/coadd_{name}",
        )  # fmt: skip
    script = out / "night.ssf"
    script.write_text("\n".join([*lines, "close", ""]))
    return [shutil.which("siril-cli"), "-d", str(out), "-s", str(script)]


# --------------------------------------------------------------------------- ccdproc


def with_ccdproc(night, out):
    """One filter with ccdproc and astroalign, as its guide does it, with uncertainties."""
    import astroalign
    import ccdproc
    from astropy import units as u
    from astropy.nddata import CCDData, StdDevUncertainty
    from astropy.stats import mad_std

    files = raw_files(night)
    clip = {
        "method": "average", "sigma_clip": True, "sigma_clip_low_thresh": 5,
        "sigma_clip_high_thresh": 5, "sigma_clip_func": "median", "sigma_clip_dev_func": "mad_std",
        "mem_limit": 2e9, "dtype": "float32", "unit": "adu",
    }  # fmt: skip
    bias = ccdproc.combine([str(p) for p in files["bias"]], **clip)
    long = [str(p) for p in files["dark"] if "120s" in p.name]
    dark = ccdproc.subtract_bias(ccdproc.combine(long, **clip), bias)
    name = next(iter(files["light"]))
    flats = [ccdproc.subtract_bias(CCDData.read(p, unit="adu"), bias) for p in files["flat"][name]]
    del clip["unit"]
    flat = ccdproc.combine(flats, scale=lambda a: 1 / np.ma.median(a), **clip)
    images, reference = [], None
    for path in files["light"][name]:
        ccd = CCDData.read(path, unit="adu")
        t = ccd.header["EXPTIME"] * u.s
        ccd = ccdproc.subtract_bias(ccd, bias)
        ccd = ccdproc.create_deviation(
            ccd, gain=0.6 * u.electron / u.adu, readnoise=5 * u.electron, disregard_nan=True
        )
        ccd = ccdproc.subtract_dark(ccd, dark, dark_exposure=120 * u.s, data_exposure=t, scale=True)
        ccd = ccdproc.gain_correct(ccd, 0.6 * u.electron / u.adu)
        ccd = ccdproc.flat_correct(ccd, flat).divide(t)
        image = np.asarray(ccd.data, np.float32)
        if reference is None:
            reference = image
        else:
            transform, _ = astroalign.find_transform(image, reference, detection_sigma=5)
            image, lost = astroalign.apply_transform(transform, image, reference)
            image[lost] = np.nan
        images.append(CCDData(image, unit="electron/s", mask=~np.isfinite(image),
                              uncertainty=StdDevUncertainty(ccd.uncertainty.array)))  # fmt: skip
    combiner = ccdproc.Combiner(images, dtype="float32")
    combiner.sigma_clipping(low_thresh=4, high_thresh=4, func="median", dev_func=mad_std)
    combiner.weights = np.array([1 / np.nanmedian(i.uncertainty.array) ** 2 for i in images])
    combiner.average_combine().write(out / "coadd.fits")


# --------------------------------------------------------------------------- all of them


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("night", type=Path)
    parser.add_argument("--with", dest="who", nargs="+", default=["floor", "ours", "siril"])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path, help="existing folder for the products")
    parser.add_argument("--inside", choices=["floor", "ccdproc"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        {"floor": floor, "ccdproc": with_ccdproc}[options.inside](options.night, options.out)
        return
    for path in options.night.rglob("*.fits"):
        path.read_bytes()
    found = {}
    for _ in range(options.repeat):
        for who in options.who:
            with tempfile.TemporaryDirectory(dir=options.out) as folder:
                out = Path(folder)
                if who == "ours":
                    command = [
                        sys.executable, "-m", "astro_narrowband", "reduce", str(options.night),
                        "-o", str(out / "reduced"), "--quiet",
                    ]  # fmt: skip
                elif who == "siril":
                    command = siril(options.night, out)
                else:
                    command = [
                        sys.executable, __file__, str(options.night), "--inside", who,
                        "--out", str(out),
                    ]  # fmt: skip
                found.setdefault(who, []).append(timed(command, stderr=subprocess.DEVNULL))
                wall, cpu, rss = found[who][-1]
                print(f"{who:8s} {wall:7.1f} s wall {cpu:7.1f} s CPU {rss:6.0f} MiB", flush=True)
    medians = {who: float(np.median([r[0] for r in runs])) for who, runs in found.items()}
    if "ours" in medians:
        for who, wall in medians.items():
            print(f"ours takes {medians['ours'] / wall:.3f} of {who}")
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
