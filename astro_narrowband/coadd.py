"""
The weighted mean of registered frames, with an error bar that holds.

Two passes. The first measures each frame on its own (`measure_frame`): sky,
noise, seeing, transparency. The second is a loop over bands of rows that pulls
the same rows of every frame through its chain (file, calibration, resampling),
finds outliers, and sums. No frame is ever held as a whole and nothing is
written on the way: memory is set by the band.
"""

import math
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable

from astro_narrowband import _reject
from astro_narrowband._validate import choice, positive, same_shape
from astro_narrowband.bands import as_frame, map_bands, row_bands
from astro_narrowband.exceptions import InputError, NarrowbandWarning
from astro_narrowband.keywords import exposures_in, read_exposure
from astro_narrowband.weights import flux_scale as _flux_scale
from astro_narrowband.weights import measure_frame, sky_offset, weights_of

__all__ = ["Coadd", "coadd"]

#: Bytes that the bands under way may take together, unless told.
MEMORY = 512 * 2**20
#: No more rows than this in a band: more does not make it faster.
BAND_ROWS = 256


@dataclass(frozen=True, eq=False)
class Coadd:
    """
    A coadd and how it came about.

    Attributes
    ----------
    ccd : `~astropy.nddata.CCDData`
        Weighted mean with its uncertainty; masked and NaN where no frame counts.
    coverage : `~numpy.ndarray` of uint16, (ny, nx)
        Number of frames that count in each pixel.
    exposure : `~numpy.ndarray` of float32, (ny, nx)
        Effective exposure [s]: the photon variance of a source of rate r
        electron/s is ``r / exposure``. 0 where the frames' exposure is not known.
    n_rejected : `~numpy.ndarray` of uint16, (ny, nx)
        Number of frames that were rejected as outliers in each pixel.
    frames : `~astropy.table.QTable`
        One row for each frame, in the order given.
    """

    ccd: CCDData
    coverage: np.ndarray = field(repr=False)
    exposure: np.ndarray = field(repr=False)
    n_rejected: np.ndarray = field(repr=False)
    frames: QTable = field(repr=False)

    def to_hdul(self):
        """
        Return an `~astropy.io.fits.HDUList`: the CCDData's own, with NEXP and TEXP added.

        ``CCDData.read`` opens a file written from it.
        """
        hdul = self.ccd.to_hdu(as_image_hdu=False)
        hdul.append(fits.ImageHDU(self.coverage, name="NEXP"))
        hdul.append(fits.ImageHDU(self.exposure, name="TEXP"))
        hdul["TEXP"].header["BUNIT"] = "s"
        return hdul


