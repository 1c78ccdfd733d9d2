"""The noise of shared masters by another way than the package's: as independent amplitudes."""

import numpy as np

from astro_narrowband.calibration._recipe import divisor


def shared_modes(frame, rows):
    """
    Amplitudes [electron/s] of what a frame shares with others, (3, n_rows, nx).

    Two of the dark (offset and rate), one of the flat: two frames have the same noise in mode k
    at one detector pixel, times their amplitudes.
    """
    recipe = frame.recipe
    out = np.zeros((3, rows.stop - rows.start, frame.shape[1]), np.float32)
    if recipe.dark is not None:
        out[:2] = recipe.dark.modes(frame.exposure, rows)
        out[:2] *= np.float32(recipe.detector.gain / frame.exposure)
    if recipe.flat is not None:
        flat = recipe.flat.read(rows)
        plane, _ = divisor(flat)
        out[:2] /= plane
        if flat.variance is not None:
            out[2] = np.sqrt(flat.variance) / plane * frame.read(rows).data
    return out


def common_variance(shared, weights):
    """Variance that shared masters leave in a weighted mean: amplitudes add up, not squares."""
    weights = np.asarray(weights, float)
    mean = sum(w * np.asarray(s, float) for w, s in zip(weights, shared, strict=True))
    return np.sum((mean / weights.sum()) ** 2, axis=0)
