"""What the sky sends: Moffat stars, a nebula per filter, and where a frame looks."""

import math

import numpy as np
from astropy import units

from astro_narrowband._engine.door import array, door, real

#: Half-width [pixel] of the core in which a star is integrated by 3 x 3 Gauss nodes.
_CORE = 4
#: Those nodes across a pixel, and their weights.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)[0] / 2, np.array([5, 8, 5]) / 18
#: Pixels between the nodes of the nebula.
_STEP = 4


def moffat_width(fwhm, beta):
    """Return the width alpha [pixel] of the Moffat profile (1 + r^2/alpha^2)^-beta."""
    return fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))


@door(radius=array(units.pix), beta=real(above=1, most=100))
def moffat_fraction(radius, *, fwhm, beta):
    """
    Fraction of a star's flux that a circular aperture holds.

    Parameters
    ----------
    radius : float or ndarray
        Radius of the aperture [pixel].
    fwhm : float
        Full width at half maximum of the star before it falls on pixels [pixel].
    beta : float
        Exponent of the Moffat profile.

    Returns
    -------
    float or ndarray
        The fraction, averaged over the place of the star within its pixel, for an
        aperture that takes the exact share of the pixels it cuts. Pixels blur a
        star twice, when they collect it and when they are cut as if they were
        uniform: to the second order each adds (1/24) of the Laplacian, which is
        right to 1e-3 for ``radius`` >= ``fwhm``, to 1e-4 from two ``fwhm`` on.

    Examples
    --------
    >>> from astro_narrowband.simulate import moffat_fraction
    >>> print(f"{moffat_fraction(6.0, fwhm=3.0, beta=3.0):.4f}")
    0.9611
    """
    width = moffat_width(fwhm, beta)
    u = np.square(radius) / width**2
    slope = (beta - 1) / (math.pi * width**2) * (-2 * beta * radius / width**2)
    return 1 - (1 + u) ** (1 - beta) + 2 * math.pi * radius * slope * (1 + u) ** (-beta - 1) / 12


def stamp_radius(electrons, width, beta):
    """
    Half-width [pixel] of the square on which a star is drawn.

    The star ends where less than 2e-4 of its flux and, for a bright one, less than
    0.05 electron in a pixel is left out.
    """
    enough = width * math.sqrt(2e-4 ** (1 / (1 - beta)) - 1)
    peak = electrons * (beta - 1) / (math.pi * width**2)
    faint = width * math.sqrt(max(peak / 0.05, 1) ** (1 / beta) - 1)
    return math.ceil(max(enough, faint, _CORE + 1))


def _moffat_pixels(dx, dy, width, beta):
    """Flux 1 integrated over pixels at offsets ``dx``, ``dy``: wings by the Laplacian."""
    u = (np.square(dy)[:, None] + np.square(dx)[None, :]) / width**2
    base = 1 + u
    value = base**-beta
    # The integral over a unit pixel is f + (1/24) Laplacian(f) + O(4th derivative).
    value += (beta / (6 * width**2)) * (beta * u - 1) * value / (base * base)
    return value * ((beta - 1) / (math.pi * width**2))


def _moffat_core(dx, dy, width, beta):
    """Flux 1 integrated over pixels by 3 x 3 Gauss-Legendre nodes: for the core."""
    x = (dx[:, None] + _NODES).ravel()
    y = (dy[:, None] + _NODES).ravel()
    value = (1 + (np.square(y)[:, None] + np.square(x)[None, :]) / width**2) ** -beta
    value = value.reshape(dy.size, 3, dx.size, 3)
    value = np.einsum("aibj,i,j->ab", value, _WEIGHTS, _WEIGHTS)
    return value * ((beta - 1) / (math.pi * width**2))


