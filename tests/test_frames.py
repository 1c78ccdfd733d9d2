"""Frames read by bands: every container gives the same pixels, no file gives anything but them."""

import bz2
import gzip
import lzma
import os
import pickle
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty, VarianceUncertainty
from hypothesis import given
from hypothesis import strategies as st

from astro_narrowband._engine.frames import (
    Band,
    FitsFrame,
    Frame,
    HeldFrame,
    HeldRows,
    MemoryFrame,
    _packed,
    _tiles,
    as_ccd,
    as_frame,
    map_bands,
    row_bands,
)
from astro_narrowband.exceptions import InputError, ProductError

SHAPE = (40, 50)
ALL = slice(0, SHAPE[0])


@pytest.fixture
def image(rng):
    return rng.integers(0, 65536, SHAPE, dtype=np.uint16)


@pytest.fixture
def raw(image, tmp_path):
    """A plain file of uint16."""
    path = tmp_path / "raw.fits"
    fits.PrimaryHDU(image).writeto(path)
    return path


def write(path, *hdus):
    fits.HDUList(list(hdus)).writeto(path, overwrite=True)
    return path


def assert_holds(path, image, **options):
    frame = FitsFrame(path, unit="adu", **options)
    assert frame.shape == image.shape
    whole = frame.read(slice(0, image.shape[0]))
    assert whole.data.dtype == np.float32
    np.testing.assert_array_equal(whole.data, image.astype(np.float32))
    np.testing.assert_array_equal(frame.read(slice(7, 9)).data, whole.data[7:9])
    return frame


# ------------------------------------------------------------------ what can be read


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_every_type(rng, tmp_path, dtype):
    data = rng.integers(0, 100, SHAPE).astype(dtype)
    frame = assert_holds(write(tmp_path / "a.fits", fits.PrimaryHDU(data)), data)
    native = frame.image.read(ALL)
    assert native.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(native, data)


def test_scaled_integers_and_blank(tmp_path):
    stored = np.arange(2000, dtype=np.int16).reshape(SHAPE)
    hdu = fits.PrimaryHDU(stored)
    path = write(tmp_path / "a.fits", hdu)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdul:
        hdul[0].header["BSCALE"] = 0.5
        hdul[0].header["BZERO"] = 10.0
        hdul[0].header["BLANK"] = 7
    band = FitsFrame(path).read(ALL)
    expected = stored * 0.5 + 10
    assert band.mask.sum() == 1
    assert band.mask[0, 7]
    assert np.isnan(band.data[0, 7])
    np.testing.assert_array_equal(band.data[1:], expected[1:])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("honest", [True, False])
def test_compressed_whatever_the_name(raw, image, pack, honest):
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]
    path = raw.with_name("packed.fits" + (suffix if honest else ""))
    path.write_bytes(pack(raw.read_bytes()))
    assert_holds(path, image)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
@pytest.mark.parametrize("header", [None, {"SIMPLE": True, "EXPTIME": 5.0}])
def test_tiles(tmp_path, image, kind, header):
    head = fits.Header(header) if header else None
    tiled = fits.CompImageHDU(image, head, compression_type=kind)
    frame = assert_holds(write(tmp_path / "a.fits.fz", fits.PrimaryHDU(), tiled), image)
    if header:
        assert frame.header["EXPTIME"] == 5.0


def test_tiles_of_floats(tmp_path, rng):
    data = rng.normal(size=SHAPE).astype("f4")
    tiled = fits.CompImageHDU(data, compression_type="GZIP_2", quantize_level=0)
    assert_holds(write(tmp_path / "a.fits", fits.PrimaryHDU(), tiled), data)


def test_tiles_in_gzip(tmp_path, image):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), fits.CompImageHDU(image))
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    assert_holds(path, image)


def test_helper_for_tiles_may_die(tmp_path, image, monkeypatch):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), fits.CompImageHDU(image))
    assert_holds(path, image)
    _tiles._HELPER.process.kill()
    _tiles._HELPER.process.wait()
    assert_holds(path, image)
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os, sys; sys.stdin.readline(); os.abort()")
    _tiles._HELPER.stop()
    monkeypatch.setattr(_tiles, "__file__", str(deadly))
    with pytest.raises(InputError, match="bring down"):
        FitsFrame(path)
    deadly.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(_tiles, "_PATIENCE", (0.2, 0.0))
    with pytest.raises(InputError, match="bring down"):
        FitsFrame(path)


