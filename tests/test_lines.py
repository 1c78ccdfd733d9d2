"""Lines: fluxes, ratios and places on the sky against what was put in, and errors that hold."""

import math
from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter, uniform_filter

from astro_narrowband.exceptions import AlignmentError, InputError, NarrowbandWarning
from astro_narrowband.lines import (
    RESIDUAL_STAR,
    FilterCurve,
    FluxScale,
    LineMap,
    calibrate_flux,
    correct_blend,
    extinction,
    flux_from_magnitudes,
    flux_from_spectra,
    flux_scale,
    line_in_continuum,
    line_ratio,
    match_catalogue,
    read_image,
    read_regions,
    region_fluxes,
    region_ratios,
    restore_lines,
    scale_of_area,
    separate_lines,
    subtract_continuum,
    subtract_sky,
    surface_brightness,
)
from astro_narrowband.lines._map import pixel_sigma
from astro_narrowband.lines._psf import blurred_to
from astro_narrowband.lines._ratio import scale_correlation
from astro_narrowband.registration import Alignment
from astro_narrowband.resampling import resample
from astro_narrowband.simulate import SpectralModel, simulate_night

RATE, FLUX = u.electron / u.s, u.erg / u.s / u.cm**2
DENSITY = FLUX / u.nm


def flat_map(value, error=0.1, shape=(40, 40), **keywords):
    return CCDData(
        np.full(shape, value, np.float32), unit=RATE,
        uncertainty=StdDevUncertainty(np.full(shape, error, np.float32)), **keywords,
    )  # fmt: skip


