"""Growth curves: their covariance, what they say of the sky, and corrections with errors."""

import math

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.photometry import (
    Flag,
    annulus_photometry,
    aperture_correction,
    decode_flags,
    diagnose_background,
    growth_curves,
    optimal_radius,
)

READ_NOISE = 5.0
RADII = np.arange(1.0, 25.0)
ANNULUS = {"r_in": 25, "r_out": 35}


def moffat(cell, x, y, flux, fwhm, beta):
    """A Moffat star (a Gaussian for beta = None), averaged over 5 x 5 points a pixel."""
    side = (np.arange(cell * 5) + 0.5) / 5 - 0.5
    r2 = (side - x) ** 2 + ((side - y) ** 2)[:, None]
    if beta is None:
        s2 = (fwhm / 2.3548) ** 2
        image = np.exp(-r2 / (2 * s2)) / (2 * math.pi * s2)
    else:
        a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
        image = (beta - 1) / (math.pi * a2) * (1 + r2 / a2) ** -beta
    return flux * image.reshape(cell, 5, cell, 5).mean(axis=(1, 3))


def strip(rng, n, flux, *, fwhm=3.0, beta=3.0, cell=80):
    """A row of n stars: model without sky, positions. Six sub-pixel positions repeat."""
    offset = rng.uniform(-0.5, 0.5, (6, 2))
    middle = cell / 2 - 0.5
    base = [moffat(cell, middle + a, middle + b, 1.0, fwhm, beta) for a, b in offset]
    flux = np.broadcast_to(flux, (n,))
    model = np.concatenate([base[i % 6] * flux[i] for i in range(n)], axis=1)
    k = np.arange(n)
    return model, np.column_stack([k * cell, np.zeros(n)]) + middle + offset[k % 6]


def expose(rng, model):
    data = rng.poisson(model) + rng.normal(0, READ_NOISE, model.shape)
    variance = VarianceUncertainty(model + READ_NOISE**2)
    return CCDData(data, unit="electron", uncertainty=variance)


def bare(model):
    return CCDData(model, unit="electron", uncertainty=VarianceUncertainty(model + 1))


@pytest.fixture
def star(rng):
    """Curves of one bright star on a sky of 60 electron."""
    model, positions = strip(rng, 1, 1e5)
    return growth_curves(expose(rng, model + 60), positions, RADII, **ANNULUS)


# --------------------------------------------------------------------------- measurement


def test_each_radius_is_annulus_photometry(rng):
    model, positions = strip(rng, 3, 1e4)
    ccd = expose(rng, model + 60)
    curves = growth_curves(ccd, positions, [2, 2.5, 6], **ANNULUS)
    for j, r in enumerate(curves.radii):
        table = annulus_photometry(ccd, positions, r=r, **ANNULUS)
        np.testing.assert_allclose(curves.flux[:, j], table["flux"].value)
        # What the sky may hide is measured with each call, at blank places of its own.
        np.testing.assert_allclose(curves.flux_err[:, j], table["flux_err"].value, rtol=0.03)
        np.testing.assert_allclose(curves.total[:, j], table["aperture_sum"].value)
        np.testing.assert_allclose(curves.area[:, j], table["area"].value)
        assert np.array_equal(curves.flags[:, j], table["flags"])


def test_flux_equals_photutils(rng):
    from photutils.profiles import CurveOfGrowth

    model, positions = strip(rng, 2, 1e4)
    curves = growth_curves(bare(model), positions, RADII, sky=0)
    for row, xy in zip(curves.flux, positions, strict=True):
        np.testing.assert_allclose(row, CurveOfGrowth(model, xy, RADII).profile, rtol=1e-9)


