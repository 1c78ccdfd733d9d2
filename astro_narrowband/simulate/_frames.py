"""Many small nights in memory, for the statistics of pulls."""

import math
from dataclasses import dataclass, field

import numpy as np
from astropy import units as u

from astro_narrowband._engine.door import array, count, door, of_two
from astro_narrowband.exceptions import InputError
from astro_narrowband.simulate._camera import (
    bias_plane,
    cosmic_rays,
    dark_plane,
    expose,
    flat_plane,
)
from astro_narrowband.simulate._model import NightModel, stream
from astro_narrowband.simulate._sky import add_stars


@dataclass(frozen=True)
class SimulatedFrames:
    """
    Raw frames of many small nights that differ in nothing but their noise.

    Attributes
    ----------
    bias : (n_nights, n_bias, ny, nx) ndarray of uint16
        Bias frames [adu].
    darks : dict of float to (n_nights, n_darks, ny, nx) ndarray of uint16
        Darks [adu] by exposure time [s].
    flats : (n_nights, n_flats, ny, nx) ndarray of uint16
        Flats [adu].
    lights : (n_nights, n_lights, ny, nx) ndarray of uint16
        Lights [adu].
    cosmic : (n_nights, n_lights, ny, nx) ndarray of bool
        Pixels of the lights that cosmic rays hit.
    rate : (n_lights, ny, nx) ndarray of float32
        What a perfectly calibrated light shows [electron/s], without noise and cosmic
        rays: sky and dimmed stars. Pixels that saturate show less.
    scene : (ny, nx) ndarray of float32
        The stars alone [electron/s] in the reference frame, not dimmed, in the seeing
        of the first light.
    bias_level, dark_rate, flat : (ny, nx) ndarray of float32
        The truth [adu], [electron/s], [1].
    exposures, shifts, transparency, fwhm : ndarray
        Of the lights: (n_lights,) [s], (n_lights, 2) (x, y) [pixel], (n_lights,),
        (n_lights,) [pixel]. What is at (x, y) in the reference frame is at
        (x, y) + shift in the light.
    flat_exposure : float
        [s]
    model : NightModel
    """

    bias: np.ndarray = field(repr=False)
    darks: dict[float, np.ndarray] = field(repr=False)
    flats: np.ndarray = field(repr=False)
    lights: np.ndarray = field(repr=False)
    cosmic: np.ndarray = field(repr=False)
    rate: np.ndarray = field(repr=False)
    scene: np.ndarray = field(repr=False)
    bias_level: np.ndarray = field(repr=False)
    dark_rate: np.ndarray = field(repr=False)
    flat: np.ndarray = field(repr=False)
    exposures: np.ndarray
    shifts: np.ndarray
    transparency: np.ndarray
    fwhm: np.ndarray
    flat_exposure: float
    model: NightModel


#: Of a night; the smallest has room for a star.
SHAPE = of_two(count(16, 100_000))


def _array(value, shape, name):
    """Return numbers as an array of ``shape``, or raise `InputError`; one stands for all."""
    array = np.asarray(value, float)
    if array.shape not in ((), shape):
        raise InputError(f"{name} has the shape {array.shape}: it must be one number or {shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} = {value!r} is not finite")
    return np.broadcast_to(array, shape)


