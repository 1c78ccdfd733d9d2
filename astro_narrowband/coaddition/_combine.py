"""
Combine frames band by band: exact medians, clipping, weighted means, with their errors.

`combine` takes the arguments of ``ccdproc.combine`` and gives what that gives
where that is right. Every row of every file is read once; memory is set by the
size of a band, not by the number of frames; the result does not depend on the
order of the frames, on the memory limit or on the number of workers, to the
last bit.
"""

import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData

from astro_narrowband._engine.door import array, door, or_of
from astro_narrowband._engine.files import clean_header, write_fits
from astro_narrowband._engine.frames import FitsFrame, MemoryFrame, as_frame, as_frames, new_ccd
from astro_narrowband._engine.headers import exposures_in, read_exposure
from astro_narrowband._engine.stacking.tile import Rejection
from astro_narrowband._engine.validate import choice, finite, same_shape
from astro_narrowband.coaddition._combine_bands import BandReducer, native_type, reduce_bands
from astro_narrowband.coaddition._header import wcs_of
from astro_narrowband.exceptions import (
    InputError,
    InputTypeError,
    ProductError,
    SharedNoiseWarning,
    warn,
)
from astro_narrowband.noise import SHARED_CARDS

#: What clipping functions may be called: by name, or by the functions themselves.
_FUNCTIONS = {
    "mean": "mean",
    "nanmean": "mean",
    "average": "mean",
    "median": "median",
    "nanmedian": "median",
    "std": "std",
    "nanstd": "std",
    "mad_std": "mad_std",
    "winsorized": "winsorized",
}


