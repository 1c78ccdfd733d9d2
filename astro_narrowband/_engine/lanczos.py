"""
The numeric kernels of resampling: Lanczos-3 and bilinear, on tiles that fit in the cache.

float32 throughout; weights are normalised to sum 1 for every fraction of a pixel.
"""

import math
from itertools import pairwise

import numpy as np

#: Steps of the kernel table per pixel: the error of the weights is below 1e-3 / 2.
STEPS = 1024
#: Pixels of a tile: with smaller ones threads wait for each other more than the cache gives.
TILE_PIXELS = 1 << 18
#: Correlation of noise along one axis at lags 1, 2, ... after interpolation, for unit
#: loss of variance at lag 0. Kernels: Lanczos-3 at half a pixel, bilinear.
SPREAD = {"lanczos3": (0.9361, -0.6337, 0.2239, -0.0306, 0.0027), "bilinear": (0.5,)}
#: Interpolation takes no more of the variance of single pixels than this, along one axis.
MOST_LOST = {"lanczos3": 0.3, "bilinear": 0.5}


def lanczos(fraction):
    """
    Weights (6, ...) of the pixels -2 ... 3 for positions ``fraction`` (0 to 1) past pixel 0.

    Lanczos-3, sinc(x) sinc(x / 3), divided by its sum.
    """
    x = np.asarray(fraction, float) - np.arange(-2, 4).reshape((6,) + (1,) * np.ndim(fraction))
    weights = np.sinc(x) * np.sinc(x / 3)
    # A whole number of pixels is exact: np.sinc leaves 4e-17 where 0 is meant.
    weights[np.abs(weights) < 1e-12] = 0
    return weights / weights.sum(axis=0)


def linear(fraction):
    """Weights (6, ...) of a straight line between pixels 0 and 1, in the places of `lanczos`."""
    fraction = np.asarray(fraction, float)
    weights = np.zeros((6, *fraction.shape))
    weights[2], weights[3] = 1 - fraction, fraction
    return weights


def noise_lags(correlation, kernel="lanczos3"):
    """
    Correlation of noise along one axis at lags -5 ... 5 (or fewer), of sum 1.

    Of an image of a NOISECOR and RESAMPLE (Lanczos-3 where it is none of the kernels); noise
    that lost more than interpolation takes is that of a Gaussian blur.
    """
    kernel = kernel if kernel in SPREAD else "lanczos3"
    spread, lost = np.array(SPREAD[kernel]), 1 - math.sqrt(correlation)
    if lost > MOST_LOST[kernel]:
        reach = math.ceil(2 / (1 - lost))  # five standard deviations
        lags = np.exp(-math.pi * (1 - lost) ** 2 * np.arange(-reach, reach + 1) ** 2)
        return lags / lags.sum()
    spread *= 0.5 * lost / spread.sum()
    return np.concatenate([spread[::-1], [1 - lost], spread])


_TABLES = {}


def table(kernel):
    """Weights (6, STEPS + 1) float32 of a kernel."""
    if kernel not in _TABLES:
        function = {"lanczos3": lanczos, "bilinear": linear}[kernel]
        _TABLES[kernel] = np.ascontiguousarray(
            function(np.arange(STEPS + 1) / STEPS), dtype=np.float32
        )
    return _TABLES[kernel]


def _weighted_rows(source, weights, out, scratch):
    """Out = sum of weights[k] * source[k : k + n]; zero weights cost nothing."""
    n = out.shape[0]
    fresh = True
    for k, w in enumerate(weights):
        if w == 0:
            continue
        if fresh:
            np.multiply(source[k : k + n], w, out=out)
            fresh = False
        else:
            np.multiply(source[k : k + n], w, out=scratch)
            np.add(out, scratch, out=out)


