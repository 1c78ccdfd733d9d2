"""
Outliers among registered frames: a robust reference, and a close look at what differs.

Works on float32 planes in tiles that fit the cache; what concerns few pixels is
done on lists of pixels. No pixel's result depends on how the rows were cut into
bands or tiles. Private to `astro_narrowband.coaddition._coadd`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from astro_narrowband._engine.stacking.network import select_rows
from astro_narrowband.coaddition._shapes import derivatives, noise_gain, structure_at

#: Pixels worked on at a time: with fewer, threads wait for each other more than the cache gives.
TILE = 1 << 18
#: Frames that judge all others: the best so many.
PANEL = 15
#: Rows around a pixel on which its verdict depends, besides those of the structure: 2 of the
#: neighbours of outliers.
REACH = 2
#: What differs by so many times what is allowed takes the interpolated pixels beside it along.
STRONG = 1.5
#: Of two frames, how much more the structure of the blurred one must allow, by the ratio of the
#: stars' heights less 1.
PEAK_TO_SLOPE = 1.7
#: Steps to the pixels beside one, and to all around it, (rows, columns).
BESIDE = ((-1, 0), (0, -1), (0, 1), (1, 0))
AROUND = (*BESIDE, (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class Rules:
    """What an outlier is: see `Panel.outliers`."""

    n_sigma: float = 4.0
    n_sigma_neighbour: float = 2.0
    #: Pixels between those that tell the structure: a third of the seeing.
    spacing: int = 1


def tolerances(gradient_tolerance, fwhm):
    """
    Part of the structure that each of the frames may differ by, where its stars do not tell.

    Twice ``gradient_tolerance`` of two frames, of which neither can be told to be the odd one, and
    more where one is sharper by a quarter or more: its stars are higher than all of the other's.
    """
    if len(fwhm) != 2:
        return np.full(len(fwhm), gradient_tolerance)
    sharper = PEAK_TO_SLOPE * ((fwhm.max() / fwhm.min()) ** 2 - 1.0)
    return np.full(2, 2.0 * gradient_tolerance * np.fmax(sharper, 1.0))


def structure_spacing(fwhm):
    """
    Pixels between those that tell the structure, from the seeing of the frames.

    A star that is 3 pixels wide has changed by most of its height within 2; a wide
    one has not, and frames of different seeing would seem to differ by more than it does.
    """
    known = fwhm[np.isfinite(fwhm)]
    return max(1, round(float(np.median(known)) / 3.0)) if known.size else 1


class Judged(NamedTuple):
    """
    A frame that is judged.

    Attributes
    ----------
    data, variance : `~numpy.ndarray` of float32, (size,)
        ``data`` is +inf where masked.
    background : float
        Variance in blank sky.
    shape : `~numpy.ndarray` of float32, (6,)
        How its stars differ from those of the reference, see `astro_narrowband.coaddition._shapes`.
    tolerance : (float, float)
        Part of the structure that the frame may differ by all the same, and where
        the reference is not the one that the shape holds for.
    interpolated : bool
        Pixels are mixtures of those of the camera.
    """

    data: np.ndarray
    variance: np.ndarray
    background: float
    shape: np.ndarray
    tolerance: tuple
    interpolated: bool


class Panel:
    """
    The frames that judge whether a pixel of any frame belongs to the rest.

    Parameters
    ----------
    stack, variance : `~numpy.ndarray` of float32, (n, size)
        The panel's frames; ``stack`` is +inf where masked.
    bad : list of `~numpy.ndarray` of int
        For each frame the flat indices of its masked pixels.
    background, shapes : `~numpy.ndarray`, (n, ...)
        Of each frame, see `Judged`.
    reference : `~numpy.ndarray` of float32, (size,)
        From `panel_reference`; mended in place.
    width : int
        Length of a row.
    rules : Rules
    """

    def __init__(self, stack, variance, bad, background, *, reference, shapes, width, rules):
        self.stack, self.variance = stack, variance
        self.background, self.shapes = background, shapes
        self.width = width
        self.rules = rules
        self.pull = _capped(1.0 / np.sqrt(background))
        best = best_frames(background)
        self.reference = reference
        self.candidates = [self._differing(*frame) for frame in zip(stack, variance, strict=True)]
        self._repair()
        self.unlike = self._unlike([bad[i] for i in best])
        pixels, steepness = self._steep(variance[best[0]])
        like = ~self.unlike[pixels]
        self.steep, self.steepness = pixels[like], steepness[like]

    def outliers(self, frame, member=None):
        """
        Find the pixels of a frame that do not belong to the rest.

        Parameters
        ----------
        frame : Judged
        member : int, optional
            Place of the frame in the panel, if it is one of it.

        Returns
        -------
        `~numpy.ndarray` of int
            Flat indices, sorted.

        Notes
        -----
        A pixel is an outlier where::

            |y - m| > n_sigma * sigma + tolerance * G

        Where there is structure, what the shape of its stars makes of the reference
        is first taken from each frame. m is the median of the panel, weighted with
        1 / sigma, so that short exposures among long ones do not blur it.
        ``sigma**2`` is the variance of y (not more than those of the panel let expect:
        a cosmic ray must not raise its own limit) plus that of m itself,
        ``1.1 (pi / 2) sum(a**2) / sum(a / sigma)**2`` with a the median's weights. G
        is the largest change of the reference within 2/3 of the seeing (2 pixels at
        least), less 3 sigma of its noise: where a star is sharper in one frame than in
        the others it differs most on its peak, and there the slope is nil. A pixel next
        to an outlier is one from ``n_sigma_neighbour`` on, and so are those next to it.
        The four beside a strong outlier of a frame that is interpolated go with it: they
        have part of the same hit, or of the next one, which the dark rim of the kernel
        may hide.

        The unweighted reference only singles out the pixels that are looked at
        so closely.
        """
        if member is None:
            hits = self._differing(frame.data, frame.variance)
        else:
            hits = self.candidates[member]
        # What the shape of its stars makes of the reference may hide an outlier of this frame.
        hidden = self.steep[self.steepness * np.abs(frame.shape[0]) > self.rules.n_sigma]
        if self.doubtful.size or hidden.size:
            hits = union(hits, self.doubtful, hidden)
        hits = hits[np.isfinite(frame.data[hits])]
        if not hits.size:
            return hits
        difference, allowed = self._look(frame, hits, self.rules.n_sigma)
        out = hits[difference > allowed]
        if not out.size:
            return out
        outlying = _grown(out, self.width, frame.data.size, lambda near: self._near(frame, near))
        if not frame.interpolated:
            return outlying
        strong = hits[difference > STRONG * allowed]
        beside = _around(strong, self.width, frame.data.size, BESIDE)
        return union(outlying, beside[np.isfinite(frame.data[beside])])

    def _differing(self, data, variance):
        """Pixels of a frame that differ enough from the reference to be looked at."""
        size = data.size
        beyond = np.float32((0.9 * self.rules.n_sigma) ** 2)
        spare, limit = (np.empty(min(TILE, size), np.float32) for _ in range(2))
        hits = [np.empty(0, np.intp)]
        with np.errstate(invalid="ignore"):
            for start in range(0, size, TILE):
                tile = slice(start, min(start + TILE, size))
                square, allowed = spare[: tile.stop - start], limit[: tile.stop - start]
                np.subtract(data[tile], self.reference[tile], out=square)
                np.multiply(square, square, out=square)
                np.multiply(variance[tile], beyond, out=allowed)
                hit = np.flatnonzero(square > allowed)
                if hit.size:
                    hits.append(hit + start)
        return np.concatenate(hits)

    def _repair(self):
        """
        Take the median of the whole panel where the reference itself may be hit.

        Cosmic rays in most of the few frames that it is made of put it above
        the others: these then lie below it, two or more of them (of two frames, one).
        """
        below = np.zeros(self.reference.size, np.uint8)
        for data, hits in zip(self.stack, self.candidates, strict=True):
            below[hits[data[hits] < self.reference[hits]]] += 1
        pixels = np.flatnonzero(below >= (1 if len(self.stack) == 2 else 2))
        if pixels.size:
            values = self.stack[:, pixels]
            weights = np.where(np.isfinite(values), self.pull[:, None], 0.0)
            self.reference[pixels] = _weighted_median(values, weights)
        self.doubtful = pixels

    def _unlike(self, bad):
        """
        Where the reference is not the median of the best frames, as one of them is masked.

        With all pixels whose derivatives such a pixel changes: the core of a star that is
        saturated in some frames is that of the others.
        """
        masked = np.zeros((self.reference.size // self.width, self.width), bool)
        for pixels in bad:
            masked.ravel()[pixels] = True
        return _widened(_widened(masked).T).T.ravel()

    def _steep(self, variance):
        """Pixels where the reference is curved, and how many sigma of a noise that is."""
        most = np.abs(self.shapes[:, 0]).max()
        image = self.reference.reshape(-1, self.width)
        noise = variance.reshape(image.shape)
        pixels, steepness = [np.empty(0, np.intp)], [np.empty(0, np.float32)]
        rows = max(1, TILE // self.width)
        for start in range(1, len(image) - 1 if most > 0 else 0, rows):
            inner = slice(start, min(start + rows, len(image) - 1)), slice(1, -1)
            curve = image[inner] * np.float32(-4.0)
            curve += image[start - 1 : inner[0].stop - 1, 1:-1]
            curve += image[start + 1 : inner[0].stop + 1, 1:-1]
            curve += image[inner[0], :-2]
            curve += image[inner[0], 2:]
            curve *= curve
            least = noise[inner] * np.float32((self.rules.n_sigma / most) ** 2)
            with np.errstate(invalid="ignore"):
                y, x = np.divmod(np.flatnonzero(curve > least), self.width - 2)
            pixels.append((y + start) * self.width + x + 1)
            sigma = np.sqrt(np.maximum(noise[y + start, x + 1], np.finfo(np.float32).tiny))
            steepness.append(np.sqrt(curve[y, x]) / sigma)
        return np.concatenate(pixels), np.concatenate(steepness)

    def _look(self, frame, pixels, n_sigma):
        """How much ``pixels``, none of them masked, differ from the rest, and may differ."""
        values, noise = self.stack[:, pixels], self.variance[:, pixels]
        good = np.isfinite(values)
        weights = np.where(good, self.pull[:, None], 0.0)
        # Nothing to compare with: only this frame shows the pixel.
        alone, two = good.sum(axis=0) == 0, good.sum(axis=0) == 2
        weights[:, alone] = 1.0
        # Of two, only the brighter can be wrong, whichever has the weight.
        weights[:, two] = good[:, two]
        # The variance here over that in blank sky: cosmic rays raise their own and their
        # neighbours'. On a source it differs between short and long exposures, by 2 at most.
        relative = noise / self.background[:, None].astype(np.float32)
        usual = _lower_median(np.where(good, relative, np.inf), good.sum(axis=0))
        most = usual + np.maximum(usual - 1.0, 0.0) + np.float32(0.15)
        frame_variance = np.minimum(frame.variance[pixels], most * np.float32(frame.background))
        of_middle = 1.1 * (np.pi / 2) * (weights**2).sum(axis=0)
        of_middle /= (weights / np.sqrt(self.background)[:, None]).sum(axis=0) ** 2
        of_middle[two] = np.where(good, self.background[:, None], 0.0)[:, two].max(axis=0)
        of_middle = usual * of_middle.astype(np.float32)
        structure = structure_at(self.reference, pixels, self.width, self.rules.spacing)
        structure = np.maximum(structure - 3.0 * np.sqrt(of_middle), 0.0)
        own_values = frame.data[pixels]
        like = ~self.unlike[pixels]
        steep = np.flatnonzero((structure > 0) & like)
        if steep.size and self.shapes.any():
            terms = derivatives(self.reference, pixels[steep], self.width)
            values[:, steep] -= self.shapes @ terms
            own_values[steep] -= frame.shape @ terms
            # Derivatives are of an image with noise; the median may be any of the frames.
            gain = noise_gain(self.shapes - frame.shape).max()
            of_middle[steep] *= np.float32(1.0 + gain)
        middle = _weighted_median(values, weights)
        middle[alone] = own_values[alone]
        structure *= np.where(like, *np.float32(frame.tolerance))
        allowed = n_sigma * np.sqrt(frame_variance + of_middle) + structure
        return np.abs(own_values - middle), allowed

    def _near(self, frame, pixels):
        """Return those of ``pixels``, all next to an outlier, that are outliers as well."""
        n_sigma = self.rules.n_sigma_neighbour
        difference = frame.data[pixels] - self.reference[pixels]
        likely = np.abs(difference) > 0.8 * n_sigma * math.sqrt(0.5 * frame.background)
        likely &= np.isfinite(difference)
        pixels = pixels[likely]
        difference, allowed = self._look(frame, pixels, n_sigma)
        return pixels[difference > allowed]


def union(*indices):
    """Return the sorted union of arrays of indices: numpy's goes through a hash table."""
    both = np.sort(np.concatenate(indices))
    if both.size:
        both = both[np.append(True, both[1:] != both[:-1])]
    return both