def star_fields(seed, *, size=256, n=70, fwhm=(3.0, 3.8), k=0.05, scatter=0.02, exposure=2000.0):
    """A line image and a continuum image of the same Gaussian-winged stars, and k."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(12, size - 12, (2, n))
    flux = 10 ** rng.uniform(1.5, 3.5, n)
    ratio = k * np.exp(scatter * rng.standard_normal(n))
    gy, gx = np.mgrid[:size, :size]
    images = []
    for light, width, sky in zip((flux, flux / ratio), fwhm, (0.5, 8.0), strict=True):
        image = np.full((size, size), sky)
        alpha = width / (2 * math.sqrt(2 ** (1 / 3.5) - 1))
        for x0, y0, f in zip(x, y, light, strict=True):
            rows, columns = (slice(max(0, int(c) - 30), int(c) + 31) for c in (y0, x0))
            r2 = (gx[rows, columns] - x0) ** 2 + (gy[rows, columns] - y0) ** 2
            image[rows, columns] += f * 2.5 / (math.pi * alpha**2) * (1 + r2 / alpha**2) ** -3.5
        sigma = np.sqrt(image / exposure + 1e-4)
        image += rng.normal(size=image.shape) * sigma
        images.append(
            CCDData(image.astype(np.float32), unit=RATE, uncertainty=StdDevUncertainty(sigma))
        )
    return *images, k


#: One electron/s is one erg/(s cm2), and that is known.
NO_ERROR = scale_of_area(FilterCurve.from_shape(656.3, 7.0), "Halpha", area=1.0, error=1e-9)


# ---- filters


def test_beam_shifts_by_the_mean_angle_and_loses_the_line():
    curve = FilterCurve.from_shape(656.3, 3.0)
    fast = curve.in_beam(2.8)
    marginal = 656.3 * (1 - math.sqrt(1 - (math.sin(math.atan(1 / 5.6)) / 2) ** 2))
    assert curve.centre - fast.centre == pytest.approx(marginal / 2, rel=0.03)
    assert fast.width > 0.99 * curve.width
    assert 0.3 < 1 - fast.response("Halpha") / curve.response("Halpha") < 0.5
    assert curve.in_beam(2.8, obstruction=0.5).centre < fast.centre


def test_light_is_moved_not_lost_by_a_beam():
    broad = FilterCurve.from_shape(656.3, 12.0)
    area = np.trapezoid(broad.transmission, broad.wavelength)
    fast = broad.in_beam(3.0)
    assert np.trapezoid(fast.transmission, fast.wavelength) == pytest.approx(area, rel=0.01)


def test_velocity_and_temperature_move_line_and_curve():
    curve = FilterCurve.from_shape(656.3, 3.0)
    assert curve.response("Halpha", velocity=300.0) < curve.response("Halpha")
    away = curve.shifted(0.657).response("Halpha", velocity=300.0)
    assert away == pytest.approx(curve.response("Halpha"), rel=0.002)


def test_curve_files_need_a_unit(tmp_path):
    path = tmp_path / "curve.txt"
    path.write_text("6500 0.0\n6560 0.9\n6600 0.0\n")
    with pytest.raises(InputError, match="no unit"):
        FilterCurve.from_file(path)
    assert FilterCurve.from_file(path, unit="Angstrom")(656.0) == pytest.approx(0.9)


def test_filters_that_do_not_fit_are_refused():
    halpha, broad = FilterCurve.from_shape(656.3, 7.0), FilterCurve.generic("V")
    with pytest.raises(InputError, match="does not contain OIII"):
        halpha.checked_response("OIII")
    with pytest.raises(InputError, match="the line's own"):
        line_in_continuum(halpha, halpha, "Halpha")
    assert line_in_continuum(halpha, broad, "Halpha") < 1e-3
    with pytest.raises(InputError, match="negative"):
        FilterCurve("bad", [1.0, 2.0, 3.0], [0.0, 1.0, -0.5])


# ---- continuum


def test_continuum_with_a_given_scale_is_arithmetic():
    curves = FilterCurve.from_shape(656.3, 7.0), FilterCurve.from_shape(640.0, 130.0)
    lost = line_in_continuum(*curves, "Halpha")
    result = subtract_continuum(
        flat_map(5.0), flat_map(20.0), k=0.1, k_err=0.01, curves=curves, name="Halpha"
    )
    np.testing.assert_allclose(result.data, 3.0 / (1 - lost), rtol=1e-6)
    np.testing.assert_allclose(
        result.uncertainty.array, math.hypot(0.1, 0.01) / (1 - lost), rtol=1e-5
    )


def test_error_of_the_scale_is_common_to_a_region():
    from regions import CirclePixelRegion, PixCoord

    continuum = flat_map(20.0)
    continuum.data[:20] = 70.0
    result = subtract_continuum(flat_map(5.0), continuum, k=0.1, k_err=0.01)
    table = region_fluxes(result, [CirclePixelRegion(PixCoord(20, 9), 5)])
    above = 70.0 - float(np.median(continuum.data))
    area = table["area"][0].value
    assert table["err_continuum"][0].value == pytest.approx(0.01 * above * area, rel=1e-5)
    assert table["err_noise"][0].value == pytest.approx(0.1 * math.sqrt(1.01 * area), rel=0.08)


def test_copy_of_a_map_knows_its_common_errors():
    line = LineMap(flat_map(5.0), common={"flux scale": 0.03}, shared={"r": np.ones((40, 40))})
    twin = line.copy()
    assert twin.common == {"flux scale": 0.03}
    assert twin.shared.keys() == {"r"}
    assert twin.data is not line.data


@pytest.mark.parametrize("fwhm", [(3.0, 3.8), (3.8, 3.0), (3.2, 3.2)])
def test_stars_go_and_the_scale_is_right(fwhm):
    line, continuum, k = star_fields(1, fwhm=fwhm)
    result = subtract_continuum(line, continuum)
    assert result.meta["KCONT"] == pytest.approx(k, rel=0.015)
    assert abs(result.meta["KCONT"] - k) < 3 * result.meta["KCONTERR"]
    assert np.median(np.abs(result.stars["residual"])) < 0.03
    assert line.data.max() > 5 * np.nanmax(np.abs(result.data))


def test_colour_of_stars_is_taken_out_where_it_shows():
    line, continuum, _ = star_fields(2, scatter=0.0, fwhm=(3.0, 3.0), n=60)
    plain = subtract_continuum(line, continuum)
    rng = np.random.default_rng(0)
    stars = plain.stars["x_center", "y_center"]
    stars["colour"] = rng.normal(size=len(stars))
    # A slope of nothing is not taken for one.
    assert subtract_continuum(line, continuum, stars=stars).meta["KCOLOUR"] == 0


def test_colour_of_stars_that_shows_is_measured_and_k_is_that_of_the_colour_asked_for():
    rng, slope, k = np.random.default_rng(8), 0.3, 0.05
    gy, gx = np.mgrid[:256, :256]
    x, y = (np.arange(36)[None, :].repeat(2, 0) // [[1], [6]] % 6 * 38 + 30).astype(float)
    x, y = x + rng.uniform(-4, 4, 36), y + rng.uniform(-4, 4, 36)
    flux, colours = 10 ** rng.uniform(2.5, 3.5, 36), rng.normal(0, 0.4, 36)
    images = []
    for light in (flux * k * np.exp(slope * colours), flux):
        stars = sum(f * np.exp(-((gx - a) ** 2 + (gy - b) ** 2) / 4.5) / (4.5 * np.pi)
                    for a, b, f in zip(x, y, light, strict=True))  # fmt: skip
        sigma = 0.002 if light is not flux else 0.04
        images.append(flat_map(1.0, sigma, (256, 256)))
        images[-1].data += np.float32(stars + rng.normal(0, sigma, stars.shape))
    table = QTable({"x_center": x, "y_center": y, "colour": colours})
    result = subtract_continuum(*images, stars=table, colour=1.0)
    assert abs(result.meta["KCOLOUR"] - slope) < 4 * result.meta["KCOLERR"]
    assert result.meta["KCOLERR"] < 0.03
    away = result.meta["KCONT"] - k * math.exp(slope)
    assert abs(away) < 4 * result.meta["KCONTERR"]
    # Stars of every known colour are gone, from the map as well; those of unknown colour are not.
    assert np.median(np.abs(result.stars["residual"])) < 0.03
    table["colour"][::3] = np.nan
    left = subtract_continuum(*images, stars=table).data
    own = np.array(
        [left[(gx - a) ** 2 + (gy - b) ** 2 < 25].sum() for a, b in zip(x, y, strict=True)]
    )
    off = np.abs(own - 78.5 * np.median(left)) / (k * flux)
    assert np.median(np.delete(off, np.s_[::3])) < 0.03 < np.median(off[::3])


def test_stars_are_not_chosen_by_their_own_light_in_the_line_filter():
    k = []
    for seed in range(6):
        line, continuum, _ = star_fields(seed, fwhm=(3.0, 3.0), scatter=0.3, n=60, exposure=200.0)
        k.append(math.log(subtract_continuum(line, continuum, match=False).meta["KCONT"] / 0.05))
    assert abs(np.mean(k)) < 3 * np.std(k) / math.sqrt(6)


def test_hole_in_a_bright_star_is_not_blurred_into_its_neighbours():
    line, continuum, _ = star_fields(3, fwhm=(3.8, 3.0), n=40)
    gy, gx = np.mgrid[:256, :256]
    r2 = (gx - 128.3) ** 2 + (gy - 127.6) ** 2
    for ccd, width, flux in ((line, 3.8, 1e3), (continuum, 3.0, 2e4)):
        alpha = width / (2 * math.sqrt(2 ** (1 / 3.5) - 1))
        star = flux * 2.5 / (math.pi * alpha**2) * (1 + r2 / alpha**2) ** -3.5
        ccd.data += np.float32(star)
        ccd.uncertainty.array = np.sqrt(ccd.uncertainty.array**2 + star / 2000)
    continuum.mask = r2 < 9
    result = subtract_continuum(line, continuum)
    near = (r2 < 20**2) & ~result.mask
    assert near.sum() > 300
    off = (result.data - np.nanmedian(result.data)) / result.uncertainty.array
    assert np.percentile(np.abs(off[near]), [68, 99]) == pytest.approx([1.0, 2.6], rel=0.3)


def test_stars_saturated_in_the_sharpest_frames_do_not_count():
    for seed in range(3):
        line, continuum, k = star_fields(seed, fwhm=(3.2, 2.9), scatter=0.0)
        _, broad, _ = star_fields(seed, fwhm=(3.2, 3.5), scatter=0.0)
        full = continuum.data > 1200
        continuum.data[full] = broad.data[full]
        result = subtract_continuum(line, continuum)
        assert result.meta["KCONT"] == pytest.approx(k, rel=0.015)
        assert result.meta["KCONTERR"] < 0.015 * k


def test_negative_continuum_and_no_star_in_common_are_refused():
    with pytest.raises(InputError, match="continuum image is negative"):
        subtract_continuum(flat_map(5.0), flat_map(-20.0), k=0.1)
    line, continuum, _ = star_fields(4, fwhm=(3.0, 3.0))
    continuum.data = continuum.data[::-1].copy()
    with pytest.raises(InputError, match="stars are in both"):
        subtract_continuum(line, continuum)


@pytest.mark.parametrize("given", ["pixels", "header", "number"])
def test_scales_without_stars(given):
    rng = np.random.default_rng(1)
    clumps = uniform_filter(rng.normal(size=(128, 128)), 3).astype(np.float32) * 30
    line, continuum = flat_map(1.0, 0.05, (128, 128)), flat_map(10.0, 0.3, (128, 128))
    continuum.data += clumps + rng.normal(0, 0.3, clumps.shape)
    line.data += 0.05 * clumps + rng.normal(0, 0.05, clumps.shape)
    line.data[:40, :40] += 5.0
    line.header["PHOTFLAM"], continuum.header["PHOTFLAM"] = 2e-17, 1e-18
    k, k_err = (0.05, 0.001) if given == "number" else (given, 0.0)
    result = subtract_continuum(line, continuum, k=k, k_err=k_err, fwhm=(3.0, 3.0))
    assert abs(result.meta["KCONT"] - 0.05) < 3.5 * result.meta["KCONTERR"]
    assert result.meta["KCONTERR"] < 0.006
    del continuum.header["PHOTFLAM"]
    with pytest.raises(InputError, match="PHOTFLAM = None"):
        subtract_continuum(line, continuum, k="header")


def test_given_widths_blur_the_sharper_image():
    line, continuum = flat_map(0.0, 0.1, (64, 64)), flat_map(0.0, 0.1, (64, 64))
    for ccd, sigma, flux in ((line, 1.2, 5.0), (continuum, 1.8, 100.0)):
        y, x = np.mgrid[:64, :64]
        ccd.data += np.float32(
            flux
            * np.exp(-((x - 32) ** 2 + (y - 32) ** 2) / (2 * sigma**2))
            / (2 * np.pi * sigma**2)
        )
    widths = 2.3548 * 1.2, 2.3548 * 1.8
    result = subtract_continuum(line, continuum, k=0.05, fwhm=widths)
    assert np.nanmax(np.abs(result.data)) < 0.01
    assert np.nanmax(np.abs(subtract_continuum(line, continuum, k=0.05).data)) > 0.1


@pytest.mark.long
def test_pulls_of_the_scale():
    pulls, residuals = [], []
    for seed in range(60):
        line, continuum, k = star_fields(seed, fwhm=(3.0, 3.8) if seed % 2 else (3.8, 3.0))
        result = subtract_continuum(line, continuum)
        pulls.append((result.meta["KCONT"] - k) / result.meta["KCONTERR"])
        residuals.append(np.median(np.abs(result.stars["residual"])))
    assert 0.8 < np.std(pulls) < 1.2
    assert np.median(residuals) < 0.03


def test_images_without_stars_or_good_pixels_are_refused():
    with pytest.raises(InputError, match="no stars"):
        subtract_continuum(flat_map(5.0), flat_map(20.0))
    masked = flat_map(5.0, mask=np.ones((40, 40), bool))
    with pytest.raises(InputError, match="masked"):
        subtract_continuum(masked, flat_map(20.0), k=0.1)
    with pytest.raises(InputError, match="shapes"):
        subtract_continuum(flat_map(5.0), flat_map(20.0, shape=(30, 40)), k=0.1)
    bare = CCDData(np.ones((40, 40)), unit=RATE)
    with pytest.raises(InputError, match="no uncertainty"):
        subtract_continuum(bare, flat_map(20.0), k=0.1)


def sky_map(value, x0, shape=(40, 40), **keywords):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [100.0, 20.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [20.0 + x0, 20.0], [-1 / 3600, 1 / 3600]
    return flat_map(value, shape=shape, wcs=wcs, header=wcs.to_header(), **keywords)


def test_other_grids_are_resampled_or_refused():
    continuum = sky_map(0.0, 0.5)
    continuum.data += np.arange(40, dtype=np.float32)
    result = subtract_continuum(sky_map(5.0, 0.0), continuum, k=0.1)
    assert result.data[20, 20] == pytest.approx(5 - 0.1 * 20.5, abs=0.02)
    assert np.isnan(result.data[20, 39])
    with pytest.raises(InputError, match="another part of the sky"):
        subtract_continuum(sky_map(5.0, 0.0), sky_map(20.0, 500.0), k=0.1)


# ---- ratios


def test_intervals_cover_and_limits_hold():
    rng = np.random.default_rng(3)
    n = 400
    truth_b = 10 ** rng.uniform(math.log10(3), 2, (n, n))
    ratio = 10 ** rng.uniform(-1.3, 0.5, (n, n))
    noise = rng.normal(size=(2, n, n))
    maps = [
        CCDData(np.float32(t + e), unit=RATE, uncertainty=StdDevUncertainty(np.ones((n, n))))
        for t, e in zip((ratio * truth_b, truth_b), noise, strict=True)
    ]
    result = line_ratio(*maps)
    measured = result.kind == 1
    covered = (result.lower <= ratio) & (ratio <= result.upper)
    assert 0.66 < covered[measured].mean() < 0.71
    bright = measured & (truth_b > 10) & (ratio * truth_b > 10)
    assert covered[bright].mean() == pytest.approx(0.6827, abs=0.01)
    assert 0.95 < (ratio <= result.upper)[result.kind == 2].mean() < 0.985
    # Whatever the true S/N of the line is that is not seen.
    for signal in (1.0, 3.0, 4.0, 5.0):
        faint, bright = (
            CCDData(np.float32(t + e), unit=RATE, uncertainty=StdDevUncertainty(np.ones((n, n))))
            for t, e in zip((signal, 30.0), noise, strict=True)
        )
        upper, lower = line_ratio(faint, bright), line_ratio(bright, faint)
        held = (signal / 30 <= upper.upper)[upper.kind == 2].mean()
        assert 0.965 < held < 0.985
        assert (30 / signal >= lower.lower)[lower.kind == 3].mean() == pytest.approx(held)
    # And of the one that is seen, be it by chance alone.
    for faint, other in ((0.0, 1.0), (1.0, 1.0), (1.0, 3.0), (2.0, 3.0)):
        maps = (
            CCDData(np.float32(t + e), unit=RATE, uncertainty=StdDevUncertainty(np.ones((n, n))))
            for t, e in zip((faint, other), noise, strict=True)
        )
        limit = line_ratio(*maps)
        lower = limit.lower[limit.kind == 3]
        assert lower.size > 100
        assert (lower <= faint / other).mean() > 0.95
        assert not np.isnan(lower).any()
    assert not np.isfinite(result.ratio[~measured]).any()
    assert not np.isfinite(result.upper[result.kind == 0]).any()


def test_intervals_are_the_same_in_any_unit():
    a, b = flat_map(5.0, 1.0), flat_map(20.0, 1.5)
    plain = line_ratio(a, b)
    for factor in (1e-17, 1e-21):
        small = [calibrate_flux(LineMap(x), replace(NO_ERROR, value=factor)) for x in (a, b)]
        result = line_ratio(*small)
        np.testing.assert_allclose(result.lower, plain.lower, rtol=1e-4)
        np.testing.assert_allclose(result.upper, plain.upper, rtol=1e-4)


def test_noise_of_one_continuum_is_a_covariance_of_two_lines():
    rng = np.random.default_rng(6)
    k, shape = 0.3, (300, 300)
    noise = rng.normal(0, 1.0, (3, *shape)) * np.array([0.3, 0.3, 4.0])[:, None, None]
    continuum = flat_map(100.0, 4.0, shape)
    continuum.data += np.float32(noise[2])
    maps = []
    for flux, own in ((10.0, noise[0]), (12.0, noise[1])):
        line = flat_map(flux + k * 100.0, 0.3, shape)
        line.data += np.float32(own)
        maps.append(subtract_continuum(line, continuum, k=k))
    result = line_ratio(*maps)
    measured = result.kind == 1
    covered = (result.lower <= 10 / 12) & (result.upper >= 10 / 12)
    assert covered[measured].mean() == pytest.approx(0.6827, abs=0.01)
    plain = [CCDData(m.data, unit=RATE, uncertainty=m.uncertainty) for m in maps]
    alone = line_ratio(*plain)
    assert np.median(alone.upper - alone.lower) > 2 * np.median(result.upper - result.lower)
    # Given back to each other, the lines have the noise of that image once.
    whole = restore_lines(dict(zip(("Halpha", "SII"), maps, strict=True)), {"Halpha": 0.3})
    assert np.std(whole["SII"].data) == pytest.approx(
        float(np.median(whole["SII"].uncertainty.array)), rel=0.02
    )


def test_wide_stars_are_matched_before_the_ratio():
    a, b = flat_map(5.0), flat_map(10.0)
    a.meta["PSFWIDTH"], b.meta["PSFWIDTH"] = 3.0, 4.0
    a.data[20, 20] = 6.0
    ratio = line_ratio(a, b).ratio
    assert ratio[20, 20] < 0.53
    assert ratio[20, 21] > 0.5
    other = CCDData(b.data, unit="adu", uncertainty=StdDevUncertainty(b.uncertainty.array))
    with pytest.raises(InputError, match="one unit"):
        line_ratio(a, other)


@pytest.mark.parametrize(("shift", "kernel"), [(0.5, "lanczos3"), (0.3, "bilinear")])
def test_noise_of_an_image_that_was_interpolated_is_known_after_a_kernel(shift, kernel):
    rng = np.random.default_rng(8)
    raw = CCDData(rng.normal(50, 1, (300, 300)), unit=RATE,
                  uncertainty=StdDevUncertainty(np.ones((300, 300))))  # fmt: skip
    moved = resample(raw, Alignment([[1, 0, shift], [0, 1, shift], [0, 0, 1]]), kernel=kernel)
    maps, widths = [], (3.0, 3.6, 4.2)
    for width in widths:
        ccd = moved.copy()
        ccd.meta["PSFWIDTH"] = width
        maps.append(LineMap(ccd))
    once = blurred_to(maps[0], maps[1])[0]
    once.meta["PSFWIDTH"] = widths[1]
    twice = blurred_to(once, maps[2])[0]
    for ccd in (once, twice):
        inner = ccd.data[20:-20, 20:-20].astype(float)
        said = float(np.median(pixel_sigma(ccd)[20:-20, 20:-20]))
        assert inner.std() == pytest.approx(said, rel=0.04)
    # What a blurred map is made of keeps what its own header says.
    assert maps[0].meta["NOISECOR"] == moved.meta["NOISECOR"]
    assert once.meta["NOISECOR"] < moved.meta["NOISECOR"]


def test_arithmetic_of_line_maps_keeps_what_their_pixels_share_or_is_refused():
    plane = np.linspace(0.02, 0.05, 1600).reshape(40, 40)
    stars = QTable({"x_center": [10.0, 12.0], "y_center": [20.0, 30.0]})
    plain = LineMap(flat_map(5.0), shared={"r": plane}, stars=stars)
    line = plain.scaled(1, RATE, common={"flux scale": 0.03, "continuum": plane})
    twice = {"times 2": line.multiply(2), "over a half": line.divide(0.5 * u.s)}
    twice["per half second"] = line.convert_unit_to(u.electron / (2 * u.s))
    for result in twice.values():
        assert result.common["flux scale"] == 0.03
        np.testing.assert_allclose(result.common["continuum"], 2 * plane, rtol=1e-5)
        np.testing.assert_allclose(result.shared["r"], 2 * plane, rtol=1e-5)
        np.testing.assert_allclose(result.uncertainty.array, 2 * line.uncertainty.array, rtol=1e-5)
    assert twice["over a half"].unit == RATE / u.s
    cut = line[15:35, 5:]
    np.testing.assert_array_equal(cut.shared["r"], line.shared["r"][15:35, 5:])
    np.testing.assert_array_equal(cut.common["continuum"], line.common["continuum"][15:35, 5:])
    assert cut.stars["x_center"].tolist() == [5, 7]
    assert cut.stars["y_center"].tolist() == [5, 15]
    for refused in (line.add, line.subtract, line.multiply, line.divide):
        with pytest.raises(InputError, match=r"would be lost: use line_ratio"):
            refused(line)
    assert CCDData(line).add(CCDData(line)).data[0, 0] == 10


def test_what_is_left_around_a_saturated_star_is_flagged_and_not_in_a_ratio():
    line, continuum, _ = star_fields(3, n=40)
    y, x = np.mgrid[:256, :256]
    away = np.hypot(x - 128.3, y - 127.6)
    # Of its light the frames that are not saturated have less: another one than that of the stars.
    for ccd, flux, width in ((line, 3e4, 1.8), (continuum, 2e5, 1.4)):
        ccd.data += np.float32(flux / (2 * math.pi * width**2) * (1 + (away / 4) ** 2) ** -3)
    continuum.mask = away < 4
    result = subtract_continuum(line, continuum)
    noise = pixel_sigma(result)
    rim = (away > 6) & (away < 7) & ~result.mask
    assert np.median(result.data[rim]) > 2 * np.median(noise[rim])
    assert (result.flags[rim] == RESIDUAL_STAR).all()
    assert not result.flags[(away > 25) & (away < 40)].all()
    bright = LineMap(flat_map(1e6, 1.0, (256, 256)))
    assert (line_ratio(result, bright).kind[rim] == 0).all()


def test_extinction_is_that_of_cardelli():
    a, b = flat_map(286.0 * 10 ** (0.4 * (1.1643 - 0.8177) * 3.1 * 0.5), 1.0), flat_map(100.0, 1.0)
    dust = extinction(line_ratio(a, b))
    assert float(np.median(dust.ebv)) == pytest.approx(0.5, abs=0.002)
    assert (dust.a_halpha_lower < dust.a_halpha).all()
    assert float(np.median(dust.a_halpha)) == pytest.approx(0.5 * 3.1 * 0.8177, abs=0.005)


# ---- lines in one filter


def test_lines_that_share_filters_are_told_apart():
    wide, narrow = FilterCurve.from_shape(656.3, 7.0), FilterCurve.from_shape(658.4, 3.0)
    halpha, nii = 10.0, 4.0
    seen = [
        (halpha * c.response("Halpha") + nii * c.response("NII")) / c.response(own)
        for c, own in ((wide, "Halpha"), (narrow, "NII"))
    ]
    maps = [LineMap(flat_map(s)) for s in seen]
    a, b = separate_lines(*maps, curves=(wide, narrow))
    np.testing.assert_allclose(a.data, halpha, rtol=1e-5)
    np.testing.assert_allclose(b.data, nii, rtol=1e-5)
    known = correct_blend(maps[0], 0.4, ratio_err=0.1, curve=wide)
    np.testing.assert_allclose(known.data, halpha, rtol=1e-5)
    assert 0.04 < known.common["NII"] < 0.1


# ---- flux


def test_what_references_share_is_not_in_a_ratio_of_lines_told_apart():
    scale = FluxScale(2.0, 0.01, 0.05, 9, 0.0, 0.0, 0.0, np.ones(9, bool), np.zeros(9))
    a, b, c = (calibrate_flux(LineMap(flat_map(v, 0.01)), scale) for v in (8.0, 3.0, 4.0))
    curves = FilterCurve.from_shape(656.3, 6.0), FilterCurve.from_shape(658.4, 3.0)
    for one in separate_lines(a, b, curves=curves):
        assert one.common["references"] == 0.05
        assert line_ratio(c, one).common == pytest.approx(0.01)
    assert line_ratio(a, b).common == pytest.approx(math.hypot(0.01, 0.01))


def test_error_of_a_scale_does_what_it_does_to_lines_that_are_given_back():
    """The maps of two scales differ by what their common error says."""
    rng = np.random.default_rng(2)
    halpha, nebula = rng.uniform(5, 20, (2, 30, 30))
    k, err = {"Halpha": 0.05, "OIII": 0.04}, {"Halpha": 0.001, "OIII": 0.002}
    continuum = flat_map(100.0, 0.1, (30, 30))
    continuum.data = np.float32(100 + nebula + 0.1 * halpha / 0.05)
    images = {name: flat_map(0.0, 0.1, (30, 30)) for name in k}
    for name, image in images.items():
        image.data = np.float32(k[name] * (100 + nebula) + (halpha if name == "Halpha" else 3.0))

    def restored(**move):
        maps = {n: subtract_continuum(image, continuum, k=k[n] + move.get(n, 0.0), k_err=err[n])
                for n, image in images.items()}  # fmt: skip
        return restore_lines(maps, {"Halpha": 0.1})

    plain = restored()
    assert np.allclose(plain["Halpha"].data, halpha, atol=1e-4)
    for name, map_name, key in (("OIII", "OIII", "continuum"), ("Halpha", "Halpha", "continuum"),
                                ("Halpha", "OIII", "continuum of Halpha")):  # fmt: skip
        moved = restored(**{name: 0.01 * err[name]})[map_name].data
        effect = (plain[map_name].data.astype(float) - moved) / 0.01
        claimed = plain[map_name].common[key].astype(float)
        difference = (effect - effect.mean()) - (claimed - claimed.mean())
        assert np.std(difference) < 0.05 * np.std(effect)


def test_flux_scale_from_stars_is_that_of_the_spectra():
    rng = np.random.default_rng(5)
    curve = FilterCurve.from_shape(656.3, 7.0)
    wavelength = np.linspace(400, 900, 251)
    pulls = []
    for _ in range(200):
        slope, level = rng.normal(0, 1, 20), 10 ** rng.uniform(-15, -13, 20)
        density = level[:, None] * (wavelength / 650) ** slope[:, None]
        reference = flux_from_spectra(
            curve, "Halpha", wavelength=wavelength * u.nm, density=density * DENSITY
        )  # fmt: skip
        rate = reference.value / 2e-16 * np.exp(0.03 * rng.normal(size=20))
        rate *= 1 + 0.01 * rng.normal(size=20)
        rate[0] *= 2
        scale = flux_scale(rate, reference, rate_err=0.01 * rate)
        assert not scale.used[0]
        pulls.append(math.log(scale.value / 2e-16) / scale.random)
    assert 0.85 < np.std(pulls) < 1.15
    assert scale.error > 0.03


def test_magnitudes_and_spectra_say_the_same():
    curve = FilterCurve.from_shape(656.3, 7.0)
    wavelength = np.linspace(400, 900, 2001)
    f_nu = 10 ** (-0.4 * (15 + 48.6))
    density = f_nu * 2.99792458e17 / wavelength**2
    spectra = flux_from_spectra(
        curve, "Halpha", wavelength=wavelength * u.nm, density=density * DENSITY
    )  # fmt: skip
    magnitudes = flux_from_magnitudes(curve, "Halpha", bands={475.0: [15.0], 760.0: [15.0]})
    assert magnitudes[0].value == pytest.approx(spectra.value, rel=1e-3)
    with pytest.raises(InputError, match="do not enclose"):
        flux_from_magnitudes(curve, "Halpha", bands={475.0: [15.0], 500.0: [15.0]})


def test_synthetic_photometry_is_that_of_synphot():
    synphot = pytest.importorskip("synphot")
    curve = FilterCurve.from_shape(656.3, 7.0, peak=0.9)
    wavelength = np.linspace(400, 900, 2001)
    density = 1e-14 * (wavelength / 600) ** 1.5 * (1 + 0.3 * np.sin(wavelength / 9))
    flux = flux_from_spectra(
        curve, "Halpha", wavelength=wavelength * u.nm, density=density * DENSITY
    )  # fmt: skip
    spectrum = synphot.SourceSpectrum(
        synphot.models.Empirical1D, points=wavelength * 10,
        lookup_table=(density * DENSITY).to(u.erg / u.s / u.cm**2 / u.AA),
    )  # fmt: skip
    band = synphot.SpectralElement(
        synphot.models.Empirical1D, points=curve.wavelength * 10, lookup_table=curve.transmission
    )
    area = 100 * u.cm**2
    rate = synphot.Observation(spectrum, band, force="taper").countrate(area)
    line = scale_of_area(curve, "Halpha", area=area, error=0.01)
    assert flux.value / line.value == pytest.approx(rate.value, rel=2e-3)


def test_rayleigh():
    line = LineMap(sky_map(1.0, 0.0))
    scale = flux_scale([1.0], [5.661e-18] * u.erg / u.s / u.cm**2, rate_err=[0.01])
    flux = calibrate_flux(line, scale)
    assert flux.unit == u.erg / u.s / u.cm**2
    rayleigh = surface_brightness(flux, unit="R", line="Halpha")
    assert float(np.median(rayleigh.data)) == pytest.approx(1.0, rel=1e-3)
    assert flux.common == pytest.approx({"flux scale": 0.01, "references": 0.03})
    with pytest.raises(InputError, match="flux scale"):
        calibrate_flux(flux, scale)


# ---- regions


def test_regions_that_hold_nothing_are_refused():
    from regions import CirclePixelRegion, PixCoord

    line = flat_map(5.0)
    line.mask = np.zeros((40, 40), bool)
    line.mask[:20] = True
    with pytest.raises(InputError, match="masked"):
        region_fluxes(line, [CirclePixelRegion(PixCoord(10, 5), 3)])
    certain = flat_map(5.0)
    certain.uncertainty.array[:] = 0
    with pytest.raises(InputError, match="every pixel is masked"):
        subtract_sky(certain)
    with pytest.raises(InputError, match="outside"):
        region_fluxes(line, [CirclePixelRegion(PixCoord(100, 100), 3)])
    sky = [CirclePixelRegion(PixCoord(9, 33), 4)]
    with pytest.warns(NarrowbandWarning, match="region 1: less than 50% is good: no flux"):
        row = region_fluxes(line, [CirclePixelRegion(PixCoord(20, 19), 5)], sky=sky)[0]
    assert row["covered"] == pytest.approx(0.44, abs=0.01)
    assert np.isnan([row[c].value for c in ("flux", "flux_err", "err_noise")]).all()


def test_regions_of_every_kind_are_measured_or_refused(tmp_path):
    from regions import (
        CircleAnnulusPixelRegion,
        CirclePixelRegion,
        EllipseAnnulusPixelRegion,
        PixCoord,
        PointPixelRegion,
        PolygonPixelRegion,
        RectanglePixelRegion,
    )  # fmt: skip

    centre, line = PixCoord(40.3, 39.8), flat_map(2.0, 1.0, (80, 80))
    lens = CirclePixelRegion(centre, 10) & CirclePixelRegion(PixCoord(50.3, 39.8), 10)
    for region, area in (
        (CircleAnnulusPixelRegion(centre, 8, 20), math.pi * 336),
        (EllipseAnnulusPixelRegion(centre, 10, 20, 5, 10, 30 * u.deg), math.pi * 37.5),
        (RectanglePixelRegion(centre, 20, 10, 30 * u.deg), 200.0),
        (PolygonPixelRegion(PixCoord([20, 60, 50], [20, 30, 70])), 850.0),
        (lens, 100 * (2 * math.pi / 3 - math.sqrt(3) / 2)),
    ):
        row = region_fluxes(line, [region])[0]
        assert row["area"].value == pytest.approx(area, rel=3e-3)
        assert row["flux"].value == pytest.approx(2 * area, rel=3e-3)
        assert subtract_sky(line, sky=[region]).meta["ZEROSKY"] == pytest.approx(2.0)
    with pytest.raises(InputError, match="PointPixelRegion has no area"):
        region_fluxes(line, [PointPixelRegion(centre)])
    path = tmp_path / "r.reg"
    path.write_text("image\ncircle(30,30,5)\n-circle(32,30,2)\n")
    with pytest.raises(InputError, match="that exclude"):
        read_regions(path)
    path.write_text("image\ncircle(30,30,5)\nannulus(30,30,10,12) # text={sky}\n")
    regions, sky = read_regions(path)
    assert abs(region_fluxes(line, regions, sky=sky)["flux"][0].value) < 1e-3


def test_what_a_star_leaves_is_not_in_the_flux_of_a_region():
    from regions import CirclePixelRegion, PixCoord

    (y, x), pulls = np.mgrid[:120, :120], []
    for seed in range(10):
        rng = np.random.default_rng([seed, 9])
        nebula = 200 * gaussian_filter(rng.normal(size=(120, 120)), 8) + 40
        line = flat_map(0.0, 1.0, (120, 120))
        distance = np.hypot(*(rng.uniform(45, 75, (2, 1, 1)) - [x, y]))
        left = rng.choice([-60, 60]) * np.exp(-0.5 * (distance / 2) ** 2)
        line.data = np.float32(nebula + left + rng.normal(0, 1, nebula.shape))
        line.flags = np.where(distance < 6, RESIDUAL_STAR, 0).astype(np.uint8)
        region = CirclePixelRegion(PixCoord(60, 60), 22)
        with pytest.warns(NarrowbandWarning, match="beside stars that are not gone"):
            row = region_fluxes(line, [region])[0]
        truth = (region.to_mask("exact").to_image(nebula.shape) * nebula).sum()
        pulls.append((row["flux"].value - truth) / row["flux_err"].value)
        assert abs(left).sum() > 5 * row["flux_err"].value
    assert np.sqrt(np.mean(np.square(pulls))) < 1.6


def test_masked_pixels_of_a_region_are_filled_in_with_their_error():
    from regions import CirclePixelRegion, PixCoord

    rng, (y, x), pulls, lacking = np.random.default_rng(5), np.mgrid[:120, :120], [], []
    for _ in range(40):
        nebula = 200 * gaussian_filter(rng.normal(size=(120, 120)), 8) + 40
        nebula += 50 * np.exp(-((x - 60) ** 2 + (y - 60) ** 2) / 1800)
        line = flat_map(0.0, 1.0, (120, 120))
        line.data = np.float32(nebula + rng.normal(0, 1, nebula.shape))
        line.mask = np.zeros(nebula.shape, bool)
        for _ in range(4):
            a, b = rng.uniform(40, 80, 2)
            line.mask |= np.hypot(x - a, y - b) < rng.uniform(1, 5)
        line.data[line.mask] = np.nan
        region = CirclePixelRegion(PixCoord(*rng.uniform(50, 70, 2)), rng.uniform(20, 28))
        with pytest.warns(NarrowbandWarning, match="masked pixels, .* are filled in"):
            row = region_fluxes(line, [region])[0]
        whole = region.to_mask("exact").to_image(nebula.shape)
        truth = (whole * nebula).sum()
        assert row["area"].value == pytest.approx(whole.sum())
        pulls.append((row["flux"].value - truth) / row["flux_err"].value)
        lacking.append(((whole * nebula)[~line.mask].sum() - truth) / row["flux_err"].value)
    assert np.median(lacking) < -20
    assert abs(np.mean(pulls)) < 0.3
    assert 0.5 < np.sqrt(np.mean(np.square(pulls))) < 1.2
    # What is beyond the map is filled in as well.
    rim = CirclePixelRegion(PixCoord(3, 50), 10)
    with pytest.warns(NarrowbandWarning, match="filled in"):
        row = region_fluxes(flat_map(5.0, 1.0, (120, 120)), [rim])[0]
    assert row["flux"].value == pytest.approx(5 * math.pi * 100, rel=1e-3)


@pytest.mark.parametrize("length", [5.0, 12.0, 30.0])
def test_a_hole_over_the_peak_of_a_nebula_has_an_error_of_that_size(length):
    from regions import CirclePixelRegion, PixCoord

    rng, (y, x), off, size = np.random.default_rng(12), np.mgrid[:120, :120], [], []
    for _ in range(20):
        away = np.hypot(x - rng.uniform(55, 65), y - rng.uniform(55, 65))
        nebula = 10 + 100 * np.exp(-away / length)
        line = flat_map(0.0, 1.0, (120, 120))
        line.data = np.float32(nebula + rng.normal(0, 1, nebula.shape))
        line.mask = away < rng.uniform(3, 6)
        line.data[line.mask] = np.nan
        region = CirclePixelRegion(PixCoord(60, 60), 25)
        with pytest.warns(NarrowbandWarning, match="filled in"):
            row = region_fluxes(line, [region])[0]
        truth = (region.to_mask("exact").to_image(nebula.shape) * nebula).sum()
        off.append((row["flux"].value - truth) / row["flux_err"].value)
        size.append(row["err_filled"].value / truth)
    assert np.sqrt(np.mean(np.square(off))) < 1.6
    assert np.max(np.abs(off)) < 3
    assert np.median(size) < 0.02


def test_ratios_of_regions_have_the_errors_that_do_not_cancel():
    """The references, and the noise and the scale of one continuum, are in both lines."""
    from regions import PixCoord, RectanglePixelRegion

    rng, k, pulls, alone = np.random.default_rng(4), {"Halpha": 0.2, "SII": 0.2}, [], []
    truth, where = {"Halpha": 4.0, "SII": 2.0}, (slice(20, 40), slice(20, 40))
    regions, corner = [RectanglePixelRegion(PixCoord(29.5, 29.5), 20, 20)], PixCoord(7.5, 29.5)
    for _ in range(120):
        off, level = math.exp(0.05 * rng.standard_normal()), np.full((60, 60), 20.0)
        level[where] += 30.0
        continuum = flat_map(0.0, 1.0, (60, 60))
        continuum.data = np.float32(level + rng.normal(0, 1.0, level.shape))
        maps = {}
        for name, flux in truth.items():
            line = flat_map(0.0, 0.1, (60, 60))
            line.data = np.float32(k[name] * level + rng.normal(0, 0.1, level.shape))
            line.data[where] += np.float32(flux)
            line.meta["FILTER"] = name
            given = k[name] * (1 + 0.01 * rng.standard_normal())
            maps[name] = subtract_continuum(line, continuum, k=given, k_err=0.01 * k[name])
        for name in maps:
            unit = FluxScale(off, 0.0, 0.05, 9, 0.0, 0.0, 0.0, np.ones(9, bool), np.zeros(9))
            maps[name] = calibrate_flux(maps[name], unit)
        sky = [RectanglePixelRegion(corner, 12, 50)]
        table = region_ratios(maps["SII"], maps["Halpha"], regions, sky=sky)
        error = (table["upper"][0] - table["lower"][0]) / 2
        pulls.append((table["ratio"][0] - 0.5) / error)
        fluxes = [region_fluxes(m, regions, sky=sky) for m in maps.values()]
        alone.append(math.hypot(*(t["flux_err"][0] / t["flux"][0] for t in fluxes)) * 0.5)
        assert table["correlation"][0] > 0.3
        assert error < 0.8 * alone[-1]
    assert 0.85 < np.std(pulls) < 1.15
    assert abs(np.mean(pulls)) < 0.3


def test_stars_of_other_spectra_move_the_scales_of_two_lines_alike():
    rng, size, n = np.random.default_rng(3), 160, 36
    gy, gx = np.mgrid[:size, :size]
    moved, said = [], []
    for _ in range(8):
        x, y = rng.uniform(12, size - 12, (2, n))
        flux, spectrum = 10 ** rng.uniform(2.5, 4.5, n), 0.1 * rng.standard_normal(n)
        images = []
        for k, colour in ((1.0, 0), (0.05, 1), (0.05, -1)):
            image = np.full((size, size), 8.0 * k)
            for a, b, f in zip(x, y, flux * k * np.exp(colour * spectrum), strict=True):
                rows, columns = (slice(max(0, int(c) - 12), int(c) + 13) for c in (b, a))
                r2 = (gx[rows, columns] - a) ** 2 + (gy[rows, columns] - b) ** 2
                image[rows, columns] += f * np.exp(-r2 / 4.5) / (4.5 * np.pi)
            sigma = np.sqrt(image / 2000 + 1e-4)
            images.append(flat_map(0.0, 1.0, (size, size)))
            images[-1].data = np.float32(image + rng.normal(size=image.shape) * sigma)
            images[-1].uncertainty = StdDevUncertainty(sigma)
        maps = [subtract_continuum(image, images[0], match=False) for image in images[1:]]
        moved.append([math.log(line_map.meta["KCONT"]) for line_map in maps])
        said.append(scale_correlation(*maps))
    assert np.mean(said) == pytest.approx(np.corrcoef(np.transpose(moved))[0, 1], abs=0.3)
    assert np.mean(said) < -0.6
    assert scale_correlation(maps[0], LineMap(flat_map(1.0))) == 0


def test_sky_that_slopes_is_taken_off_and_what_cannot_be_known_is_in_the_error():
    from regions import CirclePixelRegion, PixCoord, RectanglePixelRegion

    y, x = np.mgrid[:120, :120]
    corners = [RectanglePixelRegion(PixCoord(a, b), 24, 24) for a in (14, 105) for b in (14, 105)]
    target, far = CirclePixelRegion(PixCoord(60, 50), 12), CirclePixelRegion(PixCoord(100, 60), 12)
    pulls = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        line = flat_map(0.0, 0.05, (120, 120))
        line.data += np.float32(rng.normal(0, 0.05, x.shape) + 1e-3 * (x - 60) - 2e-3 * (y - 60))
        line.data[np.hypot(x - 60, y - 50) <= 14] += 0.4
        steep = line.copy()
        steep.data += np.float32(1e-2 * (y - 60))
        rows = (
            region_fluxes(line, [target, far], sky=corners),
            region_fluxes(steep, [target, far], sky=corners[:1]),
        )
        truth = 0.4 * math.pi * 12**2
        pulls.append([
            (rows[0]["flux"][0].value - truth) / rows[0]["flux_err"][0].value,
            rows[0]["flux"][1].value / rows[0]["flux_err"][1].value,
            (rows[1]["flux"][0].value - truth) / rows[1]["flux_err"][0].value,
        ])  # fmt: skip
    assert np.abs(np.mean(pulls, axis=0)[:2]).max() < 0.45
    assert 0.8 < np.std(pulls, axis=0)[:2].min() < np.std(pulls, axis=0)[:2].max() < 1.2
    # From one side the slope is no more than an error, where it shows.
    assert np.abs(np.array(pulls)[:, 2]).max() < 3.5


# ---- images of other programs


def test_sky_that_is_left_is_not_in_a_ratio():
    from regions import PixCoord, RectanglePixelRegion

    rng, (y, x) = np.random.default_rng(8), np.mgrid[:240, :240]
    nebula = 30 * np.exp(-((x - 120) ** 2 + (y - 130) ** 2) / 3200)
    corners = [RectanglePixelRegion(PixCoord(a, b), 30, 30) for a in (20, 220) for b in (20, 220)]
    off = {"given": [], "darkest": []}
    for _ in range(10):
        maps = []
        for part, level in ((0.4, 3.0), (1.0, -2.0)):
            level = level + 0.004 * (x - y) * (part == 1)
            continuum = flat_map(0.0, 0.1, x.shape)
            continuum.data = np.float32(60 + nebula)
            line = flat_map(0.0, 1.0, x.shape)
            k = 0.1 + 0.002 * rng.standard_normal()
            line.data = np.float32(k * continuum.data + part * nebula + level)
            line.data += np.float32(rng.normal(0, 1, x.shape))
            maps.append(subtract_continuum(line, continuum, k=0.1, k_err=0.002))
        for name, sky in (("given", corners), ("darkest", None)):
            a, b = (subtract_sky(m, sky=sky) for m in maps)
            error = a.common["zero"][0, 0]
            assert a.meta["ZEROERR"] == pytest.approx(error)
            # What k does to the sky is not in the map, and what the sky has of k is the zero's.
            assert abs(a.common["continuum"][20, 20]) < 0.1 * a.common["continuum"].max()
            off[name].append((a.data - 0.4 * nebula)[:40, :40].mean() / error)
            ratio = line_ratio(a, b)
            seen = (ratio.kind == 1) & (nebula > 15)
            assert seen.sum() > 1500
            assert np.median(ratio.ratio[seen]) == pytest.approx(0.4, rel=0.03)
            held = (ratio.lower[seen] < 0.4) & (ratio.upper[seen] > 0.4)
            assert held.mean() == pytest.approx(0.68, abs=0.06)
    assert np.std(off["given"]) < 1.5
    assert abs(line_ratio(*maps).ratio[130, 120] / 0.4 - 1) > 0.1


def test_sky_of_any_size_and_shape_is_a_zero():
    from regions import CircleAnnulusPixelRegion, CirclePixelRegion, PixCoord

    line = flat_map(3.0, 1.0, (900, 900))
    line.data += np.float32(np.random.default_rng(1).normal(0, 1, line.data.shape))
    at = [PixCoord(*p) for p in np.random.default_rng(2).uniform(70, 830, (300, 2))]
    circles = [CirclePixelRegion(p, 5) for p in at]
    rings = [CircleAnnulusPixelRegion(p, 55, 58) for p in at[:100]]
    for sky in (None, circles, rings, circles[:1]):
        result = subtract_sky(line, sky=sky)
        assert abs(result.meta["ZEROSKY"] - 3) < 4 * result.meta["ZEROERR"] + 1e-3


def test_images_without_error_or_footprint_get_both(tmp_path):
    rng = np.random.default_rng(2)
    image = sky_map(0.0, 0.0, (96, 96))
    image.data[:] = 50 + rng.normal(0, 2.0, (96, 96))
    image.data[:, :30] = rng.normal(0, 1e-14, (96, 30))
    hdu = fits.PrimaryHDU(image.data, image.header)
    hdu.header["BUNIT"] = "electron/s/(0.5 arcsec)**2"
    hdu.writeto(tmp_path / "a.fits")
    read = read_image(tmp_path / "a.fits")
    assert read.unit == RATE
    assert read.mask[:, :30].all()
    assert not read.mask[:, 30:].any()
    assert np.median(read.data[:, 40:]) == pytest.approx(50 * 4, rel=0.01)
    assert np.median(read.uncertainty.array[:, 40:]) == pytest.approx(2.0 * 4, rel=0.1)
    assert read.header["NOISEEST"]
    del hdu.header["BUNIT"]
    hdu.writeto(tmp_path / "b.fits")
    with pytest.raises(InputError, match="no BUNIT"):
        read_image(tmp_path / "b.fits")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "none.fits")


def test_command_takes_images_of_other_programs(tmp_path, capsys):
    from astro_narrowband.cli import main

    rng = np.random.default_rng(3)
    y, x = np.mgrid[:96, :96]
    glow = 4 * np.exp(-((x - 48) ** 2 + (y - 48) ** 2) / 400)
    arguments = ["lines", "-o", str(tmp_path / "out"), "--area", "1000", "--floor", "0.1"]
    for name, level, share in (("Halpha", 2.0, 1.0), ("SII", 2.5, 0.3), ("V", 50.0, 0.0)):
        image = sky_map(0.0, 0.0, (96, 96))
        data = level + share * glow + rng.normal(0, 0.05, glow.shape)
        path = tmp_path / f"{name}.fits"
        image.header["BUNIT"] = "electron/s"
        fits.PrimaryHDU(np.float32(data), image.header).writeto(path)
        arguments += ["--image", f"{name}={path}", "--fwhm", f"{name}=2.5"]
    for name, k in (("Halpha", 0.04), ("SII", 0.05)):
        arguments += ["--scale", f"{name}={k},0.001"]
    arguments += ["--curve", "Halpha=656.3,2", "--curve", "SII=672.4,5", "--curve", "V=545,60"]
    assert main(arguments) == 0, capsys.readouterr().err
    with fits.open(tmp_path / "out" / "ratio-object-SII-Halpha.fits") as hdul:
        middle = hdul[0].data[40:56, 40:56]
    curves = [FilterCurve.from_shape(656.3, 2.0), FilterCurve.from_shape(672.4, 5.0)]
    share = 0.3 * curves[0].response("Halpha") / curves[1].response("SII")
    assert np.nanmedian(middle) == pytest.approx(share, rel=0.03)
    assert main([*arguments[:3], *arguments[-2:]]) == 3
    assert "no images" in capsys.readouterr().err
    assert main([*arguments, "--scale", "SII=good"]) == 3
    assert "neither K,ERROR" in capsys.readouterr().err


# ---- catalogue


def catalogue_field(seed, n, *, other=False, size=512):
    """An image's star list, a catalogue around it, a centre and scale that are off, the WCS."""
    rng = np.random.default_rng(seed)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = (
        ["RA---TAN", "DEC--TAN"],
        [rng.uniform(0, 360), rng.uniform(-70, 70)],
    )
    scale, turn = rng.uniform(0.5, 3), rng.uniform(0, 2 * np.pi)
    wcs.wcs.crpix = [size / 2] * 2
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs.wcs.cd = turned @ np.diag([rng.choice([-1, 1]), 1]) * scale / 3600
    xy, mag = rng.uniform(-size / 2, 1.5 * size, (4 * n, 2)), 18 - 1.2 * rng.exponential(1, 4 * n)
    seen = ((xy > 0) & (xy < size)).all(axis=1) & (rng.random(4 * n) > 0.3)
    n_false = int(0.43 * seen.sum())
    stars = np.vstack(
        [xy[seen] + rng.normal(0, 0.15, (seen.sum(), 2)), rng.uniform(0, size, (n_false, 2))]
    )
    bright = np.append(
        mag[seen] + rng.normal(0, 0.3, seen.sum()), 18 - 1.2 * rng.exponential(1, n_false)
    )
    stars = stars[np.argsort(bright)]
    table = QTable({"x_center": stars[:, 0] * u.pix, "y_center": stars[:, 1] * u.pix})
    sky = wcs.pixel_to_world(*(rng.uniform(-size / 2, 1.5 * size, xy.shape) if other else xy).T)
    catalogue = QTable({"ra": sky.ra, "dec": sky.dec, "mag": mag})
    start = {
        "center": wcs.pixel_to_world(*(size / 2 + rng.uniform(-0.5, 0.5, 2) * size)),
        "scale": scale * rng.uniform(0.97, 1.03) * u.arcsec,
    }
    return (
        CCDData(np.zeros((size, size)), unit="adu"),
        catalogue,
        table,
        start,
        wcs,
        int(seen.sum()),
    )