@pytest.mark.parametrize("with_variance", [True, False])
def test_covariance_is_that_of_many_trials(rng, with_variance):
    """Shared pixels, rim pixels shared in part, and the shared level of the sky."""
    model, positions = strip(rng, 40, 2e4, cell=36)
    radii = [1.0, 1.4, 2.0, 3.0, 3.2, 8.0]
    fluxes, predicted = [], []
    for _ in range(25):
        ccd = expose(rng, model + 30)
        if not with_variance:
            ccd.uncertainty = None
        curves = growth_curves(ccd, positions, radii, r_in=10, r_out=16)
        fluxes.append(curves.flux)
        predicted.append(curves.covariance().mean(axis=0))
    fluxes = np.array(fluxes)
    fluxes = (fluxes - fluxes.mean(axis=0)).reshape(-1, len(radii)) * math.sqrt(25 / 24)
    measured = np.cov(fluxes.T)
    predicted = np.mean(predicted, axis=0)
    scale = np.sqrt(np.outer(np.diag(measured), np.diag(measured)))
    # 1000 trials: elements are known to 4.5 % of the scale.
    assert np.abs(predicted - measured).max() < 0.14 * scale.max()
    np.testing.assert_allclose(predicted / scale, measured / scale, atol=0.15)
    np.testing.assert_allclose(np.diag(curves.covariance()[0]), curves.flux_err[0] ** 2)


def test_covariance_of_the_sky_is_shared(star):
    difference = star.covariance() - star.covariance(sky=False)
    expected = np.outer(star.area[0], star.area[0]) * star.sky_err[0] ** 2
    np.testing.assert_allclose(difference[0], expected)


def test_covariance_with_a_single_radius_and_far_ones(rng):
    model, positions = strip(rng, 1, 1e4)
    one = growth_curves(bare(model), positions, [3], **ANNULUS)
    assert one.covariance().shape == (1, 1, 1)
    far = growth_curves(bare(model), positions, [3, 6, 12], **ANNULUS)
    matrix = far.covariance(sky=False)[0]
    # Circles that contain each other wholly share w V, not w**2 V: a little more.
    assert matrix[0, 0] < matrix[0, 1] == matrix[0, 2] < 1.1 * matrix[0, 0]
    assert np.all(np.linalg.eigvalsh(matrix) > 0)


# --------------------------------------------------------------------------- reading curves


def test_radii_and_fractions_of_a_gaussian(rng):
    sigma = 3.0 / 2.3548
    model, positions = strip(rng, 4, 1e5, beta=None)
    curves = growth_curves(bare(model), positions, np.arange(0.5, 15, 0.5), sky=0)
    # Pixels are squares in the image and once more under the circle: 1/12 of variance each.
    width = math.sqrt(sigma**2 + 1 / 6)
    for fraction in (0.3, 0.5, 0.9):
        expected = width * math.sqrt(-2 * math.log(1 - fraction))
        np.testing.assert_allclose(curves.radius_at(fraction), expected, rtol=0.015)
        np.testing.assert_allclose(curves.fraction_at(expected), fraction, atol=0.01)
    assert np.isnan(curves.fraction_at(20)).all()
    assert np.isnan(curves.radius_at(1.5)).all()
    assert curves.radius_at(1.0) == pytest.approx(curves.radii[-1], abs=12)


def test_radius_at_takes_the_first_crossing(star):
    from dataclasses import replace

    # A curve that rises too high and falls: the sky was taken too high.
    curve = star.flux.copy()
    curve[0, 10:] = curve[0, 10] - 2e3 * np.arange(curve.shape[1] - 10)
    fallen = replace(star, flux=curve)
    assert fallen.radius_at(0.99)[0] < 10
    assert fallen.fraction_at(RADII[10])[0] > 1


def test_normalised_errors_are_those_of_ratios(rng):
    model, positions = strip(rng, 60, 2e4, cell=36)
    radii = [2.0, 4.0, 8.0]
    ratios, errors = [], []
    for _ in range(10):
        one = growth_curves(expose(rng, model + 30), positions, radii, r_in=10, r_out=16)
        one = one.normalized()
        ratios.append(one.flux[:, 0])
        errors.append(one.flux_err[:, 0])
        assert np.all(one.flux[:, -1] == 1)
        np.testing.assert_allclose(one.flux_err[:, -1], 0, atol=1e-9)
    scatter = np.std(np.array(ratios), axis=0, ddof=1)
    assert np.sqrt(np.mean(scatter**2)) == pytest.approx(np.mean(errors), rel=0.1)
    assert one.unit is None
    assert one.covariance().shape == (60, 3, 3)
    np.testing.assert_allclose(np.diag(one.covariance()[0]), one.flux_err[0] ** 2)


