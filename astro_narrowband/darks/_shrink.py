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

from contextlib import contextmanager

import numpy as np
from scipy.special import ndtr

from astro_narrowband._engine.frames import map_bands, row_bands
from astro_narrowband._engine.statistics import MAD_TO_STD, mad_std
from astro_narrowband.darks._blocks import Parabolas, to_pixels, window

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
#: From here on the histogram is made: what is smoothed beyond `CERTAIN` needs no more.
SEEN = 2.0
#: From and to where [sigma] a tail of warm pixels is looked for, and from when [its errors]
#: it is believed.
TAIL_FROM, TAIL, TAIL_SIGMA = (SEEN, 2.5, 3.0, 3.5, 4.0), 5.0, 4.0


def shrink_fit(fit, judged, *, workers=None):
    """
    Shrink rate, then offset, of a fit towards their neighbourhoods; return notes.

    Pixels with flags among ``judged`` keep what they have; those that the fit has ``kept``
    apart keep their rate.
    """
    planes, notes = fit.planes, []
    names = ("rate", "offset") if len(fit.points) > 1 else ("offset",)

    flagged = np.flatnonzero((planes["flags"] & judged) != 0)
    for name in names:
        apart = np.union1d(flagged, fit.kept) if name == "rate" else flagged

        def lost(rows, apart=apart):
            nx = fit.shape[1]
            first, last = np.searchsorted(apart, [rows.start * nx, rows.stop * nx])
            return apart[first:last] - rows.start * nx

        def apply(rows, first, second, name=name):
            rate, offset, var_rate, var_offset, cov = (
                planes[key][rows] for key in ("rate", "offset", "var_rate", "var_offset", "cov")
            )
            c_rate, c_offset = (var_rate, cov) if name == "rate" else (cov, var_offset)
            work = np.multiply(c_rate, first)
            rate += work
            offset += np.multiply(c_offset, first, out=work)
            # Before one of them changes that the others need.
            of_rate = np.multiply(c_rate, second, out=work)
            of_offset = np.multiply(c_offset, second, out=second)
            both = np.multiply(c_offset, of_rate, out=first)
            of_rate *= c_rate
            of_offset *= c_offset
            var_rate += of_rate
            var_offset += of_offset
            cov += both

        skew = _skew(fit) if name == "rate" else None
        result = shrink_plane(
            planes[name], planes[f"var_{name}"], lost, apply, skew=skew, workers=workers
        )
        if "tail" in result:
            notes.append(
                f"rate: {100 * result['tail']:.2g} % of the pixels are 2 to 5 sigma warmer than "
                "others around and cannot be told from chance one by one: rates are not shrunk"
            )
            continue
        notes.append(
            f"{name}: {100 * result['ordinary']:.1f} % of the pixels follow their neighbourhood "
            f"(true values spread by {result['spread']:.3g}); their variance is "
            f"{result['gain']:.3g} times that of the fit"
        )
    return notes


def _skew(fit):
    """Skewness of the rate of an ordinary pixel: that of the electrons of the longest darks."""
    t, n = float(fit.times[-1]), fit.points[-1].number
    rate, variance = (float(np.median(fit.planes[k][::8])) for k in ("rate", "var_rate"))
    return max(rate, 0.0) * t * float(fit.per_adu) ** 2 / n**2 / (variance * t * t) ** 1.5


def _tail(counts, n_pixels, skew):
    """
    Return the fraction of pixels in a one-sided tail of deviations, 0 if there is none for sure.

    What is above is held against what is below, and against what chance makes; electrons are
    a little skew themselves (the first term of Edgeworth's series).
    """
    half, last = N_BINS // 2, round(TAIL / BIN)
    for z in TAIL_FROM:
        first = round(z / BIN)
        above = counts[half + first : half + last].sum()
        below = counts[half - last : half - first].sum()
        normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        skewed = skew / 3 * (z**2 - 1) * normal * n_pixels
        chance = (ndtr(-z) - ndtr(-TAIL)) * n_pixels
        usual = max(below, chance)
        # Of a few counts chance makes more than a normal distribution says.
        if above - usual > 2 * skewed + TAIL_SIGMA * usual**0.5 + 2:
            return float(above - usual - skewed) / n_pixels
    return 0.0


