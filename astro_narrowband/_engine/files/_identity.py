"""Whether a file is still the one that was looked at."""

import functools
import os
import platform
import stat
from typing import NamedTuple

from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import InputError

_MEANWHILE = (
    "while the night was reduced: nothing is made of it; leave files alone until the run ends, "
    "and run it again"
)


class FileError(InputError):
    """
    A file that cannot be used, and that is told apart from others by its path.

    Attributes
    ----------
    path : str
    what : str
        What is wrong with it.
    """

    def __init__(self, path, what):
        super().__init__(f"{one_line(path)}: {what}")
        self.path, self.what = str(path), what

    def __reduce__(self):
        return type(self), (self.path, self.what)


class ChangedError(FileError):
    """
    A file that is not any more what it was when it was first looked at.

    Parameters
    ----------
    path : path-like
    how : str
        What happened to it, such as ``"was replaced by another file"``.
    """

    def __init__(self, path, how):
        super().__init__(path, f"{how} {_MEANWHILE}" if not how.endswith(_MEANWHILE) else how)


class Identity(NamedTuple):
    """
    What tells one state of a file from every other: where it lies, its size, its times.

    The time of the last change of its status cannot be set back, as that of its
    content can: a file that is edited and dated back, or replaced and put back, is
    another one. On another machine (a worker of a cluster, where a shared folder has
    another device number) size and time of the content must do.
    """

    machine: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status):
        """Return the identity of a file whose `os.stat_result` is ``status``."""
        return cls(
            _machine(),
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def check(self, path, status):
        """Raise `ChangedError` unless ``status``, of what is now at ``path``, is of this file."""
        now = Identity.of(status)
        if now == self:
            return
        elsewhere = now.machine != self.machine
        if elsewhere and (now.size, now.modified) == (self.size, self.modified):
            return
        if not stat.S_ISREG(status.st_mode):
            what = "was replaced by what is no file"
        elif now.size != self.size:
            what = f"changed from {self.size} to {now.size} bytes"
        elif (now.device, now.inode) != (self.device, self.inode) and not elsewhere:
            what = "was replaced by another file"
        else:
            what = "changed"
        raise ChangedError(path, what)

    def check_path(self, path):
        """As `check`, for what is at ``path`` now."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from None
        self.check(path, status)


@functools.cache
def _machine():
    return platform.node()


def unreadable(path, error):
    """Return the `ChangedError` of a file that cannot be read any more."""
    return ChangedError(path, f"cannot be read any more ({error.strerror}): it went")


def open_regular(path, identity=None):
    """
    Open a regular file, and say what it is.

    What took the place of a file, such as a FIFO that nobody writes to, does not
    stop the run.

    Parameters
    ----------
    path : path-like
    identity : `Identity`, optional
        What it must still be.

    Returns
    -------
    descriptor : int
    identity : `Identity`

    Raises
    ------
    ChangedError
        If it is not, or cannot be read any more.
    InputError
        If it is not a regular file.
    OSError
        If it cannot be opened, and no identity was given.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if identity is None:
            raise
        raise unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        if identity is not None:
            identity.check(path, status)
        elif not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{one_line(path)}: is not a regular file: give the path of a FITS file"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, identity or Identity.of(status)
