"""The background of a frame: measured in cells, and taken from pixels where they are looked at."""

import numpy as np

from astro_narrowband._engine.detection.stamps import around

#: Side of the cells in which the background is measured [pix].
CELL = 64
#: Every so many rows are read for the background: 512 pixels of a cell are plenty.
STRIDE = 8
#: In a frame with fewer pixels than this there are few cells, and twice as many are read.
SMALL = 1 << 20


def measure_sky(data, bad):
    """Level and noise in cells of CELL pixels: median after clipping, and lower half width."""
    ny, nx = data.shape
    my, mx = max(1, round(ny / CELL)), max(1, round(nx / CELL))
    stride = STRIDE if data.size > SMALL else STRIDE // 2
    start = min(stride // 2, ny - 1)
    sample = data[start::stride]
    if bad is not None:
        sample = np.where(bad[start::stride], np.float32(np.nan), sample)
    per_y = CELL // stride
    padded = np.full((my * per_y, mx * CELL), np.nan, np.float32)
    h, w = min(sample.shape[0], padded.shape[0]), min(nx, padded.shape[1])
    padded[:h, :w] = sample[:h, :w]
    cells = padded.reshape(my, per_y, mx, CELL).transpose(0, 2, 1, 3)
    cells = cells.reshape(my * mx, per_y * CELL)
    cells.sort(axis=1)
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
    return _smooth(middle.reshape(my, mx)), _smooth(width.reshape(my, mx))


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


class SkyFree:
    """
    A frame without its background, linear between cells; bad pixels are 0.

    There is no second copy of the frame: the background is taken from the rows
    and the stamps that are asked for.

    Parameters
    ----------
    data : array (ny, nx) of float32
        Not changed.
    bad : array (ny, nx) of bool, or None
    sky : array (my, mx)
        Level in cells.
    """

    def __init__(self, data, bad, sky):
        self.data, self.bad, self.shape = data, bad, data.shape
        ny, nx = data.shape
        my, mx = sky.shape
        centres = (np.arange(mx) + 0.5) * CELL - 0.5
        lines = np.array([np.interp(np.arange(nx), centres, line) for line in sky])
        # Level along the middle of each row of cells, and the step to the next one.
        self.lines = lines.astype(np.float32)
        self.steps = np.diff(self.lines, axis=0, append=self.lines[-1:])
        at = np.clip((np.arange(ny) + 0.5) / CELL - 0.5, 0, my - 1)
        self.upper = at.astype(int)
        self.part = (at - self.upper).astype(np.float32)

    def rows(self, rows, out):
        """Put some rows into ``out``, which is returned."""
        start, stop = rows.start, rows.stop
        while start < stop:
            k = self.upper[start]
            end = min(stop, int(np.searchsorted(self.upper, k, "right")))
            wanted = out[start - rows.start : end - rows.start]
            np.multiply(self.part[start:end, None], self.steps[k], out=wanted)
            wanted += self.lines[k]
            np.subtract(self.data[start:end], wanted, out=wanted)
            start = end
        if self.bad is not None:
            out.reshape(-1)[np.flatnonzero(self.bad[rows])] = 0
        return out

    def stamps(self, y, x, half):
        """
        Return stamps (n, 2 half + 1, 2 half + 1) around pixels, and what counts in them.

        Returns
        -------
        stamps : array of float32
        weight : array of float32, or None
            0 where a pixel is bad or outside the frame; ``None`` where all count.
        outside : array of bool, or None
        """
        nx = self.shape[1]
        rows, columns, outside = around(self.shape, y, x, half)
        rows, columns = rows[:, :, None], columns[:, None, :]
        at = rows * nx + columns
        stamps = self.data.reshape(-1).take(at)
        lost = outside
        if self.bad is not None:
            bad = self.bad.reshape(-1).take(at)
            lost = bad if outside is None else bad | outside
        np.add(self.upper[rows] * nx, columns, out=at)
        sky = self.steps.reshape(-1).take(at)
        sky *= self.part[rows]
        sky += self.lines.reshape(-1).take(at)
        stamps -= sky
        weight = None
        if lost is not None and lost.any():
            weight = (~lost).astype(np.float32)
            if self.bad is not None:
                stamps[bad] = 0
        return stamps, weight, outside
