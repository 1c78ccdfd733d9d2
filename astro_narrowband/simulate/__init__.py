"""
Nights of raw frames whose truth is known.

The simulator judges the reduction, so it shares nothing with it.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from astro_narrowband._engine.door import door
from astro_narrowband.exceptions import InputError, ProductError
from astro_narrowband.filters import canonical_filter
from astro_narrowband.simulate._camera import (
    bias_plane,
    cosmic_rays,
    dark_plane,
    expose,
    flat_plane,
)
from astro_narrowband.simulate._frames import SHAPE, SimulatedFrames, simulate_frames
from astro_narrowband.simulate._model import NightModel, stream
from astro_narrowband.simulate._sky import Nebula, add_stars, moffat_fraction, pointing, star_fluxes
from astro_narrowband.simulate._spectra import SpectralModel, SpectralNebula
from astro_narrowband.simulate._truth import (
    FOLDER,
    NightTruth,
    read_truth,
    write_plane,
    write_truth,
)

__all__ = [
    "NightModel",
    "NightTruth",
    "SimulatedFrames",
    "SpectralModel",
    "moffat_fraction",
    "read_truth",
    "simulate_frames",
    "simulate_night",
]

_SUNSET = datetime(2025, 10, 18, 18, 40)  # frames have the dates of this night, UTC
_READ_OUT = 4.0  # seconds between two frames
_TARGET = (303.05, 38.35)  # right ascension and declination [deg]
_IMAGETYP = {"bias": "Bias Frame", "dark": "Dark Frame", "flat": "Flat Field", "light": "Light"}


@dataclass(frozen=True)
class _Exposure:
    """One frame to be taken: ``name`` is its path within the folder."""

    name: str
    kind: str
    time: float
    filter: str = ""


@door(shape=SHAPE)
def simulate_night(
    folder,
    *,
    shape=(1024, 1024),
    filters=("Halpha", "OIII", "SII"),
    n_bias=12,
    dark_exposures=(60.0, 120.0),
    n_darks=10,
    n_flats=10,
    light_exposures=(60.0, 60.0, 120.0, 120.0, 300.0, 300.0),
    dither=8.0,
    rotation=0.0,
    meridian_flip=False,
    object_name="Crown Nebula",
    write_gain=True,
    write_read_noise=True,
    write_wcs=False,
    model=None,
    spectra=None,
    seed,
):
    """
    Write a night of raw frames, and its truth beside it.

    The frames are uint16 FITS files in ``bias/``, ``dark/``, ``flat/<filter>/`` and
    ``light/<filter>/``, with headers as cameras write them. The truth is in
    ``truth/``: tables of stars, frames and cosmic rays, and planes of bias, dark,
    flats and nebula, whose IMAGETYP is ``truth``.

    Parameters
    ----------
    folder : path-like
        Made if it is not there; must be empty.
    shape : (int, int), optional
        Rows and columns.
    filters : sequence of str, optional
        As they are spelled in the headers.
    n_bias, n_darks, n_flats : int, optional
        Number of bias frames, of darks per exposure time, of flats per filter.
    dark_exposures, light_exposures : sequence of float, optional
        Exposure times [s]: of the darks; of the lights in each filter, one each.
    dither : float, optional
        Largest shift [pixel] of a light from the reference frame.
    rotation : float, optional
        Angle [degree] by which the field turns from the first to the last light.
    meridian_flip : bool, optional
        Turn the second half of the lights by 180 degrees.
    object_name : str, optional
        OBJECT of the lights.
    write_gain, write_read_noise : bool, optional
        Write EGAIN [electron/adu] (and GAIN, which is a camera setting), RDNOISE
        [electron]; otherwise they must be measured.
    write_wcs : bool, optional
        Write the true WCS into the lights.
    model : NightModel, optional
        Camera and sky.
    spectra : SpectralModel, optional
        Spectra of stars and nebula and curves of the filters, broad ones among them. The truth
        then has the fluxes of the lines [erg/(s cm2)], and ``ra``, ``dec``, ``density`` at 600 nm
        and ``slope`` of the stars. By default filters have no curves, and no line is in two.
    seed : int
        The same seed and arguments give the same bytes.

    Returns
    -------
    NightTruth
        What is true of the night, as `read_truth` gives it.

    Raises
    ------
    InputError
        If the folder is not empty, or an argument cannot be used.

    Notes
    -----
    Not simulated: blooming, charge transfer, non-linearity, distortion and
    variation of the stars' shape over the field, ghosts, satellites, airmass. The
    nebula is not blurred by the seeing. The dark rate does not change with
    CCD-TEMP, which is within 0.1 K of its set point.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from astro_narrowband.simulate import simulate_night
    >>> with TemporaryDirectory() as folder:
    ...     truth = simulate_night(folder, shape=(64, 96), filters=("Ha",), seed=1)
    >>> len(truth.frames), truth.filters
    (48, ('Halpha',))
    """
    model = NightModel() if model is None else model
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: give an empty folder for a simulated night")
    names = _checked_filters(filters)
    taken = _schedule(names, n_bias, dark_exposures, n_darks, n_flats, light_exposures, model)
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProductError(f"{folder}: {error.strerror}: give a folder that can be made") from None
    stars = _make_stars(stream(seed, "stars"), shape, names.values(), model, reach=dither)
    frames = _make_frames(seed, taken, names, shape, model, dither, rotation, meridian_flip)
    turn = math.radians(abs(rotation)) * math.hypot(*shape) / 2
    nebula = Nebula(stream(seed, "nebula"), shape, margin=dither + turn, brightness=model.nebula)
    if spectra is not None:
        _give_spectra(stream(seed, "spectra"), stars, frames, names.values(), shape, model, spectra)
        nebula = SpectralNebula(nebula, spectra)
    scene = _Scene(seed, shape, model, names, stars, nebula)
    scene.write_planes(folder / FOLDER)
    keywords = {"gain": write_gain, "read_noise": write_read_noise, "wcs": write_wcs}
    hits = _write_frames(folder, seed, taken, frames, scene, object_name, keywords)
    write_truth(
        folder, model=model, shape=shape, filters=names.values(), stars=stars, frames=frames,
        cosmic_rays=hits, spectra=spectra,
    )  # fmt: skip
    return read_truth(folder)


class _Scene:
    """Camera and sky of one night: what each of its frames sees."""

    def __init__(self, seed, shape, model, names, stars, nebula):
        self.shape, self.model, self._names = shape, model, names
        self._stars, self._nebula = stars, nebula
        self.bias = bias_plane(stream(seed, "bias"), shape, model)
        self._dark = dark_plane(stream(seed, "dark"), shape, model)
        self._flats = {
            canonical: flat_plane(
                stream(seed, "window"), stream(seed, "grain"), shape, model,
                grain_of_filter=stream(seed, "flat", canonical),
            )
            for canonical in names.values()
        }  # fmt: skip

    def write_planes(self, folder):
        """Write bias, dark, flats, nebula and, where it has spectra, the fluxes of its lines."""
        write_plane(folder / "bias.fits", self.bias, "adu")
        write_plane(folder / "dark.fits", self._dark, "electron/s")
        for canonical, flat in self._flats.items():
            write_plane(folder / f"flat-{canonical}.fits", flat, "")
            seen = self._nebula.rate(canonical, np.eye(3))
            write_plane(folder / f"nebula-{canonical}.fits", seen, "electron/s")
        if isinstance(self._nebula, SpectralNebula):
            for line in ("Halpha", "OIII", "SII", "NII", "Hbeta"):
                flux = self._nebula.flux(line, np.eye(3))
                write_plane(folder / f"line-{line}.fits", flux, "erg / (s cm2)")

    def electrons(self, item, row):
        """Mean electrons of a frame, (ny, nx) float32, without bias and cosmic rays."""
        out, flat = np.zeros(self.shape, np.float32), self._flats.get(self._names.get(item.filter))
        if item.kind == "light":
            _add_sky(out, row, self.shape)
            _add_objects(out, row, self._stars, self._nebula, self.model)
            out *= flat
        elif item.kind == "flat":
            out += flat * np.float32(self.model.flat_level * self.model.gain / item.time)
        if item.time:
            out += self._dark
            out *= np.float32(item.time)
        return out


def _write_frames(folder, seed, taken, frames, scene, object_name, keywords):
    """Expose and write the frames of a night; return (frame, y, x, charge) of cosmic rays."""
    start, hits, shape, model = _SUNSET, [], scene.shape, scene.model
    adu = np.empty(shape, np.uint16)
    for number, (item, row) in enumerate(zip(taken, frames, strict=True)):
        rng = stream(seed, item.name)
        electrons = scene.electrons(item, row)
        if item.time:
            events = model.cosmic_rate * item.time * math.prod(shape) / 1e6
            index, charge = cosmic_rays(rng, 1, shape, events=events)
            electrons.ravel()[index] += charge
            hits.append((np.full(index.size, number), *divmod(index, shape[1]), charge))
        expose(rng, electrons, scene.bias, model, adu[None])
        path = folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        header = _header(item, row, start, rng, shape, model, object_name, keywords)
        fits.PrimaryHDU(adu, header).writeto(path)
        start += timedelta(seconds=item.time + _READ_OUT)
    return hits


def _checked_filters(filters):
    """Map the filters as spelled to their canonical names."""
    names = {name: canonical_filter(name) for name in filters}
    if not names:
        raise InputError(f"filters = {filters!r} must be a sequence of one name or more")
    if len(set(names.values())) < len(tuple(filters)):
        raise InputError(f"filters = {filters!r} name a filter twice")
    return names


def _schedule(names, n_bias, dark_exposures, n_darks, n_flats, light_exposures, model):
    """Return the frames of the night in the order in which they are taken."""

    def frames(n, stem, kind, time, name=""):
        return [_Exposure(f"{stem}_{i:04d}.fits", kind, time, name) for i in range(1, n + 1)]

    taken = frames(n_bias, "bias/bias", "bias", 0.0)
    for time in dark_exposures:
        taken += frames(n_darks, f"dark/dark_{time:g}s", "dark", time)
    for i, time in enumerate(light_exposures, start=1):  # filter after filter, then again
        for name, canonical in names.items():
            path = f"light/{canonical}/light_{canonical}_{time:g}s_{i:04d}.fits"
            taken.append(_Exposure(path, "light", time, name))
    for name, canonical in names.items():
        stem = f"flat/{canonical}/flat_{canonical}"
        taken += frames(n_flats, stem, "flat", float(model.flat_exposure), name)
    if not taken:
        raise InputError("no frames are asked for: all numbers of frames are zero")
    return taken


def _make_stars(rng, shape, filters, model, *, reach):
    """Stars in the reference frame and as far around it as frames may look."""
    ny, nx = shape
    margin = 40 + reach
    area = (nx + 2 * margin) * (ny + 2 * margin) / 1e6
    n = rng.poisson(model.star_density * area)
    x = rng.uniform(-margin, nx + margin, n)
    y = rng.uniform(-margin, ny + margin, n)
    flux = star_fluxes(
        rng, n, faintest=model.faintest, brightest=model.brightest, slope=model.slope
    )
    colour = 0.25 * rng.standard_normal(n)  # how much bluer than the mean star
    order = np.argsort(-flux, kind="stable")
    table = QTable({"id": np.arange(1, n + 1), "x": x[order] * u.pix, "y": y[order] * u.pix})
    for name in filters:
        blue = {"OIII": 1.0, "Hbeta": 1.1, "SII": -0.05}.get(name, 0.0)
        table[f"flux_{name}"] = (flux * np.exp(blue * colour))[order] * u.electron / u.s
    return table


def _give_spectra(rng, stars, frames, filters, shape, model, spectra):
    """Make the stars' fluxes in all filters, and the skies, those of spectra, in place."""
    filters = list(filters)
    slope = spectra.slope + spectra.slope_scatter * rng.standard_normal(len(stars))
    first = stars[f"flux_{filters[0]}"].value / spectra.continuum_rate(filters[0], slope)
    for name in filters:
        stars[f"flux_{name}"] = first * spectra.continuum_rate(name, slope) * u.electron / u.s
        of_filter = frames["filter"] == name
        for column in ("sky", "sky_slope_x", "sky_slope_y"):
            frames[column][of_filter] *= spectra.sky_factor(name)
    wcs = WCS(fits.Header(_wcs_cards(np.eye(3), shape, model)))
    stars["ra"], stars["dec"] = wcs.wcs_pix2world(stars["x"].value, stars["y"].value, 0) * u.deg
    stars["density"] = first * u.erg / u.s / u.cm**2 / u.nm
    stars["slope"] = slope


