"""
The door: units, shapes and numbers are checked here, once.

Behind the door there are plain float32 arrays and floats in documented units.
"""

import math
from collections.abc import Iterable

import numpy as np
from astropy import units as u

from astro_narrowband.exceptions import InputError, InputTypeError

__all__ = [
    "as_count",
    "as_mask",
    "as_pixels",
    "as_unit",
    "as_variance",
    "choice",
    "clip_limit",
    "finite",
    "positive",
    "same_shape",
    "value_in",
]


def value_in(quantity, unit, name, *, hint=""):
    """
    Return ``quantity`` as a float in ``unit``; a bare number is refused.

    Parameters
    ----------
    quantity : `~astropy.units.Quantity`
        A scalar with a unit.
    unit : unit-like
        The unit wanted.
    name : str
        What the argument is called where the user gave it.
    hint : str, optional
        What to do, added to the message (a header keyword, say).

    Returns
    -------
    float

    Raises
    ------
    InputError
        If there is no unit, or one that cannot be converted to ``unit``.
    """
    unit = u.Unit(unit)
    tail = f"; {hint}" if hint else ""
    if not isinstance(quantity, u.Quantity):
        raise InputError(
            f"{name} = {quantity!r} has no unit: give it in {unit.to_string()}, "
            f"as {quantity!r} * u.Unit({unit.to_string()!r}){tail}"
        )
    try:
        return float(quantity.to_value(unit))
    except (u.UnitConversionError, TypeError, OverflowError):
        raise InputError(
            f"{name} = {quantity} cannot be used: it must be one number in {unit.to_string()}{tail}"
        ) from None


def as_unit(unit, name):
    """Return ``unit`` as a `~astropy.units.UnitBase`, or raise `InputError`."""
    try:
        return u.Unit(unit)
    except (ValueError, TypeError, OverflowError):
        raise InputError(
            f"{name} = {unit!r} is not a unit: write adu, electron or electron/s"
        ) from None


def finite(value, name, *, unit=None):
    """
    Return ``value`` as a float, or raise `InputError` if it is not a finite number.

    A `~astropy.units.Quantity` is converted to ``unit`` (None: it has none).
    """
    try:
        if isinstance(value, u.Quantity):
            number = float(value.to_value(unit or u.dimensionless_unscaled))
        else:
            number = float(value)
    except u.UnitConversionError:
        raise InputError(f"{name} = {value}: {unit or 'a bare number'} is needed") from None
    except (TypeError, ValueError, OverflowError):
        raise InputTypeError(f"{name} = {value!r} is not a number") from None
    if not math.isfinite(number):
        raise InputError(f"{name} = {value!r} is not finite")
    return number


def positive(value, name, *, unit=None):
    """As `finite`, and `InputError` if it is not above zero."""
    number = finite(value, name, unit=unit)
    if number <= 0:
        raise InputError(f"{name} = {value!r} must be greater than zero")
    return number


def clip_limit(clip, name="clip"):
    """
    Return how many standard deviations from the median are kept, or None for all.

    Parameters
    ----------
    clip : float, `~astropy.stats.SigmaClip` or None
        Of a SigmaClip its sigma: clipping here goes on until nothing is left to clip.

    Raises
    ------
    InputError
        For a SigmaClip that differs above and below, grows, or is not about the
        median in standard deviations.
    """
    if clip is None:
        return None
    if not hasattr(clip, "sigma_upper"):
        return positive(clip, name)
    if (clip.sigma_lower, clip.cenfunc, clip.stdfunc, bool(clip.grow)) != (
        clip.sigma_upper, "median", "std", False
    ):  # fmt: skip
        raise InputError(
            f"{name} = {' '.join(str(clip).split())}: a SigmaClip of one sigma, "
            "cenfunc='median', stdfunc='std' and no grow is needed, or a number"
        )
    return positive(clip.sigma_upper, name)