def _capped(pull):
    """
    Weights of a median, capped.

    No frame has as much as all others together, and of five or more frames no
    two have: a cosmic ray in one (or two) of them is then always outvoted.
    """
    if len(pull) <= 2:
        return np.ones(len(pull))
    best = 1 if len(pull) < 5 else 2
    ordered = np.sort(pull)[::-1]
    return np.minimum(pull, 0.9 / best * ordered[best:].sum())


def best_frames(background):
    """The frames whose plain median has the least noise: an odd number of them."""
    order = np.argsort(background, kind="stable")
    inverse = np.cumsum(1.0 / np.sqrt(background[order]))
    sizes = np.arange(1, len(order) + 1)[::2]
    if len(sizes) > 1:
        sizes = sizes[1:]
    return np.sort(order[: sizes[np.argmin(sizes / inverse[sizes - 1] ** 2)]])


def panel_reference(stack, bad, background):
    """
    Return what a panel of frames shows, (size,): 0 where no frame is good.

    The median of the best frames of the panel, an odd number of them; where one of
    these is masked, the lower median of all that are good (cosmic rays only add:
    where they hit half of the frames the mean of the two middle values would lie
    between all frames and the sky).
    """
    best = best_frames(background)
    size = stack.shape[1]
    out = np.empty(size, np.float32)
    scratch = np.empty((len(best) + 1, min(TILE, size)), np.float32)
    middle = (len(best) - 1) // 2
    for start in range(0, size, TILE):
        tile = slice(start, min(start + TILE, size))
        rows = [plane[: tile.stop - start] for plane in scratch]
        spare = rows.pop()
        for row, i in zip(rows, best, strict=True):
            np.copyto(row, stack[i, tile])
        select_rows(rows, spare, (middle,))
        out[tile] = rows[middle]
    chosen = np.zeros(size, bool)
    for i in best:
        chosen[bad[i]] = True
    chosen = np.flatnonzero(chosen)
    for start in range(0, chosen.size, TILE):
        pixels = chosen[start : start + TILE]
        values = stack[:, pixels]
        out[pixels] = _lower_median(values, np.isfinite(values).sum(axis=0))
    return out