def test_tiles_are_expanded_once_where_there_is_room(tmp_path, image, monkeypatch):
    image = image.astype("i4")
    tiled = [fits.CompImageHDU(image + k) for k in range(3)]
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), *tiled)
    sections, rows = [], _tiles._rows
    monkeypatch.setattr(_tiles, "_rows", lambda hdu, s: sections.append(s) or rows(hdu, s))
    for room, most in ((1 << 20, 3), (2 * image.nbytes, 2), (1, 1)):
        monkeypatch.setattr(_tiles, "_ROOM", room)
        expanded = _tiles._Expanded()
        with fits.open(path) as hdul:
            for y in range(image.shape[0]):
                for k, hdu in enumerate(hdul[1:]):
                    got = expanded.rows(k, hdu, slice(y, y + 1))
                    np.testing.assert_array_equal(got[0], image[y] + k)
                    assert len(expanded.held) <= most
            sections.clear()
            for y in range(image.shape[0]):
                expanded.rows("in a row", hdul[1], slice(y, y + 1))
        assert sections.count(slice(None)) == 1
        assert len(sections) < image.shape[0] // 2


def test_tiles_that_are_damaged(tmp_path, image):
    path = write(tmp_path / "a.fits", fits.PrimaryHDU(), fits.CompImageHDU(image))
    content = bytearray(path.read_bytes())
    at = content.index(b"'RICE_1")
    content[at : at + 7] = b"'RISE_1"
    path.write_bytes(content)
    frame = FitsFrame(path)
    assert "is damaged" in frame.damage
    with pytest.raises(InputError, match=r"a.fits: is damaged"):
        frame.read(ALL)


def test_one_plane_and_extension(tmp_path, image):
    assert_holds(write(tmp_path / "a.fits", fits.PrimaryHDU(image[None, None])), image)
    primary = fits.PrimaryHDU()
    primary.header["FILTER"], primary.header["OBJECT"] = "Ha", "M 31"
    extension = fits.ImageHDU(image)
    extension.header["OBJECT"] = "M 33"
    frame = assert_holds(write(tmp_path / "b.fits", primary, extension), image)
    assert frame.header["FILTER"] == "Ha"
    assert frame.header["OBJECT"] == "M 33"
    assert frame.primary["OBJECT"] == "M 31"


def test_science_extension_among_others(tmp_path, image):
    side = [fits.ImageHDU(image * 0, name=name) for name in ("ERR", "DQ")]
    assert_holds(
        write(tmp_path / "a.fits", fits.PrimaryHDU(), *side, fits.ImageHDU(image, name="SCI")),
        image,
    )


def test_last_block_without_padding_and_rubbish_behind(raw, image):
    whole = raw.read_bytes()
    raw.write_bytes(whole[: -(-image.nbytes % 2880)])
    assert_holds(raw, image)
    raw.write_bytes(whole + b"rubbish" * 1000)
    assert_holds(raw, image)


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full(SHAPE, 2.0)),
        VarianceUncertainty(np.full(SHAPE, 4.0)),
        InverseVariance(np.full(SHAPE, 0.25)),
    ],
)
def test_products_come_back(tmp_path, image, uncertainty):
    mask = image > 60000
    ccd = CCDData(image.astype("f4"), unit="electron/s", mask=mask, uncertainty=uncertainty)
    ccd.write(tmp_path / "a.fits")
    for frame in (FitsFrame(tmp_path / "a.fits"), MemoryFrame(ccd)):
        band = frame.read(slice(3, 20))
        assert frame.unit == u.electron / u.s
        np.testing.assert_allclose(band.variance, 4.0)
        np.testing.assert_array_equal(band.mask, mask[3:20])
        back = as_ccd(frame)
        np.testing.assert_allclose(back.uncertainty.array, 2.0)
        np.testing.assert_array_equal(back.mask, mask)


