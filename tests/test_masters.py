"""Master bias and master flat."""

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData

from astro_narrowband._engine.frames import MemoryFrame
from astro_narrowband._engine.stacking.clipped import clipped_band, quick_median
from astro_narrowband.calibration import calibrate
from astro_narrowband.darks import DarkModel
from astro_narrowband.exceptions import CalibrationError, InputError, NarrowbandWarning
from astro_narrowband.masters import check_flats, master_bias, master_flat


@pytest.fixture(scope="module")
def night(make_camera):
    camera = make_camera(11)
    return camera, DarkModel.fit(camera.darks(60, 120), bias=camera.biases())


def clipped_by_hand(stack, good, floor, slope, weights, n_sigma):
    """What `clipped_band` promises, pixel by pixel in float64: mean, count, squares."""
    out = np.full((3, *stack.shape[1:]), np.nan)
    for place in np.ndindex(stack.shape[1:]):
        x, ok = stack[:, *place].astype(float), good[:, *place]
        n, m = len(x), ok.sum()
        ordered = np.sort(x[ok])
        centre = ordered[0] if n == m == 2 else np.median(ordered) if m else 0.0
        limit = n_sigma**2 * (floor + slope * max(centre, 0)) * (2 if n == 2 else 1)
        keep = ok & ((x - centre) ** 2 <= limit)
        if keep.sum() < m * 2 / 3 - 0.5:
            keep = ok
        if keep.any():
            mean = np.average(x[keep], weights=None if weights is None else weights[keep])
            out[:, *place] = mean, keep.sum(), ((x[keep] - mean) ** 2).sum()
        else:
            out[1, *place] = 0
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 12])
@pytest.mark.parametrize("weighted", [False, True])
def test_clipping_against_every_pixel_by_hand(rng, n, weighted):
    shape = 40, 50
    level = rng.choice([50.0, 400.0, 3000.0], size=shape)
    # Frames that differ in noise by far: what is far off for one is usual for another.
    floor = np.linspace(20, 400, n)[:: rng.choice([-1, 1])] if weighted else np.full(n, 30.0)
    slope = rng.uniform(0.2, 2, n) if weighted else np.full(n, 0.5)
    sigma = np.sqrt(floor[:, None, None] + slope[:, None, None] * level)
    stack = rng.normal(level, sigma).astype(np.float32)
    stack[rng.random(stack.shape) < 0.03] += 900
    good = rng.random(stack.shape) > 0.02
    good[:, 3, 4] = False
    frames = [
        MemoryFrame(CCDData(x, unit="adu", mask=~g)) for x, g in zip(stack, good, strict=True)
    ]
    weights = rng.uniform(0.5, 2, n).astype(np.float32) if weighted else None
    result = clipped_band(
        frames,
        slice(0, 40),
        floor=floor,
        slope=slope,
        weights=weights,
        n_sigma=4,
        squares=not weighted,
    )
    mean, count, square = clipped_by_hand(stack, good, floor, slope, weights, 4)
    found = np.full(shape, float(n))
    found.ravel()[result.columns] = result.count
    np.testing.assert_array_equal(found, count)
    np.testing.assert_allclose(result.mean, mean, rtol=2e-6, atol=1e-3)
    if not weighted:
        np.testing.assert_allclose(result.square, square, rtol=1e-4, atol=0.2)


@pytest.mark.parametrize("masked", [False, True])
def test_the_quick_median_is_exact(rng, masked):
    for values in (rng.normal(500, 9, 1 << 20), rng.integers(0, 4, 300_001), np.ones(1 << 19)):
        values = values.astype(np.float32)
        bad = rng.random(values.shape) < 0.3 if masked else None
        values[:7] = 1e30
        kept = values if bad is None else values[~bad]
        assert quick_median(values, bad) == np.median(kept)


def test_masters_do_not_depend_on_the_workers(make_camera):
    camera = make_camera(5, shape=(150, 70))
    biases, darks, flats = camera.biases(6), camera.darks(60, 120), camera.flats(5, light=8000)
    made = []
    for workers in (1, 3):
        bias = master_bias(biases, workers=workers)
        model = DarkModel.fit(darks, bias=bias, workers=workers)
        made.append((bias, model, master_flat(flats, dark=model, workers=workers)))
    for one, other in zip(*made, strict=True):
        if isinstance(one, DarkModel):
            for name, plane in one.planes.items():
                np.testing.assert_array_equal(plane, other.planes[name], err_msg=name)
            continue
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.uncertainty.array, other.uncertainty.array)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_bias_is_the_mean_with_its_error(make_camera):
    camera = make_camera(1, shape=(128, 128))
    frames = camera.biases(12)
    master = master_bias(frames)
    plain = np.mean([f.data.astype(float) for f in frames], axis=0)
    # Levels are brought together, which a mean does not see; nothing is clipped.
    np.testing.assert_allclose(master.data, plain, atol=0.002)
    pull = (master.data - camera.bias) / master.uncertainty.array
    assert pull.std() == pytest.approx(1, abs=0.02)
    assert master.unit == u.adu
    assert master.header["NCOMBINE"] == 12
    assert master.header["RDNOISEA"] == pytest.approx(5 / 0.6, rel=0.02)
    assert master.data.dtype == np.float32


