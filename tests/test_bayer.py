"""One colour of a mosaic is an image like any other: its pixels, noise, saturation and sky."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable
from astropy.wcs import WCS

from astro_narrowband._engine.bayer import COLOURS, MosaicFrame
from astro_narrowband._engine.frames import FitsFrame, MemoryFrame, as_ccd
from astro_narrowband.cli import main
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import InputError
from astro_narrowband.night.pipeline import Settings
from astro_narrowband.night.plan import make_plan
from astro_narrowband.night.run._masters import Masters
from astro_narrowband.night.table import FrameTable

LEVELS = {"R": 100.0, "G": 20.0, "B": 3.0}
SUMS = {"red": 100.0, "green": 40.0, "blue": 3.0, "superpixel": 143.0, "green+blue": 43.0}


def mosaic(colours, *, shape=(6, 8), **cards):
    """A frame whose pixels have the colours of ``colours`` (the first cell of the file)."""
    y, x = np.indices(shape)
    letters = np.array(list(colours))[2 * (y % 2) + x % 2]
    data = np.vectorize(LEVELS.get)(letters).astype("f4")
    return MemoryFrame(CCDData(data, unit="adu", meta=fits.Header(cards)))


def pixels(frame):
    return frame.read(slice(0, frame.shape[0])).data


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("first", "cards"),
    [
        ("RGGB", {"BAYERPAT": "RGGB"}),
        ("GBRG", {"BAYERPAT": "gbrg  "}),
        ("GRBG", {"BAYERPAT": "RGGB", "XBAYROFF": 1, "YBAYROFF": 0}),
        ("GBRG", {"BAYERPAT": "RGGB", "YBAYROFF": 1}),
        ("BGGR", {"BAYERPAT": "RGGB", "XBAYROFF": 3, "YBAYROFF": -1}),
        ("RGGB", {"BAYERPAT": "RGGB", "ROWORDER": "TOP-DOWN"}),
        ("GBRG", {"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}),
        ("RGGB", {"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP", "YBAYROFF": "1"}),
    ],
)
def test_pattern_offset_and_row_order_find_the_colour(colour, first, cards):
    frame = MosaicFrame(mosaic(first, **cards), colour)
    assert frame.shape == (3, 4)
    assert np.all(pixels(frame) == SUMS[colour])
    assert frame.n_added == {"green": 2, "green+blue": 3, "superpixel": 4}.get(colour, 1)
    assert "BAYERPAT" not in frame.header
    assert "XBAYROFF" not in frame.header


def test_bottom_up_counts_from_the_last_row_of_an_odd_number_too():
    odd = mosaic("RGGB", shape=(7, 9), BAYERPAT="RGGB", ROWORDER="BOTTOM-UP")
    assert np.all(pixels(MosaicFrame(odd, "red")) == 100)
    assert MosaicFrame(odd, "red").shape == (3, 4)


@pytest.mark.parametrize(
    ("cards", "says"),
    [
        ({}, "BAYERPAT is missing"),
        ({"BAYERPAT": "XTRANS"}, "XTRANS"),
        ({"BAYERPAT": "RGGB", "XBAYROFF": 0.5}, "XBAYROFF"),
        ({"BAYERPAT": "RGGB", "TRIMSEC": "[2:7,1:6]"}, "trim"),
        ({"BAYERPAT": "RGGB", "BIASSEC": "[1:2,1:6]"}, "trim"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(cards, says):
    with pytest.raises(InputError, match=says):
        MosaicFrame(mosaic("RGGB", **cards), "red")


def test_bands_masks_and_variances_go_with_their_pixels(rng):
    data = rng.normal(100, 5, (12, 10)).astype("f4")
    mask = rng.random(data.shape) < 0.2
    ccd = CCDData(data, unit="adu", mask=mask, meta=fits.Header({"BAYERPAT": "GRBG"}))
    frame = MosaicFrame(MemoryFrame(ccd), "green")
    whole = frame.read(slice(0, 6))
    part = frame.read(slice(2, 5))
    assert np.array_equal(part.data, whole.data[2:5])
    assert np.array_equal(part.mask, whole.mask[2:5])
    assert np.array_equal(whole.mask, mask[::2, ::2] | mask[1::2, 1::2])
    assert np.array_equal(whole.data, data[::2, ::2] + data[1::2, 1::2])


def test_one_full_pixel_makes_its_cell_full():
    frame = mosaic("RGGB", BAYERPAT="RGGB", RDNOISE=3.0, EGAIN=0.5)
    frame.ccd.data[0, 1] = 65535
    green = MosaicFrame(frame, "green")
    detector = decide_detector(green.header)
    full = pixels(green) >= detector.saturation
    assert full[0, 0]
    assert full.sum() == 1
    assert detector.gain == 0.5
    assert detector.read_noise == pytest.approx(3 * 2**0.5)
    given = MosaicFrame(frame, "superpixel", saturation=50.0)
    assert np.all(pixels(given) == 200.0)
    assert decide_detector(given.header).saturation == 200.0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("form", ["CD", "CDELT", "PC"])
def test_the_sky_stays_where_it_is(colour, form):
    header = fits.Header({"BAYERPAT": "GRBG", "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"})
    header.update({"CRVAL1": 30.0, "CRVAL2": 20.0, "CRPIX1": 40.5, "CRPIX2": 11.0, "XPIXSZ": 3.75})
    if form == "CD":
        header.update({"CD1_1": -3e-4, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 3e-4})
    elif form == "CDELT":
        header.update({"CDELT1": -3e-4, "CDELT2": 3e-4})
    else:
        header.update({"PC1_1": -3e-4, "PC1_2": 1e-4, "PC2_1": 1e-4, "PC2_2": 3e-4})
    header.update({"A_ORDER": 2, "A_2_0": 1e-5, "A_1_1": 2e-5, "B_ORDER": 2, "B_0_2": -3e-5})
    ccd = CCDData(np.zeros((60, 80), "f4"), unit="adu", meta=header)
    frame = MosaicFrame(MemoryFrame(ccd), colour)
    place = {
        "red": (1, 0),
        "blue": (0, 1),
        "green": (0.5, 0.5),
        "superpixel": (0.5, 0.5),
        "green+blue": (1 / 3, 2 / 3),
    }[colour]
    at = np.array([[3.0, 5.0], [21.0, 27.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = WCS(header).all_pix2world(2 * at + place, 0)
        after = WCS(frame.header).all_pix2world(at, 0)
    assert np.abs(after - before).max() < 1e-10
    assert frame.header["XPIXSZ"] == 7.5


# ------------------------------------------------------------------ nights


@pytest.fixture(scope="module")
def colour_night(tmp_path_factory):
    """A night as a mosaic: every second pixel in both directions is an image of its own."""
    from astro_narrowband.simulate import NightModel, simulate_night

    folder = tmp_path_factory.mktemp("colour") / "night"
    simulate_night(
        folder, shape=(320, 320), filters=("Halpha",), n_bias=4, n_darks=3, n_flats=4,
        light_exposures=(60.0,) * 3, dither=0.0, seed=11,
        model=NightModel(fwhm=6.0, star_density=600.0, faintest=100.0, brightest=600.0,
                         transparency_scatter=0.0),
    )  # fmt: skip
    for path in folder.rglob("*.fits"):
        if "truth" not in path.parts:
            fits.setval(path, "BAYERPAT", value="RGGB")
    return folder


def reduced(night, out, *arguments):
    assert main(["reduce", str(night), "-o", str(out), "--quiet", *arguments]) == 0
    (coadd,) = out.glob("coadd-*.fits")
    return as_ccd(FitsFrame(coadd)), QTable.read(out / coadd.name.replace("coadd", "catalog")
                                                 .replace(".fits", ".ecsv"))  # fmt: skip


@pytest.mark.usefixtures("without_page")
def test_a_superpixel_is_the_same_night_in_larger_pixels(colour_night, tmp_path):
    mono, _ = reduced(colour_night, tmp_path / "mono", "--bayer", "mono", "--registration", "none")
    cells, _ = reduced(
        colour_night, tmp_path / "cells", "--bayer", "superpixel", "--registration", "none"
    )
    ny, nx = cells.shape
    assert (2 * ny, 2 * nx) == mono.shape
    bad = mono.mask.reshape(ny, 2, nx, 2).any((1, 3)) | cells.mask
    binned = mono.data.reshape(ny, 2, nx, 2).sum((1, 3))
    noise = np.sqrt((mono.uncertainty.array**2).reshape(ny, 2, nx, 2).sum((1, 3)))
    good = ~bad
    assert good.mean() > 0.9
    # Each run has its own flux scale, that of a frame, as well as its stars tell it.
    scale = np.median(cells.data[good] / binned[good])
    error = np.hypot(mono.header["SCALEERR"], cells.header["SCALEERR"])
    assert abs(scale - 1) < 3 * error
    # Few stars of a crowd, whose seeing varies, tell no better; 5 % where nothing tells.
    assert error < 0.05
    difference = (cells.data - scale * binned)[good] / noise[good]
    assert np.median(difference) == pytest.approx(0, abs=0.05)
    ratio = cells.uncertainty.array[good] / (scale * noise[good])
    assert np.median(ratio) == pytest.approx(1, abs=0.03)


@pytest.mark.usefixtures("without_page")
def test_colours_share_the_light_of_stars(colour_night, tmp_path):
    flux = {}
    for colour in ("red", "green"):
        options = ("--bayer", colour, "--registration", "none")
        ccd, stars = reduced(colour_night, tmp_path / colour, *options)
        # One of them may have no star for the aperture correction, and says so by a flag.
        flux[colour] = np.sort(stars["flux_aperture"].value)[-8:]
        assert ccd.shape == (160, 160)
        assert ccd.unit == u.electron / u.s
    assert np.median(flux["green"] / flux["red"]) == pytest.approx(2, rel=0.1)


def test_a_level_that_is_measured_is_one_of_each_pixel(colour_night, tmp_path):
    level = 5000.0
    for path in sorted(colour_night.rglob("light_*.fits")):
        with fits.open(path) as hdul:
            image = np.minimum(hdul[0].data, level).astype(np.uint16)
            image[40:60, 40:60] = level
            image[100, 101] = level  # one green of a cell, its fellow at the sky
            hdul[0].header.remove("SATURATE", ignore_missing=True)
            fits.writeto(tmp_path / path.name, image, hdul[0].header)
    (group,) = make_plan(FrameTable.from_paths(tmp_path, bayer="green")).groups
    night = SimpleNamespace(
        settings=Settings(gain=1.0, read_noise=5.0), products=None, workers=1,
        record={"detector": {}}, messages=SimpleNamespace(say=lambda text: None),
    )  # fmt: skip
    detector = Masters(night).detector(group)
    assert detector.saturation == pytest.approx(2 * level, rel=0.01)
    frame = group.lights[0].open(group.colour)
    assert pixels(frame)[50, 50] >= detector.saturation
    assert pixels(frame)[50, 51] < detector.saturation


def test_frames_without_a_pattern_are_refused_by_name(colour_night, tmp_path):
    plain = {"set_keywords": {"BAYERPAT": "RGGB"}}
    path = next((colour_night / "dark").glob("*.fits"))
    header = fits.getheader(path)
    del header["BAYERPAT"]
    other = tmp_path / "dark_without.fits"
    fits.writeto(other, fits.getdata(path) + np.uint16(1), header)
    table = FrameTable.from_paths([colour_night, other], bayer="red")
    (row,) = (row for row in table if row.path == other)
    assert row.verdict == "left out"
    assert "BAYERPAT" in row.reason
    table = FrameTable.from_paths([colour_night, other], bayer="red", **plain)
    assert {row.shape for row in table if row.verdict == "used"} == {(160, 160)}
    assert {row.bayer for row in table if row.verdict == "used"} == {"RGGB red"}
    (group,) = make_plan(table).groups
    assert not group.failed
    frame = group.lights[0].open()
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(frame))), pixels(frame))  # noqa: S301


def test_real_mosaics(real_data):
    table = FrameTable.from_paths(real_data / "zwo-asi120-darkseries", bayer="green")
    used = [row for row in table if row.verdict == "used"]
    assert used
    assert {row.shape for row in used} == {(480, 640)}
    lights = FrameTable.from_paths(real_data / "als-asi224-lights", bayer="red").of_kind("light")
    assert len(lights) == 6
    # The header's rough WCS has 1.517 arcsec a pixel.
    header = lights[0].open().header
    assert header["CDELT1"] * 3600 == pytest.approx(2 * 1.517, rel=1e-3)
