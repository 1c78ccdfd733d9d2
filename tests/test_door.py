"""What is no image, no list, no number or no unit is refused by name, with one of our errors."""

import ccdproc
import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, NDData, StdDevUncertainty
from astropy.wcs import WCS

from astro_narrowband import (
    DarkModel,
    Detector,
    align,
    annulus_photometry,
    calibrate,
    coadd,
    combine,
    detect_stars,
    master_bias,
    master_flat,
    reduce_night,
    resample,
)
from astro_narrowband.exceptions import (
    InputError,
    NarrowbandError,
    ProductError,
    SharedNoiseWarning,
)
from astro_narrowband.night.pipeline import Settings
from astro_narrowband.registration import Alignment

DETECTOR = Detector(gain=1.0, read_noise=5.0)


def frame(unit="adu", dtype=float, shape=(40, 50), **keywords):
    data = np.random.default_rng(3).normal(1000, 5, shape).astype(dtype)
    return CCDData(data, unit=unit, meta={"EXPTIME": 60.0}, **keywords)


LISTS = {
    "master_bias": lambda x: master_bias(x, detector=DETECTOR),
    "master_flat": lambda x: master_flat(x, bias=frame(), detector=DETECTOR),
    "DarkModel.fit": lambda x: DarkModel.fit(x, detector=DETECTOR),
    "Detector.measure": lambda x: Detector.measure(x, x),
    "coadd": coadd,
    "combine": combine,
}
IMAGES = {
    "calibrate": lambda x: calibrate(x, detector=DETECTOR),
    "resample": lambda x: resample(x, Alignment.identity()),
    "detect_stars": detect_stars,
    "align": lambda x: align(x, x),
    "photometry": lambda x: annulus_photometry(x, [(20, 20)], r=3, r_in=6, r_out=10),
    "coadd": lambda x: coadd([x, x]),
    "combine": lambda x: combine([x, x]),
}


