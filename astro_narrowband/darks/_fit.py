"""The fit behind `astro_narrowband.darks.DarkModel`: weighted straight lines, in bands of rows."""

import threading
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import as_frames, map_bands, row_bands
from astro_narrowband._engine.raw import master_header, prepared
from astro_narrowband._engine.stacking.clipped import (
    clipped_band,
    keep_memory,
    sample_frames,
    sample_levels,
    sample_noise,
)
from astro_narrowband._engine.validate import same_shape
from astro_narrowband.darks._hot import Hot
from astro_narrowband.darks._price import same_exposure
from astro_narrowband.darks._shrink import shrink_fit
from astro_narrowband.darks._straight import limit, line, same_line, same_rate
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import InputError, warn

__all__ = ["FLAGS", "PLANES", "empty_planes", "fit_planes"]

#: Bits of the flag plane.
FLAGS = {"NONLINEAR": 1, "SATURATED": 2, "UNCERTAIN": 4, "NEGATIVE": 8}

#: Names of the planes, in the order in which they are written.
PLANES = ("offset", "rate", "var_offset", "var_rate", "cov", "flags")

#: Rows that are fitted at a time; also the side of the neighbourhoods that ordinary
#: pixels are told by.
BAND = 32
#: A pixel this many sigma above its neighbourhood is believed itself.
FAR = 4.0
#: Scatter between frames, over what is expected, from which a pixel is not to be trusted.
NOISY = 3.0


class Averages(NamedTuple):
    """
    A band of the frames of one point: mean, sum of squared deviations from it, or None.

    Pixels ``columns`` have ``count`` good frames, all others every one; ``floor`` is the
    variance of one frame without dark current, or of a master.
    """

    mean: np.ndarray
    columns: np.ndarray
    count: np.ndarray
    square: np.ndarray | None
    floor: np.ndarray


class Point(NamedTuple):
    """Frames of one exposure time: ``time`` [s], ``levels`` [adu] about their mean."""

    time: float
    frames: list
    levels: np.ndarray
    master: bool = False
    pedestal: float = 0.0

    @property
    def number(self):
        """Frames, of which a master is one."""
        return 1 if self.master else len(self.frames)


def empty_planes(shape):
    """Return planes of zeros."""
    planes = {name: np.zeros(shape, np.float32) for name in PLANES[:-1]}
    return planes | {PLANES[-1]: np.zeros(shape, np.uint8)}


def fit_planes(darks, *, bias, detector, model, shrink, workers):
    """Return the fields of a `~astro_narrowband.darks.DarkModel`; see its ``fit``."""
    darks = as_frames(darks, "darks", convert=prepared)
    if not darks:
        raise InputError("no darks were given: give at least one, or DarkModel.from_masters(bias=)")
    groups = _groups(darks)
    master = bias is not None and not isinstance(bias, list | tuple)
    biases = (
        [] if bias is None else as_frames([bias] if master else bias, "biases", convert=prepared)
    )
    shape = same_shape([*darks, *biases], "darks and biases")
    if detector is None:
        detector = decide_detector(darks[0].header)
    if model is None:
        model = "rate" if biases or len(groups) == 1 else "linear"
    if model == "linear":
        if len(groups) < 2:
            raise InputError(
                "model = 'linear' needs darks of two exposure times at least: use model='rate'"
            )
        biases = []
    elif not biases and len(groups) > 1:
        raise InputError("model = 'rate' needs bias=: give the biases, or use model='linear'")
    groups = ([(0.0, biases, master)] if biases else []) + [
        (t, frames, False) for t, frames in groups.items()
    ]
    notes = []
    keep_memory()
    samples = sample_frames([frame for _, frames, _ in groups for frame in frames])
    points = _levelled(groups, samples, detector, notes)
    # Measured where it can be: without a bias, the noise of the only exposure time
    # has the shot noise of ordinary dark current in it, as it should.
    noise = detector.noise_adu
    if len(points[0].frames) > 1 and (points[0].time == 0 or len(points) == 1):
        noise = sample_noise(samples[: len(points[0].frames)])
    fit = _Fit(points, shape, detector, noise)
    total, number = 0.0, 0
    for _, (part, n) in map_bands(fit.band, row_bands(shape[0], BAND), workers=workers):
        total += part
        number += n
    temperatures = _temperatures(darks)
    if len(points) > 1:
        fit.finish_hot(temperatures, notes)
    if shrink:
        notes.extend(shrink_fit(fit, ~np.uint8(FLAGS["NEGATIVE"]), workers=workers))
    times = [p for p in points if p.time > 0]
    if len(points) == 1:
        model = "matched"
        fit.prior_rate(detector)
        notes.append(
            "one dark exposure time and no bias: for other times it stands for the offset alone"
        )
    elif len(times) == 1:
        notes.append("one dark exposure time: its linearity could not be tested")
    _say_flags(fit.planes["flags"], notes)
    header = master_header(darks[0], "dark", len(darks))
    if len(points) > 2 and number:
        chi2 = round(total / number / (len(points) - 2), 4)
        header["DARKCHI2"] = (chi2, "chi-squared per degree of freedom, ordinary pixels")
        header["DARKDOF"] = (len(points) - 2, "degrees of freedom")
    return {
        "planes": fit.planes,
        "shape": shape,
        "model": model,
        "exposures": tuple(p.time for p in times),
        "n_frames": tuple(len(p.frames) for p in times),
        "temperatures": (min(temperatures), max(temperatures)) if temperatures else None,
        "notes": tuple(notes),
        "measured": fit.measured(),
        "header": header,
    }


