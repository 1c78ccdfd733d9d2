"""Lines that share a filter: [NII] in that of Halpha."""

import numpy as np
from astropy.nddata import StdDevUncertainty

from astro_narrowband._engine.door import array, door, of_class, of_two
from astro_narrowband.exceptions import InputError
from astro_narrowband.lines._filters import line_named
from astro_narrowband.lines._map import CONTINUUM, add_common, combined, on_grid_of, random_variance


@door(ratio=array(), ratio_err=array())
def correct_blend(line_map, ratio, *, curve, ratio_err, line="Halpha", blend="NII", velocity=0.0):
    """
    Take out of a map what another line adds, whose ratio is known.

    Parameters
    ----------
    line_map : LineMap
        Of ``line``, as if all of it were that line.
    ratio, ratio_err : float or array (ny, nx)
        Flux of the stronger line of ``blend`` (6583 of [NII]) over that of ``line``, and its
        error; a single number is one error of the whole map.
    curve : FilterCurve
        Of the filter.
    line, blend : str or Line, optional
    velocity : float, optional
        [km/s].

    Returns
    -------
    LineMap
        Header: BLEND (what was divided by, mean), BLENDERR.

    Notes
    -----
    F = F_obs / (1 + r S_blend / S_line), S the curve's `~FilterCurve.response`: for [NII] in the
    filter of Halpha 1 + r [T(6583) + T(6548) / 3.05] / T(6563), and a factor of the wavelengths,
    as photons are counted. The weaker line of [OIII] is in the response of its filter already.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband.lines import FilterCurve, LineMap, correct_blend
    >>> both = LineMap(np.full((2, 2), 1.532), unit="electron/s",
    ...                uncertainty=StdDevUncertainty(np.full((2, 2), 0.01)))
    >>> curve = FilterCurve.from_shape(656.3, 10.0)
    >>> print(f"{correct_blend(both, 0.4, curve=curve, ratio_err=0.1).data[0, 0]:.3f}")
    1.001
    """
    line, blend = line_named(line), line_named(blend)
    for name, value in (("ratio", ratio), ("ratio_err", ratio_err)):
        if np.shape(value) not in ((), line_map.shape):
            raise InputError(f"{name} has shape {np.shape(value)}, the map {line_map.shape}")
    if not np.isfinite(ratio_err).any() or np.nanmin(ratio_err) < 0:
        raise InputError("ratio_err: give errors of 0 or more")
    if not np.isfinite(ratio).any() or np.nanmin(ratio) < 0:
        raise InputError(f"ratio of {blend.name} to {line.name}: it must not be negative")
    share = curve.response(blend, velocity=velocity)
    share /= curve.checked_response(line, velocity=velocity)
    factor = 1 / (1 + ratio * share)
    relative = share * ratio_err * factor
    result = combined([(factor, line_map, "")], like=line_map)
    if ratio_err.ndim:
        noise = np.hypot(result.uncertainty.array, np.float32(relative) * result.data)
        result.uncertainty = StdDevUncertainty(noise)
    else:
        # One ratio for the whole map: one error of the whole map.
        add_common(result, blend.name, float(np.mean(relative)))
    result.meta["BLEND"] = (float(np.nanmean(1 / factor)), f"divided by, for {blend.name}")
    result.meta["BLENDERR"] = (float(np.nanmean(relative)), "relative error of that")
    return result


@door(
    a=of_class("LineMap"),
    b=of_class("LineMap"),
    curves=of_two(of_class("FilterCurve")),
    lines=of_two(lambda line, _: line_named(line)),
)
def separate_lines(a, b, *, curves, lines=("Halpha", "NII"), velocity=0.0):
    """
    Two lines from two filters that each hold some of both.

    Parameters
    ----------
    a, b : LineMap
        Each as if all of it were its own line, in one unit, calibrated.
    curves : (FilterCurve, FilterCurve)
        Of the two filters.
    lines : (str or Line, str or Line), optional
    velocity : float, optional
        [km/s].

    Returns
    -------
    a, b : LineMap

    Raises
    ------
    InputError
        If the filters see the lines alike, so that they cannot be told apart.
    """
    if a.unit != b.unit:
        raise InputError(f"maps in {a.unit} and {b.unit}: one unit is needed")
    b = on_grid_of(b, a, "the second map")
    first, second = (line_named(name) for name in lines)
    p = curves[0].response(second, velocity=velocity) / curves[0].checked_response(
        first, velocity=velocity
    )
    q = curves[1].response(first, velocity=velocity) / curves[1].checked_response(
        second, velocity=velocity
    )
    if abs(p * q) > 0.8:
        raise InputError(
            f"{curves[0].name} and {curves[1].name} see {first.name} and {second.name} alike: "
            "the lines cannot be told apart"
        )
    gain = 1 / (1 - p * q)
    return (
        combined([(gain, a, ""), (-p * gain, b, f" of {second.name}")], like=a),
        combined([(gain, b, ""), (-q * gain, a, f" of {first.name}")], like=b),
    )


