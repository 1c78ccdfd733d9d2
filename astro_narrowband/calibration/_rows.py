"""The arithmetic of calibration, on a few rows at a time."""

import numpy as np

from astro_narrowband._engine.frames import row_bands
from astro_narrowband.noise import expected_variance, mirror_border

#: Pixels that are worked on at a time, in whole rows: with fewer, threads wait for each other more
#: than the cache gives.
PIXELS = 1 << 18


def calibrate_rows(calibrated, rows, out):
    """
    Calibrate some rows of a frame.

    Parameters
    ----------
    calibrated : `~astro_narrowband.calibration.CalibratedFrame`
    rows : slice
    out : `~astro_narrowband._engine.frames.Band`
        Arrays for data, variance (or None) and mask of these rows.
    """
    ny, nx = calibrated.shape
    # One row more on either side, for the neighbours. Asked for at once, the tiles find them.
    calibrated.recipe.planes(slice(max(rows.start - 1, 0), min(rows.stop + 1, ny)))
    n_rows = min(max(4, PIXELS // nx), rows.stop - rows.start)
    tile = _Tile(calibrated, n_rows)
    for band in row_bands(rows.stop - rows.start, n_rows):
        frame_rows = slice(rows.start + band.start, rows.start + band.stop)
        tile.work(frame_rows, *(None if plane is None else plane[band] for plane in out))


class _Tile:
    """What one frame's tiles have in common, and arrays to work in."""

    def __init__(self, calibrated, n_rows):
        self.frame = calibrated
        shape = (n_rows + 2, calibrated.shape[1] + 2)
        self.image, self.bad = np.empty(shape, np.float32), np.empty(shape, bool)
        self.spare = np.empty((n_rows, shape[1]), np.float32)
        self.current = np.empty((n_rows + 2, calibrated.shape[1]), np.float32)

    def work(self, rows, data, variance, mask):
        """Calibrate one tile; ``variance`` may be None."""
        recipe, exposure = self.frame.recipe, self.frame.exposure
        detector, ny = recipe.detector, self.frame.shape[0]
        n_rows = rows.stop - rows.start
        wide = slice(max(rows.start - 1, 0), min(rows.stop + 1, ny))
        ends = {"top": wide.start == rows.start, "bottom": wide.stop == rows.stop}
        # With a border of one pixel, of which the frame fills what it has.
        image, bad = self.image[: n_rows + 2], self.bad[: n_rows + 2]
        place = slice(int(ends["top"]), int(ends["top"]) + wide.stop - wide.start)
        electrons, flagged = image[place, 1:-1], bad[place, 1:-1]
        offset, rate, weight, known = recipe.planes(wide)
        inner = slice(rows.start - wide.start, rows.stop - wide.start)

        raw = self.frame.frame.read(wide)
        counts = self.frame.frame.raw_counts(wide, raw.data)
        np.greater_equal(counts, np.float32(detector.saturation), out=flagged)
        for plane in (raw.mask, known):
            if plane is not None:
                flagged |= plane
        current = None
        if offset is None:
            np.copyto(electrons, raw.data)
        else:
            current = np.multiply(rate, np.float32(exposure), out=self.current[: len(rate)])
            # Where the dark of this exposure was measured it does not follow its line.
            rest = recipe.dark.rest_at(exposure, wide)
            if rest is not None:
                current += rest
            pixels, dark, _ = recipe.dark.measured_at(exposure, wide)
            current.ravel()[pixels] = dark - offset.ravel()[pixels]
            np.subtract(raw.data, offset, out=electrons)
            electrons -= current
            current = current[inner]
        if weight is None:
            electrons *= np.float32(detector.gain)
        else:
            electrons *= weight
            weight = weight[inner]
        np.multiply(electrons[inner], np.float32(1 / exposure), out=data)
        np.copyto(mask, flagged[inner])
        if variance is None:
            return
        any_bad = flagged.any()
        if any_bad:
            y, x = np.divmod(np.flatnonzero(flagged), electrons.shape[1])
            electrons[y, x] = 0
            mirror_border(bad, **ends)
        mirror_border(image, **ends)
        expected_variance(
            image,
            gain=detector.gain,
            floor=detector.floor,
            weight=weight,
            dark=current,
            bad=bad if any_bad else None,
            scale=1 / exposure**2,
            out=variance,
            spare=self.spare[:n_rows],
        )