def separable(source, wy, wx, out, left=0):
    """
    Shift an image by a fraction of a pixel.

    Parameters
    ----------
    source : array (n + 5, nx) float32
        Row 0 belongs to tap 0 of the first output row.
    wy, wx : sequence of 6 float
    out : array (n, m) float32
    left : int, optional
        Column of the source that belongs to tap 0 of the first output column. Where
        columns are wanted that the source does not have its edge is repeated.
    """
    (n, m), nx = out.shape, source.shape[1]
    wy = [np.float32(w) for w in wy]
    wx = [np.float32(w) for w in wx]
    # Columns of the source that there are, and where they lie among those wanted.
    width = m + 5
    first, last = min(max(left, 0), nx - 1), min(max(left + width, 1), nx)
    low = min(max(first - left, 0), width - 1)
    high = min(low + last - first, width)
    rows = max(1, TILE_PIXELS // width)
    down = np.empty((rows, width), np.float32)
    other = np.empty_like(down)
    for y in range(0, n, rows):
        k = min(rows, n - y)
        block = source[y : y + k + 5, first : first + high - low]
        _weighted_rows(block, wy, down[:k, low:high], other[:k, low:high])
        down[:k, :low] = down[:k, low : low + 1]
        down[:k, high:] = down[:k, high - 1 : high]
        target, scratch = out[y : y + k], other[:k, :m]
        fresh = True
        for i, w in enumerate(wx):
            if w == 0:
                continue
            if fresh:
                np.multiply(down[:k, i : i + m], w, out=target)
                fresh = False
            else:
                np.multiply(down[:k, i : i + m], w, out=scratch)
                np.add(target, scratch, out=target)


def scatter_shift(y, x, taps_y, taps_x, shape):
    """
    Part of the weight of each output pixel that lies on bad pixels, after a shift.

    Parameters
    ----------
    y, x : array (n,)
        Bad pixels, as the output index that meets them with tap 0.
    taps_y, taps_x : array (6,)
        Kernel weights.
    shape : tuple of int
        Of the output.

    Returns
    -------
    at : array
        Flat indices of output pixels, sorted.
    part : array
        Sum of |w| over bad pixels, over the sum of |w|.
    """
    wy, wx = (np.abs(taps) / np.abs(taps).sum() for taps in (taps_y, taps_x))
    places, weights = [], []
    for j in np.flatnonzero(wy):
        for i in np.flatnonzero(wx):
            oy, ox = y - j, x - i
            use = (oy >= 0) & (oy < shape[0]) & (ox >= 0) & (ox < shape[1])
            places.append((oy * shape[1] + ox)[use])
            weights.append(np.full(len(places[-1]), wy[j] * wx[i]))
    return _summed(places, weights)


def scatter_affine(y, x, matrix, shape, kernel, rows):
    """
    As `scatter_shift` for any affine transform, for some rows of the output.

    Parameters
    ----------
    y, x : array (n,)
        Bad pixels of the source.
    matrix : array (3, 3)
        From source to output.
    shape : tuple of int
        Of the whole output.
    kernel : str
    rows : slice
    """
    nx = shape[1]
    inverse = np.linalg.inv(matrix)
    base_x = np.rint(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]).astype(np.int64)
    base_y = np.rint(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]).astype(np.int64)
    weight = np.abs(table(kernel))
    weight = weight / weight.sum(axis=0)
    reach = int(np.ceil(3 * np.abs(matrix[:2, :2]).sum(axis=1).max() + 0.5))
    places, weights = [], []
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            oy, ox = base_y + j, base_x + i
            sx = inverse[0, 0] * ox + inverse[0, 1] * oy + inverse[0, 2]
            sy = inverse[1, 0] * ox + inverse[1, 1] * oy + inverse[1, 2]
            floor_x, floor_y = np.floor(sx), np.floor(sy)
            tap_x, tap_y = (x - floor_x).astype(np.int64) + 2, (y - floor_y).astype(np.int64) + 2
            use = (
                (tap_x >= 0) & (tap_x < 6) & (tap_y >= 0) & (tap_y < 6)
                & (ox >= 0) & (ox < nx) & (oy >= rows.start) & (oy < rows.stop)
            )  # fmt: skip
            fx = np.rint((sx[use] - floor_x[use]) * STEPS).astype(np.int64)
            fy = np.rint((sy[use] - floor_y[use]) * STEPS).astype(np.int64)
            places.append((oy[use] - rows.start) * nx + ox[use])
            weights.append(weight[tap_x[use], fx] * weight[tap_y[use], fy])
    return _summed(places, weights)


