"""The simulator is the judge of the reduction: it is judged here by first principles."""

import math

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage, stats

from astro_narrowband.exceptions import InputError
from astro_narrowband.simulate import (
    NightModel,
    moffat_fraction,
    read_truth,
    simulate_frames,
    simulate_night,
)
from astro_narrowband.simulate import _camera as camera
from astro_narrowband.simulate import _sky as sky

SHAPE = (160, 224)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A night with everything in it: rotation, flip, WCS, all three filters."""
    folder = tmp_path_factory.mktemp("night")
    return simulate_night(
        folder,
        shape=SHAPE,
        filters=("Ha", "OIII", "SII"),
        rotation=1.0,
        meridian_flip=True,
        write_wcs=True,
        model=NightModel(cosmic_rate=4.0),
        seed=11,
    )


def raw(truth, name):
    return fits.getdata(truth.folder / name).astype(float)


def names_of(truth, kind, filter_name=None, exposure=None):
    table = truth.frames
    chosen = table["kind"] == kind
    if filter_name is not None:
        chosen &= table["filter"] == filter_name
    if exposure is not None:
        chosen &= table["exposure"] == exposure * u.s
    return list(table["name"][chosen])


def brute_moffat(shape, x, y, flux, fwhm, beta, n=15):
    """A star integrated over pixels by n x n midpoints: slow, independent."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    offsets = (np.arange(n) + 0.5) / n - 0.5
    xx = (np.arange(shape[1])[:, None] + offsets).ravel() - x
    yy = (np.arange(shape[0])[:, None] + offsets).ravel() - y
    value = (1 + (xx[None, :] ** 2 + yy[:, None] ** 2) / alpha**2) ** -beta
    value *= flux * (beta - 1) / (np.pi * alpha**2)
    return value.reshape(shape[0], n, shape[1], n).mean(axis=(1, 3))


def model_of_light(truth, name):
    """Mean electrons of a light, drawn independently of the simulator (stars by brute force)."""
    row = truth.frame(name)
    time, matrix = row["exposure"].value, np.asarray(row["matrix"])
    ny, nx = truth.shape
    yy, xx = np.mgrid[:ny, :nx]
    rate = row["sky"].value + row["sky_slope_x"].value * (xx / (nx - 1) - 0.5)
    rate = rate + row["sky_slope_y"].value * (yy / (ny - 1) - 0.5)
    transparency = row["transparency"]
    x, y = truth.positions(name)
    for xc, yc, flux in zip(x, y, truth.stars[f"flux_{row['filter']}"].value, strict=True):
        corner = max(int(xc) - 60, 0), max(int(yc) - 60, 0)
        end = min(int(xc) + 61, nx), min(int(yc) + 61, ny)
        if corner[0] >= end[0] or corner[1] >= end[1]:
            continue
        part = (end[1] - corner[1], end[0] - corner[0])
        rate[corner[1] : end[1], corner[0] : end[0]] += brute_moffat(
            part, xc - corner[0], yc - corner[1], transparency * flux,
            row["fwhm"].value, truth.model.moffat_beta, n=5,
        )  # fmt: skip
    nebula = truth.nebula(row["filter"]).astype(float)
    xr, yr = matrix[:2, :2] @ [xx.ravel(), yy.ravel()] + matrix[:2, 2:]
    rate += transparency * ndimage.map_coordinates(
        nebula, [yr, xr], order=5, mode="constant", cval=np.nan
    ).reshape(ny, nx)
    return time * (truth.dark + truth.flat(row["filter"]) * rate)


# The files


def test_every_frame_of_the_truth_is_a_file_and_the_other_way_round(night):
    files = {p.relative_to(night.folder).as_posix() for p in night.folder.rglob("*.fits")}
    frames = {name for name in files if not name.startswith("truth/")}
    assert frames == set(night.frames["name"])
    assert len(frames) == 12 + 2 * 10 + 3 * (10 + 6)
    for name in files - frames:
        assert fits.getheader(night.folder / name)["IMAGETYP"] == "truth"


