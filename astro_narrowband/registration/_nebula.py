"""
Two images of nebula: the transform that brings one onto the other where stars do not tell.

Private to `astro_narrowband.registration`. Tiles of one image are looked for in the other by
their normalised correlation (`skimage.feature.match_template`). Each is then what a star is to
the star match: a place in both, with an error; and the same tests follow.
"""

import math
from dataclasses import replace

import numpy as np

from astro_narrowband._engine.frames import as_frame
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.exceptions import AlignmentError
from astro_narrowband.registration import match as _match
from astro_narrowband.registration._alignment import Alignment
from astro_narrowband.registration._starmatch import (
    MAX_CHANCE,
    MAX_CORNER,
    MAX_SCALE,
    SCALE_ERRORS,
    Stars,
    distinct,
    frozen,
    name_of,
    refine,
    scale_of,
)

#: Smoothing that takes most of the noise [pix]; what is smoothed over a quarter of a tile is sky.
FINE = 2.0
#: Brighter than so many times the scatter of the smoothed image nothing counts: stars and
#: cosmic rays are few, nebula is many.
BRIGHTEST = 8.0
#: Images are compared as a whole with so many pixels a side, at so many offsets.
WHOLE, N_OFFSETS = 384, 2
#: Sides of tiles, and how far off they are looked for [pix]; no more of them along an axis.
TILES, SEARCH, MAX_TILES = (48, 256), 10, 8
#: Tiles whose correlation is so many times that of chance are there.
CLEAR = 4.5
#: Tiles that must match, and the least part of those that are there. A turn is taken from so much
#: less of chi2 on: what errors of tiles leave of one is not small.
MIN_TILES, LEAST_PART, SIGNIFICANT = 5, 0.5, 4.0
#: Curvature of the correlation, over its peak, of what is no wider than a pixel: 1 / (2 FINE^2).
#: Where nothing moved and most tiles come near it, it is the detector.
OF_PIXELS = 0.1
#: What the places of all tiles are off by together: the sky of each image is not quite one [pix].
SHARED = 0.015
#: Variance of what tiles tell together, over what their scatter says: neighbours share structure
#: that is wider than they are (pulls were 0.9 where it is fine, and 1.4 where it is wide).
NEIGHBOURS = 1.5


def match_nebula(source, target, *, tolerance):
    """
    Align two frames by all that they show, or raise `AlignmentError`.

    Shifts, half turns, and turns by as little as tiles bear (about a degree).
    """
    label = f"{name_of(source)} -> {name_of(target)}"
    images = [_structure(as_frame(image)) for image in (source, target)]
    if images[0][0].shape != images[1][0].shape:
        raise AlignmentError(f"the frames' shapes differ: {label}")
    solutions = []
    for half_turn in (False, True):
        first = [plane[::-1, ::-1] for plane in images[0]] if half_turn else images[0]
        for offset in _offsets(first[0], images[1][0]):
            tiles = _tiles(first, images[1], offset)
            solution = _solution(label, tiles, first[0].shape, half_turn, tolerance)
            if solution is not None:
                solutions.append(solution)
    solutions.sort(key=lambda solution: solution[0].log_chance)
    if not solutions:
        raise AlignmentError(f"nor do images of the nebula match: {label}")
    solutions = distinct(solutions, [s[0].matrix for s in solutions], images[0][0].shape)
    (best, n_tiles), *others = solutions
    _judge(label, best, n_tiles, [other for other, _ in others])
    return Alignment(
        best.matrix, best.covariance, best.rms, best.n, "nebula", best.matrix[0, 0] < 0,
        best.fraction, best.log_chance,
    )  # fmt: skip


def _judge(label, best, n_tiles, others):
    """Raise AlignmentError unless the solution stands every test."""
    scale, scale_err = scale_of(best.matrix, best.covariance)
    wrong = ""
    if best.log_chance > MAX_CHANCE or best.n < LEAST_PART * n_tiles:
        wrong = f"which may be chance (1e{best.log_chance:.0f})"
    elif any(2 * other.n > best.n and other.log_chance < MAX_CHANCE / 2 for other in others):
        wrong = f"and after another transform {max(other.n for other in others)}"
    elif best.corner > MAX_CORNER:
        wrong = f"which leaves corners uncertain by {best.corner:.2f} pix"
    elif abs(scale - 1) > MAX_SCALE + SCALE_ERRORS * scale_err:
        wrong = f"at a scale of {scale:.4f} +- {scale_err:.4f}"
    if wrong:
        raise AlignmentError(
            f"of its nebula, {best.n} of {n_tiles} pieces match in {label}, {wrong}"
        )


def _structure(frame):
    """An image without its noise, its large scales and its peaks; and which pixels it lacks."""
    from scipy.ndimage import gaussian_filter, zoom
    from skimage.measure import block_reduce

    band = frame.read(slice(0, frame.shape[0]), variance=False)
    bad = ~np.isfinite(band.data)
    if band.mask is not None:
        bad |= band.mask
    if bad.all():
        raise AlignmentError(f"{frame.name}: has no good pixel")
    data = np.where(bad, 0.0, band.data - np.median(band.data[~bad])).astype(np.float32)
    planes = [data, (~bad).astype(np.float32)]
    light, share = (gaussian_filter(plane, FINE) for plane in planes)
    fine = light / np.maximum(share, 1e-3)
    width = _side(frame.shape) / 4
    step = int(width / 4)
    light, share = (gaussian_filter(block_reduce(p, step, np.sum), width / step) for p in planes)
    sky = zoom(light / np.maximum(share, 1e-3), step, order=1, grid_mode=True, mode="nearest")
    image = fine - sky[: fine.shape[0], : fine.shape[1]]
    most = BRIGHTEST * mad_std(image[~bad], 0.0)
    return np.clip(image, -most, most), bad


