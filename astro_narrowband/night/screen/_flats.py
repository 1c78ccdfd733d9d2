"""Flats that do not belong together, or to the lights: by their shape on a coarse grid."""

import warnings
from itertools import pairwise

import numpy as np

#: Cells of the grid on a side.
GRID = 8
#: Shapes of flats of one setup agree to this (rms over the grid), lamps and twilight aside.
ALIKE = 0.02
#: A flat is turned if the lights are flat with it turned, to this part of what they are as it is.
TURNED = 0.4
#: And if they are not flat, as it is, by this (rms over the grid).
UNEVEN = 0.03


def coarse(rows, nx):
    """Return medians of rows of pixels, NaN where masked, on a grid of `GRID` cells a side."""
    rows = np.stack(rows)
    columns = pairwise(np.linspace(0, nx, GRID + 1).astype(int).tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # cells without a good pixel
        median = np.nanmedian if np.isnan(rows).any() else np.median
        cells = np.stack([median(rows[:, a:b], axis=1) for a, b in columns], axis=1)
        return np.array([np.nanmedian(band, axis=0) for band in np.array_split(cells, GRID)])


def _shape(grid, offset):
    """A grid less its offset, median 1, NaN where dark (overscan); None without enough light."""
    light = grid - offset
    level = np.nanmedian(light)
    light = np.where(light > 0.05 * level, light, np.nan)
    return light / level if level > 0 and np.isfinite(light).mean() > 0.5 else None


def _rms(image):
    """Scatter about the median, by the deviations without the largest tenth: nebulae, stars."""
    image = image[np.isfinite(image)]
    off = np.sort(np.abs(image / np.median(image) - 1))
    return float(np.sqrt(np.mean(off[: int(0.9 * off.size)] ** 2)))


def _of_lights(grids, offset):
    shapes = [shape for grid in grids if (shape := _shape(grid, offset)) is not None]
    return _middle(shapes) if shapes else None


def _middle(shapes):
    """Median of shapes; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(shapes, axis=0)


def odd_flats(flats, lights, offset):
    """
    Say which flats have another shape than those that the lights, or most flats, agree with.

    Parameters
    ----------
    flats, lights : sequence of `~numpy.ndarray`, (GRID, GRID)
        From `coarse` [adu].
    offset : float
        Level without light [adu].

    Returns
    -------
    reasons : list of str
        For each flat; ``""`` if it may be used.
    doubt : str
        Why nobody can say which of them are right; ``""`` if it is known.
    """
    shapes = [_shape(grid, offset) for grid in flats]
    families = []
    for i, shape in enumerate(shapes):
        if shape is None:
            continue
        for family in families:
            if _rms(shape / shapes[family[0]]) <= ALIKE:
                family.append(i)
                break
        else:
            families.append([i])
    reasons = [""] * len(flats)
    if len(families) < 2:
        return reasons, ""
    families.sort(key=len, reverse=True)
    apart = max(_rms(shapes[f[0]] / shapes[families[0][0]]) for f in families[1:])
    light = _of_lights(lights, offset)
    best, how = None, ""
    if light is not None:
        rest = [_rms(light / _middle([shapes[i] for i in f])) for f in families]
        first, second = np.argsort(rest)[:2]
        if rest[first] < 0.6 * rest[second]:
            best, how = families[first], "the lights agree with the others"
    if best is None and 3 * len(families[0]) >= 2 * sum(map(len, families)):
        best, how = families[0], "most flats agree with each other"
    if best is None:
        return reasons, (
            f"its flats have {len(families)} shapes, {100 * apart:.0f} % apart, and neither their "
            "number nor the lights tell which are right: take away those of another night or angle"
        )
    for i, shape in enumerate(shapes):
        if shape is not None and i not in best:
            off = 100 * _rms(shape / shapes[best[0]])
            reasons[i] = (
                f"its shape differs by {off:.1f} % from that of other flats, and {how}: was the "
                "camera turned, or something moved?"
            )
    return reasons, ""


def turned(flats, lights, offset):
    """
    Say how flats are turned against the vignetting of the lights, ``""`` if they are not.

    Parameters
    ----------
    flats, lights, offset
        As in `odd_flats`.
    """
    shapes = [shape for grid in flats if (shape := _shape(grid, offset)) is not None]
    light = _of_lights(lights, offset)
    if light is None or not shapes:
        return ""
    flat = _middle(shapes)
    as_is = _rms(light / flat)
    ways = {f"turned by {90 * k} deg": np.rot90(flat, k) for k in (1, 2, 3)}
    ways |= {"mirrored top to bottom": flat[::-1], "mirrored left to right": flat[:, ::-1]}
    how, best = min(((way, _rms(light / image)) for way, image in ways.items()), key=lambda p: p[1])
    if as_is < UNEVEN or best > TURNED * as_is:
        return ""
    return (
        f"its flats look {how} against the lights, which are even to {100 * best:.1f} % with them "
        f"so, and to {100 * as_is:.1f} % as they are: give flats as the lights were taken, or "
        "--without flat"
    )