@pytest.mark.parametrize(
    ("kind", "imagetyp"),
    [("bias", "Bias Frame"), ("dark", "Dark Frame"), ("flat", "Flat Field"), ("light", "Light")],
)
def test_headers_are_those_of_a_camera(night, kind, imagetyp):
    rows = night.frames[night.frames["kind"] == kind]
    for row in rows:
        with fits.open(night.folder / row["name"], uint=True) as hdul:
            hdul.verify("exception")
            header = hdul[0].header
            assert header["BITPIX"] == 16
            assert header["BZERO"] == 32768
            assert hdul[0].data.dtype == np.uint16
            assert hdul[0].data.shape == SHAPE
        assert header["IMAGETYP"] == imagetyp
        assert header["EXPTIME"] == header["EXPOSURE"] == row["exposure"].value
        assert header["SET-TEMP"] == -10
        assert abs(header["CCD-TEMP"] + 10) <= 0.1
        assert header["EGAIN"] == 0.6
        assert header["RDNOISE"] == 5
        assert header["XBINNING"] == header["YBINNING"] == 1
        assert header["INSTRUME"]
        assert ("FILTER" in header) == (kind in ("flat", "light"))
        assert ("OBJECT" in header) == (kind == "light")
        if kind in ("flat", "light"):
            assert header["FILTER"] == {"Halpha": "Ha"}.get(row["filter"], row["filter"])


def test_frames_follow_one_another_in_time(night):
    dates = [fits.getheader(night.folder / name)["DATE-OBS"] for name in night.frames["name"]]
    assert dates == sorted(set(dates))


def test_gain_and_read_noise_can_be_left_out(tmp_path):
    truth = simulate_night(
        tmp_path, shape=(16, 16), filters=("R",), n_bias=1, dark_exposures=(), n_flats=1,
        light_exposures=(5,), write_gain=False, write_read_noise=False, seed=1,
    )  # fmt: skip
    for name in truth.frames["name"]:
        header = fits.getheader(truth.folder / name)
        assert not {"GAIN", "EGAIN", "RDNOISE", "CTYPE1"} & set(header)
    assert truth.filters == ("R",)


def test_same_seed_same_bytes(tmp_path):
    keys = {"shape": (64, 48), "filters": ("OIII",), "n_bias": 2, "n_darks": 1, "n_flats": 1}
    keys["model"] = NightModel(cosmic_rate=10.0)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate_night(tmp_path / name, seed=seed, **keys)
    paths = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*")]
    assert len(paths) == 2 + 2 + 1 + 6 + 7
    for path in paths:
        a, b, c = ((tmp_path / name / path).read_bytes() for name in "abc")
        assert a == b, path
        assert a != c, path


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate_night(tmp_path, seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shape": (8, 64)}, "shape"),
        ({"shape": (64, 64.0)}, "shape"),
        ({"filters": ()}, "filters"),
        ({"filters": "Ha"}, "filters"),
        ({"filters": ("Ha", "Halpha")}, "twice"),
        ({"light_exposures": (60, 0)}, "light_exposures"),
        ({"dark_exposures": (math.nan,)}, "dark_exposures"),
        ({"n_bias": -1}, "n_bias"),
        ({"n_bias": 0, "n_darks": 0, "n_flats": 0, "light_exposures": ()}, "no frames"),
        ({"dither": -1.0}, "dither"),
        ({"rotation": math.inf}, "rotation"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        simulate_night(tmp_path / "night", seed=1, **keys)
    assert not (tmp_path / "night").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"gain": 0},
        {"gain": "0.6"},
        {"read_noise": -1},
        {"sky": math.nan},
        {"moffat_beta": 1.0},
        {"vignetting": 1.5},
        {"faintest": 10, "brightest": 10},
    ],
)
def test_a_model_without_meaning_is_refused(keys):
    with pytest.raises(InputError, match=next(iter(keys))):
        NightModel(**keys)


# The truth


