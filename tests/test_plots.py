"""What shows itself: figures, one line of text, and what a notebook shows."""

import sys

import matplotlib as mpl
import numpy as np
import pytest
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import Alignment, DarkModel, FrameTable, coadd, growth_curves
from astro_narrowband.confront import compare_noise
from astro_narrowband.simulate import NightModel, simulate_night

mpl.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore::astro_narrowband.exceptions.NarrowbandWarning")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    rng = np.random.default_rng(2)
    folder = tmp_path_factory.mktemp("plots") / "night"
    simulate_night(
        folder, shape=(64, 64), filters=("Halpha",), n_bias=2, n_darks=2, n_flats=2,
        light_exposures=(60.0,), object_name="<b>M 16</b>", seed=2,
        model=NightModel(star_density=500.0, nebula=0.3),
    )  # fmt: skip
    y, x = np.mgrid[:64, :64]
    star = 300 * np.exp(-((x - 30) ** 2 + (y - 33) ** 2) / 8)
    images = [
        CCDData(
            (rng.normal(10, 1, (64, 64)) + star).astype("f4"), unit="electron/s",
            uncertainty=StdDevUncertainty(np.ones((64, 64), "f4")),
        )
        for _ in range(3)
    ]  # fmt: skip
    error = StdDevUncertainty(np.full((8, 8), 0.1))
    bias = CCDData(np.full((8, 8), 1000.0), unit="adu", uncertainty=error)
    dark = CCDData(np.full((8, 8), 1005.0), unit="adu", uncertainty=error)
    curves = growth_curves(images[0], [(30.0, 33.0)], np.arange(1, 9.0), r_in=10.0, r_out=14.0)
    return {
        "NoiseTest": compare_noise(rng.normal(0, 1, (400, 400)), np.ones((400, 400))),
        "Coadd": coadd(images, flux_scale="none", sky="none"),
        "DarkModel": DarkModel.from_masters(bias=bias, dark=dark, exposure=10.0),
        "Alignment": Alignment.translation(3.0, -2.0, rms=0.1, n_matched=40, method="stars"),
        "FrameTable": FrameTable.from_paths(folder),
        "GrowthCurves": curves,
    }


NAMES = ["NoiseTest", "Coadd", "DarkModel", "Alignment", "FrameTable", "GrowthCurves"]


@pytest.mark.parametrize("name", NAMES)
def test_it_draws_itself(shown, name):
    import matplotlib.pyplot as plt

    axes = np.ravel(shown[name].plot())
    assert all(ax.has_data() for ax in axes)
    axes[0].figure.canvas.draw()
    plt.close(axes[0].figure)


@pytest.mark.parametrize("name", NAMES)
def test_its_text_is_one_short_line(shown, name):
    text = repr(shown[name])
    assert text.startswith(f"<{name} ")
    assert len(text) < 120
    assert "\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_it_and_no_figure_is_left_open(shown, name):
    import matplotlib.pyplot as plt

    plt.close("all")  # what other tests of this process left
    html = shown[name]._repr_html_()
    assert f"&lt;{name}" in html
    assert "<b>" not in html
    assert ("data:image/png;base64," in html) == (name != "FrameTable")
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", NAMES)
def test_without_matplotlib_the_extra_is_named(shown, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"astro-narrowband\[report\]"):
        shown[name].plot()
    assert f"&lt;{name}" in shown[name]._repr_html_()