def _make_frames(seed, taken, names, shape, model, dither, rotation, meridian_flip):
    """What each frame is, and for lights where it looks and through what air."""
    lights = [item.name for item in taken if item.kind == "light"]
    rows = []
    for item in taken:
        row = {
            "name": item.name,
            "kind": item.kind,
            "filter": names.get(item.filter, ""),
            "exposure": item.time,
            "matrix": np.eye(3),
            "flipped": False,
        }
        numbers = dict.fromkeys(
            ("x_shift", "y_shift", "rotation", "transparency", "fwhm", "sky",
             "sky_slope_x", "sky_slope_y"),
            math.nan,
        )  # fmt: skip
        if item.kind == "light":
            fraction = lights.index(item.name) / max(len(lights) - 1, 1)
            rng = stream(seed, item.name, "sky")
            angle, distance = rng.uniform(0, 2 * np.pi), dither * math.sqrt(rng.random())
            air, seeing, glow = rng.standard_normal(3)
            slope = rng.uniform(-1, 1, 2) * model.sky_gradient
            shift = np.array([distance * math.cos(angle), distance * math.sin(angle)])
            numbers["x_shift"], numbers["y_shift"] = shift.tolist()
            numbers["rotation"] = rotation * fraction
            numbers["transparency"] = math.exp(-model.transparency_scatter * abs(air))
            numbers["fwhm"] = model.fwhm * math.exp(model.fwhm_scatter * seeing)
            numbers["sky"] = model.sky * math.exp(model.sky_scatter * glow)
            numbers["sky_slope_x"], numbers["sky_slope_y"] = numbers["sky"] * slope
            row["flipped"] = meridian_flip and fraction >= 0.5
            turn = {"rotation": numbers["rotation"], "flipped": row["flipped"]}
            row["matrix"] = pointing(shape, shift=shift, **turn)
        rows.append(row | numbers)
    units = {
        "exposure": "s", "x_shift": "pix", "y_shift": "pix", "rotation": "deg", "fwhm": "pix",
        "sky": "electron/s", "sky_slope_x": "electron/s", "sky_slope_y": "electron/s",
    }  # fmt: skip
    return QTable(rows=rows, units=units)