def test_truth_is_read_as_it_was_returned(night):
    again = read_truth(night.folder)
    assert again.model == night.model == NightModel(cosmic_rate=4.0)
    assert again.shape == SHAPE
    assert again.filters == ("Halpha", "OIII", "SII")
    for name in ("stars", "frames"):
        a, b = getattr(night, name), getattr(again, name)
        assert a.colnames == b.colnames
        assert [a[c].unit for c in a.colnames] == [b[c].unit for c in b.colnames]
    light = names_of(night, "light", "SII")[2]
    assert again.frame(light) == night.frame((night.folder / light).resolve())
    for plane in (again.bias, again.dark, again.flat("S2"), again.nebula("SII")):
        assert plane.shape == SHAPE
        assert plane.dtype == np.float32
    assert np.median(again.flat("Halpha")) == pytest.approx(1, abs=1e-6)


def test_what_the_truth_does_not_know_is_refused(night, tmp_path):
    with pytest.raises(InputError, match="no simulated night"):
        read_truth(tmp_path)
    with pytest.raises(InputError, match="no frame"):
        night.frame("light/none.fits")
    with pytest.raises(InputError, match="Hbeta"):
        night.flat("Hbeta")


def test_matrices_are_what_shift_rotation_and_flip_say(night):
    lights = night.frames[night.frames["kind"] == "light"]
    centre = np.array([(SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2])
    assert lights["rotation"][0] == 0
    assert lights["rotation"][-1] == 1 * u.deg
    assert list(lights["flipped"]) == [False] * 9 + [True] * 9
    for row in lights:
        shift = np.array([row["x_shift"].value, row["y_shift"].value])
        assert np.hypot(*shift) <= 8
        # The frame shows the centre of the reference at its own centre + shift.
        np.testing.assert_allclose(row["matrix"] @ [*(centre + shift), 1], [*centre, 1], atol=1e-9)
        angle = np.degrees(np.arctan2(row["matrix"][1, 0], row["matrix"][0, 0]))
        expected = row["rotation"].value - 180 * row["flipped"]
        assert angle == pytest.approx(expected, abs=1e-9) or angle == pytest.approx(
            expected + 360, abs=1e-9
        )
        assert np.linalg.det(row["matrix"]) == pytest.approx(1)
    assert np.ptp(lights["x_shift"]) > 4 * u.pix


@pytest.mark.filterwarnings("ignore:'datfix' made the change")
def test_wcs_gives_a_star_the_same_place_in_the_sky_in_every_frame(night):
    places = []
    for name in names_of(night, "light"):
        wcs = WCS(fits.getheader(night.folder / name))
        x, y = night.positions(name)
        places.append(np.stack(wcs.all_pix2world(x, y, 0)))
        scale = np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
        assert scale == pytest.approx(1.0)
    assert np.abs(places - places[0]).max() * 3600 < 1e-6
    # North up, east to the left.
    x, y = night.stars["x"].value, night.stars["y"].value
    assert np.corrcoef(x, places[0][0])[0, 1] < -0.99
    assert np.corrcoef(y, places[0][1])[0, 1] > 0.99


# The camera


def test_bias_frames_scatter_about_the_bias(night):
    names = names_of(night, "bias")
    frames = np.array([raw(night, name) for name in names]) * 0.6
    variance = 5**2 + 0.6**2 / 12
    pull = (frames.mean(axis=0) - night.bias * 0.6) / math.sqrt(variance / len(names))
    assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
    assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * pull.size))
    measured = frames.var(axis=0, ddof=1).mean()
    assert measured == pytest.approx(variance, rel=4 * math.sqrt(2 / frames.size))
    # Structure: columns, and rows that settle.
    assert np.std(night.bias[-1]) == pytest.approx(2, rel=0.25)
    rows = night.bias.mean(axis=1)
    assert rows[0] - rows[-1] == pytest.approx(8, rel=0.02)


def test_darks_have_the_dark_rate_its_noise_and_the_rays_that_are_recorded(night):
    for exposure in (60, 120):
        names = names_of(night, "dark", exposure=exposure)
        frames = np.array([raw(night, name) for name in names]) - night.bias
        frames *= 0.6
        for frame, name in zip(frames, names, strict=True):
            frame[night.cosmic_mask(name)] = np.nan
        mean = exposure * night.dark
        variance = mean + 5**2 + 0.6**2 / 12
        good = ~np.isnan(frames).any(axis=0) & (mean < 20_000)
        assert good.mean() > 0.85
        pull = ((frames - mean) / np.sqrt(variance))[:, good]
        assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
        assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * pull.size))
        assert np.abs(pull).max() < 6.5