def agreement(seed, n, *, other=False):
    """Whether a field is "right", "wrong" or "refused", its common stars, and the match."""
    ccd, catalogue, stars, start, wcs, common = catalogue_field(seed, n, other=other)
    try:
        match = match_catalogue(ccd, catalogue, stars=stars, **start)
    except AlignmentError:
        return "refused", common, None
    corners = np.array([[0, 0], [511, 511], [0, 511.0]])
    back = np.column_stack(match.wcs.world_to_pixel(wcs.pixel_to_world(*corners.T)))
    return "right" if np.abs(back - corners).max() < 3 else "wrong", common, match


def test_fields_are_matched_or_refused():
    for seed, n in enumerate((12, 30, 60, 120, 200)):
        verdict, common, match = agreement(seed, n)
        assert verdict == "right" if common >= 12 else verdict != "wrong"
        if match is not None:
            assert match.rms < 0.25
            assert match.n_matched >= 0.8 * common
    for seed in range(5):
        assert agreement(seed, 80, other=True)[0] == "refused"


@pytest.mark.long
def test_five_hundred_fields():
    rng = np.random.default_rng(9)
    numbers = np.exp(rng.uniform(np.log(8), np.log(200), 500)).astype(int)
    answers = [agreement(100 + seed, n)[:2] for seed, n in enumerate(numbers)]
    assert not any(verdict == "wrong" for verdict, _ in answers)
    enough = [verdict == "right" for verdict, common in answers if common >= 12]
    assert np.mean(enough) >= 0.99


