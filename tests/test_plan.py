"""What calibrates what: never a substitute, and a reason for everything that is not used."""

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astro_narrowband.night.plan import HARD_KEYS, make_plan
from astro_narrowband.night.table import FrameRow, FrameTable


def row(kind, n=1, **more):
    """A row of the table, as a sound header gives it."""
    usual = {
        "exposure": {"bias": 0.0, "flat": 3.0}.get(kind, 60.0),
        "filter": "Halpha" if kind in ("light", "flat") else "unknown",
        "object": "M 31" if kind == "light" else "",
        "temperature": -10.0,
        "binning": (1, 1),
        "window": (0, 0),
        "shape": (100, 120),
        "gain": "100",
        "offset": "50",
        "readout": "slow",
        "camera": "asi",
    }
    path = Path("/night") / f"{kind}-{n:03d}-{'-'.join(f'{k}{v}' for k, v in more.items())}.fits"
    return FrameRow(kind=kind, path=path, verdict="used", **(usual | more))


def night(*rows):
    return FrameTable([*rows])


def sound():
    """Two of each kind, flats and lights in two filters."""
    return [row(kind, n) for kind in ("bias", "dark", "flat", "light") for n in (1, 2)] + [
        row(kind, n, filter="OIII") for kind in ("flat", "light") for n in (1, 2)
    ]


def settled(table, plan):
    """Every frame is used by a group that is not failed, or left out with a reason."""
    serving = set()
    for group in plan.groups:
        if not group.failed:
            serving |= {r.path for r in (*group.lights, *group.bias, *group.darks, *group.flats)}
    for r in table:
        assert (r.verdict == "used") == (r.path in serving)
        assert r.verdict == "used" or r.reason
    assert sum(table.counts[v] for v in ("used", "left out", "ignored")) == table.counts["found"]
    return True


def test_sound_night():
    table = night(*sound())
    plan = make_plan(table)
    assert [g.label for g in plan.groups] == ["M 31 Halpha", "M 31 OIII"]
    for group in plan.groups:
        assert [len(group.lights), len(group.bias), len(group.darks), len(group.flats)] == [2] * 4
        assert {r.filter for r in group.flats} == {group.filter}
        assert (group.reason, group.notes) == ("", [])
    assert table.counts["used"] == 12
    assert not plan.problems
    assert settled(table, plan)


def test_real_night(real_data):
    plan = make_plan(FrameTable.from_paths(real_data / "arcsat-eagle-halpha"))
    (group,) = plan.groups
    assert [len(group.lights), len(group.bias), len(group.darks), len(group.flats)] == [2, 7, 5, 5]
    assert not group.failed
    assert plan.lines()[0].startswith("EAGLE Halpha: 2 lights of 600 s, 1024x1024")


OTHER = {
    "shape": (50, 60),
    "binning": (2, 2),
    "window": (8, 0),
    "gain": "200",
    "offset": "10",
    "readout": "fast",
    "camera": "qhy",
    "row_order": "top-down",
    "bayer": "RGGB",
    "changed": "FLIPSTAT flip",
}


def test_other_values_are_tried_for_every_hard_key():
    assert set(OTHER) == set(HARD_KEYS)


@pytest.mark.parametrize("key", [k for k in OTHER if k not in ("row_order", "bayer")])
@pytest.mark.parametrize("kind", ["bias", "dark", "flat"])
def test_no_substitute_across_hard_keys(key, kind):
    other = row(kind, 9, **{key: OTHER[key]})
    table = night(*sound(), other)
    plan = make_plan(table)
    for group in plan.groups:
        assert other not in (*group.bias, *group.darks, *group.flats)
        assert not group.failed
    assert other.verdict == "left out"
    assert HARD_KEYS[key] in other.reason
    assert [p.file for p in plan.problems if HARD_KEYS[key] in p.text] == [other.name]
    assert settled(table, plan)


