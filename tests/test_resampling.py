"""One interpolation: flux, noise, mask, footprint and WCS come through it."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from astro_narrowband._engine import lanczos as _lanczos
from astro_narrowband._engine.frames import Band, Frame
from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.registration import Alignment
from astro_narrowband.registration.match import rotation_about
from astro_narrowband.resampling import ResampledFrame, noise_factor, resample

SHAPE = (120, 130)
MIDDLE = (64.5, 59.5)


def star(x, y, fwhm=2.5, shape=SHAPE, flux=1e5):
    sigma = fwhm / 2.3548
    gx, gy = (
        np.diff(erf((np.arange(n + 1) - 0.5 - c) / sigma / 2**0.5)) / 2
        for n, c in ((shape[1], x), (shape[0], y))
    )
    return (flux * np.outer(gy, gx)).astype(np.float32)


def turned(degrees, dx=0.0, dy=0.0):
    matrix = rotation_about(MIDDLE, np.radians(degrees))
    matrix[:2, 2] += dx, dy
    return Alignment(matrix)


def half_turn(x, y):
    return Alignment(np.array([[-1.0, 0, x], [0, -1, y], [0, 0, 1]]))


def ccd_of(data, *, variance=None, mask=None):
    uncertainty = None if variance is None else VarianceUncertainty(variance)
    return CCDData(data, uncertainty=uncertainty, mask=mask, unit="electron / s")


ALIGNMENTS = {
    "shift": Alignment.translation(0.37, -0.42),
    "half pixel": Alignment.translation(-7.5, 4.5),
    "whole pixels": Alignment.translation(5, -3),
    "half turn": half_turn(129, 119),
    "half turn and shift": half_turn(130.3, 118.6),
    "mirror and shift": Alignment(np.array([[-1.0, 0, 130.3], [0, 1, 0.4], [0, 0, 1]])),
    "small rotation": turned(0.3, 2.2, -1.1),
    "half turn and rotation": turned(180.3, 1.2, 0.7),
    "rotation": turned(17, 0.3, 0.2),
    "right angle": turned(90, 0.3, 0.2),
}


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_a_star_comes_to_its_place_with_its_flux(name, kernel):
    alignment = ALIGNMENTS[name]
    x, y = 58.3, 61.7
    out = resample(ccd_of(star(x, y)), alignment, kernel=kernel)
    tx, ty = alignment(x, y)
    good = ~out.mask
    expected = star(tx, ty)
    assert out.data[good].sum() == pytest.approx(
        1e5, rel={"lanczos3": 1e-3, "bilinear": 3e-3}[kernel]
    )
    limit = {"lanczos3": 0.02, "bilinear": 0.2}[kernel]
    assert np.abs(out.data - expected)[good].max() < limit * expected.max()
    yy, xx = np.indices(SHAPE)
    near = {"lanczos3": 2.5e-3, "bilinear": 1.2e-2}[kernel]
    window = np.where(good, np.exp(-((xx - tx) ** 2 + (yy - ty) ** 2) / 2.25), 0)
    light = window * np.where(good, out.data, 0)
    assert (light * (xx - tx)).sum() / light.sum() == pytest.approx(0, abs=near)
    assert (light * (yy - ty)).sum() / light.sum() == pytest.approx(0, abs=near)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.floats(-20, 20), st.floats(-20, 20),
    st.one_of(st.just(0.0), st.just(180.0), st.floats(-180, 180)),
    st.floats(2.0, 5.0),
)  # fmt: skip
def test_flux_is_kept_for_any_shift_and_rotation(dx, dy, degrees, fwhm):
    alignment = turned(degrees, dx, dy) if degrees else Alignment.translation(dx, dy)
    out = resample(ccd_of(star(64.2, 60.4, fwhm)), alignment)
    limit = 3.5e-3 * 2 / fwhm if degrees % 180 else 1e-5
    assert out.data[~out.mask].sum(dtype=float) == pytest.approx(1e5, rel=limit)


def test_turned_stars_keep_their_flux_in_the_mean(rng):
    """One star may be off by the kernel's ripple (its taps sum to 1, an input pixel's do not)."""
    fluxes = [
        np.nansum(
            resample(
                ccd_of(star(64.2, 60.4, 2.0)),
                turned(rng.uniform(-180, 180), *rng.uniform(-15, 15, 2)),
            ).data,
            dtype=float,
        )
        for _ in range(60)
    ]
    assert np.mean(fluxes) == pytest.approx(1e5, rel=4e-4)
    assert np.std(fluxes) < 1e-3 * 1e5


def test_flux_is_kept_where_the_scale_changes():
    alignment = Alignment(rotation_about(MIDDLE, 0.0, 1.0008))
    out = resample(ccd_of(star(64.2, 60.4)), alignment)
    assert out.data[~out.mask].sum() == pytest.approx(1e5, rel=1e-3)


def test_first_moment_of_lanczos():
    """It is off by up to 0.02 pix, as in every program that uses this kernel; the core is not."""
    fraction = np.linspace(0, 1, 101)
    weights = _lanczos.lanczos(fraction)
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-12)
    moment = (weights * np.arange(-2, 4)[:, None]).sum(axis=0) - fraction
    assert 0.0195 < np.abs(moment).max() < 0.0205
    assert np.allclose(weights[:, ::-1], weights[::-1], atol=1e-12)


def test_against_a_plain_sum_in_float64(rng):
    data = rng.normal(100, 10, (40, 50))
    alignment = Alignment.translation(2.3, -1.6)
    out = resample(ccd_of(data.astype(np.float32)), alignment)
    for y, x in ((20, 25), (7, 12), (30, 44)):
        sx, sy = x - 2.3, y + 1.6
        jx, jy = int(np.floor(sx)), int(np.floor(sy))
        wx = np.array([np.sinc(sx - k) * np.sinc((sx - k) / 3) for k in range(jx - 2, jx + 4)])
        wy = np.array([np.sinc(sy - k) * np.sinc((sy - k) / 3) for k in range(jy - 2, jy + 4)])
        box = data[jy - 2 : jy + 4, jx - 2 : jx + 4]
        expected = wy @ box @ wx / wy.sum() / wx.sum()
        assert out.data[y, x] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("degrees", [0.05, 0.3, 0.5, -0.4, 180.3])
def test_two_passes_agree_with_the_full_kernel(degrees, rng, monkeypatch):
    positions = rng.uniform(20, 100, (6, 2))
    ccd = ccd_of(sum(star(x, y) for x, y in positions), variance=np.ones(SHAPE))
    frame = ResampledFrame(ccd, turned(degrees, 0.4, 0.2))
    quick = frame.read(slice(0, SHAPE[0]))
    monkeypatch.setattr(_lanczos, "can_shear", lambda matrix: False)
    full = frame.read(slice(0, SHAPE[0]))
    assert np.array_equal(quick.mask, full.mask)
    difference = np.abs(quick.data - full.data)[~full.mask]
    assert 0 < difference.max() < 2e-3 * ccd.data.max()
    assert np.allclose(quick.variance[~full.mask], 1, atol=1e-5)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_bands_of_any_height_give_the_same_pixels(name, rng):
    data = rng.normal(50, 5, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.02
    mask[40:52, 60:70] = True
    data[mask] = np.nan
    ccd = ccd_of(data, variance=rng.uniform(1, 2, SHAPE).astype(np.float32), mask=mask)
    frame = ResampledFrame(ccd, ALIGNMENTS[name])
    whole = frame.read(slice(0, SHAPE[0]))
    assert np.array_equal(frame.read(slice(55, 56)).data, whole.data[55:56], equal_nan=True)
    for height in (13, 50):
        bands = [
            frame.read(slice(y, min(y + height, SHAPE[0]))) for y in range(0, SHAPE[0], height)
        ]
        for k, plane in enumerate(whole):
            joined = np.concatenate([band[k] for band in bands])
            assert np.array_equal(joined, plane, equal_nan=plane.dtype.kind == "f")


class Recorder(Frame):
    """A frame that remembers which rows it was asked for."""

    def __init__(self, ccd):
        self.ccd, self.asked = ccd, []
        self.name, self.shape, self.unit = "recorder", ccd.shape, ccd.unit
        self.header, self.masters, self.exposure = fits.Header(), "night 1", 300.0

    def read(self, rows):
        self.asked.append(rows)
        return Band(self.ccd.data[rows], self.ccd.uncertainty.array[rows], None)

    def master_noise(self, rows):
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
        return y + np.zeros(self.shape[1], np.float32), np.ones((len(y), self.shape[1])), None


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_only_the_rows_needed_are_read(name):
    inner = Recorder(ccd_of(np.ones((400, 130), np.float32), variance=np.ones((400, 130))))
    frame = ResampledFrame(inner, ALIGNMENTS[name])
    frame.read(slice(100, 110))
    (rows,) = inner.asked
    tilt = 130 * abs(ALIGNMENTS[name].matrix[1, 0])
    assert rows.stop - rows.start <= 10 + tilt + 18


def test_it_is_a_frame_that_passes_things_on():
    inner = Recorder(ccd_of(np.ones(SHAPE, np.float32), variance=np.ones(SHAPE)))
    frame = ResampledFrame(inner, Alignment.translation(3, -2.4))
    assert isinstance(frame, Frame)
    assert (frame.masters, frame.exposure, frame.name) == ("night 1", 300.0, "recorder")
    assert frame.unit == u.electron / u.s
    plain = ResampledFrame(ccd_of(np.ones(SHAPE)), Alignment.identity())
    assert plain.masters is plain.exposure is None


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_noise_of_masters_is_that_of_the_nearest_pixel(name):
    inner = Recorder(ccd_of(np.ones(SHAPE, np.float32), variance=np.ones(SHAPE)))
    alignment = ALIGNMENTS[name]
    frame = ResampledFrame(inner, alignment)
    rows = slice(20, 60)
    found, place = frame.nearest(inner.master_noise, rows)
    assert found[2] is None
    modes = np.zeros((2, 40, SHAPE[1]))
    modes[0][place], modes[1][place] = found[:2]
    y, x = np.mgrid[rows, 0 : SHAPE[1]]
    sx, sy = alignment.inverse()(x, y)
    inside = (sx > 1) & (sx < SHAPE[1] - 2) & (sy > 1) & (sy < SHAPE[0] - 2)
    assert np.abs(modes[0] - sy)[inside].max() <= 0.5 + 1e-6
    assert (modes[1][inside] == 1).all()
    far = (sx < -1) | (sx > SHAPE[1]) | (sy < -1) | (sy > SHAPE[0])
    assert (modes[1][far] == 0).all()


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_bad_pixel_touches_no_more_than_the_kernel(name, kernel):
    data = np.full(SHAPE, 100.0, np.float32)
    clean = resample(ccd_of(data.copy(), variance=data), ALIGNMENTS[name], kernel=kernel)
    data[60, 64] = np.nan
    out = resample(ccd_of(data, variance=np.full(SHAPE, 100.0)), ALIGNMENTS[name], kernel=kernel)
    new = out.mask & ~clean.mask
    x, y = ALIGNMENTS[name](64, 60)
    yy, xx = np.nonzero(new)
    reach = 3 if kernel == "lanczos3" else 1
    grown = reach * np.abs(ALIGNMENTS[name].matrix[:2, :2]).sum(axis=1).max()
    assert np.abs(xx - x).max() <= grown
    assert np.abs(yy - y).max() <= grown
    assert 1 <= new.sum() <= 16
    # The flat field stays flat: the hole was filled before the interpolation.
    good = ~(out.mask if out.header["NOISECOR"] == 1 else clean.mask)
    assert np.isfinite(out.data[good]).all()
    assert np.allclose(out.data[good], 100, atol=1e-3)


def test_a_lone_bad_pixel_at_half_a_pixel_is_masked():
    # Its weight is spread over four pixels, a quarter each: a threshold of 0.4 loses it.
    mask = np.zeros(SHAPE, bool)
    mask[60, 64] = True
    out = resample(ccd_of(np.ones(SHAPE), mask=mask), Alignment.translation(0.5, 0.5))
    assert out.mask[60:62, 64:66].all()


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear", "integer"])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_nothing_outside_the_footprint_is_valid(name, kernel):
    alignment = ALIGNMENTS[name]
    if kernel == "integer" and abs(alignment.matrix[1, 0]) > 1e-9:
        pytest.skip("whole pixels do not rotate")
    out = resample(ccd_of(np.ones(SHAPE), variance=np.ones(SHAPE)), alignment, kernel=kernel)
    y, x = np.indices(SHAPE)
    sx, sy = alignment.inverse()(x, y)
    margin = 0.5 if kernel == "integer" else 1e-6
    outside = (sx < -margin) | (sx > SHAPE[1] - 1 + margin)
    outside |= (sy < -margin) | (sy > SHAPE[0] - 1 + margin)
    assert out.mask[outside].all()
    assert np.isnan(out.data[outside]).all()
    assert not (out.data == 0).any()
    inside = (sx > 3) & (sx < SHAPE[1] - 4) & (sy > 3) & (sy < SHAPE[0] - 4)
    assert not out.mask[inside].any()


@pytest.mark.parametrize("shift", [(500, 0), (0, -500), (129.5, 0), (-3000.2, 4000.7)])
def test_a_frame_moved_out_of_sight_is_all_masked(shift):
    for kernel in ("lanczos3", "bilinear", "integer"):
        out = resample(ccd_of(np.ones(SHAPE)), Alignment.translation(*shift), kernel=kernel)
        assert out.mask.all()
        assert np.isnan(out.data).all()


@pytest.mark.parametrize("name", ["whole pixels", "half turn"])
@pytest.mark.parametrize("kernel", ["lanczos3", "integer", "bilinear"])
def test_whole_pixels_are_exact(name, kernel, rng):
    data = rng.normal(0, 1e4, SHAPE).astype(np.float32)
    variance = rng.uniform(1, 2, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.1
    data[mask] = np.nan
    alignment = ALIGNMENTS[name]
    out = resample(ccd_of(data, variance=variance, mask=mask), alignment, kernel=kernel)
    y, x = np.indices(SHAPE)
    sx, sy = (np.rint(a).astype(int) for a in alignment.inverse()(x, y))
    inside = (sx >= 0) & (sx < SHAPE[1]) & (sy >= 0) & (sy < SHAPE[0])
    there = sy[inside], sx[inside]
    assert np.array_equal(out.data[inside], data[there], equal_nan=True)
    assert np.array_equal(out.mask[inside], mask[there])
    assert np.array_equal(out.uncertainty.array[inside], np.sqrt(variance[there]))
    assert out.header["NOISECOR"] == 1.0


def test_integer_rounds_the_shift_and_refuses_to_rotate():
    out = resample(ccd_of(star(60, 60)), Alignment.translation(2.4, -3.6), kernel="integer")
    assert np.array_equal(out.data[40:80, 40:80], star(62, 56)[40:80, 40:80])
    with pytest.raises(InputError, match="integer"):
        ResampledFrame(ccd_of(star(60, 60)), turned(0.3), kernel="integer")


NOISE_CASES = {
    "lanczos3 half pixel": ("lanczos3", Alignment.translation(0.5, 0.5)),
    "lanczos3 shift": ("lanczos3", Alignment.translation(0.37, -0.42)),
    "lanczos3 slight": ("lanczos3", Alignment.translation(0.1, 0.05)),
    "lanczos3 flip": ("lanczos3", half_turn(399.3, 399.6)),
    "lanczos3 rotation": ("lanczos3", Alignment(rotation_about((200, 200), np.radians(0.3)))),
    "lanczos3 large rotation": ("lanczos3", Alignment(rotation_about((200, 200), 0.3))),
    "bilinear": ("bilinear", Alignment.translation(0.37, -0.42)),
    "integer": ("integer", Alignment.translation(0.37, -0.42)),
}


@pytest.mark.parametrize("name", NOISE_CASES)
def test_pull_width_of_apertures_on_resampled_noise(name, rng):
    kernel, alignment = NOISE_CASES[name]
    variance = np.full((400, 400), 4.0, np.float32)
    values = {1: [], 5: [], 10: []}
    for _ in range(3):
        ccd = ccd_of(rng.normal(0, 2, variance.shape).astype(np.float32), variance=variance)
        frame = ResampledFrame(ccd, alignment, kernel=kernel)
        out = frame.read(slice(0, 400))
        inner = np.s_[70:330, 70:330]
        for n, pulls in values.items():
            total, error2 = (
                a[inner].reshape(260 // n, n, 260 // n, n).sum(axis=(1, 3))
                for a in (out.data, out.variance)
            )
            factor = noise_factor(frame.noise_correlation, n * n, kernel=kernel)
            pulls.append(total / np.sqrt(error2) / factor)
    # 3 x 52^2 apertures of 5 x 5: the width is known to 0.8 %.
    assert 0.97 < np.std(values[5]) < 1.03
    assert 0.97 < np.std(values[1]) < 1.03
    assert 0.93 < np.std(values[10]) < 1.07


def test_noise_factor_ends():
    assert noise_factor(1.0, np.array([1.0, 25.0, 1e6])).tolist() == [1, 1, 1]
    assert noise_factor(0.64, 1.0, kernel="bilinear") == pytest.approx(0.8)
    assert noise_factor(0.64, 1e8) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="kernel"):
        noise_factor(0.5, 3.0, kernel="cubic")


def test_variance_is_kept_and_follows_the_pixels(rng):
    variance = rng.uniform(1, 3, SHAPE).astype(np.float32)
    for name in ("shift", "half turn and shift", "small rotation", "rotation"):
        out = resample(ccd_of(np.ones(SHAPE), variance=variance), ALIGNMENTS[name])
        assert isinstance(out.uncertainty, StdDevUncertainty)
        got = out.uncertainty.array[~out.mask] ** 2
        assert got.min() >= 0.999
        assert got.max() <= 3.001
        assert got.mean() == pytest.approx(variance.mean(), rel=0.02)
    assert resample(ccd_of(np.ones(SHAPE)), ALIGNMENTS["shift"]).uncertainty is None


def test_no_part_of_the_mask_is_lost_in_a_large_hole():
    mask = np.zeros(SHAPE, bool)
    mask[30:70, 40:80] = True
    data = np.full(SHAPE, 10.0, np.float32)
    data[mask] = np.nan
    for name in ("shift", "small rotation", "rotation"):
        out = resample(ccd_of(data, mask=mask), ALIGNMENTS[name])
        y, x = np.indices(SHAPE)
        sx, sy = ALIGNMENTS[name].inverse()(x, y)
        inside = (sx > 40) & (sx < 79) & (sy > 30) & (sy < 69)
        assert out.mask[inside].all()
        good = ~out.mask
        assert np.allclose(out.data[good], 10, atol=1e-4)


def test_everything_masked():
    out = resample(ccd_of(np.ones(SHAPE), mask=np.ones(SHAPE, bool)), ALIGNMENTS["shift"])
    assert out.mask.all()


def test_header_and_wcs():
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"] = 40.0, 70.0
    header["CRVAL1"], header["CRVAL2"] = 83.8, -5.4
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -3e-4, 1e-5, 1e-5, 3e-4
    ccd = CCDData(np.ones(SHAPE), unit="adu", header=header, wcs=WCS(header))
    for name in ("shift", "small rotation", "half turn and shift", "rotation"):
        alignment = ALIGNMENTS[name]
        out = resample(ccd, alignment)
        x, y = np.array([10.0, 100.0]), np.array([20.0, 90.0])
        before = ccd.wcs.pixel_to_world(x, y)
        after = out.wcs.pixel_to_world(*alignment(x, y))
        assert before.separation(after).arcsec.max() < 1e-3
        assert out.header["RESAMPLE"] == "lanczos3"
        assert 0 < out.header["NOISECOR"] < 1
        assert out.header["REGDX"] == pytest.approx(alignment.shift[0], abs=1e-4)
        assert "NOISECOR" not in ccd.header
    # A CCDData that was read from a file has its WCS beside the header, not in it.
    beside = CCDData(np.ones(SHAPE), unit="adu", wcs=WCS(header))
    out = resample(beside, ALIGNMENTS["small rotation"])
    after = out.wcs.pixel_to_world(*ALIGNMENTS["small rotation"](x, y))
    assert before.separation(after).arcsec.max() < 1e-3
    assert beside.wcs.wcs.crpix.tolist() == [40, 70]
    target = header.copy()
    target["CRPIX1"] = 77.0
    out = resample(ccd, ALIGNMENTS["shift"], target=target)
    assert out.header["CRPIX1"] == 77.0
    assert out.wcs.wcs.crpix[0] == 77.0


@pytest.mark.parametrize("cards", [{"CTYPE2": "DEC--NON"}, {"CTYPE3": "FREQ", "CRVAL3": 5e14}])
def test_a_wrong_wcs_is_left_out_with_a_warning(cards):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CD1_1"], header["CD2_2"] = 1e-4, 1e-4
    header.update(cards)
    ccd = CCDData(np.ones(SHAPE), unit="adu", header=header)
    with pytest.warns(NarrowbandWarning, match=r"CTYPE1 = 'RA---TAN': the WCS cannot be used"):
        out = resample(ccd, ALIGNMENTS["small rotation"])
    assert out.wcs is None
    assert "CTYPE1" not in out.header
    assert ccd.header["CTYPE1"] == "RA---TAN"


def test_another_shape():
    out = resample(ccd_of(star(60, 60)), Alignment.translation(0.5, 0.5), shape=(80, 200))
    assert out.shape == (80, 200)
    assert out.data[40:80, 40:80].sum() == pytest.approx(1e5, rel=1e-3)
    assert out.mask[:, 131:].all()


def test_pickles_and_reads_from_many_threads(rng):
    ccd = ccd_of(rng.normal(size=SHAPE).astype(np.float32), variance=np.ones(SHAPE))
    for name in ("shift", "small rotation", "rotation"):
        frame = ResampledFrame(ccd, ALIGNMENTS[name])
        whole = frame.read(slice(0, SHAPE[0]))
        copy = pickle.loads(pickle.dumps(frame))  # noqa: S301
        assert np.array_equal(copy.read(slice(0, SHAPE[0])).data, whole.data, equal_nan=True)
        with ThreadPoolExecutor(4) as pool:
            parts = list(
                pool.map(lambda y, f=frame: f.read(slice(y, y + 6)).data, range(0, 120, 6))
            )
        assert np.array_equal(np.concatenate(parts), whole.data, equal_nan=True)


def test_input_is_not_changed(rng):
    data = rng.normal(size=SHAPE).astype(np.float32)
    data[5, 5] = np.nan
    mask = rng.random(SHAPE) < 0.05
    ccd = ccd_of(data.copy(), variance=np.ones(SHAPE), mask=mask.copy())
    resample(ccd, ALIGNMENTS["shift"])
    resample(ccd, ALIGNMENTS["rotation"])
    assert np.array_equal(ccd.data, data, equal_nan=True)
    assert np.array_equal(ccd.mask, mask)


def test_bad_arguments():
    with pytest.raises(InputError, match="kernel"):
        resample(ccd_of(np.ones(SHAPE)), Alignment.identity(), kernel="cubic")
    with pytest.raises(InputError, match="CCDData"):
        resample(np.ones(SHAPE), Alignment.identity())
