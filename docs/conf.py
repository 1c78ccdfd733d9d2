"""Sphinx configuration."""

from sphinx_astropy.conf.v3 import *  # noqa: F403

import astro_narrowband

project = "astro_narrowband"
author = "The astro_narrowband developers"
copyright = f"2026, {author}"
version = release = astro_narrowband.__version__

extensions = [e for e in extensions if e != "sphinx.ext.intersphinx"]  # noqa: F405
extensions += ["sphinx_automodapi.automodapi"]
exclude_patterns = ["_build", "changes/*.feature.rst"]
html_theme = "alabaster"
html_title = "astro_narrowband"
numpydoc_show_class_members = False
