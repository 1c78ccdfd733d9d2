"""Line fluxes of regions, with everything that is not known of them: the table a paper prints."""

import math
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.table import QTable

from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._map import (
    LineMap,
    noise_correlation,
    opened,
    pixel_area,
    random_variance,
)
from astro_narrowband.resampling import noise_factor

__all__ = ["read_regions", "region_fluxes"]


def read_regions(path):
    """
    Read a file of regions (DS9, CRTF or FITS) with the ``regions`` package.

    Returns
    -------
    regions : list
        Those to be measured.
    sky : list
        Those whose text or tag is ``sky`` or ``background``.
    """
    try:
        from regions import Regions
    except ImportError:
        raise InputError(f"{path}: needs regions: pip install 'astro-narrowband[lines]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        every = list(Regions.read(str(path)))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as regions ({reason})") from None
    names = [
        {str(r.meta.get("text", "")).lower(), *map(str.lower, r.meta.get("tag", []))} for r in every
    ]
    sky = [r for r, n in zip(every, names, strict=True) if n & {"sky", "background"}]
    regions = [r for r, n in zip(every, names, strict=True) if not n & {"sky", "background"}]
    if not regions:
        raise InputError(f"{path}: holds no region to be measured")
    return regions, sky


def region_fluxes(line_map, regions, *, sky=None):
    """
    Measure the flux of a line in regions.

    Parameters
    ----------
    line_map : LineMap or `~astropy.nddata.CCDData`
    regions : sequence of `regions.Region`
        Circles, ellipses, polygons ..., in pixels, or on the sky where the map has a WCS.
    sky : sequence of `regions.Region`, optional
        Where there is no line: their mean is the zero of the map. Without them the map's own
        zero is believed, as it is after a subtraction of skies.

    Returns
    -------
    `~astropy.table.QTable`
        ``region`` (its text, or number), ``area`` [pix] (of good pixels), ``covered`` (their
        part of the region), ``flux``, ``flux_err``, ``snr``, and each term of the error:
        ``err_noise``, ``err_sky``, and one column for every common error of the map, as
        ``err_continuum`` and ``err_flux_scale``; with a WCS ``solid_angle`` [arcsec2] and
        ``brightness`` per arcsec2.

    Raises
    ------
    InputError
        If a region or the sky has no good pixel, or a region on the sky meets no WCS.

    Notes
    -----
    err_noise^2 = sum(w^2 V) f^2, f after `~astro_narrowband.resampling.noise_factor`;
    err_sky^2 = A^2 (sum of V in the sky, f = 1) / n_sky^2; a common error counts as the sum of
    what it does to the pixels, less the mean of it in the sky: it does not average down.
    Masked pixels are not filled in: the flux is that of the good ones, ``covered`` says so.
    """
    ccd = opened(line_map, "the line map")
    bad = ~np.isfinite(ccd.data) | ~np.isfinite(ccd.uncertainty.array)
    if ccd.mask is not None:
        bad |= np.asarray(ccd.mask, bool)
    variance = random_variance(ccd)
    patterns = ccd.patterns() if isinstance(ccd, LineMap) else {}
    zero = _zero(ccd, sky, bad, variance, patterns) if sky else None
    rows = []
    for number, region in enumerate(regions, start=1):
        rows.append(_row(ccd, region, number, bad, variance, patterns, zero))
    table = QTable(rows=rows)
    for name in table.colnames:
        if name.startswith(("flux", "err_")):
            table[name] = table[name] * ccd.unit
    table["area"] = table["area"] * u.pix
    if ccd.wcs is not None:
        table["solid_angle"] = table["area"].value * pixel_area(ccd) * u.arcsec**2
        table["brightness"] = table["flux"] / table["solid_angle"]
    return table


def _weights(ccd, region, bad, name):
    """Weights of the pixels of a region, and where they are; InputError where none is good."""
    if hasattr(region, "to_pixel"):
        if ccd.wcs is None:
            raise InputError(f"region {name} is on the sky, and the map has no WCS")
        region = region.to_pixel(ccd.wcs.celestial)
    mode = (
        "exact"
        if type(region).__name__.startswith(("Circle", "Ellipse", "Rectangle"))
        else "subpixels"
    )
    mask = region.to_mask(mode=mode) if mode == "exact" else region.to_mask(mode=mode, subpixels=10)
    large, small = mask.get_overlap_slices(ccd.data.shape)
    if large is None:
        raise InputError(f"region {name} lies outside of the map")
    weight = mask.data[small] * ~bad[large]
    if weight.sum() <= 0:
        raise InputError(f"region {name}: every pixel of it is masked: nothing can be measured")
    return weight, large, float(weight.sum() / mask.data.sum())


def _zero(ccd, sky, bad, variance, patterns):
    """Mean of the sky's regions, its variance, and the mean of each common error there."""
    total = dict.fromkeys(("area", "sum", "variance", *patterns), 0.0)
    for number, region in enumerate(sky, start=1):
        weight, where, _ = _weights(ccd, region, bad, f"sky {number}")
        used = weight > 0
        total["area"] += weight.sum()
        total["sum"] += float((weight * np.where(used, ccd.data[where], 0)).sum())
        total["variance"] += float((weight**2 * np.where(used, variance[where], 0)).sum())
        for name, plane in patterns.items():
            total[name] += float((weight * np.where(used, plane[where], 0)).sum())
    area = total.pop("area")
    return {"variance": total.pop("variance") / area**2} | {k: v / area for k, v in total.items()}


def _row(ccd, region, number, bad, variance, patterns, zero):
    name = str(region.meta.get("text", "") or number)
    weight, where, covered = _weights(ccd, region, bad, name)
    used, area = weight > 0, float(weight.sum())
    level = zero["sum"] if zero else 0.0
    flux = float((weight * np.where(used, ccd.data[where], 0)).sum()) - area * level
    factor = noise_factor(noise_correlation(ccd), area)
    noise = factor * math.sqrt(float((weight**2 * np.where(used, variance[where], 0)).sum()))
    errors = {"err_noise": noise, "err_sky": area * math.sqrt(zero["variance"]) if zero else 0.0}
    for what, plane in patterns.items():
        shared = float((weight * np.where(used, plane[where], 0)).sum())
        shared -= area * zero[what] if zero else 0.0
        errors[f"err_{what.replace(' ', '_')}"] = abs(shared)
    total = math.hypot(*errors.values())
    return {"region": name, "area": area, "covered": covered, "flux": flux, "flux_err": total,
            "snr": flux / total if total else math.nan} | errors  # fmt: skip
