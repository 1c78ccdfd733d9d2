"""A file that is being written: temporary and locked, then flushed and renamed, or removed."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from pathlib import Path

from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import ProductError

#: Bytes that are read or written at a time.
CHUNK = 1 << 20

_PREFIX, _SUFFIX = ".astro-narrowband-", ".part"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "the limit on the size of a file is too low (ulimit -f)",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EISDIR: "a folder has its name: move it away",
    errno.ENOTDIR: "a file is where its folder should be: move it away",
    errno.EEXIST: "a file is where the folder should be: move it away",
    errno.ENOENT: "its folder is not there: make it first",
}


def is_full(number):
    """Whether the number of a system error says that there is no space."""
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def product_error(path, error):
    """Return a `ProductError` that says in one line that ``path`` could not be written, and why."""
    advice = _ADVICE.get(error.errno, "check the disk and the limit on files (ulimit -f)")
    reason = error.strerror or type(error).__name__
    return ProductError(
        f"{one_line(path)}: cannot be written ({reason}): nothing partial was left; {advice}"
    )


@contextlib.contextmanager
def writing(path):
    """Turn every `OSError` into a `ProductError` that names ``path``."""
    try:
        yield
    except OSError as error:
        cause = error
        while cause.errno is None and isinstance(cause.__context__, OSError):
            cause = cause.__context__  # astropy's own errors have no number
        raise product_error(path, cause) from error


class Temporary:
    """
    A temporary file of a process; a context manager that removes it.

    It stays locked while it is there, so that `sweep` can tell it from the
    leftover of a dead run, whatever became of process numbers.

    Parameters
    ----------
    path : path-like
        What it is for, in messages; it is made in the folder of that.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.name = self._file = None

    def __enter__(self):
        try:
            with writing(self.path):
                while True:
                    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{_SUFFIX}"
                    self.name = self.path.parent / name
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    self._file = os.open(self.name, flags, 0o666)
                    with contextlib.suppress(OSError):  # a file system without locks
                        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(self._file).st_nlink:
                        return self
                    os.close(self._file)  # swept between its creation and its lock
        except BaseException:  # Ctrl-C as well
            self._remove()
            raise

    def __exit__(self, kind, value, traceback):
        self._remove()

    def _remove(self):
        with contextlib.suppress(OSError):  # renamed, or the disk is gone
            os.unlink(self.name)
        if self._file is not None:
            os.close(self._file)

    def write(self, data):
        """Append all bytes of ``data``."""
        view = memoryview(data).cast("B")
        with writing(self.path):
            while len(view):
                n = os.write(self._file, view)
                if n == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view = view[n:]


class Part(Temporary):
    """The temporary file of one product, which gets its name when the block ends well."""

    def __init__(self, path, commit=None):
        super().__init__(path)
        self._commit = commit
        self.sha256 = None

    def __exit__(self, kind, value, traceback):
        try:
            if kind is None:
                with writing(self.path):
                    self._finish()
        finally:
            self._remove()

    def _finish(self):
        # The disk and the processor work at the same time.
        failed = []

        def flush():
            try:
                _fsync(self._file)
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=flush)
        thread.start()
        try:
            self.sha256 = digest(self._file)
        finally:
            thread.join()
        if failed:
            raise failed[0]
        if self._commit is not None:
            self._commit(self.sha256)
        os.replace(self.name, self.path)  # replaces a symbolic link, and never follows it
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _fsync(folder)
        finally:
            os.close(folder)


def _fsync(descriptor):
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems have no fsync for this kind of file.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


def digest(descriptor):
    """Return the SHA-256 of an open file, read from its start."""
    sha = hashlib.sha256()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    position = 0
    while n := os.preadv(descriptor, [view], position):
        sha.update(view[:n])
        position += n
    return sha.hexdigest()


def sweep(folder):
    """
    Remove the temporary files that dead runs left in ``folder``.

    Those that a living process is writing are locked, and stay.

    Returns
    -------
    int
        How many were removed.
    """
    removed = 0
    for path in Path(folder).glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # locked, or gone meanwhile
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed += 1
            finally:
                os.close(descriptor)
    return removed
