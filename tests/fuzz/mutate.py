"""
Mutations of headers and files for the fuzzing of ingest.

``python tests/fuzz/mutate.py headers 100000 --seed 1`` and ``... files 5000`` run a
number of seeded mutations and print what they met; the exit status is 1 if there
was an exception that is not ours, or a case that took more than 2 s.
"""

import argparse
import bz2
import collections
import functools
import gzip
import io
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.frames import FitsFrame
from astro_narrowband.exceptions import InputError
from astro_narrowband.night.plan import make_plan
from astro_narrowband.night.table import FrameTable
from astro_narrowband.night.table._facts import FactReader

#: No case may take longer [s].
SLOW = 2.0

TEMPLATES = (
    """IMAGETYP= 'Light Frame'        / Type of image
EXPTIME =                600.0 / [s] exposure time
EXPOSURE=                600.0 / Exposure time in seconds
FILTER  = 'H-Alpha '           / filter
OBJECT  = 'M 31    '
CCD-TEMP=           -25.057989 / CCD temperature
SET-TEMP=                -25.0
XBINNING=                    1
YBINNING=                    1
XORGSUBF=                    0
YORGSUBF=                    0
READOUTM= 'Monochrome'
GAIN    =                  120 / camera setting
EGAIN   =                 0.25 / [e-/ADU]
OFFSET  =                   50
RDNOISE = '14.0    '
SATURATE=                65535
INSTRUME= 'ZWO ASI 1600MM'
DATE-OBS= '2025-06-03T10:22:06.179'
ROWORDER= 'TOP-DOWN'""",
    """IMAGTYP = 'Dark Frame'
EXPTIME =              6,4E-05 / Total Exposure Time (s)
EXPOINUS=                   64 / Exposure time in us
BAYERPAT= 'GRBG    '
FRAME   = 'Dark    '
CCDTEMP =               263.15
CCDSUM  = '1 1     '
BIASSEC = '[   4:  13,   1: 520]'
TRIMSEC = '[  17: 528,   1: 520]'
CCDSEC  = '[1:64,1:48]'
NCOMBINE=                    1
BIASSUB =                    F
CALSTAT = '        '
BUNIT   = 'adu     '
FILTER1 = 'Clear   '
FILTER2 = '[OIII] 3nm'
DATE-OBS= '2021-09-17 T09:35:30'
UT      = '00:57:33'
HIERARCH ESO DPR TYPE = 'BIAS'
COMMENT  a comment""",
)
VALUES = (
    "",
    "-1",
    "0",
    "1e999",
    "NaN",
    "T",
    "F",
    "'",
    "''",
    "'abc",
    "'0,5'",
    "0,5",
    "'1,200'",
    "(1, 2)",
    "9" * 60,
    "-" + "9" * 40,
    "1.5D300",
    "'60 s'",
    "60 s",
    "'\\x1b[2J'",
    "'a/b'",
    "/ no value",
    "= 1",
    "'[1:2,3:4]'",
    "'[9999999999:1,1:1]'",
    "'" + "x" * 66 + "'",
    "'&'",
    "'Ha'",
    "'Dark'",
    "'Light'",
    "0x10",
    "1_0",
    "+",
    ".",
    "1e",
    "inf",
    "'../../../x'",
    "'=1+1'",
    "'RGGB'",
    "300000000",
    "-273.15",
)


def header_bytes(cards):
    """The cards (bytes) as header blocks."""
    raw = b"".join(card.ljust(80)[:80] for card in (*cards, b"END"))
    return raw + b" " * (-len(raw) % 2880)


def template(rng):
    head = [
        b"SIMPLE  =                    T",
        b"BITPIX  =                   16",
        b"NAXIS   =                    2",
        b"NAXIS1  =                   16",
        b"NAXIS2  =                   12",
    ]
    return head + [line.encode() for line in rng.choice(TEMPLATES).splitlines()]


def mutated(cards, rng, *, structure):
    """A few mutations of cards: values, bytes, order, number. The structure may be spared."""
    cards = list(cards)
    first = 0 if structure else 5
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        i = rng.randrange(first, len(cards))
        kind = rng.randrange(8)
        if kind <= 2:
            cards[i] = cards[i][:10].ljust(10) + rng.choice(VALUES).encode()
        elif kind == 3:
            text = bytearray(cards[i].ljust(80))
            for _ in range(rng.choice((1, 2, 10))):
                text[rng.randrange(80)] = rng.randrange(256)
            cards[i] = bytes(text)
        elif kind == 4:
            cards.insert(i, cards[rng.randrange(first, len(cards))])
        elif kind == 5 and len(cards) > first + 2:
            del cards[i]
        elif kind == 6:
            j = rng.randrange(first, len(cards))
            cards[i] = cards[i][:8].ljust(8) + cards[j][8:]
        else:
            cards[i] = cards[i][: rng.randrange(81)] + rng.randbytes(rng.randrange(1, 20))
    return cards


