"""Files to rows: what each is taken for, whatever it is, and none lost."""

import gzip
import math
import os
import pickle
import random
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from hypothesis import given
from hypothesis import strategies as st

from astro_narrowband._engine.headers import Spellings, read_exposure
from astro_narrowband._engine.text import path_text
from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.night.table import VERDICTS, FrameTable
from astro_narrowband.night.table import _row as frames_module
from astro_narrowband.night.table._facts import FactReader
from astro_narrowband.night.table._path_words import words_of


def put(path, kind=None, *, shape=(6, 8), seed=None, **cards):
    """Write a small frame; cards with ``_`` for ``-``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = seed if seed is not None else abs(hash(str(path))) % 60000
    header = fits.Header()
    if kind:
        header["IMAGETYP"] = kind
    for keyword, text in cards.items():
        header[keyword.replace("_", "-")] = text
    fits.PrimaryHDU(np.full(shape, value, np.uint16), header).writeto(path)
    return path


@pytest.fixture
def night(tmp_path):
    """Two lights, and one frame of each other kind."""
    folder = tmp_path / "night"
    put(folder / "b1.fits", "Bias Frame", EXPTIME=0.0)
    put(folder / "d1.fits", "Dark Frame", EXPTIME=60.0)
    put(folder / "f1.fits", "Flat Field", EXPTIME=3.0, FILTER="Ha")
    for i in (1, 2):
        put(folder / f"l{i}.fits", "Light Frame", EXPTIME=60.0, FILTER="H-alpha", OBJECT="M 31")
    return folder


def by_name(table):
    return {row.path.name: row for row in table}


# ------------------------------------------------------------------ real nights


def test_real_halpha_night(real_data):
    table = FrameTable.from_paths(real_data / "arcsat-eagle-halpha")
    assert table.counts == {"found": 20, "used": 19, "left out": 0, "ignored": 1}
    kinds = [row.kind for row in table if row.verdict == "used"]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "light": 2,
        "bias": 7,
        "dark": 5,
        "flat": 5,
    }
    assert {row.filter for row in table.of_kind("flat")} == {"Halpha"}
    assert {(r.object, r.filter, r.exposure) for r in table.of_kind("light")} == {
        ("EAGLE", "Halpha", 600.0)
    }
    assert not table.problems


def test_real_night_without_filters(real_data):
    table = FrameTable.from_paths(real_data / "orion-g3-m13")
    assert table.counts == {"found": 22, "used": 21, "left out": 0, "ignored": 1}
    assert {(r.object, r.filter) for r in table.of_kind("light")} == {("M13", "unknown")}


def test_real_darks_by_their_folders(real_data):
    table = FrameTable.from_paths(real_data / "zwo-asi120-darkseries", bayer="mono")
    assert {r.exposure for r in table.of_kind("dark")} == {10.0, 30.0, 50.0, 100.0}
    assert {r.exposure for r in table.of_kind("bias")} == {6.4e-5}
    assert len(table.of_kind("flat")) == 4
    # Without lights the flats stay whole, for masters.
    coloured = FrameTable.from_paths(real_data / "zwo-asi120-darkseries")
    assert {row.bayer for row in coloured.of_kind("flat")} == {"GRBG"}


def test_real_frames_that_are_reduced(real_data):
    table = FrameTable.from_paths(real_data / "stellarphot-eyuma")
    assert table.counts["used"] == 0
    assert any("FLATCOR" in row.reason for row in table if row.path.suffix == ".bz2")


# ------------------------------------------------------------------ the table


def test_rows(night):
    table = FrameTable.from_paths(night)
    assert table.counts == {"found": 5, "used": 5, "left out": 0, "ignored": 0}
    row = by_name(table)["l1.fits"]
    assert (row.kind, row.object, row.filter, row.exposure) == ("light", "M 31", "Halpha", 60.0)
    assert row.shape == (6, 8)
    assert math.isnan(row.temperature)
    assert row.open().read(slice(0, 6)).data.shape == (6, 8)
    assert [r.path.name for r in table.of_kind("light")] == ["l1.fits", "l2.fits"]


def test_table_comes_back_from_disk(night, tmp_path):
    (night / "notes\nof the night.txt").write_text("")
    put(night / "l3.fits", "Light", OBJECT="=1+1")
    table = FrameTable.from_paths(night)
    table.write(tmp_path / "frames.ecsv")
    back = QTable.read(tmp_path / "frames.ecsv")
    assert back.meta["files"] == table.counts
    assert list(back["verdict"]).count("used") == table.counts["used"]
    assert back["exposure"].unit == "s"
    assert "notes of the night.txt" in str(back["path"])


def test_lines_have_a_verdict_each(night):
    lines = FrameTable.from_paths(night).lines()
    assert len(lines) == 5
    assert all(line.split()[0] in ("used", "left", "ignored") for line in lines)


def test_empty_folder(tmp_path):
    table = FrameTable.from_paths(tmp_path)
    assert table.counts["found"] == 0
    assert len(table.table) == 0


def test_a_frame_is_left_out_when_no_group_is_left_that_it_serves(night):
    row = by_name(FrameTable.from_paths(night))["l1.fits"]
    row.serves = {"M 31 Halpha": "", "M 31 OIII": ""}
    row.leave_out_of("M 31 OIII", "no stars\nat all")
    assert (row.verdict, row.reason) == ("used", "not in M 31 OIII: no stars at all")
    row.leave_out_of("M 31 Halpha", "no stars at all")
    assert (row.verdict, row.reason) == ("left out", "no stars at all")


@pytest.mark.parametrize("name", ["gone", "a\0b"])
def test_missing_path(tmp_path, name):
    with pytest.raises(InputError, match="give a folder"):
        FrameTable.from_paths([tmp_path, tmp_path / name])


def test_problems_are_warnings_of_one_line(night):
    put(night / "l3.fits", "Light", FILTER="Slot\x203", EXPTIME=5.0)
    table = FrameTable.from_paths(night)
    with pytest.warns(NarrowbandWarning, match=r"l3.fits: FILTER = 'Slot 3': is not a known"):
        table.warn()


# ------------------------------------------------------------------ every file, once


def test_same_night_twice_is_one_night(night):
    once = FrameTable.from_paths(night)
    for paths in ([night, night], [night.parent, night], [night, night / "l1.fits"]):
        assert FrameTable.from_paths(paths).counts == once.counts


def test_two_nights(night, tmp_path):
    put(tmp_path / "second" / "l9.fits", "Light", EXPTIME=60.0, FILTER="Ha", OBJECT="m31")
    table = FrameTable.from_paths([tmp_path / "second", night])
    assert {row.object for row in table.of_kind("light")} == {"M 31"}
    assert len(table.of_kind("light")) == 3


def test_order_of_names_and_listing_does_not_matter(night, monkeypatch):
    expected = [vars(row) for row in FrameTable.from_paths(night)]
    listdir = os.listdir

    def shuffled(folder):
        names = listdir(folder)
        random.Random(1).shuffle(names)
        return names

    monkeypatch.setattr(os, "listdir", shuffled)
    assert [vars(row) for row in FrameTable.from_paths([night])] == expected
    files = [night / name for name in listdir(night)]
    keys = ("kind", "filter", "exposure", "verdict", "reason")
    found = [[getattr(r, k) for k in keys] for r in FrameTable.from_paths(files[::-1])]
    assert found == [[row[k] for k in keys] for row in expected]


def test_copies_are_used_once(night, rng):
    for name in ("l3.fits", "l4.fits"):
        data = rng.integers(0, 9999, (6, 8), np.uint16)
        header = fits.Header({"IMAGETYP": "Light", "EXPTIME": 60.0, "FILTER": "Ha"})
        fits.PrimaryHDU(data, header).writeto(night / name)
    shutil.copy(night / "l3.fits", night / "a copy.fits")
    (night / "z.fits.gz").write_bytes(gzip.compress((night / "l3.fits").read_bytes()))
    table = by_name(FrameTable.from_paths(night))
    verdicts = {name: row.verdict for name, row in table.items() if row.kind == "light"}
    assert [name for name, verdict in verdicts.items() if verdict != "used"] == [
        "l3.fits",
        "z.fits.gz",
    ]
    assert "is a copy of" in table["l3.fits"].reason
    assert table["l3.fits"].reason.endswith("a copy.fits")


def test_products_are_ignored_and_a_folder_to_be_passed_over_is_not_entered(night):
    put(night / "out" / "coadd.fits", "Light", EXPTIME=60.0)
    put(night / "out" / "masters" / "bias.fits", "Bias")
    put(night / "other" / "l.fits", "Light", EXPTIME=60.0)
    (night / "out" / "night.json").write_text('{"software": {}, "groups": []}')
    counts = FrameTable.from_paths(night, ignore=[night / "other"]).counts
    assert counts == {"found": 8, "used": 5, "left out": 0, "ignored": 3}
    (night / "out" / "night.json").write_text("{}")
    assert FrameTable.from_paths(night).counts["used"] == 8


def test_folders_that_cannot_be_entered_or_are_too_deep_are_left_out_by_name(night, monkeypatch):
    deep = night / "deep"
    deep.mkdir()
    for _ in range(90):
        deep = deep / "d"
        deep.mkdir()
    (deep / "light.fits").write_bytes(b"")
    (night / "locked").mkdir()
    listdir = os.listdir

    def closed(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr("os.listdir", closed)
    table = FrameTable.from_paths(night)
    reasons = {row.path.name: row.reason for row in table if row.verdict == "left out"}
    assert "cannot be listed (Permission denied)" in reasons["locked"]
    assert "64 folders deep" in reasons["d"]
    assert len(reasons) == 2


@pytest.mark.parametrize("name", ["m31.tiff", "m31.TIF", "m31.asdf", "m31.cr2", "m31.xisf"])
def test_frames_in_other_formats_are_left_out_with_what_to_do(night, name):
    (night / name).write_bytes(b"II*")
    (row,) = [row for row in FrameTable.from_paths(night) if row.path.name == name]
    assert row.verdict == "left out"
    assert "convert it to FITS" in row.reason


def test_one_filter_by_two_keywords_is_one_filter():
    facts = FactReader().facts({"IMAGETYP": "Light", "FILTER": "Halpha", "FILTER1": "Ha",
                                "EXPTIME": 60.0}, ("x",))  # fmt: skip
    assert facts.filter == "Halpha"
    facts = FactReader().facts({"IMAGETYP": "Light", "FILTER1": "Ha", "FILTER2": "OIII",
                                "EXPTIME": 60.0}, ("x",))  # fmt: skip
    assert facts.filter == "Halpha+OIII"


def test_simulated_truth_is_ignored(night):
    put(night / "truth" / "bias.fits", "truth")
    for name in ("stars.ecsv", "frames.ecsv"):
        (night / "truth" / name).write_text("")
    table = FrameTable.from_paths(night)
    assert table.counts["ignored"] == 3
    assert not table.problems


def test_checksum_is_verified(night):
    with fits.open(night / "l1.fits", mode="update") as hdul:
        hdul[0].add_checksum()
    content = bytearray((night / "l1.fits").read_bytes())
    content[-2879] ^= 1
    (night / "l1.fits").write_bytes(content)
    row = by_name(FrameTable.from_paths(night))["l1.fits"]
    assert (row.verdict, "DATASUM" in row.reason) == ("left out", True)


def test_headers_of_one_file_that_differ(night):
    primary, image = fits.PrimaryHDU(), fits.ImageHDU(np.zeros((6, 8)))
    primary.header["EXPTIME"], image.header["EXPTIME"] = 30.0, 60.0
    primary.header["IMAGETYP"] = "Light"
    fits.HDUList([primary, image]).writeto(night / "l3.fits")
    table = FrameTable.from_paths(night)
    assert by_name(table)["l3.fits"].exposure == 60.0
    assert any("EXPTIME" in str(p) and "differ" in str(p) for p in table.problems)


def test_a_bug_of_astropy_is_a_verdict(night, monkeypatch):
    def explode(*args, **kwargs):
        raise InputError(f"{night / 'l1.fits'}: exploded")

    monkeypatch.setattr(frames_module, "FitsFrame", explode)
    table = FrameTable.from_paths(night)
    assert table.counts["left out"] == 5
    assert by_name(table)["l1.fits"].reason == "exploded"


def test_names_that_are_no_text(night):
    bad = os.fsencode(night) + b"/\xff\x1b[2J\n.fits"
    os.rename(night / "l1.fits", bad)
    table = FrameTable.from_paths(night)
    assert table.counts["used"] == 5
    assert all(line.isprintable() for line in table.lines())
    assert path_text(os.fsdecode(bad)).endswith("\\xff [2J .fits")


# ------------------------------------------------------------------ header, name, user


def facts(header, path="x", **options):
    return FactReader(**options).facts(header, path.split("/"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("Bias/img1", "bias"),
        ("Dark/Dark_ASIImg_100sec_1", "dark"),
        ("night/Dark_ASIImg_100sec_1", ""),
        ("Dark Sky Site/M31/1", ""),
        ("M31/LightFrame_1", "light"),
        ("M31/darkframes/1", "dark"),
        ("FLATS/x", "flat"),
        ("Light_1069", "light"),
        ("darks/DarkFlat_1", "flat-dark"),
        ("flat-dark_01", "flat-dark"),
        ("flats/dark_01", "dark"),
        ("domeflat_H-Alpha_001 (1)", "flat"),
        ("lights/M31_0001", "light"),
        ("dark01", "dark"),
        ("Lights/Dark_Nebula_1", "light"),
        ("lights/dark_1", ""),
        ("darkness/x", ""),
        ("flatland/x", ""),
        ("M31/x", ""),
        ("highlight_1", ""),
        ("calibration/biases/raw/17", "bias"),
        ("master_dark", "master dark"),
        ("MasterFlat_Ha", "master flat"),
        ("masters/flat_1", "flat"),
        ("combined_dark_60.000", "master dark"),
        ("test/object/sub", ""),
        ("Zero_0001", "bias"),
    ],
)
def test_kind_by_name(path, kind):
    found = facts({"EXPTIME": 0.5}, path)
    if kind.startswith("master "):
        assert found.master
        kind = kind.removeprefix("master ")
    elif not kind:
        assert found.refusal.startswith("IMAGETYP is missing, and ")
        assert "neither" in found.refusal or "disagree" in found.refusal
    assert found.kind == kind


@pytest.mark.parametrize(
    ("cards", "path", "n"),
    [
        ({"FLAT_CNT": 10, "CALSTAT": "FB"}, "master_flat_corrected_with_flat_darks_10", 10),
        ({"HISTORY": "ImageIntegration.numberOfImages: 15"}, "masterFlat_BIN-1", 15),
        ({"SNAPSHOT": 9, "CALSTAT": "BDM"}, "Flat 1", 9),
        ({"COMBINED": True}, "flat_Ha", 0),
    ],
)
def test_masters_of_other_programs(cards, path, n):
    found = facts({"IMAGETYP": "Flat", "EXPTIME": 5.0, **cards}, path)
    assert (found.kind, found.master, found.n_combined, found.refusal) == ("flat", True, n, "")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("light_Ha_300s_001", "Halpha"),
        ("OIII/light_1", "OIII"),
        ("light-S-II-7nm", "SII"),
        ("domeflat_H-Alpha_001", "Halpha"),
        ("Ha/light_OIII_1", "OIII"),
        ("light_Ha_OIII", "unknown"),
        ("M31_S2_light", "unknown"),
        ("light_shab_1", "unknown"),
        ("LIGHT_L_1", "unknown"),
        ("light_Luminance_1", "Luminance"),
        ("light_hat", "unknown"),
    ],
)
def test_filter_by_name(path, name):
    found = facts({"EXPTIME": 60.0}, path)
    assert found.filter == name
    assert any("FILTER is missing" in str(note) for note in found.notes) == (name != "unknown")


@pytest.mark.parametrize(
    ("path", "seconds"),
    [
        ("dark_300s_1", 300),
        ("dark_0.5sec", 0.5),
        ("60s/dark_1", 60),
        ("dark_160s", 160),
        ("dark_500ms", 0.5),
        ("dark_60", math.nan),
        ("dark_60s_120s", math.nan),
        ("dark_N60s7", math.nan),
        ("dark_x60s", math.nan),
    ],
)
def test_exposure_by_name_is_never_a_part_of_a_word(path, seconds):
    assert facts({}, path).exposure == pytest.approx(seconds, nan_ok=True)


def test_header_before_name_before_user():
    head = {"IMAGETYP": "Light", "FILTER": "OIII", "EXPTIME": 60, "OBJECT": "M 31"}
    mine = {"FILTER": "SII", "EXPTIME": "5", "OBJECT": "M 33", "IMAGETYP": "dark", "CCD-TEMP": "-5"}
    found = facts(head, "M33/light_Ha_300s", set_keywords=mine)
    assert (found.filter, found.exposure, found.object) == ("OIII", 60, "M 31")
    assert found.temperature == -5
    found = facts({"IMAGETYP": "Light"}, "light_Ha_300s", set_keywords=mine)
    assert (found.filter, found.exposure, found.object) == ("Halpha", 300, "M 33")
    found = facts({}, "x", set_keywords={"IMAGETYP": "light", "EXPTIME": "5", "FILTER": "sii"})
    assert (found.kind, found.filter, found.exposure, found.refusal) == ("light", "SII", 5, "")


@pytest.mark.parametrize("time", [None, "long", "60,0", -1.0])
def test_frames_have_the_time_that_was_found(night, time):
    more = {} if time is None else {"EXPTIME": time}
    path = put(night / "light_60s_9.fits", "Light", FILTER="Ha", **more)
    rows = by_name(FrameTable.from_paths(night, set_keywords={"EGAIN": "0.5", "OBSERVER": "me"}))
    frame = pickle.loads(pickle.dumps(rows[path.name].open()))  # noqa: S301
    assert read_exposure(frame.header) == rows[path.name].exposure == 60.0
    assert (frame.header["EGAIN"], frame.header["OBSERVER"]) == (0.5, "me")
    assert fits.getheader(path).get("EGAIN") is None


def test_flats_that_a_program_called_lights():
    head = {"IMAGETYP": "Light Frame", "EXPTIME": 3.0}
    assert "says flat" in facts(head, "Flats/x").refusal
    assert "says dark" in facts(head, "dark_1").refusal
    assert facts(head, "Dark_Nebula_1").refusal == ""
    assert facts(head, "Dark Sky Site/M31/1").refusal == ""
    assert facts(head, "flats/M31/1").refusal == ""
    assert "OBJECT = 'dome flat'" in facts(head | {"OBJECT": "dome flat"}, "x").refusal
    assert facts({"OBJECT": "bias", "EXPTIME": 0.0}, "x").kind == "bias"
    assert facts(head | {"OBJECT": "The dark tower"}, "dark_tower_7").refusal == ""


def test_object_by_folder():
    assert facts({"IMAGETYP": "Light"}, "night/M13/x").object == "M13"
    assert facts({"IMAGETYP": "Light"}, "NGC 7000/lights/Ha/x").object == "NGC 7000"
    assert facts({"IMAGETYP": "Light"}, "20250603/raw/x").object == "unknown"


def test_spellings_of_the_user():
    mine = Spellings(kinds={"himmel": "flat"}, filters={"schmal": "Halpha"})
    found = facts({"FILTER": "Schmal", "EXPTIME": 1.0}, "Himmel_1", spellings=mine)
    assert (found.kind, found.filter, found.notes) == ("flat", "Halpha", [])


def test_words():
    assert words_of("domeflat_H-Alpha_001 (1)") == ["domeflat", "h", "alpha", "001", "1"]


KEYS = st.sampled_from(
    [
        "IMAGETYP",
        "EXPTIME",
        "EXPOSURE",
        "FILTER",
        "OBJECT",
        "CCD-TEMP",
        "XBINNING",
        "GAIN",
        "EGAIN",
        "BUNIT",
        "DATE-OBS",
        "BAYERPAT",
        "ROWORDER",
        "READOUTM",
        "XORGSUBF",
        "NCOMBINE",
        "CALSTAT",
    ]
)
VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)


@given(
    st.dictionaries(KEYS, VALUES, max_size=8), st.text(max_size=20).filter(lambda t: "/" not in t)
)
def test_any_header_gives_facts(head, name):
    found = FactReader().facts(head, ("folder", name))
    assert found.kind in ("", "bias", "dark", "flat", "light", "flat-dark", "other")
    assert found.kind or found.refusal
    assert math.isnan(found.exposure) or 0 <= found.exposure <= 86400
    if found.kind == "light" and not found.refusal:
        assert found.exposure > 0
        assert found.object
    for text in (found.object, found.refusal, *map(str, found.notes)):
        assert text.isprintable()


def test_verdicts_are_three():
    assert VERDICTS == ("used", "left out", "ignored")
