"""The house has storeys: a module imports only from those below it."""

import ast
from pathlib import Path

import pytest

import astro_narrowband

PACKAGE = Path(astro_narrowband.__file__).parent

#: From the ground up. A name is a module, or a folder of modules whose parts are not listed.
STOREYS = [
    "exceptions",
    "messages",
    "_validate",
    "filters",
    "keywords",
    "files",
    "bands",
    "bayer",
    "executors",
    "noise",
    "detector",
    "stack",
    "combiner",
    "frames",
    "plan",
    "screen",
    "raw",
    "darks",
    "masters",
    "calibrate",
    "detect",
    "register",
    "resample",
    "weights",
    "coadd",
    "photometry",
    "growth",
    "catalog",
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

FILES = sorted(
    p for p in PACKAGE.rglob("*.py") if not p.stem.startswith("__") or p.parent != PACKAGE
)


def place(path):
    """The storey of a file, and its part of it ("" for the module itself)."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0], "" if parts[-1] in (parts[0], "__init__") else parts[-1]


def imports_of(path):
    """``(storey, part)`` of everything in this package that the file at ``path`` imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astro_narrowband"):
            found = [(*node.module.split(".")[1:], alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found = [tuple(name[1:]) for name in names if name[0] == "astro_narrowband"]
        else:
            continue
        for storey, *parts in found:
            is_part = parts and (PACKAGE / storey / f"{parts[0]}.py").exists()
            yield storey, parts[0] if is_part else ""


@pytest.fixture(params=FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def path(request):
    return request.param


def test_every_module_has_a_storey():
    assert {place(path)[0] for path in FILES} == set(STOREYS)


def test_imports_go_down_only(path):
    storey, part = place(path)
    below = STOREYS[: STOREYS.index(storey)]
    for other, _ in imports_of(path):
        assert other in below or (other == storey and other != part) or other not in STOREYS


def test_parts_do_not_import_the_module_that_is_made_of_them(path):
    storey, part = place(path)
    if part:
        assert (storey, "") not in set(imports_of(path))


def test_parts_with_an_underscore_are_used_in_their_folder_only(path):
    storey, _ = place(path)
    assert not [f"{s}.{p}" for s, p in imports_of(path) if p.startswith("_") and s != storey]


def test_simulator_does_not_know_the_reduction(path):
    if place(path)[0] == "simulate":
        assert {storey for storey, _ in imports_of(path)} <= {"exceptions", "filters", "simulate"}


def test_no_module_outgrows_a_reader(path):
    assert len(path.read_text().splitlines()) <= 600
