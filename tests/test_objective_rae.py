"""Regularised autoencoders: the terms of their loss against closed forms."""

import pytest
import torch
from test_objective_elbo import make_batch, make_networks

from genray.models.vae import MLPVAE
from genray.objectives.likelihoods import gaussian_nll
from genray.objectives.rae import RAE, squared_derivatives

MODEL = MLPVAE(latent_dim=3, hidden=16)


def test_squared_derivatives_are_on_average_those_of_the_jacobian() -> None:
    weights, z = torch.randn(6, 3), torch.randn(4000, 3, requires_grad=True)
    found = squared_derivatives((z @ weights.T).view(-1, 1, 2, 3), z, torch.randn(4000, 1, 2, 3))
    assert found.mean().item() == pytest.approx(weights.square().sum().item(), rel=0.1)


def test_rae_loss_is_the_sum_of_its_terms() -> None:
    networks, batch = make_networks(MODEL), make_batch(torch.rand(5, 1, 8, 8) * 2 - 1)
    vae = networks.bare["vae"]
    objective = RAE(beta=2.0, decoder_l2=0.3)
    loss, _ = objective.loss("vae", "all", networks, batch, None)
    mu, _ = vae.encode(batch.images)  # type: ignore[operator]
    pixels = torch.sigmoid(vae.decode(mu))  # type: ignore[operator]
    nll = gaussian_nll(pixels, (batch.images + 1) / 2, 0.1).mean()
    l2 = sum(p.square().sum() for p in vae.decoder.parameters())  # type: ignore[union-attr]
    torch.testing.assert_close(loss, nll + mu.square().sum(1).mean() + 0.3 * l2)


def test_rae_gradient_penalty_makes_the_decoder_flatter() -> None:
    networks, batch = make_networks(MODEL), make_batch(torch.rand(16, 1, 8, 8) * 2 - 1)
    objective = RAE(gradient_penalty=100.0)
    optimizer = torch.optim.Adam(networks.bare["vae"].parameters(), 1e-2)
    penalties = []
    for _ in range(30):
        loss, metrics = objective.loss("vae", "all", networks, batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        penalties.append(metrics["vae/gradient_penalty"].item())
    assert penalties[-1] < penalties[0] / 2


def test_rae_refuses_a_bent_posterior() -> None:
    with pytest.raises(ValueError, match=r"^model\.num_flows=2 has no part in objective rae"):
        RAE().check(MLPVAE(num_flows=2))
