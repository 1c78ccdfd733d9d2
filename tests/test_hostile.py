"""Hostile nights: every case ends as expected, nothing is silently wrong, nothing is lost."""

import json
import os
import runpy
import shutil
from pathlib import Path

import pytest
from astropy.table import QTable

from astro_narrowband.cli import main
from astro_narrowband.night.plan import make_plan
from astro_narrowband.night.screen import screen_plan
from astro_narrowband.night.table import FrameTable

HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))
CASES, Night = HOSTILE["CASES"], HOSTILE["Night"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "night"
    HOSTILE["sound_night"](folder)
    return folder


@pytest.fixture
def night(sound, tmp_path, request):
    """The sound night, with the one thing of the case wrong."""
    folder = tmp_path / "night"
    shutil.copytree(sound, folder)
    request.param.change(Night(folder))
    return folder


def files_under(folder):
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def ours(case):
    """The arguments of a case that concern the table of frames."""
    pairs = zip(case.arguments[::2], case.arguments[1::2], strict=True)
    options = {"set_keywords": {}}
    for name, value in pairs:
        if name == "--set":
            keyword, _, text = value.partition("=")
            options["set_keywords"][keyword] = text
        elif name == "--bayer":
            options["bayer"] = value
        elif name == "--max-pixels":
            options["max_pixels"] = int(value)
        elif name == "--calibrated":
            options["calibrated"] = True
        elif name in ("--without", "--gain"):
            continue  # not of the table
        else:
            options[name[2:]] = value
    return options


def test_there_are_enough():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names) >= 250


@pytest.mark.parametrize(
    ("night", "case"), [(c, c) for c in CASES if not c.pixels], ids=str, indirect=["night"]
)
def test_table_and_plan(night, case):
    table = FrameTable.from_paths([night], **ours(case))
    without = [
        v for k, v in zip(case.arguments, case.arguments[1:], strict=False) if k == "--without"
    ]
    plan = make_plan(table, without=without, calibrated="--calibrated" in case.arguments)
    screen_plan(plan)
    counts = table.counts
    assert counts["found"] == len(table) == len(files_under(night))
    assert counts["used"] + counts["left out"] + counts["ignored"] == counts["found"]
    verdicts = {os.path.relpath(row.path, night): row.verdict for row in table}
    for name, verdict in case.verdicts.items():
        assert verdicts[name] == verdict, [row.reason for row in table if name in str(row.path)]
    for row in table:
        assert row.verdict == "used" or row.reason
    lines = [*table.lines(), *plan.lines()]
    assert case.says in "\n".join(lines)
    assert all(line.isprintable() for line in lines)
    done = [group for group in plan.groups if not group.failed]
    expected = {0: done and len(done) == len(plan.groups), 3: not done}
    assert expected.get(case.status, 0 < len(done) < len(plan.groups))


@pytest.mark.long
@pytest.mark.parametrize(("night", "case"), [(c, c) for c in CASES], ids=str, indirect=["night"])
def test_command_line(night, case, tmp_path, capsys):
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in files_under(night) if path.is_file()}
    status = main(
        ["reduce", str(night), "-o", str(out), "--workers", "1", *filter(None, case.arguments)]
    )
    printed = capsys.readouterr()
    assert status == case.status, printed.err
    assert "Traceback" not in printed.err
    assert all(line.isprintable() for line in (printed.out + printed.err).splitlines())
    assert before == {p: p.stat().st_mtime_ns for p in files_under(night) if p.is_file()}
    assert set(os.listdir(tmp_path)) <= {"night", "out"}
    if (out / "night.json").exists():
        record = json.loads((out / "night.json").read_text())
        assert record["status"] == status
        files = record["files"]
        assert files["used"] + files["left out"] + files["ignored"] == files["found"]
        table = QTable.read(out / "frames.ecsv")
        assert len(table) == files["found"]
        for name, verdict in case.verdicts.items():
            row = table[[str(p).endswith(name) for p in table["path"]]]
            if len(row):
                assert row["verdict"][0] == verdict, row["reason"][0]
