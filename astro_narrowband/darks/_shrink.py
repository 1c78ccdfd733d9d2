"""
Shrink noisy planes towards what their neighbourhood says: empirical Bayes, pixel by pixel.

The dark rates of ordinary pixels differ by far less than the error of any one
of them, so the neighbourhood knows a pixel's rate better than its own darks.
How much better is itself estimated: the spread of *true* values in a
neighbourhood is what is left of the scatter of the fitted ones when their known
errors are taken off. The posterior of a pixel is then that of a normal prior
(neighbourhood, spread) and a normal measurement (fit, error).

Warm and hot pixels do not belong to that prior. Whether a pixel does is judged
by the local false discovery rate (Efron 2004, J. Am. Stat. Assoc. 99, 96): the
density of ordinary pixels over that of all pixels at its deviation, from the
histogram of the frame itself. The posterior is the mixture of both cases, so
that a pixel in doubt has an error that says so.
"""

import numpy as np

from astro_narrowband.bands import map_bands, row_bands

__all__ = ["shrink_plane"]

#: Side of a neighbourhood [pixel]; smaller in images with few of them.
BLOCK, SMALLEST = 32, 8
#: Clipping limit in robust sigma, and the variance of a normal distribution cut there.
CLIP = 3.5
CUT = 1 - 2 * CLIP * np.exp(-(CLIP**2) / 2) / np.sqrt(2 * np.pi) / 0.999534741841929
#: Histogram of deviations [sigma].
REACH, BIN = 12.0, 0.1
N_BINS = round(2 * REACH / BIN)
#: Pixels this near to their neighbourhood [sigma] are ordinary.
CERTAIN = 2.5


