"""
Time detection, matching and resampling, and what the same work costs elsewhere.

    python tests/benchmarks/bench_register.py [--size 4096] [--repeat 3]

One frame at a time on one thread, best of the repeats. scipy's ndimage.shift
is timed on the data alone; SWarp and Siril where they are installed, whole
processes, on as many threads as they take.
"""

import argparse
import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband.registration import Alignment, align, detect_stars
from astro_narrowband.registration.match import rotation_about
from astro_narrowband.resampling import ResampledFrame


def best(function, repeat):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def night(size, n_frames, rng):
    """Frames of one field, shifted: uint16 arrays and the true shifts."""
    n_stars = round(800 * (size / 4096) ** 2)
    xy = rng.uniform(0, size, (n_stars, 2))
    flux = np.minimum(2000 / rng.random(n_stars), 5e5)
    step = np.arange(-8, 9)
    hot = rng.integers(0, size, (2, 2000))
    frames, shifts = [], []
    for _ in range(n_frames):
        shift = rng.uniform(-15, 15, 2)
        image = rng.normal(600, 8, (size, size)).astype(np.float32)
        for (x, y), f in zip(xy + shift, flux, strict=True):
            ix, iy = round(x), round(y)
            if 8 <= ix < size - 8 and 8 <= iy < size - 8:
                gx = np.exp(-((ix + step - x) ** 2) / 3.24)
                gy = np.exp(-((iy + step - y) ** 2) / 3.24)
                image[iy - 8 : iy + 9, ix - 8 : ix + 9] += f / (3.24 * math.pi) * np.outer(gy, gx)
        image[hot[0], hot[1]] += 3000
        frames.append(np.clip(image, 0, 65535).astype(np.uint16))
        shifts.append(shift)
    return frames, np.array(shifts)


def swarp(folder, image, repeat):
    """Wall seconds of SWarp's LANCZOS3 for one frame turned by 0.3 degrees."""
    size = image.shape[0]
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"] = header["CRPIX2"] = size / 2
    header["CRVAL1"], header["CRVAL2"] = 83.8, -5.4
    scale, angle = 1 / 3600, math.radians(0.3)
    header["CD1_1"], header["CD1_2"] = -scale * math.cos(angle), scale * math.sin(angle)
    header["CD2_1"], header["CD2_2"] = scale * math.sin(angle), scale * math.cos(angle)
    fits.writeto(folder / "in.fits", image.astype(np.float32), header, overwrite=True)
    command = [
        shutil.which("SWarp") or shutil.which("swarp"), "in.fits", "-RESAMPLING_TYPE", "LANCZOS3",
        "-COMBINE", "N", "-SUBTRACT_BACK", "N", "-CENTER_TYPE", "MANUAL",
        "-CENTER", "83.8,-5.4", "-IMAGE_SIZE", f"{size},{size}", "-PIXELSCALE_TYPE", "MANUAL",
        "-PIXEL_SCALE", "1.0", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET",
    ]  # fmt: skip
    return best(
        lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True), repeat
    )


def siril(folder, frames):
    """Wall seconds of Siril's register (find, match, resample, write) for all frames."""
    for k, image in enumerate(frames, 1):
        fits.writeto(folder / f"light_{k:05d}.fit", image, overwrite=True)
    script = folder / "run.ssf"
    script.write_text("requires 1.0.0\nregister light_ -noout\n")
    command = [shutil.which("siril-cli"), "-d", str(folder), "-s", str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        script.write_text("requires 1.0.0\nregister light_\n")
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    size, repeat = arguments.size, arguments.repeat
    rng = np.random.default_rng(1)
    frames, shifts = night(size, 6, rng)

    def report(what, seconds):
        print(f"{what:62s} {seconds:8.3f} s", flush=True)

    ccds = [CCDData(frame, unit="adu") for frame in frames]
    report("detect_stars, one frame", best(lambda: detect_stars(ccds[0]), repeat))
    tables = [detect_stars(ccd) for ccd in ccds]
    report("align, one pair of tables", best(lambda: align(tables[1], tables[0]), repeat))
    start = time.perf_counter()
    tables = [detect_stars(ccd) for ccd in ccds]
    found = [align(table, tables[0]) for table in tables[1:]]
    report("find and match 6 frames", time.perf_counter() - start)
    off = [np.subtract(a.shift, shifts[0] - s) for a, s in zip(found, shifts[1:], strict=True)]
    print(f"{'':4s}rms error of the shifts {np.sqrt(np.mean(np.square(off))):.4f} pix")

    data = frames[0].astype(np.float32)
    mask = rng.random(data.shape) < 1e-3
    ccd = CCDData(data, uncertainty=VarianceUncertainty(data), mask=mask, unit=u.electron)
    whole = slice(0, size)
    bands = [slice(y, min(y + 256, size)) for y in range(0, size, 256)]
    for what, alignment in (
        ("shift", Alignment.translation(0.37, -3.42)),
        ("half turn and shift", Alignment(np.array([[-1, 0, size + 0.3], [0, -1, size], [0, 0, 1]]))),
        ("rotation by 0.3 degrees", Alignment(rotation_about((size / 2, size / 2), math.radians(0.3)))),
    ):  # fmt: skip
        frame = ResampledFrame(ccd, alignment)
        seconds = best(lambda f=frame: f.read(whole), repeat)
        report(f"lanczos3 {what}: data, variance, mask; whole", seconds)
        seconds = best(lambda f=frame: [f.read(rows) for rows in bands], repeat)
        report(f"lanczos3 {what}: data, variance, mask; bands", seconds)
    from scipy import ndimage

    report(
        "scipy.ndimage.shift(order=3): data alone",
        best(lambda: ndimage.shift(data, (-3.42, 0.37), order=3), max(1, repeat - 1)),
    )
    if arguments.no_peers:
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if shutil.which("SWarp") or shutil.which("swarp"):
            report("SWarp LANCZOS3, 0.3 degrees, file to file", swarp(folder, frames[0], repeat))
        if shutil.which("siril-cli"):
            report("Siril register of 6 frames", siril(folder, frames))


if __name__ == "__main__":
    main()
