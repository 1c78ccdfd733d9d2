"""Catalogues: the same sources in every filter, corrected to their whole light."""

import math

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, VarianceUncertainty

from astro_narrowband.exceptions import InputError
from astro_narrowband.photometry import Flag, decode_flags
from astro_narrowband.photometry._catalog import detection_image, make_catalog

READ_NOISE = 5.0
SHAPE = (420, 440)
FWHM = {"Halpha": 3.0, "OIII": 3.6, "SII": 2.7}
RELATIVE = {"Halpha": 1.0, "OIII": 0.5, "SII": 0.0}


def add_moffat(image, x, y, flux, fwhm, beta=3.5):
    """Add a Moffat star, as 3 x 3 points a pixel, within 40 pixels."""
    ix, iy = round(x), round(y)
    rows = slice(max(iy - 40, 0), min(iy + 41, image.shape[0]))
    columns = slice(max(ix - 40, 0), min(ix + 41, image.shape[1]))
    sub = (np.arange(3) - 1) / 3
    gx = (np.arange(columns.start, columns.stop)[:, None] + sub).ravel() - x
    gy = (np.arange(rows.start, rows.stop)[:, None] + sub).ravel() - y
    a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
    stamp = (beta - 1) / (math.pi * a2) * (1 + (gy[:, None] ** 2 + gx**2) / a2) ** -beta
    ny, nx = rows.stop - rows.start, columns.stop - columns.start
    image[rows, columns] += flux * stamp.reshape(ny, 3, nx, 3).mean(axis=(1, 3))


def field(rng, *, extended=False):
    """A jittered grid of stars in three filters; SII shows none of the second half."""
    g = np.arange(30, 410, 48)
    x, y = (a.ravel() + rng.uniform(-4, 4, g.size**2) for a in np.meshgrid(g, g))
    flux = 10 ** rng.uniform(3.0, 5.3, x.size)
    truth, images = {}, {}
    for name, fwhm in FWHM.items():
        model = np.full(SHAPE, 50.0)
        part = np.where(np.arange(x.size) % 2, RELATIVE[name], 1.0)
        truth[name] = flux * part
        for k in range(x.size):
            wide = 1.9 if extended and k == 0 else 1.0
            add_moffat(model, x[k], y[k], truth[name][k], fwhm * wide)
        data = rng.poisson(model) + rng.normal(0, READ_NOISE, SHAPE)
        images[name] = CCDData(
            data.astype(np.float32), unit="electron", meta={"FILTER": name},
            uncertainty=VarianceUncertainty((model + READ_NOISE**2).astype(np.float32)),
        )  # fmt: skip
    return images, x, y, truth


@pytest.fixture(scope="module")
def measured():
    """A field, its truth and its catalogue."""
    made = field(np.random.default_rng(20251122))
    return *made, make_catalog(made[0])


def match(table, x, y):
    """Index of the true star of every row, and whether there is one."""
    dx = table["x_center"].value[:, None] - x
    dy = table["y_center"].value[:, None] - y
    distance = np.hypot(dx, dy)
    return distance.argmin(axis=1), distance.min(axis=1) < 1


def test_fluxes_are_true_in_every_filter(measured):
    _, x, y, truth, catalog = measured
    for name, table in catalog.tables.items():
        which, found = match(table, x, y)
        assert found.mean() > 0.97
        assert found.sum() > 0.9 * len(x)
        clean = found & ((table["flags"] & ~Flag.NEGATIVE) == 0)
        assert clean.sum() > 30
        pull = (table["flux"].value - truth[name][which]) / table["flux_err"].value
        faint = clean & (truth[name][which] < 3e4)
        assert np.std(pull[faint]) == pytest.approx(1, abs=0.35)
        bright = clean & (table["snr"] > 50)
        assert np.median(table["flux"].value[bright] / truth[name][which][bright]) == pytest.approx(
            0.99, abs=0.012
        )
        assert table["flux"].unit == u.electron
        # Of the Gaussian with these windowed moments: a Moffat profile's is a tenth less.
        assert catalog.fwhm[name] == pytest.approx(1.12 * FWHM[name], rel=0.05)
        typical = np.nanmedian(table["fwhm"][clean & (table["snr"] > 20)].value)
        assert typical == pytest.approx(catalog.fwhm[name], rel=0.05)
    # A star that a filter does not show has a flux of zero with an error, not a hole.
    table = catalog.tables["SII"]
    which, found = match(table, x, y)
    dark = found & (truth["SII"][which] == 0)
    assert dark.sum() > 15
    assert np.abs(np.mean(table["snr"][dark])) < 1
    assert np.isfinite(table["flux"][dark]).all()


