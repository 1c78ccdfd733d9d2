"""
Two lists of positions: which transform maps one onto the other, and how likely that is chance.

Private to `astro_narrowband.register`. Positions are float64 arrays (n, 2) of
x, y. A transform is a 3 x 3 matrix for columns (x, y, 1).
"""

import math

import numpy as np

__all__ = [
    "apply",
    "chance",
    "fit",
    "mutual_matches",
    "rotation_about",
    "rotations",
    "vote",
]


def apply(matrix, xy):
    """Return positions (n, 2) mapped by a 3 x 3 matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def rotation_about(center, angle, scale=1.0):
    """Matrix of a rotation by ``angle`` [rad] about ``center``, which stays where it is."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    x, y = center
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0.0, 0.0, 1.0]])


def vote(source, target, radius, *, n_best=4):
    """
    Offsets that bring many sources onto targets.

    Every pair votes for its difference. Votes are counted in squares of 2
    ``radius`` that overlap by half, so that no peak is cut in four.

    Returns
    -------
    list of ((dx, dy), n_votes)
        Best first, distinct by more than 4 radii.
    """
    if len(source) == 0 or len(target) == 0:
        return []
    difference = (target[None, :, :] - source[:, None, :]).reshape(-1, 2)
    cell = np.floor(difference / radius).astype(np.int64)
    stride = 1 << 31
    key = cell[:, 0] * stride + cell[:, 1]
    values, counts = _counted(key)
    # Each occupied cell and each of its lower neighbours may be the first of a 2 x 2 square.
    corners = np.concatenate([values, values - 1, values - stride, values - stride - 1])
    corners, _ = _counted(corners)
    total = np.zeros(len(corners), np.int64)
    for step in (0, 1, stride, stride + 1):
        at = np.searchsorted(values, corners + step)
        at[at == len(values)] = 0
        total += np.where(values[at] == corners + step, counts[at], 0)
    n_look = min(16 * n_best, len(corners))
    best = np.argpartition(-total, n_look - 1)[:n_look]
    best = best[np.argsort(-total[best], kind="stable")]
    out = []
    for k in best:
        y = ((int(corners[k]) + stride // 2) % stride) - stride // 2
        x = (int(corners[k]) - y) // stride
        inside = (np.abs(cell[:, 0] - x - 0.5) < 1) & (np.abs(cell[:, 1] - y - 0.5) < 1)
        offset = np.median(difference[inside], axis=0)
        if all(np.hypot(*(offset - other)) > 4 * radius for other, _ in out):
            out.append((offset, int(total[k])))
        if len(out) == n_best:
            break
    return out


def _counted(keys):
    """Sorted values of an array of integers, and how often each occurs."""
    keys = np.sort(keys)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.diff(np.concatenate([first, [len(keys)]]))


def rotations(source, target, radius, *, n_stars=40, n_best=4, scale_free=False):
    """
    Rotation angles [rad] that turn many pairs of sources into pairs of targets of equal length.

    Pairs of the ``n_stars`` first of each list are compared. With
    ``scale_free`` lengths may differ by a common factor, found as well.

    Returns
    -------
    list of (angle, scale, n_votes)
        Best first, angles in -pi to pi.
    """
    a, b = source[:n_stars], target[:n_stars]
    if len(a) < 2 or len(b) < 2:
        return []
    length_a, angle_a = _pairs(a)
    length_b, angle_b = _pairs(b)
    keep_a, keep_b = length_a > 10 * radius, length_b > 10 * radius
    length_a, angle_a, length_b, angle_b = (
        length_a[keep_a], angle_a[keep_a], length_b[keep_b], angle_b[keep_b],
    )  # fmt: skip
    if len(length_a) == 0 or len(length_b) == 0:
        return []
    if scale_free:
        i, j = np.divmod(np.arange(len(length_a) * len(length_b)), len(length_b))
        ratio = np.log(length_b[j] / length_a[i])
    else:
        order = np.argsort(length_b)
        length_b, angle_b = length_b[order], angle_b[order]
        first = np.searchsorted(length_b, length_a - 2 * radius)
        last = np.searchsorted(length_b, length_a + 2 * radius)
        n = last - first
        i = np.repeat(np.arange(len(n)), n)
        j = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
        ratio = np.zeros(len(i))
    if len(i) == 0:
        return []
    # The ends of a pair are not told apart: angles count modulo pi.
    turn = np.mod(angle_b[j] - angle_a[i], math.pi)
    # Weighted by what a pair of that length says about the angle.
    width = math.radians(0.25)
    n_cells = round(math.pi / width)
    found = {}
    for shift in (0.0, 0.5):
        cell = np.floor(turn / width + shift).astype(np.int64) % n_cells
        for s_shift in (0.0, 0.5) if scale_free else (0.0,):
            ratio_cell = np.floor(ratio / 0.01 + s_shift).astype(np.int64)
            key = (ratio_cell + 4096) * n_cells + cell
            values, counts = _counted(key)
            for k in np.argsort(-counts, kind="stable")[:n_best]:
                member = key == values[k]
                mean = np.angle(np.exp(2j * turn[member]).sum()) / 2
                factor = math.exp(ratio[member].mean())
                found[(round(math.degrees(mean) * 4), round(factor, 2))] = (
                    int(counts[k]), mean, factor,
                )  # fmt: skip
    best = sorted(found.values(), key=lambda item: -item[0])
    out = []
    for count, mean, factor in best:
        if all(
            abs(math.sin(mean - other)) > width or abs(factor - f) > 0.02 for other, f, _ in out
        ):
            out.append((mean, factor, count))
        if len(out) == n_best:
            break
    return [
        (math.remainder(mean + half, 2 * math.pi), factor, count)
        for mean, factor, count in out
        for half in (0.0, math.pi)
    ]


def _pairs(xy):
    i, j = np.triu_indices(len(xy), 1)
    dx, dy = (xy[j] - xy[i]).T
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def mutual_matches(mapped, target, radius):
    """Return indices (i, j) of pairs that are each other's nearest, within ``radius``."""
    if len(mapped) == 0 or len(target) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    from scipy.spatial import cKDTree

    distance, j = cKDTree(target).query(mapped, distance_upper_bound=radius)
    i = np.flatnonzero(np.isfinite(distance))
    _, back = cKDTree(mapped).query(target[j[i]])
    mutual = back == i
    return i[mutual], j[i][mutual]


def fit(source, target, variance, *, model, angle=0.0, clip=4.0):
    """
    Weighted least squares of a transform, with clipping.

    Parameters
    ----------
    source, target : array (n, 2)
        Matched positions.
    variance : array (n,)
        Of one coordinate of the difference [pix^2].
    model : {"translation", "similarity"}
        A translation comes after a turn by ``angle``, which is not fitted.
    angle : float
        0 or pi [rad], for a translation.
    clip : float
        Pairs farther off than this many sigma are left out.

    Returns
    -------
    matrix : array (3, 3)
    covariance : array (4, 4)
        Of a, b, tx, ty in x' = a x - b y + tx, y' = b x + a y + ty.
    used : array of bool (n,)
    excess : float
        Variance added to every pair, so that chi2 per degree of freedom is 1, or its median
        right if that takes less [pix^2].
    chi2 : float
        Of the pairs used, with ``excess``.
    """
    used = np.ones(len(source), bool)
    excess = 0.0
    # Coordinates about the middle keep the normal matrix well conditioned.
    middle = source.mean(axis=0)
    for _ in range(20):
        weights = used / (variance + excess)
        parameters, covariance = _solve(source - middle, target, weights, model, angle)
        a, b, tx, ty = parameters
        matrix = np.array([[a, -b, tx], [b, a, ty], [0.0, 0.0, 1.0]])
        residual = target - apply(matrix, source - middle)
        square = (residual**2).sum(axis=1)
        free = 2 * used.sum() - (2 if model == "translation" else 4)
        new = _excess(square[used], variance[used], free)
        if len(source) >= 6:
            # The median does not follow a few stars with a hot pixel or a neighbour in them.
            new = min(new, _excess_of_median(square, variance))
        # 2 degrees of freedom per pair: the clip is the radius of equal improbability.
        keep = square <= (clip**2 + 2) * (variance + new)
        if keep.sum() < (1 if model == "translation" else 2):
            keep = used
        if (keep == used).all() and abs(new - excess) < 1e-3 * (excess + variance.mean()):
            excess = new
            break
        used, excess = keep, new
    chi2 = float((square[used] / (variance[used] + excess)).sum())
    # Where the scatter has wider wings than the excess accounts for, the errors follow.
    free = max(2 * int(used.sum()) - (2 if model == "translation" else 4), 1)
    covariance *= max(1.0, chi2 / free)
    shift = np.array([[1.0, 0.0, -middle[0]], [0.0, 1.0, -middle[1]], [0.0, 0.0, 1.0]])
    # t = t_middle - R middle: the same in the covariance.
    jacobian = np.eye(4)
    jacobian[2, :2] = -middle[0], middle[1]
    jacobian[3, :2] = -middle[1], -middle[0]
    return matrix @ shift, jacobian @ covariance @ jacobian.T, used, excess, chi2


def _solve(source, target, weights, model, angle):
    x, y = source.T
    u, v = target.T
    w = weights
    if model == "translation":
        a, b = math.cos(angle), math.sin(angle)
        # cos(pi) and sin(pi) to the bit: a half turn must be an exact view.
        a, b = round(a, 12), round(b, 12)
        total = w.sum()
        tx = (w * (u - (a * x - b * y))).sum() / total
        ty = (w * (v - (b * x + a * y))).sum() / total
        covariance = np.zeros((4, 4))
        covariance[2, 2] = covariance[3, 3] = 1 / total
        return np.array([a, b, tx, ty]), covariance
    n = len(x)
    design = np.zeros((2 * n, 4))
    design[:n, 0], design[:n, 1], design[:n, 2] = x, -y, 1
    design[n:, 0], design[n:, 1], design[n:, 3] = y, x, 1
    both = np.concatenate([w, w])
    normal = design.T @ (both[:, None] * design)
    right = design.T @ (both * np.concatenate([u, v]))
    # Two stars in one place say nothing about the rotation: the pseudo-inverse says so too.
    covariance = np.linalg.pinv(normal, hermitian=True)
    return covariance @ right, covariance


def _excess(square, variance, free):
    """Variance to add so that sum(square / variance) equals ``free``; 0 if it is less already."""
    if free <= 0 or (square / variance).sum() <= free:
        return 0.0
    low, high = 0.0, float(square.sum())
    for _ in range(30):
        mid = (low + high) / 2
        low, high = (mid, high) if (square / (variance + mid)).sum() > free else (low, mid)
    return high


def _excess_of_median(square, variance):
    """Variance that brings the median of square / (variance + excess) to that of chi2, 2 free."""
    median = 2 * math.log(2)
    if np.median(square / variance) <= median:
        return 0.0
    low, high = 0.0, float(square.sum())
    for _ in range(30):
        mid = (low + high) / 2
        wide = np.median(square / (variance + mid)) > median
        low, high = (mid, high) if wide else (low, mid)
    return high


def chance(n_matched, n_tried, probability, *, free, hypotheses):
    """
    log10 of the chance that unrelated lists match so well.

    Parameters
    ----------
    n_matched, n_tried : int
        Pairs found, and pairs that could have been.
    probability : float
        That one star finds a partner by chance.
    free : int
        Matches that the hypothesis was made from, which prove nothing.
    hypotheses : float
        How many were tried.

    Returns
    -------
    float
        The binomial tail times the number of hypotheses, at most 0.
    """
    k, n = n_matched - free, n_tried - free
    if k <= 0 or n <= 0:
        return 0.0
    p = min(max(probability, 1e-300), 1 - 1e-12)
    terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]  # fmt: skip
    top = max(terms)
    tail = top + math.log(sum(math.exp(term - top) for term in terms))
    return min(0.0, (tail + math.log(max(hypotheses, 1.0))) / math.log(10))
