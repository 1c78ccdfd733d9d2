"""
Files to frames: one row for every file found, with a verdict and its reason.

The folders are walked, every header is read once, and every file gets one of
three verdicts: ``used``, ``left out`` (a frame that cannot serve) or ``ignored``
(no frame at all). The three add up to the files found.
"""

import hashlib
import math
import os
import re
import warnings
from dataclasses import dataclass, field, fields
from html import escape

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable
from astropy.time import Time

from astro_narrowband._engine.bayer import COLOURS
from astro_narrowband._engine.door import a_path, door, or_of
from astro_narrowband._engine.files import open_regular
from astro_narrowband._engine.frames import MAX_PIXELS
from astro_narrowband._engine.headers import Spellings, parse_number, raw_values, read_exposure
from astro_narrowband._engine.headers.spellings import SPELLINGS
from astro_narrowband._engine.plots import new_axes
from astro_narrowband._engine.raw import full_scale
from astro_narrowband._engine.text import clean_text, show_value
from astro_narrowband._engine.validate import choice
from astro_narrowband.exceptions import InputError, warn
from astro_narrowband.filters import canonical_filter, filter_key, is_known_filter, lines_of
from astro_narrowband.night.table._facts import FactReader, Facts
from astro_narrowband.night.table._find import find_files
from astro_narrowband.night.table._row import FrameRow, Problem, problems_of

__all__ = ["VERDICTS", "FrameRow", "FrameTable", "Problem", "find_files", "problems_of"]

VERDICTS = ("used", "left out", "ignored")


