"""Raw levels are judged on raw counts, geometry moves the WCS, headers are true of the product."""

import re
import shutil
import subprocess
import warnings

import ccdproc
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable
from astropy.time import Time
from astropy.wcs import WCS, Sip

from astro_narrowband import DarkModel, Detector, calibrate, coadd, master_flat, resample
from astro_narrowband._engine.raw import prepared
from astro_narrowband.exceptions import CalibrationError, InputError, NarrowbandWarning
from astro_narrowband.masters import check_flats
from astro_narrowband.night.pipeline import Settings, reduce_night
from astro_narrowband.registration import Alignment
from astro_narrowband.simulate import simulate_night

DETECTOR = Detector(gain=1.0, read_noise=5.0, saturation=65504.0)


def with_overscan(rng, level, exposure=10.0, *, below=False, **cards):
    """A raw frame of 60 x 80 pixels with an overscan at 1000 adu beside or below it."""
    header = fits.Header({"EXPTIME": exposure, **cards})
    if below:
        data = rng.normal(1000, 5, (76, 80))
        data[16:] += level
        header["BIASSEC"], header["TRIMSEC"] = "[1:80,1:16]", "[1:80,17:76]"
    else:
        data = rng.normal(1000, 5, (60, 96))
        data[:, 16:] += level
        header["BIASSEC"], header["TRIMSEC"] = "[1:16,1:60]", "[17:96,1:60]"
    return CCDData(np.clip(data, 0, 65535).round().astype(np.uint16), unit="adu", header=header)


@pytest.mark.parametrize("below", [False, True])
def test_saturated_pixels_are_masked_under_an_overscan(rng, below):
    level = np.full((60, 80), 300.0)
    level[20:25, 10:23] = 1e6
    light = with_overscan(rng, level, below=below)
    result = calibrate(light, detector=DETECTOR)
    assert result.mask[20:25, 10:23].all()
    assert result.mask.sum() == 65


def test_saturated_flats_and_darks_are_seen_under_an_overscan(rng):
    bias = CCDData(np.zeros((60, 80)), unit="adu")
    flats = [with_overscan(rng, np.full((60, 80), 1e6)) for _ in range(3)]
    checks = check_flats(flats, bias=bias, detector=DETECTOR)
    assert all("is saturated" in check.reason for check in checks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NarrowbandWarning)
        with pytest.raises(CalibrationError, match="is saturated"):
            master_flat(flats, bias=bias, detector=DETECTOR)
    level = np.full((60, 80), 50.0)
    level[30, 40] = 1e6
    darks = [with_overscan(rng, level * t / 60, t) for t in (60.0, 60.0, 60.0, 120.0, 120.0, 120.0)]
    biases = [with_overscan(rng, np.zeros((60, 80)), 0.0) for _ in range(3)]
    model = DarkModel.fit(darks, bias=biases, detector=DETECTOR)
    assert model.mask(slice(30, 31))[0, 40]
    assert model.mask(slice(0, 60)).sum() < 20


@pytest.mark.parametrize("kind", ["ramp", "step", "fraction"])
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("cards", [{}, {"PEDESTAL": 100}], ids=["plain", "pedestal"])
def test_an_overscan_that_moves_masks_what_is_full_and_nothing_else(rng, kind, below, cards):
    # Just below the level, and at it, in every row and column: the level is one of raw counts.
    raw = with_overscan(rng, np.full((60, 80), 300.0), below=below, **cards)
    ny, nx = raw.shape
    along = np.arange(nx)[None, :] if below else np.arange(ny)[:, None]
    drift = {"ramp": 40.0 * along, "step": 900.0 * (along > 33), "fraction": 0.3 * along}[kind]
    raw.data = (raw.data + drift).astype(np.float32)
    inner = raw.data[16:] if below else raw.data[:, 16:]
    true = rng.random(inner.shape) < 0.1
    inner[true] = 65504.0
    inner[~true & (rng.random(inner.shape) < 0.1)] = 65503.0
    result = calibrate(raw, detector=DETECTOR)
    np.testing.assert_array_equal(result.mask, true)


