"""Raw to electron/s: against ccdproc, float64 and Monte Carlo; what must be refused."""

import pickle
import warnings

import ccdproc
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine.frames import HeldFrame, as_ccd
from astro_narrowband.calibration import CalibratedFrame, Recipe, calibrate
from astro_narrowband.darks import DarkModel
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import CalibrationError, InputError, NarrowbandWarning
from astro_narrowband.masters import master_bias, master_flat
from astro_narrowband.noise import common_variance

ALL = slice(0, 64)


@pytest.fixture(scope="module")
def night(make_camera):
    camera = make_camera(21)
    model = DarkModel.fit(camera.darks(60, 120), bias=camera.biases())
    return camera, model, master_flat(camera.flats(), dark=model)


def test_against_ccdproc_step_by_step(night):
    camera, model, flat = night
    raw = camera.frame(120, 500)
    ours = calibrate(raw, dark=model, flat=flat)
    ccd = CCDData(raw.data.astype(float), unit="adu", header=raw.header)
    dark = model.at(120)
    dark.data = dark.data.astype(float)
    ccd = ccdproc.subtract_dark(
        ccd, dark, dark_exposure=120 * u.s, data_exposure=120 * u.s, exposure_unit=u.s
    )
    ccd = ccdproc.gain_correct(ccd, 0.6 * u.electron / u.adu)
    ccd = ccdproc.flat_correct(ccd, flat, norm_value=1)
    ccd = ccd.divide(120 * u.s)
    scale = np.median(ccd.data)
    np.testing.assert_allclose(ours.data, ccd.data, rtol=1e-6, atol=1e-6 * scale)
    assert ours.unit == ccd.unit == u.electron / u.s


def test_against_float64_by_hand(night):
    camera, model, flat = night
    raw = camera.frame(120, 500)
    raw.data[30, 30] = 20000
    recipe = Recipe.make(detector=Detector(0.6, 5.0), dark=model, flat=flat)
    frame = CalibratedFrame(raw, recipe)
    band, shared = frame.read(ALL), frame.shared(ALL)
    p = {name: np.asarray(plane, float) for name, plane in model.planes.items()}
    f, sigma_f = (np.asarray(x, float) for x in (flat.data, flat.uncertainty.array))
    e = 0.6 * (raw.data - p["offset"] - p["rate"] * 120) / f
    np.testing.assert_allclose(band.data, e / 120, rtol=2e-6, atol=2e-6)
    wide = np.pad(e, 1, "reflect")
    m = sum(wide[y : y + 64, x : x + 72] for y in range(3) for x in range(3)) - e
    m /= 8
    current = 0.6 * p["rate"] * 120
    floor = 25 + 0.36 / 12
    variance = (np.maximum(m * f + current, -np.sqrt(floor / 2)) + floor) / f**2
    far = (e - m) ** 2 > 9 * variance
    assert far[30, 30]
    assert 3 < far.sum() < 60
    variance = np.where(far, (e * f + current + floor) / f**2, variance)
    np.testing.assert_allclose(band.variance, variance / 120**2, rtol=2e-6)
    dark = p["var_offset"] + 240 * p["cov"] + 120**2 * p["var_rate"]
    common = dark * (0.6 / 120 / f) ** 2 + (e / 120 * sigma_f / f) ** 2
    var_offset, cov, var_rate, var_flat = frame.master_noise(ALL)
    parts = var_offset / 120**2 + 2 * cov / 120 + var_rate + (e / 120) ** 2 * var_flat
    np.testing.assert_allclose(parts, common, rtol=1e-4)
    np.testing.assert_allclose((shared**2).sum(axis=0), common, rtol=1e-4)
    total = calibrate(raw, detector=recipe.detector, dark=model, flat=flat)
    np.testing.assert_allclose(
        total.uncertainty.array, np.sqrt(variance / 120**2 + common), rtol=1e-5
    )