@door(spellings=or_of(Spellings, a_path))
@dataclass
class FrameTable:
    """
    The files of a night, one row each.

    Attributes
    ----------
    rows : list of `FrameRow`
        In the order of their paths.
    problems : list of `Problem`
        What was noticed while the files were read.

    Examples
    --------
    >>> import tempfile
    >>> from astro_narrowband import FrameTable
    >>> from astro_narrowband.simulate import simulate_night
    >>> folder = tempfile.mkdtemp() + "/night"
    >>> truth = simulate_night(folder, shape=(64, 64), filters=["OIII"], seed=1)
    >>> FrameTable.from_paths([folder]).counts["left out"]
    0
    """

    rows: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    @classmethod
    def from_paths(
        cls,
        paths,
        *,
        set_keywords=None,
        spellings=None,
        max_pixels=None,
        ignore=(),
        bayer=None,
        saturation=None,
        calibration=(),
        calibrated=False,
    ):
        """
        Find the frames under ``paths`` and read their headers.

        Parameters
        ----------
        paths : path-like or sequence of path-like
            Folders (walked with all their subfolders) and files.
        set_keywords : mapping, optional
            Keyword to value, for frames whose header and name do not tell.
        spellings : `~astro_narrowband._engine.headers.Spellings` or path-like, optional
            A user's own spellings, or the TOML file that has them.
        max_pixels : int, optional
            The largest image that is opened, compressed ones after expansion.
        ignore : sequence of path-like, optional
            Folders that are not looked into (the one of the products, say).
        bayer : {None, "red", "green", "blue", "superpixel", "mono"}, optional
            What to take of frames whose header names a Bayer pattern: the pixels that
            see the lines of their filter, those of one colour (all four of a cell for a
            superpixel; see `~astro_narrowband._engine.bayer.MosaicFrame`), or all as they
            are (for a camera that has no colour filters).
        saturation : float, optional
            Level [adu] from which a pixel of a mosaic is not believed; default is
            that of its header.
        calibration : sequence of path-like, optional
            Folders of bias, darks, flats and masters, for what the night lacks.
        calibrated : bool, optional
            The lights are calibrated: they need neither bias, dark nor flat.

        Returns
        -------
        `FrameTable`

        Raises
        ------
        InputError
            If a path does not exist or is neither a folder nor a file.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        if bayer is not None:
            choice(bayer, (*COLOURS, "mono"), "bayer")
        if spellings is None:
            spellings = SPELLINGS
        elif not isinstance(spellings, Spellings):
            spellings = Spellings.read(spellings)
        reader = FactReader(set_keywords=set_keywords, spellings=spellings, mono=bayer == "mono")
        max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        rows = [
            _read_row(path, parts, why, reader, max_pixels, library, calibrated)
            for path, parts, why, library in find_files(paths, ignore, calibration=calibration)
        ]
        table = cls(sorted(rows, key=lambda row: (row.library, os.fsencode(row.path))))
        table._reduced(calibrated)
        table._unify(spellings)
        table._drop_copies()
        table._colours(bayer, saturation)
        table._collect()
        return table

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        counts = ", ".join(f"{n} {what}" for what, n in self.counts.items() if what != "found")
        return f"<FrameTable of {len(self)} files: {counts}>"

    def _repr_html_(self):
        columns = ("verdict", "kind", "object", "filter", "exposure", "date", "reason", "path")
        return f"<p>{escape(repr(self))}</p>{self.table[columns]._repr_html_()}"

    def plot(self, ax=None):
        """
        Draw the exposure times of the files over the time they were taken, by kind.

        Parameters
        ----------
        ax : `~matplotlib.axes.Axes`, optional
            Default is a new figure.

        Returns
        -------
        `~matplotlib.axes.Axes`
            Files without a date are not drawn; those that are not used are crosses.
        """
        ax = ax or new_axes(width=8.0, height=3.6)
        points = {}
        for row in self:
            try:
                day = Time(row.date, format="isot").plot_date
            except ValueError:
                continue
            what = row.kind or "unknown"
            if row.kind in ("light", "flat"):
                what += f" {row.filter}"
            label, marker = (what, "o") if row.used else (f"{what}, not used", "x")
            points.setdefault((label, marker), []).append((day, row.exposure))
        for (label, marker), rows in sorted(points.items()):
            ax.scatter(*zip(*rows, strict=True), marker=marker, s=24, label=label)
        ax.xaxis_date()
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_xlabel("time [UTC]")
        ax.set_ylabel("exposure [s]")
        if points:
            ax.legend(fontsize=8, frameon=False)
        return ax

    def __iter__(self):
        return iter(self.rows)

    def of_kind(self, kind):
        """Return the rows of a kind that are used."""
        return [row for row in self.rows if row.kind == kind and row.used]

    @property
    def counts(self):
        """Return ``{"found": n, "used": n, "left out": n, "ignored": n}``."""
        verdicts = [row.verdict for row in self.rows]
        return {"found": len(verdicts)} | {name: verdicts.count(name) for name in VERDICTS}

    @property
    def table(self):
        """The rows as a `~astropy.table.QTable`; what is not known is masked or empty."""
        rows = self.rows
        table = QTable()
        table["path"] = _text(row.name for row in rows)
        table["verdict"] = _text(row.verdict for row in rows)
        table["kind"] = _text(row.kind or "unknown" for row in rows)
        table["object"] = _text(row.object for row in rows)
        table["filter"] = _text(row.filter if row.kind in ("light", "flat") else "" for row in rows)
        for name, unit in (("exposure", u.s), ("temperature", u.deg_C)):
            table[name] = np.array([getattr(row, name) for row in rows], float) * unit
        table["binning"] = _text("x".join(map(str, row.binning or ())) for row in rows)
        for axis, name in enumerate(("ny", "nx")):
            sizes = [row.shape[axis] if row.shape else 0 for row in rows]
            table[name] = MaskedColumn(sizes, dtype=int, mask=[not row.shape for row in rows])
        table["window"] = _text(",".join(map(str, row.window or ())) for row in rows)
        settings = ("gain", "offset", "readout", "camera", "row_order", "bayer", "changed")
        for name in (*settings, "date"):
            table[name] = _text(getattr(row, name) for row in rows)
        table["reason"] = _text(row.reason for row in rows)
        table.meta["files"] = self.counts
        return table

    def write(self, path, *, overwrite=False):
        """
        Write the table as ECSV, whole or not at all.

        Raises
        ------
        ProductError
            If it cannot be written, or a file is there and ``overwrite`` is False.
        """
        from astro_narrowband._engine.files import check_absent, write_table

        check_absent(path, overwrite=overwrite)
        write_table(path, self.table)

    def lines(self):
        """Return the table as lines of text, one a file, for a terminal."""
        lines = []
        for row in self.rows:
            what = [row.kind or "-"]
            if row.kind in ("light", "flat"):
                what.append(row.filter)
            if row.kind == "light":
                what.append(row.object)
            if not math.isnan(row.exposure):
                what.append(f"{row.exposure:g} s")
            if not math.isnan(row.temperature):
                what.append(f"{row.temperature:.1f} C")
            if row.shape:
                what.append(f"{row.shape[1]}x{row.shape[0]}")
            line = f"{row.verdict:8}  {' '.join(what)}  {row.name}"
            lines.append(clean_text(line) + (f"  ({row.reason})" if row.reason else ""))
        return lines

    # ------------------------------------------------------------------ after reading

    def _reduced(self, calibrated):
        """Leave out what is not raw, or, of calibrated lights, what is."""
        rows = [row for row in self.rows if row.used]
        flagged = any(row.kind == "light" and row.reduced for row in rows)
        for row in rows:
            if row.kind != "light":
                if calibrated:
                    row.ignore("is not needed: the lights are calibrated (--calibrated)")
                elif row.reduced and not row.master:
                    row.leave_out(f"{row.reduced}: is not a raw frame: give the raw ones")
            elif row.library:
                row.ignore("is a light in a folder of calibration frames")
            elif row.reduced and not calibrated:
                row.leave_out(
                    f"{row.reduced}: is not a raw frame: give the raw ones, or --calibrated"
                )
            elif calibrated and not row.reduced and flagged:
                row.leave_out(
                    "nothing in its header says that it is calibrated, as of others: calibrate it "
                    "as well"
                )
            elif calibrated and not row.reduced:
                row.notes.append(
                    "is taken as calibrated (--calibrated): its header does not say so"
                )

    def _colours(self, bayer, saturation):
        """Take the wanted colour of mosaics; leave out those of which none is wanted."""
        rows = [row for row in self.rows if row.used]
        mosaics = {(row.shape, row.camera) for row in rows if row.bayer}
        # Flats that only become masters stay whole.
        seen = ("light", "flat") if any(row.kind == "light" for row in self.rows) else ()

        def may_be(row):
            same = any(row.shape == s and row.camera in ("", c) for s, c in mosaics)
            return not mosaics or same

        for row in rows:
            if bayer in COLOURS and (row.bayer or (bayer == "superpixel" and may_be(row))):
                row.colour, row.saturation = bayer, saturation
                row.bayer = f"{row.bayer} {bayer}".strip()
                try:
                    row.shape = row.open().shape
                except InputError as error:
                    row.leave_out(str(error).removeprefix(f"{row.path.name}: "))
            elif row.bayer and row.kind in seen and not lines_of(row.filter):
                row.leave_out(
                    f"BAYERPAT = {row.bayer}: is a colour mosaic, and no line is known of "
                    f"{row.filter}: give --bayer red (Halpha, SII), green or blue (OIII), or mono "
                    "if the sensor has no colour filters"
                )
            elif bayer in COLOURS and may_be(row):
                row.leave_out(
                    f"BAYERPAT is missing: --bayer {bayer} needs it: give --set BAYERPAT=RGGB "
                    "(or the pattern that the camera has)"
                )

    def _unify(self, spellings):
        """Give one name to spellings of one object or unknown filter that differ in signs only."""
        for row in self.rows:
            row.object = _without_filter(row.object, row.filter)
        for name, key_of, skip in (
            ("object", _object_key, lambda _: False),
            ("filter", filter_key, lambda t: is_known_filter(t, spellings=spellings.filters)),
        ):
            alike = {}
            for row in self.rows:
                text = getattr(row, name)
                if text and not skip(text) and (key := key_of(text)):
                    alike.setdefault(key, []).append(row)
            for rows in alike.values():
                best = min(getattr(row, name) for row in rows)
                for row in rows:
                    setattr(row, name, best)

    def _drop_copies(self):
        """Leave out frames whose pixels another file has, packed or not: no noise comes twice."""
        alike = {}
        for row in self.rows:
            if row.used:
                alike.setdefault(row.shape, []).append(row)
        for rows in alike.values():
            seen = {}
            for row in rows if len(rows) > 1 else ():
                middle = row.shape[0] // 2
                digest = _pixels(row, slice(middle, middle + 1))
                whole = slice(0, row.shape[0])
                for other in seen.setdefault(digest, []) if digest else ():
                    if _pixels(other, whole) == _pixels(row, whole):
                        _is_copy(row, other)
                        break
                else:
                    seen.setdefault(digest, []).append(row)

    def _collect(self):
        """Turn what was noticed into problems."""
        lost = [(row, f"left out: {row.reason}") for row in self.rows if row.verdict == "left out"]
        noted = [(row, note) for row in self.rows if row.used for note in row.notes]
        self.problems += problems_of(lost) + problems_of(noted)
        for row in self.rows:
            if row.used:
                row.reason = "; ".join(row.notes)

    def warn(self):
        """Emit every problem as a `NarrowbandWarning`."""
        for problem in self.problems:
            warn(str(problem), stacklevel=2)


def _text(values):
    values = [clean_text(value) for value in values]
    return np.array(values, dtype=str) if values else np.array([], dtype="U1")


def _without_filter(text, beam):
    """The name of an object without that of a filter behind it: ``NGC7000_Ha``, ``M 1 O III``."""
    for pattern in (r"(.*\w)[\s_-]+\W?(\w+)\W?", r"(.*\w)[\s_-]+\W?([A-Za-z][\s_-]\w+)\W?"):
        if match := re.fullmatch(pattern, text):
            name = canonical_filter(match[2])
            if name == beam or (len(match[2]) > 1 and lines_of(name)):
                return match[1]
    return text


def _object_key(text):
    """What two spellings of one object have in common; the sign of a coordinate is kept."""
    spelt = re.sub(r"(?<=\d{4})([+-])(?=\d)", lambda m: {"+": "p", "-": "m"}[m[1]], text.lower())
    # M 1 and M001 are one entry of one catalogue.
    spelt = re.sub(r"^([a-z]+\W*)0+(?=\d+$)", r"\1", spelt)
    return "".join(char for char in spelt if char.isalnum()) or text


def _is_copy(row, other):
    reason = f"is a copy of {other.name}"
    if row.kind != other.kind:
        reason += f", which is a {other.kind}: nobody knows what it is: take one of them away"
        other.leave_out(
            f"has the pixels of {row.name}, which is a {row.kind}: take one of them away"
        )
    (row.ignore if row.library and row.kind == other.kind else row.leave_out)(reason)


def _pixels(row, section):
    """Return a digest of some rows of pixels; ``""`` if all are one value, or unreadable."""
    try:
        pixels = row.open_raw().image.read(section)
    except InputError:
        return ""  # its verdict comes when it is read for good
    if (pixels == pixels.flat[0]).all() or (pixels != pixels).all():  # or NaN
        return ""
    # Programs write the same numbers in other types.
    with np.errstate(over="ignore", invalid="ignore"):
        return hashlib.sha256(np.ascontiguousarray(pixels, np.float32)).hexdigest()


# ------------------------------------------------------------------ reading headers


def _completed(header, exposure, fallback):
    """Return the cards that a header needs to say what was found: the user's, the exposure time."""
    cards = {}
    for keyword in fallback.keys() - set(header):
        # As a header would have it: a number if it is one.
        try:
            cards[keyword] = parse_number(fallback[keyword])
        except ValueError:
            cards[keyword] = clean_text(fallback[keyword])
    try:
        said = read_exposure(header)
    except InputError:
        said = math.nan
    if not math.isnan(exposure) and said != exposure:
        cards["EXPTIME"] = exposure
    return cards


