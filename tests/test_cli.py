"""The command line: what it prints, and what a script may rely on."""

import errno
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable

import astro_narrowband
from astro_narrowband import cli
from astro_narrowband.cli import _commands
from astro_narrowband.cli._process import ready_streams, say
from astro_narrowband.cli._text import show
from astro_narrowband.simulate import NightModel, simulate_night


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "night"
    simulate_night(
        folder, shape=(256, 256), filters=("Halpha",), n_bias=5, n_darks=3, n_flats=3,
        light_exposures=(60.0, 120.0, 120.0), seed=5,
        model=NightModel(star_density=1500.0, nebula=0.3),
    )  # fmt: skip
    return folder


@pytest.fixture
def image(tmp_path, rng):
    y, x = np.mgrid[:64, :64]
    data = rng.normal(10, 1, (64, 64)) + 500 * np.exp(-((x - 30) ** 2 + (y - 33) ** 2) / 8)
    path = tmp_path / "star.fits"
    CCDData(data.astype("f4"), unit="electron/s").write(path)
    return path


def test_reduce_prints_a_summary_and_writes_the_products(night, tmp_path, capsys):
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    heads, units, row, _, page = out.splitlines()
    assert heads.split() == ["frames", "exposure", "noise", "over", "FWHM"]
    assert "3 of 3" in row
    # The columns end below their heads.
    for head, unit in (("exposure", " s"), ("noise", "electron/s")):
        assert heads.index(head) + len(head) == units.index(unit) + len(unit)
    assert page.endswith("report.html")
    assert "Traceback" not in err
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.usefixtures("without_page")
def test_quiet_prints_nothing_on_stdout(night, tmp_path, capsys):
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_inspect_shows_files_and_plan_and_writes_nothing(night, capsys):
    before = sorted(night.rglob("*"))
    assert cli.main(["inspect", str(night)]) == 0
    out = capsys.readouterr().out
    assert "bias_0001.fits" in out
    assert "Crown Nebula Halpha: 3 lights" in out
    assert sorted(night.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "COMMAND"),
        (["reduce", "somewhere"], 2, "-o"),
        (["reduce", "x", "-o", "y", "--gain", "-1"], 2, "above zero"),
        (["reduce", "x", "-o", "y", "--set", "NOVALUE"], 2, "KEYWORD=VALUE"),
        (["reduce", "x", "-o", "y", "--memory", "lots"], 2, "500M"),
        (["reduce", "/nowhere", "-o", "y"], 3, "/nowhere"),
        (["inspect", "/nowhere"], 3, "/nowhere"),
        (["photometry", "/nowhere.fits", "--at", "1,2"], 3, "/nowhere.fits"),
    ],
)
def test_wrong_arguments_end_with_their_status_and_a_word(arguments, status, words, capsys):
    assert cli.main(arguments) == status
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_folder_without_lights_becomes_a_library_of_masters(night, tmp_path, capsys):
    assert cli.main(["reduce", str(night / "bias"), "-o", str(tmp_path / "out")]) == 0
    assert "no light" in capsys.readouterr().err
    assert (tmp_path / "out" / "masters" / "bias.fits").exists()


def test_photometry_prints_a_table(image, capsys):
    assert cli.main(["photometry", str(image), "--at", "30,33", "--radius", "8"]) == 0
    out = capsys.readouterr().out
    assert "flux_err" in out
    assert len(out.strip().splitlines()) >= 3


