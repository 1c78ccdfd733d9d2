"""
The other ways to an alignment: astroalign's triangles, named stars, and the WCS.

Private to `astro_narrowband.registration`. Each ends in the same tests as the star
match where there are stars to test with.
"""

import math
import warnings

import numpy as np
from astropy import units as u
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs.utils import wcs_to_celestial_frame
from scipy.ndimage import maximum_filter

from astro_narrowband._engine.detection import stamps
from astro_narrowband._engine.detection.search import smoothed
from astro_narrowband._engine.frames import as_frame
from astro_narrowband._engine.validate import as_mask
from astro_narrowband._engine.wcs import read_wcs
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.registration import match as _match
from astro_narrowband.registration._alignment import Alignment
from astro_narrowband.registration._starmatch import (
    MAX_SCALE,
    SCALE_ERRORS,
    Stars,
    match_stars,
    name_of,
    scale_of,
    within,
)

#: Stars agree with a transform that is not theirs within this [pix].
AGREE = 3.0


def align_astroalign(source: Stars, target: Stars, *, tolerance, max_rms):
    """Take astroalign's triangle match as the hypothesis, then refine and judge as for stars."""
    import astroalign

    label = f"{source.name} -> {target.name}"
    if min(len(source.xy), len(target.xy)) < 3:
        # The star match says it in its own words.
        return match_stars(source, target, tolerance=tolerance, max_rms=max_rms)
    try:
        transform, _ = astroalign.find_transform(
            source.xy[:100].copy(), target.xy[:100].copy(), max_control_points=50
        )
    except (astroalign.MaxIterError, ValueError, TypeError) as error:
        raise AlignmentError(
            f"astroalign finds no transform: {label} ({str(error).splitlines()[0]}; "
            f"{source.found}; {target.found}): try method='stars'"
        ) from error
    start = np.array(transform.params, float)
    return match_stars(
        source, target, tolerance=tolerance, max_rms=max_rms, method="astroalign",
        starts=[(start, 0, True)],
    )  # fmt: skip


# --------------------------------------------------------------------------- named stars


