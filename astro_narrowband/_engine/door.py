"""
What public functions check of their arguments before they do anything: by its name, once.

An argument of one name means the same in all of them, so that its rule stands here. A rule takes
the value and the name, and returns what functions work with, or raises. Shapes and units of
images are checked where they are opened, see `astro_narrowband._engine.validate`.
"""

import functools
import inspect
import math
import os
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from astropy import units as u

from astro_narrowband._engine.validate import MOST, as_array, as_count, as_unit, clip_limit, number
from astro_narrowband.exceptions import InputError, InputTypeError

#: No exposure lasts longer [s].
DAY = 86_400.0


def real(unit=u.one, *, above=-math.inf, least=-MOST, most=MOST):
    """Return the rule of a float within limits; a Quantity is converted to ``unit``."""
    unit = u.Unit(unit)
    low = f"above {above:g}" if above > -math.inf else f"of at least {least:g}"

    def rule(value, name):
        value = number(value, name, unit)
        if not (above < value and least <= value <= most):
            where = f" [{unit}]" if unit != u.one else ""
            raise InputError(f"{name} = {value:g}: give a number {low}, at most {most:g}{where}")
        return value

    return rule


_above_zero = real(above=0)
_not_negative = real(least=0)


def array(unit=u.one, *, ndim=0):
    """Return the rule of an array of numbers; a Quantity is converted to ``unit``."""

    def rule(value, name):
        values = as_array(value, name, unit)
        if values.ndim < ndim:
            raise InputTypeError(f"{name}: {type(value).__name__} is no list: give one for each")
        return values

    return rule


def quantity(unit, *, ndim=0):
    """Return the rule of an array of numbers that must say its unit."""

    def rule(value, name):
        if getattr(value, "unit", None) is None:
            raise InputTypeError(f"{name}: {type(value).__name__} has no unit: give {unit}")
        return array(unit, ndim=ndim)(value, name)

    return rule


def count(least=1, most=MOST):
    """Return the rule of a whole number."""

    def rule(value, name):
        if value is None:
            raise InputTypeError(f"{name}: None is not a whole number")
        return as_count(value, name, least, most)

    return rule


def or_of(kinds, rule):
    """Return the rule of what is of some class, or obeys another rule."""
    return lambda value, name: value if isinstance(value, kinds) else rule(value, name)


def each(rule):
    """Return the rule of a list, of which each item obeys another one."""
    return lambda value, name: [rule(item, name) for item in a_sequence(value, name)]


def items_of(rule):
    """Return the rule of a dict, whose values obey another one."""
    return lambda value, name: {k: rule(v, f"{name}[{k!r}]") for k, v in items(value, name).items()}


def of_two(rule):
    """Return the rule of a pair."""

    def of_pair(value, name):
        try:
            first, second = value
        except (TypeError, ValueError):
            raise InputTypeError(f"{name}: {type(value).__name__} is no pair: give two") from None
        return rule(first, name), rule(second, name)

    return of_pair


def of_class(*names):
    """Return the rule of a class of this package, which is above this module."""

    def rule(value, name):
        if not any(kind.__name__ in names for kind in type(value).__mro__):
            raise InputTypeError(f"{name}: {type(value).__name__} is no {' or '.join(names)}")
        return value

    return rule


def _with(method):
    """The rule of an object by what it can do."""

    def rule(value, name):
        if isinstance(value, type) or not callable(getattr(value, method, None)):
            raise InputTypeError(f"{name}: {type(value).__name__} is no {name}: it has no {method}")
        return value

    return rule


def flag(value, name):
    """True or False; ccdproc takes numbers and None for them."""
    if not isinstance(value, bool | np.bool_ | int | None):
        raise InputTypeError(f"{name}: {type(value).__name__} is neither True nor False")
    return bool(value)


def a_sequence(value, name):
    if not isinstance(value, list | tuple | np.ndarray) or isinstance(value, u.Quantity):
        raise InputTypeError(f"{name}: {type(value).__name__} is no list: give one for each")
    return list(np.atleast_1d(value)) if isinstance(value, np.ndarray) else value


def a_text(value, name):
    if not isinstance(value, str):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a text")
    return value


def _card(value, name):
    """A text that FITS can hold."""
    if not (a_text(value, name).isascii() and value.isprintable() and len(value) < 60):
        raise InputError(f"{name} = {value[:60]!r}: give plain characters, at most 60")
    return value


def _times(value, name):
    """Exposure times [s], one for each frame."""
    times = as_array(value, name, u.s)
    if times.ndim != 1 or not ((times > 0) & (times <= DAY)).all():
        raise InputError(f"{name}: give exposure times above 0 s, at most {DAY:g}, in one row")
    return times.tolist()


