"""
Photometry and growth curves beside photutils and sep, on one image.

Run as ``python tests/benchmarks/bench_photometry.py``; seconds of wall clock and
of processor, the best of a few runs taken in turn.
"""

import argparse
import time

import numpy as np
import sep
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.stats import SigmaClip
from photutils.aperture import (
    ApertureStats,
    CircularAnnulus,
    CircularAperture,
    aperture_photometry,
)
from photutils.profiles import CurveOfGrowth

from astro_narrowband.photometry import annulus_photometry, growth_curves


def timed(function):
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(title, works, runs):
    """Time functions in turn and print the best of each, over the first."""
    best = dict.fromkeys(works, (np.inf, np.inf))
    for _ in range(runs):
        for name, function in works.items():
            best[name] = tuple(np.minimum(best[name], timed(function)))
    print(f"\n{title}")
    first = next(iter(best.values()))
    for name, (wall, processor) in best.items():
        print(f"  {name:52s} {wall:7.3f} s wall  {processor:7.3f} s cpu  x {wall / first[0]:5.2f}")


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    shape = (options.size, options.size)
    data = rng.normal(100, 10, shape).astype(np.float32)
    error = np.full(shape, 10, np.float32)
    ccd = CCDData(data, unit="electron", uncertainty=StdDevUncertainty(error, copy=False))
    quick = CCDData(data, unit="electron")

    xy = rng.uniform(40, options.size - 40, (1000, 2))
    x, y = xy.T
    radii = np.arange(1.0, 26.0)
    annulus = {"r_in": 26, "r_out": 34}

    def photutils_curves():
        for position in xy:
            curve = CurveOfGrowth(data, position, radii, error=error)
            _ = curve.profile, curve.profile_error

    compare(
        f"growth curves of 1000 stars x 25 radii, {options.size} x {options.size}",
        {
            "growth_curves, sky and errors": lambda: growth_curves(ccd, xy, radii, **annulus),
            "growth_curves, no sky, errors": lambda: growth_curves(ccd, xy, radii, sky=0),
            "growth_curves, no sky, no uncertainty": lambda: growth_curves(quick, xy, radii, sky=0),
            "photutils CurveOfGrowth, errors": photutils_curves,
            "photutils aperture_photometry, 25 apertures, errors": lambda: aperture_photometry(
                data, [CircularAperture(xy, r=r) for r in radii], error=error
            ),
            "sep.sum_circle, exact, errors": lambda: [
                sep.sum_circle(data, x, y, r, err=error, subpix=0) for r in radii
            ],
            "sep.sum_circle, exact": lambda: [
                sep.sum_circle(data, x, y, r, subpix=0) for r in radii
            ],
        },
        options.runs,
    )
    xy = rng.uniform(40, options.size - 40, (10_000, 2))
    x, y = xy.T
    compare(
        "aperture photometry of 10,000 stars, r = 5, annulus 10 to 15",
        {
            "annulus_photometry, sky and errors": lambda: annulus_photometry(
                ccd, xy, r=5, r_in=10, r_out=15
            ),
            "annulus_photometry, no sky, errors": lambda: annulus_photometry(ccd, xy, r=5, sky=0),
            "photutils aperture_photometry, no sky, errors": lambda: aperture_photometry(
                data, CircularAperture(xy, r=5), error=error
            ),
            "photutils ApertureStats, the sky alone": lambda: (
                ApertureStats(
                    data, CircularAnnulus(xy, r_in=10, r_out=15), sigma_clip=SigmaClip(3)
                ).mean
            ),
            "sep.sum_circle, no sky, errors": lambda: sep.sum_circle(
                data, x, y, 5, err=error, subpix=0
            ),
        },
        options.runs,
    )


if __name__ == "__main__":
    main()
