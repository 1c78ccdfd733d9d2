"""Docstrings of the public names, as numpydoc's own validation reads them."""

import pytest

import astro_narrowband

validate = pytest.importorskip("numpydoc.validate")

#: Not asked of any: sections that most have no use for; types of parameters that are described
#: where "as for" another function says so; sentences for units, as in "[pix]".
NOT_ASKED = {"SA01", "ES01", "PR04", "PR08", "PR09"}
#: Results, whose arguments are their attributes, and which users do not make.
RESULTS = {
    "Alignment", "Band", "Coadd", "DarkModel", "Detector", "FilterCurve", "FrameTable",
    "GrowthCurves",
}  # fmt: skip
#: Parameters that stand in groups of their own, and so not in the order of the call.
GROUPED = {"LineMap", "growth_curves", "simulate_night"}


@pytest.mark.parametrize("name", astro_narrowband.__all__)
def test_numpydoc_finds_nothing_but_what_is_named(name):
    allowed = set(NOT_ASKED)
    allowed |= {"PR01"} if name in RESULTS else set()
    allowed |= {"PR03"} if name in GROUPED else set()
    errors = validate.validate(f"astro_narrowband.{name}")["errors"]
    assert [error for error in errors if error[0] not in allowed] == []
