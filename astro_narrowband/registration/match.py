"""
Two lists of positions: which transform maps one onto the other, and how likely that is chance.

Positions are float64 arrays (n, 2) of
x, y. A transform is a 3 x 3 matrix for columns (x, y, 1).
"""

import math

import numpy as np

__all__ = [
    "apply",
    "chance",
    "fit",
    "fit_few",
    "mutual_matches",
    "rotation_about",
    "rotations",
    "vote",
]

#: Up to so many pairs of stars, all distances are quicker than a tree.
FEW = 10_000


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
    dx, dy = ((target[:, k] - source[:, k, None]).ravel() for k in (0, 1))
    x, y = (np.floor(d / radius).astype(np.int64) for d in (dx, dy))
    x0, y0 = x.min(), y.min()
    stride = int(y.max() - y0) + 3
    keys = (x - x0) * stride + (y - y0)
    if keys.max() < 2**31 - 2 * stride:
        keys = keys.astype(np.int32)  # sorted and looked up in half the time
    values, counts = np.unique(keys, return_counts=True)
    # Squares of 2 x 2 cells by their lower left one. Those that start with an empty cell count
    # only where that is below an occupied one: any other holds no more than its neighbour.
    follows = np.append(values[1:] == values[:-1] + 1, False)
    column = counts.copy()
    column[follows] += counts[1:][follows[:-1]]
    free = ~np.insert(follows[:-1], 0, False)
    lower, single = values[free] - 1, counts[free]
    corners = np.concatenate([values, lower])
    total = np.concatenate([column, single])
    total += _looked_up(values, column, corners + stride)
    total += _looked_up(lower, single, corners + stride)
    n_look = min(16 * n_best, len(corners))
    best = np.argpartition(-total, n_look - 1)[:n_look]
    best = best[np.argsort(-total[best], kind="stable")]
    out = []
    for k in best:
        left, low = divmod(int(corners[k]) + 1, stride)
        left, low = left + x0, low - 1 + y0
        inside = np.flatnonzero((x == left) | (x == left + 1))
        inside = inside[np.abs(y[inside] - low - 0.5) < 1]
        offset = np.array([_median(dx[inside]), _median(dy[inside])])
        if all(np.hypot(*(offset - other)) > 4 * radius for other, _ in out):
            out.append((offset, int(total[k])))
        if len(out) == n_best:
            break
    return out


def _looked_up(keys, values, wanted):
    """The values of sorted keys, 0 for a key that is not there."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    return np.where(keys[at] == wanted, values[at], 0)


def _median(values):
    """As `numpy.median`, which takes ten times as long for a few."""
    values = np.sort(values)
    n = len(values)
    return (values[(n - 1) // 2] + values[n // 2]) / 2


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
    angles = {}
    for shift in (0.0, 0.5):
        cell = np.floor(turn / width + shift).astype(np.int64) % n_cells
        for s_shift in (0.0, 0.5) if scale_free else (0.0,):
            ratio_cell = np.floor(ratio / 0.01 + s_shift).astype(np.int64)
            key = (ratio_cell + 4096) * n_cells + cell
            values, counts = np.unique(key, return_counts=True)
            for k in np.argsort(-counts, kind="stable")[:n_best]:
                member = key == values[k]
                mean = np.angle(np.exp(2j * turn[member]).sum()) / 2
                factor = math.exp(ratio[member].mean())
                angles[(round(math.degrees(mean) * 4), round(factor, 2))] = (
                    int(counts[k]), mean, factor,
                )  # fmt: skip
    best = sorted(angles.values(), key=lambda item: -item[0])
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
    if len(mapped) * len(target) <= FEW:
        square = (mapped[:, 0, None] - target[:, 0]) ** 2
        square += (mapped[:, 1, None] - target[:, 1]) ** 2
        j, back = square.argmin(axis=1), square.argmin(axis=0)
        i = np.arange(len(mapped))
        i = i[(back[j] == i) & (square[i, j] < radius**2)]
        return i, j[i]
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
        square = np.einsum("ij,ij->i", residual, residual)
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


def fit_few(source, target, variance, *, model, angle):
    """`fit`, without the one of a few pairs that alone stands against all others."""
    fitted = fit(source, target, variance, model=model, angle=angle)
    n, usual = len(source), float(np.median(variance))
    if not 5 <= n <= 12 or fitted[3] < 10 * usual:
        return fitted
    without = []
    for k in range(n):
        keep = np.arange(n) != k
        one = list(fit(source[keep], target[keep], variance[keep], model=model, angle=angle))
        one[2] = np.insert(one[2], k, False)
        without.append(one)
    best = min(without, key=lambda one: one[3])
    return best if best[3] + usual < 0.1 * (fitted[3] + usual) else fitted


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
    wx, wy, total = w * x, w * y, w.sum()
    sx, sy, square = wx.sum(), wy.sum(), wx @ x + wy @ y
    normal = np.array([
        [square, 0.0, sx, sy], [0.0, square, -sy, sx], [sx, -sy, total, 0.0], [sy, sx, 0.0, total]
    ])  # fmt: skip
    right = np.array([wx @ u + wy @ v, wx @ v - wy @ u, w @ u, w @ v])
    # Two stars in one place say nothing about the rotation: the pseudo-inverse says so too.
    covariance = np.linalg.pinv(normal, hermitian=True)
    return covariance @ right, covariance


def _excess(square, variance, free):
    """Variance to add so that sum(square / variance) equals ``free``; 0 if it is less already."""
    excess = 0.0
    if free <= 0:
        return excess
    # Newton's method on 1 / sum, which is concave and nearly straight: it comes from below and
    # never goes too far.
    for _ in range(30):
        weighted = square / (variance + excess)
        total = float(weighted.sum())
        if total <= free * (1 + 1e-9):
            break
        excess += (total / free - 1) * total / float((weighted / (variance + excess)).sum())
    return excess


def _excess_of_median(square, variance):
    """Variance that brings the median of square / (variance + excess) to that of chi2, 2 free."""
    # Each pair has its own; the median is that of the pairs in the middle.
    return max(float(_median(square / (2 * math.log(2)) - variance)), 0.0)


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
    from scipy.special import gammaln

    i = np.arange(k, n + 1)
    terms = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1)
    terms += i * math.log(p) + (n - i) * math.log1p(-p)
    top = float(terms.max())
    tail = top + math.log(float(np.exp(terms - top).sum()))
    return min(0.0, (tail + math.log(max(hypotheses, 1.0))) / math.log(10))
