"""Whether exposure times are the same, and what a dark of another one costs a frame."""

from typing import NamedTuple

from astropy import units as u

from astro_narrowband._engine.door import door, real
from astro_narrowband.exceptions import CalibrationError, warn

#: Exposures that differ by less than this fraction, or by less than this time [s], are the same.
MATCH, MATCH_SECONDS = 0.005, 0.05
#: Relative change of the dark current per kelvin (it doubles every 6.5 K).
PER_KELVIN = 0.107
#: What nobody has measured beyond the darks' own exposure times: how far the dark current
#: may leave a straight line there (glow of amplifiers, persistence: a few per cent), and
#: how steady the temperature is without anybody being warned [K].
LINEARITY, KELVIN = 0.05, 0.5
#: What a dark may cost, in errors of the frame that it is taken from. The error that is
#: stated is carried along and only makes the frame worth less: at three, a tenth. What is
#: not in any error bar must stay well inside the one that is there.
MAX_STATED, MAX_UNSTATED = 3.0, 0.5
#: A price that adds less than half a per cent to the error is not worth a word.
WORTH_SAYING = 0.1


@door(first=real(u.s), second=real(u.s))
def same_exposure(first, second):
    """
    Return whether two exposure times [s] are the same: within 0.5 %, or 50 ms.

    Examples
    --------
    >>> from astro_narrowband.darks import same_exposure
    >>> same_exposure(300.0, 300.9), same_exposure(300.0, 310.0)
    (True, False)
    """
    return abs(first - second) <= max(MATCH * max(first, second), MATCH_SECONDS)


def tolerance():
    """Return the relative error of a dark current where it was not measured."""
    return (LINEARITY**2 + (PER_KELVIN * KELVIN) ** 2) ** 0.5


class DarkPrice(NamedTuple):
    """
    What the dark of an exposure time costs a typical pixel of a frame.

    Attributes
    ----------
    policy : str
        As `~astro_narrowband.darks.DarkModel.policy` says.
    stated : float
        Error of the dark that its uncertainty says [adu].
    unstated : float
        What may be wrong beyond it [adu]: the dark current between ``exposure`` and
        the nearest exposure time that was measured, times the tolerance on linearity
        and temperature (7 %).
    noise : float
        The frame's own error [adu].
    """

    policy: str
    stated: float
    unstated: float
    noise: float

    @property
    def total(self):
        """Both in units of the frame's own error."""
        return (self.stated**2 + self.unstated**2) ** 0.5 / self.noise

    @property
    def too_high(self):
        """Whether the frame should not be reduced with this dark."""
        return self.stated > MAX_STATED * self.noise or self.unstated > MAX_UNSTATED * self.noise


def policy_of(model, exposure, max_extrapolation):
    """Return how the dark of an exposure is had, see `~astro_narrowband.darks.DarkModel.policy`."""
    if model.model == "bias":
        return "bias"
    if any(same_exposure(exposure, t) for t in model.exposures):
        return "matched"
    longest = max(model.exposures)
    if max_extrapolation is not None and exposure > max_extrapolation * longest:
        raise CalibrationError(
            f"the dark of {exposure:g} s would be extrapolated {exposure / longest:.2g} times "
            f"beyond the longest dark ({longest:g} s; max_extrapolation = {max_extrapolation:g}): "
            f"take darks of {exposure:g} s, or raise max_extrapolation"
        )
    if model.model == "matched":
        if not model.typical("var_rate") > 0:
            raise CalibrationError(
                f"the dark of {exposure:g} s cannot be had from a master dark of {longest:g} s "
                "alone: without a bias it cannot be scaled: give a bias, or a dark of this "
                "exposure"
            )
        return "offset"
    if exposure > longest or (model.model == "linear" and exposure < min(model.exposures)):
        return "extrapolated"
    return "scaled"


def pay(model, exposure, policy, *, noise, name, what, limited):
    """
    Raise where the dark of a frame costs too much, warn where it is worth a word.

    See `~astro_narrowband.darks.DarkModel.check`; ``limited``: who gave a limit pays any price.
    """
    times = ", ".join(f"{t:g}" for t in model.exposures)
    price = None
    if noise is not None:
        price = model.price(exposure, noise=noise() if callable(noise) else noise)
    biases = ", or biases" if model.model in ("linear", "matched") else ""
    advice = f"take darks of {exposure:g} s{biases}"
    if price is None and policy == "offset":
        raise CalibrationError(
            f"{name}the dark of {exposure:g} s cannot be had from darks of {times} s alone: "
            f"without a bias they cannot be scaled: {advice}"
        )
    if price is not None and price.too_high and not limited:
        raise CalibrationError(
            f"{name}its dark of {exposure:g} s from darks of {times} s would cost too much: an "
            f"error of {price.stated:.2g} adu, and {price.unstated:.2g} adu if the current "
            f"is off by {100 * tolerance():.0f} %, where the frame's own error is "
            f"{price.noise:.2g} adu: {advice}, or allow it with max_extrapolation"
        )
    if price is not None and price.total <= WORTH_SAYING and policy != "offset":
        return
    cost = "" if price is None else f", {price.total:.1g} times the {what}' own error"
    longest = f"{max(model.exposures):g} s"
    if policy == "offset":
        text = (
            f"{what} of {exposure:g} s: darks of {longest} stand for their offset, without a "
            f"bias (error {price.stated:.2g} adu{cost})"
        )
    else:
        text = (
            f"{what} of {exposure:g} s: their dark is extrapolated from darks of {longest}: "
            f"its variance grows {model.variance_factor(exposure):.3g} times{cost}"
        )
        if any(note.startswith("rate: ") and "follow" in note for note in model.notes):
            text += (
                ", and lone pixels somewhat warmer than those around may be off by more (not with "
                "shrink=False)"
            )
    warn(f"{text}; {advice} to be better", stacklevel=4)
