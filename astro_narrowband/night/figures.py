"""
Pictures of coadds and masters, as PNG bytes.

Images are written with a palette of 256 colours, one pixel of the picture for
one block of pixels of the image, which is quick and keeps a page small. What
is written over them (scale, orientation, colour bar) are numbers for the page
to draw.
"""

import io
import math
import zlib
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.wcs import read_wcs
from astro_narrowband.exceptions import listening
from astro_narrowband.filters import FILTERS

__all__ = [
    "Channel",
    "Sky",
    "Stretch",
    "composite",
    "downsample",
    "full_png",
    "palette",
    "palette_png",
    "recipes",
    "scale_bar",
    "sky_of",
]

#: Colours of a plate, the same on light and dark pages: background, text, grid.
PLATE, INK, GRID = "#10141b", "#c6cfdb", "#2a323e"
#: Colour of each line, near enough to how it is mapped by those who make pictures of it.
TINTS = {
    "Halpha": (226, 62, 58),
    "OIII": (38, 178, 186),
    "SII": (228, 148, 48),
    "NII": (220, 80, 120),
    "Hbeta": (78, 128, 236),
}
_GREY = (150, 158, 170)
#: About the colour of each line to the eye, bright enough to be seen.
_NATURAL = {
    "SII": (0.75, 0.03, 0.02),
    "NII": (0.9, 0.06, 0.05),
    "Halpha": (1.0, 0.13, 0.17),
    "OIII": (0.04, 0.9, 0.78),
    "Hbeta": (0.15, 0.5, 1.0),
}
#: Brightness that is white in a composite; the brightest nebulae are 1.
_WHITE = 6.0
#: Effort of zlib: pictures with noise get hardly smaller for more of it, and take twice as long.
_LEVEL = 1
_WAVELENGTH = {f.name: f.wavelength for f in FILTERS}

# --------------------------------------------------------------------------- images


