"""
What one frame is worth: its sky, noise, seeing and transparency, measured once.

Each frame is measured on its own, before it is interpolated and on a sample of
its rows, so that the cost is small and the memory is that of one frame's rows.
From these numbers follow the scale, sky and weight of every frame of a
coadd, and which frames are left out.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from astro_narrowband._engine.door import door
from astro_narrowband._engine.frames import HeldFrame, as_frame
from astro_narrowband._engine.statistics import MAD_TO_STD
from astro_narrowband._engine.validate import bare

#: Cells in which the sky is measured: at most this many along an axis, of at least 16 pixels.
MAX_CELLS, MIN_CELL = 64, 16
#: Pixels that are looked at in each cell, in whole rows.
CELL_PIXELS = 256
#: Rows of cells in which the noise is measured, at least where there are so many.
NOISE_CELLS = 16
#: Stars of a frame that serve for its flux scale, at most, and their least signal to noise.
MAX_STARS, MIN_SNR = 200, 5.0
#: Radius of their apertures, inner and outer radius of the sky around them [FWHM].
APERTURE, SKY_RADII = 2.5, (4.0, 6.0)
#: Which stars serve: no more than this part of a star's light in others within a circle [FWHM],
#: where there are so many of them; else the next rule, or the last. Neighbours in apertures that
#: grow with the seeing look like transparency. Where few are lonely, what neighbours add to the
#: sky around they add in every frame.
ISOLATION = ((4.0, 0.02, 20), (SKY_RADII[1], 0.2, 6), (APERTURE, 0.2, 6), (1.5, 0.2, 0))
#: A narrow aperture, that loses little light, for stars with many neighbours [FWHM].
NARROW = 1.5
#: Signal to noise of stars with wings that look like nebula.
WITH_WINGS = 50.0


@dataclass(frozen=True, eq=False)
class FrameStatistics:
    """
    What was measured on one frame, in its own pixels and its own unit.

    Attributes
    ----------
    name : str
    sky : float
        Median level.
    variance : float
        Variance of a pixel of blank sky: this frame's own noise.
    scatter : float
        Standard deviation of the variance plane in blank sky.
    fwhm : float
        Seeing [pix]; NaN where no star was measured.
    stars : `~numpy.ndarray`, (n, 4)
        x, y [pix], flux, error of the stars that may serve for the flux scale: the
        brightest 200 of 5 sigma, isolated and not saturated, in circles of 2.5 FWHM.
    detected : `~numpy.ndarray`, (n, 2)
        x, y of all stars.
    bright : `~numpy.ndarray`, (n, 2)
        Those with wings, also where they are too near the edge to be measured.
    spoiled : `~numpy.ndarray`, (n, 2)
        x, y of masked pixels that lie on bright stars: saturated, or by chance.
    cells : `~numpy.ndarray` of float32, (ny, nx)
        Median level in cells; NaN where there were no good pixels.
    centres : tuple of two `~numpy.ndarray`
        x and y of the centres of the cells [pix].
    cell_pixels : int
        Pixels that were looked at in each cell.
    """

    name: str
    sky: float
    variance: float
    scatter: float
    fwhm: float = math.nan
    stars: np.ndarray = field(default_factory=lambda: np.empty((0, 4)), repr=False)
    detected: np.ndarray = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    bright: np.ndarray = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    spoiled: np.ndarray = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    cells: np.ndarray = field(default=None, repr=False)
    centres: tuple = field(default=(), repr=False)
    cell_pixels: int = CELL_PIXELS

    @property
    def cell_noise(self):
        """Standard error of the level of a cell: that of a median."""
        return math.sqrt(0.5 * math.pi * self.variance / self.cell_pixels)


def _edges(n):
    n_cells = max(1, min(MAX_CELLS, n // MIN_CELL))
    return np.linspace(0, n, n_cells + 1).astype(int)


def cell_centres(shape):
    """Return x and y of the centres of the cells of an image of this shape [pix]."""
    return tuple((edges[:-1] + edges[1:] - 1) / 2 for edges in (_edges(shape[1]), _edges(shape[0])))


@door
def measure_frame(frame, *, stars=None, held=None):
    """
    Measure the sky, the noise and the stars of one frame.

    Parameters
    ----------
    frame : `~astro_narrowband.Frame`, `~astropy.nddata.CCDData` or path-like
        As calibrated, before resampling.
    stars : `~astropy.table.Table`, optional
        Its stars, from `~astro_narrowband.detect_stars`. Without them
        the flux scale and the seeing of the frame are not known.
    held : `~astro_narrowband._engine.frames.HeldFrame`, optional
        Its pixels, where they are in memory; they need no variance.

    Returns
    -------
    `FrameStatistics`

    Notes
    -----
    The background variance is the median, over cells of the frame, of the mean
    of the predicted variance plane over the pixels within 3 sigma of the
    cell's median; a frame without variance plane has the clipped scatter of
    its pixels instead. In a large frame some rows of every row of cells are used,
    with 256 pixels of a cell.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband.coaddition import measure_frame
    >>> rng = np.random.default_rng(3)
    >>> image = CCDData(rng.normal(5.0, 2.0, (64, 64)), unit="electron / s",
    ...                 uncertainty=VarianceUncertainty(np.full((64, 64), 4.0)))
    >>> found = measure_frame(image)
    >>> round(found.sky), found.variance
    (5, 4.0)
    """
    frame = as_frame(frame)
    if held is None:
        frame = held = frame if isinstance(frame, HeldFrame) else HeldFrame(frame)
    ny, nx = frame.shape
    y_edges, x_edges = _edges(ny), _edges(nx)
    cells = _Cells(x_edges)
    n_rows = math.ceil(CELL_PIXELS * (len(x_edges) - 1) / nx)
    level, noise = [], []
    # Fewer rows of cells are enough for the noise: in a frame that is held without its
    # variance, this is made for them.
    every = max(1, (len(y_edges) - 1) // NOISE_CELLS)
    for k, (bottom, top) in enumerate(pairwise(y_edges)):
        rows = slice(int(bottom), int(top))
        if top - bottom > 2 * n_rows:
            middle = (int(bottom) + int(top) - n_rows) // 2
            rows = slice(middle, middle + n_rows)
        band = held.read(rows)
        data = band.data
        if band.mask is not None:
            data = np.where(band.mask, np.float32(np.nan), data)
        data = cells.pixels(data)
        level.append(_level(data))
        if k % every == 0:
            variance = frame.read(rows).variance
            variance = None if variance is None else cells.pixels(variance)
            noise.append(_noise(data, level[-1], variance))
    level = np.array(level)
    known = np.isfinite(level)
    middle = np.nan if not known.any() else float(np.median(level[known]))
    variance, scatter = (
        values[np.isfinite(values)] for values in np.concatenate(noise, axis=1, dtype=float)
    )
    usual = float(np.median(variance)) if variance.size else math.nan
    table, fwhm = _measure_stars(held, stars, frame.exposure)
    spoiled = _spoiled(held.data, held.mask, math.sqrt(usual) if usual > 0 else math.nan)
    return FrameStatistics(
        name=frame.name,
        sky=middle,
        variance=usual,
        scatter=float(np.median(scatter)) if scatter.size else math.nan,
        fwhm=fwhm,
        stars=_whole(table, spoiled, APERTURE * fwhm),
        detected=_positions(stars),
        bright=_positions(stars, least=WITH_WINGS),
        spoiled=spoiled,
        cells=level.astype(np.float32),
        centres=cell_centres(frame.shape),
        cell_pixels=data.shape[1],
    )


class _Cells:
    """Cuts rows of pixels into cells."""

    def __init__(self, edges):
        width = np.diff(edges)
        columns = edges[:-1, None] + np.arange(width.max())
        self.outside = columns >= edges[1:, None]
        self.columns = np.minimum(columns, edges[-1] - 1)

    def pixels(self, plane):
        """Pixels of a row of cells as (n_cells, n_pixels), NaN where a cell has less of them."""
        out = plane.take(self.columns, axis=1)
        out[:, self.outside] = np.nan
        return out.transpose(1, 0, 2).reshape(len(self.columns), -1)


def _median_of_rows(values):
    """Median of the values of each row that are not NaN, without numpy's slow nanmedian."""
    n = np.isfinite(values).sum(axis=1)
    return _median_of(values, n), n