def test_cosmic_rays_and_drift_leave_the_bias_alone(make_camera):
    camera = make_camera(2)
    frames = [camera.frame(offset=offset) for offset in (15, 15, 0, 0, 0, 0, 0)]
    frames[3].data[20, 5:15] += 2000
    with pytest.warns(NarrowbandWarning, match=r"7 biases: their level drifts by 1[45]\.\d adu"):
        master = master_bias(frames)
    rest = master.data - camera.bias - 30 / 7
    assert abs(rest.mean()) < 0.2
    pull = rest / master.uncertainty.array
    assert pull.std() == pytest.approx(1, abs=0.04)
    assert np.abs(pull[20, 5:15]).max() < 4.5
    # Six frames in place of seven.
    ratio = master.uncertainty.array[20, 10] / master.uncertainty.array[30, 10]
    assert ratio == pytest.approx((7 / 6) ** 0.5, rel=1e-5)


def test_bias_of_one_frame_and_of_none(make_camera):
    camera = make_camera(3)
    assert master_bias(camera.biases(1)).uncertainty.array[0, 0] > 5 / 0.6
    with pytest.raises(InputError, match="no biases"):
        master_bias([])
    with pytest.raises(InputError, match="different shapes"):
        master_bias([camera.frame(), make_camera(shape=(8, 8)).frame()])


def test_flat_is_true_and_so_is_its_error(make_camera):
    pulls = []
    for seed in range(8):
        camera = make_camera(seed)
        model = DarkModel.fit(camera.darks(60, 120), bias=camera.biases())
        flat = master_flat(camera.flats(6, light=8000), dark=model)
        assert np.median(flat.data[~flat.mask]) == pytest.approx(1, abs=1e-6)
        pulls.append(((flat.data - camera.flat) / flat.uncertainty.array)[~flat.mask])
    pulls = np.concatenate(pulls)
    assert flat.unit == u.dimensionless_unscaled
    assert abs(pulls.mean()) < 0.05
    assert pulls.std() == pytest.approx(1, abs=0.02)


def test_sky_flats_of_all_different_exposures_are_one_group(night):
    camera, model = night
    flats = [camera.frame(t, 60 * t) for t in (331.07, 341.19, 342.96, 357.91, 359.03, 120.0)]
    flat = master_flat(flats, dark=model)
    assert flat.header["NCOMBINE"] == 6
    pull = (flat.data - camera.flat) / flat.uncertainty.array
    assert pull.std() == pytest.approx(1, abs=0.04)
    # Hot pixels of 5 electron/s: without the dark they would be 9 % too high.
    assert np.abs(pull.ravel()[camera.hot]).max() < 5
    bias_only = master_flat(flats, bias=master_bias(camera.biases()))
    assert np.min((bias_only.data - camera.flat).ravel()[camera.hot]) > 0.05


def test_stars_and_cosmic_rays_in_flats_are_clipped(night):
    camera, model = night
    flats = camera.flats(7, light=10000)
    for j, frame in enumerate(flats):
        frame.data[5 * j : 5 * j + 3, 30:33] += 3000
    flat = master_flat(flats, dark=model)
    rest = (flat.data - camera.flat)[:36, 30:33]
    assert np.abs(rest).max() < 0.025


def test_bad_flats_are_left_out_by_name(night, tmp_path):
    camera, model = night
    levels = {"good1": 20000, "good2": 18000, "faint": 60, "full": 60000, "below": -1000}
    paths = []
    for name, light in levels.items():
        frame = camera.frame(5, max(light, 0), offset=min(light, 0) / 10)
        paths.append(tmp_path / f"{name}.fits")
        frame.write(paths[-1])
    checks = {c.name: c.reason for c in check_flats(paths, dark=model)}
    assert checks["good1.fits"] == checks["good2.fits"] == ""
    assert "too faint" in checks["faint.fits"]
    assert "saturated: 100.0 %" in checks["full.fits"]
    assert "below its bias" in checks["below.fits"]
    with pytest.warns(NarrowbandWarning) as record:
        flat = master_flat(paths, dark=model)
    assert {str(w.message).split(":")[0] for w in record} == {
        "faint.fits", "full.fits", "below.fits",
    }  # fmt: skip
    assert flat.header["NCOMBINE"] == 2
    with (
        pytest.raises(CalibrationError, match=r"no flat can be used: faint\.fits is too faint"),
        pytest.warns(NarrowbandWarning),
    ):
        master_flat(paths[2:], dark=model)


