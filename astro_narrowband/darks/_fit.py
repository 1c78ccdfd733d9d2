"""The fit behind `astro_narrowband.darks.DarkModel`: weighted straight lines, in bands of rows."""

import threading

import numpy as np

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.frames import as_frames, map_bands, row_bands
from astro_narrowband._engine.heap import keep_memory
from astro_narrowband._engine.raw import master_header, prepared
from astro_narrowband._engine.stacking.clipped import sample_frames, sample_noise
from astro_narrowband._engine.validate import same_shape
from astro_narrowband.darks._blocks import SIDE, block_median, fine_median
from astro_narrowband.darks._glow import Glow
from astro_narrowband.darks._hot import Hot
from astro_narrowband.darks._planes import FAR, FLAGS, NOISY, empty_planes
from astro_narrowband.darks._points import average, group_by_exposure, levelled_points
from astro_narrowband.darks._shrink import shrink_fit
from astro_narrowband.darks._straight import limit, line, same_line, same_rate
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import InputError, warn

#: Where more of a band is far from its neighbourhood the dark itself is steep: a glow.
STEEP = 0.05


def fit_planes(darks, *, bias, detector, model, shrink, workers):
    """Return the fields of a `~astro_narrowband.darks.DarkModel`; see its ``fit``."""
    darks = as_frames(darks, "darks", convert=prepared)
    if not darks:
        raise InputError("no darks were given: give at least one, or DarkModel.from_masters(bias=)")
    master = bias is not None and not isinstance(bias, list | tuple)
    biases = (
        [] if bias is None else as_frames([bias] if master else bias, "biases", convert=prepared)
    )
    shape = same_shape([*darks, *biases], "darks and biases")
    detector = detector or decide_detector(darks[0].header)
    model, groups = _groups(group_by_exposure(darks), biases, master, model)
    notes = []
    keep_memory()
    samples = sample_frames([frame for _, frames, _ in groups for frame in frames])
    points = levelled_points(groups, samples, detector, notes)
    # Measured where it can be: without a bias, the noise of the only exposure time
    # has the shot noise of ordinary dark current in it, as it should.
    noise = detector.noise_adu
    if len(points[0].frames) > 1 and (points[0].time == 0 or len(points) == 1):
        noise = sample_noise(samples[: len(points[0].frames)])
    fit = _Fit(points, shape, detector, noise)
    chi2 = [sums for _, sums in map_bands(fit.band, row_bands(shape[0], SIDE), workers=workers)]
    temperatures = [keywords.read_temperature(frame.header) for frame in darks]
    temperatures = [t for t in temperatures if t is not None]
    fit.finish(temperatures, notes)
    if shrink:
        notes.extend(shrink_fit(fit, ~np.uint8(FLAGS["NEGATIVE"]), workers=workers))
    if len(points) == 1:
        model = "matched"
        give_prior_rate(fit.planes, points[0].time, noise=noise, detector=detector)
    times = [p for p in points if p.time > 0]
    _say(notes, fit, times)
    return {
        "planes": fit.planes,
        "shape": shape,
        "model": model,
        "exposures": tuple(p.time for p in times),
        "n_frames": tuple(len(p.frames) for p in times),
        "temperatures": (min(temperatures), max(temperatures)) if temperatures else None,
        "notes": tuple(notes),
        "measured": fit.measured(),
        "pedestals": tuple(p.pedestal for p in times),
        "glow": fit.glow.grids(),
        "header": _header(darks, len(points) - 2, np.sum(chi2, axis=0)),
    }


def _groups(groups, biases, master, model):
    """Return the model, and (time, frames, whether it is a master) of its points."""
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
    return model, ([(0.0, biases, master)] if biases else []) + [
        (t, frames, False) for t, frames in groups.items()
    ]


def _header(darks, dof, chi2):
    header = master_header(darks[0], "dark", len(darks))
    total, number = chi2
    if dof > 0 and number:
        value = round(float(total / number / dof), 4)
        header["DARKCHI2"] = (value, "chi-squared per degree of freedom, ordinary pixels")
        header["DARKDOF"] = (dof, "degrees of freedom")
    return header