def _summed(places, weights):
    """Sum weights that fall on the same place."""
    places = np.concatenate(places) if places else np.zeros(0, np.int64)
    if len(places) == 0:
        return places, np.zeros(0)
    weights = np.concatenate(weights)
    order = np.argsort(places, kind="stable")
    places = places[order]
    first = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
    return places[first], np.add.reduceat(weights[order], first)


def affine(source, start, step_x, step_y, out, kernel):
    """
    Interpolate at positions that are linear in the output pixel.

    Parameters
    ----------
    source : array (ny, nx) float32, C order
    start : tuple of float
        Position (x, y) in ``source`` of output pixel (0, 0).
    step_x, step_y : tuple of float
        What the position (x, y) moves by with one output column and row.
    out : array (n, m) float32
        Pixels whose taps leave the source take the value of its edge: the
        caller masks them.
    kernel : str
    """
    ny, nx = source.shape
    n, m = out.shape
    weights = table(kernel)
    used = np.flatnonzero(weights.any(axis=1))
    flat = source.reshape(-1)
    width = 512
    height = max(1, TILE_PIXELS // 8 // width)
    for y0 in range(0, n, height):
        y = np.arange(y0, min(y0 + height, n))[:, None]
        for x0 in range(0, m, width):
            x = np.arange(x0, min(x0 + width, m))[None, :]
            sx = start[0] + step_x[0] * x + step_y[0] * y
            sy = start[1] + step_x[1] * x + step_y[1] * y
            floor_x, floor_y = np.floor(sx), np.floor(sy)
            fx = np.rint((sx - floor_x) * STEPS).astype(np.intp).ravel()
            fy = np.rint((sy - floor_y) * STEPS).astype(np.intp).ravel()
            ix = np.clip(floor_x, 2, nx - 4).astype(np.intp)
            iy = np.clip(floor_y, 2, ny - 4).astype(np.intp)
            at = ((iy - 2) * nx + (ix - 2)).ravel()
            # The same index serves every tap: the view of the source starts at the tap.
            columns = [np.take(weights[k], fx) for k in used]
            total = np.zeros(at.shape, np.float32)
            line = np.empty_like(total)
            value = np.empty_like(total)
            for j in used:
                line[...] = 0
                for w, i in zip(columns, used, strict=True):
                    np.take(flat[j * nx + i :], at, out=value, mode="clip")
                    np.multiply(value, w, out=value)
                    np.add(line, value, out=line)
                np.multiply(line, np.take(weights[j], fy), out=line)
                np.add(total, line, out=total)
            out[y[0, 0] : y[-1, 0] + 1, x[0, 0] : x[0, -1] + 1] = total.reshape(len(y), -1)


# --------------------------------------------------------------------------- small rotations

#: Positions in a tile may be off by this where its weights are taken as constant [pix].
DRIFT = 2e-3
#: The same of the table of weights there, and how far a fraction may be outside 0 to 1 for it.
FINE, MARGIN = 8192, 1 / 64


def can_shear(matrix):
    """Whether `sheared` is quick enough for this transform (output to source)."""
    (a, b), (c, d) = matrix[:2, :2]
    if min(a, d) < 0.9:
        return False
    drift = max(abs(a - b * c / d - 1), abs(d - 1))
    return max(abs(b), abs(c)) < 0.02 and drift * 40 < 2 * DRIFT


def _blend(rows, weights, out, scratch):
    """Set out to the sum of weights[k] * rows[k]; weights broadcast."""
    np.multiply(rows[0], weights[0], out=out)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        np.multiply(row, weight, out=scratch)
        np.add(out, scratch, out=out)


def _fine_table(kernel):
    """Weights (n_taps, n) at FINE steps a pixel from -MARGIN to 1 + MARGIN, and the first tap."""
    key = kernel, FINE
    if key not in _TABLES:
        fraction = np.arange(-round(MARGIN * FINE), FINE + round(MARGIN * FINE) + 1) / FINE
        if kernel == "bilinear":
            taps = linear(np.clip(fraction, 0, 1))[2:4], 2
        else:
            taps = lanczos(fraction), 0
        _TABLES[key] = np.ascontiguousarray(taps[0], dtype=np.float32), taps[1]
    return _TABLES[key]


def _weights(kernel, fraction):
    """Weights (n_taps, n) and the first tap; fractions may be a little outside 0 to 1."""
    weights, first = _fine_table(kernel)
    at = np.rint((fraction + MARGIN) * FINE).astype(np.intp)
    return np.take(weights, at, axis=1, mode="clip"), first


def sheared(source, matrix, out, kernels, first_row):
    """
    Interpolate under a small rotation, in two passes of one axis each.

    First along x onto the columns of the output, in every source row; then
    along y. Within a tile the fraction of a pixel depends on the row alone in
    the first pass and on the column alone in the second, to `DRIFT`: so each
    pass is as cheap as a shift.

    Parameters
    ----------
    source : sequence of arrays (ny, nx) float32
        Planes that share the geometry.
    matrix : array (3, 3)
        From output pixels to source pixels; taps must lie within the source.
    out : sequence of arrays (n, m) float32
    kernels : sequence of str
        One for each plane.
    first_row : int
        Row of the whole output that ``out`` starts with: tiles lie on a fixed
        grid, so that bands of any height give the same pixels.
    """
    (m00, m01, m02), (m10, m11, m12), _ = matrix
    n, m = out[0].shape
    # Along a source row r the position of column x is alpha x + beta r + gamma.
    alpha, beta = m00 - m01 * m10 / m11, m01 / m11
    gamma = m02 - m01 * m12 / m11
    width = int(min(512, max(16, 2 * DRIFT / max(abs(alpha - 1), 1e-9))))
    height = int(min(96, max(16, 2 * DRIFT / max(abs(m11 - 1), 1e-9))))
    for grid in range(first_row // height * height, first_row + n, height):
        y0, y1 = max(grid, first_row), min(grid + height, first_row + n)
        center = grid + (height - 1) / 2
        x = np.arange(m)
        # The source row of output row y is y + offset.
        offset = m10 * x + (m11 - 1) * center + m12
        shift = np.floor(offset).astype(np.int64)
        cuts = [0, *(np.flatnonzero(np.diff(shift)) + 1).tolist(), m]
        edges = []
        for x0, x1 in pairwise(cuts):
            n_parts = -(-(x1 - x0) // width)
            edges += [x0 + (x1 - x0) * i_part // n_parts for i_part in range(n_parts)]
        for x0, x1 in pairwise([*edges, m]):
            k = int(shift[x0])
            first, last = y0 + k - 2, y1 + k + 4
            fraction_y = offset[x0:x1] - k
            r = np.arange(first, last)
            along = (alpha - 1) * (x0 + x1 - 1) / 2 + beta * r + gamma
            steps = np.floor(along).astype(np.int64)
            groups = np.flatnonzero(np.diff(steps)) + 1
            groups = [0, *groups.tolist(), len(r)]
            for plane, target, kernel in zip(source, out, kernels, strict=True):
                wx, tap_x = _weights(kernel, along - steps)
                wy, tap_y = _weights(kernel, fraction_y)
                between = np.empty((len(r), x1 - x0), np.float32)
                scratch = np.empty_like(between)
                for g0, g1 in pairwise(groups):
                    left = x0 + int(steps[g0]) - 2 + tap_x
                    block = plane[first + g0 : first + g1]
                    _blend(
                        [block[:, left + i : left + i + x1 - x0] for i in range(len(wx))],
                        wx[:, g0:g1, None], between[g0:g1], scratch[g0:g1],
                    )  # fmt: skip
                h = y1 - y0
                _blend(
                    [between[tap_y + j : tap_y + j + h] for j in range(len(wy))],
                    wy[:, None, :], target[y0 - first_row : y1 - first_row, x0:x1], scratch[:h],
                )  # fmt: skip