def coadd(
    frames,
    *,
    weights="background",
    flux_scale="stars",
    sky="match",
    reject=True,
    n_sigma=4.0,
    gradient_tolerance=0.7,
    stars=None,
    statistics=None,
    executor=None,
    workers=None,
    memory=MEMORY,
):
    """
    Combine registered frames into their weighted mean.

    Parameters
    ----------
    frames : sequence of `~astro_narrowband.bands.Frame`, `~astropy.nddata.CCDData` or path-like
        On one grid and in one unit (electron/s).
    weights : {"background", "point_source", "exptime", "equal"}, optional
        One number per frame: 1 / (its background variance on the common flux
        scale); that over its seeing squared; its exposure time; 1.
    flux_scale : {"stars", "none"} or sequence of float, optional
        Transparency of each frame over that of the reference.
    sky : {"match", "none"}, optional
        Whether differences of the sky level between frames are taken out. The
        coadd keeps their weighted mean.
    reject : bool, optional
        Reject outliers.
    n_sigma, gradient_tolerance : float, optional
        See `astro_narrowband._reject.find_outliers`.
    stars : sequence of `~astropy.table.Table`, optional
        The stars of each frame before resampling, from `detect_stars`.
    statistics : sequence of `FrameStatistics`, optional
        What `measure_frame` found on each frame, where that is known already.
    executor : `~concurrent.futures.Executor`, optional
        Where the bands are done. Default is a pool of threads.
    workers : int, optional
    memory : float, optional
        Bytes that the bands under way may take together.

    Returns
    -------
    `Coadd`
    """
    frames = [as_frame(frame) for frame in frames]
    shape = same_shape(frames)
    unit = _one_unit(frames)
    n = len(frames)
    inner = [getattr(frame, "frame", frame) if _alignment(frame) else frame for frame in frames]
    matrices = [np.eye(3) if _alignment(f) is None else _alignment(f).matrix for f in frames]
    if statistics is None:
        tables = [None] * n if stars is None else list(stars)
        statistics = [measure_frame(f, stars=s) for f, s in zip(inner, tables, strict=True)]
    exposure = np.array([_exposure(frame) for frame in frames])
    variance = np.array([s.variance for s in statistics])
    reference = int(np.argmin(variance))
    if isinstance(flux_scale, str):
        choice(flux_scale, ("stars", "none"), "flux_scale")
        scale, scale_err = np.ones(n), np.full(n, np.nan)
        if flux_scale == "stars":
            scale, scale_err = _flux_scale(statistics, matrices, reference)
            scale = np.where(np.isfinite(scale), scale, 1.0)
    else:
        scale = np.array([positive(t, "flux_scale") for t in flux_scale])
        scale_err = np.zeros(n)
    weight = weights_of(
        weights,
        variance=variance,
        scale=scale,
        exposure=exposure,
        fwhm=np.array([s.fwhm for s in statistics]),
    )
    weight = weight / weight.sum()
    offset = np.zeros(n)
    if choice(sky, ("match", "none"), "sky") == "match":
        offset = sky_offset(statistics, matrices, scale, reference)
        offset -= np.sum(weight * offset)
    order = sorted(range(n), key=lambda i: (frames[i].name, weight[i], offset[i], scale[i]))
    task = _Task(
        frames=[frames[i] for i in order],
        shape=shape,
        scale=scale[order],
        offset=offset[order],
        weight=weight[order],
        background=(variance / scale**2)[order],
        scatter=np.array([s.scatter for s in statistics])[order] / scale[order] ** 2,
        exposure=exposure[order],
        rules=_reject.Rules(n_sigma, gradient_tolerance) if reject else None,
    )
    data = np.empty(shape, np.float32)
    sigma, texp = np.empty_like(data), np.empty_like(data)
    coverage, n_rejected = np.empty(shape, np.uint16), np.empty(shape, np.uint16)
    rejected = np.zeros(n)
    for rows, band in map_bands(task, row_bands(shape[0], 64), executor=executor, workers=workers):
        data[rows], sigma[rows], texp[rows], coverage[rows], n_rejected[rows], count = band
        rejected[order] += count
    mask = coverage == 0
    ccd = CCDData(
        data,
        uncertainty=StdDevUncertainty(sigma),
        mask=mask,
        unit=unit,
        header=frames[reference].header.copy(),
    )
    ccd.header["NCOMBINE"] = n
    ccd.header["EXPTIME"] = float(np.nansum(exposure))
    table = QTable(
        {
            "name": [f.name for f in frames],
            "weight": weight,
            "scale": scale,
            "scale_err": scale_err,
            "sky": [s.sky for s in statistics],
            "fwhm": [s.fwhm for s in statistics],
            "rejected": rejected / data.size,
        }
    )
    return Coadd(ccd, coverage, texp, n_rejected, table)


def _alignment(frame):
    return getattr(frame, "alignment", None)


def _one_unit(frames):
    unit = frames[0].unit
    for frame in frames:
        if frame.unit is None:
            raise InputError(f"{frame.name}: has no unit: frames to coadd are in electron/s")
        if frame.unit != unit:
            raise InputError(f"{frame.name}: is in {frame.unit}, {frames[0].name} in {unit}")
    return unit


