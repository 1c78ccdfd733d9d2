"""Files that change while they are reduced, files of others in the way, and signals."""

import os
import shutil
import warnings

import numpy as np
import pytest
from astropy.io import fits

from astro_narrowband.cli import main
from astro_narrowband.night.pipeline import reduce_night
from astro_narrowband.night.run import Night
from astro_narrowband.simulate import simulate_night

pytestmark = pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sky") / "night"
    simulate_night(
        folder, shape=(160, 160), filters=("Halpha",), n_bias=4, n_darks=3, n_flats=3,
        light_exposures=(60.0, 60.0, 60.0, 60.0), seed=4,
    )  # fmt: skip
    return folder


@pytest.fixture
def night(sky, tmp_path):
    return shutil.copytree(sky, tmp_path / "night")


def longer_header(path):
    with fits.open(path, mode="update") as hdul:
        for i in range(40):
            hdul[0].header[f"SOLVE{i}"] = i


def dated_back(path):
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(b"\x7f" * 200)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_by_text(path):
    path.write_text("gone")


def removed(path):
    path.unlink()


def fifo(path):
    path.unlink()
    os.mkfifo(path)


CHANGES = (longer_header, dated_back, replaced_by_text, removed, fifo)
#: The steps of a run before which a file may change.
MOMENTS = {"planned": "claim", "prepared": "measured", "measured": "register", "coadded": "picture"}


def reduce_with_change(night, out, monkeypatch, moment, change, path):
    step, done = getattr(Night, MOMENTS[moment]), []

    def changed(self, *args):
        if not done:
            done.append(change(path))
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Night, MOMENTS[moment], changed)
        record = reduce_night(night, out)
    assert done
    return record


def one(night, kind):
    return sorted((night / kind).rglob("*.fits"))[1]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_light_that_changes_is_left_out_by_name(night, tmp_path, monkeypatch, moment, change):
    if CHANGES.index(change) != list(MOMENTS).index(moment) and change is not longer_header:
        pytest.skip("all of them in the long test")
    check_light(night, tmp_path, monkeypatch, moment, change)


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_lights_that_change_in_any_way(night, tmp_path, monkeypatch, moment, change):
    check_light(night, tmp_path, monkeypatch, moment, change)


def check_light(night, tmp_path, monkeypatch, moment, change):
    path = one(night, "light")
    record = reduce_with_change(night, tmp_path / "out", monkeypatch, moment, change, path)
    (group,) = record["groups"]
    assert group["status"] == "done"
    fate = {os.path.basename(f["path"]): f for f in group["frames"]}[path.name]
    assert fate["verdict"] == "left out"
    assert "while the night was reduced" in fate["reason"]
    assert record["inputs"][str(path)] is None
    path.unlink(missing_ok=True)
    without = reduce_night(night, tmp_path / "without")
    made, expected = (
        fits.getdata(tmp_path / name / group["products"]["coadd"]) for name in ("out", "without")
    )
    np.testing.assert_array_equal(made, expected)
    assert without["status"] == 0


@pytest.mark.parametrize(
    ("kind", "moment"), [("bias", "planned"), ("dark", "prepared"), ("flat", "coadded")]
)
def test_a_calibration_frame_that_changes_stops_its_group(
    night, tmp_path, monkeypatch, kind, moment
):
    path, out = one(night, kind), tmp_path / "out"
    before = path.read_bytes()
    record = reduce_with_change(night, out, monkeypatch, moment, dated_back, path)
    assert record["status"] == 3
    assert path.name in record["groups"][0]["reason"]
    assert not list(out.glob("coadd*"))
    # It goes back, and the next run has nothing of the one before.
    path.write_bytes(before)
    again, fresh = reduce_night(night, out), reduce_night(night, tmp_path / "fresh")
    assert again["status"] == 0
    coadd = fresh["groups"][0]["products"]["coadd"]
    np.testing.assert_array_equal(
        *(fits.getdata(path / coadd) for path in (out, tmp_path / "fresh"))
    )


# --------------------------------------------------------------------------- files of others


@pytest.mark.parametrize(
    "name", ["report.html", "night.json", "frames.ecsv", "masters/bias.fits", "coadd"]
)
def test_files_of_others_are_not_overwritten(night, tmp_path, name, capsys):
    out = tmp_path / "out"
    if name == "coadd":
        first = reduce_night(night, tmp_path / "first")
        name = first["groups"][0]["products"]["coadd"]
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
