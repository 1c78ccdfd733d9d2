"""A line image that knows which of its errors all pixels share; two images on one grid."""

import math

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._engine.door import a_sequence, door, items, real
from astro_narrowband._engine.frames import as_ccd, as_frame
from astro_narrowband.exceptions import InputError
from astro_narrowband.registration import Alignment
from astro_narrowband.resampling import resample

#: Two grids are one where no corner is farther apart than this [pix].
SAME_GRID = 0.02
#: Name of the error of a continuum's scale, and of what all reference stars share.
CONTINUUM, REFERENCES = "continuum", "references"
#: Squares of numbers below this are not kept in single precision.
TINY = 1e-10


@door(factor=real(least=-math.inf, most=math.inf), common=items)
class LineMap(CCDData):
    """
    A `~astropy.nddata.CCDData` of a line, with the errors that its pixels share.

    Its uncertainty is that of one pixel, all of it: a sum over pixels needs to know which
    part of that is one error of the whole map, and does not average down.

    Parameters
    ----------
    *args, **kwargs
        As for `~astropy.nddata.CCDData`.
    common : dict of str to float or array (ny, nx), optional
        Errors that all pixels share, each by what one standard deviation of it does: to a
        pixel, in the unit of the map (array), or to the map, as a factor (float).
    shared : dict of str to array (ny, nx), optional
        Noise of single pixels that other maps have as well, because they were made of the same
        image: what one standard deviation of that image does to a pixel, with its sign. It is
        in the uncertainty.
    stars : `~astropy.table.QTable`, optional
        The stars that the continuum was scaled by.

    Notes
    -----
    Copies, cutouts, other units and products with a number keep all of this. Sums of maps, and
    products with images, are refused: `~astropy.nddata.CCDData` does them without.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import StdDevUncertainty
    >>> from astro_narrowband import LineMap
    >>> noise = StdDevUncertainty(np.full((40, 40), 0.1))
    >>> line = LineMap(
    ...     np.full((40, 40), 5.0),
    ...     unit="electron/s",
    ...     uncertainty=noise,
    ...     common={"flux scale": 0.03},
    ... )
    >>> line.common
    {'flux scale': 0.03}
    """

    @door(common=items, shared=items)
    def __init__(self, *args, common=None, shared=None, stars=None, **kwargs):
        super().__init__(*args, **kwargs)
        source = args[0] if args else None
        if isinstance(source, LineMap):  # so does `copy`
            common, shared, stars = common or source.common, shared or source.shared, source.stars
        self.common, self.shared = dict(common or {}), dict(shared or {})
        self.stars = stars

    def patterns(self):
        """Return each common error as an array of the map's unit, by name."""
        return {name: value * self.data if np.ndim(value) == 0 else value
                for name, value in self.common.items()}  # fmt: skip

    def scaled(self, factor, unit, *, common=None):
        """
        Return the map times a number, in another unit, with further errors in common.

        Parameters
        ----------
        factor : float
        unit : unit-like
            Of the new map.
        common : dict of str to float or array, optional
            Further common errors, of the new map.

        Returns
        -------
        LineMap
        """
        result = combined([(factor, self, "")], like=self, unit=unit)
        for name, value in (common or {}).items():
            add_common(result, name, value)
        return result

    def _slice(self, item):
        kept = super()._slice(item)
        places = np.arange(self.data.shape[1]), np.arange(len(self.data))[:, None]
        first = [np.broadcast_to(n, self.data.shape)[item].flat[0] for n in places]
        stars = None if self.stars is None else self.stars.copy()
        for name, start in zip(("x_center", "y_center"), first, strict=True):
            if stars is not None:
                stars[name] = stars[name] - start
        common = {n: v[item] if np.ndim(v) else v for n, v in self.common.items()}
        shared = {n: v[item] for n, v in self.shared.items()}
        return kept | {"common": common, "shared": shared, "stars": stars}

    @door(equivalencies=a_sequence)
    def convert_unit_to(self, unit, equivalencies=()):
        """Return the map in another unit, with what its pixels share."""
        return self.scaled(self.unit.to(unit, equivalencies=list(equivalencies)), unit)

    def multiply(self, operand):
        """Return the map times a number or scalar quantity; `InputError` of anything else."""
        factor = self._factor("multiply", operand)
        return self.scaled(factor.value, self.unit * factor.unit)

    def divide(self, operand):
        """Return the map over a number or scalar quantity; `InputError` of anything else."""
        factor = self._factor("divide", operand)
        return self.scaled(1 / factor.value, self.unit / factor.unit)

    def add(self, operand):
        """Refused with `InputError`: what maps share of their errors would be lost."""
        raise _lost("add", operand)

    def subtract(self, operand):
        """Refused with `InputError`: what maps share of their errors would be lost."""
        raise _lost("subtract", operand)

    def _factor(self, what, operand):
        """A number as a quantity, or `InputError` that says what to use instead."""
        if isinstance(operand, (int, float, np.number, u.Quantity)) and np.ndim(operand) == 0:
            return u.Quantity(operand)
        raise _lost(what, operand)

    def to_hdul(self):
        """
        Return an `~astropy.io.fits.HDUList`: PRIMARY, UNCERT, MASK, then the common errors.

        Those that are planes are extensions ``COMMON1``, ..., whose NAME says what they are;
        those that are factors are cards ``CERR1``, ....
        """
        hdul = self.to_hdu(as_image_hdu=False)
        for number, (name, value) in enumerate(self.common.items(), start=1):
            if np.ndim(value) == 0:
                hdul[0].header[f"CERR{number}"] = (float(value), f"relative, common: {name}"[:47])
            else:
                plane = fits.ImageHDU(np.float32(value), name=f"COMMON{number}")
                plane.header["NAME"] = (name, "an error that all pixels share, 1 sigma")
                plane.header["BUNIT"] = self.unit.to_string()
                hdul.append(plane)
        return hdul


