"""
What stands beside the pixels of a coadd: its header, WCS, self-test, and table of frames.

Private to `astro_narrowband.coaddition._coadd`.
"""

import copy

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.provenance import drop_camera, write_creator, write_dates
from astro_narrowband._engine.wcs import read_wcs
from astro_narrowband.coaddition._common_noise import noise_to_tell, undithered_noise
from astro_narrowband.confront import compare_noise
from astro_narrowband.exceptions import warn
from astro_narrowband.noise import SHARED_CARDS

#: Cards of a single frame that say nothing true of a coadd.
NOT_OF_COADD = ("REG", "CHECKSUM", "DATASUM", "BZERO", "BSCALE", "BLANK", "DARKPOL", "RESAMPLE",
                "EXPOSURE", "NEXTEND", "BUNIT", *SHARED_CARDS)  # fmt: skip

#: What a frame's transparency may be off by where nothing tells it: frames of one clear night
#: differ by as much.
UNKNOWN = 0.05


def wcs_of(frame):
    """The WCS of a frame, or None."""
    if frame.wcs is not None:
        return copy.deepcopy(frame.wcs)
    return read_wcs(frame.header, frame.name)


def write_header(header, task, reference, weights, planes, unit):
    """Write what `~astro_narrowband.coaddition.coadd` promises into the header of its reference."""
    for keyword in list(header):
        if keyword.startswith(NOT_OF_COADD):
            del header[keyword]
    w2v = task.weight**2 * task.background
    header["NCOMBINE"] = (len(task.frames), "frames combined")
    if np.isfinite(task.exposure).all():
        header["EXPTIME"] = (float(task.exposure.sum()), "[s] exposure time of all frames")
        step = max(1, task.shape[0] // 512)
        texp = planes[2][::step, ::step]
        if (texp > 0).any():
            header["TEFF"] = (float(np.median(texp[texp > 0])), "[s] median effective exposure")
    else:
        header.remove("EXPTIME", ignore_missing=True)
    drop_camera(header)
    if "TEFF" in header and unit == u.electron / u.s:
        header["GAIN"] = (header["TEFF"], "effective: electron for one electron/s")
    write_dates(header, [frame.header for frame in task.frames], task.weight)
    write_creator(header)
    header["NOISECOR"] = (
        round(float(np.sum(w2v * task.correlation) / w2v.sum()), 6),
        "pixel variance over the variance plane",
    )
    header["SKYLEVEL"] = (float(np.sum(task.weight * task.sky)), "sky that is left in the coadd")
    header["SKYNOISE"] = (float(np.sqrt(w2v.sum())), "own noise of a pixel of blank sky")
    header["SYSNOISE"] = (undithered_noise(task), "noise of the masters, if undithered")
    if (shared := noise_to_tell(task, planes[1])) is not None:
        shared.to_header(header)
    header["WEIGHTS"] = (weights if isinstance(weights, str) else "given", "rule of the weights")
    set_card(header, "COADDREF", str(reference)[:60], "frame of the grid")
    header["REJECTED"] = (
        round(float(planes[4].sum(dtype=np.int64) / max(1, planes[3].sum(dtype=np.int64))), 8),
        "outliers over pixels that count",
    )


def write_matching(header, frames, transparency, skies, weight):
    """Write how the frames were brought to one flux scale and one sky."""
    set_card(header, "FLUXREF", str(frames[transparency.reference].name)[:60],
             "frame of the flux scale")  # fmt: skip
    error = transparency.error / transparency.scale
    header["SCALEERR"] = (
        round(_half_shared(weight, np.where(np.isfinite(error), error, UNKNOWN)), 6),
        "relative error of fluxes by the scales",
    )
    # One camera, one gain: its error does not average down.
    gain = float(weight @ np.array([frame.header.get("GAINERR", 0.0) for frame in frames], float))
    header["GAINERR"] = (round(gain, 6), "relative error of the gain; 0: not known")
    header["SCALESYS"] = (
        round(_summed(weight, transparency.uneven), 6),
        "relative error by uneven transparency",
    )
    header["FLUXERR"] = (
        round(float(np.linalg.norm([gain, header["SCALEERR"], header["SCALESYS"]])), 6),
        "relative error common to all fluxes",
    )
    if skies.degree >= 0:
        header["SKYDEG"] = (skies.degree, "degree of sky surfaces")
        header["SKYSURFE"] = (
            _summed(weight, skies.error),
            "error of the sky where a frame lacks",
        )


def _summed(weight, error):
    """Error of a weighted mean by errors that frames do not share; what is not known is nil."""
    return float(np.sqrt(np.nansum((weight * error) ** 2)))


def _half_shared(weight, error):
    """
    Error of a weighted mean by errors of ratios to one reference.

    A ratio has the noise of the frame's stars and, in about equal parts, that of the
    reference's, which all ratios share.
    """
    return float(np.hypot(_summed(weight, error), np.nansum(weight * error)) / np.sqrt(2))


def frame_table(frames, statistics, *, reasons, exposure, weight, transparency, skies, rejected):
    """One row for each frame, see `~astro_narrowband.coaddition.Coadd`."""
    unit = frames[0].unit
    alignments = [frame.alignment for frame in frames]
    shift = np.array([(0.0, 0.0) if a is None else a.shift for a in alignments])
    ranges = [np.zeros(1) if m is None else m.samples() for m in transparency.maps]
    return QTable(
        {
            "name": [frame.name for frame in frames],
            "used": [not reason for reason in reasons],
            "reason": np.array(reasons, dtype=str),
            "exposure": exposure * u.s,
            "dx": shift[:, 0] * u.pix,
            "dy": shift[:, 1] * u.pix,
            "rotation": [0.0 if a is None else a.rotation for a in alignments] * u.deg,
            "weight": weight,
            "scale": transparency.scale,
            "scale_err": transparency.error,
            "scale_method": np.array(transparency.method, dtype=str),
            "scale_range": [float(np.ptp(values)) for values in ranges],
            "scale_chi2": transparency.chi2,
            "scale_uneven": transparency.uneven,
            "sky": [s.sky for s in statistics] * unit,
            "noise": np.sqrt([s.variance for s in statistics]) * unit,
            "sky_offset": skies.offset * unit,
            "sky_err": skies.error * unit,
            "sky_gradient": skies.gradient * unit,
            "sky_chi2": skies.chi2,
            "fwhm": [s.fwhm for s in statistics] * u.pix,
            "n_stars": [len(s.stars) for s in statistics],
            "rejected": rejected,
        }
    )


#: Where the ratios stand in a header, and of what they are.
KEYWORDS = {
    "pixels": ("NOISEPIX", "noise of pixels, measured over predicted"),
    "blocks": ("NOISEBLK", "noise of 8 x 8 pixels, likewise"),
    "apertures": ("NOISEAPR", "noise of 12 x 12 pixels, likewise"),
    "lines": ("NOISELIN", "noise of rows or columns, likewise"),
}


def self_test(ccd):
    """
    Compare a coadd's noise with its uncertainty, and scale that where it does not hold.

    Writes NOISEPIX, NOISEBLK, NOISEAPR, NOISELIN, where blank sky tells them, and ERRSCALE;
    what the uncertainty was multiplied by. Warns where the two disagree.
    """
    header = ccd.header
    test = compare_noise(
        ccd.data, ccd.uncertainty.array, ccd.mask, noise_correlation=header["NOISECOR"]
    )
    for name, (ratio, _) in test.ratios.items():
        keyword, comment = KEYWORDS[name]
        header[keyword] = (round(ratio, 3), comment)
    header["ERRSCALE"] = (round(test.factor, 4), "errors were multiplied by this")
    if test.failures:
        ccd.uncertainty.array *= test.factor
        header["NOISECOR"] = round(header["NOISECOR"] * test.correlation, 6)
        warn(f"{header.get('COADDREF', 'coadd')}, of its coadd: {test.sentence}", stacklevel=3)
