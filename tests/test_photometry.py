"""Annulus photometry: sums against photutils, errors against scatter, and every bad input."""

import math
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from astropy.stats import SigmaClip
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from photutils.aperture import CircularAnnulus, CircularAperture, EllipticalAperture
from scipy.ndimage import gaussian_filter
from scipy.special import erf

from astro_narrowband._engine import annuli
from astro_narrowband.coaddition import coadd
from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.photometry._annulus import (
    FLAGS,
    Flag,
    annulus_photometry,
    apertures,
    decode_flags,
    plot_aperture,
)
from astro_narrowband.photometry._growth import growth_curves
from astro_narrowband.photometry._measure import correlation_factor, read_image
from astro_narrowband.registration import Alignment
from astro_narrowband.resampling import ResampledFrame, resample

READ_NOISE = 5.0
FWHM = 3.0


def star_field(rng, n_side, cell, flux, fwhm=FWHM, shift=(0, 0)):
    """Gaussian stars, integrated over pixels, one in each cell: image, x, y."""
    n = n_side * cell
    centre = np.arange(n_side) * cell + cell / 2
    x = np.tile(centre, n_side) + rng.uniform(-0.5, 0.5, n_side**2)
    y = np.repeat(centre, n_side) + rng.uniform(-0.5, 0.5, n_side**2)
    x, y = x + shift[0], y + shift[1]
    image = np.zeros((n, n))
    scale = fwhm / 2.3548200450309493 * math.sqrt(2)
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        i, j = divmod(k, n_side)
        rows, columns = slice(i * cell, (i + 1) * cell), slice(j * cell, (j + 1) * cell)
        across = np.diff(erf((np.arange(columns.start, columns.stop + 1) - 0.5 - a) / scale)) / 2
        down = np.diff(erf((np.arange(rows.start, rows.stop + 1) - 0.5 - b) / scale)) / 2
        image[rows, columns] = flux * np.outer(down, across)
    return image, x, y


def expose(rng, model):
    """One exposure of a model [electron], and its true variance."""
    data = rng.poisson(model) + rng.normal(0, READ_NOISE, model.shape)
    return data.astype(np.float32), (model + READ_NOISE**2).astype(np.float32)


def as_ccd(data, variance=None, unit="electron", **keywords):
    uncertainty = None if variance is None else VarianceUncertainty(variance)
    return CCDData(data, unit=unit, uncertainty=uncertainty, **keywords)


def noise_image(rng, shape=(90, 100), sky=100.0):
    return as_ccd(rng.normal(sky, 3.0, shape), np.full(shape, 9.0))


# --------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("r", [0.2, 0.5, 0.7071, 1.0, 2.5, 5.0, 13.37, 40.0])
def test_sums_and_areas_equal_photutils(rng, r):
    from photutils.aperture import CircularAperture

    image = rng.normal(7.0, 100.0, (200, 220))
    x, y = rng.uniform(50, 150, (2, 40))
    x[:3], y[:3] = (60, 60.5, 61), (60, 60.5, 60.5)
    table = annulus_photometry(as_ccd(image), np.column_stack([x, y]), r=r, sky=0)
    masks = CircularAperture(np.column_stack([x, y]), r=r).to_mask(method="exact")
    for row, mask in zip(table, masks, strict=True):
        weights = mask.to_image(image.shape)
        assert row["aperture_sum"].value == pytest.approx((weights * image).sum(), rel=1e-9)
        # Weights enter squared: photutils 3.0 gets this wrong, its masks do not.
        variance = (weights**2 * np.maximum(image, 0)).sum()
        sums = apertures.circle_sums(
            apertures.Pixels(image, noise=np.maximum(image, 0)),
            np.array([row["x_center"].value]), np.array([row["y_center"].value]), [r],
        )  # fmt: skip
        assert sums.variance[0, 0] == pytest.approx(variance, rel=1e-9, abs=1e-9)
        assert sums.area2[0, 0] == pytest.approx((weights**2).sum(), rel=1e-9)
    assert table["area"].value == pytest.approx(math.pi * r * r)