def test_matched_apertures_and_their_corrections(measured):
    images, *_, catalog = measured
    radii = {table.meta["r"] for table in catalog.tables.values()}
    assert len(radii) == 1
    assert radii.pop() == pytest.approx(1.25 * max(catalog.fwhm.values()), abs=0.01)
    factors = {name: catalog.corrections[name].factor for name in images}
    assert 1 < factors["SII"] < factors["Halpha"] < factors["OIII"] < 1.3
    for name, table in catalog.tables.items():
        correction = catalog.corrections[name]
        np.testing.assert_allclose(
            table["flux"].value, table["flux_aperture"].value * correction.factor
        )
        relative = table["flux_err"] / table["flux"]
        bare = table["flux_aperture_err"] / table["flux_aperture"]
        np.testing.assert_allclose(
            relative**2, bare**2 + (correction.err / correction.factor) ** 2, rtol=1e-6
        )


def test_columns_of_the_products(measured, tmp_path):
    images, *_, catalog = measured
    wanted = ["id", "x_center", "y_center", "flux", "flux_err", "sky", "sky_err", "snr", "fwhm"]
    for name, table in catalog.tables.items():
        assert {*wanted, "flags"} <= set(table.colnames)
        assert table.meta["filter"] == name
        table.write(tmp_path / f"{name}.ecsv")
        growth = catalog.growth[name].to_table()
        growth.write(tmp_path / f"growth-{name}.ecsv")
        assert set(growth["id"]) <= set(table["id"])
    merged = catalog.merged
    assert len(merged) == len(table)
    for name in images:
        np.testing.assert_array_equal(merged[f"flux_{name}"], catalog.tables[name]["flux"])
        np.testing.assert_array_equal(merged[f"flux_err_{name}"], catalog.tables[name]["flux_err"])
    merged.write(tmp_path / "merged.ecsv")
    assert merged.meta["filters"] == list(images)


def test_background_of_growth_curves_is_right(measured):
    *_, catalog = measured
    for table in catalog.background.values():
        tested = table["verdict"] != "untested"
        assert tested.sum() >= 10
        assert np.mean(np.abs(table["z"][tested]) < 3) > 0.8


def test_extended_sources_are_flagged(rng):
    images, x, y, _ = field(rng, extended=True)
    for image in images.values():
        add_moffat(image.data, x[0], y[0], 2e5, 5.0)
    catalog = make_catalog(images)
    table = catalog.tables["Halpha"]
    which, found = match(table, x, y)
    extended = (table["flags"] & Flag.EXTENDED) > 0
    assert extended[found & (which == 0)].all()
    assert extended[found & (which != 0)].mean() < 0.05


def test_stars_that_some_frames_lack_give_no_correction(rng):
    images, x, y, truth = field(rng)
    image = images["Halpha"]
    flux = truth["Halpha"]
    bright = np.argsort(-flux)[:18]
    coverage = np.full(SHAPE, 6, np.uint8)
    for k in bright:
        # Saturated in the frames of the best seeing: what is left is wider.
        add_moffat(image.data, x[k], y[k], -0.2 * flux[k], 3.0)
        add_moffat(image.data, x[k], y[k], 0.2 * flux[k], 4.5)
        iy, ix = round(y[k]), round(x[k])
        coverage[iy - 1 : iy + 2, ix : ix + 2] = 3
    # A pixel of one frame lost to a cosmic ray says nothing.
    hit = np.argsort(-flux)[18]
    coverage[round(y[hit]), round(x[hit])] = 5
    catalog = make_catalog({"Halpha": image}, coverage={"Halpha": coverage})
    table = catalog.tables["Halpha"]
    which, found = match(table, x, y)
    partial = (table["flags"] & Flag.PARTIAL) > 0
    assert set(which[found & partial]) == set(bright)
    assert not set(catalog.growth["Halpha"].id) & set(table["id"][partial])
    ratio = table["flux"].value / flux[which]
    sure = found & ~partial & (flux[which] > 2e4)
    assert sure.sum() > 8
    assert np.median(ratio[sure]) == pytest.approx(1, abs=0.003)
    # With them it is wrong.
    blind = make_catalog({"Halpha": image}).tables["Halpha"]
    assert np.median((blind["flux"].value / flux[which])[sure]) > 0.99


def test_detection_on_one_filter(measured):
    images, *_, everything = measured
    only = make_catalog(images, detect_on="SII")
    assert len(only.merged) < 0.75 * len(everything.merged)
    assert list(only.tables) == list(images)


def test_detection_image_adds_up_what_each_filter_shows(rng):
    data = rng.normal(100, 4, (3, 200, 210)).astype(np.float32)
    ccds = [CCDData(d, unit="electron") for d in data]
    ccds[0].mask = np.zeros((200, 210), bool)
    ccds[0].mask[:100] = True
    ccds[1].data[:50] = np.nan
    total = detection_image(ccds)
    assert total.mask is None
    # Each part is in units of its own noise, however many filters it has.
    for rows in (slice(0, 50), slice(50, 100), slice(100, 200)):
        assert np.std(total.data[rows]) == pytest.approx(1, rel=0.05)
        assert abs(np.mean(total.data[rows])) < 0.05
    ccds[2].data[:50] = np.nan
    total = detection_image(ccds)
    assert total.mask[:50].all()
    assert not total.mask[50:].any()


