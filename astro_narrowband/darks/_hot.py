"""
Hot pixels of a dark model: how steady they are, and whether exposure times agree.

Hot pixels are so well measured that what limits them is not noise. All of them may be off
at one exposure time by one factor (its darks were colder), each may wander by itself, and
some do not grow in proportion to time. The three are told apart: the factor is the mode of
the ratios of all, the wandering what ordinary hot pixels scatter beyond it, and who is
5 sigma beyond both is not linear.
"""

import numpy as np

from astro_narrowband.darks._price import PER_KELVIN
from astro_narrowband.darks._straight import limit, line

#: Hot pixels that are looked at as a crowd: this many sigma bright, this many at least and most.
BRIGHT, ENOUGH, MOST = 10.0, 30, 20000
#: Exposure times that differ by more, and by 3 errors of it, are said to disagree.
DISAGREE = 0.10
#: Sigma from which a pixel is never taken for an ordinary one.
KEPT = 5.0


class Hot:
    """
    Pixels that stand out of their neighbourhood, or leave their line.

    Parameters
    ----------
    tables : list of dict
        ``pixel``, ``y``, ``v``, ``ok`` (points, pixels), ``base``, ``local``, ``ratio``
        (variance found over expected, 1 at least) and ``far`` of some rows each.
    times : `~numpy.ndarray` of float32
        Of the points [s].
    planes, flags : dict
        Of the model, which are changed; bits of the flags.
    """

    def __init__(self, tables, times, planes, flags):
        self.table = {key: np.concatenate([t[key] for t in tables], -1) for key in tables[0]}
        self.times, self.planes, self.flags = times, planes, flags
        self.kept = np.empty(0, np.intp)
        self.relative = self.wander = np.float32(0)

    def finish(self, temperatures, notes):
        """
        Refit with the relative error of the rates, flag, and keep hot ones from being shrunk.

        The relative error is that of the dark that is asked for as well: of whoever takes the
        line. At a time that was measured `measured` has the mean, where that is better.
        """
        hot, t = self.table, self.times[:, None]
        v = hot["v"] * np.maximum(hot["ratio"], 1)
        rate = line(hot["y"], v, hot["ok"], t)[0]
        signal = np.maximum(rate - hot["local"], 0) * t
        factor = self._steadiness(v, signal, temperatures, notes)
        y, scaled = self._scaled(v, factor)
        bent = self._bent(y, scaled + (self.wander * signal) ** 2, hot["ok"])
        v_line = v + (self.relative * signal) ** 2
        rate, offset, var_rate, var_offset, cov, chi2, used = line(hot["y"], v_line, hot["ok"], t)
        dof = np.maximum(used, 2) - 2
        ratio = np.where(bent, np.maximum(chi2 / np.maximum(dof, 1), 1), np.float32(1))
        future = (self.relative * np.maximum(rate - hot["local"], 0)) ** 2
        far = hot["far"] & ((rate - hot["local"]) ** 2 > KEPT**2 * var_rate)
        far |= hot["far"] & (future > 0.1 * var_rate)
        fitted = {
            "offset": offset + hot["base"],
            "rate": rate,
            "var_offset": var_offset * ratio,
            "var_rate": var_rate * ratio + future,
            "cov": cov * ratio,
        }
        for name, values in fitted.items():
            self.planes[name].ravel()[hot["pixel"]] = values
        flags, bit = self.planes["flags"].ravel(), np.uint8(self.flags["NONLINEAR"])
        flags[hot["pixel"]] = (flags[hot["pixel"]] & ~bit) | np.where(bent, bit, np.uint8(0))
        # A relative error makes hot pixels look as if noise could have made them.
        self.kept = np.sort(hot["pixel"][far | bent])
        # Means, where they are worth more than the line.
        self.variance = v + (self.wander * signal) ** 2
        of_line = var_offset + 2 * t * cov + t * t * (var_rate + future)
        self.better = hot["ok"] & (used > 2) & (bent | (of_line > self.variance))

    def _scaled(self, v, factor):
        """Return points and variances, the hot current at each time divided by its factor."""
        lever = self.times[:, None] - self.times[0]
        local = self.table["local"] * lever
        factor = factor[:, None]
        return local + (self.table["y"] - local) / factor, v / factor**2

    def _bent(self, y, v, ok):
        """Return whether straight lines do not fit."""
        *_, chi2, used = line(y, v, ok, self.times[:, None])
        return chi2 > limit(np.maximum(used, 2) - 2)

    def _steadiness(self, v, signal, temperatures, notes):
        """Find the relative errors; return the factor of each point that is of no pixel's own."""
        hot = self.table
        factor = np.ones(self.times.size, np.float32)
        dof = np.maximum(hot["ok"].sum(axis=0), 2) - 2
        if dof.max() == 0:
            spread = float(np.std(temperatures)) if temperatures else 0.0
            self.relative = np.float32(PER_KELVIN * spread)
            return factor
        steady = self.planes["flags"].ravel()[hot["pixel"]] & self.flags["UNCERTAIN"] == 0
        bright = signal[-1] > BRIGHT * np.sqrt(v[-1])
        chosen = np.flatnonzero(hot["ok"].all(axis=0) & bright & steady & hot["far"])
        if chosen.size < ENOUGH:
            return factor
        chosen = chosen[:: max(1, chosen.size // MOST)]
        factor, error = self._factors(v, chosen)
        factor[np.abs(factor - 1) <= 3 * error] = 1
        disagree = np.abs(factor - 1) > DISAGREE + 3 * error
        self._say_factors(factor, np.flatnonzero(disagree), chosen.size, notes)
        y, scaled = self._scaled(v, factor)
        self.wander = self._wander(y[:, chosen], scaled[:, chosen], signal[:, chosen])
        self.relative = np.float32(np.hypot(self.wander, np.abs(factor - 1).max()))
        if self.relative > 0:
            notes.append(
                f"rates of hot pixels are not steady to better than {100 * self.relative:.2g} % "
                "(temperature, or the pixels themselves); their errors include it"
            )
        # A factor that is said may be the pixels' own, and they are not linear then.
        return np.where(disagree, np.float32(1), factor)

    def _factors(self, v, chosen):
        """Mode of the hot current at each time over that at the last, and its error."""
        hot, lever = self.table, self.times - self.times[0]
        current = hot["y"][:, chosen] - hot["local"][chosen] * lever[:, None]
        factor, error = np.ones(lever.size, np.float32), np.zeros(lever.size)
        for k in range(1, lever.size - 1):
            ratio = current[k] / current[-1] * (lever[-1] / lever[k])
            # Those that are known well enough for a tenth to be seen.
            sigma = np.sqrt(v[k, chosen]) / current[-1] * (lever[-1] / lever[k])
            sharp = sigma <= max(DISAGREE, float(np.median(sigma)))
            # Where a third agrees, the others are pixels that are not linear.
            near = sharp & (np.abs(ratio - 1) < DISAGREE / 2 + 2 * sigma)
            factor[k], error[k] = _mode(ratio[near if 3 * near.sum() > sharp.sum() else sharp])
        return factor, error

    def _say_factors(self, factor, points, number, notes):
        for k in points:
            notes.append(
                f"darks of {self.times[k]:g} s disagree with those of {self.times[-1]:g} s: "
                f"most of {number} hot pixels are {100 * abs(factor[k] - 1):.0f} % "
                f"{'weaker' if factor[k] < 1 else 'stronger'} for their time (temperature, or they "
                "are not linear): take darks of the lights' exposure time and temperature"
            )

    def _wander(self, y, v, signal):
        """Relative error that makes chi-squared of those that are linear what it should be."""
        from scipy.special import chdtri

        dof, ok = self.times.size - 2, np.ones(y.shape, bool)

        def error_of(pixels, probability):
            wanted = chdtri(dof, probability) * (1 + 3 / max(pixels.sum(), 1) ** 0.5)
            low, high = 0.0, 1.0
            points, known, one, bright = (x[:, pixels] for x in (y, ok, v, signal))
            for middle in (0.0, *[None] * 20):
                f = (low + high) / 2 if middle is None else middle
                wide = one + np.float32(f) ** 2 * bright**2
                chi2 = line(points, wide, known, self.times[:, None])[5]
                above = np.quantile(chi2, 1 - probability) > wanted
                if middle is not None and not above:
                    return 0.0
                low, high = (f, high) if above else (low, f)
            return high

        # The quarter that fits best is of steady pixels, whatever the others are; then all
        # that are linear with that, until it stays.
        error = error_of(ok[0], 0.75)
        for _ in range(3):
            linear = ~self._bent(y, v + (np.float32(error) * signal) ** 2, ok)
            if linear.sum() < ENOUGH:
                break
            error = error_of(linear, 0.5)
        return np.float32(error)

    def measured(self, dark):
        """
        Return means and variances at the points ``dark`` of pixels that should have them.

        Where the line is worth more, or there is no mean, it is NaN.
        """
        use = self.better[dark]
        chosen = use.any(axis=0)
        if not chosen.any():
            return {}
        use, hot = use[:, chosen], self.table
        mean = hot["y"][dark][:, chosen] + hot["base"][chosen]
        variance = self.variance[dark][:, chosen]
        return {
            "pixel": hot["pixel"][chosen].astype(np.int64),
            "mean": np.where(use, mean, np.nan).astype(np.float32),
            "variance": np.where(use, variance, np.nan).astype(np.float32),
        }


def _mode(values):
    """Median of the half that lies closest together, and its standard error."""
    values = np.sort(values)
    n = (values.size + 1) // 2
    width = values[n - 1 :] - values[: values.size - n + 1]
    first = int(np.argmin(width))
    half = values[first : first + n]
    # Half of a normal distribution is within 0.6745 sigma; this median is a poor one of it.
    return float(np.median(half)), float(2.5 * width[first] / 1.349 / max(values.size, 1) ** 0.5)