def test_photometry_has_the_digits_of_its_errors(image, capsys):
    assert cli.main(["photometry", str(image), "--at", "30,33", "--radius", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= len(lines[-1]) + 12 for line in lines)
    row = dict(zip(lines[0].split(), lines[-1].split(), strict=True))
    assert len(row["flux"].partition(".")[2]) == len(row["flux_err"].partition(".")[2])
    assert max(map(len, row.values())) < 12


def test_a_page_that_was_not_written_is_not_named(night, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("astro_narrowband.night.run.can_render", lambda: False)
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "report.html" not in out
    assert out.strip().endswith("night.json")
    assert "no report.html: pip install" in err
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_warning_stands_on_a_line_of_its_own_under_a_bar(capsys):
    tqdm = pytest.importorskip("tqdm")
    for _ in tqdm.tqdm([1, 2], file=sys.stderr):
        say("warning: of a frame")
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    assert lines.count("astro-narrowband: warning: of a frame") == 2


def test_photometry_writes_ecsv(image, tmp_path):
    path = tmp_path / "table.ecsv"
    arguments = ["photometry", str(image), "--at", "30,33", "--radius", "8", "-o", str(path)]
    assert cli.main(arguments) == 0
    (row,) = QTable.read(path)
    true = 500 * np.pi * 8
    assert abs(row["flux"].value - true) < 3 * 8 * np.sqrt(np.pi)


def test_growth_prints_a_row_for_each_radius(image, capsys):
    assert cli.main(["photometry", str(image), "--at", "30,33", "--radius", "8", "--growth"]) == 0
    assert "radius" in capsys.readouterr().out


def test_an_unwritable_output_is_an_environment_error(night, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "file" / "out")]) == 5
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "status"), [(0.001, 0), (0.5, 3)])
def test_inspect_says_what_a_dark_of_another_time_costs(
    make_camera, tmp_path, capsys, rate, status
):
    camera = make_camera(3)
    camera.rate[:] = rate  # [electron/s]
    frames = {
        "Bias": camera.biases(10),
        "Dark": camera.darks(30),
        "Flat": [camera.frame(300.0, 20000.0) for _ in range(3)],
        "Light": [camera.frame(300.0, 30.0) for _ in range(2)],
    }
    for kind, group in frames.items():
        for i, frame in enumerate(group):
            frame.header.update(IMAGETYP=kind, FILTER="Ha", OBJECT="M1")
            frame.write(tmp_path / f"{kind}{i}.fits")
    # Ten times its darks: little on a cold camera, and refused on a warm one.
    assert cli.main(["inspect", str(tmp_path)]) == status
    out = capsys.readouterr().out
    text = "for 2 lights, extrapolated from darks of 30 s and biases: costs"
    assert text in out
    assert ("too much for" in out) is (status == 3)
    if status == 0:
        assert "cost: dark of 300 s for 3 flats" in out