def test_field_without_stars(rng):
    image = CCDData(
        rng.normal(10, 3, (150, 150)), unit="electron",
        uncertainty=VarianceUncertainty(np.full((150, 150), 9.0)),
    )  # fmt: skip
    catalog = make_catalog({"Halpha": image})
    assert catalog.corrections["Halpha"] is None
    assert len(catalog.growth["Halpha"]) == 0
    assert len(catalog.growth["Halpha"].to_table()) == 0
    assert len(catalog.merged) == len(catalog.tables["Halpha"])
    assert set(decode_flags(int(np.bitwise_or.reduce(catalog.merged["flags"], initial=0)))) <= {
        "UNCORRECTED", "NEGATIVE", "EXTENDED", "SKY_EDGE", "SKY_UNEVEN",
    }  # fmt: skip


def test_images_that_cannot_be_used(rng):
    small, large = (CCDData(np.zeros((n, n)), unit="electron") for n in (20, 30))
    with pytest.raises(InputError, match="no images"):
        make_catalog({})
    with pytest.raises(InputError, match=r"different shapes \(a \(20, 20\), b \(30, 30\)\)"):
        make_catalog({"a": small, "b": large})
    with pytest.raises(InputError, match="'c' is not among a"):
        make_catalog({"a": small}, detect_on="c")
    with pytest.raises(InputError, match="a: ndarray is neither"):
        make_catalog({"a": np.zeros((20, 20))})


def gaussians(rng, n, xy, flux, sigma):
    y, x = np.mgrid[:n, :n]
    model = np.full((n, n), 100.0)
    for (a, b), f, s in zip(xy, flux, sigma, strict=True):
        model += f / (2 * np.pi * s * s) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s * s))
    data = rng.poisson(model).astype(float)
    return CCDData(data, unit="electron", uncertainty=VarianceUncertainty(model))


def test_correction_follows_the_seeing_over_the_field():
    rng = np.random.default_rng(5)
    g = np.arange(40, 480, 44)
    xy = np.array([(a, b) for a in g for b in g]) + rng.uniform(-4, 4, (g.size**2, 2))
    flux = rng.uniform(2e4, 2e5, len(xy))
    ccd = gaussians(rng, 520, xy, flux, 1.2 * (1 + 0.3 * xy[:, 0] / 520))
    table = make_catalog({"Ha": ccd}).tables["Ha"]
    which, near = match(table, *xy.T)
    pull = ((table["flux"].value - flux[which]) / table["flux_err"].value)[near]
    assert near.sum() > 90
    assert np.std(pull) < 1.2


def test_equal_pairs_are_in_the_catalogue_and_flagged():
    rng = np.random.default_rng(6)
    g = np.arange(35, 400, 50)
    xy = np.array([(a, b) for a in g for b in g], float)
    angle = rng.uniform(0, 2 * np.pi, 12)
    pairs = xy[:12] + 3.9 * np.column_stack([np.cos(angle), np.sin(angle)])
    every = np.concatenate([xy, pairs])
    ccd = gaussians(rng, 420, every, np.full(len(every), 5e4), np.full(len(every), 1.274))
    table = make_catalog({"Ha": ccd}).tables["Ha"]
    cx, cy = table["x_center"].value, table["y_center"].value
    for a, b in xy[:12]:
        rows = np.hypot(cx - a, cy - b) < 4
        assert rows.any()
        assert (table["flags"][rows] & (Flag.BLENDED | Flag.NEIGHBOUR)).all()


def test_what_all_fluxes_share_is_named_and_apart(measured):
    images = {"Halpha": measured[0]["Halpha"].copy()}
    plain = measured[-1].tables["Halpha"]
    assert "flux_err_common" not in plain.colnames
    images["Halpha"].header["FLUXERR"] = 0.02
    catalog = make_catalog(images, detect_on="Halpha")
    table = catalog.tables["Halpha"]
    shared = table["flux_err_common"].value / np.abs(table["flux"].value)
    np.testing.assert_allclose(shared, 0.02)
    assert table["flux_err_common"].unit == table["flux"].unit
    assert "flux_err_common_Halpha" in catalog.merged.colnames
    assert catalog.growth["Halpha"].meta["flux_err_common"] == pytest.approx(0.02)
    # Stars differ by flux_err alone: it is no larger than without the card.
    bare = make_catalog({"Halpha": measured[0]["Halpha"]}).tables["Halpha"]
    np.testing.assert_allclose(table["flux_err"].value, bare["flux_err"].value, rtol=1e-5)
