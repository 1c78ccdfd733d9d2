"""
Many small cutouts at once: shapes, windowed centroids and fluxes of candidates.

Private to `astro_narrowband._engine.detection`. Thousands of stamps are one array (n, side,
side), so that the candidates of a frame cost milliseconds.
"""

import math

import numpy as np

from astro_narrowband._engine.frames import Threads, usable_cores

COLUMNS = (
    "x_center", "y_center", "x_err", "y_err", "flux", "flux_err", "fwhm",
    "roundness", "sharpness", "peak", "snr", "saturated",
)  # fmt: skip

#: FWHM of a Gaussian over its sigma.
FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
#: Mean of the eight neighbours over the peak: below it is a hot pixel.
MIN_RING = 0.15
#: The same for the fainter of two opposite pairs of sides: below it is a line of hot pixels.
MIN_SIDE = 0.12
#: Candidates that are measured at a time.
CHUNK = 2200
#: Stars are rounder than this, unless the whole frame trails.
ROUND = 0.6
#: Stars of this signal to noise tell the seeing, and clearer ones no better.
CLEAR = 200.0
#: More than this and the top is flat.
PLATEAU = 0.93


def around(shape, y, x, half):
    """
    Return the rows and the columns (n, 2 half + 1) of stamps, and which pixels lie outside.

    Those outside (``None`` if there are none) have the row or column of the nearest inside.
    """
    ny, nx = shape
    step = np.arange(-half, half + 1)
    rows, columns = y[:, None] + step, x[:, None] + step
    outside = None
    if rows.size and (
        rows.min() < 0 or rows.max() >= ny or columns.min() < 0 or columns.max() >= nx
    ):
        outside = ((rows < 0) | (rows >= ny))[:, :, None]
        outside = outside | ((columns < 0) | (columns >= nx))[:, None]
        rows, columns = np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1)
    return rows, columns, outside


def gather(image, y, x, half):
    """Return stamps (n, 2 half + 1, 2 half + 1) around pixels, and which pixels lie outside."""
    rows, columns, outside = around(image.shape, y, x, half)
    return image.reshape(-1)[rows[:, :, None] * image.shape[1] + columns[:, None, :]], outside