def align_centroid(source, target, positions, *, centroid_func, box_size, search, mask, max_rms):
    """Measure named stars in both frames and take the mean difference, or fit three and more."""
    source, target = as_frame(source), as_frame(target)
    label = f"{source.name} -> {target.name}"
    if source.shape != target.shape:
        raise AlignmentError(
            f"the frames' shapes differ: {label}: {source.shape} and {target.shape}"
        )
    positions = np.atleast_2d(positions)
    if positions.ndim != 2 or positions.shape[1] != 2 or not np.isfinite(positions).all():
        raise InputError(f"positions = {positions.tolist()}: give a list of (x, y) in pixels")
    if box_size < 5 or box_size % 2 == 0:
        raise InputError(f"box_size = {box_size}: an odd number of at least 5 is needed")
    if centroid_func is None:
        from photutils.centroids import centroid_2dg as centroid_func
    there, there_err = _centroids(target, positions, centroid_func, box_size, box_size // 2, mask)
    at_source, at_source_err = _centroids(source, there, centroid_func, box_size, search, mask)
    variance = at_source_err**2 + there_err**2
    model = "similarity" if len(positions) >= 3 else "translation"
    matrix, covariance, _, _, chi2 = _match.fit(at_source, there, variance, model=model, clip=1e6)
    if model == "similarity":
        plain = _match.fit(at_source, there, variance, model="translation", clip=1e6)
        if plain[4] - chi2 < 12:
            matrix, covariance = plain[0], plain[1]
    residual = there - _match.apply(matrix, at_source)
    rms = float(np.sqrt((residual**2).mean()))
    if rms > max_rms:
        raise AlignmentError(
            f"the named stars disagree: {label}: {len(positions)} stars by {rms:.2f} pix rms, "
            f"{max_rms:g} is accepted: try a smaller search radius (now {search})"
        )
    scale, scale_err = scale_of(matrix, covariance)
    if abs(scale - 1) > MAX_SCALE + SCALE_ERRORS * scale_err:
        raise AlignmentError(
            f"the pixel scales differ: {label}: by a factor {scale:.4f} +- {scale_err:.4f}"
        )
    return Alignment(matrix, covariance, rms, len(positions), "centroid")


def _centroids(frame, positions, centroid_func, box_size, search, mask):
    """Positions and errors of the one star within ``search`` pixels of each position."""
    band = frame.read(slice(0, frame.shape[0]))
    bad = ~np.isfinite(band.data)
    for other in (band.mask, as_mask(mask, frame.shape)):
        if other is not None:
            bad |= other
    out, errors = [], []
    for x, y in positions:
        where = f"{frame.name}: star at ({x:.1f}, {y:.1f})"
        ix, iy = round(x), round(y)
        if not (0 <= ix < frame.shape[1] and 0 <= iy < frame.shape[0]):
            raise AlignmentError(f"{where}: outside the frame of {frame.shape[::-1]} pixels")
        reach = search + box_size // 2
        y0, x0 = iy - reach, ix - reach
        box = np.s_[max(y0, 0) : iy + reach + 1, max(x0, 0) : ix + reach + 1]
        data, lost = band.data[box].astype(float), bad[box]
        if min(data.shape, default=0) < box_size or (~lost).sum() < box_size**2 / 2:
            raise AlignmentError(f"{where}: too near the edge, or masked")
        data = np.where(lost, np.nan, data)
        sky = np.nanmedian(data)
        noise = sky - np.nanpercentile(data, 15.8655)
        data = np.where(lost, 0.0, data - sky).astype(np.float32)
        peak_x, peak_y = _one_star(data, noise, ix - box[1].start, iy - box[0].start, search, where)
        out.append(_centroid(data, lost, (peak_x, peak_y), centroid_func, box_size, where))
        out[-1] += (box[1].start, box[0].start)
        half = box_size // 2
        stamp = stamps.gather(data, np.array([peak_y]), np.array([peak_x]), half)[0]
        moments = stamps.windowed(stamp, None, max(1.0, box_size / 10))
        light = max(float(moments["total"][0]), noise)
        errors.append(max(noise * box_size / 5 / light, 0.005))
    return np.array(out), np.array(errors)


def _one_star(data, noise, x, y, search, where):
    """Brightest pixel of the one star near (x, y); AlignmentError where there is none, or two."""
    smooth = smoothed(data)
    smooth[:2] = smooth[-2:] = -np.inf
    yy, xx = np.indices(data.shape)
    near = (np.abs(xx - x) <= search) & (np.abs(yy - y) <= search)
    maximum = smooth == maximum_filter(smooth, 3, mode="constant", cval=np.inf)
    py, px = np.nonzero(maximum & near & (smooth > 5 * noise * 70 / 256))
    height = smooth[py, px]
    order = np.argsort(-height)
    stars = []
    for py_k, px_k in zip(py[order], px[order], strict=True):
        core = data[py_k - 1 : py_k + 2, px_k - 1 : px_k + 2]
        peak = core.max()
        if (core.sum() - peak) / 8 > stamps.MIN_RING * peak:
            stars.append((int(px_k), int(py_k), float(smooth[py_k, px_k])))
    if not stars:
        raise AlignmentError(
            f"{where}: there is none within {search} pix that stands 5 sigma above the sky"
        )
    rivals = [s for s in stars[1:] if math.hypot(s[0] - stars[0][0], s[1] - stars[0][1]) > 5]
    if rivals and rivals[0][2] > 0.5 * stars[0][2]:
        raise AlignmentError(
            f"{where}: there are two of similar brightness within {search} pix: "
            "name a lonelier star or take a smaller search radius"
        )
    return stars[0][:2]


def _centroid(data, lost, peak, centroid_func, box_size, where):
    from photutils.centroids import centroid_sources

    with warnings.catch_warnings():
        # photutils says by a warning and NaN what is said here by an error.
        warnings.simplefilter("ignore", AstropyWarning)
        x, y = centroid_sources(
            data.astype(float), *peak, box_size=box_size, mask=lost, centroid_func=centroid_func
        )
    x, y = float(x[0]), float(y[0])
    if not (math.hypot(x - peak[0], y - peak[1]) < box_size / 2):
        raise AlignmentError(
            f"{where}: {getattr(centroid_func, '__name__', 'centroid_func')} gives ({x:.1f}, "
            f"{y:.1f}) for a star whose brightest pixel is {peak}"
        )
    return np.array([x, y])


# --------------------------------------------------------------------------- WCS


def _wcs_of(image, label):
    frame = as_frame(image)
    wcs = read_wcs(frame.header, frame.name) if frame.wcs is None else frame.wcs
    if wcs is None or not wcs.has_celestial:
        raise AlignmentError(
            f"no celestial WCS: {label}: {name_of(image)} has none: solve it first"
        )
    return wcs.celestial


def align_wcs(source, target, *, max_rms):
    """Fit the similarity that two celestial WCS imply."""
    label = f"{name_of(source)} -> {name_of(target)}"
    shapes = [as_frame(image).shape for image in (source, target)]
    if shapes[0] != shapes[1]:
        raise AlignmentError(f"{label}: shapes {shapes[0]} and {shapes[1]} differ")
    ny, nx = shapes[0]
    from_wcs, to_wcs = _wcs_of(source, label), _wcs_of(target, label)
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))
    try:
        sky = from_wcs.pixel_to_world(x, y)
        there = np.column_stack(
            to_wcs.world_to_pixel(sky.transform_to(wcs_to_celestial_frame(to_wcs)))
        )
    except (ValueError, u.UnitsError, TypeError) as error:
        raise AlignmentError(f"{label}: the WCS cannot be compared ({error})") from error
    xy = np.column_stack([x, y])
    if not np.isfinite(there).all():
        raise AlignmentError(f"{label}: the WCS point to different parts of the sky")
    inside = (there > -0.5) & (there < (nx - 0.5, ny - 0.5))
    if not inside.all(axis=1).any():
        raise AlignmentError(
            f"{label}: the WCS point to fields without a common part "
            f"(shift {there[0, 0] - x[0]:.0f}, {there[0, 1] - y[0]:.0f} pix)"
        )
    matrix, covariance, _, _, _ = _match.fit(
        xy, there, np.full(len(xy), 0.01**2), model="similarity", clip=1e6
    )
    rms = float(np.sqrt(((there - _match.apply(matrix, xy)) ** 2).mean()))
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if rms > max_rms or abs(scale - 1) > 1e-3:
        raise AlignmentError(
            f"{label}: the WCS are not one camera's: a similarity leaves {rms:.2f} pix rms "
            f"({max_rms:g} accepted) and a scale of {scale:.5f}; a mirrored frame gives this, too"
        )
    angle = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
    return Alignment(matrix, covariance, rms, 0, "wcs", abs(angle) > 150)


def check_against_stars(alignment, source: Stars, target: Stars):
    """Raise AlignmentError where both frames have stars and these do not fit the alignment."""
    label = f"{source.name} -> {target.name}"
    mapped = _match.apply(alignment.matrix, source.xy)
    back = _match.apply(np.linalg.inv(alignment.matrix), target.xy)
    i, _ = _match.mutual_matches(mapped, target.xy, AGREE)
    n_common = min(int(within(xy, target.shape).sum()) for xy in (mapped, back))
    if n_common >= 4 and len(i) < max(2, 0.25 * n_common):
        raise AlignmentError(
            f"{label}: method {alignment.method!r} gives a shift of ({alignment.shift[0]:.1f}, "
            f"{alignment.shift[1]:.1f}) under which {len(i)} of {n_common} stars in common match "
            f"within {AGREE:g} pix: it is wrong, or the frames show different fields"
        )
