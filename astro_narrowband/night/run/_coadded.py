"""What is made of the coadds of a target: a WCS by a catalogue, sources, pictures."""

from functools import partial

from astropy.io import fits
from astropy.table import QTable

from astro_narrowband._engine.frames import FitsFrame, Threads, as_ccd
from astro_narrowband._engine.wcs import copy_wcs
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.night import figures
from astro_narrowband.photometry import diagnose_background, make_catalog


def grid_of(group):
    """What groups on one grid have in common: object and detector."""
    return group.object, repr(group.setup)


def place(night, ccd, group):
    """Give a new coadd the WCS of stars in the catalogue: those of the first on its grid."""
    from astro_narrowband.lines import match_catalogue  # which few runs need

    first = night.placed.get(grid_of(group))
    if first is not None:
        ccd.wcs = copy_wcs(ccd.header, first)
        ccd.header.extend(first.cards[keyword] for keyword in ("WCSRMS", "WCSSTARS"))
        return
    try:
        match = match_catalogue(ccd, night.settings.catalogue)
    except (AlignmentError, InputError) as error:
        night.messages.say(
            f"{group.label}: {night.settings.catalogue}: {error}: its WCS is left as it was"
        )
        return
    ccd.wcs = match.to_header(ccd.header)
    night.placed[grid_of(group)] = ccd.header


def catalogue(night, target, names, key):
    """Measure the sources of a target in every filter whose coadd has a name, on one grid."""
    if not names:
        return
    merged = f"catalog-{night.merged_name(target)}.ecsv"
    files = [f"{kind}-{names[g]}.ecsv" for g in names for kind in ("catalog", "growth")]
    key = night.products.key([(name, key) for name in names.values()], product="catalogues")
    there = [night.products.have(file, key) for file in [*files, merged]]
    if all(there):
        return
    # Coadds are read again where they are needed: memory does not grow while they are made.
    paths = {g.filter: night.products.path(f"coadd-{name}.fits") for g, name in names.items()}
    catalog = make_catalog(
        {filter_name: as_ccd(FitsFrame(path)) for filter_name, path in paths.items()},
        coverage={filter_name: fits.getdata(path, "NEXP") for filter_name, path in paths.items()},
    )
    for group in names:
        table, curves = catalog.tables[group.filter], catalog.growth.get(group.filter)
        # Without a star that is bright and alone there is no curve: an empty table says so.
        columns = ("id", "radius", "flux", "flux_err")
        growth = QTable(names=columns) if curves is None else curves.to_table()
        if curves is not None:
            verdicts = diagnose_background(curves)
            growth.meta["background"] = {
                int(star): str(words)
                for star, words in zip(verdicts["id"], verdicts["words"], strict=True)
            }
        night.products.write_table(f"catalog-{names[group]}.ecsv", table, key)
        night.products.write_table(f"growth-{names[group]}.ecsv", growth, key)
    night.products.write_table(merged, catalog.merged, key, night.said())


def picture(night, target, names, key):
    """Draw the coadds of a target and their colours at full size, where what draws is there."""
    if night.pictures is None:
        return
    paths = {group: night.products.path(f"coadd-{name}.fits") for group, name in names.items()}
    made = {group: fits.getdata(path, memmap=True) for group, path in paths.items()}
    key = night.products.key([(name, key) for name in names.values()], product="pictures")
    jobs = [(f"coadd-{names[g]}.png", figures.full_png, (made[g], g.filter)) for g in made]
    images = {}
    for group, image in made.items():
        if not images or image.shape == next(iter(images.values()))[1].shape:
            images.setdefault(group.filter, (group, image))
    planes = {name: image for name, (_, image) in images.items()}
    title = night.colour_name(target)
    for k, (name, recipe) in enumerate(figures.recipes(planes).items()):
        file, form = (f"{title}-{name}.jpg", "JPEG") if k else (f"{title}.png", "PNG")
        labels = [images[channel][0].label for channel in recipe]
        night.record["pictures"].append({"name": name, "path": file, "groups": labels})
        jobs.append((file, partial(figures.composite, form=form), (planes, recipe)))
    jobs = [job for job in jobs if not night.products.have(job[0], key)]
    with Threads(night.workers) as pool:
        list(pool.map(lambda j: night.products.write_bytes(j[0], j[1](*j[2]), key), jobs))
