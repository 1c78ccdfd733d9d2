"""The scale of a continuum: what stars have in the line filter over what they have in the other."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import uniform_filter

from astro_narrowband._engine.door import a_table, door
from astro_narrowband._engine.frames import Threads
from astro_narrowband._engine.statistics import mean_with_excess
from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry import annulus_photometry

#: Radii of apertures and annulus in units of the width.
R_APERTURE, R_WIDE, R_IN, R_OUT = 1.25, 2.5, 3.0, 5.0
#: Radius of the pixels whose slope is taken, in units of the width.
REACH = 1.6
#: Stars that are farther off than so many standard deviations are left out.
CLIP = 3.5
#: A slope with the colour that is less than so many errors is not taken for one.
SLOPE_SHOWS = 3.0
#: Stars whose pixels leave more than this of the slope open count only where few others are there.
SMOOTH, ENOUGH = 0.02, 8
#: Side of the mean that pixels lose before their ratio is taken.
SMOOTHED = 15
#: How well cores are matched to the whole light, before the stars say it: relative.
MATCHING = 0.01


@door(stars=a_table)
@dataclass(frozen=True)
class Scale:
    """
    How much of the continuum image the line image holds.

    Attributes
    ----------
    k, k_err : float
        The scale (of ``colour``) and its error: that of the mean of the stars, of what moves it
        to their whole light, and the standard deviation of the three estimates.
    n_stars : int
        That were used.
    ratio, slope, mode : float
        The three estimates: mean of the stars' flux ratios, slope of the stars' pixels, mode of
        their pixels' ratios, the scale at which the residuals of most are none.
    scatter : float
        From star to star beyond their noise, relative.
    colour, colour_slope, colour_slope_err : float
        ln k changes by ``colour_slope`` with the stars' colour; 0 where that does not show.
    """

    k: float
    k_err: float
    n_stars: int = 0
    ratio: float = math.nan
    slope: float = math.nan
    mode: float = math.nan
    scatter: float = math.nan
    colour: float = math.nan
    colour_slope: float = 0.0
    colour_slope_err: float = math.nan

    def k_of(self, stars):
        """The scale of each star: that of its colour, k where it has none."""
        if self.colour_slope == 0 or "colour" not in stars.colnames:
            return np.full(len(stars), self.k)
        away = self.colour_slope * (np.asarray(stars["colour"]) - self.colour)
        return self.k * np.exp(np.nan_to_num(away))

    def to_header(self, header):
        """Write KCONT, KCONTERR and what they stand on."""
        for keyword, value, comment in (
            ("KCONT", self.k, "scale of the continuum"),
            ("KCONTERR", self.k_err, "its standard error, common to all pixels"),
            ("KSTARS", self.n_stars, "stars used for it, 0: given"),
            ("KRATIO", self.ratio, "estimate: ratios of stars"),
            ("KSLOPE", self.slope, "estimate: slope of the stars' pixels"),
            ("KMODE", self.mode, "estimate: mode of the stars' pixels"),
            ("KSCATTER", self.scatter, "scatter from star to star, relative"),
            ("KCOLOUR", self.colour_slope, "change of ln k with colour, 0: none shows"),
            ("KCOLERR", self.colour_slope_err, "its standard error"),
        ):
            if isinstance(value, int) or math.isfinite(value):
                header[keyword] = (value, comment)


def measure_stars(line, continuum, stars, *, fwhm, min_snr):
    """
    Measure stars in both images at one aperture.

    Returns
    -------
    `~astropy.table.QTable`
        ``x_center``, ``y_center``, (``colour``), ``flux``, ``flux_err``, ``flux_continuum``,
        ``flux_continuum_err``, ``ratio``, ``ratio_err``, ``pixel_slope``, ``pixel_slope_err``,
        ``pixel_mode``; only stars that have ``min_snr`` in the continuum, and would have it in the
        line image with the ratio of most stars.
    """
    xy = np.column_stack([np.asarray(stars["x_center"]), np.asarray(stars["y_center"])])
    r, r_in, r_out = (f * fwhm for f in (R_APERTURE, R_IN, R_OUT))
    (n, n_err, c, c_err), whole = _fluxes((line, continuum), xy, r, r_in, r_out)
    (wide, wide_err, wide_c, wide_c_err), _ = _fluxes(
        (line, continuum), xy, R_WIDE * fwhm, r_in, r_out
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = whole & (c > min_snr * c_err) & (n > 0)
        seen = whole & (n > min_snr * n_err)
        # Not by their own light in the line filter: that would choose those that are bright in it.
        keep = whole & (c * np.median(n[seen] / c[seen]) > min_snr * n_err) if seen.any() else seen
    if keep.sum() < 5:
        negative = int((c < -3 * c_err).sum())
        why = f"; {negative} are negative in the continuum image" if negative else ""
        raise InputError(
            f"only {int(keep.sum())} of {len(xy)} stars have {min_snr:g} times their noise in "
            f"both images{why}: five are needed for the scale; give k and k_err"
        )
    table = stars[keep]
    table["flux"], table["flux_err"] = n[keep], n_err[keep]
    table["flux_continuum"], table["flux_continuum_err"] = c[keep], c_err[keep]
    circles = (n, n_err, c, c_err), (wide, wide_err, wide_c, wide_c_err)
    for name, values in zip(("ratio", "wide"), circles, strict=True):
        above, above_err, below, below_err = (v[keep] for v in values)
        with np.errstate(invalid="ignore", divide="ignore"):
            table[name] = above / below
            table[f"{name}_err"] = table[name] * np.hypot(above_err / above, below_err / below)
    fits = [_pixels(line.data, continuum.data, x, y, fwhm) for x, y in xy[keep]]
    table["pixel_slope"], table["pixel_slope_err"], table["pixel_mode"] = np.array(fits).T
    # Structure of the nebula under a star is in both images, and its own ratio is a steeper one.
    plain = table["pixel_slope_err"] < SMOOTH * np.nanmedian(table["pixel_slope"])
    table["smooth"] = plain if plain.sum() >= ENOUGH else True
    # The noise of matched images is correlated: the pixels say less than they seem to.
    table["pixel_slope_err"] = np.maximum(table["pixel_slope_err"], table["ratio_err"])
    usable = np.isfinite(table["pixel_slope"]) & (table["pixel_slope"] > 0) & table["smooth"]
    table.remove_column("smooth")
    if usable.sum() < 5:
        raise InputError(
            f"the scale of {int(usable.sum())} stars is positive: five are needed; is the "
            "continuum image negative? give k and k_err"
        )
    return table[usable]


def _fluxes(images, xy, r, r_in, r_out):
    """Fluxes and errors of stars in both images, and which have their whole aperture in both."""
    # A clipped mean leaves out more of what lies in the annulus where the noise is less.
    with Threads(2) as threads:
        measure = partial(annulus_photometry, r=r, r_in=r_in, r_out=r_out, sky="mean")
        tables = list(threads.map(lambda ccd: measure(ccd, xy), images))
    whole = [np.asarray(t["area"].value) > math.pi * r**2 - 0.5 for t in tables]
    values = [np.asarray(t[name].value) for t in tables for name in ("flux", "flux_err")]
    return values, whole[0] & whole[1]


def _pixels(line, continuum, x0, y0, fwhm):
    """
    Slope of a star's pixels, line over continuum, with a plane for what lies under it.

    Pixels count by a star's profile.

    Returns
    -------
    slope, error, mode : float
        The mode is that of the pixels of its core, each over its own continuum.
    """
    radius = REACH * fwhm
    rows = slice(max(0, round(y0 - radius)), round(y0 + radius) + 1)
    columns = slice(max(0, round(x0 - radius)), round(x0 + radius) + 1)
    a, b = (np.asarray(plane[rows, columns], float) for plane in (line, continuum))
    y, x = np.mgrid[: a.shape[0], : a.shape[1]]
    x, y = x + columns.start - x0, y + rows.start - y0
    inside = (np.hypot(x, y) <= radius) & np.isfinite(a + b)
    if inside.sum() < 16:
        return (math.nan,) * 3
    a, b, x, y = a[inside], b[inside], x[inside], y[inside]
    # Not the continuum's own pixels: structure of the nebula in them is in the line's as well.
    core_width = fwhm / (2 * math.sqrt(2 ** (1 / 3) - 1))
    profile = (1 + (x**2 + y**2) / core_width**2) ** -3
    design = np.column_stack([profile, np.ones_like(b), x, y])
    inverse = np.linalg.pinv(design)
    (line_flux, *_), (flux, *_) = inverse @ a, inverse @ b
    slope = line_flux / flux
    residual = a - slope * b
    residual -= design @ (inverse @ residual)
    error = math.sqrt(inverse[0] @ inverse[0] * (residual @ residual) / (len(a) - 4)) / abs(flux)
    under = np.median(b[np.hypot(x, y) > 0.85 * radius])
    core = b - under > 0.4 * (b.max() - under)
    ratio = slope + residual[core] / (b[core] - under)
    return float(slope), error, float(np.median(ratio))


def scale_of(stars, *, colour=None, colour_err=0.0):
    """
    Return the `Scale` of stars that `measure_stars` measured; adds ``used`` to them.

    ``colour`` is that of the continuum, with its error.

    Notes
    -----
    The scale is the mean of the slopes of the stars' pixels, which a smooth nebula under them
    does not change, moved from that of the cores to that of the whole light by the stars' wide
    apertures. Stars count by 1 / (their error^2 + scatter^2), where the scatter is what
    brings chi2 to the number of degrees of freedom: their spectra differ. The ratios of
    apertures and the mode of the pixels use the same stars in another way: the standard deviation
    of the three is added to the error.
    """
    log = np.log(np.asarray(stars["pixel_slope"], float))
    err = np.asarray(stars["pixel_slope_err"] / stars["pixel_slope"], float)
    colours = np.asarray(stars["colour"], float) if "colour" in stars.colnames else None
    mean, mean_err, used, scatter, term = robust_mean(log, err, colours, at=colour)
    stars["used"] = used
    weight = used / (err**2 + scatter**2)
    away = [0.0]
    for name in ("ratio", "pixel_mode"):
        # Spectra do as much to one as to the other: the differences hold none of that.
        values = np.asarray(stars[name], float)
        good = weight * (values > 0)
        away.append(
            good @ np.log(np.where(good > 0, values, 1.0) / stars["pixel_slope"]) / good.sum()
        )
    moved, moved_err = _whole_light(stars, log, used)
    variance = mean_err**2 + np.var(away, ddof=1) + moved_err**2 + (term[1] * colour_err) ** 2
    k, (slope, ratio, mode) = math.exp(mean + moved), np.exp(mean + np.array(away)).tolist()
    return Scale(k, k * math.sqrt(variance), int(used.sum()), ratio, slope, mode, scatter, *term)


def _whole_light(stars, log, used):
    """
    What the ratio of the whole light is more than that of the cores, and its error, in ln k.

    The mean of the stars, shrunk towards none by how well shapes are matched as a rule: what
    is extended has k of the whole light.
    """
    wide, err = (np.asarray(stars[name], float) for name in ("wide", "wide_err"))
    good = used & (wide > 0) & (err > 0) & np.isfinite(wide * err)
    if good.sum() < 5:
        return 0.0, MATCHING
    away, away_err, *_ = robust_mean(np.log(wide[good]) - log[good], err[good] / wide[good])
    share = MATCHING**2 / (MATCHING**2 + away_err**2)
    return share * away, math.sqrt(share) * away_err


def pixel_scale(line, continuum, bad):
    """
    Scale by the pixels, where stars are too few: that of the least absolute deviations.

    Parameters
    ----------
    line, continuum : array (ny, nx)
        Of stars of one width.
    bad : array of bool (ny, nx)

    Returns
    -------
    k, k_err : float
        The error is that of a jackknife over 8 x 8 parts of the image.

    Raises
    ------
    InputError
        If the image is small, or no positive scale comes out at three times its error.

    Notes
    -----
    Both images lose their mean over 15 x 15 pixels; the scale is the median of their ratio,
    weighted by the continuum. Where the line and the continuum have the same structure, as in a
    nebula that shines in both, it is too large.
    """
    good = np.float32(~bad)
    share = np.maximum(uniform_filter(good, SMOOTHED), 1e-3)
    a, b = (
        np.where(bad, 0, plane) - uniform_filter(np.where(bad, 0, plane), SMOOTHED) / share
        for plane in (np.float32(line), np.float32(continuum))
    )
    use = ~bad & (np.abs(b) > 0)
    if use.sum() < 64 * 25:
        raise InputError(f"only {int(use.sum())} good pixels: too few for a scale; give k")
    y, x = np.nonzero(use)
    block = y * 8 // bad.shape[0] * 8 + x * 8 // bad.shape[1]
    ratio, weight = a[use] / b[use], np.abs(b[use])
    order = np.argsort(ratio)
    ratio, weight, block = ratio[order], weight[order], block[order]

    def median(weight):
        total = np.cumsum(weight, dtype=float)
        return float(ratio[np.searchsorted(total, 0.5 * total[-1])])

    k = median(weight)
    without = np.array([median(np.where(block == p, 0, weight)) for p in np.unique(block)])
    error = math.sqrt((len(without) - 1) * np.mean((without - without.mean()) ** 2))
    if not k > 3 * error:
        raise InputError(
            f"the pixels say a scale of {k:.3g} +- {error:.2g}: it is not known to be positive; "
            "give k and k_err"
        )
    return k, error


def robust_mean(values, errors, colours=None, *, at=None):
    """
    Mean of values with their errors, a scatter of their own, clipping, and a slope if it shows.

    Returns
    -------
    mean, error : float
        At the colour ``at``, or at the mean colour.
    used : array of bool
    scatter : float
        Beyond the errors.
    term : (float, float, float)
        Colour of the mean, slope (0 where it does not show), error of the slope.
    """
    used = np.isfinite(values) & np.isfinite(errors)
    if colours is not None and (used & np.isfinite(colours)).sum() >= ENOUGH:
        used &= np.isfinite(colours)
    else:
        colours = None
    for _ in range(10):
        of_used = None if colours is None else colours[used]
        mean, error, scatter, term = _fit(values[used], errors[used], of_used, at)
        model = mean + (term[1] * (colours - term[0]) if term[1] else 0.0)
        deviation = np.abs(values - model) / np.sqrt(errors**2 + scatter**2)
        if scatter > 0:
            # One star far off widens the scatter that it is judged by.
            typical = np.median(np.abs(values - model)[used]) / 0.6745
            deviation = np.maximum(deviation, np.abs(values - model) / np.hypot(typical, errors))
        new = np.isfinite(deviation) & (deviation < CLIP)
        if new.sum() < 3 or (new == used).all():
            break
        used = new
    return mean, error, used, scatter, term


def _fit(values, errors, colours, at):
    mean, error, excess = mean_with_excess(values, errors**2)
    error = max(error, math.sqrt(excess / max(len(values) - 1, 1)))
    if colours is None or len(values) < ENOUGH or np.ptp(colours) == 0:
        return mean, error, math.sqrt(excess), (math.nan, 0.0, math.nan)
    for _ in range(20):
        weight = 1 / (errors**2 + excess)
        middle = (weight * colours).sum() / weight.sum()
        arm = colours - middle
        slope_err = 1 / math.sqrt((weight * arm**2).sum())
        slope = (weight * arm * values).sum() * slope_err**2
        wider = errors**2 * (len(values) / (len(values) - 1))
        *_, new = mean_with_excess(values - slope * arm, wider)
        if abs(new - excess) <= 1e-3 * excess:
            break
        excess = new
    if abs(slope) < SLOPE_SHOWS * slope_err:
        where = middle if at is None else at
        away = (where - middle) * max(abs(slope), slope_err)
        mean, error, excess = mean_with_excess(values, errors**2)
        return mean, math.hypot(error, away), math.sqrt(excess), (where, 0.0, slope_err)
    where = middle if at is None else at
    mean = float((weight * values).sum() / weight.sum()) + slope * (where - middle)
    error = math.hypot(1 / math.sqrt(weight.sum()), slope_err * (where - middle))
    return mean, error, math.sqrt(excess), (float(where), float(slope), float(slope_err))
