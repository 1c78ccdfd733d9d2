"""
Write the inventories that let the documentation link to other projects without a network.

    python docs/inventories/make.py

An inventory of a project lists every public name and its page. Those of the projects
themselves are on their sites; these hold the names of the installed packages, on the pages
that sphinx-automodapi and numpydoc give them (``api/<name>.html#<name>``).
"""

import importlib
import inspect
import zlib
from pathlib import Path

FOLDER = Path(__file__).parent
#: Project: modules whose public names are listed, and the page of a name.
PROJECTS = {
    "astropy": (
        [
            "coordinates",
            "io.fits",
            "modeling.models",
            "nddata",
            "stats",
            "table",
            "time",
            "units",
            "wcs",
            "wcs.utils",
        ],
        "api/{name}.html",
    ),
    "ccdproc": ([""], "api/{name}.html"),
    "photutils": (
        ["aperture", "background", "centroids", "detection", "profiles", "psf_matching", "utils"],
        "api/{name}.html",
    ),
    "numpy": (["", "ma", "random", "linalg"], "reference/generated/{name}.html"),
    "matplotlib": (["axes", "figure"], "api/_as_gen/{name}.html"),
}
PYTHON = {
    "concurrent.futures.Executor": "library/concurrent.futures.html",
    "pathlib.Path": "library/pathlib.html",
}


def kind_of(thing):
    """The role of a thing in the Python domain of Sphinx."""
    if inspect.isclass(thing):
        return "py:exception" if issubclass(thing, BaseException) else "py:class"
    return "py:function" if callable(thing) else "py:data"


def names_of(project, modules):
    """Public names of some modules of a project, with their kinds; methods of classes too."""
    for module in modules:
        dotted = f"{project}.{module}".rstrip(".")
        yield dotted, "py:module", dotted
        home = importlib.import_module(dotted)
        for name in getattr(home, "__all__", None) or [n for n in dir(home) if n[0] != "_"]:
            thing = getattr(home, name, None)
            if thing is None or inspect.ismodule(thing):
                continue
            if module == "units" and not inspect.isclass(thing):  # every unit there is
                continue
            full = f"{dotted}.{name}"
            yield full, kind_of(thing), full
            if inspect.isclass(thing) and project != "numpy":
                for method in dir(thing):
                    routine = inspect.isroutine(inspect.getattr_static(thing, method))
                    if routine and not method.startswith("_"):
                        yield f"{full}.{method}", "py:method", full


if __name__ == "__main__":
    every = {
        project: [(n, k, page.format(name=p)) for n, k, p in names_of(project, modules)]
        for project, (modules, page) in PROJECTS.items()
    }
    every["python"] = [(n, "py:class", page) for n, page in PYTHON.items()]
    for project, rows in every.items():
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        body = "".join(f"{n} {k} 1 {page}#{n} -\n" for n, k, page in sorted(set(rows)))
        target = FOLDER / f"{project}.inv"
        target.write_bytes(head.encode() + zlib.compress(body.encode(), 9))
        print(f"{target.name}: {len(rows)} names")