@door(weights=array(ndim=1), scale=or_of(Callable, array(ndim=1)))
def combine(
    img_list,
    output_file=None,
    method="average",
    *,
    weights=None,
    scale=None,
    mem_limit=16e9,
    clip_extrema=False,
    nlow=1,
    nhigh=1,
    minmax_clip=False,
    minmax_clip_min=None,
    minmax_clip_max=None,
    percentile_clip=None,
    sigma_clip=False,
    sigma_clip_low_thresh=3,
    sigma_clip_high_thresh=3,
    sigma_clip_func="median",
    sigma_clip_dev_func="mad_std",
    maxiters=1,
    uncertainty="auto",
    combine_uncertainty_function=None,
    return_count=False,
    unit=None,
    dtype=None,
    overwrite_output=False,
    executor=None,
    workers=None,
    **ccdkwargs,
):
    """
    Combine frames of one shape and unit into one `~astropy.nddata.CCDData`.

    Parameters
    ----------
    img_list : sequence of path-like, `~astropy.nddata.CCDData` or `~astro_narrowband.Frame`
        Or one text of paths with commas between them, or a
        `ccdproc.ImageFileCollection`.
    output_file : path-like, optional
        Where the result is written as well (and the count, as extension NEXP).
    method : {"average", "median", "sum"}
        A sum is that of the values that are left: where some are masked it is
        lower. For a sum that is not, multiply an average by the number of frames.
    weights : array-like, (n,) or (n, ny, nx), optional
        For averages and sums. Not negative; a value of weight 0 is not used.
    scale : callable or array-like of n numbers, optional
        Frames (and their errors) are multiplied by these. A callable gets the
        whole image, as a masked array if anything in it is masked.
    mem_limit : float, optional
        Bytes that the bands under way may take, besides the result. More than
        a few MiB for each worker are never used.
    clip_extrema : bool
        Leave out the ``nlow`` lowest and ``nhigh`` highest of the values that
        are not masked.
    nlow, nhigh : int
        How many ``clip_extrema`` leaves out.
    minmax_clip : bool
        Leave out values below ``minmax_clip_min`` or above ``minmax_clip_max``,
        before scaling.
    minmax_clip_min, minmax_clip_max : float, optional
        Limits of ``minmax_clip``.
    percentile_clip : (float, float), optional
        Leave out values further than these fractions of the median below or
        above it.
    sigma_clip : bool
        Leave out values further than ``sigma_clip_low_thresh`` deviations below or
        ``sigma_clip_high_thresh`` above the centre, after scaling.
    sigma_clip_low_thresh, sigma_clip_high_thresh : float or None
        In deviations; ``None`` leaves out nothing on that side.
    sigma_clip_func : {"median", "mean"} or callable
        The centre. The functions themselves (`numpy.ma.median`) are understood; another
        one gets the stack with NaN where values are masked, and ``axis=0``.
    sigma_clip_dev_func : {"mad_std", "std", "winsorized"} or callable
        The deviation, see `Rejection`; a function as above.
    maxiters : int or None
        How often is clipped; ``None`` is until nothing more is left out.
    uncertainty : {"auto", "propagated", "scatter", None}
        Where the uncertainty comes from: those of the frames, or the scatter of
        the values; "auto" is the first if every frame has one. ``None`` makes none.
        Both are for the values really used, see `reduce_tile`.
    combine_uncertainty_function : callable, optional
        In place of ``uncertainty``, as in ccdproc: gets the stack of the values used, NaN
        elsewhere, and ``axis=0``; what it gives is divided by the root of their number
        (multiplied, for a sum).
    return_count : bool
        Whether to return also how many values were used for every pixel.
    unit : unit-like, optional
        For files without BUNIT.
    dtype : dtype-like, optional
        Type of the result. Default is float32, or float64 if a frame has
        more digits than that (float64, or integers of 32 bit). Integers are cut off as
        by `numpy.ndarray.astype`, and 0 where nothing is left.
    overwrite_output : bool
        Whether ``output_file`` may exist.
    executor : `~concurrent.futures.Executor`, optional
        Where bands are reduced. Default is a pool of ``workers`` threads.
    workers : int, optional
        Default is the number of usable cores.
    **ccdkwargs
        Of `astropy.nddata.CCDData.read` (``hdu``, ``hdu_mask`` and others): files are
        then read whole, by that.

    Returns
    -------
    result : `~astropy.nddata.CCDData`
        With a `~astropy.nddata.StdDevUncertainty`. Pixels without a value are
        NaN and masked. The header is
        the first frame's, with NCOMBINE, and TEXPTIME (the total exposure time
        [s]) if every frame has one; EXPTIME becomes the total for a sum, and
        the mean where exposure times differ.
    count : `~numpy.ndarray` of int16, (ny, nx)
        Only with ``return_count``.

    Raises
    ------
    InputError
        If there are no frames, or they differ in shape or unit, cannot be read (also
        half-way), or an argument cannot be used. It is a ValueError, and also a
        FileNotFoundError or TypeError where that is the reason.
    ProductError
        If ``output_file`` exists, or could not be written.

    Notes
    -----
    Integers are compared as integers: medians are exact. In averages and sums
    the values are added from the lowest to the highest, or exactly, so that the
    order of the frames does not matter.

    Differences from ``ccdproc.combine``: thresholds are applied to what is not masked
    and after scaling; weights of masked pixels do not count; NaN is masked;
    the defaults of clipping are "median" and "mad_std"; the uncertainty is
    not the scatter divided by n but by n - 1, and is propagated where it can be.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband import combine
    >>> rng = np.random.default_rng(1)
    >>> frames = [CCDData(rng.normal(100, 5, (64, 64)), unit="adu") for _ in range(9)]
    >>> frames[3].data[20, 30] = 60000  # a cosmic ray
    >>> result = combine(frames, sigma_clip=True, sigma_clip_low_thresh=5, sigma_clip_high_thresh=5)
    >>> bool(90 < result.data[20, 30] < 110), result.header["NCOMBINE"]
    (True, 9)
    """
    choice(method, ("average", "median", "sum"), "method")
    choice(uncertainty, ("auto", "propagated", "scatter", None), "uncertainty")
    frames = _frames(img_list, unit, ccdkwargs)
    shape, unit = same_shape(frames), _same_unit(frames)
    rejection = Rejection(
        limits=(minmax_clip_min, minmax_clip_max) if minmax_clip else (None, None),
        extrema=(int(nlow or 0), int(nhigh or 0)) if clip_extrema else (0, 0),
        percentile=percentile_clip,
        sigma=(sigma_clip_low_thresh, sigma_clip_high_thresh) if sigma_clip else None,
        center=_function(sigma_clip_func, "sigma_clip_func"),
        deviation=_function(sigma_clip_dev_func, "sigma_clip_dev_func"),
        maxiters=maxiters,
    )
    if sum(rejection.extrema) >= len(frames):
        raise InputError(f"nlow = {nlow} and nhigh = {nhigh} leave nothing of {len(frames)} frames")
    weights, scale = _weights(weights, frames, shape, method), _scale(scale, frames)
    _check_output(output_file, frames, overwrite_output)

    propagate = combine_uncertainty_function is None and _propagate(uncertainty, frames)
    native = np.result_type(*(native_type(frame) for frame in frames))
    work, dtype = _types(native, dtype)
    reducer = BandReducer(
        frames=frames, native=native, method=method, rejection=rejection, weights=weights,
        scale=scale, propagate=propagate, dtype=work, deviation=combine_uncertainty_function,
        error=uncertainty is not None and (propagate or len(frames) > 1),
    )  # fmt: skip
    planes = reduce_bands(reducer, shape, mem_limit, executor, workers, return_count)
    result = _result(planes, dtype, frames, unit, method)
    _write(output_file, result, planes.count)
    return (result, planes.count) if return_count else result


