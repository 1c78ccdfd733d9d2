"""Names, and files that are whole or absent."""

import errno
import hashlib
import math
import os
import re
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.table import QTable, Table
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from astro_narrowband._engine import files
from astro_narrowband._engine.files import (
    clean_header,
    sha256,
    sweep,
    write_bytes,
    write_fits,
    write_table,
    write_text,
)
from astro_narrowband._engine.text import one_line, safe_name, unique_name
from astro_narrowband.exceptions import InputError, ProductError

SAFE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,79}")

# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("M 31", "M_31"),
        ("../../../etc/passwd", "etc_passwd"),
        ("M 31/NGC 206", "M_31_NGC_206"),
        ("-rf *", "rf"),
        (".hidden", "hidden"),
        ("Hα Pelícan", "Halpha_Pelican"),
        ("Größe ÆØÅ", "Grosse_AEOA"),
        ("Ωmega\u0301", "Omegamega"),
        ("σ Ori", "sigma_Ori"),
        ("月", "unnamed"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("a\x00b\nc", "a_b_c"),
        ("<script>alert(1)</script>", "script_alert_1_script"),
        ("NGC 7000 (5 µm)", "NGC_7000_5_um"),
        ("C++ -3.5", "C++_-3.5"),
    ],
)
def test_names_by_hand(text, name):
    assert safe_name(text) == name


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_a_safe_name_that_stays(tmp_path_factory, text):
    name = safe_name(text)
    assert SAFE.fullmatch(name)
    assert safe_name(name) == name
    folder = tmp_path_factory.getbasetemp()
    assert (folder / name).resolve().parent == folder.resolve()


@given(st.lists(st.text(max_size=90), max_size=12))
@settings(max_examples=100, deadline=None)
def test_names_given_together_never_collide(texts):
    taken = set()
    names = [unique_name(text, taken) for text in texts]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(SAFE.fullmatch(name) for name in names)


@given(st.text(max_size=60))
def test_text_for_a_terminal_is_one_line_that_controls_nothing(text):
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & set(map(chr, [*range(32), 127, *range(0x80, 0xA0), 0x202E, 0x2066]))


def test_ordinary_text_stays():
    assert one_line("NGC 7000 Hα: −3.5°") == "NGC 7000 Hα: −3.5°"


# --------------------------------------------------------------------------- whole or absent


def test_what_is_written_is_there_and_its_digest_is_told(tmp_path):
    path = tmp_path / "note.txt"
    digest = write_text(path, "3 frames\n")
    assert path.read_text() == "3 frames\n"
    assert digest == sha256(path) == hashlib.sha256(b"3 frames\n").hexdigest()
    assert os.listdir(tmp_path) == ["note.txt"]


def test_undecodable_bytes_of_a_file_name_can_be_written(tmp_path):
    name = os.fsdecode(b"light_\xff.fits")
    write_text(tmp_path / "note.txt", name)
    assert (tmp_path / "note.txt").read_text() == "light_\\udcff.fits"


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    link = tmp_path / "product.txt"
    link.symlink_to(target)
    write_text(link, "product")
    assert target.read_text() == "mine"
    assert not link.is_symlink()
    assert link.read_text() == "product"


@pytest.mark.parametrize(
    ("path", "advice"),
    [("folder", "move it away"), ("absent/x", "make it first"), ("file/x", "move it away")],
)
def test_what_is_in_the_way_is_named(tmp_path, path, advice):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ProductError, match=f"{path}: cannot be written.*{advice}"):
        write_text(tmp_path / path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ProductError, match="may write to"):
        write_text(tmp_path / "x", "x")


def test_an_error_inside_the_block_leaves_the_old_product(tmp_path):
    path = tmp_path / "x.fits"
    write_bytes(path, b"old")

    def stop(digest):
        raise KeyboardInterrupt

    def fail():
        write_fits(path, fits.HDUList([fits.PrimaryHDU(np.zeros((2, 4)))]), commit=stop)

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.fits"]


