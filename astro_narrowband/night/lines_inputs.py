"""What line maps are made of: coadds of a night, images of other programs, and filter curves."""

import warnings
from pathlib import Path

from astropy.nddata import CCDData

from astro_narrowband._engine.text import safe_name
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import canonical_filter
from astro_narrowband.lines import GENERIC, LINES, FilterCurve, read_image

__all__ = ["coadds_of", "curve_of"]


def coadds_of(folder, images):
    """The coadds in a folder by object and canonical filter, and the images that are given."""
    if folder is None and not images:
        raise InputError("no images: give the products of reduce, or --image FILTER=FILE")
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder: give the products of reduce")
    objects = {}
    for path in sorted(folder.glob("coadd-*.fits")) if folder is not None else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ccd = CCDData.read(path)
        name = canonical_filter(ccd.meta.get("FILTER", "unknown"))
        which = safe_name(str(ccd.meta.get("OBJECT", "") or "object"))
        if name in objects.setdefault(which, {}):
            raise InputError(f"{path}: a second coadd of {which} in {name}: keep one of them there")
        objects[which][name] = ccd
    if len(objects) > 1 and images:
        raise InputError(f"--image: of which of {', '.join(objects)}? reduce one object alone")
    for text, path in images:
        name, ccd = canonical_filter(text), read_image(path)
        ccd.meta["FILTER"] = name
        which = next(iter(objects), safe_name(str(ccd.meta.get("OBJECT", "") or "object")))
        objects.setdefault(which, {})[name] = ccd
    objects = {k: v for k, v in objects.items() if any(name in LINES for name in v)}
    if not objects:
        raise InputError(
            f"{folder or '--image'}: no image of a line filter ({', '.join(LINES)}) is there: give "
            "the products of reduce"
        )
    return objects


def curve_of(each, name, given, settings):
    """The curve of a filter: given, or its usual one, in the beam."""
    text = given.get(name)
    if text is None:
        if name not in GENERIC:
            return None
        centre, width = GENERIC[name]
        each.notes.append(
            f"{name}: no curve given, {centre:g} nm and {width:g} nm wide taken; give --curve "
            f"{name}=FILE or {name}=CENTRE,WIDTH"
        )
        curve = FilterCurve.generic(name)
    elif Path(text).is_file():
        curve = FilterCurve.from_file(text)
    else:
        try:
            numbers = [float(t) for t in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3):
            raise InputError(f"--curve {name}={text}: neither a file nor CENTRE,WIDTH[,PEAK] in nm")
        peak = numbers[2] if len(numbers) == 3 else 1.0
        curve = FilterCurve.from_shape(*numbers[:2], peak=peak, name=name)
    if settings.beam is None:
        return curve
    fast = curve.in_beam(settings.beam[0], obstruction=settings.beam[1])
    if name in LINES:
        lost = 1 - fast.response(name, velocity=settings.velocity) / curve.checked_response(name)
        if lost > 0.02:
            each.notes.append(
                f"{name}: the beam of f/{settings.beam[0]:g} loses {lost:.0%} of the line"
            )
    return fast