@pytest.mark.parametrize("key", [k for k in OTHER if k not in ("row_order", "bayer")])
def test_group_fails_when_all_darks_differ(key):
    rows = [r for r in sound() if r.kind != "dark"] + [row("dark", 9, **{key: OTHER[key]})]
    plan = make_plan(night(*rows))
    assert all(group.failed for group in plan.groups)
    assert all(HARD_KEYS[key] in group.reason for group in plan.groups)


@pytest.mark.parametrize("key", [k for k in OTHER if k not in ("shape", "bayer")])
@pytest.mark.parametrize("kind", ["bias", "dark", "flat", "light"])
def test_missing_keyword_agrees_with_the_only_value(key, kind):
    rows = sound()
    for r in rows:
        setattr(r, key, OTHER[key])
    bare = row(kind, 9, **{**OTHER, "shape": (100, 120)})
    for r in rows:
        for other, value in OTHER.items():
            if other not in ("shape", "bayer"):
                setattr(r, other, value)
    bare.bayer = ""
    setattr(bare, key, None if key in ("binning", "window") else "")
    table = night(*rows, bare)
    plan = make_plan(table)
    assert bare.verdict == "used"
    assert len(plan.groups) == 2


@pytest.mark.parametrize("key", ["gain", "offset", "readout", "binning", "window"])
def test_missing_keyword_agrees_with_nothing_where_there_are_two(key):
    bare = row("dark", 9, **{key: "" if isinstance(OTHER[key], str) else None})
    second = [row(kind, 7, **{key: OTHER[key]}) for kind in ("bias", "dark", "flat", "light")]
    table = night(*sound(), *second, bare)
    plan = make_plan(table)
    assert bare.verdict == "left out"
    assert "the night has several" in bare.reason
    assert len(plan.groups) == 3
    assert len({group.label for group in plan.groups}) == 3
    assert settled(table, plan)


def test_another_camera_does_not_unsettle_this_one():
    bare = row("dark", 9, gain="")
    other = [
        row(kind, 7, gain="200", camera="qhy", shape=(50, 60))
        for kind in ("bias", "dark", "flat", "light")
    ]
    plan = make_plan(night(*sound(), *other, bare))
    assert bare.verdict == "used"
    assert not any(group.failed for group in plan.groups)


# ------------------------------------------------------------------ temperature


@pytest.mark.parametrize(
    ("dark", "used", "noted"),
    [
        (-10.4, True, False),
        (-9.6, True, False),
        (-8.0, True, True),
        (-14.9, True, True),
        (-4.0, False, False),
        (20.0, False, False),
        (math.nan, True, True),
    ],
)
def test_temperature(dark, used, noted):
    rows = sound()
    for r in rows:
        if r.kind == "dark":
            r.temperature = dark
    plan = make_plan(night(*rows))
    assert all(group.failed != used for group in plan.groups)
    assert any("CCD-TEMP" in note for note in plan.groups[0].notes) == noted
    if not used:
        assert "CCD-TEMP" in plan.groups[0].reason


def test_darks_of_another_set_point_are_left_out():
    warm = row("dark", 9, temperature=0.0)
    near = row("dark", 8, temperature=-12.0)
    plan = make_plan(night(*sound(), warm, near))
    assert [warm.verdict, near.verdict] == ["left out", "left out"]
    assert "CCD-TEMP 0.0" in warm.reason
    assert not plan.groups[0].failed


def test_drifting_darks_are_one_run():
    darks = [row("dark", 10 + i, temperature=-12.0 + 0.8 * i) for i in range(6)]
    plan = make_plan(night(*[r for r in sound() if r.kind != "dark"], *darks))
    assert len(plan.groups[0].darks) == 6


def test_light_far_from_all_darks_is_left_out_by_name():
    warm = row("light", 9, temperature=4.0)
    table = night(*sound(), warm)
    plan = make_plan(table)
    assert warm.verdict == "left out"
    assert any(warm.path.name in str(problem) for problem in plan.problems)
    assert len(plan.groups[0].lights) == 2
    assert settled(table, plan)


