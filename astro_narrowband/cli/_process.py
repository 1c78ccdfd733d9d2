"""
The process: its streams, and the signals that stop it. Nothing heavy is imported.

Ctrl-C, SIGTERM and SIGHUP end a run in one line, with a status of their own.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from astro_narrowband._engine.text import one_line

#: Seconds within which further signals are of the same event: a terminal that closes sends two.
_ONE_EVENT = 1.0


def ready_streams():
    """Let what a terminal cannot show be no error, nor a stream that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(message):
    """Write a message to stderr, if there is anybody who reads it."""
    line = f"astro-narrowband: {one_line(message).strip()}"
    with contextlib.suppress(OSError):
        if "tqdm" in sys.modules:  # a line of its own, above a bar that is under way
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


def progress_bar(iterable, *, total, description):
    """A bar on a terminal; nothing elsewhere, or where tqdm is not installed."""
    if not sys.stderr.isatty():
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, total=total, desc=description, leave=False, file=sys.stderr)


class Stopped(KeyboardInterrupt):
    """
    A signal, by its number.

    Not a KeyboardInterrupt itself: where one of these passes through a text that is executed (a
    dataclass of a library that loads), Python ends by SIGINT, whoever has caught it.
    """


class _Listener:
    """What is called by signals: the first one stops the run, a later one ends it at once."""

    def __init__(self):
        self.since, self.done = None, False

    def __call__(self, number, _):
        if self.since is None:
            self.since = time.monotonic()
            timer = threading.Timer(_ONE_EVENT, self.again, [number])
            timer.daemon = True
            timer.start()
            raise Stopped(number)
        if time.monotonic() - self.since > _ONE_EVENT:
            os._exit(128 + number)

    def again(self, number):
        """Stop again where code that loads caught the exception: nobody is handling it."""
        main = threading.main_thread().ident
        error = sys._current_exceptions().get(main)
        error = error[1] if isinstance(error, tuple) else error  # before Python 3.12
        if not self.done and stop_in(error) is None:
            self.since = None
            signal.pthread_kill(main, number)

    def unraisable(self, problem):
        """Stop again where Python dropped the exception, as it does in callbacks of its own."""
        if isinstance(problem.exc_value, Stopped):
            self.since = None
            target = threading.main_thread().ident, problem.exc_value.args[0]
            threading.Timer(0.02, signal.pthread_kill, target).start()
        else:
            sys.__unraisablehook__(problem)


def stop_in(error):
    """
    Return what a signal raised, where an exception hides it, or None.

    A signal that comes while C code loads becomes another exception there.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def stoppable(command, *, last=False):
    """
    Return what a command returns; where a signal stops it, say so and return 128 + its number.

    Signals that are ignored stay so (nohup). Outside of the main thread nothing is listened to.
    ``last``: the process ends afterwards, and a signal until then ends it without more words.
    """
    listener, hook, before = _Listener(), sys.unraisablehook, {}
    try:
        try:
            if threading.current_thread() is threading.main_thread():
                sys.unraisablehook = listener.unraisable
                for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                    number = getattr(signal, name, None)
                    now = number and signal.getsignal(number)
                    if now in (signal.SIG_DFL, signal.default_int_handler):
                        before[number] = signal.SIG_DFL if last else now
                        signal.signal(number, listener)
            return command()
        finally:
            listener.since, listener.done = listener.since or time.monotonic(), True
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = hook
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        name = signal.Signals(number).name
        what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
        say(f"{what}; what is finished is kept, run the same command to go on")
        return 128 + number
