"""What the notebook that this package replaces got wrong, with its numbers."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband._engine.headers import read_exposure
from astro_narrowband.calibration import calibrate
from astro_narrowband.darks import DarkModel
from astro_narrowband.exceptions import CalibrationError, InputError
from astro_narrowband.masters import master_bias
from astro_narrowband.night.table import FrameTable


@pytest.fixture(scope="module")
def night(make_camera):
    camera = make_camera(30, n_hot=0)
    biases, darks = camera.biases(), camera.darks(120)
    raw = np.mean([d.data.astype(np.float32) for d in darks], axis=0)
    dark = CCDData(raw, unit="adu", header=fits.Header({"EXPTIME": 120.0}))
    return camera, master_bias(biases), dark, DarkModel.fit(darks, bias=biases)


def test_bias_is_subtracted_once(night):
    # science - bias - dark, with a dark that holds the bias: 300 adu too low.
    camera, bias, dark, model = night
    light = camera.frame(120, 600, flat=False)
    rate = 600 / 120
    notebook = light.data.astype(float) - bias.data - dark.data
    assert np.median(notebook) * 0.6 / 120 == pytest.approx(rate - 300 * 0.6 / 120, abs=0.05)
    both = calibrate(light, bias=bias, dark=dark)
    assert np.median(both.data) == pytest.approx(rate, abs=0.05)
    fitted = calibrate(light, bias=bias, dark=model)
    assert np.median(fitted.data) == pytest.approx(rate, abs=0.05)
    light.header["BIASSUB"] = True
    with pytest.raises(CalibrationError, match="bias subtracted before"):
        calibrate(light, dark=model)


def test_gain_multiplies(night):
    # Divided by a gain in electron/adu, fluxes are 1 / 0.6**2 = 2.78 times too high.
    camera, _, _, model = night
    light = camera.frame(120, 600, flat=False)
    right = calibrate(light, dark=model, gain=0.6 * u.electron / u.adu)
    assert np.median(right.data) == pytest.approx(5, rel=0.01)
    adu = np.median(light.data - model.at(120).data)
    assert adu / 0.6 / 120 / np.median(right.data) == pytest.approx(1 / 0.36, rel=0.01)
    with pytest.raises(InputError, match="electron / adu"):
        calibrate(light, dark=model, gain=1 / 0.6 * u.adu / u.electron)


def test_160_seconds_are_not_60(night, tmp_path):
    # glob("*dark*60*") takes both files for darks of 60 s.
    camera = night[0]
    for name, t in (("dark_60s", 60), ("dark_160s", 160)):
        camera.frame(t, IMAGETYP="Dark Frame").write(tmp_path / f"{name}.fits")
    assert len(list(tmp_path.glob("*dark*60*"))) == 2
    exposures = {p.name: read_exposure(fits.getheader(p)) for p in sorted(tmp_path.glob("*.fits"))}
    assert exposures == {"dark_160s.fits": 160.0, "dark_60s.fits": 60.0}
    table = FrameTable.from_paths([tmp_path])
    assert sorted(row.exposure for row in table) == [60.0, 160.0]
    model = DarkModel.fit(sorted(tmp_path.glob("*.fits")), bias=camera.biases(3))
    assert (model.exposures, model.n_frames) == ((60.0, 160.0), (1, 1))
