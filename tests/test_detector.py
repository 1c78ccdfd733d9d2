"""Gain, read noise and saturation: who is believed, and what is measured."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband.detector import (
    Detector,
    confront_detector,
    decide_detector,
    gain_of_lights,
    measure_saturation,
)
from astro_narrowband.exceptions import InputError


def test_user_before_header_before_measurement(make_camera):
    camera = make_camera(shape=(128, 128))
    flats, biases = camera.flats(4), camera.biases(4)
    header = fits.Header({"EGAIN": 0.7, "GAIN": 139, "RDNOISE": 4.0})
    both = {"flats": flats, "biases": biases}
    assert decide_detector(header, gain=1.5 * u.electron / u.adu, **both).gain == 1.5
    found = decide_detector(header, **both)
    assert (found.gain, found.read_noise) == (0.7, 4.0)
    assert found.sources["gain"] == "header, EGAIN"
    measured = decide_detector(fits.Header({"GAIN": 139}), **both)
    assert measured.gain == pytest.approx(0.6, abs=0.01)
    assert measured.sources["gain"] == "measured from 4 flats and 4 biases"
    assert measured.gain_err > 0
    # Each value is decided for itself.
    mixed = decide_detector(fits.Header({"RDNOISE": 4.0}), **both)
    assert mixed.read_noise == 4.0
    assert mixed.sources["read_noise"] == "header, RDNOISE"
    assert mixed.gain == measured.gain


@pytest.mark.parametrize(
    "cards", [{"GAIN": 180}, {"GAIN": 360}, {"GAIN": 0}, {"EGAIN": 0.0}, {"EGAIN": -1.0}, {}]
)
def test_what_is_no_gain_is_refused(cards):
    header = fits.Header({**cards, "RDNOISE": 5.0})
    with pytest.raises(InputError, match=r"(?i)gain"):
        decide_detector(header)


def test_text_in_read_noise_is_refused():
    with pytest.raises(InputError, match=r"RDNOISE|read noise"):
        decide_detector(fits.Header({"EGAIN": 0.6, "RDNOISE": "low"}))


def test_inverted_gain_is_told_apart_by_its_unit():
    with pytest.raises(InputError, match=r"gain.*electron / adu.*inverse is 0.6 electron/adu"):
        decide_detector(fits.Header({"RDNOISE": 5.0}), gain=1 / 0.6 * u.adu / u.electron)
    with pytest.raises(InputError, match=r"gain = 0\.6 has no unit"):
        decide_detector(fits.Header({"RDNOISE": 5.0}), gain=0.6)


@pytest.mark.parametrize("values", [(0.0, 5.0), (-1.0, 5.0), (np.nan, 5.0), (0.6, -1.0)])
def test_values_that_no_camera_has(values):
    with pytest.raises(InputError):
        Detector(*values)


def test_measurement_is_right_and_its_error_true(make_camera):
    pulls = []
    for seed in range(25):
        camera = make_camera(seed, shape=(96, 128))
        # Different exposure times and lamps; the bias drifts by 15 adu.
        flats = [camera.frame(5, light) for light in (18000, 19500, 15000, 21000)]
        biases = [camera.frame(offset=offset) for offset in (0, 15, 3, -4)]
        found = Detector.measure(flats, biases)
        pulls.append(
            [
                (found.gain - 0.6) / found.gain_err,
                (found.read_noise - 5) / found.read_noise_err,
            ]
        )
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < 0.6
    assert np.all(np.abs(pulls.std(axis=0) - 1) < 0.45)


def test_a_few_rows_tell_the_gain_of_a_large_frame(make_camera):
    camera = make_camera(shape=(256, 256))
    found = Detector.measure(camera.flats(2), camera.biases(2), sample=1 << 13)
    whole = Detector.measure(camera.flats(2), camera.biases(2))
    assert whole.gain_err < found.gain_err < 0.03
    assert abs(found.gain - 0.6) < 5 * found.gain_err


def test_lamp_that_flickers_under_a_rolling_shutter(make_camera):
    camera = make_camera(shape=(128, 128))
    wave = np.arange(128)[:, None] / 7
    flats = [camera.frame(0, 20000 * (1 + 0.15 * np.sin(wave + phase))) for phase in (0, 1, 2, 3)]
    assert Detector.measure(flats, camera.biases(4)).gain == pytest.approx(0.6, rel=0.02)


def test_hot_pixels_and_saturation_do_not_count(make_camera):
    camera = make_camera(shape=(128, 128))
    flats = camera.flats(4)
    for flat in flats:
        flat.data.ravel()[::97] = 65535
    found = Detector.measure(flats, camera.biases(4), saturation=65000)
    assert found.gain == pytest.approx(0.6, rel=0.02)
    assert found.saturation == 65000


def test_read_noise_needs_no_flats_and_darks_stand_for_biases(make_camera):
    camera = make_camera(shape=(128, 128))
    header, biases, darks = fits.Header({"EGAIN": 0.6}), camera.biases(4), camera.darks(5.0, n=4)
    alone = decide_detector(header, biases=biases)
    assert alone.read_noise == pytest.approx(5, abs=4 * alone.read_noise_err)
    assert alone.sources["read_noise"] == "measured from 4 biases"
    both = decide_detector(fits.Header({"GAIN": 100}), flats=camera.flats(4), darks=darks)
    assert both.gain == pytest.approx(0.6, abs=4 * both.gain_err)
    assert both.read_noise == pytest.approx(5, abs=0.3)
    assert both.sources["gain"] == "measured from 4 flats and 4 darks"


def test_lights_and_a_master_tell_the_read_noise_flats_and_a_master_the_gain(make_camera):
    camera = make_camera(shape=(200, 200))
    master = CCDData(camera.bias.astype("f4"), unit="adu")
    lights = [camera.frame(60.0, 100.0) for _ in range(2)]
    header = fits.Header({"EGAIN": 0.6})
    found = decide_detector(header, biases=[master], lights=lights)
    assert found.read_noise == pytest.approx(5, abs=0.5)
    given = {"read_noise": 5 * u.electron}
    gain = decide_detector(fits.Header(), flats=camera.flats(4), biases=[master], **given)
    assert gain.gain == pytest.approx(0.6, abs=4 * gain.gain_err)
    with pytest.raises(InputError, match="--read-noise"):
        decide_detector(header, biases=[master], lights=lights[:1])


def test_colours_of_the_sky_tell_the_gain_and_an_even_sky_is_silent(make_camera):
    pulls = []
    sky = np.where(np.indices((200, 256)).sum(axis=0) % 2, 300.0, 2000.0)
    sky[20:26, 30:36] += 4000.0
    for seed in range(25):
        camera = make_camera(seed, shape=sky.shape)
        found = gain_of_lights([camera.frame(30.0, sky) for _ in range(4)])
        pulls.append((found["gain"] - 0.6) / found["gain_err"])
        assert found["gain"] == pytest.approx(0.6, rel=0.15)
    assert np.std(pulls) < 1.6
    assert gain_of_lights([camera.frame(30.0, 300.0) for _ in range(4)]) == {}


def test_what_cannot_be_measured_says_so(make_camera):
    camera = make_camera()
    with pytest.raises(InputError, match=r"1 flat\(s\) and 3 bias"):
        Detector.measure(camera.flats(1), camera.biases(3))
    with pytest.raises(InputError, match="gain cannot be measured"):
        Detector.measure(camera.biases(2), camera.biases(2))
    small = make_camera(shape=(16, 16))
    with pytest.raises(InputError, match="too small"):
        Detector.measure(small.flats(2), small.biases(2))


def test_real_arcsat_night(real_data):
    folder = real_data / "arcsat-eagle-halpha" / "data"
    found = Detector.measure(sorted(folder.glob("domeflat*")), sorted(folder.glob("Bias*")))
    assert found.gain == pytest.approx(1.328, rel=0.01)
    assert found.read_noise == pytest.approx(16.5, rel=0.05)


def test_real_cmos_flats_of_a_flickering_lamp(real_data):
    folder = real_data / "zwo-asi120-darkseries"
    biases = sorted((folder / "Bias").glob("*.fit"))
    flats = sorted((folder / "Flat").glob("*.fit"))
    found = [Detector.measure([flats[i], flats[j]], biases).gain for i, j in ((0, 1), (2, 3))]
    # One scale for each frame gives 0.06 and 0.09.
    assert found == pytest.approx([0.236, 0.237], rel=0.02)


def star_field(rng, *, highest, shape=(256, 256)):
    """Stars of all brightnesses, the brightest of ``highest`` [adu]."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, 300 + rng.uniform(20, 8000))
    fwhm = rng.uniform(2, 7)
    for peak in highest * 10 ** -rng.uniform(0, 3, 40):
        r2 = (y - rng.uniform(0, shape[0])) ** 2 + (x - rng.uniform(0, shape[1])) ** 2
        image += peak * (1 + 4 * 0.26 * r2 / fwhm**2) ** -3
    return image


