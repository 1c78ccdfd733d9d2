"""
The weighted mean of registered frames, with an error bar that holds.

Two passes. The first measures each frame on its own
(`~astro_narrowband.coaddition.measure_frame`): sky, noise, seeing, stars. The
second is a loop over bands of rows that pulls the same rows of every frame
through its chain (file, calibration, resampling), finds outliers, and sums. No
frame is ever held as a whole and nothing is written on the way: memory is set
by the band, not by the number of frames.
"""

import math

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.door import a_table, array, door, each, of_class, or_of
from astro_narrowband._engine.executors import run_bands
from astro_narrowband._engine.frames import as_frames, new_ccd, row_bands, usable_cores
from astro_narrowband._engine.validate import same_shape
from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.coaddition._band import BandSum, row_bytes
from astro_narrowband.coaddition._common_noise import overlap_factors, shared_clusters
from astro_narrowband.coaddition._header import (
    frame_table,
    self_test,
    wcs_of,
    write_header,
    write_matching,
)
from astro_narrowband.coaddition._matching import (
    choose_reference,
    fixed_order,
    identity,
    in_order,
    match_flux,
    match_sky,
    measure_all,
    warn_of_frames,
    warn_of_rejected,
    warn_of_uneven,
)
from astro_narrowband.coaddition._own_noise import exposure_of, own_noise, warn_of_unknown
from astro_narrowband.coaddition._product import Coadd
from astro_narrowband.coaddition._registered import check_registered
from astro_narrowband.coaddition._reject import (
    PANEL,
    Rules,
    best_frames,
    structure_spacing,
    tolerances,
)
from astro_narrowband.coaddition._shapes import N_TERMS, star_shapes
from astro_narrowband.coaddition._weights import judge, spoiled_discs, weigh
from astro_narrowband.exceptions import InputError

#: Bytes that the bands under way may take together, unless told.
MEMORY = 512 * 2**20
#: No more rows than this in a band: more does not make it faster.
BAND_ROWS = 256
#: Stars of this signal to noise tell the shape of a frame's stars.
SHAPE_SNR = 20.0


