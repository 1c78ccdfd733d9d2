"""Panels of a mosaic under one name, told apart by where the telescope pointed."""

import math
from itertools import pairwise

#: Lights whose centres lie farther apart than this part of the field are of two panels.
PART_OF_FIELD = 0.4
#: Where the field is not known: a step this many times the dithers, and at least so large [deg].
STEP, LEAST_STEP = 8.0, 40 / 3600


def panels(rows):
    """
    Return the name of the target of each light, by path: its object, and its panel.

    Parameters
    ----------
    rows : sequence of `~astro_narrowband.night.table.FrameRow`
        Lights.
    """
    names = {row.path: row.object for row in rows}
    for name in set(names.values()):
        pointed = [row for row in rows if row.object == name and row.pointing is not None]
        clusters = _clusters(pointed)
        if len(clusters) > 1:
            for k, cluster in enumerate(clusters, 1):
                names.update((row.path, f"{name} panel {k}") for row in cluster)
    return names


def _clusters(rows):
    """Lights that belong together, in the order of their paths; single linkage."""
    limit = _limit(rows)
    clusters = []
    for row in rows:
        near = [c for c in clusters if any(_separation(row, other) <= limit for other in c)]
        clusters = [c for c in clusters if c not in near]
        clusters.append([*(other for c in near for other in c), row])
    order = {row.path: i for i, row in enumerate(rows)}
    return sorted(clusters, key=lambda cluster: min(order[row.path] for row in cluster))


def _limit(rows):
    """How far apart two lights of one panel may be [deg]."""
    fields = [row.pixel_scale * min(row.shape) for row in rows if not math.isnan(row.pixel_scale)]
    if fields:
        return PART_OF_FIELD * min(fields)
    # The links of the shortest tree over all pointings: dithers, and the steps between panels.
    left, linked, links = list(rows[1:]), list(rows[:1]), []
    while left:
        length, k = min(
            (min(_separation(row, other) for other in linked), k) for k, row in enumerate(left)
        )
        links.append(max(length, 5 / 3600))
        linked.append(left.pop(k))
    for shorter, longer in pairwise(sorted(links)):
        if longer > max(STEP * shorter, LEAST_STEP):
            return math.sqrt(shorter * longer)
    return math.inf


def _separation(one, other):
    """Degrees between two pointings, for small angles."""
    (ra, dec), (ra2, dec2) = one.pointing, other.pointing
    across = (ra - ra2 + 180) % 360 - 180
    return math.hypot(across * math.cos(math.radians((dec + dec2) / 2)), dec - dec2)