def add_stars(image, x, y, flux, *, fwhm, beta, exposure):
    """
    Add Moffat stars, integrated over pixels, to ``image`` in place.

    Parameters
    ----------
    image : (ny, nx) ndarray
        Rates [electron/s].
    x, y : (n,) ndarray
        Centres [pixel, the first pixel's centre is 0].
    flux : (n,) ndarray
        Fluxes [electron/s].
    fwhm, beta : float
        The profile.
    exposure : float
        Time [s] for which the frame is exposed: bright stars are drawn wider.
    """
    ny, nx = image.shape
    width = moffat_width(fwhm, beta)
    for xc, yc, rate in zip(x, y, flux, strict=True):
        reach = stamp_radius(rate * exposure, width, beta)
        xi, yi = round(xc), round(yc)
        x0, x1 = max(xi - reach, 0), min(xi + reach + 1, nx)
        y0, y1 = max(yi - reach, 0), min(yi + reach + 1, ny)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = np.arange(x0, x1) - xc, np.arange(y0, y1) - yc
        stamp = _moffat_pixels(dx, dy, width, beta)
        in_x, in_y = np.abs(dx) <= _CORE, np.abs(dy) <= _CORE
        if in_x.any() and in_y.any():
            stamp[np.ix_(in_y, in_x)] = _moffat_core(dx[in_x], dy[in_y], width, beta)
        image[y0:y1, x0:x1] += rate * stamp


def star_fluxes(rng, n, *, faintest, brightest, slope):
    """Draw ``n`` fluxes [electron/s] with N(>F) ~ F^-slope between the two limits."""
    low, high = faintest**-slope, brightest**-slope
    return (low - rng.random(n) * (low - high)) ** (-1 / slope)


def pointing(shape, *, shift, rotation, flipped):
    """
    Return the matrix from pixels of a frame to pixels of the reference frame.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns.
    shift : (float, float)
        How far (x, y) [pixel] the frame shows what is at the centre of the reference
        frame off its own centre.
    rotation : float
        Angle [degree] by which the frame is turned, counter-clockwise.
    flipped : bool
        Turned by another 180 degrees (other side of the pier).

    Returns
    -------
    (3, 3) ndarray
        ``matrix @ (x, y, 1)`` is (x, y, 1) in the reference frame.
    """
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    sign = -1.0 if flipped else 1.0
    angle = math.radians(rotation)
    cosine, sine = (math.cos(angle), math.sin(angle)) if rotation else (1.0, 0.0)
    matrix = np.eye(3)
    matrix[:2, :2] = sign * np.array([[cosine, -sine], [sine, cosine]])
    matrix[:2, 2] = centre - matrix[:2, :2] @ (centre + shift)
    return matrix


def _fractal(rng, shape, scale, power):
    """Gaussian field of unit variance with spectrum k^-2 power, ``scale`` nodes per unit."""
    ky, kx = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    k2 = np.square(ky)[:, None] + np.square(kx)[None, :]
    spectrum = np.fft.rfft2(rng.standard_normal(shape))
    spectrum *= (k2 * scale**2 + 0.25) ** (-power / 2) * np.exp(-k2 / 0.3**2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, shape)
    return field / field.std()