def test_stacked_is_the_mean_shape(rng):
    flux = 10 ** rng.uniform(4, 5.5, 24)
    model, positions = strip(rng, 24, flux)
    truth = growth_curves(bare(model), positions[:1], RADII, sky=0).normalized().flux[0]
    pulls = []
    for _ in range(12):
        curves = growth_curves(expose(rng, model + 60), positions, RADII, **ANNULUS)
        mean = curves.stacked()
        assert len(mean) == 1
        assert mean.meta["n_stars"] > 10
        pulls.append(((mean.flux[0] - truth) / np.maximum(mean.flux_err[0], 2e-4))[:-1])
    assert np.std(pulls) < 1.6
    assert np.abs(np.mean(mean.flux[0] - truth)) < 0.01
    assert mean.flux_err[0, 3] < 0.02


def test_stacking_chooses_clean_stars(rng):
    model, positions = strip(rng, 5, 1e5)
    ccd = expose(rng, model + 60)
    ccd.mask = np.zeros(ccd.shape, bool)
    ccd.mask[38:42, 38:42] = True
    curves = growth_curves(ccd, positions, RADII, **ANNULUS)
    assert curves.stacked().meta["n_stars"] == 4
    assert curves.stacked(use=[False, True, False, False, False]).meta["n_stars"] == 1
    with pytest.raises(InputError, match="no star to stack"):
        curves.stacked(use=np.zeros(5, bool))


def test_selecting_curves(rng):
    model, positions = strip(rng, 4, 1e5)
    curves = growth_curves(expose(rng, model + 60), positions, RADII, **ANNULUS)
    assert list(curves[[True, False, True, False]].id) == [1, 3]
    assert list(curves[1:].id) == [2, 3, 4]
    assert list(curves[-1].id) == [4]
    assert repr(curves) == "<GrowthCurves of 4 stars, 24 radii from 1 to 24 pix>"


def test_table_has_a_row_for_each_star_and_radius(rng, tmp_path):
    model, positions = strip(rng, 2, 1e4)
    curves = growth_curves(expose(rng, model + 60), positions, [2, 4, 8], **ANNULUS)
    table = curves.to_table()
    assert table.colnames == [
        "id", "radius", "flux", "flux_err", "aperture_sum", "area", "flags",
    ]  # fmt: skip
    assert list(table["id"]) == [1, 1, 1, 2, 2, 2]
    assert table["radius"][4] == 4 * u.pix
    assert table["flux"][4].value == curves.flux[1, 1]
    table.write(tmp_path / "growth.ecsv")
    assert type(table).read(tmp_path / "growth.ecsv").meta["r_in"] == 25


# --------------------------------------------------------------------------- the background


@pytest.mark.parametrize("beta", [2.5, 3.0, 4.5, None])
def test_background_is_diagnosed(rng, beta):
    """A sky wrong by 1 electron a pixel around a star of 5e4 is seen; a right one is left alone."""
    from dataclasses import replace

    model, positions = strip(rng, 60, 5e4, beta=beta)
    curves = growth_curves(expose(rng, model + 50), positions, RADII, **ANNULUS)
    right = diagnose_background(curves)
    assert np.mean(np.abs(right["z"]) < 2) > 0.86  # 95 % expected; 60 stars, 3 sigma
    assert np.median(1 / right["residual_err"].value) > 2.95
    np.testing.assert_allclose(right["unsubtracted"].value, 50, atol=2)
    wrong = diagnose_background(replace(curves, flux=curves.flux + curves.area))
    shift = wrong["residual"].value - right["residual"].value
    # The wing is fitted again, not just moved along.
    assert np.mean(shift) == pytest.approx(1, abs=0.03)
    assert np.std(shift) < 0.15