def test_flats_that_were_checked_are_not_checked_again(night, monkeypatch):
    camera, model = night
    flats = [*camera.flats(4), camera.frame(5, 60)]
    checks = check_flats(flats, dark=model)
    with pytest.warns(NarrowbandWarning, match="too faint"):
        expected = master_flat(flats, dark=model)
    monkeypatch.setattr("astro_narrowband.masters._check", None)
    with pytest.warns(NarrowbandWarning, match="too faint"):
        flat = master_flat(flats, dark=model, checks=checks)
    np.testing.assert_array_equal(flat.data, expected.data)


def test_dead_pixels_are_masked_and_never_divide(night):
    camera, model = night
    flats = camera.flats(4)
    for frame in flats:
        frame.data[10, 10] = camera.bias[10, 10]
        frame.data[11, 11] = 0
        frame.data[12, 12] = 65535
    flat = master_flat(flats, dark=model)
    dead = np.zeros(flat.shape, bool)
    dead[[10, 11, 12], [10, 11, 12]] = True
    np.testing.assert_array_equal(flat.mask, dead)
    assert np.isfinite(flat.data).all()
    light = calibrate(camera.frame(60, 100), dark=model, flat=flat)
    assert np.isfinite(light.data).all()
    assert light.mask[dead].all()


def test_flat_darks_serve_the_flats(make_camera):
    camera = make_camera(6)
    flat_darks = DarkModel.fit([camera.frame(300) for _ in range(10)])
    flats = [camera.frame(300, 9000) for _ in range(6)]
    flat = master_flat(flats, dark=flat_darks)
    pull = (flat.data - camera.flat) / flat.uncertainty.array
    assert pull.std() == pytest.approx(1, abs=0.04)


def test_flat_needs_a_bias_and_one_shape(night, make_camera):
    camera, model = night
    with pytest.raises(InputError, match="needs bias= or dark="):
        master_flat(camera.flats(2))
    with pytest.raises(InputError, match=r"bias or dark \(64, 72\)"):
        master_flat(make_camera(shape=(32, 32)).flats(2), dark=model)


def test_nan_in_a_flat_frame_harms_one_pixel(night):
    camera, model = night
    flats = []
    for frame in camera.flats(5):
        data = frame.data.astype(np.float32)
        data[8, 8] = np.nan
        flats.append(CCDData(data, unit="adu", header=frame.header))
    flats[0].data[9, 9] = np.nan
    flat = master_flat(flats, dark=model)
    assert flat.mask.sum() == 1
    assert flat.mask[8, 8]
    assert np.isfinite(flat.data).all()


def test_real_arcsat_masters(real_data):
    folder = real_data / "arcsat-eagle-halpha" / "data"
    from astro_narrowband.detector import Detector

    biases = sorted(folder.glob("Bias*"))
    flats = sorted(folder.glob("domeflat*"))
    detector = Detector.measure(flats, biases)
    with pytest.warns(NarrowbandWarning, match=r"drifts by 14\."):
        master_bias(biases)
    model = DarkModel.fit(sorted(folder.glob("Dark*")), bias=biases, detector=detector)
    assert model.exposures == (300.0,)
    assert model.policy(600) == "extrapolated"
    flat = master_flat(flats, dark=model, detector=detector)
    with pytest.warns(NarrowbandWarning, match=r"times the lights' own error"):
        light = calibrate(
            sorted(folder.glob("EAGLE*"))[0], dark=model, flat=flat, detector=detector
        )
    assert light.header["DARKPOL"] == "extrapolated"
    assert light.mask.mean() < 0.01
    assert np.isfinite(light.data[~light.mask]).all()
    sky = np.median(light.data[~light.mask])
    assert 0.5 < sky < 3
    # Neighbouring pixels of blank sky differ by what the errors say.
    pair = (light.data[:, 1:] - light.data[:, :-1]) / np.hypot(
        light.uncertainty.array[:, 1:], light.uncertainty.array[:, :-1]
    )
    pair = pair[~(light.mask[:, 1:] | light.mask[:, :-1])]
    assert 1.4826 * np.median(np.abs(pair)) == pytest.approx(1, abs=0.1)