# ------------------------------------------------------------------ what is missing


def without(*kinds):
    return [r for r in sound() if r.kind not in kinds]


@pytest.mark.parametrize(
    ("rows", "reason", "note"),
    [
        (without("flat"), "there is no flat", ""),
        (without("bias", "dark"), "neither bias nor darks", ""),
        (without("bias"), "", "lose the darks of 60 s"),
        (
            [r for r in without("bias") if r.kind != "dark"] + [row("dark", 9, exposure=30.0)],
            "add bias frames",
            "",
        ),
        (without("dark"), "", "no darks"),
        ([*without("bias"), row("dark", 5, exposure=3.0)], "", "several exposure times"),
        ([*without("bias"), row("flat-dark", 5, exposure=3.0)], "", "several exposure times"),
        ([*without("bias", "flat"), row("flat", 5, exposure=60.5)], "", "same exposure time"),
    ],
)
def test_missing_calibration(rows, reason, note):
    table = night(*rows)
    plan = make_plan(table, filters=["Halpha"])
    (group,) = plan.groups
    assert reason in group.reason
    assert bool(group.reason) == bool(reason)
    assert any(note in text for text in group.notes) == bool(note)
    assert settled(table, plan)


def test_filter_without_flat_does_not_stop_the_others():
    rows = [r for r in sound() if (r.kind, r.filter) != ("flat", "OIII")]
    table = night(*rows)
    plan = make_plan(table)
    assert [group.failed for group in plan.groups] == [False, True]
    assert "there are flats of Halpha only" in plan.groups[1].reason
    assert table.counts["left out"] == 2
    assert [p.level for p in plan.problems] == ["error"]
    assert settled(table, plan)


def test_flats_of_automatic_exposure_are_one_set():
    rows = [*without("flat"), *(row("flat", i, exposure=331 + 7.0 * i) for i in range(5))]
    assert len(make_plan(night(*rows), filters=["Halpha"]).groups[0].flats) == 5


def test_filters_that_are_asked_for():
    table = night(*sound())
    plan = make_plan(table, filters=["OIII"])
    assert [group.filter for group in plan.groups] == ["OIII"]
    assert table.counts == {"found": 12, "used": 8, "left out": 2, "ignored": 2}
    assert settled(table, plan)


def test_nothing_to_reduce():
    table = night()
    plan = make_plan(table)
    assert plan.groups == []
    assert plan.lines()[0].startswith("no lights")


def test_groups_have_names_of_their_own():
    rows = [
        row("light", 1),
        row("light", 2, shape=(50, 60), binning=(2, 2)),
        row("light", 3, shape=(50, 60), binning=(4, 4)),
        row("light", 4, object="M 33"),
    ]
    plan = make_plan(night(*rows))
    labels = [group.label for group in plan.groups]
    assert len(set(labels)) == 4
    assert any("bin2x2" in label for label in labels)


# ------------------------------------------------------------------ colours, panels, masters


def test_a_dual_band_filter_before_a_colour_camera_is_two_images():
    rows = [row(kind, n, bayer="RGGB") for kind in ("bias", "dark") for n in (1, 2)]
    beam = {"bayer": "RGGB", "filter": "Halpha+OIII"}
    rows += [row(kind, n, **beam) for kind in ("flat", "light") for n in (1, 2)]
    table = night(*rows)
    plan = make_plan(table)
    assert [(g.filter, g.colour) for g in plan.groups] == [
        ("Halpha", "red"),
        ("OIII", "green+blue"),
    ]
    assert not any(group.failed for group in plan.groups)
    assert table.counts["used"] == 8
    assert settled(table, plan)
    plan.groups[1].drop(rows[-1], "no stars")
    assert rows[-1].verdict == "used"
    assert "not in M 31 OIII: no stars" in rows[-1].reason


def test_a_frame_without_a_pattern_serves_no_colour():
    rows = [row(k, n, bayer="RGGB") for k in ("bias", "dark", "flat", "light") for n in (1, 2)]
    bare = row("dark", 9)
    make_plan(night(*rows, bare))
    assert bare.verdict == "left out"
    assert "BAYERPAT is missing" in bare.reason