def test_sums_equal_sep(rng):
    import sep

    image = rng.normal(7.0, 100.0, (200, 220))
    x, y = rng.uniform(30, 170, (2, 200))
    table = annulus_photometry(as_ccd(image), np.column_stack([x, y]), r=6.3, sky=0)
    total, _, _ = sep.sum_circle(image, x, y, 6.3, subpix=0)
    # sep holds pixels in single precision.
    np.testing.assert_allclose(table["aperture_sum"].value, total, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("clip", [3.0, 2.0, None])
def test_sky_equals_photutils(rng, clip):
    from photutils.aperture import ApertureStats, CircularAnnulus

    image = rng.normal(100.0, 10.0, (120, 130))
    image[rng.uniform(size=image.shape) < 0.03] += 200
    mask = rng.uniform(size=image.shape) < 0.02
    x, y = rng.uniform(-3, 125, (2, 60))
    pixels = apertures.Pixels(image, mask=mask)
    got = annuli.sky_levels(pixels, x, y, 6.0, 11.5, clip=clip)
    stats = ApertureStats(
        image, CircularAnnulus(np.column_stack([x, y]), r_in=6.0, r_out=11.5), mask=mask,
        sigma_clip=None if clip is None else SigmaClip(sigma=clip, maxiters=10),
        sum_method="center",
    )  # fmt: skip
    np.testing.assert_allclose(got.mean, stats.mean, rtol=1e-9)
    np.testing.assert_allclose(got.median, stats.median, rtol=1e-9)
    np.testing.assert_allclose(got.std, stats.std, rtol=1e-7)
    assert np.array_equal(got.n, stats.center_aper_area.value)


def test_uneven_sky_is_seen_and_counted(rng):
    """A tilt does not matter, patches do: their scatter is what the level may be wrong by."""
    y, x = np.mgrid[:900, :900]
    g = np.arange(40.0, 870, 40)
    positions = np.column_stack([a.ravel() for a in np.meshgrid(g, g)])
    noise = rng.normal(100, 3, x.shape)
    options = {"r": 4, "r_in": 8, "r_out": 14}
    variance = np.full(x.shape, 9.0)

    def measure(image):
        return annulus_photometry(as_ccd(image, variance), positions, **options)

    even = measure(noise)
    assert np.mean((even["flags"] & Flag.SKY_UNEVEN) > 0) < 0.01
    tilted = measure(noise + 0.05 * x - 0.03 * y)
    assert np.mean((tilted["flags"] & Flag.SKY_UNEVEN) > 0) < 0.01
    np.testing.assert_allclose(tilted["flux"].value, even["flux"].value, atol=60)
    cloud = gaussian_filter(rng.normal(size=x.shape), 3)
    patchy = measure(noise + 3 * cloud / cloud.std())
    seen = (patchy["flags"] & Flag.SKY_UNEVEN) > 0
    assert np.mean(seen) > 0.85
    flux = patchy["flux"].value[seen]
    pull = flux / patchy["flux_err"].value[seen]
    assert 0.7 < np.std(pull) < 1.7
    assert np.std(flux / even["flux_err"].value[seen]) > 5


def test_float32_sky_is_that_of_float64(rng):
    image = rng.normal(1000.0, 10.0, (120, 130)).astype(np.float32)
    x, y = rng.uniform(20, 100, (2, 30))
    narrow = annuli.sky_levels(apertures.Pixels(image), x, y, 6, 12)
    wide = annuli.sky_levels(apertures.Pixels(image.astype(float)), x, y, 6, 12)
    np.testing.assert_allclose(narrow.mean, wide.mean, rtol=1e-12)
    assert np.array_equal(narrow.n, wide.n)


@pytest.mark.parametrize("clip", [2.0, 3.0, 4.0, None])
def test_constants_of_clipping(rng, clip):
    """Scatter and error of clipped means, measured over simulated annuli."""
    n, trials = 400, 3000
    data = np.sort(rng.normal(size=(trials, n)), axis=1)
    out = annuli.SkyLevels(
        *(np.empty(trials) for _ in range(3)), np.zeros(trials, int), np.zeros(trials, int),
        np.empty(trials), np.zeros(trials, bool), np.empty(trials), *np.empty((2, trials, 2)),
    )  # fmt: skip
    annuli._clip_block(data, np.full(trials, n), clip, 10, out, slice(0, trials))
    expected = annuli.sky_constants(clip)
    assert np.mean(out.std) == pytest.approx(expected.shrink * math.sqrt(1 - 1 / n), rel=0.015)
    got = np.cov(out.mean, out.median) * np.mean(out.n)
    # 3000 trials: variances are known to 2.6 %; at clip = 2 the expansion is as good as that.
    assert got[0, 0] == pytest.approx(expected.mean, rel=0.1)
    assert got[1, 1] == pytest.approx(expected.median, rel=0.1)
    assert got[0, 1] == pytest.approx(expected.joint, rel=0.1)


# --------------------------------------------------------------------------- truth


def pulls(rng, *, flux, level, r, annulus, sky, n_side, trials, variance=True):
    cell = 2 * math.ceil(annulus[1]) + 6
    model, x, y = star_field(rng, n_side, cell, flux)
    positions = np.column_stack([x, y])
    truth = annulus_photometry(as_ccd(model), positions, r=r, sky=0)["flux"].value
    out = []
    for _ in range(trials):
        data, noise = expose(rng, model + level)
        ccd = as_ccd(data, noise if variance else None)
        table = annulus_photometry(
            ccd, positions, r=r, r_in=annulus[0], r_out=annulus[1], sky=sky
        )  # fmt: skip
        out.append((table["flux"].value - truth) / table["flux_err"].value)
    return np.concatenate(out)


@pytest.mark.parametrize("sky", ["clipped_mean", "median"])
@pytest.mark.parametrize("level", [1.0, 300.0])
def test_pulls(rng, level, sky):
    z = pulls(
        rng, flux=2e3, level=level, r=4.0, annulus=(8, 13), sky=sky, n_side=12, trials=14
    )  # fmt: skip
    assert np.std(z) == pytest.approx(1.0, abs=4 / math.sqrt(2 * z.size))
    # The median of Poisson counts is below their mean, by a sixth of an electron.
    assert abs(np.mean(z)) < 4 / math.sqrt(z.size) + (0.12 if sky == "median" else 0.05)


def test_pulls_without_uncertainty(rng):
    """The scatter of the annulus and the photons of an image in electron say the same."""
    z = pulls(
        rng, flux=5e4, level=30.0, r=4.0, annulus=(8, 13), sky="clipped_mean", n_side=12,
        trials=14, variance=False,
    )  # fmt: skip
    assert np.std(z) == pytest.approx(1.0, abs=4 / math.sqrt(2 * z.size))


@pytest.mark.long
@pytest.mark.parametrize("flux", [1e3, 1e5])
@pytest.mark.parametrize("level", [1.0, 30.0, 300.0])
@pytest.mark.parametrize(("r", "annulus"), [(3.0, (8, 13)), (6.0, (12, 18))])
def test_pulls_in_every_cell(r, annulus, level, flux):
    """40,000 pulls a cell: of width 0.98 to 1.02, whatever the estimator of the sky."""
    widths = {}
    for sky in ("clipped_mean", "median", "mean", "mode"):
        # The same stars and noise for each.
        rng = np.random.default_rng(20251122)
        z = pulls(rng, flux=flux, level=level, r=r, annulus=annulus, sky=sky, n_side=20, trials=100)
        assert z.size == 40_000
        widths[sky] = np.std(z)
        print(f"r {r} sky {level} flux {flux} {sky}: width {np.std(z):.4f} mean {np.mean(z):+.3f}")
    assert all(0.98 < width < 1.02 for width in widths.values()), widths


def resampled_pulls(rng, *, shift, flux, level, r, n_side, trials):
    """Pulls on frames that were interpolated by ``shift``."""
    cell, annulus = 34, (8, 14)
    model, x, y = star_field(rng, n_side, cell, flux)
    matrix = np.eye(3)
    matrix[:2, 2] = shift
    alignment = Alignment(matrix=matrix, rms=0.0, n_matched=0, method="none")
    positions = np.column_stack([x + shift[0], y + shift[1]])
    ideal = resample(as_ccd(model.astype(np.float32)), alignment)
    truth = annulus_photometry(ideal, positions, r=r, sky=0)["flux"].value
    out = []
    for _ in range(trials):
        ccd = resample(as_ccd(*expose(rng, model + level)), alignment)
        table = annulus_photometry(ccd, positions, r=r, r_in=annulus[0], r_out=annulus[1])
        inside = (table["flags"] & ~np.int32(Flag.NEGATIVE | Flag.SKY_UNEVEN)) == 0
        out.append(((table["flux"].value - truth) / table["flux_err"].value)[inside])
    return np.concatenate(out)


def test_pulls_on_resampled_images(rng):
    z = resampled_pulls(
        rng, shift=(0.5, -0.5), flux=3e3, level=30.0, r=3.0, n_side=12, trials=14
    )  # fmt: skip
    assert np.std(z) == pytest.approx(1.0, abs=4 / math.sqrt(2 * z.size))


@pytest.mark.long
@pytest.mark.parametrize("shift", [(0.5, 0.5), (0.37, -0.42), (0.13, 0.2)])
@pytest.mark.parametrize("flux", [1e3, 1e5])
@pytest.mark.parametrize("level", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("r", [3.0, 6.0])
def test_pulls_on_resampled_images_in_every_cell(rng, r, level, flux, shift):
    """40,000 pulls a cell: of width 0.97 to 1.03."""
    z = resampled_pulls(rng, shift=shift, flux=flux, level=level, r=r, n_side=22, trials=100)
    assert z.size >= 40_000
    print(f"r {r} sky {level} flux {flux} {shift}: width {np.std(z):.4f} mean {np.mean(z):+.3f}")
    assert 0.97 < np.std(z) < 1.03


def coadd_pulls(rng, *, flux, level, r, n_side, trials, shifts):
    """Pulls on coadds of frames that were interpolated by different shifts."""
    cell, annulus = 34, (8, 14)
    models, alignments = [], []
    for dx, dy in shifts:
        model, x, y = star_field(np.random.default_rng(7), n_side, cell, flux, shift=(-dx, -dy))
        matrix = np.eye(3)
        matrix[:2, 2] = dx, dy
        models.append(model)
        alignments.append(Alignment(matrix=matrix, rms=0.0, n_matched=0, method="none"))
    positions = np.column_stack([x + dx, y + dy])

    def combine(frames):
        frames = [ResampledFrame(f, a) for f, a in zip(frames, alignments, strict=True)]
        return coadd(frames, flux_scale="none", sky="none", weights="equal", reject=False)

    def frame(data, variance):
        return as_ccd(data, variance, unit="electron/s", meta={"EXPTIME": 1.0})

    ideal = combine([frame(*(np.float32(m + k) for k in (0, 25))) for m in models])
    truth = annulus_photometry(ideal, positions, r=r, sky=0)["flux"].value
    out = []
    for _ in range(trials):
        made = combine([frame(*expose(rng, m + level)) for m in models])
        table = annulus_photometry(made, positions, r=r, r_in=annulus[0], r_out=annulus[1])
        inside = (table["flags"] & ~np.int32(Flag.NEGATIVE | Flag.SKY_UNEVEN)) == 0
        out.append(((table["flux"].value - truth) / table["flux_err"].value)[inside])
    return np.concatenate(out)


SHIFTS = ((0, 0), (0.5, -0.5), (3.3, 1.2), (-2.4, 0.1))


@pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")
def test_pulls_on_coadds(rng):
    z = coadd_pulls(rng, flux=3e3, level=30.0, r=3.0, n_side=12, trials=8, shifts=SHIFTS)
    assert np.std(z) == pytest.approx(1.0, abs=4 / math.sqrt(2 * z.size))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")
@pytest.mark.parametrize("flux", [1e3, 1e5])
@pytest.mark.parametrize("level", [1.0, 300.0])
@pytest.mark.parametrize("r", [3.0, 6.0])
def test_pulls_on_coadds_in_every_cell(rng, r, level, flux):
    """40,000 pulls a cell: of width 0.97 to 1.03."""
    z = coadd_pulls(rng, flux=flux, level=level, r=r, n_side=22, trials=100, shifts=SHIFTS)
    assert z.size >= 40_000
    print(f"coadd r {r} sky {level} flux {flux}: width {np.std(z):.4f} mean {np.mean(z):+.3f}")
    assert 0.97 < np.std(z) < 1.03


def test_bright_stars_are_unbiased_and_as_good_as_photons_allow(rng):
    flux, level, r = 3e5, 50.0, 7.0
    model, x, y = star_field(rng, 10, 48, flux)
    positions = np.column_stack([x, y])
    truth = annulus_photometry(as_ccd(model), positions, r=r, sky=0)["flux"].value
    ratios = []
    for _ in range(4):
        ccd = as_ccd(*expose(rng, model + level))
        table = annulus_photometry(ccd, positions, r=r, r_in=14, r_out=23)
        ratios.append(table["flux"].value / truth)
    ratios = np.array(ratios)
    assert abs(np.mean(ratios) - 1) < 1e-3
    weights = apertures.overlap(np.zeros(1), np.zeros(1), r, 7)
    limit = math.sqrt(flux + (weights**2).sum() * (level + READ_NOISE**2)) / flux
    # 400 stars: the scatter itself is known to 3.5 %, at two sigma 7 %.
    assert np.std(ratios) < limit * 1.05 * 1.07
    assert np.median(table["flux_err"].value / table["flux"].value) < 1.05 * limit


def test_independent_program(real_data):
    """SExtractor's aperture fluxes, same aperture and background."""
    folder = real_data / "sep-emmi-image"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    with warnings.catch_warnings():
        # Its header has cards of 1992 that are not FITS.
        warnings.simplefilter("ignore", AstropyUserWarning)
        image = fits.getdata(folder / "image.fits").astype(float)
        image -= fits.getdata(folder / "back.fits")
    lines = (folder / "image.cat").read_text().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("#")]
    rows = np.loadtxt(lines)
    column = names.index("FLUX_APER")
    x, y, flux, error = rows[:, 1] - 1, rows[:, 2] - 1, rows[:, column], rows[:, column + 1]
    table = annulus_photometry(
        CCDData(image, unit="adu"), np.column_stack([x, y]), r=5.0, sky=0, effective_gain=1e9
    )  # fmt: skip
    clean = (table["flags"] == 0) & (rows[:, -1] == 0)
    assert clean.sum() > 10
    difference = table["flux"].value[clean] / flux[clean] - 1
    print(
        f"{clean.sum()} sources: median difference {np.median(difference):+.2e}, "
        f"median size {np.median(np.abs(difference)):.2e}"
    )
    assert np.median(np.abs(difference)) < 0.005
    assert abs(np.median(difference)) < 0.001
    assert np.max(np.abs(table["flux"].value[clean] - flux[clean]) / error[clean]) < 0.3


# --------------------------------------------------------------------------- errors


def test_uncertainties_of_every_kind_agree(rng):
    data, variance = expose(rng, np.full((80, 80), 40.0))
    positions = [(40.2, 39.7), (20, 60)]
    kinds = [
        VarianceUncertainty(variance),
        StdDevUncertainty(np.sqrt(variance)),
        InverseVariance(1 / variance),
        StdDevUncertainty(np.sqrt(variance) * 1e3, unit=u.Unit(1e-3 * u.electron)),
    ]
    errors = [
        annulus_photometry(
            CCDData(data, unit="electron", uncertainty=kind), positions, r=4, r_in=8, r_out=13
        )["flux_err"].value
        for kind in kinds
    ]
    for error in errors[1:]:
        np.testing.assert_allclose(error, errors[0], rtol=1e-5)


def test_budget_adds_up(rng):
    model, x, y = star_field(rng, 3, 40, 2e4)
    data, variance = expose(rng, model + 60)
    common = np.full(data.shape, 4.0)
    table = annulus_photometry(
        as_ccd(data, variance + 4), np.column_stack([x, y]), r=5, r_in=9, r_out=14, budget=True,
        read_noise=READ_NOISE * u.electron, common=common,
    )  # fmt: skip
    assert table.meta["terms"] == [
        "err_source", "err_sky", "err_read", "err_common", "err_sky_level",
    ]  # fmt: skip
    total = sum(table[name] ** 2 for name in table.meta["terms"])
    np.testing.assert_allclose(total.value, table["flux_err"].value ** 2)
    area2 = (table["err_read"].value / READ_NOISE) ** 2
    np.testing.assert_allclose(table["err_common"].value ** 2, 4 * area2)
    np.testing.assert_allclose(table["err_source"].value ** 2, 2e4, rtol=0.03)
    np.testing.assert_allclose(table["err_sky"].value ** 2, 60 * area2, rtol=0.05)
    plain = annulus_photometry(
        as_ccd(data, variance + 4), np.column_stack([x, y]), r=5, r_in=9, r_out=14
    )
    np.testing.assert_allclose(plain["flux_err"].value, table["flux_err"].value)
    assert "err_sky" not in plain.colnames


def test_sky_level_error_is_part_of_the_error(rng):
    """A large aperture with a small annulus: the level's error is most of it."""
    ccd = noise_image(rng, (200, 200))
    table = annulus_photometry(ccd, [(100, 100)], r=18, r_in=19, r_out=21, budget=True)
    assert table["err_sky_level"][0] > 2 * table["err_sky"][0]
    expected = math.pi * 18**2 * 3 / math.sqrt(table["n_sky"][0])
    assert table["err_sky_level"][0].value == pytest.approx(expected, rel=0.15)


def test_image_without_uncertainty_says_what_the_error_is(rng):
    data = rng.normal(100, 3, (80, 80))
    with pytest.warns(NarrowbandWarning, match="no uncertainty.*effective_gain"):
        table = annulus_photometry(CCDData(data, unit="adu"), [(40, 40)], r=4, r_in=8, r_out=14)
    assert "not counted" in table.meta["errors"]
    assert table["flux_err"][0].value == pytest.approx(3 * math.sqrt(50), rel=0.2)
    table = annulus_photometry(
        CCDData(data, unit="adu"), [(40, 40)], r=4, r_in=8, r_out=14,
        effective_gain=2 * u.electron / u.adu,
    )  # fmt: skip
    assert "effective gain" in table.meta["errors"]


def test_effective_gain_of_rates_and_maps(rng):
    exposure = 300.0
    model, x, y = star_field(rng, 3, 40, 1e5)
    data, _ = expose(rng, model + 100)
    positions = np.column_stack([x, y])
    options = {"r": 5, "r_in": 9, "r_out": 15}
    counts = annulus_photometry(as_ccd(data), positions, **options)
    rate = as_ccd(data / exposure, unit="electron/s", meta={"EXPTIME": exposure})
    from_header = annulus_photometry(rate, positions, **options)
    gain_map = np.full(data.shape, exposure)
    from_map = annulus_photometry(rate, positions, effective_gain=gain_map * u.s, **options)
    for table in (from_header, from_map):
        np.testing.assert_allclose(
            table["flux_err"].value * exposure, counts["flux_err"].value, rtol=1e-5
        )
    np.testing.assert_allclose(counts["flux_err"].value, math.sqrt(1e5), rtol=0.1)


def test_electrons_of_a_mean_are_not_counted(rng):
    """A mean of 4 frames in electron has a quarter of the variance of its counts."""
    data, _ = expose(rng, np.full((60, 60), 50.0))
    with pytest.warns(NarrowbandWarning, match="no uncertainty"):
        annulus_photometry(
            as_ccd(data, meta={"NCOMBINE": 4}), [(30, 30)], r=4, r_in=8, r_out=13
        )  # fmt: skip


def test_noise_ratio_tells_a_wrong_uncertainty(rng):
    good = annulus_photometry(noise_image(rng), [(50, 45)], r=3, r_in=20, r_out=40)
    assert good.meta["noise_ratio"] == pytest.approx(1, abs=0.1)
    bad = as_ccd(noise_image(rng).data, np.full((90, 100), 9.0 / 4))
    bad = annulus_photometry(bad, [(50, 45)], r=3, r_in=20, r_out=40)
    assert bad.meta["noise_ratio"] == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("shift", [0.5, 0.25])
def test_correlation_factor_is_that_of_the_kernel(rng, shift):
    """Noise of circles in interpolated white noise, against the sum of the variance plane."""
    data = rng.normal(size=(400, 400)).astype(np.float32)
    matrix = np.eye(3)
    matrix[:2, 2] = shift
    alignment = Alignment(matrix=matrix, rms=0.0, n_matched=0, method="none")
    ccd = resample(as_ccd(data, np.ones_like(data)), alignment)
    image = read_image(ccd)
    g = np.arange(12.0, 385, 7)
    x, y = (a.ravel() for a in np.meshgrid(g, g))
    for r in (1.5, 3.0):
        sums = apertures.circle_sums(image.pixels, x, y, [r])
        measured = np.var(sums.total) / np.mean(sums.variance)
        # Circles of r = 3 hardly overlap: some 2800 values, known to 2.7 %.
        assert correlation_factor(image, r) == pytest.approx(measured, rel=0.1)


# --------------------------------------------------------------------------- bad pixels


def test_bad_pixels_are_left_out_of_sum_and_area(rng):
    data = np.full((60, 60), 10.0)
    mask = np.zeros(data.shape, bool)
    mask[30, 31], data[30, 31] = True, 1e6
    data[29, 30] = np.nan
    variance = np.full(data.shape, 10.0)
    variance[31, 30] = np.inf
    ccd = as_ccd(data, variance, mask=mask)
    table = annulus_photometry(ccd, [(30, 30), (15, 15)], r=5, r_in=8, r_out=13)
    assert table["area"][0].value == pytest.approx(math.pi * 25 - 3)
    assert table["aperture_sum"][0].value == pytest.approx(10 * (math.pi * 25 - 3))
    assert table["flux"].value == pytest.approx([0, 0], abs=1e-9)
    assert decode_flags(table["flags"][0] & ~Flag.NEGATIVE) == ["MASKED"]
    assert "MASKED" not in decode_flags(table["flags"][1])


def test_edges_are_accounted_for():
    data = np.full((60, 60), 10.0)
    table = annulus_photometry(
        as_ccd(data, data), [(-0.5, 30), (59.5, 59.5), (10, 30)], r=5, r_in=8, r_out=12
    )
    whole = math.pi * 25
    assert table["area"].value == pytest.approx([whole / 2, whole / 4, whole])
    assert table["flux"].value == pytest.approx([0, 0, 0], abs=1e-9)
    flags = table["flags"] & ~np.int32(Flag.NEGATIVE)
    assert decode_flags(flags) == [["EDGE", "SKY_EDGE"]] * 2 + [["SKY_EDGE"]]


def test_a_row_for_every_position(rng):
    ccd = noise_image(rng)
    positions = [(50, 40), (np.nan, 3), (500, 3), (3, np.inf), (-90, -90), (20, 20)]
    table = annulus_photometry(ccd, positions, r=3, r_in=6, r_out=10)
    assert list(table["id"]) == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(table["flux"].value).tolist() == [True, False, False, False, False, True]
    assert decode_flags(table["flags"][1]) == ["CENTROID_FAILED", "NO_DATA"]
    assert decode_flags(table["flags"][2]) == ["EDGE", "NO_DATA"]
    assert len(annulus_photometry(ccd, [], r=3, r_in=6, r_out=10)) == 0
    assert annulus_photometry(ccd, [], r=3, r_in=6, r_out=10)["flux"].unit == u.electron


def test_aperture_full_of_masked_pixels(rng):
    ccd = noise_image(rng)
    ccd.mask = np.zeros(ccd.shape, bool)
    ccd.mask[35:46, 45:56] = True
    table = annulus_photometry(ccd, [(50, 40)], r=3, r_in=9, r_out=14)
    assert np.isnan(table["flux"][0])
    assert np.isnan(table["flux_err"][0])
    assert table["area"][0] == 0
    assert decode_flags(table["flags"][0]) == ["MASKED", "NO_DATA"]
    ccd.mask[:] = True
    table = annulus_photometry(ccd, [(50, 40)], r=3, r_in=9, r_out=14)
    assert set(decode_flags(table["flags"][0])) == {"MASKED", "NO_DATA", "SKY_FEW"}


def test_annulus_without_usable_pixels(rng):
    ccd = noise_image(rng)
    ccd.mask = np.ones(ccd.shape, bool)
    ccd.mask[36:45, 46:55] = False
    table = annulus_photometry(ccd, [(50, 40)], r=3, r_in=9, r_out=14)
    assert np.isnan(table["sky"][0])
    assert np.isnan(table["flux"][0])
    assert np.isfinite(table["aperture_sum"][0])
    assert decode_flags(table["flags"][0]) == ["SKY_FEW"]


def test_flags_of_values(rng):
    ccd = noise_image(rng)
    ccd.data[40, 50] = 6000
    ccd.data[70:76, 20:26] -= 50
    positions = [(50, 40), (54, 40), (22.5, 72.5)]
    table = annulus_photometry(
        ccd, positions, r=3, r_in=6, r_out=10, saturation=5000 * u.electron
    )  # fmt: skip
    assert decode_flags(table["flags"]) == [
        ["SATURATED", "NEIGHBOUR"], ["NEIGHBOUR"], ["NEGATIVE"],
    ]  # fmt: skip
    assert set(FLAGS) == set(Flag)


# --------------------------------------------------------------------------- input


def test_positions_in_every_form(rng):
    ccd = noise_image(rng)
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = (50, 45), (83.6, -5.4)
    wcs.wcs.cdelt, wcs.wcs.ctype = (-2e-4, 2e-4), ("RA---TAN", "DEC--TAN")
    ccd.wcs = wcs
    x, y = np.array([30.25, 60.13]), np.array([50.57, 20.31])
    options = {"r": 3, "r_in": 6, "r_out": 10}
    first = annulus_photometry(ccd, np.column_stack([x, y]), **options)
    sky = SkyCoord(first["ra"], first["dec"])
    forms = [
        list(zip(x, y, strict=True)),
        np.column_stack([x, y]) * u.pix,
        Table({"x_center": x, "y_center": y}),
        Table({"xcentroid": x * u.pix, "ycentroid": y * u.pix}),
        sky,
        Table({"sky_centroid": sky}),
        Table({"ra": sky.ra.deg, "dec": sky.dec.deg}),
    ]
    for form in forms:
        table = annulus_photometry(ccd, form, **options)
        np.testing.assert_allclose(table["x_center"].value, x, atol=1e-6)
        np.testing.assert_allclose(table["flux"].value, first["flux"].value, atol=1e-3)
    assert len(annulus_photometry(ccd, (30.25, 50.57), **options)) == 1
    assert len(annulus_photometry(ccd, sky[0], **options)) == 1
    masked = Table({"x": np.ma.array(x, mask=[True, False]), "y": y})
    assert np.isnan(annulus_photometry(ccd, masked, **options)["x_center"][0])


def test_apertures_of_photutils_bring_their_radii(rng):
    ccd = noise_image(rng)
    ccd.wcs = WCS(naxis=2)
    ccd.wcs.wcs.crpix, ccd.wcs.wcs.crval = (50, 45), (83.6, -5.4)
    ccd.wcs.wcs.cdelt, ccd.wcs.wcs.ctype = (-2e-4, 2e-4), ("RA---TAN", "DEC--TAN")
    xy = [(30.25, 50.57), (60.13, 20.31)]
    radii = {"r_in": 6, "r_out": 10}
    first = annulus_photometry(ccd, xy, r=3, **radii)
    circle, annulus = CircularAperture(xy, r=3), CircularAnnulus(xy, **radii)
    for positions, options in (
        ([circle, annulus], {}),
        ((annulus, circle), {"r": 3 * u.pix}),
        (circle, radii),
        (annulus, {"r": 3}),
        ([circle.to_sky(ccd.wcs), annulus.to_sky(ccd.wcs)], {}),
        (np.array(xy, dtype=[("x", float), ("y", float)]), {"r": 3} | radii),
        (xy, {"r": 3 * u.pix, "r_in": 6 * u.pix, "r_out": 10 * u.pix, "clip": SigmaClip(3)}),
    ):
        table = annulus_photometry(ccd, positions, **options)
        np.testing.assert_allclose(table["flux"].value, first["flux"].value, atol=1e-4)
    curves = growth_curves(ccd, [circle, annulus], [2, 3, 5] * u.pix)
    np.testing.assert_allclose(curves.flux[:, 1], first["flux"].value)
    for positions, options, message in (
        (circle, {"r": 4}, r"r = 4, but that of the aperture is 3"),
        ([circle, CircularAnnulus((1, 2), **radii)], {}, "different positions"),
        (EllipticalAperture(xy, 3, 2), radii, "EllipticalAperture is no circle"),
        (annulus, {}, "r, the radius of the aperture, is needed"),
        (xy, {"r": 3 * u.arcsec}, "r = 3.0 arcsec: give a number of pix"),
        (xy, {"r": 3, "clip": SigmaClip(3, stdfunc="mad_std")}, "stdfunc='std' and no grow"),
    ):
        with pytest.raises(InputError, match=message):
            annulus_photometry(ccd, positions, **options)


def test_images_in_every_form(rng, tmp_path):
    data = rng.integers(900, 1100, (60, 60)).astype(np.uint16)
    reference = annulus_photometry(
        CCDData(data.astype(float), unit="electron"), [(30.3, 30.6)], r=4, r_in=8, r_out=13
    )
    as_file = CCDData(data.astype(np.float32), unit="electron")
    as_file.write(tmp_path / "image.fits")
    wide = np.zeros((60, 120))
    wide[:, ::2] = data
    for image in (
        CCDData(data, unit="electron"),
        CCDData(data.astype(">f4"), unit="electron"),
        CCDData(wide[:, ::2], unit="electron"),
        NDData(data.astype(np.float32), unit="electron"),
        data * u.electron,
        tmp_path / "image.fits",
        str(tmp_path / "image.fits"),
    ):
        table = annulus_photometry(image, [(30.3, 30.6)], r=4, r_in=8, r_out=13)
        assert table["flux"][0].value == pytest.approx(reference["flux"][0].value, rel=1e-6)
        assert table["flux"].unit == u.electron
    with pytest.warns(NarrowbandWarning, match="no uncertainty"):
        table = annulus_photometry(data.astype(float), [(30.3, 30.6)], r=4, r_in=8, r_out=13)
    assert not isinstance(table["flux"], u.Quantity)
    assert table["flux"][0] == pytest.approx(reference["flux"][0].value)


def test_input_is_not_changed(rng):
    ccd = noise_image(rng)
    ccd.mask = rng.uniform(size=ccd.shape) < 0.05
    before = ccd.copy()
    annulus_photometry(ccd, [(50, 40)], r=3, r_in=6, r_out=10, mask=~ccd.mask, recentre=True)
    assert np.array_equal(ccd.data, before.data)
    assert np.array_equal(ccd.mask, before.mask)
    assert np.array_equal(ccd.uncertainty.array, before.uncertainty.array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 7, "r_in": 6, "r_out": 10}, r"r = 7.* reaches into the annulus \(r_in = 6"),
        ({"r": 0, "r_in": 6, "r_out": 10}, "r = 0"),
        ({"r": np.nan, "r_in": 6, "r_out": 10}, "r = nan"),
        ({"r": 3, "r_in": 10, "r_out": 6}, "r_in = 10.*r_out = 6"),
        ({"r": 3, "r_in": 6, "r_out": 6}, "r_in < r_out"),
        ({"r": 3, "r_in": 6}, "given together"),
        ({"r": 3}, "sky=0 subtracts none"),
        ({"r": 3, "r_in": 6, "r_out": 10, "sky": "best"}, "'best' is not known"),
        ({"r": 3, "r_in": 6, "r_out": 10, "clip": -1}, "clip = -1"),
        ({"r": 3, "r_in": 6, "r_out": 10, "mask": np.zeros((2, 2))}, "mask has shape"),
        ({"r": 3, "r_in": 6, "r_out": 10, "effective_gain": 3 * u.m}, "effective_gain = 3.0 m"),
        ({"r": 3, "r_in": 6, "r_out": 10, "effective_gain": np.ones(3)}, "effective_gain has"),
        ({"r": 3, "r_in": 6, "r_out": 10, "saturation": 3 * u.m}, "saturation = 3.0 m"),
        ({"r": 3, "r_in": 6, "r_out": 10, "noise_correlation": 2}, "NOISECOR = 2"),
    ],
)
def test_arguments_that_cannot_be_used(rng, options, message):
    with pytest.raises(InputError, match=message):
        annulus_photometry(noise_image(rng), [(50, 40)], **options)


