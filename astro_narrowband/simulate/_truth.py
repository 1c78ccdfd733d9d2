"""The truth of a simulated night, as it lies beside the frames."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable

from astro_narrowband._engine.door import a_path, array, door
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import canonical_filter
from astro_narrowband.simulate._model import NightModel
from astro_narrowband.simulate._sky import moffat_fraction
from astro_narrowband.simulate._spectra import SpectralModel

#: Where the truth lies within the folder of a night.
FOLDER = "truth"
#: What IMAGETYP says in its planes: no frame of the night.
KIND = "truth"


def write_plane(path, data, unit):
    """Write one plane of the truth as FITS; IMAGETYP says that it is no frame."""
    header = fits.Header([("IMAGETYP", KIND, "not a frame: truth of a simulation")])
    header["BUNIT"] = (unit, "unit of the pixels")
    fits.PrimaryHDU(data, header).writeto(path)


@door(name=a_path, radius=array(u.pix))
@dataclass(frozen=True)
class NightTruth:
    """
    What a simulated night was made of.

    Attributes
    ----------
    folder : `~pathlib.Path`
        The folder of the night.
    model : NightModel
        Camera and sky.
    shape : (int, int)
        Rows and columns of every frame.
    filters : tuple of str
        Canonical names.
    stars : `~astropy.table.QTable`
        ``id``, ``x``, ``y`` [pix] in the reference frame (they may lie outside it),
        ``flux_<filter>`` [electron/s] above the clouds on pixels of response 1.
    frames : `~astropy.table.QTable`
        One row per file: ``name`` (path within the folder), ``kind`` (bias, dark,
        flat, light), ``filter`` (canonical), ``exposure`` [s]; for lights also
        ``matrix`` (3x3, pixel (x, y, 1) of the frame -> pixel of the reference frame),
        ``x_shift``, ``y_shift`` [pix] (where the frame shows the reference's centre,
        off its own), ``rotation`` [deg], ``flipped``, ``transparency``, ``fwhm``
        [pix], ``sky`` [electron/s] at the centre, ``sky_slope_x``, ``sky_slope_y``
        [electron/s] (change of the sky from the first to the last column, row).

    spectra : SpectralModel or None
        With it, the stars have ``ra``, ``dec``, ``density`` (flux per wavelength at 600 nm) and
        ``slope``.

    Notes
    -----
    A light has, on average over its noise, ``bias * gain + exposure * (dark +
    flat * (sky + transparency * (stars + nebula)))`` electron in a pixel, and the
    charge of its cosmic rays.
    """

    folder: Path
    model: NightModel
    shape: tuple[int, int]
    filters: tuple[str, ...]
    stars: QTable = field(repr=False)
    frames: QTable = field(repr=False)
    spectra: SpectralModel | None = None

    def _plane(self, name):
        return fits.getdata(self.folder / FOLDER / f"{name}.fits").astype(np.float32)

    @cached_property
    def bias(self):
        """Bias [adu], (ny, nx) float32."""
        return self._plane("bias")

    @cached_property
    def dark(self):
        """Dark rate [electron/s], (ny, nx) float32."""
        return self._plane("dark")

    def flat(self, filter_name):
        """Response in a filter, median 1, (ny, nx) float32; read at every call."""
        return self._plane(f"flat-{self._known(filter_name)}")

    def nebula(self, filter_name):
        """Nebula in the reference frame [electron/s], (ny, nx) float32; read at every call."""
        return self._plane(f"nebula-{self._known(filter_name)}")

    def line_flux(self, line):
        """
        Flux of a line in each pixel of the reference frame [erg/(s cm2)], (ny, nx) float64.

        Of Halpha, OIII (5007 alone), SII (both), NII (6583 alone) or Hbeta; above the clouds;
        only of a night with spectra.
        """
        name = canonical_filter(line)
        path = self.folder / FOLDER / f"line-{name[:80]}.fits"
        if not path.is_file():
            raise InputError(f"{self.folder} has no flux of a line {line!r}: simulate with spectra")
        return fits.getdata(path).astype(np.float64)

    def _known(self, name):
        canonical = canonical_filter(name)
        if canonical not in self.filters:
            raise InputError(f"filter {name!r} is not in {self.folder}: it has {self.filters}")
        return canonical

    @cached_property
    def cosmic_rays(self):
        """
        Pixels hit by cosmic rays: a QTable.

        ``frame`` (row in ``frames``), ``y``, ``x`` (pixel), ``charge`` [electron].
        """
        hits = fits.getdata(self.folder / FOLDER / "cosmic_rays.fits")
        table = QTable({name: hits[name].astype(int) for name in ("frame", "y", "x")})
        table["charge"] = hits["charge"].astype(float) * u.electron
        return table

    def cosmic_mask(self, name):
        """
        Pixels hit by cosmic rays in one frame.

        Parameters
        ----------
        name : str
            Of the frame, as in ``frames``.

        Returns
        -------
        (ny, nx) ndarray of bool
        """
        hits = self.cosmic_rays[self.cosmic_rays["frame"] == self._row(name)]
        mask = np.zeros(self.shape, bool)
        mask[hits["y"], hits["x"]] = True
        return mask

    def frame(self, name):
        """Return the row of ``frames`` for a file: its name within the folder, or absolute path."""
        return self.frames[self._row(name)]

    def _row(self, name):
        path, folder = Path(name), self.folder.resolve()
        if path.is_absolute() and path.resolve().is_relative_to(folder):
            path = path.resolve().relative_to(folder)
        rows = np.flatnonzero(self.frames["name"] == path.as_posix())
        if rows.size == 0:
            raise InputError(f"{name} is no frame of the simulated night {self.folder}")
        return int(rows[0])

    def positions(self, name):
        """
        Where the stars are in one light.

        Parameters
        ----------
        name : str
            Of the frame, as in ``frames``.

        Returns
        -------
        x, y : (n_stars,) ndarray of float
            Pixels, the centre of the first is 0; stars outside the frame have
            places outside it.
        """
        inverse = np.linalg.inv(self.frame(name)["matrix"])
        x, y = self.stars["x"].to_value("pix"), self.stars["y"].to_value("pix")
        place = inverse[:2, :2] @ np.stack([x, y]) + inverse[:2, 2:]
        return place[0], place[1]

    def aperture_fraction(self, radius, *, fwhm):
        """
        Fraction of a star's flux within ``radius`` [pix] where the seeing is ``fwhm`` [pix].

        See `~astro_narrowband.simulate.moffat_fraction`.
        """
        return moffat_fraction(radius, fwhm=fwhm, beta=self.model.moffat_beta)


def write_truth(folder, *, model, shape, filters, stars, frames, cosmic_rays, spectra=None):
    """
    Write the tables of the truth; the planes are written where they are made.

    ``cosmic_rays`` is a list of (frame, y, x, charge) arrays.
    """
    folder = Path(folder) / FOLDER
    frames.meta = {"model": asdict(model), "shape": list(shape), "filters": list(filters)}
    if spectra is not None:
        frames.meta["spectra"] = asdict(spectra)
    stars.write(folder / "stars.ecsv")
    frames.write(folder / "frames.ecsv")
    rows = [np.concatenate([np.empty(0), *(hit[k] for hit in cosmic_rays)]) for k in range(4)]
    columns = [
        fits.Column(name, form, array=row)
        for name, form, row in zip(("frame", "y", "x", "charge"), "JJJE", rows, strict=True)
    ]
    primary = fits.PrimaryHDU(header=fits.Header([("IMAGETYP", KIND)]))
    hdul = fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)])
    hdul.writeto(folder / "cosmic_rays.fits")


@door
def read_truth(folder):
    """
    Read the truth of a simulated night.

    Parameters
    ----------
    folder : path-like
        The folder that `simulate_night` wrote.

    Returns
    -------
    NightTruth
        Its planes are read when they are asked for.

    Raises
    ------
    InputError
        If there is no truth in the folder.
    """
    folder = Path(folder)
    path = folder / FOLDER / "frames.ecsv"
    if not path.is_file():
        raise InputError(f"{folder} is no simulated night: {path} is missing")
    frames = QTable.read(path)
    return NightTruth(
        folder=folder,
        model=NightModel(**frames.meta["model"]),
        shape=tuple(frames.meta["shape"]),
        filters=tuple(frames.meta["filters"]),
        stars=QTable.read(folder / FOLDER / "stars.ecsv"),
        frames=frames,
        spectra=SpectralModel(**frames.meta["spectra"]) if "spectra" in frames.meta else None,
    )
