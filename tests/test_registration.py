"""Alignments are right, or they are errors: never a wrong shift."""

import pickle

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.table import QTable
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import erf

from astro_narrowband._engine.frames import FitsFrame
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.registration import (
    Alignment,
    _match,
    align,
    align_group,
    choose_reference,
    detect_stars,
)
from astro_narrowband.registration._nebula import match_nebula
from astro_narrowband.registration.match import rotation_about

SHAPE = (1024, 1024)
CORNERS = np.array([[0, 0], [1023, 0], [0, 1023], [1023, 1023], [511.5, 511.5]])


def add_stars(image, xy, flux, fwhm, rng):
    sigma = fwhm / 2.3548
    half = int(5 * sigma + 3)
    ny, nx = image.shape
    for (x, y), f in zip(xy, flux, strict=True):
        ix, iy = round(x), round(y)
        x0, x1 = max(ix - half, 0), min(ix + half + 1, nx)
        y0, y1 = max(iy - half, 0), min(iy + half + 1, ny)
        if x0 < x1 and y0 < y1:
            gx = np.diff(erf((np.arange(x0, x1 + 1) - 0.5 - x) / sigma / 2**0.5)) / 2
            gy = np.diff(erf((np.arange(y0, y1 + 1) - 0.5 - y) / sigma / 2**0.5)) / 2
            star = f * np.outer(gy, gx)
            image[y0:y1, x0:x1] += star + np.sqrt(star) * rng.normal(size=star.shape)


class Field:
    """A field of stars with a steep flux law, seen by a camera with hot pixels."""

    def __init__(self, rng, n_stars, *, shape=SHAPE, n_hot=0, faintest=1500.0):
        self.rng, self.shape = rng, shape
        self.xy = rng.uniform(0, 1, (n_stars, 2)) * shape[::-1]
        self.flux = np.minimum(faintest / rng.random(n_stars), 2e6)
        self.hot = rng.integers(0, shape[0], n_hot), rng.integers(0, shape[1], n_hot)
        self.hot_flux = rng.exponential(rng.choice([300.0, 2000.0]), n_hot)

    def frame(self, matrix=None, *, fwhm=3.0, transparency=1.0, extra=0.0):
        rng = self.rng
        matrix = np.eye(3) if matrix is None else matrix
        image = 100 + extra + np.sqrt(125 + extra) * rng.standard_normal(self.shape, np.float32)
        add_stars(image, _match.apply(matrix, self.xy), self.flux * transparency, fwhm, rng)
        image[self.hot] += self.hot_flux
        return CCDData(image, unit="electron")


def shift_matrix(dx, dy):
    return np.array([[1.0, 0, dx], [0, 1, dy], [0, 0, 1]])


def moved(degrees, dx, dy, shape=SHAPE):
    middle = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    matrix = rotation_about(middle, np.radians(degrees))
    matrix[:2, 2] += dx, dy
    return matrix


def error_of(alignment, truth, corners=CORNERS):
    difference = _match.apply(alignment.matrix, corners) - _match.apply(truth, corners)
    return np.abs(difference).max()


# --------------------------------------------------------------------------- truth


@pytest.mark.parametrize(
    ("degrees", "dx", "dy"),
    [(0, 0, 0), (0, 12.3, -7.6), (0, 250.4, -133.3), (180, 3.3, 4.4), (0.3, 5.2, 0.1),
     (-3, 20, 20), (5, -3, 8), (-47, 10, 10), (90, 3, 3), (179.4, -8, 2)],
)  # fmt: skip
def test_shifts_flips_and_rotations(rng, degrees, dx, dy):
    field = Field(rng, 60)
    truth = moved(degrees, dx, dy)
    found = align(field.frame(), field.frame(truth))
    assert error_of(found, truth) < 0.1
    assert found.flip == (abs(degrees) > 150)
    assert found.is_translation == (degrees == 0)
    if degrees == 180:
        assert np.array_equal(found.matrix[:2, :2], -np.eye(2))
    assert found.rms < 0.2
    assert found.n_matched >= 15
    assert found.log_chance < -20
    assert error_of(found.inverse(), np.linalg.inv(truth)) < 0.1


@pytest.mark.parametrize(("n_stars", "limit"), [(100, 0.02), (50, 0.05)])
def test_precision_over_the_frame(n_stars, limit):
    errors, pulls, others = [], [], []
    import astroalign

    for seed in range(4):
        rng = np.random.default_rng([seed, n_stars])
        field = Field(rng, n_stars, shape=(640, 640), faintest=2000)
        truth = moved(0.4, 6.3, -4.2, field.shape)
        source, target = field.frame(), field.frame(truth)
        found = align(source, target)
        y, x = (a.ravel() for a in np.mgrid[0:640:8j, 0:640:8j])
        grid = np.column_stack([x, y])
        right = _match.apply(truth, grid)
        errors.append(_match.apply(found.matrix, grid) - right)
        middle = np.array([[319.5, 319.5]])
        off = _match.apply(found.matrix, middle) - _match.apply(truth, middle)
        pulls.append(off[0] / found.position_error(319.5, 319.5))
        other, _ = astroalign.find_transform(
            np.asarray(source.data, np.float32), np.asarray(target.data, np.float32)
        )
        others.append(_match.apply(other.params, grid) - right)
    rms, rms_other = np.sqrt(np.mean(np.square(errors))), np.sqrt(np.mean(np.square(others)))
    assert rms < limit
    assert rms_other > 2 * rms
    # Eight values of unit variance.
    assert 0.3 < np.std(pulls) < 1.7


