import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from genray.errors import ProtocolError
from genray.evaluation.frechet import Moments, frechet_distance


def features(num, width, seed, *, shift=0.0, scale=1.0):
    """Correlated features far from zero mean, as ReLU features are."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    points = torch.randn(num, width, generator=source) @ mixing
    return scale * points.abs() + shift


def exact_moments(mean, covariance):
    count = 1001
    return Moments(count, torch.as_tensor(mean).double(), torch.as_tensor(covariance).double() * (count - 1))


def scipy_distance(a, b):
    """Heusel's formula with the matrix square root of another library."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real))


def distance(a, b):
    return frechet_distance(Moments.of(a), Moments.of(b))


def test_distance_of_normals_on_a_line_is_the_closed_form():
    # (m1 - m2)^2 + (s1 - s2)^2
    a, b = exact_moments([1.0], [[4.0]]), exact_moments([4.0], [[25.0]])
    assert frechet_distance(a, b) == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-14)


def test_distance_of_normals_with_diagonal_covariances_is_the_closed_form():
    a = exact_moments([0.0, 0.0, 1.0], torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    b = exact_moments([3.0, 0.0, 1.0], torch.diag(torch.tensor([16.0, 4.0, 1.0])))
    assert frechet_distance(a, b) == pytest.approx(9 + 9 + 0 + 4, rel=1e-14)


def test_distance_of_rotated_normals_is_the_closed_form_for_two_dimensions():
    # tr (A B)^(1/2) = sqrt(tr(A B) + 2 sqrt(det(A B))) for 2 x 2 matrices.
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=torch.float64)
    a = torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64))
    b = turn @ torch.diag(torch.tensor([4.0, 0.25], dtype=torch.float64)) @ turn.T
    product = a @ b
    cross = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = 10 + 4.25 - 2 * cross
    assert frechet_distance(exact_moments([0, 0], a), exact_moments([0, 0], b)) == pytest.approx(expected, rel=1e-12)


def test_distance_of_translated_features_is_the_squared_shift():
    a = features(500, 16, 1)
    assert distance(a.double(), a.double() + 0.5) == pytest.approx(16 * 0.25, rel=1e-9)


def test_distance_of_equal_sets_is_zero():
    a = features(2000, 64, 1)
    assert distance(a, a.clone()) < 1e-9 * float(Moments.of(a).covariance.trace())


def test_distance_of_equal_sets_with_fewer_images_than_features_is_zero():
    a = features(30, 64, 1)
    assert 0 <= distance(a, a.clone()) < 1e-6 * float(Moments.of(a).covariance.trace())


def test_distance_is_symmetric():
    a, b = features(700, 32, 1), features(900, 32, 2, shift=0.1)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)


def test_distance_does_not_depend_on_the_order_of_the_images():
    a, b = features(700, 32, 1), features(900, 32, 2)
    assert distance(a.flip(0), b) == pytest.approx(distance(a, b), rel=1e-10)


@pytest.mark.parametrize(("num", "width", "scale"), [(3000, 64, 1.3), (500, 128, 0.7), (2000, 96, 1.0)])
def test_distance_agrees_with_scipy_sqrtm(num, width, scale):
    a, b = features(num, width, 1), features(num, width, 2, shift=0.05, scale=scale)
    assert distance(a, b) == pytest.approx(scipy_distance(a, b), rel=1e-6)


class Given(nn.Module):
    """Takes features as if they were images (B, D, 1, 1)."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, images):
        return images.flatten(1)


@pytest.mark.parametrize(("num", "width"), [(2000, 64), (1000, 96)])
def test_distance_agrees_with_torchmetrics(num, width):
    a, b = features(num, width, 1), features(num, width, 2, shift=0.05, scale=1.2)
    oracle = FrechetInceptionDistance(feature=Given(width), normalize=True, input_img_size=(width, 1, 1))
    oracle.set_dtype(torch.float64)
    oracle.inception = Given(width)
    oracle.update(a[:, :, None, None].double(), real=True)
    oracle.update(b[:, :, None, None].double(), real=False)
    assert distance(a, b) == pytest.approx(float(oracle.compute()), rel=1e-6)


def test_distance_with_a_kept_root_is_the_same():
    a, b = Moments.of(features(700, 32, 1)), Moments.of(features(900, 32, 2))
    assert frechet_distance(a, b, a.root) == frechet_distance(a, b)


@pytest.mark.parametrize("num_shards", [2, 7])
def test_distance_is_the_same_however_the_features_are_sharded(num_shards):
    a, b = features(1000, 48, 1), features(1200, 48, 2, shift=0.05)
    whole = Moments.of(b)
    merged = Moments.of(b[:0])
    for shard in b.tensor_split(num_shards):
        merged = merged.merge(Moments.of(shard))
    reference = Moments.of(a)
    assert frechet_distance(reference, merged) == pytest.approx(frechet_distance(reference, whole), rel=1e-12)


def test_moments_of_uneven_shards_are_those_of_the_whole():
    a = features(1000, 24, 1, shift=1000.0)  # far from zero: sums of squares would cancel
    whole = Moments.of(a)
    for sizes in ([1, 999], [0, 500, 500], [333, 1, 1, 665]):
        parts = [Moments.of(part) for part in a.split(sizes)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        assert merged.count == 1000
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-8)


def test_moments_updated_by_batches_are_those_of_the_whole():
    a = features(1000, 24, 1)
    moments = Moments.of(a[:0])
    for batch in a.split(64):
        moments = moments.update(batch)
    torch.testing.assert_close(moments.covariance, Moments.of(a).covariance, rtol=1e-11, atol=1e-13)


def test_moments_give_the_covariance_of_numpy():
    a = features(300, 12, 1)
    np.testing.assert_allclose(Moments.of(a).covariance.numpy(), np.cov(a.double().numpy(), rowvar=False), rtol=1e-12)


def test_root_squared_is_the_covariance():
    moments = Moments.of(features(300, 12, 1))
    torch.testing.assert_close(moments.root @ moments.root, moments.covariance, rtol=1e-12, atol=1e-14)


def test_covariance_of_one_image_is_refused():
    with pytest.raises(ProtocolError, match=r"needs at least 2 images, got 1; raise eval\.num_samples"):
        distance(features(1, 4, 1), features(9, 4, 2))


def test_distance_between_features_of_two_widths_is_refused():
    with pytest.raises(ProtocolError, match="features are 4 and 5 wide, expected one width"):
        distance(features(9, 4, 1), features(9, 5, 2))
