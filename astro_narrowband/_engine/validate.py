"""
The door: units, shapes and numbers are checked here, once.

Behind the door there are plain float32 arrays and floats in documented units.
"""

import math
from collections.abc import Iterable

import numpy as np
from astropy import units as u

from astro_narrowband.exceptions import InputError, InputTypeError

#: No count and no number of sigmas is beyond this.
MOST = 1e9
#: No pixel of float32 is beyond this.
LARGEST = 1e30
#: Of a Gaussian that is clipped again and again nothing is left below sqrt(3).
LEAST_CLIP = 2.0


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
        if isinstance(unit, str | u.UnitBase | u.Quantity):
            return u.Unit(unit)
    except (ValueError, TypeError, OverflowError):
        pass
    raise InputError(f"{name} = {unit!r} is not a unit: write adu, electron or electron/s")


def number(value, name, unit=u.one):
    """Return ``value`` as a float that is not NaN; a `~astropy.units.Quantity` in ``unit``."""
    if isinstance(value, u.Quantity) and value.ndim == 0:
        try:
            value = value.to_value(unit)
        except u.UnitConversionError:
            raise InputError(f"{name} = {value}: give a number of {unit or 'no unit'}") from None
    plain = isinstance(value, int | float | np.number) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"
    )
    if not plain or isinstance(value, bool | np.complexfloating):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a number")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if math.isnan(value):
        raise InputError(f"{name} = {value} is not a number")
    return value


def finite(value, name, *, unit=u.one):
    """As `number`, and `InputError` if it is infinite, or nearly."""
    value = number(value, name, unit)
    if abs(value) > LARGEST:
        raise InputError(f"{name} = {value} is not finite, or beyond {LARGEST:g}")
    return value


def positive(value, name, *, unit=u.one):
    """As `finite`, and `InputError` if it is not above zero."""
    value = finite(value, name, unit=unit)
    if value <= 0:
        raise InputError(f"{name} = {value:g} must be greater than zero")
    return value


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
    rule = (getattr(clip, name, None) for name in ("sigma_lower", "cenfunc", "stdfunc"))
    if hasattr(clip, "sigma_upper") and (
        clip.grow or tuple(rule) != (clip.sigma_upper, "median", "std")
    ):
        raise InputError(
            f"{name} = {' '.join(str(clip).split())}: a SigmaClip of one sigma, "
            "cenfunc='median', stdfunc='std' and no grow is needed, or a number"
        )
    clip = finite(getattr(clip, "sigma_upper", clip), name)
    if not LEAST_CLIP <= clip <= MOST:
        raise InputError(f"{name} = {clip:g}: below {LEAST_CLIP:g} sigma clipping has no end")
    return clip


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
    try:
        data = np.asanyarray(data)
    except ValueError:
        raise InputTypeError(f"{name}: {type(data).__name__} is no image") from None
    if data.ndim != 2:
        raise InputError(f"{name}: has shape {data.shape}: a 2-D image is needed")
    if data.dtype.kind not in "iuf":
        raise InputTypeError(f"{name}: its pixels are of type {data.dtype}: numbers are needed")
    if not data.size:
        raise InputError(f"{name}: has shape {data.shape}: there is no pixel in it")
    return data


def as_array(values, name, unit=u.one):
    """
    Return ``values`` as an array of float; a `~astropy.units.Quantity` in ``unit``.

    What is masked is NaN. Raises `InputError` where they are no real numbers, or in another unit.
    """
    try:
        if getattr(values, "unit", None) is not None:
            values = u.Quantity(values, copy=None).to_value(unit)
        values = np.ma.asarray(values)
        if values.dtype.kind in "iuf":
            return np.ma.filled(values.astype(float, copy=False), np.nan)
    except u.UnitConversionError:
        raise InputError(f"{name} in {values.unit}: give {unit or 'no unit'}") from None
    except (ValueError, TypeError):
        pass
    raise InputTypeError(f"{name}: {type(values).__name__} is no list of numbers")


def bare(column):
    """Return the numbers of a column as an array of float, without its unit."""
    return np.asarray(getattr(column, "value", column), float)


def alike(**values):
    """Raise `InputError` for arrays of which there are not as many, so that they go together."""
    try:
        np.broadcast_shapes(*(np.shape(v) for v in values.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {np.shape(v)}" for name, v in values.items())
        raise InputError(f"{shapes}: give as many of each") from None


def as_count(value, name, least=1, most=MOST):
    """Return ``value`` as an int from ``least`` to ``most``; None stays None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a whole number")
    if not least <= value <= most:
        low = "must not be negative" if value < 0 else f"give {least} to {most:g}"
        raise InputError(f"{name} = {number(value, name):g}: {low}")
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
    variance = to_variance(kind, values)
    if unit is None or uncertainty.unit is None:
        return variance
    power = {"std": 1, "var": 2, "ivar": -2}[kind]
    stated = uncertainty.unit ** (2 / power)
    try:
        factor = stated.to(unit**2)
    except u.UnitConversionError:
        raise InputError(
            f"{name}: its uncertainty is in {uncertainty.unit}, its data in {unit}: "
            "give both in units that convert into each other"
        ) from None
    return variance if factor == 1 else variance * variance.dtype.type(factor)


def to_variance(kind, values):
    """Return the variance that an uncertainty of this kind stands for, in words of astropy."""
    if kind in ("StdDevUncertainty", "std"):
        return values * values
    if kind in ("InverseVariance", "ivar"):
        with np.errstate(divide="ignore"):
            return np.float32(1.0) / values
    return values


def as_mask(mask, shape, name="mask"):
    """Return ``mask`` as a bool array of ``shape``; ``None`` stays ``None``."""
    if mask is None:
        return None
    try:
        mask = np.asarray(mask)
    except ValueError:  # ragged
        mask = np.zeros(0)
    if mask.shape != tuple(shape):
        raise InputError(f"{name} has shape {mask.shape}, the image {tuple(shape)}")
    return mask.astype(bool, copy=False)