def test_positions_and_images_that_cannot_be_used(rng):
    ccd = noise_image(rng)
    options = {"r": 3, "r_in": 6, "r_out": 10}
    with pytest.raises(InputError, match="need a WCS"):
        annulus_photometry(ccd, SkyCoord(1 * u.deg, 2 * u.deg), **options)
    with pytest.raises(InputError, match="shape \\(3,\\)"):
        annulus_photometry(ccd, [1, 2, 3], **options)
    with pytest.raises(InputError, match="has columns a"):
        annulus_photometry(ccd, Table({"a": [1]}), **options)
    with pytest.raises(InputError, match="2-D"):
        annulus_photometry(np.zeros(5), [(1, 2)], **options)
    with pytest.raises(InputError, match="complex"):
        annulus_photometry(np.zeros((5, 5), complex), [(1, 2)], **options)
    with pytest.raises(InputError, match="not an image"):
        annulus_photometry(3, [(1, 2)], **options)
    unknown = CCDData(ccd.data, unit="adu", uncertainty=UnknownUncertainty(ccd.data))
    with pytest.raises(InputError, match="of type 'unknown'"):
        annulus_photometry(unknown, [(1, 2)], **options)


def test_recentring_finds_the_star(rng):
    model, x, y = star_field(rng, 4, 40, 2e4)
    ccd = as_ccd(*expose(rng, model + 50))
    wrong = np.column_stack([x, y]) + rng.uniform(-1.5, 1.5, (len(x), 2))
    table = annulus_photometry(ccd, wrong, r=5, r_in=9, r_out=14, recentre=True)
    offsets = np.hypot(table["x_center"].value - x, table["y_center"].value - y)
    assert np.sqrt(np.mean(offsets**2)) < 0.03
    assert not np.any(table["flags"] & Flag.CENTROID_FAILED)


