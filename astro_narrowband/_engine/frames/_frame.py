"""What a frame is: an image that is read by bands of rows, and what it may know of itself."""

import functools
import inspect
from functools import cached_property
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from astro_narrowband.exceptions import InputTypeError


class Band(NamedTuple):
    """
    Some rows of a frame.

    Attributes
    ----------
    data : `~numpy.ndarray` of float32, (n_rows, nx)
    variance : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Variance of ``data``, in its unit squared.
    mask : `~numpy.ndarray` of bool, (n_rows, nx), or None
        `True` where a pixel must not be used. ``None`` where all may.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband import Band
    >>> band = Band(np.zeros((2, 3), np.float32), variance=np.ones((2, 3), np.float32))
    >>> band.data.shape, band.mask is None
    ((2, 3), True)
    """

    data: np.ndarray
    variance: np.ndarray | None = None
    mask: np.ndarray | None = None


class Frame:
    """
    An image that is read by bands of rows, from any thread: the base class of all frames.

    A subclass sets ``name``, ``shape``, ``unit`` and ``header``, and has a
    method ``read``. All else has a default: what the header says, or that
    nothing is known. Nothing is ever probed for.

    Attributes
    ----------
    name : str
        What the frame is called in messages.
    shape : tuple of int
        Rows and columns.
    unit : `~astropy.units.UnitBase` or None
    header : `~astropy.io.fits.Header`
        Default is an empty one.
    wcs : `~astropy.wcs.WCS` or None
        Where there is one beside the header.
    exposure : float or None
        [s]; None where only the header may say it.
    n_added : int
        Pixels of the camera in one of the frame: 2 where the two greens of a colour
        mosaic were added.
    noise_correlation : float
        Variance of single pixels over the variance plane: NOISECOR of the header, or 1.
    masters : str or None
        What it has in common with all frames that were calibrated with the same masters:
        "none" where there were none, None where that is not known.
    alignment : `~astro_narrowband.registration.Alignment` or None
        Of a frame that interpolates another one while it is read.
    calibrated : `Frame`
        The frame as it was before that: itself, as a rule.
    placements : (`~numpy.ndarray`, (k,), `~numpy.ndarray`, (k, 3, 3))
        Weights, and matrices from the pixels of the detector to those of the frame: one unit
        matrix, as a rule; several of a coadd of dithered frames.
    dark_exposure : float
        Exposure time that noise of the dark's offset goes with, one of a coadd's frames [s]:
        ``exposure``, as a rule.
    dark_scale : (float, float)
        What ``master_noise`` of the dark's offset and of its rate is multiplied by, as an
        amplitude: that of a frame which was multiplied by a number of its own.
    pixel_area : float
        What values are multiplied by in that interpolation.
    follows_signal : bool
        Whether the frame can tell the variance of a signal that is known from elsewhere,
        as `~astro_narrowband.calibration.CalibratedFrame` can.

    Examples
    --------
    All that a frame of one's own needs:

    >>> import numpy as np
    >>> from astropy import units as u
    >>> from astropy.io import fits
    >>> from astro_narrowband import Band, Frame, coadd
    >>> class Flat(Frame):
    ...     def __init__(self, level, exposure):
    ...         self.name, self.shape, self.unit = f"flat {level}", (40, 50), u.electron / u.s
    ...         self.header = fits.Header({"EXPTIME": exposure})
    ...         self.level = level
    ...
    ...     def read(self, rows):
    ...         data = np.full((rows.stop - rows.start, 50), self.level, np.float32)
    ...         return Band(data, variance=np.full_like(data, 0.01))
    >>> made = coadd([Flat(1.0, 60.0), Flat(3.0, 60.0)], sky="none", flux_scale="none",
    ...              reject=False)
    >>> float(made.ccd.data[0, 0])
    2.0

    Its ``read`` may be asked for more, which the base class then does with the
    band that it gave:

    >>> Flat(1.0, 60.0).read(slice(0, 2), variance=False).variance is None
    True
    """

    name = "frame"
    unit = None
    wcs = None
    exposure = None
    n_added = 1
    masters = None
    alignment = None
    dark_scale = (1.0, 1.0)
    pixel_area = 1.0
    follows_signal = False

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        read = cls.__dict__.get("read")
        if read is not None and not _takes_all(read):
            cls.read = _completed(read)

    def read(self, rows, *, variance=True, out=None):  # noqa: ARG002
        """
        Return some rows.

        Parameters
        ----------
        rows : slice
            With both ends given, within the frame.
        variance : bool, optional
            `False`: without the variance, where that saves time.
        out : `Band`, optional
            Arrays to write into, of the shape of these rows; its variance may be None.

        Returns
        -------
        `Band`
            Of the arrays of ``out``, if it is given; None for a plane that there is not,
            even if ``out`` has one, which then holds nothing.
        """
        raise InputTypeError(f"{type(self).__name__} has no method read(rows): a Frame needs one")

    @cached_property
    def header(self):
        """An empty header, until the frame has another one."""
        return fits.Header()

    @property
    def placements(self):
        """A unit matrix of weight 1, until the frame was moved."""
        return np.ones(1), np.eye(3)[None]

    @property
    def dark_exposure(self):
        """That of the frame, unless it is a coadd of shorter ones."""
        return self.exposure

    @property
    def calibrated(self):
        """The frame as it was calibrated, before it was interpolated."""
        return self

    @cached_property
    def noise_correlation(self):
        """Variance of single pixels over the variance plane, 1 where nothing was interpolated."""
        return float(self.header.get("NOISECOR", 1.0))

    def raw_counts(self, rows, data):  # noqa: ARG002
        """
        Return what the camera counted where the frame has ``data``: saturation is judged by it.

        Parameters
        ----------
        rows : slice
            That were read.
        data : `~numpy.ndarray`, (n_rows, nx)
            What `read` gave.

        Returns
        -------
        `~numpy.ndarray`, (n_rows, nx)
            [adu]; ``data`` itself where nothing was taken off.
        """
        return data

    def master_noise(self, rows):  # noqa: ARG002
        """
        Return what the variance of this frame's masters is made of, whatever the exposure time t.

        Returns
        -------
        var_offset, cov, var_rate : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Of the dark: its variance is ``var_offset / t**2 + 2 cov / t + var_rate``
            [(electron/s)**2].
        var_flat : `~numpy.ndarray` of float32, (n_rows, nx), or None
            Relative variance of the flat.
        """
        return None, None, None, None

    def nearest(self, read, rows):
        """
        Return planes of the detector at the nearest pixel, and where they lie in some rows.

        Parameters
        ----------
        read : callable
            Takes a slice of the detector's rows, returns planes (n_rows, nx), or None
            for one that there is not.
        rows : slice
            Of the frame.

        Returns
        -------
        planes : list of `~numpy.ndarray`, (m, k), or None
            May be views of what was read.
        place : tuple of slice
            Their m rows and k columns; all others are outside the detector.
        """
        return read(rows), (slice(0, rows.stop - rows.start), slice(0, self.shape[1]))

    def source_rows(self, rows, reach=0):
        """Return the detector's rows within ``reach`` of those that ``rows`` fall on, or None."""
        return slice(max(rows.start - reach, 0), min(rows.stop + reach, self.shape[0]))


def _takes_all(read):
    """Whether a method ``read`` has the keywords of `Frame.read`."""
    parameters = inspect.signature(read).parameters.values()
    names = {p.name for p in parameters}
    return {"variance", "out"} <= names or any(p.kind is p.VAR_KEYWORD for p in parameters)


def _completed(read):
    """Give a method ``read(self, rows)`` the keywords of `Frame.read`."""

    @functools.wraps(read)
    def complete(self, rows, *, variance=True, out=None):
        return handed(read(self, rows), variance=variance, out=out)

    return complete


def handed(band, *, variance=True, out=None):
    """Return a band as `Frame.read` was asked for it: less its variance, in the arrays of out."""
    if not variance:
        band = band._replace(variance=None)
    if out is None:
        return band
    for plane, target in zip(band, out, strict=True):
        if plane is not None and target is not None:
            target[...] = plane
    return Band(*(
        None if plane is None else target for plane, target in zip(band, out, strict=True)
    ))  # fmt: skip
