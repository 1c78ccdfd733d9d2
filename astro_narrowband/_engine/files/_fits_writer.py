"""FITS files serialised band by band, with checksums that do not hold the time of day."""

import math
import re
import warnings

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.files._names import ascii_text
from astro_narrowband._engine.files._whole import CHUNK, Part
from astro_narrowband.exceptions import ProductError

__all__ = ["FitsWriter", "Plane", "clean_header", "set_card"]

_BLOCK = 2880

#: Cards that describe how the pixels lie in a file: written anew, never inherited.
_STRUCTURAL = re.compile(
    r"(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM"
    r"|DATASUM|ZHECKSUM|ZDATASUM|ZIMAGE|ZTABLE|ZSIMPLE|ZEXTEND|ZTENSION|ZBITPIX|ZNAXIS\d*|ZPCOUNT"
    r"|ZGCOUNT|ZCMPTYPE|ZTILE\d+|ZNAME\d+|ZVAL\d+|ZMASKCMP|ZQUANTIZ|ZDITHER0|ZBLANK|ZSCALE|ZZERO"
    r"|TFIELDS|THEAP|END|)$"
)
_PRINTABLE = re.compile(r"[^\x20-\x7e]")


def clean_header(header):
    """
    Copy a header, so that it can be written with any image.

    Cards that say how pixels lie in a file (BITPIX, BZERO, CHECKSUM, ...) are
    left out. NaN and infinite values become undefined ones; other alphabets
    are spelled in ASCII, control characters become blanks; a card that cannot
    be read is kept as a COMMENT.

    Parameters
    ----------
    header : `~astropy.io.fits.Header` or mapping

    Returns
    -------
    `~astropy.io.fits.Header`
    """
    out = fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy repairs the cards of an input as it reads them
        if isinstance(header, fits.Header):
            for card in header.cards:
                _append(out, card)
        else:
            for key, value in dict(header).items():
                value, comment = value if isinstance(value, tuple) else (value, "")
                _append(out, fits.Card, str(key), value, comment)
    if any(len(card.image) > 80 for card in out.cards) and "LONGSTRN" not in out:
        # The convention that CONTINUE cards are of must be named before them.
        out.insert(0, ("LONGSTRN", "OGIP 1.0", "The OGIP long string convention is used"))
    return out


def set_card(header, keyword, value, comment=""):
    r"""
    Set a header value to what FITS can hold of ``value``; see `clean_header`.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Changed in place.
    keyword : str
    value : object
        Text from elsewhere, say.
    comment : str, optional

    Examples
    --------
    >>> from astropy.io import fits
    >>> from astro_narrowband._engine.files import set_card
    >>> header = fits.Header()
    >>> set_card(header, "FILTER", "Hα\x1b")
    >>> header["FILTER"]
    'Halpha'
    """
    header.remove(keyword, ignore_missing=True, remove_all=True)
    if len(keyword) > 8:
        keyword = f"HIERARCH {keyword}"
    header.append((_printable(keyword), _value(value), _printable(comment)), end=True)


def _append(out, card, *parts):
    try:
        key, value, comment = parts or (card.keyword, card.value, card.comment)
        if _STRUCTURAL.match(key.upper()):
            return
        key = _printable(key)
        if key in ("COMMENT", "HISTORY"):
            out.add_history(_printable(value)) if key == "HISTORY" else out.add_comment(
                _printable(value)
            )
            return
        new = fits.Card(key, _value(value), _printable(comment or ""))
        new.image  # noqa: B018 - formats the card, and raises here rather than while writing
        out.append(new, end=True)
    except (ValueError, TypeError, AttributeError, fits.VerifyError):
        text = " ".join(str(part) for part in parts) if parts else _raw(card)
        out.add_comment("unreadable card: " + _printable(text).strip())


def _raw(card):
    return card._image or str(card.keyword)


def _printable(text):
    return _PRINTABLE.sub(" ", ascii_text(str(text), "?"))


def _value(value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, float | complex) and not (
        math.isfinite(value.real) and math.isfinite(value.imag)
    ):
        return None
    if isinstance(value, bool | int | float | complex | fits.card.Undefined) or value is None:
        return value
    return _printable(value)