def test_places_of_a_catalogue_may_be_text_or_sky_coordinates(tmp_path):
    ccd, catalogue, stars, start, *_ = catalogue_field(5, 40)
    plain = match_catalogue(ccd, catalogue, stars=stars, **start)
    sky = SkyCoord(catalogue["ra"], catalogue["dec"])
    text = QTable(catalogue["mag",])
    text["RAJ2000"] = sky.ra.to_string("hour", sep=":", precision=4)
    text["DEJ2000"] = sky.dec.to_string(sep=":", precision=3)
    text.write(tmp_path / "text.csv")
    mixed = QTable({"place": sky.galactic, "mag": catalogue["mag"]})
    mixed.write(tmp_path / "mixed.ecsv")
    for table in (text, tmp_path / "text.csv", mixed, tmp_path / "mixed.ecsv"):
        match = match_catalogue(ccd, table, stars=stars, **start)
        assert match.n_matched == plain.n_matched
        assert match.rms == pytest.approx(plain.rms, abs=1e-3)


def test_catalogues_that_cannot_be_used_are_refused():
    ccd, catalogue, stars, start, *_ = catalogue_field(0, 40)
    with pytest.raises(InputError, match="no WCS"):
        match_catalogue(ccd, catalogue, stars=stars)
    with pytest.raises(InputError, match="no right ascension"):
        match_catalogue(ccd, catalogue["mag", "dec"], stars=stars, **start)
    with pytest.raises(InputError, match="neither a magnitude"):
        match_catalogue(ccd, catalogue["ra", "dec"], stars=stars, **start)
    for column, value, reason in (
        ("ra", "x", "its ra is no angle"), ("dec", 95.0, "no place on the sky"),
        ("mag", "bright", "its mag is text"),
    ):  # fmt: skip
        wrong = catalogue.copy()
        wrong[column] = [value] * len(wrong)
        with pytest.raises(InputError, match=reason):
            match_catalogue(ccd, wrong, stars=stars, **start)
    away = SkyCoord(start["center"].ra + 5 * u.deg, start["center"].dec)
    with pytest.raises(AlignmentError, match="another field"):
        match_catalogue(ccd, catalogue, stars=stars, center=away, scale=start["scale"])


