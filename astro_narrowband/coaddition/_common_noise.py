"""
The noise that frames of a coadd have in common: that of their bias, dark and flat.

Private to `astro_narrowband.coaddition._coadd`. Frames that were calibrated with the same
masters have the same error in the same detector pixel. Where they are not
dithered it does not average down; where they are, it does.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from astro_narrowband._engine.frames import HeldRows
from astro_narrowband.noise import SharedNoise, sample_rows

#: Rows of the coadd that are worked on at a time.
ROWS = 64
#: Frames whose masters' noise has at least this correlation count as one cluster: half a
#: pixel apart along both axes.
SAME = 0.25
#: Lists of lost pixels that are kept until they are merged: their number must not count.
MERGED = 64
#: Places of the detector that a header tells, those of the largest weight.
PLACES = 64


# --------------------------------------------------------------------------- who shares what


def _positions(matrix, shape):
    """Detector positions that 5 x 5 points of the coadd's grid have in a frame."""
    y, x = np.meshgrid(*(np.linspace(0, n - 1, 5) for n in shape), indexing="ij")
    back = np.linalg.inv(matrix)
    return np.array([back[k, 0] * x + back[k, 1] * y + back[k, 2] for k in (0, 1)]).reshape(2, -1)


def _same_noise(points, i):
    """Correlation of one detector's noise in frame ``i`` and in each: the overlap of pixels."""
    shared = np.maximum(1.0 - np.abs(points - points[i]), 0.0)
    return (shared[:, 0] * shared[:, 1]).mean(axis=1)


def _same(matrices, shape):
    """Correlation of one detector's noise in each two places."""
    points = np.array([_positions(matrix, shape) for matrix in matrices], np.float32)
    return np.array([_same_noise(points, k) for k in range(len(points))])


def _labels(same):
    """Number places so that those of one number coincide with the first of it."""
    labels = np.full(len(same), -1)
    for k, row in enumerate(same):
        if labels[k] < 0:
            labels[(row >= SAME) & (labels < 0)] = labels.max() + 1
    return labels


def shared_noise_of(frames, shape):
    """
    Return what the noise of one set of masters has in common in each two frames.

    As a part of its variance in one frame of the camera; a coadd of dithered ones has less.

    Parameters
    ----------
    frames : list of Frame
        On the grid.
    shape : tuple of int

    Returns
    -------
    `~numpy.ndarray`, (n, n)
    """
    weights, matrices = zip(*(frame.placements for frame in frames), strict=True)
    first = np.cumsum([0, *map(len, weights[:-1])])
    weights, same = np.concatenate(weights), _same(np.concatenate(matrices), shape)
    same = weights[:, None] * same * weights
    return np.add.reduceat(np.add.reduceat(same, first, axis=0), first, axis=1)


def shared_clusters(frames, shape):
    """
    Group frames by the detector pixels that they share, masters being the same.

    Parameters
    ----------
    frames : list of Frame
        On the grid.
    shape : tuple of int

    Returns
    -------
    cluster : `~numpy.ndarray` of int
        -1 for a frame without masters.
    correlations : list of (array of int, array (m, m))
        For each set of masters its frames, and the correlation of the masters'
        noise in each two of them.
    amplitude : `~numpy.ndarray`
        Of that noise, over that in one frame of the camera: less than 1 in a coadd of
        dithered ones.
    """
    groups, amplitude = {}, np.ones(len(frames))
    for i, frame in enumerate(frames):
        if frame.masters not in (None, "none"):
            groups.setdefault(frame.masters, []).append(i)
    cluster, correlations, n_clusters = np.full(len(frames), -1), [], 0
    for group in groups.values():
        group = np.array(group)
        shared = shared_noise_of([frames[i] for i in group], shape)
        amplitude[group] = size = np.sqrt(np.diag(shared))
        same = shared / np.outer(size, size)
        cluster[group] = _labels(same) + n_clusters
        n_clusters = cluster.max() + 1
        correlations.append((group, same))
    return cluster, correlations, amplitude


def overlap_factors(cluster, correlations, amplitude):
    """
    What the variance of each frame's cluster is multiplied by.

    Within a cluster noise is added as if it were the same, between clusters as
    if it were independent. What the true correlations make of the whole, for
    amplitudes that are the same in every pixel, is this factor; 1 where frames
    are either not dithered at all or by more than a pixel.
    """
    from scipy.sparse.csgraph import connected_components

    factor = np.ones(len(cluster))
    for group, same in correlations:
        n_parts, component = connected_components(same > 0, directed=False)
        for k in range(n_parts):
            members = np.flatnonzero(component == k)
            a = amplitude[group[members]]
            summed = sum(
                a[cluster[group[members]] == c].sum() ** 2
                for c in np.unique(cluster[group[members]])
            )
            if summed > 0:
                factor[group[members]] = a @ same[np.ix_(members, members)] @ a / summed
    return factor


