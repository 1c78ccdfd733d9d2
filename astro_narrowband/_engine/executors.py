"""
Where bands are worked on: threads, processes, or a Dask cluster.

Everything that is done band by band takes a `concurrent.futures.Executor`.
`open_executor` makes one from a word or an address; `run_bands` runs the work
on it so that a worker lost on the way costs time and not the result.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from astro_narrowband._engine.files import Temporary, sweep
from astro_narrowband._engine.frames import map_bands, usable_cores
from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import InputError, ProductError, warn

#: Work that pickles to more than this is sent to the workers once, as a file.
INLINE = 1 << 20
#: A band that was lost so often is not tried again elsewhere, but done here.
ATTEMPTS = 3
_WORDS = ("threads", "processes", "local")
_SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "inproc")
#: Seconds that a scheduler and its workers may take to answer, and that all workers may be away.
ANSWER, AWAY = 10, 10
#: Executors all of whose workers are gone: no coadd waits for them again.
_BROKEN = weakref.WeakSet()


def check_place(where):
    """
    Return where bands are worked on, a str, if it is a word or may be a cluster.

    Raises
    ------
    InputError
        If it is not: an address of another kind, a file that is no scheduler file.
    """
    address = where
    if "://" not in where and Path(where).is_file():
        try:
            address = json.loads(Path(where).read_bytes())["address"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{one_line(where)}: is no scheduler file: give the one that 'dask scheduler "
                "--scheduler-file' writes"
            ) from None
    scheme, _, host = str(address).partition("://")
    if where not in _WORDS and not (scheme in _SCHEMES and host):
        raise InputError(
            f"scheduler = {one_line(where)!r} is not known: use threads, processes, local, the "
            "address of a Dask scheduler (tcp://HOST:PORT) or its scheduler file"
        )
    return where


@contextmanager
def open_executor(where=None, *, workers=None):
    """
    Open what bands are worked on.

    Parameters
    ----------
    where : None, str or `~concurrent.futures.Executor`, optional
        ``"threads"`` or None: threads of this process. ``"processes"``: a pool
        of processes. ``"local"``: a Dask cluster on this machine. An address
        such as ``"tcp://head:8786"``, or the path of a scheduler file: a Dask
        cluster that is running. An executor is passed through, and stays open.
    workers : int, optional
        Number of processes. Default is the number of usable cores.

    Yields
    ------
    `~concurrent.futures.Executor` or None
        None means threads.

    Raises
    ------
    InputError
        If ``where`` is not known, or Dask is not installed.
    ProductError
        If no cluster answers.

    Examples
    --------
    >>> from astro_narrowband._engine.executors import open_executor
    >>> with open_executor("threads") as executor:
    ...     print(executor)
    None
    """
    if where is None or where == "threads":
        yield None
    elif isinstance(where, Executor) or hasattr(where, "submit"):
        yield where
    elif where == "processes":
        with _processes(workers or usable_cores()) as pool:
            yield pool
    else:
        with _dask(check_place(str(where)), workers or usable_cores()) as pool:
            yield pool


@contextmanager
def _processes(workers):
    # Not fork: threads of this process may hold locks.
    context = multiprocessing.get_context("spawn")
    with _deaf_children():  # one that keeps a list of what is shared
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with _deaf_children():
            for _ in range(workers):
                pool.submit(int)
        yield pool
    except BaseException:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    pool.shutdown()


@contextmanager
def _deaf_children():
    """
    Start processes to which Ctrl-C in a terminal, and its end, are nothing.

    They reach all that it started: it is this process that ends the others.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent():
    """Let this process not outlive the one that started it, however that ends."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _dask(where, workers):
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(
            f"scheduler = {where!r} needs Dask: pip install astro-narrowband[dask]"
        ) from None
    with ExitStack() as stack:
        # What becomes of it is said in our words.
        log = logging.getLogger("distributed.client")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL + 1)
        try:
            if where == "local":
                place = LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True,
                    dashboard_address="127.0.0.1:0",
                )  # fmt: skip
                stack.callback(_close, place)
                named = {"address": place}
            else:
                named = {"address" if "://" in where else "scheduler_file": where}
            client = _within(ANSWER + 5, lambda: Client(timeout=ANSWER, **named))
            stack.callback(_close, client)
            _within(ANSWER + 5, lambda: client.wait_for_workers(1, timeout=ANSWER))
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            raise ProductError(
                f"scheduler {where}: no answer from it and a worker ({type(error).__name__}): "
                "start it with 'dask scheduler' and workers with 'dask worker', or leave out "
                "--scheduler"
            ) from None
        yield client.get_executor(retries=ATTEMPTS)


def _within(seconds, call):
    """Do what may never end, and be back in time: `TimeoutError` if it has not ended."""
    done = Future()

    def run():
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(timeout=seconds)


def _close(remote):
    """Close a client or a cluster; where it is gone there is nothing to close."""
    with suppress(Exception):
        _within(5, lambda: remote.close(timeout=3))


# --------------------------------------------------------------------------- running


def run_bands(function, bands, *, executor=None, workers=None):
    """
    Yield ``(rows, function(rows))`` for every band, in order, whatever becomes of the workers.

    Parameters
    ----------
    function : callable
        Takes a slice of rows; what it returns depends on them alone. Must be
        picklable where the executor is not a pool of threads. It is pickled
        once, not once for each band.
    bands : sequence of slice
    executor : `~concurrent.futures.Executor`, optional
        Default is a pool of threads. Errors of the work itself are raised as
        they are; a band that is lost because its worker died is done again,
        and if the executor is broken for good (as a pool of processes is once
        a process was killed), here, in threads.
    workers : int, optional
        Threads, or bands under way. Default is the number of usable cores.

    Raises
    ------
    InputError
        If the work cannot be pickled for the executor.

    Examples
    --------
    >>> from astro_narrowband._engine.executors import run_bands
    >>> from astro_narrowband._engine.frames import row_bands
    >>> list(run_bands(lambda rows: rows.stop - rows.start, row_bands(5, 2)))
    [(slice(0, 2, None), 2), (slice(2, 4, None), 2), (slice(4, 5, None), 1)]
    """
    if executor in _BROKEN:
        executor = None
    if executor is None or _shares_memory(executor):
        yield from map_bands(function, bands, executor=executor, workers=workers)
        return
    with _Parcel(function).sent() as parcel:
        resilient = _Resilient(executor, function)
        yield from map_bands(
            parcel, bands, executor=resilient, workers=workers or _n_workers(executor)
        )


def _shares_memory(executor):
    from concurrent.futures import ThreadPoolExecutor

    return isinstance(executor, ThreadPoolExecutor)


def _has_workers(executor):
    """Whether anybody works for an executor, as far as one can know without asking far away."""
    client = getattr(executor, "_client", None)
    if client is None:
        return True
    return client.status == "running" and bool(client.scheduler_info().get("workers"))


def _n_workers(executor):
    """How many bands at a time an executor can work on."""
    client = getattr(executor, "_client", None)
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    return getattr(executor, "_max_workers", None) or usable_cores()


class _Parcel:
    """
    A function that is pickled once and unpickled once in each worker.

    Called with rows it runs there. A large one goes by way of a temporary
    file, which the workers must be able to read.
    """

    def __init__(self, function):
        try:
            content = pickle.dumps(function, protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"this work cannot be sent to other processes ({error}): give frames as files, "
                "or use threads"
            ) from None
        self.key = hashlib.sha256(content).hexdigest()
        self.content = content
        self.path = None

    @contextmanager
    def sent(self):
        """Hold the file that a large one goes by."""
        if len(self.content) <= INLINE:
            yield self
            return
        folder = Path(tempfile.gettempdir())
        sweep(folder)
        with Temporary(folder / "work") as file:
            file.write(self.content)
            self.path, self.content = str(file.name), None
            yield self

    def __call__(self, rows):
        return _unpacked(self)(rows)


_HELD = OrderedDict()
_LOCK = threading.Lock()


def _unpacked(parcel):
    """The function of a parcel; a worker keeps the last two."""
    with _LOCK:
        if parcel.key not in _HELD:
            content = parcel.content
            if content is None:
                try:
                    content = Path(parcel.path).read_bytes()
                except OSError:
                    raise InputError(
                        "the frames are arrays in memory, and the worker cannot read "
                        f"{parcel.path}: give files on a disk that all machines see"
                    ) from None
            # Our own bytes, made in this run: not what a file from outside holds.
            _HELD[parcel.key] = pickle.loads(content)  # noqa: S301
            while len(_HELD) > 2:
                _HELD.popitem(last=False)
        _HELD.move_to_end(parcel.key)
        return _HELD[parcel.key]


class _Lost(Exception):  # noqa: N818
    """A band was lost with its worker."""


#: What Dask calls it.
_LOSSES = ("KilledWorker", "CommClosedError", "FutureCancelledError", "ClosedClientError")


def _is_loss(error):
    """Whether an error says that the worker went, and not that the work failed."""
    if isinstance(error, _Lost | BrokenExecutor | CancelledError | EOFError | ConnectionError):
        return True
    return type(error).__name__ in _LOSSES


class _Resilient:
    """An executor whose lost bands are done again: there, and then in this process."""

    def __init__(self, executor, function):
        self.executor, self.function = executor, function
        self.broken = False

    def submit(self, parcel, rows):
        return _Attempt(self, parcel, rows)

    def here(self, rows, error):
        if not self.broken:
            self.broken = True
            if isinstance(error, BrokenExecutor | _Lost):
                _BROKEN.add(self.executor)
            warn(
                f"a worker was lost ({type(error).__name__}: {error}): its bands are done again "
                "in this process; if it ran out of memory, give a smaller --memory",
                stacklevel=2,
            )
        return self.function(rows)


class _Attempt:
    """One band under way."""

    def __init__(self, owner, parcel, rows):
        self.owner, self.parcel, self.rows = owner, parcel, rows
        self.error = self.future = None
        self._submit()

    def _submit(self):
        if self.owner.broken:
            self.error = self.error or _Lost("the executor is broken")
            return
        try:
            self.future = self.owner.executor.submit(self.parcel, self.rows)
        except Exception as error:
            if not (isinstance(error, RuntimeError) or _is_loss(error)):
                raise
            self.error = error
            self.future = None

    def result(self):
        for _ in range(ATTEMPTS):
            if self.future is None:
                break
            try:
                return self._waited()
            except Exception as error:
                if not _is_loss(error):
                    raise
                self.error = error
                self.future = None
            if isinstance(self.error, BrokenExecutor | _Lost):
                break
            self._submit()
        return self.owner.here(self.rows, self.error)

    def _waited(self):
        """The result; `_Lost` if nobody is there any more who could give it."""
        since = None
        while True:
            try:
                return self.future.result(timeout=2)
            except TimeoutError:
                if self.future.done():
                    raise
            if self.owner.broken:
                raise _Lost("the executor is broken")
            if _has_workers(self.owner.executor):
                since = None
            else:
                since = since or time.monotonic()
                if time.monotonic() - since > AWAY:
                    raise _Lost("no worker is left")

    def cancel(self):
        if self.future is not None:
            self.future.cancel()
