"""Bounds of several samples: against torch.distributions, each other, and their estimators' gradients."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_objective_elbo import make_batch, make_networks, one_loss
from torch import Tensor, distributions

from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.vae import MLPVAE
from genray.objectives.bounds import combined_bound, importance_bound
from genray.objectives.elbo import ELBO

MODEL = MLPVAE(latent_dim=3, hidden=16)


def wide_networks() -> Any:
    """Networks whose posteriors are far from the prior, so that importance weights differ."""
    networks = make_networks(MODEL)
    with torch.no_grad():
        networks.bare["vae"].encoder[-1].weight.mul_(8)
        networks.bare["vae"].decoder[0].weight.mul_(8)
    return networks


def gradients(objective: ELBO) -> dict[str, Tensor]:
    networks = wide_networks()
    loss, _ = one_loss(objective, networks, make_batch(torch.rand(6, 1, 8, 8, generator=torch.manual_seed(1)) * 2 - 1))
    loss.backward()
    return {name: p.grad for name, p in networks.bare["vae"].named_parameters()}  # type: ignore[misc]


def test_iwae_equals_the_mean_weight_of_torch_distributions() -> None:
    networks, batch = wide_networks(), make_batch(torch.rand(6, 1, 8, 8) * 2 - 1)
    objective = ELBO(bound="iwae", num_samples=5, binarize=False)
    loss, _ = one_loss(objective, networks, batch)
    vae: Any = networks.bare["vae"]
    mu, logvar = vae.encode(batch.images)
    posterior, noise = distributions.Normal(mu, (0.5 * logvar).exp()), batch.draws.normal("posterior", 5, 3)
    weights = 0
    for k in range(5):
        z = mu + (0.5 * logvar).exp() * noise[:, k]
        pixels = distributions.Bernoulli(logits=vae.decode(z), validate_args=False)
        joint = pixels.log_prob((batch.images + 1) / 2).sum(dim=(1, 2, 3))
        joint = joint + distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - posterior.log_prob(z).sum(1)
        weights = weights + joint.double().exp() / 5
    torch.testing.assert_close(loss.double(), -torch.as_tensor(weights).log().mean(), rtol=1e-5, atol=1e-4)


def test_iwae_with_one_sample_in_each_group_is_the_mean_log_weight() -> None:
    log_weights = 9 * torch.randn(4, 6, 1)
    torch.testing.assert_close(importance_bound(log_weights), log_weights.mean(dim=(1, 2)))


def test_iwae_of_more_samples_in_a_group_is_tighter() -> None:
    log_weights = 3 * torch.randn(4096, 16)
    bounds = [importance_bound(log_weights.view(4096, 16 // k, k)).mean().item() for k in (1, 4, 16)]
    assert bounds[0] + 1 < bounds[1] < bounds[2] - 1
    assert bounds[2] < 9 / 2  # log of the mean of exp(N(0, 3))


@pytest.mark.parametrize(("share", "expected"), [(1.0, -0.5), (0.0, math.log((1 + math.exp(-1)) / 2))])
def test_ciwae_goes_from_iwae_to_the_elbo(share: float, expected: float) -> None:
    assert combined_bound(torch.tensor([[[0.0, -1.0]]]), share).item() == pytest.approx(expected)


def test_piwae_trains_the_encoder_as_miwae_and_the_decoder_as_iwae() -> None:
    partial = gradients(ELBO(bound="piwae", num_groups=3, num_samples=4))
    encoder = gradients(ELBO(bound="iwae", num_groups=3, num_samples=4))
    decoder = gradients(ELBO(bound="iwae", num_samples=12))
    for name, gradient in partial.items():
        expected, other = (encoder, decoder) if name.startswith("encoder") else (decoder, encoder)
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=2e-4)
        assert (gradient - other[name]).abs().max() > 5e-3


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_dreg_has_iwae_s_value_and_decoder_gradient_and_its_encoder_gradient_in_the_mean(beta: float) -> None:
    images = torch.rand(1, 1, 8, 8, generator=torch.manual_seed(1)) * 2 - 1
    found: dict[str, list[Tensor]] = {}
    for estimator in ("pathwise", "dreg"):
        objective = ELBO(bound="iwae", num_samples=8, estimator=estimator, beta=beta, binarize=False)  # type: ignore[arg-type]
        for name in ("encoder", "decoder"):
            networks, of_one_draw = make_networks(MODEL), []
            weight = getattr(networks.bare["vae"], name)[0 if name == "decoder" else 2].weight
            for number in range(400):
                batch = make_batch(images.expand(64, -1, -1, -1), step=number)
                loss, _ = one_loss(objective, networks, batch)
                of_one_draw.append(torch.cat([torch.autograd.grad(loss, weight)[0].flatten(), loss.detach().view(1)]))
            found[f"{estimator}/{name}"] = of_one_draw
    torch.testing.assert_close(found["dreg/decoder"][0], found["pathwise/decoder"][0], rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.stack(found[f"{each}/encoder"]) for each in ("dreg", "pathwise"))
    noise = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    apart = (ours.mean(0) - theirs.mean(0)) / noise.clamp(min=1e-8)
    assert apart.abs().max() < 5 and apart.square().mean() < 1.5
    assert ours.var(0).sum() < theirs.var(0).sum()


@pytest.mark.parametrize("model", [replace(MODEL, num_pseudo_inputs=4), HierarchicalVAE(width=4)], ids=["vamp", "deep"])
def test_piwae_is_refused_where_a_prior_learns_beside_encoder_and_decoder(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^objective\.bound='piwae' tells encoder from decoder by their latents"):
        ELBO(bound="piwae", num_groups=2, num_samples=2).check(model)


def test_piwae_value_is_that_of_iwae_over_all_samples() -> None:
    networks, batch = wide_networks(), make_batch(torch.rand(6, 1, 8, 8) * 2 - 1)
    partial, _ = one_loss(ELBO(bound="piwae", num_groups=3, num_samples=4), networks, batch)
    torch.testing.assert_close(partial, one_loss(ELBO(bound="iwae", num_samples=12), networks, batch)[0])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_samples": 5}, "objective.bound='elbo' takes one latent of an image, and num_samples=5, num_groups=1 ask "
         "for more; set --objective.bound iwae, or both to 1"),
        ({"bound": "ciwae", "num_groups": 2}, "objective.num_groups=2 with bound='ciwae', expected 1; set it to 1"),
        ({"bound": "iwae", "mmd": 2.0}, "objective.mmd=2.0 is a charge on the KL of the ELBO, which bound='iwae' has "
         "not; set it to 0, or --objective.bound elbo"),
        ({"num_groups": 0}, "objective.num_groups=0 must be at least 1"),
        ({"bound": "ciwae", "elbo_share": 1.5}, "objective.elbo_share=1.5 must lie in [0, 1], e.g. 0.5"),
    ],
)  # fmt: skip
def test_bound_refuses_knobs_without_effect(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ELBO(**knobs)
    assert str(caught.value) == message