# ---- simulated nights with spectra


def test_simulated_filters_see_the_lines_that_are_in_them(tmp_path):
    spectra = SpectralModel(nii=0.5, equivalent_width=1e9)
    truth = simulate_night(
        tmp_path / "night", shape=(48, 64), filters=("Ha", "OIII", "r"), n_bias=0, n_darks=0,
        n_flats=0, light_exposures=(60.0,), spectra=spectra, seed=3,
    )  # fmt: skip
    curve = FilterCurve.from_shape(656.3, 7.0, peak=0.9)
    halpha, nii = truth.line_flux("Halpha"), truth.line_flux("NII")
    np.testing.assert_allclose(nii, 0.5 * halpha)
    rate = (halpha * curve.response("Halpha") + nii * curve.response("NII")) * 200 / 1.98644586e-9
    np.testing.assert_allclose(truth.nebula("Halpha"), rate, rtol=1e-3)
    assert (truth.nebula("r") > truth.nebula("Halpha")).mean() > 0.9
    star = truth.stars[0]
    wavelength = np.linspace(400, 900, 3001)
    density = star["density"] * (wavelength / 600) ** star["slope"]
    flux = flux_from_spectra(curve, "Halpha", wavelength=wavelength * u.nm, density=density)
    known = flux.value * curve.response("Halpha") * 200 / 1.98644586e-9
    assert star["flux_Halpha"].value == pytest.approx(known, rel=2e-3)
    assert truth.spectra == spectra