def a_table(value, name):
    if not hasattr(value, "colnames") or isinstance(value, type):
        raise InputTypeError(f"{name}: {type(value).__name__} is no table")
    return value


def _stars(value, name):
    """A table of places, as `detect_stars` makes it."""
    if not {"x_center", "y_center"} <= set(a_table(value, name).colnames):
        raise InputError(f"{name}: the table has no x_center and y_center [pix]: give both")
    return value


def a_ccd(value, name):
    """A CCDData, that of a Coadd among them."""
    return of_class("CCDData")(getattr(value, "ccd", value), name)


def images(value, name):
    """A list of CCDData, as ccdproc wants them."""
    try:
        return [a_ccd(image, name) for image in value]
    except TypeError:
        raise InputTypeError(f"{name}: give a list or a generator of CCDData objects") from None


def items(value, name):
    if not isinstance(value, Mapping):
        raise InputTypeError(f"{name}: {type(value).__name__} is no dict: give one, by filter")
    return value


def _numbers(value, name):
    """An array of numbers in any unit, as it was given."""
    as_array(getattr(value, "value", value), name)
    return value


def whole_numbers(value, name):
    """Whole numbers, as they were given: bits of flags."""
    as_array(value, name)
    if np.asarray(value).dtype.kind not in "iu":
        raise InputTypeError(f"{name}: give whole numbers")
    return value


def _chosen(value, name):
    """Which ones are used: an array of bool."""
    try:
        value = np.asarray(value)
    except ValueError:  # ragged
        value = np.zeros(0)
    if value.dtype != bool or value.ndim != 1:
        raise InputTypeError(f"{name}: give True or False for each, in one row")
    return value


def _rows(value, name):
    if not isinstance(value, slice) or None in (value.start, value.stop):
        raise InputTypeError(f"{name}: {type(value).__name__}: give slice(first, last) of rows")
    return value


def _bytes(value, name):
    size = number(value, name)
    if not 0 < size < math.inf:
        raise InputError(f"{name} = {size:g}: give a number of bytes")
    return size


def _seconds(value, name):
    """A bare number, or a Quantity that converts to seconds: functions know which they want."""
    number(value, name, u.s)
    return value


def _dtype(value, name):
    try:
        kind = np.dtype(value)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "iuf":
        raise InputTypeError(f"{name}: a type of real numbers is needed")
    return value


def a_path(value, name):
    if not isinstance(value, str | os.PathLike):
        raise InputTypeError(f"{name}: {type(value).__name__} is not a path")
    if "\0" in str(value) or not str(value):
        raise InputTypeError(f"{name} = {str(value)[:80]!r} is not a path: give a folder or a file")
    return value


def _paths(value, name):
    """One path, or a list of them; those of an `ccdproc.ImageFileCollection`."""
    if isinstance(value, str | os.PathLike):
        return a_path(value, name)
    if hasattr(value, "files_filtered") and not isinstance(value, type):
        value = value.files_filtered(include_path=True)
    try:
        value = list(value)
    except TypeError:
        raise InputTypeError(f"{name}: {type(value).__name__} is neither path nor paths") from None
    return [a_path(each, name) for each in value]


