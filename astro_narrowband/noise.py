"""
The variance model: what a pixel's noise is, and what signal to take it from.

In electrons, the variance of one raw pixel is that of the electrons it
collected (Poisson), of the read-out, and of rounding to integers::

    V = max(electrons, 0) + read_noise**2 + gain**2 / 12

The electrons *collected* are sky, stars and dark current, before anything is
subtracted. A pixel's own count is a bad estimate of them where the sky is
faint: its noise then makes its own error bar, so that low pixels get small
errors and high ones large errors (with a sky of 30 electron and a read noise
of 5, pulls have a mean of -0.07 in place of 0). `expected_variance` therefore
takes the signal from the eight neighbours, and from the pixel itself only
where it stands out from them (star cores, cosmic rays).
"""

import math
from dataclasses import dataclass

import numpy as np
from astropy import units as u

from astro_narrowband._engine.door import array, door, real
from astro_narrowband.exceptions import InputError

__all__ = [
    "SHARED_CARDS",
    "SharedNoise",
    "common_variance",
    "expected_variance",
    "mirror_border",
    "neighbour_mean",
    "pixel_variance",
    "sample_rows",
    "signal_variance",
]

#: Cards that say what noise of its masters a frame has.
SHARED_CARDS = (
    *("MASTERID", "MNOFFSET", "MNCOV", "MNRATE", "MNFLAT", "MNFLATER", "MNINCL"),
    *("MNEXPT", "MNPLACES"),
)
#: A pixel this many sigma away from its neighbours is believed itself.
N_SIGMA = 3.0


@door(electrons=array(u.electron), read_noise=real(u.electron, least=0), gain=real(above=0))
def pixel_variance(electrons, *, read_noise, gain):
    """
    Return the variance of pixels that collected ``electrons`` (expected, not measured).

    Parameters
    ----------
    electrons : array_like
        Expected electrons collected: sky, source and dark current [electron].
    read_noise : float
        [electron]
    gain : float
        [electron/adu]; rounding to whole adu adds ``gain**2 / 12``.

    Returns
    -------
    `~numpy.ndarray`
        [electron**2]

    Examples
    --------
    >>> from astro_narrowband.noise import pixel_variance
    >>> float(pixel_variance(100.0, read_noise=5.0, gain=0.6))
    125.03
    """
    return np.maximum(electrons, 0) + (read_noise**2 + gain**2 / 12)


def mirror_border(image, *, top=True, bottom=True):
    """
    Fill the border of one pixel around an image with its mirror image, in place.

    Parameters
    ----------
    image : `~numpy.ndarray`, (n_rows + 2, nx + 2)
        Its first and last row and column are the border.
    top, bottom : bool, optional
        `False` where the first or last row is filled already.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.noise import mirror_border
    >>> image = np.zeros((4, 4), int)
    >>> image[1:3, 1:3] = [[1, 2], [3, 4]]
    >>> mirror_border(image)
    >>> print(image)
    [[4 3 4 3]
     [2 1 2 1]
     [4 3 4 3]
     [2 1 2 1]]
    """
    n_rows, nx = image.shape[0] - 2, image.shape[1] - 2
    # A single row mirrors itself, unless its other neighbour is there.
    alone = n_rows == 1 and top and bottom
    if top:
        image[0] = image[1 if alone else 2]
    if bottom:
        image[-1] = image[1 if alone else n_rows - 1]
    image[:, 0] = image[:, min(2, nx)]
    image[:, -1] = image[:, max(nx - 1, 1)]