# ---- the command


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """A reduced night of four filters, its references and its truth."""
    from astro_narrowband.cli import main
    from astro_narrowband.simulate import NightModel

    folder = tmp_path_factory.mktemp("lines")
    truth = simulate_night(
        folder / "raw", shape=(256, 256), filters=("Halpha", "SII", "r"), n_bias=4, n_darks=3,
        n_flats=3, dark_exposures=(60.0,), light_exposures=(60.0,) * 3, write_wcs=False,
        write_read_noise=True, spectra=SpectralModel(), seed=4,
        model=NightModel(star_density=1500, brightest=1000.0, sky=0.3, fwhm_scatter=0.05),
    )  # fmt: skip
    stars = truth.stars[truth.stars["flux_Halpha"].value > 8]
    wavelength = np.linspace(400, 950, 276)
    table = QTable({"ra": stars["ra"], "dec": stars["dec"]})
    power = (wavelength / 600) ** stars["slope"][:, None]
    table["spectrum"] = stars["density"][:, None] * power
    table.meta["sampling"] = wavelength.tolist()
    table.write(folder / "references.ecsv")
    (folder / "r.reg").write_text("image\ncircle(128,128,30)\nbox(20,128,24,160,0) # text={sky}\n")
    assert main([
        "reduce", str(folder / "raw"), "-o", str(folder / "red"), "--quiet", "--catalogue",
        str(folder / "references.ecsv"),
    ]) == 0  # fmt: skip
    return folder, truth