def _groups(darks):
    """Frames by exposure time [s], times rising; nearly equal times are one."""
    groups = {}
    for frame in darks:
        try:
            exposure = keywords.read_exposure(frame.header)
        except InputError as error:
            raise InputError(f"{frame.name}: {error}") from None
        if not exposure > 0:
            raise InputError(
                f"{frame.name}: has an exposure time of {exposure:g} s and is no dark: give it as "
                "a bias, or correct EXPTIME"
            )
        match = next((t for t in groups if same_exposure(exposure, t)), exposure)
        groups.setdefault(match, []).append(frame)
    return dict(sorted(groups.items()))


def _temperatures(frames):
    found = [keywords.read_temperature(frame.header) for frame in frames]
    return [t for t in found if t is not None]


def _levelled(groups, samples, detector, notes):
    """
    Take the common level of every frame into account.

    A pedestal that drifts from frame to frame is the same in all pixels. Within
    one exposure time frames are brought to their mean level; between exposure
    times, what the mean levels leave of a straight line is taken off if it is far
    larger than its error. It cannot be told from a dark current that is not
    linear in all pixels alike, and is noted.
    """
    every = sample_levels(samples)
    points, levels = [], []
    for time, frames, master in groups:
        each, every = every[: len(frames)], every[len(frames) :]
        levels.append(each.mean())
        points.append(Point(time, frames, each - each.mean(), master))
    spread = max(float(np.ptp(p.levels)) for p in points)
    limit = max(0.1 * detector.noise_adu, 1.0)
    if spread > limit:
        notes.append(
            f"levels of frames of one exposure time differ by up to {spread:.1f} adu; "
            "they were brought to their mean"
        )
    if len(points) > 2:
        t = np.array([p.time for p in points])
        n = np.sqrt([len(p.frames) for p in points])
        # Longer exposures bend first: weights fall with time.
        line = np.polyfit(t, levels, 1, w=n / np.sqrt(1 + t / t[-1]))
        rest = np.array(levels) - np.polyval(line, t)
        if np.abs(rest).max() > limit:
            points = [p._replace(pedestal=float(r)) for p, r in zip(points, rest, strict=True)]
            text = ", ".join(f"{r:+.1f} at {x:g} s" for r, x in zip(rest, t, strict=True))
            notes.append(f"mean levels leave a straight line by {text} [adu]; taken off")
    return points