def pointed(ra, *, n, scale=math.nan, **more):
    return row("light", n, pointing=(ra, 44.0), pixel_scale=scale, **more)


@pytest.mark.parametrize("scale", [math.nan, 3e-4])
def test_panels_of_a_mosaic_are_told_by_where_they_point(scale):
    step = 100 * 3e-4 / math.cos(math.radians(44))
    lights = [
        pointed(314 + step * panel + 2e-5 * n, n=10 * panel + n, scale=scale)
        for panel in (0, 1)
        for n in (1, 2, 3)
    ]
    plan = make_plan(night(*without("light"), *lights))
    assert [(g.object, len(g.lights)) for g in plan.groups] == [
        ("M 31 panel 1", 3),
        ("M 31 panel 2", 3),
    ]


@pytest.mark.parametrize("scale", [math.nan, 3e-4])
def test_dithers_are_no_mosaic(scale):
    lights = [pointed(314 + 3e-3 * (n % 4) + 1e-4 * n, n=n, scale=scale) for n in range(8)]
    (group,) = make_plan(night(*without("light"), *lights)).groups
    assert (group.object, len(group.lights)) == ("M 31", 8)


def test_raw_frames_come_before_masters_and_those_of_the_night_before_a_library():
    master = row("bias", 7, master=True)
    library = row("bias", 8, library=True)
    plan = make_plan(night(*sound(), master, library))
    assert not any({"master", "library"} & set(map(str, g.notes)) for g in plan.groups)
    assert (master.verdict, library.verdict) == ("left out", "ignored")
    library = row("bias", 8, library=True)
    plan = make_plan(night(*without("bias"), library))
    assert plan.groups[0].bias == [library]
    assert library.verdict == "used"


def test_a_library_of_another_camera_setting_is_not_taken():
    library = row("bias", 8, library=True, gain="200")
    table = night(*without("bias", "dark"), library)
    plan = make_plan(table)
    assert all(group.failed for group in plan.groups)
    assert library.verdict == "ignored"
    assert "gain setting" in library.reason


@pytest.mark.parametrize(("angle", "used"), [(11.0, True), (100.0, False), (190.0, False)])
def test_flats_of_another_angle_of_the_rotator_are_left_out(angle, used):
    rows = sound()
    for r in rows:
        if r.kind == "light":
            r.rotator = (10.0, 360, "ROTATANG")
    flat = row("flat", 9, rotator=(angle, 360, "ROTATANG"))
    make_plan(night(*rows, flat))
    assert flat.used == used
    assert used or "ROTATANG" in flat.reason


def rotated(kind, n, angle):
    return row(kind, n, rotator=(angle, 360, "ROTATANG"))


def test_lights_on_both_sides_of_the_pier_are_one_group_with_the_flats_of_each_side():
    dark = [row(kind, n) for kind in ("bias", "dark") for n in (1, 2)]
    lights = [rotated("light", n, 10.0 if n < 3 else 190.0) for n in (1, 2, 3, 4)]
    both = [rotated("flat", n, 10.0 if n < 3 else 190.3) for n in (1, 2, 3, 4)]
    (group,) = make_plan(night(*dark, *lights, *both)).groups
    assert [(len(a), {f.rotator[0] for f in b}) for a, b in group.sides()] == [
        (2, {10.0}), (2, {190.3})
    ]  # fmt: skip
    assert not group.notes
    (group,) = make_plan(night(*dark, *lights, *both[:2])).groups
    assert [(len(a), len(b)) for a, b in group.sides()] == [(2, 2), (2, 2)]
    assert any("serve 2 lights at 190" in note for note in group.notes)