def test_inspect_ends_with_the_status_of_a_reduction(night, tmp_path, capsys):
    assert cli.main(["inspect", str(night / "bias")]) == 0
    assert cli.main(["inspect", str(night), "--filter", "OIII"]) == 3
    copy = tmp_path / "night"
    shutil.copytree(night, copy)
    for path in (copy / "light").rglob("*_0001.fits"):
        fits.setval(path, "FILTER", value="SII")
    assert cli.main(["inspect", str(copy)]) == 4
    assert "no flat of SII" in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    header = fits.Header()
    header["IMAGETYP"] = "light"
    path = tmp_path / "evil\x1b[31m.fits"
    fits.PrimaryHDU(np.zeros((8, 8), "i2"), header).writeto(path)
    cli.main(["inspect", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


def test_python_m_and_the_script_are_the_same():
    command = [sys.executable, "-m", "astro_narrowband", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == f"astro-narrowband {astro_narrowband.__version__}"


def test_a_bug_is_one_line_and_a_log(monkeypatch, capsys):
    def broken(options):
        raise RuntimeError("not meant to happen")

    monkeypatch.setitem(_commands.COMMANDS, "inspect", broken)
    assert cli.main(["inspect", os.devnull]) == 70
    err = capsys.readouterr().err
    assert "a bug in astro-narrowband" in err
    assert len(err.strip().splitlines()) == 1
    log = err.strip().split()[-1]
    with open(log) as file:
        assert "not meant to happen" in file.read()
    os.unlink(log)


def test_products_beside_the_raw_frames_are_refused(night, capsys):
    assert cli.main(["reduce", str(night), "-o", str(night)]) == 3
    assert "-o" in capsys.readouterr().err


def test_photometry_of_an_image_without_unit_works_and_says_so(tmp_path, rng, capsys):
    path = tmp_path / "plain.fits"
    fits.PrimaryHDU(rng.normal(100, 5, (64, 64)).astype("i2")).writeto(path)
    assert cli.main(["photometry", str(path), "--at", "30,30"]) == 0
    out, err = capsys.readouterr()
    assert "flux" in out
    assert "BUNIT" in err


def test_photometry_with_a_unit_that_is_none_is_refused(tmp_path, capsys):
    path = tmp_path / "plain.fits"
    fits.PrimaryHDU(np.ones((64, 64), "i2")).writeto(path)
    arguments = ["photometry", str(path), "--at", "30,30", "--unit", "bananas"]
    assert cli.main(arguments) == 3
    assert "bananas" in capsys.readouterr().err


def run(*arguments, **options):
    command = [sys.executable, "-m", "astro_narrowband", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)  # noqa: S603


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_any_encoding_is_no_error(monkeypatch, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    ready_streams()
    show("ночь Hα")
    say("ночь Hα")
    for stream in streams.values():
        stream.flush()
        assert rb"\u043d\u043e\u0447\u044c H\u03b1" in stream.buffer.getvalue()


def test_folders_of_other_alphabets_are_reduced(night, tmp_path):
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "вых"), "--quiet"]) == 0
    assert (tmp_path / "вых" / "report.html").is_file()


def test_a_broken_pipe_does_not_hide_the_status(night, tmp_path):
    """Nobody reads what a night says of itself: its status stays that of the night."""
    command = [sys.executable, "-m", "astro_narrowband", "inspect", night, "--filter", "OIII"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)  # noqa: S603
    os.close(write)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
@pytest.mark.parametrize("arguments", [["--version"], ["inspect", None]])
def test_a_stdout_that_is_full_is_named(night, arguments):
    command = [sys.executable, "-m", "astro_narrowband", *(a or str(night) for a in arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(  # noqa: S603
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "standard output: cannot be written (No space left on device)" in done.stderr


@pytest.mark.usefixtures("without_page")
def test_a_file_system_without_locks_is_no_error(night, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.usefixtures("without_page")
def test_calibrated_lights_of_a_finished_night_are_written(night, tmp_path):
    command = ["reduce", str(night), "-o", str(tmp_path / "out"), "--quiet"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--keep-calibrated"]) == 0
    there = {path.stem for path in (tmp_path / "out" / "calibrated").glob("*.fits")}
    assert there == {path.stem for path in (night / "light").rglob("*.fits")}
    # One that the user put there is refused by name, before anything is written.
    mine = tmp_path / "other" / "calibrated" / f"{min(there)}.fits"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    command = ["reduce", str(night), "-o", str(tmp_path / "other"), "--keep-calibrated"]
    assert cli.main(command) == 5
    assert [p for p in (tmp_path / "other").rglob("*") if p.is_file()] == [mine]


def test_a_demonstration_of_which_nothing_could_be_made_is_not_done(tmp_path, capsys):
    assert cli.main(["demo", "-o", str(tmp_path / "out"), "--size", "48", "--quiet"]) in (3, 4)
    assert "not reduced" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["http://localhost:8787", "tcp://", "/no/such/file.json", "slurm"])
def test_a_scheduler_that_is_none_is_usage(night, tmp_path, capsys, text):
    command = ["reduce", str(night), "-o", str(tmp_path / "out"), "--scheduler", text]
    assert cli.main(command) == 2
    assert text in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[" * 100_000)
    command[-1] = str(tmp_path / "bad.json")
    assert cli.main(command) == 2
    assert "is no scheduler file" in capsys.readouterr().err


@pytest.mark.usefixtures("without_page")
def test_spellings_and_journals_that_are_nested_deep_are_named(night, tmp_path, capsys):
    spellings, out = tmp_path / "deep.toml", tmp_path / "out"
    spellings.write_text("kinds = " + "[" * 100_000)
    assert cli.main(["inspect", str(night), "--spellings", str(spellings)]) == 3
    assert str(spellings) in capsys.readouterr().err
    out.mkdir()
    (out / ".astro-narrowband.jsonl").write_text("[" * 100_000)
    assert cli.main(["reduce", str(night), "-o", str(out), "--quiet"]) == 0


def test_closed_streams_are_no_error(night, tmp_path):
    command = [sys.executable, "-m", "astro_narrowband", "reduce", night, "-o", tmp_path / "out"]
    shell = " ".join(map(str, command)) + " >&- 2>&-"
    assert subprocess.run(shell, shell=True, check=False).returncode == 0  # noqa: S602


def test_few_open_files_are_enough(night, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    done = run("reduce", night, "-o", tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", ""],
        ["reduce", "night", "-o", " "],
        ["reduce", "night", "-o", "out", "--registration", "centroid"],
        ["reduce", "night", "-o", "out", "--registration", "centroid", "--star", "nan,3"],
        [],
        ["reduce", "night"],
        ["develop", "night"],
        ["reduce", "night", "-o", "out", "--workers", "0"],
        ["inspect", "night", "--gian", "1"],
    ],
)
def test_what_can_only_be_a_mistake_is_usage(arguments, capsys):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("without_page")
def test_a_gain_that_the_flats_contradict_is_said(night, tmp_path, capsys):
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "a"), "--gain", "1.2"]) == 0
    assert "flats and biases show 0.6" in capsys.readouterr().err
    assert cli.main(["reduce", str(night), "-o", str(tmp_path / "b")]) == 0
    assert "flats and biases show" not in capsys.readouterr().err


def test_a_filter_that_no_light_has_is_said(night, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["reduce", str(night), "-o", out, "--filter", "Hbeta"]) == 3
    assert "the lights are of Halpha" in capsys.readouterr().err


@pytest.mark.usefixtures("without_page")
def test_a_gain_that_cannot_be_is_said_and_measured(night, tmp_path, capsys):
    copy = tmp_path / "night"
    shutil.copytree(night, copy)
    for path in copy.rglob("*.fits"):
        if "truth" not in path.parts:
            fits.setval(path, "EGAIN", value=-1.0)
            fits.setval(path, "RDNOISE", value="low")
    assert cli.main(["reduce", str(copy), "-o", str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert "EGAIN = -1.0 is not a gain" in err
    assert "RDNOISE = 'low'" in err
    assert err.count("measured instead") == 2
