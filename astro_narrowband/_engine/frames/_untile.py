"""
Tile-compressed images, decompressed in a process of their own.

The decompressors are C code that trusts its input: a damaged file can bring down
the process that reads it. Here that is a helper, which is started when the first
such file is met, serves all of them, and is started anew if one kills it.

Run as a script, this file is the helper: one request a line on its standard
input, one answer a line on its standard output.
"""

import atexit
import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import threading
import time
import warnings

__all__ = ["TileError", "untile"]

_BLOCK = 2880
#: Seconds that a file may take, and seconds more per million pixels.
_PATIENCE = (30.0, 5.0)


class TileError(Exception):
    """What went wrong, and the number of the system's error if it was one."""

    def __init__(self, text, number=0):
        super().__init__(text)
        self.number = number


# --------------------------------------------------------------------------- the helper


def _serve():
    for line in sys.stdin:
        try:
            _expand(**json.loads(line))
            answer = {}
        except OSError as error:
            answer = {"error": str(error), "number": error.errno or 0}
        except MemoryError:
            answer = {"error": "its tiles expand to too much", "number": 0}
        except Exception as error:  # astropy raises almost any type on damaged tiles
            text = str(error).splitlines()[0][:200] if str(error) else "no details"
            answer = {"error": f"{type(error).__name__}: {text}", "number": 0}
        print(json.dumps(answer), flush=True)


def _expand(source, target, indices, primary, pixels):
    """Write the primary header (its first bytes) and some images of a file, unscaled."""
    from astropy.io import fits

    _limit_memory(pixels)
    with (
        warnings.catch_warnings(),
        open(source, "rb") as file,
        open(target, "wb") as out,
        fits.open(source, memmap=False, do_not_scale_image_data=True) as hdul,
    ):
        warnings.simplefilter("ignore")
        out.write(file.read(primary))
        for index in indices:
            _write_image(out, hdul[index])


def _limit_memory(pixels):
    try:
        import resource
    except ImportError:  # not on this system: the limit of pixels must do
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = (4 << 30) + 32 * pixels
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _write_image(out, hdu):
    import numpy as np

    # The header first: astropy forgets BZERO when the data are asked for.
    header = hdu.header.copy()
    data = hdu.data
    kinds = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    stored = np.dtype(kinds[header["BITPIX"]])
    if data.dtype.newbyteorder("=") != stored.newbyteorder("="):
        raise ValueError(
            f"its tiles hold {data.dtype}, its header says BITPIX = {header['BITPIX']}"
        )
    if "SIMPLE" in header:  # it was a primary image before it was compressed
        header.remove("EXTEND", ignore_missing=True)
        header.set("XTENSION", "IMAGE", before="SIMPLE")
        header.remove("SIMPLE")
        for keyword, value in (("GCOUNT", 1), ("PCOUNT", 0)):
            header.remove(keyword, ignore_missing=True)
            header.set(keyword, value, after=f"NAXIS{header['NAXIS']}")
    out.write(header.tostring().encode("ascii", "replace"))
    out.write(data.astype(stored, copy=False).tobytes())
    out.write(b"\0" * (-data.nbytes % _BLOCK))


# --------------------------------------------------------------------------- its master


class _Helper:
    """The one helper of this process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = None
        self.owner = None

    def start(self):
        # -P: the folder of this file is not searched for modules.
        self.process = subprocess.Popen(  # noqa: S603 - our own file, no shell
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.owner = os.getpid()

    def stop(self):
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        with contextlib.suppress(BrokenPipeError):  # what it did not read
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def ask(self, request, patience):
        line = json.dumps(request).encode() + b"\n"
        with self.lock:
            # Damage may show a file later: a helper that fails is not believed, a new one is.
            for attempt in range(2):
                fresh = self.process is None or self.owner != os.getpid()
                if fresh:
                    self.start()
                try:
                    self.process.stdin.write(line)
                    self.process.stdin.flush()
                    answer = self.answer(time.monotonic() + patience)
                except BrokenPipeError:
                    answer = b""
                if answer.endswith(b"\n"):
                    return json.loads(answer)
                self.stop()
                if fresh or attempt:
                    break
        raise TileError("its tiles bring down what decompresses them")

    def answer(self, deadline):
        """The next line of the helper; what there is of it if it dies or is too slow."""
        line, pipe = b"", self.process.stdout.fileno()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready or not (part := os.read(pipe, 1 << 16)):
                break
            line += part
        return line


_HELPER = _Helper()
atexit.register(_HELPER.stop)


def untile(source, target, indices, *, primary, pixels):
    """
    Write images of a tile-compressed file to a plain one.

    Parameters
    ----------
    source, target : path-like
    indices : sequence of int
        Which HDUs.
    primary : int
        Number of bytes of the primary header, which is copied as it is.
    pixels : int
        Number of pixels to come, for the limits of memory and time.

    Raises
    ------
    TileError
        If they cannot be decompressed; ``number`` is ENOSPC and the like if it is
        not the file's fault.
    """
    request = {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "indices": list(indices),
        "primary": primary,
        "pixels": pixels,
    }
    answer = _HELPER.ask(request, _PATIENCE[0] + _PATIENCE[1] * pixels / 1e6)
    if "error" in answer:
        raise TileError(answer["error"], answer["number"])


def is_full(number):
    """Whether the number of a system error says that there is no space."""
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


if __name__ == "__main__":
    _serve()
