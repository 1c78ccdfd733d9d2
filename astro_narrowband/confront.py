"""
Every error bar against what the image itself shows.

An uncertainty plane is the prediction of a model: photons, read-out, masters. What the
model does not know (a wrong gain or read noise in a header, noise that rows or
neighbouring pixels share) is in the image all the same, and shows in blank sky. Here the
two are compared, pixel by pixel and over the areas that photometry sums.
"""

import math
from dataclasses import dataclass

import numpy as np

from astro_narrowband._engine.door import door, real
from astro_narrowband._engine.plots import new_axes, picture_html
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import as_mask, as_pixels
from astro_narrowband.exceptions import InputError

__all__ = ["NoiseTest", "compare_noise"]

#: Cells of so many pixels a side are looked at, so many of them at the most; smaller ones in
#: images that have fewer than twice `MIN_CELLS` of them.
CELLS, MAX_CELLS = (96, 64, 48), 160
#: Cells with fewer usable pixels than this part of them are not used.
MIN_GOOD = 0.5
#: The darker part of the cells is taken for blank sky; fewer cells than this tell nothing.
BLANK, MIN_CELLS = 0.5, 6
#: Distance of pixels, rows or blocks that are compared: the noise of an interpolated image is
#: correlated over 3 pixels.
LAG = 4
#: Rows and columns are averaged over so many pixels.
SEGMENT = 32
#: Sides of the blocks, and of the squares that stand for apertures [pix].
BLOCK, APERTURE = 8, 12
#: What nebula adds to differences of blocks grows with the fourth power of their distance where it
#: is smooth, and with the square or more as a rule: twice as far apart, by factors between these.
GROWTH = 4.0, 16.0
#: A ratio further from 1 than this, and than 5 of its errors, is not chance: what interpolation
#: leaves unsaid stays within 2 %, and faint stars under the limit of detection within 5 %.
TOLERANCE, SIGMAS = {"pixels": 0.06, "blocks": 0.10, "apertures": 0.15, "lines": 0.25}, 5.0
#: A variance, 1 where errors hold, is known where its error is less than this, whatever it came out
#: as: if only large ones were taken where nebula makes errors large, these would be the usual ones.
UNKNOWN = 0.3
#: Where all scatter is off by one factor, to this, it is the gain or the read noise.
SAME = 0.08