def shrink_plane(values, variance, lost, apply, *, skew=None, workers=None):
    """
    Estimate the prior of a plane and hand the correction of every pixel to ``apply``.

    Parameters
    ----------
    values, variance : `~numpy.ndarray` of float32, (ny, nx)
        What was fitted, and its variance.
    lost : callable
        Takes a slice of rows; returns flat indices in these of the pixels that are not judged.
    apply : callable
        ``apply(rows, first, second)``: with C the covariance of a pixel's
        parameters, and c its column for this one, its posterior is
        ``x + c * first`` and ``C + c c' * second``.
    skew : float, optional
        Skewness of the errors. With it a plane with a tail of warm pixels, which no one can
        tell from ordinary ones, stays as it is: shrunk they would be wrong beyond their errors.
    workers : int, optional

    Returns
    -------
    dict
        ``ordinary``: fraction of pixels that follow the neighbourhood;
        ``spread``: typical standard deviation of true values there; ``gain``:
        typical variance after over before. Or ``tail``: fraction of warm pixels, where
        nothing was done.
    """
    plane = _Plane(values, variance, lost, workers)
    plane.find_levels()
    plane.find_profiles()
    plane.find_spread()
    near, counts, n_pixels = plane.deviations()
    tail = 0.0 if skew is None else _tail(counts, n_pixels, skew)
    if tail:
        return {"tail": tail}
    ordinary = np.pad(_ordinary(near, counts, n_pixels), 1, "edge").astype(np.float32)
    belong = plane.correct(ordinary, apply)
    middle, typical = float(np.median(plane.prior)), float(plane.typical)
    return {
        "ordinary": belong / values.size,
        "spread": float(np.median(plane.spread)) ** 0.5,
        "gain": middle / (middle + typical) if typical > 0 else 1.0,
    }


