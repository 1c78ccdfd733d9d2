"""
How the stars of each frame differ in shape from those of the median that judges outliers.

Private to `astro_narrowband.coaddition._coadd`. Seeing, guiding and focus make a star sharper,
rounder or a little elsewhere in one frame than in the next. To first order the
difference is a sum of derivatives of the image,

    y - m = a L + b m_x + c m_y + d (m_xx - m_yy) + e m_xy + f LL

(L the Laplacian of m, LL its Laplacian, which large changes of the seeing need)
with the same a to f on all stars of a frame: they are fitted here once for each
frame, on stars all over the image. What is left is so much smaller than the
difference itself that cosmic rays are seen on the wings and cores of stars, and
how much is left says what a frame may differ by.
"""

import math
from functools import cache, partial

import numpy as np

from astro_narrowband._engine.frames import Threads

#: Derivatives that are fitted.
N_TERMS = 6
#: Stamps have 2 * RADIUS + 1 pixels a side: 9 x 9 and what the structure there depends on.
RADIUS = 6
#: No more stars than this, in strips of so many rows: all pixels of a row are read.
MAX_STARS, N_STRIPS, STRIP = 40, 3, 48
#: Fewer pixels than this do not tell the shape of a frame's stars.
MIN_PIXELS = 60
#: Pixels count where the structure is this many sigma of their noise.
STRUCTURE = 15.0
#: Part of the structure that frames differ by in ways that are not fitted, at the least.
LEAST = 0.02
#: Frames may differ by so many times what nine in ten of their stars do, in that pixel of the
#: star where they do most. (Percentiles over all pixels miss the core: one pixel in forty.)
MARGIN, WITHIN = 1.5, 90
#: Of more stars than this, the one that differs most does not count.
ENOUGH = 5


def derivatives(image, pixels, width):
    """
    Return the derivatives of an image at some pixels, by differences over 5 x 5.

    Parameters
    ----------
    image : `~numpy.ndarray` of float32, (size,)
    pixels : `~numpy.ndarray` of int, (n,)
        Flat indices; beyond the edge the last pixel goes on.
    width : int
        Length of a row.

    Returns
    -------
    `~numpy.ndarray` of float32, (6, n)
        L, m_x, m_y, m_xx - m_yy, m_xy, LL
    """
    at = _around(image, pixels, width)
    centre, left, right, down, up = at(0, 0), at(0, -1), at(0, 1), at(-1, 0), at(1, 0)
    corners = at(-1, -1), at(1, 1), at(-1, 1), at(1, -1)
    far = at(0, -2) + at(0, 2) + at(-2, 0) + at(2, 0)
    xx, yy = left + right - 2 * centre, down + up - 2 * centre
    return np.stack(
        [
            xx + yy,
            0.5 * (right - left),
            0.5 * (up - down),
            xx - yy,
            0.25 * (corners[0] + corners[1] - corners[2] - corners[3]),
            20 * centre - 8 * (left + right + down + up) + 2 * sum(corners) + far,
        ]
    )


def noise_gain(shapes):
    """Variance of what shapes (n, 6) make of white noise, over that of the noise, (n,)."""
    return np.square(shapes @ _kernels()).sum(axis=1)


@cache
def _kernels():
    """The derivatives of one pixel, (6, 25)."""
    middle = np.array([12])
    each = [derivatives(one, middle, 5)[:, 0] for one in np.eye(25, dtype=np.float32)]
    return np.transpose(each)


def structure_at(image, pixels, width, spacing=1):
    """
    How much ``image`` changes around each of ``pixels``, within 2 times ``spacing``.

    The largest difference to 20 pixels around, ``spacing`` apart (5 x 5 without its
    corners); beyond the edge the last pixel goes on.
    """
    at = _around(image, pixels, width, 2 * spacing)
    centre = at(0, 0)
    largest = np.zeros(pixels.size, np.float32)
    for j in range(-2, 3):
        for i in range(-2, 3):
            if abs(j) + abs(i) not in (0, 4):
                change = at(j * spacing, i * spacing)
                change -= centre
                np.maximum(largest, np.abs(change, out=change), out=largest)
    return largest


def _around(image, pixels, width, reach=2):
    """A function that returns the pixels (j, i) rows and columns off, by up to ``reach``."""
    height = image.size // width
    y, x = np.divmod(pixels, width)
    last_y, last_x = height - reach, width - reach
    edge = np.flatnonzero((y < reach) | (y >= last_y) | (x < reach) | (x >= last_x))
    y, x = y[edge], x[edge]

    def at(j, i):
        place = pixels + (j * width + i)
        if edge.size:
            place[edge] = np.clip(y + j, 0, height - 1) * width + np.clip(x + i, 0, width - 1)
        return image[place]

    return at


