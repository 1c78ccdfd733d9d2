"""
The noise that frames of a coadd have in common: that of their bias, dark and flat.

Private to `astro_narrowband.coadd`. Frames that were calibrated with the same
masters have the same error in the same detector pixel. Where they are not
dithered it does not average down; where they are, it does.
"""

import copy

import numpy as np

__all__ = ["CommonNoise", "overlap_factors", "shared_clusters"]

#: Detector rows whose noise is worked out at a time, and kept for all frames of a band.
BLOCK_ROWS = 64
#: Rows of the coadd that are worked on at a time.
ROWS = 16
#: Frames whose masters' noise has at least this correlation count as one cluster: half a
#: pixel apart along both axes.
SAME = 0.25


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


def shared_clusters(frames, matrices, shape):
    """
    Group frames by the detector pixels that they share, masters being the same.

    Parameters
    ----------
    frames : list of Frame
    matrices : list of array (3, 3)
        From the pixels of each to the grid.
    shape : tuple of int

    Returns
    -------
    cluster : `~numpy.ndarray` of int
        -1 for a frame without masters.
    correlations : list of (array of int, array (m, m))
        For each set of masters its frames, and the correlation of the masters'
        noise in each two of them.
    """
    groups = {}
    for i, frame in enumerate(frames):
        token = getattr(frame, "masters", None)
        if token is None or not hasattr(frame, "shared"):
            continue
        if frame.shared(slice(0, 1)) is not None:
            groups.setdefault(token, []).append(i)
    cluster, correlations, n_clusters = np.full(len(frames), -1), [], 0
    for group in groups.values():
        group = np.array(group)
        points = np.array([_positions(matrices[i], shape) for i in group], np.float32)
        same = np.array([_same_noise(points, k) for k in range(len(group))])
        for k, i in enumerate(group):
            if cluster[i] < 0:
                new = group[(same[k] >= SAME) & (cluster[group] < 0)]
                cluster[new] = n_clusters
                n_clusters += 1
        correlations.append((group, same))
    return cluster, correlations


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
        n_parts, part = connected_components(same > 0, directed=False)
        for k in range(n_parts):
            here = np.flatnonzero(part == k)
            a = amplitude[group[here]]
            summed = sum(
                a[cluster[group[here]] == c].sum() ** 2 for c in np.unique(cluster[group[here]])
            )
            if summed > 0:
                factor[group[here]] = a @ same[np.ix_(here, here)] @ a / summed
    return factor


# --------------------------------------------------------------------------- one frame


class _Basis:
    """
    What the noise of one set of masters is made of, by detector rows.

    Four planes, for calibrated frames of whatever exposure t: noise of the offset
    times the gain over the flat [electron]; the part of the rate's noise that goes
    with it, and the rest [electron/s]; relative noise of the flat.
    """

    def __init__(self, recipe, shape):
        self.recipe, self.shape = recipe, tuple(shape)
        self.blocks = {}

    def shared(self, rows):
        """The planes of some rows, (4, n_rows, nx)."""
        first, last = rows.start // BLOCK_ROWS, (rows.stop - 1) // BLOCK_ROWS
        for k in range(first, last + 1):
            if k not in self.blocks:
                top = min((k + 1) * BLOCK_ROWS, self.shape[0])
                self.blocks[k] = self._block(slice(k * BLOCK_ROWS, top))
        parts = []
        for k in range(first, last + 1):
            start = k * BLOCK_ROWS
            part = slice(max(rows.start - start, 0), min(rows.stop - start, BLOCK_ROWS))
            parts.append(self.blocks[k][:, part])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _block(self, rows):
        recipe = self.recipe
        out = np.zeros((4, rows.stop - rows.start, self.shape[1]), np.float32)
        if recipe.dark is not None:
            # The error of the dark at exposure t is linear in t, mode by mode.
            one, two = recipe.dark.modes(1.0, rows), recipe.dark.modes(2.0, rows)
            np.subtract(two[0], one[0], out=out[1])
            np.subtract(one[0], out[1], out=out[0])
            out[2] = one[1]
            out[:3] *= np.float32(recipe.detector.gain)
        if recipe.flat is not None:
            band = recipe.flat.read(rows)
            flat = np.maximum(np.nan_to_num(band.data, nan=1.0), np.float32(0.05))
            out[:3] /= flat
            if band.variance is not None:
                np.sqrt(band.variance, out=out[3])
                out[3] /= flat
        return out


