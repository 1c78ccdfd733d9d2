"""What the camera makes of it: bias, dark and response of its pixels, noise, read-out."""

import math
from typing import NamedTuple

import numpy as np

#: Pixels that are exposed at once: they stay in the cache.
_CHUNK = 1 << 18
#: Below this variance [electron^2] photons are drawn one by one.
_FEW = 16.0


def bias_plane(rng, shape, model):
    """Bias [adu] of every pixel: pedestal, columns, and rows that settle during read-out."""
    columns = model.bias_columns * rng.standard_normal(shape[1])
    rows = model.bias_gradient * np.exp(-np.arange(shape[0]) / (0.2 * shape[0]))
    return (model.pedestal + columns[None, :] + rows[:, None]).astype(np.float32)


def dark_plane(rng, shape, model):
    """Dark rate [electron/s] of every pixel: floor, glow of an amplifier, warm and hot pixels."""
    ny, nx = shape
    scale = model.glow_scale * max(shape)
    across = np.square((nx - 1 - np.arange(nx)) / scale)[None, :]
    corner = np.sqrt(across + np.square(np.arange(ny) / scale)[:, None])
    edge = np.sqrt(4 * across + np.square((np.arange(ny) - 0.7 * ny) / scale)[:, None])
    dark = model.glow * np.exp(-corner) + 0.5 * model.glow * np.exp(-edge)
    dark += model.dark_rate * (1 + model.dark_scatter * rng.standard_normal(shape))
    np.maximum(dark, 0, out=dark)
    kind = rng.random(shape)
    hot = kind < model.hot_fraction
    warm = ~hot & (kind < model.hot_fraction + model.warm_fraction)
    dark[warm] += 0.5 * np.exp(0.8 * rng.standard_normal(np.count_nonzero(warm)))
    dark[hot] += 5 * 100 ** rng.random(np.count_nonzero(hot))
    return dark.astype(np.float32)


def flat_plane(window, grain, shape, model, *, grain_of_filter):
    """
    Response of every pixel in one filter, median 1.

    ``window`` and ``grain`` seed what all filters share (dust on the window of the
    sensor; response of the pixels, dead pixels), ``grain_of_filter`` what belongs to the filter
    (where its vignetting is centred, its own dust, which is larger).
    """
    ny, nx = shape
    y, x = np.arange(ny, dtype=np.float32), np.arange(nx, dtype=np.float32)
    xc, yc = (np.array([nx, ny]) - 1) / 2 + 0.03 * min(shape) * grain_of_filter.standard_normal(2)
    r2 = np.square(x - xc)[None, :] + np.square(y - yc)[:, None]
    flat = 1 - np.float32(4 * model.vignetting / (nx**2 + ny**2)) * r2
    size = min(shape) / 1024
    for rng, radii in ((window, (10, 22)), (grain_of_filter, (30, 60))):
        for _ in range(model.dust):
            _add_dust(flat, rng, radius=size**0.5 * rng.uniform(*radii))
    flat *= 1 + model.response_rms * grain.standard_normal(shape, dtype=np.float32)
    dead = grain.random(shape, dtype=np.float32) < model.dead_fraction
    flat[dead] *= grain.uniform(0.0, 0.6, np.count_nonzero(dead)).astype(np.float32)
    np.maximum(flat, 0, out=flat)
    return flat / np.median(flat)


def _add_dust(flat, rng, *, radius):
    """Darken ``flat`` in place by the out-of-focus shadow of a grain: a ring, open inside."""
    ny, nx = flat.shape
    xc, yc, depth, edge = rng.uniform((0, 0, 0.02, 0.06), (nx, ny, 0.10, 0.12))
    reach = math.ceil(1.8 * radius)
    x0, x1 = max(round(xc) - reach, 0), min(round(xc) + reach, nx)
    y0, y1 = max(round(yc) - reach, 0), min(round(yc) + reach, ny)
    r = np.hypot((np.arange(x0, x1) - xc)[None, :], (np.arange(y0, y1) - yc)[:, None]) / radius
    ring = 1 / (1 + np.exp((r - 1) / edge)) - 0.8 / (1 + np.exp((r - 0.4) / edge))
    flat[y0:y1, x0:x1] *= (1 - depth * ring).astype(np.float32)