def downsample(data, mask=None, *, size=800):
    """
    Average blocks of pixels, so that no side is longer than ``size``.

    Parameters
    ----------
    data : array-like, (ny, nx)
        Also a memory map, of any byte order; read once, by rows.
    mask : array-like of bool, (ny, nx), optional
    size : int, optional

    Returns
    -------
    image : `~numpy.ndarray` of float32
        NaN where a block has no good pixel. The last rows and columns are left
        out where the blocks do not fit.
    factor : int
        Pixels along the side of a block.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.night.figures import downsample
    >>> downsample(np.arange(16.0).reshape(4, 4), size=2)
    (array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32), 2)
    """
    ny, nx = data.shape
    k = max(1, math.ceil(max(ny, nx) / size))
    ny, nx = max(1, ny // k), max(1, nx // k)
    out = np.empty((ny, nx), np.float32)
    step = max(1, (1 << 20) // (nx * k * k))
    for y in range(0, ny, step):
        rows = slice(y * k, min(y + step, ny) * k)
        block = np.asarray(data[rows, : nx * k], np.float32)
        good = np.isfinite(block)
        if mask is not None:
            good &= ~np.asarray(mask[rows, : nx * k], bool)
        if good.all():
            total, n = _blocks(block, k), np.float32(k * k)
        else:
            total = _blocks(np.where(good, block, np.float32(0)), k)
            n = _blocks(good.astype(np.float32), k)
        with np.errstate(invalid="ignore"):
            out[y : y + step] = total / n
    return out, k


def _blocks(values, k):
    rows, columns = values.shape
    k_rows, k_columns = min(k, rows), min(k, columns)
    values = values.reshape(-1, k_rows, columns).sum(axis=1)
    return values.reshape(values.shape[0], -1, k_columns).sum(axis=2)


class Sky(NamedTuple):
    """Level of the dark part of an image, and the noise of its pixels."""

    level: float
    noise: float


def sky_of(image):
    """
    Return the `Sky` of a picture; NaN are left out.

    The noise is that of differences of neighbours, and the level is such that a
    tenth of the pixels lie more than 1.28 times the noise below it: the sky
    between nebulae, also where they fill most of the image. It is meant for
    pictures, not for photometry.
    """
    steps = np.diff(image, axis=1)
    steps = steps[np.isfinite(steps)]
    values = image[np.isfinite(image)]
    if not steps.size:
        return Sky(float(values.mean()) if values.size else 0.0, 0.0)
    noise = mad_std(steps[:: max(1, steps.size // 200_000)], 0.0) / 2**0.5
    values = values[:: max(1, values.size // 200_000)]
    return Sky(float(np.percentile(values, 10)) + 1.2816 * noise, noise)


class Stretch(NamedTuple):
    """
    How pixel values become brightness: asinh((x - black) / soft), or linear.

    Attributes
    ----------
    black, white : float
        Values that become black and white.
    soft : float or None
        Where the scale turns from linear to logarithmic; None is all linear.
    """

    black: float
    white: float
    soft: float | None = None

    @classmethod
    def of(cls, image, *, percentile=99.8):
        """Choose an asinh stretch: black is the sky, white the brightest ``percentile``."""
        sky = sky_of(image)
        noise = sky.noise or abs(sky.level) * 1e-3 or 1e-12
        good = image[np.isfinite(image)]
        nebula, white = np.percentile(good, [90, percentile]) if good.size else (sky.level,) * 2
        # Linear as far as noise goes, so that it stays dark; a bright nebula is not washed out.
        soft = max(8 * noise, 0.5 * (float(nebula) - sky.level))
        return cls(sky.level - 0.3 * noise, max(float(white), sky.level + 20 * noise), soft)

    @classmethod
    def linear(cls, image, *, percentile=1.0):
        """Choose a linear stretch between two percentiles."""
        good = image[np.isfinite(image)]
        if not good.size:
            return cls(0.0, 1.0)
        black, white = np.percentile(good, [percentile, 100 - percentile])
        if white <= black:
            pad = abs(black) * 1e-3 or 1.0
            black, white = black - pad, white + pad
        return cls(float(black), float(white))

    def __call__(self, values):
        """Return brightness from 0 to 1; NaN stay."""
        x = np.clip(values, self.black, self.white) - self.black
        if self.soft is None:
            return x / (self.white - self.black)
        return np.arcsinh(x / self.soft) / math.asinh((self.white - self.black) / self.soft)

    def ticks(self, n=6):
        """Return ``(brightness, value)`` of about ``n`` round values for a colour bar."""
        out = []
        for level in np.linspace(0.04, 0.96, n):
            if self.soft is None:
                value = self.black + level * (self.white - self.black)
            else:
                top = math.asinh((self.white - self.black) / self.soft)
                value = self.black + self.soft * math.sinh(level * top)
            step = (self.white - self.black) / n if self.soft is None else value - self.black
            digits = 1 - math.floor(math.log10(abs(step)))
            value = round(value, digits)
            if self.black <= value <= self.white and value not in [v for _, v in out]:
                out.append((float(self(np.float64(value))), value))
        return out


def palette(tint=None):
    """
    Return 256 colours from black through a tint to white; the first one is for no value.

    Parameters
    ----------
    tint : str, optional
        Canonical name of a filter; grey for any other.

    Returns
    -------
    `~numpy.ndarray` of uint8, (256, 3)
    """
    tint = np.array(TINTS.get(tint, _GREY), float)
    stops = np.array([[4, 5, 8], 0.5 * tint, tint, 0.45 * tint + 0.55 * 255, [255, 255, 255]])
    x = np.linspace(0, 1, 255)
    at = [0, 0.36, 0.62, 0.84, 1]
    colours = np.stack([np.interp(x, at, stops[:, c]) for c in range(3)], axis=1)
    none = list(bytes.fromhex(PLATE[1:]))
    return np.vstack([none, np.rint(colours)]).astype(np.uint8)


def palette_png(brightness, colours):
    """
    Return an image as PNG with a palette, its first row at the bottom.

    Parameters
    ----------
    brightness : `~numpy.ndarray`, (ny, nx)
        0 to 1; NaN becomes the first colour.
    colours : `~numpy.ndarray` of uint8, (256, 3)

    Returns
    -------
    bytes
    """
    from PIL import Image

    index = np.nan_to_num(1 + np.rint(brightness * 254), nan=0).astype(np.uint8)
    picture = Image.fromarray(index[::-1])
    picture.putpalette(colours.tobytes())
    return _file(picture)


def recipes(names):
    """
    Return the colour pictures that some filters allow, the best first.

    Parameters
    ----------
    names : iterable of str
        Canonical names of filters.

    Returns
    -------
    dict
        Name of the picture to ``{filter: (red, green, blue)}``. ``SHO`` (the Hubble palette:
        SII, Halpha, OIII are red, green, blue), ``HOO`` (Halpha is red, OIII green and blue),
        ``natural`` (each line in about its own colour); of other filters one by the order of
        their wavelengths. Empty for fewer than two filters.

    Examples
    --------
    >>> from astro_narrowband.night.figures import recipes
    >>> list(recipes(["Halpha", "OIII", "SII"])), recipes(["Halpha"])
    (['SHO', 'HOO', 'natural'], {})
    """
    names, out = set(names), {}
    if len(names) < 2:
        return out
    red, green, blue = np.eye(3).tolist()
    if {"SII", "Halpha", "OIII"} <= names:
        out["SHO"] = {"SII": red, "Halpha": green, "OIII": blue}
    if {"Halpha", "OIII"} <= names:
        out["HOO"] = {"Halpha": red, "OIII": [0.0, 1.0, 1.0]}
        out["natural"] = {name: _NATURAL[name] for name in _NATURAL if name in names}
    if not out:
        channels = _channels(names)
        label = "-".join(dict.fromkeys(channels))
        weights = {name: [float(name == channel) for channel in channels] for name in channels}
        out[label] = weights
    return out


def _channels(names):
    """The filters for red, green and blue."""
    preferred = ("SII", "Halpha", "OIII", "NII", "Hbeta")
    known = [name for name in preferred if name in names]
    known += sorted(name for name in names if name not in preferred)
    chosen = sorted(known[:3], key=lambda name: -_WAVELENGTH.get(name, 0.0))
    if len(chosen) == 3:
        return tuple(chosen)
    red, blue = chosen
    return (red, blue, blue) if blue in ("OIII", "Hbeta") else (red, red, blue)


class Channel(NamedTuple):
    """How a filter becomes brightness in a composite: its sky is 0, its bright nebulae about 1."""

    black: float
    top: float
    soft: float

    @classmethod
    def of(cls, image):
        """Choose by an image, best one of averaged blocks: nebulae, and not stars, count."""
        sky = sky_of(image)
        good = image[np.isfinite(image)]
        bright = float(np.percentile(good, 96)) if good.size else sky.level
        top = max(bright - sky.level, 8 * sky.noise) or 1.0
        return cls(sky.level + 0.5 * sky.noise, top, max(3 * sky.noise / top, 0.15))

    def __call__(self, image):
        """Return brightness from 0 to 1; NaN stay."""
        x = np.clip((image - self.black) / self.top, 0, None)
        return np.clip(np.arcsinh(x / self.soft) / math.asinh(_WHITE / self.soft), 0, 1)


def composite(images, recipe, *, channels=None, form="PNG"):
    """
    Return a colour picture of filters on one grid, its first row at the bottom.

    Parameters
    ----------
    images : dict
        Canonical filter name to `~numpy.ndarray`, (ny, nx), all of one shape.
    recipe : dict
        Of `recipes`: what each filter adds to red, green and blue.
    channels : dict, optional
        `Channel` of each filter; default is that of its image.
    form : {"PNG", "JPEG"}, optional
        A JPEG takes a tenth of the time and half of the space.

    Returns
    -------
    bytes
    """
    from PIL import Image

    channels = channels or {name: Channel.of(_sampled(images[name])) for name in recipe}
    ny, nx = images[next(iter(recipe))].shape
    picture = np.empty((ny, nx, 3), np.uint8)
    upward = picture[::-1]
    for rows in _bands(ny, nx):
        scaled = {n: channels[n](np.asarray(images[n][rows], np.float32)) for n in recipe}
        bad = ~np.isfinite(sum(scaled.values()))
        for k, empty in enumerate(bytes.fromhex(PLATE[1:])):
            colour = sum(scaled[n] * np.float32(w[k]) for n, w in recipe.items() if w[k])
            colour = np.rint(255 * np.minimum(colour, 1))
            upward[rows, :, k] = np.where(bad, np.float32(empty), colour)
    picture, upward = Image.fromarray(picture), None  # a copy
    return _file(picture, form)


def full_png(image, filter_name):
    """Return an image at full size as PNG in the colours of its filter; NaN have their own."""
    from PIL import Image

    stretch = Stretch.of(_sampled(image))
    index = np.empty(image.shape, np.uint8)
    upward = index[::-1]
    for rows in _bands(*image.shape):
        brightness = stretch(np.asarray(image[rows], np.float32))
        upward[rows] = np.nan_to_num(1 + np.rint(brightness * 254), nan=0)
    picture = Image.fromarray(index)
    picture.putpalette(palette(filter_name).tobytes())
    return _file(picture)


def _sampled(image):
    """Whole rows, as many as a stretch needs."""
    return np.asarray(image[:: max(1, image.size // (1 << 21))], np.float32)


def _bands(ny, nx):
    """Rows of about a million pixels at a time."""
    step = max(1, (1 << 20) // nx)
    return [slice(y, min(y + step, ny)) for y in range(0, ny, step)]


def _file(picture, form="PNG"):
    how = {"PNG": {"compress_level": _LEVEL, "compress_type": zlib.Z_RLE}}
    how["JPEG"] = {"quality": 95, "subsampling": 0}
    out = io.BytesIO()
    picture.save(out, format=form, **how[form])
    return out.getvalue()


class ScaleBar(NamedTuple):
    """A bar of a round length: its length in pixels, what to write, and north and east."""

    length: float
    label: str
    north: tuple[float, float] | None
    east: tuple[float, float] | None


def scale_bar(header, width):
    """
    Return the scale and the orientation that a header gives, for an image ``width`` pixels wide.

    Parameters
    ----------
    header : mapping
        With a celestial CDi_j, or CDELTi with PCi_j or CROTA2; pixels are the
        scale where there is none. Distortions are not looked at.
    width : int

    Returns
    -------
    `ScaleBar`
        Directions are (x, y) on the image, of length one.
    """
    matrix = _celestial(header)
    if matrix is None:
        length = _round_below(width / 5)
        return ScaleBar(length, f"{length:g} pix", None, None)
    scale = 3600 * math.sqrt(abs(np.linalg.det(matrix)))
    for unit, seconds in (("°", 3600.0), ("′", 60.0), ("″", 1.0)):
        length = _round_below(width * scale / 5 / seconds)
        if length >= 1 or unit == "″":
            break
    to_pixels = np.linalg.inv(matrix)
    north = to_pixels @ [0, 1]
    east = to_pixels @ [1, 0]
    return ScaleBar(
        length * seconds / scale,
        f"{length:g}{unit}",
        tuple(north / np.hypot(*north)),
        tuple(east / np.hypot(*east)),
    )


def _celestial(header):
    """The matrix [deg] from (x, y) to (east, north), or None."""
    with listening(lambda *_: None):  # what is wrong with it was said when the image was made
        wcs = read_wcs(header)
    if wcs is None or {str(kind)[:4] for kind in wcs.wcs.ctype} != {"RA--", "DEC-"}:
        return None
    matrix = wcs.pixel_scale_matrix[[wcs.wcs.lng, wcs.wcs.lat]]
    return matrix if abs(np.linalg.det(matrix)) < 1 else None  # 1 stands for none


def _round_below(value):
    power = 10.0 ** math.floor(math.log10(value))
    return max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-12)) * power