# --------------------------------------------------------------------------- what it is


def _amounts(task, i):
    """How much frame ``i`` has of the masters' offset, rate and flat in the sum."""
    weight = task.weight[i] * task.amplitude[i]
    rate, calibrated = weight / task.scale[i] * task.frames[i].pixel_area, task.frames[i].calibrated
    of_offset, of_rate = calibrated.dark_scale
    return np.array([rate * of_offset / calibrated.dark_exposure, rate * of_rate, weight])


def _variances(planes, amounts):
    """Variance of the dark and relative variance of the flat, of frames that share both."""
    (a, b, w), (var_offset, cov, var_rate, var_flat) = amounts, planes
    dark = flat = None
    if var_offset is not None:
        dark = a * a * var_offset + 2.0 * a * b * cov + b * b * var_rate
    if var_flat is not None:
        flat = w * w * var_flat
    return dark, flat


def noise_to_tell(task, sigma):
    """
    Return what the header of a coadd says of the noise of its masters, if that can be said.

    Parameters
    ----------
    task : BandSum
    sigma : `~numpy.ndarray`, (ny, nx)
        Uncertainty of the coadd.

    Returns
    -------
    `~astro_narrowband.noise.SharedNoise` or None
        None where masters of frames are not known, or of more than one set.
    """
    names = {frame.masters for frame in task.frames} - {"none"}
    if not names or None in names or len(names) > 1:
        return None if names else SharedNoise("none")
    frames = [task.frames[i] for i in np.flatnonzero(task.cluster >= 0)]
    amounts = np.array([_amounts(task, i) for i in np.flatnonzero(task.cluster >= 0)])
    weights, matrices = zip(*(frame.placements for frame in frames), strict=True)
    size = task.amplitude[task.cluster >= 0]
    n_places = list(map(len, weights))
    a, b, w = np.repeat(amounts / size[:, None], n_places, axis=0).T
    t = np.repeat([frame.calibrated.dark_exposure for frame in frames], n_places)
    weights, matrices = np.concatenate(weights), np.concatenate(matrices)
    a, b, w = a * weights, b * weights, w * weights
    same = _same(matrices, task.shape)
    blank = np.nanmedian(np.concatenate([sigma[rows] for rows in sample_rows(len(sigma))]) ** 2)
    middle = task.shape[0] // 2
    planes = frames[0].calibrated.master_noise(slice(middle, middle + 1))
    levels = [0.0 if plane is None else float(np.median(plane)) for plane in planes]
    var_offset, cov, var_rate, var_flat = (level / blank for level in levels)
    signal = np.sum(task.weight * (task.sky + task.offset))
    labels = _labels(same)
    parts = np.bincount(labels, w)
    places = [
        (parts[k], m[0, 0], m[1, 0], m[0, 2], m[1, 2])
        for k in np.argsort(-parts, kind="stable")[:PLACES]
        for m in matrices[[np.argmax(labels == k)]]
    ]
    flat = w @ same @ w * var_flat
    return SharedNoise(
        frames[0].masters, a @ same @ a * var_offset, 2 * (a @ same @ b) * cov,
        b @ same @ b * var_rate, flat * signal**2, math.sqrt(flat * blank),
        exposure=b.sum() / (b / t).sum(), places=tuple(places),
    )  # fmt: skip


def undithered_noise(task):
    """Level of the masters' noise in blank sky, were no frame dithered."""
    signal = np.sum(task.weight * (task.sky + task.offset))
    sums, frames = {}, {}
    for i in np.flatnonzero(task.cluster >= 0):
        frame = task.frames[i]
        frames[frame.masters] = frame.calibrated
        sums[frame.masters] = sums.get(frame.masters, 0.0) + _amounts(task, i)
    total = 0.0
    for masters, amounts in sums.items():
        middle = frames[masters].shape[0] // 2
        planes = frames[masters].master_noise(slice(middle, middle + 1))
        for plane, factor in zip(_variances(planes, amounts), (1.0, signal**2), strict=True):
            total += 0.0 if plane is None else factor * float(np.median(plane))
    return math.sqrt(total)


