"""Whether exposure times are the same, and what a dark of another one costs a frame."""

from typing import NamedTuple

__all__ = [
    "KELVIN",
    "LINEARITY",
    "MAX_STATED",
    "MAX_UNSTATED",
    "PER_KELVIN",
    "WORTH_SAYING",
    "DarkPrice",
    "same_exposure",
    "tolerance",
]

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