def _compare(facts, header, primary, spellings):
    """Note keywords that matter and differ between an extension and the primary header."""
    for name in ("kind", "exposure", "filter", "gain", "object"):
        for keyword in spellings.keywords[name]:
            values = [{clean_text(v) for v, _ in raw_values(h, keyword)} for h in (header, primary)]
            if all(values) and values[0].isdisjoint(values[1]):
                both = " and ".join(show_value(min(v)) for v in values)
                facts.notes.append(
                    f"{keyword} = {both}: differ between the image's header and the primary one: "
                    "the image's is believed"
                )


def _read_row(path, parts, why, reader, max_pixels, library, calibrated):
    row = FrameRow(path=path, parts=parts, max_pixels=max_pixels, library=library)
    if why:
        (row.leave_out if why.startswith("!") else row.ignore)(why.removeprefix("!"))
        return row
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = row.open_raw()
            header = frame.header
            row.identity = frame.identity
            facts = reader.facts(header, parts)
            if damage := frame.damage:
                raise InputError(f"{damage}: is damaged: copy it again")
            raw = not (facts.master or facts.reduced or calibrated)
            flat = facts.kind == "flat"
            row.scale = 1.0 if facts.model else full_scale(frame, flat=flat, raw=raw)
            if row.scale != 1:
                facts.notes.append(
                    f"its pixels go from 0 to 1: taken for parts of {row.scale:g} adu"
                )
            if frame.primary is not None:
                _compare(facts, header, frame.primary, reader.spellings)
    except InputError as error:
        row.leave_out(str(error).removeprefix(f"{path}: "))
        # Its group is told what it lacks, by what its name and its header still say.
        facts = reader.facts(_header_of_damaged(path), parts)
        row.kind, row.object, row.filter = facts.kind, facts.object, facts.filter
        row.exposure, row.date = facts.exposure, facts.date
        return row
    for item in fields(Facts):
        setattr(row, item.name, getattr(facts, item.name))
    row.shape = frame.shape
    row.cards = _completed(header, facts.exposure, reader.fallback)
    row.verdict, row.reason = "used", ""
    if facts.kind == "other":
        row.ignore("a frame that no reduction needs (focus, lamp, test)")
    elif facts.refusal:
        row.leave_out(facts.refusal)
    return row


def _header_of_damaged(path):
    """The first header of a file, empty where even that cannot be read."""
    try:
        with open(open_regular(path)[0], "rb") as file:
            return fits.Header.fromfile(file)
    except Exception:  # astropy raises almost any type on damaged headers
        return fits.Header()
