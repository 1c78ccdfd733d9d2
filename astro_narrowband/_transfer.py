"""Photon transfer: gain and read noise from differences of flats and of biases."""

import numpy as np

from astro_narrowband._validate import same_shape
from astro_narrowband.bands import as_frame
from astro_narrowband.exceptions import InputError

__all__ = ["photon_transfer"]

BLOCK = 32
#: Variance of a normal distribution cut at 4 sigma.
_CUT = 1 - 8 * np.exp(-8) / np.sqrt(2 * np.pi) / 0.999936657516334


def photon_transfer(cls, flats, biases, *, saturation=None):
    """Return a ``cls`` (a Detector) measured from ``flats`` and ``biases``."""
    flats = [as_frame(f) for f in flats]
    biases = [as_frame(b) for b in biases]
    if len(flats) < 2 or len(biases) < 2:
        raise InputError(
            f"gain and read noise cannot be measured from {len(flats)} flat(s) and "
            f"{len(biases)} bias(es): two of each are needed, or give both values"
        )
    shape = same_shape([*biases, *flats], "biases and flats")
    if min(shape) < BLOCK:
        raise InputError(f"frames of shape {shape} are too small to measure a gain from")
    limit = np.inf if saturation is None else saturation
    reads = [_read(b) for b in biases]
    bias = np.mean(reads, axis=0)
    noise, noise_err = _mean(
        np.concatenate([_variances(_blocks(a - b)) / 2 for a, b in zip(reads[::2], reads[1::2])])
    )
    images = [_read(f) for f in flats]
    levels = [float(np.median(image - bias)) for image in images]
    order = np.argsort(levels, kind="stable")
    gains = []
    for i, j in zip(order[::2], order[1::2]):
        if min(levels[i], levels[j]) <= 0:
            continue
        first, second = images[i] - bias, images[j] - bias
        k = levels[i] / levels[j]
        excess = _variances(_blocks(first - k * second)) - (1 + k * k) * noise
        level = _blocks(first).mean(axis=1)
        bad = (_blocks(np.maximum(images[i], images[j])) >= limit).any(axis=1)
        # Photon noise per adu of signal; 1/gain. It is averaged, and inverted
        # last: the mean of noisy inverses is biased.
        gains.append((excess / (level * (1 + k)))[~bad & (level > 0)])
    per_adu, per_adu_err = _mean(np.concatenate(gains)) if gains else (0.0, 0.0)
    if not per_adu > 5 * per_adu_err or per_adu <= 0:
        raise InputError(
            "the gain cannot be measured: the flats hold no more noise than the biases "
            f"(flat levels above bias: {', '.join(f'{v:.0f}' for v in levels)} adu): give the gain"
        )
    gain = 1 / per_adu
    read_noise = gain * max(noise - 1 / 12, 0) ** 0.5
    gain_err = per_adu_err * gain**2
    read_noise_err = float(
        np.hypot(read_noise * gain_err / gain, gain * noise_err / (2 * noise**0.5))
    )
    text = f"measured from {len(flats)} flats and {len(biases)} biases"
    return cls(
        gain=float(gain),
        read_noise=float(read_noise),
        gain_err=float(gain_err),
        read_noise_err=read_noise_err,
        sources={"gain": text, "read_noise": text},
        **({} if saturation is None else {"saturation": saturation}),
    )


def _read(frame):
    return frame.read(slice(0, frame.shape[0])).data


def _blocks(image):
    """Return whole blocks of ``BLOCK`` x ``BLOCK`` pixels, (n_blocks, BLOCK**2)."""
    ny, nx = (n // BLOCK for n in image.shape)
    image = image[: ny * BLOCK, : nx * BLOCK].reshape(ny, BLOCK, nx, BLOCK)
    return image.swapaxes(1, 2).reshape(ny * nx, BLOCK * BLOCK)


def _variances(blocks):
    """Variance of each block about its own mean, without pixels beyond 4 sigma."""
    centre = np.median(blocks, axis=1, keepdims=True)
    width = 1.4826 * np.median(np.abs(blocks - centre), axis=1, keepdims=True)
    # Rounded values may have a MAD of 0.
    width = np.maximum(width, 0.3)
    for _ in range(2):
        keep = np.abs(blocks - centre) <= 4 * width
        count = keep.sum(axis=1, keepdims=True)
        centre = np.where(keep, blocks, 0).sum(axis=1, keepdims=True, dtype=float) / count
        square = np.where(keep, (blocks - centre) ** 2, 0).sum(axis=1, keepdims=True, dtype=float)
        width = np.sqrt(square / (count - 1) / _CUT)
    return width[:, 0] ** 2


def _mean(values):
    """Clipped mean of block values and its standard error."""
    centre = np.median(values)
    width = 1.4826 * np.median(np.abs(values - centre))
    kept = values[np.abs(values - centre) <= 4 * width] if width > 0 else values
    return float(kept.mean()), float(kept.std() / np.sqrt(kept.size))
