"""combine and reduce_tile: against numpy in double precision, ccdproc, and themselves."""

import bz2
import gzip
import os
import warnings
from concurrent.futures import ProcessPoolExecutor

import ccdproc
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astro_narrowband._engine.stacking.network as network
import astro_narrowband.coaddition._combine_bands as stack
from astro_narrowband import combine
from astro_narrowband._engine.frames import Band, FitsFrame, Frame
from astro_narrowband.coaddition import Rejection, reduce_tile
from astro_narrowband.exceptions import InputError, ProductError

MAD = 1.482602218505602

# ------------------------------------------------------------------ the oracle


def oracle(x, bad, rejection, method, variance=None, weights=None):
    """The same by NaN functions in float64, without any cleverness."""
    x = np.array(x, float)
    if bad is not None:
        x[bad] = np.nan
    x[~np.isfinite(x)] = np.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        low, high = rejection.limits
        if low is not None:
            x[x < low] = np.nan
        if high is not None:
            x[x > high] = np.nan
        if any(rejection.extrema):
            rank = np.argsort(np.argsort(x, axis=0, kind="stable"), axis=0, kind="stable")
            left = np.isfinite(x).sum(axis=0)
            x[(rank < rejection.extrema[0]) | (rank >= left - rejection.extrema[1])] = np.nan
        if rejection.percentile is not None:
            m = np.nanmedian(x, axis=0)
            x[x < m - rejection.percentile[0] * abs(m)] = np.nan
            x[x > m + rejection.percentile[1] * abs(m)] = np.nan
        if rejection.sigma is not None:
            done = 0
            while True:
                m = np.nanmedian(x, axis=0)
                if rejection.deviation == "mad_std":
                    s = MAD * np.nanmedian(abs(x - m), axis=0)
                elif rejection.deviation == "std":
                    s = np.nanstd(x, axis=0)
                else:
                    s = winsorized(x, m)
                center = m if rejection.center == "median" else np.nanmean(x, axis=0)
                out = (x < center - rejection.sigma[0] * s) | (x > center + rejection.sigma[1] * s)
                x[out] = np.nan
                done += 1
                if not out.any() or done == rejection.maxiters:
                    break
        w = np.ones(x.shape) if weights is None else np.reshape(weights, (len(x), -1))
        w = np.where(np.isfinite(x), np.broadcast_to(w, x.shape), 0.0)
        count = (w > 0).sum(axis=0)
        total = w.sum(axis=0)
        x0 = np.where(w > 0, x, 0.0)
        mean = (w * x0).sum(axis=0) / total
        if variance is None:
            count = np.where(count == 1, np.nan, count)  # one value has no scatter
            error = (w * np.where(w > 0, x - mean, 0) ** 2).sum(axis=0) / ((count - 1) * total)
        else:
            error = (w**2 * np.where(w > 0, variance, 0)).sum(axis=0) / total**2
        if method == "median":
            value = np.nanmedian(x, axis=0)
            error = np.where(count > 2, error * np.pi / 2, error)
        elif method == "sum":
            value, error = np.where(total > 0, mean * total, np.nan), error * total**2
        else:
            value = mean
    return value, error, (w > 0).sum(axis=0)


def winsorized(x, m):
    s = np.nanstd(x, axis=0)
    going = np.ones(s.shape, bool)
    for _ in range(20):
        new = 1.134 * np.nanstd(np.clip(x, m - 1.5 * s, m + 1.5 * s), axis=0)
        small = abs(new - s) <= 0.0005 * s
        s = np.where(going, new, s)
        going &= ~small
    return s


def make(rng, n, pixels, dtype, masked):
    x = rng.normal(100, 8, (n, pixels))
    hit = rng.random(x.shape) < 0.05
    x[hit] += rng.uniform(50, 150, hit.sum())
    kind = np.dtype(dtype).kind
    x = (x if kind == "f" else np.clip(np.round(x), 0, 255)).astype(dtype)
    if masked == "none":
        return x, None
    bad = rng.random(x.shape) < {"few": 0.02, "many": 0.4}.get(masked, 0.1)
    if masked == "frame":
        bad[rng.integers(n)] = True
    bad[:, 0] = True
    if kind == "f":
        x[bad] = rng.choice([np.nan, np.inf, -np.inf, 1e9], bad.sum())
    return x, bad