@door(
    shape=SHAPE, sky=array(u.electron), stars=array(ndim=1), shifts=array(u.pix),
    transparency=array(), fwhm=array(u.pix),
)  # fmt: skip
def simulate_frames(
    n_nights,
    *,
    shape=(64, 64),
    sky=30.0,
    light_exposures=(60.0,) * 6,
    n_bias=12,
    dark_exposures=(60.0, 120.0),
    n_darks=10,
    n_flats=10,
    stars=None,
    shifts=None,
    transparency=1.0,
    fwhm=None,
    model=None,
    seed,
):
    """
    Simulate many small nights in memory, for the statistics of pulls.

    All nights have the same truth, so that a pixel's pull can be taken over nights:
    noise of masters is common to the pixels of one night's lights.

    Parameters
    ----------
    n_nights : int
        A night of the defaults has 48 frames, which are 0.4 MB at 64 x 64.
    shape : (int, int), optional
        Rows and columns.
    sky : float or sequence of float, optional
        Level of the sky [electron] in a light, or in each, where the flat is 1.
    light_exposures, dark_exposures : sequence of float, optional
        Exposure times [s]: one per light; of the darks.
    n_bias, n_darks, n_flats : int, optional
        Number of bias frames, of darks per exposure time, of flats. With 0 the array
        is empty, which saves time.
    stars : (n, 3) array-like, optional
        x, y [pixel] in the reference frame and flux [electron/s].
    shifts : (n_lights, 2) array-like, optional
        (x, y) [pixel] by which each light shows the stars off; zero by default.
    transparency : float or sequence of float, optional
        Factor of the stars' flux, one or one per light.
    fwhm : float or sequence of float, optional
        Seeing [pixel], one or one per light; the model's by default.
    model : NightModel, optional
        The camera. By default one without cosmic rays. Of its sky only
        ``moffat_beta``, ``fwhm`` and ``cosmic_rate`` are used.
    seed : int
        Of the random numbers, detector included: nights of different seeds have
        different detectors.

    Returns
    -------
    SimulatedFrames

    Raises
    ------
    InputError
        If an argument cannot be used.

    Examples
    --------
    A perfect calibration of a night's first light is right on average:

    >>> import numpy as np
    >>> from astro_narrowband.simulate import simulate_frames
    >>> night = simulate_frames(50, shape=(32, 32), sky=300.0, seed=1)
    >>> electron = (night.lights[:, 0] - night.bias_level) * night.model.gain
    >>> rate = (electron / night.exposures[0] - night.dark_rate) / night.flat
    >>> error = 18.7 / 60 / np.sqrt(rate.size)
    >>> bool(abs((rate - night.rate[0]).mean()) < 4 * error)
    True
    """
    model = NightModel(cosmic_rate=0.0) if model is None else model
    exposures = np.array(light_exposures)
    n = exposures.size
    if not n:
        raise InputError("light_exposures: give one or more")
    seeing = model.fwhm if fwhm is None else fwhm
    sky, transparency, fwhm = (
        _array(value, (n,), name)
        for value, name in ((sky, "sky"), (transparency, "transparency"), (seeing, "fwhm"))
    )
    if sky.min() < 0 or transparency.min() < 0 or fwhm.min() <= 0:
        raise InputError("sky and transparency must not be negative, fwhm must be above zero")
    shifts = _array(0.0 if shifts is None else shifts, (n, 2), "shifts")
    stars = np.empty((0, 3)) if stars is None else _array(stars, (len(stars), 3), "stars")
    if (stars[:, 2] < 0).any():
        raise InputError("stars must have fluxes of 0 electron/s or more in their third column")

    rate = np.empty((n, *shape), np.float32)
    for i in range(n):
        rate[i] = sky[i] / exposures[i]
        _draw(rate[i], stars, shifts[i], transparency[i], fwhm[i], exposures[i], model)
    scene = np.zeros(shape, np.float32)
    _draw(scene, stars, (0.0, 0.0), 1.0, fwhm[0], exposures.max(), model)

    camera = _Camera(seed, n_nights, shape, model)
    flat, dark, flat_time = camera.flat, camera.dark, model.flat_exposure
    lit = flat * np.float32(model.flat_level * model.gain) + dark * np.float32(flat_time)
    seconds = exposures.astype(np.float32)[:, None, None]
    cosmic = np.zeros((n_nights, n, *shape), bool)
    return SimulatedFrames(
        bias=camera.take("bias", 0.0, [0.0] * n_bias),
        darks={
            time: camera.take(f"dark {time:g}", dark * np.float32(time), [time] * n_darks)
            for time in dark_exposures
        },
        flats=camera.take("flat", lit, [flat_time] * n_flats),
        lights=camera.take("light", (rate * flat + dark) * seconds, exposures, cosmic),
        cosmic=cosmic, rate=rate, scene=scene, bias_level=camera.bias, dark_rate=dark, flat=flat,
        exposures=exposures, shifts=shifts, transparency=transparency, fwhm=fwhm,
        flat_exposure=flat_time, model=model,
    )  # fmt: skip


def _draw(image, stars, shift, brightness, seeing, time, model):
    """Add dimmed and shifted stars to an image in place."""
    add_stars(
        image, stars[:, 0] + shift[0], stars[:, 1] + shift[1], brightness * stars[:, 2],
        fwhm=seeing, beta=model.moffat_beta, exposure=time,
    )  # fmt: skip


class _Camera:
    """The detector that all nights share, and its frames."""

    def __init__(self, seed, n_nights, shape, model):
        self._seed, self._n_nights, self._shape, self._model = seed, n_nights, shape, model
        self.bias = bias_plane(stream(seed, "bias"), shape, model)
        self.dark = dark_plane(stream(seed, "dark"), shape, model)
        self.flat = flat_plane(
            stream(seed, "window"),
            stream(seed, "grain"),
            shape,
            model,
            grain_of_filter=stream(seed, "flat"),
        )

    def take(self, name, electrons, times, hit=None):
        """Expose a frame for each of ``times`` in every night; mark cosmic rays in ``hit``."""
        out = np.empty((self._n_nights, len(times), *self._shape), np.uint16)
        rng, rays = stream(self._seed, "frames", name), stream(self._seed, "rays", name)
        electrons = np.broadcast_to(electrons, out.shape[1:]).astype(np.float32)
        for k, time in enumerate(times):
            mean = electrons[k]
            events = self._model.cosmic_rate * time * math.prod(self._shape) / 1e6
            if events:
                index, charge = cosmic_rays(rays, self._n_nights, self._shape, events=events)
                mean = np.repeat(mean[None], self._n_nights, axis=0)
                mean.ravel()[index] += charge
                if hit is not None:
                    hit[:, k][np.unravel_index(index, mean.shape)] = True
            expose(rng, mean, self.bias, self._model, out[:, k])
        return out