def windowed(stamps, weight, sigma, *, x=None, y=None, iterations=12):
    """
    Windowed centroids of stamps: offsets from the middle pixel, and second moments.

    Parameters
    ----------
    stamps : array (n, side, side)
        Background removed.
    weight : array (n, side, side) or None
        0 where a pixel must not count.
    sigma : float or array (n,)
        Width of the Gaussian window [pix].
    x, y : array (n,), optional
        Where to start. Default is the middle.

    Returns
    -------
    dict of arrays (n,)
        x, y, xx, yy, xy (moments under the window), total (sum of window x
        stamp), window (n, side, side), dx, dy.
    """
    n, side, _ = stamps.shape
    step = (np.arange(side) - side // 2).astype(np.float32)
    x = np.zeros(n) if x is None else np.array(x, float)
    y = np.zeros(n) if y is None else np.array(y, float)
    half = np.broadcast_to(0.5 / np.square(np.asarray(sigma, np.float32)), (n,))
    light = stamps if weight is None else stamps * weight
    limit = side / 2
    # Where the middle has come to rest the others are not waited for.
    moving = np.arange(n)
    for _ in range(iterations):
        active = moving if len(moving) < n else slice(None)
        m = _moments(light[active], half[active], step, x[active], y[active])
        mean_x, mean_y, total = m["x"], m["y"], m["total"]
        lost = ~(np.isfinite(mean_x) & np.isfinite(mean_y) & (total > 0))
        mean_x[lost] = mean_y[lost] = 0
        x[active] = np.clip(x[active] + 2 * np.clip(mean_x, -1, 1), -limit, limit)
        y[active] = np.clip(y[active] + 2 * np.clip(mean_y, -1, 1), -limit, limit)
        moving = moving[np.maximum(np.abs(mean_x), np.abs(mean_y)) >= 1e-4]
        if not moving.size:
            break
    m = _moments(light, half, step, x, y)
    window = m.pop("gy")[:, :, None] * m.pop("gx")[:, None, :]
    if weight is not None:
        window *= weight
    return m | {"x": x, "y": y, "window": window}


def _moments(light, half, step, x, y):
    """Moments of stamps under Gaussian windows about (x, y), and what the windows are made of."""
    dx = step - x[:, None].astype(np.float32)
    dy = step - y[:, None].astype(np.float32)
    gx, gy = np.exp(-half[:, None] * dx * dx), np.exp(-half[:, None] * dy * dy)
    # The window is a product: rows are summed first, then what is left of them.
    across = np.stack([gx, gx * dx, gx * dx * dx], axis=2)
    rows = np.matmul(light, across).astype(float)
    with np.errstate(all="ignore"):
        total, x, xx = np.einsum("nj,njk->kn", gy, rows)
        y, xy = np.einsum("nj,njk->kn", gy * dy, rows[:, :, :2]) / total
        yy = np.einsum("nj,nj->n", gy * dy * dy, rows[:, :, 0]) / total - y**2
        x, xx = x / total, xx / total
        return {
            "x": x, "y": y, "xx": xx - x**2, "yy": yy, "xy": xy - x * y, "total": total,
            "dx": dx, "dy": dy, "gx": gx, "gy": gy,
        }  # fmt: skip


def shape_of(m, sigma):
    """FWHM and ellipticity of the source, the window's own width taken out of the moments."""
    with np.errstate(all="ignore"):
        inverse = np.array([[m["xx"], m["xy"]], [m["xy"], m["yy"]]]).transpose(2, 0, 1)
        det = inverse[:, 0, 0] * inverse[:, 1, 1] - inverse[:, 0, 1] ** 2
        # The product of two Gaussians: inverse moments add.
        a = inverse[:, 1, 1] / det - 1 / sigma**2
        b = inverse[:, 0, 0] / det - 1 / sigma**2
        c = -inverse[:, 0, 1] / det
        det = a * b - c * c
        xx, yy, xy = b / det, a / det, -c / det
        size = (xx + yy) / 2
        fwhm = FWHM * np.sqrt(size)
        roundness = np.hypot((xx - yy) / 2, xy) / size
    wrong = ~((det > 0) & (a > 0) & (size > 0))
    fwhm[wrong] = np.inf
    roundness[wrong] = 1.0
    return fwhm, roundness


def _minor_axis(m, sigma):
    """FWHM across a source: a pair is as long as the window where it is as thin as a star."""
    with np.errstate(all="ignore"):
        least = (m["xx"] + m["yy"]) / 2 - np.hypot((m["xx"] - m["yy"]) / 2, m["xy"])
        return FWHM / np.sqrt(np.maximum(1 / least - 1 / sigma**2, 0))


def _core(image, y, x):
    """The 3 x 3 pixels around the brightest pixel near each maximum, and where that is."""
    block, _, outside = image.stamps(y, x, 1)
    if outside is not None:
        block[outside] = -np.inf
    at = block.reshape(len(y), 9).argmax(axis=1)
    y, x = y + at // 3 - 1, x + at % 3 - 1
    return y, x, image.stamps(y, x, 1)[0]


def _drop(rejected, reason, keep, *arrays):
    n = int((~keep).sum())
    if n:
        rejected[reason] = rejected.get(reason, 0) + n
    return [a[keep] for a in arrays]


def measure(image, variance, candidates, rejected, *, fwhm, n_brightest, saturation, gain, blends):
    """
    Measure candidates and keep the stars.

    Parameters
    ----------
    image : SkyFree
    variance : array (ny, nx) or None
    candidates : tuple of arrays
        y, x [int], height in sigma, noise of a pixel there.
    rejected : dict
        Reasons and numbers are added to it.
    fwhm : float or None
        Width of the stars; None: from the candidates.

    Returns
    -------
    dict of arrays by the names of COLUMNS, or None; float
        The stars, brightest first, and their median FWHM.
    """
    y, x, height, noise = candidates
    ny, nx = image.shape
    inside = (x >= 3) & (x < nx - 3) & (y >= 3) & (y < ny - 3)
    y, x, height, noise = _drop(rejected, "edge", inside, y, x, height, noise)
    y, x, core = _core(image, y, x)
    _, first = np.unique(y * nx + x, return_index=True)
    y, x, height, noise, core = (a[first] for a in (y, x, height, noise, core))
    peak = core[:, 1, 1]
    with np.errstate(all="ignore"):
        ring = (core.sum(axis=(1, 2)) - peak) / 8 / peak
        rows, columns = core.sum(axis=2), core.sum(axis=1)
        side = np.minimum(rows[:, 0] + rows[:, 2], columns[:, 0] + columns[:, 2]) / 6 / peak
    keep = (peak > 0) & (ring > MIN_RING) & (side > MIN_SIDE)
    y, x, height, noise, ring, peak = _drop(
        rejected, "sharp", keep, y, x, height, noise, ring, peak
    )
    order = np.argsort(-height, kind="stable")[: 4 * n_brightest + 100]
    y, x, height, noise, ring, peak = (a[order] for a in (y, x, height, noise, ring, peak))
    if len(y) == 0:
        return None, math.nan
    stamps, weight, _ = image.stamps(y, x, 7)
    local, scatter, _ = _local_sky(stamps, weight, 5.5)
    contrast = (peak - local) / np.maximum(noise, scatter)
    order = np.argsort(-contrast, kind="stable")
    y, x, noise, ring, peak, contrast, local = (
        a[order] for a in (y, x, noise, ring, peak, contrast, local)
    )
    # A nebula is as flat in the middle, but not over so soon.
    flat = (ring > PLATEAU) & (local < 0.5 * peak) & (contrast > 20)
    if saturation is not None:
        flat |= peak >= saturation
    if fwhm is None:
        fwhm = _typical_width(image, y, x, contrast, flat)
    return _measure_all(
        image, variance, (y, x, noise, ring, peak, flat), rejected,
        fwhm=fwhm, n_brightest=n_brightest, gain=gain, blends=blends,
    )  # fmt: skip


def _local_sky(stamps, weight, inner):
    """Median, lower half width and number of each stamp's pixels beyond ``inner``."""
    side = stamps.shape[1]
    step = np.arange(side) - side // 2
    far = np.hypot(step[:, None], step[None, :]) > inner
    values = stamps[:, far]
    if weight is not None:
        values = np.where(weight[:, far] > 0, values, np.float32(np.nan))
    values = np.sort(values, axis=1)
    n = np.isfinite(values).sum(axis=1)
    each = np.arange(len(values))
    low = values[each, np.maximum(n - 1, 0) // 2]
    high = values[each, np.minimum(n // 2, np.maximum(n - 1, 0))]
    middle = (low + high) / 2
    width = middle - values[each, (np.maximum(n - 1, 0) * 0.158655).astype(int)]
    return np.where(n > 0, middle, 0).astype(np.float32), np.where(n > 9, width, 0), n


def _typical_width(image, y, x, contrast, flat):
    """FWHM that many of the best candidates share; the window follows the width."""
    good = ~flat
    if not good.any():
        good = ~good
    y, x, contrast = y[good], x[good], contrast[good]
    use = np.flatnonzero(contrast > 8)[:150]
    # (Three clear ones say more than knots of nebula at the limit.)
    if len(use) < 3:
        use = np.arange(min(len(y), 20))
    y, x = y[use], x[use]
    sigma = np.full(len(y), 2.0)
    for half in (7, 7, 10, 10):
        stamps, weight, _ = image.stamps(y, x, half)
        stamps = stamps - _local_sky(stamps, weight, 0.8 * half)[0][:, None, None]
        m = windowed(stamps, weight, sigma, iterations=5)
        widths, roundness = shape_of(m, sigma)
        known = np.isfinite(widths) & (widths < 3 * half)
        # One track is many candidates; where all the frame trails, hardly any is round.
        is_round = known & (roundness < ROUND)
        if is_round.sum() >= max(3, 0.2 * known.sum()):
            known = is_round
        known = widths[known]
        if len(known) == 0:
            return 3.0
        typical = _mode(known)
        sigma = np.full(len(y), min(max(typical, 1.2), 12.0) / FWHM)
    return min(max(typical, 1.2), 20.0)


def _mode(values):
    """Median of the densest third: stars share a width, knots of nebula and cosmic rays do not."""
    values = np.sort(values)
    n = max(len(values) // 3, 5)
    if len(values) <= n:
        return float(np.median(values))
    ratio = values[n - 1 :] / values[: len(values) - n + 1]
    first = int(ratio.argmin())
    return float(np.median(values[first : first + n]))


def _numbers(image, variance, candidates, fwhm, gain):
    """What stamps tell of candidates, by name: the COLUMNS, and what they are refused by."""
    y, x, noise, ring, peak, flat = candidates
    sigma = fwhm / FWHM
    half = max(5, math.ceil(2 * fwhm))
    stamps, weight, _ = image.stamps(y, x, half)
    # What the cells of the background are too coarse for: nebula, wings of bright stars.
    local, scatter, n_local = _local_sky(stamps, weight, 1.7 * fwhm)
    # On a bright nebula there is more noise than in most of the cell.
    noise = np.where(scatter > 1.3 * noise, scatter, noise)
    stamps = stamps - local[:, None, None]
    peak = peak - local
    m = windowed(stamps, weight, sigma)
    widths, roundness = shape_of(m, sigma)
    at_x, at_y = x + m["x"], y + m["y"]
    # Noise of each pixel: as given, or that of the sky and, where the gain is known, the photons.
    if variance is not None:
        pixel_variance = gather(variance, y, x, half)[0]
        pixel_variance = np.where(np.isfinite(pixel_variance), pixel_variance, 0)
    else:
        pixel_variance = np.broadcast_to((noise**2)[:, None, None], stamps.shape)
        if gain is not None:
            pixel_variance = pixel_variance + np.maximum(stamps, 0) / gain
    spread = m["window"] ** 2 * pixel_variance
    with np.errstate(all="ignore"):
        x_err = 2 * np.sqrt((spread.sum(axis=1) * m["dx"] ** 2).sum(axis=1)) / m["total"]
        y_err = 2 * np.sqrt((spread.sum(axis=2) * m["dy"] ** 2).sum(axis=1)) / m["total"]
    radius = np.sqrt(m["dx"][:, None, :] ** 2 + m["dy"][:, :, None] ** 2)
    inside = np.clip(1.5 * fwhm - radius + 0.5, 0, 1)
    flux = (inside * stamps).sum(axis=(1, 2), dtype=float)
    area = inside.sum(axis=(1, 2))
    sky_err = area * noise * np.sqrt(math.pi / 2 / np.maximum(n_local, 1))
    flux_err = np.hypot(
        np.sqrt((inside**2 * pixel_variance).sum(axis=(1, 2), dtype=float)), sky_err
    )
    with np.errstate(all="ignore"):
        snr = m["total"] / np.sqrt(spread.sum(axis=(1, 2), dtype=float))
    ideal = [np.exp(-(m[d] ** 2) / (2 * sigma**2)).sum(axis=1) for d in ("dx", "dy")]
    covered = m["window"].sum(axis=(1, 2)) / (ideal[0] * ideal[1])
    return {
        "x_center": at_x, "y_center": at_y, "x_err": x_err, "y_err": y_err, "flux": flux,
        "flux_err": flux_err, "fwhm": widths, "roundness": roundness, "sharpness": ring,
        "peak": peak, "snr": snr, "saturated": flat,
        "total": m["total"], "off": np.hypot(m["x"], m["y"]), "covered": covered,
        "minor": _minor_axis(m, sigma),
    }  # fmt: skip


def _measure_all(image, variance, candidates, rejected, *, fwhm, n_brightest, gain, blends):
    n = len(candidates[0])
    chunks = [[a[k : k + CHUNK] for a in candidates] for k in range(0, n, CHUNK)]
    with Threads(min(len(chunks), usable_cores())) as pool:
        parts = list(pool.map(lambda chunk: _numbers(image, variance, chunk, fwhm, gain), chunks))
    stars = {name: np.concatenate([chunk[name] for chunk in parts]) for name in parts[0]}
    at_x, at_y, flat, snr = (stars[name] for name in ("x_center", "y_center", "saturated", "snr"))
    widths, roundness = stars["fwhm"], stars["roundness"]
    ny, nx = image.shape
    margin = 1.2 * fwhm
    # Where the whole frame trails, its stars are all drawn out.
    bright = ~flat & (snr > 15)
    usual = float(np.median(roundness[bright])) if bright.sum() > 4 else 0.0
    limit = max(ROUND, min(usual + 0.25, 0.95))
    tests = {
        "edge": (at_x > margin) & (at_x < nx - 1 - margin)
        & (at_y > margin) & (at_y < ny - 1 - margin),
        "masked": stars["covered"] > 0.9,
        "faint": np.isfinite(stars["x_err"]) & np.isfinite(stars["y_err"]) & (stars["total"] > 0)
        & (snr > 4) & (stars["flux"] > 0) & (stars["off"] < max(1.5, fwhm)),
        "sharp": flat | (widths > 0.6 * fwhm),
        "wide": flat | (stars["minor"] < 3.0 * fwhm if blends else widths < 1.8 * fwhm),
        "long": flat | (roundness < limit) | blends,
    }  # fmt: skip
    keep = np.ones(len(at_x), bool)
    for reason, passed in tests.items():
        n = int((keep & ~passed).sum())
        if n:
            rejected[reason] = rejected.get(reason, 0) + n
        keep &= passed
    stars = {name: stars[name][keep] for name in COLUMNS}
    order = np.argsort(-stars["flux"], kind="stable")
    stars = {name: values[order] for name, values in stars.items()}
    unique = _unique(stars["x_center"], stars["y_center"], (0.7 if blends else 1.0) * fwhm)
    stars = {name: values[unique][:n_brightest] for name, values in stars.items()}
    # Nebula and blends, where they are kept, do not tell how wide a star is.
    good = ~stars["saturated"] & (stars["fwhm"] < 1.8 * fwhm)
    if not len(stars["fwhm"]):
        return stars, math.nan
    if not good.any():
        return stars, float(fwhm)
    # Where stars are few, knots of nebula are many, but none as clear.
    weight = np.minimum(stars["snr"][good], CLEAR) ** 2
    width = np.quantile(stars["fwhm"][good], 0.5, weights=weight, method="inverted_cdf")
    return stars, float(width)


def _unique(x, y, radius):
    """Indices of sources, brightest first, that have no brighter one within ``radius``."""
    if len(x) < 2:
        return np.arange(len(x))
    from scipy.spatial import cKDTree

    keep = np.ones(len(x), bool)
    for i, j in sorted(cKDTree(np.column_stack([x, y])).query_pairs(radius)):
        if keep[i]:
            keep[j] = False
    return np.flatnonzero(keep)
