"""A line image less its continuum, by a scale that stars say, with the error of that scale."""

import math
import zlib

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from scipy.ndimage import label
from scipy.spatial import cKDTree

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.door import door, of_class, of_two, or_of, real
from astro_narrowband._engine.frames import Threads, usable_cores
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import bare, positive
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._filters import line_in_continuum
from astro_narrowband.lines._image import header_scale
from astro_narrowband.lines._map import (
    CONTINUUM,
    LineMap,
    noise_correlation,
    on_grid_of,
    opened,
    random_variance,
    unusable,
)
from astro_narrowband.lines._psf import REACH, blurred_to, match_shapes, moffat_of, star_shape
from astro_narrowband.lines._starscale import (
    R_APERTURE,
    R_IN,
    R_OUT,
    Scale,
    measure_stars,
    pixel_scale,
    scale_of,
)
from astro_narrowband.photometry import growth_curves

#: In the flags of a result: beside a star that is not gone.
RESIDUAL_STAR = 1
#: Stars that are looked at, and that are measured, at most.
MAX_STARS, MAX_MEASURED = 5000, 500
#: Stars farther from their neighbours than this many widths count; nearer ones where few do.
APART, ENOUGH = (R_OUT, R_IN), 8
#: Signal over noise of the stars that count, in the line image and in the continuum.
MIN_SNR = 20.0
#: Radius of the cores by which shapes are compared, in units of the width; and how well shapes of
#: stars agree that differ by where they fall on their pixels, relative.
R_CORE, SAME_SHAPE = 0.6, 0.01
#: Rows of a band: it stays in the cache.
_ROWS = 64


