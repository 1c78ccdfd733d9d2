"""Names of filters: many spellings, one name."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astro_narrowband.filters import (
    FILTERS,
    canonical_filter,
    filter_key,
    is_known_filter,
    lines_of,
    pixels_of,
)

SPELLINGS = {
    "Halpha": [
        "Ha",
        "HA",
        "h-alpha",
        "H-Alpha",
        "H_alpha",
        "H alpha",
        "Hα",
        "H-α 7 nm",
        "Ha 7nm",
        "Ha7nm",
        "Ha_3.5nm",
        "H-alpha 6563",
        "Ha 656",
        "656nm H-alpha",
        "F656N",
        "Astrodon Ha 5nm",
        "HA35",
        "Baader H-alpha 7nm",
        "[Ha]",
        "Narrowband Ha",
        "Chroma-Ha 3nm f/2",
        "Halpha/6nm",
        "Halfa",
        "3 Ha",
        "Ha 50A",
        "Hydrogen Alpha",
        "ha\n",
    ],
    "OIII": [
        "[OIII]",
        "O III",
        "O-III",
        "O[III]",
        "Oiii",
        "OIII_3nm",
        "O3",
        "[O III] 5007",
        "OⅢ",
        "oxygen-III",
        "F502N",
        "OIII 65Å",
        "OIII (8.5 nm)",
    ],
    "SII": ["SII", "[S II]", "S II 672/12", "S2", "sii6716", "Sulphur II", "F673N", "SII (6nm)"],
    "NII": ["[N II] 6584", "NII", "N-II 3nm", "F658N"],
    "Hbeta": ["Hb", "H-beta", "Hβ", "H-β 8.5nm", "H_Beta 4861"],
    "none": ["None", "open", "EMPTY", "No Filter", "air"],
    "Luminance": ["L", "Lum", "luminance"],
    "g": ["g", "g'", "SDSS g", "sloan-g"],
    "V": ["V", "Johnson V", "Bessell-V"],
}


@pytest.mark.parametrize(
    ("name", "spelling"), [(n, s) for n, spellings in SPELLINGS.items() for s in spellings]
)
def test_spelling(name, spelling):
    assert canonical_filter(spelling) == name
    assert is_known_filter(name)


@pytest.mark.parametrize(
    "other",
    [
        "Ha 6649",
        "Ha+NII",
        "Slot 0",
        "H",
        "7nm",
        "O",
        "Halo",
        "Hat",
        "SIII",
        "OII",
        "Nova",
        "r2d2",
        "shab",
        "Ha off-band",
        "Ha continuum",
        "",
    ],
)
def test_another_filter_keeps_its_name(other):
    assert canonical_filter(other) == other
    assert not is_known_filter(other)


def test_case_tells_sloan_from_colours():
    assert [canonical_filter(f) for f in "gGrRiI"] == ["g", "G", "r", "R", "i", "I"]


def test_spellings_of_the_user_come_first():
    mine = {filter_key("Halfa breit"): "Halpha", filter_key("Ha"): "Ha-wide"}
    assert canonical_filter("HALFA-BREIT", spellings=mine) == "Halpha"
    assert canonical_filter("ha", spellings=mine) == "Ha-wide"
    assert is_known_filter("Ha-wide", spellings=mine)


CASES = st.sampled_from([s for f in FILTERS for s in f.spellings])
SIGNS = st.text(" _-.[]()", max_size=3)


@given(CASES, SIGNS, SIGNS, SIGNS, st.integers(0, 20), st.booleans())
@example("ha", "[", " ", "]", 1, True)
def test_case_blanks_and_signs_do_not_matter(spelling, before, inside, after, at, upper):
    at = min(at, len(spelling))
    text = before + spelling[:at] + inside + spelling[at:] + after
    assert canonical_filter(text.upper() if upper else text) == canonical_filter(spelling)


@given(st.text(max_size=30))
@example("Ha\x00")
@example("İ")
def test_canonical_is_idempotent(text):
    once = canonical_filter(text)
    assert canonical_filter(once) == once
    assert "\n" not in once
    assert once == once.strip()


def test_long_text_takes_no_time():
    assert canonical_filter("h-" * 50_000).startswith("h-")


@pytest.mark.parametrize(
    ("spelling", "lines"),
    [
        *((name, ("Halpha", "OIII")) for name in (
            "Optolong L-eXtreme", "L-Ultimate 3nm", "L-eNhance", "Antlia ALP-T 5nm", "IDAS NBZ",
            "Duo-Band", "ZWO Duo-Band 2\"", "HO", "HOO", "Ha-OIII", "Ha + OIII",
        )),
        *((name, ("SII", "OIII")) for name in ("SO", "ALP-T SO", "SII+OIII", "L-Synergy")),
        ("Ha", ("Halpha",)),
        ("L-Pro", ()),
        ("Ha+Clear", ()),
    ],
)  # fmt: skip
def test_lines_of_a_filter(spelling, lines):
    assert lines_of(canonical_filter(spelling)) == lines


def test_lines_of_a_filter_of_the_user():
    name = canonical_filter("mein duo", spellings={"meinduo": "Ha+OIII"})
    assert lines_of(name) == ("Halpha", "OIII")
    assert [pixels_of(line) for line in lines_of(name)] == ["red", "green+blue"]
