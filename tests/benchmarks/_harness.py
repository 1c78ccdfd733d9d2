"""
Measure commands as child processes: wall and CPU seconds, peak RSS.

Every figure is that of a process of its own, measured by the kernel
(`os.wait4`), so that programs in any language stand side by side. Python cases
are measured with and without their work: what they cost before they begin
(interpreter, imports) is a column of its own, and the time of the call is what
the child itself reports, on the last line it prints, as ``CALL seconds``.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

__all__ = ["Figure", "best_of", "child", "python", "table"]


@dataclass
class Figure:
    """
    What one command took: medians over its runs.

    Attributes
    ----------
    wall, cpu : float
        Of the whole process and its children [s].
    rss : float
        Peak resident set [MiB].
    call : float or None
        The part that the child timed itself [s].
    """

    wall: float
    cpu: float
    rss: float
    call: float | None = None

    @property
    def work(self):
        """The time of the call, or that of the whole process if it does not tell."""
        return self.wall if self.call is None else self.call

    @property
    def start(self):
        """Start-up and imports [s]."""
        return 0.0 if self.call is None else self.wall - self.call


def child(command, *, cwd=None, stdin=None, env=None, product=None):
    """
    Run a command once and return its `Figure`.

    A failure shows what it printed; a ``product`` that is not there is one. The peak
    RSS of a program smaller than this process is that of this process.
    """
    read, write = os.pipe()
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
    )
    os.close(write)
    if stdin is not None:
        process.stdin.write(stdin.encode())
        process.stdin.close()
    with os.fdopen(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{output[-2000:]}")
    if product is not None and not os.path.exists(product):
        raise RuntimeError(f"{command[0]} wrote nothing:\n{output[-2000:]}")
    call = re.findall(r"^CALL ([\d.]+)$", output, re.MULTILINE)
    return Figure(
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        float(call[-1]) if call else None,
    )


def python(setup, work):
    """Return the command that runs ``setup`` untimed and ``work`` timed in a new interpreter."""
    code = (
        f"{setup}\nimport time as _t\n_b = _t.perf_counter()\n{work}\n"
        "print('CALL %.4f' % (_t.perf_counter() - _b))"
    )
    return [sys.executable, "-c", code]


def best_of(cases, repeat=3, *, prepare=None):
    """
    Measure cases in turn, ``repeat`` times around, and return medians.

    Parameters
    ----------
    cases : dict of str to (command, dict of keywords for `child`)
        Run one after the other in every round, so that what else the machine
        does falls on all of them.
    repeat : int
    prepare : callable, optional
        Called before every run (to remove what the last one wrote).

    Returns
    -------
    dict of str to `Figure` or str
        The text is why a case could not be run.
    """
    runs = {name: [] for name in cases}
    failed = {}
    for _ in range(repeat):
        for name, (command, keywords) in cases.items():
            if name in failed:
                continue
            if prepare is not None:
                prepare()
            try:
                runs[name].append(child(command, **keywords))
            except (RuntimeError, OSError) as error:
                failed[name] = str(error).replace("\n", " ")[-200:]
    return {name: failed.get(name) or _median(runs[name]) for name in cases}


def _median(figures):
    calls = [f.call for f in figures if f.call is not None]
    return Figure(
        *(statistics.median(getattr(f, key) for f in figures) for key in ("wall", "cpu", "rss")),
        statistics.median(calls) if calls else None,
    )


def table(title, figures, reference):
    """Print one block; ratios are of the time of the call to that of ``reference``."""
    print(f"\n{title}")
    print(f"{'':42}{'call s':>8}{'wall s':>8}{'start s':>8}{'CPU s':>8}{'RSS MiB':>9}{'ratio':>8}")
    base = figures.get(reference)
    for name, f in figures.items():
        if isinstance(f, str):
            print(f"{name:42} could not be run: {f}")
            continue
        ratio = f.work / base.work if isinstance(base, Figure) else float("nan")
        print(
            f"{name:42}{f.work:8.2f}{f.wall:8.2f}{f.start:8.2f}{f.cpu:8.2f}{f.rss:9.0f}{ratio:8.2f}",
            flush=True,
        )
