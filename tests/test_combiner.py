"""InverseVarianceCombiner: right where ccdproc's weighted mean is not, the same where it is."""

import ccdproc
import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty, VarianceUncertainty
from astropy.stats import median_absolute_deviation

from astro_narrowband import InverseVarianceCombiner, combine
from astro_narrowband.exceptions import InputError


def image(data, sigma, mask=None):
    data = np.asarray(data, float)
    uncertainty = StdDevUncertainty(np.broadcast_to(np.asarray(sigma, float), data.shape).copy())
    return CCDData(data, uncertainty=uncertainty, mask=mask, unit="adu")


@pytest.fixture
def images(rng):
    return [image(rng.normal(50, s, (6, 7)), s) for s in (1.0, 2.0, 3.0, 1.5, 2.5)]


def test_is_a_combiner_and_gives_plain_ccddata(images):
    combiner = InverseVarianceCombiner(images)
    assert isinstance(combiner, ccdproc.Combiner)
    result = combiner.average_combine()
    assert type(result) is CCDData
    assert result.unit == "adu"
    assert result.meta["NCOMBINE"] == 5


def test_weights_of_masked_pixels_do_not_count():
    # ccdproc 2.5 says 5 here: it divides by the weight of the masked pixel too.
    mask = np.array([[True]])
    combiner = InverseVarianceCombiner([image([[20.0]], 1), image([[1e5]], 1, mask)])
    combiner.weights = np.array([1.0, 3.0])
    result = combiner.average_combine()
    assert result.data[0, 0] == 20
    assert result.uncertainty.array[0, 0] == 1


def test_inverse_variance_mean_and_its_uncertainty(images):
    result = InverseVarianceCombiner(images).average_combine()
    w = np.array([i.uncertainty.array[0, 0] ** -2.0 for i in images])
    expected = np.tensordot(w, [i.data for i in images], 1) / w.sum()
    np.testing.assert_allclose(result.data, expected, rtol=1e-12)
    np.testing.assert_allclose(result.uncertainty.array, w.sum() ** -0.5, rtol=1e-6)


def test_any_class_of_uncertainty(images):
    other = [
        CCDData(i.data, uncertainty=i.uncertainty.represent_as(VarianceUncertainty), unit="adu")
        for i in images
    ]
    a, b = (InverseVarianceCombiner(x).average_combine() for x in (images, other))
    np.testing.assert_allclose(a.data, b.data, rtol=1e-6)


@pytest.mark.parametrize("method", ["average_combine", "median_combine", "sum_combine"])
def test_values_are_those_of_ccdproc_without_masks(images, method):
    ours = getattr(InverseVarianceCombiner(images, weighting=None), method)()
    theirs = getattr(ccdproc.Combiner(images), method)()
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-12)


def test_clipping_and_scaling_are_ccdprocs(images):
    images[2].data[3, 3] = 1e6
    ours, theirs = InverseVarianceCombiner(images, weighting=None), ccdproc.Combiner(images)
    for combiner in (ours, theirs):
        combiner.sigma_clipping(3, 3, func="median", dev_func="mad_std")
        combiner.scaling = [1.0, 2.0, 1.0, 0.5, 1.0]
    np.testing.assert_allclose(
        ours.average_combine().data, theirs.average_combine().data, rtol=1e-12
    )
    # The rejected value is not in the error either: it is that of the four others.
    s = np.array([1.0, 2.0, 3.0, 1.5, 2.5]) * [1.0, 2.0, 1.0, 0.5, 1.0]
    kept = ~np.ma.getmaskarray(ours.data_arr)[:, 3, 3]
    assert not kept[2]
    expected = np.sqrt((s[kept] ** 2).sum()) / kept.sum()
    assert ours.average_combine().uncertainty.array[3, 3] == pytest.approx(expected)


def test_scaling_is_not_ignored_with_weights():
    combiner = InverseVarianceCombiner([image([[10.0]], 1), image([[20.0]], 1)])
    combiner.weights = np.array([1.0, 1.0])
    combiner.scaling = [2.0, 1.0]
    result = combiner.average_combine()
    assert result.data[0, 0] == 20
    assert result.uncertainty.array[0, 0] == pytest.approx(np.sqrt(5) / 2)