class Nebula:
    """
    An emission nebula: a smooth function of the place in the reference frame.

    It is a cubic B-spline over nodes 4 pixels apart, so a shifted or turned frame
    sees exactly the same nebula, without interpolating an image. Its finest details
    are wider than the seeing, which is not applied to it. Halpha fills a broken
    bowl with bright rims, OIII the hot inside and thin outer arcs, SII the
    filaments of the ionisation front; dust in front takes most from OIII.

    Parameters
    ----------
    rng : `numpy.random.Generator`
        What makes this nebula differ from others.
    shape : (int, int)
        Rows and columns of the reference frame.
    margin : float
        How far [pixel] frames may look beyond the reference frame.
    brightness : float
        Rate [electron/s] in the brightest parts of Halpha.
    """

    def __init__(self, rng, shape, *, margin, brightness):
        self._shape = shape
        self._origin = -_STEP * math.ceil(margin / _STEP + 2)
        nodes = [math.ceil((n - self._origin) / _STEP + margin / _STEP + 3) for n in shape]
        half = min(shape) / 2
        y, x = (
            (self._origin + _STEP * np.arange(n) - (size - 1) / 2) / half
            for n, size in zip(nodes, shape, strict=True)
        )
        scale = half / _STEP
        field = [_fractal(rng, nodes, scale, power) for power in (1.9, 1.9, 1.5, 1.5, 1.8, 1.7)]
        # Turbulence bends the shells; ridges of a random field are the filaments.
        dx, dy = x[None, :] + 0.12 * field[0], y[:, None] + 0.12 * field[1]
        radius = np.hypot(dx + 0.08, (dy - 0.05) * 1.15)
        ridge = np.exp(-np.square(field[2] / 0.18))
        fine = np.exp(-np.square(field[3] / 0.15))
        dust = 1 / (1 + np.exp(-4 * (field[4] + 0.9 * np.hypot(dx - 0.35, dy + 0.3) - 1.2)))
        cloud = np.exp(0.55 * field[5])
        bowl = np.exp(-np.square((radius - 0.52) / 0.16))
        haze = 1 / (1 + np.square(radius / 0.62) ** 3)
        front = np.exp(-np.square((radius - 0.66) / 0.09))
        inside = np.exp(-(np.square(radius / 0.36) ** 1.5))
        arc = np.exp(-np.square((radius - 0.86) / 0.018)) * (field[1] > -0.3)
        halpha = 0.30 * haze * cloud + 0.45 * bowl * cloud * (0.5 + 0.9 * ridge) + 0.1 * front
        oiii = 0.42 * inside * (0.7 + 0.5 * cloud * fine) + 0.12 * arc + 0.05 * haze
        sii = 0.06 * haze * cloud + 0.32 * front * (0.25 + fine) + 0.12 * bowl * ridge * cloud
        self._nodes = {
            "Halpha": (brightness * halpha * np.exp(-1.1 * dust)).astype(np.float32),
            "OIII": (brightness * oiii * np.exp(-1.6 * dust)).astype(np.float32),
            "SII": (brightness * sii * np.exp(-1.0 * dust)).astype(np.float32),
        }

    def rate(self, name, matrix):
        """
        Rate [electron/s] that a frame sees in one filter.

        Parameters
        ----------
        name : str
            Canonical filter. NII looks like Halpha at a third, Hbeta like Halpha at
            a quarter of its brightness; another filter shows a tenth of it.
        matrix : (3, 3) ndarray
            From pixels of the frame to pixels of the reference frame.

        Returns
        -------
        (ny, nx) ndarray of float32
        """
        share = {"Halpha": 1.0, "OIII": 1.0, "SII": 1.0, "NII": 1 / 3, "Hbeta": 1 / 4}
        nodes = self._nodes[name if name in self._nodes else "Halpha"]
        image = self._evaluate(nodes, matrix)
        image *= np.float32(share.get(name, 0.1))
        return image

    def _evaluate(self, nodes, matrix):
        ny, nx = self._shape
        if matrix[0, 1] or matrix[1, 0]:
            from scipy.ndimage import affine_transform

            turn = matrix[1::-1, 1::-1] / _STEP
            offset = (matrix[1::-1, 2] - self._origin) / _STEP
            return affine_transform(
                nodes, turn, offset, self._shape, np.float32, order=3, mode="nearest",
                prefilter=False,
            )  # fmt: skip
        across = np.zeros((nodes.shape[0], nx), np.float32)
        for index, weight in self._spline(nx, matrix[0, 0], matrix[0, 2]):
            across += nodes[:, index] * weight
        image = np.zeros((ny, nx), np.float32)
        rows = list(self._spline(ny, matrix[1, 1], matrix[1, 2]))
        for y in range(ny):  # row by row: four rows of nodes stay in the cache
            for index, weight in rows:
                image[y] += across[index[y]] * weight[y]
        return image

    def _spline(self, n, scale, offset):
        """Yield the four (index, weight) of the cubic B-spline at n pixels of an axis."""
        place = (scale * np.arange(n) + offset - self._origin) / _STEP
        first = np.floor(place).astype(int)
        t = place - first
        weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
        for k, weight in enumerate(weights):
            yield first + k - 1, (weight / 6).astype(np.float32)
