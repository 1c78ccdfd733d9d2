"""Where the lights of a target lie: their grid, their WCS, their times."""

from astropy.time import Time

__all__ = ["days_of", "grid_of", "place"]


def grid_of(group):
    """What groups on one grid have in common: object and detector."""
    return group.object, repr(group.setup)


def days_of(dates):
    """Dates as days, or None where one of them cannot be trusted."""
    try:
        return list(Time(list(dates), format="isot").mjd)
    except ValueError:
        return None