def test_what_is_not_finite_is_masked(tmp_path):
    data = np.ones(SHAPE)
    data[1, 1], data[2, 2], data[3, 3] = np.nan, np.inf, 1e300
    band = FitsFrame(write(tmp_path / "a.fits", fits.PrimaryHDU(data))).read(ALL)
    assert [tuple(p) for p in np.argwhere(band.mask)] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("bunit", "unit"),
    [
        ("ADU", "adu"),
        ("counts", "adu"),
        ("DN", "adu"),
        ("e-", "electron"),
        ("electrons/s", "electron/s"),
        ("ELECTRON", "electron"),
        ("adu", "adu"),
        ("[adu]", "adu"),
        ("e-/sec", "electron/s"),
        ("", "adu"),
        ("   ", "adu"),
    ],
)
def test_units_as_cameras_write_them(raw, bunit, unit):
    fits.setval(raw, "BUNIT", value=bunit)
    assert FitsFrame(raw, unit="adu").unit == u.Unit(unit)


# ------------------------------------------------------------------ what cannot


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0" * 99, "JPEG"),
        (b"\x89PNG" * 99, "PNG"),
        (b"<html>" * 99, "web page"),
        (b"II*\x00" * 99, "camera raw"),
        (b"PK\x03\x04" * 99, "zip"),
        (b"\x28\xb5\x2f\xfd" * 99, "zstd"),
        (b"version https://git-lfs", "LFS"),
        (b"SIMPLE  = T", "no end"),
        (b"SIMPLE  =                    T".ljust(2880), "no end"),
        (b"SIMPLE  =                    T".ljust(80) * 36 * 20, "no end"),
        (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), "BITPIX"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (gzip.compress(b"SIMPLE  =" * 2000, mtime=0)[:-40], "truncated"),
        (b"\x1f\x8b\x08" + bytes(50), "damaged"),
        (b"BZh9" + bytes(50), "damaged"),
        (b"\xfd7zXZ\x00" + bytes(50), "damaged"),
    ],
)
def test_no_fits(tmp_path, content, says):
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        FitsFrame(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def spoilt(raw, keyword, text):
    """The file with one card written anew."""
    content = bytearray(raw.read_bytes())
    at = content.index(keyword.ljust(8).encode())
    content[at : at + 80] = f"{keyword:8}= {text}".ljust(80).encode()
    raw.write_bytes(content)


@pytest.mark.parametrize(
    ("keyword", "text", "says"),
    [
        ("BITPIX", "12", "BITPIX = 12"),
        ("BITPIX", "'16'", "BITPIX"),
        ("BITPIX", "T", "BITPIX"),
        ("NAXIS", "-1", "NAXIS = -1"),
        ("NAXIS", "999999", "NAXIS3"),
        ("NAXIS", "0", "no image"),
        ("NAXIS1", "-50", "NAXIS1 = -50"),
        ("NAXIS1", "50.5", "NAXIS1"),
        ("NAXIS1", "9999999999999999999999", "pixels"),
        ("NAXIS1", "20000000", "pixels"),
        ("NAXIS1", "100000", "truncated"),
        ("NAXIS1", "0", "no image"),
        ("NAXIS1", "6 6", "cannot be read"),
        ("BZERO", "'x'", "BZERO"),
        ("BZERO", "NaN", "cannot be read"),
        ("BSCALE", "0", "BSCALE"),
        ("BSCALE", "1E400", "BSCALE"),
    ],
)
def test_headers_that_lie(raw, keyword, text, says):
    spoilt(raw, keyword, text)
    with pytest.raises(InputError, match=says):
        FitsFrame(raw)


@pytest.mark.parametrize("size", [100, 2880, 3000, 5000])
def test_truncated(raw, size):
    raw.write_bytes(raw.read_bytes()[:size])
    with pytest.raises(InputError, match=r"truncated|no end"):
        FitsFrame(raw)


def test_cut_while_it_is_open(raw):
    frame = FitsFrame(raw)
    raw.write_bytes(raw.read_bytes()[:5000])
    with pytest.raises(InputError, match="to 5000 bytes while the night was reduced"):
        frame.read(ALL)
    raw.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        frame.read(ALL)


def test_other_shapes(tmp_path, image):
    for data, says in ((np.stack([image] * 3), "planes"), (image[0], "no image")):
        with pytest.raises(InputError, match=says):
            FitsFrame(write(tmp_path / "a.fits", fits.PrimaryHDU(data)))
    chips = [fits.ImageHDU(image), fits.ImageHDU(image)]
    with pytest.raises(InputError, match="2 images"):
        FitsFrame(write(tmp_path / "a.fits", fits.PrimaryHDU(), *chips))
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])
    with pytest.raises(InputError, match="no image"):
        FitsFrame(write(tmp_path / "a.fits", fits.PrimaryHDU(), table))


