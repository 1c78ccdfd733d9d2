"""
Whether frames that nothing says were registered show the same stars in the same places.

Private to `astro_narrowband.coaddition`.
"""

import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

from astro_narrowband.exceptions import AlignmentError
from astro_narrowband.registration import align

__all__ = ["check_registered"]

#: Stars of this signal to noise are compared; those no farther apart than this coincide [pix].
CLEAR, MATCH_RADIUS = 10.0, 2.0
#: Fewer stars do not tell; so many that all go astray are another field.
MIN_STARS, MANY = 3, 5
#: Frames with so large a part of their stars in place, and these no farther off [pix], are
#: registered: in the middle of a turned frame there are always stars that coincide.
IN_PLACE, CLOSE = 0.8, 0.5
#: With a smaller part than this they are not; nor where a corner is off by more than this [pix].
ASTRAY, MAX_OFFSET = 0.3, 1.0


def check_registered(frames, statistics, reference):
    """
    Raise `AlignmentError` for a frame whose stars are not where those of the reference are.

    Frames with an alignment, or with the cards that `resample` writes, are believed.
    """
    base = _table(frames[reference], statistics[reference])
    for i, (frame, one) in enumerate(zip(frames, statistics, strict=True)):
        if i == reference or frame.alignment is not None or "REGDX" in frame.header:
            continue
        stars = _table(frame, one)
        if min(len(stars), len(base)) < MIN_STARS:
            continue
        away, share = _in_place(stars, base)
        if share >= IN_PLACE and away <= CLOSE:
            continue
        names = f"{frame.name}: was never registered: its stars are not where those of"
        names += f" {frames[reference].name} are"
        advice = "register the frames (align, resample) before they are coadded"
        try:
            measured = align(stars, base)
        except AlignmentError as error:
            if share < ASTRAY and min(len(stars), len(base)) >= MANY:
                raise AlignmentError(
                    f"{names} ({share:.0%} of them coincide), and no offset was found ({error}): "
                    f"{advice}, or leave out what is another field"
                ) from None
            continue
        (dx, dy), turn = measured.shift, measured.rotation
        corners = np.array([(0, 0), (frame.shape[1] - 1, frame.shape[0] - 1)], float).T
        moved = np.hypot(*(np.array(measured(*corners)) - corners)).max()
        if moved > MAX_OFFSET:
            raise AlignmentError(
                f"{names}: {measured.n_matched} stars match after a shift by ({dx:.2f}, {dy:.2f}) "
                f"pixel and a turn by {turn:.3f} degree: {advice}"
            )


def _table(frame, one):
    stars = one.stars[one.stars[:, 2] > CLEAR * one.stars[:, 3]]
    meta = {"name": frame.name, "shape": tuple(frame.shape), "fwhm": one.fwhm}
    columns = {"x_center": stars[:, 0], "y_center": stars[:, 1], "flux": stars[:, 2]}
    return Table(columns, meta=meta)


def _in_place(stars, base):
    """How far stars that coincide are apart (median), and how large a part of all they are."""
    one, two = (np.column_stack([t["x_center"], t["y_center"]]) for t in (stars, base))
    distance, _ = cKDTree(two).query(one, distance_upper_bound=MATCH_RADIUS)
    same = np.isfinite(distance)
    if not same.any():
        return 0.0, 0.0
    return float(np.median(distance[same])), same.sum() / min(len(one), len(two))
