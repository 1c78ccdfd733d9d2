"""
A `ccdproc.Combiner` whose weighted mean is right under masks, with the right uncertainty.

For those who have a Combiner in their script. `~astro_narrowband.combine` does
the same from files, in bounded memory.
"""

import numpy as np
from astropy.nddata import CCDData, StdDevUncertainty
from ccdproc import Combiner

from astro_narrowband._engine.frames import MemoryFrame
from astro_narrowband._engine.stacking.tile import reduce_tile
from astro_narrowband._engine.validate import choice
from astro_narrowband.exceptions import InputError

__all__ = ["InverseVarianceCombiner"]


class InverseVarianceCombiner(Combiner):
    """
    Drop-in for `ccdproc.Combiner` that knows the variance of its images.

    Clipping, scaling and medians are ccdproc's. What differs:

    * `average_combine` and `sum_combine` leave masked and NaN pixels out of the sum of
      the weights too, and do not ignore ``scaling`` where there are weights;
    * their uncertainty, and that of `median_combine`, is propagated from the
      images' (all must have one) for the pixels that were really used; pass
      ``uncertainty_func`` to get ccdproc's, from the scatter;
    * without ``weights``, `average_combine` weights each image by its inverse
      background variance: the inverse of the median of its variance over the
      pixels that are not masked. One number an image, because weights that
      follow each pixel's own photon noise make faint sources fainter;
    * a pixel without any value is masked and NaN.

    Parameters
    ----------
    ccd_iter : iterable of `~astropy.nddata.CCDData`
        Of one shape and unit, each with an uncertainty.
    dtype : dtype-like, optional
        As for `ccdproc.Combiner`; default is float64.
    weighting : {"background", "pixel", None}
        What weights are used where none are set: see above; ``"pixel"`` is the
        inverse variance of every pixel, ``None`` is equal weights.

    Raises
    ------
    InputError
        If an image has no uncertainty, or no pixel with a finite variance.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband import InverseVarianceCombiner
    >>> images = [
    ...     CCDData(np.full((2, 2), value), uncertainty=StdDevUncertainty(np.full((2, 2), sigma)),
    ...             unit="adu")
    ...     for value, sigma in ((10.0, 1.0), (20.0, 2.0))
    ... ]
    >>> images[1].mask = np.array([[True, False], [False, False]])
    >>> result = InverseVarianceCombiner(images).average_combine()
    >>> print(result.data)
    [[10. 12.]
     [12. 12.]]
    >>> print(result.uncertainty.array)
    [[1.         0.89442719]
     [0.89442719 0.89442719]]
    """

    def __init__(self, ccd_iter, dtype=None, *, weighting="background"):
        choice(weighting, ("background", "pixel", None), "weighting")
        images = list(ccd_iter)
        super().__init__(images, dtype=dtype)
        self._weighting = weighting
        self._variance = np.empty((len(images), *images[0].shape), np.float64)
        for i, image in enumerate(images):
            if image.uncertainty is None:
                raise InputError(f"image {i}: has no uncertainty: Combiner can do without")
            band = MemoryFrame(image, name=f"image {i}").read(slice(0, image.shape[0]))
            self._variance[i] = band.variance

    def _stack(self):
        """Data and mask of all images: the one place that knows where ccdproc keeps them."""
        if hasattr(self, "data_arr"):
            data = np.ma.getdata(self.data_arr)
            mask = np.ma.getmaskarray(self.data_arr)
        else:  # ccdproc after 2.5
            data, mask = np.asarray(self.data), np.asarray(self.mask)
        return data, mask

    def _weights_of(self, bad):
        if self.weights is not None:
            return np.asarray(self.weights, np.float64)
        if self._weighting is None:
            return None
        if self._weighting == "pixel":
            with np.errstate(divide="ignore"):
                weights = 1.0 / self._variance
            weights[~np.isfinite(weights)] = 0.0
            return weights
        weights = []
        for i, (variance, out) in enumerate(zip(self._variance, bad, strict=True)):
            good = variance[~out & np.isfinite(variance) & (variance > 0)]
            if not good.size:
                raise InputError(
                    f"image {i}: has no pixel with a variance: take it out, or mask it"
                )
            weights.append(1.0 / np.median(good))
        return np.array(weights)

    def _combined(self, method, scale_to):
        data, bad = self._stack()
        scale = scale_to if scale_to is not None else self.scaling
        variance = self._variance
        if scale is not None:
            scale = np.asarray(scale, np.float64)
            data, variance = data * scale, variance * scale**2
        n, shape = len(data), data.shape[1:]
        weights = (
            self._weights_of(bad | ~np.isfinite(data)) if method == "average" else self.weights
        )
        if method == "median":
            weights = None
        if weights is not None and np.ndim(weights) > 1:
            weights = np.reshape(weights, (n, -1))
        reduced = reduce_tile(
            data.reshape(n, -1),
            bad.reshape(n, -1),
            method=method,
            variance=variance.reshape(n, -1),
            weights=weights,
            dtype=np.float64,
        )
        return tuple(part.reshape(shape) for part in reduced)

    def average_combine(self, scale_func=None, scale_to=None, uncertainty_func=None, **kwargs):
        """
        Return the weighted mean, as `ccdproc.Combiner.average_combine` should.

        With ``scale_func`` or ``uncertainty_func`` it is ccdproc's own.
        """
        return self._dispatch(
            "average", scale_func, "scale_func", scale_to, uncertainty_func, kwargs
        )

    def median_combine(self, median_func=None, scale_to=None, uncertainty_func=None):
        """Return ccdproc's median, with the propagated uncertainty."""
        return self._dispatch("median", median_func, "median_func", scale_to, uncertainty_func, {})

    def sum_combine(self, sum_func=None, scale_to=None, uncertainty_func=None):
        """Return the sum of what is not masked, with the propagated uncertainty."""
        return self._dispatch("sum", sum_func, "sum_func", scale_to, uncertainty_func, {})

    def _dispatch(self, method, function, name, scale_to, uncertainty_func, kwargs):
        if function is not None or uncertainty_func is not None or kwargs:
            if function is not None:
                kwargs[name] = function
            if uncertainty_func is not None:
                kwargs["uncertainty_func"] = uncertainty_func
            parent = getattr(super(), f"{method}_combine")
            return parent(scale_to=scale_to, **kwargs)
        value, variance, count = self._combined(method, scale_to)
        combined = CCDData(
            value.astype(self.dtype, copy=False),
            mask=count == 0,
            unit=self.unit,
            uncertainty=StdDevUncertainty(np.sqrt(variance)),
        )
        combined.meta["NCOMBINE"] = len(self._variance)
        return combined
