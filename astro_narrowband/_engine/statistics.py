"""The robust standard deviation that everything is clipped by, and scatter beyond errors."""

import numpy as np

#: Standard deviation of a Gaussian over its median absolute deviation.
MAD_TO_STD = 1.482602218505602


def mad_std(values, centre=None):
    """
    Return the standard deviation as the median absolute deviation gives it.

    Unlike `astropy.stats.mad_std` it is also about a known centre, which halves its noise
    where residuals or differences have one, and it takes no copy of the input.

    Parameters
    ----------
    values : `~numpy.ndarray`
        NaN are left out; NaN is returned where nothing is left.
    centre : float, optional
        Default is the median.

    Returns
    -------
    float

    Examples
    --------
    >>> from astro_narrowband._engine.statistics import mad_std
    >>> round(mad_std([1.0, 2.0, 3.0, 4.0, 1000.0]), 4), round(mad_std([-1.0, 3.0], 0.0), 4)
    (1.4826, 2.9652)
    """
    values = np.asarray(values).ravel()
    if np.isnan(values).any():
        values = values[~np.isnan(values)]
    if not values.size:
        return np.nan
    if centre is None:
        centre = np.median(values)
    return MAD_TO_STD * float(np.median(np.abs(values - centre)))


def mean_with_excess(values, variance):
    """
    Return the weighted mean, its error, and the variance that values have beyond their own.

    That excess brings chi-squared about the mean to the number of degrees of freedom (Paule &
    Mandel 1982, J. Res. NBS 87, 377); it is 0 where it is less without.

    Parameters
    ----------
    values, variance : `~numpy.ndarray`, (n,)

    Returns
    -------
    mean, error, excess : float

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband._engine.statistics import mean_with_excess
    >>> mean, error, excess = mean_with_excess(np.array([1.0, 3.0]), np.array([0.5, 0.5]))
    >>> round(mean, 6), round(error, 6), round(excess, 6)
    (2.0, 1.0, 1.5)
    """
    free, excess = len(values) - 1, 0.0
    for _ in range(60):
        weight = 1 / (variance + excess)
        mean = np.sum(weight * values) / weight.sum()
        square = weight * (values - mean) ** 2
        chi2 = square.sum()
        if chi2 <= free + 1e-9:
            break
        excess += (chi2 - free) * chi2 / (free * np.sum(weight * square))
    return float(mean), float(weight.sum() ** -0.5), float(excess)
