"""The WCS of a header goes with the pixels, whatever cards and distortion it has."""

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, NDData
from astropy.wcs import WCS

from astro_narrowband import calibrate, coadd, resample
from astro_narrowband._engine.files import write_fits
from astro_narrowband._engine.wcs import apply_matrix, fits_wcs, move_header, put_wcs, read_wcs
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import NarrowbandWarning
from astro_narrowband.registration import Alignment

SHAPE = (90, 120)
KINDS = ("CD", "CROTA2", "PC", "SIP", "TPV")


def header_of(kind):
    """A header as a program wrote it, 1 arcsec a pixel, mirrored and turned."""
    tan = {"SIP": "TAN-SIP", "TPV": "TPV"}.get(kind, "TAN")
    header = fits.Header({"CTYPE1": f"RA---{tan}", "CTYPE2": f"DEC--{tan}"})
    header.update({"CRVAL1": 303.1, "CRVAL2": 38.3, "CRPIX1": 40.3, "CRPIX2": 57.7})
    header.update({"DATE-OBS": "2025-06-03T10:00:00", "MJD-OBS": 60829.416667})
    if kind == "CROTA2":
        header.update({"CDELT1": -2.8e-4, "CDELT2": 2.9e-4, "CROTA2": 31.0})
    elif kind == "PC":
        header.update({"CDELT1": -2.8e-4, "CDELT2": 2.8e-4, "PC1_2": 0.1, "PC2_1": -0.1})
    else:
        header.update({"CD1_1": -2.8e-4, "CD1_2": 3e-5, "CD2_1": 3.1e-5, "CD2_2": 2.7e-4})
    if kind == "SIP":
        header.update({"A_ORDER": 3, "B_ORDER": 2, "A_2_0": 2e-4, "A_0_3": 2e-6})
        header.update({"A_1_1": -1e-4, "B_0_2": 1e-4, "B_1_1": 8e-5})
    elif kind == "TPV":
        header.update({"PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 0.4, "PV2_5": 0.7})
    return header


def turn(angle, *, scale=1.0, flip=1, shift=(3.3, -8.0)):
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[c, -s], [s, c]]) @ np.diag([1, flip])
    matrix[:2, 2] = shift
    return matrix


def stars(rng):
    return rng.uniform(0, SHAPE[1], 50), rng.uniform(0, SHAPE[0], 50)


def pixels_off(wcs, x, y, sky):
    """How far the positions of a WCS are from the true ones [arcsec, which is a pixel]."""
    ra, dec = wcs.all_pix2world(x, y, 0)
    return 3600 * np.hypot((ra - sky[0]) * np.cos(np.radians(dec)), dec - sky[1]).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0, 90, 180, -90, 0.7, 33])
