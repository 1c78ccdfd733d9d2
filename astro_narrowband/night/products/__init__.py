"""
The folder of products: one run at a time, provenance, resume, the record of the night.

A product is used again only if the SHA-256 of what is on disk and its
provenance (the SHA-256 of the inputs, the settings, the versions) are those
under which it was written. A line of a journal says so, written when the
product is on the disk and just before it gets its name; a run that is killed
at any time leaves every product either as it was or as it should be.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import socket
import stat
import threading
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from astro_narrowband._engine.files import (
    product_error,
    sha256,
    sweep,
    write_bytes,
    write_fits,
    write_table,
    write_text,
)
from astro_narrowband._engine.frames import Threads
from astro_narrowband._engine.text import one_line, safe_name
from astro_narrowband.exceptions import InputError, ProductError, warn
from astro_narrowband.night.products._records import (
    provenance_key,
    read_record,
    software,
    strict_json,
    version_of,
)

__all__ = [
    "Products",
    "finished",
    "provenance_key",
    "read_record",
    "software",
    "strict_json",
    "version_of",
]

_LOCK = ".astro-narrowband.lock"
_JOURNAL = ".astro-narrowband.jsonl"
_MASTER = re.compile(r"bias(-\d+)?|dark(-\d+)?|flat-.+")
#: What every run writes.
_ALWAYS = ("frames.ecsv", "night.json", "report.html")
#: What a file system says that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class _Entry(NamedTuple):
    """A line of the journal: what a product was made of, what it is, and what was said of it."""

    key: str
    sha256: str
    said: list


# --------------------------------------------------------------------------- the folder


class Products:
    """
    The folder that one run writes to, locked while it does.

    A context manager: the lock is taken, leftovers of dead runs are removed,
    and the journal is read when the block starts. Several threads may ask for
    products and write them at once.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    settings : mapping, optional
        The settings of the run that change results; part of every key.
    inputs : `Inputs`, optional
        The input files: never written to, and part of the keys.
    resume : bool, optional
        Whether products of an earlier run may be used again.
    overwrite : bool, optional
        Whether files that no run of this package made there may be replaced. The
        journal knows which are its own.

    Raises
    ------
    ProductError
        If the folder cannot be made or written to, or another run has it.

    Examples
    --------
    >>> import tempfile
    >>> from astro_narrowband.night.products import Products
    >>> out = tempfile.mkdtemp()
    >>> for run in range(2):
    ...     with Products(out, settings={"weights": "background"}) as products:
    ...         key = products.key([], step="note")
    ...         if not products.have("note.txt", key):
    ...             print("written")
    ...             digest = products.write_text("note.txt", "3 frames", key)
    written
    """

    def __init__(self, folder, *, settings=None, inputs=None, resume=True, overwrite=False):
        self.folder = Path(folder)
        self._digests = {}
        self._settings = dict(settings or {})
        self._inputs = self.inputs = inputs
        self._overwrite = overwrite
        self._resume = resume
        self._journal = {}
        self._mutex = threading.Lock()
        self._lock = None

    @property
    def digests(self):
        """Name to SHA-256 of each product that this run wrote or used again, by name."""
        with self._mutex:
            return dict(sorted(self._digests.items()))

    # ---- one run at a time

    def __enter__(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise product_error(self.folder, error) from error
        self._take_lock()
        try:
            for folder in (self.folder, *(p for p in self.folder.iterdir() if _is_folder(p))):
                sweep(folder)
            self._journal = _read_journal(self.folder)
        except OSError as error:
            self._release()
            raise product_error(self.folder, error) from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind, value, traceback):
        try:
            if kind is None:
                self._compact()
        finally:
            self._release()

    def _take_lock(self):
        path = self.folder / _LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            try:
                lock = os.open(path, flags, 0o666)
            except OSError as error:
                raise product_error(path, error) from error
            try:
                # The system drops the lock of a process that dies: a file that is left is stale.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = one_line(os.read(lock, 200).decode("utf-8", "replace")).strip()
                os.close(lock)
                raise ProductError(
                    f"{self.folder}: another run writes here ({owner or 'owner unknown'}): "
                    "wait until it ends, or choose another folder with -o"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(lock)
                    raise product_error(path, error) from error
            if _same_file(lock, path):
                break
            os.close(lock)  # its owner ended, and removed it, between the two calls
        self._lock = lock
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            self._release()
            raise product_error(path, error) from error

    def _release(self):
        with contextlib.suppress(OSError):
            os.unlink(self.folder / _LOCK)
        os.close(self._lock)
        self._lock = None

    # ---- provenance

    def key(self, paths, **settings):
        """
        Return the provenance of a product, evaluated when it is needed.

        Parameters
        ----------
        paths : iterable of path-like or (name, SHA-256)
            Its inputs: raw frames, whose SHA-256 are waited for, or other
            products by name with their own key.
        **settings
            What else its result depends on.

        Returns
        -------
        callable
            Without arguments; gives the key as a str.
        """
        paths = list(paths)

        @functools.cache
        def key():
            inputs = {}
            for item in paths:
                name, digest = item if isinstance(item, tuple) else (item, None)
                digest = self._inputs[item] if digest is None else digest
                inputs[str(name)] = digest() if callable(digest) else digest
            return provenance_key(inputs, {"run": self._settings, "step": settings})

        return key

    def have(self, name, key):
        """
        Return whether a product is there, whole and made of the same things.

        If it is, what was said when it was made is said again.

        Parameters
        ----------
        name : str
            Relative to the folder, such as ``"masters/bias.fits"``.
        key : str or callable
            See `key`. Not evaluated where there is no such product.
        """
        with self._mutex:
            entries = list(self._journal.get(name, ()))
        path = self.path(name)
        if not (self._resume and entries and _is_file(path)):
            return False
        wanted = key() if callable(key) else key
        known = {entry.sha256: entry for entry in entries if entry.key == wanted}
        if not known:
            return False
        try:
            digest = sha256(path)
        except InputError:
            return False  # it cannot be read any more: made again
        if digest not in known:
            return False
        with self._mutex:
            self._journal[name] = [known[digest]]
            self._digests[name] = digest
        for text, level in known[digest].said:
            warn(text, level=level)
        return True

    def claim(self, names):
        """
        Refuse foreign files that have names of products, before anything is written.

        Parameters
        ----------
        names : iterable of str
            Of products to come; ``*`` stands for any text. Masters are known by their names.

        Raises
        ------
        ProductError
            If there is one.
        """
        names = list(names)
        for pattern in [name for name in names if "*" in name] + ["masters/*.fits"]:
            names += [str(path.relative_to(self.folder)) for path in self.folder.glob(pattern)]
        for name in sorted(names):
            if not name.startswith("masters/") or _MASTER.fullmatch(name[8:-5]):
                self._check_foreign(name, self.folder / name)

    def _check_foreign(self, name, path):
        with self._mutex:
            ours = self._overwrite or name in self._journal or name in self._digests
            # Earlier versions did not note these.
            ours = ours or (bool(self._journal) and name in _ALWAYS)
        if not ours and os.path.lexists(path):
            raise ProductError(
                f"{path}: was not made by a run that wrote here, and would be overwritten: choose "
                "another folder with -o, move it away, or give --overwrite"
            )

    def discard(self, name):
        """Remove a product that this run made or used again, if it did."""
        with self._mutex:
            if self._digests.pop(name, None) is None:
                return
        with contextlib.suppress(OSError):
            os.unlink(self.folder / name)

    # ---- writing

    def path(self, name):
        """
        Return the path of a product; its folder is made.

        Raises
        ------
        ProductError
            If the name could lead out of the folder, the folder is a symbolic
            link, or the name is that of an input.
        """
        parts = str(name).split("/")
        if len(parts) > 2 or any(piece != safe_name(piece) for piece in parts):
            raise ProductError(f"{one_line(name)!r} is not a name for a product: use safe_name")
        path = self.folder.joinpath(*parts)
        if len(parts) == 2:
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise product_error(path.parent, error) from error
            if not _is_folder(path.parent):
                raise ProductError(
                    f"{path.parent}: is a symbolic link, and products are never written "
                    "through one: remove it, or choose another folder"
                )
        if self._inputs is not None and os.path.realpath(path) in self._real_inputs:
            raise ProductError(
                f"{path}: is an input, and would be overwritten: choose another folder with -o"
            )
        return path

    @functools.cached_property
    def _real_inputs(self):
        return {os.path.realpath(path) for path in self._inputs}

    def write_fits(self, name, image, key=None, said=()):
        """
        Write a product as `~astro_narrowband._engine.files.write_fits` does.

        ``said`` has text and level of what is said again where it is used again.
        """
        return self._write(write_fits, name, image, key, said)

    def write_table(self, name, table, key=None, said=()):
        """Write a product as `~astro_narrowband._engine.files.write_table` does."""
        return self._write(write_table, name, table, key, said)

    def write_bytes(self, name, data, key=None):
        """Write a product as `~astro_narrowband._engine.files.write_bytes` does."""
        return self._write(write_bytes, name, data, key)

    def write_text(self, name, text, key=None):
        """Write a product as `~astro_narrowband._engine.files.write_text` does."""
        return self._write(write_text, name, text, key)

    def write_json(self, name, record, key=None):
        """Write a record as `strict_json` has it."""
        return self._write(write_text, name, strict_json(record) + "\n", key)

    def _write(self, write, name, content, key, said=()):
        path = self.path(name)
        self._check_foreign(name, path)

        def commit(digest):
            entry = _Entry((key() if callable(key) else key) or "", digest, list(said))
            with self._mutex:
                self._note(name, entry)
                self._digests[name] = digest

        return write(path, content, commit=commit)

    # ---- the journal

    def _note(self, name, entry):
        """Append a line; what was known of the product before stays true until it is renamed."""
        line = json.dumps({"name": name, **entry._asdict()})
        path = self.folder / _JOURNAL
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        journal = os.open(path, flags, 0o666)
        try:
            # A line that was cut by a kill or a full disk ends before this one starts.
            os.write(journal, f"\n{line}\n".encode())
        finally:
            os.close(journal)
        self._journal.setdefault(name, []).append(entry)

    def _compact(self):
        lines = []
        for name, entries in sorted(self._journal.items()):
            entry = entries[-1] if entries else _Entry("", "", [])
            lines.append(json.dumps({"name": name, **entry._asdict()}))
        if lines:
            write_text(self.folder / _JOURNAL, "\n".join(lines) + "\n")


def finished(folder, key, *, workers):
    """
    Return the record of an earlier run if there is nothing to do, or None.

    Parameters
    ----------
    folder : path-like
        Of the products; nothing is written, and no lock is taken.
    key : str
        What the record would be made of.
    workers : int
        Threads that compare the SHA-256 of all inputs and products with those of the record.
    """
    record = Path(folder) / "night.json"

    def is_whole(item):
        path, digest = item
        return sha256(path) == digest

    try:
        entries = _read_journal(Path(folder)).get("night.json", ())
        if (key, sha256(record)) not in [entry[:2] for entry in entries]:
            return None
        content = read_record(record)
        made = {Path(folder) / name: digest for name, digest in content["products"].items()}
        if not all(_is_file(path) for path in made):
            return None
        with Threads(workers) as pool:
            same = all(pool.map(is_whole, {**made, **content["inputs"]}.items()))
    except (InputError, OSError):
        return None  # what is missing is made again
    return content if same else None


def _read_journal(folder):
    """Return the `_Entry` of each time that a product was written, in this order, by its name."""
    journal, path = {}, folder / _JOURNAL
    if not _is_file(path):
        return journal
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            name, key, digest = entry["name"], entry["key"], entry["sha256"]
            said = [(text, level) for text, level in entry.get("said", ())]
        except (ValueError, TypeError, KeyError, RecursionError):
            # Cut; its product is made again, and was ours.
            if cut := re.search(r'"name": "([^"]+)"', line):
                journal.setdefault(cut[1], [])
            continue
        if all(isinstance(text, str) for text in (name, key, digest, *chain(*said))):
            journal.setdefault(name, []).append(_Entry(key, digest, said))
    return journal


def _is_file(path):
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_folder(path):
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _same_file(descriptor, path):
    try:
        there = os.lstat(path)
    except OSError:
        return False
    opened = os.fstat(descriptor)
    return (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)
