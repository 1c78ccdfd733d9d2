"""
What public functions check of their arguments before they do anything: by its name, once.

An argument of one name means the same in all of them, so that its rule stands here. Shapes and
units of images are checked where they are opened, see `astro_narrowband._engine.validate`.
"""

import functools
import inspect
import math
import os

import numpy as np
from astropy import units as u

from astro_narrowband._engine.validate import as_unit
from astro_narrowband.exceptions import InputError, InputTypeError

__all__ = [
    "RULES", "a_ccd", "a_sequence", "a_text", "above_zero", "door", "each", "function_or_numbers",
    "images", "items", "numbers", "of_class",
]  # fmt: skip

#: No count and no number of sigmas is beyond this.
MOST = 1e9


def _number(value, name, unit=u.one):
    """A float that is not NaN; of a Quantity, in ``unit``."""
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
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        raise InputError(f"{name} = {number} is not a number")
    return number


def _positive(value, name):
    number = _number(value, name)
    if not 0 < number <= MOST:
        raise InputError(f"{name} = {number:g}: must be greater than zero, and at most {MOST:g}")
    return number


def _not_negative(value, name):
    return _positive(value, name) if _number(value, name) != 0 else 0.0


def _flag(value, name):
    if not isinstance(value, bool | np.bool_ | int | None):
        raise InputTypeError(f"{name}: {type(value).__name__} is neither True nor False")
    return bool(value)


def numbers(value, name):
    """An array of numbers, as it was given; lengths of a Quantity in pixels."""
    try:
        if isinstance(value, u.Quantity):
            value = value.to_value(u.pix)
        array = np.asarray(value)
        fits = array.dtype.kind in "iuf" and array.ndim > 0 and not hasattr(value, "colnames")
    except (u.UnitConversionError, ValueError, TypeError):
        fits = False
    if not fits:
        raise InputTypeError(f"{name}: {type(value).__name__} is no list of numbers")
    return value


def rule_or_numbers(value, name):
    """The name of a rule, or one number for each frame."""
    return value if isinstance(value, str) else numbers(value, name)


def _count(value, name, least=1):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a whole number")
    if not least <= value <= MOST:
        low = "must not be negative" if value < 0 else f"give {least} to {MOST:g}"
        raise InputError(f"{name} = {_number(value, name):g}: {low}")
    return int(value)


def _count_or_none(value, name):
    return _count(0 if value is None else value, name, 0)


def _bytes(value, name):
    number = _number(value, name)
    if not 0 < number < math.inf:
        raise InputError(f"{name} = {number:g}: give a number of bytes")
    return number


def _pair(value, name):
    try:
        first, second = value
    except (TypeError, ValueError):
        raise InputTypeError(f"{name}: {type(value).__name__} is no pair of numbers") from None
    return _number(first, name), _number(second, name)


def _seconds(value, name):
    """A bare number, or a Quantity that converts to seconds: functions know which they want."""
    _number(value, name, u.s)
    return value


def _dtype(value, name):
    try:
        kind = np.dtype(value)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "iuf":
        raise InputTypeError(f"{name}: a type of real numbers is needed")
    return value


def _paths(value, name):
    """One path, or a list of them; those of an `ccdproc.ImageFileCollection`."""
    if isinstance(value, str | os.PathLike):
        return _path(value, name)
    if hasattr(value, "files_filtered") and not isinstance(value, type):
        value = value.files_filtered(include_path=True)
    try:
        value = list(value)
    except TypeError:
        raise InputTypeError(f"{name}: {type(value).__name__} is neither path nor paths") from None
    return [_path(each, name) for each in value]


def images(value, name):
    """A list of CCDData, as ccdproc wants them."""
    try:
        return [a_ccd(image, name) for image in value]
    except TypeError:
        raise InputTypeError(f"{name}: give a list or a generator of CCDData objects") from None


def a_ccd(value, name):
    """A CCDData, that of a Coadd among them."""
    return of_class("CCDData")(getattr(value, "ccd", value), name)


