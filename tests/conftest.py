"""Fixtures that every test may use: real nights where they are, small synthetic frames."""

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]


# The same examples everywhere; a busy machine is not a failure.
settings.register_profile("steady", database=None, deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture
def rng():
    return np.random.default_rng(20251122)


@pytest.fixture(scope="session")
def no_page():
    """A context whose runs draw no report, which takes longer than a small night."""

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("astro_narrowband.night.run.can_render", lambda: False)
            yield

    return context


@pytest.fixture
def without_page(no_page):
    """A test of runs that draw no report."""
    with no_page():
        yield


@pytest.fixture(scope="session")
def real_data():
    """Folder of real raw nights: ``ASTRO_NARROWBAND_DATA`` or ``../shared/data``."""
    folder = Path(os.environ.get("ASTRO_NARROWBAND_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real frames are not here ({folder}); set ASTRO_NARROWBAND_DATA")
    return folder


class Camera:
    """A small camera with known bias, dark rate and flat; gives raw frames in memory."""

    def __init__(self, seed=1, shape=(64, 72), gain=0.6, read_noise=5.0, n_hot=10):
        self.rng = rng = np.random.default_rng(seed)
        self.shape, self.gain, self.read_noise = shape, gain, read_noise
        y, x = np.mgrid[: shape[0], : shape[1]]
        self.bias = 300 + 2 * rng.standard_normal(shape[1]) + rng.standard_normal(shape)
        self.rate = (0.05 + 0.05 * np.exp(-(x + y) / 60)) * (1 + 0.02 * rng.standard_normal(shape))
        self.hot = rng.choice(self.rate.size, n_hot, replace=False)
        self.rate.ravel()[self.hot] = 5.0
        vignette = 1 - 0.2 * ((x / shape[1] - 0.5) ** 2 + (y / shape[0] - 0.5) ** 2)
        self.flat = vignette * (1 + 0.01 * rng.standard_normal(shape))
        self.flat /= np.median(self.flat)

    def dark(self, exposure):
        """Return what a dark of ``exposure`` [s] is without noise [adu]."""
        return self.bias + self.rate * exposure / self.gain

    def frame(self, exposure=0.0, light=0.0, *, offset=0.0, flat=True, **cards):
        """Return a raw frame; ``light`` is in electron through a flat of 1."""
        from astropy.io import fits
        from astropy.nddata import CCDData

        expected = self.rate * exposure + light * (self.flat if flat else 1)
        electrons = self.rng.poisson(np.maximum(expected, 0)).astype(float)
        electrons += self.read_noise * self.rng.standard_normal(self.shape)
        adu = np.clip(np.rint(electrons / self.gain + self.bias + offset), 0, 65535)
        header = fits.Header({"EXPTIME": float(exposure), "EGAIN": self.gain})
        header["RDNOISE"] = self.read_noise
        header.update(cards)
        return CCDData(adu.astype(np.uint16), unit="adu", header=header)

    def biases(self, n=12):
        return [self.frame() for _ in range(n)]

    def darks(self, *exposures, n=10):
        return [self.frame(t) for t in exposures for _ in range(n)]

    def flats(self, n=10, light=20000.0, exposure=5.0):
        return [self.frame(exposure, light) for _ in range(n)]


@pytest.fixture(scope="session")
def make_camera():
    """The class of the small camera: ``make_camera(seed=..., shape=...)``."""
    return Camera
