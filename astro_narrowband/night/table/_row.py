"""One file of a night and its fate, and what a user should know of it."""

from dataclasses import dataclass, field
from pathlib import Path

from astro_narrowband._engine.bayer import MosaicFrame
from astro_narrowband._engine.files import Identity
from astro_narrowband._engine.frames import MAX_PIXELS, FitsFrame
from astro_narrowband._engine.raw import ScaledFrame, without_pedestal
from astro_narrowband._engine.text import clean_text, path_text
from astro_narrowband.night.table._facts import Facts


@dataclass(frozen=True)
class Problem:
    """
    Something a user should know: printed as one line, kept as data.

    Attributes
    ----------
    level : str
        ``"warning"`` or ``"error"``.
    file : str
        What it is about: a file, or a group of frames.
    text : str
        Keyword and value, what was done, what to do.
    """

    level: str
    file: str
    text: str

    def __str__(self):
        return f"{self.file}: {self.text}" if self.file else self.text


@dataclass(eq=False)
class FrameRow(Facts):
    """
    One file found: what it is, and its fate, which nothing else keeps.

    A frame may serve several groups of lights. Where one of them does without it,
    `leave_out_of` says why; when none is left the frame is left out.

    Attributes
    ----------
    path : `~pathlib.Path`
    name : str
        The path as it can be shown: no control characters, valid UTF-8.
    shape : tuple of int or None
    verdict : str
        ``"used"``, ``"left out"`` or ``"ignored"``.
    reason : str
        Why it is not used, or what was noticed; one line.
    library : bool
        Whether it is in a folder of calibration frames.
    scale : float
        Counts that 1 stands for in the file.
    serves : dict
        Label of each group that it was meant for, and why that does without it, ``""``
        while it does not.
    """

    path: Path = Path()
    shape: tuple | None = None
    verdict: str = "ignored"
    reason: str = ""
    serves: dict = field(default_factory=dict)
    parts: tuple = ()
    library: bool = False
    scale: float = 1.0
    max_pixels: int = field(default=MAX_PIXELS, repr=False)
    cards: dict = field(default_factory=dict, repr=False)
    colour: str = field(default="", repr=False)
    saturation: float | None = field(default=None, repr=False)
    identity: Identity | None = field(default=None, repr=False)

    @property
    def name(self):
        """The path as text that can be shown."""
        return path_text(self.path)

    @property
    def used(self):
        """Whether the verdict is ``used``."""
        return self.verdict == "used"

    def ignore(self, reason):
        """Say that it is no frame of this reduction, for ``reason``."""
        self.verdict, self.reason = "ignored", clean_text(reason)

    def leave_out(self, reason):
        """Leave the frame out of everything, for ``reason``."""
        self.verdict, self.reason = "left out", clean_text(reason)
        self.serves = dict.fromkeys(self.serves, self.reason)

    def leave_out_of(self, label, reason):
        """Leave the frame out of one group; of everything, if there is no other."""
        self.serves[label] = clean_text(reason)
        if all(self.serves.values()):
            self.verdict, self.reason = "left out", self.serves[label]
        else:
            also = f"not in {label}: {self.serves[label]}"
            self.reason = f"{self.reason}; {also}" if self.reason else also

    def open_raw(self):
        """Return the frame of this file; its header has what was found: EXPTIME, FILTUSED."""
        cards = dict(self.cards)
        if self.kind in ("light", "flat"):
            cards["FILTUSED"] = self.filter
        limits = {"max_pixels": self.max_pixels, "identity": self.identity}
        return FitsFrame(self.path, unit="adu", cards=cards, **limits)

    def _counts(self):
        frame = self.open_raw()
        return frame if self.scale == 1 else ScaledFrame(frame, self.scale)

    def open_whole(self):
        """Return the frame of the file without its pedestal, with all colours of a mosaic."""
        return without_pedestal(self._counts())

    def open(self, colour=""):
        """Return the frame that is reduced: that of the file, or one colour of its mosaic."""
        frame, colour = self._counts(), self.colour or colour
        if colour and not self.mosaic:
            frame = MosaicFrame(frame, colour, saturation=self.saturation)
        return without_pedestal(frame)


def problems_of(rows_and_texts):
    """Return one `Problem` a text, named by its first file and the number of others."""
    rows_of = {}
    for row, text in rows_and_texts:
        rows_of.setdefault(text, []).append(row)
    return [
        Problem("warning", rows[0].name + (f" and {len(rows) - 1} more" if rows[1:] else ""), text)
        for text, rows in rows_of.items()
    ]