def _side(shape):
    """Side of a tile."""
    return int(np.clip(min(shape) // 6, *TILES))


def _offsets(source, target):
    """Offsets (dx, dy) at which two images are most alike as a whole."""
    from scipy.signal import correlate
    from skimage.feature import peak_local_max
    from skimage.measure import block_reduce

    step = max(1, math.ceil(max(source.shape) / WHOLE))
    a, b = (block_reduce(plane, step, np.mean) for plane in (source, target))
    alike = correlate(b, a, mode="full", method="fft")
    ny, nx = a.shape
    alike = alike[ny // 2 : -(ny // 2), nx // 2 : -(nx // 2)]
    peaks = peak_local_max(alike, min_distance=3, num_peaks=N_OFFSETS)
    return (peaks[:, ::-1] + [nx // 2 - nx + 1, ny // 2 - ny + 1]) * step


def _tiles(source, target, offset):
    """Tiles of ``source`` as `target` has them: rows of x, y, x, y there, variance, curvature."""
    from skimage.feature import match_template

    (image, bad), (there, lost) = source, target
    ny, nx = image.shape
    side = _side(image.shape)
    reach = SEARCH + math.ceil(max(ny, nx) / WHOLE)
    starts = (
        np.linspace(max(0, reach - d), n - side - max(0, reach + d), min(MAX_TILES, n // side))
        for d, n in zip(offset, (nx, ny), strict=True)
    )
    columns, rows = (np.unique(s[(s >= 0)].astype(int)) for s in starts)
    independent = side**2 / (4 * math.pi * FINE**2)
    out = []
    for y in rows:
        for x in columns:
            u, v = x + offset[0] - reach, y + offset[1] - reach
            box, around = np.s_[y : y + side, x : x + side], np.s_[
                v : v + side + 2 * reach, u : u + side + 2 * reach
            ]  # fmt: skip
            if min(u, v) < 0 or there[around].shape != (side + 2 * reach,) * 2:
                continue
            if max(bad[box].mean(), lost[around].mean()) > 0.2 or not image[box].std() > 0:
                continue
            peak, where, curvature = _peak(match_template(there[around], image[box]))
            if peak * math.sqrt(independent) > CLEAR and min(curvature) > 0:
                middle = (side - 1) / 2
                variance = (1 - peak**2) / peak**2 / (independent * curvature.mean())
                out.append((x + middle, y + middle, u + where[0] + middle, v + where[1] + middle,
                            variance, curvature.mean()))  # fmt: skip
    return np.array(out)


def _peak(alike):
    """Height, place (x, y) and relative curvature along both axes of the peak of a correlation."""
    y, x = np.unravel_index(np.argmax(alike), alike.shape)
    height = float(alike[y, x])
    if not (0 < y < alike.shape[0] - 1 and 0 < x < alike.shape[1] - 1) or height <= 0:
        return 0.0, (x, y), np.zeros(2)
    lines = alike[y, x - 1 : x + 2], alike[y - 1 : y + 2, x]
    bend = np.array([2 * height - low - high for low, _, high in lines])
    slope = np.array([(high - low) / 2 for low, _, high in lines])
    return height, (x, y) + slope / np.maximum(bend, 1e-9), bend / height


def _solution(label, tiles, shape, half_turn, tolerance):
    """What tiles agree on, and their lists; None where it is nothing, or the detector."""
    from skimage.measure import ransac
    from skimage.transform import EuclideanTransform

    n, (ny, nx) = len(tiles), shape
    if n < MIN_TILES:
        return None
    xy, there, variance = tiles[:, :2], tiles[:, 2:4], tiles[:, 4] / 2
    if half_turn:
        xy = np.array([nx - 1, ny - 1]) - xy
    model, _ = ransac(
        (xy, there), EuclideanTransform, min_samples=2, residual_threshold=tolerance,
        max_trials=300, rng=0,
    )  # fmt: skip
    if model is None:
        return None
    pair = [
        Stars(name, shape, place, variance, np.ones(n), n, 0, {})
        for name, place in zip(label.split(" -> "), (xy, there), strict=True)
    ]
    start = np.array(model.params)
    best = refine(*pair, start, False, tolerance, significant=SIGNIFICANT)
    if best is None or (frozen(*pair, best) and np.median(tiles[best.i, 5]) > OF_PIXELS):
        return None
    near = math.pi * best.radius**2 / (2 * SEARCH + 1) ** 2
    lags = 4.0 * nx * ny / FINE**2
    log_chance = _match.chance(best.n, n, near, free=2, hypotheses=lags)
    return replace(best, log_chance=log_chance, covariance=_covariance(*pair, best)), n


def _covariance(source, target, best):
    """
    Covariance of a transform by few tiles, of which a turn may not have been significant.

    Tiles tell a turn so badly that one may be there all the same; and Student's distribution is
    wider, the fewer they are.
    """
    xy, there = source.xy[best.i], target.xy[best.j]
    variance = source.variance[best.i] + target.variance[best.j]
    covariance = _match.fit(xy, there, variance, model="similarity", clip=1e6)[1]
    free = 2 * len(xy) - 4
    covariance *= NEIGHBOURS * free / max(free - 2, 1)
    return covariance + np.diag([0.0, 0.0, SHARED**2, SHARED**2])