@pytest.mark.long
@pytest.mark.parametrize("beta", [2.5, 3.0, 4.5, None])
@pytest.mark.parametrize("fwhm", [2.5, 3.5])
@pytest.mark.parametrize("flux", [5e3, 5e4])
def test_background_in_many_trials(rng, beta, fwhm, flux):
    """1200 stars a cell: |z| < 2 in 95 % (one sigma of that: 0.6 %)."""
    z, errors = [], []
    for _ in range(4):
        model, positions = strip(rng, 300, flux, beta=beta, fwhm=fwhm)
        curves = growth_curves(expose(rng, model + 50), positions, RADII, **ANNULUS)
        table = diagnose_background(curves)
        z.append(table["z"])
        errors.append(table["residual_err"].value)
    z = np.concatenate(z)
    share, seen = np.mean(np.abs(z) < 2), np.median(1 / np.concatenate(errors))
    print(
        f"beta {beta} fwhm {fwhm} flux {flux}: |z| < 2 in {share:.1%}, width {np.std(z):.3f}, "
        f"mean {np.mean(z):+.2f}; 1 electron is {seen:.2f} sigma"
    )
    assert share > 0.93
    assert seen > 2.9


def test_power_law_wing(rng):
    model, positions = strip(rng, 60, 5e4, beta=3.0)
    curves = growth_curves(expose(rng, model + 50), positions, RADII, **ANNULUS)
    table = diagnose_background(curves, wing=6.0)
    assert np.mean(np.abs(table["z"]) < 2) > 0.84
    np.testing.assert_allclose(table["r_min"].value, 3 * curves.radius_at(0.5), rtol=0.05)


def test_verdicts_in_words():
    rng = np.random.default_rng(11)
    model, positions = strip(rng, 1, 5e4)
    ccd = expose(rng, model + 50)
    right = growth_curves(ccd, positions, RADII, **ANNULUS)
    level = right.sky[0]
    table = diagnose_background(right)
    assert table["verdict"][0] == "right"
    assert "the curve with the sky subtracted is right" in table["words"][0]
    assert "electron/pix" in table["words"][0]
    for offset, verdict, motion in ((-3, "too low", "rises"), (3, "too high", "falls")):
        curves = growth_curves(ccd, positions, RADII, sky=level + offset)
        table = diagnose_background(curves)
        assert table["verdict"][0] == verdict
        assert f"{motion} by" in table["words"][0]
        assert "neither curve is right" in table["words"][0]
    # A sky was subtracted that was gone already.
    clean = CCDData(ccd.data - 50, unit="electron", uncertainty=ccd.uncertainty)
    table = diagnose_background(growth_curves(clean, positions, RADII, sky=50))
    assert "the curve without subtraction is right" in table["words"][0]
    table = diagnose_background(growth_curves(clean, positions, RADII, sky=0))
    assert "both curves are right" in table["words"][0]


def test_background_that_cannot_be_tested_is_said(rng):
    model, positions = strip(rng, 1, 5e4)
    ccd = expose(rng, model + 50)
    few = growth_curves(ccd, positions, [1, 2, 3], **ANNULUS)
    assert "fewer than 6 radii" in diagnose_background(few)["words"][0]
    none = growth_curves(ccd, [(np.nan, 3)], RADII, **ANNULUS)
    table = diagnose_background(none)
    assert table["verdict"][0] == "untested"
    assert np.isnan(table["z"][0])
    assert len(diagnose_background(growth_curves(ccd, [], RADII, **ANNULUS))) == 0
    with pytest.raises(InputError, match="'gauss' is not known"):
        diagnose_background(few, wing="gauss")
    with pytest.raises(InputError, match="above 2"):
        diagnose_background(few, wing=1.5)


# --------------------------------------------------------------------------- corrections