def _median_of(values, n):
    """Median of each row, of which ``n`` values are not NaN."""
    ordered = np.sort(values, axis=1)  # NaN go last
    each = np.arange(len(values))
    low, high = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, np.maximum(n - 1, 0))
    return 0.5 * (ordered[each, low] + ordered[each, high].astype(float))


def _level(data):
    """Median of each cell, NaN where few of its pixels are good."""
    level, n = _median_of_rows(data)
    level[n < 0.2 * data.shape[1]] = np.nan
    return level


def _noise(data, level, variance):
    """Own variance of each cell, and the scatter of that variance; NaN where there is no level."""
    away = data - level[:, None].astype(np.float32)
    np.abs(away, out=away)
    sigma, _ = _median_of_rows(away)
    sigma *= MAD_TO_STD
    if variance is None:
        return sigma**2, np.where(np.isnan(level), np.nan, 0.0)
    with np.errstate(invalid="ignore"):
        near = away <= 3.0 * sigma[:, None].astype(np.float32)
    count = np.maximum(near.sum(axis=1), 1)
    mean = np.where(near, variance, np.float32(0)).sum(axis=1, dtype=float) / count
    deviation = variance - mean[:, None].astype(np.float32)
    deviation = np.where(near, deviation, np.float32(0))
    scatter = np.sqrt(np.einsum("ij,ij->i", deviation, deviation) / count)
    lost = np.isnan(level)
    mean[lost] = scatter[lost] = np.nan
    return mean, scatter