@door(
    flux_scale=or_of(str, array(ndim=1)), sky=or_of(str, array(ndim=1)), stars=each(a_table),
    statistics=each(of_class("FrameStatistics")),
)  # fmt: skip
def coadd(
    frames,
    *,
    weights="background",
    flux_scale="stars",
    sky="match",
    reject=True,
    n_sigma=4.0,
    gradient_tolerance=0.7,
    max_seeing=2.0,
    min_transparency=0.3,
    masters=None,
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
    frames : sequence of `~astro_narrowband.Frame`, `~astropy.nddata.CCDData` or path-like
        On one grid and in one unit, electron/s. A frame without a variance has its
        noise measured from its sky.
    weights : {"background", "point_source", "exptime", "equal"} or sequence of float, optional
        One number per frame: 1 / (its background variance on the common flux
        scale); that over its seeing squared, for point sources; its exposure time;
        1; or what is given.
    flux_scale : {"stars", "none"} or sequence of float, optional
        Transparency of each frame over that of the reference: from the fluxes of
        common stars, of fainter ones where there are few, and of the nebula itself; 1;
        or what is given. Where stars tell that it varies over a frame, it is a slow map.
    sky : {"match", "none"} or sequence of float, optional
        Sky taken from each frame on the common scale: what it has more than the
        weighted mean of all, at the level of those as clear as FLUXREF, as a constant or,
        where there is evidence of gradients, a surface of up to third degree; nothing; or
        levels that are given.
    reject : bool, optional
        Reject outliers, from two frames on. Of two, only the brighter can be one.
    n_sigma : float, optional
        Outliers differ from the median of the frames by more than this.
    gradient_tolerance : float, optional
        And by more than this part of what the image changes within 2/3 of the seeing
        (twice as much of two frames), at the most, which spares stars. Where the stars
        of three frames or more are known (``flux_scale="stars"``), how their shape differs from
        frame to frame is fitted and taken off first, and what is left, a few percent
        as a rule, is all that a frame may differ by.
    max_seeing : float, optional
        A frame with a seeing of more than so many times the median is left out.
    min_transparency : float, optional
        A frame with less than this part of the median transparency is left out.
    masters : `~astro_narrowband.calibration.Recipe` or `~astro_narrowband.DarkModel`, optional
        What *all* the frames were calibrated with, for the noise of every pixel that they
        share. Only for frames as the detector saw them. Without, it is known of a
        `~astro_narrowband.calibration.CalibratedFrame`, and to a few percent in blank sky
        from the header of what `~astro_narrowband.calibrate` made, also after
        `~astro_narrowband.resample`, arithmetic, or a file.
    stars : sequence of `~astropy.table.Table`, optional
        The stars of each frame, in its own pixels before resampling, from
        `~astro_narrowband.detect_stars`. Default is to detect them where
        ``flux_scale`` is "stars".
    statistics : sequence of `~astro_narrowband.coaddition.FrameStatistics`, optional
        What `~astro_narrowband.coaddition.measure_frame` found on each frame, where
        that is known already: nothing is then measured here.
    executor : `~concurrent.futures.Executor`, optional
        Where the bands are done, see `~astro_narrowband._engine.executors`. Default is a
        pool of threads.
    workers : int, optional
        Threads, or bands under way. Default is the number of usable cores.
    memory : float, optional
        Bytes that the bands under way may take together.

    Returns
    -------
    `Coadd`
        The mean, and what became of each frame.

    Raises
    ------
    InputError
        If there are no frames, or their shapes or units differ, or an argument
        cannot be used, or no frame is left.
    AlignmentError
        If frames that nothing says were registered have their stars in other places.

    Warns
    -----
    NarrowbandWarning
        For each frame that is left out; if transparencies could not be
        measured (they are then taken as usual); if 2 % or more of a frame's pixels are rejected.
    SharedNoiseWarning
        Once, if frames do not say which masters they were calibrated with: what noise they
        share is then not known. A `~astro_narrowband.Frame` without masters says so by
        ``masters = "none"``, a header by ``MASTERID = 'none'``.

    Notes
    -----
    With T the flux scale, s the sky to take away and t the exposure of each frame::

        y = data / T - s                      w = 1 / V_background,   in the unit of the coadd
        coadd = sum(w g y) / sum(w g)         g = 0 where masked or rejected, else 1
        variance = sum(w^2 g V) / sum(w g)^2 + V_masters
        exposure = sum(w g)^2 / sum(w^2 g / (t T))

    A frame has one weight, not one per pixel: weights that follow each pixel's own
    counts lower every pixel by (N - 1) / N electron, and lose percents of a star
    where the seeing varies [1]_, [2]_. V is a frame's own noise: its variance plane, or,
    of a `~astro_narrowband.calibration.CalibratedFrame` whose outliers are looked for, that
    of the signal which the best frames show. The noise of the counts in V is smoothed
    away over 5 x 5 pixels, except on structure.

    V_masters is the noise of bias, dark and flat, which frames share: amplitudes
    add up for frames whose detector pixels coincide and squares for frames that
    are dithered; frames half a pixel or less apart count as coinciding, and what
    that is wrong by is corrected on average. For undithered frames it is
    ``A^2 var_offset + var_rate + 2 A cov`` with ``A = sum(w / t) / sum(w)``. Over
    an aperture wider than the dither the noise of the masters is more correlated
    than the plane says: SYSNOISE in the header is its level in blank sky if it did
    not average at all.

    Outliers: see `astro_narrowband.coaddition._reject.Panel.outliers`. Where a frame has a masked
    pixel on a bright star (saturated, as a rule) it does not count within 4 FWHM: a
    star of which one frame lacks the core would be wrong by percents.

    The result does not depend on the order of the frames, the executor, the number
    of workers, or the memory, to the last bit.

    Self-test: the scatter of blank sky over what the uncertainty predicts, of pixels
    (NOISEPIX), blocks of 8 x 8 (NOISEBLK), squares of 12 x 12 (NOISEAPR) and rows or columns
    (NOISELIN), see `~astro_narrowband.confront.compare_noise`. Where one is not 1 within its
    error (a gain or read noise that is wrong, noise that pixels or rows share) there is a
    warning, and the uncertainty is multiplied by ERRSCALE, so that it holds for sums.

    Header: that of the reference (the frame the others are aligned with, or that
    with the least noise), with NCOMBINE, EXPTIME (sum, [s]), TEFF (median effective
    exposure, [s]), NOISECOR (variance of single pixels over the variance plane, see
    `~astro_narrowband.resampling.noise_factor`), SYSNOISE, SKYLEVEL, WEIGHTS,
    COADDREF, FLUXREF, REJECTED, and what the matching leaves: SCALEERR (relative error of
    all fluxes by those of the scales), SCALESYS (by uneven transparency, shared by the stars of
    a region), SKYDEG (degree of the sky surfaces, whose weighted mean is kept, at the level of
    the clear frames) and SKYSURFE (their error). FLUXERR is what fluxes share: SCALEERR,
    SCALESYS and the error of a measured gain (GAINERR).

    References
    ----------
    .. [1] Mandelbaum, R. et al. 2022, arXiv:2209.09253 (a coadd has a PSF only if
       the weights do not depend on the signal).
    .. [2] The rejection follows AstroDrizzle's driz_cr (STScI, DrizzlePac
       Handbook): noise plus a part of the derivative of the median image.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, VarianceUncertainty
    >>> from astro_narrowband.coaddition import coadd
    >>> rng = np.random.default_rng(5)
    >>> frames = []
    >>> for sigma in (1.0, 1.0, 2.0):
    ...     image = rng.normal(10.0, sigma, (40, 50))
    ...     variance = VarianceUncertainty(np.full((40, 50), sigma**2))
    ...     frames.append(CCDData(image, unit="electron / s", uncertainty=variance))
    >>> frames[1].data[7, 9] += 100.0  # a cosmic ray
    >>> made = coadd(frames, flux_scale="none")
    >>> made.frames["weight"].round(3).tolist()
    [0.444, 0.444, 0.111]
    >>> int(made.coverage[7, 9]), round(float(made.ccd.uncertainty.array[0, 0]), 3)
    (2, 0.667)
    """
    frames = own_noise(as_frames(frames), masters)
    warn_of_unknown(frames)
    shape = same_shape(frames)
    unit = _one_unit(frames)
    table = measure_all(frames, stars, statistics, flux_scale)
    first = fixed_order(frames, table)
    # All that follows is done in an order that does not depend on the one given.
    frames, table = [frames[i] for i in first], [table[i] for i in first]
    exposure = np.array([exposure_of(frame) for frame in frames])
    weights = in_order(weights, first, "weights")
    flux_scale, sky = in_order(flux_scale, first, "flux_scale"), in_order(sky, first, "sky")
    matrices = [np.eye(3) if f.alignment is None else f.alignment.matrix for f in frames]
    reference = choose_reference(frames, table)
    check_registered(frames, table, matrices, reference)
    seen = match_flux(flux_scale, frames, table, matrices, reference=reference, shape=shape)
    fwhm = np.array([s.fwhm for s in table])
    asked = weigh(weights, background=_backgrounds(table, seen), exposure=exposure, fwhm=fwhm)
    reasons = judge(table, seen, asked, max_seeing=max_seeing, min_transparency=min_transparency)
    weight = _of_used(asked, frames, reasons, seen)
    warn_of_uneven(seen, weight)
    skies = match_sky(sky, table, matrices, seen, weight=weight, shape=shape)
    rules = Rules(n_sigma, spacing=structure_spacing(fwhm[weight > 0])) if reject else None
    task, order = _plan(frames, table, matrices, seen, skies, weight, exposure, shape, rules)
    task.tolerance[:] = tolerances(gradient_tolerance, fwhm[weight > 0])[:, None]
    _learn_shapes(task, table[reference], matrices[reference], workers)
    planes, count = _run(task, executor, workers, memory)
    data, sigma, texp, coverage, n_rejected = planes
    rejected = np.zeros(len(frames))
    rejected[order] = count / data.size
    warn_of_rejected(frames, rejected)
    header = fits.Header(frames[reference].header, copy=True)
    ccd = new_ccd((data, sigma, coverage == 0), header, unit, wcs_of(frames[reference]))
    write_header(ccd.header, task, frames[reference].name, weights, planes, unit)
    self_test(ccd)
    write_matching(ccd.header, frames, seen, skies, weight)
    rows = frame_table(
        frames, table, reasons=reasons, exposure=exposure, weight=weight,
        transparency=seen, skies=skies, rejected=rejected,
    )[np.argsort(first)]  # fmt: skip
    return Coadd(ccd, coverage, texp, n_rejected, rows)


# --------------------------------------------------------------------------- the first pass


def _one_unit(frames):
    unit = frames[0].unit
    for frame in frames:
        if frame.unit is None:
            raise InputError(
                f"{frame.name}: has no unit (BUNIT): it must be in electron/s: calibrate it"
            )
        if frame.unit != unit:
            raise InputError(
                f"{frame.name}: is in {frame.unit}, {frames[0].name} in {unit}: calibrate all alike"
            )
    return unit


def _backgrounds(table, seen):
    """Variance of a pixel of blank sky of each frame, in the unit of the coadd."""
    return np.array([s.variance for s in table]) / seen.scale**2 * seen.dimming[:, 0]


def _of_used(weight, frames, reasons, seen):
    """Say which frames are left out; return the weights of the others, which add up to 1."""
    warn_of_frames(frames, reasons, seen)
    if all(reasons):
        raise InputError(f"no frame is left to coadd: {frames[0].name}: {reasons[0]}")
    weight = np.where([not reason for reason in reasons], weight, 0.0)
    return weight / weight.sum()


def _plan(frames, table, matrices, seen, skies, weight, exposure, shape, rules):
    """The sum over the frames that count, and their indices in its order."""
    scale, dimming, offset = seen.scale, seen.dimming, skies.offset
    background = _backgrounds(table, seen)
    cluster, correlations, amplitude = shared_clusters(frames, shape)
    overlap = overlap_factors(cluster, correlations, weight / scale * amplitude)
    discs = spoiled_discs(table, matrices, weight)
    order = _canonical(frames, table, background, exposure, offset, cluster, weight > 0)
    task = BandSum(
        frames=[frames[i] for i in order],
        shape=shape,
        scale=scale[order],
        offset=offset[order],
        weight=weight[order],
        background=background[order],
        correlation=np.array([frames[i].noise_correlation for i in order]),
        scatter=(np.array([s.scatter for s in table]) / scale**2)[order],
        exposure=exposure[order],
        sky=(np.array([s.sky for s in table]) / scale - offset)[order],
        cluster=cluster[order],
        overlap=overlap[order],
        amplitude=amplitude[order],
        shapes=np.zeros((len(order), N_TERMS), np.float32),
        tolerance=np.zeros((len(order), 2)),
        discs=[discs[i] for i in order],
        surfaces=[
            skies.surfaces[i] if skies.degree > 0 or seen.maps[i] is not None else None
            for i in order
        ],
        maps=[seen.maps[i] for i in order],
        dimmest=dimming[order, 1] / dimming[order, 0],
        rules=rules,
    )
    return task, order


def _canonical(frames, table, background, exposure, offset, cluster, used):
    """
    Indices of the used frames in an order that does not depend on the one given.

    The panel that judges outliers is the best of them; frames that share
    masters and pixels come one after the other.
    """

    def key(i):
        return (background[i], frames[i].name, exposure[i], offset[i], identity(table[i]))

    order = sorted(np.flatnonzero(used).tolist(), key=key)
    # Clusters are numbered as frames were given: order them by their first frame.
    first = {}
    for place, i in enumerate(order):
        first.setdefault(cluster[i], place)

    def together(i):
        return (first[cluster[i]] if cluster[i] >= 0 else -1, key(i))

    return sorted(order[:PANEL], key=together) + sorted(order[PANEL:], key=together)


# --------------------------------------------------------------------------- the second pass


def _learn_shapes(task, reference, matrix, workers):
    """Put what the stars tell of the frames' shapes in place of what is allowed without it."""
    if task.rules is None or len(task.frames) <= 2:
        return
    x, y, flux, error = reference.stars.T
    clear = flux > SHAPE_SNR * error
    positions = np.column_stack(apply_matrix(matrix, x[clear], y[clear]))
    best = best_frames(task.background[:PANEL])
    task.shapes, measured = star_shapes(task, positions, best, workers or usable_cores())
    # No more is allowed than what is asked for.
    known = np.isfinite(measured)
    task.tolerance[known, 0] = np.minimum(task.tolerance[known, 0], measured[known])


def _run(task, executor, workers, memory):
    """Do all bands; return the planes of the whole image, and what was rejected."""
    ny, nx = task.shape
    n_workers = workers or usable_cores()
    fit = int(memory / n_workers / row_bytes(len(task.frames), nx)) - 2 * task.halo
    # Bands are as equal as can be: no small one is left for the end.
    n_bands = math.ceil(ny / min(max(fit, 2 * task.halo), BAND_ROWS))
    n_bands = min(ny, math.ceil(n_bands / n_workers) * n_workers)
    kinds = (np.float32, np.float32, np.float32, task.counts, task.counts)
    planes = [np.empty(task.shape, kind) for kind in kinds]
    count = np.zeros(len(task.frames))
    bands = row_bands(ny, math.ceil(ny / n_bands))
    for rows, (*parts, hits) in run_bands(task, bands, executor=executor, workers=workers):
        for plane, part in zip(planes, parts, strict=True):
            plane[rows] = part
        count += hits
    return planes, count