def _lower_median(values, n):
    """Lower median of the ``n`` finite values of each column, of none 0."""
    values = np.sort(values, axis=0)  # +inf, the masked ones, go last
    middle = values[np.maximum(n - 1, 0) // 2, np.arange(values.shape[1])]
    middle[n == 0] = 0.0
    return middle


def _weighted_median(values, weights):
    """Lower weighted median of each column; +inf has no weight."""
    order = np.argsort(values, axis=0, kind="stable")
    below = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    at = np.argmax(below >= 0.499999 * below[-1], axis=0)
    each = np.arange(values.shape[1])
    return values[order[at, each], each]


def _widened(plane):
    """Set, along the columns, the two pixels on either side of those that are."""
    out = plane.copy(order="K")
    for d in (1, 2):
        out[d:] |= plane[:-d]
        out[:-d] |= plane[d:]
    return out


def _around(pixels, width, size, steps):
    """Sorted union of ``pixels`` (sorted) moved by each of ``steps``, (rows, columns)."""
    y, x = np.divmod(pixels, width)
    near = []
    for j, i in steps:
        inside = (y + j >= 0) & (y + j < size // width) & (x + i >= 0) & (x + i < width)
        near.append(pixels[inside] + (j * width + i))
    return union(*near)


def _grown(pixels, width, size, test):
    """Add to ``pixels`` (sorted) those next to them that pass ``test``, twice."""
    new = pixels
    for _ in range(2):
        near = _around(new, width, size, AROUND)
        near = near[pixels[np.minimum(np.searchsorted(pixels, near), pixels.size - 1)] != near]
        new = test(near)
        pixels = union(pixels, new)
    return pixels
