"""
Hostile nights as data: a sound small night, one thing wrong with it, and what should come of it.

`CASES` is a list of `Case`. Each changes a copy of `sound_night` and says which
verdict its files get, which words the reason or the messages have, and which
exit status the command line ends with.
"""

import bz2
import gzip
import json
import lzma
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits

SHAPE = (128, 144)
#: Names within the night.
L1, L2, L3 = (f"light/Halpha/light_Halpha_60s_000{i}.fits" for i in (1, 2, 3))
O1 = "light/OIII/light_OIII_60s_0001.fits"
F1, F2 = (f"flat/Halpha/flat_Halpha_000{i}.fits" for i in (1, 2))
B1, D1 = "bias/bias_0001.fits", "dark/dark_60s_0001.fits"
#: A name that tells nothing.
PLAIN = "x.fits"


def sound_night(folder):
    """Write the night that every case starts from: two filters, three lights each."""
    from astro_narrowband.simulate import NightModel, simulate_night

    simulate_night(
        folder,
        shape=SHAPE,
        filters=("Halpha", "OIII"),
        n_bias=3,
        dark_exposures=(60.0,),
        n_darks=3,
        n_flats=3,
        light_exposures=(60.0,) * 3,
        dither=3.0,
        model=NightModel(star_density=2500.0, faintest=60.0, brightest=300.0, dust=0),
        seed=3,
    )
    shutil.rmtree(Path(folder) / "truth")


class Night:
    """A night to be spoiled."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __truediv__(self, name):
        return self.folder / name

    def all(self, pattern):
        """Names of the files under folders such as ``dark`` or ``flat/Halpha``."""
        return [str(p.relative_to(self.folder)) for p in sorted((self / pattern).rglob("*.fits"))]

    def move(self, name, to=PLAIN):
        (self / to).parent.mkdir(parents=True, exist_ok=True)
        return os.rename(self / name, self / to)

    def set(self, names, **cards):
        """Set header values; ``None`` removes a keyword."""
        for name in [names] if isinstance(names, str) else names:
            with fits.open(self / name, mode="update", memmap=False) as hdul:
                for keyword, value in cards.items():
                    key = {"CCD_TEMP": "CCD-TEMP", "DATE_OBS": "DATE-OBS"}.get(keyword, keyword)
                    if value is None:
                        hdul[0].header.remove(key, ignore_missing=True)
                    else:
                        hdul[0].header[key] = value

    def card(self, names, keyword, text, *, add=False):
        """Write a card as it is, byte for byte, in place of that of ``keyword`` (or ``GAIN``)."""
        for name in [names] if isinstance(names, str) else names:
            raw = bytearray((self / name).read_bytes())
            for start in range(0, len(raw), 80):
                if raw[start : start + 8].rstrip() == (b"TELESCOP" if add else keyword.encode()):
                    break
            else:
                raise AssertionError(f"{name} has no {keyword}")
            image = f"{keyword:8}= {text}".encode()
            raw[start : start + 80] = image.ljust(80)[:80]
            (self / name).write_bytes(raw)

    def bytes(self, name, change):
        """Replace a file's bytes by what ``change`` makes of them."""
        (self / name).write_bytes(change((self / name).read_bytes()))

    def pixels(self, names, change):
        """Replace pixels (float or integer) by what ``change`` makes of them."""
        for name in [names] if isinstance(names, str) else names:
            data, header = fits.getdata(self / name, header=True)
            for keyword in ("BZERO", "BSCALE"):
                header.remove(keyword, ignore_missing=True)
            fits.writeto(self / name, change(data), header, overwrite=True)

    def hdus(self, name, change):
        """Rewrite a file as the HDUs that ``change`` makes of data and header."""
        data, header = fits.getdata(self / name, header=True)
        for keyword in ("BZERO", "BSCALE"):
            header.remove(keyword, ignore_missing=True)
        fits.HDUList(change(data, header)).writeto(self / name, overwrite=True)


@dataclass(frozen=True)
class Case:
    """
    One thing wrong.

    Attributes
    ----------
    group, name : str
    change : callable
        Takes a `Night`.
    verdicts : dict
        Name of a file to its verdict.
    status : int
        Exit status of ``reduce``.
    says : str
        Words that a reason or message must have.
    pixels : bool
        Whether only the reduction itself can see it (not the table of frames).
    arguments : tuple of str
        More arguments of the command line.
    """

    group: str
    name: str
    change: Callable
    verdicts: dict = field(default_factory=dict)
    status: int = 0
    says: str = ""
    pixels: bool = False
    arguments: tuple = ()

    def __str__(self):
        return f"{self.group}-{self.name}"


CASES = []
USED, OUT, IGNORED = "used", "left out", "ignored"


def case(group, name, change, verdicts=None, status=0, says="", **more):
    CASES.append(Case(group, name, change, verdicts or {}, status, says, **more))


# ------------------------------------------------------------------ exposure times

for _name, _card, _verdict, _says in (
    ("comma", "'60,0'", USED, ""),
    ("bare-comma", "               60,0 / Exposure (s)", USED, ""),
    ("text", "'60.0 s'", USED, ""),
    ("fortran", "6.0D1", USED, ""),
    ("milliseconds", "60000 / [ms]", USED, ""),
    ("undefined", "/ nothing", OUT, "no value"),
    ("minus-one", "-1", OUT, "below zero"),
    ("zero", "0.0", OUT, "needs a time"),
    ("nan", "NaN", OUT, "not a number"),
    ("word", "'long'", OUT, "not a number"),
    ("flag", "T", OUT, "not a number"),
    ("thousands", "'1,200'", OUT, "thousands"),
    ("microseconds", "60000000", OUT, "longer than a day"),
    ("unclosed", "'60", USED, ""),
):

    def _change(night, card=_card):
        night.set(L1, EXPOSURE=None)
        night.card(L1, "EXPTIME", card)
        night.move(L1)

    case("exposure", _name, _change, {PLAIN: _verdict}, says=_says)


def _no_time(night):
    night.set(L1, EXPTIME=None, EXPOSURE=None)
    night.move(L1)


def _twice(night, value):
    night.card(L1, "EXPTIME", value, add=True)
    night.move(L1)


