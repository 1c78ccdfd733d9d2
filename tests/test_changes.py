"""Files that change while they are reduced, and files of others in the way."""

import gzip
import mmap
import os
import random
import shutil
import socket
import warnings

import numpy as np
import pytest
from astropy.io import fits

from astro_narrowband.cli import main
from astro_narrowband.exceptions import listening
from astro_narrowband.night import run
from astro_narrowband.night.pipeline import reduce_night
from astro_narrowband.simulate import simulate_night

KINDS = ("light", "bias", "dark", "flat")
#: The steps of a run before which a file may change.
MOMENTS = {
    "planned": (run.Night, "claim"),
    "prepared": (run.Night, "measured"),
    "measured": (run, "register"),
    "coadded": (run, "picture"),
}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sky") / "night"
    simulate_night(
        folder, shape=(160, 160), filters=("Halpha",), n_bias=4, n_darks=3, n_flats=3,
        light_exposures=(60.0, 60.0, 60.0, 60.0), seed=4,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def whole(night, tmp_path_factory):
    """The coadd of the night, and its name."""
    return made_of(night, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def without(night, tmp_path_factory):
    """The coadd of the night without the light that changes."""
    with restored(one(night, "light")) as path:
        path.unlink()
        return made_of(night, tmp_path_factory.mktemp("without"))


def reduced(night, out):
    with listening(lambda *_: None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "can_render", lambda: False)  # a page is most of the time
        return reduce_night(night, out)


def made_of(night, out):
    (group,) = reduced(night, out)["groups"]
    name = group["products"]["coadd"]
    return name, fits.getdata(out / name)


def one(night, kind):
    return sorted((night / kind).rglob("*.fits"))[1]


class restored:  # noqa: N801 - a context manager
    """A file that is what it was when the block ends, whatever became of it."""

    def __init__(self, path):
        self.path, self.content = path, path.read_bytes()

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(self.content)


# ---- what may become of a file: each takes its path, and that of a place beside the night


def edited(**cards):
    def change(path, aside):
        with fits.open(path, mode="update") as hdul:
            hdul[0].header.update(cards)

    return change


def written(at, content, dated_back=False):
    """Bytes over those at ``at``, counted from the end if negative."""

    def change(path, aside):
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
            file.write(content)
        if dated_back:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return change


def replaced(make):
    """By what ``make`` makes of the content, under another inode."""

    def change(path, aside):
        aside.write_bytes(make(path.read_bytes()))
        os.replace(aside, path)

    return change


def in_place(make):
    def change(path, aside):
        path.write_bytes(make(path.read_bytes()))

    return change


def gone(then):
    """Removed, and something else made in its place."""

    def change(path, aside):
        os.replace(path, aside)
        then(path, aside)

    return change


def rewritten(make):
    """As FITS, by astropy."""

    def change(path, aside):
        with fits.open(path) as hdul:
            hdul[0].scale_back = False
            make(hdul).writeto(aside)
        os.replace(aside, path)

    return change


def mapped(path, aside):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[-5000:-4800] = b"\x7f" * 200


def a_socket(path, aside):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def neighbour(path):
    return sorted(path.parent.glob("*.fits"))[0]


def compressed(hdul):
    return fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(hdul[0].data, hdul[0].header)])


def scaled(hdul):
    return fits.HDUList([fits.PrimaryHDU(hdul[0].data.astype("f4") * 2, hdul[0].header)])


