"""
Sort a stack of frames, or find its median, by a network of minima and maxima.

A sorting network is a fixed list of pairs; each pair is put into order by one
`numpy.minimum` and one `numpy.maximum` over whole rows, which run at the speed
of the vector unit and let other threads run. Integers stay integers: nothing
is rounded, and what comes out does not depend on the order of the frames.

The networks are K. E. Batcher's merge exchange ("Sorting networks and their
applications", 1968; Knuth, The Art of Computer Programming, vol. 3, 5.2.2,
algorithm M), with n (log2 n)^2 / 4 pairs, pruned to what reaches the outputs
that are wanted. NaN must be replaced before: it would spread along the network.
"""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=32)
def sorting_network(n):
    """
    Return the pairs ``(i, j)``, i < j, that sort ``n`` values when exchanged in turn.

    Examples
    --------
    >>> from astro_narrowband._engine.stacking.network import sorting_network
    >>> sorting_network(3)
    ((0, 2), (0, 1), (1, 2))
    """
    pairs = []
    top = 1 << max(n - 1, 1).bit_length() - 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)


@lru_cache(maxsize=32)
def selection_network(n, wanted):
    """
    Return what is left of the sorting network when only some outputs matter.

    Parameters
    ----------
    n : int
    wanted : tuple of int
        The ranks (0 is the lowest) that are to be right.

    Returns
    -------
    tuple of (i, j, low, high)
        As `sorting_network`; ``low`` and ``high`` tell whether the minimum is
        needed at ``i`` and the maximum at ``j``.
    """
    needed = set(wanted)
    steps = []
    for i, j in reversed(sorting_network(n)):
        low, high = i in needed, j in needed
        if low or high:
            steps.append((i, j, low, high))
            needed |= {i, j}
    return tuple(reversed(steps))


def sort_rows(rows, spare):
    """
    Sort rows against each other, pixel by pixel, in place.

    Parameters
    ----------
    rows : list of `~numpy.ndarray`
        Of one shape and type; the list and the arrays are overwritten. On
        return ``rows[k]`` holds the k-th lowest value of every pixel.
    spare : `~numpy.ndarray`
        One more such array, overwritten.

    Returns
    -------
    `~numpy.ndarray`
        The array that is now spare (the buffers have changed places).

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.stacking.network import sort_rows
    >>> rows = list(np.array([[3, 1], [1, 5], [2, 0]]))
    >>> _ = sort_rows(rows, np.empty(2, int))
    >>> print(np.array(rows))
    [[1 0]
     [2 1]
     [3 5]]
    """
    minimum, maximum = np.minimum, np.maximum
    for i, j in sorting_network(len(rows)):
        a, b = rows[i], rows[j]
        minimum(a, b, out=spare)
        maximum(a, b, out=b)
        rows[i] = spare
        spare = a
    return spare


def select_rows(rows, spare, wanted):
    """
    Put the rows of the ranks ``wanted`` where `sort_rows` would; the others are spoilt.

    Parameters
    ----------
    rows, spare
        As for `sort_rows`.
    wanted : tuple of int

    Returns
    -------
    `~numpy.ndarray`
        The array that is now spare.
    """
    minimum, maximum = np.minimum, np.maximum
    for i, j, low, high in selection_network(len(rows), wanted):
        a, b = rows[i], rows[j]
        if not high:
            minimum(a, b, out=a)
        elif not low:
            maximum(a, b, out=b)
        else:
            minimum(a, b, out=spare)
            maximum(a, b, out=b)
            rows[i] = spare
            spare = a
    return spare