def test_dark_plane_has_floor_glow_warm_and_hot_pixels(rng):
    model = NightModel(warm_fraction=0.01, hot_fraction=0.002)
    dark = camera.dark_plane(rng, (400, 400), model)
    assert np.median(dark[100:200, 50:150]) == pytest.approx(0.03, rel=0.05)
    assert dark[:4, -4:].mean() > 0.4
    away = dark[:, :200]
    assert np.mean(away > 5) == pytest.approx(0.002, abs=4 * math.sqrt(0.002 / away.size))
    assert np.mean((away > 0.1) & (away < 5)) == pytest.approx(0.01, rel=0.15)
    warm = np.log(away[(away > 0.1) & (away < 5)] - 0.03)
    assert np.median(warm) == pytest.approx(math.log(0.5), abs=0.12)
    assert warm.std() == pytest.approx(0.8, abs=0.1)
    assert 100 < dark.max() < 502
    assert dark.min() >= 0


def test_flats_give_gain_and_response(night):
    for filter_name in night.filters:
        names = names_of(night, "flat", filter_name)
        frames = np.array([raw(night, name) for name in names]) - night.bias
        flat = night.flat(filter_name)
        mean = flat * 25_000 + night.dark * 3 / 0.6
        clean = flat > 0.5
        for name in names:
            clean &= ~night.cosmic_mask(name)
        pull = (frames.mean(axis=0) - mean)[clean] / np.sqrt(mean[clean] / 0.6 / len(names))
        assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
        assert pull.std() == pytest.approx(1, abs=5 / math.sqrt(2 * pull.size))
        # Photon transfer: variance [adu^2] over level [adu] is 1 / gain.
        variance = frames.var(axis=0, ddof=1)[clean].mean() - 25 / 0.36
        gain = mean[clean].mean() / variance
        assert gain == pytest.approx(0.6, rel=5 * math.sqrt(2 / (9 * clean.sum())))


def test_flat_has_vignetting_response_dust_and_dead_pixels():
    def flat(**keys):
        streams = [np.random.default_rng(k) for k in range(3)]
        quiet = {"vignetting": 0.0, "dust": 0, "response_rms": 0.0, "dead_fraction": 0.0}
        model = NightModel(**(quiet | keys))
        return camera.flat_plane(*streams[:2], (256, 256), model, grain_of_filter=streams[2])

    assert np.ptp(flat()) == 0
    corners = flat(vignetting=0.25)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() / flat(vignetting=0.25).max() == pytest.approx(0.75, abs=0.02)
    assert flat(response_rms=0.01).std() == pytest.approx(0.01, rel=0.02)
    assert np.mean(flat(dead_fraction=0.01) < 0.65) == pytest.approx(0.01, rel=0.2)
    dust = flat(dust=8)
    assert 0.005 < 1 - dust.mean() < 0.1
    assert 0.8 < dust.min() < 0.98


@pytest.mark.parametrize(
    ("mean", "read_noise"),
    [(0.0, 5.0), (2.0, 5.0), (40.0, 5.0), (2.0, 1.5), (9.0, 2.0), (18.0, 0.0)],
)
def test_noise_has_the_moments_of_photons_and_read_noise(rng, mean, read_noise):
    model = NightModel(gain=0.05, read_noise=read_noise)
    out = np.empty((128 if read_noise == 0 else 16, 256, 256), np.uint16)
    camera.expose(
        rng, np.full((256, 256), mean, np.float32), np.full((256, 256), 1000.0), model, out
    )
    electrons = (out - 1000.0) * 0.05
    n, variance = out.size, mean + read_noise**2 + 0.05**2 / 12
    kurtosis = 3 + mean / variance**2
    assert electrons.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert electrons.var() == pytest.approx(variance, rel=4 * math.sqrt((kurtosis - 1) / n))
    # Third central moment of a Poisson number is its mean; a normal one adds nothing.
    third = np.mean((electrons - electrons.mean()) ** 3)
    assert third == pytest.approx(mean, abs=4 * math.sqrt(15 * variance**3 / n))