def test_aperture_correction_and_its_error(rng):
    flux = 10 ** rng.uniform(4, 5.3, 15)
    model, positions = strip(rng, 15, flux)
    truth = aperture_correction(growth_curves(bare(model), positions, RADII, sky=0), 4, 15)
    assert truth.n_used == 15
    pulls = []
    for _ in range(60):
        curves = growth_curves(expose(rng, model + 60), positions, [4, 15], **ANNULUS)
        correction = aperture_correction(curves, 4, 15)
        pulls.append((correction.factor - truth.factor) / correction.err)
    assert np.std(pulls) == pytest.approx(1, abs=0.35)
    assert abs(np.mean(pulls)) < 0.5
    flux, err = correction.apply(1000.0, 10.0)
    assert flux == 1000 * correction.factor
    assert err == pytest.approx(
        math.hypot(10 * correction.factor, 1000 * correction.err, 1000 * correction.scatter)
    )  # fmt: skip


def test_aperture_correction_leaves_out_what_does_not_belong(rng):
    model, positions = strip(rng, 12, 1e5)
    wide = moffat(80, 39.5, 39.5, 1e5, 9.0, 3.0)
    model[:, :80] = wide
    curves = growth_curves(expose(rng, model + 60), positions, [4, 15], **ANNULUS)
    clean = aperture_correction(curves[1:], 4, 15)
    everything = aperture_correction(curves, 4, 15)
    assert everything.n_used == 11
    assert everything.factor == pytest.approx(clean.factor)
    assert aperture_correction(curves, 4, 15, use=[True] + [False] * 11).factor > 1.5


def test_scatter_between_stars_is_part_of_the_error(rng):
    parts = [moffat(80, 39.5, 39.5, 1e6, fwhm, 3.0) for fwhm in rng.uniform(2.7, 3.3, 20)]
    positions = np.column_stack([np.arange(20) * 80 + 39.5, np.full(20, 39.5)])
    model = np.concatenate(parts, axis=1)
    curves = growth_curves(expose(rng, model + 60), positions, [4, 15], **ANNULUS)
    correction = aperture_correction(curves, 4, 15)
    ratio = curves.flux[:, 1] / curves.flux[:, 0]
    assert correction.scatter == pytest.approx(np.std(ratio), rel=0.2)
    assert correction.err == pytest.approx(np.std(ratio) / math.sqrt(20), rel=0.25)


def test_light_beyond_the_annulus_does_not_hang_on_where_stars_are_in_their_pixels():
    factors = []
    for seed in range(8, 18):
        rng = np.random.default_rng(seed)
        offset = rng.uniform(-0.5, 0.5, (30, 2)) + 24.5
        flux = 10 ** rng.uniform(3.5, 5.5, 30)
        stars = [moffat(50, *xy, f, 3.2, 3.0) for xy, f in zip(offset, flux, strict=True)]
        positions = offset + [[50 * i, 0] for i in range(30)]
        curves = growth_curves(
            expose(rng, np.concatenate(stars, axis=1) + 30), positions,
            np.linspace(0.5, 10, 20), r_in=10, r_out=17,
        )  # fmt: skip
        factors.append(aperture_correction(curves, 4.0, use=np.ones(30, bool)).factor)
    assert np.std(factors) < 1.6e-3


def test_correction_without_stars(rng):
    model, positions = strip(rng, 3, 100.0)
    curves = growth_curves(expose(rng, model + 60), positions, [4, 15], **ANNULUS)
    with pytest.raises(InputError, match="no star for the aperture correction from 4 to 15"):
        aperture_correction(curves, 4, 15)
    with pytest.raises(InputError, match="r_from = 5 is not among the radii"):
        aperture_correction(curves, 5, 15)


def test_optimal_radius(rng):
    """For a Gaussian on a bright sky the best radius is 1.585 sigma, 0.673 FWHM."""
    model, positions = strip(rng, 3, 3e3, fwhm=6.0, beta=None)
    radii = np.arange(1, 15, 0.5)
    curves = growth_curves(bare(model + 3000), positions, radii, sky=3000)
    width = math.sqrt((6 / 2.3548) ** 2 + 1 / 12)
    table = optimal_radius(curves)
    np.testing.assert_allclose(table["radius"].value, 1.585 * width, rtol=0.03)
    assert table["radius"].unit == u.pix
    bright, positions = strip(rng, 3, 1e7, fwhm=6.0, beta=None)
    photons = optimal_radius(growth_curves(bare(bright + 1), positions, radii, sky=1))
    assert np.all(photons["radius"] > table["radius"] * 1.5)


