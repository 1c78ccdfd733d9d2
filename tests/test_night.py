"""A whole night through the pipeline, against its truth and against itself."""

import json
import os
import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable

from astro_narrowband._engine.frames import fits_reader
from astro_narrowband.cli import main
from astro_narrowband.demo import compare
from astro_narrowband.exceptions import InputError, NarrowbandWarning, listening
from astro_narrowband.night import run
from astro_narrowband.night.pipeline import Settings, reduce_night
from astro_narrowband.night.products import read_record, software
from astro_narrowband.simulate import NightModel, read_truth, simulate_night

pytestmark = pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sky") / "night"
    simulate_night(
        folder, shape=(320, 320), filters=("H-alpha 7nm", "OIII"), n_bias=8, n_darks=5, n_flats=5,
        light_exposures=(60.0, 60.0, 120.0, 120.0), seed=3,
        model=NightModel(star_density=2000.0, nebula=0.3),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def reduced(night, tmp_path_factory):
    output = tmp_path_factory.mktemp("products") / "reduced"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NarrowbandWarning)
        record = reduce_night(night, output)
    return record, output


@pytest.mark.usefixtures("without_page")
def test_a_resume_with_nothing_to_do_compares_digests_and_says_what_was_said(
    night, tmp_path, monkeypatch
):
    few, out = tmp_path / "night", tmp_path / "out"
    shutil.copytree(night, few, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    (few / "light" / "broken.fits").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    (few / "notes.txt").write_text("seeing 3 arcsec")
    with listening(lambda text, _: None):
        record = reduce_night(few, out)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    class Begun(Exception):  # noqa: N818 - work is
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr(run, "Night", begin)
    said = []
    with listening(lambda text, _: said.append(text)):
        assert reduce_night(few, out) == record
    assert said == [message["text"] for message in record["messages"]]
    assert "broken.fits" in said[0]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written

    def begins(**settings):
        with pytest.raises(Begun):
            reduce_night(few, out, settings=Settings(**settings))

    begins(resume=False)
    begins(weights="equal")
    begins(keep_calibrated=True)
    begins(strict=True)
    light, coadd = sorted(few.rglob("light*.fits"))[0], next(out.glob("coadd*.fits"))
    for path in (light, coadd, out / "night.json", out / "frames.ecsv", few / "notes.txt"):
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + b"?")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        begins()
        path.write_bytes(content)
    begins()  # files of the night that are what they were, but were touched: they are read again
    monkeypatch.undo()
    reduce_night(few, out)
    monkeypatch.setattr(run, "Night", begin)
    assert reduce_night(few, out)["status"] == 0
    new = few / "new.txt"
    new.touch()
    begins()
    new.unlink()
    with monkeypatch.context() as patch:
        patch.setitem(software(), "numpy", "0")
        begins()
    light.unlink()
    begins()