def exposed(rng, image, gain, *, well=np.inf, soft=0, step=1, adc=65535):
    light = rng.poisson(image * gain) / gain
    hot = rng.choice(image.size, 50, replace=False)
    light.ravel()[hot] += rng.exponential(8000, 50)
    light = np.minimum(light, well + soft * rng.standard_normal(image.shape))
    light += 5 / gain * rng.standard_normal(image.shape)
    return CCDData(np.clip(np.rint(light / step), 0, adc // step) * step, unit="adu")


@pytest.mark.parametrize(
    ("camera", "full"),
    [
        ({"well": 45000}, 45000),
        ({"well": 45000, "soft": 50}, 45000),
        ({"well": 45000, "step": 16}, 45000),
        ({"well": 50000, "step": 4, "soft": 30}, 50000),
        ({"adc": 4095}, 4095),
        ({"adc": 16383}, 16383),
    ],
)
def test_full_pixels_show_the_saturation(camera, full):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        image, gain = star_field(rng, highest=300000), rng.uniform(0.2, 3)
        level = measure_saturation([exposed(rng, image, gain, **camera)] * 2, gain=gain)
        soft = np.hypot(camera.get("soft", 0), 5 / gain) + camera.get("step", 1)
        assert full - 6 * soft - 0.002 * full < level < full + 16
        # Flats that are full in the middle only, or nearly everywhere.
        y, x = np.mgrid[-1:1:200j, -1:1:200j]
        flat = full * rng.uniform(1.02, 1.3) * (1 - 0.3 * (x * x + y * y))
        level = measure_saturation([exposed(rng, flat, 1.0, **camera)], gain=1.0)
        if full > 20000:
            assert full - 6 * np.hypot(camera.get("soft", 0), 6) - 0.002 * full < level < full + 16


def test_no_saturation_is_made_up():
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        gain = rng.uniform(0.2, 4)
        stars = star_field(rng, highest=rng.uniform(10000, 62000) - 9000, shape=(128, 128))
        stars = np.minimum(stars, 64500)
        lights = [exposed(rng, stars, gain, adc=10**6) for _ in range(2)]
        level = rng.uniform(1000, 60000)
        flat = level * (1 - rng.uniform(0, 0.3) * (x * x + y * y))
        assert measure_saturation(lights, gain=gain) is None
        assert measure_saturation([exposed(rng, flat, gain, adc=10**6)], gain=gain) is None
        assert measure_saturation([exposed(rng, np.full_like(flat, level), gain)]) is None


def test_measured_saturation_stands_behind_user_and_header():
    rng = np.random.default_rng(3)
    light = exposed(rng, star_field(rng, highest=300000), 1.0, well=45000)
    header = fits.Header({"EGAIN": 1.0, "RDNOISE": 5.0})
    found = decide_detector(header, lights=[light])
    assert found.saturation == pytest.approx(45000, rel=0.002)
    assert found.sources["saturation"] == "measured from full pixels"
    assert decide_detector(header).saturation == 65504
    header["SATURATE"] = 40000
    assert decide_detector(header, lights=[light]).saturation == 40000


@pytest.mark.parametrize("wrong", [0.7, 1.4, 3.0])
@pytest.mark.parametrize("what", ["gain", "read_noise"])
def test_a_header_that_flats_and_biases_contradict_is_not_believed(wrong, what):
    measured = Detector(0.6, 5.0, gain_err=0.003, read_noise_err=0.03)
    stated = {"gain": 0.6, "read_noise": 5.0}
    stated[what] *= wrong
    sources = {"gain": "header, EGAIN", "read_noise": "header, RDNOISE"}
    camera, said = confront_detector(Detector(**stated, sources=sources), measured)
    assert camera.gain == pytest.approx(0.6)
    assert camera.read_noise == pytest.approx(5.0)
    assert "the measured one is used" in said[0]
    given, said = confront_detector(
        Detector(**stated, sources={"gain": "given", "read_noise": "given"}), measured
    )
    assert getattr(given, what) == stated[what]
    assert said
    assert "check it" in said[0]


def test_a_header_that_is_right_is_left_alone():
    measured = Detector(0.61, 5.1, gain_err=0.01, read_noise_err=0.1)
    stated = Detector(0.6, 5.0, sources={"gain": "header", "read_noise": "header"})
    assert confront_detector(stated, measured) == (stated, [])


def test_a_pile_that_another_frame_goes_beyond_is_not_full():
    rng = np.random.default_rng(4)
    image = star_field(rng, highest=300000)
    dimmed = exposed(rng, image, 1.0, well=5000)
    assert measure_saturation([dimmed], gain=1.0) == pytest.approx(5000, rel=0.01)
    assert measure_saturation([dimmed, exposed(rng, image / 9, 1.0)], gain=1.0) is None