def shrink_plane(values, variance, usable, apply, *, workers=None):
    """
    Estimate the prior of a plane and hand the correction of every pixel to ``apply``.

    Parameters
    ----------
    values, variance : `~numpy.ndarray` of float32, (ny, nx)
        What was fitted, and its variance.
    usable : callable
        Takes a slice of rows; returns a bool array of the pixels that are judged.
    apply : callable
        ``apply(rows, first, second)``: with C the covariance of a pixel's
        parameters, and c its column for this one, its posterior is
        ``x + c * first`` and ``C + c c' * second``.
    workers : int, optional

    Returns
    -------
    dict
        ``ordinary``: fraction of pixels that follow the neighbourhood;
        ``spread``: typical standard deviation of true values there; ``gain``:
        typical variance after over before.
    """
    ny, nx = values.shape
    size = min(BLOCK, max(SMALLEST, min(ny, nx) // 6), ny, nx)
    grid_shape = ny // size, nx // size
    blocks = [slice(i * size, (i + 1) * size) for i in range(grid_shape[0])]
    level = np.zeros(grid_shape, np.float32)
    noise = np.zeros(grid_shape, np.float32)
    count = np.ones(grid_shape, np.float32)

    def cut(plane):
        plane = plane[:, : grid_shape[1] * size].reshape(size, grid_shape[1], size)
        return plane.swapaxes(0, 1).reshape(grid_shape[1], size * size)

    def levels(rows):
        x, good = cut(values[rows]), cut(usable(rows))
        centre, _, kept, n = _robust(x, good)
        return centre, _mean(cut(variance[rows]), kept, n), n

    for i, (_, result) in enumerate(map_bands(levels, blocks, workers=workers)):
        level[i], noise[i], count[i] = result
    along_rows, along_columns = (
        _Parabolas(ny, grid_shape[0], size),
        _Parabolas(nx, grid_shape[1], size),
    )

    wide = along_columns.spread(level)

    # Columns and rows of the read-out stand out from any smooth map.
    typical = np.float32(np.median(noise))
    bands = row_bands(ny, size)
    column_sum, column_count = np.zeros(nx), np.zeros(nx)
    row_mean, row_count = np.zeros(ny, np.float32), np.ones(ny, np.float32)

    def profiles(rows):
        rest = np.subtract(values[rows], along_rows.rows_of(wide, rows))
        kept = _near(rest, 4 * _mad(rest), usable(rows))
        rest *= kept
        return rest.sum(axis=0), kept.sum(axis=0)

    for _, (total, n) in map_bands(profiles, bands, workers=workers):
        column_sum += total
        column_count += n
    columns, kept_columns = _significant(column_sum / np.maximum(column_count, 1), typical / ny)

    # Weights of parabolas sum up to one: what all rows have can be in the map.
    wide += columns

    def row_profile(rows):
        rest = np.subtract(values[rows], along_rows.rows_of(wide, rows))
        kept = _near(rest, 4 * _mad(rest), usable(rows))
        rest *= kept
        return rest.sum(axis=1), kept.sum(axis=1)

    for rows, (total, n) in map_bands(row_profile, bands, workers=workers):
        row_mean[rows], row_count[rows] = total, n
    row_mean, kept_rows = _significant(row_mean / np.maximum(row_count, 1), typical / nx)
    # Degrees of freedom that profiles and means take from the scatter they are taken off.
    freedom = np.float32(kept_columns / ny + kept_rows / nx + 1 / (size * size))
    lines = typical * (kept_columns / ny + kept_rows / nx)

    def rest_of(rows):
        rest = along_rows.rows_of(wide, rows)
        rest += row_mean[rows, None]
        return np.subtract(values[rows], rest, out=rest)

    def excess(rows):
        _, square, kept, n = _robust(cut(rest_of(rows)), cut(usable(rows)), about=0)
        return square / (1 - freedom) - _mean(cut(variance[rows]), kept, n), n

    spread = np.zeros(grid_shape, np.float32)
    number = np.ones(grid_shape, np.float32)
    for i, (_, result) in enumerate(map_bands(excess, blocks, workers=workers)):
        spread[i], number[i] = result
    # What the frame as a whole says is known best, but where a neighbourhood, or the
    # nine around it, say more. Cut at zero the estimate is too large on average,
    # never too small.
    expected = _spread_of_frame(spread, level, number / np.maximum(noise, 1e-30) ** 2)
    total = np.maximum(_box(number), 1)
    found = expected
    for estimate, n in ((_box(spread * number) / total, total), (spread, np.maximum(number, 1))):
        certain = estimate - expected > 3 * (noise + expected) * np.sqrt(2 / n)
        found = np.where(certain, np.maximum(estimate, found), found)
    spread = found
    # The neighbourhood's own mean has an error as well.
    prior = spread + 1.5 * (noise + spread) / np.maximum(count, 1) + lines
    prior = prior.astype(np.float32)

    prior_rows = np.repeat(prior, size, axis=1)
    prior_rows = np.pad(prior_rows, ((0, 0), (0, nx - prior_rows.shape[1])), "edge")

    def deviations_of(rows):
        """Deviations, the inverse of their variances, and their bins."""
        rest = rest_of(rows)
        weight = variance[rows] + prior_rows[min(rows.start // size, grid_shape[0] - 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(1, weight, out=weight)
            z = np.sqrt(weight)
            z *= rest
        z += np.float32(REACH)
        z *= np.float32(1 / BIN)
        # Not numbers, too: the first and the last bin are of what lies beyond.
        np.copyto(z, np.float32(N_BINS), where=~(z < N_BINS))
        z += 1
        np.maximum(z, 0, out=z)
        return rest, weight, z.astype(np.intp)

    def deviations(rows):
        good = usable(rows)
        bins = deviations_of(rows)[2]
        # Pixels that are not judged go beyond the last bin.
        np.copyto(bins, N_BINS + 2, where=~good)
        return np.bincount(bins.ravel(), minlength=N_BINS + 3)[1:-2], np.count_nonzero(good)

    counts, n_pixels = np.zeros(N_BINS), 0
    for _, (part, n) in map_bands(deviations, bands, workers=workers):
        counts += part
        n_pixels += n
    ordinary = np.pad(_ordinary(counts, n_pixels), 1, "edge").astype(np.float32)

    def work(rows):
        delta, weight, bins = deviations_of(rows)
        p = ordinary.take(bins)
        p *= usable(rows)
        delta *= weight
        np.negative(delta, out=delta)
        second = 1 - p
        second *= delta
        second *= delta
        second -= weight
        second *= p
        delta *= p
        apply(rows, delta, second)
        return float(p.sum())

    belong = sum(result for _, result in map_bands(work, bands, workers=workers))
    middle = float(np.median(prior))
    return {
        "ordinary": belong / (ny * nx),
        "spread": float(np.median(spread)) ** 0.5,
        "gain": middle / (middle + float(typical)) if typical > 0 else 1.0,
    }


def _spread_of_frame(spread, level, weight):
    """
    Variance of true values in every neighbourhood, ``a + c * level**2`` over the frame.

    Pixels differ by a part of what they have: where a glow is bright, the rates
    differ more. Neither part is allowed to be negative.
    """
    weight = weight / weight.sum()
    a = max(float((weight * spread).sum()), 0.0)
    if not np.ptp(level) > 0.3 * abs(float(np.median(level))):
        return np.full_like(spread, a)
    square = level.astype(float) ** 2
    mean = (weight * square).sum()
    lever = square - mean
    c = (weight * lever * spread).sum() / (weight * lever * lever).sum()
    c = max(c, 0.0)
    a = (weight * spread).sum() - c * mean
    if a < 0:
        a = 0.0
        c = max((weight * square * spread).sum() / (weight * square * square).sum(), 0.0)
    return (a + c * square).astype(np.float32)


def _ordinary(counts, n):
    """Probability that a pixel is ordinary, for each bin of its deviation in sigma."""
    middle = (np.arange(N_BINS) + 0.5) * BIN - REACH
    normal = np.exp(-(middle**2) / 2) * BIN / np.sqrt(2 * np.pi)
    core = np.abs(middle) < 1
    fraction = min(1.0, counts[core].sum() / max(n * normal[core].sum(), 1e-9))
    kernel = np.bartlett(11)
    seen = np.convolve(counts, kernel, "same")
    expected = np.convolve(fraction * n * normal, kernel, "same")
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(seen > 0, np.minimum(expected / seen, 1), 1)
    # The few that are not ordinary cannot be told from the many in their midst;
    # chance in the histogram must not make doubt of it.
    p[np.abs(middle) < CERTAIN] = 1
    half = len(middle) // 2
    # The farther out, the less ordinary.
    p[half:] = np.minimum.accumulate(p[half:])
    p[:half] = np.minimum.accumulate(p[:half][::-1])[::-1]
    p[np.abs(middle) > 6] = 0
    return p


def _mad(x):
    """Robust standard deviation of a band about zero, from a part of it."""
    part = np.abs(x.ravel()[:: max(1, x.size // 4096)])
    return np.float32(1.4826 * np.median(part)) if part.size else np.float32(0)


def _near(x, width, good):
    """Where ``good`` is, and ``x`` within ``width`` of zero; ``good`` is overwritten."""
    good &= x <= width
    good &= x >= -width
    return good


def _robust(x, good, about=None):
    """
    Clipped centre and mean square (about the centre) of each row.

    And what was kept, as float32, and how many. ``x`` may be overwritten.
    """
    step = max(1, x.shape[1] // 256)
    part, seen = x[:, ::step], good[:, ::step]
    centre = _medians(part, seen)[:, None] if about is None else np.float32(about)
    width = np.float32(1.4826) * _medians(np.abs(part - centre), seen)[:, None]
    kept = np.empty(x.shape, np.float32)
    rest, product = np.empty_like(kept), np.empty_like(kept)
    for _ in range(2):
        np.subtract(x, centre, out=rest)
        inside = _near(rest, np.float32(CLIP) * width, good.copy())
        np.copyto(kept, inside)
        np.multiply(rest, kept, out=product)
        n = kept.sum(axis=1)
        some = np.maximum(n, 1)
        square = np.einsum("ij,ij->i", rest, product) / (some * np.float32(CUT))
        if about is None:
            centre = centre + (product.sum(axis=1) / some)[:, None]
        width = np.sqrt(square)[:, None]
    return (centre[:, 0] if about is None else None), square, kept, n


def _medians(x, good):
    """Median of what is good in each row; 0 where nothing is."""
    n = x.shape[1]
    count = np.count_nonzero(good, axis=1)
    if count.min() == n:
        x = np.sort(x, axis=1)
        return (x[:, (n - 1) // 2] + x[:, n // 2]) * np.float32(0.5)
    x = np.sort(np.where(good, x, np.float32(np.inf)), axis=1)
    row = np.arange(len(x))
    median = (x[row, np.maximum(count - 1, 0) // 2] + x[row, np.minimum(count // 2, n - 1)]) / 2
    return np.where(count > 0, median, np.float32(0)).astype(np.float32)


def _mean(x, kept, n):
    return np.einsum("ij,ij->i", x, kept) / np.maximum(n, 1)


def _significant(profile, noise):
    """Shrink a profile to zero as far as it may be noise (James and Stein); and by how much."""
    variance = float(np.mean(profile**2))
    keep = max(0.0, 1 - float(noise) / variance) if variance > 0 else 0.0
    return (profile * keep).astype(np.float32), keep


def _box(grid):
    """Sum over 3 x 3, less at the edge."""
    padded = np.pad(grid, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


class _Parabolas:
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

    def rows_of(self, grid, rows):
        """Interpolate some rows of a grid, all of one block: (n_rows, n_columns of the grid)."""
        out = None
        for weight, block in zip(self.weights, self._three(self.middle[rows.start]), strict=True):
            term = weight[rows, None] * grid[block]
            out = term if out is None else np.add(out, term, out=out)
        return out

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