def test_covariance_is_true_for_shift_and_similarity():
    rng = np.random.default_rng(3)
    for model in ("translation", "similarity"):
        truth = shift_matrix(3.0, -2.0) if model == "translation" else moved(1.0, 3.0, -2.0)
        pulls = []
        for _ in range(300):
            source = rng.uniform(0, 1000, (12, 2))
            variance = rng.uniform(0.01, 0.2, 12) ** 2
            target = _match.apply(truth, source)
            target = target + rng.normal(size=(12, 2)) * np.sqrt(variance)[:, None]
            matrix, covariance, *_ = _match.fit(source, target, variance, model=model)
            found = Alignment(matrix, covariance)
            off = np.array(found(900, 100)) - np.array(Alignment(truth)(900, 100))
            pulls.append(off / found.position_error(900, 100))
        # The excess variance that levels chi2 makes the errors a little larger.
        assert 0.85 < np.std(pulls) < 1.05


def test_outliers_are_clipped(rng):
    source = rng.uniform(0, 1000, (40, 2))
    target = source + np.array((5, 7)) + rng.normal(0, 0.05, (40, 2))
    target[:6] += rng.uniform(1, 3, (6, 2))
    matrix, _, used, excess, _ = _match.fit(
        source, target, np.full(40, 0.05**2), model="translation"
    )
    assert not used[:6].any()
    assert used[6:].mean() > 0.95
    assert np.abs(matrix[:2, 2] - (5, 7)).max() < 0.04
    assert excess < 0.05**2


# --------------------------------------------------------------------------- few stars, hot pixels


def random_truth(rng, kind):
    dx, dy = rng.uniform(-40, 40, 2)
    if kind == "still":
        dx, dy = rng.normal(0, 0.3, 2)
    degrees = {"rotation": rng.uniform(-3, 3), "flip": 180 + rng.choice([0, rng.uniform(-1, 1)])}
    return moved(degrees.get(kind, 0.0), dx, dy)


def trial(seed, kind, n_stars, n_hot=2000):
    """One pair of frames: "right", "refused" or the facts of a wrong answer."""
    rng = np.random.default_rng([seed, n_stars])
    field = Field(rng, n_stars, n_hot=n_hot)
    truth = random_truth(rng, kind)
    extra, moving, clear = 0.0, 0.0, 1.0
    possible = True
    if kind in ("star-free", "wrong field"):
        possible = False
    if kind in ("nebula only", "nebula"):
        scale = rng.choice([4, 8, 16])
        cloud = gaussian_filter(rng.standard_normal((1124, 1124), np.float32), scale, truncate=3)
        cloud = np.maximum(cloud / cloud.std(), 0) ** 2 * rng.choice([30, 100, 500])
        dx, dy = np.rint(truth[:2, 2]).astype(int)
        truth = shift_matrix(dx, dy)
        extra = cloud[50:1074, 50:1074]
        moving = cloud[50 - dy : 1074 - dy, 50 - dx : 1074 - dx]
    if kind in ("star-free", "nebula only"):
        field.xy, field.flux = field.xy[:0], field.flux[:0]
    if kind == "clouded":
        clear = rng.uniform(0.02, 0.5)
        extra = 200 * rng.random() * np.linspace(0, 1, 1024)[:, None]
    source = field.frame(transparency=clear, extra=extra)
    if kind == "wrong field":
        field.xy = rng.uniform(0, 1024, field.xy.shape)
        field.flux = np.minimum(1500 / rng.random(n_stars), 2e6)
    target = field.frame(truth, fwhm=3 * rng.uniform(0.9, 1.2), extra=moving)
    try:
        found = align(source, target)
    except AlignmentError:
        return "refused"
    if possible and error_of(found, truth) < 1:
        return "right"
    return f"{kind}, {n_stars} stars, seed {seed}: {found}"


@pytest.mark.parametrize("n_stars", [10, 25])
def test_few_stars_among_hot_pixels(n_stars):
    results = [trial(seed, "shift", n_stars) for seed in range(8)]
    assert results.count("right") >= 7
    assert set(results) <= {"right", "refused"}


@pytest.mark.parametrize(
    "kind", ["still", "rotation", "flip", "clouded", "nebula", "nebula only", "star-free",
             "wrong field"],
)  # fmt: skip
def test_no_wrong_answer(kind):
    results = [trial(seed, kind, n) for seed, n in ((0, 4), (1, 25))]
    assert set(results) <= {"right", "refused"}


@pytest.mark.long
@pytest.mark.parametrize("n_stars", [4, 6, 10, 15, 25])
@pytest.mark.parametrize("kind", ["shift", "still", "rotation", "flip"])
def test_few_stars_many_trials(kind, n_stars):
    results = [trial(seed, kind, n_stars) for seed in range(100, 160)]
    assert set(results) <= {"right", "refused"}
    if n_stars >= 10:
        assert results.count("right") >= 0.98 * len(results)


