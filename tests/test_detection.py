"""Stars are found, measured with honest errors, and told from what is not a star."""

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, VarianceUncertainty
from scipy.special import erf

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband.exceptions import InputError

SKY, READ_NOISE = 100.0, 5.0


def add_stars(image, x, y, flux, fwhm):
    """Gaussian stars, integrated over the pixels."""
    sigma = fwhm / 2.3548
    half = int(6 * sigma + 3)
    for xi, yi, fi in zip(x, y, flux, strict=True):
        ix, iy = round(xi), round(yi)
        x0, x1 = max(ix - half, 0), min(ix + half + 1, image.shape[1])
        y0, y1 = max(iy - half, 0), min(iy + half + 1, image.shape[0])
        if x0 < x1 and y0 < y1:
            gx = np.diff(erf((np.arange(x0, x1 + 1) - 0.5 - xi) / sigma / 2**0.5)) / 2
            gy = np.diff(erf((np.arange(y0, y1 + 1) - 0.5 - yi) / sigma / 2**0.5)) / 2
            image[y0:y1, x0:x1] += fi * np.outer(gy, gx)


def frame(rng, shape, x, y, flux, fwhm=3.0, *, sky=SKY):
    image = np.zeros(shape) + sky
    add_stars(image, x, y, flux, fwhm)
    return rng.poisson(image) + rng.normal(0, READ_NOISE, shape)


def grid_of_stars(rng, step=32, shape=(512, 512)):
    y, x = np.mgrid[step : shape[0] - step : step, step : shape[1] - step : step]
    x, y = x.ravel() + rng.uniform(-2, 2, x.size), y.ravel() + rng.uniform(-2, 2, y.size)
    return x, y


def matched(table, x, y, radius=1.0):
    distance = np.hypot(table["x_center"].value[:, None] - x, table["y_center"].value[:, None] - y)
    nearest = distance.argmin(axis=1)
    return nearest, distance[np.arange(len(table)), nearest] < radius


@pytest.mark.parametrize(("fwhm", "flux"), [(2.0, 2e4), (3.0, 3e3), (3.0, 1e5), (6.0, 3e4)])
def test_position_errors_are_true(rng, fwhm, flux):
    x, y = grid_of_stars(rng)
    image = frame(rng, (512, 512), x, y, np.full(x.size, flux), fwhm)
    stars = detect_stars(CCDData(image, unit="electron"))
    k, ok = matched(stars, x, y)
    assert ok.all()
    assert len(stars) > 0.97 * x.size
    pulls = np.concatenate([
        (stars["x_center"].value - x[k]) / stars["x_err"].value,
        (stars["y_center"].value - y[k]) / stars["y_err"].value,
    ])  # fmt: skip
    # A pull width of 1 +- 5 % (about 400 values).
    assert 0.85 < np.std(pulls) < 1.2
    assert abs(pulls.mean()) < 0.2
    assert stars.meta["fwhm"] == pytest.approx(fwhm, rel=0.08)


def test_photon_limit(rng):
    # The Cramer-Rao bound of a bright star is sigma / sqrt(electrons).
    x, y = grid_of_stars(rng)
    image = frame(rng, (512, 512), x, y, np.full(x.size, 3e5), 3.0)
    stars = detect_stars(CCDData(image, unit="electron"))
    k, _ = matched(stars, x, y)
    rms = np.std(stars["x_center"].value - x[k])
    assert rms < 1.5 * (3.0 / 2.3548) / np.sqrt(3e5)


def test_flux_in_1_5_fwhm_and_its_error(rng):
    x, y = grid_of_stars(rng)
    image = frame(rng, (512, 512), x, y, np.full(x.size, 2e4), 3.0)
    stars = detect_stars(CCDData(image, unit="electron"))
    inside = 1 - 2 ** (-4 * 1.5**2)
    assert np.median(stars["flux"].value) == pytest.approx(2e4 * inside, rel=0.01)
    scatter = np.std(stars["flux"].value)
    assert np.median(stars["flux_err"].value) == pytest.approx(scatter, rel=0.25)


def test_no_hot_pixel_is_a_star(rng):
    n = 512
    x, y = grid_of_stars(rng, step=64)
    image = frame(rng, (n, n), x, y, np.full(x.size, 1e4))
    at = rng.integers(0, n, (2, 2000))
    image[at[0], at[1]] += rng.exponential(2000, 2000)
    # Pairs and short lines of hot pixels, as charge traps make them.
    for k in range(20):
        image[50 + 20 * k, 20:22] += 3000
        image[20:23, 45 + 20 * k] += 3000
    stars = detect_stars(CCDData(image, unit="electron"))
    _, ok = matched(stars, x, y)
    assert (~ok).sum() <= 1
    # One star in five has a hot pixel of its own in its core.
    assert ok.sum() > 0.7 * x.size
    assert stars.meta["n_rejected"]["sharp"] > 1500


def test_saturated_stars_are_marked_and_measured(rng):
    image = frame(rng, (200, 200), [50.0, 150.0], [60.0, 140.0], [1e6, 2e4], 4.0)
    ccd = CCDData(np.minimum(image, 20_000), unit="adu")
    flat = detect_stars(ccd)
    told = detect_stars(ccd, saturation=19_000)
    for stars in (flat, told):
        assert stars["saturated"].tolist() == [True, False]
        assert abs(stars["x_center"][0].value - 50) < 0.3
    lower = detect_stars(ccd, saturation=500)
    assert lower["saturated"].all()