# ------------------------------------------------------------------ arguments


def _result(planes, dtype, frames, unit, method):
    """The planes as CCDData of the type that was asked for."""
    if dtype != planes.data.dtype:
        planes.data = np.where(planes.mask, 0, planes.data).astype(dtype)
    planes = (planes.data, planes.sigma, planes.mask)
    return new_ccd(planes, _header(frames, method), unit, wcs_of(frames[0]))


def _frames(images, unit, ccdkwargs):
    if isinstance(images, str):
        images = [images] if os.path.exists(images) else images.split(",")
    number = count()

    def frame_of(image):
        name = f"frame {next(number)}"
        if ccdkwargs and isinstance(image, str | os.PathLike):
            image = CCDData.read(image, unit=unit, **ccdkwargs)
        in_memory = isinstance(image, CCDData)
        frame = MemoryFrame(image, name=name) if in_memory else as_frame(image, unit=unit)
        if unit is not None and frame.unit != u.Unit(unit):
            raise InputError(
                f"{frame.name}: is in {frame.unit}, and unit = {unit}: leave out unit, or convert "
                "the frame"
            )
        return frame

    return as_frames(images, convert=frame_of)


def _same_unit(frames):
    first = frames[0]
    for frame in frames:
        if frame.unit is None:
            raise InputError(f"{frame.name}: has no BUNIT: give unit='adu', or what it is in")
        if frame.unit != first.unit:
            raise InputError(
                f"frames of different units: {frame.name} is in {frame.unit}, "
                f"{first.name} in {first.unit}"
            )
    return first.unit


def _types(native, dtype):
    """The type to work in, and that of the result."""
    fine = native.itemsize > 4 or native in (np.int32, np.uint32)
    if dtype is None:
        dtype = np.float64 if fine else np.float32
    dtype = np.dtype(dtype)
    if dtype.kind not in "iuf":
        raise InputTypeError(f"dtype = {dtype}: a type of real numbers is needed")
    return dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64), dtype


def _function(function, name):
    """The name of a clipping function that is known, or the function itself."""
    text = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    if callable(function) and text not in _FUNCTIONS:
        return function
    if text not in _FUNCTIONS:
        raise InputError(
            f"{name} = {function!r} is not known: use "
            + (
                "'median' or 'mean'"
                if name == "sigma_clip_func"
                else "'mad_std', 'std' or 'winsorized'"
            )
        )
    return _FUNCTIONS[text]


