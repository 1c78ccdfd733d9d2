"""Disks that fill up or fail at every call in turn, and runs that are killed at any time."""

import errno
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable

from astro_narrowband._engine.files import sha256, write_bytes, write_fits
from astro_narrowband.exceptions import ProductError
from astro_narrowband.night.products import Products

#: The calls by which anything gets onto a disk.
CALLS = ("write", "pwrite", "fsync", "replace", "mkdir", "ftruncate", "open")


class Disk:
    """Calls that write are counted, and from the ``fail_at``-th on, or there only, they fail."""

    def __init__(self, monkeypatch, *, code=errno.ENOSPC, fail_at=None, once=False):
        self.count = 0
        self.failed = None
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        self.code, self.fail_at, self.once = code, fail_at, once

    def wrap(self, name, call):
        def wrapped(*args, **options):
            if name == "open" and not args[1] & os.O_CREAT:
                return call(*args, **options)
            if name == "write" and args[0] in (1, 2):
                return call(*args, **options)
            self.count += 1
            due = self.fail_at is not None and self.count >= self.fail_at
            if due and not (self.once and self.failed):
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **options)

        return wrapped


def image(value, n=40):
    data = np.full((n, n), value, np.float32)
    return CCDData(data, unit="adu", mask=data < 0, uncertainty=StdDevUncertainty(data / 10))


def session(folder, value, *, resume=True, n=40):
    """One run that writes products of every kind; how many it made."""
    made = 0
    with Products(folder, resume=resume) as products:
        for name in ("masters/bias.fits", "coadd-x.fits"):
            key = products.key([], name=name, value=value)
            if not products.have(name, key):
                made += 1
                products.write_fits(name, image(value, n), key)
        key = products.key([], name="plane", value=value)
        if not products.have("plane.fits", key):
            made += 1
            plane = fits.PrimaryHDU(np.full((n, n), value, np.float32))
            products.write_fits("plane.fits", fits.HDUList([plane]), key)
        key = products.key([], name="catalog", value=value)
        if not products.have("catalog.ecsv", key):
            made += 1
            products.write_table("catalog.ecsv", QTable({"flux": [value]}), key)
        products.write_json("night.json", {"value": value})
        products.write_text("report.html", f"<p>{value}</p>")
    return made


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def assert_whole(folder, *known):
    """Every product is one of the ``known`` whole ones, and nothing else lies there."""
    there = contents(folder)
    for name, content in there.items():
        assert content in [state[name] for state in known if name in state], name
    leftovers = [p.name for p in folder.rglob("*") if p.name.startswith(".")]
    assert not [name for name in leftovers if name.endswith((".part", ".lock"))]


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """The products of two sessions that nothing disturbed."""
    out = []
    for value in (1.0, 2.0):
        folder = tmp_path_factory.mktemp("state")
        session(folder, value)
        out.append(contents(folder))
    return out


