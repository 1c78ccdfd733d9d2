"""What the circles of a catalogue have too much or too little of, counted in its errors."""

import math

import numpy as np

from astro_narrowband._engine.apertures import circle_sums, overlap
from astro_narrowband._engine.validate import bare
from astro_narrowband.photometry._annulus import Flag

#: Signal over noise of stars that tell what a wide circle has.
MIN_SNR = 50.0
#: Square of the core radius of a Moffat profile with beta = 3, in units of FWHM^2; and the part of
#: a star's light from which on what is left of it tells no flux.
WINGS, HIDDEN = 0.96, 0.5


def count_outside(image, table, r):
    """Add to the errors of blends what a circle twice as wide has more than that of a star."""
    x, y, flux, sky, snr = (bare(table[k]) for k in ("x_center", "y_center", "flux", "sky", "snr"))
    blended = (table["flags"] & Flag.BLENDED) > 0
    star = (table["flags"] == 0) & (snr > MIN_SNR)
    at = np.flatnonzero(blended | star)
    sums = circle_sums(image.pixels._replace(noise=None, gain=None), x[at], y[at], [2 * r])
    wide = np.full(len(x), np.nan)
    wide[at] = (sums.total - sky[at, None] * sums.area)[:, 0]
    usual = np.median(wide[star] / flux[star]) if star.any() else 1.0
    outside = np.where(blended, np.nan_to_num(np.maximum(wide - usual * flux, 0)), 0.0)
    table["flux_err"] = np.hypot(table["flux_err"], outside * (table["flux_err"].unit or 1))


def count_other_cores(table, mixed, whole, usual):
    """Add what cores of ``mixed`` stars, of other frames than the rest, have more or less of."""
    if usual is None:
        return
    expected = usual.at(bare(table["x_center"]), bare(table["y_center"]))[0]
    # The core has d too much: whole = (w h + d) / (h + d), w being the usual and h the half's.
    with np.errstate(divide="ignore", invalid="ignore"):
        more = np.abs((expected - whole) / (expected - 1) / whole)
    more = np.where(mixed & np.isfinite(more), more, 0.0)
    table["flux_err"] = np.hypot(table["flux_err"], more * np.abs(table["flux"]))


def count_lost(image, table, r, fwhm):
    """Add to the errors the light of pixels that cannot be used; no flux where they have most."""
    at = np.flatnonzero((table["flags"] & (Flag.MASKED | Flag.EDGE)) > 0)
    if not at.size:
        return
    x, y = (bare(table[name])[at] for name in ("x_center", "y_center"))
    half = math.ceil(r) + 1
    oy, ox = np.mgrid[-half : half + 1, -half : half + 1]
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    good = image.pixels.around(iy, ix, oy, ox)[2]
    if good is None:
        return
    light = overlap(x - ix, y - iy, r, half)
    distance2 = (ox - (x - ix)[:, None, None]) ** 2 + (oy - (y - iy)[:, None, None]) ** 2
    light /= (1 + distance2 / (WINGS * fwhm**2)) ** 3
    lost = (light * ~good).sum(axis=(1, 2)) / light.sum(axis=(1, 2))
    factor = np.where(lost < HIDDEN, lost / (1 - lost), np.nan)
    table["flux_err"][at] = np.hypot(table["flux_err"][at], factor * np.abs(table["flux"][at]))
    table["flux"][at[np.isnan(factor)]] = np.nan
