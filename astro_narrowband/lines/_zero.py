"""The zero of a line map: where there is no line, and what the sky is that is left there."""

import math

import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty

from astro_narrowband._engine.door import door, each, of_class
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import LineMap, add_common, opened, random_variance, unusable

__doctest_requires__ = {"subtract_sky": ["regions"]}

#: The sky is cut into about so many tiles, not smaller than so many pixels along a side.
N_TILES, MIN_SIDE = 100, 8
#: Along each side of a pixel, points that tell how much of it is in a region.
SAMPLES = 10
#: Regions whose part of each pixel the ``regions`` package computes.
EXACT = ("CirclePixelRegion", "EllipsePixelRegion", "RectanglePixelRegion")
#: Tiles for a plane.
MIN_TILES = 6
#: What is known of a tile beside the means of planes.
NO_PLANES = ("variance", "area", "x", "y")
#: Along a side of a map, tiles of which the darkest are its sky; and the part that starts it.
ACROSS, DARKEST = 24, 5.0


@door(line_map=None, sky=each(of_class("Region")))
def subtract_sky(line_map, *, sky=None):
    """
    Take off the sky that is left in a line map.

    After the subtraction of a continuum the level of a map is the sky of one image less k times
    that of the other: it means nothing, and a ratio of such maps neither.

    Parameters
    ----------
    line_map : LineMap or `~astropy.nddata.CCDData`
        With an uncertainty.
    sky : sequence of `regions.Region`, optional
        Where there is no line. Default is what is darkest in the map: tiles whose medians agree
        within their noise, from below. Where the line is everywhere, that is line.

    Returns
    -------
    LineMap
        Its ``common`` has ``"zero"``, the error of what was taken off, and its other common errors
        are without what they do to the sky. ZEROSKY and ZEROERR in the header are the level
        and its error, in the middle of the map.

    Raises
    ------
    InputError
        If no pixel of the sky is good.

    Notes
    -----
    What is taken off is a plane where the sky surrounds the map well enough that its error
    is at most twice that of a mean; else a mean, and what the plane differs from it by is an error.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from regions import PixCoord, RectanglePixelRegion
    >>> from astro_narrowband import subtract_sky
    >>> noise = StdDevUncertainty(np.full((40, 40), 0.1))
    >>> line = CCDData(np.full((40, 40), 5.0), unit="electron/s", uncertainty=noise)
    >>> line.data[:, :20] = 2.0
    >>> result = subtract_sky(line, sky=[RectanglePixelRegion(PixCoord(7.5, 19.5), 8, 24)])
    >>> print(result.data[20, [5, 30]], f"{result.common['zero'][0, 0]:.4f}")
    [0. 3.] 0.0072
    """
    ccd = opened(line_map, "the line map")
    bad = unusable(ccd)
    planes = planes_of(ccd)
    zero = Zero(sky_of(ccd, sky, bad) if sky else _darkest(ccd, bad), planes)
    level, error = zero.over(ccd.data.shape)
    header, removed = fits.Header(ccd.header, copy=True), level("data")
    middle = removed[tuple(n // 2 for n in removed.shape)]
    header["ZEROSKY"] = (float(middle), "sky that was taken off, in the middle")
    header["ZEROERR"] = (error, "its error")
    result = LineMap(
        np.float32(ccd.data - removed), unit=ccd.unit, header=header, mask=ccd.mask,
        uncertainty=StdDevUncertainty(np.float32(np.sqrt(planes["variance"][0]))),
        flags=None if ccd.flags is None else ccd.flags.copy(),
        wcs=None if ccd.wcs is None else ccd.wcs.deepcopy(),
        shared=ccd.shared, stars=ccd.stars,
    )  # fmt: skip
    for name, value in ccd.common.items():
        add_common(result, name, value if np.ndim(value) == 0 else value - level(name))
    add_common(result, "zero", np.full(ccd.data.shape, error, np.float32))
    return result


def planes_of(ccd):
    """Planes of a map by name, and the power of the weights that they are summed with."""
    planes = {"data": (ccd.data, 1), "variance": (random_variance(ccd), 2)}
    return planes | {name: (plane, 1) for name, plane in ccd.patterns().items()}


def sky_of(ccd, sky, bad):
    """Weights of the pixels of regions of sky, and where they are."""
    return [
        weights_of(mask_of(ccd, region, f"sky {n}"), bad, f"sky {n}")
        for n, region in enumerate(sky, start=1)
    ]


def _darkest(ccd, bad):
    """As `sky_of`, the tiles of a map that are its darkest ones within their noise."""
    side = max(MIN_SIDE, min(ccd.data.shape) // ACROSS)
    good = ~bad if ccd.flags is None else ~bad & (np.asarray(ccd.flags) == 0)
    sigma, tiles, levels, noise = ccd.uncertainty.array, [], [], []
    for i in range(0, bad.shape[0], side):
        for j in range(0, bad.shape[1], side):
            where = slice(i, i + side), slice(j, j + side)
            inside = good[where]
            if inside.sum() >= 0.5 * side**2:
                tiles.append((inside.astype(float), where))
                levels.append(float(np.median(ccd.data[where][inside])))
                noise.append(1.25 * float(np.median(sigma[where][inside])) / inside.sum() ** 0.5)
    if not tiles:
        raise InputError(
            f"{ccd.meta.get('FILTER', 'line map')}: no tile of {side} x {side} pixels is good: "
            "its sky cannot be measured; give regions of sky"
        )
    levels, noise = np.array(levels), float(np.median(noise))
    level = np.percentile(levels, DARKEST)
    for _ in range(50):
        near = np.abs(levels - level) <= max(3 * noise, np.abs(levels - level).min())
        level = levels[near].mean()
    return [tile for tile, keep in zip(tiles, near, strict=True) if keep]


def mask_of(ccd, region, name):
    """Weights of the pixels of a region and its box, which may reach beyond the map."""
    if hasattr(region, "to_pixel"):
        if ccd.wcs is None:
            raise InputError(f"region {name} is on the sky, and the map has no WCS")
        region = region.to_pixel(ccd.wcs.celestial)
    exact = type(region).__name__ in EXACT
    mask = region.to_mask(mode="exact") if exact else _sampled(region)
    if not mask.data.any():
        raise InputError(f"region {name}: a {type(region).__name__} has no area: leave it out")
    if mask.get_overlap_slices(ccd.data.shape)[0] is None:
        raise InputError(f"region {name} lies outside of the map")
    return mask


def _sampled(region):
    """Mask of a region from points in its pixels."""
    from regions import PixCoord, RegionMask

    box = region.bounding_box
    y, x = np.mgrid[box.iymin : box.iymax, box.ixmin : box.ixmax]
    steps = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    inside = sum(region.contains(PixCoord(x + i, y + j)) for i in steps for j in steps)
    return RegionMask(inside / SAMPLES**2, box)


def weights_of(mask, bad, name):
    """Weights of the good pixels of a region, and where they are; InputError where none is good."""
    large, small = mask.get_overlap_slices(bad.shape)
    weight = mask.data[small] * ~bad[large]
    if weight.sum() <= 0:
        raise InputError(f"region {name}: every pixel of it is masked: nothing can be measured")
    return weight, large


def summed(weight, planes, where):
    """Weighted sums of planes over a region, by name; nothing where the weight is zero."""
    used = weight != 0
    return {
        name: float((weight**power * np.where(used, plane[where], 0)).sum())
        for name, (plane, power) in planes.items()
    }


class Zero:
    """
    The zero of a map, by what is in the sky's regions: a mean, or a plane where they surround.

    The sky is cut into tiles, each of which counts by its noise; what they scatter beyond it
    about the mean or plane makes the error larger.
    """

    def __init__(self, weighted, planes):
        total = sum(weight.sum() for weight, _ in weighted)
        side = max(MIN_SIDE, int(math.sqrt(total / N_TILES)))
        tiles = []
        for weight, (rows, columns) in weighted:
            for i in range(0, weight.shape[0], side):
                for j in range(0, weight.shape[1], side):
                    tile = weight[i : i + side, j : j + side]
                    area = tile.sum()
                    if area == 0:
                        continue
                    y, x = (n - 1 for n in tile.shape)
                    top, left = rows.start + i, columns.start + j
                    where = slice(top, top + y + 1), slice(left, left + x + 1)
                    sums = {k: v / area for k, v in summed(tile, planes, where).items()}
                    sums["variance"] /= area
                    tiles.append(sums | {"area": area, "x": left + x / 2, "y": top + y / 2})
        tiles = [t for t in tiles if t["area"] >= 0.25 * max(t["area"] for t in tiles)]
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
        means = {name: float(share @ v) for name, v in tiles.items() if name not in NO_PLANES}
        return means, variance + added

    def over(self, shape):
        """
        Return the zero of a map: a function from name to plane, and the error of the data's.

        It slopes where its error, in the mean of the map, is at most twice that of the mean.
        """
        tiles = self._tiles
        y, x = (np.arange(n, dtype=float) for n in shape)
        share, scatter = self._mean
        fit, variance, added = share, scatter * float(share[0] ** 2 @ tiles["variance"]), 0.0
        if self._plane is not None:
            sample = np.meshgrid(x[:: len(x) // 8 + 1], y[:: len(y) // 8 + 1])
            sloped = self._design(*(c.ravel() for c in sample)) @ self._plane[0]
            noise = self._plane[1] * float((sloped**2 @ tiles["variance"]).mean())
            if noise <= 4 * variance:
                fit, variance = self._plane[0], noise
            else:
                added = max(0.0, float((((sloped - share[0]) @ tiles["data"]) ** 2).mean()) - noise)

        def plane(name):
            level, *slopes = fit @ tiles[name]
            result = np.full(shape, level, np.float32)
            for slope, along, at in zip(slopes, "xy", (x, y[:, None]), strict=False):
                result += np.float32(slope * (at - tiles[along].mean()))
            return result

        return plane, math.sqrt(variance + added)
