"""Where on the sky an image looks: its stars against a catalogue, to a WCS."""

import math
import os
import warnings
from dataclasses import dataclass, field

import numpy as np
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord
from astropy.table import QTable, Table
from astropy.wcs import WCS
from astropy.wcs.utils import fit_wcs_from_points, proj_plane_pixel_scales

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.door import a_ccd, a_table, a_text, door, or_of
from astro_narrowband._engine.statistics import mad_std
from astro_narrowband._engine.validate import positive
from astro_narrowband._engine.wcs import put_wcs
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.lines._filters import read_table
from astro_narrowband.registration import match as _match

_RA = ("ra", "raj2000", "ra_icrs", "_raj2000", "ra_deg", "ramean", "alpha_j2000", "raicrs")
_DEC = ("dec", "dej2000", "de_icrs", "_dej2000", "dec_deg", "decmean", "delta_j2000", "deicrs")
_BRIGHT = ("phot_g_mean_mag", "gmag", "mag", "magnitude", "rmag", "r'mag", "vmag", "bmag")
#: log10 of the chance that is accepted for a match of unrelated fields.
MAX_CHANCE = -6.0
#: Least part of the stars in common that must match, unless the chance is far smaller still.
MIN_FRACTION, OVERWHELMING = 0.2, -20.0
#: How much the scale may differ from what is given.
SCALE_RANGE = 0.05
#: How many of the brightest stars of image and catalogue are tried, one after the other.
DEPTHS = ((25, 40), (50, 80), (25, 90), (80, 60))
#: Stars for a distortion of second order.
SIP_STARS = 40


@door
@dataclass(frozen=True, eq=False)
class CatalogueMatch:
    """
    An image's place on the sky.

    Attributes
    ----------
    wcs : `~astropy.wcs.WCS`
        TAN, with SIP terms of second order where the stars carry them.
    stars : `~astropy.table.QTable`
        The rows of the catalogue that matched, with ``x_center``, ``y_center`` [pix] and
        ``flux``, ``flux_err`` of the image, and ``residual`` [pix].
    rms : float
        Of the residuals, along one axis [pix].
    n_matched : int
    log_chance : float
        log10 of the chance that an unrelated field matches so well.
    """

    wcs: WCS = field(repr=False)
    stars: QTable = field(repr=False)
    rms: float
    n_matched: int
    log_chance: float

    def to_header(self, header):
        """Write the WCS, in place of every other one, WCSRMS and WCSSTARS; return the WCS."""
        wcs = put_wcs(header, self.wcs)
        header["WCSRMS"] = (round(self.rms, 4), "[pix] residuals of the stars, one axis")
        header["WCSSTARS"] = (self.n_matched, "stars matched with the catalogue")
        return wcs


@door(table=or_of((str, os.PathLike), a_table))
def read_catalogue(table):
    """
    Return positions and brightness of a catalogue.

    Parameters
    ----------
    table : `~astropy.table.Table` or path-like
        ECSV, FITS or VOTable; a column of `~astropy.coordinates.SkyCoord`, or right ascension and
        declination under a usual name (in degree where a column has no unit, or text as
        12:34:56.7), and a magnitude, ``flux``, or spectra in ``spectrum``.

    Returns
    -------
    table : `~astropy.table.Table`
        The usable rows, brightest first.
    sky : `~astropy.coordinates.SkyCoord`
    """
    name = "the catalogue" if isinstance(table, Table) else str(table)
    table = table if isinstance(table, Table) else read_table(table)
    lower = {column.lower(): column for column in table.colnames}
    place = next((table[c] for c in table.colnames if isinstance(table[c], SkyCoord)), None)
    place = _place(table, lower, name) if place is None else place.icrs
    bright = next((lower[n] for n in _BRIGHT if n in lower), None)
    light = next((lower[n] for n in ("flux", "spectrum") if n in lower), None)
    if bright is None and light is None:
        raise InputError(f"{name}: has neither a magnitude nor a flux: name a column mag or flux")
    try:
        order = _filled(table[bright or light])
    except ValueError:
        raise InputError(f"{name}: its {bright or light} is text: give numbers") from None
    if bright is None:
        order = -(np.nanmedian(order, axis=1) if order.ndim == 2 else order)
    good = np.isfinite(place.ra.deg) & np.isfinite(place.dec.deg) & np.isfinite(order)
    if not good.any():
        raise InputError(f"{name}: no row has a position and a brightness")
    rows = np.flatnonzero(good)[np.argsort(order[good], kind="stable")]
    return table[rows], place[rows]