NAMES = ("x", "dark_300s", "Flats/Ha_1", "lights/M 31/light_OIII_7nm_0.5s", "\udcff\x1b", "a" * 200)


def try_header(raw, name):
    """Header to facts; a header that astropy itself refuses is no news."""
    try:
        header = fits.Header.fromstring(raw)
    except Exception:
        return "no header"
    facts = FactReader().facts(header, name.split("/"))
    for text in (facts.object, facts.refusal, facts.filter, *map(str, facts.notes)):
        if not text.isprintable():
            raise AssertionError(f"not printable: {text!r}")
    if facts.kind == "light" and not facts.refusal and not 0 < facts.exposure <= 86400:
        raise AssertionError(f"a light of {facts.exposure} s")
    return facts.kind if not facts.refusal else "refused"


def file_bytes(rng):
    """A file of any container, mutated in its header, its bytes or its length."""
    cards = mutated(template(rng), rng, structure=True) if rng.random() < 0.7 else template(rng)
    data = rng.randbytes(384)
    raw = header_bytes(cards) + data + bytes(2880 - len(data))
    style = rng.randrange(6)
    if style == 0:
        raw = gzip.compress(raw, 1)
    elif style == 1:
        raw = bz2.compress(raw)
    elif style == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = io.BytesIO()
            pixels = np.frombuffer(data, "i2").reshape(12, 16)
            kind = rng.choice(("RICE_1", "GZIP_1", "GZIP_2"))
            tiled = fits.CompImageHDU(pixels.astype("i2"), compression_type=kind)
            fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(out)
        raw = out.getvalue()
    elif style == 3:
        extension = raw.replace(
            b"SIMPLE  =                    T", b"XTENSION= 'IMAGE   '          ", 1
        )
        head = [
            b"SIMPLE  =                    T",
            b"BITPIX  =                    8",
            b"NAXIS   =                    0",
        ]
        raw = header_bytes(head) + extension
    if rng.random() < 0.5:
        raw = bytearray(raw)
        for _ in range(rng.choice((1, 3, 30))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        raw = bytes(raw)
    if rng.random() < 0.2:
        raw = raw[: rng.randrange(len(raw) + 1)]
    return raw


def try_file(path):
    """Bytes to a verdict, and to pixels if the verdict is that there are some."""
    table = FrameTable.from_paths(path)
    make_plan(table)
    (row,) = table.rows
    try:
        frame = FitsFrame(path, unit="adu")
        frame.read(slice(0, min(frame.shape[0], 64)))
    except InputError:
        return row.verdict
    return "pixels"


def run(what, count, seed, *, progress=False):
    """Run ``count`` mutations; return a counter of outcomes, the slowest [s], what was not ours."""
    rng = random.Random(seed)
    outcomes, foreign, slowest = collections.Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(count):
            state = rng.getstate()
            if what == "headers":
                raw = header_bytes(mutated(template(rng), rng, structure=False))
                case = functools.partial(try_header, raw, rng.choice(NAMES))
            else:
                path = Path(folder) / f"light_{n % 7}.fits"
                path.write_bytes(file_bytes(rng))
                case = functools.partial(try_file, path)
            start = time.perf_counter()
            try:
                outcomes[case()] += 1
                took = time.perf_counter() - start
                if took > SLOW / 2:  # a busy machine is not the fault of the case
                    start = time.perf_counter()
                    case()
                    took = min(took, time.perf_counter() - start)
                slowest = max(slowest, took)
            except Exception as error:
                foreign.append((n, type(error).__name__, str(error)[:200], state))
                if len(foreign) > 20:
                    break
            if progress and n % 10_000 == 9_999:
                print(n + 1, dict(outcomes), f"slowest {slowest:.3f} s", flush=True)
    return outcomes, slowest, foreign


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("headers", "files"))
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    outcomes, slowest, foreign = run(options.what, options.count, options.seed)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.count} {options.what}, seed {options.seed}: {dict(outcomes)}; foreign "
        f"{len(foreign)}, slowest {slowest:.3f} s, RSS {memory:.0f} MiB, "
        f"{time.perf_counter() - start:.0f} s"
    )
    for n, name, text, _ in foreign:
        print(f"  case {n}: {name}: {text}")
    return int(bool(foreign) or slowest > SLOW)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
