"""
The arithmetic of a coadd on one band of rows.

Private to `astro_narrowband.coaddition._coadd`. A `BandSum` is called with rows, from any
thread or process; it reads those rows (and a few around) of every frame and
returns the planes of the coadd there. It holds the rows of at most 15 frames,
the panel that judges outliers; the others pass through one by one.
"""

import math
import threading
from dataclasses import dataclass, field

import numpy as np

from astro_narrowband._engine.frames import row_bands
from astro_narrowband.coaddition._common_noise import CommonNoise
from astro_narrowband.coaddition._reject import (
    PANEL,
    REACH,
    TILE,
    Judged,
    Panel,
    Rules,
    best_frames,
    panel_reference,
    union,
)

#: Pixels whose variance is smoothed at a time.
SMOOTHED = 1 << 18


def row_bytes(n_frames, width):
    """Return how much memory one row of a band takes, with its share of temporaries."""
    return width * (8 * (min(n_frames, PANEL) + 2) + 80)


@dataclass(eq=False)
class BandSum:
    """
    The sum of one band of rows.

    Frames are in canonical order: the panel first. All arrays have one number
    per frame.

    Attributes
    ----------
    frames : list of Frame
    shape : tuple of int
    scale : array
        Flux scale T: what is summed is data / T - offset.
    offset : array
        Sky to take away [unit of the coadd].
    weight : array
        Their sum is 1.
    background : array
        Variance in blank sky [unit of the coadd squared].
    correlation : array
        Variance of single pixels over the variance plane.
    scatter : array
        Standard deviation of the variance plane in blank sky, in the same unit.
    exposure : array
        [s]; NaN where not known.
    sky : array
        Sky [unit of the coadd], for frames without a variance plane.
    cluster : array of int
        Frames of one number share their masters and their detector pixels; -1
        where nothing is shared.
    overlap : array
        Factor on the variance of each frame's cluster, for clusters that overlap.
    amplitude : array
        Of the noise of each frame's masters, over that in one frame of the camera.
    shapes : array (n, 6)
        How the stars of each frame differ from those of the median of the best.
    tolerance : array (n, 2)
        Part of the structure in the image that a frame may differ by all the same, and
        where its shape does not hold.
    discs : list of array (m, 3)
        x, y, radius on the grid within which a frame does not count.
    surfaces : list of Surface or None
        Sky to take away where it is no constant, in place of ``offset``, its level.
    maps : list of Surface or None
        Factor on the flux scale over the grid.
    dimmest : array
        Largest part by which a map raises the variance of a frame.
    rules : Rules or None
        None: nothing is rejected.
    """

    frames: list
    shape: tuple
    scale: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    background: np.ndarray
    correlation: np.ndarray
    scatter: np.ndarray
    exposure: np.ndarray
    sky: np.ndarray
    cluster: np.ndarray
    overlap: np.ndarray
    amplitude: np.ndarray
    shapes: np.ndarray
    tolerance: np.ndarray
    discs: list
    surfaces: list
    maps: list
    dimmest: np.ndarray
    rules: Rules | None
    _local: threading.local = field(default_factory=threading.local, repr=False)

    @property
    def halo(self):
        """
        Rows around a band that its result depends on.

        Those of the rejection, and two more over which the variance is smoothed.
        """
        spacing = 1 if self.rules is None else self.rules.spacing
        return REACH + 2 * spacing + 2

    @property
    def counts(self):
        """The smallest type that counts the frames: these planes are held and written whole."""
        return np.min_scalar_type(len(self.frames))

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state):
        self.__dict__.update(state, _local=threading.local())

    def _planes(self, name, n, size, dtype=np.float32):
        """A work space of this thread: fresh pages for every band would cost a third more."""
        have = getattr(self._local, name, None)
        if have is None or have.size < n * size:
            have = np.empty(n * size, dtype)
            setattr(self._local, name, have)
        return have[: n * size].reshape(n, size)

    def __call__(self, rows):
        """
        Return data, standard deviation, exposure, coverage, rejections and their number.

        The planes have the rows asked for; the last is one number per frame.
        """
        ny, nx = self.shape
        n, n_panel = len(self.frames), min(len(self.frames), PANEL)
        around = slice(max(rows.start - self.halo, 0), min(rows.stop + self.halo, ny))
        size = (around.stop - around.start) * nx
        inside = slice((rows.start - around.start) * nx, (rows.stop - around.start) * nx)
        stack = self._planes("stack", n_panel + 1, size)
        variance = self._planes("variance", n_panel + 1, size)
        panel = None
        rejects = self.rules is not None and n > 1
        expects = [self.expects(i) for i in range(n)]
        bad = [self.read(i, around, stack[i], variance[i], expects[i]) for i in range(n_panel)]
        if rejects:
            base = panel_reference(stack[:n_panel], bad, self.background[:n_panel])
            for i in filter(expects.__getitem__, range(n_panel)):
                self.expect(i, around, base, variance[i])
            panel = Panel(
                stack[:n_panel], variance[:n_panel], bad, self.background[:n_panel],
                reference=base, shapes=self.shapes[:n_panel], width=nx, rules=self.rules,
            )  # fmt: skip
        else:
            base = stack[0].copy()
            base[bad[0]] = 0.0
        sums = _Sums(self, base)
        common = CommonNoise(self, rows)
        rejected = np.zeros(size, self.counts)
        count = np.zeros(n)
        for i in range(n):
            k = min(i, n_panel)
            if i < n_panel:
                lost = bad[i]
            else:
                lost = self.read(i, around, stack[k], variance[k], expects[i])
                if expects[i]:
                    self.expect(i, around, base, variance[k])
            if panel is not None:
                member = i if i < n_panel else None
                judged = Judged(
                    stack[k], variance[k], self.background[i] * self.dimmest[i],
                    self.shapes[i], self.tolerance[i], self.correlation[i] < 1,
                )  # fmt: skip
                hit = panel.outliers(judged, member)
                rejected[hit] += 1
                count[i] = np.count_nonzero((hit >= inside.start) & (hit < inside.stop))
                if hit.size:
                    lost = union(lost, hit)
            sums.add(i, stack[k], variance[k], lost)
            common.add(i, lost, inside.start)
        data, sigma, exposure, n_good = sums.finish(nx, inside, common)
        out = (rows.stop - rows.start, nx)
        planes = (data, sigma, exposure, n_good, rejected[inside])
        return *(plane.reshape(out) for plane in planes), count

    def read(self, i, rows, data, variance, expected=False):
        """
        Put rows of frame ``i`` on the common scale; return the indices of masked pixels.

        Where the variance is ``expected``, it is left to `expect`.
        """
        frame = self.frames[i]
        band = frame.read(rows, variance=not expected)
        plain = self.surfaces[i] is None
        factor = np.float32(1.0 / self.scale[i])
        offset = np.float32(self.offset[i] if plain else 0.0)
        for start in range(0, data.size, TILE):
            tile = slice(start, min(start + TILE, data.size))
            np.multiply(band.data.ravel()[tile], factor, out=data[tile])
            if plain:
                data[tile] -= offset
            if band.variance is not None:
                np.multiply(band.variance.ravel()[tile], factor * factor, out=variance[tile])
        if not plain:
            self._flatten(i, rows, data, None if band.variance is None else variance)
        if band.variance is None and not expected:
            self._variance_of(i, data, variance)
        lost = np.empty(0, np.intp) if band.mask is None else np.flatnonzero(band.mask)
        within = _within(self.discs[i], rows, self.shape[1])
        if within.size:
            lost = union(lost, within)
        data[lost] = np.inf
        return lost

    def _flatten(self, i, rows, data, variance):
        """Divide rows of frame ``i`` by the map of its scale, and take its sky away."""
        data = data.reshape(-1, self.shape[1])
        if self.maps[i] is not None:
            for start, stop, values in self.maps[i].blocks(rows):
                data[start:stop] /= values
                if variance is not None:
                    variance.reshape(data.shape)[start:stop] /= values * values
        for start, stop, values in self.surfaces[i].blocks(rows):
            data[start:stop] -= values

    def _as_seen(self, i, rows, signal):
        """What frame ``i`` has where the coadd has ``signal``, on its mean flux scale."""
        signal = signal.copy()
        for start, stop, values in self.surfaces[i].blocks(rows):
            signal[start:stop] += values
        if self.maps[i] is not None:
            for start, stop, values in self.maps[i].blocks(rows):
                signal[start:stop] *= values
        return signal

    def expects(self, i):
        """
        Whether the variance of frame ``i`` follows what the panel shows.

        If the frame can tell it from that, and it is a median: one frame shows its own counts.
        """
        if self.rules is None or len(self.frames) < 3:
            return False
        return self.frames[i].calibrated.follows_signal

    def expect(self, i, rows, signal, variance):
        """
        Put the variance of frame ``i`` into ``variance``, where ``signal`` is what all see.

        It is that of the nearest detector pixel. Cosmic rays do not raise it, and chance
        does much less than if it followed the counts of the frame.
        """
        frame, nx = self.frames[i], self.shape[1]
        signal, variance = signal.reshape(-1, nx), variance.reshape(-1, nx)
        variance[...] = self.background[i]
        source = frame.calibrated
        scale, offset = frame.pixel_area / self.scale[i], self.offset[i]
        for strip in row_bands(len(signal), max(1, TILE // nx)):
            source_rows = slice(rows.start + strip.start, rows.start + strip.stop)
            planes, (y, x) = frame.nearest(source.noise_planes, source_rows)
            expected = signal[strip]
            if self.surfaces[i] is not None:
                expected, offset = self._as_seen(i, source_rows, expected), 0.0
            source.variance_of(
                expected[y, x], planes, scale=scale, offset=offset, out=variance[strip][y, x]
            )
            if self.maps[i] is not None:
                for start, stop, values in self.maps[i].blocks(source_rows):
                    variance[strip][start:stop] /= values * values

    def scatter_of_sum(self):
        """
        Return the standard deviation that the variance of the sum has in blank sky.

        That which is expected follows the same reference in all frames.
        """
        w2 = self.weight**2
        counted = np.array([not self.expects(i) for i in range(len(w2))])
        square = np.sum((w2 * self.scatter)[counted] ** 2)
        if not counted.all():
            best = self.background[best_frames(self.background[:PANEL])]
            follows = np.sum((w2 / (self.exposure * self.scale))[~counted])
            square += (np.pi / 2) / np.sum(1.0 / best) * follows**2
        return math.sqrt(square)

    def _variance_of(self, i, data, variance):
        """The variance of a frame that has none: that of its sky, and the source's photons."""
        variance[...] = self.background[i]
        if self.exposure[i] > 0:
            source = np.maximum(data - np.float32(self.sky[i]), 0.0)
            source[~np.isfinite(source)] = 0.0
            variance += source * np.float32(1.0 / (self.exposure[i] * self.scale[i]))


def _within(discs, rows, width):
    """Flat indices, in ``rows``, of the pixels within any of the discs, sorted."""
    reach = np.abs(discs[:, 1] - 0.5 * (rows.start + rows.stop - 1))
    discs = discs[reach <= discs[:, 2] + 0.5 * (rows.stop - rows.start)]
    indices = [np.empty(0, np.intp)]
    for x, y, radius in discs:
        low_y, high_y = max(math.ceil(y - radius), rows.start), min(y + radius, rows.stop - 1)
        low_x, high_x = max(math.ceil(x - radius), 0), min(x + radius, width - 1)
        at_y = np.arange(low_y, math.floor(high_y) + 1)[:, None]
        at_x = np.arange(low_x, math.floor(high_x) + 1)
        inside = (at_y - y) ** 2 + (at_x - x) ** 2 <= radius**2
        indices.append(((at_y - rows.start) * width + at_x)[inside])
    return np.unique(np.concatenate(indices))


class _Sums:
    """
    Weighted sums over frames, in float32 that loses nothing.

    Differences to a base are summed, so that rounding is relative to the
    noise and not to the sky. Sums of weights are those of all frames, in
    float64, less those of the frames that do not count in a pixel.
    """

    def __init__(self, task, base):
        self.task, self.base = task, base
        size = base.size
        w = task.weight
        self.mean, self.noise = task._planes("sums", 2, size)
        self.mean[...] = 0.0
        self.noise[...] = 0.0
        self.spare = np.empty(min(TILE, size), np.float32)
        self.n_good = np.full(size, len(w), task.counts)
        self.all = (1.0, np.sum(w**2 * task.background), np.sum(w**2 / self._rate()))
        self.partial = task._planes("weights", 3, size, np.float64)
        for plane, value in zip(self.partial, self.all, strict=True):
            plane[...] = value

    def _rate(self):
        return self.task.exposure * self.task.scale

    def add(self, i, data, variance, lost):
        """Add frame ``i`` but for the pixels ``lost`` (sorted)."""
        task, w = self.task, self.task.weight[i]
        starts = np.arange(0, data.size, TILE)
        at = np.searchsorted(lost, np.append(starts, data.size))
        weight, squared = np.float32(w), np.float32(w * w)
        with np.errstate(invalid="ignore"):
            for k, start in enumerate(starts):
                tile = slice(start, min(start + TILE, data.size))
                tmp = self.spare[: tile.stop - start]
                out = lost[at[k] : at[k + 1]] - start
                np.subtract(data[tile], self.base[tile], out=tmp)
                np.multiply(tmp, weight, out=tmp)
                tmp[out] = 0.0
                np.add(self.mean[tile], tmp, out=self.mean[tile])
                np.multiply(variance[tile], squared, out=tmp)
                tmp[out] = 0.0
                np.add(self.noise[tile], tmp, out=self.noise[tile])
        if lost.size:
            self.n_good[lost] -= 1
            total, background, inverse = self.partial
            total[lost] -= w
            background[lost] -= w * w * task.background[i]
            inverse[lost] -= w * w / (task.exposure[i] * task.scale[i])

    def finish(self, width, inside, common):
        """Return data, standard deviation, effective exposure and coverage of the rows inside."""
        n = len(self.task.weight)
        w, task = self.task.weight, self.task
        lacking = np.flatnonzero(self.n_good < n)
        sums = {k: plane[lacking] for k, plane in zip(("w", "v", "t"), self.partial, strict=True)}
        empty = lacking[self.n_good[lacking] == 0]
        with np.errstate(all="ignore"):
            ratio = self.noise
            quotient = ratio[lacking] / sums["v"]
            np.multiply(ratio, np.float32(1.0 / self.all[1]), out=ratio)
            ratio[lacking] = quotient
            ratio[empty] = 1.0
            scatter = task.scatter_of_sum() / self.all[1]
            relative = smooth(ratio, width, scatter)
            sigma = relative[inside] * np.float32(self.all[1])
            data = self.mean
            data[lacking] /= sums["w"]
            data += self.base
            exposure = np.full(data.size, 1.0 / self.all[2], np.float32)
            exposure[lacking] = sums["w"] ** 2 / sums["t"]
            inner = (lacking >= inside.start) & (lacking < inside.stop)
            lacking = lacking[inner] - inside.start
            total = sums["w"][inner] ** 2
            sigma[lacking] = relative[inside][lacking] * sums["v"][inner] / total
            signal = data[inside] + np.float32(np.sum(w * task.offset))
            shared = common.variance(signal)
            if shared is not None:
                shared[lacking] /= total
                sigma += shared
            np.sqrt(sigma, out=sigma)
        data[empty] = np.nan
        exposure[empty] = 0.0
        exposure[~np.isfinite(exposure)] = 0.0
        data, exposure, n_good = data[inside].copy(), exposure[inside], self.n_good[inside]
        sigma[n_good == 0] = np.nan
        return data, sigma, exposure, n_good


def smooth(ratio, width, scatter):
    """
    Take the noise out of a plane of relative variance, and leave its structure.

    A variance that follows each pixel's own counts is high where the counts
    are high by chance: the pixels that came out low then seem the sure ones,
    and the mean pull is not 0 (it is -1 / (2 sqrt(electrons))). So the variance
    of a pixel is the mean of 5 x 5, unless it differs from that mean by more
    than noise can, as on stars and hot pixels.

    Parameters
    ----------
    ratio : `~numpy.ndarray` of float32, (size,)
        Finite.
    width : int
    scatter : float
        Standard deviation of ``ratio`` in blank sky.

    Returns
    -------
    `~numpy.ndarray` of float32, (size,)
    """
    plane = ratio.reshape(-1, width)
    out = np.empty_like(plane)
    down, across = (1.0 / _box_count(n) for n in plane.shape)
    down, across = down[:, None].astype(np.float32), across.astype(np.float32)
    for rows in row_bands(len(plane), max(1, SMOOTHED // width)):
        # Sums in a fixed order of shifted planes: no running sum, whose rounding
        # would depend on where the band begins.
        around = slice(max(rows.start - 2, 0), rows.stop + 2)
        mean = _box(plane[around], 0)[rows.start - around.start :][: rows.stop - rows.start]
        mean = _box(mean, 1)
        mean *= down[rows]
        mean *= across
        limit = np.sqrt(np.maximum(mean, 0.0))
        limit *= np.float32(3.0 * scatter)
        difference = plane[rows] - mean
        structured = np.flatnonzero(np.abs(difference, out=difference) > limit)
        mean.ravel()[structured] = plane[rows].ravel()[structured]
        out[rows] = mean
    return out.ravel()


def _box(plane, axis):
    """Sum of the pixel and the two on either side along an axis; those outside are left out."""
    out = plane.copy()
    for d in (1, 2):
        if plane.shape[axis] > d:
            ahead, back = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], back[axis] = slice(d, None), slice(None, -d)
            out[tuple(back)] += plane[tuple(ahead)]
            out[tuple(ahead)] += plane[tuple(back)]
    return out


def _box_count(n):
    k = np.arange(n)
    return np.minimum(k + 2, n - 1) - np.maximum(k - 2, 0) + 1
