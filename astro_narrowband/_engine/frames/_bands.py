"""Loops over bands of rows, in threads or in any executor."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context

from astro_narrowband._engine.validate import as_count
from astro_narrowband.exceptions import InputTypeError


class Threads(ThreadPoolExecutor):
    """A pool of threads that work in the context of whoever submits: its run hears them warn."""

    def submit(self, function, /, *args, **kwargs):
        """As of `~concurrent.futures.Executor`."""
        return super().submit(copy_context().run, function, *args, **kwargs)


def usable_cores():
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_bands(n_rows, band_rows):
    """
    Return the slices that cut ``n_rows`` rows into bands of ``band_rows``.

    Examples
    --------
    >>> from astro_narrowband._engine.frames import row_bands
    >>> row_bands(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    band_rows = max(1, int(band_rows))
    return [slice(y, min(y + band_rows, n_rows)) for y in range(0, n_rows, band_rows)]


def map_bands(
    function: Callable, bands: Iterable[slice], *, executor: Executor | None = None, workers=None
) -> Iterator:
    """
    Yield ``(rows, function(rows))`` for every band, in order.

    At most a few bands more than there are workers are under way, so that
    results do not pile up while the consumer writes.

    Parameters
    ----------
    function : callable
        Takes a slice of rows. Must be picklable where the executor is not a
        pool of threads.
    bands : iterable of slice
    executor : `~concurrent.futures.Executor`, optional
        Where the work is done. Default is a pool of ``workers`` threads.
    workers : int, optional
        Number of threads, or of bands under way. Default is the number of
        usable cores.
    """
    workers = as_count(workers, "workers") or usable_cores()
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise InputTypeError(
            f"executor = {executor!r} is none: give a concurrent.futures.Executor, such as "
            "Client(...).get_executor() of dask.distributed"
        )
    if executor is None and workers == 1:
        for rows in bands:
            yield rows, function(rows)
        return
    threads = Threads(workers) if executor is None else None
    pool = threads or executor
    under_way = []
    try:
        for rows in bands:
            under_way.append((rows, pool.submit(function, rows)))
            if len(under_way) > workers + 1:
                first, future = under_way.pop(0)
                yield first, future.result()
        while under_way:
            first, future = under_way.pop(0)
            yield first, future.result()
    finally:
        for _, future in under_way:
            future.cancel()
        if threads is not None:
            threads.shutdown()
