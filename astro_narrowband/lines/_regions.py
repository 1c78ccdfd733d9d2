"""Line fluxes of regions, with everything that is not known of them: the table a paper prints."""

import itertools
import math
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, label

from astro_narrowband._engine.door import door, each, of_class
from astro_narrowband.exceptions import InputError, warn
from astro_narrowband.lines._map import (
    CONTINUUM,
    REFERENCES,
    noise_correlation,
    opened,
    pixel_area,
    unusable,
)
from astro_narrowband.lines._ratio import comparable, divide, scale_correlation
from astro_narrowband.lines._zero import Zero, mask_of, planes_of, sky_of, summed, weights_of
from astro_narrowband.resampling import noise_factor

__doctest_requires__ = {"region_*": ["regions"]}

#: Less of a region that is good says nothing of the whole.
MIN_COVERED = 0.5
#: Least part of the kernel that must be on good pixels where a masked one is filled in.
MIN_NEAR = 0.1
#: A hole has a surface of its own where it is no longer than so many times its depth.
LONG = 4


@door
def read_regions(path):
    """
    Read a file of regions (DS9, CRTF or FITS) with the ``regions`` package.

    Returns
    -------
    regions : list
        Those to be measured.
    sky : list
        Those whose text or tag is ``sky`` or ``background``.
    """
    try:
        from regions import Regions
    except ImportError:
        raise InputError(f"{path}: needs regions: pip install 'astro-narrowband[lines]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        every = list(Regions.read(str(path)))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as regions ({reason})") from None
    if not all(r.meta.get("include", True) for r in every):
        raise InputError(f"{path}: holds regions that exclude: give what is left as regions")
    names = [
        {str(r.meta.get("text", "")).lower(), *map(str.lower, r.meta.get("tag", []))} for r in every
    ]
    sky = [r for r, n in zip(every, names, strict=True) if n & {"sky", "background"}]
    regions = [r for r, n in zip(every, names, strict=True) if not n & {"sky", "background"}]
    if not regions:
        raise InputError(f"{path}: holds no region to be measured")
    return regions, sky


@door(line_map=None, regions=each(of_class("Region")), sky=each(of_class("Region")))
def region_fluxes(line_map, regions, *, sky=None):
    """
    Measure the flux of a line in regions.

    Parameters
    ----------
    line_map : LineMap or `~astropy.nddata.CCDData`
        With an uncertainty.
    regions : sequence of `regions.Region`
        Circles, ellipses, polygons ..., in pixels, or on the sky where the map has a WCS.
    sky : sequence of `regions.Region`, optional
        Where there is no line: the zero of the map, a plane where they surround the region and a
        mean elsewhere. Without them the map's own zero is believed
        (`~astro_narrowband.subtract_sky`).

    Returns
    -------
    `~astropy.table.QTable`
        ``region`` (its text, or number), ``area`` [pix], ``covered`` (the part of it that is
        good, and not beside a star that is not gone), ``flux``, ``flux_err``, ``snr``, and each
        term of the error: ``err_noise``, ``err_sky``, ``err_filled``, and one column for every
        common error of the map, as ``err_continuum`` and ``err_flux_scale``; with a WCS
        ``solid_angle`` [arcsec2] and ``brightness`` per arcsec2.

    Raises
    ------
    InputError
        If a region or the sky has no good pixel, or a region on the sky meets no WCS.

    Notes
    -----
    err_noise^2 = sum(w^2 V) f^2, f after `~astro_narrowband.resampling.noise_factor`;
    err_sky is the area times the error of the zero, from tiles of the sky, each with its noise
    and with what they scatter beyond it; where a plane cannot be told from a mean, its slope is
    in the error. A common error counts as the sum of what it does to the pixels, less what
    it does to the zero: it does not average down.
    Masked pixels, and those flagged beside stars that are not gone, have what a surface of second
    order through good ones around the hole says;
    in long holes, and beyond the image, the Gaussian mean of good ones near them. err_filled is
    what that is off by where the same pixels are taken out beside the hole, less their noise,
    or, where that is more, what it differs by from a map that rises from the rim of the hole to
    a peak in its middle. A message names these regions. Where less than half of a
    region is good, its numbers are NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from regions import CirclePixelRegion, PixCoord
    >>> from astro_narrowband import region_fluxes
    >>> noise = StdDevUncertainty(np.full((40, 40), 0.1))
    >>> line = CCDData(np.full((40, 40), 5.0), unit="electron/s", uncertainty=noise)
    >>> circle = CirclePixelRegion(PixCoord(20, 20), radius=5)
    >>> print(region_fluxes(line, [circle])["flux"].round(1))
    [392.7] electron / s
    """
    if not regions:
        raise InputError("regions: none is given: give one or more")
    ccd = opened(line_map, "the line map")
    rows = [row | errors for row, errors, *_ in _measured(ccd, regions, sky, _lost(ccd))]
    _say_filled(ccd, rows)
    table = QTable(rows=rows)
    for name in table.colnames:
        if name.startswith(("flux", "err_")):
            table[name] = table[name] * ccd.unit
    table["area"] = table["area"] * u.pix
    if ccd.wcs is not None:
        table["solid_angle"] = table["area"].value * pixel_area(ccd) * u.arcsec**2
        table["brightness"] = table["flux"] / table["solid_angle"]
    return table