def test_recentring_that_fails_is_said(rng):
    ccd = noise_image(rng)
    ccd.data[30:60, 30:70] -= np.arange(40) * 4.0
    table = annulus_photometry(
        ccd, [(50, 40), (np.nan, 2)], r=3, r_in=6, r_out=10, recentre=True
    )  # fmt: skip
    assert table["x_center"][0] == 50 * u.pix
    assert all("CENTROID_FAILED" in names for names in decode_flags(table["flags"]))


def test_fixed_sky_is_subtracted_as_given(rng):
    ccd = noise_image(rng)
    none = annulus_photometry(ccd, [(50, 40)], r=3, sky=0)
    some = annulus_photometry(ccd, [(50, 40)], r=3, sky=100 * u.electron)
    assert none["flux"] == none["aperture_sum"]
    assert some["flux"][0].value == pytest.approx(
        none["flux"][0].value - 100 * math.pi * 9
    )  # fmt: skip
    assert some["sky_err"][0] == 0
    assert decode_flags(some["flags"][0]) in ([], ["NEGATIVE"])


def test_table_survives_ecsv(rng, tmp_path):
    table = annulus_photometry(noise_image(rng), [(50, 40)], r=3, r_in=6, r_out=10, budget=True)
    table.write(tmp_path / "table.ecsv")
    again = type(table).read(tmp_path / "table.ecsv")
    assert again["flux"][0] == table["flux"][0]
    assert again.meta["terms"] == table.meta["terms"]


