"""Copies are called copies, and honest samples are not."""

import pytest
import torch
from scipy.stats import mannwhitneyu

from genray.errors import ProtocolError
from genray.evaluation.distances import nearest
from genray.evaluation.memorisation import auth_pct, c_t, cell_centres, mann_whitney_z


def points(num, seed):
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed))


def measured(fakes):
    """AuthPct and C_T of fakes against 400 training and 300 held-out points of one normal distribution."""
    train, held_out = points(400, 1), points(300, 2)
    distance, place = nearest(fakes, train)
    centres = cell_centres(train, 4)
    cells = [nearest(x, centres)[1].flatten() for x in (fakes, held_out)]
    own = nearest(train, train, same=True)[0].flatten()
    pct = auth_pct(distance.flatten(), place.flatten(), own)
    return pct, c_t(distance.flatten(), cells[0], nearest(held_out, train)[0].flatten(), cells[1], 4)


def test_copy_of_the_training_set_is_called_memorised():
    pct, copying = measured(points(400, 1))
    assert pct == 0
    assert copying < -5


def test_training_set_with_a_little_noise_is_called_memorised():
    pct, copying = measured(points(400, 1) + 0.01 * points(400, 3))
    assert pct < 2
    assert copying < -5


def test_honest_samples_are_not_called_memorised():
    pct, copying = measured(points(400, 3))
    assert pct > 40
    assert abs(copying) < 3


def test_samples_far_away_have_a_positive_c_t():
    assert measured(points(400, 3) * 3)[1] > 3


def test_auth_pct_agrees_with_pairs_counted_by_hand():
    train, fakes = points(30, 1), points(20, 2)
    table, own = torch.cdist(fakes, train), torch.cdist(train, train).fill_diagonal_(torch.inf)
    authentic = sum(bool(own[row.argmin()].min() < row.min()) for row in table)
    distance, place = nearest(fakes, train)
    theirs = auth_pct(distance.flatten(), place.flatten(), nearest(train, train, same=True)[0].flatten())
    assert theirs == pytest.approx(100 * authentic / 20)


def test_mann_whitney_z_agrees_with_scipy_also_under_ties():
    a, b = points(40, 1)[:, 0].round(decimals=1), points(25, 2)[:, 0].round(decimals=1)
    u = mannwhitneyu(a.double().numpy(), b.double().numpy()).statistic
    expected = (u - 40 * 25 / 2) / (40 * 25 * 66 / 12) ** 0.5
    assert mann_whitney_z(a, b) == pytest.approx(expected, rel=1e-9)


def test_c_t_weighs_cells_by_their_held_out_reals():
    far, near = torch.ones(20), torch.zeros(20)
    reals = torch.tensor([0.5] * 10 + [0.5] * 30)
    value = c_t(torch.cat([far, near]), torch.tensor([0] * 20 + [1] * 20), reals, torch.tensor([0] * 10 + [1] * 30), 2)
    expected = (mann_whitney_z(far, reals[:10]) * 10 + mann_whitney_z(near, reals[10:]) * 30) / 40
    assert value == pytest.approx(expected)


def test_c_t_of_too_few_fakes_is_refused():
    with pytest.raises(ProtocolError, match="no cell has 20 of them"):
        c_t(torch.ones(19), torch.zeros(19).long(), torch.ones(9), torch.zeros(9).long(), 1)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_copying_measured_in_shards_is_the_same_number(num_shards):
    fakes, train = torch.cat([points(100, 3), points(50, 1)]), points(400, 1)
    parts = [nearest(shard, train) for shard in fakes.tensor_split(num_shards)]
    distance, place = (torch.cat([part[i] for part in parts]).flatten() for i in (0, 1))
    own = nearest(train, train, same=True)[0].flatten()
    whole = nearest(fakes, train)
    assert auth_pct(distance, place, own) == auth_pct(whole[0].flatten(), whole[1].flatten(), own)
    zeros = torch.zeros(150, dtype=torch.int64), torch.zeros(300, dtype=torch.int64)
    held_out = nearest(points(300, 2), train)[0].flatten()
    values = [c_t(d.flatten(), zeros[0], held_out, zeros[1], 1) for d in (distance, whole[0])]
    assert values[0] == values[1]


def test_copy_of_a_training_image_that_occurs_twice_is_a_copy():
    train = points(10, 1).repeat(2, 1)
    own = nearest(train, train, same=True)[0].flatten()
    distance, place = nearest(train[:1], train)
    assert auth_pct(distance.flatten(), place.flatten(), own) == 0