class _Fit:
    """Straight lines through all pixels, and a table of the pixels that need a second look."""

    def __init__(self, points, shape, detector, noise):
        self.points, self.shape, self.detector = points, shape, detector
        self.noise = np.float32(noise)
        self.per_adu = np.float32(1 / detector.gain)
        self.planes = empty_planes(shape)
        self.times = np.array([p.time for p in points], np.float32)
        self.rows, self.lock = [], threading.Lock()
        self.hot = None

    def band(self, rows):
        """Fit one band and put it into the planes; return sum and number of chi-squared."""
        first, *others = self.points
        found = [self._average(first, rows, None)]
        base = found[0].mean
        if not others:
            self._single(rows, found[0])
            return 0.0, 0
        found += [self._average(point, rows, base) for point in others]
        if first.pedestal:
            base = base - np.float32(first.pedestal)
        # About the first point, where all lines have nothing then.
        y = [np.subtract(each.mean, base) for each in found[1:]]
        for plane, point in zip(y, others, strict=True):
            if point.pedestal:
                plane -= np.float32(point.pedestal)
        special = np.zeros(base.shape, bool)
        # Nearly all pixels are alike: all frames, the same variance. What they are
        # weighted with is the same all over a block, and they are fitted as they lie.
        usual = np.empty((len(found), 1), np.float32)
        for k, (each, point) in enumerate(zip(found, self.points, strict=True)):
            special.ravel()[each.columns[each.count != point.number]] = True
            usual[k] = np.median(each.floor[0]) if np.ndim(each.floor) else each.floor
            if np.ndim(each.floor):
                special |= each.floor != usual[k]
        number = np.array([point.number for point in self.points], np.float32)[:, None]
        t = self.times[:, None]
        lone, sigma = same_rate(y, usual / number, t)
        sigma = np.broadcast_to(np.sqrt(sigma), lone.shape)
        index = np.flatnonzero(special)
        if index.size:
            few = self._gather(index, y, found)
            result = line(few["y"], few["floor"] / np.maximum(few["n"], 1), few["n"] > 0, t)
            lone.ravel()[index] = result[0]
            sigma = sigma.copy()
            sigma.ravel()[index] = np.sqrt(result[2])
        # The dark current that belongs into the weights is that of the
        # neighbourhood: a pixel's own would let its noise choose its weight.
        local = _block_median(lone)
        work = np.subtract(lone, local)
        far = np.abs(work, out=work) > FAR * sigma
        one = usual + np.maximum(local, 0) * (t * self.per_adu)
        rate, offset = (self.planes[name][rows] for name in ("rate", "offset"))
        *covariance, chi2 = same_line(y, one / number, t, out=(rate, offset))
        offset += base
        for name, values in zip(("var_rate", "var_offset", "cov"), covariance, strict=True):
            self.planes[name][rows] = values
        scatter = np.zeros_like(rate)
        for each, v in zip(found, one, strict=True):
            if each.square is not None:
                scatter += np.multiply(each.square, 1 / v, out=work)
        special |= far
        special |= scatter > limit(np.array(sum(p.number - 1 for p in self.points)))
        special |= chi2 > limit(np.array(len(found) - 2))
        special |= rate < -FAR * np.sqrt(covariance[0])
        index = np.flatnonzero(special)
        chi2.ravel()[index] = 0
        if index.size:
            few = self._gather(index, y, found)
            few["base"] = base.ravel()[index]
            few["local"] = local[index % self.shape[1]]
            few["far"] = far.ravel()[index]
            self._special(rows, index, lone.ravel()[index], few)
        return float(chi2.sum()), chi2.size - index.size

    def _gather(self, index, y, found):
        """Columns of some pixels; of exposure times with too few good frames, nothing."""
        few = {key: np.zeros((len(found), index.size), np.float32) for key in ("y", "n", "square")}
        few["floor"] = np.empty_like(few["y"])
        for own, plane in zip(few["y"][1:], y, strict=True):
            plane.ravel().take(index, out=own)
        for k, (each, point) in enumerate(zip(found, self.points, strict=True)):
            few["n"][k] = point.number
            place = np.minimum(np.searchsorted(index, each.columns), index.size - 1)
            here = index[place] == each.columns
            few["n"][k][place[here]] = each.count[here]
            if each.square is not None:
                each.square.ravel().take(index, out=few["square"][k])
            few["floor"][k] = each.floor.ravel()[index] if np.ndim(each.floor) else each.floor
        enough = few["n"] * 2 > np.array([[point.number] for point in self.points])
        for key in ("y", "n", "square"):
            few[key] = np.where(enough, few[key], np.float32(0))
        few["lacking"] = ~enough.all(axis=0)
        return few

    def _special(self, rows, index, first, few):
        """Fit pixels of a band that differ from others, and put them into the planes."""
        y, n, floor = few["y"], few["n"], few["floor"]
        local, far = few["local"], few["far"]
        t = self.times[:, None]
        flags = np.where(few["lacking"], np.uint8(FLAGS["SATURATED"]), np.uint8(0))
        current = np.maximum(np.where(far, first, local), 0)
        one = floor + current * (t * self.per_adu)
        v = one / np.maximum(n, 1)
        rate, offset, var_rate, var_offset, cov, chi2, used = line(y, v, n > 0, t)
        lost = used < 2
        flags[lost] |= FLAGS["UNCERTAIN"]
        # Frames scatter more than they should: telegraph noise, cut frames, ...
        inner = np.maximum(n - 1, 0).sum(axis=0)
        scatter = (few["square"] / one).sum(axis=0)
        noisy = scatter > limit(inner)
        own = np.where(noisy, scatter / np.maximum(inner, 1), np.float32(1))
        ratio = np.maximum(own, 1)
        flags[noisy & (ratio > NOISY**2)] |= FLAGS["UNCERTAIN"]
        chi2 = chi2 / ratio
        dof = np.maximum(used, 2) - 2
        bent = chi2 > limit(dof)
        flags[bent] |= FLAGS["NONLINEAR"]
        ratio = ratio * np.where(bent, chi2 / np.maximum(dof, 1), np.float32(1))
        flags[rate < -FAR * np.sqrt(var_rate * ratio)] |= FLAGS["NEGATIVE"]
        unknown = np.float32((self.detector.saturation / self.times.max()) ** 2)
        found = {
            "offset": np.where(lost, 0, offset) + few["base"],
            "rate": np.where(lost, 0, rate),
            "var_offset": np.where(lost, v[0], var_offset * ratio),
            "var_rate": np.where(lost, unknown, var_rate * ratio),
            "cov": np.where(lost, 0, cov * ratio),
            "flags": flags,
        }
        pixel = index + rows.start * self.shape[1]
        for name, values in found.items():
            self.planes[name].ravel()[pixel] = values
        look = (far | bent) & ~lost
        if look.any():
            table = {
                "pixel": pixel[look],
                "y": y[:, look],
                "v": v[:, look],
                "ok": (n > 0)[:, look],
                "base": few["base"][look],
                "local": local[look],
                "ratio": own[look],
                "far": far[look],
            }
            with self.lock:
                self.rows.append((rows.start, table))

    def _average(self, point, rows, base):
        """Return the `Averages` of one point; ``base`` is the mean of the first, or None."""
        own = self.noise**2
        if point.master:
            band = point.frames[0].read(rows)
            mean, columns = band.data, np.empty(0, np.intp)
            if band.mask is not None and band.mask.any():
                columns = np.flatnonzero(band.mask)
                mean = np.where(band.mask, np.float32(0), mean)
            if band.variance is not None:
                own = np.maximum(band.variance, np.float32(1e-6))
            else:
                n = keywords.one_value(point.frames[0].header, "NCOMBINE")
                own /= np.float32(max(float(n[0]) if n else 1, 1))
            return Averages(mean, columns, np.zeros(columns.size, np.float32), None, own)
        levels = point.levels.astype(np.float32) if len(point.frames) > 1 else None
        slope, below = 0.0, None
        if base is not None or point.time > 0:
            # What stands out of the neighbourhood is dark current.
            slope, below = self.per_adu, base
        if slope and below is None:
            band = point.frames[0].read(rows)
            known = band.data if band.mask is None else np.where(band.mask, np.nan, band.data)
            below = _block_median(known) - (0 if levels is None else levels[0])
        result = clipped_band(
            point.frames,
            rows,
            floor=own,
            slope=slope,
            below=below,
            levels=levels,
            saturation=self.detector.saturation,
            squares=True,
        )
        result.mean.ravel()[result.columns[result.count == 0]] = 0
        return Averages(result.mean, result.columns, result.count, result.square, own)

    def _single(self, rows, found):
        """Without a second point there is no line: the offset is the dark itself."""
        base, whole = found.mean, self.points[0].number
        n = np.full(base.shape, whole, np.float32)
        n.ravel()[found.columns] = found.count
        square = np.zeros_like(base) if found.square is None else found.square
        enough = n * 2 > whole
        flags = np.where(enough, np.uint8(0), np.uint8(FLAGS["SATURATED"]))
        n, square = (np.where(enough, x, np.float32(0)) for x in (n, square))
        none = n == 0
        one = np.broadcast_to(found.floor, base.shape)
        if self.times[0] > 0:
            # What stands out is dark current, and has its shot noise.
            one = one + np.maximum(base - _block_median(base), 0) * self.per_adu
        inner = np.maximum(n - 1, 0)
        noisy = square > limit(inner) * one
        ratio = np.where(noisy, square / (one * np.maximum(inner, 1)), np.float32(1))
        flags[none | (noisy & (ratio > NOISY**2))] |= FLAGS["UNCERTAIN"]
        self.planes["offset"][rows] = base
        self.planes["var_offset"][rows] = one * ratio / np.maximum(n, 1)
        self.planes["flags"][rows] = flags

    def prior_rate(self, detector):
        """
        Give the dark of a single exposure time a rate, so that it can be priced for others.

        What ordinary pixels collected is taken from their noise beyond that of the
        read-out, and nothing said of it but that it may be twice that or nothing. What
        stands out of the neighbourhood is dark current. At the exposure time itself the
        dark stays what it was, with its error.
        """
        t, planes = self.times[0], self.planes
        excess = max(float(self.noise) ** 2 - detector.noise_adu**2, 0.0) * detector.gain
        # The read noise of a header is good to a tenth.
        excess = max(excess, 0.2 * detector.noise_adu**2 * detector.gain)
        variance = np.float32((excess / t) ** 2)
        for rows in row_bands(self.shape[0], BAND):
            offset, var_offset = (planes[name][rows] for name in ("offset", "var_offset"))
            above = offset - _block_median(offset)
            above[above < FAR * np.sqrt(var_offset)] = 0
            planes["rate"][rows] = (above + np.float32(excess)) / t
            offset -= t * planes["rate"][rows]
            planes["var_rate"][rows] = variance
            planes["cov"][rows] = -t * variance
            var_offset += t * t * variance

    def finish_hot(self, temperatures, notes):
        """Look again at hot pixels; see `~astro_narrowband.darks._hot.Hot`."""
        tables = [table for _, table in sorted(self.rows, key=lambda item: item[0])]
        self.rows = []
        if tables:
            self.hot = Hot(tables, self.times, self.planes, FLAGS)
            self.hot.finish(temperatures, notes)

    @property
    def kept(self):
        """Flat indices of pixels whose rate is not that of their neighbourhood."""
        return np.empty(0, np.intp) if self.hot is None else self.hot.kept

    def measured(self):
        """Means at the exposure times that were measured, of pixels that should have them."""
        return {} if self.hot is None else self.hot.measured(self.times > 0)