def cosmic_rays(rng, n_frames, shape, *, events):
    """
    Draw cosmic rays on frames.

    Parameters
    ----------
    rng : `numpy.random.Generator`
    n_frames : int
    shape : (int, int)
        Rows and columns of each frame.
    events : float
        Mean number per frame.

    Returns
    -------
    index : (n,) ndarray of int
        Flat indices into (n_frames, ny, nx), sorted, each once.
    charge : (n,) ndarray of float32
        What was deposited there [electron]: two thirds are tracks with 250 electron
        per pixel in the median and an exponential length of 8 pixels, the others
        points of 900 electron.
    """
    ny, nx = shape
    count = rng.poisson(events * n_frames)
    frame = rng.integers(0, n_frames, count)
    x, y = rng.uniform(-0.5, nx - 0.5, count), rng.uniform(-0.5, ny - 0.5, count)
    angle = rng.uniform(0, 2 * np.pi, count)
    track = rng.random(count) < 2 / 3
    length = np.where(track, rng.exponential(8.0, count) + 1, 0.4)
    total = np.where(track, 250 * length, 900) * np.exp(0.6 * rng.standard_normal(count))
    # A track is a row of drops a quarter of a pixel apart, each shared by four pixels.
    drops = np.ceil(4 * length).astype(int)
    event = np.repeat(np.arange(count), drops)
    along = (np.arange(event.size) - np.repeat(np.cumsum(drops) - drops, drops)) / 4
    x, y = x[event] + along * np.cos(angle[event]), y[event] + along * np.sin(angle[event])
    drop = (total / np.maximum(drops, 1))[event]
    xi, yi = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - xi, y - yi
    column = np.concatenate([xi, xi + 1, xi, xi + 1])
    row = np.concatenate([yi, yi, yi + 1, yi + 1])
    share = np.concatenate([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
    index = ((np.tile(frame[event], 4) * ny + row) * nx + column)[inside]
    index, inverse = np.unique(index, return_inverse=True)
    charge = np.bincount(inverse, (np.tile(drop, 4) * share)[inside], index.size)
    kept = charge >= 1  # less than an electron cannot be told from noise
    return index[kept], charge[kept].astype(np.float32)


class _Pixels(NamedTuple):
    """How pixels of a mean charge answer a normal number z: c + z (a + b z) [adu]."""

    c: np.ndarray
    a: np.ndarray
    b: np.ndarray
    mean: np.ndarray
    is_faint: np.ndarray
    bias: np.ndarray


def expose(rng, electrons, bias, model, out):
    """
    Collect, saturate, read and digitise: fill ``out`` [adu].

    Parameters
    ----------
    rng : `numpy.random.Generator`
    electrons : (ny, nx) or (n, ny, nx) ndarray of float32
        Mean number of electrons per pixel, of all frames or of each.
    bias : (ny, nx) ndarray of float32
        Bias [adu].
    model : NightModel
        Its gain, read noise and full well are used.
    out : (n, ny, nx) ndarray of uint16

    Notes
    -----
    Photons and read noise are drawn together as m + a z + b (z^2 - 1) with z normal
    and a, b such that mean, variance and third moment are those of a Poisson number
    plus a normal one. Where the variance is below 16 electron^2 the two are drawn one
    by one. A full pixel shows its full well and read noise.
    """
    n, ny, nx = out.shape
    same = electrons.ndim == 2
    rows = min(max(_CHUNK // nx, 1), ny)
    frames = max(_CHUNK // (rows * nx), 1)
    for y in range(0, ny, rows):
        band = slice(y, y + rows)
        pixels = _pixels(electrons[band], bias[band], model) if same else None
        for first in range(0, n, frames):
            chunk = slice(first, first + frames)
            if not same:
                pixels = _pixels(electrons[chunk, band], bias[band], model)
            out[chunk, band] = _read_out(rng, pixels, model, out[chunk, band].shape)


def _pixels(mean, bias, model):
    variance = mean + np.float32(model.read_noise**2)
    is_faint = variance < _FEW
    np.maximum(variance, 1e-3, out=variance)
    # Third moment 6 v b - 4 b^3 = mean, solved to the second order.
    b = mean / (6 * variance)
    b += (2 / 3) * b**3 / variance
    a = np.sqrt(variance - 2 * b * b)
    per_electron = np.float32(1 / model.gain)
    c = (mean - b) * per_electron + bias
    return _Pixels(c, a * per_electron, b * per_electron, mean, is_faint, bias)


def _read_out(rng, pixels, model, shape):
    z = rng.standard_normal(shape, dtype=np.float32)
    value = z * pixels.b
    value += pixels.a
    value *= z
    value += pixels.c
    if pixels.is_faint.any():
        is_faint = np.broadcast_to(pixels.is_faint, shape)
        electrons = rng.poisson(np.broadcast_to(pixels.mean, shape)[is_faint])
        electrons = electrons + np.float32(model.read_noise) * z[is_faint]
        value[is_faint] = electrons / model.gain + np.broadcast_to(pixels.bias, shape)[is_faint]
    full = value > pixels.bias + np.float32(model.full_well / model.gain)
    if full.any():
        electrons = model.full_well + model.read_noise * rng.standard_normal(full.sum())
        value[full] = electrons / model.gain + np.broadcast_to(pixels.bias, shape)[full]
    value += np.float32(0.5)
    np.clip(value, 0, 65535, out=value)
    return value.astype(np.uint16)
