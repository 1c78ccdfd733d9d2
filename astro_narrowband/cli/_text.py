"""Results as text on stdout."""

import contextlib
import math
import os
import sys

from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import ProductError


def show(*lines):
    """
    Print lines. Where nobody reads them, what was done stays as it is, and so does its status.

    Raises
    ------
    ProductError
        If stdout cannot be written.
    """
    try:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    except OSError as error:
        with contextlib.suppress(OSError):  # what waits in the stream is not written later
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise ProductError(
                f"standard output: cannot be written ({error.strerror}): free some space, or send "
                "it elsewhere; products are kept"
            ) from None


def summary(record, output):
    """Return the lines that sum up the record of a night."""
    rows, failed = [], []
    for group in record["groups"]:
        if group["status"] != "done":
            failed.append(f"{group['label']}: not made: {group['reason']}")
            continue
        without = ", ".join(group["without"])
        test = group.get("self_test") or {}
        rows.append(
            [
                group["label"] + (f" (without {without})" if without else ""),
                f"{group['n_used']} of {len(group['frames'])}",
                f"{group['exposure_total']:g}",
                f"{group['noise']:.3g}",
                f"{test['NOISEPIX']:.2f}" if "NOISEPIX" in test else "-",
                f"{group['fwhm']:.2f}",
            ]
        )
    heads = ["", "frames", "exposure", "noise", "over", "FWHM"]
    units = ["", "", "s", "electron/s", "predicted", "pix"]
    lines = columns([heads, units, *rows]) if rows else columns(_library(record["masters"]))
    counts = record["files"]
    lines += [one_line(line) for line in failed]
    lines.append(
        f"{counts['found']} files: {counts['used']} used, {counts['left out']} left out, "
        f"{counts['ignored']} ignored"
    )
    page = "report.html" if "report.html" in record["products"] else "night.json"
    return [*lines, one_line(os.path.join(output, page))]


def _library(masters):
    """Rows of a table of masters, where nothing else was made."""
    rows = []
    for master in masters:
        n, reach = master["n_frames"], master.get("reach")
        times = master.get("exposures") or master.get("exposure") or ()
        span = " to ".join(dict.fromkeys(f"{f(times):g}" for f in (min, max))) if times else "-"
        serves = f"lights up to {reach:.3g} s" if reach else ""
        count = sum(n) if isinstance(n, list | tuple) else n
        rows.append([master["path"], str(count), span, serves])
    return [["", "frames", "exposure [s]", "serves"], *rows] if rows else []


def columns(rows):
    """Return the lines of a table: the first column to the left, numbers to the right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def sensible(table):
    """Return a copy of a table whose numbers have the digits that their errors allow."""
    table = table.copy()
    for name in table.colnames:
        column = table[name]
        if column.dtype.kind != "f":
            continue
        error = next((e for e in (f"{name}_err", name) if e in table.colnames and "err" in e), None)
        if error is None:
            column.info.format = ".4g" if name not in ("x_center", "y_center", "radius") else ".2f"
            continue
        sizes = [abs(float(value)) for value in getattr(table[error], "value", table[error])]
        sizes = [size for size in sizes if math.isfinite(size) and size > 0]
        # Two digits of the smallest error.
        digits = max(0, 1 - math.floor(math.log10(min(sizes)))) if sizes else 3
        column.info.format = f".{min(digits, 8)}f"
    return table