@door(
    name=None, curves=of_two(of_class("FilterCurve")), k=or_of(str, real(above=0)), colour=real(),
    fwhm=of_two(real(u.pix, least=0.1)),
)  # fmt: skip
def subtract_continuum(
    line,
    continuum,
    *,
    curves=None,
    name=None,
    velocity=0.0,
    k=None,
    k_err=0.0,
    fwhm=None,
    stars=None,
    colour=None,
    match=True,
):
    """
    Take the continuum out of a line image.

    Parameters
    ----------
    line, continuum : `~astropy.nddata.CCDData` or path-like
        On one grid, or with a WCS each; with uncertainties; electron/s.
    curves : (FilterCurve, FilterCurve), optional
        Of the line filter and of the continuum filter, to give back the part of the line that
        the continuum filter took; without them nothing is given back.
    name : str or Line, optional
        Of the line, with ``curves``.
    velocity : float, optional
        Of the source [km/s], with ``curves``.
    k, k_err : float, optional
        The scale and its error, where they are known; ``k="header"`` takes those of the headers'
        PHOTFLAM (`header_scale`), ``k="pixels"`` the least absolute deviations of all pixels
        without their surroundings, for images that are not mostly nebula. Default is to
        measure them on stars.
    fwhm : (float, float), optional
        Widths of the stars in both images [pix], where they cannot be measured: the sharper one
        is blurred by a Gaussian. Without stars and without widths shapes stay as they are.
    stars : `~astropy.table.Table`, optional
        Stars to be used: ``x_center``, ``y_center`` [pix] and ``colour`` (`reference_colours`, or
        any other; NaN where it is not known). Default is to detect them.
    colour : float, optional
        Of the continuum under the line, in the unit of the stars' ``colour``. Default is the
        mean of all ``stars``, with its error.
    match : bool, optional
        Bring the stars of both images to one shape first.

    Returns
    -------
    LineMap
        In the unit of ``line``. Its ``common`` has ``"continuum"``, what one standard deviation
        of k does to each pixel; its ``stars`` is a table of the stars with ``ratio``,
        ``ratio_err``, ``used``, ``scale`` (its own) and ``residual`` (part of its light that is
        left); its ``flags`` are `RESIDUAL_STAR` within a width of a star that is not gone.
        Its header has KCONT, KCONTERR, KSTARS, KRATIO, KSLOPE, KMODE (the three estimates),
        KSCATTER (from star to star, relative), KCOLOUR and KCOLERR (slope), and KLOST (part of
        the line that the continuum filter took).

    Raises
    ------
    InputError
        If the grids cannot be brought together, the continuum filter is that of the line or
        a curve does not contain the line, there are fewer than five stars and no k, k is not
        positive, or the continuum is negative.

    Notes
    -----
    The line is (N - k C) / (1 - lost), ``lost`` after `line_in_continuum`. k is the ratio of the
    stars, measured in three ways; see `~astro_narrowband.lines.Scale`. The
    variance is (V_N + k^2 V_C + sigma_k^2 C^2) / (1 - lost)^2, and what stars leave whose
    spectra are not the mean one (KSCATTER), so that it holds for sums over them; the sigma_k term
    is one error of the whole map. C here is the continuum above its median, so that what is
    common is the scale of what the continuum image shows, not its sky: the level of the result's
    sky is free, and is to be measured where there is no line (`region_fluxes` does).

    Emission lines of stars, and nebular continuum of another colour than the stars', are not
    known to the scale: give ``colour``, or ``k`` and its error.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband.lines import subtract_continuum
    >>> def image(level):
    ...     noise = StdDevUncertainty(np.full((40, 40), 0.1))
    ...     return CCDData(np.full((40, 40), level), unit="electron/s", uncertainty=noise)
    >>> result = subtract_continuum(image(5.0), image(20.0), k=0.1, k_err=0.002)
    >>> print(f"{result.data[0, 0]:.2f} {result.unit}")
    3.00 electron / s
    """
    line, continuum = opened(line, "the line image"), opened(continuum, "the continuum image")
    if line.unit != continuum.unit:
        raise InputError(
            f"line image in {line.unit}, continuum image in {continuum.unit}: one unit is needed"
        )
    lost = 0.0
    if curves is not None:
        if name is None:
            raise InputError("curves need the name of the line: give name='Halpha', say")
        lost = line_in_continuum(*curves, name, velocity=velocity)
    # What other lines hold of the same continuum image is the same noise.
    digest = zlib.crc32(np.ascontiguousarray(continuum.data))
    source = f"{continuum.meta.get('FILTER', 'continuum')} {digest:08x}"
    continuum = on_grid_of(continuum, line, "the continuum image")
    if fwhm is not None:
        line, continuum = blurred_to(*map(_of_width, (line, continuum), fwhm))
    if k is not None:
        scale, measured = _given(line, continuum, k, k_err), None
    else:
        table, width, sources = _common_stars(line, continuum, stars)
        seen = width
        if match and fwhm is None:
            xy = np.column_stack([table["x_center"], table["y_center"]])
            line, continuum, widths = match_shapes(line, continuum, xy, fwhm=width)
            seen = max(widths)
        measured = measure_stars(line, continuum, table, fwhm=width, min_snr=MIN_SNR)
        colour_err, known = (
            0.0,
            bare(stars["colour"]) if "colour" in table.colnames else np.zeros(0),
        )
        known = known[np.isfinite(known)]
        if colour is None and known.size:
            # Of all of them, not of those that both images show best.
            colour, colour_err = float(known.mean()), float(known.std()) / math.sqrt(known.size)
        scale = scale_of(measured, colour=colour, colour_err=colour_err)
    result = _difference(line, continuum, scale, lost, source)
    if measured is not None:
        result.meta["PSFWIDTH"] = (round(seen, 3), "[pix] width of the stars in both images")
        _flag_residuals(result, measured, scale, width)
        isolated = np.column_stack([measured["x_center"], measured["y_center"]])
        light, profile = _star_light(continuum, sources, isolated, seen)
        away, spread = _own_scales(scale, light, stars, measured, width)
        _spectra_of_stars(result, light, profile, away / (1 - lost), spread / (1 - lost))
        result.stars = measured
    return result


def _of_width(ccd, width):
    """A copy of an image that says how wide its stars are."""
    result = ccd.copy()
    result.meta["PSFWIDTH"] = width
    return result


