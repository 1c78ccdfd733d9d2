"""The page of a night: complete, self-contained, and safe whatever the headers say."""

import base64
import copy
import hashlib
import html.parser
import io
import re
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable
from PIL import Image

from astro_narrowband._engine.files import sha256, write_fits, write_table
from astro_narrowband.calibration import CalibratedFrame, Recipe
from astro_narrowband.detector import Detector
from astro_narrowband.exceptions import ProductError
from astro_narrowband.night.report import Pictures, render_report, write_report
from astro_narrowband.night.report._group import SIDE, draw_light
from astro_narrowband.night.report._words import cause_of, fixed, number, settings_words

N = 60


def coadd(rng, filter_name, shape=(N, N)):
    data = rng.normal(1, 0.1, shape).astype(np.float32)
    data[20:40, 20:40] += 3
    nexp = np.full(shape, 4, np.uint16)
    nexp[:5] = 2
    header = fits.Header({"FILTER": filter_name, "DATE-OBS": "2026-08-14T22:13:05"})
    sigma = np.full(shape, 0.1, np.float32)
    mask = np.zeros(shape, bool)
    mask[0] = True
    uncertainty = StdDevUncertainty(sigma)
    ccd = CCDData(data, unit="electron/s", uncertainty=uncertainty, mask=mask, header=header)
    hdul = ccd.to_hdu()
    hdul.append(fits.ImageHDU(nexp, name="NEXP"))
    hdul.append(fits.ImageHDU(nexp * np.float32(60), name="TEXP"))
    return hdul


def frame(k, **more):
    return {
        "path": f"night/light{k}.fits", "verdict": "used", "reason": "", "exposure": 60.0,
        "dx": 1.5 * k, "dy": -0.25, "rotation": 0.01, "rms": 0.07, "n_matched": 40,
        "method": "stars", "weight": 0.25, "scale": 1.0, "sky": 1.0, "fwhm": 3.2,
        "rejected": 0.0005, **more,
    }  # fmt: skip


def products(folder, rng, name, filter_name):
    write_fits(folder / f"coadd-{name}.fits", coadd(rng, filter_name))
    catalog = {"id": [1, 2], "x_center": [30.0, 12.0], "y_center": [31.0, 44.0]}
    table = QTable({**catalog, "flux": [900.0, 4.0], "snr": [300.0, 4.0]})
    write_table(folder / f"catalog-{name}.ecsv", table)
    radius = np.tile(np.arange(1, 9.0), 2)
    flux = np.repeat([900.0, 20.0], 8) * (1 - np.exp(-radius))
    table = QTable({"id": np.repeat([1, 2], 8), "radius": radius, "flux": flux})
    table["flux_err"], table["aperture_sum"] = 1 + 0 * flux, flux + radius**2
    table.meta.update(r_in=10.0, r_out=14.0, background={1: "the sky is right here"})
    write_table(folder / f"growth-{name}.ecsv", table)
    return {what: f"{what}-{name}.{end}" for what, end in
            (("coadd", "fits"), ("catalog", "ecsv"), ("growth", "ecsv"))}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    rng = np.random.default_rng(1)
    (folder / "masters").mkdir()
    plain = CCDData(rng.normal(300, 1, (N, N)).astype(np.float32), unit="adu")
    write_fits(folder / "masters/bias.fits", plain)
    rate = fits.ImageHDU(rng.normal(0.1, 0.01, (N, N)).astype(np.float32), name="RATE")
    write_fits(folder / "masters/dark.fits", fits.HDUList([fits.PrimaryHDU(plain.data), rate]))
    write_fits(folder / "masters/flat-Halpha.fits", CCDData(plain.data / 300, unit=""))
    groups = [
        {
            "object": "NGC 7000", "filter": name, "reference": "night/light0.fits",
            "status": "done", "reason": "", "products": products(folder, rng, f"x-{name}", name),
            "exposure_total": 240.0, "n_used": 4, "sky": 1.0, "noise": 0.1, "fwhm": 3.2,
            "frames": [frame(k) for k in range(4)],
        }
        for name in ("Halpha", "OIII", "SII")
    ]  # fmt: skip
    out = frame(9, verdict="left out", reason="3 stars matched of 41", dx=None, weight=None)
    groups[1]["frames"].append(out)
    groups.append({
        "object": "NGC 7000", "filter": "NII", "status": "failed", "reason": "no flat of NII",
        "products": {}, "frames": [],
    })  # fmt: skip
    record = {
        "software": {"astro_narrowband": "0.1.0", "numpy": "2.4"},
        "settings": {"weights": "background", "gain": None, "stars": [[1.0, 2.0]]},
        "status": 4,
        "detector": {"M 16 Halpha": {
            "gain": 1.27, "gain_err": 0.01, "read_noise": 8.3, "saturation": 65504.0,
            "sources": {"gain": "measured from 5 flats and 7 biases"}}},
        "masters": [
            {"kind": "bias", "path": "masters/bias.fits", "n_frames": 7, "level": 300.1,
             "noise": 5.9, "groups": ["M 16 Halpha"]},
            {"kind": "dark", "path": "masters/dark.fits", "model": "rate",
             "exposures": [60.0, 120.0], "n_frames": [10, 9], "temperatures": [-10.0, -9.5],
             "notes": ["note of it"]},
            {"kind": "flat", "filter": "Halpha", "path": "masters/flat-Halpha.fits",
             "n_frames": 5, "exposure": [3.0, 3.5],
             "left_out": ["f3.fits"]},
        ],
        "groups": groups,
        "messages": [{"level": "warning", "text": "f3.fits: saturated: left out"},
                     {"level": "error", "text": "NII: no flat"}],
        "inputs": {"a.fits": "00"},
    }  # fmt: skip
    return folder, record