def test_pull_is_one_with_masks_and_weights(rng):
    sigma = np.array([1.0, 2.0, 4.0])
    stack = [image(rng.normal(0, s, (100, 100)), s, rng.random((100, 100)) < 0.2) for s in sigma]
    result = InverseVarianceCombiner(stack).average_combine()
    good = ~result.mask
    pull = result.data[good] / result.uncertainty.array[good]
    assert 0.98 < pull.std() < 1.02
    assert result.mask.any()
    assert np.isnan(result.data[result.mask]).all()


def test_pixel_weights(rng):
    sigma = rng.uniform(1, 3, (4, 5, 5))
    stack = [image(rng.normal(9, s), s) for s in sigma]
    result = InverseVarianceCombiner(stack, weighting="pixel").average_combine()
    np.testing.assert_allclose(
        result.uncertainty.array, (sigma**-2.0).sum(axis=0) ** -0.5, rtol=1e-6
    )


def test_own_functions_are_ccdprocs(images):
    ours, theirs = InverseVarianceCombiner(images), ccdproc.Combiner(images)
    for combiner in (ours, theirs):
        combiner.weights = np.ones(5)
    a = ours.average_combine(uncertainty_func=np.ma.std)
    b = theirs.average_combine(uncertainty_func=np.ma.std)
    np.testing.assert_array_equal(a.uncertainty.array, b.uncertainty.array)
    a = ours.median_combine(median_func=np.ma.max, uncertainty_func=median_absolute_deviation)
    np.testing.assert_array_equal(a.data, np.max([i.data for i in images], axis=0))


def test_image_without_uncertainty_is_named(images):
    images[1].uncertainty = None
    with pytest.raises(InputError, match="image 1: has no uncertainty"):
        InverseVarianceCombiner(images)


def test_image_without_any_variance_is_named(images):
    images[3].uncertainty.array[:] = np.nan
    with pytest.raises(InputError, match="image 3: has no pixel"):
        InverseVarianceCombiner(images).average_combine()


def test_an_image_that_is_masked_everywhere_does_not_count(images):
    without = InverseVarianceCombiner(images[:3] + images[4:]).average_combine()
    images[3].mask = np.ones((6, 7), bool)
    result = InverseVarianceCombiner(images).average_combine()
    np.testing.assert_allclose(result.data, without.data)
    np.testing.assert_allclose(result.uncertainty.array, without.uncertainty.array)


def test_weights_follow_the_scaled_variance():
    combiner = InverseVarianceCombiner([image([[100.0]], 5), image([[10.0]], 5)])
    combiner.scaling = [1, 10]
    result = combiner.average_combine()
    # The second image has a sigma of 50 where it is scaled: 1 / sqrt(1/25 + 1/2500).
    np.testing.assert_allclose(result.uncertainty.array, 4.975, atol=1e-3)


@pytest.mark.parametrize("shape", [(40,), (3, 8, 9)])
def test_images_of_any_number_of_dimensions(shape):
    images = [image(np.full(shape, value), sigma) for value, sigma in ((10.0, 1), (20.0, 2))]
    result = InverseVarianceCombiner(images).average_combine()
    np.testing.assert_allclose(result.data, np.full(shape, 12.0))
    np.testing.assert_allclose(result.uncertainty.array, np.full(shape, 0.8**0.5))


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_units_of_any_size(size):
    images = [image(np.full((4, 5), 10 * size), s * size) for s in (1.0, 2.0)]
    weighted, mean = InverseVarianceCombiner(images).average_combine(), combine(images)
    np.testing.assert_allclose(weighted.uncertainty.array / size, 0.8**0.5, rtol=1e-6)
    np.testing.assert_allclose(mean.uncertainty.array / size, 5**0.5 / 2, rtol=1e-6)


def test_without_uncertainties_it_is_the_scatter(rng):
    images = [CCDData(rng.normal(10, 3, (50, 60)), unit="adu") for _ in range(5)]
    result = InverseVarianceCombiner(images).average_combine()
    assert np.mean(result.uncertainty.array**2) == pytest.approx(9 / 5, rel=0.05)


def test_the_own_unit_of_an_uncertainty_is_converted(images):
    for one in images:
        one.unit, one.uncertainty = u.electron / u.s, StdDevUncertainty(np.full((6, 7), 60.0))
        one.uncertainty.unit = u.electron / u.min
    result = InverseVarianceCombiner(images).average_combine()
    np.testing.assert_allclose(result.uncertainty.array, 0.2**0.5)
