"""Frames that are not what they are called are known by their pixels; sound ones are kept."""

import numpy as np
import pytest
from astropy.nddata import CCDData

from astro_narrowband._engine.frames import MemoryFrame
from astro_narrowband.night.plan import make_plan
from astro_narrowband.night.screen import look_at, misfits, screen_plan, why_below
from astro_narrowband.night.table import FrameTable


def look(data, saturation=65504.0):
    return look_at(MemoryFrame(CCDData(np.asarray(data, "f4"), unit="adu")), saturation)


@pytest.fixture
def bias(rng):
    return [rng.normal(1000, 8, (60, 80)) for _ in range(5)]


def test_level_and_scatter_are_those_of_the_pixels(bias):
    found = look(bias[0])
    assert found.reason == ""
    assert found.level == pytest.approx(1000, abs=1)
    assert found.scatter == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: d * np.nan, "no good pixel"),
        (lambda d: d * 0 + 7, "all its pixels are 7"),
        (lambda d: np.where(np.arange(80) < 60, 65535, d), "is saturated: 75 %"),
        (lambda d: np.where(np.arange(60)[:, None] > 40, 0, d), "cut off"),
    ],
)
def test_what_holds_no_image_is_named(bias, spoil, says):
    assert says in look(spoil(bias[0])).reason


def test_dead_rows_at_the_edge_and_columns_are_no_reason(bias):
    data = bias[0].copy()
    data[0] = data[-1] = 0
    data[:, :3] = 0
    assert look(data).reason == ""


def test_the_odd_one_of_its_like_is_found_whatever_the_order(bias):
    odd = {2: bias[2] + 500, 4: np.random.default_rng(1).normal(1000, 80, (60, 80))}
    looks = [look(odd.get(i, data)) for i, data in enumerate(bias)]
    reasons = misfits(looks, what="biases")
    assert [bool(reason) for reason in reasons] == [False, False, True, False, True]
    assert "its level is 1500 adu" in reasons[2]
    assert "scatter 10 times" in reasons[4]
    assert misfits(looks[::-1], what="biases") == reasons[::-1]


def test_a_drifting_pedestal_and_two_frames_are_no_reason(bias):
    drift = [look(data + 15 * i) for i, data in enumerate(bias)]
    assert misfits(drift, what="biases") == [""] * 5
    assert misfits([drift[0], look(bias[0] + 900)], what="biases") == ["", ""]


def test_flats_may_differ_in_level_but_not_in_pattern(rng):
    flats = [rng.normal(level, level**0.5, (60, 80)) for level in (9000, 20000, 31000, 25000)]
    looks = [look(flat) for flat in flats]
    assert misfits(looks, what="flats", relative=True) == [""] * 4
    looks[1] = look(rng.uniform(0, 65000, (60, 80)))
    assert misfits(looks, what="flats", relative=True)[1]


def test_a_light_below_its_bias_is_named_and_a_faint_one_is_not(bias):
    looks = [look(data) for data in bias]
    assert why_below(look(bias[0] - 15), looks) == ""
    assert "below its bias" in why_below(look(bias[0] - 1000), looks)
    assert why_below(look(bias[0] - 1000), []) == ""


@pytest.mark.parametrize("name", ["arcsat-eagle-halpha", "orion-g3-m13", "zwo-asi120-darkseries"])
def test_real_frames_are_what_they_are_called(real_data, name):
    plan = make_plan(FrameTable.from_paths(real_data / name, bayer="mono"))
    before = [row.verdict for row in plan.table]
    screen_plan(plan)
    # The four flats of the dark series have three shapes, and no light tells which is right.
    odd = (
        {row.path for row in plan.table if row.kind == "flat"} if name.startswith("zwo") else set()
    )
    after = ["used" if row.path in odd else row.verdict for row in plan.table]
    assert after == before


def test_a_group_without_sound_frames_fails_and_the_verdicts_add_up(tmp_path):
    from astro_narrowband.simulate import simulate_night

    simulate_night(
        tmp_path, shape=(64, 80), filters=("Ha", "OIII"), n_bias=3, n_darks=2, n_flats=3,
        light_exposures=(60.0,) * 2, seed=2,
    )  # fmt: skip
    from astropy.io import fits

    for path in (tmp_path / "flat" / "OIII").glob("*.fits"):
        with fits.open(path, mode="update") as hdul:
            hdul[0].data[:] = 0
    plan = make_plan(FrameTable.from_paths(tmp_path))
    screen_plan(plan)
    assert {group.filter: group.failed for group in plan.groups} == {"Halpha": False, "OIII": True}
    assert all("all its pixels" in row.reason for row in plan.table if "flat_OIII" in row.name)
    assert all(row.verdict == "used" for row in plan.table if "flat_Halpha" in row.name)
    counts = plan.table.counts
    assert counts["found"] == counts["used"] + counts["left out"] + counts["ignored"]
    assert any(p.level == "error" and "OIII" in p.file for p in plan.problems)