class Page(html.parser.HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.stack = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "title"):
            self.texts.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(made):
    return render_report(*made)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def assert_nothing_runs_or_loads(page):
    assert not page.of("script")
    assert not page.of("iframe")
    assert not page.of("object")
    assert not page.of("link")
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a.startswith("on") or a == "style"], (tag, attrs)
        if tag == "a":  # a file beside the page, and nowhere else
            assert re.fullmatch(r"(?!/)[\w./%~-]+", attrs["href"])
            assert ".." not in attrs["href"].split("/")
            continue
        for name in ("src", "href", "action", "srcset", "xlink:href", "formaction"):
            assert attrs.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")


def test_nothing_on_the_page_runs_or_is_loaded(page):
    assert_nothing_runs_or_loads(page)


def test_the_policy_allows_this_style_and_no_other(text, page):
    policy = next(a["content"] for a in page.of("meta") if "http-equiv" in a)
    style = re.search("<style>(.*?)</style>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in policy


def test_every_picture_is_a_whole_png(page):
    sources = [a["src"].removeprefix("data:image/png;base64,") for a in page.of("img")]
    # Composites; coadd, coverage, two stars, four charts for each filter; three masters.
    assert len(sources) == 3 + 3 * (2 + 2 + 4) + 3
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source))).load()


@pytest.mark.parametrize(
    "words",
    [
        "NGC 7000", "3 of 4 filters", "2026-08-14", "12 of 13", "720 s", "1.270 ± 0.010",
        "measured from 5 flats and 7 biases", "f3.fits: saturated: left out", "NII: no flat",
        "Not made: no flat of NII", "light9.fits 3 stars matched of 41", "SII, Halpha, OIII",
        "Halpha, OIII, OIII",
        "light0.fits (reference)", "−0.25", "10 × 60 s, 9 × 120 s", "−10 to −9.50", "note of it",
        "3 to 3.50", "night/light9.fits 3 stars matched of 41",
        "weights background", "numpy 2.4", "4 in 91.7 % of the image", "Sources 1 S/N > 5, of 2",
        "1 input files", "stars 1, 2", "Surface at 5 σ 0.50 electron/s per pixel",
        "Frames 4 of 5",
        "To cite: astro_narrowband 0.1.0", "the sky is right here",
    ],
)  # fmt: skip
def test_the_page_says(page, words):
    assert words in page.text


def test_settings_that_say_nothing_are_not_shown(page):
    assert "gain None" not in page.text


