"""
The result of registration: a transform, its error, and what it rests on.

Private home of `astro_narrowband.registration.Alignment`.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from astro_narrowband._engine.door import a_text, array, check_fields, count, door, flag, real
from astro_narrowband._engine.plots import new_axes, picture_html
from astro_narrowband._engine.validate import alike
from astro_narrowband._engine.wcs import apply_matrix
from astro_narrowband.exceptions import InputError


@door
@dataclass(frozen=True, eq=False)
class Alignment:
    """
    A transform from the pixels of one frame (source) to those of another (target).

    Attributes
    ----------
    matrix : `~numpy.ndarray` (3, 3)
        Maps a column (x, y, 1) of the source to one of the target; pixel
        centres are whole numbers, the first is 0.
    covariance : `~numpy.ndarray` (4, 4)
        Of a, b, tx, ty [pix^2 for tx, ty] in x' = a x - b y + tx,
        y' = b x + a y + ty.
    rms : float
        Of the residuals of the matched stars along one axis [pix].
    n_matched : int
        Stars that the transform rests on, or pieces of the nebula.
    method : str
        How it was found.
    flip : bool
        Whether the frame is turned by about 180 degrees: the other side of the pier.
    fraction : float
        Matched stars over those of the shorter list that lie in the common area.
    log_chance : float
        log10 of the chance that unrelated star lists match so well.

    Examples
    --------
    >>> import numpy as np
    >>> from astro_narrowband import Alignment
    >>> moved = Alignment(np.array([[1.0, 0.0, 3.5], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]))
    >>> moved.shift, moved.inverse().shift
    ((3.5, -2.0), (-3.5, 2.0))
    """

    matrix: np.ndarray
    covariance: np.ndarray = field(default_factory=lambda: np.zeros((4, 4)))
    rms: float = 0.0
    n_matched: int = 0
    method: str = "given"
    flip: bool = False
    fraction: float = 1.0
    log_chance: float = -math.inf

    def __post_init__(self):
        check_fields(
            self, matrix=array(), covariance=array(), rms=real(), n_matched=count(0),
            method=a_text, flip=flag, fraction=real(), log_chance=real(least=-math.inf),
        )  # fmt: skip
        matrix, covariance = self.matrix.copy(), self.covariance.copy()
        good = matrix.shape == (3, 3) and np.isfinite(matrix).all()
        if not good or not np.allclose(matrix[2], (0, 0, 1)):
            raise InputError(f"matrix = {self.matrix!r}: a finite affine 3 x 3 matrix is needed")
        if abs(np.linalg.det(matrix[:2, :2])) < 1e-6:
            raise InputError(f"matrix = {self.matrix!r}: it cannot be inverted")
        if covariance.shape != (4, 4):
            raise InputError(f"covariance of shape {covariance.shape}: (4, 4) is needed")
        matrix.flags.writeable = covariance.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "covariance", covariance)

    def __repr__(self):
        dx, dy = self.shift
        stars = f", {self.n_matched} stars to {self.rms:.3f} pix" if self.n_matched else ""
        turn = f"{self.rotation:+.3f} deg"
        return f"<Alignment by {self.method}: {dx:+.2f}, {dy:+.2f} pix, {turn}{stars}>"

    def _repr_html_(self):
        return picture_html(repr(self), self.plot)

    def plot(self, ax=None, *, shape=(1000, 1000)):
        """
        Draw where the pixels of a frame go, and how well that is known.

        Parameters
        ----------
        ax : `~matplotlib.axes.Axes`, optional
            Default is a new figure.
        shape : tuple of int, optional
            (ny, nx) of the frame. Residuals of single stars are not kept, and not drawn.

        Returns
        -------
        `~matplotlib.axes.Axes`
        """
        if ax is None:
            ax = new_axes()
        y, x = np.mgrid[0 : shape[0] - 1 : 9j, 0 : shape[1] - 1 : 9j]
        u, v = self(x, y)
        arrows = ax.quiver(x, y, u - x, v - y, self.position_error(x, y), angles="xy")
        ax.figure.colorbar(arrows, ax=ax, label="error of the position [pix]")
        ax.set_aspect("equal")
        ax.set_xlabel("x [pix]")
        ax.set_ylabel("y [pix]")
        ax.set_title(f"rms of {self.n_matched} stars: {self.rms:.3f} pix", loc="left", fontsize=10)
        return ax

    @classmethod
    def identity(cls, method="reference"):
        """Return the alignment of a frame with itself."""
        return cls(np.eye(3), method=method)

    @classmethod
    def translation(cls, dx, dy, **keywords):
        """Return a shift by ``dx``, ``dy`` [pix]: a star at (x, y) comes to (x + dx, y + dy)."""
        return cls(np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]]), **keywords)

    @property
    def shift(self):
        """Translation (tx, ty) [pix]: where the first pixel comes to."""
        return float(self.matrix[0, 2]), float(self.matrix[1, 2])

    @property
    def scale(self):
        """Target pixels per source pixel."""
        return math.sqrt(abs(np.linalg.det(self.matrix[:2, :2])))

    @property
    def rotation(self):
        """Angle from x towards y [degree], -180 to 180."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))

    @property
    def is_translation(self):
        """Whether there is nothing but a shift."""
        return bool((self.matrix[:2, :2] == np.eye(2)).all())

    def __call__(self, x, y):
        """Return the target position of a source position."""
        alike(x=x, y=y)
        return apply_matrix(self.matrix, x, y)

    def position_error(self, x, y):
        """Return the standard error [pix] along one axis of where a source position comes to."""
        alike(x=x, y=y)
        x, y = np.broadcast_arrays(x, y)
        zero, one = np.zeros_like(x), np.ones_like(x)
        variance = 0.0
        for gradient in ((x, -y, one, zero), (y, x, zero, one)):
            g = np.stack(gradient, axis=-1)
            variance = variance + np.einsum("...i,ij,...j", g, self.covariance, g)
        return np.sqrt(np.maximum(variance / 2, 0))

    def inverse(self):
        """Return the transform from target to source."""
        inverse = np.linalg.inv(self.matrix)
        if self.is_translation:
            inverse[:2, :2] = np.eye(2)
        jacobian = _inverse_jacobian(self.matrix)
        return replace(self, matrix=inverse, covariance=jacobian @ self.covariance @ jacobian.T)

    def then(self, other):
        """Return this transform followed by ``other`` (target to a third frame)."""
        matrix = other.matrix @ self.matrix
        jacobian = np.eye(4)
        a, b = other.matrix[0, 0], other.matrix[1, 0]
        jacobian[:2, :2] = jacobian[2:, 2:] = [[a, -b], [b, a]]
        tx, ty = self.shift
        a, b = self.matrix[0, 0], self.matrix[1, 0]
        second = np.array([[a, -b, 0, 0], [b, a, 0, 0], [tx, -ty, 1, 0], [ty, tx, 0, 1]])
        covariance = jacobian @ self.covariance @ jacobian.T + second @ other.covariance @ second.T
        return Alignment(
            matrix, covariance, math.hypot(self.rms, other.rms),
            min(self.n_matched, other.n_matched) if self.n_matched else other.n_matched,
            f"{self.method}, {other.method}", self.flip != other.flip,
            min(self.fraction, other.fraction), max(self.log_chance, other.log_chance),
        )  # fmt: skip

    def to_header(self, header):
        """Write REGDX, REGDY, REGROT, REGSCALE, REGRMS, REGSTARS and REGMETH into ``header``."""
        header["REGDX"] = (round(self.shift[0], 4), "[pix] x of the first source pixel here")
        header["REGDY"] = (round(self.shift[1], 4), "[pix] y of the first source pixel here")
        header["REGROT"] = (round(self.rotation, 6), "[deg] rotation from x towards y")
        header["REGSCALE"] = (round(self.scale, 8), "pixels here per source pixel")
        header["REGRMS"] = (round(self.rms, 4), "[pix] residuals of the stars, one axis")
        header["REGSTARS"] = (self.n_matched, "stars matched")
        header["REGMETH"] = (self.method, "method of registration")

    @classmethod
    def from_header(cls, header):
        """Return what `to_header` wrote, without an error, or None where nothing is said."""
        numbers = [header.get(key) for key in ("REGDX", "REGDY", "REGROT", "REGSCALE")]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            return None
        dx, dy, rotation, scale = numbers
        turn = scale * np.exp(1j * math.radians(rotation))
        if abs(turn.imag) < 1e-12:
            turn = complex(turn.real, 0.0)
        a, b = turn.real, turn.imag
        matrix = np.array([[a, -b, dx], [b, a, dy], [0.0, 0.0, 1.0]])
        return cls(matrix, np.zeros((4, 4)), method=str(header.get("REGMETH", "header")))


def _inverse_jacobian(matrix):
    """Derivatives of the inverse's (a, b, tx, ty) after those of a similarity, by differences."""
    start = np.array([matrix[0, 0], matrix[1, 0], matrix[0, 2], matrix[1, 2]])

    def inverse(p):
        m = np.linalg.inv(np.array([[p[0], -p[1], p[2]], [p[1], p[0], p[3]], [0, 0, 1.0]]))
        return np.array([m[0, 0], m[1, 0], m[0, 2], m[1, 2]])

    steps = np.diag([1e-6, 1e-6, 1e-3, 1e-3])
    columns = [(inverse(start + s) - inverse(start - s)) / (2 * s.max()) for s in steps]
    return np.array(columns).T
