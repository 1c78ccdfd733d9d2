"""The background of a frame: measured in cells, and taken from pixels where they are looked at."""

import numpy as np

from astro_narrowband.detect.stamps import around

__all__ = ["CELL", "SkyFree", "measure_sky"]

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
        at = np.clip((np.arange(ny) + 0.5) / CELL - 0.5, 0, my - 1)
        upper = np.minimum(at.astype(int), max(my - 2, 0))
        part = (at - upper)[:, None]
        lines = sky[upper] * (1 - part) + sky[np.minimum(upper + 1, my - 1)] * part
        # Level in the middle of each cell of every row, and the step to the next one.
        self.lines = lines.astype(np.float32)
        self.steps = np.diff(self.lines, axis=1, append=self.lines[:, -1:])
        # Columns from the middle of the first cell to that of the last one: whole cells.
        self.first = min(CELL // 2, nx)
        self.n_cells = (min(self.first + CELL * (mx - 1), nx) - self.first) // CELL
        self.ramp = (np.arange(CELL, dtype=np.float32) + np.float32(0.5)) / CELL

    def rows(self, rows, out):
        """Put some rows into ``out``, which is returned."""
        first, n = self.first, self.n_cells
        last = first + CELL * n
        lines = self.lines[rows]
        cells = out[:, first:last].reshape(len(out), n, CELL)
        np.multiply(self.steps[rows, :n, None], self.ramp, out=cells)
        cells += lines[:, :n, None]
        out[:, :first] = lines[:, :1]
        out[:, last:] = lines[:, n : n + 1]
        np.subtract(self.data[rows], out, out=out)
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
        rows, columns, outside = around(self.shape, y, x, half)
        at = rows[:, :, None] * self.shape[1] + columns[:, None, :]
        stamps = self.data.reshape(-1)[at]
        cell = np.clip((columns - self.first) // CELL, 0, self.n_cells)
        along = columns - self.first - cell * CELL
        along = np.where((along >= 0) & (cell < self.n_cells), self.ramp[along % CELL], 0)
        place = rows[:, :, None] * self.lines.shape[1] + cell[:, None, :]
        sky = self.steps.reshape(-1)[place]
        sky *= along.astype(np.float32)[:, None, :]
        sky += self.lines.reshape(-1)[place]
        stamps -= sky
        lost = outside
        if self.bad is not None:
            bad = self.bad.reshape(-1)[at]
            stamps[bad] = 0
            lost = bad if outside is None else bad | outside
        weight = None
        if lost is not None and lost.any():
            weight = (~lost).astype(np.float32)
        return stamps, weight, outside
