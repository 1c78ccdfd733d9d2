"""Line fluxes of regions, with everything that is not known of them: the table a paper prints."""

import math
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._engine.door import door, each, of_class
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import (
    CONTINUUM,
    REFERENCES,
    LineMap,
    noise_correlation,
    opened,
    pixel_area,
    random_variance,
    unusable,
)
from astro_narrowband.lines._ratio import comparable, divide, scale_correlation
from astro_narrowband.resampling import noise_factor

__doctest_requires__ = {"region_*": ["regions"]}

#: The sky is cut into about so many tiles, not smaller than so many pixels along a side.
N_TILES, MIN_SIDE = 100, 8
#: Tiles for a plane.
MIN_TILES = 6


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
        mean elsewhere. Without them the map's own zero is believed, as it is after a
        subtraction of skies.

    Returns
    -------
    `~astropy.table.QTable`
        ``region`` (its text, or number), ``area`` [pix] (of good pixels), ``covered`` (their
        part of the region), ``flux``, ``flux_err``, ``snr``, and each term of the error:
        ``err_noise``, ``err_sky``, and one column for every common error of the map, as
        ``err_continuum`` and ``err_flux_scale``; with a WCS ``solid_angle`` [arcsec2] and
        ``brightness`` per arcsec2.

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
    Masked pixels are not filled in: the flux is that of the good ones, ``covered`` says so.

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
    rows = [row | errors for row, errors, _ in _measured(ccd, regions, sky, unusable(ccd))]
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
        ``upper``, as of `line_ratio`, and ``correlation`` of the two errors.

    Raises
    ------
    InputError
        As `region_fluxes` and `line_ratio` do.

    Notes
    -----
    The pixels are those that are good in both maps. Errors of one name are one error of both
    lines: that of the references, and that of a line's continuum in the map of the other; the
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
    bad = unusable(a) | unusable(b)
    both = [_measured(ccd, regions, sky, bad) for ccd in (a, b)]
    names = getattr(a, "shared", {}).keys() & getattr(b, "shared", {}).keys()
    shared = sum((a.shared[n] * b.shared[n] for n in names), np.zeros(bad.shape, np.float32))
    scales, values = scale_correlation(a, b), []
    for region, (row, errors, effects), (other, others, moved) in zip(regions, *both, strict=True):
        weight, where, _ = _weights(a, region, bad, row["region"])
        same = float((weight**2 * np.where(weight > 0, shared[where], 0)).sum())
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
    table = QTable({"region": [row["region"] for row, _, _ in both[0]]})
    table["kind"] = np.array(["nothing", "measured", "upper", "lower"])[kind]
    table["ratio"], table["lower"], table["upper"] = planes
    table["correlation"] = columns[4]
    return table


def _key(name, ccd):
    """What an error is one error by: that of a map's own scale is that of its line."""
    alone = name != REFERENCES and " of " not in name
    return f"{name} of {ccd.meta.get('FILTER', id(ccd))}" if alone else name


def _measured(ccd, regions, sky, bad):
    """Of each region what `_row` says."""
    planes = {"data": (ccd.data, 1), "variance": (random_variance(ccd), 2)}
    patterns = ccd.patterns() if isinstance(ccd, LineMap) else {}
    planes |= {name: (plane, 1) for name, plane in patterns.items()}
    zero = _Zero(ccd, sky, bad, planes) if sky else None
    return [_row(ccd, region, n, bad, planes, zero) for n, region in enumerate(regions, start=1)]


def _weights(ccd, region, bad, name):
    """Weights of the pixels of a region, and where they are; InputError where none is good."""
    if hasattr(region, "to_pixel"):
        if ccd.wcs is None:
            raise InputError(f"region {name} is on the sky, and the map has no WCS")
        region = region.to_pixel(ccd.wcs.celestial)
    exact = type(region).__name__.startswith(("Circle", "Ellipse", "Rectangle"))
    mask = region.to_mask(mode="exact" if exact else "subpixels", subpixels=10)
    large, small = mask.get_overlap_slices(ccd.data.shape)
    if large is None:
        raise InputError(f"region {name} lies outside of the map")
    weight = mask.data[small] * ~bad[large]
    if weight.sum() <= 0:
        raise InputError(f"region {name}: every pixel of it is masked: nothing can be measured")
    return weight, large, float(weight.sum() / mask.data.sum())