def _add_sky(rate, row, shape):
    ramp = [(np.arange(n) / (n - 1) - 0.5).astype(np.float32) for n in shape]
    rate += np.float32(row["sky"].value) + np.float32(row["sky_slope_x"].value) * ramp[1][None, :]
    rate += np.float32(row["sky_slope_y"].value) * ramp[0][:, None]


def _add_objects(rate, row, stars, nebula, model):
    """Add nebula and stars [electron/s], dimmed by the air, where the frame sees them."""
    name, transparency = row["filter"], float(row["transparency"])
    if model.nebula:
        rate += np.float32(transparency) * nebula.rate(name, row["matrix"])
    inverse = np.linalg.inv(row["matrix"])
    x, y = inverse[:2, :2] @ [stars["x"].value, stars["y"].value] + inverse[:2, 2:]
    add_stars(
        rate, x, y, transparency * stars[f"flux_{name}"].value,
        fwhm=row["fwhm"].value, beta=model.moffat_beta, exposure=row["exposure"].value,
    )  # fmt: skip


def _header(item, row, start, rng, shape, model, object_name, keywords):
    """Return the header that a camera program writes."""
    cards = [
        ("IMAGETYP", _IMAGETYP[item.kind], "type of exposure"),
        ("EXPOSURE", item.time, "[s] exposure time"),
        ("EXPTIME", item.time, "[s] exposure time"),
        ("DATE-OBS", start.isoformat(timespec="milliseconds"), "UTC at start of exposure"),
        ("XBINNING", 1, "binning along X"),
        ("YBINNING", 1, "binning along Y"),
    ]
    if keywords["gain"]:
        cards += [
            ("GAIN", 100, "sensor gain (setting of the camera)"),
            ("OFFSET", 50, "sensor offset (setting of the camera)"),
            ("EGAIN", model.gain, "[electron/adu] electrons per A/D unit"),
        ]
    if keywords["read_noise"]:
        cards.append(("RDNOISE", model.read_noise, "[electron] read noise"))
    cards += [
        ("XPIXSZ", 3.76, "[um] pixel size"),
        ("YPIXSZ", 3.76, "[um] pixel size"),
        ("INSTRUME", "Simulated CMOS 3.76", "imaging instrument"),
        ("SET-TEMP", model.temperature, "[degC] set point of the cooler"),
        ("CCD-TEMP", round(model.temperature + rng.uniform(-0.1, 0.1), 2), "[degC] sensor"),
        ("READOUTM", "Default", "readout mode"),
        ("SWCREATE", "astro_narrowband simulate", "who wrote this file"),
        ("TELESCOP", "Simulated 0.2 m", "telescope"),
        ("FOCALLEN", round(206.265 * 3.76 / model.pixel_scale, 1), "[mm] focal length"),
    ]
    if item.filter:
        cards += [("FWHEEL", "Manual", "filter wheel"), ("FILTER", item.filter, "active filter")]
    if item.kind == "light":
        cards += [
            ("OBJECT", object_name, "name of the object"),
            ("OBJCTRA", "20 12 12", "[h m s] right ascension of the object"),
            ("OBJCTDEC", "+38 21 00", "[d m s] declination of the object"),
            ("PIERSIDE", "West" if row["flipped"] else "East", "side of the pier"),
        ]
        if keywords["wcs"]:
            cards += _wcs_cards(row["matrix"], shape, model)
    return fits.Header(cards)


def _wcs_cards(matrix, shape, model):
    """WCS of a frame: the reference frame's is tangential, north up, east to the left."""
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2, 1.0])
    x, y, _ = np.linalg.inv(matrix) @ centre
    scale = model.pixel_scale / 3600
    cd = np.diag([-scale, scale]) @ matrix[:2, :2]
    return [
        ("CTYPE1", "RA---TAN"),
        ("CTYPE2", "DEC--TAN"),
        ("CUNIT1", "deg"),
        ("CUNIT2", "deg"),
        ("CRVAL1", _TARGET[0]),
        ("CRVAL2", _TARGET[1]),
        ("CRPIX1", x + 1),
        ("CRPIX2", y + 1),
        *((f"CD{i + 1}_{j + 1}", cd[i, j]) for i in (0, 1) for j in (0, 1)),
        ("RADESYS", "ICRS"),
    ]