class _Fit:
    """Straight lines through all pixels, and a table of the pixels that need a second look."""

    def __init__(self, points, shape, detector, noise):
        self.points, self.shape, self.detector = points, shape, detector
        self.noise = np.float32(noise)
        self.per_adu = np.float32(1 / detector.gain)
        self.planes = empty_planes(shape)
        self.times = np.array([p.time for p in points], np.float32)
        self.number = np.array([p.number for p in points], np.float32)[:, None]
        self.rows, self.lock = [], threading.Lock()
        self.hot, self.glow = None, Glow(shape, self.times)

    def band(self, rows):
        """Fit one band and put it into the planes; return sum and number of chi-squared."""
        known = {"noise": self.noise, "detector": self.detector}
        first, *others = self.points
        averages = [average(first, rows, None, **known)]
        base = averages[0].mean
        if not others:
            fit_single(self.planes, rows, averages[0], first, gain=self.detector.gain)
            return 0.0, 0
        averages += [average(point, rows, base, **known) for point in others]
        if first.pedestal:
            base = base - np.float32(first.pedestal)
        # About the first point, where all lines have nothing then.
        y = [np.subtract(each.mean, base) for each in averages[1:]]
        for plane, point in zip(y, others, strict=True):
            if point.pedestal:
                plane -= np.float32(point.pedestal)
        usual, special = self._usual(averages)
        lone, local, far = self._rates(y, usual, special, averages)
        one = usual + np.maximum(local, 0) * (self.times[:, None] * self.per_adu)
        self.glow.add(rows, y, one / self.number, special | far)
        chi2 = self._lines(rows, y, one, base)
        special |= far
        special |= self._odd(rows, averages, one, chi2)
        index = np.flatnonzero(special)
        chi2.ravel()[index] = 0
        if index.size:
            columns = self._gather(index, y, averages)
            columns["base"] = base.ravel()[index]
            columns["local"] = local[index % self.shape[1]]
            columns["far"] = far.ravel()[index]
            self._special(rows, index, lone.ravel()[index], columns)
        return float(chi2.sum()), chi2.size - index.size

    def _usual(self, averages):
        """
        Return the variance of a frame, which nearly all pixels share, and which do not.

        What they are weighted with is the same all over a block then, and they are fitted
        as they lie.
        """
        special = np.zeros(averages[0].mean.shape, bool)
        usual = np.empty((len(averages), 1), np.float32)
        for k, (each, point) in enumerate(zip(averages, self.points, strict=True)):
            special.ravel()[each.columns[each.count != point.number]] = True
            usual[k] = np.median(each.floor[0]) if np.ndim(each.floor) else each.floor
            if np.ndim(each.floor):
                special |= each.floor != usual[k]
        return usual, special

    def _rates(self, y, usual, special, averages):
        """
        Return the rate of each pixel alone, that of the neighbourhood, and who is far from it.

        The dark current that belongs into the weights is that of the neighbourhood: a
        pixel's own would let its noise choose its weight.
        """
        t = self.times[:, None]
        lone, sigma = same_rate(y, usual / self.number, t)
        sigma = np.broadcast_to(np.sqrt(sigma), lone.shape)
        index = np.flatnonzero(special)
        if index.size:
            columns = self._gather(index, y, averages)
            v = columns["floor"] / np.maximum(columns["n"], 1)
            result = line(columns["y"], v, columns["n"] > 0, t)
            lone.ravel()[index] = result[0]
            sigma = sigma.copy()
            sigma.ravel()[index] = np.sqrt(result[2])
        local = block_median(lone)
        work = np.subtract(lone, local)
        far = np.abs(work, out=work) > FAR * sigma
        if np.count_nonzero(far) > STEEP * far.size:
            far &= np.abs(lone - fine_median(lone)) > FAR * sigma
        return lone, local, far

    def _lines(self, rows, y, one, base):
        """Put the lines of ordinary pixels into the planes; return their chi-squared."""
        rate, offset = (self.planes[name][rows] for name in ("rate", "offset"))
        v, t = one / self.number, self.times[:, None]
        *covariance, chi2 = same_line(y, v, t, out=(rate, offset))
        offset += base
        for name, values in zip(("var_rate", "var_offset", "cov"), covariance, strict=True):
            self.planes[name][rows] = values
        return chi2

    def _odd(self, rows, averages, one, chi2):
        """Return whether frames scatter too much, lines do not fit, or rates are negative."""
        rate, var_rate = (self.planes[name][rows] for name in ("rate", "var_rate"))
        scatter, work = np.zeros_like(rate), np.empty_like(rate)
        for each, v in zip(averages, one, strict=True):
            if each.square is not None:
                scatter += np.multiply(each.square, 1 / v, out=work)
        odd = scatter > limit(np.array(sum(p.number - 1 for p in self.points)))
        odd |= chi2 > limit(np.array(len(averages) - 2))
        odd |= rate < -FAR * np.sqrt(var_rate)
        return odd

    def _gather(self, index, y, averages):
        """Columns of some pixels; of exposure times with too few good frames, nothing."""
        shape = len(averages), index.size
        columns = {key: np.zeros(shape, np.float32) for key in ("y", "n", "square")}
        columns["floor"] = np.empty(shape, np.float32)
        for values, plane in zip(columns["y"][1:], y, strict=True):
            plane.ravel().take(index, out=values)
        for k, (each, point) in enumerate(zip(averages, self.points, strict=True)):
            columns["n"][k] = point.number
            place = np.minimum(np.searchsorted(index, each.columns), index.size - 1)
            same = index[place] == each.columns
            columns["n"][k][place[same]] = each.count[same]
            if each.square is not None:
                each.square.ravel().take(index, out=columns["square"][k])
            floor = each.floor.ravel()[index] if np.ndim(each.floor) else each.floor
            columns["floor"][k] = floor
        enough = columns["n"] * 2 > self.number
        for key in ("y", "n", "square"):
            columns[key] = np.where(enough, columns[key], np.float32(0))
        columns["lacking"] = ~enough.all(axis=0)
        return columns

    def _special(self, rows, index, first, columns):
        """Fit pixels of a band that differ from others, and put them into the planes."""
        y, n, floor = columns["y"], columns["n"], columns["floor"]
        local, far = columns["local"], columns["far"]
        t = self.times[:, None]
        flags = np.where(columns["lacking"], np.uint8(FLAGS["SATURATED"]), np.uint8(0))
        current = np.maximum(np.where(far, first, local), 0)
        one = floor + current * (t * self.per_adu)
        v = one / np.maximum(n, 1)
        rate, offset, var_rate, var_offset, cov, chi2, used = line(y, v, n > 0, t)
        lost = used < 2
        flags[lost] |= FLAGS["UNCERTAIN"]
        # Frames scatter more than they should: telegraph noise, cut frames, ...
        inner = np.maximum(n - 1, 0).sum(axis=0)
        scatter = (columns["square"] / one).sum(axis=0)
        noisy = scatter > limit(inner)
        excess = np.where(noisy, scatter / np.maximum(inner, 1), np.float32(1))
        ratio = np.maximum(excess, 1)
        flags[noisy & (ratio > NOISY**2)] |= FLAGS["UNCERTAIN"]
        chi2 = chi2 / ratio
        dof = np.maximum(used, 2) - 2
        bent = chi2 > limit(dof)
        flags[bent] |= FLAGS["NONLINEAR"]
        ratio = ratio * np.where(bent, chi2 / np.maximum(dof, 1), np.float32(1))
        flags[rate < -FAR * np.sqrt(var_rate * ratio)] |= FLAGS["NEGATIVE"]
        unknown = np.float32((self.detector.saturation / self.times.max()) ** 2)
        fitted = {
            "offset": np.where(lost, 0, offset) + columns["base"],
            "rate": np.where(lost, 0, rate),
            "var_offset": np.where(lost, v[0], var_offset * ratio),
            "var_rate": np.where(lost, unknown, var_rate * ratio),
            "cov": np.where(lost, 0, cov * ratio),
            "flags": flags,
        }
        pixel = index + rows.start * self.shape[1]
        for name, values in fitted.items():
            self.planes[name].ravel()[pixel] = values
        look = (far | bent) & ~lost
        if look.any():
            table = {"pixel": pixel, "y": y, "v": v, "ok": n > 0, "ratio": excess}
            table |= {key: columns[key] for key in ("base", "local", "far")}
            with self.lock:
                self.rows.append((rows.start, {k: x[..., look] for k, x in table.items()}))

    def finish(self, temperatures, notes):
        """Look again at hot pixels, and at a glow: see `Hot` and `Glow`."""
        tables = [table for _, table in sorted(self.rows, key=lambda item: item[0])]
        self.rows = []
        if tables and len(self.points) > 1:
            self.hot = Hot(tables, self.times, self.planes, FLAGS)
            self.hot.finish(temperatures, notes)
        self.glow.finish(notes)

    @property
    def kept(self):
        """Flat indices of pixels whose rate is not that of their neighbourhood."""
        return np.empty(0, np.intp) if self.hot is None else self.hot.kept

    def measured(self):
        """Means at the exposure times that were measured, of pixels that should have them."""
        measured = {} if self.hot is None else self.hot.measured(self.times > 0)
        if measured:
            pedestals = [p.pedestal for p in self.points if p.time > 0]
            measured["mean"] += np.array(pedestals, np.float32)[:, None]
        return measured


