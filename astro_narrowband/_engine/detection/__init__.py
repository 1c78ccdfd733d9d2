"""
Stars of one frame: where they are, how sure that is, and what is not a star.

Detection is made for registration: it is quick, it takes raw frames as well as
calibrated ones, and it would rather lose a faint star than keep a hot pixel.
The arithmetic is float32 numpy on bands of rows that fit in the cache.
"""

import math

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._engine.detection import stamps
from astro_narrowband._engine.detection._sky import SkyFree, measure_sky
from astro_narrowband._engine.detection.search import binned_candidates, candidates
from astro_narrowband._engine.door import door, real
from astro_narrowband._engine.frames import HeldFrame, as_frame
from astro_narrowband._engine.validate import as_mask


@door(saturation=real(), gain=real(above=0))
def detect_stars(
    image,
    *,
    threshold=5.0,
    n_brightest=500,
    fwhm=None,
    mask=None,
    saturation=None,
    gain=None,
    blends=False,
):
    """
    Find the stars of a frame and measure their positions.

    Parameters
    ----------
    image : `~astropy.nddata.CCDData`, `~astro_narrowband.Frame` or path-like
        In any unit; raw frames are welcome. Its mask is applied and its
        variance used.
    threshold : float, optional
        Height above the local background, in units of the noise, in the image
        smoothed with a 5 x 5 binomial kernel.
    n_brightest : int, optional
        No more stars than this are returned.
    fwhm : float, optional
        Width of the stars [pix]. Default is to estimate it from the frame.
    mask : array_like of bool, (ny, nx), optional
        Pixels not to be used, besides the image's own mask: known hot pixels.
    saturation : float, optional
        Level, in the unit of the image, from which a pixel is saturated.
        Flat-topped stars are recognised without it.
    gain : float, optional
        Electrons per unit of the image, for the photon noise in the position
        errors where the image has no variance. Default is 1 where the unit is
        electron; otherwise the noise of the sky alone is counted.
    blends : bool, optional
        Keep what is drawn out, or wide up to three times the width of the stars, and
        neighbours from 0.7 FWHM apart: for catalogues, which flag them. Default is
        to refuse them: registration wants single stars.

    Returns
    -------
    `~astropy.table.QTable`
        Brightest first: ``x_center``, ``y_center``, ``x_err``, ``y_err`` [pix]
        (windowed centroids, the first pixel's centre is 0, 0); ``flux``,
        ``flux_err`` (in a circle of 1.5 FWHM), ``peak`` (unit of the image);
        ``fwhm`` [pix]; ``roundness`` (0 is round, 1 a line); ``sharpness``
        (mean of the eight pixels around the brightest over that one: 0 for a
        hot pixel, 1 for a plateau); ``snr``; ``saturated``. Its ``meta`` has
        ``name``, ``shape``, ``sky`` (median), ``sky_rms`` (of one pixel),
        ``fwhm`` (median of the good stars, NaN where there are none),
        ``n_candidates`` and ``n_rejected`` (a dict: reason to number).

    Raises
    ------
    InputError
        If an argument cannot be used. A frame without stars gives an empty
        table, not an error.

    Notes
    -----
    A candidate is refused as ``sharp`` where its light sits in one pixel or
    one line of pixels, or is much narrower than this frame's stars (hot
    pixels, cosmic rays); as ``wide`` or ``long`` where it is much wider or
    more drawn out than they are (nebula, trails); as ``masked`` where unusable
    pixels hold a tenth of its window or more; and at the ``edge``.

    The window of the centroid is a Gaussian as wide as the stars, and the
    errors are the propagated noise of its pixels, after [1]_. Stars narrower
    than 1.5 pixel cannot be told from hot pixels reliably and are mostly lost;
    blended stars are not separated below one FWHM.

    References
    ----------
    .. [1] Bertin, E., SExtractor documentation, "Windowed positional parameters".

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import detect_stars
    >>> y, x = np.mgrid[:100, :120]
    >>> image = np.random.default_rng(1).normal(10.0, 1.0, (100, 120))
    >>> image += 500 * np.exp(-((x - 40.3) ** 2 + (y - 60.8) ** 2) / 4.0)
    >>> stars = detect_stars(CCDData(image, unit="electron"))
    >>> len(stars), bool(abs(stars["x_center"][0].value - 40.3) < 0.02)
    (1, True)
    """
    frame = as_frame(image)
    held = frame if isinstance(frame, HeldFrame) else HeldFrame(frame)
    bad = held.mask
    if mask is not None:
        mask = as_mask(mask, frame.shape)
        bad = mask if bad is None else bad | mask
    if gain is None and frame.unit == u.electron:
        gain = 1.0
    sky, rms = measure_sky(held.data, bad)
    if not np.isfinite(rms).any():
        return _table(frame, None, math.nan, math.nan, math.nan, 0, {})
    level = float(np.median(sky))
    image = SkyFree(held.data, bad, sky)
    peaks = candidates(image, rms, threshold)
    if saturation is not None:
        saturation -= level
    limits = {"n_brightest": n_brightest, "saturation": saturation, "gain": gain, "blends": blends}
    rejected = {}
    stars, width = stamps.measure(image, held.variance, peaks, rejected, fwhm=fwhm, **limits)
    if width > 5.5 and fwhm is None:
        # The kernel of the search is too narrow for such stars: search the binned image.
        rejected = {}
        peaks = binned_candidates(image, rms, threshold, int(width // 2.5))
        stars, width = stamps.measure(image, held.variance, peaks, rejected, fwhm=width, **limits)
    return _table(frame, stars, level, float(np.median(rms)), width, len(peaks[0]), rejected)


def _table(frame, stars, sky, rms, fwhm, n_candidates, rejected):
    units = {"x_center": u.pix, "y_center": u.pix, "x_err": u.pix, "y_err": u.pix, "fwhm": u.pix}
    if frame.unit is not None:
        units |= dict.fromkeys(("flux", "flux_err", "peak"), frame.unit)
    table = QTable()
    for name in stamps.COLUMNS:
        if stars is None:
            values = np.zeros(0, bool if name == "saturated" else float)
        else:
            values = stars[name]
        table[name] = values * units[name] if name in units else values
    table.meta = {
        "name": frame.name,
        "shape": tuple(frame.shape),
        "sky": sky,
        "sky_rms": rms,
        "fwhm": fwhm,
        "n_candidates": n_candidates,
        "n_rejected": rejected,
    }
    return table
