"""
Registration: the transform from one frame to another, or an error that says why there is none.

Stars are matched by a vote on their offsets (and, where the camera was turned,
on the angles between them), the transform is fitted by weighted least squares,
and then it is validated: a doubtful answer is an `AlignmentError` with the
numbers, never a wrong shift.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from astropy import units as u
from astropy.table import QTable, Table

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.door import a_sequence, a_table, array, count, door, each
from astro_narrowband._engine.frames import Threads
from astro_narrowband._engine.validate import choice
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.registration import _methods
from astro_narrowband.registration import match as _match
from astro_narrowband.registration._alignment import Alignment
from astro_narrowband.registration._nebula import match_nebula
from astro_narrowband.registration._starmatch import match_stars, name_of, stars_of

__all__ = [
    "Alignment",
    "GroupAlignment",
    "align",
    "align_group",
    "choose_reference",
    "detect_stars",
]

METHODS = ("stars", "astroalign", "centroid", "wcs")
#: Frames near in time that a frame is tried through, or borrows from.
NEIGHBOURS = 4
#: log10 of the chance accepted where a borrowed transform is confirmed by the frame's own stars.
MAX_CHANCE_BORROWED = -4.0
#: Borrowed without a star: the frames before and after may differ by this [pix].
MAX_DRIFT = 0.7


@door(positions=array(u.pix))
def align(
    source,
    target,
    *,
    method="stars",
    positions=None,
    centroid_func=None,
    box_size=25,
    search=40,
    tolerance=2.0,
    max_rms=0.5,
    threshold=5.0,
    mask=None,
):
    """
    Find the transform that brings ``source`` onto ``target``.

    Parameters
    ----------
    source, target : `~astropy.nddata.CCDData`, `~astro_narrowband.Frame`, path-like or table
        Frames of one shape. Where only stars are needed ("stars",
        "astroalign"), the tables that `detect_stars` made of them will do, and
        save the second detection.
    method : {"stars", "astroalign", "centroid", "wcs"}, optional
        "stars": a vote on the offsets of the brightest stars, for shifts, half
        turns and rotations by any angle. "astroalign": its triangle match on
        the same lists, with our fit and tests. "centroid": the stars named by
        ``positions``, one or more; the other stars, if there are at least
        four, must agree. "wcs": what the two celestial WCS imply; stars must
        agree likewise.
    positions : sequence of (x, y), optional
        Where the named stars are in ``target`` [pix].
    centroid_func : callable, optional
        One of `photutils.centroids`. Default is
        `~photutils.centroids.centroid_2dg`. `~photutils.centroids.centroid_quadratic`
        has a bias of up to 0.06 pix that depends on where the star falls on a
        pixel, and no signal removes it.
    box_size : int, optional
        Side of the box of the centroid [pix], odd.
    search : int, optional
        How far from its place in ``target`` a named star may be [pix].
    tolerance : float, optional
        How far off a star may be at first [pix].
    max_rms : float, optional
        Largest residual scatter along one axis [pix], or 0.075 of the width
        of the stars if that is more.
    threshold : float, optional
        Passed on to `detect_stars`.
    mask : array_like of bool, (ny, nx), optional
        Hot and bad pixels of both frames, which share a detector.

    Returns
    -------
    `Alignment`
        From ``source`` to ``target``, with its covariance and how it was found.

    Raises
    ------
    AlignmentError
        If no transform stands every test: it names the frames and says what
        was found and what is needed.
    InputError
        If an argument cannot be used.

    Notes
    -----
    An answer of "stars" or "astroalign" is given only where (a) at least 3
    stars match, 4 where the camera was turned; (b) the binomial chance that
    unrelated lists match so well, times the number of hypotheses, is below
    1e-6; (c) a quarter of the stars in the common area match, or that chance is
    below 1e-25; (d) no other
    transform that is not chance matches more than half as many; (e) residuals
    are below ``max_rms``, and the error in the corners, rotation and scale
    left free, below 0.3 pix; (f) the scale is within 1e-3 of 1, or 4 of its errors beyond;
    (g) the matched sources do not stand on one line; (h) sources that stand on
    the same pixels in both frames are not hot pixels by their width and pixel
    phase; a transform that moves them is preferred to one that does not.

    A plain shift (or exact half turn) is returned where a rotation and scale
    are not significant (chi2 falls by less than 12) or move no corner by 0.02
    pix: it can be resampled faster and better. Higher distortions are not
    fitted; a mirrored frame or one of another pixel scale is refused.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband.registration import align
    >>> rng = np.random.default_rng(2)
    >>> xy = rng.uniform(20, 180, (12, 2))
    >>> def frame(dx, dy):
    ...     y, x = np.mgrid[:200, :200]
    ...     image = rng.normal(20.0, 1.0, (200, 200))
    ...     for a, b in xy + (dx, dy):
    ...         image += 300 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4.0)
    ...     return CCDData(image, unit="electron")
    >>> found = align(frame(3.3, -4.6), frame(0, 0))
    >>> found.n_matched, bool(np.allclose(found.shift, (-3.3, 4.6), atol=0.02))
    (12, True)
    """
    choice(method, METHODS, "method")
    keywords = {"threshold": threshold, "mask": mask}
    if method in ("centroid", "wcs"):
        for image in (source, target):
            if isinstance(image, Table):
                raise InputError(f"method = {method!r} needs the frames, not tables of their stars")
        if method == "centroid":
            if positions is None:
                raise InputError("method = 'centroid' needs positions: (x, y) of named stars")
            alignment = _methods.align_centroid(
                source, target, positions, centroid_func=centroid_func, box_size=box_size,
                search=search, mask=mask, max_rms=max_rms,
            )  # fmt: skip
        else:
            alignment = _methods.align_wcs(source, target, max_rms=max_rms)
        _methods.check_against_stars(
            alignment, stars_of(source, keywords), stars_of(target, keywords)
        )
        return alignment
    match = match_stars if method == "stars" else _methods.align_astroalign
    return match(
        stars_of(source, keywords), stars_of(target, keywords),
        tolerance=tolerance, max_rms=max_rms,
    )  # fmt: skip


@door(tables=each(a_table))
def choose_reference(tables):
    """
    Return the index of the frame that the others are best aligned with.

    The frame wins whose stars say most about a shift: the sum of 1 over the
    variance of their positions, which grows with the number of stars and falls
    with their width and with the background. No star counts for more than one
    measured to 0.03 pix, so that one bright star does not decide.

    Parameters
    ----------
    tables : sequence of `~astropy.table.QTable`
        One from `detect_stars` for each frame.

    Returns
    -------
    int

    Raises
    ------
    AlignmentError
        If no frame has an unsaturated star.
    """
    scores = []
    for table in tables:
        stars = stars_of(table, {})
        scores.append(float((1 / (stars.variance + 0.03**2)).sum()))
    if not scores or max(scores) == 0:
        names = ", ".join(name_of(table) for table in tables)
        raise AlignmentError(f"no frame has an unsaturated star ({names or 'no frames'})")
    return int(np.argmax(scores))


# --------------------------------------------------------------------------- groups


@dataclass(frozen=True, eq=False)
class GroupAlignment:
    """
    The alignments of a group of frames.

    Attributes
    ----------
    reference : int
        Index of the frame whose grid the others are brought to.
    alignments : list of `Alignment` or `AlignmentError`
        One for each frame: the error says by name why a frame is left out.
    tables : list of `~astropy.table.QTable`
        The stars of each frame.
    """

    reference: int
    alignments: list[Alignment | AlignmentError]
    tables: list[QTable]

    @property
    def used(self):
        """Indices of the frames that were aligned."""
        return [k for k, a in enumerate(self.alignments) if isinstance(a, Alignment)]


@door(
    images=a_sequence, reference=count(0), times=array(ndim=1), labels=a_sequence,
    tables=each(a_table),
)  # fmt: skip
def align_group(
    images,
    *,
    reference=None,
    method="stars",
    times=None,
    labels=None,
    tables=None,
    borrow=True,
    tolerance=2.0,
    max_rms=0.5,
    threshold=5.0,
    mask=None,
    workers=None,
    **keywords,
):
    """
    Align all frames of a pointing, of one filter or several, with one of them.

    A frame goes down a ladder until an answer stands: its own stars; a looser
    match (stars down to 0.7 of the threshold, tolerances half as large again);
    its stars matched with those of an aligned frame near in time; the nebula that
    it and the reference show (shifts, half turns, and turns of about a degree); the
    transform of an aligned frame near in time or of another filter, if its
    few stars confirm it; the same without a star, if the frames before and
    after agree and nothing moved in the whole group. The rung is recorded in
    `Alignment.method`. A frame that comes to the end is left out: an
    `AlignmentError` with its name stands in its place.

    Parameters
    ----------
    images : sequence
        Frames, as for `align`.
    reference : int, optional
        Index of the reference. Default is the best: `choose_reference`.
    method : {"stars", "astroalign", "centroid", "wcs"}, optional
        Of the first rung. The ladder below it is for "stars" and "astroalign".
    times : sequence of float, optional
        When each frame was taken, in any unit. Default is their order.
    labels : sequence of str, optional
        Filter of each frame; those of the same filter are tried first, and
        the reference is chosen among the frames of all filters.
    tables : sequence of `~astropy.table.QTable`, optional
        The stars of the frames, if they are known already.
    borrow : bool, optional
        Whether the last two rungs are used.
    tolerance, max_rms, threshold, mask
        As for `align`.
    workers : int, optional
        Threads for the detection. Default is the number of cores.
    **keywords
        For `align` (``positions``, ...).

    Returns
    -------
    `GroupAlignment`

    Raises
    ------
    AlignmentError
        If no frame has a star, and nebula does not tell.
    InputError
        If an argument cannot be used.
    """
    images = list(images)
    n = len(images)
    if n == 0:
        raise InputError("no frames to align were given: at least one is needed")
    choice(method, METHODS, "method")
    times = list(range(n)) if times is None else times.tolist()
    labels = [""] * n if labels is None else list(labels)
    for name, given in (("times", times), ("labels", labels), ("tables", tables)):
        if given is not None and len(given) != n:
            raise InputError(f"{name} has {len(given)} values for {n} frames")
    if tables is None:
        with Threads(workers) as pool:
            find = partial(detect_stars, threshold=threshold, mask=mask)
            tables = list(pool.map(lambda i: i if isinstance(i, Table) else find(i), images))
    no_stars = None
    if reference is None:
        try:
            reference = choose_reference(tables)
        except AlignmentError as error:
            reference, no_stars = n // 2, error
    elif not -n <= reference < n:
        raise InputError(f"reference = {reference}: there are {n} frames")
    reference %= n
    ladder = _Ladder(images, list(tables), reference, times, labels, tolerance, max_rms,
                     threshold, mask)  # fmt: skip
    alignments = [None] * n
    alignments[reference] = Alignment.identity()
    for k in [*range(reference), *range(reference + 1, n)]:
        try:
            if method in ("stars", "astroalign"):
                alignments[k] = ladder.own(k, method)
            else:
                alignments[k] = align(
                    images[k], images[reference], method=method, tolerance=tolerance,
                    max_rms=max_rms, threshold=threshold, mask=mask, **keywords,
                )  # fmt: skip
        except AlignmentError as error:
            alignments[k] = error
    if method in ("stars", "astroalign"):
        _down_the_ladder(ladder, alignments, borrow)
    if no_stars and sum(isinstance(a, Alignment) for a in alignments) == 1:
        raise no_stars
    return GroupAlignment(reference, alignments, ladder.tables)


def _down_the_ladder(ladder, alignments, borrow):
    """Put, in place of errors, what the rungs below the first give."""
    rungs = [ladder.looser, ladder.through, ladder.by_nebula]
    if borrow:
        rungs += [ladder.confirmed, ladder.between]
    for rung in rungs:
        # What one frame finds on a rung must not depend on the order of the frames.
        known = list(alignments)
        for k, error in enumerate(known):
            if isinstance(error, AlignmentError):
                try:
                    alignments[k] = rung(k, known)
                except AlignmentError as last:
                    alignments[k] = AlignmentError(_both(error, last))


def _both(first, last):
    """The first error is what the user can act on; the later rungs add what they tried."""
    text = str(last)
    return str(first) if text in str(first) else f"{first}; {text}"


class _Ladder:
    """The rungs by which a frame of a group may be aligned; each raises AlignmentError."""

    def __init__(self, images, tables, reference, times, labels, tolerance, max_rms, threshold,
                 mask):  # fmt: skip
        self.images, self.tables, self.reference = images, tables, reference
        self.times, self.labels = times, labels
        self.tolerance, self.max_rms = tolerance, max_rms
        self.threshold, self.mask = threshold, mask

    def own(self, k, method):
        """Match the frame's own stars with those of the reference."""
        return align(
            self.tables[k], self.tables[self.reference], method=method,
            tolerance=self.tolerance, max_rms=self.max_rms,
        )  # fmt: skip

    def looser(self, k, _known):
        """Take fainter stars and larger residuals."""
        if isinstance(self.images[k], Table):
            raise AlignmentError("fainter stars need the frame, a table of stars was given")
        faint = detect_stars(self.images[k], threshold=0.7 * self.threshold, mask=self.mask)
        alignment = align(
            faint, self.tables[self.reference], tolerance=1.5 * self.tolerance,
            max_rms=1.5 * self.max_rms,
        )  # fmt: skip
        self.tables[k] = faint
        return replace(alignment, method="stars, looser")

    def through(self, k, known):
        """Match with an aligned neighbour, which may show what the reference does not."""
        for other in self._neighbours(k, known):
            try:
                step = align(
                    self.tables[k], self.tables[other], tolerance=self.tolerance,
                    max_rms=self.max_rms,
                )  # fmt: skip
            except AlignmentError:
                continue
            whole = step.then(known[other])
            return replace(whole, method=f"stars, through {self._name(other)}")
        raise AlignmentError("nor do its stars match those of an aligned frame near in time")

    def by_nebula(self, k, _known):
        """Compare what the images show beside stars."""
        pair = self.images[k], self.images[self.reference]
        if any(isinstance(image, Table) for image in pair):
            raise AlignmentError("nebula needs the frames, a table of stars was given")
        return match_nebula(*pair, tolerance=self.tolerance)

    def confirmed(self, k, known):
        """Borrow a neighbour's transform that the frame's few stars fit."""
        stars = stars_of(self.tables[k], {})
        neighbours = self._neighbours(k, known)
        ny, nx = stars.shape
        best = None
        for other in neighbours:
            if stars_of(self.tables[other], {}).shape != stars.shape:
                continue
            start = known[other].matrix
            there = stars_of(self.tables[self.reference], {})
            i, j = _match.mutual_matches(_match.apply(start, stars.xy), there.xy, 1.5)
            if len(i) == 0:
                continue
            p = len(there.xy) * np.pi * 1.5**2 / (nx * ny)
            chance = _match.chance(len(i), len(stars.xy), p, free=0, hypotheses=len(neighbours))
            if best is None or chance < best[0]:
                best = chance, other, i, j, there
        if best is None or best[0] > MAX_CHANCE_BORROWED or 2 * len(best[2]) < len(stars.xy):
            raise AlignmentError("its few stars do not confirm the transform of a neighbour")
        chance, other, i, j, there = best
        variance = stars.variance[i] + there.variance[j]
        turn = known[other].matrix[:2, :2]
        residual = there.xy[j] - stars.xy[i] @ turn.T
        weights = 1 / variance / (1 / variance).sum()
        matrix = known[other].matrix.copy()
        matrix[:2, 2] = weights @ residual
        covariance = known[other].covariance.copy()
        covariance[[2, 3], [2, 3]] += 1 / (1 / variance).sum()
        rms = float(np.sqrt(((residual - matrix[:2, 2]) ** 2).mean()))
        return Alignment(
            matrix, covariance, rms, len(i), f"borrowed from {self._name(other)}, "
            f"confirmed by {len(i)} star{'s' * (len(i) != 1)}", known[other].flip,
            len(i) / len(stars.xy), chance,
        )  # fmt: skip

    def between(self, k, known):
        """Borrow from the frames before and after where nothing moved."""
        aligned = sorted(
            (o for o, a in enumerate(known) if isinstance(a, Alignment)),
            key=lambda o: self.times[o],
        )
        before = [o for o in aligned if self.times[o] <= self.times[k]]
        after = [o for o in aligned if self.times[o] > self.times[k]]
        ny, nx = stars_of(self.tables[k], {}).shape
        x, y = np.array([0, nx - 1, 0, nx - 1]), np.array([0, 0, ny - 1, ny - 1])

        def apart(a, b):
            return float(np.abs(np.array(known[a](x, y)) - np.array(known[b](x, y))).max())

        if not before or not after:
            raise AlignmentError("no aligned frames before and after it to borrow from")
        first, last = before[-1], after[0]
        steps = [apart(a, b) for a, b in pairwise(aligned)]
        if max(apart(first, last), *steps) > MAX_DRIFT:
            raise AlignmentError(
                f"the frames before and after are {apart(first, last):.1f} pix apart, steps in "
                f"the group up to {max(steps):.1f}: with more than {MAX_DRIFT} nothing is "
                "borrowed without stars"
            )
        matrix = (known[first].matrix + known[last].matrix) / 2
        covariance = (known[first].covariance + known[last].covariance) / 2
        covariance[[2, 3], [2, 3]] += (0.1 + max(steps)) ** 2
        return Alignment(
            matrix, covariance, 0.0, 0,
            f"borrowed from {self._name(first)} and {self._name(last)}", known[first].flip,
        )  # fmt: skip

    def _neighbours(self, k, known):
        others = [
            o for o, a in enumerate(known) if isinstance(a, Alignment) and o != self.reference
        ]
        others.sort(key=lambda o: abs(self.times[o] - self.times[k]))
        same = [o for o in others if self.labels[o] == self.labels[k]][:NEIGHBOURS]
        rest = [o for o in others if self.labels[o] != self.labels[k]][:NEIGHBOURS]
        return same + rest

    def _name(self, k):
        return name_of(self.tables[k])
