"""The house has three wings on one ground: a module imports only from those below it."""

import ast
from pathlib import Path

import pytest

import astro_narrowband

PACKAGE = Path(astro_narrowband.__file__).parent

#: From the ground up. A name is a module, or a folder of modules whose parts are not listed.
WINGS = {
    "ground": ["exceptions", "filters", "citation"],
    "engine": [
        f"_engine.{name}"
        for name in (
            "text",
            "statistics",
            "validate",
            "door",
            "plots",
            "heap",
            "wcs",
            "headers",
            "files",
            "provenance",
            "frames",
            "bayer",
            "executors",
            "stacking",
            "raw",
            "apertures",
            "annuli",
            "lanczos",
            "detection",
        )
    ],
    "layers": [
        "noise",
        "confront",
        "detector",
        "darks",
        "masters",
        "calibration",
        "registration",
        "resampling",
        "coaddition",
        "photometry",
        "lines",
        "simulate",
    ],
    "night": [
        *(
            f"night.{name}"
            for name in (
                "messages",
                "table",
                "plan",
                "screen",
                "inputs",
                "products",
                "figures",
                "charts",
                "report",
                "record",
                "run",
                "pipeline",
                "lines_inputs",
                "lines_page",
                "lines",
            )
        ),
        "demo",
        "cli",
    ],
}
STOREYS = [storey for wing in WINGS.values() for storey in wing]
#: Folders that hold storeys, and are none.
FOLDERS = ("_engine", "night")

FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if not (
        path.stem.startswith("__") and path.parent in (PACKAGE, *(PACKAGE / f for f in FOLDERS))
    )
)


def split(parts):
    """The storey of a dotted name, and its part of it ("" for the module itself)."""
    depth = 2 if parts[0] in FOLDERS else 1
    storey, rest = parts[:depth], parts[depth:]
    is_part = rest and (PACKAGE.joinpath(*storey) / f"{rest[0]}.py").exists()
    return ".".join(storey), rest[0] if is_part else ""


def place(path):
    """The storey of a file, and its part of it."""
    return split([p for p in path.relative_to(PACKAGE).with_suffix("").parts if p != "__init__"])


def imports_of(path):
    """``(storey, part)`` of everything in this package that the file at ``path`` imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astro_narrowband"):
            names = [(*node.module.split(".")[1:], alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [alias.name.split(".") for alias in node.names]
            names = [tuple(name[1:]) for name in dotted if name[0] == "astro_narrowband"]
        else:
            continue
        yield from map(split, names)


@pytest.fixture(params=FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def path(request):
    return request.param


def test_every_module_has_a_storey():
    assert {place(path)[0] for path in FILES} == set(STOREYS)


def test_imports_go_down_only(path):
    storey, part = place(path)
    below = STOREYS[: STOREYS.index(storey)]
    for other, its_part in imports_of(path):
        own = other == storey and its_part != part
        assert other in below or own or other not in STOREYS, f"{other} is not below {storey}"


def test_parts_do_not_import_the_module_that_is_made_of_them(path):
    storey, part = place(path)
    if part:
        assert (storey, "") not in set(imports_of(path))


def test_parts_with_an_underscore_are_used_in_their_folder_only(path):
    storey, _ = place(path)
    assert not [f"{s}.{p}" for s, p in imports_of(path) if p.startswith("_") and s != storey]


def test_simulator_does_not_know_the_reduction(path):
    if place(path)[0] == "simulate":
        known = {"exceptions", "filters", "simulate", "_engine.door"}  # the door has no physics
        assert {storey for storey, _ in imports_of(path)} <= known


def test_no_module_outgrows_a_reader(path):
    assert len(path.read_text().splitlines()) <= 500


def test_no_function_outgrows_a_screen(path):
    source = path.read_text().splitlines()
    for f in ast.walk(ast.parse(path.read_text())):
        if isinstance(f, ast.FunctionDef):
            body = f.body[1:] if ast.get_docstring(f) else f.body
            lines = source[f.lineno - 1 : f.body[0].lineno - 1]
            lines += source[body[0].lineno - 1 : f.end_lineno] if body else []
            code = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
            assert len(code) <= 60, f.name