def _given(line, continuum, k, k_err):
    """The scale that is given, or that headers or pixels say."""
    if k == "header":
        return Scale(*header_scale(line, continuum))
    if k == "pixels":
        bad = unusable(line) | unusable(continuum)
        return Scale(*pixel_scale(line.data, continuum.data, bad))
    return Scale(positive(k, "k"), k_err)


def _difference(line, continuum, scale, lost, source):
    bad = unusable(line) | unusable(continuum)
    if bad.all():
        raise InputError("line and continuum image have no good pixel in common")
    sky, spread = _level(continuum, bad)
    if sky + 3 * spread < 0:
        raise InputError(
            f"the continuum image is negative: its median is {sky:.3g} {continuum.unit} and "
            f"three times its noise {3 * spread:.3g}: its sky was subtracted twice, or it is a "
            "difference itself"
        )
    k, gain = np.float32(scale.k), np.float32(1 / (1 - lost))
    v_line, v_continuum = random_variance(line), random_variance(continuum)
    planes = [np.full(bad.shape, np.nan, np.float32) for _ in range(3)]
    shared = np.empty(bad.shape, np.float32)

    def band(first):
        rows = slice(first, first + _ROWS)
        data, common, sigma = (plane[rows] for plane in planes)
        good, held = ~bad[rows], np.asarray(continuum.data[rows], np.float32)
        np.copyto(data, (np.asarray(line.data[rows], np.float32) - k * held) * gain, where=good)
        np.copyto(common, (held - np.float32(sky)) * (np.float32(scale.k_err) * gain), where=good)
        shared[rows] = -k * gain * np.sqrt(v_continuum[rows])
        variance = v_line[rows] * (gain * gain) + shared[rows] ** 2
        np.copyto(sigma, np.sqrt(variance + common**2), where=good)

    with Threads(usable_cores()) as threads:
        list(threads.map(band, range(0, len(bad), _ROWS)))
    data, common, sigma = planes
    step = max(1, bad.size // 1_000_000)
    good = ~bad.ravel()[::step]
    sums = [float(v.ravel()[::step][good].sum(dtype=float)) for v in (v_line, k * k * v_continuum)]
    correlation = (
        sums[0] * noise_correlation(line) + sums[1] * noise_correlation(continuum)
    ) / sum(sums)
    header = fits.Header(line.header, copy=True)
    header["NOISECOR"] = (round(correlation, 6), "pixel variance over the variance plane")
    scale.to_header(header)
    header["KLOST"] = (round(lost, 6), "part of the line in the continuum filter")
    return LineMap(
        data, unit=line.unit, mask=bad, header=header,
        uncertainty=StdDevUncertainty(sigma, copy=False),
        flags=np.zeros(data.shape, np.uint8),
        wcs=None if line.wcs is None else line.wcs.deepcopy(),
        common={CONTINUUM: common}, shared={source: shared},
    )  # fmt: skip


def _level(ccd, bad):
    """Median of an image and the error of its pixels."""
    step = max(1, int(math.sqrt(bad.size / 250_000)))
    good = ~bad[::step, ::step]
    data = ccd.data[::step, ::step][good]
    sigma = np.asarray(ccd.uncertainty.array[::step, ::step][good])
    return (float(np.median(data)), float(np.median(sigma))) if data.size else (0.0, math.inf)


def _common_stars(line, continuum, stars):
    """Isolated, unsaturated stars that both images show, brightest first, and the larger width."""
    both_images = line, continuum
    with Threads(2) as threads:
        tables = list(
            threads.map(
                lambda ccd: detect_stars(ccd, mask=unusable(ccd), n_brightest=MAX_STARS),
                both_images,
            )
        )
    widths = [t.meta["fwhm"] for t in tables]
    if not np.isfinite(widths).all():
        which = "line" if not math.isfinite(widths[0]) else "continuum"
        raise InputError(f"no stars in the {which} image: the scale cannot be measured; give k")
    fwhm = float(max(widths))
    detected = [np.column_stack([t["x_center"].value, t["y_center"].value]) for t in tables]
    if stars is None:
        stars = QTable({"x_center": detected[1][:, 0], "y_center": detected[1][:, 1]})
    xy = np.column_stack([bare(stars[c]) for c in ("x_center", "y_center")])
    for apart in APART:
        keep = np.logical_and(
            *(_single(xy, *both, apart * fwhm) for both in zip(detected, tables, strict=True))
        )
        keep &= np.cumsum(keep) <= MAX_MEASURED
        with Threads(2) as threads:
            usual = threads.map(lambda ccd, of=xy[keep]: _usual_shape(ccd, of, fwhm), both_images)
        keep[keep] = np.logical_and(*usual)
        if keep.sum() >= ENOUGH:
            break
    if keep.sum() < 5:
        raise InputError(
            f"only {int(keep.sum())} isolated, unsaturated stars are in both the line image "
            f"({len(tables[0])} stars) and the continuum image ({len(tables[1])}): five are "
            "needed for the scale; give k and k_err"
        )
    table = QTable({"x_center": xy[keep, 0], "y_center": xy[keep, 1]})
    if "colour" in stars.colnames:
        table["colour"] = bare(stars["colour"])[keep]
    return table, fwhm, detected[1]


def _own_scales(scale, light, stars, measured, fwhm):
    """What the scale of each star is more than k, where its colour is known, and what is open."""
    away, spread = np.zeros(len(light)), np.full(len(light), scale.scatter)
    if scale.colour_slope and len(light):
        known = stars[np.isfinite(bare(stars["colour"]))]
        tree = cKDTree(np.column_stack([bare(known[c]) for c in ("x_center", "y_center")]))
        distance, nearest = tree.query(light[:, :2])
        near = distance < fwhm
        away[near] = scale.k_of(known)[nearest[near]] - scale.k
        by_colour = scale.colour_slope * float(np.nanstd(bare(measured["colour"])))
        spread[~near] = math.hypot(scale.scatter, by_colour)
    return away, scale.k * spread


def _star_light(continuum, sources, isolated, fwhm):
    """
    Light of the stars of an image: x, y, flux; those with holes in them by what is around.

    ``isolated`` are the places of stars that show the profile.

    Returns
    -------
    array (n, 3), (float, float)
        And width and exponent of their Moffat profile.
    """
    bad = unusable(continuum)
    try:
        half = math.ceil(REACH * fwhm)
        _, width, beta, _ = moffat_of(star_shape(continuum.data, bad, isolated, half))
    except (InputError, RuntimeError):
        width, beta = fwhm / (2 * math.sqrt(2 ** (1 / 3) - 1)), 3.0
    y, x = np.nonzero(bad)
    which = label(bad)[0][y, x] - 1
    area = np.bincount(which)
    holes = np.column_stack([np.bincount(which, at) / area for at in (x, y)])
    holes = holes[(area >= 3) & (area < 20 * fwhm**2)]
    near = cKDTree(sources).query(holes)[0] < 2 * fwhm if len(holes) else np.zeros(0, bool)
    half, out = math.ceil(4 * fwhm), []
    for x, y in np.vstack([sources, holes[~near]]):
        rows, columns, square = _stamp(bad.shape, x, y, half)
        good = ~bad[rows, columns]
        if good.sum() > half:
            profile = (beta - 1) / (math.pi * width**2) * (1 + square[good] / width**2) ** -beta
            profile -= profile.mean()
            flux = float(profile @ continuum.data[rows, columns][good] / (profile @ profile))
            out.append((x, y, max(flux, 0.0)))
    return np.array(out).reshape(-1, 3), (width, beta)


def _stamp(shape, x, y, half):
    """Rows and columns around a position, and squares of the distances from it."""
    rows = slice(max(0, round(y) - half), min(shape[0], round(y) + half + 1))
    columns = slice(max(0, round(x) - half), min(shape[1], round(x) + half + 1))
    gy, gx = np.ogrid[rows, columns]
    return rows, columns, (gx - x) ** 2 + (gy - y) ** 2


def _spectra_of_stars(result, stars, profile, away, spread):
    """
    Take out what stars of known colour leave, and add to the variance what is open of the others.

    The light of a star is off by one factor. With 2 p(r) P(r) of its flux squared in each pixel,
    p its profile and P what lies farther out, the variance of the whole star is that of its
    flux, and that of the wings is that of theirs.
    """
    width, beta = profile
    variance = np.square(result.uncertainty.array)
    floor = math.sqrt(0.01 * float(np.nanmedian(variance)))
    height = (beta - 1) / (math.pi * width**2)
    for (x, y, flux), more, open_ in zip(stars, away, spread, strict=True):
        # To where either is a tenth of the noise.
        peaks = abs(more) * flux * height / floor, (open_ * flux / floor) ** 2 * 2 * height
        reach = max(peaks[0] ** (1 / beta), peaks[1] ** (1 / (2 * beta - 1)), 2.0)
        reach = width * math.sqrt(reach - 1)
        rows, columns, square = _stamp(variance.shape, x, y, math.ceil(min(reach, 40 * width)))
        falls = 1 + square / width**2
        result.data[rows, columns] -= np.float32(more * flux * height) * falls**-beta
        variance[rows, columns] += 2 * (open_ * flux) ** 2 * height * falls ** (1 - 2 * beta)
    result.uncertainty = StdDevUncertainty(np.sqrt(variance, out=variance), copy=False)


def _single(xy, detected, table, reach):
    """Which positions have one star, not saturated, and nothing else within a distance."""
    tree, flux = cKDTree(detected), table["flux"].value
    distance, nearest = tree.query(xy)
    close = distance < max(1.0, 0.4 * table.meta["fwhm"])
    single = close & ~np.asarray(table["saturated"], bool)[nearest]
    for i, close in enumerate(tree.query_ball_point(xy, reach)):
        single[i] &= not any(flux[j] > 0.02 * flux[nearest[i]] for j in close if j != nearest[i])
    return single


def _usual_shape(ccd, xy, fwhm):
    """
    Which stars have in their cores what most have of their light.

    Stars that are saturated in the sharpest frames of a coadd have less: their cores are made of
    the others. A pair or a galaxy has less as well, what is left of a cosmic ray more.
    """
    radii = np.array([R_CORE, R_APERTURE]) * fwhm
    curves = growth_curves(ccd, xy, radii, r_in=R_IN * fwhm, r_out=R_OUT * fwhm)
    (core, flux), (core_err, flux_err) = bare(curves.flux).T, bare(curves.flux_err).T
    seen = flux > MIN_SNR * flux_err
    if not seen.any():
        return ~seen
    # Most of the fainter half are not saturated.
    faint = seen & (flux <= np.median(flux[seen]))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = core / flux
        usual = np.median(share[faint])
        noise = core_err / flux / usual
        away = (share / usual - 1) / np.hypot(noise, SAME_SHAPE)
    # Where shapes change over the field, most stars are off.
    return ~seen | (np.abs(away) < 3 * max(1.0, mad_std(away[faint], 0.0)))


def _flag_residuals(result, measured, scale, fwhm):
    """Add ``residual`` to the stars, and flag the pixels of those that are not gone."""
    measured["scale"] = scale.k_of(measured)
    left = measured["flux"] - measured["scale"] * measured["flux_continuum"]
    measured["residual"] = left / measured["flux"]
    error = np.hypot(measured["flux_err"], scale.k * measured["flux_continuum_err"])
    measured["flagged"] = np.abs(left) > 3 * error
    radius = math.ceil(1.5 * fwhm)
    for x, y in measured["x_center", "y_center"][measured["flagged"]].iterrows():
        rows, columns, square = _stamp(result.data.shape, x, y, radius)
        result.flags[rows, columns][square <= radius**2] |= RESIDUAL_STAR