case("exposure", "missing", _no_time, {PLAIN: OUT}, says="EXPTIME is missing")
case("exposure", "missing-set", _no_time, {PLAIN: USED}, arguments=("--set", "EXPTIME=60"))
case(
    "exposure",
    "missing-in-header-not-in-name",
    lambda n: n.set(L1, EXPTIME=None, EXPOSURE=None),
    {L1: USED},
    says="by its name",
)
case(
    "exposure",
    "other-keyword",
    lambda n: (n.set(L1, EXPTIME=None, EXPOSURE=60.0), n.move(L1)),
    {PLAIN: USED},
)
case(
    "exposure",
    "zero-and-another",
    lambda n: n.set(L1, EXPTIME=0.0, EXPOSURE=60.0),
    {L1: USED},
    says="EXPOSURE is believed",
)
case("exposure", "two-disagree", lambda n: n.set(L1, EXPOSURE=90.0), {L1: USED}, says="disagree")
case("exposure", "twice-different", lambda n: _twice(n, "90.0"), {PLAIN: OUT}, says="different")
case("exposure", "twice-equal", lambda n: _twice(n, "60.0"), {PLAIN: USED})
case("exposure", "bias-minus-one", lambda n: n.set(B1, EXPTIME=-1.0, EXPOSURE=None), {B1: USED})
case("exposure", "bias-of-a-minute", lambda n: n.set(B1, EXPTIME=60.0), {B1: OUT}, says="bias")
case("exposure", "dark-of-no-length", lambda n: n.set(D1, EXPTIME=0.0, EXPOSURE=0.0), {D1: USED})
case(
    "exposure",
    "flat-without",
    lambda n: (n.set(F1, EXPTIME=None, EXPOSURE=None), n.move(F1)),
    {PLAIN: OUT},
    says="EXPTIME",
)
case(
    "exposure",
    "flats-of-many-times",
    lambda n: [n.set(f, EXPTIME=3.0 + 0.1 * i) for i, f in enumerate(n.all("flat/Halpha"))],
    {F1: USED, F2: USED},
)

# ------------------------------------------------------------------ kinds

for _name, _value in (
    ("padded", " light   "),
    ("light-frame", "Light Frame"),
    ("object", "OBJECT"),
    ("science", "Science"),
):
    case("kind", _name, lambda n, v=_value: n.set(L1, IMAGETYP=v), {L1: USED})
for _keyword in ("IMAGTYP", "FRAME", "OBSTYPE"):
    case(
        "kind",
        _keyword.lower(),
        lambda n, k=_keyword: (n.set(L1, IMAGETYP=None), n.set(L1, **{k: "Light"}), n.move(L1)),
        {PLAIN: USED},
    )
case(
    "kind",
    "by-folder",
    lambda n: n.set(n.all("."), IMAGETYP=None),
    {L1: USED, B1: USED, D1: USED, F1: USED},
)
case(
    "kind",
    "by-nothing",
    lambda n: (n.set(L1, IMAGETYP=None), n.move(L1)),
    {PLAIN: OUT},
    says="IMAGETYP is missing",
)
case(
    "kind",
    "by-set",
    lambda n: (n.set(L1, IMAGETYP=None), n.move(L1)),
    {PLAIN: USED},
    arguments=("--set", "IMAGETYP=light"),
)
case(
    "kind", "flat-called-light", lambda n: n.set(F1, IMAGETYP="Light"), {F1: OUT}, says="says flat"
)
case("kind", "unknown-word", lambda n: n.set(L1, IMAGETYP="mystery"), {L1: USED}, says="mystery")
case(
    "kind",
    "unknown-word-and-name",
    lambda n: (n.set(L1, IMAGETYP="mystery"), n.move(L1)),
    {PLAIN: OUT},
    says="mystery",
)
case(
    "kind",
    "master-beside-raw",
    lambda n: n.set(F1, IMAGETYP="Master Flat"),
    {F1: OUT, F2: USED},
    says="taken before it",
)
case(
    "kind",
    "master-by-name",
    lambda n: n.move(F1, "flat/Halpha/master_flat.fits"),
    {"flat/Halpha/master_flat.fits": OUT},
    says="taken before it",
)
case("kind", "focus", lambda n: n.set(L1, IMAGETYP="focus"), {L1: IGNORED})
case(
    "kind",
    "twice-different",
    lambda n: n.card(L1, "IMAGETYP", "'Dark'", add=True),
    {L1: OUT},
    says="different",
)
case(
    "kind",
    "dark-nebula",
    lambda n: n.move(L1, "Dark_Nebula_B33_001.fits"),
    {"Dark_Nebula_B33_001.fits": USED},
)

# ------------------------------------------------------------------ filters and objects

for _name, _value in (
    ("bandwidth", "H-alpha 7nm"),
    ("brackets", "[H alpha]"),
    ("f656n", "F656N"),
    ("blank", " ha "),
):
    case("filter", _name, lambda n, v=_value: n.set(L1, FILTER=v), {L1: USED})
case("filter", "greek", lambda n: n.card(L1, "FILTER", "'Hα      '"), {L1: USED})
case(
    "filter",
    "second-wheel",
    lambda n: n.set(n.all("light/Halpha"), FILTER=None, FILTER1="Clear", FILTER2="Ha"),
    {L1: USED},
)
case("filter", "by-name", lambda n: n.set(L1, FILTER=None), {L1: USED}, says="by its file name")
case(
    "filter",
    "by-nothing",
    lambda n: (n.set(L1, FILTER=None), n.move(L1)),
    {PLAIN: OUT},
    4,
    says="unknown",
)
case("filter", "slot", lambda n: n.set(L1, FILTER="Slot 3"), {L1: OUT}, 4, says="Slot 3")
case("filter", "off-band", lambda n: n.set(L1, FILTER="Ha 6649"), {L1: OUT}, 4, says="Ha 6649")
case("filter", "flat-without", lambda n: (n.set(F1, FILTER=None), n.move(F1)), {PLAIN: OUT})
case(
    "filter",
    "no-flat",
    lambda n: shutil.rmtree(n / "flat/OIII"),
    {O1: OUT, L1: USED},
    4,
    says="no flat of OIII",
)
case("object", "two-spellings", lambda n: n.set(L1, OBJECT="crown_nebula"), {L1: USED})
case("object", "path", lambda n: n.set(n.all("light"), OBJECT="../../../escape"), {L1: USED})
case(
    "object",
    "controls",
    lambda n: n.card(n.all("light"), "OBJECT", "'M\x1b[31m 3\x07'"),
    {L1: USED},
)
case(
    "object",
    "markup",
    lambda n: n.set(n.all("light"), OBJECT="<script>alert(1)</script>"),
    {L1: USED},
)
case("object", "formula", lambda n: n.set(n.all("light"), OBJECT="=cmd|' /C calc'!A0"), {L1: USED})
case("object", "mathtext", lambda n: n.set(n.all("light"), OBJECT="$\\frac{1}$"), {L1: USED})
case("object", "missing", lambda n: n.set(n.all("light"), OBJECT=None), {L1: USED})
case("object", "blank", lambda n: n.set(n.all("light"), OBJECT="   "), {L1: USED})
case("object", "long", lambda n: n.set(n.all("light"), OBJECT="M31-" * 9), {L1: USED})