def _stored(dtype):
    """BITPIX, the big-endian type on disk and BZERO of an array's type."""
    dtype = np.dtype(dtype)
    kind, size = dtype.kind, dtype.itemsize
    if kind == "f" and size in (4, 8):
        return -8 * size, np.dtype(f">f{size}"), 0
    if kind == "b" or (kind == "u" and size == 1):
        return 8, np.dtype("u1"), 0
    if kind == "i" and size > 1:
        return 8 * size, np.dtype(f">i{size}"), 0
    if kind == "u":
        return 8 * size, np.dtype(f">i{size}"), 1 << (8 * size - 1)
    raise ProductError(
        f"pixels of type {dtype} cannot be written to FITS: convert them to float32 first"
    )


def _fold(total):
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _sum32(data):
    """Ones' complement sum of the big-endian 32-bit words of a contiguous uint8 array."""
    if not data.size:
        return 0
    # Summing words in the other byte order is several times slower than turning them first.
    words = data.view(">u4").astype(np.uint32)
    return _fold(int(words.sum(dtype=np.uint64)))


def _encode(total):
    """
    Return the 16 characters whose words add up to the complement of ``total``.

    Seaman, Pence & Rots, FITS Checksum Proposal (2002), appended to the FITS standard 4.0 as
    appendix J.
    """
    total = 0xFFFFFFFF - total
    out = [""] * 16
    for i in range(4):
        byte = (total >> (24 - 8 * i)) & 0xFF
        quotient, rest = divmod(byte, 4)
        four = [quotient + rest + 48] + [quotient + 48] * 3
        # Punctuation is avoided by moving pairs apart; their sum stays.
        while any(58 <= c <= 64 or 91 <= c <= 96 for c in four):
            for j in (0, 2):
                if any(58 <= c <= 64 or 91 <= c <= 96 for c in four[j : j + 2]):
                    four[j] += 1
                    four[j + 1] -= 1
        for j in range(4):
            out[4 * j + i] = chr(four[j])
    return "".join(out[-1:] + out[:-1])


