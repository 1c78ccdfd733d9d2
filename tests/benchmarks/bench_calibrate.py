"""
Calibration side by side with ccdproc's steps: seconds, and peak memory of a process of its own.

Run it as ``python tests/benchmarks/bench_calibrate.py [--size 4096] [--repeat 3]``.
Both read one raw uint16 frame and calibrate it with bias, dark and flat to
electron/s with uncertainty (ours: and mask). Masters are in memory for ccdproc
and for "ours, masters in memory", and read from disk by bands for "ours, masters
on disk". Times are of the calibration alone, frames and masters loaded; the peak
is that of the whole process. "kernel" is `CalibratedFrame.read`, which leaves the
masters' noise apart, as a night's reduction does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

GAIN, READ_NOISE, EXPOSURE = 0.6, 5.0, 300.0
WAYS = ("ccdproc", "ours, masters in memory", "ours, masters on disk", "kernel")


def make(folder, size):
    """Write a raw frame, a dark model and a flat."""
    from astro_narrowband.darks import DarkModel

    rng = np.random.default_rng(1)
    shape = size, size
    bias = 300 + rng.normal(0, 1, shape).astype(np.float32)
    rate = np.abs(rng.normal(0.08, 0.002, shape)).astype(np.float32)
    rate.ravel()[rng.choice(size * size, size * size // 500)] += 8
    flat = (1 + 0.02 * rng.standard_normal(shape)).astype(np.float32)
    raw = bias + rate * EXPOSURE + 200 + rng.normal(0, 20, shape)
    raw = np.clip(np.rint(raw), 0, 65535).astype(np.uint16)
    header = fits.Header({"EXPTIME": EXPOSURE, "EGAIN": GAIN, "RDNOISE": READ_NOISE})
    CCDData(raw, unit="adu", header=header).write(folder / "light.fits")

    def master(data, error, unit, **keys):
        sigma = StdDevUncertainty(np.full(shape, error, np.float32))
        return CCDData(data, uncertainty=sigma, unit=unit, header=fits.Header(keys))

    master(flat / np.median(flat), 0.002, u.dimensionless_unscaled).write(folder / "flat.fits")
    master(bias, 2.4, u.adu).write(folder / "bias.fits")
    dark = master(bias + rate * EXPOSURE, 2.8, u.adu, EXPTIME=EXPOSURE)
    dark.write(folder / "dark.fits")
    DarkModel.from_masters(bias=folder / "bias.fits", dark=folder / "dark.fits").write(
        folder / "model.fits"
    )


def ccdproc_way(folder):
    """Return a function that does ccdproc's steps, with uncertainties."""
    import ccdproc

    raw = CCDData.read(folder / "light.fits")
    raw.data = raw.data.astype(np.float32)
    bias, dark = (CCDData.read(folder / f"{n}.fits") for n in ("bias", "dark"))
    flat = CCDData.read(folder / "flat.fits", unit=u.dimensionless_unscaled)
    dark = ccdproc.subtract_bias(dark, bias)

    def run():
        ccd = ccdproc.create_deviation(
            ccdproc.subtract_bias(raw, bias),
            gain=GAIN * u.electron / u.adu,
            readnoise=READ_NOISE * u.electron,
            disregard_nan=True,
        )
        ccd = ccdproc.subtract_dark(
            ccd, dark, exposure_time="EXPTIME", exposure_unit=u.s, scale=True
        )
        ccd = ccdproc.gain_correct(ccd, GAIN * u.electron / u.adu)
        ccd = ccdproc.flat_correct(ccd, flat)
        return ccd.divide(EXPOSURE * u.s)

    return run


def our_way(folder, way):
    """Return a function that does the same with this package."""
    from astro_narrowband.calibration import CalibratedFrame, Recipe, calibrate
    from astro_narrowband.darks import DarkModel
    from astro_narrowband.detector import Detector

    detector = Detector(GAIN, READ_NOISE)
    raw, model, flat = folder / "light.fits", folder / "model.fits", folder / "flat.fits"
    if way == "ours, masters in memory":
        raw, flat = CCDData.read(raw), CCDData.read(flat, unit=u.dimensionless_unscaled)
        model = DarkModel.from_masters(
            bias=CCDData.read(folder / "bias.fits"), dark=CCDData.read(folder / "dark.fits")
        )
    if way == "kernel":
        from astro_narrowband._engine.frames import map_bands, row_bands

        frame = CalibratedFrame(raw, Recipe.make(detector=detector, dark=model, flat=flat))

        def run():
            for _ in map_bands(frame.read, row_bands(frame.shape[0], 64)):
                pass

        return run
    return lambda: calibrate(raw, detector=detector, dark=model, flat=flat)


def child(folder, way, repeat):
    """Time one way in this process; print seconds, CPU seconds and peak MiB as JSON."""
    folder = Path(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = ccdproc_way(folder) if way == "ccdproc" else our_way(folder, way)
        seconds, cpu = [], []
        for _ in range(repeat):
            start, busy = time.perf_counter(), time.process_time()
            run()
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
    # ru_maxrss is inherited from the parent on Linux.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    middle = len(seconds) // 2
    print(json.dumps([sorted(seconds)[middle], sorted(cpu)[middle], peak]))


def main():
    """Run every way in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.repeat)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.size)
        first = None
        print(f"{'way':28s} {'seconds':>8s} {'CPU s':>8s} {'times as fast':>14s} {'peak MiB':>9s}")
        for way in WAYS:
            command = [sys.executable, __file__, "--repeat", str(options.repeat)]
            text = subprocess.run(
                [*command, "--child", folder, way], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            seconds, cpu, peak = json.loads(text.splitlines()[-1])
            first = first or seconds
            print(f"{way:28s} {seconds:8.3f} {cpu:8.3f} {first / seconds:14.1f} {peak:9.0f}")


if __name__ == "__main__":
    main()