def _place(table, lower, name):
    """Positions of the rows from two columns: angles, degrees, or text as 12:34:56.7."""
    ra, dec = (next((lower[n] for n in names if n in lower), None) for names in (_RA, _DEC))
    if ra is None or dec is None:
        raise InputError(
            f"{name}: no right ascension and declination among its columns "
            f"{', '.join(table.colnames[:12])}: name them ra and dec"
        )
    angles = []
    for column, of_text in ((ra, u.hourangle), (dec, u.deg)):
        values = table[column]
        try:
            try:
                unit = getattr(values, "unit", None) if values.dtype.kind not in "US" else None
                angles.append(Angle(_filled(values), unit or u.deg))
            except ValueError:  # text that is no number
                angles.append(Angle(values.tolist(), of_text))
        except (ValueError, TypeError, u.UnitsError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{name}: its {column} is no angle ({reason})") from None
    try:
        return SkyCoord(*angles)
    except ValueError as error:
        raise InputError(f"{name}: {ra} and {dec} are no place on the sky ({error})") from None


def _filled(column):
    values = getattr(column, "value", column)
    return np.ma.filled(np.ma.asarray(values, float), np.nan)


@door(ccd=a_ccd, center=or_of(SkyCoord, a_text))
def match_catalogue(ccd, catalogue, *, center=None, scale=None, stars=None):
    """
    Match the stars of an image with a catalogue.

    Parameters
    ----------
    ccd : `~astropy.nddata.CCDData`
        Its WCS, if it has one, is where the search starts.
    catalogue : `~astropy.table.Table` or path-like
        As for `read_catalogue`; it should cover the field and be about as deep.
    center : `~astropy.coordinates.SkyCoord`, optional
        Of the field, to half of its size. Default is that of the WCS, or OBJCTRA and OBJCTDEC.
    scale : `~astropy.units.Quantity`, optional
        Angle that a pixel sees, to 5 %. Default is that of the WCS, or of XPIXSZ [um] and
        FOCALLEN [mm].
    stars : `~astropy.table.Table`, optional
        As `~astro_narrowband.detect_stars` gives it. Default is to detect them.

    Returns
    -------
    CatalogueMatch
        The WCS, and the stars that it rests on.

    Raises
    ------
    InputError
        If center or scale are not known, or the catalogue cannot be used.
    AlignmentError
        If no match can be trusted: another field, too few stars.

    Notes
    -----
    Pairs of bright stars of both lists vote for rotation and scale, the stars so turned for an
    offset; a hypothesis is refined on all stars and must be better than chance by six orders of
    magnitude, whatever was tried counted. Both parities are tried. Proper motions are not
    applied: bring the catalogue to the date of the image first.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy import units as u
    >>> from astropy.coordinates import Angle, SkyCoord
    >>> from astropy.table import QTable
    >>> from astropy.wcs import WCS
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import match_catalogue
    >>> rng = np.random.default_rng(2)
    >>> x, y = rng.uniform(20, 280, (2, 30))
    >>> peak = np.geomspace(5000, 100, 30)
    >>> grid_y, grid_x = np.mgrid[:300, :300]
    >>> image = rng.normal(20.0, 1.0, (300, 300))
    >>> for a, b, height in zip(x, y, peak):
    ...     image += height * np.exp(-((grid_x - a) ** 2 + (grid_y - b) ** 2) / 4.0)
    >>> wcs = WCS(naxis=2)
    >>> wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10, 40], [150, 150]
    >>> wcs.wcs.cdelt = [-1 / 3600, 1 / 3600]
    >>> sky = wcs.pixel_to_world(x, y)
    >>> catalogue = QTable({"ra": sky.ra, "dec": sky.dec, "mag": -2.5 * np.log10(peak)})
    >>> match = match_catalogue(
    ...     CCDData(image, unit="electron"), catalogue, center=SkyCoord(10.01 * u.deg, 40 * u.deg),
    ...     scale=1.02 * u.arcsec,
    ... )
    >>> placed = match.wcs.pixel_to_world(150, 150)
    >>> bool(placed.separation(wcs.pixel_to_world(150, 150)) < 0.05 * u.arcsec)
    True
    """
    center, scale = _start(ccd, center, scale)
    table, sky = read_catalogue(catalogue)
    stars = detect_stars(ccd) if stars is None else stars
    good = (
        ~np.asarray(stars["saturated"], bool)
        if "saturated" in stars.colnames
        else np.ones(len(stars), bool)
    )
    xy = np.column_stack([_filled(stars[c]) for c in ("x_center", "y_center")])
    shape = ccd.data.shape
    near = sky.separation(center) < 1.2 * math.hypot(*shape) * scale * u.arcsec
    if near.sum() < 4:
        raise AlignmentError(
            f"catalogue: {int(near.sum())} of its {len(sky)} stars are within a field of "
            f"{center.to_string('hmsdms', precision=0)}: it is a catalogue of another field"
        )
    index = np.flatnonzero(near)
    plane = _plane(sky[index], center, scale)
    known = _known(ccd, center, scale) if ccd.wcs is not None else []
    best = _best(xy[good], plane, shape, known)
    pairs = np.flatnonzero(good)[best.i], index[best.j]
    wcs, residual, kept = _fitted(xy[pairs[0]], sky[pairs[1]])
    matched = QTable(table[pairs[1][kept]])
    for column in ("x_center", "y_center", "flux", "flux_err"):
        if column in stars.colnames:
            matched[column] = stars[column][pairs[0][kept]]
    matched["residual"] = np.hypot(*residual.T) * u.pix
    rms = float(np.sqrt((residual**2).mean()))
    return CatalogueMatch(wcs, matched, rms, len(matched), best.log_chance)


def _start(ccd, center, scale):
    """Centre and scale [arcsec]: as given, or of the WCS, or of what camera programs write."""
    ny, nx = ccd.data.shape
    if center is None:
        center = _center(ccd, nx, ny)
    if scale is None:
        if ccd.wcs is not None:
            scale = float(np.mean(proj_plane_pixel_scales(ccd.wcs.celestial))) * 3600
        else:
            try:
                scale = 206.265 * float(ccd.meta["XPIXSZ"]) / float(ccd.meta["FOCALLEN"])
            except (KeyError, ValueError, ZeroDivisionError):
                raise InputError(
                    "the image has no WCS, and no XPIXSZ and FOCALLEN: give scale (arcsec per "
                    "pixel, to 5 %)"
                ) from None
    per_pixel = getattr(scale, "unit", u.arcsec).is_equivalent(u.arcsec / u.pix)
    scale = positive(scale, "scale", unit=u.arcsec / u.pix if per_pixel else u.arcsec)
    try:
        return SkyCoord(center).icrs, scale
    except ValueError:
        raise InputError(f"center = {center!r}: give a SkyCoord, to half a field") from None


def _center(ccd, nx, ny):
    if ccd.wcs is not None:
        return ccd.wcs.celestial.pixel_to_world((nx - 1) / 2, (ny - 1) / 2)
    try:
        return SkyCoord(ccd.meta["OBJCTRA"], ccd.meta["OBJCTDEC"], unit=("hourangle", "deg"))
    except (KeyError, ValueError):
        raise InputError(
            "the image has no WCS, and no OBJCTRA and OBJCTDEC: give center (a SkyCoord, to half "
            "a field)"
        ) from None


@dataclass(eq=False)
class _Candidate:
    i: np.ndarray
    j: np.ndarray
    matrix: np.ndarray
    parity: int
    log_chance: float
    fraction: float


def _plane(sky, center, scale):
    """Gnomonic places of positions about a centre, in pixels of a scale."""
    offset = sky.transform_to(center.skyoffset_frame())
    x, y = offset.lon.wrap_at(180 * u.deg).radian, offset.lat.radian
    return np.column_stack([np.tan(x), np.tan(y) / np.cos(x)]) / math.radians(scale / 3600)


def _known(ccd, center, scale):
    """Matrix and parity that the image's own WCS means, to begin with."""
    ny, nx = ccd.data.shape
    corner = np.array([[0, 0], [nx - 1, 0], [0, ny - 1]], float)
    sky = ccd.wcs.celestial.pixel_to_world(*corner.T)
    if sky.separation(center).max() > 60 * u.deg:
        return []
    place = _plane(sky, center, scale)
    linear = np.column_stack([(place[1] - place[0]) / (nx - 1), (place[2] - place[0]) / (ny - 1)])
    parity = 1 if np.linalg.det(linear) > 0 else -1
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, place[0]
    matrix[0] *= parity
    return [(matrix, parity)]


def _best(xy, plane, shape, known):
    """The candidate that stands every test, or AlignmentError."""
    if len(xy) < 4:
        raise AlignmentError(f"the image has {len(xy)} unsaturated stars: four are needed at least")
    # A WCS that is right is one hypothesis, not one of many.
    candidates = [
        _refine(xy, plane * (parity, 1), matrix, shape, parity, 10.0) for matrix, parity in known
    ]
    candidates, tried = [c for c in candidates if c is not None], 0.0
    for n_image, n_sky in DEPTHS:
        for parity in (-1, 1):
            target = plane * (parity, 1)
            tried += (
                2.0
                * math.comb(min(n_image, len(xy)), 2)
                * min(n_sky, len(plane)) ** 2
                * SCALE_RANGE
            )
            for start in _hypotheses(xy[:n_image], target[:n_sky], shape):
                candidate = _refine(xy, target, start, shape, parity, tried)
                if candidate is not None:
                    candidates.append(candidate)
        candidates.sort(key=lambda c: c.log_chance)
        if candidates and candidates[0].log_chance < OVERWHELMING:
            break
    if not candidates:
        raise AlignmentError(
            f"no {len(xy)} stars match the {len(plane)} of the catalogue: another field?"
        )
    best = candidates[0]
    facts = (
        f"{len(best.i)} of {len(xy)} stars match, {best.fraction:.0%} of those in common, chance "
        f"1e{best.log_chance:.0f}"
    )
    if best.log_chance > MAX_CHANCE:
        raise AlignmentError(
            f"no match with the catalogue that cannot be chance ({facts}): another field, a scale "
            "that is off by more than 5 %, or too few stars in common"
        )
    if best.fraction < MIN_FRACTION and best.log_chance > OVERWHELMING:
        raise AlignmentError(f"too few of the stars match the catalogue ({facts})")
    corners = np.array([[0, 0], [shape[1], shape[0]]], float)
    place = _match.apply(best.matrix, corners) * (best.parity, 1)
    for other in candidates[1:]:
        away = np.abs(_match.apply(other.matrix, corners) * (other.parity, 1) - place).max()
        if away > 10 and 2 * len(other.i) > len(best.i) and other.log_chance < MAX_CHANCE / 2:
            raise AlignmentError(f"two different places on the sky match ({facts})")
    return best


def _hypotheses(a, b, shape, *, n_best=5):
    """Matrices from image to plane that many pairs of stars agree on."""
    least = 0.12 * min(shape)
    (i1, i2), (j1, j2) = (np.triu_indices(len(s), 1) for s in (a, b))
    d_a, d_b = a[i2] - a[i1], b[j2] - b[j1]
    l_a, l_b = np.hypot(*d_a.T), np.hypot(*d_b.T)
    keep_a, keep_b = l_a > least, (l_b > least * 0.9) & (l_b < 1.1 * math.hypot(*shape))
    d_a, l_a, d_b, l_b = d_a[keep_a], l_a[keep_a], d_b[keep_b], l_b[keep_b]
    if len(l_a) == 0 or len(l_b) == 0:
        return []
    order = np.argsort(l_b)
    d_b, l_b = d_b[order], l_b[order]
    first, last = (np.searchsorted(l_b, l_a * f) for f in (1 - SCALE_RANGE, 1 + SCALE_RANGE))
    n = last - first
    if n.sum() == 0:
        return []
    i = np.repeat(np.arange(len(n)), n)
    j = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    turn = np.mod(np.arctan2(d_b[j, 1], d_b[j, 0]) - np.arctan2(d_a[i, 1], d_a[i, 0]), math.pi)
    ratio = np.log(l_b[j] / l_a[i])
    n_turn, n_ratio = 720, max(2, round(2 * SCALE_RANGE / 0.004))
    cell = np.minimum((turn / math.pi * n_turn).astype(int), n_turn - 1) * n_ratio
    cell += np.clip(((ratio / SCALE_RANGE + 1) / 2 * n_ratio).astype(int), 0, n_ratio - 1)
    # What the length of a pair says about angle and scale goes with the length.
    count = np.bincount(cell, weights=np.minimum(l_a[i], 6 * least), minlength=n_turn * n_ratio)
    count = count.reshape(n_turn, n_ratio)
    wide = count + np.roll(count, -1, axis=0)
    wide[:, :-1] += wide[:, 1:].copy()
    out, peaks = [], wide.copy()
    radius = max(3.0, 0.004 * max(shape))
    for _ in range(n_best):
        t, r = np.unravel_index(np.argmax(peaks), peaks.shape)
        peaks[np.arange(t - 3, t + 4) % n_turn, max(0, r - 3) : r + 4] = 0
        for half in (0.0, math.pi):
            scale = math.exp(((r + 1) / n_ratio * 2 - 1) * SCALE_RANGE)
            matrix = _match.rotation_about((0.0, 0.0), (t + 1) * math.pi / n_turn + half, scale)
            for offset, _ in _match.vote(_match.apply(matrix, a), b, radius, n_best=2):
                start = matrix.copy()
                start[:2, 2] += offset
                out.append(start)
    return out


def _refine(xy, target, matrix, shape, parity, tried):
    """Match all stars under a hypothesis: a _Candidate, or None."""
    radius = max(4.0, 0.008 * max(shape))
    for _ in range(10):
        i, j = _match.mutual_matches(_match.apply(matrix, xy), target, radius)
        if len(i) < 4:
            return None
        design = np.column_stack([xy[i], np.ones(len(i))])
        if len(i) >= 8:
            solution, *_ = np.linalg.lstsq(design, target[j], rcond=None)
            matrix = np.eye(3)
            matrix[:2] = solution.T
        else:
            matrix, *_ = _match.fit(xy[i], target[j], np.full(len(i), 0.25), model="similarity")
        residual = target[j] - _match.apply(matrix, xy[i])
        spread = mad_std(residual, 0.0)
        radius = min(radius, max(1.2, 5 * spread))
    singular = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if abs(math.sqrt(singular.prod()) - 1) > SCALE_RANGE + 0.01 or singular[0] > 1.02 * singular[1]:
        return None
    if np.linalg.det(matrix[:2, :2]) < 0:
        return None
    i, j = _match.mutual_matches(_match.apply(matrix, xy), target, radius)
    if len(i) < 4:
        return None
    ny, nx = shape
    back = _match.apply(np.linalg.inv(matrix), target)
    inside = ((back > 0) & (back < (nx, ny))).all(axis=1).sum()
    mapped = _match.apply(matrix, xy)
    low, high = target.min(axis=0), target.max(axis=0)
    covered = ((mapped >= low) & (mapped <= high)).all(axis=1).sum()
    n_tried, many = sorted((max(int(inside), len(i)), max(int(covered), len(i))))
    chance = min(many * math.pi * radius**2 / (nx * ny), 0.9)
    free = 3 if len(i) >= 8 else 2
    log_chance = _match.chance(len(i), n_tried, chance, free=free, hypotheses=tried)
    return _Candidate(i, j, matrix, parity, log_chance, len(i) / n_tried)


def _fitted(xy, sky):
    """WCS of matched stars, residuals [pix] and which were kept; SIP where it shows."""
    kept = np.arange(len(xy))
    for _ in range(3):
        wcs, residual = _wcs(xy[kept], sky[kept], None)
        if len(kept) >= SIP_STARS:
            curved, smaller = _wcs(xy[kept], sky[kept], 2)
            n = 2 * len(kept)
            # Akaike's measure, doubled: six more numbers along each axis must be worth it.
            if n * math.log((smaller**2).mean() / (residual**2).mean()) < -4 * 6:
                wcs, residual = curved, smaller
        square = (residual**2).sum(axis=1)
        good = square < 16 * np.median(square) / (2 * math.log(2)) * 2
        if good.all() or good.sum() < 4:
            break
        kept = kept[good]
        residual = residual[good]
    return wcs, residual, kept


def _wcs(xy, sky, degree):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wcs = fit_wcs_from_points(tuple(xy.T), sky, proj_point="center", sip_degree=degree)
        back = np.column_stack(wcs.world_to_pixel(sky))
    return wcs, back - xy