def test_reduce_gives_its_products_the_wcs_of_a_catalogue(reduced, capsys):
    from astro_narrowband.cli import main

    folder, truth = reduced
    bright = truth.stars[:8]
    for name in ("Halpha", "SII", "r"):
        header = fits.getheader(folder / "red" / f"coadd-Crown_Nebula-{name}.fits")
        assert header["WCSRMS"] < 0.25
        table = QTable.read(folder / "red" / f"catalog-Crown_Nebula-{name}.ecsv")
        sky = SkyCoord(table["ra"], table["dec"])
        places = SkyCoord(bright["ra"], bright["dec"])
        _, distance, _ = places.match_to_catalog_sky(sky)
        inside = distance.arcsec[distance.arcsec < 5]  # some lie outside of the frame
        assert len(inside) >= 4
        assert np.median(inside) < 0.1 * truth.model.pixel_scale
    # Another field: no WCS. A file that is not there: said before anything is done.
    other = QTable.read(folder / "references.ecsv")
    other["dec"] = other["dec"] + 3 * u.deg
    other.write(folder / "away.ecsv")
    reduce = ["reduce", str(folder / "raw"), "-o", str(folder / "away"), "--quiet"]
    assert main([*reduce, "--filter", "SII", "--catalogue", str(folder / "away.ecsv")]) == 0
    assert "another field: its WCS is left as it was" in capsys.readouterr().err
    assert "CRVAL1" not in fits.getheader(folder / "away" / "coadd-Crown_Nebula-SII.fits")
    # Another file by that name is noticed.
    QTable.read(folder / "references.ecsv").write(folder / "away.ecsv", overwrite=True)
    assert main([*reduce, "--filter", "SII", "--catalogue", str(folder / "away.ecsv")]) == 0
    assert "CRVAL1" in fits.getheader(folder / "away" / "coadd-Crown_Nebula-SII.fits")
    arguments = ["reduce", str(folder / "raw"), "-o", str(folder / "no"), "--catalogue", "no.fits"]
    assert main(arguments) == 3
    assert "no such file" in capsys.readouterr().err
    assert not (folder / "no").exists()


