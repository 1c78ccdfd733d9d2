"""Pictures: what a pixel of them stands for."""

import io
import math

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from astro_narrowband.night.charts import (
    dark_png,
    growth_png,
    night_charts,
    price_png,
    self_test_png,
)
from astro_narrowband.night.figures import (
    TINTS,
    Stretch,
    composite,
    downsample,
    full_png,
    palette,
    palette_png,
    recipes,
    scale_bar,
    sky_of,
)


def pixels(png):
    picture = Image.open(io.BytesIO(png))
    return np.asarray(picture.convert("RGB"))


# --------------------------------------------------------------------------- images


@pytest.mark.parametrize("dtype", ["f4", ">f4", "u2"])
@pytest.mark.parametrize("shape", [(90, 50), (50, 90), (31, 31)])
def test_blocks_are_averaged_over_good_pixels(rng, dtype, shape):
    data = (rng.random(shape) * 100).astype(dtype)
    mask = rng.random(shape) < 0.3
    mask[:10, :10] = True
    image, k = downsample(data, mask, size=20)
    assert k == math.ceil(max(shape) / 20)
    assert max(image.shape) <= 20
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            block = np.s_[y * k : (y + 1) * k, x * k : (x + 1) * k]
            good = data[block][~mask[block]].astype(float)
            if good.size:
                assert image[y, x] == pytest.approx(good.mean(), rel=1e-5)
            else:
                assert np.isnan(image[y, x])


def test_nan_is_not_spread_and_small_images_stay():
    data = np.ones((4, 4), np.float32)
    data[0, 0] = np.nan
    image, k = downsample(data, size=2)
    assert k == 2
    assert (image == 1).all()
    same, k = downsample(data, size=10)
    assert k == 1
    np.testing.assert_array_equal(same, data)


def test_large_images_go_through_in_parts(rng):
    data = rng.random((1500, 1400)).astype(np.float32)
    image, k = downsample(data, size=700)
    assert k == 3
    expected = data[:1500, :1398].reshape(500, 3, 466, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image, expected, rtol=1e-5)


def test_the_sky_is_found_between_nebulae(rng):
    image = rng.normal(5.0, 0.2, (400, 400))
    plain = sky_of(image)
    assert plain.level == pytest.approx(5.0, abs=0.02)
    assert plain.noise == pytest.approx(0.2, rel=0.03)
    y, x = np.mgrid[:400, :400]
    image += 20 * np.exp(-((x - 200) ** 2 + (y - 200) ** 2) / 100**2)
    filled = sky_of(image)
    assert filled.level == pytest.approx(5.3, abs=0.4)
    assert filled.noise == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("image", [np.full((5, 5), np.nan), np.zeros((5, 5)), np.ones((1, 1))])
def test_images_without_anything_can_be_drawn(image):
    for stretch in (Stretch.of(image), Stretch.linear(image)):
        brightness = stretch(image)
        assert np.isnan(brightness[np.isnan(image)]).all()
        palette_png(brightness, palette())
        assert all(math.isfinite(value) for _, value in stretch.ticks())


def test_a_stretch_rises_from_black_to_white(rng):
    image = rng.normal(1.0, 0.1, (200, 200)) + (rng.random((200, 200)) < 0.01) * 50
    stretch = Stretch.of(image)
    values = np.linspace(stretch.black, stretch.white, 100)
    brightness = stretch(values)
    assert brightness[0] == 0
    assert brightness[-1] == pytest.approx(1)
    assert (np.diff(brightness) > 0).all()
    assert stretch(np.array([-1e9, 1e9])).tolist() == [0, pytest.approx(1)]
    for at, value in stretch.ticks():
        assert at == pytest.approx(float(stretch(np.float64(value))))
    assert len(stretch.ticks()) >= 4


def test_the_first_row_is_at_the_bottom_and_nan_has_its_own_colour():
    brightness = np.array([[0.0, 1.0], [np.nan, 0.5]])
    rgb = pixels(palette_png(brightness, palette("Halpha")))
    assert rgb[1, 1].tolist() == [255, 255, 255]
    assert rgb[0, 0].tolist() == palette()[0].tolist()
    assert rgb[1, 0].max() < 10