@pytest.mark.parametrize(("scale", "flip"), [(1, 1), (0.5, 1), (1, -1)])
def test_any_linear_map_of_the_pixels_keeps_the_sky_and_its_distortion(
    kind, angle, scale, flip, rng
):
    x, y = stars(rng)
    header = header_of(kind)
    sky = read_wcs(header).all_pix2world(x, y, 0)
    matrix = turn(angle, scale=scale, flip=flip)
    move_header(header, matrix)
    assert pixels_off(WCS(header), *apply_matrix(matrix, x, y), sky) < 1e-4
    assert ("A_ORDER" in header) == (kind == "SIP")


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_has_one_wcs_in_astropys_words(kind):
    header = header_of(kind)
    header["CTYPE1A"], header["CRPIX1A"], header["LTV1"] = "LINEAR", 3.0, 4.0
    put_wcs(header, read_wcs(header))
    assert not [key for key in header if key.startswith(("CD1_", "CD2_", "CROTA", "LTV"))]
    assert "CTYPE1A" not in header
    of_wcs = [key for key in header if key[:5] in ("WCSAX", "CRPIX", "CRVAL", "CTYPE", "CDELT")]
    assert of_wcs[0] == "WCSAXES"
    assert header["DATE-OBS"] == "2025-06-03T10:00:00"
    assert "MJDREF" not in header


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_resampled_and_coadded_images_have_their_wcs_in_memory_and_in_files(
    kind, beside, rng, tmp_path
):
    x, y = stars(rng)
    header = header_of(kind)
    wcs = read_wcs(header)
    sky = wcs.all_pix2world(x, y, 0)
    header["EXPTIME"] = 60.0
    bare = fits.Header({"EXPTIME": 60.0})
    raw = CCDData(
        np.full(SHAPE, 900.0), unit="adu", header=bare if beside else header,
        wcs=wcs if beside else None,
    )  # fmt: skip
    bias = CCDData(np.full(SHAPE, 500.0), unit="adu")
    light = calibrate(raw, bias=bias, detector=Detector(gain=1.0, read_noise=3.0))
    matrix = turn(180, shift=(118.4, 88.2))
    moved = resample(light, Alignment(matrix, np.zeros((4, 4)), 0.0, 0, "none", flip=True))
    summed = coadd([light, light], flux_scale="none", reject=False).ccd
    images = ((light, (x, y)), (summed, (x, y)), (moved, apply_matrix(matrix, x, y)))
    for image, at in images:
        assert pixels_off(image.wcs, *at, sky) < 0.001
        for write in (write_fits, lambda path, ccd: ccd.write(path, overwrite=True)):
            write(tmp_path / "image.fits", image)
            written = fits.getheader(tmp_path / "image.fits")
            assert pixels_off(WCS(written), *at, sky) < 0.001
            assert not [key for key in written if key.startswith(("CD1_", "CROTA"))]


def test_trim_moves_the_wcs(rng):
    header = header_of("SIP")
    x, y = stars(rng)
    sky = read_wcs(header).all_pix2world(x, y, 0)
    header.update({"EXPTIME": 60.0, "BIASSEC": "[1:16,1:90]", "TRIMSEC": "[17:120,5:90]"})
    raw = CCDData(np.full(SHAPE, 900.0), unit="adu", header=header)
    bias = CCDData(np.zeros((86, 104)), unit="adu")
    light = calibrate(raw, bias=bias, detector=Detector(gain=1.0, read_noise=3.0))
    assert pixels_off(light.wcs, x - 16, y - 4, sky) < 0.001


@pytest.mark.parametrize("cards", [{"CPDIS1": "LOOKUP"}, {"CTYPE1": "RA---TNX"}])
def test_distortion_that_cards_cannot_hold_is_left_out_aloud(cards):
    header = header_of("CD")
    header.update(cards)
    if "CTYPE1" in cards:
        header["CTYPE2"] = "DEC--TNX"
    with pytest.warns(NarrowbandWarning, match="the distortion cannot be kept"):
        assert read_wcs(header, "light.fits").has_celestial


def test_a_wcs_of_gwcs_becomes_one_of_fits():
    gwcs = pytest.importorskip("gwcs")
    from astropy.coordinates import ICRS
    from astropy.modeling import models
    from gwcs import coordinate_frames

    detector = coordinate_frames.Frame2D(name="detector", unit=(u.pix, u.pix))
    sky = coordinate_frames.CelestialFrame(reference_frame=ICRS(), unit=(u.deg, u.deg))
    steps = models.Shift(-60) & models.Shift(-45) | models.Scale(1e-4) & models.Scale(1e-4)
    steps = steps | models.Pix2Sky_TAN() | models.RotateNative2Celestial(10, 20, 180)
    wcs = gwcs.WCS([(detector, steps), (sky, None)])
    image = NDData(np.full(SHAPE, 900.0), unit="adu", meta={"EXPTIME": 60.0}, wcs=wcs)
    light = calibrate(image, detector=Detector(gain=1.0, read_noise=3.0))
    assert pixels_off(light.wcs, 30.0, 20.0, wcs(30.0, 20.0)) < 0.001


def test_a_wcs_that_is_none_of_fits_is_left_out_aloud():
    wcs = WCS(naxis=2)
    assert fits_wcs(wcs, SHAPE) is wcs
    with pytest.warns(NarrowbandWarning, match="light: its WCS .object. is none of FITS"):
        assert fits_wcs(object(), SHAPE, "light") is None