def neighbour_mean(image, bad=None, *, out=None, spare=None):
    """
    Return the mean of the (up to) eight neighbours of every pixel, without the pixel itself.

    Parameters
    ----------
    image : `~numpy.ndarray`, (n_rows + 2, nx + 2)
        With a border of one pixel; finite.
    bad : `~numpy.ndarray` of bool, (n_rows + 2, nx + 2), optional
        Pixels that do not count; ``image`` must be 0 there.
    out, spare : `~numpy.ndarray`, (n_rows, nx) and (n_rows, nx + 2), optional
        Arrays to work in.

    Returns
    -------
    `~numpy.ndarray`, (n_rows, nx)
        The pixel itself where no neighbour counts.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.noise import neighbour_mean
    >>> print(neighbour_mean(np.array([[1.0, 1.0, 1.0], [2.0, 99.0, 2.0], [3.0, 3.0, 3.0]])))
    [[2.]]
    """
    centre = image[1:-1, 1:-1]
    columns = np.add(image[:-2], image[1:-1], out=spare)
    columns += image[2:]
    out = np.add(columns[:, :-2], columns[:, 1:-1], out=out)
    out += columns[:, 2:]
    out -= centre
    out *= image.dtype.type(0.125)
    if bad is not None:
        _leave_out(out, centre, bad)
    return out


def _leave_out(mean, centre, bad):
    """Correct ``mean`` around bad pixels, which went in as zeros."""
    columns = bad[:-2].view(np.uint8) + bad[1:-1].view(np.uint8)
    columns += bad[2:].view(np.uint8)
    lost = columns[:, :-2] + columns[:, 1:-1]
    lost += columns[:, 2:]
    lost -= bad[1:-1, 1:-1].view(np.uint8)
    place = np.flatnonzero(lost != 0)  # numpy is quick with bool only
    y, x = np.divmod(place, mean.shape[1])
    count = (8 - lost.ravel()[place]).astype(mean.dtype)
    scale = mean.dtype.type(8) / np.maximum(count, 1)
    mean[y, x] = np.where(count > 0, mean[y, x] * scale, centre[y, x])


def expected_variance(
    electrons, *, gain, floor, weight=None, dark=None, bad=None, scale=1.0, out=None, spare=None
):
    """
    Return the variance of flat-fielded electrons, the signal taken from the neighbours.

    ``V = (m * flat + dark + floor) / flat**2`` with ``m`` the mean of the eight
    neighbours, ``m * flat + dark`` not below minus two sigma of such a mean.
    Where the pixel is more than 3 sigma away from ``m`` its own value is taken.
    The noise of the masters is not in it.

    Parameters
    ----------
    electrons : `~numpy.ndarray` of float32, (n_rows + 2, nx + 2)
        Dark-subtracted, flat-fielded, with a border of one pixel; finite.
    gain : float
        [electron/adu]
    floor : float
        Read noise squared and quantisation [electron**2].
    weight : `~numpy.ndarray` of float32, (n_rows, nx), optional
        Gain over flat: what adu were multiplied by [electron/adu].
    dark : `~numpy.ndarray` of float32, (n_rows, nx), optional
        Dark current that was subtracted [adu].
    bad : `~numpy.ndarray` of bool, (n_rows + 2, nx + 2), optional
        Pixels whose value is not used for their neighbours; 0 in ``electrons``.
    scale : float, optional
        What the variance is multiplied by.
    out, spare : `~numpy.ndarray`, (n_rows, nx) and (n_rows, nx + 2), optional
        Arrays to work in.

    Returns
    -------
    `~numpy.ndarray` of float32, (n_rows, nx)
        [electron**2] times ``scale``.
    """
    centre = electrons[1:-1, 1:-1]
    spare = (
        np.empty((centre.shape[0], centre.shape[1] + 2), centre.dtype) if spare is None else spare
    )
    out = neighbour_mean(electrons, bad, out=out, spare=spare)
    off = np.subtract(centre, out, out=spare[:, 1:-1])
    _to_variance(out, gain, floor, weight, dark, scale)
    # Far from its neighbours: (own - m)**2 > 9 V.
    off *= np.float32(scale**0.5 / N_SIGMA)
    off *= off
    far = np.flatnonzero(np.greater(off, out))
    if far.size:
        y, x = np.divmod(far, centre.shape[1])
        planes = (None if plane is None else plane[y, x] for plane in (weight, dark))
        out[y, x] = _to_variance(centre[y, x], gain, floor, *planes, scale)
    return out


