"""
Combine frames band by band: exact medians, clipping, weighted means, with their errors.
"""

import numpy as np
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband._tile import Reduced, Rejection, reduce_tile
from astro_narrowband._validate import choice, same_shape
from astro_narrowband.bands import as_frame, map_bands, row_bands
from astro_narrowband.exceptions import InputError

__all__ = ["Reduced", "Rejection", "combine", "reduce_tile"]


def combine(
    frames,
    output_file=None,
    *,
    method="average",
    weights=None,
    scale=None,
    mem_limit=16e9,
    clip_extrema=False,
    nlow=1,
    nhigh=1,
    minmax_clip=False,
    minmax_clip_min=None,
    minmax_clip_max=None,
    sigma_clip=False,
    sigma_clip_low_thresh=3,
    sigma_clip_high_thresh=3,
    sigma_clip_func="median",
    sigma_clip_dev_func="mad_std",
    maxiters=1,
    percentile_clip=None,
    uncertainty=True,
    return_count=False,
    unit=None,
    dtype=None,
    overwrite_output=False,
    executor=None,
    workers=None,
):
    """
    Combine frames into one `~astropy.nddata.CCDData`.
    """
    choice(method, ("average", "median", "sum"), "method")
    frames = [as_frame(f, unit=unit) for f in frames]
    shape = same_shape(frames)
    units = {f.unit for f in frames}
    if len(units) > 1:
        raise InputError(f"frames of different units: {units}")
    rejection = Rejection(
        limits=(minmax_clip_min, minmax_clip_max) if minmax_clip else (None, None),
        extrema=(nlow, nhigh) if clip_extrema else (0, 0),
        percentile=percentile_clip,
        sigma=(sigma_clip_low_thresh, sigma_clip_high_thresh) if sigma_clip else None,
        center=sigma_clip_func,
        deviation=sigma_clip_dev_func,
        maxiters=maxiters,
    )
    if callable(scale):
        scale = [float(scale(f.read(slice(0, shape[0])).data)) for f in frames]
    n, nx = len(frames), shape[1]
    dtype = np.dtype(dtype or np.float32)

    def reduce_band(rows):
        bands = [f.read(rows) for f in frames]
        tile = np.stack([b.data.reshape(-1) for b in bands])
        bad = np.stack(
            [np.zeros(tile.shape[1], bool) if b.mask is None else b.mask.reshape(-1) for b in bands]
        )
        var = None
        if all(b.variance is not None for b in bands):
            var = np.stack([b.variance.reshape(-1) for b in bands])
        if scale is not None:
            tile = tile * np.reshape(scale, (n, 1))
            var = var if var is None else var * np.reshape(scale, (n, 1)) ** 2
        w = weights
        if w is not None and np.ndim(w) == 3:
            w = np.asarray(w)[:, rows].reshape(n, -1)
        return reduce_tile(
            tile, bad, method=method, rejection=rejection, variance=var, weights=w,
            error=uncertainty,
        )

    data = np.empty(shape, dtype)
    sigma = np.empty(shape, dtype) if uncertainty else None
    count = np.empty(shape, np.int16)
    band_rows = max(1, int(min(mem_limit, 64e6) // (n * nx * 32)))
    for rows, reduced in map_bands(
        reduce_band, row_bands(shape[0], band_rows), executor=executor, workers=workers
    ):
        data[rows] = reduced.value.reshape(-1, nx)
        count[rows] = reduced.count.reshape(-1, nx)
        if sigma is not None:
            sigma[rows] = np.sqrt(reduced.variance).reshape(-1, nx)
    header = frames[0].header.copy()
    header["NCOMBINE"] = (n, "number of frames combined")
    mask = count == 0
    result = CCDData(
        data,
        unit=frames[0].unit or u.adu,
        mask=mask if mask.any() else None,
        uncertainty=None if sigma is None else StdDevUncertainty(sigma),
        header=header,
    )
    if output_file is not None:
        result.write(output_file, overwrite=overwrite_output)
    return (result, count) if return_count else result