def test_lights_at_an_angle_that_no_flat_has_are_left_out_by_name():
    dark = [row(kind, n) for kind in ("bias", "dark") for n in (1, 2)]
    lights = [rotated("light", n, 10.0 if n < 3 else 55.0) for n in (1, 2, 3, 4)]
    flats = [rotated("flat", n, 10.0) for n in (1, 2)]
    table = night(*dark, *lights, *flats)
    plan = make_plan(table)
    assert settled(table, plan)
    assert [r.verdict for r in lights] == ["used", "used", "left out", "left out"]
    assert "ROTATANG = 55 deg, the flats 10" in lights[2].reason
    dark = [row(kind, n) for kind in ("bias", "dark") for n in (1, 2)]
    odd = [rotated("light", 1, 55.0), rotated("flat", 1, 10.0)]
    (group,) = make_plan(night(*dark, *odd)).groups
    assert group.failed
    assert "take flats at the angle" in group.reason


def test_an_angle_on_the_sky_may_flip_with_the_mount():
    rows = sound()
    for r in rows:
        if r.kind == "light":
            r.rotator = (10.0, 180, "OBJCTROT")
    flat = row("flat", 9, rotator=(190.0 % 180, 180, "OBJCTROT"))
    make_plan(night(*rows, flat))
    assert flat.used


def test_without_is_said_and_lifts_only_its_own_rule():
    plan = make_plan(night(*without("flat")), without=("flat",), filters=["Halpha"])
    (group,) = plan.groups
    assert not group.failed
    assert any("--without flat" in note for note in group.notes)
    plan = make_plan(night(*without("flat", "bias", "dark")), without=("flat",))
    assert all("--without bias --without dark" in group.reason for group in plan.groups)


# ------------------------------------------------------------------ properties


ROWS = st.lists(
    st.builds(
        lambda kind, n, key, other, object_, filter_, temperature, exposure: row(
            kind,
            n,
            **({key: OTHER[key]} if other else {}),
            filter=filter_,
            object=object_ if kind == "light" else "",
            temperature=temperature,
            exposure=0.0 if kind == "bias" else exposure,
        ),
        st.sampled_from(["bias", "dark", "flat", "light", "flat-dark"]),
        st.integers(0, 500),
        st.sampled_from(sorted(HARD_KEYS)),
        st.booleans(),
        st.sampled_from(["M 31", "M 33"]),
        st.sampled_from(["Halpha", "OIII"]),
        st.sampled_from([-10.0, -10.2, -7.0, 5.0, math.nan]),
        st.sampled_from([3.0, 60.0, 300.0]),
    ),
    max_size=25,
    unique_by=lambda r: r.path,
)


def described(plan):
    return [
        (
            g.label,
            g.reason,
            g.notes,
            sorted(r.name for r in (*g.lights, *g.bias, *g.darks, *g.flats)),
        )
        for g in plan.groups
    ], sorted((r.name, r.verdict, r.reason) for r in plan.table)


@given(ROWS, st.integers(0, 99))
def test_order_of_files_does_not_matter(rows, seed):
    ordered = sorted(rows, key=lambda r: r.path)
    state = [(r, r.verdict, r.reason) for r in rows]
    first = described(make_plan(night(*ordered)))
    for r, verdict, reason in state:
        r.verdict, r.reason = verdict, reason
    shuffled = list(ordered)
    random.Random(seed).shuffle(shuffled)
    second = described(make_plan(night(*sorted(shuffled, key=lambda r: r.path))))
    assert first == second


@given(ROWS)
def test_everything_is_accounted_for_and_nothing_substituted(rows):
    table = night(*rows)
    plan = make_plan(table)
    assert settled(table, plan)
    lights = [r for group in plan.groups for r in group.lights]
    assert len(lights) == len({r.path for r in lights})
    for group in plan.groups:
        for r in (*group.bias, *group.darks, *group.flats):
            for key in HARD_KEYS:
                mine, wanted = getattr(r, key), group.setup[key]
                assert mine == wanted or mine in (None, "") or wanted in (None, "")
        assert all(r.filter == group.filter for r in group.flats)
    for line in plan.lines():
        assert "\n" not in line
