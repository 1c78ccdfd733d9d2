"""What headers say, in whatever spelling, and what is refused."""

import math
import re
import warnings

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import assume, given
from hypothesis import strategies as st

from astro_narrowband._engine import headers as kw
from astro_narrowband.exceptions import InputError


def header(*cards):
    """A header of cards as they are written on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fits.Header.fromstring(
            "".join(card.ljust(80)[:80] for card in cards) + "END".ljust(80)
        )


@pytest.mark.parametrize(
    ("cards", "seconds"),
    [
        (["EXPTIME =                300.0"], 300),
        (["EXPTIME = '300.0   '"], 300),
        (["EXPTIME = '0,5'"], 0.5),
        (["EXPTIME =              6,4E-05 / Total Exposure Time (s)"], 6.4e-5),
        (["EXPTIME = 1.5D2"], 150),
        (["EXPOSURE=                   60"], 60),
        (["EXPTIME =", "EXPOSURE= 60."], 60),
        (["EXPTIME = -1", "EXPOSURE= 60."], 60),
        (["EXPTIME = 'unknown'", "EXPOSURE= 60."], 60),
        (["EXPTIME = 0", "EXPOSURE= 60."], 60),
        (["EXPTIME = 60.", "EXPOSURE= 120."], 60),
        (["EXPTIME = 60.", "EXPTIME = 60.0000001"], 60),
        (["EXPTIME = '60 s'"], 60),
        (["EXPTIME = '60.0sec'"], 60),
        (["EXPTIME = '2 min'"], 120),
        (["EXPTIME = 60 s"], 60),
        (["EXPTIME = 60000 / [ms] exposure"], 60),
        (["EXPOSURE= 1500 / Exposure time in milliseconds"], 1.5),
        (["EXPOINUS= 100000000 / Exposure time in us"], 100),
        (["EXPTIME = 0.0"], 0),
        (["EXPTIME =60"], 60),
    ],
)
def test_exposure(cards, seconds):
    head = header(*cards)
    before = [card._image for card in head.cards]
    assert kw.read_exposure(head) == pytest.approx(seconds, rel=1e-6)
    assert [card._image for card in head.cards] == before


@pytest.mark.parametrize(
    ("cards", "named"),
    [
        ([], "EXPTIME is missing"),
        (["EXPTIME = -1"], "EXPTIME = -1 is below zero"),
        (["EXPTIME ="], "EXPTIME is there and has no value"),
        (["EXPTIME = ''"], "EXPTIME is there and has no value"),
        (["EXPTIME = 'long'"], "EXPTIME = 'long' is not a number"),
        (["EXPTIME = 'nan'"], "EXPTIME = 'nan'"),
        (["EXPTIME = NaN"], "EXPTIME = 'NaN'"),
        (["EXPTIME = T"], "EXPTIME = True"),
        (["EXPTIME = (1, 2)"], "EXPTIME"),
        (["EXPTIME = '1,200'"], "thousands"),
        (["EXPTIME = 300000000"], "longer than a day"),
        (["EXPTIME = 1E-308"], "below a microsecond"),
        (["EXPTIME = 60.", "EXPTIME = 61."], "60.0 and 61.0"),
        (["EXPTIME = 1E400"], "EXPTIME"),
    ],
)
def test_exposure_that_cannot_be_believed(cards, named):
    with pytest.raises(InputError, match=named.replace("(", r"\(")):
        kw.read_exposure(header(*cards))


@given(
    st.just(0.0) | st.floats(1e-6, 86400),
    st.sampled_from(["{!r}", "{:.6f}", "{:.7E}"]),
    st.booleans(),
)
def test_exposure_round_trips(seconds, style, comma):
    text = style.format(seconds)
    written = text.replace(".", ",") if comma else text
    assume(not re.fullmatch(r"\d{1,3},\d{3}", written))  # may be thousands: refused
    assert kw.read_exposure({"EXPTIME": written}) == pytest.approx(float(text), rel=1e-12, abs=0)


@given(st.floats(allow_nan=True, allow_infinity=True) | st.text(max_size=20) | st.booleans())
def test_exposure_is_a_time_or_refused(value):
    try:
        found = kw.read_exposure({"EXPTIME": value})
    except InputError:
        return
    assert 0 <= found <= 86400


@pytest.mark.parametrize(
    ("cards", "celsius"),
    [
        (["CCD-TEMP= -20.1", "SET-TEMP= -25"], -20.1),
        (["SET-TEMP= -25"], -25),
        (["CCD-TEMP= '-10,5'"], -10.5),
        (["CCD-TEMP= 180.2"], 180.2 - 273.15),
        (["CCD-TEMP= 0.0"], 0),
        (["CCD-TEMP= -999", "SET-TEMP= -25"], -25),
        ([], None),
    ],
)
def test_temperature(cards, celsius):
    found = kw.read_temperature(header(*cards))
    assert found == (None if celsius is None else pytest.approx(celsius, abs=1e-5))


@pytest.mark.parametrize("card", ["CCD-TEMP= -999.", "CCD-TEMP= 'cold'", "CCD-TEMP= 1E9"])
def test_temperature_that_is_none(card):
    assert kw.read_temperature(header(card)) is None
    assert kw.temperature_trouble(header(card)).startswith("CCD-TEMP = ")
    assert kw.temperature_trouble(header(card, "SET-TEMP= -25")) == ""


@pytest.mark.parametrize(
    ("cards", "found"),
    [
        (["GAIN = '1.22'"], (1.22, "GAIN")),
        (["EGAIN = 0.25", "GAIN = 100"], (0.25, "EGAIN")),
        (["EGAIN = 2"], (2.0, "EGAIN")),
        (["GAIN = 2 / [e-/ADU]"], (2.0, "GAIN")),
        (["GAIN = 2 / electrons per ADU"], (2.0, "GAIN")),
        (["EGAIN = 0", "GAIN = 1.9"], (1.9, "GAIN")),
        ([], None),
    ],
)
def test_gain(cards, found):
    assert (
        kw.read_gain(
            header(
                *[
                    c.replace("GAIN = ", "GAIN    = ")
                    if c.startswith("GAIN")
                    else c.replace("EGAIN = ", "EGAIN   = ")
                    for c in cards
                ]
            )
        )
        == found
    )


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ("GAIN    = 100", "camera setting"),
        ("GAIN    = 1", "camera setting"),
        ("GAIN    = 180.5", "camera setting"),
        ("GAIN    = 0", "camera setting"),
        ("GAIN    = -1.5", "not a gain"),
        ("GAIN    = 'high'", "not a number"),
        ("GAIN    = 0.5 / ADU per electron", "adu/electron"),
        ("EGAIN   = -1.0", "EGAIN"),
        ("ISOSPEED= 800.5", "camera setting"),
    ],
)
def test_gain_that_is_none(card, why):
    with pytest.raises(InputError, match=why):
        kw.read_gain(header(card))


def test_noise_and_saturation():
    assert kw.read_noise(header("RDNOISE = '14.0'")) == (14.0, "RDNOISE")
    assert kw.read_noise(header()) is None
    assert kw.read_saturation(header("SATURATE= 65535")) == (65535.0, "SATURATE")
    for card in ("RDNOISE = 0", "RDNOISE = -3", "RDNOISE = 'x'", "RDNOISE = 5 / in ADU"):
        with pytest.raises(InputError, match="RDNOISE"):
            kw.read_noise(header(card))
    with pytest.raises(InputError, match="SATURATE"):
        kw.read_saturation(header("SATURATE= 0"))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("BIAS", "bias"),
        ("Bias Frame", "bias"),
        ("zero", "bias"),
        ("Offset", "bias"),
        ("DARK", "dark"),
        (" dark frame ", "dark"),
        ("Master Dark", "master dark"),
        ("masterFlat", "master flat"),
        ("Flat Field", "flat"),
        ("FLAT,LAMP", "flat"),
        ("dome flat", "flat"),
        ("Twilight Flat", "flat"),
        ("DarkFlat", "flat-dark"),
        ("Flat Dark", "flat-dark"),
        ("object  ", "light"),
        ("Light Frame", "light"),
        ("SCIENCE", "light"),
        ("focus", "other"),
        ("Snapshot", "other"),
        ("weird", ""),
    ],
)
@pytest.mark.parametrize("keyword", ["IMAGETYP", "IMAGTYP", "FRAME", "OBSTYPE"])
def test_kind(value, kind, keyword):
    assert kw.read_kind({keyword: value}) == (kind, keyword)


def test_kind_of_two_keywords():
    assert kw.read_kind({"IMAGETYP": "weird", "FRAME": "Dark"}) == ("dark", "FRAME")
    assert kw.read_kind({}) is None


@pytest.mark.parametrize(
    ("cards", "text"),
    [
        ({"FILTER": "Ha"}, "Ha"),
        ({"FILTER1": "Clear", "FILTER2": "SII"}, "SII"),
        ({"FILTER": "Ha", "FILTER2": "ND"}, "Ha+ND"),
        ({"FILTER": "Ha", "FILTER1": "h-a"}, "Ha"),
        ({"FILTER1": "Open", "FILTER2": "Clear"}, "Open"),
        ({"FILTER": "  "}, ""),
        ({"FILTER": 48}, "48"),
        ({}, ""),
    ],
)
def test_filter(cards, text):
    assert kw.read_filter(cards) == text


@pytest.mark.parametrize(
    ("cards", "binning"),
    [
        ({"XBINNING": 2, "YBINNING": 2}, (2, 2)),
        ({"XBINNING": "2"}, (2, 2)),
        ({"CCDSUM": "1 2"}, (1, 2)),
        ({"BINNING": "2x2"}, (2, 2)),
        ({"BINNING": 3}, (3, 3)),
        ({"BINX": 1.0, "BINY": 1.0}, (1, 1)),
        ({}, None),
    ],
)
def test_binning(cards, binning):
    assert kw.read_binning(cards) == binning


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", 1e9, True])
def test_binning_that_is_none(value):
    with pytest.raises(InputError, match="XBINNING"):
        kw.read_binning({"XBINNING": value})


def test_window():
    assert kw.read_window({"XORGSUBF": 10, "YORGSUBF": 20}) == (10, 20)
    assert kw.read_window({"CCDSEC": "[11:100,21:200]"}) == (10, 20)
    assert kw.read_window({}) is None
    with pytest.raises(InputError, match="XORGSUBF"):
        kw.read_window({"XORGSUBF": "left"})


def test_sections():
    section = {"BIASSEC": "[   4:  13,   1: 520]", "TRIMSEC": "[17:528,1:520]"}
    assert kw.read_overscan(section, (520, 536)) == (slice(0, 520), slice(3, 13))
    assert kw.read_trim(section, (520, 536)) == (slice(0, 520), slice(16, 528))
    assert kw.read_trim({"TRIMSEC": "[1:536,1:520]"}, (520, 536)) is None
    assert kw.read_trim({}, (5, 5)) is None
    for text in ("[0:5,1:5]", "[1:6,1:5]", "[3:2,1:5]", "1:5,1:5", "[1:5]", "[9e9:1,1:1]"):
        with pytest.raises(InputError, match="TRIMSEC"):
            kw.read_trim({"TRIMSEC": text}, (5, 5))


@pytest.mark.parametrize(
    ("cards", "iso"),
    [
        ({"DATE-OBS": "2021-09-17 T09:35:30"}, "2021-09-17T09:35:30"),
        ({"DATE-OBS": "2021-09-17T09:35:30+02:00"}, "2021-09-17T07:35:30"),
        ({"DATE-OBS": "2013-07-13", "UT": "00:57:33"}, "2013-07-13T00:57:33"),
        ({"DATE-OBS": "26/10/92"}, ""),
        ({"DATE-OBS": "2021-13-45"}, ""),
        ({"DATE-OBS": 5}, ""),
        ({}, ""),
    ],
)
def test_date(cards, iso):
    assert kw.read_date(cards) == iso


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"BIASSUB": True}, "BIASSUB"),
        ({"FLATCOR": "done"}, "FLATCOR"),
        ({"ZEROCOR": "Jan 1 Zero level correction image is zero"}, "ZEROCOR"),
        ({"CALSTAT": "BDF"}, "CALSTAT"),
        ({"NCOMBINE": 20}, "NCOMBINE"),
        ({"BUNIT": "electron/s"}, "BUNIT"),
        ({"BUNIT": "e-"}, "BUNIT"),
        ({"BUNIT": "ADU/s"}, "BUNIT"),
        ({"BIASSUB": False, "FLATCOR": "no", "CALSTAT": "", "NCOMBINE": 1, "BUNIT": "adu"}, ""),
        ({"BUNIT": "counts"}, ""),
        ({"BUNIT": "DN"}, ""),
        ({}, ""),
    ],
)
def test_reduced(cards, said):
    found = kw.reduced_by(cards)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_bayer():
    assert kw.read_bayer({"BAYERPAT": "GRBG"}) == "GRBG"
    assert kw.read_bayer({"BAYERPAT": "none"}) == ""
    assert kw.read_bayer({}) == ""
    with pytest.raises(InputError, match="BAYERPAT"):
        kw.read_bayer({"BAYERPAT": "X-Trans"})


def test_object_is_one_clean_line():
    assert kw.read_object({"OBJECT": " M 31\x1b[31m\n\u202egpj "}) == "M 31 [31m gpj"
    assert kw.read_object({"OBJECT": "Unknown", "TARGET": ""}) == ""
    damaged = header("OBJECT  = 'M\x0131'")
    assert kw.read_object(damaged) == "M 31"


def test_settings_as_text():
    assert kw.read_gain_setting({"GAIN": 120}) == kw.read_gain_setting({"GAIN": "120.0"}) == "120"
    assert kw.read_gain_setting({"GAIN": 120, "EGAIN": 0.25}) == "120 e0.25"
    assert kw.read_gain_setting({}) == ""
    assert kw.read_offset({"OFFSET": 9.0}) == "9"
    assert kw.read_readout({"READOUTM": "750 KHz "}) == "750 khz"
    assert kw.read_camera({"INSTRUME": "ZWO ASI-120"}) == "zwoasi120"


def test_spellings_of_the_user(tmp_path):
    path = tmp_path / "spellings.toml"
    path.write_text(
        '[keywords]\nexposure = ["BELICHT"]\n[kinds]\n"Himmels-Feld" = "flat"\n'
        '[filters]\n"breit" = "Halpha"\n'
    )
    mine = kw.Spellings.read(path)
    assert kw.HeaderReader(mine).read_exposure({"BELICHT": 5, "EXPTIME": 6}) == 5
    assert kw.HeaderReader(mine).read_kind({"IMAGETYP": "HIMMELSFELD"}) == ("flat", "IMAGETYP")
    assert mine.filters == {"breit": "Halpha"}


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "[kinds]\na = 'moon'",
        "[keywords]\ncolour = ['C']",
        "[kinds",
        "[kinds]\na = 1",
        "keywords = 3",
    ],
)
def test_spellings_that_cannot_be_used(tmp_path, text):
    path = tmp_path / "spellings.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="spellings"):
        kw.Spellings.read(path)


def test_missing_spellings(tmp_path):
    with pytest.raises(InputError, match="no spellings"):
        kw.Spellings.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "number", [1, 1.5, np.float32(2.5), np.int16(3), "1", " 1.0 ", "-.5", "+2"]
)
def test_numbers(number):
    assert kw.parse_number(number) == float(number)


@pytest.mark.parametrize(
    "text", ["", " ", "1_000", "１", "0x10", "1,2,3", "1.2.3", "e5", "--1", None]
)
def test_no_numbers(text):
    with pytest.raises(ValueError, match="is"):
        kw.parse_number(text)


def test_number_of_many_digits_is_finite():
    with pytest.raises(ValueError, match="finite"):
        kw.parse_number("1e999")
    assert math.isfinite(kw.parse_number("9" * 300))