def _block_median(plane):
    """Median of squares as high as the band, spread over their pixels; NaN do not count."""
    n_rows, nx = plane.shape
    size = min(BAND, nx)
    n = max(nx // size, 1)
    edge = n * size
    step = max(1, n_rows * size // 256)
    if size % step == 0:
        # The same pixels, without a copy of all.
        part = plane[:, :edge:step].reshape(n_rows, n, size // step)
        part = part.swapaxes(0, 1).reshape(n, -1)
    else:
        part = plane[:, :edge].reshape(n_rows, n, size).swapaxes(0, 1).reshape(n, -1)[:, ::step]
    known = np.isfinite(part)
    if not known.all():
        # What is not known shall not count: as many very high as very low.
        part = np.where(known, part, np.inf)
        part = np.where(~known & (np.cumsum(~known, axis=1) % 2 == 0), -np.inf, part)
    median = np.median(part, axis=1)
    median[~np.isfinite(median)] = 0
    wide = np.empty(nx, np.float32)
    wide[:edge] = np.repeat(median, size)
    wide[edge:] = wide[edge - 1]
    return wide


def _say_flags(flags, notes):
    total = flags.size
    for name, bit in FLAGS.items():
        n = int(np.count_nonzero(flags & bit))
        if n:
            notes.append(f"{name}: {n} pixels ({100 * n / total:.3g} %)")
    if np.count_nonzero(flags & FLAGS["NEGATIVE"]) > 0.1 * total:
        warn(
            "the darks lie below the bias in more than 10 % of the pixels: bias and darks were "
            "not taken alike (offset, gain, temperature, light leak): the dark will be wrong",
            stacklevel=4,
        )
