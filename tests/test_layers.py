"""The house has storeys: a module imports only from those below it."""

import ast
from pathlib import Path

import pytest

import astro_narrowband

PACKAGE = Path(astro_narrowband.__file__).parent

#: From the ground up. A private module belongs just below the one that uses it.
STOREYS = [
    "exceptions",
    "messages",
    "_validate",
    "filters",
    "_spellings",
    "_geometry",
    "keywords",
    "_names",
    "_whole",
    "_fits_writer",
    "files",
    "_untile",
    "_fits_image",
    "_fits_reader",
    "bands",
    "executors",
    "noise",
    "_transfer",
    "detector",
    "_network",
    "_sorted",
    "_tile",
    "stack",
    "combiner",
    "_facts",
    "_find",
    "frames",
    "plan",
    "_overscan",
    "_camera",
    "_clipped",
    "_shrink",
    "_straight",
    "_darkfit",
    "darks",
    "masters",
    "calibrate",
    "_stamps",
    "detect",
    "_match",
    "_alignment",
    "_starmatch",
    "_align_methods",
    "register",
    "_lanczos",
    "_wcs",
    "resample",
    "weights",
    "_reject",
    "_common_noise",
    "_coadd_band",
    "_coadd_header",
    "coadd",
    "_apertures",
    "_measure",
    "_draw",
    "photometry",
    "_curves",
    "growth",
    "catalog",
    "_simulate_model",
    "_simulate_sky",
    "_simulate_camera",
    "_simulate_truth",
    "_simulate_frames",
    "simulate",
    "products",
    "figures",
    "report",
    "record",
    "night",
    "pipeline",
    "demo",
    "cli",
]


def imports_of(path):
    """Names of this package's modules that the file at ``path`` imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astro_narrowband"):
            parts = node.module.split(".")
            yield from parts[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("astro_narrowband."):
                    yield alias.name.split(".")[1]


MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("__"))


def test_every_module_has_a_storey():
    assert set(MODULES) == set(STOREYS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    below = set(STOREYS[: STOREYS.index(module)])
    assert {name for name in imports_of(PACKAGE / f"{module}.py") if name in STOREYS} <= below


def test_simulator_does_not_know_the_reduction():
    simulators = [m for m in MODULES if "simulat" in m]
    allowed = {"exceptions", "filters", *simulators}
    for module in simulators:
        assert set(imports_of(PACKAGE / f"{module}.py")) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_a_reader(module):
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 600