# --------------------------------------------------------------------------- stars


def _spoiled(data, mask, sigma):
    """
    Masked pixels on bright stars: x, y.

    One of the 24 pixels around is 30 sigma above the lowest of eight pixels
    at a distance of 5. Smooth nebula does not do that, whatever its brightness.
    """
    if mask is None or not sigma > 0:
        return np.empty((0, 2))
    ny, nx = data.shape
    pixels = np.flatnonzero(mask)
    y, x = np.divmod(pixels, nx)

    def around(steps):
        values = np.full((len(steps), y.size), np.nan, np.float32)
        for k, (dy, dx) in enumerate(steps):
            at_y, at_x = y + dy, x + dx
            inside = (at_y >= 0) & (at_y < ny) & (at_x >= 0) & (at_x < nx)
            at = np.where(inside, at_y * nx + at_x, 0)
            good = inside & ~mask.ravel()[at]
            values[k, good] = data.ravel()[at[good]]
        return values

    far = around([(5, 0), (-5, 0), (0, 5), (0, -5), (4, 4), (4, -4), (-4, 4), (-4, -4)])
    near = around(
        [(j, i) for j in (-2, -1, 0, 1, 2) for i in (-2, -1, 0, 1, 2) if (j, i) != (0, 0)]
    )
    low = np.where(np.isnan(far), np.inf, far).min(axis=0)
    high = np.where(np.isnan(near), -np.inf, near).max(axis=0)
    with np.errstate(invalid="ignore"):
        bright = high - low > 30.0 * sigma
    return np.column_stack([x, y])[bright].astype(float)


def _whole(stars, spoiled, radius):
    """The stars of a list that have no masked pixel of a bright star within ``radius``."""
    from scipy.spatial import cKDTree

    if not len(stars) or not len(spoiled):
        return stars
    return stars[cKDTree(spoiled).query(stars[:, :2])[0] > radius]


