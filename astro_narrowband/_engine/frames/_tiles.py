"""
Tile-compressed images, whose rows are decompressed in a process of their own.

The decompressors are C code that trusts its input: a damaged file can bring down
the process that reads it (of files damaged at random, astropy 7.0 dies of 10 in 600,
and 8.0 of 19 in 3000). Here that is a helper, which is started when the first such
file is met, serves all of them, and is started anew if one kills it. It
decompresses the tiles that the rows asked for lie in, and nothing goes by way of
the disk.

Run as a script, this file is the helper: one request a line on its standard input;
on its standard output one line for each, and the bytes that the line announces.
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
from collections import OrderedDict

#: Seconds that a request may take, and seconds more per million pixels.
_PATIENCE = (30.0, 5.0)
#: Files that the helper keeps open: rows of many frames are asked for in turn.
_OPEN = 128
#: What a request costs, in rows; bytes that are held decompressed.
_REQUEST, _ROOM = 10, 1 << 28


class TileError(Exception):
    """What went wrong."""


# --------------------------------------------------------------------------- the helper


def _serve():
    # What a library prints must not come between the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    files, expanded = OrderedDict(), _Expanded()
    for line in sys.stdin:
        answer, content = {}, b""
        try:
            answer, content = _answer(files, expanded, **json.loads(line))
        except MemoryError:
            answer = {"error": "its tiles expand to too much"}
        except Exception as error:  # astropy raises almost any type on damaged tiles
            text = str(error).splitlines()[0][:200] if str(error) else "no details"
            answer = {"error": f"{type(error).__name__}: {text}"}
        out.write(json.dumps({**answer, "bytes": len(content)}).encode() + b"\n")
        out.write(content)
        out.flush()


class _Expanded:
    """
    Images that are decompressed as a whole, once rows of them have cost half as much.

    As many as there is room for; beyond that, only one that is asked for twice in a row.
    """

    def __init__(self):
        self.held, self.spent, self.last = OrderedDict(), {}, None

    def rows(self, key, hdu, rows):
        if key not in self.held:
            spent = self.spent.get(key, 0) + rows.stop - rows.start + _REQUEST
            again, self.last = key == self.last, key
            room = self.size() + hdu.size <= _ROOM
            if spent < hdu.shape[-2] / 2 or not (room or again):
                self.spent[key] = spent
                return _rows(hdu, rows)
            self.held[key] = _rows(hdu, slice(None))
            self.spent.pop(key, None)
            while len(self.held) > 1 and self.size() > _ROOM:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key][rows]

    def size(self):
        return sum(pixels.nbytes for pixels in self.held.values())


def _answer(files, expanded, source, state, indices, rows, pixels):
    """Return the headers of some images of a file, or some rows of one of them, unscaled."""
    _limit_memory(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdul = _opened(files, source, tuple(state))
        if rows is None:
            return {"headers": [_header_text(hdul[index]) for index in indices]}, b""
        key = (source, *state, indices[0])
        return {}, expanded.rows(key, hdul[indices[0]], slice(*rows)).tobytes()


def _opened(files, source, state):
    from astropy.io import fits

    key = (source, state)
    if key not in files:
        while len(files) >= _OPEN:
            files.popitem(last=False)[1].close()
        try:
            hdul = fits.open(source, do_not_scale_image_data=True)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            while files:
                files.popitem()[1].close()
            hdul = fits.open(source, do_not_scale_image_data=True)
        files[key] = hdul
    files.move_to_end(key)
    return files[key]


def _limit_memory(pixels):
    try:
        import resource
    except ImportError:  # not on this system: the limit of pixels must do
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = (4 << 30) + 32 * pixels
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _rows(hdu, rows):
    import numpy as np

    bitpix = hdu.header["BITPIX"]
    kinds = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    # Planes of one image, and no more: of a cube with one plane, that plane.
    section = (0,) * (hdu.header["NAXIS"] - 2) + (rows,)
    data = np.asarray(hdu.section[section])
    if data.dtype.newbyteorder("=") != np.dtype(kinds[bitpix]).newbyteorder("="):
        raise ValueError(f"its tiles hold {data.dtype}, its header says BITPIX = {bitpix}")
    return data.astype(kinds[bitpix], copy=False)


def _header_text(hdu):
    """The header of the image as that of an extension which is not compressed."""
    header = hdu.header.copy()
    if "SIMPLE" in header:  # it was a primary image before it was compressed
        header.remove("EXTEND", ignore_missing=True)
        header.set("XTENSION", "IMAGE", before="SIMPLE")
        header.remove("SIMPLE")
        for keyword, value in (("GCOUNT", 1), ("PCOUNT", 0)):
            header.remove(keyword, ignore_missing=True)
            header.set(keyword, value, after=f"NAXIS{header['NAXIS']}")
    return header.tostring()


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
                deadline = time.monotonic() + patience
                try:
                    self.process.stdin.write(line)
                    self.process.stdin.flush()
                    answer, content = self.answer(deadline)
                except (BrokenPipeError, EOFError):
                    answer = None
                if answer is not None:
                    return answer, content
                self.stop()
                if fresh or attempt:
                    break
        raise TileError("its tiles bring down what decompresses them")

    def answer(self, deadline):
        """The next answer of the helper, and its bytes; EOFError if it dies or is too slow."""
        content = bytearray()
        while (end := content.find(b"\n")) < 0:
            content += self.more(1 << 16, deadline)
        answer = json.loads(content[:end])
        del content[: end + 1]
        while len(content) < answer["bytes"]:
            content += self.more(1 << 20, deadline)
        return answer, content

    def more(self, most, deadline):
        pipe = self.process.stdout.fileno()
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        content = os.read(pipe, most) if ready else b""
        if not content:
            raise EOFError
        return content


_HELPER = _Helper()
atexit.register(_HELPER.stop)


def _ask(source, state, pixels, *, indices, rows=None):
    request = {
        "source": os.fspath(source), "state": state, "indices": list(indices), "rows": rows,
        "pixels": pixels,
    }  # fmt: skip
    answer, content = _HELPER.ask(request, _PATIENCE[0] + _PATIENCE[1] * pixels / 1e6)
    if "error" in answer:
        raise TileError(answer["error"])
    return answer, content


def tiled_headers(source, state, indices, *, pixels):
    """
    Return the headers of images of a tile-compressed file, as they would be without.

    Parameters
    ----------
    source : path-like
    state : tuple
        What the file is now: the helper opens it again when that changes.
    indices : sequence of int
        Which HDUs.
    pixels : int
        Number of pixels of an image, for the limits of memory and time.

    Returns
    -------
    list of str

    Raises
    ------
    TileError
        If they cannot be read.
    """
    return _ask(source, state, pixels, indices=indices)[0]["headers"]


def tiled_rows(source, state, index, rows, *, pixels):
    """Return the bytes of rows of one image, big-endian and unscaled; else as `tiled_headers`."""
    return _ask(source, state, pixels, indices=[index], rows=(rows.start, rows.stop))[1]


if __name__ == "__main__":
    _serve()
