"""
What is smooth in a dark and does not grow in proportion to time: the glow of an amplifier.

No pixel shows it, a block of them does. Straight lines through the means of blocks leave a
rest at each time that was measured, which belongs to the dark of that time. Between and
beyond these times nobody knows how the glow grows: what a parabola through the means has
over the line is an error there.
"""

import numpy as np
from scipy.special import ndtri

from astro_narrowband._engine.statistics import mad_std
from astro_narrowband.darks._blocks import SIDE, Parabolas, window
from astro_narrowband.darks._straight import line

#: Probability that a glow is seen in darks that have none.
CHANCE = 1e-3
#: Windows of so many blocks along a side are looked at: what is faint is wide.
WIDTHS = (5, 3, 1)
#: Images with fewer pixels along a side have smaller blocks.
SMALL = 6 * SIDE


class Glow:
    """
    Means of blocks at each point of the fit, band by band, and what lines leave of them.

    Parameters
    ----------
    shape : tuple of int
    times : `~numpy.ndarray`
        Of the points [s].
    """

    def __init__(self, shape, times):
        self.size = block_size(shape)
        self.times = times.astype(float)[:, None, None]
        grid = tuple(n // self.size for n in shape)
        self.mean, self.variance = np.zeros((2, times.size, *grid))
        self.count = np.zeros(grid)
        self.seen = np.zeros(grid, bool)
        self.rest = self.bend = None

    def add(self, rows, y, v, lost):
        """
        Take in a band: the planes ``y`` of all points but the first, which is zero.

        ``v`` are their variances, for each column, ``lost`` the pixels that do not count.
        """
        if len(y) < 2:
            return
        size, (n_y, n_x) = self.size, self.count.shape
        first = rows.start // size
        n = min((rows.stop - rows.start) // size, n_y - first)
        blocks = slice(first, first + n)
        rows = slice(0, n * size)

        def sums(plane):
            parts = plane[rows, : n_x * size].reshape(n, size, n_x, size)
            return parts.sum(axis=1).sum(axis=2, dtype=float)

        row, column = np.nonzero(lost[rows, : n_x * size])
        place = row // size * n_x + column // size

        def of_lost(values):
            return np.bincount(place, values, minlength=n * n_x).reshape(n, n_x)

        self.count[blocks] = count = size * size - of_lost(None)
        for k, plane in enumerate(y, 1):
            self.mean[k, blocks] = (sums(plane) - of_lost(plane[row, column])) / np.maximum(
                count, 1
            )
        self.variance[:, blocks] = v[:, None, size // 2 : n_x * size : size]

    def finish(self, notes):
        """Hold the means against straight lines; note where they leave them."""
        known = self.count > self.size**2 / 4
        if len(self.times) < 3 or not known.any():
            return
        v = np.where(known, self.variance, np.inf) / np.maximum(self.count, 1)
        t, ok = self.times, np.broadcast_to(known, v.shape)
        rate, offset = line(self.mean, v, ok, t)[:2]
        rest = np.where(known, self.mean - offset - rate * t, 0)
        # A level that all share is a pedestal, and no glow.
        level = np.median(rest[:, known], axis=1)[:, None, None]
        slope, constant = line(np.broadcast_to(t**2, v.shape), v, ok, t)[:2]
        lever = np.where(known, t**2 - constant - slope * t, 0)
        weight = (lever**2 / v).sum(axis=0)
        bend = (lever * (rest - level) / v).sum(axis=0) / (weight + ~known)
        z = bend * np.sqrt(weight)
        scale = max(1.0, *(_noise(np.diff(z, axis=axis)) for axis in (0, 1)))
        limit = -ndtri(CHANCE / (2 * len(WIDTHS) * z.size))
        smooth, error = np.zeros((len(t) + 1, *z.shape)), np.zeros(z.shape)
        # The widest windows, and smaller ones where these are certain.
        for width in WIDTHS:
            n = np.sqrt(np.maximum(window(known, width), 1)) * scale
            certain = known & (np.abs(window(z, width)) > limit * n)
            place = certain if error.any() else known
            total = np.maximum(window(weight, width), 1e-300)
            for plane, value in zip(smooth, [*rest, bend], strict=True):
                plane[place] = (window(weight * value, width) / total)[place]
            error[place] = scale / np.sqrt(total[place])
            self.seen |= certain
        if not self.seen.any():
            return
        self.rest = smooth[:-1][t[:, 0, 0] > 0]
        self.bend = np.where(known, np.stack([-constant, -slope, np.ones_like(slope)]), 0)
        self.bend *= np.hypot(smooth[-1], error)
        worst = np.abs(self.rest[-1]).max()
        notes.append(
            f"glow: {100 * self.seen.mean():.2g} % of the frame does not grow in proportion to "
            f"time (off a straight line by up to {worst:.2g} adu at {t[-1, 0, 0]:g} s, as the glow "
            "of an amplifier is): darks of the times that were taken have what was measured, "
            "those of others an error that says so: take darks of the lights' exposure time"
        )

    def grids(self):
        """
        Return what the model keeps of a glow, nothing where there is none.

        Returns
        -------
        dict of `~numpy.ndarray` of float32
            ``rest`` (n_times, n_y, n_x) [adu] of the dark's line at each exposure time, and
            ``bend`` (3, n_y, n_x), the parabola of its error at others.
        """
        if self.rest is None:
            return {}
        return {"rest": self.rest.astype(np.float32), "bend": self.bend.astype(np.float32)}


def _noise(differences):
    """Robust standard deviation of values of which neighbours' differences are given."""
    return mad_std(differences, 0.0) / 2**0.5 if differences.size > 2 else 0.0


def block_size(shape):
    """Return the side of the blocks of an image."""
    return min(SIDE if min(shape) >= SMALL else SIDE // 2, *shape)


class GlowMap:
    """The pixels of the grids of a glow: what `Glow.grids` gives, for an image of ``shape``."""

    def __init__(self, grids, shape):
        (n_y, n_x), size = grids["rest"].shape[1:], block_size(shape)
        self.rows, columns = Parabolas(shape[0], n_y, size), Parabolas(shape[1], n_x, size)
        self.rest, self.bend = (
            np.stack([columns.spread(grid) for grid in grids[key]]) for key in ("rest", "bend")
        )

    def rest_at(self, k, rows):
        """Return what the dark of the exposure time of index ``k`` has beyond its line [adu]."""
        return self.rows.at(self.rest[k], rows)

    def error_at(self, exposure, rows):
        """Return the error of the line at an exposure time [s] that was not measured [adu]."""
        constant, slope, bend = self.bend
        t = np.float32(exposure)
        return np.abs(self.rows.at(constant + slope * t + bend * t * t, rows))
