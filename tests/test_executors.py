"""The same work on threads, processes and a Dask cluster, and workers that die on the way."""

import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband._engine import executors
from astro_narrowband._engine.executors import open_executor, run_bands
from astro_narrowband._engine.frames import Frame, row_bands
from astro_narrowband.coaddition import coadd
from astro_narrowband.exceptions import InputError, NarrowbandWarning, ProductError

# Dask warns of its own accord when it starts and stops.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Work:
    """Count rows; slowly, or dying on the way, if told."""

    def __init__(self, *, pause=0.0, die_at=None, once=None, payload=0):
        self.pause, self.die_at, self.once = pause, die_at, once
        self.home = os.getpid()
        self.payload = np.arange(payload)

    def __call__(self, rows):
        time.sleep(self.pause)
        away = os.getpid() != self.home
        again = self.once is not None and os.path.exists(self.once)
        if rows.start == self.die_at and away and not again:
            if self.once is not None:
                open(self.once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return rows.stop - rows.start + int(self.payload.sum() * 0)


def lines(found):
    return [(rows.start, n) for rows, n in found]


EXPECTED = [(y, 10) for y in range(0, 100, 10)]
BANDS = row_bands(100, 10)


@pytest.fixture
def frames(tmp_path, rng):
    paths = []
    for k, t in enumerate((60.0, 60.0, 120.0, 300.0)):
        electrons = rng.poisson(0.5 * t, (96, 80)) + rng.normal(0, 5, (96, 80))
        electrons.ravel()[rng.integers(0, 96 * 80, 30)] += 900.0
        variance = VarianceUncertainty(np.full((96, 80), (0.5 * t + 25) / t**2))
        ccd = CCDData(electrons / t, unit=u.electron / u.s, uncertainty=variance,
                      header=fits.Header({"EXPTIME": t}))  # fmt: skip
        paths.append(tmp_path / f"light{k}.fits")
        ccd.write(paths[-1])
    return paths


def bits(made):
    planes = (made.ccd.data, made.ccd.uncertainty.array, made.coverage, made.exposure)
    return [plane.tobytes() for plane in (*planes, made.n_rejected)]


# --------------------------------------------------------------------------- in this process


def test_threads_are_the_default():
    with open_executor() as executor:
        assert executor is None
    with open_executor("threads") as executor:
        assert executor is None
    with ThreadPoolExecutor(2) as mine:
        with open_executor(mine) as executor:
            assert executor is mine
        assert lines(run_bands(Work(), BANDS, executor=mine)) == EXPECTED
    assert lines(run_bands(Work(), BANDS)) == EXPECTED


@pytest.mark.parametrize("where", ["thread", "slurm", "/no/such/scheduler.json"])
def test_unknown_place(where):
    with pytest.raises(InputError, match=r"scheduler = .* is not known"), open_executor(where):
        pass


def test_no_cluster_answers(monkeypatch):
    pytest.importorskip("distributed")
    import distributed

    def client(*_, **__):
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", client)
    with pytest.raises(ProductError, match="no answer"), open_executor("tcp://127.0.0.1:1"):
        pass


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="needs Dask"), open_executor("local"):
        pass


class Breaking:
    """An executor that breaks after some submissions, and says so in one way or the other."""

    def __init__(self, good, error, *, at_submit=False):
        self.good, self.error, self.at_submit = good, error, at_submit
        self.submitted = 0

    def submit(self, function, rows):
        self.submitted += 1
        future = Future()
        if self.submitted > self.good:
            if self.at_submit:
                raise self.error
            future.set_exception(self.error)
        else:
            future.set_result(function(rows))
        return future


@pytest.mark.parametrize("at_submit", [False, True])
def test_a_broken_executor_costs_time_and_not_the_result(at_submit):
    executor = Breaking(3, BrokenProcessPool("a process was killed"), at_submit=at_submit)
    with pytest.warns(NarrowbandWarning, match="a worker was lost"):
        assert lines(run_bands(Work(), BANDS, executor=executor, workers=2)) == EXPECTED
    submitted = executor.submitted
    assert lines(run_bands(Work(), BANDS, executor=executor)) == EXPECTED  # nor waits again
    assert executor.submitted == submitted


