"""Schedules and the EMA, by their closed forms."""

import copy

import pytest
import torch
from torch import nn

from genray import optim
from genray.config import Optim
from genray.ema import EMA


def test_warmup_rises_linearly_from_zero():
    settings = Optim(warmup_samples=100)
    assert [optim.lr_factor(settings, seen, 1000) for seen in (0, 50, 100)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedule_half_way(schedule, half):
    assert optim.lr_factor(Optim(schedule=schedule), 500, 1000) == pytest.approx(half)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_ends_at_zero(schedule):
    assert optim.lr_factor(Optim(schedule=schedule), 1000, 1000) == pytest.approx(0.0)


def test_discriminator_may_have_a_learning_rate_of_its_own():
    settings = Optim(lr=1e-4, discriminator_lr=4e-4)
    assert (settings.phase_lr("generator"), settings.phase_lr("discriminator")) == (1e-4, 4e-4)


def test_ema_after_one_half_life_is_half_way():
    source = nn.Linear(2, 2)
    average = EMA(source, half_life=1000)
    before = copy.deepcopy(source.weight.data)
    source.weight.data += 1.0
    average.update(num_images=1000, samples_seen=1_000_000)
    torch.testing.assert_close(average.module.weight, before + 0.5)


def test_ema_follows_faster_while_few_images_were_seen():
    average = EMA(nn.Linear(2, 2), half_life=1000)
    assert average.decay(64, samples_seen=640) == pytest.approx(0.5 ** (64 / 32))
    assert average.decay(64, samples_seen=10**9) == pytest.approx(0.5 ** (64 / 1000))


def test_ema_without_a_ramp_has_its_half_life_from_the_first_image():
    average = EMA(nn.Linear(2, 2), half_life=1000, ramp=None)
    assert average.decay(64, samples_seen=64) == pytest.approx(0.5 ** (64 / 1000))
    average.half_life = 0.0
    assert average.decay(64, samples_seen=64) == 0.0


def test_ema_copies_buffers():
    source = nn.BatchNorm1d(2)
    average = EMA(source, half_life=10)
    source.running_mean += 3.0
    average.update(1, 1000)
    assert torch.equal(average.module.running_mean, source.running_mean)


def test_non_finite_gradient_leaves_weights_and_moments_alone():
    module = nn.Linear(3, 3)
    optimizer = optim.build(module, Optim(lr=0.1), 0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in optim.state_tensors(optimizer)}
    weight = module.weight.detach().clone()
    module.weight.grad.fill_(torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(module.weight, weight)
    assert all(torch.equal(v, before[k]) for k, v in optim.state_tensors(optimizer))