@door(a=None, b=None, regions=each(of_class("Region")), sky=each(of_class("Region")))
def region_ratios(a, b, regions, *, sky=None, min_snr=3.0):
    """
    Measure the ratio of two lines in regions.

    Parameters
    ----------
    a, b : LineMap or `~astropy.nddata.CCDData`
        Numerator and denominator, in one unit, on one grid or with a WCS each.
    regions, sky : sequence of `regions.Region`
        As for `region_fluxes`.
    min_snr : float, optional
        A line is seen where its flux is so many times its error; 2 at least.

    Returns
    -------
    `~astropy.table.QTable`
        ``region``, ``kind`` (measured, upper, lower or nothing), ``ratio``, ``lower`` and
        ``upper``, as of `line_ratio`, ``correlation`` of the two errors, and ``covered``, the part
        of the region that is good in both.

    Raises
    ------
    InputError
        As `region_fluxes` and `line_ratio` do.

    Notes
    -----
    Pixels masked or flagged in one map are filled in in both. Errors of one name are one error of
    both lines: that of the references, and that of a line's continuum in the map of the other; the
    noise of one continuum image is in both as well, and stars that both continua were scaled by.
    What they share of these moves a ratio less, or more, than either flux.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from regions import CirclePixelRegion, PixCoord
    >>> from astro_narrowband import region_ratios
    >>> noise = StdDevUncertainty(np.full((40, 40), 0.1))
    >>> sii, halpha = (
    ...     CCDData(np.full((40, 40), level), unit="electron/s", uncertainty=noise)
    ...     for level in (2.0, 5.0)
    ... )
    >>> row = region_ratios(sii, halpha, [CirclePixelRegion(PixCoord(20, 20), radius=5)])[0]
    >>> print(f"{row['ratio']:.3f} ({row['lower']:.3f} to {row['upper']:.3f})")
    0.400 (0.398 to 0.402)
    """
    a, b = comparable(a, b, min_snr)
    bad = _lost(a) | _lost(b)
    both = [_measured(ccd, regions, sky, bad) for ccd in (a, b)]
    names = a.shared.keys() & b.shared.keys()
    shared = sum((a.shared[n] * b.shared[n] for n in names), np.zeros(bad.shape, np.float32))
    scales, values = scale_correlation(a, b), []
    for (row, errors, effects, weight, where), (other, others, moved, *_) in zip(
        *both, strict=True
    ):
        same = float((weight**2 * np.where(weight != 0, shared[where], 0)).sum())
        noise = errors["err_noise"] * others["err_noise"]
        for ccd in (a, b):
            same *= noise_factor(noise_correlation(ccd), row["area"])
        covariance = same * (1 + errors["err_sky"] * others["err_sky"] / noise)
        keys = {_key(name, a): v for name, v in effects.items()}
        covariance += sum(keys.get(_key(name, b), 0.0) * v for name, v in moved.items())
        covariance += scales * effects.get(CONTINUUM, 0.0) * moved.get(CONTINUUM, 0.0)
        sigma = row["flux_err"], other["flux_err"]
        values.append((row["flux"], other["flux"], *sigma, covariance / math.prod(sigma)))
    columns = np.array(values, float).reshape(-1, 5).T
    planes, kind = np.full((3, len(values)), np.nan), np.zeros(len(values), np.uint8)
    divide(*columns, np.zeros(len(values), bool), min_snr, planes, kind)
    table = QTable({"region": [row["region"] for row, *_ in both[0]]})
    table["kind"] = np.array(["nothing", "measured", "upper", "lower"])[kind]
    table["ratio"], table["lower"], table["upper"] = planes
    table["correlation"] = columns[4]
    table["covered"] = [row["covered"] for row, *_ in both[0]]
    return table


