"""The error that all fluxes of an image share: a measured gain, the flux scales of frames."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband.calibration import calibrate
from astro_narrowband.coaddition import coadd
from astro_narrowband.detector import Detector
from astro_narrowband.photometry import annulus_photometry
from astro_narrowband.simulate._sky import add_stars


def test_error_of_a_measured_gain_goes_along(rng):
    raws = [
        CCDData(
            rng.poisson(1000.0, (60, 60)).astype(float),
            unit="adu",
            meta=fits.Header({"EXPTIME": 10.0}),
        )
        for _ in range(3)
    ]
    measured = Detector(gain=0.5, read_noise=4.0, gain_err=0.01)
    frames = [calibrate(raw, detector=measured) for raw in raws]
    assert frames[0].header["GAINERR"] == frames[0].header["FLUXERR"] == pytest.approx(0.02)
    made = coadd(frames, flux_scale="none")
    # One camera: three frames do not make it smaller.
    assert made.ccd.header["FLUXERR"] == pytest.approx(0.02)
    table = annulus_photometry(made, [(30, 30)], r=4, r_in=8, r_out=14)
    np.testing.assert_allclose(table["flux_err_common"], 0.02 * np.abs(table["flux"]))
    given = calibrate(raws[0], detector=Detector(gain=0.5, read_noise=4.0))
    assert "GAINERR" not in given.header
    assert "FLUXERR" not in given.header
    assert "flux_err_common" not in annulus_photometry(given, [(30, 30)], r=4, sky=0).colnames


def test_error_of_flux_scales_is_what_the_coadd_is_off_by():
    pulls = []
    for seed in range(30):
        rng = np.random.default_rng([seed, 14])
        grid = np.arange(20.0, 150, 30)
        x, y = (g.ravel() + rng.uniform(-3, 3, 25) for g in np.meshgrid(grid, grid))
        stars = np.zeros((160, 160))
        add_stars(stars, x, y, rng.uniform(60, 300, 25), fwhm=3.0, beta=3.5, exposure=60.0)
        true, frames = np.append(1.0, rng.uniform(0.6, 1, 7)), []
        for i, transparency in enumerate(true):
            noise = 3.0 if i == 0 else 3.5
            counts = (stars * transparency + 0.5) * 60
            data = rng.poisson(counts) + rng.normal(0, noise, counts.shape)
            frames.append(
                CCDData(
                    data / 60, unit="electron / s", meta={"EXPTIME": 60.0, "MASTERID": "none"},
                    uncertainty=VarianceUncertainty((counts + noise**2) / 3600),
                )
            )  # fmt: skip
        made = coadd(frames, reject=False)
        assert made.frames["scale_err"][0] == 0
        off = np.sum(made.frames["weight"] * (true / made.frames["scale"] - 1))
        pulls.append(off / made.ccd.header["FLUXERR"])
    assert 0.5 < np.std(pulls) < 1.2
    assert abs(np.mean(pulls)) < 0.6
