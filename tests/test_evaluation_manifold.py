"""Precision, recall, density, coverage and distances against brute force and known answers."""

import numpy as np
import pytest
import torch

from genray.errors import ProtocolError
from genray.evaluation import distances
from genray.evaluation.distances import distance_blocks, mean_pairwise_distance, nearest
from genray.evaluation.manifold import density_coverage, radii, share_inside


def points(num, seed, width=6, scale=1.0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) * scale + 10


def brute(reals, fakes, k):
    """Precision, recall, density and coverage, pair by pair in numpy."""
    reals, fakes = reals.double().numpy(), fakes.double().numpy()

    def between(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def reach(x):
        return np.sort(between(x, x), axis=1)[:, k]

    cross = between(reals, fakes)
    inside = cross < reach(reals)[:, None]
    precision = (cross <= reach(reals)[:, None]).any(0).mean()
    recall = (cross <= reach(fakes)[None]).any(1).mean()
    return precision, recall, inside.sum() / (k * len(fakes)), inside.any(1).mean()


def taken(reals, fakes, k, block_size=None):
    precision = share_inside(fakes, reals, radii(reals, k), block_size)
    recall = share_inside(reals, fakes, radii(fakes, k), block_size)
    return precision, recall, *density_coverage(reals, fakes, radii(reals, k), k, block_size)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_metrics_agree_with_brute_force(k):
    reals, fakes = points(90, 1), points(70, 2, scale=0.7)
    assert taken(reals, fakes, k) == pytest.approx(brute(reals, fakes, k), rel=1e-9)


def test_equal_sets_have_precision_recall_density_and_coverage_1():
    reals = points(100, 1)
    assert taken(reals, reals.clone(), 5) == (1, 1, 1, 1)


def test_one_repeated_image_has_recall_and_coverage_near_0():
    reals = points(100, 1)
    precision, recall, _, coverage = taken(reals, reals[:1].expand(80, -1), 5)
    assert precision == 1
    assert recall <= 0.01
    assert coverage <= 0.1


def test_far_away_fakes_have_precision_and_density_0():
    assert taken(points(50, 1), points(50, 2) + 1000, 3)[:3] == (0, 0, 0)


@pytest.mark.parametrize("num_shards", [2, 7])
def test_manifold_metrics_are_equal_over_any_number_of_blocks(num_shards):
    reals = points(91, 1)
    fakes = torch.cat([reals[:40], points(50, 2)])
    assert taken(reals, fakes, 3, -(-91 // num_shards)) == taken(reals, fakes, 3, 91)


def test_radius_of_fewer_than_k_and_one_images_is_refused():
    with pytest.raises(ProtocolError, match="the 5 nearest of 5 images are not defined, expected at least 6 images"):
        radii(points(5, 0), 5)


def test_copy_has_distance_0_far_from_the_origin():
    far = points(10, 0, width=2048) * 1e3
    assert nearest(far, far.clone())[0].tolist() == [[0.0]] * 10


def test_nearest_gives_places_in_order_of_distance():
    grid = torch.tensor([[0.0], [1.0], [3.0]])
    found, places = nearest(torch.tensor([[0.9]]), grid, 3)
    assert places.tolist() == [[1, 0, 2]]
    assert found[0].tolist() == pytest.approx([0.1, 0.9, 2.1], rel=1e-5)


def test_nearest_of_the_same_set_leaves_the_point_itself_out(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK_NUMBERS", 3)  # one row a block
    found, places = nearest(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [3.0]]), same=True)
    assert places.tolist() == [[1], [0], [1]]
    assert found.flatten().tolist() == [1, 1, 2]


def test_features_that_are_not_finite_are_refused_by_their_number():
    bad = points(5, 0)
    bad[2, 1] = torch.nan
    with pytest.raises(ProtocolError, match="1 of 5 features are not finite"):
        list(distance_blocks(points(5, 1), bad))


def test_features_of_two_widths_are_refused():
    with pytest.raises(ProtocolError, match="features are 6 and 7 wide, expected one width"):
        nearest(points(5, 0), points(5, 0, width=7))


def test_pairwise_distance_agrees_with_brute_force():
    features = points(40, 3)
    expected = torch.pdist(features.double()).mean()
    assert mean_pairwise_distance(features) == pytest.approx(float(expected), rel=1e-6)


def test_pairwise_distance_of_one_repeated_image_is_0():
    assert mean_pairwise_distance(points(1, 0).expand(9, -1)) == 0