@pytest.mark.long
@pytest.mark.parametrize("n_stars", [6, 25, 100])
@pytest.mark.parametrize("kind", ["clouded", "nebula", "nebula only", "star-free", "wrong field"])
def test_no_wrong_answer_many_trials(kind, n_stars):
    results = [trial(seed, kind, n_stars) for seed in range(100, 170)]
    assert set(results) <= {"right", "refused"}


@pytest.mark.long
@pytest.mark.parametrize("n_stars", [3, 4, 5, 7, 10, 20, 50, 100, 300])
def test_unrelated_lists_never_match(n_stars):
    """Star lists alone: hundreds of wrong fields, with hot pixels that look like stars."""
    for seed in range(100):
        rng = np.random.default_rng([7, seed, n_stars])
        fixed = rng.integers(0, 1024, (rng.integers(0, 4), 2)) + rng.normal(0, 0.05, 2)
        lists = []
        for _ in range(2):
            xy = np.concatenate([fixed, rng.uniform(0, 1024, (n_stars, 2))])
            lists.append(star_list(xy, rng))
        with pytest.raises(AlignmentError):
            align(*lists)


def list_trial(seed):
    """One pair of short lists: clumped, incomplete, noisy, with chance stars, slightly turned."""
    rng = np.random.default_rng([11, seed])
    n = int(rng.choice([3, 4, 5, 6, 8, 12, 25]))
    kind = rng.choice(["shift", "rotation", "small rotation", "flip", "wrong field"])
    degrees = {
        "rotation": rng.uniform(-3, 3), "small rotation": rng.normal(0, 0.15),
        "flip": 180 + rng.normal(0, 0.3),
    }.get(kind, 0.0)  # fmt: skip
    truth = moved(degrees, *rng.uniform(-40, 40, 2))
    half, error = rng.choice([60, 200, 512]), rng.uniform(0.01, 0.2)
    stars = rng.uniform(half, 1024 - half, 2) + rng.uniform(-half, half, (n, 2))
    there = _match.apply(truth, stars)
    if kind == "wrong field":
        there = rng.uniform(0, 1024, (n, 2))
    lists = []
    for xy in (stars, there):
        xy = np.concatenate([xy, rng.uniform(0, 1024, (rng.integers(0, 6), 2))])
        seen = (rng.random(len(xy)) < 0.9) & ((xy > 0) & (xy < 1023)).all(axis=1)
        lists.append(star_list(xy[seen], rng, error=error))
    try:
        found = align(*lists)
    except AlignmentError:
        return "refused"
    if kind != "wrong field" and error_of(found, truth) < 1:
        return "right"
    return f"{kind}, {n} stars, {degrees:.3f} degrees, seed {seed}: {found}"


def test_short_lists():
    results = [list_trial(seed) for seed in range(60)]
    assert set(results) == {"right", "refused"}


@pytest.mark.long
def test_short_lists_many_trials():
    results = [list_trial(seed) for seed in range(2000)]
    assert set(results) == {"right", "refused"}


@pytest.mark.parametrize(("n_stars", "n_others"), [(3, 2), (4, 2), (4, 4), (6, 6)])
def test_few_stars_that_match_closely_are_enough(n_stars, n_others):
    """Among chance sources of a small field: that they lie so close cannot be chance."""
    for seed in range(30):
        rng = np.random.default_rng([seed, n_stars, 3])
        corners = np.array([(60.0, 70.0), (260.0, 90.0), (150.0, 250.0)])
        stars = np.concatenate([corners, rng.uniform(40, 280, (n_stars - 3, 2))])
        stars, lists = stars + rng.uniform(-20, 20, stars.shape), []
        for shift in (np.zeros(2), rng.uniform(-10, 10, 2)):
            xy = np.concatenate([stars + shift, rng.uniform(0, 319, (n_others, 2))])
            lists.append(star_list(xy, rng, shape=(320, 320), error=0.03))
        assert align(*lists).shift == pytest.approx(tuple(shift), abs=0.2)


def star_list(xy, rng, *, name="list", shape=SHAPE, error=0.05, ring=0.6):
    n = len(xy)
    table = QTable({
        "x_center": (xy[:, 0] + rng.normal(0, error, n)) * u.pix,
        "y_center": (xy[:, 1] + rng.normal(0, error, n)) * u.pix,
        "x_err": np.full(n, error) * u.pix, "y_err": np.full(n, error) * u.pix,
        "sharpness": np.full(n, ring), "saturated": np.zeros(n, bool),
    })  # fmt: skip
    table.meta = {"name": name, "shape": shape, "fwhm": 3.0}
    return table


def test_hot_pixels_alone_are_refused(rng):
    hot = np.column_stack([rng.integers(10, 1000, 30), rng.integers(10, 1000, 30)]).astype(float)
    lists = [star_list(hot, rng, error=0.03) for _ in range(2)]
    with pytest.raises(AlignmentError, match="hot pixels"):
        align(*lists)


def test_what_moves_is_preferred_to_what_stays(rng):
    fixed = rng.uniform(0, 1000, (25, 2))
    stars = rng.uniform(100, 900, (15, 2))
    source = star_list(np.concatenate([fixed, stars]), rng)
    target = star_list(np.concatenate([fixed, stars + np.array((15.2, -8.1))]), rng)
    assert np.allclose(align(source, target).shift, (15.2, -8.1), atol=0.1)


