"""
The same sources measured in every filter, at matched apertures, with growth curves.

Sources are found once, on the sum of all filters (or on one of them), and
measured at those positions in every filter: a source that a filter does not
show has a flux around zero with an error there, not a hole.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData
from astropy.table import QTable
from scipy import ndimage

from astro_narrowband._engine.annuli import sky_levels
from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.door import a_text, door, items
from astro_narrowband._engine.frames import Threads, row_bands, usable_cores
from astro_narrowband._engine.validate import bare
from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry._annulus import Flag, annulus_photometry
from astro_narrowband.photometry._blends import unlike_stars
from astro_narrowband.photometry._correction import correction_over_field, usual_correction
from astro_narrowband.photometry._counted import count_lost, count_other_cores, count_outside
from astro_narrowband.photometry._curves import diagnose_background
from astro_narrowband.photometry._growth import growth_curves
from astro_narrowband.photometry._isolated import isolated_stars, without_field
from astro_narrowband.photometry._measure import read_image
from astro_narrowband.photometry._shapes import measure_shapes

#: Radii in units of the widest filter's FWHM: aperture and annulus.
R_APERTURE, R_IN, R_OUT = 1.25, 3.0, 5.0
#: Where stars are narrower, circles and shapes show where in its pixel each is [pix].
SAMPLED = 2.4
#: A neighbour only ever adds: stars so many sigma from the median give no correction.
STRANGE = 2.5
#: Of the clipping of annuli, in sigma.
CLIP = 3.0
#: Stars for growth curves: signal over noise; as many as are wanted, and no more than so many.
MIN_SNR, MIN_STARS, MAX_STARS = 50.0, 5, 100
#: Of a source without a width, the signal over noise from which that is not by noise.
WINDOW_SNR = 10.0
#: A source whose core more than this part of the frames lacks has a profile of its own.
LACKING = 0.02
#: Of a correction that is not the star's own: its error, as a part of what it adds.
BORROWED, OTHER_PROFILE = 0.5, 0.45
#: Lost pixels hide the peak of a star where those beside them are higher by so many sigma.
PEAK = 10.0
#: The widest clump of such pixels, from the middle [pix].
REACH = 20
#: As many of the brightest stars tell the seeing of an image, if none is so many times as wide.
MAX_SEEING, WIDE = 300, 1.8
#: As many sources below that part of the median width are the stars of a field of knots.
NARROW, NARROW_PART = 0.8, 0.08
#: Rows of a band: it stays in the cache.
ROWS = 32


@dataclass(frozen=True, eq=False)
class Catalog:
    """
    Sources of one field in every filter.

    Attributes
    ----------
    tables : dict of str to `~astropy.table.QTable`
        For each filter one row per source, brightest first: ``id``, ``x_center``, ``y_center``,
        (``ra``, ``dec``), ``flux``, ``flux_err`` (corrected to the whole light of
        a point source), (``flux_err_common``, what all share besides),
        ``snr``, ``mag``, ``mag_err``, ``flux_aperture``,
        ``flux_aperture_err``, ``area``, ``sky``, ``sky_err``, ``sky_std``,
        ``n_sky``, ``fwhm`` (of the Gaussian that has the source's windowed moments;
        that of a Moffat profile is about a tenth less), ``flags``.
    merged : `~astropy.table.QTable`
        One row per source: positions, ``flux_<filter>``, ``flux_err_<filter>``,
        (``flux_err_common_<filter>``), ``flags_<filter>``, and ``flags``, all of them together.
    growth : dict of str to `~astro_narrowband.photometry.GrowthCurves`
        Of bright isolated stars; their ``id`` is that of the catalogue.
    corrections : dict of str to `~astro_narrowband.photometry.ApertureCorrection` or None
        None where no star was good enough.
    fwhm : dict of str to float
        Of the stars in each filter [pix], measured likewise.
    """

    tables: dict
    merged: QTable
    growth: dict = field(default_factory=dict)
    corrections: dict = field(default_factory=dict)
    fwhm: dict = field(default_factory=dict)

    @cached_property
    def background(self):
        """
        What `~astro_narrowband.diagnose_background` says of the growth curves, by filter.

        Every curve is fitted, when it is first asked for.
        """
        return {name: diagnose_background(curves) for name, curves in self.growth.items()}


@door(detect_on=a_text, saturation=items, coverage=items)
def make_catalog(
    images,
    *,
    detect_on=None,
    threshold=5.0,
    n_brightest=20_000,
    fwhm=None,
    sky="clipped_mean",
    saturation=None,
    coverage=None,
):
    """
    Find sources and measure them in every filter.

    Parameters
    ----------
    images : dict of str to `~astro_narrowband.coaddition.Coadd` or `~astropy.nddata.CCDData`
        By filter, on one grid of pixels.
    detect_on : str, optional
        Filter in which sources are looked for. Default is the sum of all, each
        in units of its noise.
    threshold : float, optional
        As for `~astro_narrowband.detect_stars`.
    n_brightest : int, optional
        No more sources than this.
    fwhm : float, optional
        Width that apertures are scaled to [pix]. Default is that of the stars in
        the widest filter.
    sky : optional
        As for `~astro_narrowband.photometry.annulus_photometry`.
    saturation : dict of str to number, optional
        Level in each image from which a pixel is saturated.
    coverage : dict of str to `~numpy.ndarray`, optional
        How many frames each pixel of an image was made of; a Coadd brings its own.

    Returns
    -------
    `Catalog`
        A table of each filter, one of all, and growth curves.

    Raises
    ------
    InputError
        If there are no images, or they are not on one grid.

    Notes
    -----
    The aperture has a radius of 1.25 FWHM of the widest filter in all filters, the annulus goes
    from 3 to 5: near enough for a nebula not to change much. A FWHM below 2.4 pix counts as
    that: in smaller circles the flux depends on where in its pixel a star is.
    Each filter's own stars give the correction to the whole light
    (`~astro_narrowband.photometry.aperture_correction`), the little that the annulus
    takes off included, and its error is part of ``flux_err``. It holds for point
    sources: wider ones are flagged EXTENDED, and their flux is the
    corrected one all the same. Stars that some frames lack, such as those that
    saturate in long exposures, have the seeing of the others: they are flagged
    PARTIAL, and serve for the correction only where there are not enough others,
    for it would be off by a percent. Where no star is good enough for a correction
    another filter's is used, half of what it adds being its error; where no filter has one
    that of usual profiles, some 1.10 +- 0.05. Both are flagged UNCORRECTED. PARTIAL stars have
    0.45 of what the correction adds in their error: that of a seeing 15 % different; where
    only the core is of other frames, what it has more or less light than the usual. Light of pixels
    that cannot be used is in the error, by a Moffat profile; where they have half of a star's or
    more its flux is NaN.
    Where the shape of stars changes over the field the correction follows it. Sources
    that are wider, longer or less dense than single stars of their place are flagged
    BLENDED; the denser the field, the less it takes. Their error has what a circle twice as
    wide has more than that of a star: the flux is that of all of them.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband import make_catalog
    >>> rng = np.random.default_rng(4)
    >>> y, x = np.mgrid[:200, :200]
    >>> def image(brightness):
    ...     data = rng.normal(10.0, 1.0, (200, 200))
    ...     for a, b in [(40, 50), (150, 60), (60, 150), (140, 140)]:
    ...         data += brightness * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4.0)
    ...     noise = StdDevUncertainty(np.ones((200, 200)))
    ...     return CCDData(data, unit="electron / s", uncertainty=noise)
    >>> catalog = make_catalog({"Halpha": image(400), "OIII": image(200)})
    >>> len(catalog.merged), sorted(catalog.tables)
    (4, ['Halpha', 'OIII'])
    """
    if not images:
        raise InputError("no images were given: a dict of filter to coadd is needed")
    ccds = {name: getattr(image, "ccd", image) for name, image in images.items()}
    counts = {name: getattr(image, "coverage", None) for name, image in images.items()}
    counts |= coverage or {}
    for name, ccd in ccds.items():
        if not isinstance(ccd, CCDData):
            raise InputError(f"{name}: {type(ccd).__name__} is neither Coadd nor CCDData")
    if len({ccd.data.shape for ccd in ccds.values()}) > 1:
        shapes = ", ".join(f"{name} {ccd.data.shape}" for name, ccd in ccds.items())
        raise InputError(f"images of different shapes ({shapes}): resample them to one grid")
    if detect_on is not None and detect_on not in ccds:
        raise InputError(f"detect_on = {detect_on!r} is not among {', '.join(ccds)}")
    searched = detection_image([ccds[detect_on]] if detect_on is not None else [*ccds.values()])
    stars = detect_stars(
        searched, threshold=threshold, n_brightest=n_brightest, fwhm=fwhm, blends=True
    )
    x, y = stars["x_center"].value, stars["y_center"].value
    typical = stars.meta["fwhm"] if fwhm is None else fwhm
    if not np.isfinite(typical):
        typical = 3.0
    with Threads(usable_cores()) as pool:
        seeing = list(pool.map(lambda ccd: _seeing(ccd, stars, typical), ccds.values()))
        scale = typical if fwhm is not None else max(*seeing, SAMPLED)

        def measure(name, point):
            options = {"sky": sky, "saturation": (saturation or {}).get(name)}
            partial = _partial(counts[name], x, y, scale)
            return _measure(name, ccds[name], stars, partial, point, scale, options)

        measured = list(pool.map(measure, ccds, seeing))
    tables, growth, corrections = (
        dict(zip(ccds, column, strict=True)) for column in zip(*measured, strict=True)
    )
    known = [correction for correction in corrections.values() if correction is not None]
    for name, table in tables.items():
        _correct(table, corrections[name], known)
    fwhms = dict(zip(ccds, seeing, strict=True))
    return Catalog(tables, _merge(tables), growth, corrections, fwhms)


def detection_image(ccds):
    """
    Return the sum of images, each less its sky and in units of its noise, as `CCDData`.

    Masked pixels do not count; where all are masked the sum is masked. What hides the peak of
    a star, such as pixels that are full in every frame, gets the highest value around it.
    """
    shape = ccds[0].data.shape
    total = np.zeros(shape, np.float32)
    lost = np.zeros(shape, np.uint8)
    scratch = np.empty((min(ROWS, shape[0]), shape[1]), np.float32)
    for ccd in ccds:
        mask = None if ccd.mask is None else np.asarray(ccd.mask)
        sample = ccd.data[::4, ::4]
        good = np.isfinite(sample)
        if mask is not None:
            good &= ~mask[::4, ::4]
        values = sample[good]
        if not values.size:
            lost += 1
            continue
        low, middle = np.percentile(values, [15.8655, 50])
        noise = middle - low if middle > low else 1.0
        level, scale = np.float32(middle), np.float32(1 / noise)
        for rows in row_bands(shape[0], ROWS):
            band = scratch[: rows.stop - rows.start]
            np.subtract(ccd.data[rows], level, out=band)
            band *= scale
            bad = ~np.isfinite(band)
            if mask is not None:
                bad |= mask[rows]
            # Few pixels are bad: they are gone to one by one.
            at = np.flatnonzero(bad)
            band.reshape(-1)[at] = 0
            lost[rows].reshape(-1)[at] += 1
            total[rows] += band
    # A sum of noise grows as the root of what went into it.
    total *= np.float32(len(ccds) ** -0.5)
    bad = lost != 0
    at = np.flatnonzero(bad)
    if not at.size:
        return CCDData(total, unit=u.dimensionless_unscaled)
    n_good = len(ccds) - lost.reshape(-1)[at].astype(np.float32)
    total.reshape(-1)[at] *= np.sqrt(len(ccds) / np.maximum(n_good, 1))
    mask = lost == len(ccds)
    _fill_peaks(total, bad, at, mask)
    return CCDData(total, mask=mask if mask.any() else None, unit=u.dimensionless_unscaled)


def _fill_peaks(image, lost, at, mask):
    """Fill clumps of lost pixels, those ``at``, that hide a peak; they are not masked then."""
    ny, nx = image.shape
    y, x = np.divmod(at, nx)
    inside = (np.minimum(y, x) >= REACH) & (y < ny - REACH) & (x < nx - REACH)
    y, x = y[inside], x[inside]
    highest = np.full(len(y), -np.inf, np.float32)
    for j, i in itertools.product((-1, 0, 1), repeat=2):
        np.maximum(highest, image[y + j, x + i], out=highest)
    filled = np.zeros_like(lost)
    eight = np.ones((3, 3))
    # Few are at a star.
    for j, i in zip(y[highest > PEAK], x[highest > PEAK], strict=True):
        box = slice(j - REACH, j + REACH + 1), slice(i - REACH, i + REACH + 1)
        labels = ndimage.label(lost[box], eight)[0]
        clump, values = labels == labels[REACH, REACH], image[box]
        rim = ndimage.binary_dilation(clump, eight)
        ring = ndimage.binary_dilation(rim, eight) & ~lost[box]
        whole = not (rim[0].any() or rim[-1].any() or rim[:, 0].any() or rim[:, -1].any())
        rim &= ~lost[box]
        if (
            whole and not filled[j, i] and values[rim].mean() > PEAK
            and values[rim].max() >= max(PEAK, values[ring].max())
        ):  # fmt: skip
            values[clump] = values[rim].max()
            filled[box] |= clump
            mask[box] &= ~clump


def _seeing(ccd, stars, typical):
    """Median FWHM of the good bright stars in one image [pix]."""
    use = ~stars["saturated"] & (stars["snr"] > 30) & (bare(stars["fwhm"]) < WIDE * typical)
    if use.sum() < 5:
        use = ~stars["saturated"]
    bright = stars[use][:MAX_SEEING]
    pixels = read_image(ccd).pixels._replace(noise=None, gain=None)
    x, y = bright["x_center"].value, bright["y_center"].value
    typical = max(typical, SAMPLED)
    sky = sky_levels(pixels, x, y, R_IN * typical, R_OUT * typical)
    width = measure_shapes(pixels, x, y, sky.median, sky.std, typical).fwhm
    width = width[np.isfinite(width)]
    if not len(width):
        return float(typical)
    narrow = width[width < NARROW * np.median(width)]
    # Nothing is narrower than a star: where many are, the others are knots of nebula, or pairs.
    return float(
        np.median(narrow if len(narrow) >= max(MIN_STARS, NARROW_PART * len(width)) else width)
    )


def _partial(coverage, x, y, scale):
    """Sources whose core, of 3 x 3 pixels, some frames lack, and those that have more around it."""
    if coverage is None:
        return np.zeros((2, len(x)), bool)

    def around(dy, dx):
        at_y = np.clip(np.rint(y[:, None] + dy).astype(int), 0, coverage.shape[0] - 1)
        at_x = np.clip(np.rint(x[:, None] + dx).astype(int), 0, coverage.shape[1] - 1)
        return coverage[at_y, at_x].mean(axis=1)

    angle = np.arange(16) * np.pi / 8
    core = around(*np.mgrid[-1:2, -1:2].reshape(2, -1))
    partial = core < (1 - LACKING) * np.percentile(coverage[::8, ::8], 90)
    ring = around(2 * scale * np.sin(angle), 2 * scale * np.cos(angle))
    return partial, partial & (core < (1 - LACKING) * ring)


def _measure(name, ccd, stars, partial, point, scale, options):
    """Measure one filter; return its table, growth curves and correction."""
    positions = QTable([stars["x_center"], stars["y_center"]])
    r = round(R_APERTURE * scale, 2)
    r_in, r_out = round(R_IN * scale, 2), round(R_OUT * scale, 2)
    options = {"r_in": r_in, "r_out": r_out, **options}
    table = annulus_photometry(ccd, positions, r=r, **options)
    flags = table["flags"]
    flags[stars["saturated"]] |= Flag.SATURATED
    flags[partial[0]] |= Flag.PARTIAL
    image = read_image(ccd)
    sky, std = (bare(table[name]) for name in ("sky", "sky_std"))
    shapes = measure_shapes(
        image.pixels, stars["x_center"].value, stars["y_center"].value, sky, std,
        max(point, 1.25 * SAMPLED),
    )  # fmt: skip
    width = shapes.fwhm
    with np.errstate(invalid="ignore", divide="ignore"):
        wide = width > point * (1.25 + 5 / np.maximum(table["snr"], 1e-3))
        # One that fills the window has no width.
        wide |= np.isnan(width) & np.isfinite(shapes.size) & (table["snr"] > WINDOW_SNR)
    flags[wide] |= Flag.EXTENDED
    unlike, whole, usual = unlike_stars(image.pixels, shapes, stars, table, r=r)
    flags[unlike] |= Flag.BLENDED
    count_outside(image, table, r)
    count_other_cores(table, partial[1], whole, usual)
    count_lost(image, table, r, point)
    curves, correction = _corrected(image, ccd, table, usual, scale, options)
    if correction is not None and correction.err > usual_correction(r, point).err:
        correction = None
    table.add_column(width * u.pix, index=table.colnames.index("flags"), name="fwhm")
    table.remove_column("aperture_sum")
    table.meta.update(filter=name, fwhm=point)
    if correction is not None:
        table.meta.update(
            correction=correction.factor, correction_err=correction.err,
            correction_model=correction.model, correction_scatter=correction.scatter,
            correction_stars=correction.n_used,
        )  # fmt: skip
    return table, curves, correction


def _corrected(image, ccd, table, usual, scale, options):
    """Growth curves of stars that are alone, and their `ApertureCorrection`; None without any."""
    x, y, flux = (bare(table[name]) for name in ("x_center", "y_center", "flux"))
    r, r_in = table.meta["r"], options["r_in"]
    # Where every star has a neighbour beside its annulus, as in the smallest fields, none beside
    # twice its circle is asked for.
    for outer, reach in ((r_in, r_in + 2 * scale), (2 * r, 2 * r + scale)):
        isolated = _isolated(x, y, flux, table, reach)
        grid = np.linspace(outer / 20, outer, 20)
        # Of two radii that are all but the same, the ring between them has no variance.
        radii = np.sort(np.append(grid[np.abs(grid - r) > 0.25 * (grid[1] - grid[0])], r))
        curves = growth_curves(ccd, table[isolated], radii, **options)
        # Neighbours were looked for above, with their brightness.
        curves = replace(
            curves, id=np.asarray(table["id"])[isolated], flags=curves.flags & ~int(Flag.NEIGHBOUR)
        )
        clean = ((curves.flags & ~np.int32(Flag.SKY_UNEVEN | Flag.SKY_EDGE)) == 0).all(axis=1)
        if clean.any():
            break
    else:
        return curves, None
    annulus = {name: options[name] for name in ("r_in", "r_out", "sky")}
    alone, err = without_field(
        image, curves[clean], (x, y, flux), reach, r_from=r, clip=CLIP, **annulus
    )
    correction = correction_over_field(
        alone, r, math.inf, use=np.ones(len(alone), bool), min_snr=MIN_SNR, clip=STRANGE,
        shape=usual,
    )  # fmt: skip
    return curves, correction._replace(
        err=math.hypot(correction.err, err), beyond=math.hypot(correction.beyond, err)
    )


def _correct(table, correction, known):
    """Add the whole light of a point source to a table: by its own or another correction."""
    flags = table["flags"]
    table.rename_columns(["flux", "flux_err"], ["flux_aperture", "flux_aperture_err"])
    flux, err = table["flux_aperture"], table["flux_aperture_err"]
    if correction is None:
        flags |= Flag.UNCORRECTED
        correction = usual_correction(table.meta["r"], table.meta["fwhm"])
        if known:
            # One correction for all keeps the ratios of lines; the seeing is another.
            correction = min(known, key=lambda one: one.err)
            unsure = math.hypot(correction.err, BORROWED * (correction.factor - 1))
            correction = correction._replace(err=unsure, surface=None)
        table.meta.update(correction=correction.factor, correction_err=correction.err)
    x, y = (table[name].value for name in ("x_center", "y_center"))
    whole, err = correction.apply(flux, err, x, y)
    other = (flags & Flag.PARTIAL) > 0
    err = np.sqrt(err**2 + (other * OTHER_PROFILE * (whole - flux)) ** 2)
    flux = whole
    if "flux_err_common" in table.colnames:
        table["flux_err_common"] = np.abs(flux) * table.meta["flux_err_common"]
    at = table.colnames.index("flux_aperture")
    table.add_columns([flux.copy(), err.copy()], indexes=[at, at], names=["flux", "flux_err"])
    value = bare(flux)
    relative = np.asarray(err / flux)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["snr"] = 1 / relative
        table["mag"] = np.where(value > 0, -2.5 * np.log10(value), np.nan) * u.mag
        table["mag_err"] = np.where(value > 0, 2.5 / np.log(10) * relative, np.nan) * u.mag


def _isolated(x, y, flux, table, reach):
    """Indices of bright, clean stars with no neighbour that disturbs them, brightest first."""
    bright = table["snr"] > MIN_SNR
    # Neighbours are looked at here, with their brightness. In a nebula no annulus is even.
    alone = Flag.NEIGHBOUR | Flag.SKY_EDGE
    uneven = alone | Flag.SKY_UNEVEN
    for allowed in (alone, uneven, uneven | Flag.PARTIAL):
        good = ((table["flags"] & ~np.int32(allowed)) == 0) & bright
        if good.sum() >= MIN_STARS:
            break
    chosen = np.flatnonzero(isolated_stars(x, y, flux, good, reach))
    return chosen[np.argsort(-flux[chosen])][:MAX_STARS]


def _merge(tables):
    """One row per source with the fluxes of all filters."""
    first = next(iter(tables.values()))
    names = [name for name in ("id", "x_center", "y_center", "ra", "dec") if name in first.colnames]
    merged = first[names].copy()
    merged.meta.clear()
    everything = np.zeros(len(first), np.int32)
    for name, table in tables.items():
        merged[f"flux_{name}"] = table["flux"]
        merged[f"flux_err_{name}"] = table["flux_err"]
        if "flux_err_common" in table.colnames:
            merged[f"flux_err_common_{name}"] = table["flux_err_common"]
        merged[f"flags_{name}"] = table["flags"]
        everything |= table["flags"]
    merged["flags"] = everything
    merged.meta["filters"] = list(tables)
    return merged
