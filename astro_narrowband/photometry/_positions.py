"""Where to measure, and in which circles: pairs, coordinates, tables and apertures of photutils."""

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

from astro_narrowband._engine.validate import as_array
from astro_narrowband.exceptions import InputError

#: Names of the columns that hold positions [pix]: ours, photutils', sep's.
PAIRS = (
    ("x_center", "y_center"), ("x_centroid", "y_centroid"), ("xcenter", "ycenter"),
    ("xcentroid", "ycentroid"), ("x", "y"),
)  # fmt: skip


def read_apertures(positions, wcs, *, grown=False, allow_overlap=False, **radii):
    """
    Return pixel positions and checked radii, those that were not given from apertures.

    Parameters
    ----------
    positions
        As for `read_positions`; or a `~photutils.aperture.CircularAperture`, a
        `~photutils.aperture.CircularAnnulus`, their like on the sky, or a list of both.
    wcs : `~astropy.wcs.WCS` or None
    grown : bool, optional
        r is the largest of many radii, that of a circle does not count.
    allow_overlap : bool, optional
        Of circle and annulus.
    **radii : float, `~astropy.units.Quantity` or None
        r, r_in and r_out [pix].

    Returns
    -------
    x, y : `~numpy.ndarray` of float, (n,)
    r, r_in, r_out : float
        The last two may be None.
    """
    given = positions if isinstance(positions, list | tuple) else [positions]
    if any(hasattr(one, "positions") for one in given):
        centres = []
        for aperture in given:
            at, its = _of_aperture(aperture, wcs)
            centres.append(at)
            for name, radius in its.items():
                if name == "r" and grown:
                    continue
                asked = radii.get(name)
                radii[name] = radius if asked is None else asked
                if abs(radii[name] - radius) > 1e-9:
                    raise InputError(f"{name} = {asked:g}, but that of the aperture is {radius:g}")
        if any(not np.array_equal(at, centres[0], equal_nan=True) for at in centres):
            raise InputError("aperture and annulus have different positions: the same are needed")
        positions = centres[0]
    if radii["r"] is None:
        raise InputError("r, the radius of the aperture, is needed")
    return *read_positions(positions, wcs), *check_annulus(**radii, allow_overlap=allow_overlap)


def _of_aperture(aperture, wcs):
    """Positions and radii of a circle or an annulus of photutils."""
    if hasattr(aperture, "to_pixel"):
        if wcs is None:
            raise InputError("apertures on the sky need a WCS, and the image has none")
        aperture = aperture.to_pixel(wcs)
    names = [name for name in ("r", "r_in", "r_out") if hasattr(aperture, name)]
    if not names:
        raise InputError(
            f"{type(aperture).__name__} is no circle: "
            "CircularAperture and CircularAnnulus can be measured"
        )
    return aperture.positions, {name: float(getattr(aperture, name)) for name in names}


def read_positions(positions, wcs):
    """
    Return pixel positions of anything that holds some.

    Parameters
    ----------
    positions : array_like (n, 2) or (2,), `~astropy.coordinates.SkyCoord` or table
        x, y [pix]; a table or structured array has ``x_center`` and ``y_center`` (or ``x`` and
        ``y``, ``xcentroid``, ...), or ``ra`` and ``dec`` (or ``sky_centroid``).
    wcs : `~astropy.wcs.WCS` or None

    Returns
    -------
    x, y : `~numpy.ndarray` of float, (n,)
        NaN where there is none.
    """
    if isinstance(positions, np.ndarray) and positions.dtype.names:
        positions = Table(positions)
    if isinstance(positions, Table):
        positions = _from_table(positions)
    if isinstance(positions, SkyCoord):
        if wcs is None:
            raise InputError("positions on the sky need a WCS, and the image has none")
        x, y = wcs.world_to_pixel(positions)
        return np.atleast_1d(x).astype(float), np.atleast_1d(y).astype(float)
    xy = as_array([] if positions is None else positions, "positions", u.pix)
    if xy.size == 0:
        return np.zeros(0), np.zeros(0)
    if xy.ndim == 1 and xy.size == 2:
        xy = xy[None]
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"positions of shape {xy.shape}: give (x, y) pairs, shape (n, 2)")
    return xy[:, 0].copy(), xy[:, 1].copy()


def _from_table(table):
    for names in PAIRS:
        if set(names) <= set(table.colnames):
            return np.column_stack([_bare(table[name]) for name in names])
    for name in ("sky_centroid", "sky_center", "skycoord"):
        if name in table.colnames:
            return table[name]
    if {"ra", "dec"} <= set(table.colnames):
        return SkyCoord(_degrees(table["ra"]), _degrees(table["dec"]))
    raise InputError(
        f"the table of positions has columns {', '.join(table.colnames)}: "
        "x_center and y_center, or ra and dec, are needed"
    )


def _bare(column):
    """Numbers of a column, NaN where it is masked."""
    values = np.ma.asarray(getattr(column, "value", column)).astype(float)
    mask = getattr(column, "mask", None)
    return np.ma.filled(np.ma.array(values, mask=np.ma.nomask if mask is None else mask), np.nan)


def _degrees(column):
    return u.Quantity(column, column.unit or u.deg)


def check_annulus(r, r_in, r_out, *, allow_overlap=False):
    """Return the radii as floats, or raise `InputError`."""
    if r_in is None and r_out is None:
        return r, None, None
    if r_in is None or r_out is None:
        raise InputError("r_in and r_out are given together")
    if r_out <= r_in:
        raise InputError(f"r_in = {r_in}, r_out = {r_out}: r_in < r_out is needed")
    if r > r_in and not allow_overlap:
        raise InputError(
            f"r = {r} reaches into the annulus (r_in = {r_in}): "
            "the star's light would be taken for sky; give r <= r_in"
        )
    return r, r_in, r_out