@door
def restore_lines(maps, parts):
    """
    Give back what the lines in a continuum filter took from every map.

    A broad filter may hold several lines: Halpha in it is subtracted from [SII] as well.

    Parameters
    ----------
    maps : dict of str to LineMap
        Of `subtract_continuum` without ``curves``, all with one continuum image; in electron/s.
    parts : dict of str to float
        What `line_in_continuum` says of each line that the continuum filter holds.

    Returns
    -------
    dict of str to LineMap
        KLOST of the headers is the sum of the parts.

    Raises
    ------
    InputError
        If most of the continuum's light may be lines: the parts add up to more than a half.

    Notes
    -----
    With D = N - k C of each line and b its part, the lines in C are
    ``sum(b D / k) / (1 - sum(b))``; k times that goes back into each map. No flux scale is needed.
    An error of k does nothing to what is given back: what it does to a map is that of the continuum
    alone.

    Examples
    --------
    >>> import numpy as np
    >>> from astropy.nddata import CCDData, StdDevUncertainty
    >>> from astro_narrowband.lines import restore_lines, subtract_continuum
    >>> def image(level):
    ...     noise = StdDevUncertainty(np.full((4, 4), 0.1))
    ...     return CCDData(np.full((4, 4), level), unit="electron/s", uncertainty=noise)
    >>> continuum = image(100.0 + 10.0)  # of which 10 is Halpha
    >>> maps = {name: subtract_continuum(image(rate), continuum, k=0.05)
    ...         for name, rate in (("Halpha", 10.0 + 5.0), ("SII", 1.0 + 5.0))}
    >>> restored = restore_lines(maps, {"Halpha": 0.05 * 10 / 10})
    >>> print(f"{restored['Halpha'].data[0, 0]:.2f} {restored['SII'].data[0, 0]:.2f}")
    10.00 1.00
    """
    total = sum(parts.values())
    if total > 0.5:
        raise InputError(
            f"the lines {', '.join(parts)} are {total:.0%} of what the continuum filter would take "
            "away: use a broader continuum filter, or one without lines"
        )
    scales = {name: float(line_map.meta["KCONT"]) for name, line_map in maps.items()}
    restored = {}
    for name, line_map in maps.items():
        terms, moves = [(1.0, line_map, "")], {}
        for other, source in maps.items():
            share = parts.get(other, 0.0) / (1 - total) * scales[name] / scales[other]
            if other == name:
                terms[0] = (1.0 + share, line_map, "")
            elif share:
                terms.append((share, source, f" of {other}"))
                # The ratio of both scales has both their errors, the map's own the other way.
                for key, of, sign in ((CONTINUUM, name, -1), (f"{CONTINUUM} of {other}", other, 1)):
                    error = sign * share * float(maps[of].meta["KCONTERR"]) / scales[of]
                    moves[key] = moves.get(key, 0.0) + np.float32(error) * source.data
        result = _with_common(combined(terms, like=line_map), moves)
        result.meta["KLOST"] = (round(total, 6), "part of the lines in the continuum filter")
        restored[name] = result
    return restored


def _with_common(line_map, moves):
    """A map whose common errors have more of what one standard deviation of each does."""
    line_map.uncertainty = StdDevUncertainty(np.sqrt(random_variance(line_map)))
    common, line_map.common = line_map.common, {}
    for name in common | moves:
        add_common(line_map, name, common.get(name, 0.0) + moves.get(name, 0.0))
    return line_map
