"""
The weight of each frame, and where or why it does not count.

Private to `astro_narrowband.coaddition`.
"""

import math

import numpy as np

from astro_narrowband._engine.validate import choice, positive
from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.exceptions import InputError

#: Radius around a masked pixel on a bright star within which its frame does not count
#: [largest FWHM].
SPOILED_RADIUS = 4.0
#: A frame with less than this part of the largest weight adds its faults and nothing else.
LEAST_WEIGHT = 0.005


def spoiled_discs(statistics, matrices, weight):
    """
    Where each frame is left out because one of its pixels on a bright star is masked.

    Frames differ in seeing: a star of which one frame lacks the core is a
    mixture whose flux is wrong by percents. So the frame does not count on the
    whole star, unless frames of three quarters of the weight lack it.

    Parameters
    ----------
    statistics : list of `FrameStatistics`
    matrices : list of array (3, 3)
        From each frame's pixels to the grid of the coadd.
    weight : `~numpy.ndarray`, (n,)
        Their sum is 1.

    Returns
    -------
    list of `~numpy.ndarray`, (m, 3)
        For each frame x, y and radius of discs on the grid.
    """
    from scipy.spatial import cKDTree

    discs, owner = [], []
    widest = np.array([s.fwhm for s, w in zip(statistics, weight, strict=True) if w > 0])
    widest = widest[np.isfinite(widest)].max(initial=3.0)
    for i, (frame_statistics, matrix) in enumerate(zip(statistics, matrices, strict=True)):
        if not len(frame_statistics.spoiled) or not weight[i] > 0:
            continue
        # Of the many pixels of one core, one in each square of 2 x 2 is enough.
        _, first = np.unique(frame_statistics.spoiled // 2, axis=0, return_index=True)
        x, y = apply_matrix(matrix, *frame_statistics.spoiled[first].T)
        discs.append(np.column_stack([x, y, np.full(len(x), SPOILED_RADIUS * widest)]))
        owner.append(np.full(len(x), i))
    empty = np.empty((0, 3))
    if not discs:
        return [empty] * len(statistics)
    discs, owner = np.concatenate(discs), np.concatenate(owner)
    tree = cKDTree(discs[:, :2])
    # Discs that overlap count together, so that no pixel is left without a frame.
    overlapping = tree.query_ball_point(discs[:, :2], 2 * SPOILED_RADIUS * widest)
    lacking = np.array([weight[np.unique(owner[near])].sum() for near in overlapping])
    keep = lacking < 0.75
    return [discs[keep & (owner == i)] for i in range(len(statistics))]


def weigh(rule, *, background, exposure, fwhm):
    """
    Weights of frames, not normalised.

    Parameters
    ----------
    rule : {"background", "point_source", "exptime", "equal"} or sequence of float
    background : `~numpy.ndarray`, (n,)
        Variance of each frame's blank sky, on the common flux scale.
    exposure, fwhm : `~numpy.ndarray`, (n,)
        [s], [pix]; NaN where not known.
    """
    n = len(background)
    if not isinstance(rule, str):
        given = [positive(w, "weights") for w in rule]
        if len(given) != n:
            raise InputError(f"weights: {len(given)} were given for {n} frames: one for each")
        return np.array(given)
    choice(rule, ("background", "point_source", "exptime", "equal"), "weights")
    usable = np.isfinite(background) & (background > 0)
    if rule == "equal":
        return usable.astype(float)
    if rule == "exptime":
        for t in exposure:
            positive(t, "exposure time of a frame, which weights = 'exptime' needs,")
        return np.where(usable, exposure, 0.0)
    weights = np.where(usable, 1.0 / np.where(usable, background, 1.0), 0.0)
    if rule == "point_source" and np.isfinite(fwhm).any():
        usual = np.median(fwhm[np.isfinite(fwhm)])
        weights /= np.where(np.isfinite(fwhm), fwhm, usual) ** 2
    return weights


def judge(statistics, transparency, weight, *, max_seeing, min_transparency):
    """
    Return why each frame is left out; empty where it is used.

    Parameters
    ----------
    statistics : list of `FrameStatistics`
    transparency : `Transparency`
    weight : `~numpy.ndarray`, (n,)
        From `weigh`.
    max_seeing, min_transparency : float
        See `~astro_narrowband.coaddition.coadd`.
    """
    reasons = [""] * len(statistics)
    scale, fwhm = transparency.scale, np.array([one.fwhm for one in statistics])
    known = np.isfinite(transparency.error)
    usual = np.median(scale[known]) if known.any() else 1.0
    seeing = np.median(fwhm[np.isfinite(fwhm)]) if np.isfinite(fwhm).any() else math.nan
    usable = np.isfinite(weight) & (weight > 0)
    largest = weight[usable].max() if usable.any() else 0.0
    for i in range(len(statistics)):
        if not usable[i]:
            reasons[i] = "it has no usable pixel"
        elif transparency.patchy[i]:
            reasons[i] = (
                f"its stars or its nebula are off by {transparency.uneven[i]:.1%} (rms) in parts "
                "of the image, which no slow map describes: cloud with an edge, or no flat"
            )
        elif scale[i] < min_transparency * usual:
            reasons[i] = (
                f"its transparency is {scale[i] / usual:.2f} of the median, less than "
                f"min_transparency = {min_transparency:g}"
            )
        elif fwhm[i] > max_seeing * seeing:
            reasons[i] = (
                f"its seeing is {fwhm[i]:.2f} pixel, more than max_seeing = {max_seeing:g} "
                f"times the median of {seeing:.2f}"
            )
        elif weight[i] < LEAST_WEIGHT * largest:
            reasons[i] = (
                f"its weight is {weight[i] / largest:.1e} of the largest one: its background "
                "is too bright or its exposure too short to add anything"
            )
    return reasons
