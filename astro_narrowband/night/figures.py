"""
Pictures of coadds, masters and curves, as PNG bytes for the report.

Images are written with a palette of 256 colours, one pixel of the picture for
one block of pixels of the image, which is quick and keeps a page small. What
is written over them (scale, orientation, colour bar) are numbers for the page
to draw. Line plots are matplotlib's, through its object interface: no state
of pyplot, no display, and no text is taken for mathematics.
"""

import io
import math
from typing import NamedTuple

import numpy as np

from astro_narrowband.filters import FILTERS

__all__ = [
    "Sky",
    "Stretch",
    "composite_png",
    "downsample",
    "growth_png",
    "night_png",
    "palette",
    "palette_png",
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
    noise = 1.4826 * float(np.median(np.abs(steps[:: max(1, steps.size // 200_000)]))) / 2**0.5
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
    def of(cls, image, *, floor=2.5, percentile=99.7):
        """Choose an asinh stretch: just below the sky to the brightest ``percentile``."""
        sky = sky_of(image)
        noise = sky.noise or abs(sky.level) * 1e-3 or 1e-12
        good = image[np.isfinite(image)]
        white = float(np.percentile(good, percentile)) if good.size else sky.level
        return cls(sky.level - floor * noise, max(white, sky.level + 10 * noise), 5 * noise)

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
    none = [[int(PLATE[i : i + 2], 16) for i in (1, 3, 5)]]
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
    return _png(picture)


def composite_png(images):
    """
    Return a colour picture of two or three filters on one grid, and how it was made.

    Red, green and blue go from the longest wavelength to the shortest (SII,
    Halpha, OIII: the Hubble palette); with two filters, green and blue share
    one where that is OIII or Hbeta. The sky of each is black, its bright nebulae
    are scaled to the same level, and each channel has its own asinh stretch, so
    that bright stars end up white.

    Parameters
    ----------
    images : dict
        Canonical filter name to `~numpy.ndarray`, (ny, nx), all of one shape.

    Returns
    -------
    png : bytes
    channels : tuple of str
        The filters that are red, green and blue.
    """
    from PIL import Image

    names = _channels(images)
    scaled = {}
    for name in set(names):
        image = images[name]
        sky = sky_of(image)
        # Nebulae, and not the stars, are what the channels are balanced by.
        top = max(float(np.nanpercentile(image, 96)) - sky.level, 8 * sky.noise) or 1.0
        soft = max(2 * sky.noise / top, 0.15)
        x = np.clip((image - sky.level + 0.5 * sky.noise) / top, 0, None)
        scaled[name] = np.arcsinh(x / soft) / math.asinh(_WHITE / soft)
    rgb = np.stack([scaled[name] for name in names], axis=-1)
    bad = ~np.isfinite(rgb).all(axis=-1)
    rgb = np.clip(rgb, 0, 1)
    rgb[bad] = [int(PLATE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    picture = Image.fromarray(np.rint(255 * rgb[::-1]).astype(np.uint8))
    return _png(picture), names


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


def _png(picture):
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=_LEVEL)
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
    types = [str(header.get(f"CTYPE{i}", ""))[:4] for i in (1, 2)]
    if sorted(types) != ["DEC-", "RA--"]:
        return None
    steps = [header.get(f"CDELT{i}", 1.0) for i in (1, 2)]
    turn = header.get("CROTA2", 0.0)
    numbers = [*steps, turn, *(header.get(f"{p}{i}_{j}", 0.0) for p, i, j in _CARDS)]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return None
    if "CD1_1" in header:
        matrix = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
    elif "CDELT1" in header and "PC1_1" not in header:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        matrix = np.array([[c, -s], [s, c]]) @ np.diag(steps)
    else:
        pc = [[header.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)]
        matrix = np.diag(steps) @ np.array(pc)
    if types[0] == "DEC-":
        matrix = matrix[::-1]
    return matrix if 0 < abs(np.linalg.det(matrix)) < 100 else None


_CARDS = [(p, i, j) for p in ("CD", "PC") for i in (1, 2) for j in (1, 2)]


def _round_below(value):
    power = 10.0 ** math.floor(math.log10(value))
    return max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-12)) * power


# --------------------------------------------------------------------------- line plots


def load():
    """Load what draws, and its fonts, by drawing nothing."""
    _finish(_figure(1, 1.0)[0])


def _figure(n, height):
    """A figure with ``n`` axes side by side, in the colours of a plate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, height), dpi=120, facecolor=PLATE)
    FigureCanvasAgg(figure)
    # Set by hand: the layout engines draw everything twice.
    figure.subplots_adjust(
        left=0.065, right=0.985, top=1 - 0.3 / height, bottom=0.5 / height, wspace=0.2
    )
    axes = figure.subplots(1, n, squeeze=False)[0]
    for ax in axes:
        ax.set_facecolor(PLATE)
        ax.tick_params(colors=INK, labelsize=8, length=3)
        ax.locator_params(nbins=5)
        ax.grid(color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
    return figure, axes


def _label(ax, x, y, title=None):
    ax.set_xlabel(x, color=INK, fontsize=8.5, parse_math=False)
    ax.set_ylabel(y, color=INK, fontsize=8.5, parse_math=False)
    if title:
        # With a height of its own: to find one, all ticks are laid out once more.
        ax.set_title(title, y=1.0, color=INK, fontsize=9, loc="left", parse_math=False)


def _colour(name):
    return "#" + "".join(f"{c:02x}" for c in TINTS.get(name, (110, 168, 254)))


def _finish(figure):
    out = io.BytesIO()
    figure.canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"compress_level": _LEVEL})
    return out.getvalue()


def growth_png(curves, *, filter_name="", annulus=None):
    """
    Plot growth curves with their error bands.

    Parameters
    ----------
    curves : sequence of dict
        ``title``, ``radius``, ``flux``, ``flux_err`` and, where it is known,
        ``raw``: the same before the sky was subtracted; up to four.
    filter_name : str, optional
        Gives the colour.
    annulus : tuple of float, optional
        Inner and outer radius of the sky annulus [pix], shaded.

    Returns
    -------
    bytes
        PNG.
    """
    figure, axes = _figure(max(1, len(curves)), 2.9)
    colour = _colour(filter_name)
    for ax, curve in zip(axes, curves, strict=False):
        radius, flux, error = (np.asarray(curve[k], float) for k in ("radius", "flux", "flux_err"))
        ax.fill_between(radius, flux - error, flux + error, color=colour, alpha=0.3, linewidth=0)
        ax.plot(radius, flux, color=colour, linewidth=1.8, marker=".", markersize=4, label="net")
        top = np.nanmax(flux + np.nan_to_num(error), initial=0.0)
        low = min(0.0, float(np.nanmin(flux - np.nan_to_num(error), initial=0.0)))
        if curve.get("raw") is not None:
            raw = np.asarray(curve["raw"], float)
            ax.plot(radius, raw, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="with sky")
            top = max(top, min(float(np.nanmax(raw, initial=0.0)), 1.6 * top))
        right = float(radius.max())
        if annulus is not None:
            ax.axvspan(*annulus, color=INK, alpha=0.1, linewidth=0, label="sky annulus")
            right = max(right, min(float(annulus[1]), 1.6 * right))
        ax.set_xlim(0, right * 1.02)
        if top > low:
            ax.set_ylim(low * 1.05, top * 1.08)
        _label(ax, "radius [pix]", "flux [electron/s]" if ax is axes[0] else "", curve["title"])
    if curves:
        axes[0].legend(
            fontsize=8, loc="lower right", labelcolor=INK, facecolor=PLATE, edgecolor=GRID
        )
    return _finish(figure)


def night_png(frames, *, filter_name=""):
    """
    Plot sky, seeing, weight and shift of the frames of a filter, in the order they were taken.

    Parameters
    ----------
    frames : sequence of dict
        With ``verdict``, ``sky``, ``fwhm``, ``weight``, ``dx`` and ``dy``,
        None where not known.
    filter_name : str, optional
        Gives the colour.

    Returns
    -------
    bytes
        PNG. Frames that were left out are hollow.
    """
    figure, axes = _figure(4, 2.3)
    colour = _colour(filter_name)
    used = np.array([frame.get("verdict") == "used" for frame in frames])
    number = np.arange(1, len(frames) + 1)

    def column(name):
        values = [frame.get(name) for frame in frames]
        return np.array([math.nan if v is None else float(v) for v in values])

    def points(ax, x, y):
        ax.scatter(x[used], y[used], s=22, color=colour, linewidth=0)
        ax.scatter(x[~used], y[~used], s=22, facecolor="none", edgecolor=INK, linewidth=0.9)

    panels = [("sky", "sky [electron/s]"), ("fwhm", "seeing [pix]"), ("weight", "weight [%]")]
    for ax, (name, label) in zip(axes, panels, strict=False):
        values = column(name) * (100 if name == "weight" else 1)
        points(ax, number, values)
        if name == "weight":
            ax.set_ylim(0, 1.08 * np.nanmax(values, initial=0) or None)
        ax.set_xlim(0.3, len(frames) + 0.7)
        ax.locator_params(axis="x", integer=True)
        _label(ax, "frame", "", label)
    points(axes[3], column("dx"), column("dy"))
    axes[3].axhline(0, color=GRID, linewidth=1, zorder=0)
    axes[3].axvline(0, color=GRID, linewidth=1, zorder=0)
    axes[3].margins(0.15)
    axes[3].set_aspect("equal", adjustable="datalim")
    _label(axes[3], "dx [pix]", "", "shift dy [pix]")
    return _finish(figure)