# ------------------------------------------------------------------ other cards

case("header", "temperature-kelvin", lambda n: n.set(L1, CCD_TEMP=263.15), {L1: USED})
case("header", "temperature-none", lambda n: n.set(L1, CCD_TEMP=-999.0), {L1: USED})
case("header", "temperature-text", lambda n: n.set(L1, CCD_TEMP="cold"), {L1: USED})
case("header", "date", lambda n: n.set(n.all("light"), DATE_OBS="26/10/92"), {L1: USED})
case("header", "no-date", lambda n: n.set(n.all("light"), DATE_OBS=None), {L1: USED})
case(
    "header",
    "odd-card",
    lambda n: n.card(L1, "COLOUR", "NaN / no FITS value", add=True),
    {L1: USED},
)
case(
    "header",
    "latin",
    lambda n: n.bytes(L1, lambda b: b.replace(b"Crown", b"Cr\xf6wn", 1)),
    {L1: USED},
)
case("header", "reduced", lambda n: n.set(L1, BIASSUB=True), {L1: OUT}, says="BIASSUB")
case("header", "calstat", lambda n: n.set(L1, CALSTAT="BDF"), {L1: OUT}, says="CALSTAT")
case("header", "electron", lambda n: n.set(L1, BUNIT="electron"), {L1: OUT}, says="BUNIT")
case("header", "counts", lambda n: n.set(L1, BUNIT="counts"), {L1: USED})
case("header", "bunit", lambda n: n.set(L1, BUNIT="furlong per"), {L1: OUT}, says="BUNIT")
case("header", "ncombine", lambda n: n.set(D1, NCOMBINE=20), {D1: OUT}, says="taken before")
case("header", "bzero", lambda n: n.card(L1, "BZERO", "'much'"), {L1: OUT}, says="BZERO")
case("header", "bscale", lambda n: n.card(L1, "BSCALE", "0.0"), {L1: OUT}, says="BSCALE")
case(
    "header",
    "bayer-no-line",
    lambda n: (n.set(n.all("."), BAYERPAT="RGGB"), n.set(n.all("light"), FILTER="UV/IR")),
    {L1: OUT},
    3,
    says="BAYERPAT",
)
case(
    "header",
    "bayer-of-darks",
    lambda n: (n.set(n.all("."), BAYERPAT="RGGB"), n.set(n.all("dark"), BAYERPAT=None)),
    {L1: OUT, D1: OUT},
    3,
    says="BAYERPAT is missing",
)
case(
    "header",
    "lower-case",
    lambda n: n.bytes(
        L1, lambda b: b.replace(b"EXPTIME ", b"exptime ").replace(b"FILTER  ", b"filter  ")
    ),
    {L1: USED},
)

# ------------------------------------------------------------------ matching