def _weights(weights, frames, shape, method):
    if weights is None:
        return None
    if method == "median":
        raise InputError("weights have no meaning for a median: use method='average'")
    weights = np.asarray(weights, np.float64)
    n = len(frames)
    if weights.shape not in ((n,), (n, *shape)):
        raise InputError(f"weights of shape {weights.shape} for {n} frames of {shape}: give {n}")
    for frame, weight in zip(frames, weights, strict=True):
        if not np.all(np.isfinite(weight)) or np.any(weight < 0):
            raise InputError(f"{frame.name}: its weight is negative or not a number")
    if not weights.any():
        raise InputError("weights are all zero: at least one frame must count")
    return weights


def _scale(scale, frames):
    if scale is None:
        return None
    if callable(scale):
        scale = [scale(_image(frame)) for frame in frames]
    elif np.shape(scale) != (len(frames),):
        raise InputError(
            f"scale of shape {np.shape(scale)} for {len(frames)} frames: give one number for each"
        )
    numbers = [finite(s, f"scale of {f.name}") for f, s in zip(frames, scale, strict=True)]
    return np.array(numbers)


def _image(frame):
    band = frame.read(slice(0, frame.shape[0]))
    return band.data if band.mask is None else np.ma.array(band.data, mask=band.mask)


def _check_output(path, frames, overwrite):
    if path is None:
        return
    if os.path.lexists(path) and not overwrite:
        raise ProductError(f"{path} already exists: give another name, or overwrite_output=True")
    for frame in frames:
        if not isinstance(frame, FitsFrame) or not os.path.exists(path):
            continue
        if os.path.samefile(frame.path, path):
            raise ProductError(f"{path}: is one of the frames: give another output_file")


def _has_variance(frame):
    if isinstance(frame, FitsFrame):
        return frame._uncertainty is not None
    if isinstance(frame, MemoryFrame):
        return frame.ccd.uncertainty is not None
    return frame.read(slice(0, 1)).variance is not None


def _propagate(uncertainty, frames):
    if uncertainty in ("scatter", None):
        return False
    lacking = [frame.name for frame in frames if not _has_variance(frame)]
    if lacking and uncertainty == "propagated":
        raise InputError(
            f"{lacking[0]}: has no uncertainty to propagate: use uncertainty='scatter'"
        )
    if not lacking:
        _warn_of_shared(frames)
    return not lacking


def _warn_of_shared(frames):
    """Say that the noise of masters, of frames that name the same ones, does not average down."""
    masters = Counter(frame.header.get("MASTERID", "none") for frame in frames)
    del masters["none"]
    if masters and max(masters.values()) > 1:
        warn(
            f"{frames[0].name} and others: were calibrated with the same masters (MASTERID), whose "
            "noise is taken to average down: use coadd or InverseVarianceCombiner",
            SharedNoiseWarning,
            stacklevel=4,
        )


# ------------------------------------------------------------------ the result


def _exposure(header):
    """The exposure time [s], or None where there is none that can be believed."""
    times = [seconds for _, seconds in exposures_in(header) if not isinstance(seconds, InputError)]
    return read_exposure(header) if times else None


def _header(frames, method):
    header = clean_header(frames[0].header)
    for keyword in SHARED_CARDS:
        header.remove(keyword, ignore_missing=True)
    header["NCOMBINE"] = (len(frames), "number of frames combined")
    exposures = [_exposure(frame.header) for frame in frames]
    if None not in exposures:
        total = float(np.sum(np.sort(exposures)))
        header["TEXPTIME"] = (total, "[s] total exposure time of the frames")
        single = total if method == "sum" else total / len(frames)
        if method == "sum" or len(Counter(exposures)) > 1:
            for keyword, _ in exposures_in(header):
                del header[keyword]
            header["EXPTIME"] = (
                single,
                f"[s] {'total' if method == 'sum' else 'mean'} exposure time",
            )
    return header


def _write(path, result, n_used):
    if path is None:
        return
    if n_used is None:
        write_fits(Path(path), result)
        return
    hdul = result.to_hdu()
    hdul.append(fits.ImageHDU(n_used, name="NEXP"))
    write_fits(Path(path), hdul)