def _positions(table, *, least=0.0):
    """x, y of all stars of a table (n, 2), or of those of a signal to noise that is known."""
    if table is None or (least and "snr" not in table.colnames):
        return np.empty((0, 2))
    xy = np.column_stack([bare(table[name]) for name in ("x_center", "y_center")])
    clear = bare(table["snr"]) > least if least else True
    return xy[np.isfinite(xy).all(axis=1) & clear]


def _measure_stars(frame, table, exposure):
    """
    Fluxes of the brighter stars in apertures that grow with the seeing, and the seeing.

    An aperture of a fixed number of FWHM holds the same part of the light
    whatever the seeing, as far as only the scale of the image differs; a fixed
    number of pixels does not: between 2.6 and 3.6 pixel of FWHM, r = 12 pixel
    loses 0.4 % more.
    """
    if table is None or len(table) == 0:
        return np.empty((0, 4)), math.nan
    fwhm = table.meta.get("fwhm", math.nan)
    if not np.isfinite(fwhm):
        fwhm = float(np.nanmedian(bare(table["fwhm"]))) if "fwhm" in table.colnames else math.nan
    if not fwhm > 0:
        return np.empty((0, 4)), math.nan
    x, y, flux = (bare(table[name]) for name in ("x_center", "y_center", "flux"))
    good = np.isfinite(flux) & (flux > 0)
    if "saturated" in table.colnames:
        good &= ~np.asarray(table["saturated"], bool)
    useful = good
    for reach, most, enough in ISOLATION:
        i, j = _pairs_within(x, y, reach * fwhm)
        others = np.bincount(i, flux[j], len(x)) + np.bincount(j, flux[i], len(x))
        inside = _inside(frame, x, y, max(reach, APERTURE) * fwhm)
        good = useful & inside & (others < most * flux)
        if np.count_nonzero(good) >= enough:
            break
    index = np.flatnonzero(good)
    index = index[np.argsort(-flux[index], kind="stable")][:MAX_STARS]
    if not index.size:
        return np.empty((0, 4)), fwhm
    x, y = x[index], y[index]
    flux, error, known = _apertures(frame, exposure, x, y, fwhm, APERTURE)
    with np.errstate(invalid="ignore"):
        known &= flux > MIN_SNR * error
    return np.column_stack([x, y, flux, error])[known], fwhm


def _pairs_within(x, y, radius):
    """Indices of the pairs of stars that are not more than ``radius`` apart."""
    from scipy.spatial import cKDTree

    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    tree = cKDTree(np.column_stack([x[known], y[known]]))
    return known[tree.query_pairs(radius, output_type="ndarray")].T


def forced_fluxes(frame, x, y, fwhm, *, radius=APERTURE):
    """
    Return flux and error (n, 2) at given positions, whether or not there is a star.

    NaN where the circle leaves the frame or has holes that cannot be filled; the sky around
    it may leave the frame, or a small one would hardly have a star. As nothing was asked of
    the frame itself, no chance makes its faint stars brighter.
    """
    inside = _inside(frame, x, y, radius * fwhm)
    out = np.full((len(x), 2), np.nan)
    if inside.any():
        flux, error, good = _apertures(frame, frame.exposure, x[inside], y[inside], fwhm, radius)
        out[inside] = np.where(good[:, None], np.column_stack([flux, error]), np.nan)
    return out