case(
    "match",
    "binning-of-darks",
    lambda n: n.set(n.all("dark"), XBINNING=2, YBINNING=2),
    {D1: OUT, L1: OUT},
    3,
    says="binning",
)
case(
    "match",
    "binning-of-one-dark",
    lambda n: n.set(D1, XBINNING=2, YBINNING=2),
    {D1: OUT},
    says="binning",
)
case(
    "match", "shape-of-one-flat", lambda n: n.pixels(F1, lambda d: d[:-2]), {F1: OUT}, says="shape"
)
case("match", "window", lambda n: n.set(D1, XORGSUBF=8, YORGSUBF=0), {D1: USED})
case(
    "match",
    "windows",
    lambda n: (n.set(n.all("."), XORGSUBF=0, YORGSUBF=0), n.set(D1, XORGSUBF=8)),
    {D1: OUT},
    says="window",
)
case("match", "gain-of-one-dark", lambda n: n.set(D1, GAIN=200), {D1: OUT}, says="gain")
case("match", "gain-absent", lambda n: n.set(D1, GAIN=None, EGAIN=None), {D1: USED})
case(
    "match",
    "gain-absent-of-two",
    lambda n: (n.set(D1, GAIN=None, EGAIN=None), n.set(n.all("light/OIII"), GAIN=200)),
    {D1: OUT, O1: OUT},
    4,
    says="gain",
)
case("match", "offset", lambda n: n.set(D1, OFFSET=10), {D1: OUT}, says="offset")
case("match", "read-mode", lambda n: n.set(D1, READOUTM="fast"), {D1: OUT}, says="read mode")
case(
    "match",
    "camera-of-flats",
    lambda n: n.set(n.all("flat/Halpha"), INSTRUME="Other"),
    {F1: OUT, L1: OUT, O1: USED},
    4,
    says="camera",
)
case("match", "camera-absent", lambda n: n.set(n.all("flat"), INSTRUME=None), {F1: USED})
case(
    "match",
    "row-order",
    lambda n: (n.set(n.all("."), ROWORDER="TOP-DOWN"), n.set(D1, ROWORDER="BOTTOM-UP")),
    {D1: OUT},
    says="row order",
)
case(
    "match",
    "darks-warm",
    lambda n: n.set(n.all("dark"), CCD_TEMP=0.0),
    {D1: OUT, L1: OUT},
    3,
    says="CCD-TEMP",
)
case(
    "match", "darks-2K", lambda n: n.set(n.all("dark"), CCD_TEMP=-8.0), {D1: USED}, says="CCD-TEMP"
)
case("match", "one-dark-warm", lambda n: n.set(D1, CCD_TEMP=5.0), {D1: OUT}, says="CCD-TEMP")
case("match", "light-warm", lambda n: n.set(L1, CCD_TEMP=5.0), {L1: OUT}, says="CCD-TEMP")
case("match", "no-bias", lambda n: shutil.rmtree(n / "bias"), {L1: USED}, says="no flat-darks")
case(
    "match",
    "no-bias-other-darks",
    lambda n: (shutil.rmtree(n / "bias"), n.set(n.all("dark"), EXPTIME=30.0, EXPOSURE=30.0)),
    {L1: OUT},
    3,
    says="add bias",
)
case(
    "match",
    "no-flats-without",
    lambda n: shutil.rmtree(n / "flat"),
    {L1: USED},
    says="vignetting",
    arguments=("--without", "flat"),
)
case(
    "match",
    "no-flats-without-darks-only",
    lambda n: shutil.rmtree(n / "flat"),
    {L1: OUT},
    3,
    says="no flat",
    arguments=("--without", "dark"),
)
case(
    "match",
    "lights-alone",
    lambda n: [shutil.rmtree(n / f) for f in ("bias", "dark", "flat")],
    {},
    says="--without bias",
    arguments=("--without", "flat", "--without", "dark", "--without", "bias", "--gain", "0.6"),
)
case(
    "match",
    "calibrated",
    lambda n: n.set(n.all("light"), CALSTAT="BDF", BUNIT="adu"),
    {D1: IGNORED},
    says="--calibrated",
    arguments=("--calibrated", "", "--gain", "0.6"),
)
case(
    "match",
    "calibrated-not-said",
    lambda n: n.set(n.all("light"), CALSTAT="BDF"),
    {L1: OUT},
    3,
    says="CALSTAT",
)
case(
    "match",
    "calibrated-and-one-raw",
    lambda n: n.set([x for x in n.all("light") if x != n / L1 and x != L1], CALSTAT="BDF"),
    {L1: OUT, L2: USED},
    says="nothing in its header",
    arguments=("--calibrated", "", "--gain", "0.6"),
)
case(
    "match",
    "masters-of-another-setting",
    lambda n: n.set(n.all("dark"), IMAGETYP="Master Dark", NCOMBINE=9, GAIN=200),
    {L1: OUT, D1: OUT},
    3,
    says="gain",
)
case(
    "match",
    "angles-of-the-rotator",
    lambda n: (n.set(n.all("."), ROTATANG=10.0), n.set(F1, ROTATANG=100.0)),
    {F1: OUT, F2: USED},
    says="ROTATANG",
)
case("match", "no-darks", lambda n: shutil.rmtree(n / "dark"), {L1: USED}, says="no darks")
case("match", "no-flats", lambda n: shutil.rmtree(n / "flat"), {L1: OUT}, 3, says="no flat")
case(
    "match",
    "no-lights",
    lambda n: shutil.rmtree(n / "light"),
    {B1: USED, F1: USED},
    says="no light is there",
)
case(
    "match",
    "lights-that-are-all-left-out",
    lambda n: n.set(n.all("light"), FLATCOR=True),
    {L1: OUT, B1: OUT},
    3,
)
case(
    "match",
    "flats-of-one-side-of-the-pier",
    lambda n: (n.set(n.all("."), ROTATANG=10.0), n.set(L1, ROTATANG=190.0)),
    {L1: USED, F1: USED},
    says="on the other side of the pier",
)
case(
    "match",
    "a-light-at-an-angle-without-flats",
    lambda n: (n.set(n.all("."), ROTATANG=10.0), n.set(L1, ROTATANG=55.0)),
    {L1: OUT, L2: USED},
    says="ROTATANG = 55 deg, the flats 10",
)
case(
    "match",
    "one-filter-by-two-keywords",
    lambda n: n.set(n.all("light/Halpha"), FILTER="Halpha", FILTER1="Ha"),
    {L1: USED, F1: USED},
)
case(
    "match",
    "a-mosaic-that-nobody-names",
    lambda n: n.pixels(
        n.all("light/Halpha") + n.all("flat/Halpha"),
        lambda d: np.where(np.arange(d.shape[1]) % 2, d, 0.6 * d + 120).astype(d.dtype),
    ),
    {L1: OUT, O1: USED},
    4,
    says="colour mosaic",
)
for _suffix in ("tiff", "asdf"):
    case(
        "file",
        f"{_suffix}-beside-the-night",
        lambda n, s=_suffix: (n / f"light/m.{s}").write_bytes(b"II*"),
        {f"light/m.{_suffix}": OUT},
        says="convert it to FITS",
    )
case(
    "match",
    "nothing",
    lambda n: [shutil.rmtree(n / f) for f in ("bias", "dark", "flat", "light")],
    {},
    3,
)
case("match", "two-objects", lambda n: n.set([L1, L2], OBJECT="Other"), {L1: USED, L3: USED})

# ------------------------------------------------------------------ containers

case("file", "truncated", lambda n: n.bytes(L1, lambda b: b[:-9000]), {L1: OUT}, says="truncated")
case("file", "header-cut", lambda n: n.bytes(L1, lambda b: b[:1000]), {L1: OUT}, says="no end")
case("file", "empty", lambda n: n.bytes(L1, lambda b: b""), {L1: OUT}, says="empty")
case(
    "file", "jpeg", lambda n: n.bytes(L1, lambda b: b"\xff\xd8\xff\xe0" + b), {L1: OUT}, says="JPEG"
)
case(
    "file", "web-page", lambda n: n.bytes(L1, lambda b: b"<html>404</html>"), {L1: OUT}, says="web"
)
case(
    "file",
    "lfs",
    lambda n: n.bytes(L1, lambda b: b"version https://git-lfs.github.com/spec/v1\n"),
    {L1: OUT},
    says="LFS",
)
case(
    "file",
    "noise",
    lambda n: n.bytes(L1, lambda b: np.random.default_rng(1).bytes(9000)),
    {L1: OUT},
    says="not FITS",
)
case(
    "file",
    "no-padding",
    lambda n: n.bytes(L1, lambda b: b[: -(-(2 * SHAPE[0] * SHAPE[1]) % 2880)]),
    {L1: USED},
)
case("file", "rubbish-behind", lambda n: n.bytes(L1, lambda b: b + b"rubbish" * 500), {L1: USED})
for _suffix, _pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
    case(
        "file",
        _suffix[1:],
        lambda n, s=_suffix, p=_pack: (n.bytes(L1, p), n.move(L1, L1 + s)),
        {L1 + _suffix: USED},
    )