def _lost(what, operand):
    """The error of arithmetic that has no place for what maps share."""
    return InputError(
        f"LineMap.{what}({type(operand).__name__}): errors that its pixels and other maps share "
        "would be lost: use line_ratio, subtract_sky or restore_lines; CCDData(line_map) computes "
        "without them"
    )


def combined(terms, *, like, unit=None):
    """
    Add maps, each times a number or an array, with what they share of their errors.

    Parameters
    ----------
    terms : sequence of (float or array (ny, nx), LineMap, str)
        Share, map, and what is appended to the names of its common errors: errors of one name
        are one error, and add up with their signs, as that of the references does.
    like : LineMap
        Whose header, flags, WCS and stars the sum has.
    unit : unit-like, optional
        Of the sum; that of ``like`` by default.

    Returns
    -------
    LineMap
    """
    data, variance, common, shared = 0.0, 0.0, {}, {}
    references = [image.common.get(REFERENCES) for _, image, _ in terms]
    alike = all(np.ndim(value) == 0 and value == references[0] for value in references)
    for share, image, suffix in terms:
        share = np.asarray(share, np.float64 if np.max(np.abs(share)) < TINY else np.float32)
        data = data + share * image.data
        noise = random_variance(image)
        for name, plane in image.shared.items():
            noise = noise - np.square(plane)
            shared[name] = shared.get(name, np.float32(0)) + share * plane
        variance = variance + np.square(share) * np.maximum(noise, 0)
        for name, value in image.common.items():
            key = name if name == REFERENCES or " of " in name else name + suffix
            # A factor stays one where the sum is one map times a number, or all maps have it.
            if np.ndim(value) == 0 and (len(terms) == 1 or (alike and name == REFERENCES)):
                common[key] = value
                continue
            effect = share * value * (image.data if np.ndim(value) == 0 else 1)
            common[key] = common.get(key, np.float32(0)) + effect
    for plane in shared.values():
        variance = variance + np.square(plane)
    masks = [image.mask for _, image, _ in terms if image.mask is not None]
    result = LineMap(
        np.float32(data),
        unit=like.unit if unit is None else unit,
        uncertainty=StdDevUncertainty(np.float32(np.sqrt(variance))),
        mask=np.logical_or.reduce(masks) if masks else None,
        flags=None if like.flags is None else like.flags.copy(),
        header=fits.Header(like.header, copy=True),
        wcs=None if like.wcs is None else like.wcs.deepcopy(),
        shared={name: np.float32(plane) for name, plane in shared.items()},
        stars=like.stars,
    )
    for name, value in common.items():
        add_common(result, name, value)
    return result


def add_common(line_map, name, value):
    """Give a map one more error in common, in its uncertainty as well."""
    line_map.common[name] = value = np.float32(value) if np.ndim(value) else float(value)
    effect = np.float32(value) * (line_map.data if np.ndim(value) == 0 else 1)
    line_map.uncertainty = StdDevUncertainty(np.hypot(line_map.uncertainty.array, effect))


def total_variance(ccd, what="image"):
    """The variance plane of a CCDData, as float32, or InputError where it has none."""
    if ccd.uncertainty is None:
        raise InputError(
            f"{what} has no uncertainty: a line flux without an error is refused; give a "
            "product of reduce, or set its uncertainty"
        )
    array = np.asarray(ccd.uncertainty.array, np.float32)
    if np.nanmax(array[::16, ::16], initial=0) < TINY:
        array = array.astype(np.float64)
    kind = ccd.uncertainty.uncertainty_type
    if kind == "std":
        return np.square(array)
    if kind == "ivar":
        with np.errstate(divide="ignore"):
            return 1 / array
    return array


