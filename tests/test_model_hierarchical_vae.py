"""The hierarchical VAE: its densities, its priors, its refusals, and a short run on digits."""

import pytest
import torch
from test_autoencoder_runs import last_metrics

from genray.models.hierarchical_vae import HierarchicalVAE
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.objectives.rae import RAE

MODEL = HierarchicalVAE(width=8, latent_channels=2, blocks_per_level=2)


def network(**knobs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    made = HierarchicalVAE(**({"width": 8, "latent_channels": 2} | knobs))  # type: ignore[arg-type]
    vae = made.build((1, 8, 8), 10)["vae"]
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def test_hierarchical_vae_has_latents_of_every_level() -> None:
    assert network().latent_dim == 2 * 2 * (2 * 2 + 4 * 4)


def test_hierarchical_vae_has_the_density_of_its_latents() -> None:
    vae = network(latent_channels=1, blocks_per_level=1)
    images, noise = torch.rand(1, 1, 8, 8) * 2 - 1, torch.randn(1, 20)
    jacobian = torch.autograd.functional.jacobian(lambda x: vae(images, x).z, noise).view(20, 20)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = normal.log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(vae(images, noise).log_q.squeeze(), expected, rtol=1e-4, atol=1e-4)


def test_hierarchical_vae_has_the_density_of_its_prior() -> None:
    vae = network(latent_channels=1, blocks_per_level=1)
    found = vae(torch.rand(1, 1, 8, 8) * 2 - 1, torch.randn(1, 20))

    def from_noise(noise: torch.Tensor) -> torch.Tensor:
        return torch.cat([part[0] for part in vae._descend(None, noise)[1]], dim=1)  # type: ignore[operator]

    noise = torch.zeros(1, 20)
    for _ in range(20):  # a map depends on coarser ones only, so this inverts level by level
        jacobian = torch.autograd.functional.jacobian(from_noise, noise).view(20, 20)
        noise = noise + torch.linalg.solve(jacobian, (found.z - from_noise(noise)).squeeze(0)).unsqueeze(0)
    torch.testing.assert_close(from_noise(noise), found.z)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(found.log_p.squeeze(), expected, rtol=1e-3, atol=1e-3)


def test_hierarchical_vae_with_several_draws_decodes_each() -> None:
    vae = network()
    images, noise = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, 2, vae.latent_dim)  # type: ignore[arg-type]
    both, second = vae(images, noise), vae(images, noise[:, 1])
    torch.testing.assert_close(both.parameters.view(3, 2, 1, 8, 8)[:, 1], second.parameters)
    torch.testing.assert_close((both.log_q[:, 1:], both.log_p[:, 1:]), (second.log_q, second.log_p))


@pytest.mark.parametrize("output", ["logits", "scale", "logistic-mixture"])
def test_hierarchical_vae_draws_and_reconstructs_images_in_range(output: str) -> None:
    vae = HierarchicalVAE(width=8, output=output).build((3, 16, 24), 0)["vae"]  # type: ignore[arg-type]
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    for made in (vae.reconstruct(images), vae.generate(9 * torch.randn(2, vae.latent_dim))):  # type: ignore[operator, arg-type]
        assert made.shape == images.shape
        assert made.abs().max() <= 1


@pytest.mark.parametrize("objective", [ELBO(free_bits=0.1), ELBO(mmd=1.0), RAE()])
def test_hierarchical_vae_is_refused_where_one_normal_posterior_is_meant(objective: ELBO | RAE) -> None:
    with pytest.raises(ValueError, match=r"model\.blocks_per_level=2"):
        objective.check(MODEL)


def test_hierarchical_vae_refuses_sizes_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="halves each side 2 times, and 30 x 32 pixels do not divide by 4"):
        MODEL.check((1, 30, 32))


def test_hierarchical_vae_of_digits_is_as_good_as_a_single_level_in_as_many_steps(tmp_path) -> None:
    objective = ELBO(kl_warmup_samples=3_000)
    one = last_metrics(MLPVAE(latent_dim=6, hidden=48), objective, tmp_path / "one", 150)
    several = last_metrics(MODEL, objective, tmp_path / "several", 150)
    assert several["vae/elbo"] > one["vae/elbo"] - 1
    assert several["vae/kl"] > 1