def test_unit_that_is_none(raw):
    fits.setval(raw, "BUNIT", value="furlong per fortnight")
    with pytest.raises(InputError, match="BUNIT = 'furlong"):
        FitsFrame(raw)


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "f.fits")
    for name, says in (("f.fits", "regular"), ("none.fits", "not exist"), (".", "regular")):
        start = time.monotonic()
        with pytest.raises(InputError, match=says):
            FitsFrame(tmp_path / name)
        assert time.monotonic() - start < 1


# ------------------------------------------------------------------ limits


def test_max_pixels_is_checked_before_anything_else(raw, image):
    assert_holds(raw, image, max_pixels=image.size)
    packed = raw.with_name("b.fits")
    packed.write_bytes(gzip.compress(raw.read_bytes(), mtime=0))
    tiled = write(raw.with_name("c.fits"), fits.PrimaryHDU(), fits.CompImageHDU(image))
    for path in (raw, packed, tiled):
        with pytest.raises(InputError, match="--max-pixels"):
            FitsFrame(path, max_pixels=image.size - 1)


def test_bomb_is_not_expanded(raw, image):
    bomb = raw.with_name("bomb.fits.gz")
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(raw.read_bytes())
        for _ in range(64):
            file.write(bytes(1 << 22))
    start = time.monotonic()
    assert_holds(bomb, image)
    assert time.monotonic() - start < 1