def test_a_regular_pattern_is_refused(rng):
    y, x = np.mgrid[100:900:80, 100:900:80]
    pattern = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    with pytest.raises(AlignmentError, match=r"^two transforms match"):
        align(star_list(pattern, rng), star_list(pattern + np.array((31.3, 12.2)), rng))


def test_a_column_of_artefacts_is_refused(rng):
    line = np.column_stack([np.full(12, 500.3), rng.uniform(0, 1000, 12)])
    with pytest.raises(AlignmentError, match=r"^the stars lie in line"):
        align(star_list(line, rng), star_list(line + np.array((0, 7.7)), rng))


# --------------------------------------------------------------------------- bad input


def named(ccd, name):
    table = detect_stars(ccd)
    table.meta["name"] = name
    return table


def test_frames_without_enough_stars_are_named(rng):
    field = Field(rng, 30)
    good = named(field.frame(), "good.fits")
    empty = named(CCDData(rng.normal(100, 10, SHAPE), unit="adu"), "empty.fits")
    with pytest.raises(AlignmentError, match=r"empty.fits has 0 stars.* 3 unsaturated stars"):
        align(empty, good)
    with pytest.raises(AlignmentError, match=r"empty.fits has 0 stars"):
        align(good, empty)
    field.xy, field.flux = np.array([[500.0, 400.0]]), np.array([1e5])
    one = named(field.frame(), "one.fits")
    with pytest.raises(AlignmentError, match=r"one.fits has 1 star"):
        align(one, good)


def test_all_saturated(rng):
    field = Field(rng, 20)
    field.flux[:] = 3e6
    ccd = field.frame(fwhm=4)
    ccd.data = np.minimum(ccd.data, 30_000)
    with pytest.raises(AlignmentError, match="of them saturated"):
        align(named(ccd, "bright.fits"), named(ccd, "bright.fits"))


def test_frames_of_different_shape(rng):
    field = Field(rng, 30)
    source = field.frame()
    target = CCDData(source.data[:1000], unit="electron")
    with pytest.raises(AlignmentError, match=r"\(1024, 1024\) and \(1000, 1024\)"):
        align(source, target)


@pytest.mark.parametrize("factor", [1.01, 1.1, 1.3])
def test_frames_of_different_pixel_scale(rng, factor):
    xy = rng.uniform(0, 1024, (80, 2))
    scaled = (xy - 512) * factor + 512
    scaled = scaled[((scaled > 0) & (scaled < 1023)).all(axis=1)]
    with pytest.raises(AlignmentError, match="pixel scales"):
        align(star_list(xy, rng), star_list(scaled, rng))


def test_a_mirrored_frame(rng):
    xy = rng.uniform(0, 1024, (60, 2))
    with pytest.raises(AlignmentError, match="mirrored"):
        align(star_list(xy * (-1, 1) + (1023, 0), rng), star_list(xy + np.array((5, 5)), rng))


def test_a_small_field_knows_its_scale_to_no_better_than_its_stars():
    right = 0
    for seed in range(12):
        rng = np.random.default_rng([200, seed])
        field = Field(rng, 14, shape=(200, 200), faintest=3000)
        truth = moved(rng.uniform(-20, 20), 2, 3, (200, 200))
        found = align(field.frame(fwhm=4), field.frame(truth, fwhm=4))
        right += error_of(found, truth, CORNERS * 199 / CORNERS.max()) < 0.5
    assert right == 12


def test_wide_stars_that_did_not_move_are_stars(rng):
    # Three stars may sit alike on their pixels; their neighbours tell them from hot pixels.
    xy = np.array([[40.1, 60.0], [150.0, 33.0], [90.0, 170.1], [20.9, 150.1], [160.0, 140.9]])
    lists = [star_list(xy, rng, shape=(200, 200), error=0.03, ring=0.9) for _ in range(2)]
    assert align(*lists).n_matched == 5
    lists = [star_list(xy, rng, shape=(200, 200), error=0.03, ring=0.1) for _ in range(2)]
    with pytest.raises(AlignmentError, match=r"^these are hot pixels: "):
        align(*lists)


def test_a_frame_is_called_mirrored_only_if_it_is(rng):
    for _ in range(20):
        lists = [star_list(rng.uniform(0, 300, (12, 2)), rng, shape=(300, 300)) for _ in "ab"]
        with pytest.raises(AlignmentError) as caught:
            align(*lists)
        assert "mirrored" not in str(caught.value)
        assert "pixel scales" not in str(caught.value)


def test_nan_columns_and_bad_rows(rng):
    field = Field(rng, 40)
    truth = shift_matrix(9.3, -4.4)
    source, target = field.frame(), field.frame(truth)
    for ccd in (source, target):
        ccd.data[:, 300:304] = np.nan
        ccd.data[700:702] = np.inf
        ccd.data[:, 512] = 5e4
    found = align(source, target)
    assert error_of(found, truth) < 0.1


