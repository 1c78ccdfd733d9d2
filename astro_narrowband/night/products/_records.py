"""Records as JSON, and what a product was made of and how."""

import functools
import hashlib
import json
import math
import platform
from importlib import metadata
from pathlib import Path

import numpy as np

from astro_narrowband._engine.text import one_line
from astro_narrowband.exceptions import InputError

_PACKAGES = ("numpy", "scipy", "astropy", "ccdproc", "photutils", "astroalign", "sep")


@functools.cache
def software():
    """
    Return the versions that a result may depend on, by name of the package.

    Examples
    --------
    >>> from astro_narrowband.night.products import software
    >>> list(software())[:3]
    ['astro_narrowband', 'python', 'numpy']
    """
    versions = {"astro_narrowband": version_of("astro-narrowband")}
    versions["python"] = platform.python_version()
    for name in _PACKAGES:
        versions[name] = version_of(name)
    return versions


def version_of(name):
    """Return the version of a package, ``"unknown"`` if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _plain(value):
    """Turn numpy, units and paths into what JSON has; what is not finite into None."""
    if isinstance(value, dict):
        return {one_line(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if hasattr(value, "unit") and hasattr(value, "value"):
        value = value.value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
        return _plain(value) if isinstance(value, list) else _plain_scalar(value)
    return _plain_scalar(value)


def _plain_scalar(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return one_line(value)


def strict_json(record):
    """
    Return a record as JSON that every reader takes: no NaN, no control characters.

    Parameters
    ----------
    record : dict
        Of numbers (also of numpy, also with units, which are dropped), texts,
        paths, lists and dicts. Numbers that are not finite become ``null``.

    Returns
    -------
    str

    Examples
    --------
    >>> from astro_narrowband.night.products import strict_json
    >>> print(strict_json({"sky": float("nan"), "n": 3}))
    {
     "sky": null,
     "n": 3
    }
    """
    return json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=True)


def read_record(path):
    """
    Read ``night.json``.

    Raises
    ------
    InputError
        If it is not there, or not a record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{one_line(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{one_line(path)}: is not JSON: run reduce again") from None
    if not isinstance(record, dict):
        raise InputError(f"{one_line(path)}: holds no record: run reduce again")
    return record


def provenance_key(inputs, settings):
    """
    Return what a product was made of and how, as 64 hexadecimal digits.

    Parameters
    ----------
    inputs : mapping
        Name to SHA-256 of each input, in any order.
    settings : mapping
        Whatever changes the result; anything `strict_json` takes.

    Returns
    -------
    str
        Other inputs, names, settings or versions of software give another key.
    """
    parts = [sorted(inputs.items()), settings, software()]
    text = json.dumps(_plain(parts), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