def test_each_frame_may_have_its_own_charge(rng):
    mean = np.linspace(0, 900, 5 * 40 * 30, dtype=np.float32).reshape(5, 40, 30)
    bias = np.tile(np.arange(30, dtype=np.float32), (40, 1)) + 500
    out = np.empty((5, 40, 30), np.uint16)
    camera.expose(rng, mean, bias, NightModel(), out)
    pull = ((out - bias) * 0.6 - mean) / np.sqrt(mean + 25 + 0.03)
    assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
    assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * pull.size))


@pytest.mark.parametrize(("full_well", "ceiling"), [(12_000.0, 21_000), (50_000.0, 65_535)])
def test_pixels_saturate_at_full_well_or_16_bits(rng, full_well, ceiling):
    out = np.empty((1, 64, 64), np.uint16)
    mean = np.full((64, 64), 1e6, np.float32)
    camera.expose(rng, mean, np.full((64, 64), 1000.0), NightModel(full_well=full_well), out)
    if ceiling == 65_535:
        assert np.all(out == 65_535)
    else:
        assert out.mean() == pytest.approx(ceiling, abs=4 * 5 / 0.6 / 64)
        assert out.std() == pytest.approx(5 / 0.6, rel=0.06)


def test_pixels_below_full_well_do_not_saturate(rng):
    out = np.empty((1, 64, 64), np.uint16)
    mean, bias = np.full((64, 64), 9000, np.float32), np.full((64, 64), 1000.0)
    camera.expose(rng, mean, bias, NightModel(full_well=9600.0), out)
    assert out.mean() == pytest.approx(16_000, abs=4 * 95 / 0.6 / 64)
    assert out.std() == pytest.approx(95 / 0.6, rel=0.06)


def test_cosmic_rays_have_the_rate_and_charge_that_are_stated(rng):
    index, charge = camera.cosmic_rays(rng, 50, (200, 300), events=40)
    assert np.all(np.diff(index) > 0)
    frame, rest = np.divmod(index, 200 * 300)
    assert set(frame) == set(range(50))
    assert rest.max() < 200 * 300
    assert charge.min() >= 1
    # 2/3 tracks of 250 x 9 electron, 1/3 points of 900, times exp(0.6^2 / 2).
    expected = 2000 * (2 / 3 * 250 * 9 + 1 / 3 * 900) * math.exp(0.18)
    assert charge.sum() == pytest.approx(expected, rel=0.1)
    # Tracks are thin: an event of 9 pixels' length touches some 20 pixels.
    assert 5 < index.size / 2000 < 25
    assert camera.cosmic_rays(rng, 5, (20, 20), events=0)[0].size == 0


def rays_one_by_one(rng, n, shape, events):
    """Images of n frames with few cosmic rays, those without any left out."""
    index, charge = camera.cosmic_rays(rng, n, shape, events=events)
    frame, pixel = np.divmod(index, shape[0] * shape[1])
    for k in np.unique(frame):
        image = np.zeros(shape)
        image.ravel()[pixel[frame == k]] = charge[frame == k]
        yield image


def in_one_piece(image):
    return ndimage.label(image, np.ones((3, 3)))[1] == 1


def test_a_cosmic_ray_ends_at_the_edge(rng):
    # One frame in twenty of those with an event has two.
    broken = [not in_one_piece(image) for image in rays_one_by_one(rng, 4000, (60, 25), 0.1)]
    assert len(broken) > 300
    assert np.mean(broken) < 0.09


