"""What there is to say about a run: each thing once, shown and kept."""

import contextlib
import os
import signal
import sys
import threading
import warnings

from astro_narrowband.exceptions import NarrowbandWarning

__all__ = ["Messages", "progress_bar", "ready_streams", "signals_as_interrupts"]


class Messages:
    """
    Messages of a run; a context manager that listens to this package's warnings as well.

    Attributes
    ----------
    found : list of dict
        ``{"level": "warning" or "error", "text": one line}``, in the order said.
    """

    def __init__(self):
        self.found = []
        self._seen = set()

    def __enter__(self):
        self._context = warnings.catch_warnings()
        self._context.__enter__()
        warnings.simplefilter("always", NarrowbandWarning)
        self._show = warnings.showwarning
        warnings.showwarning = self._listen
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def say(self, text, level="warning"):
        """Say something that is no warning of a library function."""
        if text not in self._seen:
            self._seen.add(text)
            self.found.append({"level": level, "text": text})
            warning = NarrowbandWarning(text)
            warning.level = level
            self._show(warning, NarrowbandWarning, __name__, 0)

    def _listen(self, message, category, filename, lineno, file=None, line=None):
        if issubclass(category, NarrowbandWarning):
            self.say(str(message))
        else:
            self._show(message, category, filename, lineno, file, line)


@contextlib.contextmanager
def signals_as_interrupts():
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, with their own status."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        raise KeyboardInterrupt(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored stays so: nohup.
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def ready_streams():
    """Let what a terminal cannot show be no error, nor a stream that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def progress_bar(iterable, *, total, description):
    """A bar on a terminal; nothing elsewhere, or where tqdm is not installed."""
    if not sys.stderr.isatty():
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, total=total, desc=description, leave=False, file=sys.stderr)
