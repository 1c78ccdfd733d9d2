"""Panels of a mosaic under one name, told apart by where the telescope pointed."""

import math
from itertools import combinations, pairwise

import numpy as np
from astropy.coordinates import angular_separation

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
    if len(rows) < 2:
        return [rows] if rows else []
    from scipy.cluster.hierarchy import fcluster, linkage

    pointings = np.radians([row.pointing for row in rows])
    apart = [angular_separation(*one, *other) for one, other in combinations(pointings, 2)]
    tree = linkage(np.degrees(apart), "single")
    labels = fcluster(tree, _limit(rows, tree[:, 2]), "distance").tolist()
    clusters = {}
    for row, label in zip(rows, labels, strict=True):
        clusters.setdefault(label, []).append(row)
    return list(clusters.values())


def _limit(rows, links):
    """How far apart two lights of one panel may be [deg]; ``links`` join all of them, rising."""
    fields = [row.pixel_scale * min(row.shape) for row in rows if not math.isnan(row.pixel_scale)]
    if fields:
        return PART_OF_FIELD * min(fields)
    # Dithers, and the steps between panels.
    for shorter, longer in pairwise(np.maximum(links, 5 / 3600)):
        if longer > max(STEP * shorter, LEAST_STEP):
            return math.sqrt(shorter * longer)
    return math.inf