def star_shapes(task, positions, best, workers):
    """
    Fit the shape of each frame's stars.

    Parameters
    ----------
    task : BandSum
        Frames, and how their rows are read onto the common scale.
    positions : `~numpy.ndarray`, (n, 2)
        x, y of stars on the grid, brightest first.
    best : `~numpy.ndarray` of int
        The frames whose median is the reference.
    workers : int
        Threads.

    Returns
    -------
    shapes : `~numpy.ndarray` of float32, (n_frames, 6)
        a to f of each frame; 0 where its stars do not tell.
    tolerance : `~numpy.ndarray`, (n_frames,)
        Part of the structure that the frame then still may differ by; NaN where
        its stars do not tell.
    """
    n = len(task.frames)
    shapes, tolerance = np.zeros((n, N_TERMS), np.float32), np.full(n, np.nan)
    strips = _strips(positions, task.shape)
    if not strips:
        return shapes, tolerance
    with Threads(workers) as pool:
        stamps = list(pool.map(partial(_stamps, task, strips), range(n)))
    # All stamps as one image, one below the other.
    side = 2 * RADIUS + 1
    middle = np.median([stamps[i][0] for i in best], axis=0).astype(np.float32)
    known = np.isfinite([stamps[i][0] for i in best]).all(axis=0)
    known &= np.isfinite(middle)
    known = known.reshape(-1, side, side).all(axis=(1, 2))
    inner = np.zeros((len(known), side, side), bool)
    inner[known, 2:-2, 2:-2] = True
    pixels = np.flatnonzero(inner)
    middle = np.where(np.isfinite(middle), middle, 0).ravel()
    change = structure_at(middle, pixels, side)
    terms = derivatives(middle, pixels, side)
    # Which pixel of which star each is.
    place, star = pixels % side**2, pixels // side**2
    for i, (data, variance) in enumerate(stamps):
        y, v = data.ravel()[pixels], variance.ravel()[pixels]
        use = np.flatnonzero(np.isfinite(y) & (change > STRUCTURE * np.sqrt(v)))
        if use.size < MIN_PIXELS:
            continue
        y, v = y[use] - middle[pixels[use]], v[use]
        shapes[i] = _fit(y, v, change[use], terms[:, use])
        rest = np.abs(y - shapes[i] @ terms[:, use])
        excess = np.full((len(known), side**2), np.nan)
        excess[star[use], place[use]] = np.maximum(rest - 2.0 * np.sqrt(v), 0.0) / change[use]
        tolerance[i] = _usual(excess)
    return shapes, tolerance


def _usual(excess):
    """What stars differ by in the pixel where they do most, of excesses (n_stars, n_pixels)."""
    n = np.isfinite(excess).sum(axis=0)
    often = n >= max(3, 0.3 * n.max())
    if not often.any():
        return math.inf
    # The largest is that of a cosmic ray, if there was one in that pixel of a star.
    excess, n = np.sort(excess[:, often], axis=0), n[often]
    full = np.flatnonzero(n > ENOUGH)
    excess[n[full] - 1, full] = np.nan
    most = np.nanpercentile(excess, WITHIN, axis=0).max()
    return max(LEAST, MARGIN * float(most))


def _strips(positions, shape):
    """Strips of rows with many bright stars: a list of (rows, x, y of the stars there)."""
    x, y = (np.rint(positions[:, k]).astype(int) for k in (0, 1))
    good = (x >= RADIUS) & (x < shape[1] - RADIUS) & (y >= RADIUS) & (y < shape[0] - RADIUS)
    x, y = x[good], y[good]
    strips, n = [], 0
    while len(y) and len(strips) < N_STRIPS and n < MAX_STARS:
        # The strip that starts with the star that most others follow.
        follow = [((y >= start) & (y < start + STRIP - 2 * RADIUS)).sum() for start in y]
        start = y[int(np.argmax(follow))]
        inside = (y >= start) & (y < start + STRIP - 2 * RADIUS)
        rows = slice(int(start) - RADIUS, int(y[inside].max()) + RADIUS + 1)
        strips.append((rows, x[inside], y[inside]))
        n += inside.sum()
        x, y = x[~inside], y[~inside]
    return strips


def _stamps(task, strips, i):
    """Stamps of one frame's stars and their variance, (n_stars, side, side)."""
    step = np.arange(-RADIUS, RADIUS + 1)
    data, variance = [], []
    for rows, x, y in strips:
        size = (rows.stop - rows.start) * task.shape[1]
        planes = np.empty((2, size), np.float32)
        task.read(i, rows, *planes)
        at = (y[:, None, None] - rows.start + step[:, None]) * task.shape[1]
        at = at + x[:, None, None] + step
        data.append(planes[0][at])
        variance.append(planes[1][at])
    return np.concatenate(data), np.concatenate(variance)


def _fit(difference, variance, change, terms):
    """Coefficients by least squares that outliers do not pull."""
    floor = variance + (LEAST * change) ** 2
    weight = 1.0 / floor
    for _ in range(8):
        weighted = terms * weight
        normal = (weighted @ terms.T).astype(float)
        normal += 1e-9 * np.trace(normal) * np.eye(N_TERMS)
        solution = np.linalg.solve(normal, weighted @ difference)
        rest = difference - solution @ terms
        weight = 1.0 / (floor * (1.0 + rest**2 / (4.0 * floor)) ** 2)
    return solution
