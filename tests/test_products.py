"""The folder of products: lock, provenance, resume, records."""

import functools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData
from astropy.table import QTable
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_narrowband._engine.files import sha256
from astro_narrowband.exceptions import InputError, ProductError, listening
from astro_narrowband.night.inputs import Inputs
from astro_narrowband.night.products import (
    Products,
    provenance_key,
    read_record,
    software,
    strict_json,
)


@pytest.fixture
def night(tmp_path):
    folder = tmp_path / "night"
    folder.mkdir()
    for k in range(3):
        (folder / f"light{k}.fits").write_bytes(bytes([k]) * 1000)
    return sorted(folder.iterdir())


def run(folder, paths, *, resume=True, settings=None, value=1.0, inputs_changed=None):
    """One run that makes two products, one of them from the other; names of those made."""
    made = []
    if inputs_changed is not None:
        inputs_changed.write_bytes(b"other")
    with (
        Inputs(paths) as inputs,
        Products(folder, settings=settings, inputs=inputs, resume=resume) as products,
    ):
        bias = products.key(paths[:2], product="bias")
        if not products.have("masters/bias.fits", bias):
            made.append("bias")
            image = CCDData(np.full((20, 30), value, np.float32), unit="adu")
            products.write_fits("masters/bias.fits", image, bias)
        table = products.key([paths[2], ("masters/bias.fits", bias)], product="catalog")
        if not products.have("catalog.ecsv", table):
            made.append("catalog")
            products.write_table("catalog.ecsv", QTable({"id": [1], "flux": [value]}), table)
        products.write_json("night.json", {"products": dict(products.digests)})
    return made


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------- resume


def test_threads_may_write_and_ask_at_once(tmp_path, night):
    names = [f"masters/flat-{k}.fits" for k in range(24)]

    def make(products, name):
        key = products.key([night[0]], product=name)
        if products.have(name, key):
            return False
        image = CCDData(np.full((40, 50), names.index(name), np.float32), unit="adu")
        products.write_fits(name, image, key)
        return True

    def session(threads):
        with (
            Inputs(night) as inputs,
            Products(tmp_path / f"out{threads}", inputs=inputs) as products,
            ThreadPoolExecutor(threads) as pool,
        ):
            made = list(pool.map(functools.partial(make, products), names))
            return made, list(products.digests.items())

    made, digests = session(6)
    assert all(made)
    assert (made, digests) == session(1)
    again, digests_again = session(6)
    assert not any(again)
    assert digests_again == digests
    assert contents(tmp_path / "out6") == contents(tmp_path / "out1")


def test_a_second_run_makes_nothing_and_gives_the_same_bytes(tmp_path, night):
    out = tmp_path / "out"
    assert run(out, night) == ["bias", "catalog"]
    first = contents(out)
    assert run(out, night) == []
    assert contents(out) == first


def test_no_resume_makes_all_again(tmp_path, night):
    run(tmp_path / "out", night)
    assert run(tmp_path / "out", night, resume=False) == ["bias", "catalog"]
    assert run(tmp_path / "out", night) == []


def test_what_was_damaged_is_made_again_and_nothing_else(tmp_path, night):
    out = tmp_path / "out"
    run(out, night)
    first = contents(out)
    path = out / "masters" / "bias.fits"
    damaged = bytearray(path.read_bytes())
    damaged[3000] ^= 1
    path.write_bytes(damaged)
    assert run(out, night) == ["bias"]
    assert contents(out) == first
    (out / "catalog.ecsv").unlink()
    assert run(out, night) == ["catalog"]
    assert contents(out) == first


def test_another_input_makes_what_depends_on_it(tmp_path, night):
    out = tmp_path / "out"
    run(out, night)
    assert run(out, night, inputs_changed=night[2]) == ["catalog"]
    assert run(out, night, inputs_changed=night[0]) == ["bias", "catalog"]
    assert run(out, night) == []


