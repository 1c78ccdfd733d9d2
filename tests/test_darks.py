"""The dark model: fit, covariance, flags, policy, shrinkage, files; real darks."""

import pickle

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband.calibration import calibrate
from astro_narrowband.darks import FLAGS, DarkModel, decode_flags
from astro_narrowband.darks._shrink import shrink_plane
from astro_narrowband.darks._straight import line, same_line, same_rate
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import (
    CalibrationError,
    InputError,
    NarrowbandWarning,
    ProductError,
)


def stack(frames):
    return np.stack([f.data.astype(float) for f in frames])


@pytest.fixture(scope="module")
def night(make_camera):
    camera = make_camera(5)
    return camera, camera.biases(), camera.darks(60, 120)


def test_fit_against_float64_by_hand(night):
    camera, biases, darks = night
    model = DarkModel.fit(darks, bias=biases, shrink=False)
    y = np.stack([stack(biases).mean(0), stack(darks[:10]).mean(0), stack(darks[10:]).mean(0)])
    t = np.array([0.0, 60, 120])
    n = np.array([12.0, 10, 10])
    pixel = (7, 9)
    assert camera.rate[pixel] < 0.2
    # An ordinary pixel: the weights come from the neighbourhood's rate, near to the truth.
    noise2 = (25 / 0.36) + 1 / 12
    current = np.median((y[2] - y[0]) / 120)
    v = (noise2 + current * t / 0.6) / n
    design = np.stack([np.ones(3), t], axis=1)
    cov = np.linalg.inv(design.T @ (design / v[:, None]))
    offset, rate = cov @ design.T @ (y[(slice(None), *pixel)] / v)
    found = {name: float(plane[pixel]) for name, plane in model.planes.items()}
    assert found["offset"] == pytest.approx(offset, abs=0.06)
    assert found["rate"] == pytest.approx(rate, abs=1e-3)
    assert found["var_offset"] == pytest.approx(cov[0, 0], rel=0.03)
    assert found["var_rate"] == pytest.approx(cov[1, 1], rel=0.03)
    assert found["cov"] == pytest.approx(cov[0, 1], rel=0.03)
    # How well straight lines fit: the mean over 4600 pixels of a chi-squared with one degree.
    assert model.header["DARKDOF"] == 1
    assert model.header["DARKCHI2"] == pytest.approx(1, abs=5 * (2 / 4600) ** 0.5)


def test_line_kernel_against_linear_algebra(rng):
    t = np.array([0.0, 60, 120, 300])
    y = rng.normal(0, 30, (4, 50)) + 7 * t[:, None]
    v = rng.uniform(1, 20, (4, 50))
    ok = np.ones((4, 50), bool)
    ok[2, ::3] = False
    planes = (x.astype(np.float32) for x in (y, v))
    rate, offset, var_rate, var_offset, cov, chi2, used = line(
        *planes, ok, t.astype(np.float32)[:, None]
    )
    for i in range(50):
        k = ok[:, i]
        design = np.stack([np.ones(k.sum()), t[k]], axis=1)
        weighted = design.T / v[k, i]
        c = np.linalg.inv(weighted @ design)
        b = c @ weighted @ y[k, i]
        assert rate[i] == pytest.approx(b[1], rel=2e-6)
        assert offset[i] == pytest.approx(b[0], abs=2e-6 * 2100)
        found = [var_offset[i], var_rate[i], cov[i]]
        assert found == pytest.approx([c[0, 0], c[1, 1], c[0, 1]], rel=3e-6)
        rest = (y[k, i] - design @ b) ** 2 / v[k, i]
        assert chi2[i] == pytest.approx(rest.sum(), rel=1e-3, abs=1e-3)
        assert used[i] == k.sum()