def test_arguments(rng):
    table = star_list(rng.uniform(0, 1000, (10, 2)), rng)
    with pytest.raises(InputError, match="method"):
        align(table, table, method="fft")
    with pytest.raises(InputError, match="tolerance"):
        align(table, table, tolerance=-1)
    with pytest.raises(InputError, match="x_center"):
        align(QTable({"x": [1.0]}), table)
    with pytest.raises(InputError, match="needs the frames"):
        align(table, table, method="wcs")
    with pytest.raises(InputError, match="positions"):
        align(CCDData(np.ones(SHAPE), unit="adu"), CCDData(np.ones(SHAPE), unit="adu"),
              method="centroid")  # fmt: skip
    with pytest.raises(InputError, match="matrix"):
        Alignment(np.zeros((3, 3)))
    with pytest.raises(InputError, match="matrix"):
        Alignment([[1, 0, np.nan], [0, 1, 0], [0, 0, 1]])


# --------------------------------------------------------------------------- other methods


def test_astroalign_on_our_lists(rng):
    field = Field(rng, 60, n_hot=2000)
    truth = moved(1.2, 8.3, -9.9)
    found = align(field.frame(), field.frame(truth), method="astroalign")
    assert found.method == "astroalign"
    assert error_of(found, truth) < 0.1
    with pytest.raises(AlignmentError, match="astroalign"):
        align(star_list(rng.uniform(0, 1024, (30, 2)), rng),
              star_list(rng.uniform(0, 1024, (30, 2)), rng), method="astroalign")  # fmt: skip


@pytest.mark.parametrize("func", ["default", "centroid_com", "centroid_quadratic", "centroid_1dg"])
def test_named_stars(rng, func):
    from photutils import centroids

    field = Field(rng, 3)
    field.xy = np.array([[200.2, 300.7], [700.4, 600.1], [420.0, 800.9]])
    field.flux = np.array([1e5, 8e4, 2e4])
    truth = shift_matrix(-11.35, 14.8)
    target = field.frame(truth)
    target.data[0:3, 0:3] = np.nan
    function = None if func == "default" else getattr(centroids, func)
    there = _match.apply(truth, field.xy)
    for positions in (there[:1], there + 0.8):
        found = align(
            field.frame(), target, method="centroid", positions=positions, centroid_func=function
        )
        assert found.n_matched == len(positions)
        assert found.is_translation
        # The quadratic centroid's bias is what it is.
        limit = {"centroid_quadratic": 0.2, "centroid_com": 0.3}.get(func, 0.05)
        assert error_of(found, truth) < limit


def test_named_stars_that_are_not_there(rng):
    field = Field(rng, 2, n_hot=3000)
    field.xy, field.flux = np.array([[300.0, 300.0], [330.0, 300.0]]), np.array([1e5, 9e4])
    frame = field.frame()
    with pytest.raises(AlignmentError, match=r"star at \(600.0, 600.0\): there is none"):
        align(frame, frame, method="centroid", positions=[(600, 600)])
    with pytest.raises(AlignmentError, match="two of similar brightness"):
        align(frame, frame, method="centroid", positions=[(300, 300)])
    with pytest.raises(AlignmentError, match="outside the frame"):
        align(frame, frame, method="centroid", positions=[(-60, 300)])
    assert align(
        frame, frame, method="centroid", positions=[(300, 300)], search=12
    ).shift == pytest.approx((0, 0), abs=1e-6)
    with pytest.raises(InputError, match="box_size"):
        align(frame, frame, method="centroid", positions=[(300, 300)], box_size=10)


def test_a_named_star_is_checked_with_the_others(rng):
    field = Field(rng, 40)
    field.xy[0], field.flux[0] = (500.0, 500.0), 1e6
    source = field.frame()
    # In the second frame another bright star stands near the place of the first.
    field.flux[0] = 10.0
    field.xy = np.concatenate([field.xy, [[520.0, 510.0]]])
    field.flux = np.concatenate([field.flux, [1e6]])
    with pytest.raises(AlignmentError, match="stars in common match"):
        align(source, field.frame(), method="centroid", positions=[(520, 510)])


def header_at(crpix, angle=0.0, scale=3e-4, parity=-1):
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"] = crpix
    header["CRVAL1"], header["CRVAL2"] = 83.8, -5.4
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    header["CD1_1"], header["CD1_2"] = parity * c, parity * -s
    header["CD2_1"], header["CD2_2"] = s, c
    return header


def test_by_wcs(rng):
    field = Field(rng, 30)
    truth = shift_matrix(20, -30)

    def with_wcs(ccd, header):
        return CCDData(ccd.data, unit="adu", wcs=WCS(header))

    source = with_wcs(field.frame(), header_at((500, 500)))
    target = with_wcs(field.frame(truth), header_at((520, 470)))
    found = align(source, target, method="wcs")
    assert error_of(found, truth) < 1e-3
    assert (found.method, found.n_matched) == ("wcs", 0)
    # A WCS that the mount wrote: the stars do not agree.
    lying = with_wcs(field.frame(truth), header_at((500, 500)))
    with pytest.raises(AlignmentError, match="stars in common match"):
        align(source, lying, method="wcs")
    with pytest.raises(AlignmentError, match="no celestial WCS"):
        align(source, field.frame(), method="wcs")
    for header in (header_at((520, 470), scale=3.1e-4), header_at((520, 470), parity=1)):
        with pytest.raises(AlignmentError, match="not one camera's"):
            align(source, with_wcs(field.frame(truth), header), method="wcs")
    far = header_at((520, 470))
    far["CRVAL1"] = 90.0
    with pytest.raises(AlignmentError, match="without a common part"):
        align(source, with_wcs(field.frame(), far), method="wcs")


