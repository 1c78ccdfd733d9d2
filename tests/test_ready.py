"""Masters and lights that were made elsewhere: what they do not say is measured."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband import calibrate
from astro_narrowband._engine.frames import MemoryFrame, as_ccd
from astro_narrowband._engine.raw import prepared, without_pedestal
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import CalibrationError, InputError
from astro_narrowband.night.run._ready import (
    MeasuredFrame,
    pixel_noise,
    ready_bias,
    ready_dark,
    ready_flat,
)

DETECTOR = Detector(gain=0.6, read_noise=5.0)
ROWS = slice(0, 64)


@pytest.fixture
def camera(make_camera):
    return make_camera(seed=4, n_hot=0)


def master(frames, *, scale=1.0, minus=0.0, **cards):
    """The mean of some frames, as another program writes it."""
    mean = np.mean([frame.data.astype(float) for frame in frames], axis=0)
    header = frames[0].header.copy()
    header.update({"NCOMBINE": len(frames), **cards})
    image = ((mean - minus) * scale).astype(np.float32)
    return MemoryFrame(CCDData(image, unit=u.adu, meta=header), name="master")


def test_noise_of_a_pixel_is_measured_on_an_uneven_image(rng):
    slope = np.linspace(0, 500, 300)
    assert pixel_noise(slope + rng.normal(0, 3, (200, 300))) == pytest.approx(3, rel=0.03)


def test_a_master_bias_has_the_noise_that_its_number_of_frames_allows(camera):
    made = ready_bias(master(camera.biases(16)), DETECTOR)
    assert made.header["BIASLEV"] == pytest.approx(300, abs=1)
    assert np.median(made.uncertainty.array) == pytest.approx(DETECTOR.noise_adu / 4, rel=0.02)
    pulls = (made.data - camera.bias) / made.uncertainty.array
    assert pulls.std() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("lost", [True, False])
def test_whether_a_master_dark_has_its_bias_is_told_by_its_level(camera, lost):
    bias = ready_bias(master(camera.biases(16)), DETECTOR)
    dark = master(camera.darks(60.0, n=16), minus=bias.data if lost else 0.0)
    model = ready_dark([dark], [60.0], bias, DETECTOR)
    assert np.median(model.values(60.0, ROWS) - camera.dark(60.0)) == pytest.approx(0, abs=0.3)
    if lost:
        with pytest.raises(CalibrationError, match="the bias was subtracted"):
            ready_dark([dark], [60.0], None, DETECTOR)


def test_lights_tell_by_their_noise_that_a_warm_master_dark_lost_its_bias(camera):
    darks, light = camera.darks(600.0, n=16), camera.frame(600.0, 30.0)
    whole, lost = master(darks), master(darks, minus=camera.bias)
    ready_dark([whole], [600.0], None, DETECTOR, light=MemoryFrame(light))
    with pytest.raises(CalibrationError, match="the bias was subtracted"):
        ready_dark([lost], [600.0], None, DETECTOR, light=MemoryFrame(light))


def test_master_darks_of_two_times_hold_the_offset(camera):
    frames = [master(camera.darks(t, n=16)) for t in (300.0, 10.0)]
    model = ready_dark(frames, [300.0, 10.0], None, DETECTOR)
    for time in (0.0, 10.0, 100.0, 300.0):
        pulls = model.values(time, ROWS) - camera.dark(time)
        pulls /= np.sqrt(model.variance(time, ROWS))
        assert pulls.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("form", ["raw mean", "calibrated", "normalised"])
def test_a_master_flat_is_flat_whatever_it_lost_before(camera, form):
    bias = ready_bias(master(camera.biases(16)), DETECTOR)
    model = ready_dark([master(camera.darks(5.0, n=16))], [5.0], bias, DETECTOR)
    minus = 0.0 if form == "raw mean" else camera.dark(5.0)
    scale = 1 / 33333 if form == "normalised" else 1.0
    frame = master(camera.flats(16, light=20000.0), minus=minus, scale=scale)
    made, note = ready_flat(frame, model, DETECTOR, 5.0)
    assert np.median(made.data) == pytest.approx(1, abs=1e-3)
    assert np.std(made.data - camera.flat) < 3e-3
    assert note == "" or form != "normalised"


def test_a_light_without_an_error_gets_that_of_its_sky_and_photons(rng):
    rate = np.full((200, 300), 4.0)
    rate[100:110, 100:110] = 400.0
    image = rng.normal(rate, np.sqrt(rate / 60 + 0.01)).astype("f4")
    header = fits.Header({"EXPTIME": 60.0})
    frame = MemoryFrame(CCDData(image, unit="electron / s", meta=header))
    variance = MeasuredFrame(frame, 60.0, None).read(slice(0, 200)).variance
    assert np.median(variance) == pytest.approx(4 / 60 + 0.01, rel=0.05)
    assert np.median(variance[100:110, 100:110]) == pytest.approx(400 / 60, rel=0.05)
    adu = MemoryFrame(CCDData(image, unit="adu", meta=header), name="light")
    with pytest.raises(InputError, match="--gain"):
        MeasuredFrame(adu, 60.0, None)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_pedestal_is_taken_off_and_full_pixels_stay_full(sign):
    image = np.full((4, 5), 1100.0, np.float32)
    image[1, 2] = 65535
    frame = MemoryFrame(CCDData(image, unit="adu", meta={"PEDESTAL": 100 * sign}))
    made = as_ccd(prepared(frame))
    assert (made.data[0] == 1000).all()
    light = CCDData(image, unit="adu", meta={"PEDESTAL": 100 * sign, "EXPTIME": 1.0})
    rate = calibrate(light, detector=Detector(1.0, 5.0, saturation=65535.0))
    assert np.argwhere(rate.mask).tolist() == [[1, 2]]
    assert "PEDESTAL" not in made.header
    assert without_pedestal(made_frame := MemoryFrame(made)) is made_frame
    with pytest.raises(InputError, match="PEDESTAL"):
        prepared(MemoryFrame(CCDData(image, unit="adu", meta={"PEDESTAL": "high"})))