@pytest.mark.usefixtures("without_page")
def test_what_may_be_gone_the_next_time_is_tried_again(night, tmp_path):
    few, out = tmp_path / "night", tmp_path / "out"
    shutil.copytree(night, few, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    (few / "gone.fits").symlink_to("nothing")
    assert reduce_night(few, out)["status"] == 0
    lines = (out / ".astro-narrowband.jsonl").read_text().splitlines()
    keys = {entry["name"]: entry["key"] for entry in map(json.loads, lines)}
    assert not keys["night.json"]
    assert keys["frames.ecsv"] == ""


def test_a_resume_with_little_to_do_parses_each_header_once_and_draws_nothing(
    night, reduced, monkeypatch
):
    record, output = reduced
    (output / "night.json").unlink()
    parsed, structure = [], fits_reader._structure
    monkeypatch.setattr(
        fits_reader, "_structure", lambda *args: parsed.append(args[1]) or structure(*args)
    )
    monkeypatch.setattr("astro_narrowband.night.run.render_report", None)
    monkeypatch.setattr("astro_narrowband.night.charts._finish", None)
    assert reduce_night(night, output) == record
    assert max(Counter(parsed).values(), default=0) <= 1


def test_products_are_those_of_the_contract(reduced):
    record, output = reduced
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    base = "Crown_Nebula"
    assert names - {".astro-narrowband.jsonl"} == {
        "masters/bias.fits", "masters/dark.fits", "masters/flat-Halpha.fits",
        "masters/flat-OIII.fits", "frames.ecsv", "night.json", "report.html",
        f"catalog-{base}.ecsv", f"colour-{base}.png", f"colour-{base}-natural.jpg",
        *(f"coadd-{base}-{name}.png" for name in ("Halpha", "OIII")),
        *(f"{kind}-{base}-{name}.{suffix}" for name in ("Halpha", "OIII")
          for kind, suffix in (("coadd", "fits"), ("catalog", "ecsv"), ("growth", "ecsv"))),
    }  # fmt: skip
    assert record["status"] == 0
    assert read_record(output / "night.json")["status"] == 0


def test_coadd_opens_as_ccddata_with_its_planes(reduced):
    _, output = reduced
    path = output / "coadd-Crown_Nebula-Halpha.fits"
    ccd = CCDData.read(path)
    assert ccd.unit == u.electron / u.s
    assert ccd.uncertainty.uncertainty_type == "std"
    assert ccd.header["NCOMBINE"] == 4
    assert ccd.header["EXPTIME"] == 360
    assert ccd.header["FILTER"] == "Halpha"  # whatever the lights call it
    assert 0 < ccd.header["NOISECOR"] <= 1
    with fits.open(path) as hdul:
        assert {"UNCERT", "MASK", "NEXP", "TEXP"} <= {hdu.name for hdu in hdul}
        assert hdul["NEXP"].data.max() == 4
    assert ccd.mask is not None
    assert np.isnan(ccd.data[ccd.mask]).all()


def test_fluxes_and_alignments_are_true(tmp_path):
    simulate_night(
        tmp_path / "night", shape=(512, 512), filters=("OIII",), n_bias=8, n_darks=5, n_flats=5,
        light_exposures=(60.0, 60.0, 120.0, 120.0), seed=3, model=NightModel(nebula=0.3),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NarrowbandWarning)
        record = reduce_night(tmp_path / "night", tmp_path / "out")
    (row,) = compare(read_truth(tmp_path / "night"), record, tmp_path / "out")
    assert row["align_rms"] < 0.1
    assert row["n_stars"] >= 20
    assert abs(row["flux_bias"]) < 0.03
    assert abs(row["flux_bias"]) < 5 * row["flux_bias_err"]
    assert 0.5 < row["pull_width"] < 1.6


@pytest.mark.usefixtures("without_page")
def test_frames_that_are_out_for_one_cause_are_said_in_one_line(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part)
    for victim in sorted((part / "light" / "Halpha").iterdir())[:3]:
        image, header = fits.getdata(victim, header=True)
        stars_gone = np.random.default_rng(1).permutation(image.ravel()).reshape(image.shape)
        fits.writeto(victim, stars_gone, header, overwrite=True)
    record = reduce_night(part, tmp_path / "out", settings=Settings(filters=("Halpha", "OIII")))
    out = [f for g in record["groups"] for f in g["frames"] if f["verdict"] == "left out"]
    lines = [m["text"] for m in record["messages"] if ": left out: " in m["text"]]
    assert len(out) == 3
    assert len(lines) < 3
    assert all(any(f["path"] in line for line in lines) for f in out)


def test_used_left_out_and_ignored_add_up_to_the_files_found(night, reduced):
    record, output = reduced
    files = record["files"]
    assert files["used"] + files["left out"] + files["ignored"] == files["found"]
    assert files["found"] == sum(path.is_file() for path in night.rglob("*"))
    table = QTable.read(output / "frames.ecsv")
    assert len(table) == files["found"]
    for verdict in ("used", "left out", "ignored"):
        assert int((table["verdict"] == verdict).sum()) == files[verdict]


def test_filters_share_one_grid(reduced):
    record, _ = reduced
    assert len({group["reference"] for group in record["groups"]}) == 1


def digests(output):
    record = json.loads((output / "night.json").read_text())
    return {k: v for k, v in record["products"].items() if k.endswith((".fits", ".ecsv"))}


def test_resume_makes_only_what_is_missing_and_the_same_bytes(night, reduced, tmp_path):
    _, output = reduced
    again = tmp_path / "again"
    shutil.copytree(output, again)
    before = digests(output)
    (again / "coadd-Crown_Nebula-OIII.fits").unlink()
    kept = (again / "coadd-Crown_Nebula-Halpha.fits").stat().st_mtime_ns
    reduce_night(night, again)
    assert digests(again) == before
    assert (again / "coadd-Crown_Nebula-Halpha.fits").stat().st_mtime_ns == kept
    (again / "report.html").unlink()
    reduce_night(night, again)
    for name in ("report.html", "night.json"):
        assert (again / name).read_bytes() == (output / name).read_bytes()


@pytest.mark.usefixtures("without_page")
def test_workers_and_memory_change_no_byte(night, reduced, tmp_path):
    _, output = reduced
    reduce_night(night, tmp_path / "one", settings=Settings(workers=1, memory=30e6))
    assert digests(tmp_path / "one") == digests(output)


@pytest.mark.usefixtures("without_page")
def test_a_filter_without_flat_fails_alone(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part, ignore=shutil.ignore_patterns("OIII_flat*"))
    shutil.rmtree(part / "flat" / "OIII")
    record = reduce_night(part, tmp_path / "out")
    assert record["status"] == 4
    states = {group["filter"]: group["status"] for group in record["groups"]}
    assert states == {"Halpha": "done", "OIII": "failed"}
    (failed,) = (group for group in record["groups"] if group["status"] == "failed")
    assert "flat" in failed["reason"]


@pytest.mark.usefixtures("without_page")
def test_a_truncated_light_is_left_out_by_name(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part)
    victim = sorted((part / "light" / "Halpha").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:20000])
    record = reduce_night(part, tmp_path / "out", settings=Settings(filters=("Halpha",)))
    assert record["status"] == 0
    (group,) = record["groups"]
    assert group["n_used"] == 3
    (lost,) = (frame for frame in group["frames"] if frame["verdict"] == "left out")
    assert lost["path"] == str(victim)
    assert "truncated" in lost["reason"]
    assert any(victim.name in m["text"] and "truncated" in m["text"] for m in record["messages"])


