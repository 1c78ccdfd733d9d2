"""The points that a dark model goes through: frames of one exposure time, and their mean."""

from typing import NamedTuple

import numpy as np

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.stacking.clipped import clipped_band, sample_levels
from astro_narrowband.darks._blocks import block_median
from astro_narrowband.darks._price import same_exposure
from astro_narrowband.exceptions import InputError


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


def group_by_exposure(darks):
    """Return frames by exposure time [s], times rising; nearly equal times are one."""
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


def levelled_points(groups, samples, detector, notes):
    """
    Return the `Point` of each group, the common level of every frame taken into account.

    A pedestal that drifts from frame to frame is the same in all pixels. Within
    one exposure time frames are brought to their mean level; between exposure
    times, what the mean levels leave of a straight line is taken off if it is far
    larger than its error. It cannot be told from a dark current that is not
    linear in all pixels alike, and is noted; darks of these times have it back.
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
            notes.append(
                f"mean levels leave a straight line by {text} [adu]; taken off for other times"
            )
    return points


def average(point, rows, base, *, noise, detector):
    """Return the `Averages` of a point; ``base`` is the mean of the first one, or None."""
    floor = noise**2
    if point.master:
        band = point.frames[0].read(rows)
        mean, columns = band.data, np.empty(0, np.intp)
        if band.mask is not None and band.mask.any():
            columns = np.flatnonzero(band.mask)
            mean = np.where(band.mask, np.float32(0), mean)
        if band.variance is not None:
            floor = np.maximum(band.variance, np.float32(1e-6))
        else:
            n = keywords.one_value(point.frames[0].header, "NCOMBINE")
            floor /= np.float32(max(float(n[0]) if n else 1, 1))
        return Averages(mean, columns, np.zeros(columns.size, np.float32), None, floor)
    levels = point.levels.astype(np.float32) if len(point.frames) > 1 else None
    slope, below = 0.0, None
    if base is not None or point.time > 0:
        # What stands out of the neighbourhood is dark current.
        slope, below = np.float32(1 / detector.gain), base
    if slope and below is None:
        band = point.frames[0].read(rows)
        known = band.data if band.mask is None else np.where(band.mask, np.nan, band.data)
        below = block_median(known) - (0 if levels is None else levels[0])
    result = clipped_band(
        point.frames,
        rows,
        floor=floor,
        slope=slope,
        below=below,
        levels=levels,
        saturation=detector.saturation,
        squares=True,
    )
    result.mean.ravel()[result.columns[result.count == 0]] = 0
    return Averages(result.mean, result.columns, result.count, result.square, floor)