def test_figure_of_the_aperture(rng):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert plot_aperture(noise_image(rng), (50.3, 40.1), r=3, r_in=6, r_out=10, ax=ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["aperture", "sky annulus"]
    circle = ax.lines[0].get_xydata()
    np.testing.assert_allclose(np.hypot(*(circle - [50.3, 40.1]).T), 3)
    with pytest.raises(InputError, match="one position"):
        plot_aperture(noise_image(rng), [(1, 2), (3, 4)], r=3, ax=ax)


# --------------------------------------------------------------------------- structure


@pytest.mark.parametrize(("rms", "length"), [(1, 7.5), (3, 15), (10, 7.5), (10, 37)])
def test_errors_hold_on_nebula_whether_flagged_or_not(rms, length):
    """The level under a star is not that of its annulus: what blank places show is counted."""
    pulls, flagged = [], []
    for seed in range(20):
        rng = np.random.default_rng([seed, rms, int(length)])
        nebula = gaussian_filter(rng.normal(size=(256, 256)), length, mode="wrap")
        image = as_ccd(
            rms * nebula / nebula.std() + rng.normal(size=nebula.shape), np.ones(nebula.shape)
        )
        table = annulus_photometry(image, rng.uniform(30, 226, (25, 2)), r=3.75, r_in=9, r_out=15)
        pulls.append(table["flux"].value / table["flux_err"].value)
        flagged.append((table["flags"] & Flag.SKY_UNEVEN) > 0)
    pulls, flagged = np.concatenate(pulls), np.concatenate(flagged)
    for group in (flagged, ~flagged):
        if group.sum() > 60:
            assert 0.7 < np.std(pulls[group]) < 1.2
    assert np.std(pulls) < 1.15


def knots(rng, n, fwhm):
    """Round knots at random, few of them bright: no field of Gaussian fluctuations."""
    k = int(0.06 * (n / fwhm) ** 2)
    image = np.zeros((n, n))
    np.add.at(image, tuple(rng.integers(0, n, (2, k))), rng.exponential(size=k))
    return gaussian_filter(image, fwhm / 2.355, mode="wrap")


@pytest.mark.long
@pytest.mark.parametrize(("fwhm", "rms"), [(10, 1), (10, 3), (20, 3), (20, 10), (40, 10)])
def test_errors_hold_on_knots(fwhm, rms):
    """A knot may lie in the circle and leave the annulus even; the image shows how often."""
    pulls, flagged = [], []
    for seed in range(20):
        rng = np.random.default_rng([seed, rms, fwhm])
        nebula = knots(rng, 480, fwhm)
        noise = rng.normal(size=nebula.shape)
        image = as_ccd(rms * nebula / nebula.std() + noise, np.ones(nebula.shape))
        table = annulus_photometry(image, rng.uniform(30, 450, (300, 2)), r=3.75, r_in=9, r_out=15)
        pulls.append(table["flux"].value / table["flux_err"].value)
        flagged.append((table["flags"] & Flag.SKY_UNEVEN) > 0)
    pulls, flagged = np.concatenate(pulls), np.concatenate(flagged)
    for group in (flagged, ~flagged):
        assert np.std(pulls[group]) < (1.2 if fwhm > 10 else 1.9)


def test_error_of_empty_sky_is_not_made_larger():
    ratios, pulls = [], []
    for seed in range(20):
        rng = np.random.default_rng([seed, 77])
        image = noise_image(rng, (300, 300))
        table = annulus_photometry(image, rng.uniform(20, 280, (60, 2)), r=3.75, r_in=9, r_out=15)
        pulls.append(table["flux"].value / table["flux_err"].value)
        plain = table["sky_std"].value * np.sqrt(1.02 / table["n_sky"])
        ratios.append(table["sky_err"].value / plain)
        own = np.sqrt(9 * 41.7 + (table["area"].value * plain) ** 2)
        ratios[-1] = table["flux_err"].value / own
    assert np.std(np.concatenate(pulls)) == pytest.approx(1, abs=0.06)
    assert np.mean(ratios) < 1.03