def test_leftovers_of_dead_runs_are_swept_and_living_ones_stay(tmp_path):
    dead = tmp_path / ".astro-narrowband-1-00ff.part"
    dead.write_bytes(b"half")
    mine = tmp_path / f".astro-narrowband-{os.getpid()}-00ff.part"
    mine.write_bytes(b"of an earlier process of the same number")
    other = tmp_path / ".astro-narrowband-of-the-user"
    other.write_bytes(b"x")
    swept = []
    write_bytes(tmp_path / "x.fits", b"x", commit=lambda digest: swept.append(sweep(tmp_path)))
    assert swept == [2]
    assert sorted(os.listdir(tmp_path)) == [other.name, "x.fits"]


def test_a_link_named_like_a_leftover_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / ".astro-narrowband-1-00.part").symlink_to(target)
    sweep(tmp_path)
    assert target.read_text() == "mine"


def test_commit_is_called_when_only_the_name_is_missing(tmp_path):
    path = tmp_path / "x"
    seen = []
    digest = write_bytes(path, b"abc", commit=lambda d: seen.append((d, path.exists())))
    assert seen == [(digest, False)]


def test_a_digest_of_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nothing: cannot be read"):
        sha256(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a regular file"):
        sha256(tmp_path)


# --------------------------------------------------------------------------- tables


def test_a_table_comes_back(tmp_path):
    table = QTable(
        {"id": [1, 2], "flux": [1.5, math.nan] * u.electron / u.s, "name": ["Hα", "a b"]},
        meta={"r_in": 8.0},
    )
    write_table(tmp_path / "t.ecsv", table)
    again = QTable.read(tmp_path / "t.ecsv")
    assert again["flux"].unit == u.electron / u.s
    assert list(again["name"]) == ["Hα", "a b"]
    assert again.meta["r_in"] == 8.0


def test_formulas_and_control_characters_do_not_reach_a_cell(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", " =1", "a\nb\x1b[31m", "plain"]
    table = Table({"path": texts, "other": np.array(texts, object)})
    write_table(tmp_path / "t.ecsv", table)
    again = Table.read(tmp_path / "t.ecsv")
    for column in ("path", "other"):
        assert [cell[0] for cell in again[column][:5]] == ["'"] * 5
        assert list(again[column][5:]) == ["a b [31m", "plain"]
    assert list(table["path"]) == texts


def test_masked_and_empty_columns_can_be_written(tmp_path):
    table = Table({"a": np.ma.array(["x", "y"], mask=[False, True])})
    write_table(tmp_path / "t.ecsv", table)
    assert Table.read(tmp_path / "t.ecsv")["a"].tolist() == ["x", None]
    write_table(tmp_path / "e.ecsv", Table({"a": np.array([], "U3"), "b": np.array([], float)}))
    assert len(Table.read(tmp_path / "e.ecsv")) == 0


# --------------------------------------------------------------------------- FITS


DTYPES = ["u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">f4", ">i2", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (1001,), (1, 1), (720,)])
def test_pixels_come_back_with_checksums_that_hold(tmp_path, rng, dtype, shape):
    data = (rng.random(shape) * 250).astype(dtype)
    image = data.astype(np.uint8) if dtype == "bool" else data
    path = tmp_path / "x.fits"
    table = fits.BinTableHDU(Table({"a": [1, 2], "b": ["x", "yy"]}), name="T")
    write_fits(path, fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image, name="X"), table]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdul:
            hdul.verify("exception")
            assert np.array_equal(hdul["X"].data, image)
            assert hdul["X"].data.dtype.newbyteorder("=") == image.dtype.newbyteorder("=")
            assert hdul["T"].data["b"].tolist() == ["x", "yy"]
            assert all(hdu.header["DATASUM"] for hdu in hdul)
    assert path.stat().st_size % 2880 == 0


@given(st.binary(max_size=70))
@settings(max_examples=60, deadline=None)
def test_checksums_hold_for_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.fits"
    data = np.frombuffer(content or b"\xff", np.uint8)
    write_fits(path, fits.HDUList([fits.PrimaryHDU(data)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdul:
            assert np.array_equal(hdul[0].data, data)
            ours = hdul[0].header["DATASUM"]
            assert int(ours) == hdul[0]._calculate_datasum()


def test_all_ones_add_up(tmp_path):
    data = np.full((64, 64), 0xFFFFFFFF, np.uint32)
    write_fits(tmp_path / "x.fits", fits.HDUList([fits.PrimaryHDU(data ^ np.uint32(1 << 31))]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits.open(tmp_path / "x.fits", checksum=True).close()


def test_a_ccd_comes_back_with_its_uncertainty_mask_and_wcs(tmp_path, rng):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = 10.5, 41.2
    wcs.wcs.cdelt = -0.001, 0.001
    data = rng.normal(size=(30, 20)).astype(np.float32)
    ccd = CCDData(
        data,
        unit="electron/s",
        uncertainty=StdDevUncertainty(np.abs(data)),
        mask=data > 1,
        wcs=wcs,
        header={"OBJECT": "Hα", "BAD": math.nan, "EXPTIME": 60.0},
    )
    write_fits(tmp_path / "x.fits", ccd)
    again = CCDData.read(tmp_path / "x.fits")
    assert np.array_equal(again.data, data)
    assert np.array_equal(again.mask, ccd.mask)
    assert np.array_equal(again.uncertainty.array, np.abs(data))
    assert again.unit == u.electron / u.s
    assert again.header["OBJECT"] == "Halpha"
    assert again.header["EXPTIME"] == 60.0
    np.testing.assert_allclose(again.wcs.pixel_to_world_values(3, 4), wcs.wcs_pix2world(3, 4, 0))
    assert "BAD" in ccd.header, "the input is not changed"


def test_another_uncertainty_keeps_its_type(tmp_path):
    ccd = CCDData(np.ones((2, 2)), unit="adu", uncertainty=VarianceUncertainty(np.ones((2, 2))))
    write_fits(tmp_path / "x.fits", ccd)
    assert isinstance(CCDData.read(tmp_path / "x.fits").uncertainty, VarianceUncertainty)


def test_the_same_image_gives_the_same_bytes_whenever(tmp_path, rng, monkeypatch):
    ccd = CCDData(rng.normal(size=(40, 50)).astype(np.float32), unit="adu", mask=np.eye(40, 50) > 0)
    first = write_fits(tmp_path / "a.fits", ccd)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    copy = CCDData(ccd.data.astype(">f4"), unit="adu", mask=ccd.mask)
    assert write_fits(tmp_path / "b.fits", copy) == first
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_images_masks_counts_and_tables_come_back_and_the_input_is_not_changed(tmp_path, rng):
    data = rng.normal(size=(37, 41)).astype(np.float32)
    count = rng.integers(0, 60_000, (37, 41)).astype(np.uint16)
    table = Table({"frame": ["a.fits", "b.fits"], "weight": [0.25, 0.75]})
    hdul = fits.HDUList([fits.PrimaryHDU(data, fits.Header({"OBJECT": "x"}))])
    hdul += [fits.ImageHDU((data > 1).astype(np.uint8), name="MASK")]
    hdul += [fits.ImageHDU(count, name="NEXP"), fits.BinTableHDU(table, name="FRAMES")]
    before = data.copy()
    first = write_fits(tmp_path / "a.fits", hdul)
    assert write_fits(tmp_path / "b.fits", hdul) == first == sha256(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits", checksum=True) as again:
        again.verify("exception")
        assert np.array_equal(again[0].data, data)
        assert np.array_equal(again["NEXP"].data, count)
        assert np.array_equal(again["MASK"].data, data > 1)
        assert again["FRAMES"].data["weight"].tolist() == [0.25, 0.75]
    assert np.array_equal(data, before)
    assert hdul["FRAMES"].data["weight"].tolist() == [0.25, 0.75]


def test_pixels_that_fits_does_not_have_are_refused(tmp_path):
    with pytest.raises(ProductError, match="float16 cannot be written"):
        write_fits(tmp_path / "x.fits", CCDData(np.ones((4, 4), np.float16), unit="adu"))
    assert os.listdir(tmp_path) == []


# --------------------------------------------------------------------------- headers


def test_cards_of_another_file_are_not_inherited():
    header = fits.Header()
    cards = {"BITPIX": 16, "NAXIS": 2, "NAXIS1": 3, "BZERO": 32768, "BSCALE": 1, "BLANK": -1}
    for key, value in {**cards, "CHECKSUM": "x", "DATASUM": "1", "ZIMAGE": True}.items():
        header[key] = value
    header["EXPTIME"] = 3.0
    assert list(clean_header(header)) == ["EXPTIME"]


def test_an_inherited_checksum_does_not_spoil_the_product(tmp_path):
    path = tmp_path / "in.fits"
    fits.PrimaryHDU(np.ones((3, 3), np.uint16)).writeto(path, checksum=True)
    with fits.open(path) as hdul:
        ccd = CCDData(hdul[0].data * 2.5, unit="adu", header=hdul[0].header)
    write_fits(tmp_path / "out.fits", ccd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(tmp_path / "out.fits", checksum=True) as hdul:
            assert hdul[0].data.tolist() == [[2.5] * 3] * 3


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        (-math.inf, None),
        (np.float32(2.5), 2.5),
        (np.bool_(True), True),
        ("Hα 5 µm\x07", "Halpha 5 um"),
        ("x" * 100, "x" * 100),
        (None, None),
        ([1, 2], "[1, 2]"),
        (True, True),
    ],
)
def test_values_that_a_header_cannot_hold(value, written):
    out = clean_header({"KEY": value})
    again = fits.Header.fromstring(out.tostring())["KEY"]
    assert again == written


def test_a_card_that_cannot_be_read_is_kept_as_a_comment():
    text = "OBJECT  = 'M31     '".ljust(80) + "BROKEN  = 'no end".ljust(80)
    text += "EXPTIME =  NAN".ljust(80) + "END".ljust(80)
    header = fits.Header.fromstring(text)
    out = clean_header(header)
    assert out["OBJECT"] == "M31"
    assert "EXPTIME" not in out
    assert any("BROKEN" in comment for comment in out["COMMENT"])
    assert any("NAN" in comment for comment in out["COMMENT"])


def test_history_and_long_keywords_stay():
    header = fits.Header()
    header.add_history("first")
    header.add_comment("note")
    header["HIERARCH a long keyword"] = 3
    out = clean_header(header)
    assert list(out["HISTORY"]) == ["first"]
    assert list(out["COMMENT"]) == ["note"]
    assert out["HIERARCH a long keyword"] == 3


@given(
    st.lists(
        st.tuples(
            st.text(max_size=12),
            st.one_of(st.text(max_size=90), st.floats(), st.integers(), st.booleans(), st.none()),
            st.text(max_size=60),
        ),
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_mapping_can_be_written(tmp_path_factory, cards):
    path = tmp_path_factory.getbasetemp() / "cards.fits"
    header = clean_header({k: (v, c) for k, v, c in cards})
    write_fits(path, fits.HDUList([fits.PrimaryHDU(None, header)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdul:
            hdul[0].header.tostring()


@given(st.binary(min_size=80, max_size=400))
@settings(max_examples=100, deadline=None)
def test_any_header_of_a_file_can_be_written(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "raw.fits"
    text = raw[: len(raw) // 80 * 80].decode("latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = fits.Header.fromstring(text)
        except (ValueError, fits.VerifyError):
            return
    ccd = CCDData(np.zeros((2, 2), np.uint8), unit="adu", header=header)
    write_fits(path, ccd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as hdul:
            assert hdul[0].data.shape == (2, 2)


def test_every_error_of_the_system_has_an_advice():
    for code in (errno.ENOSPC, errno.EROFS, errno.EIO):
        message = str(files.product_error("x.fits", OSError(code, os.strerror(code))))
        assert message.startswith("x.fits: cannot be written (")
        assert ";" in message
        assert "\n" not in message