def test_bands_workers_and_files_give_the_same_bits(night, tmp_path):
    camera, model, flat = night
    raw = camera.frame(120, 50)
    raw.data[5:8, 3] = 65535
    raw.data[31:33, 70:] = 65535
    raw.write(tmp_path / "light.fits")
    model.write(tmp_path / "dark.fits")
    flat.write(tmp_path / "flat.fits")
    detector = Detector(0.6, 5.0)
    memory = CalibratedFrame(raw, Recipe.make(detector=detector, dark=model, flat=flat))
    recipe = Recipe.make(
        detector=detector, dark=tmp_path / "dark.fits", flat=tmp_path / "flat.fits"
    )
    disk = pickle.loads(pickle.dumps(CalibratedFrame(tmp_path / "light.fits", recipe)))  # noqa: S301
    whole = memory.read(ALL)
    for step in (1, 7, 64):
        rows = [slice(y, min(y + step, 64)) for y in range(0, 64, step)]
        for frame in (memory, disk):
            parts = [frame.read(r) for r in rows]
            for k in range(3):
                np.testing.assert_array_equal(np.concatenate([p[k] for p in parts]), whole[k])
    for plane, there in zip(HeldFrame(disk).read(ALL), whole, strict=True):
        np.testing.assert_array_equal(plane, there)
    assert disk.masters == CalibratedFrame(tmp_path / "light.fits", recipe).masters
    one = calibrate(raw, detector=detector, dark=model, flat=flat, workers=1)
    two = calibrate(tmp_path / "light.fits", detector=detector, dark=model, flat=flat, workers=2)
    np.testing.assert_array_equal(one.data, two.data)
    np.testing.assert_array_equal(one.uncertainty.array, two.uncertainty.array)
    np.testing.assert_array_equal(as_ccd(memory).data, one.data)


def test_saturated_nan_and_flagged_pixels_are_masked_and_harm_no_neighbour(night):
    camera, model, flat = night
    flat = flat.copy()
    flat.data[40, 40], flat.data[41, 50] = np.nan, 0
    flat.mask[42, 60] = True
    raw = camera.frame(120, 100)
    clean = calibrate(raw, dark=model, flat=flat)
    data = raw.data.astype(np.float32)
    data[10, 10], data[20, 20], data[0, 0] = 65535, np.nan, np.inf
    result = calibrate(CCDData(data, unit="adu", header=raw.header), dark=model, flat=flat)
    expected = np.zeros(raw.shape, bool)
    expected[[10, 20, 0, 40, 41, 42], [10, 20, 0, 40, 50, 60]] = True
    expected |= model.mask(ALL)
    np.testing.assert_array_equal(result.mask, expected)
    good = ~result.mask
    np.testing.assert_array_equal(result.data[good], clean.data[good])
    assert np.isfinite(result.uncertainty.array[good]).all()
    ratio = (result.uncertainty.array / clean.uncertainty.array)[good]
    assert np.abs(ratio - 1).max() < 0.2
    level = calibrate(raw, dark=model, flat=flat, saturation=500 * u.adu)
    assert level.mask.mean() > 0.1


def test_uint16_never_wraps(night):
    camera, model, flat = night
    raw = camera.frame(120, 0)
    raw.data[...] = 100  # below the bias
    result = calibrate(raw, dark=model, flat=flat)
    assert result.data.max() < 0
    assert raw.data.dtype == np.uint16
    assert (raw.data == 100).all()


@pytest.mark.parametrize("key", ["BIASSUB", "DARKSUB", "FLATCOR", "GAINCOR", "EXPNORM"])
def test_nothing_is_done_twice(night, key):
    camera, model, flat = night
    raw = camera.frame(120, 100)
    raw.header[key] = True
    with pytest.raises(CalibrationError, match=f"{key} = True"):
        calibrate(raw, dark=model, flat=flat)
    raw.header[key] = False
    result = calibrate(raw, dark=model, flat=flat)
    assert result.header[key] is True
    again = CCDData(result.data, unit="adu", header=result.header)
    with pytest.raises(CalibrationError, match="would be twice"):
        calibrate(again, dark=model, flat=flat)


def test_what_ccdproc_did_is_seen(night):
    camera, model, flat = night
    raw = camera.frame(120, 100)
    raw.data = raw.data.astype(float)
    done = ccdproc.subtract_bias(raw, CCDData(camera.bias, unit="adu"))
    with pytest.raises(CalibrationError, match=r"SUBBIAS|BIASSUB"):
        calibrate(done, dark=model, flat=flat)


def test_units_are_not_guessed(night):
    camera, model, flat = night
    raw = camera.frame(120, 100)
    with pytest.raises(InputError, match=r"inverse is 0\.6"):
        calibrate(raw, dark=model, flat=flat, gain=u.adu / u.electron / 0.6)
    with pytest.raises(InputError, match="has no unit"):
        calibrate(raw, dark=model, gain=0.6)
    with pytest.raises(InputError, match="must be in adu"):
        calibrate(CCDData(raw.data, unit="electron", header=raw.header), dark=model)
    with pytest.raises(InputError, match="dimensionless"):
        calibrate(raw, dark=model, flat=CCDData(flat.data, unit="adu"))
    with pytest.raises(InputError, match="must be in adu"):
        calibrate(raw, bias=CCDData(camera.bias, unit="electron"))
    with pytest.raises(InputError, match="read_noise"):
        calibrate(raw, dark=model, read_noise=5 * u.adu)


