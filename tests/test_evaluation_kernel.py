import statistics

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from genray.errors import ProtocolError
from genray.evaluation.kernel import kernel_distances, polynomial_kernel, squared_mmd


def features(num, width, seed, shift=0.0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_of_one_pair_is_the_formula():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert float(polynomial_kernel(a, b)) == pytest.approx((11 / 2 + 1) ** 3)


def test_mmd_of_two_pairs_of_numbers_is_the_formula_by_hand():
    # k(x, y) = (x y + 1)^3: within {0, 1}: k(0, 1) = 1; within {2, 3}: k(2, 3) = 343; across: 1, 1, 27, 64.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert squared_mmd(a, b) == pytest.approx(1 + 343 - 2 * (1 + 1 + 27 + 64) / 4)


@pytest.mark.parametrize(("num", "width", "shift"), [(200, 32, 0.5), (500, 128, 0.1), (100, 8, 0.0)])
def test_mmd_agrees_with_torchmetrics(num, width, shift):
    a, b = features(num, width, 1), features(num, width, 2, shift)
    assert squared_mmd(a, b) == pytest.approx(float(poly_mmd(a.double(), b.double())), rel=1e-6)


def test_mmd_is_symmetric():
    a, b = features(100, 16, 1), features(150, 16, 2, 0.3)
    assert squared_mmd(a, b) == pytest.approx(squared_mmd(b, a), rel=1e-12)


def test_mmd_of_one_distribution_is_unbiased():
    values = [squared_mmd(features(40, 8, 2 * i), features(40, 8, 2 * i + 1)) for i in range(400)]
    error = statistics.stdev(values) / len(values) ** 0.5
    assert abs(statistics.fmean(values)) < 3 * error
    assert min(values) < 0


def test_mmd_grows_with_the_shift():
    a = features(300, 16, 1)
    values = [squared_mmd(a, features(300, 16, 2, shift)) for shift in (0.1, 0.3, 0.6, 1.0)]
    assert values == sorted(values)


def test_mmd_of_one_image_is_refused():
    with pytest.raises(ProtocolError, match="at least 2 images a set, got 1 and 9"):
        squared_mmd(features(1, 4, 1), features(9, 4, 2))


def test_kernel_distances_with_equal_seed_are_equal_and_otherwise_not():
    a, b = features(100, 8, 1), features(120, 8, 2)
    first = kernel_distances(a, b, seed=1, num_subsets=3, subset_size=50)
    assert first == kernel_distances(a, b, seed=1, num_subsets=3, subset_size=50)
    assert first != kernel_distances(a, b, seed=2, num_subsets=3, subset_size=50)


def test_kernel_distances_of_the_whole_sets_are_all_their_distance():
    a, b = features(60, 8, 1), features(60, 8, 2)
    distances = kernel_distances(a, b, seed=0, num_subsets=3, subset_size=60)
    assert distances == pytest.approx([squared_mmd(a, b)] * 3, rel=1e-10)


def test_kernel_distances_scatter_around_the_distance_of_the_whole():
    a, b = features(1000, 8, 1), features(1000, 8, 2, 0.5)
    distances = kernel_distances(a, b, seed=0, num_subsets=40, subset_size=100)
    error = statistics.stdev(distances) / 40**0.5
    assert abs(statistics.fmean(distances) - squared_mmd(a, b)) < 3 * error


@pytest.mark.parametrize("size", [1, 101])
def test_kernel_distances_of_subsets_that_do_not_fit_are_refused(size):
    with pytest.raises(ProtocolError, match=f"kid subsets of {size} images cannot be taken of 120 reals and 100 fakes"):
        kernel_distances(features(120, 4, 1), features(100, 4, 2), seed=0, subset_size=size)
