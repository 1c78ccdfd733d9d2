"""Filter curves: what a filter lets through, in the beam it stands in, of lines and of continua."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy import units as u
from astropy.constants import c
from astropy.table import QTable, Table

from astro_narrowband._engine.door import array, check_fields, door
from astro_narrowband._engine.validate import as_array
from astro_narrowband.exceptions import InputError
from astro_narrowband.filters import canonical_filter

#: Centre and width [nm] of filters as they are commonly sold: what is taken where no curve is
#: given, and said. No maker's curve.
GENERIC = {
    "Halpha": (656.3, 7.0),
    "OIII": (500.7, 7.0),
    "SII": (672.4, 7.0),
    "NII": (658.4, 3.0),
    "Hbeta": (486.1, 7.0),
    "B": (440.0, 98.0),
    "V": (550.0, 88.0),
    "R": (640.0, 150.0),
    "I": (800.0, 150.0),
    "g": (475.0, 140.0),
    "r": (622.0, 138.0),
    "i": (763.0, 150.0),
    "Blue": (450.0, 100.0),
    "Green": (535.0, 90.0),
    "Red": (640.0, 110.0),
    "Luminance": (550.0, 300.0),
}
#: Nodes over the pupil for the mean over a converging beam.
_NODES = 48


@dataclass(frozen=True)
class Line:
    """
    An emission line, or a doublet that one filter takes in whole.

    Attributes
    ----------
    name : str
        That of its filter.
    wavelengths : tuple of float
        In air [nm].
    shares : tuple of float
        What each component has of the flux that is stated, as energy. They add up to 1 for the
        Balmer lines and for [SII], whose flux is that of both components; [OIII] and [NII] are
        stated as the flux of the stronger line, and the weaker one comes on top.
    """

    name: str
    wavelengths: tuple[float, ...]
    shares: tuple[float, ...]


#: Wavelengths in air of the NIST Atomic Spectra Database. The doublet ratios of [OIII] (2.98)
#: and [NII] (3.05) are those of Storey & Zeippen 2000, MNRAS 312, 813. [SII] 6716/6731 = 1.35 is
#: that of an electron density of about 100 cm^-3; it goes from 1.45 to 0.44 (Osterbrock &
#: Ferland 2006).
LINES = {
    "Halpha": Line("Halpha", (656.28,), (1.0,)),
    "Hbeta": Line("Hbeta", (486.13,), (1.0,)),
    "OIII": Line("OIII", (500.68, 495.89), (1.0, 1 / 2.98)),
    "NII": Line("NII", (658.35, 654.80), (1.0, 1 / 3.05)),
    "SII": Line("SII", (671.64, 673.08), (1.35 / 2.35, 1 / 2.35)),
}


def line_named(name):
    """Return the `Line` of a name or of a `Line`, or raise `InputError`."""
    if isinstance(name, Line):
        return name
    canonical = canonical_filter(name)
    if canonical not in LINES:
        raise InputError(f"line = {name!r} is not known: use one of {', '.join(LINES)}, or a Line")
    return LINES[canonical]


@door
@dataclass(frozen=True, eq=False)
class FilterCurve:
    """
    What a filter lets through.

    Attributes
    ----------
    name : str
        For messages.
    wavelength : `~numpy.ndarray` of float, (n,)
        In air [nm], ascending.
    transmission : `~numpy.ndarray` of float, (n,)
        0 outside of it. May contain what the detector and the optics do; a constant factor
        does not matter.

    Examples
    --------
    >>> from astro_narrowband.lines import FilterCurve
    >>> curve = FilterCurve.from_shape(656.3, 3.0, name="Halpha")
    >>> fast = curve.in_beam(2.8)
    >>> print(f"{1 - fast.response('Halpha') / curve.response('Halpha'):.2f} of the line is lost")
    0.39 of the line is lost
    """

    name: str
    wavelength: np.ndarray
    transmission: np.ndarray

    def __post_init__(self):
        check_fields(self, wavelength=array(u.nm), transmission=array(u.one))
        wavelength, transmission = self.wavelength.copy(), self.transmission.copy()
        if wavelength.ndim != 1 or wavelength.shape != transmission.shape or len(wavelength) < 3:
            raise InputError(
                f"filter curve {self.name}: wavelength {wavelength.shape} and transmission "
                f"{transmission.shape} must be two rows of three numbers or more"
            )
        if not (np.isfinite(wavelength).all() and np.isfinite(transmission).all()):
            raise InputError(f"filter curve {self.name}: it holds values that are not finite")
        order = np.argsort(wavelength, kind="stable")
        wavelength, transmission = wavelength[order], transmission[order]
        if wavelength[0] <= 0 or (np.diff(wavelength) <= 0).any():
            raise InputError(
                f"filter curve {self.name}: wavelengths must be positive, each of them once"
            )
        if transmission.max() <= 0 or transmission.min() < -0.05 * transmission.max():
            raise InputError(
                f"filter curve {self.name}: transmission from {transmission.min():.3g} to "
                f"{transmission.max():.3g}: it must not be negative, and somewhere above zero"
            )
        transmission = np.maximum(transmission, 0.0)
        wavelength.flags.writeable = transmission.flags.writeable = False
        object.__setattr__(self, "wavelength", wavelength)
        object.__setattr__(self, "transmission", transmission)

    @classmethod
    def from_shape(cls, centre, width, *, peak=1.0, name="filter"):
        """
        Return a curve of centre, width and peak.

        Parameters
        ----------
        centre, width : float or `~astropy.units.Quantity`
            Of the transmission, width at half maximum [nm].
        peak : float, optional
            Largest transmission.
        name : str, optional
            For messages.

        Returns
        -------
        FilterCurve
            peak / (1 + (2 (wavelength - centre) / width)^6): three cavities.
        """
        reach = min(12 * width, 0.95 * centre)
        fine = np.linspace(-2 * width, 2 * width, 801)
        far = np.geomspace(2 * width, max(reach, 2.1 * width), 60)[1:]
        x = np.concatenate([-far[::-1], fine, far])
        x = x[centre + x > 0]
        return cls(name, centre + x, peak / (1 + (2 * x / width) ** 6))

    @classmethod
    def generic(cls, name):
        """Return the curve that a filter of this canonical name usually has (`GENERIC`)."""
        canonical = canonical_filter(name)
        if canonical not in GENERIC:
            raise InputError(
                f"filter {name!r}: no usual centre and width are known: give its curve, a file "
                "or CENTRE,WIDTH in nm"
            )
        return cls.from_shape(*GENERIC[canonical], name=canonical)

    @classmethod
    def from_file(cls, path, *, unit=None):
        """
        Read a curve: the first two columns of a FITS, ECSV, VOTable or text table.

        Parameters
        ----------
        path : path-like
            Wavelength and transmission; a transmission in percent has that unit.
        unit : unit-like, optional
            Of the wavelengths, where the file does not say it.

        Returns
        -------
        FilterCurve

        Raises
        ------
        InputError
            If the file cannot be read, or nothing says the unit of the wavelengths.
        """
        table = read_table(path)
        if len(table.colnames) < 2:
            raise InputError(f"{path}: a filter curve has two columns, wavelength and transmission")
        wavelength, transmission = (table[name] for name in table.colnames[:2])
        wavelength = u.Quantity(wavelength, dtype=float)
        if wavelength.unit == u.one:
            if unit is None:
                raise InputError(
                    f"{path}: its wavelengths have no unit: give unit (nm or Angstrom), or a "
                    "file that says it"
                )
            wavelength = wavelength.value * unit
        transmission = u.Quantity(transmission, dtype=float).to_value(u.one)
        return cls(Path(path).stem, as_array(wavelength, "unit", u.nm), transmission)

    def __call__(self, wavelength):
        """Return the transmission at wavelengths [nm], 0 outside the curve."""
        return np.interp(wavelength, self.wavelength, self.transmission, left=0.0, right=0.0)

    @property
    def width(self):
        """Equivalent width [nm]: the integral of the transmission over its maximum."""
        return float(np.trapezoid(self.transmission, self.wavelength) / self.transmission.max())

    @property
    def centre(self):
        """Mean wavelength [nm], weighted by the transmission."""
        t, w = self.transmission, self.wavelength
        return float(np.trapezoid(t * w, w) / np.trapezoid(t, w))

    def in_beam(self, f_ratio, *, obstruction=0.0, index=2.0):
        """
        Return the curve in a converging beam.

        Parameters
        ----------
        f_ratio : float
            Focal length over diameter.
        obstruction : float, optional
            Diameter of the shadow in the pupil's middle over that of the pupil.
        index : float, optional
            Effective refractive index of the filter; 1.5 to 2.1 is usual.

        Returns
        -------
        FilterCurve

        Notes
        -----
        Light that falls in at the angle theta sees the curve at wavelengths shorter by
        sqrt(1 - (sin(theta) / n)^2). The curve is the mean over the pupil, whose points at
        rho of its radius send light at tan(theta) = rho / (2 f_ratio). The axis of the beam is
        taken to be that of the filter: towards the edge of a field that is not telecentric
        the shift is larger.
        """
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        rho2 = obstruction**2 + (1 - obstruction**2) * (nodes + 1) / 2
        tan2 = rho2 / (4 * f_ratio**2)
        sine2 = tan2 / (1 + tan2)
        shift = np.sqrt(1 - sine2 / index**2)
        step = self._fine_step()
        grid = np.arange(self.wavelength[0] * shift.min(), self.wavelength[-1] + step, step)
        mean = sum(w / 2 * self(grid / s) for w, s in zip(weights, shift, strict=True))
        return FilterCurve(f"{self.name} at f/{f_ratio:g}", grid, mean)

    def _fine_step(self):
        rising = self.transmission > 0.01 * self.transmission.max()
        span = np.ptp(self.wavelength[rising]) if rising.sum() > 1 else np.ptp(self.wavelength)
        return max(span / 800, np.ptp(self.wavelength) / 20_000)

    def shifted(self, shift):
        """
        Return the curve moved by ``shift`` [nm].

        For another temperature that is (T - T_curve) times the filter's coefficient, which
        its maker states (0.01 to 0.03 nm/K are usual); for a tilt, what it does to the centre.
        """
        return replace(self, wavelength=self.wavelength + shift)

    def response(self, line, *, velocity=0.0):
        """
        Return the response to a line: sum of share, wavelength and transmission [nm].

        A flux F of the line gives F * response times what is common to all lines and continua:
        collecting area, throughput and 1 / (h c), for a detector that counts photons.

        Parameters
        ----------
        line : str or Line
            A name of `LINES`.
        velocity : float or `~astropy.units.Quantity`, optional
            Of the source, away from us [km/s].

        Returns
        -------
        float
        """
        line = line_named(line)
        stretch = 1 + velocity / c.to_value(u.km / u.s)
        at = np.array(line.wavelengths) * stretch
        return float(np.sum(np.array(line.shares) * at * self(at)))

    def checked_response(self, line, *, velocity=0.0):
        """As `response`, or raise `InputError` where the filter does not contain the line."""
        line = line_named(line)
        response = self.response(line, velocity=velocity)
        least = 0.02 * line.wavelengths[0] * self.transmission.max()
        if response <= least:
            raise InputError(
                f"filter curve {self.name} ({self.centre:.1f} nm, {self.width:.1f} nm wide) does "
                f"not contain {line.name} ({line.wavelengths[0]:.2f} nm at {velocity:g} "
                "km/s): give the curve of the filter that was used"
            )
        return response

    def integral(self, wavelength, density):
        """
        Return the integral of flux density, transmission and wavelength.

        Parameters
        ----------
        wavelength : array (n,)
            [nm], ascending; must cover the curve.
        density : array (..., n)
            Flux per wavelength, in any unit per nm.

        Returns
        -------
        float or array (...)
            In nm times unit; over `response` it is the flux of the line that gives as many counts.
        """
        if wavelength.ndim != 1 or density.shape[-1:] != wavelength.shape:
            raise InputError(
                f"wavelength {wavelength.shape}, density {density.shape}: as many are needed"
            )
        grid = np.union1d(self.wavelength, wavelength)
        grid = grid[(grid >= self.wavelength[0]) & (grid <= self.wavelength[-1])]
        weight = self(grid) * grid
        matters = weight > 1e-3 * weight.max()
        if wavelength[0] > grid[matters][0] or wavelength[-1] < grid[matters][-1]:
            raise InputError(
                f"spectrum from {wavelength[0]:.1f} to {wavelength[-1]:.1f} nm does not cover "
                f"the filter {self.name} ({grid[matters][0]:.1f} to {grid[matters][-1]:.1f} nm)"
            )
        rows = density.reshape(-1, density.shape[-1])
        out = [np.trapezoid(np.interp(grid, wavelength, row) * weight, grid) for row in rows]
        return np.array(out).reshape(density.shape[:-1])[()]


@door
def line_in_continuum(line_curve, continuum_curve, line, *, velocity=0.0):
    """
    Part of a line that subtracting the continuum takes away with it.

    Parameters
    ----------
    line_curve, continuum_curve : FilterCurve
        Of the two filters.
    line : str or Line
        What is to be measured.
    velocity : float, optional
        [km/s].

    Returns
    -------
    float
        0 where the continuum filter does not see the line. N - k C holds 1 minus this of it.

    Raises
    ------
    InputError
        If the line filter does not contain the line, or the two are one filter.

    Notes
    -----
    (W_N S_C) / (W_C S_N), with S the response to the line and W that to a continuum of
    constant f_lambda (Gil de Paz, Madore & Pevunova 2003, ApJS 147, 29, appendix A; Waller 1990,
    PASP 102, 1217).

    Examples
    --------
    >>> from astro_narrowband.lines import FilterCurve, line_in_continuum
    >>> narrow, broad = FilterCurve.from_shape(656.3, 7.0), FilterCurve.from_shape(640.0, 130.0)
    >>> print(f"{line_in_continuum(narrow, broad, 'Halpha'):.3f}")
    0.055
    """
    in_line = line_curve.checked_response(line, velocity=velocity)
    in_continuum = continuum_curve.response(line, velocity=velocity)
    widths = [np.trapezoid(c.transmission * c.wavelength, c.wavelength)
              for c in (line_curve, continuum_curve)]  # fmt: skip
    lost = float(widths[0] * in_continuum / (widths[1] * in_line))
    if lost > 0.5:
        raise InputError(
            f"the continuum filter {continuum_curve.name} ({continuum_curve.width:.1f} nm wide) "
            f"takes {lost:.0%} of {line_named(line).name} away again: it is the line's own "
            "filter, or nearly; use a broader one, or one beside the line"
        )
    return lost


def read_table(path):
    """Read a table by its format, and plain text by its first lines, or raise `InputError`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    tries = [(QTable, {}), (Table, {"format": "ascii"})]
    if path.suffix.lower() in (".txt", ".dat", ".csv"):
        tries.reverse()
    reasons = []
    for kind, options in tries:
        try:
            return kind.read(path, **options)
        except Exception as error:
            reasons.append(" ".join(str(error).split())[:120])
    raise InputError(f"{path}: cannot be read as a table ({reasons[0]}): use ECSV, FITS or VOTable")