def _recipe_of(frame):
    """The recipe of the calibrated frame within ``frame``, or None."""
    inner = getattr(frame, "frame", None) if hasattr(frame, "alignment") else frame
    return getattr(inner, "recipe", None)


def _on_grid(frame, basis):
    """An object whose ``shared`` gives the planes of ``basis`` where ``frame`` has its pixels."""
    if not hasattr(frame, "alignment"):
        return basis
    moved = copy.copy(frame)
    moved.frame = basis
    return moved


class CommonNoise:
    """
    The variance that the noise of masters leaves in the sum of one band.

    Amplitudes add up within a cluster of frames (same masters, same detector
    pixel), squares between clusters. Frames of one cluster come one after the
    other, but for those of the panel: few clusters are open at a time.

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
        self.bases, self.open = {}, {}
        known = task.cluster[task.cluster >= 0]
        self.left = dict(zip(*np.unique(known, return_counts=True), strict=True))

    def add(self, i, lost, offset):
        """Add frame ``i`` but for the pixels ``lost`` (sorted; ``offset`` is the band's first)."""
        task = self.task
        cluster = task.cluster[i]
        if cluster < 0:
            return
        if self.fixed is None:
            self.fixed, self.relative = np.zeros((2, self.size), np.float32)
        frame, recipe = task.frames[i], _recipe_of(task.frames[i])
        if recipe is not None:
            if frame.masters not in self.bases:
                inner = frame.frame if hasattr(frame, "alignment") else frame
                self.bases[frame.masters] = _Basis(recipe, inner.shape)
            source = _on_grid(frame, self.bases[frame.masters])
        else:
            source = frame
        alone = cluster not in self.open and self.left[cluster] == 1
        self.left[cluster] -= 1
        overlap = np.float32(task.overlap[i])
        width = task.shape[1]
        for start in range(self.rows.start, self.rows.stop, ROWS):
            stop = min(start + ROWS, self.rows.stop)
            part = slice((start - self.rows.start) * width, (stop - self.rows.start) * width)
            modes = source.shared(slice(start, stop))
            modes = modes.reshape(len(modes), -1)
            if recipe is not None:
                modes = _amplitudes(modes, task.weight[i], task.scale[i], task.exposure[i])
            else:
                factor = np.float32(task.weight[i] / task.scale[i])
                modes = np.append(modes * factor, np.zeros_like(modes[:1]), axis=0)
            low, high = np.searchsorted(lost, (part.start + offset, part.stop + offset))
            if low < high:
                modes[:, lost[low:high] - (part.start + offset)] = 0.0
            if alone:
                self._square(modes, part, overlap)
            else:
                if cluster not in self.open:
                    self.open[cluster] = np.zeros((len(modes), self.size), np.float32)
                self.open[cluster][:, part] += modes
        if not alone and self.left[cluster] == 0:
            self._square(self.open.pop(cluster), slice(0, self.size), overlap)

    def _square(self, modes, part, overlap):
        """Add the squares: the last mode goes with the signal, the others do not."""
        np.multiply(modes, modes, out=modes)
        if overlap != 1.0:
            modes *= overlap
        for mode in modes[:-1]:
            self.fixed[part] += mode
        self.relative[part] += modes[-1]

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


def _amplitudes(basis, weight, scale, exposure):
    """Modes of a frame's masters in the sum: offset with its part of the rate, rate, flat."""
    modes = np.empty((3, basis.shape[1]), np.float32)
    np.multiply(basis[0], np.float32(1.0 / exposure), out=modes[0])
    modes[0] += basis[1]
    modes[1:] = basis[2:]
    modes[:2] *= np.float32(weight / scale)
    # The flat's is relative to the signal, which is on the common scale.
    modes[2] *= np.float32(weight)
    return modes
