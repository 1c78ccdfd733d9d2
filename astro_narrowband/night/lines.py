"""
From the coadds of a reduced night to line maps, ratios and a table of regions.

What is not known is said, and not made up: without a continuum filter the maps hold the
continuum, without reference stars they stay in electron/s.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, vstack
from astropy.wcs.utils import proj_plane_pixel_scales
from scipy.spatial import cKDTree

from astro_narrowband.exceptions import InputError, warn
from astro_narrowband.filters import canonical_filter
from astro_narrowband.lines import (
    LINES,
    LineMap,
    calibrate_flux,
    correct_blend,
    extinction,
    flux_scale,
    line_in_continuum,
    line_ratio,
    match_catalogue,
    read_catalogue,
    read_regions,
    reference_colours,
    reference_fluxes,
    region_fluxes,
    region_ratios,
    restore_lines,
    scale_of_area,
    separate_lines,
    subtract_continuum,
    subtract_sky,
)
from astro_narrowband.night.lines_inputs import coadds_of, curve_of
from astro_narrowband.night.lines_page import facts_of, facts_of_ratio, render_lines
from astro_narrowband.night.products import Products
from astro_narrowband.photometry import Flag

__all__ = ["LineSettings", "make_lines"]

#: Ratios that are made where both lines are there.
RATIOS = (("SII", "Halpha"), ("OIII", "Halpha"), ("NII", "Halpha"), ("Halpha", "Hbeta"))
#: Signal over noise of a reference star.
MIN_SNR = 20.0
#: Part of a star's flux that a source in its annulus may have, where so many stars have no more.
NEIGHBOUR, ENOUGH = 0.02, 8


@dataclass(frozen=True, kw_only=True)
class LineSettings:
    """
    What ``astro-narrowband lines`` is told.

    Attributes
    ----------
    curves : tuple of (str, str)
        Filter and its curve: a file, or ``CENTRE,WIDTH`` or ``CENTRE,WIDTH,PEAK`` in nm.
    continuum : str or None
        The continuum filter; by default the broad one nearest to each line.
    beam : (float, float) or None
        f-ratio and obstruction.
    velocity : float
        Of the source [km/s].
    references : str or None
        Catalogue of stars of known spectra or AB magnitudes.
    nii : (float, float) or None
        [NII] 6583 over Halpha, and its error.
    regions : str or None
        File of regions.
    min_snr : float
        A line is seen in a pixel from so many standard deviations on.
    floor : float
        Relative error that all reference stars share, or that of ``area`` and the curves.
    images : tuple of (str, str)
        Filter and its image, made by another program.
    scales : tuple of (str, str)
        Line and the scale of its continuum: ``K,ERROR``, ``header`` or ``pixels``; by default the
        stars say it.
    widths : tuple of (str, float)
        Filter and the width of its stars [pix], where they cannot be measured.
    area : float or None
        Collecting area [cm2], where the curves hold the throughput and there are no references.
    """

    curves: tuple = ()
    images: tuple = ()
    scales: tuple = ()
    widths: tuple = ()
    area: float | None = None
    continuum: str | None = None
    beam: tuple | None = None
    velocity: float = 0.0
    references: str | None = None
    nii: tuple | None = None
    regions: str | None = None
    min_snr: float = 3.0
    floor: float = 0.03


@dataclass
class _Field:
    """What was made of one object."""

    name: str
    images: dict
    curves: dict = field(default_factory=dict)
    maps: dict = field(default_factory=dict)
    references: tuple | None = None
    matches: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    ratios: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    regions: QTable | None = None
    region_ratios: QTable | None = None


def make_lines(folder, output, *, settings=None):
    """
    Make line maps, ratios and regions of the coadds in a folder.

    Parameters
    ----------
    folder : path-like or None
        Products of ``reduce``; None where ``settings.images`` are all.
    output : path-like
        Where ``line-<object>-<line>.fits``, ``ratio-<object>-<a>-<b>.fits``,
        ``regions-<object>.ecsv``, ``regions-<object>-ratios.ecsv``,
        ``scale-<object>-<line>.ecsv``, ``lines.json`` and ``lines.html`` go.
    settings : LineSettings, optional

    Returns
    -------
    dict
        The record that ``lines.json`` holds.

    Raises
    ------
    InputError
        If no coadd of a line filter is there, or a setting cannot be used.
    """
    settings = settings or LineSettings()
    folder = None if folder is None else Path(folder)
    fields = [_Field(name, images) for name, images in coadds_of(folder, settings.images).items()]
    record = {"settings": asdict(settings), "objects": []}
    with Products(output, settings=record["settings"], resume=False) as products:
        names = [
            f"{kind}-{f.name}*" for f in fields for kind in ("line", "ratio", "regions", "scale")
        ]
        products.claim([*names, "lines.json", "lines.html"])
        for each in fields:
            _make(each, folder, settings)
            _write(each, products)
            for note in each.notes:
                warn(f"{each.name}: {note}", stacklevel=2)
            record["objects"].append(
                {"name": each.name, "notes": each.notes, "lines": each.facts,
                 "ratios": {f"{a}/{b}": facts_of_ratio(r) for (a, b), r in each.ratios.items()}}
            )  # fmt: skip
        products.write_json("lines.json", record)
        products.write_text("lines.html", render_lines(fields, record["settings"]))
    return record


def _make(each, folder, settings):
    given = {canonical_filter(name): text for name, text in settings.curves}
    for name in each.images:
        each.curves[name] = curve_of(each, name, given, settings)
    names = [name for name in LINES if name in each.images]
    each.references = settings.references and _references(settings.references)
    for name in names:
        each.curves[name].checked_response(name, velocity=settings.velocity)
        if settings.references:
            each.matches[name] = _matched(each, name, folder)
        each.maps[name] = _subtract(each, name, settings)
    _restore(each, settings)
    for name in each.matches:
        _calibrate(each, name, settings)
    for name in names if settings.area and not settings.references else ():
        scale = scale_of_area(
            each.curves[name], name, area=settings.area, error=settings.floor,
            velocity=settings.velocity,
        )  # fmt: skip
        each.scales[name] = (scale, None)
        each.maps[name] = calibrate_flux(each.maps[name], scale)
    _unblend(each, settings)
    regions, sky = read_regions(settings.regions) if settings.regions else ((), ())
    _take_sky(each, settings, sky)
    calibrated = [name for name in names if name in each.scales]
    for a, b in RATIOS:
        if a in each.maps and b in each.maps and (a in calibrated) == (b in calibrated):
            each.ratios[a, b] = line_ratio(each.maps[a], each.maps[b], min_snr=settings.min_snr)
    if each.ratios and not calibrated:
        each.notes.append(
            "no flux scale: ratios are those of electrons, not of fluxes; give --references"
        )
    if regions:
        _regions(each, settings, regions, sky)
    for name in names:
        each.facts[name] = facts_of(each.maps[name], name)


def _subtract(each, name, settings):
    broad = [n for n in each.images if n not in LINES and each.curves[n] is not None]
    chosen = settings.continuum and canonical_filter(settings.continuum)
    if chosen is not None and chosen not in each.images:
        raise InputError(f"--continuum {settings.continuum}: {each.name} has no coadd in it")
    if chosen is not None and each.curves[chosen] is None:
        raise InputError(f"--continuum {settings.continuum}: give its curve with --curve")
    if chosen == name:
        raise InputError(f"--continuum {settings.continuum}: it is the line's own filter")
    at = LINES[name].wavelengths[0]
    usable = [chosen] if chosen else sorted(broad, key=lambda n: abs(each.curves[n].centre - at))
    if not usable:
        each.notes.append(f"{name}: no continuum filter: the map holds the continuum as well")
        return LineMap(each.images[name])
    by_filter = [{canonical_filter(k): v for k, v in pairs}
                 for pairs in (settings.scales, settings.widths)]  # fmt: skip
    k, k_err = _scale_given(by_filter[0].get(name))
    widths = [by_filter[1].get(n) for n in (name, usable[0])]
    if widths.count(None) == 1:
        raise InputError(f"--fwhm: {name} and {usable[0]} need one each, or neither")
    stars = _coloured(each, name, usable[0], settings) if name in each.matches else None
    result = subtract_continuum(
        each.images[name], each.images[usable[0]], k=k, k_err=k_err, stars=stars,
        fwhm=None if None in widths else widths,
    )  # fmt: skip
    result.meta["KFILTER"] = (usable[0], "continuum filter")
    return result


def _scale_given(text):
    """The scale of a continuum and its error as ``--scale`` says them."""
    if text is None or text in ("header", "pixels"):
        return text, 0.0
    try:
        k, k_err = (float(t) for t in text.split(","))
    except ValueError:
        raise InputError(f"--scale {text}: neither K,ERROR nor header nor pixels") from None
    return k, k_err


def _restore(each, settings):
    """Give back what all lines in a continuum filter took from each map."""
    for broad in {str(m.meta["KFILTER"]) for m in each.maps.values() if "KFILTER" in m.meta}:
        maps = {n: m for n, m in each.maps.items() if m.meta.get("KFILTER") == broad}
        parts = {n: _part(each, n, broad, settings) for n in maps}
        halpha = each.curves.get("Halpha")
        if "NII" in parts and "Halpha" in parts and halpha.response("NII") > 300:
            del parts["NII"]  # what it took is in the part of Halpha's filter
        each.maps |= restore_lines(maps, parts)


def _part(each, name, broad, settings):
    """Part of a line, and of [NII] with Halpha, that the continuum filter takes."""
    curve_of_line, other = each.curves[name], each.curves[broad]
    fraction = line_in_continuum(curve_of_line, other, name, velocity=settings.velocity)
    if name != "Halpha" or settings.nii is None:
        return fraction
    halpha, nii = (
        [curve.response(line, velocity=settings.velocity) for curve in (curve_of_line, other)]
        for line in ("Halpha", "NII")
    )
    # Where the broad filter does not see Halpha, it sees next to nothing of [NII].
    more = [1 + settings.nii[0] * n / h if h else 1.0 for h, n in zip(halpha, nii, strict=True)]
    return fraction * more[1] / more[0] if halpha[1] else fraction


def _references(path):
    """The reference stars, brightest first, and where they are on the sky."""
    table, sky = read_catalogue(path)
    if "flux" in table.colnames and table["flux"].ndim == 2:  # as GaiaXPy names its spectra
        table.rename_column("flux", "spectrum")
    return table, sky


def _matched(each, name, folder):
    """The match of reference stars with those that reduce measured, and these: ``star_flux``."""
    path = (folder or Path()) / f"catalog-{each.name}-{name}.ecsv"
    if not path.is_file():
        raise InputError(f"{path}: is missing: reference stars are measured there by reduce")
    measured = QTable.read(path)
    # A sky that is not even makes an error larger, which it is; the rest makes a flux wrong.
    wrong = sum(int(flag) for flag in Flag if not flag.name.startswith("SKY"))
    # What all stars share of the aperture correction makes none of them fainter.
    seen = measured["flux_aperture"] > MIN_SNR * measured["flux_aperture_err"]
    good = measured[(np.asarray(measured["flags"]) & wrong == 0) & seen]
    if len(good) < 3:
        raise InputError(f"{path}: {len(good)} unflagged stars of S/N {MIN_SNR:g}: 3 are needed")
    stars = good["x_center", "y_center", "flux", "flux_err"]
    # Nor does it make bright stars count like faint ones.
    spread = measured.meta.get("correction_scatter", 0) / measured.meta["correction"]
    own = np.hypot(good["flux_aperture_err"] / good["flux_aperture"], spread)
    stars["flux_err"] = stars["flux"] * own
    table = each.references[0].copy()
    table.remove_columns([c for c in stars.colnames if c in table.colnames])
    match = match_catalogue(each.images[name], table, stars=stars)
    for column in ("flux", "flux_err"):
        match.stars.rename_column(column, f"star_{column}")
    match.stars["star_flux"][~_alone(match.stars, measured)] = np.nan
    return match, measured


def _alone(stars, measured):
    """Which stars have no listed source in their annuli; all where such stars are few."""
    # Wings that clipping leaves there are taken for sky: no more than one star's error, but common.
    places = [np.column_stack([t["x_center"], t["y_center"]]) for t in (stars, measured)]
    reach = measured.meta["r_out"] + measured.meta["fwhm"]
    near = cKDTree(places[1]).query_ball_point(places[0], reach)  # the star itself is one
    light, least = measured["flux"].value, NEIGHBOUR * stars["star_flux"].value
    alone = np.array([(light[i] > f).sum() == 1 for i, f in zip(near, least, strict=True)])
    return alone if alone.sum() >= ENOUGH else np.ones_like(alone)


def _coloured(each, name, broad, settings):
    """The stars that reduce measured, with what references say of their colours, or None."""
    match, measured = each.matches[name]
    table, sky = each.references
    stars = measured["x_center", "y_center"]
    try:
        colours = reference_colours(
            table, (each.curves[name], each.curves[broad]), source=settings.references
        )
    except InputError as error:
        each.notes.append(f"{name}: one scale for stars of all colours: {error}")
        return None
    place = match.wcs.pixel_to_world(*(stars[c].value for c in stars.colnames))
    nearest, apart, _ = place.match_to_catalog_sky(sky)
    near = apart < 2 * proj_plane_pixel_scales(match.wcs)[0] * u.deg
    stars["colour"] = np.where(near, colours[nearest], np.nan)
    return stars


def _calibrate(each, name, settings):
    """Give a map its flux scale, in place of the map."""
    match, measured = each.matches[name]
    if each.maps[name].wcs is None:
        each.maps[name].wcs = match.wcs
    reference, colour = reference_fluxes(
        match.stars, each.curves[name], name, velocity=settings.velocity,
        source=settings.references,
    )  # fmt: skip
    rate = match.stars["star_flux"].to_value(u.electron / u.s)
    error = match.stars["star_flux_err"].to_value(u.electron / u.s)
    correction, err, model = (
        measured.meta.get(key, usual)
        for key, usual in (("correction", 1), ("correction_err", 0), ("correction_model", 0))
    )
    # The light far out that no star shows is part of the floor.
    scale = flux_scale(
        rate, reference, rate_err=error, colour=colour, floor=settings.floor,
        rate_common=math.sqrt(max(err**2 - model**2, 0.0)) / correction,
    )  # fmt: skip
    each.scales[name] = (scale, match)
    each.maps[name] = calibrate_flux(each.maps[name], scale)


def _unblend(each, settings):
    """Take [NII] out of Halpha: by its own filter, or by the ratio that is given."""
    if "Halpha" not in each.maps:
        return
    share = each.curves["Halpha"].response("NII", velocity=settings.velocity)
    share /= each.curves["Halpha"].checked_response("Halpha", velocity=settings.velocity)
    if "NII" in each.maps and "NII" in each.scales and "Halpha" in each.scales:
        each.maps["Halpha"], each.maps["NII"] = separate_lines(
            each.maps["Halpha"], each.maps["NII"], velocity=settings.velocity,
            curves=(each.curves["Halpha"], each.curves["NII"]),
        )  # fmt: skip
    elif settings.nii is not None:
        each.maps["Halpha"] = correct_blend(
            each.maps["Halpha"], settings.nii[0], ratio_err=settings.nii[1],
            curve=each.curves["Halpha"], velocity=settings.velocity,
        )  # fmt: skip
    elif share > 0.02:
        each.notes.append(
            f"Halpha: holds [NII], as {share:.2f} times the flux of 6583; give --nii RATIO,ERROR"
        )


def _take_sky(each, settings, sky):
    """Take off the sky that is left in the maps, by its regions or where they are darkest."""
    calibrated = {canonical_filter(name) for name, _ in settings.images}
    darkest = [name for name in each.maps if not sky and name not in calibrated]
    for name in each.maps if sky else darkest:
        each.maps[name] = subtract_sky(each.maps[name], sky=sky)
    if darkest:
        each.notes.append(
            f"{', '.join(darkest)}: the sky is taken to be what is darkest in the map, which holds "
            "line where that is everywhere; give --regions with some that are named sky"
        )


def _regions(each, settings, regions, sky):
    path = settings.regions
    if not sky and settings.images:
        each.notes.append(
            f"{path}: no region is named sky: the zero of the images is believed, which holds the "
            "sky that is left in them"
        )
    maps, units = each.maps, {str(line_map.unit) for line_map in each.maps.values()}
    if len(units) > 1:
        raise InputError(f"{path}: lines in {' and '.join(sorted(units))}: calibrate all, or none")
    each.regions = _stacked(
        "line", {n: region_fluxes(m, regions, sky=sky) for n, m in maps.items()}
    )
    each.region_ratios = _stacked("lines", {
        f"{a}/{b}": region_ratios(maps[a], maps[b], regions, sky=sky, min_snr=settings.min_snr)
        for a, b in each.ratios
    })  # fmt: skip


def _stacked(column, tables):
    """One table of many, with their names as a column; None of none."""
    for name, table in tables.items():
        table.add_column([name] * len(table), name=column, index=1)
    return vstack(list(tables.values()), metadata_conflicts="silent") if tables else None


def _write(each, products):
    for name, line_map in each.maps.items():
        products.write_fits(f"line-{each.name}-{name}.fits", line_map.to_hdul())
        if line_map.stars is not None:
            products.write_table(f"scale-{each.name}-{name}.ecsv", line_map.stars)
    for (a, b), ratio in each.ratios.items():
        hdul = ratio.to_hdul()
        if (a, b) == ("Halpha", "Hbeta") and a in each.scales:
            dust = extinction(ratio)
            hdul.append(fits.ImageHDU(np.float32(dust.ebv), name="EBV"))
            hdul.append(fits.ImageHDU(np.float32(dust.a_halpha), name="AHALPHA"))
        products.write_fits(f"ratio-{each.name}-{a}-{b}.fits", hdul)
    if each.regions is not None:
        products.write_table(f"regions-{each.name}.ecsv", each.regions)
    if each.region_ratios is not None:
        products.write_table(f"regions-{each.name}-ratios.ecsv", each.region_ratios)