@pytest.mark.parametrize("value", [0.0, -1.0, "soon", None])
def test_exposure_time_of_a_light(night, value):
    camera, model, _ = night
    raw = camera.frame(120, 100)
    if value is None:
        del raw.header["EXPTIME"]
    else:
        raw.header["EXPTIME"] = value
    with pytest.raises(InputError, match=r"EXPTIME|exposure"):
        calibrate(raw, dark=model)
    result = calibrate(raw, dark=model, exposure=2 * u.min)
    assert result.header["EXPTIME"] == 120


@pytest.mark.parametrize(
    ("light", "dark"),
    [({"XBINNING": 2, "YBINNING": 2}, {"XBINNING": 1, "YBINNING": 1}),
     ({"GAIN": 100}, {"GAIN": 0}),
     ({"READOUTM": "fast"}, {"READOUTM": "slow"}),
     ({"XORGSUBF": 16, "YORGSUBF": 0}, {"XORGSUBF": 0, "YORGSUBF": 0})],
)  # fmt: skip
def test_masters_of_another_setting_are_refused(make_camera, light, dark):
    camera = make_camera(1)
    model = DarkModel.fit([camera.frame(60, **dark) for _ in range(3)], bias=camera.biases(3))
    with pytest.raises(CalibrationError, match=r"CCDData: its .* is .*: take a"):
        calibrate(camera.frame(60, 10, **light), dark=model, gain=0.6 * u.electron / u.adu)
    calibrate(camera.frame(60, 10, **dark), dark=model, gain=0.6 * u.electron / u.adu)


def test_flat_of_another_filter_and_shape_are_refused(night, make_camera):
    camera, model, _ = night
    flat = master_flat([camera.frame(5, 9000, FILTER="O3") for _ in range(2)], dark=model)
    with pytest.raises(CalibrationError, match="through Halpha, its flat through OIII"):
        calibrate(camera.frame(60, 10, FILTER="Ha"), dark=model, flat=flat)
    calibrate(camera.frame(60, 10, FILTER="[OIII]"), dark=model, flat=flat)
    with pytest.raises(InputError, match=r"is \(32, 32\), its bias or dark \(64, 72\)"):
        calibrate(make_camera(shape=(32, 32)).frame(60), dark=model)


def test_temperature_of_light_and_darks(make_camera):
    camera = make_camera(1)
    darks = [camera.frame(60, **{"CCD-TEMP": t}) for t in (-10.0, -10.2, -9.9)]
    model = DarkModel.fit(darks, bias=camera.biases(3))
    assert model.temperatures == (-10.2, -9.9)
    calibrate(camera.frame(60, 10, **{"CCD-TEMP": -9.5}), dark=model)
    warm = camera.frame(60, 10, **{"CCD-TEMP": -8.0})
    with pytest.warns(NarrowbandWarning, match=r"-8\.0 deg C, its darks at -10\.2 to -9\.9"):
        calibrate(warm, dark=model)
    hot = camera.frame(60, 10, **{"CCD-TEMP": 0.0})
    with pytest.raises(CalibrationError, match="max_temperature_difference"):
        calibrate(hot, dark=model)
    with pytest.warns(NarrowbandWarning, match="hot pixels will remain"):
        calibrate(hot, dark=model, max_temperature_difference=15)


def test_bias_alone_and_nothing_at_all(night):
    camera, _, _ = night
    bias = master_bias(camera.biases())
    raw = camera.frame(60, 200, flat=False)
    result = calibrate(raw, bias=bias)
    assert (result.header["BIASSUB"], result.header["DARKSUB"]) == (True, False)
    error = np.sqrt(((0.6 * bias.uncertainty.array) ** 2).mean() + 25 + 200 + 4) / 60
    assert np.median(result.uncertainty.array) == pytest.approx(error, rel=0.02)
    nothing = calibrate(raw)
    assert nothing.header["BIASSUB"] is False
    np.testing.assert_allclose(nothing.data, raw.data * 0.6 / 60, rtol=1e-6)