def random_variance(ccd):
    """The variance plane without the common errors of a LineMap: what is meant for sums."""
    variance = total_variance(ccd)
    if isinstance(ccd, LineMap):
        for value in ccd.common.values():
            variance = variance - np.square(value * ccd.data if np.ndim(value) == 0 else value)
        variance = np.maximum(variance, 0)
    return variance


def pixel_sigma(ccd):
    """
    Standard deviation of single pixels: their own noise, and what is common but no factor.

    NOISECOR of the header is what single pixels scatter of the variance plane.
    """
    noise = random_variance(ccd)
    planes = (v for v in ccd.common.values() if np.ndim(v))
    return np.float32(np.sqrt(sum(map(np.square, planes), noise * noise_correlation(ccd))))


def noise_correlation(ccd):
    """NOISECOR of the header, 1 where it is not there."""
    value = float(ccd.meta.get("NOISECOR", 1.0))
    if not 0 < value <= 1:
        raise InputError(f"NOISECOR = {value}: it must be above 0, and at most 1")
    return value


def opened(image, what):
    """An image as a LineMap, or InputError where it has no uncertainty."""
    ccd = LineMap(image if isinstance(image, CCDData) else as_ccd(as_frame(image)))
    if ccd.data.ndim != 2:
        raise InputError(f"{what} has {ccd.data.ndim} dimensions: an image has two")
    total_variance(ccd, what)
    return ccd


def unusable(ccd):
    """Pixels that are masked, not finite, or without a usable error."""
    error = ccd.uncertainty.array
    bad = ~np.isfinite(ccd.data) | ~np.isfinite(error) | (error <= 0)
    if ccd.mask is not None:
        bad |= np.asarray(ccd.mask, bool)
    if bad.all():
        raise InputError(
            f"{ccd.meta.get('FILTER', 'image')}: every pixel is masked or not finite: nothing "
            "can be measured"
        )
    return bad


def on_grid_of(image, target, what):
    """
    Return an image on the grid of another: itself, or interpolated where both have a WCS.

    Raises
    ------
    InputError
        If the grids differ and one of them has no WCS, if the two do not overlap, or if no
        turn, shift and scale leads from one to the other.
    """
    if image.wcs is None or target.wcs is None:
        if image.data.shape == target.data.shape:
            return image
        raise InputError(
            f"{what}: shapes {image.data.shape} and {target.data.shape} differ, and not both "
            "images have a WCS: bring them onto one grid first"
        )
    ny, nx = image.data.shape
    grid = np.stack(np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5)), -1)
    grid = grid.reshape(-1, 2)
    sky = image.wcs.celestial.pixel_to_world(*grid.T)
    new = np.column_stack(target.wcs.celestial.world_to_pixel(sky))
    same = image.data.shape == target.data.shape
    if same and np.isfinite(new).all() and np.abs(new - grid).max() < SAME_GRID:
        return image
    if not np.isfinite(new).all():
        raise InputError(f"{what}: it shows another part of the sky than the line image")
    design = np.column_stack([grid, np.ones(len(grid))])
    solution, *_ = np.linalg.lstsq(design, new, rcond=None)
    off = float(np.abs(design @ solution - new).max())
    if off > 0.3:
        raise InputError(
            f"{what}: its grid cannot be brought onto that of the line image by a shift, turn "
            f"and scale (off by {off:.2f} pix): resample it first"
        )
    matrix = np.eye(3)
    matrix[:2] = solution.T
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if abs(scale - 1) > 0.02:
        raise InputError(
            f"{what}: its pixels are {scale:.3f} times those of the line image: images of one "
            "camera can be combined; reproject the other first"
        )
    moved = resample(image, Alignment(matrix), shape=target.data.shape, target=target)
    if moved.mask is not None and moved.mask.all():
        raise InputError(f"{what}: it shows another part of the sky than the line image")
    moved.meta["NOISECOR"] = noise_correlation(moved)
    return LineMap(moved)


def pixel_area(ccd):
    """Solid angle of a pixel [arcsec2] from the WCS, or InputError."""
    if ccd.wcs is None:
        raise InputError(
            "the image has no WCS: the angle that a pixel sees is not known; match it with a "
            "catalogue (match_catalogue, or reduce --catalogue)"
        )
    from astropy.wcs.utils import proj_plane_pixel_area

    area = proj_plane_pixel_area(ccd.wcs.celestial) * u.deg**2
    return float(area.to_value(u.arcsec**2))