#: Of methods that draw two pictures.
AXES = of_two(_with("plot"))
#: The names of arguments, by the rule that they obey.
RULES = {
    name: rule
    for rule, names in (
        (_above_zero, "n_sigma max_extrapolation max_temperature_difference "
                      "max_seeing fraction r_min intrinsic error"),
        (_not_negative, "min_value gradient_tolerance min_transparency min_snr floor rate_common "
                        "k_err"),
        (real(least=1e-3), "threshold tolerance max_rms"),
        (real(least=-math.inf, most=math.inf), "minmax_clip_min minmax_clip_max "
                                               "sigma_clip_low_thresh sigma_clip_high_thresh"),
        (real(), "rotation extinction scale_to"),
        (real(u.pix, above=0), "r r_out radius r_from"),
        (real(u.pix, least=0), "r_in"),
        (real(u.pix, least=0.1), "fwhm"),
        (real(u.pix, above=0, most=math.inf), "r_to"),
        (real(u.pix), "dx dy"),
        (real(u.pix, least=0, most=1e4), "dither"),
        (real(u.nm, above=0, most=1e6), "centre width"),
        (real(u.nm, least=-1e6, most=1e6), "shift"),
        (real(u.km / u.s, least=-3e4, most=3e4), "velocity"),
        (real(u.cm**2, above=0), "area"),
        (real(above=0, most=1), "peak"),
        (real(least=0, most=0.99), "obstruction"),
        (real(least=1, most=10), "index"),
        (real(least=0.3), "f_ratio"),
        (count(), "workers n_brightest box_size search"),
        (count(1000), "sample"),
        (count(0, 2**64 - 1), "seed"),
        (count(0, 10_000), "n_nights n_bias n_darks n_flats"),
        (lambda value, name: as_count(value, name, 0) or 0, "nlow nhigh maxiters"),
        (_bytes, "memory mem_limit"),
        (_seconds, "exposure"),
        (of_two(real()), "percentile_clip airmass"),
        (of_two(count(1, 100_000)), "shape"),
        (or_of(type(None), clip_limit), "clip"),
        (array(u.electron / u.s), "rate rate_err"),
        (array(u.mag), "colour"),
        (array(), "reference_err density"),
        (_numbers, "flux flux_err"),
        (array(u.pix), "radii x y"),
        (array(u.nm), "wavelength"),
        (or_of(str, array(ndim=1)), "weights"),
        (_chosen, "use"),
        (_rows, "rows"),
        (flag, "reject add_keyword clip_extrema minmax_clip sigma_clip return_count calibrated "
               "overwrite_output overwrite allow_overlap blends borrow budget flip match "
               "meridian_flip recentre shrink write_gain write_read_noise write_wcs"),
        (or_of(dict, flag), "cosmic_rays"),
        (_dtype, "dtype"),
        (as_unit, "unit"),
        (a_text, "kind name what"),
        (_card, "object_name"),
        (_times, "light_exposures dark_exposures"),
        (each(_card), "filters"),
        (a_path, "output_file output path folder"),
        (_paths, "nights paths calibration ignore"),
        (items, "set_keywords images"),
        (_stars, "stars"),
        (or_of((str, os.PathLike), a_table), "catalogue"),
        (each(of_class("FlatCheck")), "checks"),
        (of_class("Detector"), "detector"),
        (of_class("Settings"), "settings"),
        (of_class("GrowthCurves"), "curves profile"),
        (of_class("FilterCurve"), "curve line_curve continuum_curve"),
        (of_class("LineMap"), "line_map"),
        (of_class("RatioMap"), "balmer"),
        (of_class("NightModel"), "model"),
        (of_class("SpectralModel"), "spectra"),
        (of_class("Recipe", "DarkModel"), "masters"),
        (of_class("Alignment"), "other"),
        (items_of(of_class("LineMap")), "maps"),
        (items_of(real(least=0, most=1)), "parts"),
        (_with("get"), "header"),
        (_with("plot"), "ax"),
        (_with("submit"), "executor"),
        (_with("__call__"), "progress combine_uncertainty_function centroid_func scale_func "
                           "median_func sum_func uncertainty_func"),
    )
    for name in names.split()
}  # fmt: skip


def door(target=None, /, **rules):
    """
    Let only arguments through that obey the rule of their name; an omitted default always does.

    Parameters
    ----------
    target : callable or type
        A function, or a class, of which all public methods have doors.
    **rules
        Of arguments whose name means something of its own here; None: what is checked inside.
    """
    if target is None:
        return functools.partial(door, **rules)
    if isinstance(target, type):
        return _doors_of(target, rules)
    signature = inspect.signature(target)
    rules = {name: RULES.get(name) for name in signature.parameters} | rules
    rules = {name: rule for name, rule in rules.items() if rule and name in signature.parameters}

    @functools.wraps(target)
    def through_door(*args, **keywords):
        try:
            arguments = signature.bind(*args, **keywords)
        except TypeError:
            return target(*args, **keywords)  # Python says what is missing, or too much
        for name, value in arguments.arguments.items():
            if name in rules and value is not signature.parameters[name].default:
                arguments.arguments[name] = rules[name](value, name)
        return target(*arguments.args, **arguments.kwargs)

    return through_door


def check_fields(made, /, **rules):
    """Check the fields of a dataclass that was just made; a default obeys every rule."""
    for field in fields(made):
        rule = rules.get(field.name)
        if rule is not None and (value := getattr(made, field.name)) is not field.default:
            object.__setattr__(made, field.name, rule(value, field.name))


def _doors_of(kind, rules):
    """A class whose public methods have doors; its own tests are those of what it is made of."""
    for name, member in list(vars(kind).items()):
        function = getattr(member, "__func__", member)
        if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
            continue
        if name == "__call__" or not name.startswith("_"):
            behind = door(function, **rules)
            setattr(kind, name, behind if member is function else type(member)(behind))
    return kind