def _key(name, ccd):
    """What an error is one error by: that of a map's own scale is that of its line."""
    alone = name != REFERENCES and " of " not in name
    return f"{name} of {ccd.meta.get('FILTER', id(ccd))}" if alone else name


def _lost(ccd):
    """Pixels that say nothing of the line: what stars leave that are not gone is in no error."""
    bad = unusable(ccd)
    return bad if ccd.flags is None else bad | (np.asarray(ccd.flags) != 0)


def _measured(ccd, regions, sky, bad):
    """Of each region what `_row` says."""
    planes = planes_of(ccd)
    zero = Zero(sky_of(ccd, sky, bad), planes) if sky else None
    return [_row(ccd, region, n, bad, planes, zero) for n, region in enumerate(regions, start=1)]


def _say_filled(ccd, rows):
    """One message of the regions that have masked pixels."""
    what = ccd.meta.get("FILTER", "line map")
    few = [row["region"] for row in rows if row["covered"] < MIN_COVERED]
    if few:
        warn(
            f"{what}: region {', '.join(few)}: less than {MIN_COVERED:.0%} is good: no flux; "
            "draw it where the map is not masked",
            stacklevel=4,
        )
    filled = [row for row in rows if MIN_COVERED <= row["covered"] < 1]
    if filled:
        most = 1 - min(row["covered"] for row in filled)
        names = ", ".join(row["region"] for row in filled)
        warn(
            f"{what}: region {names}: masked pixels, or beside stars that are not gone, "
            f"{100 * most:.2g} % at most, are filled in from those around, with err_filled",
            stacklevel=4,
        )


class _Filled:
    """
    Weights of good pixels whose sum is that of a whole region, and where they are.

    Attributes
    ----------
    weight : array
    where : tuple of slice
        Of the map.
    covered : float
        Part of the region that is good.
    """

    def __init__(self, mask, bad, name):
        inner, where = weights_of(mask, bad, name)
        self.covered = float(inner.sum() / mask.data.sum())
        self.weight, self.where = inner, where
        self._missing = None
        if self.covered == 1:
            return
        top, left = mask.bbox.iymin, mask.bbox.ixmin
        good = np.zeros(mask.data.shape, bool)
        rows, columns = (slice(s.start - n, s.stop - n)
                         for s, n in zip(where, (top, left), strict=True))  # fmt: skip
        good[rows, columns] = ~bad[where]
        # As far as a hole is moved to see what is lost, and once more for what is around it.
        self._step = int(2 * distance_transform_edt(~good)[mask.data > 0].max()) + 2
        pad = 2 * self._step
        weight = np.pad(mask.data, pad)
        corner = top - pad, left - pad
        self.where = tuple(
            slice(max(c, 0), min(c + n, full))
            for c, n, full in zip(corner, weight.shape, bad.shape, strict=True)
        )
        self._box = tuple(
            slice(s.start - c, s.stop - c) for s, c in zip(self.where, corner, strict=True)
        )
        self._good = np.zeros(weight.shape, bool)
        self._good[self._box] = ~bad[self.where]
        self._missing = np.where(self._good, 0, weight)
        whole = np.where(self._good, weight, 0) + _moved(self._missing, self._good)
        self.weight = whole[self._box]

    def error(self, data, variance):
        """What filling in is off by: beside the hole, or where the map rises on into the hole."""
        if self._missing is None:
            return 0.0
        total, squares, planes = self._missing.sum(), [], []
        for plane in (data, variance):
            planes.append(np.zeros(self._good.shape))
            planes[-1][self._box] = plane[self.where]
            planes[-1][~self._good] = 0

        def beyond_noise(weights):
            return (weights * planes[0]).sum() ** 2 - (weights**2 * planes[1]).sum()

        for shift in filter(any, itertools.product((-1, 0, 1), repeat=2)):
            out = np.roll(self._missing, np.multiply(shift, self._step), axis=(0, 1)) * self._good
            if out.sum() < 0.5 * total:
                continue
            out *= total / out.sum()
            squares.append(beyond_noise(out - _moved(out, self._good & (out == 0))))
        surface, rising = (_moved(self._missing, self._good, rising=r) for r in (False, True))
        if not squares:
            return abs(float((surface * planes[0]).sum()))
        # So few places say little of how uneven it can be: Student's law is that much broader.
        n = len(squares)
        scatter = float(np.mean(squares)) * n / max(n - 2, 0.5)
        return math.sqrt(max(0.0, beyond_noise(surface - rising), scatter))


