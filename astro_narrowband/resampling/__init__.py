"""
One interpolation, from the calibrated frame to the grid of the reference.

Data, variance, mask and footprint travel together. Shifts are separable and
turns by 180 degrees are views of the array, so that most nights cost twelve
multiplications a pixel; anything else is a full two-dimensional kernel.
"""

import math

import numpy as np

from astro_narrowband._engine.door import array, door, real
from astro_narrowband._engine.frames import as_ccd
from astro_narrowband._engine.validate import choice
from astro_narrowband.resampling._frame import KERNELS, ResampledFrame

__all__ = ["ResampledFrame", "noise_factor", "resample"]


@door(noise_correlation=real(above=0, most=1), area=array())
def noise_factor(noise_correlation, area, *, kernel="lanczos3"):
    """
    What multiplies sqrt(sum of variance) to give the noise of an aperture.

    Interpolation spreads the noise of a pixel over its neighbours. The
    variance plane of a resampled image is meant for sums: added up over a wide
    aperture it gives the right noise. One pixel alone scatters less, by the
    square root of ``noise_correlation`` (NOISECOR in headers); an aperture of
    ``area`` pixels lies between, because its rim shares noise with the outside:
    1 - (1 - sqrt(NOISECOR)) / area^p, p = 3/4 for Lanczos-3 and 1/2 for
    bilinear interpolation.

    Parameters
    ----------
    noise_correlation : float
        NOISECOR: variance of the values of single pixels over the variance
        plane, 0 to 1; 1 where nothing was interpolated.
    area : float or array
        Pixels of the aperture.
    kernel : {"lanczos3", "bilinear", "integer"}, optional
        RESAMPLE in headers.

    Returns
    -------
    float or array
        In sqrt(NOISECOR) to 1.

    Notes
    -----
    Along one axis the variance of a sum of n neighbours is
    sum of (n - abs(d)) R(d), R the autocorrelation of the kernel's weights, whose
    sum over d is 1. For bilinear weights that is n - (1 - R(0)) exactly; the
    lobes of Lanczos-3 bring it within 0.5 % of n - (1 - R(0)) / sqrt(n) for
    every fraction of a pixel and n up to 20. A *measured* scatter of single
    pixels (of the sky, say) is to be divided by sqrt(NOISECOR) before it is
    used for sums.

    Examples
    --------
    >>> from astro_narrowband.resampling import noise_factor
    >>> float(noise_factor(0.64, 1.0)), round(float(noise_factor(0.64, 16.0)), 6)
    (0.8, 0.975)
    """
    power = 0.5 if choice(kernel, KERNELS, "kernel") == "bilinear" else 0.75
    return 1.0 - (1.0 - math.sqrt(noise_correlation)) / np.maximum(area, 1.0) ** power


def resample(image, alignment, *, kernel="lanczos3", shape=None, target=None):
    """
    Interpolate an image once, onto the grid that an alignment leads to.

    Parameters
    ----------
    image : `~astropy.nddata.CCDData`, `~astro_narrowband.Frame` or path-like
        With or without an uncertainty and a mask.
    alignment : `~astro_narrowband.registration.Alignment` or (dx, dy)
        From the image to the new grid [pix].
    kernel, shape, target
        As for `ResampledFrame`, where the rules for variance, mask and
        footprint are.

    Returns
    -------
    `~astropy.nddata.CCDData`
        New, with a `~astropy.nddata.StdDevUncertainty` where the image has an
        uncertainty, a mask, and REG*, RESAMPLE and NOISECOR in its header.

    Raises
    ------
    InputError
        If the kernel is not known or cannot do the rotation.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData
    >>> from astro_narrowband.registration import Alignment
    >>> from astro_narrowband.resampling import resample
    >>> ccd = CCDData(np.arange(30.0).reshape(5, 6), unit="electron / s")
    >>> moved = resample(ccd, Alignment.translation(1, 0), kernel="integer")
    >>> float(moved.data[2, 3]), bool(moved.mask[2, 0])
    (14.0, True)
    """
    frame = ResampledFrame(image, alignment, kernel=kernel, shape=shape, target=target)
    return as_ccd(frame)