@dataclass
class _Cluster:
    """
    Frames with the same noise that were added so far.

    ``amounts`` are those of all of them; ``lost`` has pixels that some lack, and how much
    (3, n) they would have had there.
    """

    amounts: np.ndarray = field(default_factory=lambda: np.zeros(3))
    lost: list = field(default_factory=list)

    def add(self, amounts, lost):
        self.amounts += amounts
        self.lost.append((lost, np.tile(amounts[:, None], lost.size)))
        if len(self.lost) > MERGED:
            self.lost = [self.merged()]

    def merged(self):
        """The pixels that some frames lack, sorted, each once, and how much of all (3, n)."""
        pixels, amounts = (
            np.concatenate(pieces, axis=-1) for pieces in zip(*self.lost, strict=True)
        )
        pixels, place = np.unique(pixels, return_inverse=True)
        return pixels, np.array([np.bincount(place, each, pixels.size) for each in amounts])


class CommonNoise:
    """
    The variance that the noise of masters leaves in the sum of one band.

    Amplitudes add up within a cluster of frames (same masters, same detector
    pixel, which is the one that its first frame has there), squares between
    clusters. It is all in three variances of the dark and one of the flat, so
    that a cluster costs the same whatever the number of its frames.

    Parameters
    ----------
    task : BandSum
    rows : slice
        Of the coadd.
    """

    def __init__(self, task, rows):
        self.task, self.rows = task, rows
        self.size = (rows.stop - rows.start) * task.shape[1]
        self.fixed = self.relative = None
        self.windows, self.open = {}, {}
        self.scratch = np.empty((2, ROWS, task.shape[1]), np.float32)
        known = task.cluster[task.cluster >= 0]
        self.left = dict(zip(*np.unique(known, return_counts=True), strict=True))

    def add(self, i, lost, offset):
        """Add frame ``i`` but for the pixels ``lost`` (sorted; ``offset`` is the band's first)."""
        cluster = self.task.cluster[i]
        if cluster < 0:
            return
        first, last = np.searchsorted(lost, (offset, offset + self.size))
        sums = self.open.setdefault(cluster, _Cluster())
        sums.add(_amounts(self.task, i), lost[first:last] - offset)
        self.left[cluster] -= 1
        if not self.left[cluster]:
            self._close(self.task.frames[i], self.open.pop(cluster), self.task.overlap[i])

    def _close(self, frame, sums, overlap):
        """Add the squares of a cluster that is complete."""
        if self.fixed is None:
            self.fixed, self.relative = np.zeros((2, self.size), np.float32)
        read = self._window(frame).planes
        pixels, taken = sums.merged()
        have = sums.amounts[:, None] - taken
        scale, width = math.sqrt(overlap), self.task.shape[1]
        for start in range(self.rows.start, self.rows.stop, ROWS):
            rows = slice(start, min(start + ROWS, self.rows.stop))
            n_rows, before = rows.stop - start, (start - self.rows.start) * width
            planes, place = frame.nearest(read, rows)
            low, high = np.searchsorted(pixels, (before, before + n_rows * width))
            y, x = np.divmod(pixels[low:high] - before, width)
            self._add(rows, planes, place, sums.amounts * scale, (y, x), have[:, low:high] * scale)

    def _add(self, rows, planes, place, amounts, lost, have):
        """Add some rows; at the pixels ``lost`` there is less."""
        (y, x), (oy, ox) = lost, place
        inside = (y >= oy.start) & (y < oy.stop) & (x >= ox.start) & (x < ox.stop)
        at = y[inside] - oy.start, x[inside] - ox.start
        lacking = [None if plane is None else plane[at] for plane in planes]
        lacking = _variances(lacking, have[:, inside])
        span = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        a, b, w = amounts
        terms = (
            (self.fixed, ((0, a * a), (1, 2.0 * a * b), (2, b * b)), lacking[0]),
            (self.relative, ((3, w * w),), lacking[1]),
        )
        for total, parts, values in terms:
            if values is None:
                continue
            target = total.reshape(-1, self.task.shape[1])[span][oy, ox]
            out, spare = (plane[: target.shape[0], : target.shape[1]] for plane in self.scratch)
            for k, (which, factor) in enumerate(parts):
                np.multiply(planes[which], np.float32(factor), out=spare if k else out)
                if k:
                    out += spare
            out[at] = values
            target += out

    def _window(self, frame):
        """The noise of a frame's masters, all rows at once: those asked for next find them."""
        if frame.masters not in self.windows:
            self.windows[frame.masters] = HeldRows(frame.calibrated.master_noise)
        window = self.windows[frame.masters]
        window.planes(frame.source_rows(self.rows, 2) or slice(0, 1))
        return window

    def variance(self, signal):
        """
        Return the variance where the weights that count add up to 1, or None.

        Parameters
        ----------
        signal : `~numpy.ndarray`, (size,)
            What was divided by the flat [unit of the coadd].
        """
        if self.fixed is None:
            return None
        signal = np.nan_to_num(signal)
        self.relative *= signal
        self.relative *= signal
        self.fixed += self.relative
        return self.fixed