def test_the_page_is_the_same_again_and_written_whole(made, text):
    folder, record = made
    assert render_report(folder, copy.deepcopy(record)) == text
    digest = write_report(folder, record)
    assert sha256(folder / "report.html") == digest
    assert (folder / "report.html").read_text(encoding="utf-8") == text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; </style><style>*{background:url(//evil)}",
    "{{ 7 * 7 }}{% raise %}",
    "$\\frac{1}{$",
    "a\x1b[31m\u202ecod.exe\x00",
    "</title><h1>",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_nothing_of_a_header_or_a_file_name_reaches_the_page_as_html(made, tmp_path, evil):
    record = copy.deepcopy(made[1])
    for group in record["groups"]:
        group["products"] = {}
        group["object"] = evil
        group["reason"] = evil
        for item in group["frames"]:
            item["path"] = item["reason"] = item["method"] = evil
            item["sky"] = item["dx"] = None
    record["groups"][1]["filter"] = evil
    record["groups"][2]["frames"][0]["rms"] = evil
    record["groups"][2]["frames"][0]["verdict"] = "left out"
    record["messages"].append({"level": evil, "text": evil})
    record["software"][evil] = evil
    record["settings"][evil] = {evil: evil}
    (detector,) = record["detector"].values()
    detector["sources"]["gain"] = detector["gain"] = evil
    dark = record["masters"][1]
    dark["notes"].append(evil)
    dark["model"] = evil
    record["masters"].append(
        {"kind": "flat", "filter": evil, "path": None, "n_frames": evil, "groups": [evil]}
    )
    page = Page(render_report(tmp_path, record))
    assert_nothing_runs_or_loads(page)
    assert len(page.of("style")) == 1
    assert len(page.of("h1")) == 1
    assert " 49" not in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page.text)


def test_headers_of_the_products_are_escaped_too(made, tmp_path, rng):
    _, record = made
    hdul = coadd(rng, "Halpha")
    hdul[0].header["DATE-OBS"] = "<script>1</script>"
    hdul[0].header["BUNIT"] = "<b onclick=1>"
    hdul[0].header["NOISECOR"] = "<i>"
    write_fits(tmp_path / "coadd-x-Halpha.fits", hdul)
    group = copy.deepcopy(record["groups"][0])
    group["products"] = {"coadd": "coadd-x-Halpha.fits"}
    assert_nothing_runs_or_loads(Page(render_report(tmp_path, {"groups": [group]})))


def test_pictures_drawn_beforehand_give_the_same_page(made, monkeypatch):
    folder, record = made
    pictures = Pictures(folder, len(record["groups"]))
    for group in record["groups"][:3]:
        pictures.coadd(group["products"]["coadd"], group["filter"])
    for master in record["masters"]:
        pictures.master(master)
    page = render_report(folder, record)
    monkeypatch.setattr("astropy.io.fits.open", None)  # no image is read again
    assert render_report(folder, record, pictures=pictures) == page


def test_one_light_is_shown_raw_calibrated_and_on_the_coadd_wherever_it_pointed(tmp_path):
    """A star is at one place of all three, in frames that are shifted, and turned by 180 deg."""
    y, x = np.mgrid[:400, :420]
    recipe = Recipe(Detector(gain=1.0, read_noise=5.0))

    def scene(a, b):
        return 10.0 + 5000 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8)

    hdul = fits.HDUList([fits.PrimaryHDU(scene(180.0, 230.0)), fits.ImageHDU(name="MASK")])
    hdul[1].data = np.zeros(x.shape, np.uint8)
    hdul.writeto(tmp_path / "coadd.fits")
    for matrix in ([[1, 0, -12], [0, 1, 7], [0, 0, 1]], [[-1, 0, 400], [0, -1, 390], [0, 0, 1]]):
        a, b = np.linalg.solve(matrix, [180.0, 230.0, 1.0])[:2]
        light = CCDData(
            300 + scene(a, b), unit="adu", header=fits.Header({"EXPTIME": 1.0}),
        )  # fmt: skip
        frame = CalibratedFrame(light, recipe)
        drawn = draw_light(tmp_path / "coadd.fits", frame, matrix, "Halpha")
        places = []
        for name in ("raw", "calibrated", "coadd"):
            picture = np.asarray(Image.open(io.BytesIO(drawn[name])))
            assert picture.shape == (SIDE, SIDE)
            places.append(np.mean(np.nonzero(picture == picture.max()), axis=1))
        assert np.ptp(places, axis=0).max() <= 1, places


# --------------------------------------------------------------------------- what is missing


