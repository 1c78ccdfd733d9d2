"""
Coverage-guided fuzzing of ingest, with atheris: bytes to a verdict, header to a row.

``python tests/fuzz/fuzz_ingest.py -runs=100000 CORPUS`` (``pip install atheris``); an empty
folder CORPUS is given seeds first.
Any exception that is not this package's own is a crash; libFuzzer stops at what takes
longer than ``-timeout=2`` or more memory than ``-rss_limit_mb=1024``.
"""

import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["astro_narrowband"]):
    from astro_narrowband.night.plan import make_plan
    from astro_narrowband.night.table import FrameTable

sys.path.insert(0, str(Path(__file__).parent))

import mutate  # the same judgement as the seeded mutations

FOLDER = tempfile.TemporaryDirectory()


def one_input(data):
    """The first byte says whether the rest is a file, or the cards of a header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if data[:1] < b"\x80":
            cards = [data[i : i + 80] for i in range(1, len(data), 80)]
            mutate.try_header(mutate.header_bytes(cards), "lights/x")
            return
        path = Path(FOLDER.name) / "light.fits"
        path.write_bytes(data[1:])
        make_plan(FrameTable.from_paths(path))


def seed(folder):
    """Write sound headers and files, for the fuzzer to start from."""
    rng = random.Random(1)
    for n in range(40):
        cards = b"".join(card.ljust(80) for card in mutate.template(rng))
        (folder / f"header-{n}").write_bytes(b"\x00" + cards)
        (folder / f"file-{n}").write_bytes(b"\xff" + mutate.file_bytes(rng))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if Path(argument).is_dir() and not any(Path(argument).iterdir()):
            seed(Path(argument))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