def test_nebula_is_not_a_field_of_stars(rng):
    from scipy.ndimage import gaussian_filter

    cloud = gaussian_filter(rng.normal(size=(512, 512)), 12)
    cloud = 3000 * np.maximum(cloud / cloud.std(), 0)
    x, y = grid_of_stars(rng, step=64)
    image = frame(rng, (512, 512), x, y, np.full(x.size, 3e4), sky=SKY + cloud)
    stars = detect_stars(CCDData(image, unit="electron"))
    _, ok = matched(stars, x, y)
    assert ok.mean() > 0.9
    assert ok.sum() > 0.9 * x.size


@pytest.mark.parametrize("kind", ["empty", "constant", "nan", "tiny", "all masked", "ramp"])
def test_frames_without_stars_give_an_empty_table(rng, kind):
    image = rng.normal(100, 5, (128, 150))
    mask = None
    if kind == "constant":
        image[:] = 100
    elif kind == "nan":
        image[:] = np.nan
    elif kind == "tiny":
        image = image[:5, :7]
    elif kind == "all masked":
        mask = np.ones(image.shape, bool)
    elif kind == "ramp":
        image += np.linspace(0, 1e4, 150)
    stars = detect_stars(CCDData(image, unit="adu", mask=mask))
    assert len(stars) == 0
    assert stars.meta["shape"] == image.shape
    assert np.isnan(stars.meta["fwhm"])
    assert {"x_center", "x_err", "flux", "saturated"} <= set(stars.colnames)


def test_masked_pixels_and_nan_columns(rng):
    x, y = grid_of_stars(rng)
    image = frame(rng, (512, 512), x, y, np.full(x.size, 2e4))
    mask = rng.random(image.shape) < 0.01
    damaged = image.copy()
    damaged[mask] = rng.exponential(2e4, mask.sum())
    damaged[:, 100:103] = np.nan
    damaged[200] = np.inf
    stars = detect_stars(CCDData(damaged, unit="electron", mask=mask))
    given = detect_stars(CCDData(damaged, unit="electron"), mask=mask)
    assert np.array_equal(stars["x_center"], given["x_center"])
    k, ok = matched(stars, x, y)
    assert ok.mean() > 0.98
    assert ok.sum() > 0.6 * x.size
    error = np.hypot(stars["x_center"].value - x[k], stars["y_center"].value - y[k])[ok]
    assert np.median(error) < 0.05


def test_variance_of_the_frame_sets_the_errors(rng):
    x, y = grid_of_stars(rng, step=64)
    image = frame(rng, (512, 512), x, y, np.full(x.size, 2e4))
    plain = CCDData(image, unit="adu", uncertainty=VarianceUncertainty(image + 25.0))
    double = CCDData(image, unit="adu", uncertainty=VarianceUncertainty(4 * (image + 25.0)))
    a, b = detect_stars(plain), detect_stars(double)
    assert np.allclose(b["x_err"] / a["x_err"], 2, rtol=1e-3)
    electrons = detect_stars(CCDData(image, unit="electron"))
    assert np.allclose(a["x_err"], electrons["x_err"], rtol=0.1)
    with_gain = detect_stars(CCDData(image / 2, unit="adu"), gain=2.0)
    assert np.allclose(with_gain["x_err"], electrons["x_err"], rtol=1e-3)


def test_units_order_and_limits(rng):
    x, y = grid_of_stars(rng, step=64)
    flux = np.linspace(5e3, 5e4, x.size)
    ccd = CCDData(frame(rng, (512, 512), x, y, flux), unit="electron / s")
    before = ccd.data.copy()
    stars = detect_stars(ccd, n_brightest=10)
    assert len(stars) == 10
    assert stars["flux"].unit == u.electron / u.s
    assert stars["x_center"].unit == u.pix
    assert (np.diff(stars["flux"].value) <= 0).all()
    k, _ = matched(stars, x, y)
    assert set(k) >= set(np.argsort(-flux)[:7])
    assert np.array_equal(ccd.data, before)


def test_trailed_stars_are_kept_where_all_are_trailed(rng):
    x, y = grid_of_stars(rng, step=64)
    image = np.full((512, 512), SKY)
    for step in np.linspace(-4, 4, 9):
        add_stars(image, x + step, y, np.full(x.size, 3e3), 2.5)
    image = rng.poisson(image) + rng.normal(0, READ_NOISE, image.shape)
    stars = detect_stars(CCDData(image, unit="electron"))
    _, ok = matched(stars, x, y)
    assert ok.sum() > 0.9 * x.size
    assert np.median(stars["roundness"]) > 0.4


def test_one_track_does_not_set_the_width_of_few_stars(rng):
    x, y = np.array([60.2, 300.7, 210.4, 90.9]), np.array([80.3, 330.1, 120.8, 260.5])
    image = frame(rng, (384, 384), x, y, np.full(4, 3e4), 4.5)
    for k in range(12):
        image[200 + 2 * k : 202 + 2 * k, 250 + k] += 4000.0
    stars = detect_stars(CCDData(image, unit="electron"))
    assert stars.meta["fwhm"] == pytest.approx(4.5, rel=0.1)
    assert matched(stars, x, y)[1].sum() == 4


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"threshold": 0}, "threshold"),
        ({"fwhm": np.nan}, "fwhm"),
        ({"n_brightest": 0}, "n_brightest"),
        ({"mask": np.zeros((3, 3), bool)}, "mask"),
    ],
)
def test_bad_arguments(keywords, text):
    with pytest.raises(InputError, match=text):
        detect_stars(CCDData(np.zeros((64, 64)), unit="adu"), **keywords)