class Plane:
    """One HDU: its header as text, where it lies in the file, and its checksum so far."""

    def __init__(self, header, shape, dtype, *, primary, extend):
        self.shape = tuple(shape)
        bitpix, self.stored, self.zero = _stored(dtype)
        cards = fits.Header()
        if primary:
            cards["SIMPLE"] = (True, "conforms to FITS standard")
        else:
            cards["XTENSION"] = ("IMAGE", "Image extension")
        cards["BITPIX"] = (bitpix, "array data type")
        cards["NAXIS"] = (len(self.shape), "number of array dimensions")
        for axis, length in enumerate(reversed(self.shape), 1):
            cards[f"NAXIS{axis}"] = length
        if primary:
            if extend:
                cards["EXTEND"] = True
        else:
            cards["PCOUNT"] = (0, "number of parameters")
            cards["GCOUNT"] = (1, "number of groups")
        if self.zero:
            cards["BSCALE"] = 1
            cards["BZERO"] = self.zero
        self._start(_text(cards) + _text(clean_header(header)))
        self.size = math.prod(self.shape) * self.stored.itemsize if self.shape else 0

    def _start(self, text):
        self.text = text
        self.sum = 0
        self.done = 0
        self._rest = b""

    @classmethod
    def of_bytes(cls, header, data):
        """An HDU that astropy serialised (a table)."""
        self = cls.__new__(cls)
        for key in ("CHECKSUM", "DATASUM"):
            header.remove(key, ignore_missing=True)
        self._start(_text(header))
        self.shape, self.stored, self.zero = (len(data),), np.dtype("u1"), 0
        self.size = len(data)
        return self

    def chunks(self, array):
        """Yield contiguous uint8 arrays: ``array`` as it lies on disk, about 1 MiB at a time."""
        array = np.atleast_1d(array)
        rows = max(1, CHUNK // max(1, array[:1].size * self.stored.itemsize))
        for y in range(0, array.shape[0], rows):
            part = array[y : y + rows]
            if part.dtype.kind == "b":
                part = part.view(np.uint8)
            elif self.zero:
                signed = part.dtype.newbyteorder("=")
                part = np.bitwise_xor(part, signed.type(self.zero)).view(f"i{signed.itemsize}")
            yield np.ascontiguousarray(part, self.stored).reshape(-1).view(np.uint8)

    def add(self, data):
        """Add some bytes of the data to the checksum."""
        self.done += data.size
        if self._rest or data.size % 4:
            data = np.frombuffer(self._rest + data.tobytes(), np.uint8)
            cut = data.size - data.size % 4
            data, self._rest = data[:cut], data[cut:].tobytes()
        self.sum = _fold(self.sum + _sum32(data))

    def header_bytes(self, *, final):
        """The header blocks, with both checksums once all data have passed."""
        total = self.sum
        if final and self._rest:
            padded = np.frombuffer(self._rest.ljust(4, b"\0"), np.uint8)
            total = _fold(total + _sum32(padded))
        datasum = _card("DATASUM", str(total), "data unit checksum")

        def whole(checksum):
            text = self.text + _card("CHECKSUM", checksum, "HDU checksum") + datasum
            text += "END".ljust(80)
            return text.ljust(-(-len(text) // _BLOCK) * _BLOCK).encode("ascii")

        blank = whole("0" * 16)
        if not final:
            return blank
        return whole(_encode(_fold(total + _sum32(np.frombuffer(blank, np.uint8)))))


def _card(key, value, comment):
    quoted = f"'{value:8}'"
    return f"{key:8}= {quoted:20} / {comment}".ljust(80)


def _text(header):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # long comments are cut
        return header.tostring(endcard=False, padding=False)


class FitsWriter:
    """
    A FITS file written plane by plane or band by band, whole or absent.

    A context manager: the file gets its name when the block ends without an
    error and every plane is full.

    Parameters
    ----------
    path : path-like
        A file there, or a symbolic link, is replaced.
    planes : sequence of (header, shape, dtype)
        The images, the first one primary. Headers pass `clean_header`; a
        shape ``()`` is an HDU without data.
    commit : callable, optional
        Called with the SHA-256 when all is on the disk and only the name is
        missing.

    Attributes
    ----------
    sha256 : str
        Of the file, once the block has ended.

    Raises
    ------
    ProductError
        If it could not be written. What was there before is still there.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from astro_narrowband._engine.files import FitsWriter
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.fits"
    >>> planes = [({}, (4, 3), np.float32), ({"EXTNAME": "MASK"}, (4, 3), bool)]
    >>> with FitsWriter(path, planes) as writer:
    ...     for band in (np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)):
    ...         writer.write(0, band)
    ...         writer.write(1, band == 0)
    >>> path.stat().st_size
    11520
    """

    def __init__(self, path, planes, *, commit=None):
        planes = list(planes)
        planes = [
            plane
            if isinstance(plane, Plane)
            else Plane(*plane, primary=k == 0, extend=len(planes) > 1)
            for k, plane in enumerate(planes)
        ]
        self._part = Part(path, commit)
        self._planes = planes
        self._headers, self._data = [], []
        end = 0
        for plane in planes:
            self._headers.append(end)
            end += len(plane.header_bytes(final=False))
            self._data.append(end)
            end += -(-plane.size // _BLOCK) * _BLOCK
        self._end = end

    @property
    def sha256(self):
        """SHA-256 of the file, once it has its name."""
        return self._part.sha256

    def __enter__(self):
        self._part.__enter__()
        return self

    def write(self, plane, rows):
        """
        Append rows to a plane.

        Parameters
        ----------
        plane : int
            Which one, in the order in which they were given.
        rows : `~numpy.ndarray`, (n_rows, nx)
            Of the plane's type, in any byte order.
        """
        target = self._planes[plane]
        for chunk in target.chunks(rows):
            if target.done + chunk.size > target.size:
                raise ProductError(f"{self._part.path}: plane {plane} got more rows than it has")
            self._part.write(chunk, self._data[plane] + target.done)
            target.add(chunk)

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            return self._part.__exit__(kind, value, traceback)
        try:
            for number, (plane, start, data) in enumerate(
                zip(self._planes, self._headers, self._data, strict=True)
            ):
                if plane.done != plane.size:
                    raise ProductError(
                        f"{self._part.path}: plane {number} has {plane.done} of {plane.size} bytes"
                    )
                self._part.write(plane.header_bytes(final=True), start)
                padding = -plane.size % _BLOCK
                if padding:
                    self._part.write(bytes(padding), data + plane.size)
        except BaseException as error:
            self._part.__exit__(type(error), error, error.__traceback__)
            raise
        return self._part.__exit__(None, None, None)