def _summed(weight, planes, where):
    """Weighted sums of planes over a region, by name; nothing where the weight is zero."""
    used = weight > 0
    return {
        name: float((weight**power * np.where(used, plane[where], 0)).sum())
        for name, (plane, power) in planes.items()
    }


class _Zero:
    """
    The zero of a map, by what is in the sky's regions: a mean, or a plane where they surround.

    The sky is cut into tiles, each of which counts by its noise; what they scatter beyond it
    about the mean or plane makes the error larger.
    """

    def __init__(self, ccd, sky, bad, planes):
        weighted = [_weights(ccd, region, bad, f"sky {n}") for n, region in enumerate(sky, start=1)]
        total = sum(weight.sum() for weight, _, _ in weighted)
        side = max(MIN_SIDE, int(math.sqrt(total / N_TILES)))
        tiles = []
        for weight, (rows, columns), _ in weighted:
            for i in range(0, weight.shape[0], side):
                for j in range(0, weight.shape[1], side):
                    tile = weight[i : i + side, j : j + side]
                    area = tile.sum()
                    if area < min(0.25 * side**2, 0.5 * total):
                        continue
                    y, x = (n - 1 for n in tile.shape)
                    top, left = rows.start + i, columns.start + j
                    where = slice(top, top + y + 1), slice(left, left + x + 1)
                    sums = {k: v / area for k, v in _summed(tile, planes, where).items()}
                    sums["variance"] /= area
                    tiles.append(sums | {"x": left + x / 2, "y": top + y / 2})
        self._tiles = {name: np.array([tile[name] for tile in tiles]) for name in tiles[0]}
        self._mean = self._fit(np.ones((len(tiles), 1)))
        self._plane = None
        if len(tiles) >= MIN_TILES:
            self._plane = self._fit(self._design(self._tiles["x"], self._tiles["y"]))

    def _design(self, x, y):
        x, y = x - self._tiles["x"].mean(), y - self._tiles["y"].mean()
        return np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)

    def _fit(self, design):
        """What each tile has of each number of the fit; what tiles scatter over their noise."""
        weight = 1 / self._tiles["variance"]
        share = np.linalg.pinv(design * np.sqrt(weight)[:, None]) * np.sqrt(weight)
        residual = self._tiles["data"] - design @ (share @ self._tiles["data"])
        free = len(weight) - design.shape[1]
        return share, max(1.0, float(weight @ residual**2) / free) if free > 0 else 1.0

    def at(self, x, y):
        """
        Return the zero at a place: the means of all planes, and the variance of the data's.

        A plane counts where its error is at most twice that of the mean; farther off what it
        says is an error of the mean.
        """
        tiles = self._tiles
        share, scatter = self._mean
        share, added = share[0], 0.0
        variance = scatter * float(share**2 @ tiles["variance"])
        if self._plane is not None:
            sloped = (self._design(x, y) @ self._plane[0])[0]
            noise = self._plane[1] * float(sloped**2 @ tiles["variance"])
            if noise <= 4 * variance:
                share, variance = sloped, noise
            else:
                added = max(0.0, float((sloped - share) @ tiles["data"]) ** 2 - noise)
        means = {name: float(share @ v) for name, v in tiles.items() if name not in "variance x y"}
        return means, variance + added


def _row(ccd, region, number, bad, planes, zero):
    """Columns of a region's flux, its errors by column, and what each common one does to it."""
    name = str(region.meta.get("text", "") or number)
    weight, where, covered = _weights(ccd, region, bad, name)
    area, sums = float(weight.sum()), _summed(weight, planes, where)
    noise = noise_factor(noise_correlation(ccd), area) * math.sqrt(sums.pop("variance"))
    errors = {"err_noise": noise, "err_sky": 0.0}
    if zero is not None:
        y, x = (weight.sum(axis=1 - k) @ np.arange(weight.shape[k]) / area for k in (0, 1))
        means, variance = zero.at(x + where[1].start, y + where[0].start)
        errors["err_sky"] = area * math.sqrt(variance)
        sums = {name: value - area * means[name] for name, value in sums.items()}
    flux = sums.pop("data")
    errors |= {f"err_{what.replace(' ', '_')}": abs(value) for what, value in sums.items()}
    total = math.hypot(*errors.values())
    row = {"region": name, "area": area, "covered": covered, "flux": flux, "flux_err": total,
           "snr": flux / total if total else math.nan}  # fmt: skip
    return row, errors, sums
