"""Sphinx configuration."""

import matplotlib as mpl

import astro_narrowband

mpl.use("Agg")

project = "astro_narrowband"
author = "The astro_narrowband developers"
copyright = f"2026, {author}"
version = release = astro_narrowband.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_automodapi.automodapi",
    "sphinx_automodapi.smart_resolver",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "matplotlib.sphinxext.plot_directive",
]
default_role = "obj"
exclude_patterns = [
    "_build",
    "changes/*.feature.rst",
    "changes/*.bugfix.rst",
    "changes/*.api.rst",
    "changes/changelog.rst",
    "paper",
    "tutorials",  # programs, whose pages are in generated
]
suppress_warnings = ["config.cache"]

automodapi_toctreedirnm = "api"
autosummary_generate = True
numpydoc_show_class_members = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Stored lists of names (inventories/make.py), so that a build needs no network.
intersphinx_mapping = {
    name: (url, f"inventories/{name}.inv")
    for name, url in {
        "astropy": "https://docs.astropy.org/en/stable/",
        "ccdproc": "https://ccdproc.readthedocs.io/en/latest/",
        "matplotlib": "https://matplotlib.org/stable/",
        "numpy": "https://numpy.org/doc/stable/",
        "photutils": "https://photutils.readthedocs.io/en/stable/",
        "python": "https://docs.python.org/3/",
    }.items()
}

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "generated/tutorials",
    "within_subsection_order": "FileNameSortKey",
    "plot_gallery": True,
    "abort_on_example_error": True,
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}

plot_include_source = False
plot_html_show_source_link = True
plot_html_show_formats = False
plot_formats = [("png", 110)]
plot_rcparams = {
    "figure.figsize": (7.0, 3.6),
    "font.size": 9,
    "figure.constrained_layout.use": True,
}
plot_apply_rcparams = True

html_theme = "pydata_sphinx_theme"
html_title = "astro_narrowband"
html_static_path = ["_static"]
html_css_files = ["narrowband.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