def count_calls(folder, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        session(folder, 1.0)
    return disk.count


@pytest.mark.parametrize(("code", "once"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_every_call_that_fails_is_named_and_leaves_nothing_partial(
    tmp_path, monkeypatch, states, code, once
):
    total = count_calls(tmp_path / "count", monkeypatch)
    assert total > 40
    calls = set()
    for n in range(1, total + 1):
        folder = tmp_path / f"out{n}"
        message = None
        with monkeypatch.context() as patch:
            disk = Disk(patch, code=code, fail_at=n, once=once)
            try:
                session(folder, 1.0)
            except ProductError as error:
                message = str(error)
        calls.add(disk.failed)
        if message is None:  # it could not make a folder that was there already
            assert (disk.failed, once) == ("mkdir", True)
            assert contents(folder) == states[0]
            continue
        assert str(folder) in message
        assert os.strerror(code) in message
        assert "\n" not in message
        if folder.exists():
            assert_whole(folder, states[0])
        if n % 4 == 0:
            session(folder, 1.0)
            assert contents(folder) == states[0]
    assert calls == set(CALLS)


def test_products_of_an_earlier_run_survive_every_failure(tmp_path, monkeypatch, states):
    total = count_calls(tmp_path / "count", monkeypatch)
    folder = tmp_path / "out"
    session(folder, 1.0)
    for n in range(1, total - 3, 2):
        with monkeypatch.context() as patch:
            Disk(patch, fail_at=n)
            with pytest.raises(ProductError):
                session(folder, 2.0 if n % 4 == 1 else 1.0, resume=False)
        assert_whole(folder, *states)
        assert set(contents(folder)) == set(states[0])
    session(folder, 2.0)
    assert contents(folder) == states[1]


def test_short_writes_are_finished(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: len(data) // 3 + 1], at))
    write_fits(tmp_path / "x.fits", image(3.0))
    assert CCDData.read(tmp_path / "x.fits").data[0, 0] == 3.0


def test_a_disk_that_writes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(ProductError, match="Input/output error"):
        write_bytes(tmp_path / "x.txt", b"3.0")


def test_a_file_system_without_fsync_is_no_error(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_fits(tmp_path / "x.fits", image(3.0))


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    code = f"""
        import resource
        import numpy as np
        from astropy.nddata import CCDData
        from astro_narrowband._engine.files import write_fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        write_fits({str(tmp_path / "x.fits")!r}, CCDData(np.zeros((100, 100), "f4"), unit="adu"))
    """
    child = run_python(code)
    assert child.returncode == 1
    assert "ProductError" in child.stderr
    assert "ulimit -f" in child.stderr
    assert os.listdir(tmp_path) == []


def run_python(code, *args):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603


# --------------------------------------------------------------------------- kills

#: Forks writers of this module's ``session`` and kills each at a random time.
KILLER = """
    import importlib.util, os, random, signal, sys, time
    path, folder, n, size, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    spec = importlib.util.spec_from_file_location("faults", path)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    print(faults.kill_sessions(folder, n, size, seed))
"""


def kill_sessions(folder, n, size, seed):
    """Kill ``n`` sessions at seeded times; check what lies there after each."""
    folder, chance = Path(folder), random.Random(seed)
    known = {}
    for value in (1.0, 2.0):
        reference = folder / f"reference{value}"
        started = time.monotonic()
        session(reference, value, n=size)
        duration = time.monotonic() - started
        for path in products_in(reference):
            known.setdefault(path.relative_to(reference), set()).add(sha256(path))
    out = folder / "out"
    there, leftovers, killed = set(), 0, 0
    for k in range(n):
        value = 1.0 + k % 2
        child = os.fork()
        if child == 0:
            session(out, value, resume=bool(k % 3), n=size)
            os._exit(0)
        time.sleep(chance.uniform(0, 1.1 * duration))
        os.kill(child, 9)
        killed += os.waitpid(child, 0)[1] == 9
        now = {path.relative_to(out) for path in products_in(out)} if out.exists() else set()
        assert there <= now, f"lost: {there - now}"
        there = now
        for name in now:
            assert sha256(out / name) in known[name], f"corrupt: {name}"
        leftovers += len(list(out.rglob("*.part"))) if out.exists() else 0
    made = session(out, value, n=size)
    assert {p.relative_to(out): sha256(p) for p in products_in(out)} == {
        p.relative_to(folder / f"reference{value}"): sha256(p)
        for p in products_in(folder / f"reference{value}")
    }
    assert not list(out.rglob("*.part"))
    assert session(out, value, n=size) == 0
    return f"{killed} killed, {leftovers} leftovers swept, {made} of 4 made again"


def products_in(folder):
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]


def test_sessions_killed_at_any_time_leave_whole_products(tmp_path):
    child = run_python(KILLER, __file__, tmp_path, 25, 512, 1)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout.split()[0]) >= 10, child.stdout


@pytest.mark.long
def test_200_sessions_killed_with_large_products(tmp_path):
    child = run_python(KILLER, __file__, tmp_path, 330, 2048, 2)
    assert child.returncode == 0, child.stderr
    print(child.stdout)
    assert int(child.stdout.split()[0]) >= 200, child.stdout


# --------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    from astro_narrowband.simulate import simulate_night

    folder = tmp_path_factory.mktemp("night") / "raw"
    simulate_night(
        folder,
        shape=(256, 256),
        filters=("Halpha",),
        n_bias=3,
        n_darks=3,
        n_flats=3,
        light_exposures=(60.0, 60.0, 60.0),
        seed=3,
    )
    return folder


def reduce(night, out):
    from astro_narrowband.cli import main

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return main(["reduce", str(night), "-o", str(out), "--quiet", "--workers", "1"])


def assert_reduce_fails_well(night, out, monkeypatch, capsys, n, code):
    with monkeypatch.context() as patch:
        disk = Disk(patch, code=code, fail_at=n)
        status = reduce(night, out)
    assert disk.failed
    assert status == 5, n
    errors = capsys.readouterr().err.splitlines()
    assert str(out) in errors[-1]
    assert os.strerror(code) in errors[-1]
    assert "Traceback" not in "".join(errors)
    if out.exists():
        for path in out.rglob("*.fits"):
            assert_checksum(path)
        assert not list(out.rglob("*.part"))
        assert not list(out.rglob("*.lock"))


def assert_checksum(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdul:
            assert hdul[0].header["CHECKSUM"]


@pytest.mark.parametrize("at", [0.02, 0.5, 0.9])
def test_reduce_on_a_full_disk_says_so_and_goes_on_later(night, tmp_path, monkeypatch, capsys, at):
    n = 1 + int(at * 100)
    assert_reduce_fails_well(night, tmp_path / "out", monkeypatch, capsys, n, errno.ENOSPC)


@pytest.mark.long
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_reduce_fails_well_at_every_write_call(night, tmp_path, monkeypatch, capsys, code):
    # The first run may also fill caches of libraries in the home folder.
    assert reduce(night, tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        assert reduce(night, tmp_path / "count") == 0
    assert contents(tmp_path / "count") == whole
    for n in range(1, disk.count + 1):
        out = tmp_path / f"out{n}"
        assert_reduce_fails_well(night, out, monkeypatch, capsys, n, code)
        if n % 10 == 0:
            assert reduce(night, out) == 0
            assert contents(out) == whole
    print(f"{disk.count} write calls, {os.strerror(code)} at each: exit 5, nothing partial")


@pytest.mark.long
def test_reduce_killed_at_seeded_times_resumes_to_the_same_bytes(tmp_path):
    """Kills over all stages of a 2048x2048 night; ASTRO_NARROWBAND_KILLS says how many."""
    from astro_narrowband.simulate import simulate_night

    kills = int(os.environ.get("ASTRO_NARROWBAND_KILLS", "200"))
    raw = tmp_path / "raw"
    few = {"n_bias": 4, "n_darks": 3, "n_flats": 3, "light_exposures": (60.0, 60.0, 60.0)}
    simulate_night(raw, shape=(2048, 2048), filters=("Halpha", "OIII"), seed=5, **few)
    command = [sys.executable, "-m", "astro_narrowband", "reduce", str(raw), "--quiet", "-o"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)  # noqa: S603
    duration = time.monotonic() - started
    whole = contents(tmp_path / "whole")
    chance, killed, rounds = random.Random(7), 0, 0
    while killed < kills:
        rounds += 1
        out, there = tmp_path / f"out{rounds}", set()
        while True:
            child = subprocess.Popen(  # noqa: S603
                [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                assert child.wait(chance.uniform(0.1, 1.0) * duration) == 0
                break
            except subprocess.TimeoutExpired:
                child.kill()
                killed += child.wait() == -9
            now = contents(out)
            assert there <= set(now), f"lost: {there - set(now)}"
            there = set(now)
            corrupt = [n for n in now if n.endswith((".fits", ".ecsv")) and now[n] != whole[n]]
            assert not corrupt
        assert contents(out) == whole
        shutil.rmtree(out)
        print(f"{killed} kills in {rounds} folders", flush=True)
    print(f"{killed} kills over {duration:.1f} s of reduce: none corrupt, none lost, same bytes")
