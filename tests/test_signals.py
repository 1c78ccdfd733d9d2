"""Signals: a run that is stopped says so in one line, leaves nothing, goes on to the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from astro_narrowband.cli._process import Stopped, stop_in, stoppable
from astro_narrowband.simulate import simulate_night

SCRIPT = "import sys; from astro_narrowband.cli import main; sys.exit(main())"
#: A run that was stopped may go on to the end of the band or the file that it works on.
PATIENCE = 60


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "night"
    simulate_night(
        folder, shape=(160, 160), filters=("Halpha",), n_bias=4, n_darks=3, n_flats=3,
        light_exposures=(60.0, 60.0, 60.0, 60.0), seed=4,
    )  # fmt: skip
    return folder


class Child:
    """The command in a session of its own, with a folder of its own for temporary files."""

    def __init__(self, folder, *arguments, installed=False):
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        python = ["-c", SCRIPT] if installed else ["-m", "astro_narrowband"]
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, *python, *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.scratch)},
        )  # fmt: skip

    def end(self):
        """The status and what was said, once nothing of its session is left."""
        errors = self.process.communicate(timeout=PATIENCE)[1]
        for _ in range(100):
            if not (orphans := self.session()):
                break
            time.sleep(0.1)
        assert not orphans, orphans
        return self.process.returncode, errors

    def session(self):
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    alive.append(stat.with_name("cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return alive


def contents(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(folder): p.read_bytes() for p in files}


def check_stop(child, number, *, group=False):
    """Send a signal; check what is said and how it ends; return whether it was stopped."""
    (os.killpg if group else os.kill)(child.process.pid, number)
    status, errors = child.end()
    # Python itself, before the first line of the package and after the last.
    assert "Traceback" not in errors or "astro_narrowband" not in errors, errors
    assert status in (0, 128 + number, -number), (status, errors)
    if status == 128 + number:
        assert len(errors.splitlines()) == 1, errors
        assert "what is finished is kept, run the same command to go on" in errors
    if number != signal.SIGKILL:
        assert not list(child.scratch.iterdir())
    return status != 0


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_run_in_one_line(night, tmp_path, number, installed):
    after = {signal.SIGTERM: 1.5, signal.SIGHUP: 0.5, signal.SIGINT: 0.3}[number]
    child = Child(tmp_path, "reduce", night, "--quiet", "-o", tmp_path / "out", installed=installed)
    time.sleep(after)
    assert check_stop(child, number)
    assert not list(tmp_path.rglob("*.part"))


def test_a_signal_in_a_text_that_is_executed_does_not_end_python_by_sigint(tmp_path):
    """Python ends by SIGINT where a bare KeyboardInterrupt has passed through ``exec``."""
    code = """
        import os, signal, sys
        from astro_narrowband.cli._process import stoppable
        def command():
            exec("os.kill(os.getpid(), signal.SIGHUP)\\nfor i in range(9999): pass")
        sys.exit(stoppable(command))
    """
    (tmp_path / "ended.py").write_text("if 1:\n" + code)
    command = [sys.executable, "-m", "ended"]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)  # noqa: S603
    assert done.returncode == 129


def test_a_signal_that_python_drops_stops_the_run_all_the_same(capsys):
    class Dropping:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass

    def command():
        dropping = Dropping()
        del dropping
        time.sleep(10)

    started = time.monotonic()
    assert stoppable(command) == 143
    assert time.monotonic() - started < 5
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_of_two_signals_of_one_event_does_not_disturb_the_end(capsys):
    ended = []

    def command():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(5)
        except Stopped:
            os.kill(os.getpid(), signal.SIGHUP)
            ended.append(True)
            raise

    assert stoppable(command) == 129
    assert ended
    assert "stopped by SIGHUP" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_signals_at_any_time_leave_nothing_and_resume_to_the_same_bytes(night, tmp_path, where):
    """ASTRO_NARROWBAND_SIGNALS says how many: of four kinds, to the process or all of its group."""
    wanted = int(os.environ.get("ASTRO_NARROWBAND_SIGNALS", "100"))
    arguments = ["reduce", night, "--quiet", "--workers", "2", "--scheduler", where, "-o"]
    started = time.monotonic()
    assert Child(tmp_path, *arguments, tmp_path / "whole").end() == (0, "")
    duration = time.monotonic() - started
    whole, chance = contents(tmp_path / "whole"), random.Random(3)
    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
    sent = stopped = 0
    while sent < wanted:
        out, going_on = tmp_path / f"out{sent}", True
        while going_on:
            child = Child(tmp_path, *arguments, out, installed=bool(sent % 2))
            time.sleep(chance.uniform(0, 1.05 * duration))
            number, group = kinds[sent % 4], sent % 8 in (0, 2, 5)
            going_on = check_stop(child, number, group=group and number != signal.SIGTERM)
            sent += 1
            stopped += going_on
        assert Child(tmp_path, *arguments, out).end() == (0, "")
        assert contents(out) == whole
        assert not list(tmp_path.rglob("*.part"))
        assert not list(child.scratch.iterdir())
        shutil.rmtree(out)
        print(f"{sent} signals, {stopped} stopped a run", flush=True)


def test_a_signal_is_told_where_another_exception_hides_it():
    stop = KeyboardInterrupt(signal.SIGTERM)

    def load():
        try:
            raise stop
        except KeyboardInterrupt:
            raise SystemError("a module did not load")  # noqa: B904 - as C code does

    with pytest.raises(SystemError) as caught:
        load()
    assert stop_in(caught.value) is stop
    assert stop_in(ValueError("a bug")) is None


def test_a_signal_that_loading_code_drops_is_not_lost(capsys):
    def command():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        time.sleep(5)
        return 0

    assert stoppable(command) == 128 + signal.SIGTERM