@door
@dataclass(frozen=True)
class NoiseTest:
    """
    Noise of blank sky, measured over predicted.

    Attributes
    ----------
    ratios : dict of str to (float, float)
        Ratio and its standard error for ``"pixels"``, ``"blocks"`` (8 x 8 pixels),
        ``"apertures"`` (12 x 12 pixels, less the sky beside them) and ``"lines"`` (rows or
        columns within a cell, the worse of both). Empty where there is no blank sky.
    n_cells : int
        Cells of blank sky that were looked at.
    """

    ratios: dict
    n_cells: int

    def __repr__(self):
        numbers = ", ".join(f"{name} {ratio:.2f}" for name, (ratio, _) in self.ratios.items())
        return f"<NoiseTest of {self.n_cells} cells, measured over predicted: {numbers or 'none'}>"

    def _repr_html_(self):
        return picture_html(repr(self), self.plot)

    def plot(self, ax=None):
        """
        Draw the ratios with their errors, and what is taken for right.

        Parameters
        ----------
        ax : `~matplotlib.axes.Axes`, optional
            Default is a new figure.

        Returns
        -------
        `~matplotlib.axes.Axes`

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            ax = new_axes()
        for place, (name, limit) in enumerate(TOLERANCE.items()):
            ax.fill_between([place - 0.4, place + 0.4], 1 - limit, 1 + limit, color="#dddddd")
            if name in self.ratios:
                ax.errorbar(place, *self.ratios[name], fmt="o", color="#1b5e9b")
        ax.set_xticks(range(len(TOLERANCE)), TOLERANCE)
        ax.set_ylabel("noise of blank sky, measured over predicted")
        return ax

    @property
    def failures(self):
        """Names of the ratios that are not 1 within their limits; sums of pixels only above."""
        failed = [
            name
            for name, (ratio, error) in self.ratios.items()
            if (abs(ratio - 1) if name == "pixels" else ratio - 1)
            > max(TOLERANCE[name], SIGMAS * error)
        ]
        blocks, error = self.ratios.get("blocks", (1.0, 0.0))
        if "apertures" in failed and blocks - 1 <= 3 * error:
            # Faint stars or nebula, not noise: that would show in blocks as well.
            failed.remove("apertures")
        if "lines" in failed and self.ratios["lines"][0] < 1.1 * max(1.0, blocks) + 3 * error:
            # What blocks have too is not of the lines.
            failed.remove("lines")
        return failed

    @property
    def factor(self):
        """What errors of sums over areas are to be multiplied by so that they hold."""
        failed = {name: self.ratios[name][0] for name in self.failures}
        if "pixels" in failed and self._alike(failed["pixels"]):
            return self._of_sums(failed["pixels"])
        wanted = [ratio for name, ratio in failed.items() if name != "lines" and ratio > 1]
        if failed.get("lines", 0) > 1:
            # Noise that is the same along a line adds to an aperture as to its chord.
            wanted.append(math.sqrt(1 + (failed["lines"] ** 2 - 1) * APERTURE / SEGMENT))
        if wanted:
            return max(wanted)
        return 1.0

    @property
    def _sums(self):
        return [self.ratios[name] for name in ("blocks", "lines") if name in self.ratios]

    def _alike(self, ratio):
        """Whether sums scatter as pixels do: a scale of all errors, and no shared noise."""
        return all(abs(other - ratio) < max(4 * error, 0.08 * ratio) for other, error in self._sums)

    def _of_sums(self, ratio):
        """The ratio of pixels; errors are made smaller by no more than sums of them are."""
        if ratio > 1 or not self._sums:
            return max(ratio, 1.0)
        values, errors = np.array(self._sums).T
        weight = np.maximum(errors, 1e-3) ** -2.0
        return max(ratio, min(float(weight @ values / weight.sum()), 1.0))

    @property
    def correlation(self):
        """What the variance of single pixels over that of sums is to be multiplied by."""
        if "pixels" not in self.failures:
            return 1.0 / self.factor**2
        return (self.ratios["pixels"][0] / self.factor) ** 2

    @property
    def sentence(self):
        """What is the matter, in one sentence, or an empty text."""
        failed = self.failures
        if not failed:
            return ""
        numbers = ", ".join(f"{self.ratios[n][0]:.2f} ({n})" for n in failed)
        if "lines" in failed:
            cause = "rows or columns share noise"
        elif "pixels" in failed and abs(self.factor / self.ratios["pixels"][0] - 1) < SAME:
            cause = "the gain or the read noise is not what was given"
        else:
            cause = "pixels beside each other share noise"
        done = "the errors stay as they are"
        if self.factor != 1:
            done = f"the errors were multiplied by {self.factor:.2f}"
        return f"noise of blank sky over what was predicted: {numbers}: {cause}: {done}"


@door(noise_correlation=real(above=0, most=1))
def compare_noise(data, sigma, mask=None, *, noise_correlation=1.0):
    """
    Compare the scatter of blank sky with its uncertainty plane.

    Cells are spread over the image; the darker half of them, without what stands out of
    them (stars), is taken for blank. Pixels, blocks and lines are compared with those
    on both sides, so that gradients do not count, and the median of the cells is taken.
    What nebula adds is told by comparing them at two distances; a ratio that this leaves
    unknown is left out. Nebula that changes within 10 pixels everywhere looks like noise.

    Parameters
    ----------
    data, sigma : `~numpy.ndarray`, (ny, nx)
        Values and their standard deviations, right for sums over areas.
    mask : `~numpy.ndarray` of bool, (ny, nx), optional
        `True` for pixels to leave out.
    noise_correlation : float, optional
        Variance of single pixels over ``sigma**2``, see
        `~astro_narrowband.resampling.noise_factor`.

    Returns
    -------
    NoiseTest

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.confront import compare_noise
    >>> rng = np.random.default_rng(4)
    >>> data = rng.normal(10, 1.5, (600, 600))
    >>> test = compare_noise(data, np.full(data.shape, 1.0))
    >>> test.failures
    ['pixels', 'blocks', 'apertures']
    >>> round(test.factor, 1)
    1.5
    """
    data, sigma = as_pixels(data, "data"), as_pixels(sigma, "sigma")
    mask = as_mask(mask, data.shape)
    if data.shape != sigma.shape:
        raise InputError(f"sigma has shape {sigma.shape}, data {data.shape}: one a pixel is needed")
    enough = (n for n in CELLS if math.prod(s // n for s in data.shape) >= 2 * MIN_CELLS)
    side = next(enough, CELLS[0])
    cells = [_look_at(data, sigma, mask, *corner, side) for corner in _corners(data.shape, side)]
    cells = [cell for cell in cells if cell is not None]
    levels = np.array([level for level, _ in cells])
    if len(cells) * BLANK < MIN_CELLS:
        return NoiseTest({}, 0)
    darkest = np.argsort(levels)[: math.ceil(len(cells) * BLANK)]
    variances = np.array([cells[i][1] for i in darkest])
    variances[:, :2] /= noise_correlation
    typical = [_typical(column) for column in variances.T]
    estimates = {
        name: _less_structure(*typical[2 * i : 2 * i + 2])
        for i, name in enumerate(("pixels", "blocks", "apertures", "rows", "columns"))
    }
    estimates["lines"] = max(estimates.pop("rows"), estimates.pop("columns"))
    # Nebula may grow faster than was allowed for, and so may what was taken off be too much: the
    # noise of pixels is only said to be small where it is with nothing taken off.
    (variance, error), near = estimates["pixels"], typical[0][0]
    if variance < 1:
        estimates["pixels"] = min(near, 1.0), error
    ratios = {}
    for name, (variance, error) in estimates.items():
        if variance > 0 and (error < UNKNOWN or variance - 1 > SIGMAS * error):
            ratio = math.sqrt(variance)
            ratios[name] = (ratio, error / (2 * ratio))
    return NoiseTest(ratios, len(darkest))


def _less_structure(near, far):
    """Variance of noise, from those of differences at one distance and at twice that."""
    (v_near, e_near), (v_far, e_far) = near, far
    excess = v_far - v_near
    if math.isnan(excess):
        return math.nan, math.nan
    if not excess > 0:
        return near
    most, least = (1.0 / (growth - 1.0) for growth in GROWTH)
    part, open_part = (most + least) / 2, (most - least) / 2
    noise = math.hypot(e_near * (1 + part), e_far * part)
    return v_near - part * excess, math.hypot(noise, open_part * excess)


def _corners(shape, side):
    """Lower left corners of cells spread evenly over an image."""
    ny, nx = (n // side for n in shape)
    step = max(1, math.ceil(math.sqrt(ny * nx / MAX_CELLS)))
    return [
        (y * side + (shape[0] - ny * side) // 2, x * side + (shape[1] - nx * side) // 2)
        for y in range(0, ny, step)
        for x in range((y // step) % step if step > 1 else 0, nx, step)
    ]


def _typical(values):
    """Median of what the cells say, and its standard error."""
    values = values[np.isfinite(values)]
    if values.size < MIN_CELLS:
        return math.nan, math.nan
    # 1.4826 MAD is a standard deviation; a median is 1.2533 times noisier than a mean.
    middle = float(np.median(values))
    spread = mad_std(values, middle)
    # The scatter of a few may be small by chance: Student's t is so much wider.
    wider = math.sqrt((values.size - 1) / (values.size - 3))
    return middle, 1.2533 * wider * spread / math.sqrt(values.size)


def _look_at(data, sigma, mask, y, x, side):
    """Level of a cell, and variances of its pixels, blocks, apertures, rows and columns."""
    window = np.s_[y : y + side, x : x + side]
    values = np.asarray(data[window], np.float64)
    error = np.asarray(sigma[window], np.float64)
    bad = ~(np.isfinite(values) & np.isfinite(error) & (error > 0))
    if mask is not None:
        bad |= mask[window]
    if bad.mean() > 1 - MIN_GOOD:
        return None
    level = float(np.median(values[~bad]))
    bad |= _objects(np.where(bad, 0.0, (values - level) / np.where(bad, 1.0, error)))
    if bad.mean() > 1 - MIN_GOOD:
        return None
    values = np.where(bad, 0.0, values - level)
    variance = np.where(bad, 0.0, error**2)
    rows = _binned(values, bad, variance, (1, SEGMENT), partial=True)
    columns = _binned(values, bad, variance, (SEGMENT, 1), partial=True)
    whitened = np.where(bad, np.nan, values / np.where(bad, 1.0, error))
    blocks, squares = (_binned(values, bad, variance, (n, n)) for n in (BLOCK, APERTURE))
    return level, (
        *(_difference_variance(whitened, lag) for lag in (LAG, 2 * LAG)),
        *(_difference_variance(blocks, lag) for lag in (1, 2)),
        *(_difference_variance(squares, lag) for lag in (1, 2)),
        *(_difference_variance(rows, lag, axes=(0,)) for lag in (LAG, 2 * LAG)),
        *(_difference_variance(columns, lag, axes=(1,)) for lag in (LAG, 2 * LAG)),
    )


def _objects(whitened):
    """What stands 4 sigma out of a cell over 3 x 3 pixels, with 4 pixels around."""
    from scipy.ndimage import binary_dilation, uniform_filter

    smooth = 3.0 * uniform_filter(whitened, 3)
    spread = mad_std(smooth)
    out = smooth - np.median(smooth) > 4.0 * spread
    return binary_dilation(out, np.ones((9, 9), bool)) if out.any() else out


def _binned(values, bad, variance, size, *, partial=False):
    """Sums over blocks in units of their predicted error; NaN where pixels lack."""
    ny, nx = (n // s * s for n, s in zip(values.shape, size, strict=True))
    shape = (ny // size[0], size[0], nx // size[1], size[1])
    total, square = (a[:ny, :nx].reshape(shape).sum((1, 3)) for a in (values, variance))
    lost = bad[:ny, :nx].reshape(shape).mean((1, 3))
    good = (lost < 0.3 if partial else lost == 0) & (square > 0)
    return np.where(good, total, np.nan) / np.sqrt(np.where(good, square, 1.0))


def _difference_variance(values, lag, axes=(0, 1)):
    """Robust variance of values less those ``lag`` before and after: 1 for white noise."""
    parts = []
    for axis in axes:
        moved = np.moveaxis(values, axis, 0)
        parts.append((moved[lag:-lag] - 0.5 * (moved[: -2 * lag] + moved[2 * lag :])).ravel())
    difference = np.concatenate(parts)
    difference = difference[np.isfinite(difference)]
    if difference.size < 12:
        return math.nan
    spread = mad_std(difference)
    return float(spread**2 / 1.5)
