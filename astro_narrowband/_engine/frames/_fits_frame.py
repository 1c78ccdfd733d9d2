"""The image of a FITS file as a frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits

from astro_narrowband._engine.files import ChangedError, Identity, set_card
from astro_narrowband._engine.frames._fits_image import FitsImage
from astro_narrowband._engine.frames._frame import Band, Frame, handed
from astro_narrowband._engine.frames._sums import damage_of
from astro_narrowband._engine.frames.fits_reader import MAX_PIXELS, read_structure
from astro_narrowband._engine.headers import raw_values
from astro_narrowband._engine.text import clean_text
from astro_narrowband._engine.validate import as_unit, to_variance
from astro_narrowband.exceptions import InputError


@dataclass(eq=False)
class FitsFrame(Frame):
    """
    The image of a FITS file, read by bands.

    Plain files are read where they lie, and so are tile-compressed ones, of which the
    tiles in question are decompressed; packed ones (gzip, bzip2, xz, by their first
    bytes) are expanded once into a temporary file without a name. The image is the
    primary one, or the only one in the extensions; cubes of one plane count as images.
    ``UNCERT`` and ``MASK`` extensions, as `~astropy.nddata.CCDData` writes them, become
    the band's variance and mask. NaN and BLANK pixels are masked.

    Parameters
    ----------
    path : path-like
        The file.
    unit : unit-like, optional
        The unit of the pixels where the header has no BUNIT.
    max_pixels : int, optional
        A larger image is refused before anything is allocated or expanded.
    cards : mapping, optional
        Header values that stand in for those of the file.
    identity : `~astro_narrowband._engine.files.Identity`, optional
        What the file must still be, now and whenever it is read; default is what it
        is now.

    Raises
    ------
    ChangedError
        If the file changed, here and wherever its pixels are read.
    InputError
        If the file is absent, not a regular file, not FITS, truncated, too
        large, or has not one 2-D image.
    """

    path: Path
    unit: u.UnitBase | None = None
    max_pixels: int = field(default=MAX_PIXELS, repr=False)
    cards: Mapping = field(default_factory=dict, repr=False)
    identity: Identity | None = field(default=None, repr=False)
    name: str = field(init=False)
    shape: tuple[int, int] = field(init=False)
    header: fits.Header = field(init=False, repr=False)
    image: FitsImage = field(init=False, repr=False)

    def __post_init__(self):
        self.path = Path(self.path)
        self.name = self.path.name
        structure = read_structure(self.path, max_pixels=self.max_pixels, identity=self.identity)
        self.identity = structure.identity
        self.header, self.primary = structure.header, structure.primary
        self.image, self.shape = structure.image, structure.image.shape
        self._mask, self._uncertainty = structure.mask, structure.uncertainty
        self._kind, self._structure = structure.kind, structure
        for keyword, value in self.cards.items():
            set_card(self.header, keyword, value)
        bunit = [value for value, _ in raw_values(structure.header, "BUNIT") if value is not None]
        if bunit and clean_text(bunit[0]):
            self.unit = _unit(clean_text(bunit[0]), self.path)
        elif self.unit is not None:
            self.unit = as_unit(self.unit, "unit")

    def __getstate__(self):
        # Absolute: a worker may be at home elsewhere.
        state = {"path": self.path.absolute(), "offset": self.image.offset}
        names = ("unit", "max_pixels", "cards", "identity")
        return state | {name: getattr(self, name) for name in names}

    def __setstate__(self, state):
        # A temporary file of this process is of no use to another one.
        offset = state.pop("offset")
        self.__init__(**state)
        if self.image.offset != offset:
            raise ChangedError(self.path, "has its pixels elsewhere than before")

    @property
    def damage(self):
        """Why the data are not those that were written; empty if they are, or nobody knows."""
        return damage_of(self._structure)

    def read(self, rows, *, variance=True, out=None):
        """Return a `Band` of float32 rows; a variance that is not asked for stays on disk."""
        data = _float32(self.image.read(rows))
        mask = None
        if self._mask is not None:
            mask = self._mask.read(rows) != 0
        if self.image.stored.kind == "f" or self.image.blank is not None:
            bad = ~np.isfinite(data)
            if bad.any():
                mask = bad if mask is None else mask | bad
        squared = None
        if variance and self._uncertainty is not None:
            squared = to_variance(self._kind, _float32(self._uncertainty.read(rows)))
        return handed(Band(data, squared, mask), out=out)


def _float32(values):
    # What is too large for float32 becomes infinite, and so masked.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


_UNIT_WORDS = {
    **dict.fromkeys(("e-", "e", "electrons", "photo-electrons", "photoelectrons"), "electron"),
    **dict.fromkeys(("counts", "count", "dn", "adus", "digital number", "raw"), "adu"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
}


def _unit(text, path):
    """Return the unit that BUNIT means, in astropy's words or in those of cameras."""
    parts = [word.strip().lower() for word in text.strip().strip("[]()").split("/")]
    for words in ("/".join(_UNIT_WORDS.get(word, word) for word in parts), text.strip()):
        try:
            unit = u.Unit(words)
        except Exception:  # noqa: S112 - astropy: ValueError, TypeError, by the text
            continue
        if isinstance(unit, u.UnitBase):
            return unit
    raise InputError(
        f"{path}: BUNIT = {text[:60]!r} is not a unit: write adu, electron or electron/s"
    )