def test_full_pixels_after_ccdproc_took_the_overscan_off(rng):
    level = np.full((60, 80), 300.0)
    level[20:25, 10:23] = 1e6
    raw = with_overscan(rng, level)
    raw.header["SATURATE"] = 65535
    sections = raw.header.pop("BIASSEC"), raw.header.pop("TRIMSEC")
    light = ccdproc.subtract_overscan(raw, fits_section=sections[0], median=True)
    light = ccdproc.trim_image(light, fits_section=sections[1])
    result = calibrate(light, gain=1 * u.electron / u.adu, read_noise=5 * u.electron)
    assert result.mask[20:25, 10:23].all()
    assert result.mask.sum() == 65


# ------------------------------------------------------------------ geometry


def sky(kind="PC", size=(120, 140)):
    """A header whose WCS is written in one of the ways that there are."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (303.0, 38.35), (size[1] / 2, size[0] / 2)
    angle, scale = np.radians(20.0), 2.8e-4
    turn = np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    header = fits.Header()
    if kind == "CROTA":
        header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 303.0,
                       "CRVAL2": 38.35, "CRPIX1": size[1] / 2, "CRPIX2": size[0] / 2,
                       "CDELT1": -scale, "CDELT2": scale, "CROTA2": 20.0})  # fmt: skip
        return header
    wcs.wcs.cd = scale * turn
    if kind == "SIP":
        a, b = np.zeros((3, 3)), np.zeros((3, 3))
        a[2, 0], a[0, 2], b[1, 1] = 3e-5, -2e-5, 4e-5
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
        wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    header = wcs.to_header(relax=True)
    if kind == "CD":
        for i in (1, 2):
            del header[f"CDELT{i}"]
            for j in (1, 2):
                header.remove(f"PC{i}_{j}", ignore_missing=True)
                header[f"CD{i}_{j}"] = wcs.wcs.cd[i - 1, j - 1]
    return header


def world(header, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(header).all_pix2world(x, y, 0)


@pytest.mark.parametrize("kind", ["PC", "CD", "CROTA", "SIP"])
def test_trim_moves_the_wcs(rng, kind):
    raw = with_overscan(rng, np.full((60, 80), 300.0))
    raw.header.update(sky(kind, (60, 96)))
    result = calibrate(raw, detector=DETECTOR)
    x, y = rng.uniform(0, 79, 50), rng.uniform(0, 59, 50)
    truth = world(raw.header, x + 16, y)
    np.testing.assert_allclose(result.wcs.all_pix2world(x, y, 0), truth, atol=1e-9)
    np.testing.assert_allclose(world(prepared(raw).header, x, y), truth, atol=1e-9)


@pytest.mark.parametrize("kind", ["PC", "CD", "CROTA", "SIP"])
@pytest.mark.parametrize("turn", [0, 90, 180, 33.3])
def test_shifts_and_turns_keep_the_sky(rng, kind, turn):
    image = CCDData(np.ones((120, 140)), unit="electron/s", header=sky(kind))
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.array([[c, -s, 70.0], [s, c, 20.0], [0, 0, 1]])
    moved = resample(image, Alignment(matrix, np.zeros((4, 4))))
    x, y = rng.uniform(0, 139, 50), rng.uniform(0, 119, 50)
    new = matrix[:2, :2] @ np.array([x, y]) + matrix[:2, 2:]
    apart = np.array(moved.wcs.all_pix2world(*new, 0)) - np.array(world(image.header, x, y))
    assert np.abs(apart).max() < 1e-8
    text = moved.header.tostring()
    assert not re.search(r"CD1_1|CROTA2", text)


def test_calibrate_keeps_a_wcs_that_stands_beside_the_header(rng):
    raw = CCDData(rng.normal(1000, 5, (120, 140)), unit="adu", wcs=WCS(sky("SIP")),
                  header=fits.Header({"EXPTIME": 10.0}))  # fmt: skip
    result = calibrate(raw, detector=DETECTOR)
    assert result.wcs.sip is not None
    np.testing.assert_allclose(result.wcs.wcs.crpix, raw.wcs.wcs.crpix)


# ------------------------------------------------------------------ headers


def test_headers_are_true_of_the_product(rng):
    raws = []
    for i, t in enumerate((60.0, 120.0)):
        header = fits.Header({"EXPTIME": t, "GAIN": 100, "EGAIN": 0.5, "RDNOISE": 5.0,
                              "SATURATE": 60000, "DATE-OBS": f"2026-01-02T0{i}:00:00"})  # fmt: skip
        raws.append(CCDData(rng.normal(1000, 5, (60, 80)), unit="adu", header=header))
    lights = [calibrate(raw) for raw in raws]
    assert lights[1].header["GAIN"] == 120
    made = coadd(lights, flux_scale="none", reject=False)
    header = made.ccd.header
    for keyword in ("EGAIN", "RDNOISE", "SATURATE"):
        assert keyword not in header
    assert header["GAIN"] == pytest.approx(header["TEFF"])
    assert header["DATE-BEG"] == header["DATE-OBS"] == "2026-01-02T00:00:00.000"
    assert header["DATE-END"] == "2026-01-02T01:02:00.000"
    # By weight: the longer exposure of the two has less noise in a rate.
    weight = made.frames["weight"][1]
    average = Time("2026-01-02T00:00:30") + weight * (3630 * u.s)
    assert abs(Time(header["DATE-AVG"]) - average) < 2e-3 * u.s
    assert weight > 0.6
    assert header["MJD-OBS"] == pytest.approx(61042.0)
    assert header["CREATOR"].startswith("astro_narrowband ")


@pytest.mark.parametrize("level", [20_000.0, 0.5, 1.7])
def test_a_flat_that_is_not_normalised_is_normalised_aloud(rng, level):
    raw = CCDData(rng.normal(1000, 5, (60, 80)), unit="adu", header=fits.Header({"EXPTIME": 10.0}))
    flat = CCDData(rng.normal(1, 0.01, (60, 80)) * level, unit=u.dimensionless_unscaled)
    plain = calibrate(raw, detector=DETECTOR)
    with pytest.warns(NarrowbandWarning, match="it was divided by that"):
        result = calibrate(raw, flat=flat, detector=DETECTOR)
    assert np.median(result.data / plain.data) == pytest.approx(1, abs=0.002)
    with pytest.raises(InputError, match="a flat is around 1"):
        calibrate(raw, flat=CCDData(-flat.data, unit=""), detector=DETECTOR)


@pytest.fixture(scope="module")
def nights(tmp_path_factory, no_page):
    """A small night in two filters for each kind of WCS, reduced."""
    made = {}
    for kind in ("none", "PC", "CD", "CROTA", "SIP"):
        folder = tmp_path_factory.mktemp(kind)
        simulate_night(
            folder / "raw", shape=(220, 240), filters=("Halpha", "OIII"), n_bias=3, n_darks=3,
            n_flats=3, light_exposures=(60.0, 60.0, 60.0), seed=3,
        )  # fmt: skip
        if kind != "none":
            for i, path in enumerate(sorted((folder / "raw").rglob("light_*.fits"))):
                # A mount's: right at its reference, and a few pixels off from frame to frame.
                header = sky(kind, (220, 240))
                header["CRPIX1"] += 0.9 * i
                with fits.open(path, mode="update") as hdul:
                    hdul[0].header.update(header)
        with warnings.catch_warnings(), no_page():
            warnings.simplefilter("ignore")
            reduce_night(folder / "raw", folder / "out", settings=Settings(keep_calibrated=True))
        made[kind] = folder
    return made


@pytest.mark.parametrize("kind", ["PC", "CD", "CROTA", "SIP"])
def test_one_grid_has_one_wcs(nights, kind, rng):
    coadds = sorted((nights[kind] / "out").glob("coadd-*.fits"))
    headers = [fits.getheader(path) for path in coadds]
    x, y = rng.uniform(20, 200, 50), rng.uniform(20, 200, 50)
    first, second = (world(header, x, y) for header in headers)
    np.testing.assert_allclose(first, second, atol=1e-10)
    reference = next((nights[kind] / "raw").rglob(headers[0]["REFFRAME"]))
    apart = np.array(first) - np.array(world(fits.getheader(reference), x, y))
    assert np.abs(apart).max() < 0.05 * 2.8e-4


@pytest.mark.parametrize("kind", ["PC", "CD", "CROTA", "SIP"])
def test_calibrated_frames_and_catalogues_have_the_sky_of_their_pixels(nights, kind, rng):
    x, y = rng.uniform(20, 200, 50), rng.uniform(20, 200, 50)
    calibrated = sorted((nights[kind] / "out" / "calibrated").rglob("*.fits"))
    assert len(calibrated) >= 4
    for path in calibrated:
        raw = next((nights[kind] / "raw").rglob(path.name))
        apart = np.subtract(*(world(fits.getheader(each), x, y) for each in (path, raw)))
        assert np.abs(apart).max() < 0.05 * 2.8e-4
    for path in sorted((nights[kind] / "out").glob("coadd-*.fits")):
        stars = QTable.read(
            path.with_name(path.name.replace("coadd", "catalog")).with_suffix(".ecsv")
        )
        assert len(stars) >= 10
        places = world(fits.getheader(path), stars["x_center"].value, stars["y_center"].value)
        for degrees, column in zip(places, ("ra", "dec"), strict=True):
            np.testing.assert_allclose(degrees, stars[column].to_value("deg"), atol=1e-7)


@pytest.mark.parametrize("way", ["registration", "catalogue"])
def test_one_grid_has_one_wcs_whatever_it_comes_from(nights, way, tmp_path):
    # Not registered, by the files' own WCS; or by the stars of a catalogue.
    catalogue = next((nights["CD"] / "out").glob("catalog-*-Halpha.ecsv"))
    options = {"registration": {"registration": "none"}, "catalogue": {"catalogue": catalogue}}[way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduce_night(nights["CD"] / "raw", tmp_path, settings=Settings(**options))
    headers = [fits.getheader(path) for path in sorted(tmp_path.glob("coadd-*.fits"))]
    linear = ("CTYPE", "CRVAL", "CRPIX", "CDELT", "PC")
    first, second = ({k: h[k] for k in h if k.startswith(linear)} for h in headers)
    assert first == second
    assert len(first) > 8
    assert ("WCSSTARS" in headers[0]) == ("WCSSTARS" in headers[1]) == (way == "catalogue")


@pytest.mark.parametrize("kind", ["none", "PC", "CD", "CROTA", "SIP"])
def test_products_pass_fitsverify(nights, kind):
    if shutil.which("fitsverify") is None:
        pytest.skip("fitsverify is not installed (Debian: apt install fitsverify)")
    for path in sorted((nights[kind] / "out").rglob("*.fits")):
        command = ["fitsverify", path]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        assert "0 warning(s) and 0 error(s)" in done.stdout, done.stdout


@pytest.mark.parametrize(
    "keys", [("BIASSEC1", "BIASSEC2"), ("BSEC11", "BSEC12"), ("BSECA", "BSECB")]
)
def test_overscans_of_several_amplifiers_are_refused(rng, keys):
    raw = CCDData(rng.normal(1000, 5, (40, 60)), unit="adu", meta={"EXPTIME": 60.0})
    raw.meta.update(dict.fromkeys(keys, "[1:4,1:40]"))
    with pytest.raises(InputError, match=f"{keys[0]} to {keys[1]}: each amplifier"):
        calibrate(raw, detector=Detector(1.0, 5.0))
    raw.meta["OVERSCAN"] = True
    assert calibrate(raw, detector=Detector(1.0, 5.0)).shape == (40, 60)
