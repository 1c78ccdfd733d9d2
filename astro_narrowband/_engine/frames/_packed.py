"""Files in gzip, bzip2 or xz, expanded once into temporary files that have no name."""

import bz2
import gzip
import lzma
import os
import shutil
import tempfile
import threading
import weakref
import zlib
from collections import OrderedDict

from astro_narrowband._engine.files import is_full, open_regular
from astro_narrowband.exceptions import InputError, ProductError

_PACKED = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def opener_of(start):
    """Return what opens a file that starts with some bytes, or None where that is no packed one."""
    return next((o for magic, o in _PACKED.items() if start.startswith(magic)), None)


class _Copy:
    """A temporary file: without a name, so that nothing is left of it, however the run ends."""

    def __init__(self):
        # Unbuffered, and closed by its descriptor: no thread closes it while another one reads.
        with tempfile.TemporaryFile(prefix="astro-narrowband-", buffering=0) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self.size, self._named = 0, None

    @property
    def path(self):
        """A path by which another process of this machine can open it, as long as it is held."""
        path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        if not os.path.exists(path):  # a system without it: a copy of the copy, with a name
            if self._named is None:
                self._named = tempfile.NamedTemporaryFile(prefix="astro-narrowband-")  # noqa: SIM115
                with open(os.dup(self.descriptor), "rb") as copy:
                    copy.seek(0)
                    shutil.copyfileobj(copy, self._named)
                self._named.flush()
            path = self._named.name
        return path

    def write(self, data):
        view = memoryview(data)
        while len(view):
            n = os.pwrite(self.descriptor, view, self.size)
            self.size += n
            view = view[n:]


#: Expanded files by their identity, the one that was used last at the end.
_COPIES = OrderedDict()
_LOCK = threading.Lock()
#: Several files are expanded at a time, and none twice.
_BUSY = [threading.Lock() for _ in range(8)]


def plain_copy(path, identity, fill):
    """
    Return a `_Copy` of a packed file: one that is there, or a new one.

    They are kept while they take no more than what is left of the disk, and a few of
    the files that a process may open; beyond that, the one that was used first goes,
    and is expanded again when it is needed.

    Parameters
    ----------
    path : path-like
    identity : `Identity`
    fill : callable
        ``fill(stream, write)`` copies from the expanding stream what is wanted.

    Raises
    ------
    InputError
        If the file is damaged.
    ProductError
        If there is no space to expand it.
    """
    with _BUSY[hash(identity) % len(_BUSY)]:
        with _LOCK:
            if identity in _COPIES:
                _COPIES.move_to_end(identity)
                return _COPIES[identity]
        copy = _expand(path, identity, fill)
        with _LOCK:
            _COPIES[identity] = copy
            while len(_COPIES) > 1 and not _fits(copy):
                _COPIES.popitem(last=False)
        return copy


def _fits(copy):
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        disk = os.fstatvfs(copy.descriptor)
    except (ImportError, OSError):
        return len(_COPIES) < 64
    held = sum(other.size for other in _COPIES.values())
    return len(_COPIES) <= max(most, 1) and held <= disk.f_bavail * disk.f_frsize


def _expand(path, identity, fill):
    try:
        copy = _Copy()
    except OSError as error:
        raise _no_space(path, error) from None
    full = []

    def write(data):
        try:
            copy.write(data)
        except OSError as error:
            full.append(error)
            raise

    try:
        file, _ = open_regular(path, identity)
        with open(file, "rb") as packed:
            opener = opener_of(packed.read(8))
            packed.seek(0)
            with opener(packed, "rb") as stream:
                fill(stream, write)
            identity.check(path, os.fstat(file))
    except OSError as error:
        if full and is_full(error.errno):
            raise _no_space(path, error) from None
        raise InputError(f"{path}: is damaged ({error}): copy it again") from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: is truncated or damaged ({error}): copy it again") from None
    return copy


def _no_space(path, error):
    return ProductError(
        f"{tempfile.gettempdir()}: {error.strerror}: {path} cannot be expanded: set TMPDIR to a "
        "folder with space"
    )
