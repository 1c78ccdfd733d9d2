"""
The noise that frames of a coadd have in common: that of their bias, dark and flat.

Private to `astro_narrowband.coadd`. Frames that were calibrated with the same
masters have the same error in the same detector pixel. Where they are not
dithered it does not average down; where they are, it does.
"""

from functools import partial

import numpy as np

from astro_narrowband.bands.window import RowWindow

__all__ = ["CommonNoise", "overlap_factors", "shared_clusters"]

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


def _basis(recipe, rows):
    """
    Return what the noise of a set of masters is made of, whatever the exposure time.

    Returns
    -------
    offset, slope, rest : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Noise of the offset times the gain over the flat [electron]; the part of the
        rate's noise that goes with it, and the rest [electron/s].
    flat : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Relative noise of the flat.
    """
    dark, flat = (None, None, None), None
    if recipe.dark is not None:
        dark = recipe.dark.amplitudes(rows)
        for plane in dark:
            plane *= np.float32(recipe.detector.gain)
    if recipe.flat is not None:
        band = recipe.flat.read(rows)
        divisor = np.maximum(np.nan_to_num(band.data, nan=1.0), np.float32(0.05))
        for plane in dark:
            if plane is not None:
                plane /= divisor
        if band.variance is not None:
            flat = np.sqrt(band.variance)
            flat /= divisor
    return *dark, flat


def _recipe_of(frame):
    """The recipe of the calibrated frame within ``frame``, or None."""
    inner = getattr(frame, "frame", None) if hasattr(frame, "alignment") else frame
    return getattr(inner, "recipe", None)


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
        self.scratch = np.empty((4, ROWS, task.shape[1]), np.float32)
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
        self._gather(task.frames[i])
        alone = cluster not in self.open and self.left[cluster] == 1
        self.left[cluster] -= 1
        overlap = np.float32(task.overlap[i])
        width = task.shape[1]
        for start in range(self.rows.start, self.rows.stop, ROWS):
            stop = min(start + ROWS, self.rows.stop)
            part = slice((start - self.rows.start) * width, (stop - self.rows.start) * width)
            modes = self._modes(i, slice(start, stop))
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

    def _gather(self, frame):
        """Read the noise of a frame's masters for all rows at once."""
        recipe = _recipe_of(frame)
        if recipe is not None:
            if frame.masters not in self.bases:
                self.bases[frame.masters] = RowWindow(partial(_basis, recipe))
            rows = frame.source_rows(self.rows, 2) if hasattr(frame, "alignment") else self.rows
            self.bases[frame.masters].planes(rows or slice(0, 1))

    def _modes(self, i, rows):
        """Noise of a frame's masters in the sum, as amplitudes; the last goes with the signal."""
        task, frame = self.task, self.task.frames[i]
        weight = task.weight[i]
        factor = weight / task.scale[i]
        recipe = _recipe_of(frame)
        if recipe is None:
            modes = frame.shared(rows)
            modes = modes.reshape(len(modes), -1) * np.float32(factor)
            return np.append(modes, np.zeros_like(modes[:1]), axis=0)
        shared = self.bases[frame.masters].planes
        n_rows, nx = rows.stop - rows.start, task.shape[1]
        if hasattr(frame, "alignment"):
            (offset, slope, rest, flat), (y, x) = frame.nearest(shared, rows)
        else:
            (offset, slope, rest, flat), y, x = shared(rows), slice(0, n_rows), slice(0, nx)
        whole = self.scratch[:, :n_rows]
        if offset is None or flat is None or offset.size < n_rows * nx:
            whole[...] = 0.0
        modes, spare = whole[:3, y, x], whole[3, y, x]
        if offset is not None:
            np.multiply(offset, np.float32(factor / task.exposure[i]), out=modes[0])
            np.multiply(slope, np.float32(factor), out=spare)
            modes[0] += spare
            np.multiply(rest, np.float32(factor), out=modes[1])
        if flat is not None:
            # Relative to the signal, which is on the common scale.
            np.multiply(flat, np.float32(weight), out=modes[2])
        return whole[:3].reshape(3, -1)

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