case("file", "gz-in-disguise", lambda n: n.bytes(L1, gzip.compress), {L1: USED})
case(
    "file",
    "gz-cut",
    lambda n: n.bytes(L1, lambda b: gzip.compress(b)[:-500]),
    {L1: OUT},
    says="truncated",
)
case(
    "file",
    "gz-of-rubbish",
    lambda n: n.bytes(L1, lambda b: gzip.compress(b"rubbish" * 900)),
    {L1: OUT},
    says="not FITS",
)
case(
    "file",
    "gz-bomb",
    lambda n: n.bytes(L1, lambda b: gzip.compress(b + bytes(1 << 27))),
    {L1: USED},
)
case(
    "file",
    "tiles",
    lambda n: n.hdus(L1, lambda d, h: [fits.PrimaryHDU(), fits.CompImageHDU(d, h)]),
    {L1: USED},
)
case(
    "file",
    "extension",
    lambda n: n.hdus(L1, lambda d, h: [fits.PrimaryHDU(), fits.ImageHDU(d, h)]),
    {L1: USED},
)
case(
    "file",
    "two-chips",
    lambda n: n.hdus(
        L1, lambda d, h: [fits.PrimaryHDU(), fits.ImageHDU(d, h), fits.ImageHDU(d, h)]
    ),
    {L1: OUT},
    says="2 images",
)
case(
    "file",
    "table",
    lambda n: n.hdus(
        L1,
        lambda d, h: [
            fits.PrimaryHDU(),
            fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]),
        ],
    ),
    {L1: OUT},
    says="no image",
)
case("file", "one-plane", lambda n: n.pixels(L1, lambda d: d[None]), {L1: USED})
case(
    "file",
    "colour-cube",
    lambda n: n.pixels(L1, lambda d: np.stack([d] * 3)),
    {L1: OUT},
    says="planes",
)
case("file", "spectrum", lambda n: n.pixels(L1, lambda d: d[0]), {L1: OUT}, says="image")
case(
    "file",
    "naxis-lies",
    lambda n: n.card(L1, "NAXIS2", "             9000000"),
    {L1: OUT},
    says="pixels",
)
case(
    "file",
    "naxis-lies-a-little",
    lambda n: n.card(L1, "NAXIS2", "                9000"),
    {L1: OUT},
    says="truncated",
)
case(
    "file",
    "naxis-negative",
    lambda n: n.card(L1, "NAXIS2", "                -128"),
    {L1: OUT},
    says="NAXIS2",
)
case(
    "file",
    "naxis-zero",
    lambda n: n.card(L1, "NAXIS2", "                   0"),
    {L1: OUT},
    says="image",
)
case(
    "file",
    "bitpix",
    lambda n: n.card(L1, "BITPIX", "                  12"),
    {L1: OUT},
    says="BITPIX",
)
case(
    "file",
    "max-pixels",
    lambda n: None,
    {L1: OUT},
    3,
    says="--max-pixels",
    arguments=("--max-pixels", "1000"),
)


def _checksum(night, spoil):
    with fits.open(night / L1, mode="update", memmap=False) as hdul:
        hdul[0].add_checksum()
    if spoil:
        night.bytes(L1, lambda b: b[:-6000] + bytes([b[-6000] ^ 4]) + b[-5999:])


case("file", "checksum", lambda n: _checksum(n, spoil=False), {L1: USED})
case("file", "checksum-wrong", lambda n: _checksum(n, spoil=True), {L1: OUT}, says="DATASUM")
case(
    "file",
    "upper-case",
    lambda n: n.move(L1, L1.replace(".fits", ".FITS")),
    {L1.replace(".fits", ".FITS"): USED},
)
case(
    "file",
    "fit",
    lambda n: n.move(L1, L1.replace(".fits", ".fit")),
    {L1.replace(".fits", ".fit"): USED},
)
case(
    "file",
    "text-beside",
    lambda n: (n / "notes.txt").write_text("seeing 2"),
    {"notes.txt": IGNORED},
)
case(
    "file",
    "hidden",
    lambda n: (n / "light/._x.fits").write_bytes(b"\0\5\x16\7"),
    {"light/._x.fits": IGNORED},
)
case("file", "copy", lambda n: shutil.copy(n / L1, n / "light/copy.fits"), {L1: USED}, says="copy")
case("file", "link", lambda n: os.symlink(n / L1, n / "light/z.fits"), {"light/z.fits": IGNORED})
case(
    "file",
    "link-to-nothing",
    lambda n: os.symlink(n / "gone", n / "light/z.fits"),
    {"light/z.fits": OUT},
    says="link",
)
case("file", "link-loop", lambda n: os.symlink(n.folder, n / "light/again"), {L1: USED})
case("file", "fifo", lambda n: os.mkfifo(n / "light/f.fits"), {"light/f.fits": IGNORED})
case("file", "folder-called-fits", lambda n: (n / "light/d.fits").mkdir(), {L1: USED})


def _socket(night):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(night / "light")
        server.bind("s.fits")
        os.chdir(here)


case("file", "socket", _socket, {"light/s.fits": IGNORED})
for _name, _file in (
    ("blanks", "light/M 31 (1) [Ha].fits"),
    ("dash", "light/-o.fits"),
    ("newline", "light/a\nb.fits"),
    ("quote", "light/'\"&<b>.fits"),
    ("escape", "light/\x1b[2J.fits"),
):
    case("name", _name, lambda n, f=_file: n.move(L1, f), {_file: USED})
case("name", "bytes", lambda n: os.rename(n / L1, os.fsencode(n / "light") + b"/\xff\xfe.fits"))


def _old_products(night):
    out = night / "out"
    (out / "masters").mkdir(parents=True)
    shutil.copy(night / L1, out / "coadd-x-Halpha.fits")
    (out / "night.json").write_text(json.dumps({"software": {}, "groups": [], "status": 0}))


case("name", "old-products", _old_products, {"out/coadd-x-Halpha.fits": IGNORED})
case("name", "false-record", lambda n: (n / "night.json").write_text("[]"), {L1: USED})
case("name", "deep-record", lambda n: (n / "night.json").write_text("[" * 100_000), {L1: USED})

# ------------------------------------------------------------------ pixels

