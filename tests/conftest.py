"""Fixtures that every test may use: real nights where they are, small synthetic frames."""

import os
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
def real_data():
    """Folder of real raw nights: ``ASTRO_NARROWBAND_DATA`` or ``../shared/data``."""
    folder = Path(os.environ.get("ASTRO_NARROWBAND_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real frames are not here ({folder}); set ASTRO_NARROWBAND_DATA")
    return folder
