"""Products as other programs read them; each is skipped where its program is not installed."""

import shutil
import subprocess

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import Table

from astro_narrowband import annulus_photometry, coadd

PROGRAM = shutil.which("source-extractor")


def exposures(rng, n=4, size=300, seconds=60.0, read_noise=5.0):
    """Registered lights [electron/s] of the same stars, with the noise of their counts."""
    y, x = np.mgrid[:size, :size]
    rate = np.full((size, size), 2.0)
    for place_x in range(30, size, 60):
        for place_y in range(30, size, 60):
            rate += rng.uniform(5, 60) * np.exp(-((x - place_x) ** 2 + (y - place_y) ** 2) / 6)
    variance = (rate * seconds + read_noise**2) / seconds**2
    for _ in range(n):
        yield CCDData(
            rng.normal(rate, np.sqrt(variance)).astype(np.float32),
            unit="electron/s",
            uncertainty=VarianceUncertainty(variance.astype(np.float32)),
            meta={"EXPTIME": seconds, "GAIN": 100, "EGAIN": 0.25, "MASTERID": "none"},
        )


@pytest.mark.skipif(not PROGRAM, reason="source-extractor is not here")
def test_source_extractor_has_our_errors_from_the_gain_of_the_header(rng, tmp_path):
    made = coadd(list(exposures(rng)), flux_scale="none", reject=False).ccd
    header = fits.Header({"GAIN": made.header["GAIN"]})
    fits.writeto(tmp_path / "coadd.fits", made.data.astype(np.float32), header)
    (tmp_path / "columns").write_text("X_IMAGE\nY_IMAGE\nFLUX_APER(1)\nFLUXERR_APER(1)\nFLAGS\n")
    subprocess.run(  # noqa: S603
        [PROGRAM, "coadd.fits", "-c", "/dev/null", "-PARAMETERS_NAME", "columns",
         "-FILTER", "N", "-CATALOG_NAME", "out.fits", "-CATALOG_TYPE", "FITS_1.0",
         "-DETECT_THRESH", "20", "-PHOT_APERTURES", "12", "-GAIN_KEY", "GAIN", "-SATUR_LEVEL",
         "1e9", "-VERBOSE_TYPE", "QUIET"],
        check=True, cwd=tmp_path,
    )  # fmt: skip
    theirs = Table.read(tmp_path / "out.fits")
    theirs = theirs[theirs["FLAGS"] == 0]
    assert len(theirs) >= 20
    places = np.column_stack([theirs["X_IMAGE"], theirs["Y_IMAGE"]]) - 1
    ours = annulus_photometry(made, places, r=6, r_in=12, r_out=25)
    flux, error = (np.ravel(theirs[name]) for name in ("FLUX_APER", "FLUXERR_APER"))
    assert np.median(flux / ours["flux"].value) == pytest.approx(1, abs=0.01)
    assert np.median(error / ours["flux_err"].value) == pytest.approx(1, abs=0.05)