def test_a_band_lost_on_the_way_is_done_again_there():
    class Flaky(Breaking):
        def submit(self, function, rows):
            future = super().submit(function, rows)
            if self.submitted > self.good:
                self.good = 1000  # the next one works again
            return future

    executor = Flaky(3, ConnectionError("worker gone"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lines(run_bands(Work(), BANDS, executor=executor, workers=1)) == EXPECTED
    assert executor.submitted > len(BANDS)


def test_a_client_that_was_closed_on_the_way_loses_no_band():
    """As Dask's is, once its scheduler was away for long."""
    closed = type("ClosedClientError", (Exception,), {})

    class Closed:
        def submit(self, function, rows):
            raise closed("Client is closed. Can't send update-graph message.")

    with pytest.warns(NarrowbandWarning, match="a worker was lost"):
        assert lines(run_bands(Work(), BANDS, executor=Closed(), workers=2)) == EXPECTED


def test_errors_of_the_work_are_raised_and_not_tried_again():
    calls = []

    class Fails:
        def submit(self, function, rows):
            calls.append(rows)
            future = Future()
            future.set_exception(InputError("x.fits: is truncated"))
            return future

    with pytest.raises(InputError, match="truncated"):
        list(run_bands(Work(), BANDS[:1], executor=Fails(), workers=1))
    assert len(calls) == 1


def test_work_that_cannot_be_sent():
    with pytest.raises(InputError, match="cannot be sent"):
        list(run_bands(lambda rows: rows, BANDS, executor=Breaking(9, None)))


def test_large_work_is_sent_once_and_cleaned_away(monkeypatch, tmp_path):
    monkeypatch.setattr(executors.tempfile, "tempdir", str(tmp_path))
    seen = []

    class Here:
        def submit(self, function, rows):
            seen.append((function.content, function.path))
            future = Future()
            future.set_result(function(rows))
            return future

    work = Work(payload=300_000)
    assert lines(run_bands(work, BANDS, executor=Here())) == EXPECTED
    assert all(content is None and path for content, path in seen)
    assert list(tmp_path.iterdir()) == []
    executors._HELD.clear()
    parcel = executors._Parcel(work)
    parcel.path, parcel.content = str(tmp_path / "gone.work"), None
    with pytest.raises(InputError, match="a disk that all machines see"):
        parcel(BANDS[0])


# --------------------------------------------------------------------------- processes


def test_processes_give_the_same_bits_and_survive_a_kill(frames, tmp_path):
    here = bits(coadd(frames, flux_scale="none", workers=1))
    with open_executor("processes", workers=2) as executor:
        there = bits(coadd(frames, flux_scale="none", executor=executor, memory=4e6))
        assert here == there
        found = run_bands(Work(die_at=30, pause=0.01), BANDS, executor=executor, workers=2)
        with pytest.warns(NarrowbandWarning, match="a worker was lost"):
            found = lines(found)
        assert found == EXPECTED


# --------------------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )  # fmt: skip
        yield cluster
        cluster.close()


def test_dask_gives_the_same_bits(cluster, frames):
    here = bits(coadd(frames, flux_scale="none", workers=1))
    with open_executor(cluster.scheduler_address) as executor:
        assert executors._n_workers(executor) == 2
        there = bits(coadd(frames, flux_scale="none", executor=executor, memory=1e6))
    assert here == there


def test_dask_worker_killed_in_the_middle(cluster, tmp_path):
    """Killed from within, once: the scheduler gives the band to another worker."""
    with open_executor(cluster.scheduler_address) as executor:
        work = Work(die_at=40, once=str(tmp_path / "died"), pause=0.02)
        assert lines(run_bands(work, BANDS, executor=executor, workers=2)) == EXPECTED
    assert (tmp_path / "died").exists()


def test_dask_worker_killed_from_outside_during_a_coadd(cluster, frames):
    here = bits(coadd(frames, flux_scale="none", workers=1))
    with open_executor(cluster.scheduler_address) as executor:
        client = executor._client
        client.wait_for_workers(2, timeout=30)
        pids = list(client.run(os.getpid).values())
        killer = threading.Timer(0.05, os.kill, (pids[0], signal.SIGKILL))
        killer.start()
        there = bits(coadd([Slow(p) for p in frames], flux_scale="none", executor=executor,
                           workers=2, memory=1))  # fmt: skip
        killer.join()
    assert here == there


class Slow(Frame):
    """A frame that takes its time."""

    def __init__(self, path):
        from astro_narrowband._engine.frames import FitsFrame

        self.inner = FitsFrame(path)
        self.name, self.shape = self.inner.name, self.inner.shape
        self.unit, self.header = self.inner.unit, self.inner.header

    def read(self, rows):
        time.sleep(0.02)
        return self.inner.read(rows)


@pytest.mark.long
def test_band_that_kills_every_worker_is_done_here(cluster):
    """Work that always kills its worker ends in this process, with a warning."""
    with open_executor(cluster.scheduler_address) as executor:
        found = run_bands(Work(die_at=20), BANDS[:4], executor=executor, workers=2)
        with pytest.warns(NarrowbandWarning, match=r"a worker was lost \(KilledWorker"):
            found = lines(found)
    assert found == EXPECTED[:4]


@pytest.mark.long
def test_local_cluster_of_our_own():
    with open_executor("local", workers=2) as executor:
        assert executors._n_workers(executor) == 2
        assert lines(run_bands(Work(), BANDS, executor=executor)) == EXPECTED