def choice(value, allowed: Iterable[str], name):
    """Return ``value``, or raise `InputError` if it is not one of ``allowed``."""
    allowed = tuple(allowed)
    if not isinstance(value, str | None) or value not in allowed:
        raise InputError(
            f"{name} = {value!r} is not known: use one of {', '.join(map(str, allowed))}"
        )
    return value


def same_shape(frames, what="frames"):
    """
    Return the common shape of ``frames``, or raise naming the first that differs.

    Parameters
    ----------
    frames : sequence of `~astro_narrowband.Frame`
        At least one.
    what : str, optional
        What they are called in the message.

    Returns
    -------
    tuple of int
    """
    frames = list(frames)
    if not frames:
        raise InputError(f"no {what} were given: at least one is needed")
    shape = tuple(frames[0].shape)
    for frame in frames[1:]:
        if tuple(frame.shape) != shape:
            raise InputError(
                f"{what} of different shapes: {frame.name} is {tuple(frame.shape)}, "
                f"{frames[0].name} is {shape}"
            )
    return shape


def as_pixels(data, name="image"):
    """Return the array of an image: 2-D, of real numbers; anything else is refused."""
    data = np.asanyarray(data)
    if data.ndim != 2:
        raise InputError(f"{name}: has shape {data.shape}: a 2-D image is needed")
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"{name}: its pixels are of type {data.dtype}: numbers are needed")
    if not data.size:
        raise InputError(f"{name}: has shape {data.shape}: there is no pixel in it")
    return data


def as_count(value, name):
    """Return ``value`` as an int of at least 1; None stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputTypeError(f"{name} = {value!r}: a whole number is needed")
    if value < 1:
        raise InputError(f"{name} = {value!r}: must be 1 or more")
    return int(value)


def as_variance(uncertainty, shape, unit, name="image"):
    """
    Return the variance that an uncertainty means, in the image's unit squared.

    Parameters
    ----------
    uncertainty : `~astropy.nddata.NDUncertainty` or None
        Standard deviation, variance or inverse variance. A unit of its own is converted.
    shape : tuple of int
        Of the image.
    unit : `~astropy.units.UnitBase` or None
        Of the image.
    name : str, optional
        What the image is called in messages.

    Returns
    -------
    `~numpy.ndarray` of float, in the precision of the uncertainty, or None

    Raises
    ------
    InputError
        If it is of another kind or shape, or its unit does not fit.
    """
    if uncertainty is None:
        return None
    kind = uncertainty.uncertainty_type
    if kind not in ("std", "var", "ivar"):
        raise InputError(
            f"{name}: its uncertainty is of type {kind!r}: "
            "use StdDevUncertainty, VarianceUncertainty or InverseVariance"
        )
    values = np.asarray(uncertainty.array)
    if values.shape != tuple(shape):
        raise InputError(f"{name}: its uncertainty has shape {values.shape}, its data {shape}")
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name}: its uncertainty is of {values.dtype}: numbers are needed")
    values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    if kind == "std":
        variance = values * values
    else:
        with np.errstate(divide="ignore"):
            variance = values if kind == "var" else 1 / values
    if unit is None or uncertainty.unit is None:
        return variance
    power = {"std": 1, "var": 2, "ivar": -2}[kind]
    own = uncertainty.unit ** (2 / power)
    try:
        factor = own.to(unit**2)
    except u.UnitConversionError:
        raise InputError(
            f"{name}: its uncertainty is in {uncertainty.unit}, its data in {unit}: "
            "give both in units that convert into each other"
        ) from None
    return variance if factor == 1 else variance * variance.dtype.type(factor)


def as_mask(mask, shape, name="mask"):
    """Return ``mask`` as a bool array of ``shape``; ``None`` stays ``None``."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != tuple(shape):
        raise InputError(f"{name} has shape {mask.shape}, the image {tuple(shape)}")
    return mask.astype(bool, copy=False)
