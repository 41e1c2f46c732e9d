"""The evidence lower bound against torch.distributions, its warm-up, and a VAE that learns digits."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from genray.models import MODELS
from genray.models.vae import MLPVAE, ConvVAE
from genray.objectives import Batch, Networks
from genray.objectives.elbo import ELBO
from genray.objectives.likelihoods import bernoulli_nll, gaussian_nll
from genray.objectives.regularisers import gaussian_kl
from genray.streams import Draws


def make_batch(images: Tensor, step: int = 0, samples_seen: int = 0) -> Batch:
    num = len(images)
    draws = Draws(seed=0, step=step, num_global=num, start=0, stop=num, device=torch.device("cpu"))
    labels = torch.zeros(num, dtype=torch.int64)
    return Batch(images=images, labels=labels, step=step, samples_seen=samples_seen, draws=draws)


def make_networks(model: Any) -> Networks:
    torch.manual_seed(0)
    networks = model.build((1, 8, 8), 10)
    return Networks(networks, networks)


def one_loss(objective: ELBO, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return objective.loss("vae", "all", networks, batch, objective.prepare(networks, batch))


def test_gaussian_kl_equals_that_of_torch_distributions() -> None:
    mu, logvar = torch.randn(6, 5), 3 * torch.randn(6, 5)
    posterior = distributions.Normal(mu, (0.5 * logvar).exp())
    expected = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected, rtol=1e-4, atol=1e-5)


def test_gaussian_kl_is_zero_at_the_prior() -> None:
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_gaussian_kl_near_the_prior_keeps_its_digits() -> None:
    logvar = torch.full((1, 1), 1e-3)
    exact = 0.5 * (math.expm1(1e-3) - 1e-3)  # naively in fp32: 0.5 * (1.0010005 - 1 - 0.001), a few per cent off
    assert gaussian_kl(torch.zeros(1, 1), logvar).item() == pytest.approx(exact, rel=2e-3, abs=1e-11)


def test_bernoulli_nll_equals_that_of_torch_distributions() -> None:
    logits, targets = 4 * torch.randn(6, 1, 8, 8), torch.randint(2, (6, 1, 8, 8)).float()
    expected = -distributions.Bernoulli(logits=logits).log_prob(targets).sum(dim=(1, 2, 3))
    torch.testing.assert_close(bernoulli_nll(logits, targets), expected)


def test_bernoulli_nll_and_its_gradient_hold_for_logits_of_any_size() -> None:
    logits = torch.tensor([-200.0, -30.0, -1e-4, 0.0, 3.0, 30.0, 200.0]).repeat(2).view(14, 1, 1, 1).requires_grad_()
    targets = torch.tensor([0.0, 1.0]).repeat_interleave(7).view(14, 1, 1, 1)
    exact = logits.detach().double().requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(exact, targets.double(), reduction="none")
    expected.sum().backward()
    found = bernoulli_nll(logits, targets)
    found.sum().backward()
    torch.testing.assert_close(found.double(), expected.flatten(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-6, atol=1e-7)


def test_gaussian_nll_equals_that_of_torch_distributions() -> None:
    means, targets = torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8)
    expected = -distributions.Normal(means, 0.2).log_prob(targets).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_nll(means, targets, 0.2), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_elbo_equals_a_monte_carlo_estimate_with_the_same_noise(likelihood: Any) -> None:
    objective, networks = ELBO(likelihood=likelihood, sigma=0.3), make_networks(MLPVAE(latent_dim=3))
    batch = make_batch(torch.rand(64, 1, 8, 8) * 2 - 1)
    _, metrics = one_loss(objective, networks, batch)
    vae: Any = networks.bare["vae"]
    inputs, seen = objective.prepare(networks, batch)
    torch.testing.assert_close(inputs, 2 * seen - 1)
    mu, logvar = vae.encode(inputs)
    posterior = distributions.Normal(mu, (0.5 * logvar).exp())
    logits = vae.decode(mu + (0.5 * logvar).exp() * batch.draws.normal("posterior", 3))
    pixels = (
        distributions.Bernoulli(logits=logits)
        if likelihood == "bernoulli"
        else distributions.Normal(torch.sigmoid(logits), 0.3)
    )
    kl = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum(dim=1)
    expected = (pixels.log_prob(seen).sum(dim=(1, 2, 3)) - kl).mean()
    torch.testing.assert_close(metrics["vae/elbo"], expected.detach())


@pytest.mark.parametrize(("samples_seen", "beta"), [(0, 0.0), (250, 1.0), (500, 2.0), (1000, 4.0), (9000, 4.0)])
def test_elbo_beta_rises_linearly_to_its_full_weight(samples_seen: int, beta: float) -> None:
    objective, networks = ELBO(beta=4.0, kl_warmup_samples=1000), make_networks(MLPVAE())
    loss, metrics = one_loss(objective, networks, make_batch(torch.rand(4, 1, 8, 8) * 2 - 1, samples_seen=samples_seen))
    assert metrics["vae/beta"].item() == beta
    torch.testing.assert_close(loss.detach(), metrics["vae/recon_loss"] + beta * metrics["vae/kl"])


def test_elbo_metric_is_the_bound_whatever_beta() -> None:
    networks, batch = make_networks(MLPVAE()), make_batch(torch.rand(4, 1, 8, 8) * 2 - 1)
    bounds = [one_loss(ELBO(beta=beta), networks, batch)[1]["vae/elbo"].item() for beta in (0.5, 1.0, 8.0)]
    assert bounds[0] == bounds[1] == bounds[2]


def test_elbo_without_warmup_does_not_log_beta() -> None:
    _, metrics = one_loss(ELBO(), make_networks(MLPVAE()), make_batch(torch.rand(4, 1, 8, 8) * 2 - 1))
    assert sorted(metrics) == ["vae/active_units", "vae/elbo", "vae/kl", "vae/loss", "vae/recon_loss"]


@pytest.mark.parametrize("used", [0, 1, 3])
def test_elbo_counts_latent_dimensions_whose_mean_follows_the_image(used: int) -> None:
    networks = make_networks(MLPVAE(latent_dim=5, hidden=16))
    head = networks.bare["vae"].encoder[-1]
    with torch.no_grad():
        head.weight[used:5] = 0  # the means come first
        head.weight[:used] *= 20
    _, metrics = one_loss(ELBO(), networks, make_batch(torch.rand(32, 1, 8, 8) * 2 - 1))
    assert metrics["vae/active_units"].item() == used


def test_elbo_observations_are_binary_with_the_greys_as_probabilities() -> None:
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).repeat(4096, 1, 1, 1)
    _, seen = ELBO().prepare(make_networks(MLPVAE()), make_batch(images))
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(seen.mean(dim=0), (images[0] + 1) / 2, atol=0.04, rtol=0)


@pytest.mark.parametrize("objective", [ELBO(binarize=False), ELBO(likelihood="gaussian")])
def test_elbo_observations_are_greys_unless_binarized(objective: ELBO) -> None:
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    inputs, seen = objective.prepare(make_networks(MLPVAE()), make_batch(images))
    torch.testing.assert_close(seen, (images + 1) / 2)
    assert torch.equal(inputs, images)


@pytest.mark.parametrize("model", [ConvVAE(width=4), MLPVAE(hidden=8)], ids=["conv", "mlp"])
@pytest.mark.parametrize("objective", [ELBO(), ELBO(kl_warmup_samples=10)], ids=["plain", "warm-up"])
def test_elbo_reaches_every_parameter(objective: ELBO, model: Any) -> None:
    networks = make_networks(model)
    loss, _ = one_loss(objective, networks, make_batch(torch.rand(4, 1, 8, 8) * 2 - 1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in networks.bare["vae"].parameters())


def test_elbo_in_bf16_stays_in_fp32_after_the_network() -> None:
    networks, batch = make_networks(ConvVAE(width=4)), make_batch(torch.rand(4, 1, 8, 8) * 2 - 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = one_loss(ELBO(), networks, batch)
    assert {value.dtype for value in (loss, *metrics.values())} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "has"), [("dcgan", "generator and discriminator"), ("resnet-classifier", "classifier")]
)
def test_elbo_refuses_models_of_other_modules(name: str, has: str) -> None:
    with pytest.raises(ValueError) as caught:
        ELBO().check(MODELS[name]())
    assert str(caught.value) == (
        f"objective elbo trains vae, and model {name} has {has}; choose model conv-vae or hierarchical-vae or mlp-vae"
    )


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"beta": -0.5}, "objective.beta=-0.5 must be at least 0"),
        ({"kl_warmup_samples": -1}, "objective.kl_warmup_samples=-1 must be at least 0"),
        ({"sigma": 0.0}, "objective.sigma=0.0 must be above 0, e.g. 0.1"),
    ],
)
def test_elbo_refuses_knobs_out_of_range(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ELBO(**knobs)
    assert str(caught.value) == message


@pytest.mark.parametrize("model", [ConvVAE(width=8), MLPVAE(hidden=64)], ids=["conv", "mlp"])
def test_elbo_of_digits_rises_by_training(model: Any) -> None:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    objective, networks = ELBO(), make_networks(model)
    optimizer = torch.optim.Adam(networks.bare["vae"].parameters(), 3e-3)
    bounds = []
    for step in range(120):
        loss, metrics = one_loss(objective, networks, make_batch(images[step * 64 % 1600 :][:64], step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bounds.append(metrics["vae/elbo"].item())
    assert bounds[0] < -40
    assert sum(bounds[-20:]) / 20 > -30
