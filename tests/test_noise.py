"""The variance model: against numbers by hand, brute force and Monte Carlo."""

import numpy as np
import pytest

from astro_narrowband.noise import (
    common_variance,
    expected_variance,
    mirror_border,
    neighbour_mean,
    pixel_variance,
    signal_variance,
)


def bordered(image):
    out = np.empty((image.shape[0] + 2, image.shape[1] + 2), image.dtype)
    out[1:-1, 1:-1] = image
    mirror_border(out)
    return out


def test_variance_by_hand():
    variance = pixel_variance(np.array([-4.0, 0.0, 100.0]), read_noise=3.0, gain=1.2)
    np.testing.assert_allclose(variance, [9.12, 9.12, 109.12], rtol=1e-12)


def test_neighbour_mean_against_brute_force(rng):
    image = rng.normal(100, 10, (9, 11))
    bad = rng.random(image.shape) < 0.3
    bad[2:5, 2:5] = True  # a pixel without a single good neighbour
    image[bad] = 0
    wide, wide_bad = bordered(image), bordered(bad)
    expected = np.empty_like(image)
    for y in range(9):
        for x in range(11):
            values = wide[y : y + 3, x : x + 3].copy()
            good = ~wide_bad[y : y + 3, x : x + 3]
            good[1, 1] = False
            expected[y, x] = values[good].mean() if good.any() else image[y, x]
    np.testing.assert_allclose(neighbour_mean(wide, wide_bad), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_border_of_tiny_images(shape):
    image = np.arange(shape[0] * shape[1], dtype=float).reshape(shape)
    wide = bordered(image)
    mode = "reflect" if min(shape) > 1 else None
    np.testing.assert_array_equal(wide[1:-1, 1:-1], image)
    if mode:
        np.testing.assert_array_equal(wide, np.pad(image, 1, mode))
    assert np.isfinite(neighbour_mean(wide)).all()


def test_star_core_is_believed_itself_and_sky_is_not(rng):
    image = rng.normal(30, 7.4, (32, 32)).astype(np.float32)
    image[10, 10] = 5000
    variance = expected_variance(bordered(image), gain=1.0, floor=25)
    assert variance[10, 10] == pytest.approx(5025, rel=1e-6)
    # Its neighbours are not told by it.
    assert variance[9, 9] == pytest.approx(image[9, 9] + 25, rel=1e-5)
    # 30 + 25, from eight neighbours: a scatter of 7.4 / sqrt(8).
    sky = variance[16:, 16:]
    assert sky.mean() == pytest.approx(55, rel=0.02)
    assert sky.std() < 4


def test_flat_and_dark_current_enter_the_variance():
    image = np.full((8, 8), 100, np.float32)
    flat, dark = np.full((8, 8), 0.5, np.float32), np.full((8, 8), 40, np.float32)
    variance = expected_variance(
        bordered(image), gain=2.0, floor=25, weight=2.0 / flat, dark=dark / 2.0
    )
    np.testing.assert_allclose(variance, (100 * 0.5 + 40 + 25) / 0.25, rtol=1e-6)


@pytest.mark.parametrize(("sky", "own_count_bias"), [(1, -0.02), (30, -0.05), (300, -0.02)])
def test_pulls_of_a_faint_sky(sky, own_count_bias):
    rng = np.random.default_rng(sky)
    image = rng.poisson(sky, (1024, 512)) + rng.normal(0, 5, (1024, 512))
    pulls = (image - sky) / np.sqrt(expected_variance(bordered(image), gain=1.0, floor=25))
    assert abs(pulls.mean()) < 0.008
    assert pulls.std() == pytest.approx(1, abs=0.01)
    assert np.mean(np.abs(pulls) < 1) == pytest.approx(0.683, abs=0.005)
    # What a variance from the pixel's own count does instead.
    own = (image - sky) / np.sqrt(pixel_variance(image, read_noise=5, gain=1e-3))
    assert own.mean() < own_count_bias


def test_common_variance_is_the_formula_of_shared_masters(rng):
    sigma_b, sigma_r, rho = 1.5, 0.02, -0.6
    cov = rho * sigma_b * sigma_r
    exposures, weights = np.array([60.0, 120, 300]), np.array([1.0, 2, 4])
    # Cholesky factor of the covariance, per second.
    shared = [
        np.array([sigma_b / t + cov / sigma_b, np.sqrt(sigma_r**2 - (cov / sigma_b) ** 2)])
        for t in exposures
    ]
    a = (weights / exposures).sum() / weights.sum()
    expected = a**2 * sigma_b**2 + sigma_r**2 + 2 * a * cov
    assert common_variance(shared, weights) == pytest.approx(expected, rel=1e-12)
    b, r = rng.multivariate_normal([0, 0], [[sigma_b**2, cov], [cov, sigma_r**2]], 200_000).T
    mean = sum(w * (b / t + r) for w, t in zip(weights, exposures, strict=True)) / weights.sum()
    assert mean.var() == pytest.approx(expected, rel=0.02)


def test_variance_of_a_known_signal_by_monte_carlo(rng):
    """Raw counts of a known rate, calibrated and scaled: their scatter is what is said."""
    gain, read_noise, exposure, scale, offset = 0.7, 4.0, 120.0, 1.3, 0.4
    flat, rate, light = 0.8, 0.05, 0.9
    collected = exposure * (light * flat + rate * gain)
    electrons = rng.poisson(collected, 400_000) + rng.normal(0, read_noise, 400_000)
    adu = np.rint(electrons / gain)
    data = (adu - rate * exposure) * gain / flat / exposure
    values = scale * data - offset
    planes = (np.full((1, 1), x, np.float32) for x in (scale * light - offset, rate, gain / flat))
    variance = signal_variance(
        *planes, gain=gain, floor=read_noise**2 + gain**2 / 12, exposure=exposure,
        scale=scale, offset=offset,
    )  # fmt: skip
    assert values.mean() == pytest.approx(scale * light - offset, abs=3e-4)
    assert variance[0, 0] == pytest.approx(values.var(), rel=0.01)
