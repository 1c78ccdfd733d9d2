"""A raw frame to electron/s at once."""

from inspect import signature

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData

from astro_narrowband._engine.door import door
from astro_narrowband._engine.frames import Band, map_bands, new_ccd, row_bands
from astro_narrowband._engine.raw import prepared
from astro_narrowband._engine.validate import value_in
from astro_narrowband._engine.wcs import read_wcs
from astro_narrowband.calibration._frame import CalibratedFrame, refuse_twice
from astro_narrowband.calibration._recipe import Recipe
from astro_narrowband.calibration._rows import calibrate_rows
from astro_narrowband.detector import decide_detector
from astro_narrowband.exceptions import InputError

#: Rows that `calibrate` asks for at a time.
ROWS = 64


@door
def calibrate(
    ccd,
    *,
    bias=None,
    dark=None,
    flat=None,
    gain=None,
    read_noise=None,
    saturation=None,
    exposure=None,
    detector=None,
    max_extrapolation=None,
    max_temperature_difference=5.0,
    cosmic_rays=False,
    add_keyword=True,
    workers=None,
):
    """
    Calibrate a raw frame into electron/s, with uncertainty and mask.

    Parameters
    ----------
    ccd : path, `~astropy.nddata.CCDData` or Frame
        Raw frame [adu]; not changed.
    bias : path, CCDData or Frame, optional
        Master bias [adu]. A `DarkModel` has the bias in it.
    dark : `~astro_narrowband.darks.DarkModel`, path, CCDData or Frame, optional
        A master dark [adu] holds its bias unless its header says BIASSUB = T.
    flat : path, CCDData or Frame, optional
        From `~astro_narrowband.masters.master_flat`.
    gain : `~astropy.units.Quantity`, optional
        [electron/adu]; it multiplies.
    read_noise : `~astropy.units.Quantity`, optional
        [electron]
    saturation : `~astropy.units.Quantity`, optional
        [adu]
    exposure : `~astropy.units.Quantity`, optional
        [s]; default is the header's.
    detector : `~astro_narrowband.detector.Detector`, optional
        In place of gain, read_noise and saturation.
    max_extrapolation : float, optional
        Longest exposure in units of the longest dark. Default is no limit but the price:
        what the dark costs the frame in units of its own error.
    max_temperature_difference : float, optional
        Between light and darks [K]; above 0.5 K there is a warning.
    cosmic_rays : bool or dict, optional
        Run `ccdproc.cosmicray_lacosmic` and mask what it finds; a dict holds its
        keywords.
    add_keyword : bool, optional
        Write what was done to the header, as ccdproc does.
    workers : int, optional
        Threads.

    Returns
    -------
    `~astropy.nddata.CCDData`
        [electron/s]; its uncertainty is the total one, masters included.

    Raises
    ------
    InputError
        If a unit, shape or header value is wrong or missing.
    CalibrationError
        If a step was done before, or the dark would be extrapolated too far.

    Examples
    --------
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import DarkModel, Detector, calibrate, master_bias, master_flat
    >>> from astro_narrowband.simulate import simulate_frames
    >>> night = simulate_frames(1, seed=1)
    >>> biases = [CCDData(frame, unit="adu") for frame in night.bias[0]]
    >>> camera = Detector(gain=night.model.gain, read_noise=night.model.read_noise)
    >>> darks = [
    ...     CCDData(frame, unit="adu", header={"EXPTIME": time})
    ...     for time, frames in night.darks.items()
    ...     for frame in frames[0]
    ... ]
    >>> dark = DarkModel.fit(darks, bias=master_bias(biases), detector=camera)
    >>> flats = [
    ...     CCDData(frame, unit="adu", header={"EXPTIME": night.flat_exposure})
    ...     for frame in night.flats[0]
    ... ]
    >>> flat = master_flat(flats, dark=dark, detector=camera)
    >>> light = CCDData(night.lights[0, 0], unit="adu", header={"EXPTIME": 60.0})
    >>> made = calibrate(light, dark=dark, flat=flat, detector=camera)
    >>> pulls = (made.data - night.rate[0]) / made.uncertainty.array
    >>> made.unit, bool(0.95 < pulls.std() < 1.05)
    (Unit("electron / s"), True)
    """
    frame = prepared(ccd)
    refuse_twice(
        frame,
        bias=bias is not None or dark is not None,
        dark=dark is not None,
        flat=flat is not None,
    )
    if detector is None:
        detector = decide_detector(
            frame.header,
            gain=gain,
            read_noise=read_noise,
            saturation=saturation,
            lights=[frame],
        )
    recipe = Recipe.make(
        detector=detector,
        bias=bias,
        dark=dark,
        flat=flat,
        max_extrapolation=max_extrapolation,
        max_temperature_difference=max_temperature_difference,
    )
    if exposure is not None:
        exposure = value_in(exposure, u.s, "exposure")
    calibrated = CalibratedFrame(frame, recipe, exposure=exposure)
    data, error, mask = _planes(calibrated, workers)
    header = calibrated.header.copy() if add_keyword else frame.header.copy()
    calibrated.shared_noise(included=True).to_header(header)
    header.pop("BUNIT", None)
    wcs = calibrated.wcs if calibrated.wcs is not None else read_wcs(header, calibrated.name)
    result = new_ccd((data, error, mask), header, calibrated.unit, wcs)
    if cosmic_rays:
        mask |= _cosmic_rays(result, calibrated, cosmic_rays)
        result.header["LACOSMIC"] = (True, "cosmic rays masked by L.A.Cosmic")
    return result


def _planes(calibrated, workers):
    """Values, standard deviations with the masters' part, and mask of a whole frame."""
    shape = calibrated.shape
    data, error = np.empty(shape, np.float32), np.empty(shape, np.float32)
    mask = np.empty(shape, bool)

    def work(rows):
        out = Band(data[rows], error[rows], mask[rows])
        calibrate_rows(calibrated, rows, out)
        common = calibrated.common(rows, out.data)
        if common is not None:
            np.add(out.variance, common, out=out.variance)
        np.sqrt(out.variance, out=out.variance)

    for _ in map_bands(work, row_bands(shape[0], ROWS), workers=workers):
        pass
    return data, error, mask


def _cosmic_rays(ccd, calibrated, options):
    from ccdproc import cosmicray_lacosmic

    options = options if isinstance(options, dict) else {}
    if unknown := set(options) - set(signature(cosmicray_lacosmic).parameters):
        raise InputError(
            f"cosmic_rays: {', '.join(map(str, unknown))}: no keyword of ccdproc.cosmicray_lacosmic"
        )
    t = calibrated.exposure
    electrons = np.where(ccd.mask | ~np.isfinite(ccd.data), 0, ccd.data * np.float32(t))
    cleaned = cosmicray_lacosmic(
        CCDData(electrons, unit=u.electron, mask=ccd.mask.copy()),
        **{
            "gain": 1.0,
            "gain_apply": False,
            "readnoise": calibrated.recipe.detector.read_noise,
            **options,
        },
    )
    return cleaned.mask & ~ccd.mask