def test_optimal_radius_of_faint_stars_from_the_profile(rng):
    flux = np.array([2e5, 2e5, 2e5, 400, 400, 400, 400])
    model, positions = strip(rng, 7, flux)
    curves = growth_curves(expose(rng, model + 100), positions, RADII, **ANNULUS)
    alone = optimal_radius(curves)["radius"].value[3:]
    shaped = optimal_radius(curves, profile=curves.stacked())["radius"].value[3:]
    assert np.ptp(shaped) < 0.3
    assert np.ptp(shaped) < np.ptp(alone)
    with pytest.raises(InputError, match="same radii"):
        optimal_radius(curves, profile=curves)


# --------------------------------------------------------------------------- bad input


def test_radii_that_reach_the_annulus_are_refused(rng):
    model, positions = strip(rng, 1, 1e5)
    ccd = expose(rng, model + 60)
    with pytest.raises(InputError, match=r"reaches into the annulus \(r_in = 15"):
        growth_curves(ccd, positions, RADII, r_in=15, r_out=20)
    curves = growth_curves(ccd, positions, RADII, r_in=15, r_out=20, allow_overlap=True)
    overlap = (curves.flags[0] & Flag.ANNULUS_OVERLAP) > 0
    assert np.array_equal(overlap, RADII > 15)


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ([], "greater than zero"),
        ([0, 1], "greater than zero"),
        ([2, 1], "increase"),
        ([1, np.nan], "increase"),
        ([1, np.inf], "finite"),
        ([[1, 2]], "greater than zero"),
    ],
)
def test_radii_that_cannot_be_used(rng, radii, message):
    model, positions = strip(rng, 1, 1e5)
    with pytest.raises(InputError, match=message):
        growth_curves(bare(model), positions, radii, **ANNULUS)


def test_a_curve_for_every_position(rng):
    model, positions = strip(rng, 1, 1e5)
    ccd = expose(rng, model + 60)
    positions = [(np.nan, 4), (4000, 4), tuple(positions[0]), (1, 1)]
    curves = growth_curves(ccd, positions, [2, 4], **ANNULUS)
    assert len(curves) == 4
    assert np.isnan(curves.flux[:2]).all()
    assert decode_flags(curves.flags[0, 0]) == ["CENTROID_FAILED", "NO_DATA"]
    assert decode_flags(curves.flags[1, 0]) == ["EDGE", "NO_DATA"]
    assert "EDGE" in decode_flags(curves.flags[3, 1])
    assert np.isnan(curves.radius_at(0.5)[:2]).all()
    assert np.isfinite(curves.radius_at(0.5)[2])
    empty = growth_curves(ccd, [], [2, 4], **ANNULUS)
    assert len(empty.to_table()) == 0
    with pytest.raises(InputError, match="no curve"):
        empty.plot()


def test_image_without_uncertainty(rng):
    model, positions = strip(rng, 1, 1e5)
    with pytest.warns(NarrowbandWarning, match="no uncertainty"):
        curves = growth_curves(model + rng.normal(0, 3, model.shape), positions, RADII, **ANNULUS)
    assert "not counted" in curves.errors
    assert curves.unit is None
    assert "per pix" in diagnose_background(curves)["words"][0]


def test_figures(rng):
    from matplotlib.figure import Figure

    model, positions = strip(rng, 6, 1e5)
    curves = growth_curves(expose(rng, model + 60), positions, RADII, **ANNULUS)
    ax = Figure().add_subplot()
    assert curves.plot(ax, star=2) is ax
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["sky not subtracted", "sky subtracted, ±1σ"]
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_array_equal(drawn["sky subtracted, ±1σ"], curves.flux[2])
    np.testing.assert_array_equal(drawn["sky not subtracted"], curves.total[2])
    assert "star 3" in ax.get_title(loc="left")
    assert any(text.get_text() == "sky annulus" for text in ax.texts)
    ax = Figure().add_subplot()
    curves.plot(ax, star=None)
    assert ax.get_legend().get_texts()[0].get_text() == "mean of 6 stars"