class _Plane:
    """A plane of values about what their neighbourhood says, one stage after the other."""

    def __init__(self, values, variance, lost, workers):
        self.values, self.variance, self.lost, self.workers = values, variance, lost, workers
        ny, nx = values.shape
        self.size = min(BLOCK, max(SMALLEST, min(ny, nx) // 6), ny, nx)
        self.grid = ny // self.size, nx // self.size
        # The last band may be one of rows that are left over, and belong to no block.
        self.bands = row_bands(ny, self.size)
        self.rest = np.empty_like(values)

    def _over(self, function, bands):
        return map_bands(function, bands, workers=self.workers)

    def find_levels(self):
        """Find clipped means of blocks, the variance of a pixel there, and how many there are."""

        def levels(rows):
            centre, _, n, mean = _robust(
                self.values[rows], self.variance[rows], self.lost(rows), self.size
            )
            return centre, mean, n

        blocks = self.bands[: self.grid[0]]
        results = [result for _, result in self._over(levels, blocks)]
        self.level, self.noise, self.count = np.array(results, np.float32).swapaxes(0, 1)
        self.typical = np.float32(np.median(self.noise))

    def find_profiles(self):
        """Take a smooth map off, and find columns and rows of the read-out, which stand out."""
        ny, nx = self.values.shape
        along_rows, along_columns = (
            Parabolas(n, n_blocks, self.size)
            for n, n_blocks in zip((ny, nx), self.grid, strict=True)
        )
        wide = along_columns.spread(self.level)

        def profiles(rows):
            rest = along_rows.rows_of(wide, rows, out=self.rest[rows])
            np.subtract(self.values[rows], rest, out=rest)
            far = _far(rest, 4 * _mad(rest), self.lost(rows))
            row, column = np.divmod(far, nx)
            n_rows = len(rest)
            with _without(rest, far):
                sums = rest.sum(axis=0), rest.sum(axis=1)
            lost = np.bincount(column, minlength=nx), np.bincount(row, minlength=n_rows)
            return (*sums, n_rows - lost[0], nx - lost[1])

        column_sum, column_count = np.zeros((2, nx))
        row_sum, row_count = np.zeros(ny, np.float32), np.ones(ny, np.float32)
        for rows, result in self._over(profiles, self.bands):
            column_sum += result[0]
            row_sum[rows] = result[1]
            column_count += result[2]
            row_count[rows] = result[3]
        mean = column_sum / np.maximum(column_count, 1)
        self.columns, self.kept_columns = _significant(mean, self.typical / ny)
        # What the columns put into the mean of a row is the same in all.
        common = (self.columns * column_count).sum() / max(column_count.sum(), 1)
        mean = row_sum / np.maximum(row_count, 1) - common
        self.lines, self.kept_lines = _significant(mean, self.typical / nx)

    def find_spread(self):
        """Take columns and rows off; find the variance of true values about all that is left."""
        ny, nx = self.values.shape
        # Degrees of freedom that profiles and means take from the scatter they are taken off.
        profiles = self.kept_columns / ny + self.kept_lines / nx
        freedom = np.float32(profiles + 1 / self.size**2)

        def excess(rows):
            rest = self.rest[rows]
            if self.kept_columns:
                rest -= self.columns
            if self.kept_lines:
                rest -= self.lines[rows, None]
            if len(rest) < self.size:
                return None
            variance, lost = self.variance[rows], self.lost(rows)
            _, square, n, mean = _robust(rest, variance, lost, self.size, about=0)
            return square / (1 - freedom) - mean, n

        spread = np.zeros(self.grid, np.float32)
        number = np.ones(self.grid, np.float32)
        for i, (_, result) in enumerate(self._over(excess, self.bands)):
            if result is not None:
                spread[i], number[i] = result
        # What the frame as a whole says is known best, but where a neighbourhood, or the
        # nine around it, say more. Cut at zero the estimate is too large on average,
        # never too small.
        expected = _spread_of_frame(spread, self.level, _weights(number, self.noise))
        total = np.maximum(window(number, 3), 1)
        self.spread = expected
        nine = window(spread * number, 3) / total, total
        for estimate, n in (nine, (spread, np.maximum(number, 1))):
            certain = estimate - expected > 3 * (self.noise + expected) * np.sqrt(2 / n)
            self.spread = np.where(certain, np.maximum(estimate, self.spread), self.spread)
        # The neighbourhood's own mean has an error as well.
        level = 1.5 * (self.noise + self.spread) / np.maximum(self.count, 1)
        self.prior = (self.spread + level + self.typical * profiles).astype(np.float32)

    def _total(self, rows):
        """Variance of the deviations in some rows."""
        block = min(rows.start // self.size, self.grid[0] - 1)
        return self.variance[rows] + to_pixels(self.prior[block], self.size, self.values.shape[1])

    def deviations(self):
        """Count pixels within one sigma, those beyond two in a histogram, and all judged."""

        def count(rows):
            rest, total, lost = self.rest[rows], self._total(rows), self.lost(rows)
            square = rest * rest
            near = square < total
            near.ravel()[lost] = False
            total *= np.float32(SEEN**2)
            beyond = square >= total
            beyond.ravel()[lost] = False
            index = np.flatnonzero(beyond)
            bins = _bins(rest.ravel()[index], total.ravel()[index] / np.float32(SEEN**2))
            counts = np.bincount(bins, minlength=N_BINS + 2)[1:-1]
            return np.count_nonzero(near), counts, rest.size - len(lost)

        near, counts, n_pixels = 0, np.zeros(N_BINS), 0
        for _, result in self._over(count, self.bands):
            near += result[0]
            counts += result[1]
            n_pixels += result[2]
        return near, counts, n_pixels

    def correct(self, ordinary, apply):
        """Hand the correction of every pixel to ``apply``; return how many are ordinary."""

        def work(rows):
            rest, weight, lost = self.rest[rows], self._total(rows), self.lost(rows)
            with np.errstate(divide="ignore"):
                np.divide(-1, weight, out=weight)
            first = rest * weight
            # Pixels that are near enough are ordinary for certain, and all others few.
            beyond = rest * first <= np.float32(-((CERTAIN - BIN) ** 2))
            beyond.ravel()[lost] = True
            index = np.flatnonzero(beyond)
            slope = weight.ravel()[index]
            p = ordinary.take(_bins(rest.ravel()[index], -1 / slope))
            p[np.searchsorted(index, lost)] = 0
            delta = first.ravel()[index]
            first.ravel()[index] = np.where(p > 0, p * delta, 0)
            second = ((1 - p) * delta * delta + slope) * p
            weight.ravel()[index] = np.where(p > 0, second, 0)
            apply(rows, first, weight)
            return rest.size - len(p) + float(p.sum())

        return sum(result for _, result in self._over(work, self.bands))


def _bins(rest, variance):
    """Bins of deviations; the first and the last are of what lies beyond, or is no number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (rest / np.sqrt(variance) + np.float32(REACH)) * np.float32(1 / BIN)
    z[~(z < N_BINS)] = N_BINS
    return np.maximum(z + 1, 0).astype(np.intp)


def _weights(number, noise):
    """Weights of neighbourhoods, of sum 1: those of which no pixel is judged have none."""
    weight = np.where(noise > 0, number / np.where(noise > 0, noise, 1).astype(float) ** 2, 0)
    return weight / max(weight.sum(), np.finfo(float).tiny)


def _spread_of_frame(spread, level, weight):
    """
    Variance of true values in every neighbourhood, ``a + c * level**2`` over the frame.

    Pixels differ by a part of what they have: where a glow is bright, the rates
    differ more. Neither part is allowed to be negative.
    """
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


def _ordinary(near, counts, n):
    """
    Probability that a pixel is ordinary, for each bin of its deviation in sigma.

    ``near`` of ``n`` pixels are within one sigma; ``counts`` are right beyond `SEEN`.
    """
    middle = (np.arange(N_BINS) + 0.5) * BIN - REACH
    normal = np.exp(-(middle**2) / 2) * BIN / np.sqrt(2 * np.pi)
    core = np.abs(middle) < 1
    fraction = min(1.0, near / max(n * normal[core].sum(), 1e-9))
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
    """Robust standard deviation of a band about zero, from a sample of it."""
    sample = x.ravel()[:: max(1, x.size // 4096)]
    return np.float32(mad_std(sample, 0.0)) if sample.size else np.float32(0)


def _far(x, width, lost):
    """Flat indices of what is further than ``width`` from zero, or lost."""
    far = np.abs(x) > width
    far.ravel()[lost] = True
    return np.flatnonzero(far)


@contextmanager
def _without(x, index):
    """Some pixels of a contiguous array are zero for a while."""
    x = x.reshape(-1)
    kept = x[index]
    x[index] = 0
    yield
    x[index] = kept


def _robust(x, variance, lost, size, about=None):
    """
    Clipped centre and mean square (about the centre) of each block of a band.

    And how many pixels were kept, and the mean of their variance. ``x`` is of ``size`` rows.
    """
    n_blocks, nx = x.shape[1] // size, x.shape[1]
    edge = n_blocks * size

    def sums(plane):
        return plane.sum(axis=0)[:edge].reshape(n_blocks, size).sum(axis=1)

    # A sample of the pixels says about where to clip.
    sample = x.copy() if len(lost) else x
    sample.ravel()[lost] = np.inf
    step = max(1, size * size // 256)
    sample = sample[:, :edge].reshape(size, n_blocks, size)[:, :, ::step]
    sample = sample.swapaxes(0, 1).reshape(n_blocks, -1)
    seen = np.count_nonzero(sample < np.inf, axis=1)
    centre = np.zeros(n_blocks, np.float32) if about is not None else _medians(sample, seen)
    width = np.float32(MAD_TO_STD) * _medians(np.abs(sample - centre[:, None]), seen)
    rest = x
    for _ in range(2):
        if about is None:
            rest = x - to_pixels(centre, size, nx)
        far = _far(rest, to_pixels(np.float32(CLIP) * width, size, nx), lost)
        n = size * size - np.bincount(far % nx // size, minlength=n_blocks)[:n_blocks]
        kept = np.maximum(n, 1).astype(np.float32)
        with _without(rest, far):
            square = np.einsum("ij,ij->j", rest, rest)[:edge].reshape(n_blocks, size).sum(axis=1)
            square /= kept * np.float32(CUT)
            if about is None:
                centre += sums(rest) / kept
        width = np.sqrt(square)
    rest = variance.copy()
    rest.ravel()[far] = 0
    return centre, square, n, sums(rest) / kept


def _medians(x, count):
    """Median of each row of which ``count`` are finite, all others infinite; 0 where none is."""
    x = np.sort(x, axis=1)
    row = np.arange(len(x))
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, x.shape[1] - 1)
    return np.where(count > 0, (x[row, low] + x[row, high]) * np.float32(0.5), np.float32(0))


def _significant(profile, noise):
    """Shrink a profile to zero as far as it may be noise (James and Stein); and by how much."""
    variance = float(np.mean(profile**2))
    keep = max(0.0, 1 - float(noise) / variance) if variance > 0 else 0.0
    return (profile * keep).astype(np.float32), keep