def test_cosmic_rays_have_the_length_that_is_stated(rng):
    variances = []
    for image in rays_one_by_one(rng, 3000, (160, 160), 0.2):
        if in_one_piece(image):
            places, weight = np.nonzero(image), image[image > 0]
            centre = [np.average(v, weights=weight) for v in places]
            variances.append(
                sum(np.average((v - c) ** 2, weights=weight)
                    for v, c in zip(places, centre, strict=True))
            )  # fmt: skip
    # A uniform track has length^2 / 12, and 1/6 per axis for the share of four pixels.
    length = np.sqrt(12 * np.maximum(np.array(variances) - 1 / 3, 0))
    # An exponential of 8 pixels, a little less for those that leave the frame.
    long = length[length > 2]
    assert long.size == pytest.approx(600 * 2 / 3 * math.exp(-1 / 8), rel=0.25)
    assert np.mean(long - 2) == pytest.approx(7.6, abs=1.5)


# The sky


@pytest.mark.parametrize(("fwhm", "beta"), [(2.0, 3.0), (3.0, 3.0), (4.5, 2.5), (3.0, 4.5)])
@pytest.mark.parametrize("flux", [10.0, 2000.0])
def test_a_star_has_its_flux_its_place_and_its_profile(fwhm, beta, flux):
    x, y, n = 100.37, 99.12, 201
    image = np.zeros((n, n))
    sky.add_stars(image, [x], [y], [flux], fwhm=fwhm, beta=beta, exposure=300)
    assert image.sum() == pytest.approx(flux, rel=3e-4)
    grid = np.arange(n)
    part = image[80:120, 80:120]
    expected = brute_moffat((40, 40), x - 80, y - 80, flux, fwhm, beta, n=41)
    drawn = part > 0
    assert drawn.mean() > 0.3
    np.testing.assert_allclose(part[drawn], expected[drawn], atol=1e-4 * expected.max())
    assert (image.sum(axis=0) @ grid) / image.sum() == pytest.approx(x, abs=2e-3)
    assert (image.sum(axis=1) @ grid) / image.sum() == pytest.approx(y, abs=2e-3)


def test_stars_at_the_edge_are_cut_and_those_outside_are_not_drawn():
    whole, cut = np.zeros((140, 140)), np.zeros((100, 100))
    x, y = np.array([-6.2, 104.0, 50.0, 400.0]), np.array([30.5, -3.7, 101.0, 50.0])
    sky.add_stars(whole, x + 20, y + 20, [500.0] * 4, fwhm=3, beta=3, exposure=60)
    sky.add_stars(cut, x, y, [500.0] * 4, fwhm=3, beta=3, exposure=60)
    np.testing.assert_allclose(cut, whole[20:120, 20:120], atol=1e-9)
    assert cut.sum() > 1


@pytest.mark.parametrize(("fwhm", "beta"), [(2.5, 3.0), (3.5, 2.5)])
def test_moffat_fraction_is_what_an_exact_aperture_holds(rng, fwhm, beta):
    from photutils.aperture import CircularAperture

    radii, sums = (fwhm, 2 * fwhm, 4 * fwhm), []
    for dx, dy in rng.uniform(-0.5, 0.5, (60, 2)):
        image = brute_moffat((61, 61), 30 + dx, 30 + dy, 1.0, fwhm, beta, n=9)
        sums.append(
            [CircularAperture((30 + dx, 30 + dy), r).do_photometry(image)[0][0] for r in radii]
        )
    expected = moffat_fraction(np.array(radii), fwhm=fwhm, beta=beta)
    assert np.abs(np.mean(sums, axis=0) - expected) == pytest.approx(0, abs=1e-3)
    assert np.mean(sums, axis=0)[1:] == pytest.approx(expected[1:], abs=1.5e-4)


def test_fluxes_follow_the_power_law(rng):
    flux = sky.star_fluxes(rng, 100_000, faintest=5, brightest=10_000, slope=0.6)
    assert flux.min() >= 5
    assert flux.max() <= 10_000
    low, high = 5**-0.6, 10_000**-0.6

    def fraction_below(f):
        return (low - f**-0.6) / (low - high)

    assert stats.kstest(flux, fraction_below).pvalue > 1e-3