def test_overscan_and_trim_as_ccdproc_does(make_camera, rng):
    camera = make_camera(4, shape=(64, 72))
    raw = camera.frame(60, 100)
    drift = rng.normal(0, 8, 64)[:, None]
    wide = np.concatenate([rng.normal(300, 8, (64, 10)), raw.data], axis=1) + drift
    header = raw.header.copy()
    header["BIASSEC"], header["TRIMSEC"] = "[2:10,1:64]", "[11:82,3:60]"
    wide = CCDData(wide.astype(np.float32), unit="adu", header=header)
    ours = calibrate(wide)
    ccd = ccdproc.subtract_overscan(wide, fits_section="[2:10,1:64]", median=True)
    ccd = ccdproc.trim_image(ccd, fits_section="[11:82,3:60]")
    np.testing.assert_allclose(ours.data, ccd.data * 0.6 / 60, rtol=1e-5, atol=1e-6)
    assert ours.shape == (58, 72)
    assert "BIASSEC" not in ours.header
    header["BIASSEC"] = "[2:1000,1:64]"
    with pytest.raises(InputError, match="BIASSEC"):
        calibrate(CCDData(wide.data, unit="adu", header=header))


def test_cosmic_rays_are_masked_on_request(night):
    camera, model, flat = night
    raw = camera.frame(120, 300)
    raw.data[30, 10:20] += 3000
    assert calibrate(raw, dark=model, flat=flat).mask[30, 10:20].sum() == 0
    found = calibrate(raw, dark=model, flat=flat, cosmic_rays=True).mask
    assert found[30, 10:20].all()
    assert found.mean() < 0.02
    less = calibrate(raw, dark=model, flat=flat, cosmic_rays={"sigclip": 1e6}).mask
    assert less[30, 10:20].sum() == 0


def test_add_keyword_and_header(night):
    camera, model, flat = night
    raw = camera.frame(120, 300, OBJECT="M 16", BZERO=32768)
    result = calibrate(raw, dark=model, flat=flat)
    assert result.header["OBJECT"] == "M 16"
    assert result.header["DARKPOL"] == "matched"
    assert result.header["GAINUSED"] == 0.6
    assert "BZERO" not in result.header
    assert "BIASSUB" not in raw.header
    plain = calibrate(raw, dark=model, flat=flat, add_keyword=False)
    assert "BIASSUB" not in plain.header
    np.testing.assert_array_equal(plain.data, result.data)


def test_shared_noise_is_common_to_frames_of_one_set_of_masters(make_camera):
    # Ten lights of one night: their mean misses the truth by what the masters
    # miss it, which does not average down.
    pulls = []
    for seed in range(12):
        camera = make_camera(seed)
        model = DarkModel.fit(camera.darks(60, n=4), bias=camera.biases(4), shrink=False)
        flat = master_flat(camera.flats(4), dark=model)
        recipe = Recipe.make(detector=Detector(0.6, 5.0), dark=model, flat=flat)
        exposures = [60, 60, 120, 120, 180] * 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NarrowbandWarning)
            frames = [CalibratedFrame(camera.frame(t, 0.5 * t), recipe) for t in exposures]
        assert len({frame.masters for frame in frames}) == 1
        weights = np.array(exposures, float)
        bands = [frame.read(ALL) for frame in frames]
        mean = sum(w * b.data for w, b in zip(weights, bands, strict=True)) / weights.sum()
        own = sum(w**2 * b.variance for w, b in zip(weights, bands, strict=True))
        common = common_variance([frame.shared(ALL) for frame in frames], weights)
        assert np.median(common) > 0.5 * np.median(own / weights.sum() ** 2)
        pull = (mean - 0.5) / np.sqrt(own / weights.sum() ** 2 + common)
        pulls.append(np.delete(pull.ravel(), camera.hot))
    pulls = np.concatenate(pulls)
    assert abs(pulls.mean()) < 0.05
    assert pulls.std() == pytest.approx(1, abs=0.02)