@pytest.mark.parametrize("function", LISTS)
@pytest.mark.parametrize(
    "bad", [None, 3, "", "no/such/file.fits", [], [None], [3], [{}], frame(), object()],
    ids=["None", "3", "nothing", "path", "empty", "of None", "of 3", "of dict", "image", "any"],
)  # fmt: skip
def test_what_is_no_list_of_frames(function, bad):
    with pytest.raises(NarrowbandError) as caught:
        LISTS[function](bad)
    assert isinstance(caught.value, ValueError | TypeError | OSError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", IMAGES)
@pytest.mark.parametrize("dtype", [bool, complex, "U5", object, [("a", float)]], ids=str)
def test_pixels_that_are_no_numbers(function, dtype):
    ccd = frame()
    ccd._data = np.zeros((40, 50), dtype)
    with pytest.raises(NarrowbandError, match="numbers"):
        IMAGES[function](ccd)


@pytest.mark.parametrize("unit", ["electron", "electron/s", "m", 1e3 * u.adu])
@pytest.mark.parametrize("function", ["master_bias", "master_flat", "DarkModel.fit"])
def test_raw_frames_are_in_adu(function, unit):
    frames = [frame(), frame(), frame(unit)]
    with pytest.raises(InputError, match="a raw frame must be in adu"):
        LISTS[function](frames)


@pytest.mark.parametrize("function", ["resample", "coadd", "combine"])
def test_an_uncertainty_of_another_shape(function):
    ccd = frame("electron/s", uncertainty=StdDevUncertainty(np.ones((40, 50))))
    ccd.uncertainty.array = np.ones((4, 5))
    with pytest.raises(InputError, match="its uncertainty has shape"):
        IMAGES[function](ccd)


@pytest.mark.parametrize("way", ["resample", "coadd", "combine"])
def test_the_own_unit_of_an_uncertainty(way):
    ccd = frame("electron/s", uncertainty=StdDevUncertainty(np.full((40, 50), 60.0)))
    ccd.uncertainty.unit = u.electron / u.min
    ccd.meta["MASTERID"] = "none"
    results = {
        "resample": lambda: resample(ccd, Alignment.identity()),
        "coadd": lambda: coadd([ccd], flux_scale="none").ccd,
        "combine": lambda: combine([ccd]),
    }
    np.testing.assert_allclose(results[way]().uncertainty.array, 1.0, rtol=1e-6)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two", True])
def test_workers_are_a_number(workers):
    for function in (combine, coadd):
        with pytest.raises(InputError, match="workers"):
            function([frame("electron/s")] * 3, workers=workers)


def test_an_executor_that_is_none():
    with pytest.raises(InputError, match="executor"):
        combine([frame()] * 3, executor="threads")


def test_a_plain_dict_is_a_header():
    result = calibrate(frame(), detector=DETECTOR)
    assert result.header["EXPTIME"] == 60
    ccd = frame()
    ccd.meta["COMMENT"] = ["a", "list"]
    assert calibrate(ccd, detector=DETECTOR).unit == "electron/s"


# ------------------------------------------------------------------ what people hold


def test_a_shift_is_an_alignment():
    ccd = frame("electron/s")
    moved = resample(ccd, Alignment.translation(3, -2))
    for shift in ((3, -2), [3.0, -2.0], (3, -2) * u.pix):
        np.testing.assert_array_equal(resample(ccd, shift).data, moved.data)
    with pytest.raises(InputError, match="give an Alignment"):
        resample(ccd, 3)


def test_a_coadd_and_an_nddata_are_images():
    ccd = frame("electron/s")
    ccd.meta["MASTERID"] = "none"
    made = coadd([ccd, ccd], flux_scale="none")
    np.testing.assert_array_equal(resample(made, (0, 0)).data, made.ccd.data)
    plain = NDData(ccd.data, unit="electron/s", meta={"EXPTIME": 60.0})
    np.testing.assert_array_equal(resample(plain, (0, 0)).data, ccd.data.astype(np.float32))
    with pytest.raises(InputError, match="has no unit"):
        resample(NDData(ccd.data), (0, 0))


def test_a_collection_is_a_list_of_frames(tmp_path):
    for i in range(3):
        frame(dtype=np.float32).write(tmp_path / f"bias{i}.fits")
    collection = ccdproc.ImageFileCollection(tmp_path)
    made = master_bias(collection, detector=DETECTOR)
    assert made.header["NCOMBINE"] == 3


def test_frames_after_ccdproc_steps(rng):
    raw = CCDData(rng.normal(1000, 5, (40, 66)), unit="adu", meta={"EXPTIME": 60.0})
    raw = ccdproc.subtract_overscan(raw, fits_section="[1:16,:]", median=True)
    raw = ccdproc.trim_image(raw, fits_section="[17:66,:]")
    assert calibrate(raw, detector=DETECTOR).shape == (40, 50)


def test_lengths_and_times_have_units():
    ccd = frame("electron/s")
    ccd.data[20:23, 25:28] += 300
    bare = annulus_photometry(ccd, [(26, 21)], r=3, r_in=6, r_out=10)
    units = annulus_photometry(ccd, [(26, 21)], r=3 * u.pix, r_in=6 * u.pix, r_out=10 * u.pix)
    assert bare["flux"] == units["flux"]
    with pytest.raises(InputError, match="r = 3"):
        annulus_photometry(ccd, [(26, 21)], r=3 * u.s, r_in=6, r_out=10)
    raw = frame()
    result = calibrate(raw, detector=DETECTOR, exposure=2 * u.min)
    assert result.header["EXPTIME"] == 120


def test_cosmic_rays_take_any_keyword_of_lacosmic():
    raw = frame()
    raw.data[20, 20] += 5000
    result = calibrate(raw, detector=DETECTOR, cosmic_rays={"sigclip": 6.0, "readnoise": 9.0})
    assert result.mask[20, 20]
    with pytest.raises(InputError, match="sigclip2: no keyword"):
        calibrate(raw, detector=DETECTOR, cosmic_rays={"sigclip2": 6.0})


def test_a_collection_is_a_night(tmp_path):
    for i in range(2):
        frame(dtype=np.float32).write(tmp_path / f"bias{i}.fits")
    with pytest.raises(InputError, match="there is no light to reduce"):
        reduce_night(ccdproc.ImageFileCollection(tmp_path), tmp_path / "out")


def test_nothing_is_overwritten_unasked(tmp_path):
    model = DarkModel.from_masters(bias=frame())
    model.write(tmp_path / "dark.fits")
    with pytest.raises(ProductError, match="is there already"):
        model.write(tmp_path / "dark.fits")
    model.write(tmp_path / "dark.fits", overwrite=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"gain": 2 * u.s}, {"gain": -1.0}, {"gain": "1"}, {"filters": "Halpha"},
        {"max_extrapolation": -1}, {"max_extrapolation": float("nan")}, {"workers": 0},
        {"memory": -5}, {"reject": "no"}, {"without": "flat"}, {"calibration": 3},
    ],
    ids=str,
)  # fmt: skip
def test_settings_are_checked_when_they_are_made(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Settings(**settings)


def test_settings_take_quantities():
    made = Settings(gain=1.5 * u.electron / u.adu, read_noise=5 * u.electron)
    assert (made.gain, made.read_noise) == (1.5, 5.0)


def test_a_warning_points_to_who_called(rng):
    frames = [frame("electron/s") for _ in range(2)]
    with pytest.warns(SharedNoiseWarning) as caught:
        coadd(frames, flux_scale="none")
    assert caught[0].filename == __file__


def test_combine_keeps_the_wcs_of_files(tmp_path):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crpix, wcs.wcs.cdelt = ("RA---TAN", "DEC--TAN"), (9, 8), (-1e-3, 1e-3)
    for i in range(2):
        ccd = frame(dtype=np.float32)
        ccd.wcs = wcs
        ccd.write(tmp_path / f"{i}.fits")
    made = combine([tmp_path / "0.fits", tmp_path / "1.fits"])
    assert made.wcs.wcs.crpix.tolist() == [9, 8]