@pytest.mark.parametrize("flipped", [False, True])
def test_a_nebula_is_the_same_however_a_frame_looks_at_it(rng, flipped):
    nebula = sky.Nebula(rng, SHAPE, margin=20, brightness=3.0)
    identity = nebula.rate("OIII", np.eye(3))
    keys = {"shift": np.array([3.0, -5.0]), "flipped": flipped}
    moved = nebula.rate("OIII", sky.pointing(SHAPE, rotation=0.0, **keys))
    turned = nebula.rate("OIII", sky.pointing(SHAPE, rotation=1e-9, **keys))
    np.testing.assert_allclose(moved, turned, atol=1e-5)
    if flipped:
        moved, identity = moved[:, 3:][:-5], identity[::-1, ::-1][5:, :-3]
    else:
        moved, identity = moved[:-5, 3:], identity[5:, :-3]
    np.testing.assert_allclose(moved, identity, atol=1e-5)
    assert identity.max() > 0.3


def test_the_nebula_differs_between_the_filters(night):
    planes = [night.nebula(name).ravel() for name in night.filters]
    for plane in planes:
        assert plane.min() >= 0
        assert plane.max() > 0.2
    correlation = np.corrcoef(planes)[np.triu_indices(3, 1)]
    assert np.all(correlation < 0.9)


@pytest.mark.parametrize("index", [0, 7, 17])
def test_lights_are_sky_times_camera_plus_noise(night, index):
    """Sky, stars, nebula, pointing, flat, dark and noise of a whole light, drawn anew."""
    name = names_of(night, "light")[index]
    mean = model_of_light(night, name)
    electrons = (raw(night, name) - night.bias) * 0.6
    good = np.isfinite(mean) & (mean < 30_000) & ~night.cosmic_mask(name)
    assert good.mean() > 0.85
    pull = ((electrons - mean) / np.sqrt(mean + 25 + 0.03))[good]
    assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
    assert pull.std() == pytest.approx(1, abs=5 / math.sqrt(2 * pull.size))
    assert np.abs(pull).max() < 6


def test_cosmic_rays_are_in_the_lights_where_the_truth_says(night):
    for name in names_of(night, "light", exposure=300)[:2]:
        mean = model_of_light(night, name)
        row = list(night.frames["name"]).index(name)
        hits = night.cosmic_rays[night.cosmic_rays["frame"] == row]
        assert len(hits) > 3
        total = mean[hits["y"], hits["x"]] + hits["charge"].value
        measured = ((raw(night, name) - night.bias) * 0.6)[hits["y"], hits["x"]]
        use = np.isfinite(total) & (total < 30_000)
        pull = (measured - total)[use] / np.sqrt(total + 25)[use]
        assert np.abs(pull).max() < 5
        assert np.abs(pull.mean()) < 4 / math.sqrt(pull.size)


def test_seeing_sky_and_transparency_vary_as_the_model_says(tmp_path):
    model = NightModel(sky=2.0, star_density=0, nebula=0)
    truth = simulate_night(
        tmp_path, shape=(16, 16), filters=("Ha",), n_bias=0, n_darks=0, n_flats=0,
        light_exposures=(1.0,) * 150, model=model, seed=5,
    )  # fmt: skip
    frames = truth.frames
    assert len(truth.stars) == 0
    for column, mean, scatter in (("fwhm", 3.0, 0.1), ("sky", 2.0, 0.15)):
        log = np.log(frames[column].value)
        assert log.mean() == pytest.approx(math.log(mean), abs=4 * scatter / math.sqrt(150))
        assert log.std() == pytest.approx(scatter, rel=0.25)
    assert frames["transparency"].max() <= 1
    assert np.mean(-np.log(frames["transparency"])) == pytest.approx(0.08 * 0.8, rel=0.25)
    shift = np.hypot(frames["x_shift"].value, frames["y_shift"].value)
    assert shift.max() <= 8
    assert np.mean(shift**2) == pytest.approx(32, rel=0.2)


# Nights in memory