CHANGES = {
    "40 cards more": edited(**{f"SOLVE{i}": i for i in range(40)}),
    "a card more": edited(SOLVED=True),
    "another exposure time": edited(EXPTIME=61.0),
    "another filter": edited(FILTER="OIII"),
    "another gain": edited(GAIN=2.5),
    "bytes of data, dated back": written(-5000, b"\x7f" * 200, dated_back=True),
    "bytes of data": written(-5000, b"\x7f" * 200),
    "one bit": written(-9000, b"\x01"),
    "bytes of the header, dated back": written(800, b"COMMENT".ljust(80), dated_back=True),
    "its first bytes": written(0, b"XXXXXX"),
    "its end card": written(2880 - 80, b" " * 80),
    "bytes after its end": lambda path, _: path.open("ab").write(b"\0" * 2880),
    "a byte after its end": lambda path, _: path.open("ab").write(b"x"),
    "half of it": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "its header only": lambda path, _: os.truncate(path, 2880),
    "nothing in it": lambda path, _: os.truncate(path, 0),
    "a byte less": lambda path, _: os.truncate(path, path.stat().st_size - 1),
    "text": in_place(lambda _: b"gone"),
    "the same bytes written again": in_place(bytes),
    "zeros": in_place(lambda content: content[:-9000] + bytes(9000)),
    "packed in place": in_place(gzip.compress),
    "its bytes in another order": in_place(lambda c: c[:5760] + c[5760:][::-1]),
    "a copy of itself": replaced(bytes),
    "text under another inode": replaced(lambda _: b"gone"),
    "packed": replaced(gzip.compress),
    "half under another inode": replaced(lambda content: content[: len(content) // 2]),
    "tiles": rewritten(compressed),
    "floats of twice the value": rewritten(scaled),
    "one more extension": rewritten(lambda hdul: fits.HDUList([hdul[0], fits.ImageHDU([1])])),
    "its neighbour": lambda path, _: shutil.copyfile(neighbour(path), path),
    "removed": gone(lambda *_: None),
    "a FIFO": gone(lambda path, _: os.mkfifo(path)),
    "a folder": gone(lambda path, _: path.mkdir()),
    "a socket": gone(a_socket),
    "a link to nothing": gone(lambda path, _: path.symlink_to("nothing")),
    "a link to itself": gone(lambda path, _: path.symlink_to(path.name)),
    "a link to its neighbour": gone(lambda path, _: path.symlink_to(neighbour(path))),
    "a link to a device": gone(lambda path, _: path.symlink_to("/dev/zero")),
    "away and back": gone(lambda path, aside: os.replace(aside, path)),
    "another name of it": lambda path, aside: os.link(path, aside),
    "other rights": lambda path, _: path.chmod(0o640),
    "another date": lambda path, _: os.utime(path, (1e9, 1e9)),
    "by way of memory": mapped,
}


def reduce_with_change(night, out, monkeypatch, moment, change, path):
    place, name = MOMENTS[moment]
    step, done = getattr(place, name), []

    def changed(*args):
        if not done:
            done.append(True)
            CHANGES[change](path, out.parent / "aside")
        return step(*args)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(place, name, changed)
        record = reduced(night, out)
    assert done
    return record


def check_light(night, tmp_path, monkeypatch, moment, change, without):
    with restored(one(night, "light")) as path:
        record = reduce_with_change(night, tmp_path / "out", monkeypatch, moment, change, path)
    (group,) = record["groups"]
    assert group["status"] == "done"
    fate = {os.path.basename(f["path"]): f for f in group["frames"]}[path.name]
    assert fate["verdict"] == "left out"
    assert "while the night was reduced" in fate["reason"]
    assert record["inputs"][str(path)] is None
    np.testing.assert_array_equal(fits.getdata(tmp_path / "out" / without[0]), without[1])


def check_calibration(night, tmp_path, monkeypatch, moment, change, kind):
    out = tmp_path / "out"
    with restored(one(night, kind)) as path:
        record = reduce_with_change(night, out, monkeypatch, moment, change, path)
    assert record["status"] == 3
    assert path.name in record["groups"][0]["reason"]
    assert not list(out.glob("coadd*"))


def check_next(night, tmp_path, whole):
    """The file is what it was; the next run has nothing of the one before."""
    name, made = made_of(night, tmp_path / "out")
    assert name == whole[0]
    np.testing.assert_array_equal(made, whole[1])


@pytest.mark.parametrize(
    ("change", "moment"),
    [
        ("40 cards more", "coadded"),
        ("bytes of data, dated back", "prepared"),
        ("a FIFO", "planned"),
        ("removed", "measured"),
    ],
)
def test_a_light_that_changes_is_left_out_by_name(
    night, tmp_path, monkeypatch, moment, change, without
):
    check_light(night, tmp_path, monkeypatch, moment, change, without)


@pytest.mark.parametrize(
    ("kind", "moment"), [("bias", "planned"), ("dark", "prepared"), ("flat", "coadded")]
)
def test_a_calibration_frame_that_changes_stops_its_group(
    night, tmp_path, monkeypatch, kind, moment, whole
):
    check_calibration(night, tmp_path, monkeypatch, moment, "bytes of data, dated back", kind)
    check_next(night, tmp_path, whole)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_change_in_any_way(night, tmp_path, monkeypatch, kind, whole, without):
    """ASTRO_NARROWBAND_CHANGES says how many of each kind, seeded; all of them unless told."""
    cases = [(change, moment) for change in CHANGES for moment in list(MOMENTS)[:3]]
    random.Random(KINDS.index(kind)).shuffle(cases)
    cases = cases[: int(os.environ.get("ASTRO_NARROWBAND_CHANGES", len(cases)))]
    for n, (change, moment) in enumerate(cases):
        case = tmp_path / str(n)
        case.mkdir()
        print(f"{kind} {n} of {len(cases)}: {change}, {moment}", flush=True)
        if kind == "light":
            check_light(night, case, monkeypatch, moment, change, without)
        else:
            check_calibration(night, case, monkeypatch, moment, change, kind)
        check_next(night, case, whole)
        shutil.rmtree(case)


# --------------------------------------------------------------------------- files of others


@pytest.mark.parametrize(
    "name", ["report.html", "night.json", "frames.ecsv", "masters/bias.fits", "coadd", "picture"]
)
def test_files_of_others_are_not_overwritten(night, tmp_path, name, capsys, whole):
    out = tmp_path / "out"
    name = {"coadd": whole[0], "picture": whole[0].replace(".fits", ".png")}.get(name, name)
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    command = ["reduce", str(night), "-o", str(out), "--quiet"]
    assert main(command) == 5
    assert str(out / name) in capsys.readouterr().err
    assert (out / name).read_text() == "mine"
    assert [p for p in out.rglob("*") if p.is_file() and p.suffix != ".jsonl"] == [out / name]
    if name == "report.html":
        assert main([*command, "--overwrite"]) == 0
        assert main(command) == 0


def test_photometry_does_not_replace_the_image(tmp_path, capsys):
    image = tmp_path / "a.fits"
    fits.PrimaryHDU(np.ones((60, 60), "f4"), fits.Header({"BUNIT": "adu"})).writeto(image)
    before, table = image.read_bytes(), tmp_path / "t.ecsv"
    for output in (image, table):
        table.write_text("mine")
        assert main(["photometry", str(image), "--at", "30,30", "-o", str(output)]) == 5
        assert str(output) in capsys.readouterr().err
    assert (image.read_bytes(), table.read_text()) == (before, "mine")
    command = ["photometry", str(image), "--at", "30,30", "-o", str(table), "--overwrite"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(command) == 0
    assert table.read_text() != "mine"