@pytest.mark.parametrize("t", [[0, 60], [0, 60, 120], [5, 30, 60, 300], [0, 1, 10, 20, 40]])
@pytest.mark.parametrize("width", [1, 50])
def test_points_taken_in_one_by_one_make_the_same_line(rng, t, width):
    t = np.array(t, np.float32)[:, None]
    y = (rng.normal(0, 30, (len(t), 4, 50)) + 7 * t[:, None]).astype(np.float32)
    y[0] = 0
    v = rng.uniform(1, 20, (len(t), width)).astype(np.float32)
    rate, offset = np.empty((2, 4, 50), np.float32)
    *found, chi2 = same_line(y[1:], v, t, out=(rate, offset))
    found = [np.broadcast_to(x, 50) for x in found]
    for k in range(4):
        wide = np.broadcast_to(v, (len(t), 50))
        expected = line(y[:, k], wide, np.ones(wide.shape, bool), t)
        np.testing.assert_allclose(rate[k], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(offset[k], expected[1], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(chi2[k], expected[5], rtol=1e-3, atol=1e-2)
        for one, other in zip(found, (expected[i] for i in (2, 3, 4)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
    near, variance = same_rate(y[1:], v, t)
    np.testing.assert_allclose(near, rate, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.broadcast_to(variance, 50), found[0], rtol=1e-5)


@pytest.mark.parametrize("shrink", [False, True])
def test_pulls_at_any_exposure(make_camera, shrink):
    pulls, hot = {t: [] for t in (60, 90, 300, 600)}, []
    for seed in range(20):
        camera = make_camera(seed)
        model = DarkModel.fit(camera.darks(60, 120), bias=camera.biases(), shrink=shrink)
        for t, values in pulls.items():
            rows = slice(0, 64)
            error = np.sqrt(model.variance(t, rows))
            pull = (model.values(t, rows) - camera.dark(t)) / error
            values.append(pull[(model.planes["flags"] & 7) == 0])
            hot.append(pull.ravel()[camera.hot])
    for values in pulls.values():
        z = np.concatenate(values)
        # The mean of a neighbourhood has an error that its pixels share.
        assert abs(z.mean()) < (0.1 if shrink else 0.03)
        # One spread serves the frame, while that of this camera grows with the rate.
        assert z.std() == pytest.approx(1, abs=0.08 if shrink else 0.02)
        assert np.mean(np.abs(z) < 1) == pytest.approx(0.683, abs=0.05 if shrink else 0.01)
    hot = np.concatenate(hot)
    assert abs(hot.mean()) < 0.15
    assert hot.std() == pytest.approx(1, abs=0.1)


def test_shrinking_wins_where_pixels_are_alike_and_leaves_hot_ones_alone(night):
    camera, biases, darks = night
    truth = camera.dark(300)
    rows = slice(0, 64)
    errors = {}
    for shrink in (False, True):
        model = DarkModel.fit(darks, bias=biases, shrink=shrink)
        rest = model.values(300, rows) - truth
        errors[shrink] = np.delete(rest.ravel(), camera.hot).std()
        # Of 5 electron/s at 300 s: the error of the own fit.
        assert np.abs(rest.ravel()[camera.hot]).max() < 120
    assert errors[True] < 0.35 * errors[False]


def test_shrinking_does_nothing_where_every_pixel_is_its_own(make_camera):
    camera = make_camera(3)
    camera.rate = camera.rng.uniform(0, 5, camera.shape)
    biases, darks = camera.biases(), camera.darks(60, 120)
    plain = DarkModel.fit(darks, bias=biases, shrink=False)
    shrunk = DarkModel.fit(darks, bias=biases, shrink=True)
    truth = camera.rate / camera.gain
    about = truth - truth.mean()
    for model in (plain, shrunk):
        rest = model.planes["rate"] - truth
        # Nothing is pulled towards the mean.
        assert abs((rest * about).sum() / (about**2).sum()) < 2e-3
        assert (rest / np.sqrt(model.planes["var_rate"])).std() == pytest.approx(1, abs=0.05)


def test_cosmic_rays_in_darks_leave_no_trace(night):
    _, biases, darks = night
    clean = DarkModel.fit(darks, bias=biases, shrink=False)
    hit = [d.copy() for d in darks]
    for j, frame in enumerate(hit):
        frame.data[3 + j, 5:15] += 400
    model = DarkModel.fit(hit, bias=biases, shrink=False)
    change = (model.planes["rate"] - clean.planes["rate"])[3:23, 5:15]
    error = np.sqrt(clean.planes["var_rate"])[3:23, 5:15]
    assert np.abs(change / error).max() < 1.5
    assert not (model.planes["flags"][3:23, 5:15] & FLAGS["UNCERTAIN"]).any()


def test_flags(make_camera):
    camera = make_camera(8)
    spots = {"bent": (4, 4), "full": (10, 10), "lost": (20, 20), "cold": (30, 30), "wild": (40, 40)}
    camera.rate[spots["full"]] = 400.0  # 300 + 400 * 120 / 0.6 = 80300 adu
    camera.rate[spots["lost"]] = 5000.0
    biases, darks = camera.biases(), camera.darks(30, 60, 120)
    for dark in darks:
        t = dark.header["EXPTIME"]
        dark.data[spots["bent"]] = 300 + min(10 * t, 400) + camera.rng.normal(0, 9)
        dark.data[spots["cold"]] -= int(0.5 * t)
        dark.data[spots["wild"]] += int(camera.rng.choice([0, 300]))
    model = DarkModel.fit(darks, bias=biases)
    flags = model.planes["flags"]
    assert decode_flags(flags[spots["bent"]]) == ("NONLINEAR",)
    assert decode_flags(flags[spots["full"]]) == ("SATURATED",)
    # The rate of what saturates only later comes from what did not.
    rate, error = (float(model.planes[k][spots["full"]]) for k in ("rate", "var_rate"))
    assert rate == pytest.approx(400 / 0.6, abs=5 * error**0.5)
    assert decode_flags(flags[spots["lost"]]) == ("SATURATED", "UNCERTAIN")
    assert decode_flags(flags[spots["cold"]]) == ("NEGATIVE",)
    assert "UNCERTAIN" in decode_flags(flags[spots["wild"]])
    dark = model.at(60)
    masked = {name for name, spot in spots.items() if dark.mask[spot]}
    assert masked == {"full", "lost", "wild"}
    # At an exposure that was measured, a pixel that is not linear has what was measured.
    assert dark.data[spots["bent"]] == pytest.approx(700, abs=12)
    assert model.at(30).data[spots["bent"]] == pytest.approx(600, abs=12)
    assert np.isfinite(dark.uncertainty.array).all()
    assert dark.mask.mean() < 0.005
    assert any("NONLINEAR" in note for note in model.notes)


def test_policy_and_its_warning(night):
    _, biases, darks = night
    model = DarkModel.fit(darks, bias=biases)
    assert [model.policy(t) for t in (60, 120.3, 1, 90, 300)] == [
        "matched", "matched", "scaled", "scaled", "extrapolated",
    ]  # fmt: skip
    with pytest.warns(NarrowbandWarning, match=r"300 s: .*extrapolated.*variance grows [\d.]+ tim"):
        dark = model.at(300 * u.s)
    assert dark.header["DARKPOL"] == "extrapolated"
    assert dark.header["EXPTIME"] == 300
    error = np.median(dark.uncertainty.array) / np.median(model.at(120).uncertainty.array)
    assert model.variance_factor(300) == pytest.approx(error**2, rel=0.2)
    with pytest.raises(CalibrationError, match=r"5 times.*max_extrapolation = 3"):
        model.at(600, max_extrapolation=3)
    with pytest.warns(NarrowbandWarning):
        model.at(600, max_extrapolation=5)
    for wrong in (-1, 1e300, np.inf, np.nan):
        with pytest.raises(InputError):
            model.at(wrong)


def test_linear_model_needs_no_bias_and_ignores_its_level(make_camera):
    camera = make_camera(2)
    darks = camera.darks(30, 60, 120)
    model = DarkModel.fit(darks, model="linear", shrink=False)
    wrong = [camera.frame(offset=100) for _ in range(5)]
    same = DarkModel.fit(darks, bias=wrong, model="linear", shrink=False)
    np.testing.assert_array_equal(same.planes["offset"], model.planes["offset"])
    rows = slice(0, 64)
    rest = model.values(120, rows) - camera.dark(120)
    z = rest / np.sqrt(model.variance(120, rows))
    assert np.delete(z.ravel(), camera.hot).std() == pytest.approx(1, abs=0.04)
    with pytest.raises(InputError, match="two exposure times"):
        DarkModel.fit(darks[:10], model="linear")


def test_one_dark_exposure(night):
    _, biases, darks = night
    with_bias = DarkModel.fit(darks[:10], bias=biases)
    assert any("linearity could not be tested" in note for note in with_bias.notes)
    assert with_bias.policy(30) == "scaled"
    alone = DarkModel.fit(darks[:10])
    assert alone.model == "matched"
    mean = stack(darks[:10]).mean(axis=0)
    rest = DarkModel.fit(darks[:10], shrink=False).at(60).data - mean
    assert np.abs(rest).max() < 0.01
    with pytest.raises(CalibrationError, match=r"120 s cannot be had.*without a bias"):
        alone.at(120)
    with pytest.raises(InputError, match="needs bias="):
        DarkModel.fit(darks, model="rate")
    assert DarkModel.fit(darks).model == "linear"


def test_one_dark_time_without_a_bias_is_priced_for_others(make_camera):
    camera = make_camera(11)
    camera.rate = camera.rate * 5  # 0.25 to 0.5 electron/s, hot pixels of 25
    model = DarkModel.fit(camera.darks(60), shrink=False)
    rows = slice(0, 64)
    # At its own time it is the mean of the darks, whatever is said of its rate.
    z = (model.values(60, rows) - camera.dark(60)) / np.sqrt(model.variance(60, rows))
    assert np.delete(z.ravel(), camera.hot).std() == pytest.approx(1, abs=0.05)
    # For a flat it is the offset, hot pixels scaled, with an error that holds: 20 adu of 33000.
    off = (model.values(5, rows) - camera.dark(5)).ravel()
    assert np.abs(off).max() < 3 * np.sqrt(model.variance(5, rows)).min()
    with pytest.warns(NarrowbandWarning, match=r"flats of 5 s: darks of 60 s stand for"):
        assert model.check(5, noise=235.0, what="flats") == "offset"
    # For a light of another time that is too much.
    with pytest.raises(CalibrationError, match=r"l7.fits: its dark of 120 s.*take darks of 120 s"):
        model.check(120, noise=5.0, name="l7.fits")
    with pytest.raises(CalibrationError, match="cannot be had"):
        model.at(120)


@pytest.mark.parametrize(
    ("rate", "exposure", "noise", "accepted"),
    [
        (0.001, 3000, 8.0, True),  # ten times longer: nothing on a cold camera,
        (1.0, 3000, 95.0, False),  # everything on a warm one,
        (1.0, 9000, 250.0, False),
        (1.0, 9000, 3000.0, True),  # and little to a flat.
        (0.02, 900, 10.0, True),
    ],
)
def test_a_dark_costs_what_its_extrapolation_costs_the_frame(rng, rate, exposure, noise, accepted):
    shape = (32, 32)

    def frame(t):
        data = np.rint(500 + rng.poisson(rate * t, shape) + rng.normal(0, 3, shape))
        return CCDData(data, unit="adu", meta={"EXPTIME": t, "EGAIN": 1.0, "RDNOISE": 3.0})

    model = DarkModel.fit([frame(300.0) for _ in range(20)], bias=[frame(0.0) for _ in range(30)])
    price = model.price(exposure, noise=noise)
    assert price.policy == "extrapolated"
    assert price.too_high is not accepted
    assert price.unstated == pytest.approx(0.0733 * rate * (exposure - 300), rel=0.2, abs=1)
    if not accepted:
        with pytest.raises(CalibrationError, match=f"x.fits: its dark of {exposure} s"):
            model.check(exposure, noise=noise, name="x.fits")
        # Who knows better sets a limit.
        with pytest.warns(NarrowbandWarning, match="extrapolated"):
            model.check(exposure, noise=noise, max_extrapolation=50)
    assert model.price(300, noise=noise).unstated == 0


def test_without_a_bias_below_the_shortest_dark_is_an_extrapolation(make_camera):
    model = DarkModel.fit(make_camera(2).darks(60, 120), shrink=False)
    assert [model.policy(t) for t in (5, 60, 90)] == ["extrapolated", "matched", "scaled"]
    assert model.price(5, noise=100).stated > model.price(60, noise=100).stated


def test_darks_of_a_time_with_a_level_of_its_own_have_it_at_that_time(make_camera):
    for seed in range(20):
        camera = make_camera(seed)
        darks = [camera.frame(t, offset=8 * (t == 60)) for t in (60, 120, 300) for _ in range(10)]
        model = DarkModel.fit(darks, bias=camera.biases())
        for t in (60, 120, 300):
            rest = model.values(t, slice(0, 64)) - camera.dark(t) - 8 * (t == 60)
            assert abs(np.median(rest)) < 0.4
            z = rest / np.sqrt(model.variance(t, slice(0, 64)))
            assert np.percentile(np.abs(z), 68.3) == pytest.approx(1, abs=0.2)
        assert not (model.planes["flags"] & FLAGS["NONLINEAR"]).any()


def test_a_pedestal_that_drifts_is_taken_off_and_noted(make_camera):
    camera = make_camera(4)
    biases = [camera.frame(offset=15 if j < 4 else 0) for j in range(12)]
    darks = [camera.frame(t, offset=j % 3) for t in (60, 120, 240) for j in range(9)]
    model = DarkModel.fit(darks, bias=biases)
    assert any("differ by up to 15" in note for note in model.notes)
    assert (model.planes["flags"] & FLAGS["NONLINEAR"]).mean() < 0.002
    assert (model.planes["flags"] & FLAGS["UNCERTAIN"]).mean() < 0.002
    rest = (model.values(120, slice(0, 64)) - camera.dark(120)).ravel()
    assert np.delete(rest, camera.hot).std() < 1.7


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-308, 1e30, "soon", None])
def test_darks_without_an_exposure_time(night, value):
    _, biases, darks = night
    odd = darks[0].copy()
    if value is None:
        del odd.header["EXPTIME"]
    else:
        odd.header["EXPTIME"] = value
    with pytest.raises(InputError, match=r"EXPTIME|exposure"):
        DarkModel.fit([odd, *darks[1:]], bias=biases)


def test_shapes_must_agree(night, make_camera):
    _, biases, darks = night
    with pytest.raises(InputError, match="different shapes"):
        DarkModel.fit([*darks, make_camera(shape=(32, 32)).frame(60)], bias=biases)


def test_files_and_pickles_keep_the_model(night, tmp_path):
    camera, biases, darks = night
    darks = [dark.copy() for dark in darks]
    for dark in darks:  # measured means are kept as well
        dark.data[50, 50] = {60: 880, 120: 900}[dark.header["EXPTIME"]]
    model = DarkModel.fit(darks, bias=biases)
    assert "NONLINEAR" in decode_flags(model.planes["flags"][50, 50])
    model.write(tmp_path / "dark.fits")
    again = DarkModel.read(tmp_path / "dark.fits")
    rows = slice(10, 60)
    for other in (again, pickle.loads(pickle.dumps(again)), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert other.token == model.token
        assert (other.exposures, other.n_frames) == ((60.0, 120.0), (10, 10))
        assert (other.model, other.notes) == (model.model, model.notes)
        for t in (60, 90):
            np.testing.assert_array_equal(other.values(t, rows), model.values(t, rows))
            np.testing.assert_array_equal(other.variance(t, rows), model.variance(t, rows))
        np.testing.assert_array_equal(other.mask(rows), model.mask(rows))
    assert again.values(60, slice(50, 51))[0, 50] == pytest.approx(880)
    with pytest.raises(ProductError, match=r"dark\.fits"):
        model.write(tmp_path / "dark.fits")
    model.write(tmp_path / "dark.fits", overwrite=True)
    camera.frame().write(tmp_path / "bias.fits")
    with pytest.raises(InputError, match="not a dark model"):
        DarkModel.read(tmp_path / "bias.fits")


def test_modes_are_the_covariance(night):
    _, biases, darks = night
    model = DarkModel.fit(darks, bias=biases)
    rows = slice(0, 64)
    for t in (60, 300):
        modes = model.modes(t, rows)
        np.testing.assert_allclose((modes**2).sum(0), model.variance(t, rows), rtol=2e-3)
    product = (model.modes(60, rows) * model.modes(300, rows)).sum(axis=0)
    p = model.planes
    expected = p["var_offset"] + 360 * p["cov"] + 60 * 300 * p["var_rate"]
    np.testing.assert_allclose(product, expected, rtol=2e-2, atol=1e-2)


def test_masters_of_other_programs():
    shape = (4, 5)

    def master(level, error, **cards):
        sigma = StdDevUncertainty(np.full(shape, error))
        return CCDData(np.full(shape, level), uncertainty=sigma, unit="adu", meta=cards)

    bias, dark = master(300.0, 2.0), master(330.0, 3.0, EXPTIME=60.0)
    rows = slice(0, 4)
    model = DarkModel.from_masters(bias=bias, dark=dark)
    np.testing.assert_allclose(model.values(120, rows), 360)
    # bias + 2 (dark - bias): -bias + 2 dark.
    np.testing.assert_allclose(model.variance(120, rows), 2.0**2 + 4 * 3.0**2, rtol=1e-5)
    np.testing.assert_allclose(model.variance(60, rows), 3.0**2, rtol=1e-5)
    less = master(30.0, 13**0.5, EXPTIME=60.0, BIASSUB=True)
    same = DarkModel.from_masters(bias=bias, dark=less)
    np.testing.assert_allclose(same.values(120, rows), 360)
    np.testing.assert_allclose(same.variance(60, rows), 3.0**2, rtol=1e-5)
    with pytest.raises(CalibrationError, match="lost its bias"):
        DarkModel.from_masters(dark=less)
    with pytest.raises(CalibrationError, match="seems to have lost its bias"):
        DarkModel.from_masters(bias=bias, dark=master(30.0, 3.0, EXPTIME=60.0))
    electrons = CCDData(np.ones(shape), unit="electron")
    with pytest.raises(InputError, match="must be in adu"):
        DarkModel.from_masters(bias=electrons)


def hot_night(make_camera, seed, *, times=(60, 300), colder=1.0, power=None):
    """Darks, the shortest ``colder``; some pixels of which grow as a power of the time."""
    camera = make_camera(seed, shape=(64, 64))
    camera.rate[:] = 0.02
    kind = camera.rng.uniform(size=camera.shape)
    hot, bent = kind < 0.02, kind > (0.98 if power else 2)
    steady, curved = np.full(camera.shape, 0.02), np.zeros(camera.shape)
    steady[hot] += camera.rng.exponential(8, hot.sum())
    curved[bent] = camera.rng.exponential(8, bent.sum())
    biases, darks = camera.biases(20), []
    for t in times:
        grown = curved * (t / max(times)) ** ((power or 1) - 1)
        camera.rate = (steady + grown) * (colder if t == min(times) else 1)
        darks += camera.darks(t)
    model = DarkModel.fit(darks, bias=biases)
    truth = camera.bias + (steady + curved) * max(times) / camera.gain
    mean = stack(darks[-10:]).mean(axis=0)
    return model, truth, mean, hot, bent, curved


def pulls_at(model, t, truth):
    rows = slice(0, truth.shape[0])
    return (model.values(t, rows) - truth) / np.sqrt(model.variance(t, rows))


def width_of(pulls):
    low, high = np.percentile(np.concatenate(pulls), [15.865, 84.135])
    return (high - low) / 2


@pytest.mark.parametrize("colder", [0.7, 0.9])
def test_colder_darks_of_another_time_cost_the_matched_ones_nothing(make_camera, colder):
    pulls, lost, notes = [], 0, []
    for seed in range(20):
        model, truth, mean, hot, *_ = hot_night(make_camera, seed, colder=colder)
        pulls.append(pulls_at(model, 300, truth)[hot])
        ours = model.values(300, slice(0, 64))
        worse = np.abs(ours - truth) > np.abs(mean - truth) + 3 * np.sqrt(25 + 250) / 3
        lost += int(worse[hot].sum())
        notes += model.notes
    assert lost <= 1
    # Too few hot pixels to tell a small factor from wandering make errors too large.
    assert 0.82 < width_of(pulls) < 1.08
    said = [note for note in notes if "darks of 60 s disagree with those of 300 s" in note]
    if colder < 0.85:
        assert len(said) == 20
        assert all(f"{100 * (1 - colder):.0f}"[0] in note for note in said)


def test_no_exposure_time_of_clean_darks_is_said_to_disagree(make_camera):
    for seed in range(100, 120):
        model, _, _, hot, *_ = hot_night(make_camera, seed, times=(60, 120, 300))
        assert not any("disagree" in note for note in model.notes)
        assert (model.planes["flags"][hot] & FLAGS["NONLINEAR"]).sum() <= 1


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_pixels_that_bend_are_flagged_and_spoil_no_others(make_camera, power):
    straight, curved, further, flagged, n_bright = [], [], [], 0, 0
    for seed in range(20):
        model, truth, _, hot, bent, rate = hot_night(make_camera, seed, power=power)
        flags = model.planes["flags"] & FLAGS["NONLINEAR"] > 0
        bright = bent & (rate > 1)
        flagged, n_bright = flagged + flags[bright].sum(), n_bright + bright.sum()
        assert flags[hot].mean() < 0.02
        pull = pulls_at(model, 300, truth)
        straight.append(pull[hot])
        curved.append(pull[bent])
        error = np.sqrt(model.variance(150, slice(0, 64)))[hot]
        truth_150 = truth[hot] - 300
        assert np.median(error / np.maximum(truth_150, 20)) < 0.03
        assert not any("disagree" in note for note in model.notes)
        # Beyond the longest of the darks nobody knows how they go on: it is in their error.
        pull = pulls_at(model, 600, 300 + (truth - 300) * 2**power)
        further.append(pull[bright & flags])
    assert flagged > 0.98 * n_bright
    assert np.sqrt(np.mean(np.concatenate(further) ** 2)) < 1.5
    assert width_of(straight) == pytest.approx(1, abs=0.08)
    assert width_of(curved) == pytest.approx(1, abs=0.1)


def glowing(make_camera, seed, power, *, times=(60, 120, 300), glow=20.0):
    """Darks with a glow in a corner [adu at 300 s] that grows as a power of the time."""
    camera = make_camera(seed, shape=(96, 96), read_noise=3.0)
    y, x = np.mgrid[:96, :96]
    corner = glow * np.exp(-np.hypot(x, y) / 40)
    steady = np.full(camera.shape, 0.02)
    steady.ravel()[camera.hot] = 5.0
    biases, darks = camera.biases(20), []

    def rate(t):
        return steady + corner * camera.gain / t * (t / 300) ** power

    for t in times:
        camera.rate = rate(t)
        darks += camera.darks(t)
    model = DarkModel.fit(darks, bias=biases)

    def pulls(t):
        camera.rate = rate(t)
        return pulls_at(model, t, camera.dark(t))[corner > 0.3 * glow]

    return model, pulls


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_a_glow_that_bends_is_taken_off_as_it_was_measured(make_camera, power):
    model, pulls = glowing(make_camera, 7, power, glow=20.0)
    assert any(note.startswith("glow: ") for note in model.notes)
    assert pulls(300).std() < 1.2
    assert abs(pulls(300).mean()) < 0.5
    assert np.sqrt(np.mean(pulls(600) ** 2)) < 1.4


@pytest.mark.long
@pytest.mark.parametrize("power", [0.5, 1.5])
@pytest.mark.parametrize("glow", [10.0, 40.0])
def test_a_glow_that_does_not_grow_in_proportion_to_time_is_seen(make_camera, power, glow):
    matched, other = [], {150: [], 600: []}
    for seed in range(20):
        model, pulls = glowing(make_camera, seed, power, glow=glow)
        assert any(note.startswith("glow: ") for note in model.notes)
        matched.append(pulls(300))
        for t, values in other.items():
            values.append(pulls(t))
    # At a time that was measured the dark is what was measured.
    assert np.concatenate(matched).std() < 1.12
    assert np.mean(np.abs(np.concatenate(matched)) > 3) < 0.01
    # At others the error is what a parabola has over the line: more than is wrong.
    for values in other.values():
        assert np.sqrt(np.mean(np.concatenate(values) ** 2)) < 1.4


def test_a_glow_that_grows_in_proportion_to_time_is_no_glow_to_speak_of(make_camera):
    for seed in range(20):
        glow = [0, 5, 20, 60][seed % 4]
        model, pulls = glowing(make_camera, seed, 1.0, times=(60, 300), glow=glow)
        assert not any("glow" in note for note in model.notes)
        assert glow == 0 or pulls(300).std() < 1.2


def test_files_keep_a_glow(make_camera, tmp_path):
    model, _ = glowing(make_camera, 1, 1.5)
    model.write(tmp_path / "dark.fits")
    again, rows = DarkModel.read(tmp_path / "dark.fits"), slice(10, 30)
    for t in (120, 200):
        np.testing.assert_array_equal(again.values(t, rows), model.values(t, rows))
        np.testing.assert_array_equal(again.variance(t, rows), model.variance(t, rows))
    assert model.rest_at(300, rows).shape == (20, 96)
    assert model.rest_at(200, rows) is None


def test_lights_lose_the_glow_of_their_own_exposure_time(make_camera):
    model, _ = glowing(make_camera, 2, 0.5, glow=40.0)
    dark = model.at(300)
    light = CCDData(dark.data + 1000, unit="adu", meta={"EXPTIME": 300.0})
    done = calibrate(light, dark=model, detector=Detector(gain=0.6, read_noise=3.0))
    np.testing.assert_allclose(done.data[~done.mask], 2.0, rtol=1e-4)


def warm_night(make_camera, seed, fraction, **shape):
    camera = make_camera(seed, read_noise=3.0, **shape)
    camera.rate[:] = 0.02
    warm = camera.rng.uniform(size=camera.shape) < fraction
    camera.rate[warm] += camera.rng.uniform(0.02, 0.05, warm.sum())
    model = DarkModel.fit(camera.darks(120), bias=camera.biases(20), shrink=True)
    return model, pulls_at(model, 360, camera.dark(360)), warm


def test_rates_are_not_shrunk_where_warm_pixels_hide_among_the_ordinary(make_camera):
    warm, ordinary = [], []
    for seed in range(20):
        model, pull, place = warm_night(make_camera, seed, 0.04, shape=(128, 128))
        assert any("rates are not shrunk" in note for note in model.notes)
        warm.append(pull[place])
        ordinary.append(pull[~place])
    assert np.mean(np.abs(np.concatenate(warm)) > 3) < 0.02
    assert width_of(warm) == pytest.approx(1, abs=0.1)
    assert width_of(ordinary) == pytest.approx(1, abs=0.05)


def test_a_third_of_a_per_cent_of_warm_pixels_is_enough_for_that(make_camera):
    notes = [warm_night(make_camera, s, 0.003, shape=(256, 256))[0].notes for s in range(3)]
    assert all(any("not shrunk" in note for note in each) for each in notes)


def test_errors_of_lone_warm_pixels_hold_where_a_dark_is_extrapolated(make_camera):
    """Which no test finds among ordinary ones: ten of each kind in each of 20 cameras."""
    pulls, kinds = {}, (0.01, 0.02, 0.05, 0.1)
    for seed in range(20):
        camera = make_camera(seed, read_noise=3.0, shape=(96, 96))
        camera.rate[:] = 0.02
        place = camera.rng.choice(camera.rate.size, 10 * len(kinds), replace=False)
        camera.rate.ravel()[place] += np.repeat(kinds, 10)
        model = DarkModel.fit(camera.darks(120), bias=camera.biases(20))
        pull = pulls_at(model, 360, camera.dark(360)).ravel()
        for k, kind in enumerate(kinds):
            pulls.setdefault(kind, []).append(pull[place[10 * k : 10 * k + 10]])
        pulls.setdefault(0.0, []).append(np.delete(pull, place))
    for each in pulls.values():
        assert np.mean(np.abs(np.concatenate(each)) > 3) < 0.015
        assert width_of(each) == pytest.approx(1, abs=0.15)


def test_rates_of_clean_darks_are_shrunk(make_camera):
    for seed in range(100):
        model, *_ = warm_night(make_camera, seed, 0)
        assert not any("not shrunk" in note for note in model.notes)


def test_blocks_without_a_pixel_that_is_judged_cost_only_themselves(rng):
    values = (5 + 0.3 * rng.standard_normal((128, 128))).astype(np.float32)
    variance = np.full((128, 128), 0.09, np.float32)
    changes = np.zeros((128, 128), np.float32)

    def lost(rows):
        return np.arange(0 if rows.start >= 32 else (min(rows.stop, 32) - rows.start) * 128)

    def apply(rows, first, second):
        changes[rows] = variance[rows] * first

    told = shrink_plane(values, variance, lost, apply)
    assert np.isfinite(changes).all()
    assert np.std((values + changes)[32:]) < 0.1
    assert told["gain"] < 0.2


def test_real_cmos_darks_predict_a_longer_one(real_data):
    folder = real_data / "zwo-asi120-darkseries"
    biases = sorted((folder / "Bias").glob("*.fit"))
    flats = sorted((folder / "Flat").glob("*.fit"))
    detector = Detector.measure(flats, biases, saturation=61600)

    def darks(t):
        return sorted((folder / "Dark" / f"Dark_{t}s").glob("*.fit"))

    real = DarkModel.fit(darks(100), detector=detector, shrink=False).at(100)
    width = {}
    rms = {}
    for shrink in (False, True):
        model = DarkModel.fit(
            [*darks(10), *darks(30), *darks(50)], bias=biases, detector=detector, shrink=shrink
        )
        with pytest.warns(NarrowbandWarning, match="extrapolated"):
            guess = model.at(100)
        good = ~(guess.mask | real.mask) & (model.planes["flags"] & FLAGS["NONLINEAR"] == 0)
        # In every other frame the camera left the last 190 rows unexposed.
        assert guess.mask[800:].mean() > 0.15
        hot = good & (model.planes["rate"] > 30)
        rest = real.data - guess.data
        ordinary = good & ~hot
        # The level of the frame follows the temperature; a sky fit takes it off.
        level = np.median(rest[ordinary])
        assert abs(level) < 10  # of 740 adu
        sigma = np.hypot(real.uncertainty.array, guess.uncertainty.array)
        pull = (rest - level) / sigma
        low, high = np.percentile(pull[ordinary], [15.865, 84.135])
        width[shrink], rms[shrink] = (high - low) / 2, np.std(rest[ordinary & (np.abs(pull) < 5)])
        assert np.mean(np.abs(pull[hot]) < 1) > 0.65
        assert abs(np.median(pull[hot])) < 0.3
    assert width[False] == pytest.approx(1, abs=0.08)
    assert width[True] == pytest.approx(1, abs=0.05)
    assert rms[True] < rms[False]
