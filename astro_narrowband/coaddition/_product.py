"""A coadd, and how it came about."""

from dataclasses import dataclass, field

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable

from astro_narrowband._engine.door import AXES, door
from astro_narrowband._engine.plots import new_axes, picture_html

#: Pixels a side that are drawn: more are not seen.
SHOWN = 1000


@door(ax=AXES)
@dataclass(frozen=True, eq=False)
class Coadd:
    """
    A coadd and how it came about.

    Attributes
    ----------
    ccd : `~astropy.nddata.CCDData`
        Weighted mean, with its standard deviation; masked and NaN where no
        frame counts. See the notes of `coadd` for its header.
    coverage : `~numpy.ndarray` of uint8 (uint16 from 256 frames on), (ny, nx)
        Number of frames that count in each pixel.
    exposure : `~numpy.ndarray` of float32, (ny, nx)
        Effective exposure [s]: a source of rate r electron/s has the photon
        variance ``r / exposure``, so it is photutils' ``effective_gain``. 0 where
        nothing counts or the frames' exposures are not known.
    n_rejected : `~numpy.ndarray` of the same type, (ny, nx)
        Number of frames that were rejected as outliers in each pixel.
    frames : `~astropy.table.QTable`
        One row for each frame, in the order given: name, used, reason (why it was
        left out), exposure, dx, dy, rotation, weight (they add up to 1), scale
        (transparency over that of the reference), scale_err (NaN where it was not
        measured), scale_method (stars, faint stars, nebula, ...), scale_range (of the map of
        the scale, largest less smallest factor), scale_chi2 (reduced, of the star fluxes),
        scale_uneven (what parts of the image are off by all the same), sky, noise (of a pixel
        of blank sky, in the unit of the frame), sky_offset (what was taken from it,
        in the unit of the coadd), sky_err, sky_gradient (rms of what was taken about
        that), sky_chi2 (variance of its cells then, over that of their noise), fwhm,
        n_stars, rejected (fraction of its pixels).

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband import coadd
    >>> rng = np.random.default_rng(1)
    >>> noise = StdDevUncertainty(np.ones((40, 50)))
    >>> frames = [
    ...     CCDData(rng.normal(10.0, 1.0, (40, 50)), unit="electron / s", uncertainty=noise)
    ...     for _ in range(4)
    ... ]
    >>> made = coadd(frames, flux_scale="none")
    >>> made.ccd.unit, int(made.coverage.max()), len(made.frames)
    (Unit("electron / s"), 4, 4)
    """

    ccd: CCDData
    coverage: np.ndarray = field(repr=False)
    exposure: np.ndarray = field(repr=False)
    n_rejected: np.ndarray = field(repr=False)
    frames: QTable = field(repr=False)

    def __repr__(self):
        ny, nx = self.ccd.shape
        n, unit = int(np.sum(self.frames["used"])), self.ccd.unit.to_string()
        return f"<Coadd of {n} of {len(self.frames)} frames, {nx} x {ny} pixels, {unit}>"

    def _repr_html_(self):
        return picture_html(repr(self), self.plot, 2)

    def plot(self, ax=None):
        """
        Draw the image, and its errors beside it.

        Parameters
        ----------
        ax : sequence of two `~matplotlib.axes.Axes`, optional
            Default is a new figure.

        Returns
        -------
        sequence of two `~matplotlib.axes.Axes`

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        left, right = new_axes(2) if ax is None else ax
        ccd, unit = self.ccd, self.ccd.unit
        ny, nx = ccd.shape
        step = max(1, max(ny, nx) // SHOWN)
        extent = (-0.5, nx - 0.5, -0.5, ny - 0.5)
        for each, values, title, cmap in (
            (left, ccd.data, "coadd", "gray"),
            (right, ccd.uncertainty.array, "error of a pixel", "viridis"),
        ):
            shown = np.asarray(values[::step, ::step], float)
            good = shown[np.isfinite(shown)]
            low, high = np.percentile(good, [20, 99.5]) if good.size else (0.0, 1.0)
            image = each.imshow(
                shown, origin="lower", cmap=cmap, vmin=low, vmax=max(high, low + 1e-12),
                extent=extent, interpolation="nearest",
            )  # fmt: skip
            each.set_title(f"{title} [{unit.to_string()}]", loc="left", fontsize=10)
            each.set_xlabel("x [pix]")
            each.set_ylabel("y [pix]")
            each.figure.colorbar(image, ax=each, shrink=0.8)
        return left, right

    def to_hdul(self):
        """
        Return an `~astropy.io.fits.HDUList`: PRIMARY, UNCERT and MASK, then NEXP and TEXP.

        ``CCDData.read`` opens a file written from it.
        """
        hdul = self.ccd.to_hdu(as_image_hdu=False)
        hdul.append(fits.ImageHDU(self.coverage, name="NEXP"))
        exposure = fits.ImageHDU(self.exposure, name="TEXP")
        exposure.header["BUNIT"] = ("s", "effective exposure")
        hdul.append(exposure)
        return hdul