def _to_variance(signal, gain, floor, weight, dark, scale):
    """Turn ``signal`` into its variance, in place; in adu on the way, as it was read."""
    if weight is None:
        signal *= np.float32(1 / gain)
    else:
        signal /= weight
    if dark is not None:
        signal += dark
    # The mean of eight pixels of read noise alone scatters about zero; cut at zero,
    # it would be too large on average. Two sigma lower it is not.
    # (A row of the limit: numpy takes four times as long with a scalar.)
    least = np.full(signal.shape[-1], -((floor / 2) ** 0.5) / gain, np.float32)
    np.maximum(signal, least, out=signal)
    signal += np.float32(floor / gain)
    if weight is None:
        signal *= np.float32(scale * gain)
    else:
        signal *= weight
        signal *= weight
        signal *= np.float32(scale / gain)
    return signal


def signal_variance(
    signal, rate, weight, *, gain, floor, exposure, scale=1.0, offset=0.0, out=None
):
    """
    Return the variance of calibrated pixels whose expected signal is known.

    ``V = (m * flat + dark + floor) / flat**2`` electrons as in `expected_variance`,
    over the square of the exposure time; ``m`` is what ``signal`` says, sky included.
    Where noise makes that so low that less than half of the floor would be left, it
    is half of the floor. The noise of the masters is not in it.

    Parameters
    ----------
    signal : `~numpy.ndarray` of float32, (n_rows, nx)
        Expected value of ``scale * data - offset``, with data in electron/s.
    rate : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Dark current [adu/s].
    weight : `~numpy.ndarray` of float32, (n_rows, nx), or None
        Gain over flat [electron/adu].
    gain : float
        [electron/adu]
    floor : float
        Read noise squared and quantisation [electron**2].
    exposure : float
        [s]
    scale, offset : float, optional
    out : `~numpy.ndarray`, (n_rows, nx), optional

    Returns
    -------
    `~numpy.ndarray` of float32, (n_rows, nx)
        Variance of ``scale * data - offset``.

    Examples
    --------
    Of 2 electron/s in 100 s, read noise 5, gain 0.5:

    >>> import numpy as np
    >>> from astro_narrowband.noise import signal_variance
    >>> signal = np.full((1, 1), 2.0, np.float32)
    >>> variance = signal_variance(signal, None, None, gain=0.5, floor=25.0, exposure=100.0)
    >>> round(float(variance[0, 0]), 6)
    0.0225
    """
    # All divided by the gain once for each factor of the weight that follows.
    per_signal = np.float32(scale / (gain * exposure))
    least = np.float32(scale**2 * floor / (gain * exposure) ** 2)
    weight = np.float32(gain) if weight is None else weight
    photons = signal * per_signal
    photons += np.float32(offset) * per_signal
    # (A row of the limit: numpy takes four times as long with a scalar.)
    np.maximum(photons, np.full(signal.shape[-1], -0.5 * gain * least, np.float32), out=photons)
    if rate is None:
        out = np.multiply(least, weight, out=out)
    else:
        out = np.multiply(rate, np.float32(scale**2 / (gain * exposure)), out=out)
        out += least
        out *= weight
    out += photons
    out *= weight
    return out


def common_variance(shared, weights):
    """
    Return the variance that shared masters leave in a weighted mean of frames.

    Noise of a master is the same in every frame that it calibrated: it does
    not average down. For undithered frames this is
    ``A**2 var_offset + var_rate + 2 A cov`` with ``A = sum(w/t) / sum(w)``.

    Parameters
    ----------
    shared : sequence of `~numpy.ndarray`, each (n_modes, ny, nx)
        Amplitudes of each frame, from
        `~astro_narrowband.calibration.CalibratedFrame.shared`.
    weights : sequence of float
        One per frame.

    Returns
    -------
    `~numpy.ndarray`, (ny, nx)

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband.noise import common_variance
    >>> amplitude = np.full((1, 1, 1), 3.0)
    >>> common_variance([amplitude] * 50, [1.0] * 50)  # not 9 / 50
    array([[9.]])
    """
    weights = np.asarray(weights, float)
    mean = sum(w * np.asarray(s, float) for w, s in zip(weights, shared, strict=True))
    return np.sum((mean / weights.sum()) ** 2, axis=0)