def test_an_empty_record_is_a_page(tmp_path):
    page = Page(render_report(tmp_path, {}))
    assert "No lights" in page.text
    assert "not reduced" in page.text


@pytest.mark.parametrize("content", [None, b"", b"SIMPLE  =", b"x" * 5000])
def test_products_that_cannot_be_read_are_said_to_be_so(made, tmp_path, content):
    record = copy.deepcopy(made[1])
    for group in record["groups"]:
        group["frames"] = []
    names = [n for g in record["groups"] for n in g["products"].values()]
    names += ["masters/bias.fits", "masters/dark.fits", "masters/flat-Halpha.fits"]
    (tmp_path / "masters").mkdir()
    if content is not None:
        for name in names:
            (tmp_path / name).write_bytes(content)
    page = Page(render_report(tmp_path, record))
    for name in record["groups"][0]["products"].values():
        assert f"{name}: cannot be shown" in page.text
    assert page.text.count("cannot be shown") == len(names)


@pytest.mark.parametrize("group", [{}, {"frames": [{}]}, {"frames": [frame(1, path=None)]}])
def test_records_that_lack_keys_are_shown(tmp_path, group):
    assert "How it was made" in Page(render_report(tmp_path, {"groups": [group]})).text


def test_grids_that_differ_give_no_composite(made, tmp_path, rng):
    _, record = made
    groups = copy.deepcopy(record["groups"][:2])
    for group, shape in zip(groups, [(N, N), (N, N + 2)], strict=True):
        write_fits(tmp_path / group["products"]["coadd"], coadd(rng, group["filter"], shape))
        group["products"] = {"coadd": group["products"]["coadd"]}
    text = render_report(tmp_path, {"groups": groups})
    assert "Colour composite" not in text


def test_two_objects_have_two_headings_and_two_composites(made):
    folder, record = made
    groups = copy.deepcopy(record["groups"][:3])
    for group in groups:
        group["products"] = {"coadd": group["products"]["coadd"]}
        group["frames"] = []
    groups += [{**group, "object": "M 16"} for group in groups[:2]]
    page = Page(render_report(folder, {"groups": groups}))
    alts = [a["alt"] for a in page.of("img") if a["alt"].startswith("Colour")]
    assert alts == [
        *(f"Colour composite {name} of NGC 7000" for name in ("SHO", "HOO", "natural")),
        *(f"Colour composite {name} of M 16" for name in ("HOO", "natural")),
    ]
    assert "Halpha, OIII, OIII" in page.text


def test_detectors_that_agree_are_shown_once(made):
    folder, record = made
    (one,) = record["detector"].values()
    both = {"a Halpha": one, "a OIII": one}
    assert Page(render_report(folder, {"detector": both})).text.count("Read noise") == 1
    other = {**one, "read_noise": 3.0}
    text = Page(render_report(folder, {"detector": {**both, "b SII": other}})).text
    assert "a Halpha, a OIII: Read noise" in text
    assert "b SII: Read noise 3" in text


def test_a_long_list_of_frames_is_folded(made, tmp_path):
    _, record = made
    group = {**record["groups"][0], "products": {}, "frames": [frame(k) for k in range(30)]}
    page = Page(render_report(tmp_path, {"groups": [group]}))
    assert "30 frames" in page.text
    assert len(page.of("meter")) == 30


def test_long_lists_of_messages_are_folded_and_whole(tmp_path):
    messages = [{"level": "warning", "text": f"message {k}."} for k in range(40)]
    flat = {"kind": "flat", "left_out": [f"f{k}.fits" for k in range(30)]}
    page = Page(render_report(tmp_path, {"messages": messages, "masters": [flat]}))
    assert "30 more" in page.text
    assert all(f"message {k}." in page.text for k in range(40))
    assert "30 files" in page.text
    assert all(f"f{k}.fits" in page.text for k in range(30))


def test_one_filter_twice_is_told_apart_by_its_label(tmp_path):
    group = {"object": "M 16", "filter": "OIII", "status": "failed", "frames": []}
    groups = [{**group, "label": "M 16 OIII 1x1"}, {**group, "label": "M 16 OIII 2x2"}]
    text = Page(render_report(tmp_path, {"groups": groups})).text
    assert "M 16 OIII 1x1" in text
    assert "M 16 OIII 2x2" in text