def above_zero(unit):
    """Return the rule of a number above zero, or of a Quantity that converts to ``unit``."""

    def rule(value, name):
        number = _number(value, name, u.Unit(unit))
        if not 0 < number < math.inf:
            raise InputError(f"{name} = {number:g}: give a number above zero [{unit}]")
        return number

    return rule


def items(value, name):
    if not hasattr(value, "items") or isinstance(value, type):
        raise InputTypeError(f"{name}: {type(value).__name__} is no dict: give one, by filter")
    return value


def each(rule):
    """Return the rule of a list, of which each item obeys another one."""

    def of_each(value, name):
        return [rule(item, name) for item in a_sequence(value, name)]

    return of_each


def a_sequence(value, name):
    if not isinstance(value, list | tuple | np.ndarray) or isinstance(value, u.Quantity):
        raise InputTypeError(f"{name}: {type(value).__name__} is no list: give one for each frame")
    return list(np.atleast_1d(value)) if isinstance(value, np.ndarray) else value


def _path(value, name):
    if not isinstance(value, str | os.PathLike):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a path")
    if "\0" in str(value) or not str(value):
        raise InputTypeError(f"{name} = {str(value)[:80]!r} is not a path: give a folder or a file")
    return value


def a_text(value, name):
    if not isinstance(value, str):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a text")
    return value


def of_class(*names):
    """Of a class of this package; this module is below those that define them."""

    def rule(value, name):
        if not any(kind.__name__ in names for kind in type(value).__mro__):
            raise InputTypeError(f"{name}: {type(value).__name__} is no {' or '.join(names)}")
        return value

    return rule


def _with(method):
    def rule(value, name):
        if isinstance(value, type) or not callable(getattr(value, method, None)):
            raise InputTypeError(f"{name}: {type(value).__name__} is no {name}: it has no {method}")
        return value

    return rule


def _flag_or_dict(value, name):
    return value if isinstance(value, dict) else _flag(value, name)


def function_or_numbers(value, name):
    """What is called with each frame, or one number for each."""
    return value if callable(value) else numbers(value, name)


RULES = {
    "cosmic_rays": _flag_or_dict,
    **dict.fromkeys(("n_sigma", "max_extrapolation", "max_temperature_difference"), _positive),
    "min_value": _not_negative,
    **dict.fromkeys(("minmax_clip_min", "minmax_clip_max", "sigma_clip_low_thresh",
                     "sigma_clip_high_thresh"), _number),
    "workers": _count,
    **dict.fromkeys(("nlow", "nhigh", "maxiters"), _count_or_none),
    **dict.fromkeys(("memory", "mem_limit"), _bytes),
    **dict.fromkeys(("nights", "paths", "calibration", "ignore"), _paths),
    "percentile_clip": _pair,
    "dtype": _dtype,
    "exposure": _seconds,
    "set_keywords": items,
    "unit": as_unit,
    **dict.fromkeys(("reject", "add_keyword", "clip_extrema", "minmax_clip", "sigma_clip",
                     "return_count", "overwrite_output", "overwrite", "calibrated"), _flag),
    "weights": rule_or_numbers,
    "checks": each(of_class("FlatCheck")),
    **dict.fromkeys(("output_file", "output"), _path),
    "detector": of_class("Detector"),
    "settings": of_class("Settings"),
    "executor": _with("submit"),
    "progress": _with("__call__"),
    "combine_uncertainty_function": _with("__call__"),
}  # fmt: skip


def door(function=None, /, **rules):
    """
    Let only arguments through that obey the rule of their name; an omitted default always does.

    Parameters
    ----------
    function : callable
    **rules
        Of arguments whose name means something of its own here.
    """
    if function is None:
        return functools.partial(door, **rules)
    signature = inspect.signature(function)
    rules = {name: RULES[name] for name in signature.parameters if name in RULES} | rules

    @functools.wraps(function)
    def through_door(*args, **keywords):
        try:
            arguments = signature.bind(*args, **keywords)
        except TypeError:
            return function(*args, **keywords)  # Python says what is missing, or too much
        for name, value in arguments.arguments.items():
            if name in rules and value is not signature.parameters[name].default:
                arguments.arguments[name] = rules[name](value, name)
        return function(*arguments.args, **arguments.kwargs)

    return through_door