# --------------------------------------------------------------------------- groups


def test_choose_reference(rng):
    field = Field(rng, 60)
    tables = [
        named(field.frame(fwhm=5), "wide"),
        named(field.frame(fwhm=3), "best"),
        named(field.frame(fwhm=3, transparency=0.2), "cloud"),
        named(field.frame(fwhm=3, extra=3000.0), "moon"),
    ]
    assert choose_reference(tables) == 1
    with pytest.raises(AlignmentError, match="no frame has an unsaturated star"):
        choose_reference([tables[0][:0]])
    with pytest.raises(AlignmentError):
        choose_reference([])


def group_of_lists(rng, shifts, counts, *, stars=None):
    stars = rng.uniform(60, 960, (30, 2)) if stars is None else stars
    return [
        star_list(stars[:n] + shift, rng, name=f"f{k}.fits")
        for k, (shift, n) in enumerate(zip(shifts, counts, strict=True))
    ]


def test_a_group_goes_down_the_ladder(rng):
    shifts = np.array([[0, 0], [5.5, 2.1], [9.2, 4.4], [11.1, 6.0], [15.3, 9.9]])
    lists = group_of_lists(rng, shifts, [30, 30, 2, 30, 0])
    result = align_group(lists, reference=0)
    kinds = [a.method if isinstance(a, Alignment) else "" for a in result.alignments]
    assert result.reference == 0
    assert kinds[0] == "reference"
    assert kinds[1] == kinds[3] == "stars"
    for k in (1, 3):
        assert np.allclose(result.alignments[k].shift, -shifts[k], atol=0.1)
    # Two stars are not enough, and where the frames move nothing is borrowed unseen.
    assert result.used == [0, 1, 3]
    assert "f2.fits has 2 stars" in str(result.alignments[2])
    assert "f4.fits has 0 stars" in str(result.alignments[4])


def test_borrowed_where_nothing_moved(rng):
    shifts = rng.normal(3, 0.05, (5, 2))
    shifts[0] = 0, 0
    lists = group_of_lists(rng, shifts, [30, 30, 0, 2, 30])
    # The reference stands apart: it was taken another night.
    result = align_group(lists, reference=0, times=[-100, 1, 2, 3, 4])
    assert "nothing is borrowed" in str(result.alignments[2])
    still = group_of_lists(rng, rng.normal(0, 0.05, (5, 2)), [30, 30, 0, 2, 30])
    result = align_group(still, reference=0)
    # The frame after it was itself confirmed by its two stars.
    assert result.alignments[2].method == "borrowed from f1.fits and f3.fits"
    assert result.alignments[2].n_matched == 0
    assert result.alignments[2].position_error(0, 0) > 0.05
    assert result.alignments[3].method == "borrowed from f4.fits, confirmed by 2 stars"
    assert np.allclose(result.alignments[3].shift, (0, 0), atol=0.2)
    assert align_group(still, reference=0, borrow=False).used == [0, 1, 4]


def test_borrowed_from_another_filter_and_confirmed(rng):
    # Three dithers, each seen in two filters; the second filter shows two stars.
    dithers = np.array([[0.0, 0], [12.3, -4.0], [-6.6, 9.1]])
    stars = rng.uniform(60, 960, (30, 2))
    lists = group_of_lists(rng, dithers, [30] * 3, stars=stars)
    lists += group_of_lists(rng, dithers + 0.1, [2] * 3, stars=stars)
    for k, table in enumerate(lists):
        table.meta["name"] = f"f{k}.fits"
    result = align_group(
        lists, reference=0, times=[0, 10, 20, 1, 11, 21], labels=["Halpha"] * 3 + ["OIII"] * 3
    )
    for k in (4, 5):
        found = result.alignments[k]
        assert found.method == f"borrowed from f{k - 3}.fits, confirmed by 2 stars"
        assert np.allclose(found.shift, -(dithers[k - 3] + 0.1), atol=0.15)


def test_through_a_neighbour(rng):
    # The first and the last have a third of the field in common, but different stars bright.
    stars = rng.uniform(60, 960, (30, 2))
    shifts = [(0, 0), (4.2, 1.1), (8.4, 2.2)]
    lists = [
        star_list(stars[a:b] + shift, rng, name=f"f{k}.fits")
        for k, (shift, (a, b)) in enumerate(zip(shifts, [(0, 14), (7, 23), (14, 30)], strict=True))
    ]
    result = align_group(lists, reference=0)
    assert result.alignments[2].method == "stars, through f1.fits"
    assert np.allclose(result.alignments[2].shift, (-8.4, -2.2), atol=0.15)


def test_fainter_stars_on_the_second_rung():
    rng = np.random.default_rng(12)
    field = Field(rng, 12, shape=(512, 512))
    field.flux[:] = 4000.0
    reference = field.frame()
    # Two stars stand above 5 sigma, ten more between 3.5 and 5.
    field.flux[2:] = 300.0
    truth = shift_matrix(7.7, -3.1)
    source = field.frame(np.linalg.inv(truth))
    result = align_group([reference, source], reference=0)
    found = result.alignments[1]
    assert isinstance(found, Alignment), found
    assert found.method in ("stars", "stars, looser")
    corners = CORNERS / 2
    assert error_of(found, truth, corners) < 1


