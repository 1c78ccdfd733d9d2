"""What blocks of pixels tell of a dark: their medians, and smooth maps through their means."""

import numpy as np
from scipy.ndimage import convolve

#: Rows that are fitted at a time; also the side of the blocks that ordinary pixels are told by.
SIDE = 32


def block_median(plane):
    """Median of squares as high as the band, spread over their pixels; NaN do not count."""
    n_rows, nx = plane.shape
    size = min(SIDE, nx)
    n = max(nx // size, 1)
    edge = n * size
    step = max(1, n_rows * size // 256)
    if size % step == 0:
        # The same pixels, without a copy of all.
        sample = plane[:, :edge:step].reshape(n_rows, n, size // step)
        sample = sample.swapaxes(0, 1).reshape(n, -1)
    else:
        sample = plane[:, :edge].reshape(n_rows, n, size).swapaxes(0, 1).reshape(n, -1)[:, ::step]
    known = np.isfinite(sample)
    if not known.all():
        # What is not known shall not count: as many very high as very low.
        sample = np.where(known, sample, np.inf)
        sample = np.where(~known & (np.cumsum(~known, axis=1) % 2 == 0), -np.inf, sample)
    median = np.median(sample, axis=1)
    median[~np.isfinite(median)] = 0
    return to_pixels(median, size, nx)


def fine_median(plane):
    """Return the median of squares of 8 pixels, of each of their pixels: of a steep glow."""
    (n_rows, nx), size = plane.shape, 8
    padded = np.pad(plane, ((0, -n_rows % size), (0, -nx % size)), "reflect")
    squares = padded.reshape(padded.shape[0] // size, size, -1, size)
    median = np.median(squares, axis=(1, 3))
    return np.repeat(np.repeat(median, size, axis=0), size, axis=1)[:n_rows, :nx]


def to_pixels(blocks, size, nx):
    """One value for each column, of one for each block; what is left over follows the last."""
    out = np.empty(nx, np.float32)
    edge = len(blocks) * size
    out[:edge] = np.repeat(blocks, size)
    out[edge:] = blocks[-1]
    return out


def window(grid, width):
    """Sum over windows of blocks, less at the edge."""
    return convolve(grid.astype(float), np.ones((width, width)), mode="constant")


class Parabolas:
    """
    From means of blocks to pixels along one axis.

    Each block is a parabola that has the means of the block and of its neighbours:
    a glow that bends within a block is followed, which straight lines between the
    centres do not do. Written out, without matrix products: their threads stall
    where the cores are busy.
    """

    def __init__(self, n, n_blocks, size):
        self.n_blocks, self.size = n_blocks, size
        x = (np.arange(n) - (size - 1) / 2) / size
        if n_blocks < 3:
            slope = np.clip(x, -0.5, n_blocks - 0.5) if n_blocks == 2 else np.zeros(n)
            self.middle = np.zeros(n, int)
            self.first, self.last = 0, n_blocks - 1
            weights = 1 - slope, np.zeros(n), slope
        else:
            self.middle = np.clip(np.rint(x).astype(int), 1, n_blocks - 2)
            self.first, self.last = -1, 1
            # Pixels left over beyond the last whole block follow its edge.
            u = np.clip(x - self.middle, -1.5, 1.5)
            bend = (u * u - 1 / 12) / 2
            weights = bend - u / 2, 1 - 2 * bend, bend + u / 2
        self.weights = [w.astype(np.float32) for w in weights]

    def _three(self, middle):
        return middle + self.first, middle, middle + self.last

    def rows_of(self, grid, rows, out):
        """Interpolate some rows of a grid, all of one block: (n_rows, n_columns of the grid)."""
        term = np.empty_like(out)
        blocks = self._three(self.middle[rows.start])
        for k, (weight, block) in enumerate(zip(self.weights, blocks, strict=True)):
            if k:
                out += np.multiply(weight[rows, None], grid[block], out=term)
            else:
                np.multiply(weight[rows, None], grid[block], out=out)
        return out

    def at(self, grid, rows):
        """Interpolate any rows of a grid: (n_rows, n_columns of the grid)."""
        middle = self.middle[rows]
        return sum(
            weight[rows, None] * grid[block]
            for weight, block in zip(self.weights, self._three(middle), strict=True)
        )

    def spread(self, grid):
        """Interpolate along the second axis: (n_rows, n)."""
        edge = self.n_blocks * self.size
        out = np.empty((len(grid), self.weights[0].size), np.float32)
        inside = out[:, :edge].reshape(len(grid), self.n_blocks, self.size)
        parts = self._three(self.middle[: edge : self.size])
        for k, (weight, block) in enumerate(zip(self.weights, parts, strict=True)):
            term = grid[:, block, None] * weight[:edge].reshape(self.n_blocks, self.size)
            if k:
                inside += term
            else:
                inside[...] = term
        rest = self._three(self.middle[edge:])
        out[:, edge:] = sum(
            weight[edge:] * grid[:, block] for weight, block in zip(self.weights, rest, strict=True)
        )
        return out
