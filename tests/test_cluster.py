"""A real Dask scheduler with two workers, and clusters that misbehave: right bits or one line."""

import contextlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from astropy.io import fits

from astro_narrowband.simulate import simulate_night

pytest.importorskip("distributed")
pytestmark = pytest.mark.long

#: Seconds within which every run ends, on a machine that needs less than 20 for one in threads.
PATIENCE = 60


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Cluster:
    """Processes as a user starts them: ``dask scheduler``, ``dask worker``."""

    def __init__(self, home, workers):
        self.port, self.dashboard = free_port(), free_port()
        self.file = home / "scheduler.json"
        self.processes = [
            self.start(home, "scheduler", "--host", "127.0.0.1", "--port", self.port,
                       "--dashboard-address", f"127.0.0.1:{self.dashboard}",
                       "--scheduler-file", self.file)
        ]  # fmt: skip
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.wait_for(self.port)
        for k in range(workers):
            elsewhere = home / f"worker{k}"
            elsewhere.mkdir()
            self.processes.append(
                self.start(elsewhere, "worker", self.address, "--nthreads", "1", "--no-nanny",
                           "--no-dashboard")
            )  # fmt: skip

    def start(self, home, *arguments):
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}",
             *map(str, arguments[1:])],
            cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_for(self, port):
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        raise AssertionError("the scheduler does not start")

    def kill(self, which):
        for process in self.processes[which]:
            process.send_signal(signal.SIGKILL)

    def close(self):
        self.kill(slice(None))
        for process in self.processes:
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = []

    def make(workers):
        made.append(Cluster(tmp_path, workers))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster") / "night"
    simulate_night(
        folder, shape=(512, 512), filters=("Halpha",), n_bias=3, n_darks=3, n_flats=3,
        light_exposures=(60.0,) * 4, seed=4,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(night, tmp_path_factory):
    """The coadd in threads, and the seconds that it took."""
    out, started = tmp_path_factory.mktemp("expected"), time.monotonic()
    assert run(night, out)[0] == 0
    return coadd(out), time.monotonic() - started


def run(night, out, *options, meanwhile=None, cwd=None):
    command = [sys.executable, "-m", "astro_narrowband", "reduce", night, "-o", out, "--quiet"]
    command += ["--memory", "2M"]  # several bands
    child = subprocess.Popen(  # noqa: S603
        list(map(str, [*command, *options])), stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    if meanwhile is not None:
        meanwhile(child)
    try:
        errors = child.communicate(timeout=600)[1]
    finally:
        child.kill()
    return child.returncode, errors.splitlines()


def coadd(out):
    (path,) = out.glob("coadd-*.fits")
    with fits.open(path) as hdul:
        return [hdu.data.copy() for hdu in hdul[:5]]


def check(night, out, expected, *options, **more):
    """Reduce with a cluster: right bits, or one line, in time; return the status and words."""
    planes, usual = expected
    started = time.monotonic()
    status, errors = run(night, out, *options, **more)
    took = time.monotonic() - started
    print(f"status {status} after {took:.1f} s (threads: {usual:.1f} s): {errors}")
    assert took < max(PATIENCE, 3 * usual)
    assert "Traceback" not in "".join(errors)
    if status == 0:
        for made, true in zip(coadd(out), planes, strict=True):
            np.testing.assert_array_equal(made, true)
    else:
        assert status in (2, 5)
        assert status == 2 or len(errors) == 1
    return status, errors


def killing(cluster, out, which):
    """Kill some processes of a cluster when the bands of a coadd are under way."""

    def meanwhile(child):
        while not list((out / "masters").glob("flat*.fits")) and child.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        cluster.kill(which)

    return meanwhile


def test_the_port_of_the_dashboard(night, tmp_path, expected, cluster):
    made = cluster(2)
    made.wait_for(made.dashboard)
    address = f"tcp://127.0.0.1:{made.dashboard}"
    status, errors = check(night, tmp_path / "out", expected, "--scheduler", address)
    assert status == 5
    assert address in errors[0]


def test_a_server_that_never_answers(night, tmp_path, expected):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        status, errors = check(night, tmp_path / "out", expected, "--scheduler", address)
    assert status == 5
    assert address in errors[0]


def test_a_scheduler_without_workers(night, tmp_path, expected, cluster):
    address = cluster(0).address
    status, errors = check(night, tmp_path / "out", expected, "--scheduler", address)
    assert status == 5
    assert address in errors[0]


@pytest.mark.parametrize("which", [slice(1, None), slice(0, 1)], ids=["workers", "scheduler"])
def test_all_workers_or_the_scheduler_are_killed_on_the_way(
    night, tmp_path, expected, cluster, which
):
    made, out = cluster(2), tmp_path / "out"
    kill = killing(made, out, which)
    options = ["--scheduler", made.address]
    status, errors = check(night, out, expected, *options, meanwhile=kill)
    assert status == 0
    assert not errors or "a worker was lost" in errors[0]


@pytest.mark.parametrize("text", ["http://127.0.0.1:8787", "bad.json"])
def test_what_is_no_scheduler_is_usage(night, tmp_path, expected, text):
    (tmp_path / "bad.json").write_text('{"type": "Scheduler"}')
    place = text if "://" in text else tmp_path / text
    assert check(night, tmp_path / "out", expected, "--scheduler", place)[0] == 2


def test_a_relative_night_with_workers_elsewhere(night, tmp_path, expected, cluster):
    made = cluster(2)
    out = tmp_path / "out"
    options = ["--scheduler", made.file]
    status, errors = check(night.name, out, expected, *options, cwd=night.parent)
    assert (status, errors) == (0, [])
