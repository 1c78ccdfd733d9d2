"""
A `ccdproc.Combiner` whose weighted mean is right under masks, with the right uncertainty.

For those who have a Combiner in their script. `~astro_narrowband.combine` does
the same from files, in bounded memory.
"""

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty
from ccdproc import Combiner

from astro_narrowband._engine.door import door, images
from astro_narrowband._engine.frames import MemoryFrame
from astro_narrowband._engine.stacking.tile import reduce_tile
from astro_narrowband._engine.validate import as_variance, choice
from astro_narrowband.coaddition._common_noise import overlap_factors, shared_clusters
from astro_narrowband.coaddition._own_noise import own_noise, warn_of_unknown
from astro_narrowband.exceptions import InputError


@door
class InverseVarianceCombiner(Combiner):
    """
    Drop-in for `ccdproc.Combiner` that knows the variance of its images.

    Clipping, scaling and medians are ccdproc's. What differs:

    * `average_combine` and `sum_combine` leave masked and NaN pixels out of the sum of
      the weights too, and do not ignore ``scaling`` where there are weights;
    * their uncertainty, and that of `median_combine`, is propagated from the
      images' for the pixels that were really used; where the images have none it
      comes from the scatter, with n - 1; pass ``uncertainty_func`` to get ccdproc's;
    * without ``weights``, `average_combine` weights each image by its inverse
      background variance: the inverse of the median of its (scaled) variance over the
      pixels that are not masked. One number an image, because weights that
      follow each pixel's own photon noise make faint sources fainter. An image that is
      masked everywhere does not count;
    * noise that images share because they were calibrated with the same masters does not
      average down: their headers say it (see `~astro_narrowband.calibrate`); where they do
      not, nothing is shared, and there is a `SharedNoiseWarning` unless they are in adu;
    * a pixel without any value is masked and NaN.

    Parameters
    ----------
    ccd_iter : iterable of `~astropy.nddata.CCDData`
        Of one shape and unit, each with an uncertainty, or all without.
    dtype : dtype-like, optional
        As for `ccdproc.Combiner`; default is float64.
    weighting : {"background", "pixel", None}
        What weights are used where none are set: see above; ``"pixel"`` is the
        inverse variance of every pixel, ``None`` is equal weights. Images without an
        uncertainty have equal weights.

    Raises
    ------
    InputError
        If some images have an uncertainty and some do not, or an image that is not all
        masked has no pixel with a finite variance.

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

    @door(ccd_iter=images)
    def __init__(self, ccd_iter, dtype=None, *, weighting="background"):
        choice(weighting, ("background", "pixel", None), "weighting")
        images = ccd_iter
        if not images:
            raise InputError("ccd_iter: no images were given: at least one is needed")
        super().__init__(images, dtype=dtype)
        self._weighting = weighting
        with_error = [image.uncertainty is not None for image in images]
        if any(with_error) and not all(with_error):
            raise InputError(
                f"image {with_error.index(False)}: has no uncertainty, others have: give it one, "
                "or take those of the others away"
            )
        self._variance = None
        if all(with_error):
            self._variance = np.array(
                [
                    as_variance(image.uncertainty, image.shape, image.unit, f"image {i}")
                    for i, image in enumerate(images)
                ],
                np.float64,
            )
        self._shared = self._apart(images)

    def _apart(self, images):
        """Take what images share out of their variance; return it as (frame, cluster, overlap)."""
        if self._variance is None or any(np.ndim(image.data) != 2 for image in images):
            return []
        frames = own_noise(
            [MemoryFrame(image, name=f"image {i}") for i, image in enumerate(images)]
        )
        known = [i for i, f in enumerate(frames) if f.masters not in (None, "none")]
        for i in known:
            whole = slice(0, frames[i].shape[0])
            self._variance[i] = frames[i].read(whole).variance
        if self.unit != u.adu:
            warn_of_unknown(frames)
        cluster, correlations, amplitude = shared_clusters(frames, images[0].shape)
        overlap = overlap_factors(cluster, correlations, amplitude)
        return [(i, frames[i], cluster[i], overlap[i], amplitude[i]) for i in known]

    def _shared_variance(self, weights, used, scale, value):
        """What the masters leave in a sum of images times ``weights``, (n, ny, nx)."""
        total, sums = 0.0, {}
        for i, frame, cluster, overlap, amplitude in self._shared:
            relative = amplitude * weights[i] * used[i]
            amount = relative * scale[i]
            one = sums.setdefault(cluster, [frame, overlap, 0.0, 0.0, 0.0])
            of_offset, of_rate = frame.calibrated.dark_scale
            one[2] += amount * of_offset / frame.dark_exposure
            one[3] += amount * of_rate
            one[4] += relative
        for frame, overlap, a, b, w in sums.values():
            planes = frame.master_noise(slice(0, frame.shape[0]))
            var_offset, cov, var_rate, var_flat = (0.0 if p is None else p for p in planes)
            dark = a * a * var_offset + 2 * a * b * cov + b * b * var_rate
            total = total + overlap * (dark + var_flat * (w * np.nan_to_num(value)) ** 2)
        return total

    def _stack(self):
        """Data and mask of all images: the one place that knows where ccdproc keeps them."""
        if hasattr(self, "data_arr"):
            data = np.ma.getdata(self.data_arr)
            mask = np.ma.getmaskarray(self.data_arr)
        else:  # ccdproc after 2.5
            data, mask = np.asarray(self.data), np.asarray(self.mask)
        return data, mask

    def _weights_of(self, variance, bad):
        """The weights that are set, or those of the images' (scaled) variances."""
        if self.weights is not None:
            return np.asarray(self.weights, np.float64)
        if self._weighting is None or variance is None:
            return None
        usable = ~bad & np.isfinite(variance) & (variance > 0)
        if self._weighting == "pixel":
            return np.where(usable, 1.0 / np.where(usable, variance, 1.0), 0.0)
        weights = np.zeros(len(variance))
        for i, (plane, good) in enumerate(zip(variance, usable, strict=True)):
            if good.any():
                weights[i] = 1.0 / np.median(plane[good])
            elif not bad[i].all():
                raise InputError(
                    f"image {i}: has no pixel with a variance: take it out, or mask it"
                )
        return weights

    def _combined(self, method, scale_to):
        data, bad = self._stack()
        scale = scale_to if scale_to is not None else self.scaling
        variance = self._variance
        if scale is not None:
            scale = np.asarray(scale, np.float64)
            data = data * scale
            variance = None if variance is None else variance * scale**2
        n, shape = len(data), data.shape[1:]
        bad = bad | ~np.isfinite(data)
        weights = {"average": self._weights_of, "sum": lambda *_: self.weights}.get(method)
        weights = None if weights is None else weights(variance, bad)
        if weights is not None and np.ndim(weights) > 1:
            weights = np.reshape(weights, (n, -1))
        reduced = reduce_tile(
            data.reshape(n, -1),
            bad.reshape(n, -1),
            method=method,
            variance=None if variance is None else variance.reshape(n, -1),
            weights=weights,
            dtype=np.float64,
        )
        value, variance, count = (plane.reshape(shape) for plane in reduced)
        if self._shared:
            weights = np.ones(n) if weights is None else weights
            weights = weights.reshape(n, *(shape if weights.ndim > 1 else (1,) * len(shape)))
            used = ~bad
            scale = np.ones(n) if scale is None else np.ravel(scale)
            norm = 1.0 if method == "sum" else np.maximum((weights * used).sum(axis=0), 1e-300)
            level = value * norm / np.maximum((weights * used).sum(axis=0), 1e-300)
            variance = variance + self._shared_variance(weights, used, scale, level) / norm**2
        return value, variance, count

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
        if function is not None or kwargs:
            kwargs[name] = function if function is not None else kwargs.get(name)
        if uncertainty_func is not None:
            kwargs["uncertainty_func"] = uncertainty_func
        theirs = None
        if kwargs:
            kwargs = {key: value for key, value in kwargs.items() if value is not None}
            theirs = getattr(super(), f"{method}_combine")(scale_to=scale_to, **kwargs)
            if set(kwargs) != {"uncertainty_func"}:
                return theirs
        value, variance, count = self._combined(method, scale_to)
        uncertainty = StdDevUncertainty(np.sqrt(variance)) if theirs is None else theirs.uncertainty
        combined = CCDData(
            value.astype(self.dtype, copy=False),
            mask=count == 0,
            unit=self.unit,
            uncertainty=uncertainty,
        )
        combined.meta["NCOMBINE"] = len(self.ccd_list)
        return combined