@pytest.mark.parametrize("name", [*TINTS, "g", None])
def test_palettes_rise_in_brightness(name):
    luminance = palette(name)[1:].astype(float) @ [0.30, 0.59, 0.11]
    assert (np.diff(luminance) >= -1e-9).all()
    assert len(np.unique(palette(name)[1:], axis=0)) > 150


def test_a_composite_has_the_hubble_palette(rng):
    images = {name: rng.normal(0, 0.01, (60, 60)) for name in ("Halpha", "OIII", "SII")}
    for k, name in enumerate(("SII", "Halpha", "OIII")):
        images[name][10:50, 20 * k : 20 * k + 15] += 1.0
    assert list(recipes(images)) == ["SHO", "HOO", "natural"]
    rgb = pixels(composite(images, recipes(images)["SHO"]))[30]
    for k in range(3):
        assert rgb[20 * k + 7].argmax() == k
        assert rgb[20 * k + 7].max() > 100
        assert np.median(np.delete(rgb[20 * k + 7], k)) < 40


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (["OIII", "Halpha"], ("Halpha", "OIII", "OIII")),
        (["Halpha", "SII"], ("SII", "SII", "Halpha")),
        (["NII", "Halpha", "OIII", "SII"], ("SII", "Halpha", "OIII")),
        (["Hbeta", "NII", "Halpha"], ("NII", "Halpha", "Hbeta")),
        (["r", "g"], ("g", "g", "r")),
    ],
)
def test_channels_go_from_red_to_blue(names, channels):
    best = next(iter(recipes(names).values()))
    for k, channel in enumerate(channels):
        assert [name for name, weights in best.items() if weights[k]] == [channel]


def test_one_filter_makes_no_colour():
    assert recipes(["Halpha"]) == {}


def test_sky_is_nearly_black_and_nebula_is_seen(rng):
    image = rng.normal(5.0, 0.1, (300, 300)).astype(np.float32)
    image[100:200, 100:200] += 4.0
    rgb = pixels(full_png(image, "Halpha")).astype(float).mean(axis=2)
    assert rgb[:80].mean() < 12
    assert np.percentile(rgb[:80], 99) < 30
    assert rgb[120:180, 120:180].mean() > 60
    images = dict.fromkeys(("Halpha", "OIII"), image)
    rgb = pixels(composite(images, recipes(images)["natural"])).astype(float)
    assert rgb[:80].mean() < 12


def test_pixels_that_one_filter_lacks_have_no_colour():
    images = {name: np.ones((3, 3)) for name in ("Halpha", "OIII")}
    images["OIII"][0, 0] = np.nan
    assert pixels(composite(images, recipes(images)["HOO"]))[2, 0].tolist() == palette()[0].tolist()


# --------------------------------------------------------------------------- scale


def header_of(kind, angle, *, flipped=False, swapped=False):
    scale, c, s = 2.0 / 3600, math.cos(angle), math.sin(angle)
    sign = 1 if flipped else -1
    header = fits.Header()
    axes = ["RA---TAN", "DEC--TAN"]
    if swapped:
        axes.reverse()
    header["CTYPE1"], header["CTYPE2"] = axes
    header["CRVAL1"], header["CRVAL2"] = (41.0, 10.0) if swapped else (10.0, 41.0)
    header["CRPIX1"] = header["CRPIX2"] = 50.0
    matrix = np.array([[sign * c, -s], [sign * s, c]])
    if swapped:
        matrix = matrix[::-1]
    if kind == "CD":
        for i in (1, 2):
            for j in (1, 2):
                header[f"CD{i}_{j}"] = scale * matrix[i - 1, j - 1]
    elif kind == "PC":
        header["CDELT1"] = header["CDELT2"] = scale
        for i in (1, 2):
            for j in (1, 2):
                header[f"PC{i}_{j}"] = matrix[i - 1, j - 1]
    else:
        header["CDELT1"], header["CDELT2"] = sign * scale, scale
        header["CROTA2"] = math.degrees(angle)
    return header


