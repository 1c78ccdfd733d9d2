"""
Whether frames that nothing says were registered show the same stars in the same places.

Private to `astro_narrowband.coaddition`.
"""

import math

import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.exceptions import AlignmentError, warn
from astro_narrowband.registration import Alignment, align, match

#: Stars of this signal to noise are compared, where both frames have so many.
CLEAR, MIN_STARS = 10.0, 2
#: Stars no farther apart than this may be the same [pix]: the larger, the fewer they are, up to
#: this part of the usual distance to the next star.
MATCH_RADIUS, SPACING = (2.0, 10.0), 0.2
#: Error of a position that no photon count takes away: neighbours, coma, hot pixels [pix].
POSITION_FLOOR = 0.1
#: Frames with a smaller part of their stars in place are not registered; with a larger one than
#: the second, and no corner moved, they are.
ASTRAY, IN_PLACE = 0.3, 0.8
#: Corners may be off by this [pix] (frames shifted by whole pixels are, by half a pixel along both
#: axes), or by so many standard errors.
MAX_OFFSET, SIGNIFICANT = 0.71, 5.0


def check_registered(frames, statistics, matrices, reference):
    """
    Raise `AlignmentError` for a frame whose stars are not where those of the reference are.

    Frames with an alignment, or with the cards that `resample` writes, are believed. Where these
    say "none", as the user wished, a warning names the frames and the offset of the first.
    """
    tables = [_table(*each) for each in zip(frames, statistics, matrices, strict=True)]
    astray = []
    for i, (frame, stars) in enumerate(zip(frames, tables, strict=True)):
        method = frame.header.get("REGMETH", "") if "REGDX" in frame.header else None
        if frame.alignment is not None:
            method = frame.alignment.method
        if i == reference or method not in (None, "none"):
            continue
        if min(len(stars), len(tables[reference])) < MIN_STARS:
            continue
        if not (offset := _offset(stars, tables[reference], frame.shape)):
            continue
        where = f"its stars are not where those of {frames[reference].name} are: {offset}"
        if method is None:
            raise AlignmentError(
                f"{frame.name}: was never registered: {where}: register the frames (align, "
                "resample) before they are coadded, or leave out what is another field"
            )
        astray.append((frame.name, where))
    if astray:
        name, where = astray[0]
        others = f" (and {len(astray) - 1} more)" if len(astray) > 1 else ""
        warn(
            f"{name}{others}: registration = none: {where}: coadded as they are, with stars that "
            "do not coincide: register them"
        )


def _offset(stars, base, shape):
    """How the stars of a frame are off from those of the reference; empty if they are in place."""
    share, near = _in_place(stars, base)
    if share >= IN_PLACE and not _moves(near, shape):
        return ""
    cause = ""
    try:
        measured = align(stars, base)
    except AlignmentError as error:
        measured, cause = near, f" ({error})"
    if cause and share < ASTRAY and _strange(stars, base):
        return f"{share:.0%} of them coincide, and no offset was found{cause}"
    if not _moves(measured, shape):
        return ""
    dx, dy = measured.shift
    return (
        f"{measured.n_matched} stars match after a shift by ({dx:.2f}, {dy:.2f}) pixel, a turn by "
        f"{measured.rotation:.3f} degree and a scale of {measured.scale:.4f}"
    )


def _table(frame, one, matrix):
    """The clear stars of a frame, on the grid."""
    stars = one.stars[one.stars[:, 2] > CLEAR * one.stars[:, 3]]
    meta = {"name": frame.name, "shape": tuple(frame.shape), "fwhm": one.fwhm}
    meta["detected"] = np.column_stack(apply_matrix(matrix, *one.detected.T))
    x, y = apply_matrix(matrix, *stars[:, :2].T)
    error = np.hypot(one.fwhm / 2.355 * stars[:, 3] / stars[:, 2], POSITION_FLOOR)
    return Table({"x_center": x, "y_center": y, "x_err": error, "y_err": error}, meta=meta)


def _in_place(stars, base):
    """Part of the stars that coincide with others, and the `Alignment` of those that do."""
    one, two = (np.column_stack([t["x_center"], t["y_center"]]) for t in (stars, base))
    apart = np.hypot(*(two[:, None] - two).T)
    spacing = np.median(np.min(apart + np.diag(np.full(len(two), math.inf)), axis=0))
    i, j = match.mutual_matches(one, two, np.clip(SPACING * spacing, *MATCH_RADIUS))
    if len(i) < MIN_STARS:
        return len(i) / min(len(one), len(two)), None
    variance = np.asarray(stars["x_err"][i] ** 2 + base["x_err"][j] ** 2)
    fit = match.fit_few(one[i], two[j], variance, model="similarity", angle=0.0)
    away = np.hypot(*(match.apply(fit[0], one[i]) - two[j]).T)
    share = np.count_nonzero(away < MATCH_RADIUS[0]) / min(len(one), len(two))
    return share, Alignment(*fit[:2], n_matched=int(fit[2].sum()))


def _strange(*tables):
    """Whether most stars of each of two frames are where the other shows none at all."""
    for one, other in (tables, tables[::-1]):
        xy = np.column_stack([one["x_center"], one["y_center"]])
        apart = cKDTree(other.meta["detected"]).query(xy)[0]
        if np.mean(apart < MATCH_RADIUS[0]) >= ASTRAY:
            return False
    return True


def _moves(alignment, shape):
    """Whether an alignment brings a corner to another place."""
    if alignment is None:
        return False
    y, x = (axis.ravel() for axis in np.meshgrid(*((0, n - 1) for n in shape)))
    moved = np.hypot(*(np.array(alignment(x, y)) - (x, y)))
    error = alignment.position_error(x, y)
    return bool(np.any(moved > np.maximum(MAX_OFFSET, SIGNIFICANT * error)))
