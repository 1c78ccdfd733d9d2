"""The noise of blank sky against what was predicted, on noise that no model has."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from scipy.ndimage import gaussian_filter, shift, uniform_filter

from astro_narrowband import coadd
from astro_narrowband.confront import compare_noise
from astro_narrowband.exceptions import NarrowbandWarning

SHAPE = (640, 700)


def white(seed, sigma=1.0):
    return np.random.default_rng(seed).normal(5.0, sigma, SHAPE)


def ones():
    return np.ones(SHAPE, np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_white_noise_is_what_was_predicted(seed):
    test = compare_noise(white(seed), ones())
    assert test.failures == []
    assert test.factor == test.correlation == 1
    assert test.sentence == ""
    for name, limit in (("pixels", 0.02), ("blocks", 0.12), ("apertures", 0.2), ("lines", 0.1)):
        assert abs(test.ratios[name][0] - 1) < limit


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.2, 1.4, 3.0])
def test_a_wrong_gain_or_read_noise_is_measured(ratio):
    test = compare_noise(white(3, ratio), ones())
    assert "pixels" in test.failures
    assert test.factor == pytest.approx(ratio, rel=0.01)
    assert test.correlation == 1
    assert "the gain or the read noise is not what was given" in test.sentence


@pytest.mark.parametrize("axis", [0, 1])
def test_lines_that_share_noise_are_seen(axis):
    shared = np.random.default_rng(7).normal(0, 0.35, SHAPE)
    shared = np.take(shared, [0], axis=axis)
    test = compare_noise(white(5) + shared, ones())
    assert "lines" in test.failures
    assert "rows or columns share noise" in test.sentence
    # A square of 12 pixels a side sums 12 lines that each share their noise.
    truth = np.sqrt(1 + 12 * 0.35**2)
    assert test.factor == pytest.approx(truth, rel=0.15)


def test_pixels_that_share_noise_with_their_neighbours_are_seen():
    noise = white(6) - 5
    noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3**0.5
    test = compare_noise(noise, ones())
    assert "pixels" not in test.failures
    assert "pixels beside each other share noise" in test.sentence
    assert test.factor == pytest.approx(3**0.5, rel=0.15)


def test_an_image_that_was_smoothed_before_keeps_the_errors_of_its_sums():
    noise = uniform_filter(white(8) - 5, 2)
    test = compare_noise(noise, ones())
    assert "pixels" in test.failures
    assert test.factor == 1
    assert test.correlation == pytest.approx(0.25, rel=0.05)


def test_errors_shrink_no_more_than_sums_do():
    """Interpolation by cubic splines: pixels scatter by 0.79 of their noise, sums hardly less."""
    for seed in range(20):
        white = np.random.default_rng(seed).normal(0, 1, (320, 320))
        test = compare_noise(shift(white, (0.5, 0.35), order=3), np.ones(white.shape))
        assert "pixels" in test.failures
        assert test.factor > 0.87
        assert "share noise" in test.sentence


@pytest.mark.parametrize(("scale", "strength"), [(12, 1), (12, 3), (20, 10), (40, 10), (80, 30)])
def test_nebula_is_not_noise(scale, strength):
    cloud = gaussian_filter(np.random.default_rng(9).normal(0, 1, SHAPE), scale)
    test = compare_noise(white(4) + strength * cloud / cloud.std(), ones())
    assert test.failures == []


@pytest.mark.parametrize(("scale", "strength"), [(5, 2), (6, 4), (8, 4), (10, 8), (12, 8)])
def test_fine_bright_nebula_does_not_make_errors_smaller(scale, strength):
    """What is taken off for it may be too much, which is not noise that is less than predicted."""
    for seed in range(4):
        rng = np.random.default_rng([seed, 11])
        cloud = gaussian_filter(rng.normal(size=(384, 384)), scale)
        image = rng.normal(size=cloud.shape) + strength * cloud / cloud.std()
        test = compare_noise(image, np.ones(cloud.shape))
        assert "pixels" not in test.failures
        assert test.factor >= 1
        assert all(error < ratio / 4 for ratio, error in test.ratios.values())


@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_what_is_said_of_blocks_on_nebula_is_right(strength):
    ratios = {"pixels": [], "blocks": [], "apertures": [], "lines": []}
    for seed in range(8):
        rng = np.random.default_rng([seed, 7])
        cloud = gaussian_filter(rng.normal(size=(384, 384)), 12)
        image = rng.normal(size=cloud.shape) + strength * cloud / cloud.std()
        for name, (ratio, _) in compare_noise(image, np.ones(cloud.shape)).ratios.items():
            ratios[name].append(ratio)
    assert len(ratios["pixels"]) == 8
    for values in ratios.values():
        assert not values or np.mean(values) == pytest.approx(1, abs=0.11)


def test_stars_and_gradients_are_not_noise(rng):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = white(11) + 0.05 * x - 0.02 * y
    for _ in range(150):
        cx, cy, flux = rng.uniform(0, 640), rng.uniform(0, 640), 30 / rng.random()
        image += flux * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 5)
    assert compare_noise(image, ones()).failures == []


def test_masked_pixels_do_not_count(rng):
    image, mask = white(12), rng.random(SHAPE) < 0.05
    image[mask] = np.nan
    image[:, :200] = 1e9
    mask[:, :200] = True
    assert compare_noise(image, ones(), mask).failures == []


@pytest.mark.parametrize("shape", [(64, 64), (300, 40)])
def test_a_small_image_tells_nothing(shape):
    test = compare_noise(np.zeros(shape), np.ones(shape))
    assert test.ratios == {}
    assert test.failures == []


# ------------------------------------------------------------------ in every coadd


def lights(seed, *, noise, stated, n=6, shape=(400, 420)):
    """Frames of sky in electron/s whose noise is not what is stated of it."""
    rng = np.random.default_rng(seed)
    return [
        CCDData(
            5.0 + noise(rng, shape),
            unit="electron/s",
            uncertainty=StdDevUncertainty(np.full(shape, stated)),
            header=fits.Header({"EXPTIME": 60.0, "MASTERID": "none"}),
        )
        for _ in range(n)
    ]


def test_a_coadd_is_scaled_to_what_its_sky_shows():
    wrong = lights(1, noise=lambda r, s: r.normal(0, 0.6, s), stated=0.3)
    with pytest.warns(NarrowbandWarning, match="the errors were multiplied by 2") as caught:
        made = coadd(wrong, flux_scale="none", reject=False)
    assert len(caught) == 1
    assert made.ccd.header["NOISEPIX"] == pytest.approx(2.0, rel=0.02)
    assert np.std((made.ccd.data - 5) / made.ccd.uncertainty.array) == pytest.approx(1, rel=0.02)


def test_rows_that_share_noise_are_in_the_error_of_apertures():
    def noise(rng, shape):
        return rng.normal(0, 0.3, shape) + rng.normal(0, 0.15, (shape[0], 1))

    with pytest.warns(NarrowbandWarning, match="rows or columns share noise"):
        made = coadd(lights(2, noise=noise, stated=0.3), flux_scale="none", reject=False)
    squares = made.ccd.data[:396, :420].reshape(33, 12, 35, 12).mean(axis=(1, 3)) - 5
    predicted = made.ccd.uncertainty.array[0, 0] / 12
    assert np.std(squares) / predicted == pytest.approx(1, abs=0.2)


def test_a_right_error_is_left_alone():
    made = coadd(lights(3, noise=lambda r, s: r.normal(0, 0.3, s), stated=0.3), flux_scale="none")
    assert made.ccd.header["ERRSCALE"] == 1
    assert made.ccd.header["NOISEBLK"] == pytest.approx(1, abs=0.15)


def test_small_images_are_told_as_well():
    """Cells are smaller where the image is; what cannot be told of nebula in them is left out."""
    for seed in range(8):
        rng = np.random.default_rng([seed, 3])
        shape = [(200, 200), (256, 256), (320, 320), (330, 250)][seed % 4]
        noise = rng.normal(0, 1, shape)
        x = np.mgrid[: shape[0], : shape[1]][1]
        clean = compare_noise(noise + np.sin(x / 20.0), np.ones(shape))
        assert clean.ratios["pixels"][0] == pytest.approx(1, abs=0.06)
        assert not clean.failures
        wrong = compare_noise(1.4 * noise, np.ones(shape))
        assert wrong.factor == pytest.approx(1.4, abs=0.15)
