"""Whoever composes gets the same error: the noise that masters share travels with a frame."""

from functools import cached_property

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import (
    DarkModel,
    Detector,
    Frame,
    InverseVarianceCombiner,
    calibrate,
    coadd,
    combine,
    master_flat,
    resample,
)
from astro_narrowband._engine.frames import MemoryFrame
from astro_narrowband.calibration import CalibratedFrame, Recipe
from astro_narrowband.exceptions import InputError, SharedNoiseWarning
from astro_narrowband.noise import SharedNoise
from astro_narrowband.registration import Alignment
from astro_narrowband.resampling import ResampledFrame, noise_factor
from astro_narrowband.simulate import simulate_frames

N_NIGHTS, N_LIGHTS, SHAPE, EXPOSURE, SKY = 20, 16, (64, 64), 60.0, 900.0
#: Wider than the means that are taken: over less, masters are more alike than a pixel says.
SHIFTS = {
    "undithered": np.zeros((N_LIGHTS, 2)),
    "whole": np.array([(i % 4 - 2, i // 4 - 2) for i in range(N_LIGHTS)], float),
    "fractional": np.array([(5.37 * (i % 4) - 8, 5.61 * (i // 4) - 8) for i in range(N_LIGHTS)]),
}


def raw(image, exposure):
    return CCDData(image, unit="adu", header=fits.Header({"EXPTIME": exposure}))


class Night:
    """Raw lights of one night and what calibrates them: 3 biases, 3 darks, 4 flats."""

    def __init__(self, frames, i):
        model = frames.model
        self.detector = Detector(gain=model.gain, read_noise=model.read_noise, saturation=60000.0)
        bias = [raw(a, 0.0) for a in frames.bias[i]]
        darks = [raw(a, t) for t, images in frames.darks.items() for a in images[i]]
        self.dark = DarkModel.fit(darks, bias=bias, detector=self.detector, workers=1)
        flats = [raw(a, frames.flat_exposure) for a in frames.flats[i]]
        self.flat = master_flat(flats, dark=self.dark, detector=self.detector, workers=1)
        self.recipe = Recipe.make(detector=self.detector, dark=self.dark, flat=self.flat)
        self.lights = [raw(a, EXPOSURE) for a in frames.lights[i]]

    def frames(self):
        return [
            CalibratedFrame(MemoryFrame(light, f"light {k}"), self.recipe)
            for k, light in enumerate(self.lights)
        ]

    @cached_property
    def calibrated(self):
        return [
            calibrate(c, dark=self.dark, flat=self.flat, detector=self.detector, workers=1)
            for c in self.lights
        ]

    def ccds(self):
        return [ccd.copy() for ccd in self.calibrated]


@pytest.fixture(scope="module")
def nights():
    return {kind: make_nights(shifts) for kind, shifts in SHIFTS.items()}


def make_nights(shifts):
    frames = simulate_frames(
        N_NIGHTS, shape=SHAPE, sky=SKY, light_exposures=(EXPOSURE,) * N_LIGHTS,
        n_bias=3, n_darks=3, n_flats=4, shifts=shifts, seed=5,
    )  # fmt: skip
    return [Night(frames, i) for i in range(N_NIGHTS)]


class Theirs(Frame):
    """A frame of somebody's own, around another one."""

    def __init__(self, frame):
        self.frame = frame
        self.name, self.shape, self.unit = frame.name, frame.shape, frame.unit
        self.header = frame.header

    def read(self, rows):
        return self.frame.read(rows)


def moved(images, kind, how):
    if kind == "undithered":
        return images
    shifts = SHIFTS[kind]
    return [how(i, Alignment.translation(*-s)) for i, s in zip(images, shifts, strict=True)]


def written(ccd, folder, name):
    path = folder / f"{name}.fits"
    ccd.write(path, overwrite=True)
    return CCDData.read(path)


def through(way, night, kind, folder):
    """Combine the lights of a night in one of the ways that people do."""
    if way == "CalibratedFrame":
        return coadded(moved(night.frames(), kind, ResampledFrame))
    if way == "third party":
        return coadded(moved([Theirs(f) for f in night.frames()], kind, ResampledFrame))
    ccds = night.ccds()
    if way == "written":
        ccds = [written(ccd, folder, k) for k, ccd in enumerate(ccds)]
    if way == "arithmetic":
        ccds = [c.multiply(3.0, handle_meta="first_found").divide(3.0 * u.one,
                handle_meta="first_found") for c in ccds]  # fmt: skip
        return coadded(moved(ccds, kind, ResampledFrame))
    ccds = moved(ccds, kind, resample)
    if way == "resampled and written":
        ccds = [written(ccd, folder, k) for k, ccd in enumerate(ccds)]
    if way == "InverseVarianceCombiner":
        result = InverseVarianceCombiner(ccds).average_combine()
        correlation = np.mean([ccd.header.get("NOISECOR", 1.0) for ccd in ccds])
        return result, correlation
    return coadded(ccds)


def coadded(frames):
    made = coadd(frames, flux_scale="none", reject=False, workers=1)
    return made.ccd, made.ccd.header["NOISECOR"]


def pulls(ccd, correlation, kind):
    """Of pixels; of means of 5 x 5 pixels where neighbours share noise."""
    inner = slice(14, 49)  # where every light looks
    difference = (ccd.data - SKY / EXPOSURE)[inner, inner]
    variance = (ccd.uncertainty.array**2)[inner, inner]
    if kind != "fractional":
        return difference / np.sqrt(variance)
    blocks = [a.reshape(7, 5, 7, 5).sum(axis=(1, 3)) for a in (difference, variance)]
    return blocks[0] / np.sqrt(blocks[1]) / noise_factor(correlation, 25.0)


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize(
    "way",
    [
        "CalibratedFrame", "calibrate", "written", "InverseVarianceCombiner", "third party",
        pytest.param("resampled and written", marks=pytest.mark.long),
        pytest.param("arithmetic", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_error_bars_hold_whatever_the_way(nights, way, kind, tmp_path):
    every = [pulls(*through(way, night, kind, tmp_path), kind) for night in nights[kind]]
    print(f"{way}, {kind}: {np.std(every):.3f}")
    assert 0.95 < np.std(every) < 1.06


def test_exact_where_the_masters_are_at_hand(nights):
    night = nights["undithered"][0]
    exact = coadd(night.frames(), flux_scale="none", reject=False, workers=1)
    given = coadd(night.ccds(), masters=night.recipe, flux_scale="none", reject=False, workers=1)
    told = coadd(night.ccds(), flux_scale="none", reject=False, workers=1)
    ratio = given.ccd.uncertainty.array / exact.ccd.uncertainty.array
    np.testing.assert_allclose(ratio, 1.0, atol=5e-3)
    ratio = told.ccd.uncertainty.array / exact.ccd.uncertainty.array
    assert np.median(ratio) == pytest.approx(1.0, abs=0.05)


def test_other_masters_than_those_it_was_made_with_are_refused(nights):
    first, second = nights["undithered"][:2]
    with pytest.raises(InputError, match="was calibrated with other masters"):
        coadd(first.ccds(), masters=second.recipe, flux_scale="none")
    moved_ccds = [resample(c, Alignment.translation(0.5, 0)) for c in first.ccds()[:2]]
    with pytest.raises(InputError, match="is no single frame"):
        coadd(moved_ccds, masters=first.recipe, flux_scale="none")


def test_masters_are_known_by_the_same_name_everywhere(nights, tmp_path):
    night = nights["undithered"][0]
    night.dark.write(tmp_path / "dark.fits")
    night.flat.write(tmp_path / "flat.fits")
    again = calibrate(
        night.lights[0], dark=tmp_path / "dark.fits", flat=tmp_path / "flat.fits",
        detector=night.detector,
    )  # fmt: skip
    assert again.header["MASTERID"] == night.ccds()[0].header["MASTERID"] == night.recipe.masters
    other = nights["undithered"][1].recipe.masters
    assert other != night.recipe.masters


def test_frames_that_say_nothing_are_said_to(rng):
    frames = [
        CCDData(
            rng.normal(5, 1, (40, 40)),
            unit="electron/s",
            header=fits.Header({"EXPTIME": 60.0}),
            uncertainty=StdDevUncertainty(np.ones((40, 40))),
        )
        for _ in range(3)
    ]
    with pytest.warns(SharedNoiseWarning, match="3 of 3 frames do not say") as caught:
        coadd(frames, flux_scale="none")
    assert len(caught) == 1
    for frame in frames:
        frame.header["MASTERID"] = "none"
    coadd(frames, flux_scale="none")


def test_the_header_says_what_it_was_told():
    noise = SharedNoise("abc", 0.1, -0.02, 0.03, 0.004, 0.005, included=False)
    header = fits.Header()
    noise.to_header(header)
    assert SharedNoise.from_header(fits.Header.fromstring(header.tostring())) == noise
    assert SharedNoise.from_header(fits.Header()) is None
    assert SharedNoise.from_header({"MASTERID": "none"}) == SharedNoise("none")


# ------------------------------------------------------------------ coadds of coadds

#: Lights of each part: the pattern of a dither once more, halves of it, parts of unlike size.
PARTS = {
    "halves": (range(8), range(8, 16)),
    "in turn": (range(0, 16, 2), range(1, 16, 2)),
    "unlike": (range(3), range(3, 16)),
    "three": (range(2), range(2, 8), range(8, 16)),
}


@pytest.mark.parametrize("how", ["coadd", "InverseVarianceCombiner"])
@pytest.mark.parametrize("kind", ["undithered", "whole"])
def test_coadds_of_coadds_share_what_their_frames_do(nights, kind, how, tmp_path):
    check_parts(nights[kind], kind, "halves", how, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("how", ["coadd", "InverseVarianceCombiner", "written", "resampled"])
@pytest.mark.parametrize("parts", ["unlike", "in turn", "three"])
@pytest.mark.parametrize("kind", SHIFTS)
def test_other_parts_of_a_night(nights, kind, parts, how, tmp_path):
    check_parts(nights[kind], kind, parts, how, tmp_path)


@pytest.fixture(scope="module")
def repeated():
    """Nights whose four places are those of each part."""
    shifts = np.array([(7.0 * (i % 2) - 3, 7.0 * (i // 2 % 2) - 4) for i in range(N_LIGHTS)])
    SHIFTS["repeated"] = shifts
    yield make_nights(shifts)
    del SHIFTS["repeated"]


@pytest.mark.parametrize("how", ["coadd", "InverseVarianceCombiner"])
def test_a_pattern_that_is_repeated_is_shared(repeated, how, tmp_path):
    check_parts(repeated, "repeated", "halves", how, tmp_path)


def check_parts(nights, kind, parts, how, folder):
    every = []
    for night in nights:
        ccds = moved(night.ccds(), kind, resample)
        made = [coadded([ccds[i] for i in part])[0] for part in PARTS[parts]]
        if how == "written":
            made = [written(ccd, folder, k) for k, ccd in enumerate(made)]
        if how == "resampled":
            made[1:] = [resample(ccd, Alignment.translation(0, 0)) for ccd in made[1:]]
        if how == "InverseVarianceCombiner":
            result = InverseVarianceCombiner(made).average_combine(), 1.0
        else:
            result = coadded(made)
        every.append(pulls(*result, kind))
    print(f"{kind}, {parts}, {how}: {np.std(every):.3f}")
    assert 0.95 < np.std(every) < 1.06


@pytest.mark.parametrize("how", ["coadd", "InverseVarianceCombiner"])
def test_frames_that_were_multiplied_by_numbers_of_their_own(nights, how):
    every, sky, kept = [], SKY / EXPOSURE, {"handle_meta": "first_found"}
    for night in nights["undithered"]:
        ccds = [
            ccd.subtract(sky * ccd.unit, **kept).multiply((1.0, 4.0)[k % 2], **kept)
            for k, ccd in enumerate(night.calibrated)
        ]
        if how == "coadd":
            made = coadded(ccds)[0]
        else:
            made = InverseVarianceCombiner(ccds).average_combine()
        every.append((made.data / made.uncertainty.array)[14:49, 14:49])
    assert 0.95 < np.std(every) < 1.06


@pytest.mark.parametrize(
    ("cards", "says"),
    [
        ({"FLATCOR": "ccd=<CCDData>, flat=<CCDData>"}, "FLATCOR = 'ccd=<CCDData>, flat=<CCDData>'"),
        ({"SUBBIAS": "ccd=<CCDData>"}, "SUBBIAS = 'ccd=<CCDData>': not by astro_narrowband"),
        ({"BIASSUB": True}, "BIASSUB = True: not by astro_narrowband"),
    ],
)
def test_a_master_that_was_applied_elsewhere_is_said(rng, cards, says):
    camera = Detector(gain=1.0, read_noise=5.0)
    lights = [raw(rng.normal(500, 10, (40, 40)), 60.0) for _ in range(2)]
    for light in lights:
        light.header.update(cards)
    made = [calibrate(light, detector=camera) for light in lights]
    assert all(ccd.header[key] == value for ccd in made for key, value in cards.items())
    with pytest.warns(SharedNoiseWarning, match=says):
        InverseVarianceCombiner(made)


def test_what_others_joined_does_not_have_the_noise_of_one_frame(nights):
    ccds = nights["undithered"][0].ccds()[:2]
    ccds[0].header["NCOMBINE"] = 4
    with pytest.warns(SharedNoiseWarning, match="1 of 2 frames do not say"):
        InverseVarianceCombiner(ccds)


def test_masters_are_for_whole_frames(nights):
    night = nights["undithered"][0]
    with pytest.raises(InputError, match="masters is for whole frames"):
        coadd([ccd[8:40, :] for ccd in night.ccds()], masters=night.recipe, flux_scale="none")


def test_what_a_coadd_tells_is_there_for_the_next(nights):
    ccds = nights["undithered"][0].ccds()
    first = coadded(ccds[:8])[0]
    shared = SharedNoise.from_header(first.header)
    assert shared.masters == nights["undithered"][0].recipe.masters
    assert shared.exposure == pytest.approx(EXPOSURE)
    assert len(shared.places) == 1
    both = SharedNoise.from_header(coadded([first, coadded(ccds[8:])[0]])[0].header)
    assert both.exposure == pytest.approx(EXPOSURE)
    whole = SharedNoise.from_header(coadded(ccds)[0].header)
    assert both.offset == pytest.approx(whole.offset, rel=0.1)
    other = nights["undithered"][1].ccds()
    mixed = coadded([*ccds[:2], *other[:2]])[0]
    assert SharedNoise.from_header(mixed.header) is None
    with pytest.raises(InputError, match="is no single frame"):
        coadd([first], masters=nights["undithered"][0].recipe)
    header = first.header.copy()
    for text in ("1,0", "a,b,c,d,e", "1,1,0,nan,0"):
        header["MNPLACES"] = text
        assert SharedNoise.from_header(header) is None


def test_the_combiner_says_what_it_cannot_know(rng):
    def images(unit):
        error = StdDevUncertainty(np.ones((40, 40)))
        return [CCDData(rng.normal(5, 1, (40, 40)), unit=unit, uncertainty=error)] * 3

    with pytest.warns(SharedNoiseWarning, match="3 of 3 frames do not say"):
        InverseVarianceCombiner(images("electron/s"))
    InverseVarianceCombiner(images("adu"))


def test_combine_says_that_it_takes_all_noise_to_average_down(nights):
    ccds = nights["undithered"][0].ccds()[:3]
    with pytest.warns(SharedNoiseWarning, match="use coadd or InverseVarianceCombiner"):
        made = combine(ccds)
    assert "MASTERID" not in made.header
    combine(ccds, uncertainty="scatter")