def test_nights_in_memory_have_exact_expectations():
    stars = [(20.3, 15.1, 40.0), (9.0, 25.5, 8.0)]
    sets = simulate_frames(
        300, shape=(32, 40), sky=(30, 60, 300), light_exposures=(60, 120, 300), stars=stars,
        shifts=[(0, 0), (2, -1), (0.4, 0.7)], transparency=(1, 0.8, 0.9), fwhm=(2.5, 3, 4),
        n_bias=3, n_darks=2, n_flats=2, model=NightModel(cosmic_rate=0.0, glow=60.0), seed=2,
    )  # fmt: skip
    assert sets.bias.shape == (300, 3, 32, 40)
    assert sorted(sets.darks) == [60, 120]
    assert sets.flats.shape == (300, 2, 32, 40)
    assert sets.lights.shape == sets.cosmic.shape == (300, 3, 32, 40)
    assert not sets.cosmic.any()

    # The expectation itself, by brute force.
    expected = np.stack([np.full((32, 40), s / t) for s, t in ((30, 60), (60, 120), (300, 300))])
    for x, y, flux in stars:
        for k, (dx, dy) in enumerate([(0, 0), (2, -1), (0.4, 0.7)]):
            expected[k] += brute_moffat(
                (32, 40), x + dx, y + dy, flux * (1, 0.8, 0.9)[k], (2.5, 3, 4)[k], 3.0
            )
    np.testing.assert_allclose(sets.rate, expected, atol=5e-3, rtol=2e-3)
    np.testing.assert_allclose(sets.scene, sets.rate[0] - 0.5, atol=1e-6)

    def check(frames, electrons):
        pull = (frames - sets.bias_level) * 0.6 - electrons
        pull /= np.sqrt(electrons + 25 + 0.03)
        assert abs(pull.mean()) < 4 / math.sqrt(pull.size)
        assert pull.std() == pytest.approx(1, abs=4 / math.sqrt(2 * pull.size))
        # No two nights, and no two frames, share their noise.
        rows = pull.reshape(-1, 32 * 40)[:40]
        worst = np.abs(np.corrcoef(rows)[np.triu_indices(40, 1)]).max()
        assert worst < 5.5 / math.sqrt(32 * 40)
        first.append(rows[0])

    first = []
    check(sets.bias, np.zeros((32, 40)))
    for time, frames in sets.darks.items():
        check(frames, sets.dark_rate * time)
    check(sets.flats, sets.flat * 15_000 + 3 * sets.dark_rate)
    for k, time in enumerate((60, 120, 300)):
        electrons = (sets.rate[k] * sets.flat + sets.dark_rate) * time
        assert electrons.max() < 37_000
        check(sets.lights[:, k], electrons)
    # Nor do frames of different kinds.
    worst = np.abs(np.corrcoef(first)[np.triu_indices(7, 1)]).max()
    assert worst < 5 / math.sqrt(32 * 40)


def test_rays_in_memory_are_marked():
    model = NightModel(cosmic_rate=200.0)
    sets = simulate_frames(20, shape=(64, 64), model=model, n_flats=0, n_bias=0, seed=3)
    assert sets.bias.shape == (20, 0, 64, 64)
    expected = (sets.rate[:, None] * sets.flat + sets.dark_rate) * 60
    expected = np.moveaxis(expected, 0, 1)
    pull = (sets.lights - sets.bias_level) * 0.6 - expected
    pull /= np.sqrt(expected + 25)
    assert np.abs(pull[~sets.cosmic]).max() < 6.5
    assert 0.1 < sets.cosmic.mean() < 0.9
    assert np.median(pull[sets.cosmic]) > 3
    # Every night has its own.
    assert not np.array_equal(sets.cosmic[0], sets.cosmic[1])


def test_nights_in_memory_depend_on_the_seed_only():
    a, b, c = (simulate_frames(2, shape=(16, 16), seed=seed).lights for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_bad_arguments_of_nights_in_memory():
    for keys in ({"shape": (4, 4)}, {"n_flats": 1.5}, {"light_exposures": (0,)}, {"n_bias": -2}):
        with pytest.raises(InputError, match=next(iter(keys))):
            simulate_frames(1, seed=1, **keys)
    for keys in (
        {"shifts": [(0, 0)]},
        {"sky": (1, 2)},
        {"stars": [1, 2]},
        {"stars": [(5, 5, -1)]},
        {"fwhm": 0},
        {"transparency": math.nan},
        {"sky": -1},
    ):
        with pytest.raises(InputError, match=next(iter(keys))):
            simulate_frames(1, seed=1, **keys)