def test_another_setting_makes_all(tmp_path, night):
    run(tmp_path / "out", night, settings={"reject": True})
    assert run(tmp_path / "out", night, settings={"reject": False}) == ["bias", "catalog"]


def test_another_version_makes_all(tmp_path, night, monkeypatch):
    run(tmp_path / "out", night)
    other = {**software(), "astropy": "99"}
    monkeypatch.setattr("astro_narrowband.night.products._records.software", lambda: other)
    assert run(tmp_path / "out", night) == ["bias", "catalog"]


def test_a_product_behind_a_symbolic_link_is_not_used(tmp_path, night):
    out = tmp_path / "out"
    run(out, night)
    path = out / "catalog.ecsv"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    assert run(out, night, value=2.0) == ["catalog"]
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_torn_journal_costs_one_product(tmp_path, night):
    out = tmp_path / "out"
    run(out, night)
    journal = out / ".astro-narrowband.jsonl"
    lines = journal.read_text().splitlines()
    keep = [line for line in lines if "bias" in line]
    journal.write_text("\n".join(keep) + '\n{"name": "catalog.ecsv", "ke')
    assert run(out, night) == ["catalog"]
    assert run(out, night) == []


@given(st.lists(st.text(max_size=40), max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_journal_is_survived(tmp_path_factory, lines):
    out = tmp_path_factory.mktemp("out")
    (out / ".astro-narrowband.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with Products(out) as products:
        assert not products.have("a.fits", "key")


@pytest.mark.parametrize("line", ["[]", "3", '{"name": 1, "key": 2, "sha256": 3}', "null", "\xff"])
def test_lines_that_are_no_entries_are_skipped(tmp_path, line):
    (tmp_path / ".astro-narrowband.jsonl").write_text(line + "\n")
    with Products(tmp_path) as products:
        assert not products.have("a.fits", "key")


def test_killed_between_the_journal_and_the_name_both_are_right(tmp_path, night, monkeypatch):
    """The old product is still known by its line, and so is the new one once it is there."""
    out = tmp_path / "out"
    run(out, night)
    old = contents(out)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(out, night, resume=False, value=2.0)
    monkeypatch.undo()
    after = contents(out)
    for name in ("masters/bias.fits", "catalog.ecsv"):
        assert after[Path(name)] == old[Path(name)]
    assert run(out, night) == []


def test_what_was_said_of_a_product_is_said_where_it_is_used_again(tmp_path):
    said = [("3 % of the pixels are masked", "warning")]
    for expected in ([], said):
        heard = []
        with (
            Products(tmp_path) as products,
            listening(lambda *text, heard=heard: heard.append(text)),
        ):
            if not products.have("a.ecsv", "key"):
                products.write_table("a.ecsv", QTable({"a": [1]}), "key", said)
        assert heard == expected


# --------------------------------------------------------------------------- keys


def test_keys_do_not_depend_on_order_and_do_on_all_else():
    inputs, run_settings = {"a": "1", "b": "2"}, {"x": 1, "y": [1.5, None]}
    key = provenance_key(inputs, run_settings)
    assert provenance_key({"b": "2", "a": "1"}, {"y": [1.5, None], "x": 1}) == key
    others = [
        provenance_key({"a": "2", "b": "1"}, run_settings),
        provenance_key({"a": "1"}, run_settings),
        provenance_key({"c": "1", "b": "2"}, run_settings),
        provenance_key(inputs, {"x": 2, "y": [1.5, None]}),
        provenance_key(inputs, {"x": 1}),
    ]
    assert len({key, *others}) == 6


def test_a_key_is_not_evaluated_without_need(tmp_path):
    def never():
        raise AssertionError

    with Products(tmp_path) as products:
        assert not products.have("x.fits", never)


def test_inputs_are_hashed_and_what_is_gone_is_none(night, tmp_path):
    gone = tmp_path / "gone.fits"
    with Inputs([*night, gone], workers=2) as inputs:
        assert inputs[night[0]] == sha256(night[0])
        digests = inputs.digests()
        with pytest.raises(InputError, match="gone"):
            inputs[gone]
    assert digests[str(gone)] is None
    assert len(digests) == 4


# --------------------------------------------------------------------------- where


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".hidden", "a/b/c", "a b", ""])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with Products(tmp_path / "out") as products, pytest.raises(ProductError, match="safe_name"):
        products.write_text(name, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_products_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masters").symlink_to(tmp_path / "elsewhere")
    with (
        Products(tmp_path / "out") as products,
        pytest.raises(ProductError, match="symbolic link"),
    ):
        products.write_text("masters/x", "x")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_an_input_is_never_overwritten(tmp_path):
    raw = tmp_path / "masters" / "bias.fits"
    raw.parent.mkdir()
    raw.write_bytes(b"raw")
    with (
        Inputs([raw]) as inputs,
        Products(tmp_path, inputs=inputs) as products,
        pytest.raises(ProductError, match="is an input"),
    ):
        products.write_text("masters/bias.fits", "x")
    assert raw.read_bytes() == b"raw"


@pytest.mark.parametrize("where", ["file", "file/out"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProductError, match="cannot be written"), Products(tmp_path / where):
        pass


# --------------------------------------------------------------------------- one at a time


def test_two_runs_at_once_are_refused_and_the_owner_is_named(tmp_path):
    with (
        Products(tmp_path) as first,
        pytest.raises(ProductError, match=f"another run writes here .process {os.getpid()} on"),
        Products(tmp_path),
    ):
        pass
    assert first.folder == tmp_path
    with Products(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_stale(tmp_path):
    code = (
        "import os, signal, sys; from astro_narrowband.night.products import Products\n"
        f"Products({str(tmp_path)!r}).__enter__()\n"
        "open(sys.argv[1], 'w').close()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = tmp_path.parent / "locked"
    child = subprocess.run([sys.executable, "-c", code, str(done)], check=False)  # noqa: S603
    assert child.returncode == -9
    assert done.exists()
    assert (tmp_path / ".astro-narrowband.lock").exists()
    with Products(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / ".astro-narrowband.lock").symlink_to(target)
    with pytest.raises(ProductError, match="lock"), Products(tmp_path):
        pass
    assert target.read_text() == "mine"


def test_leftovers_are_swept_at_the_start(tmp_path):
    (tmp_path / "masters").mkdir()
    for folder in (tmp_path, tmp_path / "masters"):
        (folder / ".astro-narrowband-7-aa.part").write_bytes(b"half")
    with Products(tmp_path):
        assert sorted(p.name for p in tmp_path.rglob("*.part")) == []


# --------------------------------------------------------------------------- records


def test_a_record_is_json_for_every_reader(tmp_path):
    record = {
        "a": math.nan,
        "b": np.float32(1.5),
        "c": np.arange(3),
        "d": 3 * u.s,
        "e": Path("x") / "y",
        "f": (1, {"g": np.inf}),
        "h": "Hα\x1b[0m\udcff",
        4: {"z", "y"},
        "i": np.bool_(True),
        "j": np.array([1.0, np.nan]) * u.s,
    }
    with Products(tmp_path) as products:
        products.write_json("night.json", record)
    text = (tmp_path / "night.json").read_text()

    def refuse(name):
        raise AssertionError(name)

    plain = json.loads(text, parse_constant=refuse)
    assert plain == read_record(tmp_path / "night.json")
    assert plain == {
        "a": None,
        "b": 1.5,
        "c": [0, 1, 2],
        "d": 3.0,
        "e": "x/y",
        "f": [1, {"g": None}],
        "h": "Hα [0m ",
        "4": ["y", "z"],
        "i": True,
        "j": [1.0, None],
    }


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_what_is_no_record_is_said_to_be_none(tmp_path, text):
    (tmp_path / "night.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="run reduce again"):
        read_record(tmp_path / "night.json")


def test_a_record_that_is_absent(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path / "night.json")


def test_versions_are_told():
    assert software()["astropy"]
    assert json.loads(strict_json(software())) == software()
