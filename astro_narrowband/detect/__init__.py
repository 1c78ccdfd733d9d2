"""
Stars of one frame: where they are, how sure that is, and what is not a star.

Detection is made for registration: it is quick, it takes raw frames as well as
calibrated ones, and it would rather lose a faint star than keep a hot pixel.
The arithmetic is float32 numpy on bands of rows that fit in the cache.
"""

import math

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._validate import as_mask, positive
from astro_narrowband.bands import as_frame, row_bands
from astro_narrowband.detect import stamps
from astro_narrowband.exceptions import InputError

__all__ = ["detect_stars"]

#: Side of the cells in which the background is measured [pix].
CELL = 64
#: Every so many rows are read for the background: a quarter of the pixels is plenty.
STRIDE = 4
#: Rows of a band: it stays in the level 2 cache with its temporaries.
BAND_ROWS = 32
#: No more candidates than this are looked at in one frame, brightest first.
MAX_CANDIDATES = 20_000


def detect_stars(
    image,
    *,
    threshold=5.0,
    n_brightest=500,
    fwhm=None,
    mask=None,
    saturation=None,
    gain=None,
):
    """
    Find the stars of a frame and measure their positions.

    Parameters
    ----------
    image : `~astropy.nddata.CCDData`, `~astro_narrowband.bands.Frame` or path-like
        In any unit; raw frames are welcome. Its mask is applied and its
        variance used.
    threshold : float, optional
        Height above the local background, in units of the noise, in the image
        smoothed with a 5 x 5 binomial kernel.
    n_brightest : int, optional
        No more stars than this are returned.
    fwhm : float, optional
        Width of the stars [pix]. Default is to estimate it from the frame.
    mask : array_like of bool, (ny, nx), optional
        Pixels not to be used, besides the image's own mask: known hot pixels.
    saturation : float, optional
        Level, in the unit of the image, from which a pixel is saturated.
        Flat-topped stars are recognised without it.
    gain : float, optional
        Electrons per unit of the image, for the photon noise in the position
        errors where the image has no variance. Default is 1 where the unit is
        electron; otherwise the noise of the sky alone is counted.

    Returns
    -------
    `~astropy.table.QTable`
        Brightest first: ``x_center``, ``y_center``, ``x_err``, ``y_err`` [pix]
        (windowed centroids, the first pixel's centre is 0, 0); ``flux``,
        ``flux_err`` (in a circle of 1.5 FWHM), ``peak`` (unit of the image);
        ``fwhm`` [pix]; ``roundness`` (0 is round, 1 a line); ``sharpness``
        (mean of the eight pixels around the brightest over that one: 0 for a
        hot pixel, 1 for a plateau); ``snr``; ``saturated``. Its ``meta`` has
        ``name``, ``shape``, ``sky`` (median), ``sky_rms`` (of one pixel),
        ``fwhm`` (median of the good stars, NaN where there are none),
        ``n_candidates`` and ``n_rejected`` (a dict: reason to number).

    Raises
    ------
    InputError
        If an argument cannot be used. A frame without stars gives an empty
        table, not an error.

    Notes
    -----
    A candidate is refused as ``sharp`` where its light sits in one pixel or
    one line of pixels, or is much narrower than this frame's stars (hot
    pixels, cosmic rays); as ``wide`` or ``long`` where it is much wider or
    more drawn out than they are (nebula, trails); as ``masked`` where unusable
    pixels hold a tenth of its window or more; and at the ``edge``.

    The window of the centroid is a Gaussian as wide as the stars, and the
    errors are the propagated noise of its pixels, after [1]_. Stars narrower
    than 1.5 pixel cannot be told from hot pixels reliably and are mostly lost;
    blended stars are not separated below one FWHM.

    References
    ----------
    .. [1] Bertin, E., SExtractor documentation, "Windowed positional parameters".

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband.detect import detect_stars
    >>> y, x = np.mgrid[:100, :120]
    >>> image = np.random.default_rng(1).normal(10.0, 1.0, (100, 120))
    >>> image += 500 * np.exp(-((x - 40.3) ** 2 + (y - 60.8) ** 2) / 4.0)
    >>> stars = detect_stars(CCDData(image, unit="electron"))
    >>> len(stars), bool(abs(stars["x_center"][0].value - 40.3) < 0.02)
    (1, True)
    """
    frame = as_frame(image)
    threshold = positive(threshold, "threshold")
    if fwhm is not None:
        fwhm = positive(fwhm, "fwhm")
    if n_brightest < 1:
        raise InputError(f"n_brightest = {n_brightest}: at least 1 is needed")
    data, variance, bad = _load(frame, as_mask(mask, frame.shape))
    if gain is None and frame.unit == u.electron:
        gain = 1.0
    sky, rms = _background(data, bad)
    if not np.isfinite(rms).any():
        return _table(frame, None, math.nan, math.nan, math.nan, 0, {})
    level = float(np.median(sky))
    _subtract(data, sky, bad)
    y, x, height = _candidates(data, rms, threshold)
    n_candidates = len(y)
    noise = rms[np.minimum(y // CELL, rms.shape[0] - 1), np.minimum(x // CELL, rms.shape[1] - 1)]
    if saturation is not None:
        saturation = positive(saturation, "saturation") - level
    rejected = {}
    stars, width = stamps.measure(
        data, variance, bad, (y, x, height, noise), rejected,
        fwhm=fwhm, n_brightest=n_brightest, saturation=saturation, gain=gain,
    )  # fmt: skip
    if width > 5.5 and fwhm is None:
        # The kernel of the search is too narrow for such stars: search the binned image.
        rejected = {}
        factor = int(width // 2.5)
        y, x, height, noise = _binned_candidates(data, rms, threshold, factor)
        n_candidates = len(y)
        stars, width = stamps.measure(
            data, variance, bad, (y, x, height, noise), rejected,
            fwhm=width, n_brightest=n_brightest, saturation=saturation, gain=gain,
        )  # fmt: skip
    return _table(frame, stars, level, float(np.median(rms)), width, n_candidates, rejected)


def _load(frame, mask):
    """The whole frame as float32 that may be written to, its variance and its bad pixels."""
    band = frame.read(slice(0, frame.shape[0]))
    data = np.array(band.data, np.float32)
    bad = None if band.mask is None else band.mask
    if mask is not None:
        bad = mask if bad is None else bad | mask
    if data.dtype.kind == "f" and not np.isfinite(data.sum(dtype=np.float64)):
        lost = ~np.isfinite(data)
        bad = lost if bad is None else bad | lost
    if bad is not None and not bad.any():
        bad = None
    return data, band.variance, bad


def _background(data, bad):
    """Level and noise in cells of CELL pixels: median after clipping, and lower half width."""
    ny, nx = data.shape
    my, mx = max(1, round(ny / CELL)), max(1, round(nx / CELL))
    start = min(STRIDE // 2, ny - 1)
    sample = data[start::STRIDE]
    if bad is not None:
        sample = np.where(bad[start::STRIDE], np.float32(np.nan), sample)
    per_y, per_x = CELL // STRIDE, CELL
    padded = np.full((my * per_y, mx * per_x), np.nan, np.float32)
    h, w = min(sample.shape[0], padded.shape[0]), min(nx, padded.shape[1])
    padded[:h, :w] = sample[:h, :w]
    cells = padded.reshape(my, per_y, mx, per_x).transpose(0, 2, 1, 3)
    cells = np.sort(cells.reshape(my * mx, per_y * per_x), axis=1)
    n = np.isfinite(cells).sum(axis=1)
    each = np.arange(len(cells))
    top = n
    for _ in range(3):
        middle = cells[each, np.maximum(top - 1, 0) // 2]
        low = cells[each, (np.maximum(top - 1, 0) * 0.158655).astype(int)]
        width = middle - low
        top = (cells <= (middle + 3 * width)[:, None]).sum(axis=1)
    poor = n < 0.2 * cells.shape[1]
    middle[poor] = width[poor] = np.nan
    # A constant cell (integers of a quiet camera, a padded edge) has no lower half width.
    width[width <= 0] = np.nan
    sky, rms = _smooth(middle.reshape(my, mx)), _smooth(width.reshape(my, mx))
    return sky, rms


def _smooth(cells):
    """Median of 3 x 3 cells; cells without a value take the median of all."""
    if not np.isfinite(cells).any():
        return cells
    padded = np.pad(cells, 1, mode="reflect" if min(cells.shape) > 1 else "edge")
    my, mx = cells.shape
    stack = np.stack([padded[j : j + my, i : i + mx] for j in range(3) for i in range(3)])
    stack = np.sort(stack, axis=0)
    n = np.isfinite(stack).sum(axis=0)
    out = np.take_along_axis(stack, np.maximum(n - 1, 0)[None] // 2, axis=0)[0]
    return np.where(n > 0, out, np.nanmedian(cells))


def _subtract(data, sky, bad):
    """Take the background from ``data``, linear between cells, in place; bad pixels become 0."""
    ny, nx = data.shape
    my, mx = sky.shape
    half = CELL // 2
    at = np.clip((np.arange(ny) + 0.5) / CELL - 0.5, 0, my - 1)
    upper = np.minimum(at.astype(int), max(my - 2, 0))
    part = (at - upper)[:, None]
    lines = sky[upper] * (1 - part) + sky[np.minimum(upper + 1, my - 1)] * part
    lines = lines.astype(np.float32)
    step = np.diff(lines, axis=1)[:, :, None]
    ramp = ((np.arange(CELL, dtype=np.float32) + np.float32(0.5)) / CELL)[None, None, :]
    first, last = min(half, nx), min(half + CELL * (mx - 1), nx)
    n_cells = (last - first) // CELL
    last = first + n_cells * CELL
    for rows in row_bands(ny, BAND_ROWS):
        block = data[rows]
        # A view of whole cells: no matrix of weights, no second copy of the frame.
        cells = block[:, first:last].reshape(block.shape[0], n_cells, CELL)
        cells -= step[rows, :n_cells] * ramp + lines[rows, :n_cells, None]
        block[:, :first] -= lines[rows, :1]
        block[:, last:] -= lines[rows, n_cells : n_cells + 1]
        if bad is not None:
            block[bad[rows]] = 0


def _candidates(data, rms, threshold):
    """Local maxima of the smoothed image that are high enough: y, x, height in sigma."""
    ny, nx = data.shape
    level = np.repeat(threshold * rms * _gain_of_noise(data, rms), CELL, axis=1)
    level = np.pad(level, ((0, 0), (0, max(0, nx - level.shape[1]))), mode="edge")[:, :nx]
    level = level.astype(np.float32)
    found = []
    for rows in row_bands(ny, BAND_ROWS):
        first = max(rows.start - 1, 0)
        smooth = _smoothed(data, first, min(rows.stop + 1, ny))
        line = level[min(rows.start // CELL, level.shape[0] - 1)]
        inner = smooth[rows.start - first : rows.stop - first]
        above = np.flatnonzero(inner > line)
        y, x = np.divmod(above, nx)
        y += rows.start - first
        keep = (x > 0) & (x < nx - 1) & (y > 0) & (y < smooth.shape[0] - 1)
        y, x = y[keep], x[keep]
        here = smooth[y, x]
        peak = np.ones(len(y), bool)
        for j in (-1, 0, 1):
            for i in (-1, 0, 1):
                if (j, i) != (0, 0):
                    other = smooth[y + j, x + i]
                    peak &= (here > other) if (j, i) > (0, 0) else (here >= other)
        y, x, here = y[peak], x[peak], here[peak]
        found.append((y + first, x, here / line[x] * threshold))
    y, x, height = (np.concatenate(part) for part in zip(*found, strict=True))
    if len(y) > MAX_CANDIDATES:
        keep = np.argpartition(height, -MAX_CANDIDATES)[-MAX_CANDIDATES:]
        y, x, height = y[keep], x[keep], height[keep]
    return y, x, height


def _smoothed(data, first, last):
    """Rows of the image convolved with (1 4 6 4 1)/16 along both axes; edges are repeated."""
    ny, nx = data.shape
    at = np.clip(np.arange(first - 2, last + 2), 0, ny - 1)
    plain = at[0] == first - 2 and at[-1] == last + 1
    block = data[first - 2 : last + 2] if plain else data[at]
    n = last - first
    down = block[1 : n + 1] + block[3 : n + 3]
    down *= 4
    down += block[2 : n + 2] * np.float32(6)
    down += block[:n]
    down += block[4:]
    out = np.empty((n, nx), np.float32)
    core = out[:, 2:-2]
    np.add(down[:, 1:-3], down[:, 3:-1], out=core)
    core *= 4
    core += down[:, 2:-2] * np.float32(6)
    core += down[:, :-4]
    core += down[:, 4:]
    core /= 256
    # No star is looked for in the outermost two columns.
    out[:, :2] = out[:, -2:] = -np.inf
    return out


def _gain_of_noise(data, rms):
    """How much smoothing lowers the noise: 70/256 if it is white, more if it is correlated."""
    ny = len(data)
    ratios = []
    for y in np.linspace(0, max(ny - 16, 0), 5).astype(int):
        rows = _smoothed(data, int(y), min(int(y) + 16, ny))[:, 2:-2]
        low, middle = np.percentile(rows[rows != 0], [15.8655, 50]) if rows.any() else (0, 0)
        ratios.append((middle - low) / rms[min(y // CELL, rms.shape[0] - 1)].mean())
    return min(max(float(np.median(ratios)), 70 / 256), 1.0)


def _binned_candidates(data, rms, threshold, factor):
    """As `_candidates` on the image binned by ``factor``: y, x, height and noise at full scale."""
    ny, nx = (n // factor * factor for n in data.shape)
    binned = data[:ny, :nx].reshape(ny // factor, factor, nx // factor, factor).mean(axis=(1, 3))
    sky, noise = _background(binned, None)
    _subtract(binned, sky, None)
    y, x, height = _candidates(binned, noise, threshold)
    y, x = (at * factor + factor // 2 for at in (y, x))
    at = np.minimum(y // CELL, rms.shape[0] - 1), np.minimum(x // CELL, rms.shape[1] - 1)
    return y, x, height, rms[at]


def _table(frame, stars, sky, rms, fwhm, n_candidates, rejected):
    units = {"x_center": u.pix, "y_center": u.pix, "x_err": u.pix, "y_err": u.pix, "fwhm": u.pix}
    if frame.unit is not None:
        units |= dict.fromkeys(("flux", "flux_err", "peak"), frame.unit)
    table = QTable()
    for name in stamps.COLUMNS:
        if stars is None:
            values = np.zeros(0, bool if name == "saturated" else float)
        else:
            values = stars[name]
        table[name] = values * units[name] if name in units else values
    table.meta = {
        "name": frame.name,
        "shape": tuple(frame.shape),
        "sky": sky,
        "sky_rms": rms,
        "fwhm": fwhm,
        "n_candidates": n_candidates,
        "n_rejected": rejected,
    }
    return table