def nights(make_camera, n, *, shape):
    """Pulls of calibrated pixels, all and hot ones, by sky [electron] and exposure [s]."""
    exposures = {"matched": 120, "interpolated": 90, "x2.5": 300, "x5": 600}
    pulls = {(sky, way): ([], []) for sky in (1, 30, 300) for way in exposures}
    detector = Detector(0.6, 5.0)
    for seed in range(n):
        camera = make_camera(seed, shape=shape)
        darks = camera.darks(60, 120)
        model = DarkModel.fit(darks, bias=camera.biases(), detector=detector, workers=1)
        flat = master_flat(camera.flats(), dark=model, detector=detector, workers=1)
        recipe = Recipe(detector, dark=model, flat=flat, max_extrapolation=5)
        for (sky, way), (every, hot) in pulls.items():
            t = exposures[way]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NarrowbandWarning)
                frame = CalibratedFrame(camera.frame(t, sky), recipe)
            rows = slice(0, shape[0])
            band, shared = frame.read(rows), frame.shared(rows)
            z = (band.data - sky / t) / np.sqrt(band.variance + (shared**2).sum(axis=0))
            good = ~band.mask
            every.append(z[good])
            hot.append(z.ravel()[camera.hot][good.ravel()[camera.hot]])
    return {k: tuple(np.concatenate(x) for x in v) for k, v in pulls.items()}


def check_pulls(pulls, *, mean, width, inside):
    for key, (every, hot) in pulls.items():
        for z, slack in ((every, 0), (hot, 4 / hot.size**0.5)):
            label = f"{key}: mean {z.mean():+.4f}, width {z.std():.4f}, n {z.size}"
            assert abs(z.mean()) < mean + slack, label
            assert z.std() == pytest.approx(1, abs=width + slack), label
            assert np.mean(np.abs(z) < 1) == pytest.approx(0.683, abs=inside + slack), label


def test_pulls_of_calibrated_pixels(make_camera):
    pulls = nights(make_camera, 16, shape=(64, 72))
    check_pulls(pulls, mean=0.03, width=0.035, inside=0.02)


@pytest.mark.long
def test_pulls_of_calibrated_pixels_over_2000_nights(make_camera):
    pulls = nights(make_camera, 2000, shape=(64, 72))
    for key, (every, hot) in pulls.items():
        for name, z in (("all", every), ("hot", hot)):
            inside = 100 * np.mean(np.abs(z) < 1)
            print(key, name, f"{z.size} {z.mean():+.4f} {z.std():.4f} {inside:.2f} %")
    # Hot pixels are few: four times the error of their mean more is allowed.
    check_pulls(pulls, mean=0.02, width=0.02, inside=0.007)


def test_calibration_of_a_real_frame_with_overscan(real_data):
    path = next((real_data / "ccdproc-overscan-raw").glob("*.fit*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = CCDData.read(path, unit="adu")
    result = calibrate(path)
    section = raw.header["TRIMSEC"]
    ccd = ccdproc.subtract_overscan(raw, fits_section=raw.header["BIASSEC"], median=True)
    ccd = ccdproc.trim_image(ccd, fits_section=section)
    gain = result.header["GAINUSED"]
    expected = ccd.data * gain / result.header["EXPTIME"]
    good = ~result.mask
    np.testing.assert_allclose(result.data[good], expected[good], rtol=1e-5, atol=1e-4)


def test_a_plain_master_dark_scales_with_its_error(make_camera):
    camera = make_camera(7)
    shape = camera.shape
    sigma = StdDevUncertainty(np.full(shape, 3.0))
    bias = CCDData(camera.bias, uncertainty=sigma, unit="adu")
    dark = CCDData(
        camera.dark(60), uncertainty=sigma, unit="adu", header=fits.Header({"EXPTIME": 60.0})
    )
    raw = camera.frame(120, 0)
    with pytest.warns(NarrowbandWarning, match=r"extrapolated.*variance grows 5 times"):
        result = calibrate(raw, bias=bias, dark=dark)
    assert abs(np.mean(result.data)) < 0.01
    assert result.header["DARKPOL"] == "extrapolated"
    # 2 D - B: four times the variance of D, and that of B.
    expected = np.sqrt(0.36 * 5 * 9 + 25 + camera.rate * 120) / 120
    np.testing.assert_allclose(result.uncertainty.array, expected, rtol=0.25)
    assert np.mean(result.uncertainty.array / expected) == pytest.approx(1, abs=0.01)


def test_modules_are_nouns_and_functions_verbs():
    import importlib
    from types import ModuleType

    import astro_narrowband

    homes = {"calibrate": "calibration", "coadd": "coaddition", "resample": "resampling"}
    for name, home in homes.items():
        importlib.import_module(f"astro_narrowband.{home}")
        assert callable(getattr(astro_narrowband, name))
        assert isinstance(getattr(astro_narrowband, home), ModuleType)