def test_command_makes_maps_ratios_regions_and_a_page(reduced, capsys):

    from astro_narrowband.cli import main

    folder, truth = reduced
    out = folder / "out"
    references = str(folder / "references.ecsv")
    status = main([
        "lines", str(folder / "red"), "-o", str(out), "--references", references,
        "--regions", str(folder / "r.reg"), "--nii", "0.35,0.02", "--curve", "r=622,138",
        "--curve", "Halpha=656.3,7", "--curve", "SII=672.4,7",
    ])  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "what limits it is" in said.out
    assert {p.name for p in out.glob("*.fits")} == {
        "line-Crown_Nebula-Halpha.fits", "line-Crown_Nebula-SII.fits",
        "ratio-Crown_Nebula-SII-Halpha.fits",
    }  # fmt: skip
    page = (out / "lines.html").read_text()
    printed = page[page.index("<h2>Regions") :]
    assert "<th>SII/Halpha</th>" in printed
    assert " ± " in printed
    assert "<script" not in page
    row = QTable.read(out / "regions-Crown_Nebula.ecsv")[0]
    plane = truth.line_flux("Halpha")
    y, x = np.mgrid[:256, :256]
    zero = plane[48:208, 8:31].mean()
    expected = (plane - zero)[np.hypot(x - 127, y - 127) < 30].sum()
    assert row["flux"].to_value("erg / (s cm2)") == pytest.approx(expected, rel=0.15)
    with fits.open(out / "line-Crown_Nebula-Halpha.fits") as hdul:
        assert hdul[0].header["KFILTER"] == "r"
        assert hdul["COMMON1"].header["BUNIT"] == "erg / (s cm2)"


def test_command_says_what_it_does_not_know(reduced, capsys, tmp_path):
    from astro_narrowband.cli import main

    folder, _ = reduced
    red = str(folder / "red")
    assert main(["lines", red, "-o", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "no curve given" in said
    assert "holds [NII]" in said
    assert "no flux scale" in said
    assert "the sky is taken to be what is darkest in the map" in said
    for arguments, reason in (
        (["--continuum", "V"], "has no coadd"),
        (["--continuum", "Halpha"], "the line's own"),
        (["--curve", "Halpha=500,7"], "does not contain Halpha"),
        (["--curve", "Halpha=nothing.txt"], "neither a file"),
        (["--regions", "nothing.reg"], "no such file"),
        (["--references", "nothing.ecsv"], "no such file"),
    ):
        assert main(["lines", red, "-o", str(tmp_path / "b"), *arguments]) == 3, arguments
        assert reason in capsys.readouterr().err
    assert main(["lines", str(tmp_path), "-o", str(tmp_path / "c")]) == 3


def test_stars_with_sources_in_their_annuli_and_what_all_share_do_not_weigh_in_the_flux_scale(
    tmp_path,
):
    """The wings of a source that clipping leaves in an annulus are taken for sky."""
    from types import SimpleNamespace

    from astro_narrowband.night.lines import _matched
    from astro_narrowband.photometry import make_catalog

    rng = np.random.default_rng(7)
    n, alpha = 700, 3.0 / (2 * math.sqrt(2 ** (1 / 3) - 1))
    x, y = (c.ravel() + rng.uniform(-13, 13, c.size) for c in np.mgrid[40:680:70, 40:680:70])
    flux = 10 ** rng.uniform(1.6, 3.0, x.size)
    beside = rng.random(x.size) < 0.6
    angle = rng.uniform(0, 2 * np.pi, beside.sum())
    every = np.column_stack([
        np.append(x, x[beside] + 14 * np.cos(angle)), np.append(y, y[beside] + 14 * np.sin(angle)),
        np.append(flux, 2 * flux[beside]),
    ])  # fmt: skip
    gy, gx = np.mgrid[:n, :n]
    image = np.full((n, n), 0.5)
    for a, b, light in every:
        rows, columns = (slice(max(0, int(c) - 60), int(c) + 61) for c in (b, a))
        r2 = (gx[rows, columns] - a) ** 2 + (gy[rows, columns] - b) ** 2
        image[rows, columns] += light * 2 / (math.pi * alpha**2) * (1 + r2 / alpha**2) ** -3
    sigma = np.sqrt(image / 300)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cdelt, wcs.wcs.crval = ("RA---TAN", "DEC--TAN"), (-3e-4, 3e-4), (80, 20)
    wcs.wcs.crpix = n / 2, n / 2
    ccd = CCDData(
        image + rng.normal(size=image.shape) * sigma, unit=RATE, wcs=wcs,
        uncertainty=StdDevUncertainty(sigma),
    )  # fmt: skip
    measured = make_catalog({"Halpha": ccd}).tables["Halpha"]
    measured.write(tmp_path / "catalog-field-Halpha.ecsv")
    sky = wcs.pixel_to_world(x, y)
    known = QTable({"ra": sky.ra, "dec": sky.dec, "mag": -2.5 * np.log10(flux)})
    each = SimpleNamespace(images={"Halpha": ccd}, references=(known, sky), name="field")
    stars = _matched(each, "Halpha", tmp_path)[0].stars
    rate, rate_err = (stars[c].to_value(RATE) for c in ("star_flux", "star_flux_err"))
    scale = flux_scale(rate, 10 ** (-0.4 * stars["mag"]) * FLUX, rate_err=rate_err, floor=0.0)
    lone = sky[~beside].match_to_catalog_sky(SkyCoord(stars["ra"], stars["dec"]))[1].arcsec < 1
    assert 25 < scale.n_stars <= lone.sum()
    assert np.nanmin(rate_err / rate) < measured.meta["correction_err"]
    assert abs(scale.value - 1) < 3 * math.hypot(scale.random, measured.meta["correction_err"])