def _uneven_sky(data, level, noise):
    """
    Variance of the sky from place to place around each star, that gradients do not explain.

    Seeing changes the apertures from frame to frame, and nebula in them is not the same then.
    Opposite quarters of the ring together are held against the other two; half of what a
    star shows is its own, half that of all.
    """
    middle = data.shape[1] // 2
    before, after = slice(0, middle), slice(middle + 1, None)
    means = []
    for rows, columns in ((before, before), (after, after), (before, after), (after, before)):
        count = level[:, rows, columns].sum(axis=(1, 2))
        means.append(data[:, rows, columns].sum(axis=(1, 2)) / np.maximum(count, 1))
    off = ((means[0] + means[1] - means[2] - means[3]) / 2) ** 2
    off -= noise / np.maximum(level.sum(axis=(1, 2)), 1)
    return np.maximum(0.5 * off + 0.5 * max(float(off.mean()), 0.0), 0.0) if off.size else off


def _inside(frame, x, y, radius):
    """Whether circles do not leave a frame."""
    edge, (ny, nx) = math.ceil(radius) + 1, frame.shape
    return (x >= edge) & (x <= nx - 1 - edge) & (y >= edge) & (y <= ny - 1 - edge)


def _cut(centre, half, n):
    """Pixels of an axis around a place, as far as there are any, and where they lie in a stamp."""
    start, stop = max(centre - half, 0), min(centre + half + 1, n)
    return slice(start, stop), slice(start - centre + half, stop - centre + half)


def _apertures(frame, exposure, x, y, fwhm, reach):
    """Flux, its error, and whether they are known: not where holes cannot be filled."""
    half = math.ceil(SKY_RADII[1] * fwhm) + 1
    cx, cy = np.rint(x).astype(int), np.rint(y).astype(int)
    side = 2 * half + 1
    data = np.zeros((len(x), side, side), np.float32)
    noise, bad, plane = np.zeros_like(data), np.ones(data.shape, bool), False
    for k in range(len(x)):
        (rows, in_y), (columns, in_x) = (
            _cut(int(centre[k]), half, n) for centre, n in zip((cy, cx), frame.shape, strict=True)
        )
        band = frame.read(rows)
        data[k, in_y, in_x] = band.data[:, columns]
        if band.variance is not None:
            noise[k, in_y, in_x], plane = band.variance[:, columns], True
        bad[k, in_y, in_x] = False if band.mask is None else band.mask[:, columns]
    step = np.arange(-half, half + 1)
    radius = np.sqrt(
        (step - (x - cx)[:, None])[:, None, :] ** 2 + (step - (y - cy)[:, None])[:, :, None] ** 2
    )
    # A star is the same seen from behind: holes are filled from the other side.
    data[bad], noise[bad] = data[:, ::-1, ::-1][bad], noise[:, ::-1, ::-1][bad]
    weight = np.clip(reach * fwhm + 0.5 - radius, 0.0, 1.0)
    holes = (bad & bad[:, ::-1, ::-1] & (weight > 0)).any(axis=(1, 2))
    holes |= (bad & (radius < fwhm)).any(axis=(1, 2))
    ring = (radius > SKY_RADII[0] * fwhm) & (radius < SKY_RADII[1] * fwhm) & ~bad
    cells = ring.any(axis=0)
    around = np.where(ring[:, cells], data[:, cells], np.float32(np.nan))
    sky, n = _median_of_rows(around)
    spread = MAD_TO_STD * _median_of(np.abs(around - sky[:, None]).astype(np.float32), n)
    area = weight.sum(axis=(1, 2))
    data[holes], noise[holes] = 0.0, 0.0
    flux = (data.astype(float) * weight).sum(axis=(1, 2)) - sky * area
    variance = (noise.astype(float) * weight**2).sum(axis=(1, 2))
    variance = np.maximum(variance, area * spread**2)
    if not plane and exposure is not None:
        variance += np.maximum(flux, 0.0) / exposure
    variance += area**2 * (np.pi / 2) * spread**2 / np.maximum(n, 1)
    level = ring & (np.abs(data - sky[:, None, None]) < 4 * spread[:, None, None])
    variance += area**2 * _uneven_sky(np.where(level, data, 0.0), level, 4 * spread**2)
    return flux, np.sqrt(variance), ~holes & (n > 20)