def test_many_coadds_get_smaller_pictures(made, tmp_path, rng):
    group = copy.deepcopy(made[1]["groups"][0])
    group["products"], group["frames"] = {"coadd": "c.fits"}, []
    write_fits(tmp_path / "c.fits", coadd(rng, "Halpha", (600, 600)))

    def width(n):
        page = Page(render_report(tmp_path, {"groups": [group] * n}))
        return int(next(a["width"] for a in page.of("img") if "Coadd" in a["alt"]))

    assert width(1) == 600
    assert width(16) == 300


def test_without_matplotlib_the_extra_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ProductError, match=r"matplotlib.*astro-narrowband\[report\]"):
        render_report(*made)


def test_links_lead_to_products_that_are_there(made, page):
    folder, _ = made
    hrefs = {attrs["href"] for attrs in page.of("a")}
    assert {"coadd-x-SII.fits", "masters/dark.fits", "night.json"} <= hrefs
    assert all((folder / href).is_file() for href in hrefs - {"night.json"})


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "masters/../../x", "javascript:alert(1)"])
def test_no_link_leads_out_of_the_folder(tmp_path, path):
    record = {"products": {path: "0"}, "groups": [{"products": {"coadd": path}}]}
    page = Page(render_report(tmp_path, record))
    assert {attrs["href"] for attrs in page.of("a")} == {"night.json"}


def test_a_count_that_disagrees_with_the_coadd_is_said(made, tmp_path, rng):
    hdul = coadd(rng, "Halpha")
    hdul[0].header["NCOMBINE"] = 3
    write_fits(tmp_path / "c.fits", hdul)
    group = {**made[1]["groups"][0], "products": {"coadd": "c.fits"}}
    text = Page(render_report(tmp_path, {"groups": [group]})).text
    assert "the coadd says NCOMBINE = 3, night.json 4" in text


def test_noise_over_predicted_and_the_worst_message_stand_on_the_card(made, tmp_path, rng):
    hdul = coadd(rng, "Halpha")
    hdul[0].header.update(NOISEPIX=1.31, NOISEAPR=1.32, ERRSCALE=1.3)
    hdul[0].header.update(XPIXSZ=4.0, FOCALLEN=412.53)
    write_fits(tmp_path / "c.fits", hdul)
    group = {**made[1]["groups"][0], "products": {"coadd": "c.fits"}}
    messages = [
        {"level": "warning", "text": "light1.fits: something"},
        {"level": "warning", "text": "light0.fits, of its coadd: noise of blank sky: gain"},
        {"level": "error", "text": "another filter"},
    ]
    record = {"groups": [group, {"filter": "another filter"}], "messages": messages}
    page = Page(render_report(tmp_path, record))
    assert "1.31 pixels 1.31, apertures 1.32; errors were multiplied by 1.30" in page.text
    assert "Seeing (FWHM) 6.40″" in page.text
    # 5 sigma of 0.1, times 1.32, over pixels of two arcsec
    assert "Surface at 5 σ 0.33 electron/s per arcsec²" in page.text
    assert page.text.count("noise of blank sky") == 2


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("truncated: 20 of 40 bytes", ("truncated", "20 of 40 bytes")),
        ("a copy", ("a copy", "")),
        (None, ("", "")),
        ("too few stars (3 of 41)", ("too few stars", "(3 of 41)")),
    ],
)
def test_a_reason_leads_with_its_cause(reason, parts):
    assert cause_of(reason) == parts


def test_settings_show_neither_tuples_nor_nothing():
    settings = {"a": (), "b": [], "c": "", "d": None, "e": (("GAIN", "2"),), "f": False, "g": 2.0}
    assert settings_words(settings) == {"e": "GAIN, 2", "f": "no", "g": "2"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (3.0, "3"), (0.123456, "0.123"), (-12345.6, "−12346"), (1e-7, "1.00e−07"),
        (None, "–"), (float("nan"), "–"), ("text", "text"), (np.float32(2.5), "2.50"),
        (True, True), ([], "–"), (object(), "–"), (2.5e9, "2.50e+09"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_numbers_of_a_column():
    assert fixed(-1.256, 2) == "−1.26"
    assert fixed(None, 2) == fixed("x", 2) == fixed(float("inf"), 1) == "–"
