"""Nights as people take them, as far as a whole run is needed to tell that they come out right."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable

from astro_narrowband.cli import main
from astro_narrowband.exceptions import InputError
from astro_narrowband.night.pipeline import Settings, inspection, reduce_night
from astro_narrowband.night.table import FrameTable

pytestmark = pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")

N, SKY, SHIFTS = 96, 5.0, [(0, 0), (2, -1), (-1, 3), (3, 2)]


class Wild:
    """A folder that a camera writes frames into; of every light the scene is known."""

    def __init__(self, folder, camera, **cards):
        self.folder, self.camera = folder, camera
        self.cards = {"INSTRUME": "cam", "XBINNING": 1, "YBINNING": 1, "CCD-TEMP": -10.0, **cards}
        self.number = 0
        field = np.random.default_rng(5)
        places = field.uniform(12, N - 13, (400, 2))
        kept = []
        for place in places:
            if all(np.hypot(*(place - other)) > 11 for other in kept):
                kept.append(place)
        self.stars = np.array(kept[:22])
        self.flux = 10 ** field.uniform(2.2, 3.2, len(self.stars))

    def scene(self, shift=(0, 0), sigma=1.3, field=0):
        y, x = np.mgrid[:N, :N]
        image = np.full((N, N), SKY)
        stars = self.stars if not field else (self.stars * 7 * field) % (N - 20) + 10
        for (a, b), f in zip(stars, self.flux, strict=True):
            square = (x - a - shift[0]) ** 2 + (y - b - shift[1]) ** 2
            image += f / (2 * np.pi * sigma**2) * np.exp(-square / (2 * sigma**2))
        return image

    def add(self, name, kind, exposure, light=0.0, **cards):
        self.number += 1
        date = f"2024-10-05T20:{self.number // 60:02d}:{self.number % 60:02d}"
        cards = {"IMAGETYP": kind, "DATE-OBS": date, **self.cards, **cards}
        cards = {key.replace("_", "-"): value for key, value in cards.items()}
        frame = self.camera.frame(exposure, light)
        for key, value in cards.items():
            if value is None:
                frame.header.remove(key, ignore_missing=True)
            else:
                frame.header[key] = value
        path = self.folder / f"{name}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write(path)
        return path

    def biases(self, n=4, name="bias", **cards):
        for i in range(n):
            self.add(f"{name}_{i}", "Bias Frame", 0.0, **cards)

    def darks(self, exposure=60.0, n=3, name="dark", **cards):
        for i in range(n):
            self.add(f"{name}_{exposure:g}_{i}", "Dark Frame", exposure, **cards)

    def flats(self, beam="Ha", n=3, name="flat", exposure=5.0, **cards):
        for i in range(n):
            self.add(f"{name}_{beam}_{i}", "Flat Field", exposure, 20000.0, FILTER=beam, **cards)

    def lights(self, beam="Ha", n=3, name="light", exposure=60.0, field=0, sigma=1.3, **cards):
        cards = {"FILTER": beam, "OBJECT": "NGC 7000", **cards}
        for i in range(n):
            light = exposure * self.scene(SHIFTS[i], sigma, field)
            self.add(f"{name}_{beam}_{i}", "Light Frame", exposure, light, **cards)

    def all_of(self, beam="Ha", **cards):
        self.biases()
        self.darks()
        self.flats(beam)
        self.lights(beam, **cards)
        return self


@pytest.fixture
def wild(tmp_path, make_camera):
    def make(name="night", *, seed=1, **cards):
        return Wild(tmp_path / name, make_camera(seed=seed, shape=(N, N), n_hot=5), **cards)

    return make


def reduced(night, output, **settings):
    return reduce_night(night, output, settings=Settings(**settings))


def said(record):
    return " | ".join(message["text"] for message in record["messages"])


def sky_of(output, name="NGC_7000-Halpha"):
    return float(np.nanmedian(CCDData.read(output / f"coadd-{name}.fits").data))


def true_sky(night, **options):
    return float(np.median(night.scene(**options)))


# ------------------------------------------------------------------ a library of masters


@pytest.mark.parametrize("colour", [False, True])
def test_calibration_frames_alone_become_masters_that_serve_a_later_night(wild, tmp_path, colour):
    cards, beam = ({"BAYERPAT": "GRBG"}, "L-eXtreme") if colour else ({}, "Ha")
    library, night = wild("library", **cards), wild("night", **cards)
    library.biases()
    library.darks(20.0)
    library.darks(60.0)
    library.flats(beam)
    night.lights(beam, sigma=2.6 if colour else 1.3)
    record = reduced(library.folder, tmp_path / "cal")
    assert record["status"] == 0
    assert "no light is there" in said(record)
    assert {m["kind"] for m in record["masters"]} == {"bias", "dark", "flat"}
    (dark,) = [m for m in record["masters"] if m["kind"] == "dark"]
    assert dark["reach"] > 60
    page = (tmp_path / "cal" / "report.html").read_text(encoding="utf-8")
    assert "Calibration frames" in page
    assert "not reduced" not in page
    record = reduced(night.folder, tmp_path / "out", calibration=(tmp_path / "cal" / "masters",))
    assert record["status"] == 0
    names = ("Halpha", "OIII") if colour else ("Halpha",)
    for name in names:
        truth = true_sky(night, sigma=2.6 if colour else 1.3)
        # (In 48 pixels stars do not tell the transparency to better than 2 %.)
        close = pytest.approx(truth, rel=0.05 if colour else 0.02)
        assert sky_of(tmp_path / "out", f"NGC_7000-{name}") == close


@pytest.mark.usefixtures("without_page")
def test_set_points_become_models_of_their_own(wild, tmp_path):
    library = wild("library")
    library.biases()
    library.darks(60.0, CCD_TEMP=-10.0)
    library.darks(60.0, name="cold", CCD_TEMP=-20.0)
    library.flats()
    record = reduced(library.folder, tmp_path / "cal")
    assert record["status"] == 0
    darks = [m for m in record["masters"] if m["kind"] == "dark"]
    assert sorted(m["temperatures"][0] for m in darks) == [-20.0, -10.0]
    assert len([m for m in record["masters"] if m["kind"] == "bias"]) == 1


def test_flats_that_nobody_can_tell_apart_do_not_cost_the_library(wild, tmp_path, capsys):
    library = wild("library", EGAIN=None, GAIN=120)
    library.biases()
    library.darks()
    library.flats(n=2)
    library.camera.flat = np.rot90(library.camera.flat * np.linspace(0.7, 1.3, N))
    library.flats(n=2, name="turned")
    assert main(["reduce", str(library.folder), "-o", str(tmp_path / "cal")]) == 0
    shown = capsys.readouterr()
    assert "its flats have 2 shapes" in shown.err
    assert "masters/dark.fits" in shown.out
    assert not list((tmp_path / "cal" / "masters").glob("flat*"))


@pytest.mark.usefixtures("without_page")
def test_lights_that_are_all_left_out_are_no_library(wild, tmp_path):
    night = wild()
    night.biases()
    night.darks()
    night.lights(FLATCOR=True)
    with pytest.raises(InputError, match="no light to reduce"):
        reduced(night.folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("masters/*"))


@pytest.mark.usefixtures("without_page")
def test_masters_alone_are_nothing_to_make_masters_of(wild, tmp_path):
    night = wild()
    night.biases(n=2, NCOMBINE=20)
    with pytest.raises(InputError, match="no light to reduce"):
        reduced(night.folder, tmp_path / "out")


@pytest.mark.usefixtures("without_page")
def test_inspect_says_what_a_library_becomes(wild):
    library = wild("library")
    library.biases()
    library.darks()
    lines, status = inspection(FrameTable.from_paths(library.folder))
    assert status == 0
    assert lines[0].startswith("calibration: masters")
    assert any("no light is there" in line for line in lines)


@pytest.mark.usefixtures("without_page")
def test_a_library_that_is_used_again_is_not_made_again(wild, tmp_path):
    library = wild("library")
    library.biases()
    library.darks()
    first = reduced(library.folder, tmp_path / "cal")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cal" / "masters").iterdir()}
    second = reduced(library.folder, tmp_path / "cal")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    masters = [json.dumps(record["masters"], sort_keys=True) for record in (first, second)]
    assert masters[0] == masters[1]


# ------------------------------------------------------------------ what headers leave unsaid


def _without(night, **cards):
    """Neither bias nor read noise, as cameras of today are taught to be used."""
    night.cards |= {"RDNOISE": None, **cards}
    night.darks()
    night.darks(5.0, name="flatdark")
    night.flats(n=4)
    night.lights()


def _zero_to_one(night):
    night.all_of(RDNOISE=None)
    for path in night.folder.glob("*.fits"):
        with fits.open(path) as hdul:
            data, header = (hdul[0].data / 65535).astype("f4"), hdul[0].header
        header.remove("BUNIT", ignore_missing=True)
        fits.writeto(path, data, header, overwrite=True)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (_without, 0.01),
        (lambda night: _without(night, EGAIN=None, GAIN=100), 0.03),
        (_zero_to_one, 0.02),
    ],
    ids=["no RDNOISE", "no EGAIN either", "0 to 1"],
)
@pytest.mark.usefixtures("without_page")
def test_what_no_header_says_is_measured(wild, tmp_path, make, tolerance):
    night = wild()
    make(night)
    assert inspection(FrameTable.from_paths(night.folder))[1] == 0
    assert reduced(night.folder, tmp_path / "out")["status"] == 0
    assert sky_of(tmp_path / "out") == pytest.approx(true_sky(night), rel=tolerance)


@pytest.mark.usefixtures("without_page")
def test_lights_alone_tell_their_gain_by_their_colours_or_are_refused_alike(wild, tmp_path):
    night = wild(EGAIN=None, GAIN=100, BAYERPAT="RGGB")
    sky = np.where(np.indices((N, N)).sum(axis=0) % 2, 50.0, 400.0)
    night.scene = lambda *arguments: Wild.scene(night, *arguments) - SKY + sky
    night.lights(n=4)
    settings = Settings(without=("flat", "dark", "bias"), bayer="superpixel")
    table = FrameTable.from_paths(night.folder, bayer="superpixel")
    lines, status = inspection(table, settings=settings)
    record = reduce_night(night.folder, tmp_path / "out", settings=settings)
    assert status == record["status"] == 0
    assert "measured from the noise of the sky" in said(record)
    assert "measured from the noise of the sky" in "\n".join(lines)
    for path in sorted(night.folder.glob("*.fits"))[1:]:
        path.unlink()
    assert (
        inspection(FrameTable.from_paths(night.folder, bayer="superpixel"), settings=settings)[1]
        == 3
    )
    record = reduce_night(night.folder, tmp_path / "out", settings=settings)
    assert record["status"] == 3
    assert "--gain" in said(record)


@pytest.mark.usefixtures("without_page")
def test_raw_darks_that_lost_their_bias_are_refused(wild, tmp_path):
    night = wild()
    night.biases()
    night.flats()
    night.lights()
    night.camera.bias = night.camera.bias * 0
    night.darks()
    record = reduced(night.folder, tmp_path / "out")
    assert record["status"] == inspection(FrameTable.from_paths(night.folder))[1] == 3
    assert "lies below its bias" in said(record)


# ------------------------------------------------------------------ before and after


def _text_temperature(night):
    night.cards["CCD-TEMP"] = "off"
    night.all_of()


def _text_pedestal(night):
    night.cards["PEDESTAL"] = "yes"
    night.all_of()


def _other_offset(night):
    night.cards["OFFSET"] = 50
    night.all_of()
    night.biases(name="early", OFFSET=10)


def _other_read_mode(night):
    night.cards["READOUTM"] = "high gain"
    night.biases()
    night.darks(READOUTM="photographic")
    night.flats()
    night.lights()


def _comma(night):
    night.cards |= {"EGAIN": "0,6", "RDNOISE": "5,0", "CCD-TEMP": "-10,0"}
    night.all_of()


def _short_darks(night):
    night.biases()
    night.darks(2.0)
    night.flats()
    night.lights(exposure=600.0)


def _no_gain(night):
    night.cards |= {"EGAIN": None, "GAIN": 120}
    night.biases(n=1)
    night.darks()
    night.flats(n=1)
    night.lights()


def _lost_bias(night):
    night.cards |= {"RDNOISE": None}
    night.flats()
    night.lights()
    night.camera.bias = night.camera.bias * 0
    night.add("master_dark", "Master Dark", 60.0, NCOMBINE=10)


def _overscan(night):
    night.cards |= {"BIASSEC": f"[1:8,1:{N}]", "TRIMSEC": f"[9:{N},1:{N}]"}
    night.camera.flat = night.camera.flat * (np.arange(N) >= 8)
    night.biases()
    night.darks(10.0)
    night.flats()
    night.lights()


def _faint_flats(night):
    night.camera.flat = night.camera.flat / 2000
    night.biases()
    night.darks()
    night.flats()
    night.camera.flat = night.camera.flat * 2000
    night.lights()


def _turned(night):
    night.camera.flat = np.linspace(0.7, 1.3, N)[None, :] * np.ones((N, 1))
    night.all_of(ROTATANG=5.0)
    night.camera.flat = night.camera.flat.T
    night.flats(name="turned", ROTATANG=95.0)


def _no_pattern(night):
    night.all_of("L-eXtreme", BAYERPAT="RGGB")


def _calibrated_too(night):
    night.all_of(CALSTAT="BD")


def _lights_only(night):
    night.lights()


@pytest.mark.long
@pytest.mark.parametrize(
    "make",
    [
        _lost_bias,
        _overscan,
        _faint_flats,
        _turned,
        _no_pattern,
        _calibrated_too,
        _lights_only,
        _zero_to_one,
        _without,
        _text_temperature,
        _text_pedestal,
        _other_offset,
        _other_read_mode,
        _comma,
        _short_darks,
        _no_gain,
    ],
)
def test_inspect_ends_as_reduce_does_and_says_what_it_will_say(wild, tmp_path, make):
    night = wild()
    make(night)
    lines, status = inspection(FrameTable.from_paths(night.folder))
    try:
        record = reduced(night.folder, tmp_path / "out")
    except InputError:  # no light is left
        assert status == 3
        return
    assert status == record["status"]
    verdicts = FrameTable.from_paths(night.folder)
    inspection(verdicts)
    table = QTable.read(tmp_path / "out" / "frames.ecsv")
    assert [row.verdict for row in verdicts] == list(table["verdict"])
    told = "\n".join(lines)
    for message in record["messages"]:
        # What darks cost is said in other words.
        assert message["text"].partition("not reduced: ")[2][:30] in told
        assert (
            message["text"] in told or "not reduced" in message["text"] or "dark" in message["text"]
        )


# ------------------------------------------------------------------ the rotator


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.usefixtures("without_page")
def test_a_turn_at_the_meridian_with_flats_of_one_side(wild, tmp_path, follows):
    night = wild()
    night.camera.flat = np.linspace(0.7, 1.3, N)[None, :] * np.linspace(0.85, 1.15, N)[:, None]
    night.biases()
    night.darks()
    night.flats(ROTATANG=10.0)
    night.lights(n=2, ROTATANG=10.0)
    night.scene = lambda *_: Wild.scene(night)[::-1, ::-1]
    if not follows:  # the vignetting is of the telescope, and the camera turned in it
        night.camera.flat = night.camera.flat[::-1, ::-1]
    night.lights(n=2, name="after", exposure=61.0, ROTATANG=190.0)
    record = reduced(night.folder, tmp_path / "out")
    assert inspection(FrameTable.from_paths(night.folder))[1] == record["status"] == 0
    (group,) = record["groups"]
    assert "serve 2 lights at 190" in said(record)
    assert group["n_used"] == (4 if follows else 2)
    assert ("its flats look turned by 180 deg" in said(record)) is not follows
    assert sky_of(tmp_path / "out") == pytest.approx(true_sky(night), rel=0.02)


# ------------------------------------------------------------------ colours that nobody names


def coloured(night, beam):
    """A night of a colour camera that does not say so."""
    cell = np.array([[1.0, 0.6], [0.6, 0.45]])
    night.camera.flat = night.camera.flat * np.tile(cell, (N // 2, N // 2))
    return night.all_of(beam, sigma=2.6)


@pytest.mark.usefixtures("without_page")
def test_a_mosaic_that_its_header_does_not_name_is_told_by_its_pixels(wild, tmp_path):
    night = coloured(wild(), "Ha")
    lines, status = inspection(FrameTable.from_paths(night.folder))
    assert status == 3
    assert "its flats are a colour mosaic: neighbours differ by" in lines[1]
    record = reduced(night.folder, tmp_path / "mosaic", set_keywords=(("BAYERPAT", "RGGB"),))
    assert record["status"] == 0
    assert CCDData.read(tmp_path / "mosaic" / "coadd-NGC_7000-Halpha.fits").shape == (
        N // 2,
        N // 2,
    )
    assert reduced(night.folder, tmp_path / "mono", bayer="mono")["status"] == 0
    assert reduced(night.folder, tmp_path / "cell", bayer="superpixel")["status"] == 0


@pytest.mark.usefixtures("without_page")
def test_a_filter_of_two_lines_without_flats_needs_a_word_of_the_colours(wild, tmp_path):
    night = wild()
    night.biases()
    night.darks()
    night.lights("Optolong L-eNhance")
    record = reduced(night.folder, tmp_path / "out", without=("flat",))
    assert record["status"] == 3
    assert "--bayer mono" in said(record)
    record = reduced(night.folder, tmp_path / "mono", without=("flat",), bayer="mono")
    assert record["status"] == 0


@pytest.mark.usefixtures("without_page")
def test_grey_flats_tell_a_sensor_without_colours_whatever_the_filter(wild):
    night = wild().all_of("Optolong L-eNhance")
    assert inspection(FrameTable.from_paths(night.folder))[1] == 0