def sample_rows(n_rows):
    """Return slices of a few rows in four places of an image: its blank sky is judged by them."""
    return [slice(y, min(y + 8, n_rows)) for y in (np.arange(1, 8, 2) * n_rows // 8).tolist()]


@door
@dataclass(frozen=True)
class SharedNoise:
    """
    What the header of a calibrated frame says of the noise that its masters left in it.

    As parts of the variance of its blank sky, so that it stays true when the frame is
    multiplied by a number: the blank sky's is the median over `sample_rows`.

    Attributes
    ----------
    masters : str
        What the masters are known by; ``"none"`` for a frame that had none.
    offset, covariance, rate : float
        Of the dark: of its offset, of twice the covariance with its rate, of its rate.
    flat : float
        Of the flat.
    flat_error : float
        Relative standard deviation of the flat.
    included : bool
        Whether the frame's uncertainty has that noise in it.
    exposure : float
        Of a coadd: exposure time of a frame [s], which the noise of the offset goes with; 0
        where it is that of the image.
    places : tuple of (float, float, float, float, float)
        Of a coadd: where the pixels of the detector went, in its frames. A weight, and a, b,
        dx, dy of ``x' = a x - b y + dx, y' = b x + a y + dy``.
    """

    masters: str
    offset: float = 0.0
    covariance: float = 0.0
    rate: float = 0.0
    flat: float = 0.0
    flat_error: float = 0.0
    included: bool = True
    exposure: float = 0.0
    places: tuple = ()

    def to_header(self, header):
        """Write `SHARED_CARDS`, those of a coadd only where there are places."""
        header["MASTERID"] = (self.masters, "masters it was calibrated with")
        if self.masters == "none":
            return
        if not all(map(math.isfinite, (self.offset, self.covariance, self.rate, self.flat))):
            raise InputError(
                "the masters' uncertainty is not a number (that of bias, dark or flat): leave it "
                "out, or make them of more frames"
            )
        for keyword, value, comment in (
            ("MNOFFSET", self.offset, "dark offset's part of blank sky's variance"),
            ("MNCOV", self.covariance, "part of its covariance with the rate, twice"),
            ("MNRATE", self.rate, "dark rate's part"),
            ("MNFLAT", self.flat, "flat's part"),
            ("MNFLATER", self.flat_error, "relative error of the flat"),
        ):
            header[keyword] = (float(f"{value:.6g}"), comment)
        header["MNINCL"] = (self.included, "the uncertainty has these parts in it")
        if self.places:
            header["MNEXPT"] = (float(f"{self.exposure:.9g}"), "[s] exposure of the dark's part")
            text = ";".join(",".join(f"{v:.7g}" for v in place) for place in self.places)
            header["MNPLACES"] = text

    @classmethod
    def from_header(cls, header):
        """Read what `to_header` wrote, or return None where nothing is said."""
        masters = header.get("MASTERID")
        if not isinstance(masters, str) or not masters:
            return None
        keywords = ("MNOFFSET", "MNCOV", "MNRATE", "MNFLAT", "MNFLATER")
        try:
            parts = [float(header.get(keyword, 0.0)) for keyword in keywords]
            exposure = float(header.get("MNEXPT", 0.0))
            text = str(header.get("MNPLACES", "")).split(";")
            places = tuple(tuple(map(float, place.split(","))) for place in text if place)
        except (TypeError, ValueError):
            return None
        numbers = [*parts, *(value for place in places for value in place)]
        if not all(map(math.isfinite, numbers)) or {len(place) for place in places} - {5}:
            return None
        included = bool(header.get("MNINCL", True))
        return cls(masters, *parts, included=included, exposure=exposure, places=places)
