"""Candidates for stars: what stands out of the image smoothed with a binomial kernel."""

import numpy as np

from astro_narrowband._engine.detection._sky import CELL, SkyFree, measure_sky
from astro_narrowband._engine.frames import row_bands

#: Rows of a band: those of a cell of the background.
BAND_ROWS = CELL
#: Sum of the kernel (1 4 6 4 1) along both axes.
KERNEL_SUM = 256
#: How much the kernel lowers white noise.
WHITE = 70 / KERNEL_SUM
#: No more candidates than this are looked at in one frame, brightest first.
MAX_CANDIDATES = 20_000


def candidates(image, rms, threshold):
    """
    Local maxima of the smoothed image that are high enough.

    Parameters
    ----------
    image : SkyFree
    rms : array (my, mx)
        Noise in cells.
    threshold : float

    Returns
    -------
    tuple of array
        y, x, height in sigma, noise of a pixel there.
    """
    ny, nx = image.shape
    level = np.repeat(threshold * rms * _gain_of_noise(image, rms), CELL, axis=1)
    level = np.pad(level, ((0, 0), (0, max(0, nx - level.shape[1]))), mode="edge")[:, :nx]
    level = (level * KERNEL_SUM).astype(np.float32)
    block, spare = (np.empty((BAND_ROWS + 6, nx), np.float32) for _ in range(2))
    above = np.empty((BAND_ROWS, nx), bool)
    peaks = []
    for rows in row_bands(ny, BAND_ROWS):
        n = rows.stop - rows.start
        # One row more on either side, for the neighbours.
        smooth = _smooth_rows(image, rows.start - 1, rows.stop + 1, block, spare)
        line = level[min(rows.start // CELL, len(level) - 1)]
        at = np.flatnonzero(np.greater(smooth[1:-1], line, out=above[:n])) + nx
        flat = smooth.reshape(-1)
        for before in (1, nx, nx - 1, nx + 1):
            heights = flat[at]
            at = at[(heights >= flat[at - before]) & (heights > flat[at + before])]
        y, x = np.divmod(at, nx)
        peaks.append((y + (rows.start - 1), x, flat[at] / line[x] * threshold))
    y, x, height = (np.concatenate(column) for column in zip(*peaks, strict=True))
    keep = (y > 0) & (y < ny - 1)
    y, x, height = y[keep], x[keep], height[keep]
    if len(y) > MAX_CANDIDATES:
        keep = np.argpartition(height, -MAX_CANDIDATES)[-MAX_CANDIDATES:]
        y, x, height = y[keep], x[keep], height[keep]
    return y, x, height, _of_cells(rms, y, x)


def binned_candidates(image, rms, threshold, factor):
    """As `candidates`, of the image binned by ``factor``: y, x, height and noise at full scale."""
    ny, nx = (n // factor for n in image.shape)
    binned = np.empty((ny, nx), np.float32)
    block = np.empty((factor, image.shape[1]), np.float32)
    for row in range(ny):
        image.rows(slice(row * factor, (row + 1) * factor), block)
        block[:, : nx * factor].reshape(factor, nx, factor).mean(axis=(0, 2), out=binned[row])
    sky, noise = measure_sky(binned, None)
    y, x, height, _ = candidates(SkyFree(binned, None, sky), noise, threshold)
    y, x = (at * factor + factor // 2 for at in (y, x))
    return y, x, height, _of_cells(rms, y, x)


def _of_cells(cells, y, x):
    """Values of the cells that pixels lie in."""
    my, mx = cells.shape
    return cells[np.minimum(y // CELL, my - 1), np.minimum(x // CELL, mx - 1)]


def smoothed(image):
    """An image (ny, nx) convolved with (1 4 6 4 1)/16 along both axes; -inf in two columns each."""
    block = np.pad(image.astype(np.float32), ((2, 2), (0, 0)), mode="edge")
    return _convolved(block, np.empty_like(block)) / np.float32(KERNEL_SUM)


def _smooth_rows(image, first, last, block, spare):
    """Rows of a `SkyFree`, smoothed, times KERNEL_SUM; beyond the frame its edge is repeated."""
    ny = image.shape[0]
    n = last - first + 4
    block, spare = block[:n], spare[:n]
    low, high = max(first - 2, 0), min(last + 2, ny)
    top, bottom = low - (first - 2), n - (last + 2 - high)
    image.rows(slice(low, high), block[top:bottom])
    block[:top] = block[top]
    block[bottom:] = block[bottom - 1]
    return _convolved(block, spare)


def _convolved(block, spare):
    """
    All rows of ``block`` but two on either side, convolved with (1 4 6 4 1) along both axes.

    That is (1 1) four times along each. Both arrays are written over, and one
    of them holds what is returned.
    """
    n, nx = block.shape
    for k in range(1, 5):
        np.add(block[: n - k], block[1 : n - k + 1], out=spare[: n - k])
        block, spare = spare, block
    # Along the rows as one line: what runs over their ends is in the two columns on either side.
    size = (n - 4) * nx
    a, b = block.reshape(-1), spare.reshape(-1)
    for k in range(1, 4):
        np.add(a[: size - k], a[1 : size - k + 1], out=b[: size - k])
        a, b = b, a
    np.add(a[: size - 4], a[1 : size - 3], out=b[2 : size - 2])
    out = b.reshape(n, nx)[: n - 4]
    # No star is looked for in the outermost two columns.
    out[:, :2] = out[:, -2:] = -np.inf
    return out


def _gain_of_noise(image, rms):
    """How much smoothing lowers the noise: 70/256 if it is white, more if it is correlated."""
    ny, nx = image.shape
    height = min(16, ny)
    block, spare = (np.empty((height + 4, nx), np.float32) for _ in range(2))
    ratios = []
    for y in np.linspace(0, max(ny - 16, 0), 5).astype(int):
        smooth = _smooth_rows(image, int(y), int(y) + height, block, spare)
        # Neighbours say the same: every other one is enough.
        values = smooth[::2, 2:-2:2]
        values = np.sort(values[values != 0])
        low, middle = np.percentile(values, [15.8655, 50]) if values.size else (0, 0)
        ratios.append((middle - low) / KERNEL_SUM / rms[min(y // CELL, len(rms) - 1)].mean())
    return min(max(float(np.median(ratios)), WHITE), 1.0)