@pytest.mark.parametrize("kind", ["CD", "PC", "CROTA2"])
@pytest.mark.parametrize("angle", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("flipped", [False, True])
def test_north_and_east_are_where_wcslib_has_them(kind, angle, flipped):
    header = header_of(kind, angle, flipped=flipped)
    check_directions(header)


def test_axes_may_be_swapped():
    check_directions(header_of("CD", 0.3, swapped=True))


def check_directions(header):
    bar = scale_bar(header, 1000)
    assert bar.label == "5′"
    assert bar.length == pytest.approx(150, rel=1e-6)
    wcs = WCS(header)
    here = wcs.pixel_to_world(50, 50)
    step = 20
    for direction, sign in ((bar.north, "dec"), (bar.east, "ra")):
        there = wcs.pixel_to_world(50 + step * direction[0], 50 + step * direction[1])
        assert getattr(there, sign) > getattr(here, sign)
        separation = here.separation(there).arcsec
        assert separation == pytest.approx(2.0 * step, rel=1e-3)
        angle = here.position_angle(there).wrap_at("180d").deg
        assert angle == pytest.approx(0 if sign == "dec" else 90, abs=0.2)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": 0.0},
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": "<b>", "CD2_2": 1e-3},
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": 1e30, "CDELT2": 1e30},
        {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR", "CDELT1": 1e-3, "CDELT2": 1e-3},
        {"CTYPE1": 3, "CTYPE2": None},
    ],
)
def test_headers_without_a_scale_that_can_be_used_give_pixels(cards):
    bar = scale_bar(fits.Header(cards), 1000)
    assert bar == (200, "200 pix", None, None)


# --------------------------------------------------------------------------- plots


@pytest.mark.parametrize("title", [r"$\frac{1}{$", "_^{} <b>"])
def test_growth_curves_with_any_title(title):
    radius = np.arange(1, 10.0)
    curve = {"title": title, "radius": radius, "flux": radius**0.5, "flux_err": radius * 0.01}
    curve["raw"] = radius**2
    png = growth_png(curve, filter_name="OIII", annulus=(12.0, 16.0))
    colours = np.unique(pixels(png).reshape(-1, 3), axis=0)
    assert any((c == TINTS["OIII"]).all() for c in colours)


def test_growth_curves_full_of_nan():
    radius = np.arange(1, 4.0)
    nan = np.full(3, np.nan)
    assert growth_png({"title": "", "radius": radius, "flux": nan, "flux_err": nan})


def test_frames_that_lack_values_are_drawn():
    frames = [
        {"verdict": "used", "sky": 1.0, "fwhm": None, "weight": 0.5, "dx": 0.0, "dy": 0.0},
        {"verdict": "left out", "sky": 2.0},
    ]
    first = night_charts(frames, filter_name="SII")
    assert first == night_charts(frames, filter_name="SII")
    assert [words for words, _ in first] == ["sky [electron/s]", "weight [%]", "shift"]
    assert all(png.startswith(b"\x89PNG") for _, png in first)


def test_frames_are_drawn_in_order_of_time():
    dates = ["2026-08-14T23:00:00", "2026-08-14T22:00:00", "2026-08-15T01:30:00.5"]
    frames = [
        {"verdict": "used", "date": date, "sky": sky, "noise": 0.1, "predicted": 0.09}
        for date, sky in zip(dates, (2.0, 1.0, 3.0), strict=True)
    ]
    first = night_charts(frames)
    assert first == night_charts(frames[::-1])
    assert first != night_charts([{**frame, "date": ""} for frame in frames])
    assert [words for words, _ in first] == ["sky [electron/s]", "noise of a pixel [electron/s]"]


def test_a_self_test_is_drawn_of_what_is_known():
    right = {"NOISEPIX": 1.0, "NOISEBLK": 1.01, "NOISEAPR": None, "NOISELIN": 0.9}
    assert self_test_png({"NOISEPIX": None}) is None
    assert self_test_png(right).startswith(b"\x89PNG")
    assert self_test_png(right) != self_test_png({**right, "NOISEPIX": 1.3})


def test_a_dark_is_drawn(rng):
    rates = np.append(rng.normal(0.01, 0.002, 1000), [np.nan, 5.0])
    plain = dark_png(rates, rates > 0.03, rates < 0)
    assert plain.startswith(b"\x89PNG")
    assert dark_png(rates, rates > 0.03, rates > 0.03) != plain
    assert price_png([1, 10, 100], [1, 1, 2], [0, 0, 1], measured=(60,)).startswith(b"\x89PNG")