def test_expanded_files_have_no_name_and_are_expanded_once(raw, image, tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    expanded = []
    monkeypatch.setattr(_packed, "_expand", _counted(_packed._expand, expanded))
    raw.write_bytes(gzip.compress(raw.read_bytes(), mtime=0))
    for _ in range(3):
        assert_holds(raw, image)
    assert len(expanded) == 1
    assert not list(folder.iterdir())


def _counted(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def test_no_space_for_expansion(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raw.write_bytes(gzip.compress(raw.read_bytes(), mtime=0))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
    try:
        with pytest.raises(ProductError, match="TMPDIR"):
            FitsFrame(raw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)


# ------------------------------------------------------------------ checksums


def test_sums(raw, tmp_path):
    assert FitsFrame(raw).damage == ""
    with fits.open(raw, mode="update") as hdul:
        hdul[0].add_checksum()
    assert FitsFrame(raw).damage == ""
    content = bytearray(raw.read_bytes())
    content[-3000] ^= 1
    raw.write_bytes(content)
    assert FitsFrame(raw).damage.startswith("DATASUM = ")
    tiled = fits.CompImageHDU(np.arange(2000, dtype="i2").reshape(SHAPE))
    fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(tmp_path / "b.fits", checksum=True)
    assert FitsFrame(tmp_path / "b.fits").damage == ""


# ------------------------------------------------------------------ the rest of the protocol


def test_frames_travel(raw, image):
    frame = pickle.loads(pickle.dumps(FitsFrame(raw, unit="adu", max_pixels=2000)))  # noqa: S301
    np.testing.assert_array_equal(frame.read(ALL).data, image)
    assert (frame.unit, frame.max_pixels) == (u.adu, 2000)
    assert isinstance(frame, Frame)


def test_one_parser_for_input(raw, image):
    ccd = CCDData(image, unit="adu")
    for given_ in (raw, str(raw), ccd, FitsFrame(raw)):
        np.testing.assert_array_equal(as_frame(given_, unit="adu").read(ALL).data, image)
    with pytest.raises(InputError, match="has no unit"):
        as_frame(image)
    with pytest.raises(InputError, match="2-D"):
        as_frame(CCDData(image[0], unit="adu"))


@given(st.integers(0, 300), st.integers(-5, 400))
def test_bands_cover_all_rows_once(n_rows, band_rows):
    rows = [y for band in row_bands(n_rows, band_rows) for y in range(band.start, band.stop)]
    assert rows == list(range(n_rows))


@pytest.mark.parametrize("workers", [1, 3])
def test_map_bands_keeps_the_order(workers):
    bands = row_bands(50, 7)
    found = list(
        map_bands(lambda rows: (rows.start, threading.get_ident()), bands, workers=workers)
    )
    assert [rows for rows, _ in found] == bands
    assert [value[0] for _, value in found] == [band.start for band in bands]


def test_an_error_in_a_band_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_bands(lambda rows: 1 // 0, row_bands(50, 7), workers=2))


class Rows(Frame):
    """A frame of given planes; the mask of a band is None where it has no masked pixel."""

    def __init__(self, data, variance=None, mask=None):
        self.name, self.shape, self.unit, self.header = "rows", data.shape, None, fits.Header()
        self.planes = data, variance, mask

    def read(self, rows):
        data, variance, mask = (None if p is None else p[rows] for p in self.planes)
        return Band(data, variance, mask if mask is not None and mask.any() else None)


@pytest.mark.parametrize("with_variance", [False, True])
def test_a_held_frame_has_the_pixels_of_the_frame(rng, monkeypatch, with_variance):
    monkeypatch.setattr("astro_narrowband._engine.frames._held.HELD_PIXELS", 300)
    data = rng.normal(size=(50, 60)).astype(np.float32)
    variance = data**2 if with_variance else None
    mask = np.zeros(data.shape, bool)
    mask[[20, 41], [3, 59]] = True
    held = HeldFrame(Rows(data, variance, mask))
    assert np.array_equal(held.data, data)
    assert np.array_equal(held.mask, mask)
    band = held.read(slice(18, 44))
    assert np.array_equal(band.data, data[18:44])
    assert (band.variance is None) is not with_variance
    assert not with_variance or np.array_equal(held.variance, variance)
    assert HeldFrame(Rows(data, variance, np.zeros_like(mask))).mask is None


def test_a_held_frame_masks_what_is_not_finite(rng, monkeypatch):
    monkeypatch.setattr("astro_narrowband._engine.frames._held.HELD_PIXELS", 300)
    data = rng.normal(size=(50, 60)).astype(np.float32)
    data[30, 7], data[31, 8] = np.nan, np.inf
    mask = np.zeros(data.shape, bool)
    mask[2, 2] = True
    assert np.array_equal(HeldFrame(Rows(data)).mask, ~np.isfinite(data))
    assert np.array_equal(HeldFrame(Rows(data, None, mask)).mask, mask | ~np.isfinite(data))
    # Sums that overflow are not taken for it.
    assert HeldFrame(Rows(np.full((20, 20), 3e38, np.float32))).mask is None


def test_a_frame_is_held_in_the_memory_of_one_that_is_done_with(rng):
    first, second = (rng.normal(size=(50, 60)).astype(np.float32) for _ in range(2))
    old = HeldFrame(Rows(first, first**2))
    new = HeldFrame(Rows(second, second**2), spare=old)
    assert np.shares_memory(new.data, old.data)
    assert np.shares_memory(new.variance, old.variance)
    assert np.array_equal(new.data, second)
    assert new.mask is None
    other = HeldFrame(Rows(second[:20]), spare=new)
    assert other.shape == (20, 60)
    assert np.array_equal(other.data, second[:20])
    assert np.array_equal(new.data, second)


def test_a_frame_is_held_without_its_variance(rng):
    data = rng.normal(size=(50, 60)).astype(np.float32)
    frame = Rows(data, data**2)
    held = HeldFrame(frame, variance=False)
    assert held.variance is None
    assert np.array_equal(held.data, data)


def test_held_rows_are_read_once_by_any_number_of_threads(rng):
    whole = rng.normal(size=(150, 20))
    asked = []

    def read(rows):
        asked.append(rows)
        return whole[rows], None

    held = HeldRows(read, len(whole))
    with ThreadPoolExecutor(4) as pool:
        wanted = [slice(y, y + 10) for y in range(0, 140, 7)]
        for rows, (plane, nothing) in zip(wanted, pool.map(held.planes, wanted), strict=True):
            assert np.array_equal(plane, whole[rows])
            assert nothing is None
    assert sorted(y for rows in asked for y in range(rows.start, rows.stop)) == list(range(150))