def _moved(weight, good, *, rising=False):
    """
    Weights of pixels that are not good, moved to good ones near them; the sum stays.

    What they weigh is that of a surface of second order through what is around each hole, or of a
    plane that goes on ``rising`` with the distance from the rim, as at a peak; a mean near them
    where the hole is long, or not surrounded.
    """
    left, total = weight.copy(), np.zeros(weight.shape)
    holes, _ = label(~good)
    for number, box in enumerate(find_objects(holes), start=1):
        if not left[box].any():
            continue
        hole = np.pad(holes[box] == number, 1)
        depth = distance_transform_edt(hole).max()
        sigma = 1 + depth / 4
        reach = math.ceil(2.5 * sigma)
        rows, columns = (slice(s.start - reach, s.stop + reach) for s in box)
        inside = min(rows.start, columns.start) >= 0 and np.all(
            np.array([rows.stop, columns.stop]) <= good.shape
        )
        if not inside or max(hole.shape) - 2 > LONG * depth:
            continue
        hole = holes[rows, columns] == number
        away = distance_transform_edt(~hole)
        near = good[rows, columns] & (away <= reach)
        if near.sum() < 0.5 * (~hole & (away <= reach)).sum():
            continue
        y, x = ((c - c[hole].mean()) / depth for c in np.indices(hole.shape))
        inward = (distance_transform_edt(hole) - away,) if rising else (x * x, x * y, y * y)
        design = np.stack([np.ones_like(x), x, y, *inward], axis=-1)
        own = np.exp(-0.5 * (away[near] / sigma) ** 2)[:, None] * design[near]
        sums = left[rows, columns][hole] @ design[hole]
        total[rows, columns][near] += own @ np.linalg.lstsq(design[near].T @ own, sums)[0]
        left[rows, columns][hole] = 0
    return total + _spread(left, good)


def _spread(weight, good):
    """As `_moved`, by a Gaussian mean that is as narrow as reaches the pixels."""
    left, total, sigma = weight.copy(), np.zeros(weight.shape), 1.0
    while (left > 0).any():
        last = sigma > max(weight.shape)
        near = gaussian_filter(good.astype(float), sigma, mode="constant", truncate=3)
        now = (left > 0) & (near > (0 if last else MIN_NEAR))
        share = np.divide(left, near, out=np.zeros_like(left), where=now)
        total += good * gaussian_filter(share, sigma, mode="constant", truncate=3)
        left[now] = 0
        if last:
            break
        sigma *= 2
    return total


def _row(ccd, region, number, bad, planes, zero):
    """A region's flux, its errors by column, what each common one does to it, and its weights."""
    name = str(region.meta.get("text", "") or number)
    filled = _Filled(mask_of(ccd, region, name), bad, name)
    weight, where = filled.weight, filled.where
    area, sums = float(weight.sum()), summed(weight, planes, where)
    factor = noise_factor(noise_correlation(ccd), area)
    errors = {"err_noise": factor * math.sqrt(sums.pop("variance")), "err_sky": 0.0}
    errors["err_filled"] = filled.error(ccd.data, factor**2 * planes["variance"][0])
    if zero is not None:
        y, x = (weight.sum(axis=1 - k) @ np.arange(weight.shape[k]) / area for k in (0, 1))
        means, variance = zero.at(x + where[1].start, y + where[0].start)
        errors["err_sky"] = area * math.sqrt(variance)
        sums = {name: value - area * means[name] for name, value in sums.items()}
    if filled.covered < MIN_COVERED:
        sums, errors = (dict.fromkeys(numbers, math.nan) for numbers in (sums, errors))
    flux = sums.pop("data")
    errors |= {f"err_{what.replace(' ', '_')}": abs(value) for what, value in sums.items()}
    total = math.hypot(*errors.values())
    row = {"region": name, "area": area, "covered": filled.covered, "flux": flux,
           "flux_err": total, "snr": flux / total if total else math.nan}  # fmt: skip
    return row, errors, sums, weight, where