def _exposure(frame):
    """Exposure of a frame [s], NaN where nothing says it."""
    exposure = getattr(frame, "exposure", None)
    if exposure is not None:
        return float(exposure)
    if "NCOMBINE" in frame.header:  # a coadd of coadds: more than a day is possible
        return float(frame.header.get("EXPTIME", math.nan))
    return read_exposure(frame.header) if exposures_in(frame.header) else math.nan


@dataclass(eq=False)
class _Task:
    """The work of one band: called with rows, from any thread or process."""

    frames: list
    shape: tuple
    scale: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    background: np.ndarray
    scatter: np.ndarray
    exposure: np.ndarray
    rules: _reject.Rules | None

    def __call__(self, rows):
        ny, nx = self.shape
        n = len(self.frames)
        around = slice(max(rows.start - _reject.HALO, 0), min(rows.stop + _reject.HALO, ny))
        size = (around.stop - around.start) * nx
        stack, variance = np.empty((n, size), np.float32), np.empty((n, size), np.float32)
        n_good = np.full(size, n, np.int32)
        bad = []
        for i, frame in enumerate(self.frames):
            band = frame.read(around)
            scale, offset = np.float32(1.0 / self.scale[i]), np.float32(self.offset[i])
            np.multiply(band.data.ravel(), scale, out=stack[i])
            np.subtract(stack[i], offset, out=stack[i])
            if band.variance is None:
                variance[i] = self.background[i]
            else:
                np.multiply(band.variance.ravel(), scale * scale, out=variance[i])
            hit = np.empty(0, np.intp) if band.mask is None else np.flatnonzero(band.mask)
            stack[i, hit] = np.inf
            n_good[hit] -= 1
            bad.append(hit)
        rejected = np.zeros(size, np.uint16)
        count = np.zeros(n)
        inside = slice((rows.start - around.start) * nx, (rows.stop - around.start) * nx)
        if self.rules is not None and n > 1:
            ref = _reject.reference(stack, n_good)
            with np.errstate(divide="ignore"):
                slope = np.where(self.exposure > 0, 1.0 / (self.exposure * self.scale), 0.0)
            outliers = _reject.find_outliers(
                stack, variance, ref, n_good, width=nx, background=self.background,
                slope=slope, rules=self.rules,
            )  # fmt: skip
            for i, hit in enumerate(outliers):
                rejected[hit] += 1
                n_good[hit] -= 1
                count[i] = np.count_nonzero((hit >= inside.start) & (hit < inside.stop))
                bad[i] = np.union1d(bad[i], hit)
        data, ratio = np.empty(size, np.float32), np.empty(size, np.float32)
        background = np.full(size, np.sum(self.weight**2 * self.background))
        inverse = np.full(size, np.sum(self.weight**2 / (self.exposure * self.scale)))
        for i, hit in enumerate(bad):
            background[hit] -= self.weight[i] ** 2 * self.background[i]
            inverse[hit] -= self.weight[i] ** 2 / (self.exposure[i] * self.scale[i])
        with np.errstate(all="ignore"):
            total = _reject.weighted_sums(stack, variance, bad, self.weight, data, ratio)
            ratio /= background
            empty = n_good == 0
            ratio[empty] = 1.0
            scatter = np.sqrt(np.sum(self.weight**4 * self.scatter**2))
            scatter /= np.sum(self.weight**2 * self.background)
            smooth = _reject.smooth(ratio, nx, scatter)
            sigma = np.sqrt(smooth * (background / total**2)).astype(np.float32)
            texp = (total**2 / inverse).astype(np.float32)
        for plane, value in ((data, np.nan), (sigma, np.nan), (texp, 0.0)):
            plane[empty] = value
        out = (rows.stop - rows.start, nx)
        planes = (data, sigma, texp, n_good.astype(np.uint16), rejected)
        return *(plane[inside].reshape(out) for plane in planes), count
