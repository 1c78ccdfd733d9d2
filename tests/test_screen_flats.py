"""Flats that do not belong together, or to the lights, whatever their headers say."""

import numpy as np
import pytest

from astro_narrowband.night.screen._flats import GRID, coarse, odd_flats, turned

Y, X = np.mgrid[:GRID, :GRID] / (GRID - 1) * 2 - 1
FLAT = 1 + 0.2 * X - 0.1 * Y - 0.05 * (X**2 + Y**2)


def grids(shape, n, rng, *, level=20000.0, noise=0.002):
    return [1000 + level * shape * (1 + rng.normal(0, noise, X.shape)) for _ in range(n)]


def test_flats_of_one_shape_are_kept(rng):
    lamp = [g * (1 + 0.01 * X) for g in grids(FLAT, 2, rng)]
    flats = grids(FLAT, 4, rng) + lamp
    assert odd_flats(flats, grids(FLAT, 3, rng, level=300, noise=0.01), 1000.0) == ([""] * 6, "")


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("right", [0, 1])
def test_the_lights_tell_which_of_two_shapes_is_right(rng, turns, right):
    shapes = FLAT, np.rot90(FLAT, turns)
    flats = grids(shapes[0], 3, rng) + grids(shapes[1], 3, rng)
    lights = grids(shapes[right], 3, rng, level=300, noise=0.01)
    reasons, doubt = odd_flats(flats, lights, 1000.0)
    assert doubt == ""
    assert [bool(reason) for reason in reasons] == [right == 1] * 3 + [right == 0] * 3


def test_most_flats_tell_where_the_lights_do_not(rng):
    flats = [*grids(FLAT, 4, rng), *grids(np.rot90(FLAT), 1, rng)]
    reasons, doubt = odd_flats(flats, [], 1000.0)
    assert [bool(reason) for reason in reasons] == [False] * 4 + [True]
    assert doubt == ""
    assert odd_flats([flats[0], flats[-1]], [], 1000.0)[1].startswith("its flats have 2 shapes")


@pytest.mark.parametrize("turns", [1, 2])
def test_a_turned_flat_is_told_by_the_lights(rng, turns):
    lights = grids(FLAT, 3, rng, level=300, noise=0.005)
    assert turned(grids(FLAT, 3, rng), lights, 1000.0) == ""
    assert "turned" in turned(grids(np.rot90(FLAT, turns), 3, rng), lights, 1000.0)


def test_a_bright_sky_that_is_not_even_is_no_turned_flat(rng):
    vignette = 1 - 0.2 * (X**2 + Y**2)
    moon = vignette * (1 + 0.15 * X)
    nebula = vignette * (1 + np.exp(-((X - 0.5) ** 2 + Y**2) / 0.1))
    for sky in (moon, nebula):
        lights = grids(sky, 3, rng, level=300, noise=0.01)
        assert turned(grids(vignette, 3, rng), lights, 1000.0) == ""


def test_the_grid_leaves_masked_pixels_and_stars_out():
    rows = [np.full(80, 7.0, np.float32) for _ in range(33)]
    rows[3][5] = np.nan
    rows[4][6] = 900
    assert np.all(coarse(rows, 80) == 7)


def test_an_overscan_is_no_part_of_the_shape(rng):
    flats = grids(FLAT, 3, rng)
    lights = grids(FLAT, 3, rng, level=300, noise=0.01)
    for grid in (*flats, *lights):
        grid[:, 0] = 1000 + rng.normal(0, 1, GRID)
    assert odd_flats(flats, lights, 1000.0) == ([""] * 3, "")
    assert turned(flats, lights, 1000.0) == ""
