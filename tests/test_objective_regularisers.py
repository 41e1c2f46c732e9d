"""Charges on the posterior against sums written out, on two ranks, and in short runs on digits."""

import math
from typing import Any

import pytest
import torch
from test_objective_elbo import make_batch, make_networks, one_loss
from torch import Tensor, distributions

from genray.models.vae import MLPVAE
from genray.objectives import Networks
from genray.objectives.elbo import ELBO
from genray.objectives.regularisers import (
    KERNEL_SCALES,
    distance_to_capacity,
    squared_mmd,
    total_correlation,
    with_free_bits,
)


def test_total_correlation_equals_its_definition_over_the_batch() -> None:
    z, mu, logvar = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)
    total = 0.0
    for row in z:
        density = torch.stack(
            [distributions.Normal(m, (v / 2).exp()).log_prob(row).exp() for m, v in zip(mu, logvar, strict=True)]
        )
        total += density.prod(dim=1).mean().log().item() - sum(density[:, d].mean().log().item() for d in range(3))
    assert total_correlation(z, mu, logvar).item() == pytest.approx(total / 5, rel=1e-4)


def test_total_correlation_of_one_shared_dimension_exceeds_that_of_independent_ones() -> None:
    mu = torch.randn(256, 1)
    shared, apart = mu.expand(-1, 2), torch.randn(256, 2)
    narrow = torch.full((256, 2), -4.0)
    found = [total_correlation(m + 0.1 * torch.randn(256, 2), m, narrow).item() for m in (shared, apart)]
    assert found[0] > found[1] + 1


def test_squared_mmd_equals_its_sum_over_pairs() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3) + 1

    def kernel(a: Tensor, b: Tensor) -> float:
        gap = ((a - b) ** 2).sum().item()
        return sum(6 * s / (6 * s + gap) for s in KERNEL_SCALES)

    within = sum(kernel(a[i], a[j]) for a in (x, y) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel(a, b) for a in x for b in y) / 16
    assert squared_mmd(x, y).item() == pytest.approx(within - 2 * across, rel=1e-4)


def test_squared_mmd_of_draws_of_one_distribution_is_zero_on_average() -> None:
    found = torch.stack([squared_mmd(torch.randn(32, 2), torch.randn(32, 2)) for _ in range(300)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(300)


def test_free_bits_charge_and_move_only_dimensions_above_them() -> None:
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    charge = with_free_bits(kl, 0.5)
    charge.backward()
    assert charge.item() == 3.5
    assert kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]  # type: ignore[union-attr]


@pytest.mark.parametrize(("kl", "slope"), [(3.0, -1.0), (9.0, 1.0)])
def test_capacity_draws_the_kl_to_itself_from_both_sides(kl: float, slope: float) -> None:
    value = torch.tensor(kl, requires_grad=True)
    distance = distance_to_capacity(value, 5.0)
    distance.backward()
    assert (distance.item(), value.grad.item()) == (abs(kl - 5), slope)  # type: ignore[union-attr]


@pytest.mark.parametrize(("samples_seen", "nats"), [(0, 0.0), (50, 2.0), (100, 4.0), (900, 4.0)])
def test_capacity_rises_linearly_to_its_value(samples_seen: int, nats: float) -> None:
    assert ELBO(capacity=4.0, capacity_samples=100).capacity_at(samples_seen) == nats


def trained(objective: ELBO, model: Any = None, steps: int = 150) -> tuple[Networks, dict[str, float]]:
    """Networks after a short run on digits, and means of the metrics over its last 20 steps."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    networks = make_networks(model or MLPVAE(hidden=48, latent_dim=6))
    optimizer = torch.optim.Adam(networks.bare["vae"].parameters(), 3e-3)
    seen: list[dict[str, float]] = []
    for step in range(steps):
        loss, metrics = one_loss(objective, networks, make_batch(images[step * 64 % 1600 :][:64], step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append({name: value.item() for name, value in metrics.items()})
    last = seen[-20:]
    return networks, {name: sum(m[name] for m in last) / 20 for name in last[0]} | {"first loss": seen[0]["vae/loss"]}


def test_iwae_of_digits_ends_at_a_tighter_bound_than_the_elbo() -> None:
    plain, several = trained(ELBO())[1], trained(ELBO(bound="iwae", num_samples=8))[1]
    assert several["vae/loss"] < plain["vae/loss"] - 0.5


def test_capacity_of_digits_is_what_the_kl_settles_at() -> None:
    assert trained(ELBO(capacity=4.0, beta=20.0))[1]["vae/kl"] == pytest.approx(4, abs=0.5)


def test_mmd_of_digits_falls_where_it_is_charged() -> None:
    free, charged = trained(ELBO(beta=0.01))[1], trained(ELBO(beta=0.01, mmd=1e-9))[1]
    assert charged["vae/mmd"] > 0.05
    assert trained(ELBO(beta=0.01, mmd=50.0))[1]["vae/mmd"] < charged["vae/mmd"] / 2
    assert free["vae/recon_loss"] == pytest.approx(charged["vae/recon_loss"], rel=1e-3)


def test_total_correlation_of_digits_falls_where_it_is_charged() -> None:
    free = trained(ELBO(beta=0.2, total_correlation=1e-9))[1]["vae/total_correlation"]
    assert trained(ELBO(beta=0.2, total_correlation=5.0))[1]["vae/total_correlation"] < free - 0.3


@pytest.mark.parametrize("likelihood", ["logistic-mixture", "gaussian"])
def test_predicted_scales_of_digits_learn_where_pixels_are_certain(likelihood: Any) -> None:
    output: Any = "logistic-mixture" if likelihood == "logistic-mixture" else "scale"
    model = MLPVAE(hidden=48, latent_dim=6, output=output)
    found = trained(ELBO(likelihood=likelihood), model)[1]
    assert found["vae/loss"] < found["first loss"] - 30
