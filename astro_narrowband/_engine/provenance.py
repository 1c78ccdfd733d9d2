"""When the frames of a product were taken, and what it was made with: cards that are true of it."""

from importlib.metadata import version

import numpy as np
from astropy.time import Time, TimeDelta

from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.headers import KEYWORDS, exposures_in, read_date, read_exposure
from astro_narrowband.exceptions import InputError


def write_creator(header):
    """Write CREATOR and the versions of what a result rests on."""
    header["CREATOR"] = (f"astro_narrowband {version('astro-narrowband')}", "software")
    for keyword, package in (("VCCDPROC", "ccdproc"), ("VASTROPY", "astropy")):
        header[keyword] = (version(package), f"version of {package}")


def without_file(header):
    """Return a copy of a header without what it says of how its file is written."""
    header = header.copy()
    for key in ("BUNIT", "BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM"):
        header.remove(key, ignore_missing=True)
    return header


def drop_camera(header):
    """
    Take out gain, read noise and saturation of single raw frames.

    Programs that read them (SExtractor takes its gain from GAIN) would give errors that
    are wrong by factors.
    """
    for what in ("egain", "gain", "noise", "saturation"):
        for keyword in KEYWORDS[what]:
            header.remove(keyword, ignore_missing=True, remove_all=True)


def write_dates(header, headers, weights=None):
    """
    Write DATE-BEG, DATE-END, DATE-AVG and MJD-OBS of all frames that a product is made of.

    DATE-OBS is the start of the first. What one frame does not say is not written.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`
        Changed in place.
    headers : sequence of `~astropy.io.fits.Header`
        Of the frames.
    weights : array, optional
        Of the frames, for DATE-AVG; default is equal ones.
    """
    for keyword in ("DATE-BEG", "DATE-END", "DATE-AVG", "MJD-OBS", "MJD-BEG", "MJD-END", "MJD-AVG"):
        header.remove(keyword, ignore_missing=True, remove_all=True)
    spans = [_span(h) for h in headers]
    if not spans or None in spans:
        return
    begin, end = (Time([span[k] for span in spans]) for k in (0, 1))
    middle = begin + (end - begin) / 2
    days = np.average((middle - begin[0]).to_value("day"), weights=weights)
    mean = begin[0] + TimeDelta(days, format="jd", scale="tai")
    for keyword, time, comment in (
        ("DATE-OBS", begin.min(), "UTC, start of the first exposure"),
        ("DATE-BEG", begin.min(), "UTC, start of the first exposure"),
        ("DATE-AVG", mean, "UTC, weighted mean of middles"),
        ("DATE-END", end.max(), "UTC, end of the last exposure"),
    ):
        set_card(header, keyword, Time(time, scale="utc", precision=3).isot, comment)
        # Without it astropy's WCS warns that it had to be computed.
        day = keyword.replace("DATE", "MJD")
        header[day] = (round(float(time.mjd), 8), f"[d] of {keyword}")


def _span(header):
    """Start and end of an exposure, or None where a header does not say both."""
    try:
        exposure = read_exposure(header) if exposures_in(header) else 0.0
        begin = Time(read_date(header), format="isot", scale="utc")
    except (InputError, ValueError, TypeError):
        return None
    return begin, begin + TimeDelta(exposure, format="sec")