case("pixels", "flat-zero", lambda n: n.pixels(F1, lambda d: d * 0), {F1: OUT}, pixels=True)
case(
    "pixels",
    "flat-saturated",
    lambda n: n.pixels(F1, lambda d: d * 0 + 65535),
    {F1: OUT},
    pixels=True,
)
case(
    "pixels",
    "flats-zero",
    lambda n: n.pixels(n.all("flat/Halpha"), lambda d: d * 0),
    {L1: OUT, O1: USED},
    4,
    pixels=True,
)
case("pixels", "light-zero", lambda n: n.pixels(L1, lambda d: d * 0), {L1: OUT}, pixels=True)
case(
    "pixels",
    "light-nan",
    lambda n: n.pixels(L1, lambda d: d * np.float32(np.nan)),
    {L1: OUT},
    pixels=True,
)
case(
    "pixels",
    "light-some-nan",
    lambda n: n.pixels(L1, lambda d: np.where(np.indices(d.shape)[0] == 9, np.nan, d).astype("f4")),
    {L1: USED},
    pixels=True,
)
case(
    "pixels",
    "light-huge",
    lambda n: n.pixels(L1, lambda d: np.where(np.indices(d.shape)[0] == 9, 1e300, d)),
    {L1: USED},
    pixels=True,
)
case(
    "pixels",
    "float32-raw",
    lambda n: [n.pixels(f, lambda d: d.astype("f4")) for f in n.all(".")],
    {L1: USED},
    pixels=True,
)
case(
    "pixels",
    "int16-raw",
    lambda n: [n.pixels(f, lambda d: (d // 4).astype("i2")) for f in n.all(".")],
    {L1: USED},
    pixels=True,
)

# ------------------------------------------------------------------ more of the wild


def _packed_copy(night):
    (night / "light/z.fits.gz").write_bytes(gzip.compress((night / L1).read_bytes()))


def _damaged_tiles(night):
    night.hdus(L1, lambda d, h: [fits.PrimaryHDU(), fits.CompImageHDU(d, h)])
    night.bytes(L1, lambda b: b.replace(b"'RICE_1  '", b"'RISE_1  '"))


def _in_folder(night, folder):
    for kind in ("bias", "dark", "flat", "light"):
        night.move(kind, f"{folder}/{kind}")


case(
    "wild",
    "object-says-flat",
    lambda n: (n.set(F1, IMAGETYP="object", OBJECT="dome flat"), n.move(F1)),
    {PLAIN: OUT},
    says="OBJECT = 'dome flat'",
)
case(
    "wild",
    "object-tells-bias",
    lambda n: (n.set(B1, IMAGETYP=None, OBJECT="Bias"), n.move(B1)),
    {PLAIN: USED},
)
case("wild", "packed-copy", _packed_copy, {L1: USED, "light/z.fits.gz": OUT}, says="copy")
case("wild", "damaged-tiles", _damaged_tiles, {L1: OUT}, says="damaged")
case("wild", "dark-sky", lambda n: _in_folder(n, "Dark Sky Site"), {f"Dark Sky Site/{L1}": USED})
case("wild", "flat-earth", lambda n: _in_folder(n, "flat earth"), {f"flat earth/{L1}": USED})
case(
    "wild",
    "two-binnings",
    lambda n: (
        n.pixels(L1, lambda d: d[::2, ::2]),
        n.set(L1, XBINNING=2, YBINNING=2),
    ),
    {L1: OUT, L2: USED},
    4,
    says="binning",
)
case(
    "wild",
    "science-extension",
    lambda n: n.hdus(
        L1,
        lambda d, h: [
            fits.PrimaryHDU(),
            fits.ImageHDU(d * 0, name="DQ"),
            fits.ImageHDU(d, h, name="SCI"),
        ],
    ),
    {L1: USED},
)
case(
    "wild",
    "two-headers-disagree",
    lambda n: n.hdus(
        L1,
        lambda d, h: [
            fits.PrimaryHDU(header=fits.Header({"EXPTIME": 30.0})),
            fits.ImageHDU(d, h),
        ],
    ),
    {L1: USED},
    says="differ",
)
case(
    "wild",
    "blank",
    lambda n: n.card(L1, "BLANK", "'x'", add=True),
    {L1: OUT},
    says="BLANK",
)
case(
    "wild",
    "bayer-mono",
    lambda n: n.set(n.all("."), BAYERPAT="RGGB"),
    {L1: USED},
    arguments=("--bayer", "mono"),
)

# ------------------------------------------------------------------ cameras and observatories


def _kind(name):
    return name.split("/")[0]


def _filter(name, narrow, none=None):
    return narrow[0] if "Halpha" in name else narrow[1] if "OIII" in name else none


def _camera(night, kinds, *, keyword="IMAGETYP", filters=None, filter_keyword="FILTER", **more):
    """Headers as another program writes them, in files whose names tell nothing."""
    for i, name in enumerate(night.all(".")):
        cards = {"IMAGETYP": None, "EXPOSURE": None, keyword: kinds[_kind(name)], **more}
        if filters:
            cards = {"FILTER": None, **cards, filter_keyword: _filter(name, filters)}
        night.set(name, **cards)
        night.move(name, f"img-{i:04d}.fit")


#: Files of `_camera`: a bias, a dark, a flat and a light, in the order of the names.
_FIRST = dict.fromkeys((f"img-{i:04d}.fit" for i in (0, 3, 6, 12)), USED)

for _name, _kinds, _more in (
    ("maxim", "Light Frame|Bias Frame|Dark Frame|Flat Field", {"filters": ("Ha 3nm", "OIII 3nm")}),
    ("sgp", "LIGHT|BIAS|DARK|FLAT", {"CREATOR": "Sequence Generator Pro v3"}),
    ("ekos", "Light|Bias|Dark|Flat", {"keyword": "FRAME", "filters": ("H_Alpha", "OIII")}),
    ("lco", "EXPOSE|BIAS|DARK|SKYFLAT", {"keyword": "OBSTYPE", "CCDATEMP": -10.0}),
    (
        "noirlab",
        "object|zero|dark|dome flat",
        {"keyword": "OBSTYPE", "filters": ("ha k1009 6563", "O3 k1014 5007")},
    ),
    (
        "gemini",
        "OBJECT|BIAS|DARK|FLAT",
        {
            "keyword": "OBSTYPE",
            "filters": ("Ha_G0310", "OIII_G0318"),
            "filter_keyword": "FILTER1",
            "FILTER2": "open2-8",
        },
    ),
    (
        "eso",
        "OBJECT|BIAS|DARK|FLAT,SKY",
        {
            "keyword": "HIERARCH ESO DPR TYPE",
            "filters": ("H_Alpha", "OIII"),
            "filter_keyword": "HIERARCH ESO INS FILT1 NAME",
        },
    ),
):

    def _change(night, kinds=_kinds, more=_more):
        names = dict(zip(("light", "bias", "dark", "flat"), kinds.split("|"), strict=True))
        _camera(night, names, **more)

    case("camera", _name, _change, _FIRST)
case(
    "camera",
    "asiair-name",
    lambda n: n.move(L1, "Light_M 31_60.0s_Bin1_533MM_gain100_20240101-220000_-10.0C_0001.fit"),
    {"Light_M 31_60.0s_Bin1_533MM_gain100_20240101-220000_-10.0C_0001.fit": USED},
)
case(
    "camera",
    "two-drivers",
    lambda n: (
        n.set(n.all("."), INSTRUME="ZWO ASI294MM Pro"),
        n.set(n.all("dark"), INSTRUME="ZWO CCD ASI294MM Pro"),
    ),
    {D1: USED},
)
case("camera", "pedestal-of-no-pixel", lambda n: n.set(D1, PEDESTAL=-300), {D1: OUT}, says="level")
for _name, _sign in (("sbig", -1), ("pixinsight", 1)):
    case(
        "camera",
        f"pedestal-{_name}",
        lambda n, s=_sign: (n.pixels(D1, lambda d: d + 300), n.set(D1, PEDESTAL=300 * s)),
        {D1: USED},
    )
case("camera", "pedestal-word", lambda n: n.set(D1, PEDESTAL="high"), {D1: OUT}, says="PEDESTAL")
case("camera", "flipped", lambda n: n.set(F1, FLIPSTAT="Flip"), {F1: OUT}, says="FLIPSTAT flip")
case("camera", "pedestal-none", lambda n: n.set(D1, PEDESTAL=0.0, FLIPSTAT=" "), {D1: USED})
case(
    "camera",
    "dark-in-a-flat",
    lambda n: n.set(F1, IMAGETYP="dark"),
    {F1: OUT, D1: USED},
    says="file name says flat",
)
case(
    "camera",
    "flat-in-a-dark",
    lambda n: n.set(D1, IMAGETYP="flat"),
    {D1: OUT, F1: USED},
    says="file name says dark",
)
case("camera", "zeros", lambda n: [n.set(f, OBJECT=o) for f, o in ((L1, "M 7"), (L2, "M007"))])
case(
    "camera",
    "object-true",
    lambda n: n.set(n.all("light"), OBJECT=True),
    {L1: USED},
)
case("camera", "exposure-minutes", lambda n: n.card(L1, "EXPTIME", "1.0 / [min] exposure"))
case(
    "camera", "xtrans", lambda n: n.set(n.all("."), BAYERPAT="XTRANS"), {L1: OUT}, 3, says="XTRANS"
)
case(
    "camera",
    "xtrans-mono",
    lambda n: n.set(n.all("."), BAYERPAT="XTRANS"),
    {L1: USED},
    arguments=("--bayer", "mono"),
)
case(
    "camera",
    "bayer-red-without-pattern",
    lambda n: None,
    {L1: OUT},
    3,
    says="--set BAYERPAT",
    arguments=("--bayer", "red"),
)
case(
    "camera",
    "bayer-mixed",
    lambda n: (n.set(n.all("."), BAYERPAT="RGGB"), n.set(n.all("dark"), BAYERPAT="GRBG")),
    {D1: OUT, L1: OUT},
    3,
    says="Bayer pattern",
    arguments=("--bayer", "green"),
)

# ------------------------------------------------------------------ text that FITS has not

for _name, _text in (
    ("long", "A very long name of an object " * 8),
    ("dots", "..."),
    ("attribute", '"><img src=x onerror=alert(1)>'),
    ("template", '{{7*7}}{% include "x" %}'),
    ("shell", "$(touch pwned); `id`"),
    ("format", "%s%n{0}{object.__class__}"),
    ("number", 31),
):
    case("text", _name, lambda n, t=_text: n.set(n.all("light"), OBJECT=t), {L1: USED})
case(
    "text",
    "cyrillic",
    lambda n: [
        n.bytes(f, lambda b: b.replace(b"Crown Neb", "Крабb".encode(), 1)) for f in n.all("light")
    ],
    {L1: USED},
)
for _name, _text in (
    ("filter-controls", "'\x1b]0;x\x07Ha'"),
    ("filter-path", "'../../evil'"),
    ("filter-markup", "'<svg onload=alert(1)>'"),
    ("filter-mathtext", "'$\\undefined{$'"),
    ("filter-number", "3"),
):
    case(
        "text",
        _name,
        lambda n, t=_text: n.card(n.all("light/Halpha") + n.all("flat/Halpha"), "FILTER", t),
        {L1: USED, F1: USED},
    )
for _name, _file in (("greek-name", "Hα/кадр☃.fits"), ("accent-name", "e\u0301.fits")):
    case("text", _name, lambda n, f=_file: n.move(L1, f"light/{f}"), {f"light/{_file}": USED})
case("text", "long-name", lambda n: n.move(L1, "x" * 250 + ".fits"), {"x" * 250 + ".fits": USED})
case(
    "text",
    "set",
    lambda n: n.set(n.all("light"), OBJECT=None),
    {L1: USED},
    arguments=("--set", "OBJECT=Ж\x1b", "--set", "A_LONG_KEYWORD=3"),
)
case(
    "text",
    "wcs",
    lambda n: n.set(n.all("light"), CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1="x", CRPIX1="a"),
    {L1: USED},
)

# ------------------------------------------------------------------ pixels that are something else


def _leak(data):
    return (data + 3000).astype("u2")


for _name, _file, _pixels, _says in (
    ("bias-nan", B1, lambda d: d * np.float32(np.nan), "no good pixel"),
    ("bias-zero", B1, lambda d: d * 0, "all its pixels are 0"),
    ("bias-full", B1, lambda d: d * 0 + 65535, "all its pixels"),
    ("bias-bytes-swapped", B1, lambda d: d.byteswap(), "scatter"),
    ("dark-zero", D1, lambda d: d * 0, "all its pixels"),
    ("dark-nan", D1, lambda d: d * np.float32(np.nan), "no good pixel"),
    ("dark-leak", D1, _leak, "its level is"),
    ("dark-bytes-swapped", D1, lambda d: d.byteswap(), "scatter"),
    ("flat-one-value", F1, lambda d: d * 0 + 20000, "all its pixels"),
    ("flat-bytes-swapped", F1, lambda d: d.byteswap(), "scatter"),
    ("light-one-value", L1, lambda d: d * 0 + 1234, "all its pixels"),
    ("light-full", L1, lambda d: np.where(d % 50, 65535, d).astype("u2"), "is saturated"),
    ("light-below-bias", L1, lambda d: d.astype("f4") - 1000, "below its bias"),
    ("light-over-its-largest", L1, lambda d: (d / d.max()).astype("f4"), "no parts of 65535"),
    (
        "light-cut-and-filled",
        L1,
        lambda d: np.where(np.indices(d.shape)[0] > 64, 0, d).astype("u2"),
        "cut off",
    ),
):
    case("look", _name, lambda n, f=_file, p=_pixels: n.pixels(f, p), {_file: OUT}, says=_says)
case(
    "look",
    "light-from-0-to-1",
    lambda n: n.pixels(L1, lambda d: (d / 65535).astype("f4")),
    {L1: USED},
    says="its pixels go from 0 to 1",
)
case("look", "bzero-gone", lambda n: n.card(L1, "BZERO", "0.0"), {L1: OUT}, says="BZERO is wrong")
for _name, _folder, _status in (("biases", "bias", 3), ("darks", "dark", 3), ("flats", "flat", 3)):
    case(
        "look",
        f"all-{_name}-zero",
        lambda n, f=_folder: n.pixels(n.all(f), lambda d: d * 0),
        {L1: OUT, O1: OUT},
        _status,
        says=f"none of its {_name} can be used",
    )
case(
    "look",
    "lights-nan",
    lambda n: n.pixels(n.all("light/Halpha"), lambda d: d * np.float32(np.nan)),
    {L1: OUT, O1: USED},
    4,
    says="none of its lights can be used",
)
for _name, _keyword, _value in (("date", "DATE_OBS", "2030-01-01"), ("object", "OBJECT", "other")):
    case(
        "look",
        f"copy-of-another-{_name}",
        lambda n, k=_keyword, v=_value: (
            shutil.copy(n / L1, n / "light/z.fits"),
            n.set("light/z.fits", **{k: v}),
        ),
        {L1: USED, "light/z.fits": OUT},
        says="is a copy",
    )
case(
    "look",
    "copy-as-float",
    lambda n: (shutil.copy(n / L1, n / "light/z.fits"), n.pixels("light/z.fits", np.float32)),
    {L1: USED, "light/z.fits": OUT},
    says="is a copy",
)
case(
    "look",
    "light-called-dark",
    lambda n: (shutil.copy(n / L1, n / D1), n.set(D1, IMAGETYP="dark")),
    {L1: OUT, D1: OUT},
    says="which is a light",
)

# ------------------------------------------------------------------ more containers


def _zipped(night):
    import zipfile

    with zipfile.ZipFile(night / f"{L1}.zip", "w") as archive:
        archive.write(night / L1)
    os.unlink(night / L1)


def _bomb(night):
    header = fits.getheader(night / L1)
    header["NAXIS1"], header["NAXIS2"] = 8000, 8000
    night.bytes(L1, lambda b: bz2.compress(header.tostring().encode() + bytes(128_000_000)))


def _thin_tiles(night):
    night.hdus(
        L1,
        lambda d, h: [
            fits.PrimaryHDU(),
            fits.CompImageHDU((d * 0).astype("i2"), h, compression_type="PLIO_1"),
        ],
    )
    for keyword in ("ZNAXIS1", "ZNAXIS2", "ZTILE1", "ZTILE2"):
        night.card(L1, keyword, "               16000")


case("file", "zip", _zipped, {f"{L1}.zip": OUT}, says="unpack it first")
case("file", "bz2-bomb", _bomb, {L1: OUT}, says="expands to too much")
case("file", "tiles-of-nothing", _thin_tiles, {L1: OUT}, says="claim 256000000 pixels")
case(
    "file",
    "unfinished",
    lambda n: n.move(L1, f"{L1}.part"),
    {f"{L1}.part": OUT},
    says="unfinished",
)
case(
    "file",
    "xisf",
    lambda n: (n / "light/a.xisf").write_bytes(b"XISF0100"),
    {"light/a.xisf": OUT},
    says="convert it to FITS",
)
case(
    "file", "zst", lambda n: n.bytes(L1, lambda b: b"\x28\xb5\x2f\xfd" + b), {L1: OUT}, says="zstd"
)
case(
    "file",
    "json",
    lambda n: n.bytes(L1, lambda b: b'\n{"error": "gone"}'),
    {L1: OUT},
    says="JSON",
)
case(
    "file",
    "gz-sum",
    lambda n: n.bytes(L1, lambda b: (z := gzip.compress(b))[:-8] + bytes(4) + z[-4:]),
    {L1: OUT},
    says="CRC",
)
case(
    "file",
    "gz-in-parts",
    lambda n: n.bytes(L1, lambda b: gzip.compress(b[:7000]) + gzip.compress(b[7000:])),
    {L1: USED},
)
case(
    "file",
    "table-before-image",
    lambda n: n.hdus(
        L1,
        lambda d, h: [
            fits.PrimaryHDU(),
            fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]),
            fits.ImageHDU(d, h),
        ],
    ),
    {L1: USED},
)
case(
    "file",
    "keywords-in-primary",
    lambda n: n.hdus(L1, lambda d, h: [fits.PrimaryHDU(header=h[6:]), fits.ImageHDU(d)]),
    {L1: USED},
)
case("file", "hard-link", lambda n: os.link(n / L1, n / "light/z.fits"), {"light/z.fits": OUT})
case("file", "device", lambda n: os.symlink("/dev/zero", n / "light/z.fits"))
for _kind_of_pixels in ("i4", "i8", "f8"):
    case(
        "file",
        f"pixels-{_kind_of_pixels}",
        lambda n, t=_kind_of_pixels: n.pixels(n.all("."), lambda d: d.astype(t)),
        {L1: USED, F1: USED, D1: USED, B1: USED},
    )

# ------------------------------------------------------------------ found late


def _names(night, folder, names):
    for name, value in zip(night.all(folder), names, strict=True):
        night.set(name, FILTER=value)


case(
    "late",
    "two-filters-in-one-name",
    lambda n: n.set(n.all("light/Halpha") + n.all("flat/Halpha"), FILTER="Ha+OIII"),
    {L1: USED, F1: USED},
)
case(
    "late",
    "slots-spelled-apart",
    lambda n: (
        _names(n, "light/Halpha", ("Slot 3", "slot_3", "SLOT3")),
        n.set(n.all("flat/Halpha"), FILTER="slot 3"),
    ),
    {L1: USED, F1: USED},
)
case(
    "late",
    "darks-saw-light",
    lambda n: n.pixels(n.all("dark"), lambda d: (d + 20000).astype("u2")),
    {L1: OUT},
    3,
    says="below its darks",
)