REJECTIONS = [
    Rejection(),
    Rejection(sigma=(3, 3)),
    Rejection(sigma=(2, 2.5), maxiters=None),
    Rejection(sigma=(1.9, 1.9), center="mean", deviation="std", maxiters=2),
    Rejection(extrema=(1, 2)),
    Rejection(extrema=(1, 0), sigma=(1.5, 2), maxiters=3),
    Rejection(limits=(80, 120)),
    Rejection(limits=(None, 150), sigma=(2, 2)),
    Rejection(percentile=(0.1, 0.2)),
    Rejection(sigma=(2, 2), deviation="winsorized"),
]
MASKS = ["none", "few", "many", "frame"]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 33, 65, 100]),
    dtype=st.sampled_from(["u1", "u2", "i2", "i4", "f4", "f8"]),
    masked=st.sampled_from(MASKS),
    rejection=st.sampled_from(REJECTIONS),
    method=st.sampled_from(["median", "average", "sum"]),
    extra=st.sampled_from(["", "variance", "weights", "planes", "both"]),
)
def test_tile_is_what_double_precision_gives(seed, n, dtype, masked, rejection, method, extra):
    rng = np.random.default_rng(seed)
    x, bad = make(rng, n, 40, dtype, masked)
    kwargs = {}
    if extra in ("variance", "both"):
        kwargs["variance"] = rng.uniform(1, 2, x.shape).astype(np.float32)
    if extra in ("weights", "both", "planes") and method != "median":
        if any(rejection.extrema):
            return  # which of equal values go is not defined: see the test of ties
        kwargs["weights"] = rng.uniform(0.5, 2, x.shape if extra == "planes" else n)
    got = reduce_tile(x, bad, method=method, rejection=rejection, **kwargs)
    if any(rejection.extrema) and "variance" in kwargs:
        kwargs.pop("variance")  # the same for the errors
    value, error, count = oracle(x, bad, rejection, method, **kwargs)
    np.testing.assert_array_equal(got.count, count)
    np.testing.assert_allclose(got.value, value, rtol=1e-6)
    if "variance" in kwargs or not any(rejection.extrema):
        np.testing.assert_allclose(got.variance, error, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("masked", MASKS)
def test_median_is_exact_for_every_number_of_frames(dtype, masked):
    rng = np.random.default_rng(5)
    for n in range(1, 101):
        x, bad = make(rng, n, 12, dtype, masked)
        value = reduce_tile(x, bad, method="median", error=False, dtype=np.float64).value
        np.testing.assert_array_equal(value, oracle(x, bad, Rejection(), "median")[0])


def test_unsigned_and_signed_extremes():
    x = np.array([[0, 65535], [65535, 65535], [65534, 0], [65535, 65534]], np.uint16)
    bad = np.zeros(x.shape, bool)
    bad[0] = True
    assert list(reduce_tile(x, method="median").value) == [65534.5, 65534.5]
    assert list(reduce_tile(x, bad, method="median", error=False).value) == [65535, 65534]
    x = np.array([[-32768], [32767], [32766], [32767], [32767]], np.int16)
    got = reduce_tile(x, rejection=Rejection(sigma=(3, 3)))
    assert got.value[0] == 32767
    assert got.count[0] == 3


@pytest.mark.parametrize("n", [*range(1, 12), 16, 17])
def test_network_sorts_zeros_and_ones(n):
    # What sorts every sequence of zeros and ones sorts everything (Knuth 5.3.4, theorem Z).
    words = np.arange(1 << min(n, 12), dtype=np.uint32)
    if n > 12:
        words = np.random.default_rng(0).integers(0, 1 << n, 4096, dtype=np.uint32)
    bits = ((words >> np.arange(n, dtype=np.uint32)[:, None]) & 1).astype(np.uint8)
    rows = list(bits.copy())
    network.sort_rows(rows, np.empty_like(rows[0]))
    np.testing.assert_array_equal(rows, np.sort(bits, axis=0))
    wanted = ((n - 1) // 2, n // 2)
    rows = list(bits.copy())
    network.select_rows(rows, np.empty_like(rows[0]), wanted)
    for k in wanted:
        np.testing.assert_array_equal(rows[k], np.sort(bits, axis=0)[k])


# ------------------------------------------------------------------ to the last bit


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([2, 3, 6, 12, 16, 17, 18, 40]),
    dtype=st.sampled_from(["u2", "f4", "f8"]),
    masked=st.sampled_from(MASKS),
    rejection=st.sampled_from(REJECTIONS),
    method=st.sampled_from(["median", "average", "sum"]),
    extra=st.sampled_from(["", "variance", "weights", "both"]),
)
def test_order_and_tiles_change_no_bit(seed, n, dtype, masked, rejection, method, extra):
    rng = np.random.default_rng(seed)
    x, bad = make(rng, n, 90, dtype, masked)
    if bad is not None:
        bad[rng.integers(n), :45] = True  # a frame that is nothing in one tile only
    extras = {}
    if extra in ("variance", "both"):
        extras["variance"] = rng.uniform(1, 2, x.shape).astype(np.float32)
    if extra in ("weights", "both") and method != "median":
        extras["weights"] = rng.uniform(0.1, 3, x.shape)

    def run(order, columns):
        cut = np.ix_(order, columns)
        part = {key: value[cut] for key, value in extras.items()}
        hidden = None if bad is None else bad[cut]
        return reduce_tile(x[cut], hidden, method=method, rejection=rejection, **part)

    order, columns = np.arange(n), np.arange(90)
    whole = run(order, columns)
    shuffled = run(rng.permutation(n), columns)
    tiles = [run(order, c) for c in np.array_split(columns, [45, 52])]
    for plane in range(3):
        np.testing.assert_array_equal(whole[plane], shuffled[plane])
        np.testing.assert_array_equal(whole[plane], np.concatenate([t[plane] for t in tiles]))


def same(a, b):
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(a.uncertainty.array, b.uncertainty.array)
    assert (a.mask is None) == (b.mask is None)
    if a.mask is not None:
        np.testing.assert_array_equal(a.mask, b.mask)


@pytest.fixture
def files(tmp_path, rng):
    """Seven uint16 frames with BUNIT and EXPTIME."""
    paths = []
    for i in range(7):
        hdu = fits.PrimaryHDU(rng.normal(1000, 20, (60, 50)).round().astype(np.uint16))
        hdu.header.update(BUNIT="adu", EXPTIME=60.0, OBJECT=f"frame {i}")
        paths.append(tmp_path / f"f{i}.fits")
        hdu.writeto(paths[-1])
    return paths


@pytest.mark.parametrize("method", ["median", "average", "sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_order_memory_and_workers_change_no_bit(files, method, masked, monkeypatch):
    frames = list(files)
    if masked:
        frames = [CCDData.read(path) for path in files]
        for i, ccd in enumerate(frames):
            ccd.data = ccd.data.astype(np.float32)
            ccd.data[3 * i : 3 * i + 30, i] = np.nan
            ccd.mask = np.random.default_rng(i).random(ccd.shape) < 0.1
    kwargs = {"method": method, "sigma_clip": True, "maxiters": 3}
    first = combine(frames, **kwargs)
    same(first, combine(frames[::-1], **kwargs))
    same(first, combine(frames, workers=1, **kwargs))
    seen = []
    monkeypatch.setattr(stack, "row_bands", lambda n, k: seen.append(k) or bands(n, k))
    from astro_narrowband._engine.frames import row_bands as bands

    same(first, combine(frames, mem_limit=3e4, workers=3, **kwargs))
    assert seen[0] < 10


def test_another_process_changes_no_bit(files):
    with ProcessPoolExecutor(1) as executor:
        a = combine(files, method="median", executor=executor)
    same(a, combine(files, method="median"))


# ------------------------------------------------------------------ ccdproc


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    dtype=st.sampled_from([np.uint16, np.float32, np.float64]),
    method=st.sampled_from(["median", "average", "sum"]),
    clip=st.sampled_from(["none", "median", "mean", "extrema", "minmax"]),
    scaled=st.booleans(),
    masked=st.booleans(),
)
def test_equal_to_ccdproc_where_that_is_right(seed, n, dtype, method, clip, scaled, masked):
    rng = np.random.default_rng(seed)
    frames = [CCDData(rng.normal(500, 20, (5, 6)).astype(dtype), unit="adu") for _ in range(n)]
    kwargs = {"method": method}
    if clip == "median":
        kwargs |= {
            "sigma_clip": True,
            "sigma_clip_func": "median",
            "sigma_clip_dev_func": "mad_std",
        }
    elif clip == "mean":
        kwargs |= {"sigma_clip": True, "sigma_clip_func": "mean", "sigma_clip_dev_func": "std"}
        kwargs |= {"sigma_clip_low_thresh": 1.7, "sigma_clip_high_thresh": 1.9}
    elif clip == "extrema" and n > 3:
        kwargs |= {"clip_extrema": True, "nlow": 1, "nhigh": 2}
    elif clip == "minmax":
        kwargs |= {"minmax_clip": True, "minmax_clip_min": 480, "minmax_clip_max": 510}
    # ccdproc clips without regard to masks and scaling, so only one of the three at a time.
    if clip == "none":
        if scaled:
            kwargs["scale"] = rng.uniform(0.5, 2, n)
        if masked:
            for frame in frames:
                frame.mask = rng.random(frame.shape) < 0.3
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        theirs = ccdproc.combine([f.copy() for f in frames], **kwargs)
    ours = combine(frames, dtype=np.float64, **kwargs)
    empty = np.zeros(ours.shape, bool) if ours.mask is None else ours.mask
    np.testing.assert_array_equal(empty, theirs.mask)
    if method == "median" and not scaled:
        np.testing.assert_array_equal(ours.data[~empty], theirs.data[~empty])
    else:
        np.testing.assert_allclose(ours.data[~empty], theirs.data[~empty], rtol=1e-6)


def test_weighted_average_of_masked_frames():
    # ccdproc 2.5 gives 5: a masked pixel's weight counts there.
    frames = [CCDData(np.array([[v]]), unit="adu") for v in (20.0, 1e5)]
    frames[1].mask = np.array([[True]])
    result = combine(frames, weights=np.array([1.0, 3.0]))
    assert result.data[0, 0] == 20


def test_clipping_sees_neither_masked_nor_unscaled_values():
    values = [10.0, 10.1, 9.9, 10.05, 9.95, 30.0, 1e5]
    frames = [CCDData(np.array([[v]]), unit="adu") for v in values]
    frames[-1].mask = np.array([[True]])
    scale = np.array([1.0, 1, 1, 1, 1, 0.5, 1])
    result, count = combine(frames, scale=scale, sigma_clip=True, return_count=True)
    assert count[0, 0] == 5
    assert result.data[0, 0] == pytest.approx(10)


def test_nan_in_one_frame_masks_nothing():
    frames = [CCDData(np.full((2, 2), v), unit="adu") for v in (1.0, 2.0, 6.0)]
    frames[0].data[0, 0] = np.nan
    result = combine(
        frames, sigma_clip=True, sigma_clip_func=np.ma.mean, sigma_clip_dev_func=np.ma.std
    )
    assert not result.mask.any()
    assert result.data[0, 0] == 4
    assert result.data[1, 1] == 3


def test_maxiters_rejects_what_one_pass_hides():
    x = np.array([10, 11, 9, 10, 12, 8, 10, 40, 2000], float)[:, None]
    first = reduce_tile(x, rejection=Rejection(sigma=(2, 2), deviation="std"))
    more = reduce_tile(x, rejection=Rejection(sigma=(2, 2), deviation="std", maxiters=None))
    assert first.count[0] == 8
    assert more.count[0] == 7


def test_equal_values_at_a_bound_share_what_is_kept():
    # One of the two fives goes; which one is not defined, so both count by half.
    x = np.array([[1], [2], [5], [5]], np.uint16)
    weights = np.array([1.0, 1.0, 3.0, 1.0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        got = reduce_tile(x[order], rejection=Rejection(extrema=(0, 1)), weights=weights[order])
        assert got.value[0] == pytest.approx((1 + 2 + 5 * 1.5 + 5 * 0.5) / (1 + 1 + 2))
        assert got.count[0] == 3


# ------------------------------------------------------------------ masks and errors


@pytest.mark.parametrize("method", ["median", "average", "sum"])
@pytest.mark.parametrize("kwargs", [{}, {"sigma_clip": True}, {"weights": [1, 2, 3]}])
def test_pixel_without_values_is_masked_and_nan(method, kwargs):
    if "weights" in kwargs and method == "median":
        return
    frames = [CCDData(np.arange(6.0).reshape(2, 3), unit="adu") for _ in range(3)]
    for frame in frames:
        frame.mask = np.zeros((2, 3), bool)
        frame.mask[1, 2] = True
    result, count = combine(frames, method=method, return_count=True, **kwargs)
    assert np.isnan(result.data[1, 2])
    assert np.isnan(result.uncertainty.array[1, 2])
    np.testing.assert_array_equal(result.mask, frames[0].mask)
    np.testing.assert_array_equal(count, np.where(frames[0].mask, 0, 3))


def scatter_pull(method, n, rejection=None, **kwargs):
    rng = np.random.default_rng(11)
    x = rng.normal(0, 5, (n, 60000)).astype(np.float32)
    got = reduce_tile(x, method=method, rejection=rejection, **kwargs)
    return got.value.std() / np.sqrt(got.variance.mean())


def test_error_from_scatter_is_that_of_the_mean():
    for n in (2, 3, 12, 40):
        assert scatter_pull("average", n) == pytest.approx(1, abs=0.01)
        assert scatter_pull("sum", n) == pytest.approx(1, abs=0.01)


def test_error_of_a_median_is_right_for_two_and_for_many():
    assert scatter_pull("median", 2) == pytest.approx(1, abs=0.01)
    assert scatter_pull("median", 101) == pytest.approx(1, abs=0.01)
    assert 0.92 < scatter_pull("median", 5) < 0.97  # cautious for few, as documented


def test_propagated_error_with_masks_and_weights(rng):
    sigma = np.array([1.0, 2, 3, 4])
    frames = []
    for s in sigma:
        ccd = CCDData(rng.normal(0, s, (150, 150)).astype(np.float32), unit="adu")
        ccd.uncertainty = StdDevUncertainty(np.full(ccd.shape, s, np.float32))
        ccd.mask = rng.random(ccd.shape) < 0.3
        frames.append(ccd)
    for kwargs in ({}, {"weights": sigma**-2}, {"method": "sum"}, {"scale": [1, 2, 1, 0.5]}):
        result = combine(frames, **kwargs)
        good = ~result.mask
        pull = result.data[good] / result.uncertainty.array[good]
        assert pull.std() == pytest.approx(1, abs=0.02)


def test_one_value_has_no_scatter():
    frames = [CCDData(np.ones((2, 2)), unit="adu") for _ in range(2)]
    assert combine(frames[:1]).uncertainty is None
    frames[0].mask = np.array([[True, False], [False, False]])
    sigma = combine(frames).uncertainty.array
    assert np.isnan(sigma[0, 0])
    assert sigma[1, 1] == 0


def test_propagated_or_scatter(rng):
    frames = [CCDData(rng.normal(0, 1, (4, 4)), unit="adu") for _ in range(3)]
    with pytest.raises(InputError, match="frame 0: has no uncertainty"):
        combine(frames, uncertainty="propagated")
    for frame in frames:
        frame.uncertainty = StdDevUncertainty(np.full((4, 4), 3.0))
    assert combine(frames).uncertainty.array[0, 0] == pytest.approx(3 / np.sqrt(3))
    scatter = np.std([f.data for f in frames], axis=0, ddof=1) / np.sqrt(3)
    result = combine(frames, uncertainty="scatter", dtype=np.float64)
    np.testing.assert_allclose(result.uncertainty.array, scatter)
    assert combine(frames, uncertainty=None).uncertainty is None


# ------------------------------------------------------------------ files and headers


def test_files_of_every_kind_give_the_same(files, tmp_path):
    expected = np.median([fits.getdata(path) for path in files], axis=0)
    packed = list(files)
    for i, opener, suffix in ((1, gzip.open, ".gz"), (2, bz2.open, ".bz2")):
        packed[i] = tmp_path / f"f{i}.fits{suffix}"
        with opener(packed[i], "wb") as file:
            file.write(files[i].read_bytes())
    packed[3] = tmp_path / "f3.fits.fz"
    tiled = fits.CompImageHDU(fits.getdata(files[3]), fits.getheader(files[3]))
    fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(packed[3])
    packed[4] = tmp_path / "float.fits"
    fits.writeto(packed[4], fits.getdata(files[4]).astype(">f4"), fits.getheader(files[4]))
    packed[5] = CCDData.read(files[5])
    result = combine(packed, method="median")
    np.testing.assert_array_equal(result.data, expected)
    assert result.data.dtype == np.float32


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_types_on_disk(tmp_path, dtype):
    values = np.array([[[0, 200]], [[3, 100]], [[5, 101]], [[6, 7]]]).astype(dtype)
    paths = [tmp_path / f"{i}.fits" for i in range(4)]
    for path, value in zip(paths, values, strict=True):
        fits.writeto(path, value)
    result = combine(paths, method="median", unit="adu")
    np.testing.assert_array_equal(result.data, [[4, 100.5]])
    wide = np.dtype(dtype).itemsize > 4 or dtype in ("i4", "u4")
    assert result.data.dtype == (np.float64 if wide else np.float32)


def test_digits_of_wide_integers_are_kept(tmp_path):
    paths = [tmp_path / f"{i}.fits" for i in range(3)]
    for i, path in enumerate(paths):
        fits.writeto(path, np.array([[2**30 + i]], np.int32))
    assert combine(paths, method="median", unit="adu").data[0, 0] == 2**30 + 1


def test_header(files):
    result = combine(files, method="median")
    assert result.header["NCOMBINE"] == 7
    assert result.header["TEXPTIME"] == 420
    assert result.header["EXPTIME"] == 60
    assert result.header["OBJECT"] == "frame 0"
    assert "BZERO" not in result.header
    assert combine(files, method="sum").header["EXPTIME"] == 420


def test_exposures_that_differ_or_are_absent(files):
    fits.setval(files[0], "EXPTIME", value=130.0)
    result = combine(files)
    assert result.header["TEXPTIME"] == 490
    assert result.header["EXPTIME"] == 70
    fits.setval(files[3], "EXPTIME", value=-1)
    assert "TEXPTIME" not in combine(files).header
    fits.delval(files[3], "EXPTIME")
    assert "TEXPTIME" not in combine(files).header


def test_output_file(files, tmp_path):
    out = tmp_path / "out.fits"
    result, count = combine(files, out, method="median", return_count=True)
    again = CCDData.read(out)
    np.testing.assert_array_equal(again.data, result.data)
    np.testing.assert_array_equal(again.uncertainty.array, result.uncertainty.array)
    np.testing.assert_array_equal(fits.getdata(out, "NEXP"), count)
    with pytest.raises(ProductError, match="already exists"):
        combine(files, out)
    combine(files, out, overwrite_output=True)
    with pytest.raises(ProductError, match="is one of the frames"):
        combine(files, files[2], overwrite_output=True)


def test_inputs_are_not_changed(files):
    frames = [CCDData.read(path) for path in files]
    before = [(f.data.copy(), f.header.tostring()) for f in frames]
    combine(frames, sigma_clip=True, scale=np.full(7, 2.0))
    for frame, (data, header) in zip(frames, before, strict=True):
        np.testing.assert_array_equal(frame.data, data)
        assert frame.header.tostring() == header


def test_scale_by_a_function(files):
    result = combine(files, scale=lambda image: 1000 / np.median(image))
    stack_ = np.array([fits.getdata(path).astype(float) for path in files])
    stack_ *= 1000 / np.median(stack_, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(result.data, stack_.mean(axis=0), rtol=1e-6)


def test_paths_with_commas_between(files):
    same(combine(",".join(map(str, files))), combine(files))


def test_open_files_do_not_add_up(tmp_path):
    resource = pytest.importorskip("resource")
    paths = [tmp_path / f"{i:03d}.fits" for i in range(150)]
    for i, path in enumerate(paths):
        fits.writeto(path, np.full((8, 8), i, np.int16))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 16, hard))
    try:
        result = combine(paths, method="median", unit="adu")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (result.data == 74.5).all()


def test_every_row_is_read_once(files, monkeypatch):
    read = []
    original = stack.FitsFrame.read
    stored = type(FitsFrame(files[0]).image).read_stored

    def counted(self, rows):
        read.append((id(self), rows.start, rows.stop))
        return stored(self, rows)

    monkeypatch.setattr(type(FitsFrame(files[0]).image), "read_stored", counted)
    assert original is stack.FitsFrame.read
    combine(files, method="median", mem_limit=1e5)
    assert len(read) == len(set(read)) > 7
    rows = sum(stop - start for _, start, stop in read)
    assert rows == 7 * 60


# ------------------------------------------------------------------ bad input


def test_nothing_to_combine():
    with pytest.raises(InputError, match="no frames"):
        combine([])
    with pytest.raises(InputError, match="no list of images"):
        combine(CCDData(np.ones((2, 2)), unit="adu"))


def test_frames_that_do_not_fit(files):
    frames = [CCDData(np.ones((2, 2)), unit="adu"), CCDData(np.ones((2, 3)), unit="adu")]
    with pytest.raises(InputError, match=r"frame 1 is \(2, 3\)"):
        combine(frames)
    frames[1] = CCDData(np.ones((2, 2)), unit="electron")
    with pytest.raises(InputError, match="frame 1 is in electron"):
        combine(frames)
    fits.delval(files[1], "BUNIT")
    with pytest.raises(InputError, match=r"f1\.fits: has no BUNIT"):
        combine(files)


def test_damaged_files(files, tmp_path):
    with open(files[2], "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match=r"f2\.fits: is truncated"):
        combine(files)
    fits.PrimaryHDU().writeto(files[2], overwrite=True)
    with pytest.raises(InputError, match=r"f2\.fits: holds no image"):
        combine(files)
    files[2].unlink()
    with pytest.raises(InputError, match=r"f2\.fits: does not exist"):
        combine(files)


@pytest.mark.parametrize("harm", ["unlink", "truncate"])
def test_file_that_goes_half_way(files, harm):
    frames = [FitsFrame(path) for path in files]
    if harm == "unlink":
        files[4].unlink()
    else:
        os.truncate(files[4], 4000)
    with pytest.raises(InputError, match=r"f4\.fits"):
        combine(frames)


def test_uncertainty_that_comes_and_goes():
    class Moody(Frame):
        name, shape, unit, header = "moody", (40, 3), CCDData(1, unit="adu").unit, fits.Header()

        def read(self, rows):
            data = np.ones((rows.stop - rows.start, 3), np.float32)
            return Band(data, data if rows.start == 0 and rows.stop == 1 else None)

    with pytest.raises(InputError, match="moody: has an uncertainty in some rows only"):
        combine([Moody(), Moody()])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": [1, 2]}, "weights of shape"),
        ({"weights": [1, -2, 1, 1, 1, 1, 1]}, r"f1\.fits: its weight is negative"),
        ({"weights": [1, np.nan, 1, 1, 1, 1, 1]}, r"f1\.fits: its weight"),
        ({"weights": [0] * 7}, "all zero"),
        ({"weights": [1] * 7, "method": "median"}, "no meaning for a median"),
        ({"scale": [1, 2]}, "scale of shape"),
        ({"scale": [1, np.inf, 1, 1, 1, 1, 1]}, r"scale of f1\.fits"),
        ({"method": "mode"}, "method = 'mode'"),
        ({"sigma_clip_func": "mode"}, "sigma_clip_func = 'mode'"),
        ({"sigma_clip": True, "sigma_clip_low_thresh": -1}, "negative"),
        ({"clip_extrema": True, "nlow": 4, "nhigh": 3}, "leave nothing of 7"),
        ({"clip_extrema": True, "nlow": -1}, "must not be negative"),
        ({"maxiters": 0}, "maxiters"),
        ({"dtype": complex}, "dtype"),
    ],
)
def test_arguments_that_cannot_be_used(files, kwargs, message):
    with pytest.raises(InputError, match=message):
        combine(files, **kwargs)


# ------------------------------------------------------------------ a script written for ccdproc


def test_the_arguments_of_ccdproc(files, tmp_path):
    plain = combine(files)
    np.testing.assert_array_equal(combine(img_list=files).data, plain.data)
    median = combine(files, None, "median")
    np.testing.assert_array_equal(median.data, combine(files, method="median").data)
    collection = ccdproc.ImageFileCollection(files[0].parent, glob_include="f*.fits")
    np.testing.assert_array_equal(combine(collection).data, plain.data)
    assert isinstance(plain.mask, np.ndarray)
    assert combine(files, dtype=int).data.dtype == int


def test_an_extension_is_asked_for_by_name(tmp_path):
    paths = []
    for i in range(3):
        ccd = CCDData(np.full((4, 5), float(i)), unit="adu", mask=np.zeros((4, 5), bool))
        ccd.mask[0, i] = True
        hdul = ccd.to_hdu(hdu_mask="BAD")
        hdul.insert(1, fits.ImageHDU(np.full((4, 5), 10.0 * i), name="SCI"))
        paths.append(tmp_path / f"{i}.fits")
        hdul.writeto(paths[-1])
    result, count = combine(
        paths, hdu="SCI", hdu_mask="BAD", unit="adu", return_count=True, method="average"
    )
    assert result.data[2, 2] == 10
    assert count[0].tolist() == [2, 2, 2, 3, 3]


def test_functions_of_the_users_own(rng):
    frames = [CCDData(rng.normal(10, 1, (20, 30)), unit="adu") for _ in range(9)]
    frames[2].data[3, 4] = 1e3
    frames[5].mask = rng.random((20, 30)) < 0.1

    def spread(stack, axis):
        return np.nanmax(stack, axis=axis) - np.nanmin(stack, axis=axis)

    def middle(stack, axis):
        return np.nanpercentile(stack, 50, axis=axis)

    result, count = combine(
        frames, sigma_clip=True, sigma_clip_low_thresh=0.7, sigma_clip_high_thresh=0.7,
        sigma_clip_func=middle, sigma_clip_dev_func=spread, return_count=True,
        combine_uncertainty_function=spread,
    )  # fmt: skip
    stack = np.ma.array([f.data for f in frames], mask=np.zeros((9, 20, 30), bool))
    stack.mask[5] = frames[5].mask
    filled = stack.filled(np.nan)
    stack.mask |= abs(filled - middle(filled, 0)) > 0.7 * spread(filled, 0)
    np.testing.assert_array_equal(count, stack.count(axis=0))
    np.testing.assert_allclose(result.data, stack.mean(axis=0))
    expected = spread(stack.filled(np.nan), 0) / np.sqrt(count)
    np.testing.assert_allclose(result.uncertainty.array, expected)


def test_errors_are_those_that_scripts_catch(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        combine([tmp_path / "none.fits"])
    with pytest.raises(TypeError, match="no list of images"):
        combine(3)
    with pytest.raises(ValueError, match="method"):
        combine(files, method="mode")
    combine(files, tmp_path / "out.fits")
    with pytest.raises(OSError, match="already exists"):
        combine(files, tmp_path / "out.fits")


def test_a_unit_that_contradicts_the_frames_is_refused():
    frames = [CCDData(np.ones((2, 2)), unit="electron")] * 2
    with pytest.raises(InputError, match="is in electron, and unit = adu"):
        combine(frames, unit="adu")