def _say(notes, fit, times):
    """Note what could not be tested, and how many pixels have each flag."""
    if len(fit.points) == 1:
        notes.append(
            "one dark exposure time and no bias: for other times it stands for the offset alone"
        )
    elif len(times) == 1:
        notes.append("one dark exposure time: its linearity could not be tested")
    flags = fit.planes["flags"]
    number = {name: int(np.count_nonzero(flags & bit)) for name, bit in FLAGS.items()}
    notes += [f"{k}: {n} pixels ({100 * n / flags.size:.3g} %)" for k, n in number.items() if n]
    if number["NEGATIVE"] > 0.1 * flags.size:
        warn(
            "the darks lie below the bias in more than 10 % of the pixels: bias and darks were "
            "not taken alike (offset, gain, temperature, light leak): the dark will be wrong",
            stacklevel=5,
        )


def fit_single(planes, rows, averages, point, *, gain):
    """Put the mean of the only point into the offset of some rows: without a second no line."""
    base, whole = averages.mean, point.number
    n = np.full(base.shape, whole, np.float32)
    n.ravel()[averages.columns] = averages.count
    square = np.zeros_like(base) if averages.square is None else averages.square
    enough = n * 2 > whole
    flags = np.where(enough, np.uint8(0), np.uint8(FLAGS["SATURATED"]))
    n, square = (np.where(enough, x, np.float32(0)) for x in (n, square))
    none = n == 0
    one = np.broadcast_to(averages.floor, base.shape)
    if point.time > 0:
        # What stands out is dark current, and has its shot noise.
        one = one + np.maximum(base - block_median(base), 0) * np.float32(1 / gain)
    inner = np.maximum(n - 1, 0)
    noisy = square > limit(inner) * one
    ratio = np.where(noisy, square / (one * np.maximum(inner, 1)), np.float32(1))
    flags[none | (noisy & (ratio > NOISY**2))] |= FLAGS["UNCERTAIN"]
    planes["offset"][rows] = base
    planes["var_offset"][rows] = one * ratio / np.maximum(n, 1)
    planes["flags"][rows] = flags


def give_prior_rate(planes, time, *, noise, detector):
    """
    Give the dark of a single exposure time a rate, so that it can be priced for others.

    What ordinary pixels collected is taken from their noise beyond that of the
    read-out, and nothing said of it but that it may be twice that or nothing. What
    stands out of the neighbourhood is dark current. At the exposure time itself the
    dark stays what it was, with its error.
    """
    t = np.float32(time)
    excess = max(float(noise) ** 2 - detector.noise_adu**2, 0.0) * detector.gain
    # The read noise of a header is good to a tenth.
    excess = max(excess, 0.2 * detector.noise_adu**2 * detector.gain)
    variance = np.float32((excess / t) ** 2)
    for rows in row_bands(planes["offset"].shape[0], SIDE):
        offset, var_offset = (planes[name][rows] for name in ("offset", "var_offset"))
        above = offset - block_median(offset)
        above[above < FAR * np.sqrt(var_offset)] = 0
        planes["rate"][rows] = (above + np.float32(excess)) / t
        offset -= t * planes["rate"][rows]
        planes["var_rate"][rows] = variance
        planes["cov"][rows] = -t * variance
        var_offset += t * t * variance