def nebula_frame(rng, truth, *, shape=(320, 320), noise=0.5, pattern=0.0, seed=8):
    """Nebula as a frame sees it: at x of the frame is what the sky has at truth x."""
    sky = gaussian_filter(np.random.default_rng(seed).normal(size=(700, 700)), 8.0)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    there = truth[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    image = map_coordinates(sky / sky.std(), there[::-1] + 150, order=3).reshape(shape)
    fixed = np.random.default_rng(99).normal(0, 1, shape)
    image = image + pattern * fixed + rng.normal(0, noise, shape)
    return CCDData(image.astype(np.float32), unit="electron / s")


@pytest.mark.parametrize(
    ("degrees", "dx", "dy"), [(0, 0, 0), (0.3, -4.2, 13.1), (180.2, 11.5, 2.7)]
)
def test_nebula_registers_where_there_are_no_stars(rng, degrees, dx, dy):
    truth = moved(degrees, dx, dy, (320, 320))
    frames = [nebula_frame(rng, matrix) for matrix in (np.eye(3), truth)]
    result = align_group(frames, reference=0)
    found = result.alignments[1]
    assert found.method == "nebula"
    assert found.n_matched > 10
    assert found.flip == (degrees > 90)
    corners = np.array([(0, 0), (319, 0), (0, 319), (319, 319)], float)
    assert error_of(found, truth, corners) < 0.35
    assert (found.position_error(*corners.T) < 0.3).all()
    # Without a star in any of them, one is the reference all the same.
    assert len(align_group(frames).used) == 2


@pytest.mark.parametrize("pattern", [0.0, 0.4])
def test_what_all_frames_of_a_detector_share_is_no_nebula(rng, pattern):
    # Two fields, and two frames of no nebula at all.
    for seeds, contrast in (((8, 9), 1.0), ((8, 8), 0.0)):
        frames = [nebula_frame(rng, np.eye(3), pattern=pattern, seed=s) for s in seeds]
        if not contrast:
            frames = [CCDData(rng.normal(0, 1, (320, 320)), unit="adu") for _ in frames]
            fixed = pattern * np.random.default_rng(99).normal(0, 1, (320, 320))
            frames = [CCDData(frame.data + fixed, unit="adu") for frame in frames]
        with pytest.raises(AlignmentError, match="no frame has an unsaturated star"):
            align_group(frames)
        with pytest.raises(AlignmentError, match="nebula"):
            match_nebula(*frames, tolerance=2.0)


def test_group_arguments(rng):
    lists = group_of_lists(rng, [(0, 0)], [30])
    assert align_group(lists).used == [0]
    for keywords, text in (
        ({"times": [1, 2]}, "times"), ({"labels": []}, "labels"), ({"reference": 5}, "reference"),
        ({"method": "x"}, "method"), ({"tables": []}, "tables"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            align_group(lists, **keywords)
    with pytest.raises(InputError, match="no frames"):
        align_group([])


def test_group_by_named_stars(rng):
    field = Field(rng, 20)
    field.xy[0], field.flux[0] = (400.0, 500.0), 3e5
    frames = [field.frame(shift_matrix(dx, dy)) for dx, dy in ((0, 0), (6.2, -3.3))]
    result = align_group(
        frames, reference=0, method="centroid", positions=[tuple(field.xy[0])], search=12
    )
    assert np.allclose(result.alignments[1].shift, (-6.2, 3.3), atol=0.05)


# --------------------------------------------------------------------------- the result


def test_alignment_is_a_value(rng):
    found = Alignment(moved(2.0, 5, 6), np.diag([1e-8, 1e-8, 1e-3, 1e-3]), 0.1, 20, "stars")
    assert found.rotation == pytest.approx(2.0)
    assert found.scale == pytest.approx(1.0)
    assert np.allclose(found.then(found.inverse()).matrix, np.eye(3), atol=1e-12)
    x, y = rng.uniform(0, 1000, (2, 5))
    u2, v2 = found.inverse()(*found(x, y))
    assert np.allclose((u2, v2), (x, y))
    assert np.allclose(
        found.inverse().position_error(*found(x, y)), found.position_error(x, y), rtol=1e-3
    )
    both = found.then(found)
    assert (both.position_error(x, y) > found.position_error(x, y)).all()
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert np.array_equal(copy.matrix, found.matrix)
    with pytest.raises(ValueError, match="read-only"):
        found.matrix[0, 0] = 2
    header = fits.Header()
    found.to_header(header)
    assert header["REGSTARS"] == 20
    assert header["REGROT"] == pytest.approx(2.0)
    assert Alignment.identity().is_translation
    assert Alignment.translation(3, 4).inverse().shift == (-3, -4)


def test_chance_is_a_binomial_tail():
    from scipy.stats import binom

    assert _match.chance(8, 20, 1e-3, free=1, hypotheses=50) == pytest.approx(
        np.log10(binom.sf(6, 19, 1e-3) * 50), abs=1e-6
    )
    assert _match.chance(1, 20, 1e-3, free=1, hypotheses=50) == 0
    assert _match.chance(20, 20, 0.9, free=1, hypotheses=1e9) == 0


# --------------------------------------------------------------------------- real frames


def frames_of(folder, pattern):
    paths = sorted(folder.glob(pattern))
    if not paths:
        pytest.skip(f"no frames in {folder}")
    return [FitsFrame(path, unit="adu") for path in paths]


def test_real_drift_of_34_pixels(real_data):
    frames = frames_of(real_data / "orion-g3-m13" / "M13", "*.fit")
    result = align_group(frames)
    assert result.used == list(range(len(frames)))
    shifts = np.array([a.shift for a in result.alignments])
    assert 27 < np.ptp(shifts[:, 0]) < 40
    assert max(a.rms for a in result.alignments) < 0.3
    # Both sides of a pair give the same answer.
    there, back = (align(result.tables[a], result.tables[b]) for a, b in ((0, 4), (4, 0)))
    assert np.allclose(there.shift, back.inverse().shift, atol=0.1)


def test_real_colour_camera(real_data):
    frames = frames_of(real_data / "als-asi224-lights", "*.fits")
    result = align_group(frames)
    assert result.used == list(range(len(frames)))
    assert max(a.rms for a in result.alignments) < 0.4


def test_real_guiding_drift(real_data):
    frames = frames_of(real_data / "donuts-nites-drift", "*.fit")
    result = align_group(frames)
    assert result.used == [0, 1, 2]
    assert max(np.hypot(*a.shift) for a in result.alignments) < 6


def test_real_narrowband_pair(real_data):
    frames = frames_of(real_data / "arcsat-eagle-halpha", "**/EAGLE*.fits")
    found = align(frames[1], frames[0])
    # The stars of one frame are trailed: where their middle is depends on who measures.
    assert found.shift == pytest.approx((2.65, -7.3), abs=0.6)
    assert found.n_matched > 30


def test_real_frames_with_too_few_stars(real_data):
    frames = frames_of(real_data / "astropy-m13-blue", "*.fits")
    with pytest.raises(AlignmentError, match=r"M13_blue_0001.fits -> M13_blue_0002.fits"):
        align(*frames)


def test_lists_whose_brightest_stars_differ(rng):
    """The brightest of a short exposure are saturated, and absent, in a long one."""
    xy = rng.uniform(50, 4046, (400, 2))

    def listed(some, dx, dy):
        table = QTable({"x_center": xy[some, 0] + dx, "y_center": xy[some, 1] + dy})
        table.meta.update(shape=(4096, 4096), name=f"from {some.start}")
        return table

    found = align(listed(slice(0, 300), 0, 0), listed(slice(150, 400), 6.3, -2.1))
    assert found.n_matched == 150
    assert np.allclose(found.shift, (6.3, -2.1), atol=1e-6)


@pytest.mark.parametrize("n_common", [0, 3, 20])
@pytest.mark.parametrize("size", [40, 400])
def test_votes_are_those_of_the_fullest_squares(rng, n_common, size):
    a, b = rng.uniform(0, size, (25, 2)), rng.uniform(0, size, (30, 2))
    b[:n_common] = a[:n_common] + np.array([-13.3, 7.1]) + rng.normal(0, 0.2, (n_common, 2))
    cell = np.floor((b[None] - a[:, None]).reshape(-1, 2) / 2.0)
    corners = np.unique(np.concatenate([cell - (i, j) for i in (0, 1) for j in (0, 1)]), axis=0)
    fullest = max(int(((cell - c >= 0) & (cell - c <= 1)).all(axis=1).sum()) for c in corners)
    found = _match.vote(a, b, 2.0)
    assert found[0][1] == fullest
    votes = [n for _, n in found]
    assert votes == sorted(votes, reverse=True)
    offsets = np.array([offset for offset, _ in found])
    apart = np.hypot(*(offsets[:, None] - offsets[None]).transpose(2, 0, 1))
    assert (apart[np.triu_indices(len(offsets), 1)] > 8).all()
    if n_common == 20:
        assert np.abs(offsets[0] - (-13.3, 7.1)).max() < 0.3


@pytest.mark.parametrize("outliers", [0, 5])
def test_excess_brings_chi2_to_its_degrees_of_freedom(rng, outliers):
    variance = rng.uniform(0.1, 3.0, 101)
    square = 6.0 * rng.chisquare(2, 101)
    square[:outliers] *= 1e4
    excess = _match._excess(square, variance, 198)
    assert (square / (variance + excess)).sum() == pytest.approx(198, rel=1e-6)
    assert _match._excess(0.01 * square[outliers:], variance[outliers:], 198) == 0
    excess = _match._excess_of_median(square, variance)
    assert np.median(square / (variance + excess)) == pytest.approx(2 * np.log(2), rel=1e-6)
    assert _match._excess_of_median(0.001 * square, variance) == 0


def test_few_and_many_stars_match_alike(rng, monkeypatch):
    a, b = rng.uniform(0, 200, (80, 2)), rng.uniform(0, 200, (90, 2))
    b[:50] = a[:50] + rng.normal(0, 0.5, (50, 2))
    few = _match.mutual_matches(a, b, 3.0)
    monkeypatch.setattr(_match, "FEW", 0)
    many = _match.mutual_matches(a, b, 3.0)
    assert len(few[0]) > 40
    assert all(map(np.array_equal, few, many))