def test_a_frame_left_out_of_the_coadd_is_left_out_everywhere(night, tmp_path, capsys):
    part = tmp_path / "night"
    shutil.copytree(night, part, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    victim = sorted((part / "light").rglob("*.fits"))[0]
    with fits.open(victim, mode="update") as hdul:
        data = hdul[0].data.astype(float)
        dim = np.median(data) + (data - np.median(data)) * np.where(data > 1500, 0.05, 1)
        hdul[0].data = dim.round().astype("u2")
    arguments = ["reduce", str(part), "-o", str(tmp_path / "out")]
    for _ in ("made", "read again"):
        main(arguments)
        record = read_record(tmp_path / "out" / "night.json")
        (group,) = record["groups"]
        lost = [frame for frame in group["frames"] if frame["verdict"] == "left out"]
        assert [frame["path"] for frame in lost] == [str(victim)]
        assert lost[0]["reason"]
        assert (group["n_used"], len(group["frames"])) == (3, 4)
        assert "3 of 4" in capsys.readouterr().out
        header = fits.getheader(tmp_path / "out" / group["products"]["coadd"])
        assert header["NCOMBINE"] == 3
        assert header["EXPTIME"] == group["exposure_total"]
        table = QTable.read(tmp_path / "out" / "frames.ecsv")
        (row,) = table[table["path"] == str(victim)]
        assert (row["verdict"], row["reason"]) == ("left out", lost[0]["reason"])
        assert record["files"]["left out"] == 1
        page = (tmp_path / "out" / "report.html").read_text()
        assert "3 of 4" in page
        (tmp_path / "out" / "night.json").unlink()


@pytest.mark.usefixtures("without_page")
def test_lights_of_other_stars_become_a_panel_of_their_own(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    few = {"n_bias": 1, "n_darks": 1, "n_flats": 1, "light_exposures": (60.0,) * 3, "seed": 9}
    model = NightModel(star_density=2000.0, nebula=0.3)
    simulate_night(tmp_path / "b", shape=(320, 320), filters=("Ha",), model=model, **few)
    for path in (tmp_path / "b" / "light").rglob("*.fits"):
        shutil.copy(path, part / f"light_b_{path.name}")
    for _ in ("made", "read again"):
        record = reduce_night(part, tmp_path / "out")
        groups = {group["object"]: group for group in record["groups"]}
        assert {name: group["n_used"] for name, group in groups.items()} == {
            "Crown Nebula": 4,
            "Crown Nebula panel 2": 3,
        }
        assert record["status"] == record["files"]["left out"] == 0
        assert any("panel 2" in message["text"] for message in record["messages"])
        (tmp_path / "out" / "night.json").unlink()


def test_a_night_without_lights_is_refused(night, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "seeing.txt").write_text("3 arcsec")
    with pytest.raises(InputError, match="no light"):
        reduce_night(tmp_path / "notes", tmp_path / "out")


def test_strict_turns_a_warning_into_status_3(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part)
    (part / "light" / "broken.fits").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    settings = Settings(filters=("Halpha",), strict=True)
    assert reduce_night(part, tmp_path / "out", settings=settings)["status"] == 3


@pytest.mark.usefixtures("without_page")
def test_dark_beyond_the_limit_leaves_lights_out_by_name(night, tmp_path):
    settings = Settings(max_extrapolation=0.5, filters=("Halpha",))
    part = tmp_path / "night"
    shutil.copytree(night, part)
    for path in (part / "dark").iterdir():
        if "120s" in path.name:
            path.unlink()
    record = reduce_night(part, tmp_path / "out", settings=settings)
    assert record["groups"][0]["n_used"] == 2  # those of 60 s
    assert any("max_extrapolation" in m["text"] for m in record["messages"])


def test_every_master_of_several_settings_is_in_the_record(night, tmp_path):
    both = tmp_path / "night"
    shutil.copytree(night, both / "one", ignore=shutil.ignore_patterns("truth", "*OIII*"))
    few = {"n_bias": 3, "n_darks": 3, "n_flats": 3, "light_exposures": (60.0,) * 3, "seed": 4}
    model = NightModel(star_density=2000.0, nebula=0.3)
    simulate_night(both / "two", shape=(320, 320), filters=("Ha",), model=model, **few)
    shutil.rmtree(both / "two" / "truth")
    shutil.copytree(both / "two" / "dark", both / "unused")
    for path in (both / "two").rglob("*.fits"):
        fits.setval(path, "OFFSET", value=20)
    for path in (both / "unused").rglob("*.fits"):
        with fits.open(path, mode="update") as hdul:
            hdul[0].header["OFFSET"] = 30
            hdul[0].data[0] += 1
    record = reduce_night(both, tmp_path / "out")
    kinds = [master["kind"] for master in record["masters"]]
    assert sorted(kinds) == ["bias", "bias", "dark", "dark", "flat", "flat"]
    labels = {group["label"] for group in record["groups"]}
    assert len(labels) == 2
    assert set(record["detector"]) == labels
    for kind in set(kinds):
        served = [label for m in record["masters"] if m["kind"] == kind for label in m["groups"]]
        assert sorted(served) == sorted(labels)
    made = {f"masters/{path.name}" for path in (tmp_path / "out" / "masters").iterdir()}
    assert made == {master["path"] for master in record["masters"]}
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"<dd>{label}</dd>" in page for label in labels)


@pytest.mark.usefixtures("without_page")
def test_spellings_are_part_of_what_a_product_is_made_of(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    mine = tmp_path / "mine.toml"
    settings = Settings(spellings=str(mine))

    def coadded():
        reduce_night(part, tmp_path / "out", settings=settings)
        (path,) = (tmp_path / "out").glob("coadd-*.fits")
        return path.stat().st_mtime_ns

    mine.write_text('[kinds]\nhimmelsfeld = "flat"\n')
    first = coadded()
    mine.write_text('# only a comment\n[kinds]\nhimmelsfeld = "flat"\n')
    assert coadded() == first
    mine.write_text('[keywords]\ndate = ["DATE-END"]\n')
    assert coadded() != first


@pytest.mark.usefixtures("without_page")
def test_a_filter_of_the_user_is_reduced_under_the_name_that_is_wanted(night, tmp_path):
    part = tmp_path / "night"
    shutil.copytree(night, part, ignore=shutil.ignore_patterns("truth", "*OIII*"))
    for path in (*part.glob("light/**/*.fits"), *part.glob("flat/**/*.fits")):
        fits.setval(path, "FILTER", value="schmal 2")
    mine = tmp_path / "mine.toml"
    mine.write_text('[filters]\n"schmal 2" = "S2"\n')
    record = reduce_night(part, tmp_path / "out", settings=Settings(spellings=str(mine)))
    assert record["status"] == 0
    assert [group["filter"] for group in record["groups"]] == ["S2"]
