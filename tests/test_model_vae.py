"""Variational autoencoders: shapes, ranges, and the draw from the posterior."""

from typing import Any

import pytest
import torch
from torch import distributions

from genray.models.fitted_latents import Mixture
from genray.models.latent_distributions import AutoregressiveFlow, choose, mixture_log_density
from genray.models.pixel_distributions import mixture_parts
from genray.models.vae import LOGVAR_RANGE, MLPVAE, ConvVAE

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 32, 64), (3, 128, 128)]
MODELS = [ConvVAE(width=4, latent_dim=5), MLPVAE(hidden=16, latent_dim=5, num_layers=2)]


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_vae_forward_gives_logits_of_the_image_and_a_posterior_per_image(
    model: ConvVAE | MLPVAE, image_shape: tuple[int, int, int]
) -> None:
    found = model.build(image_shape, 10)["vae"](torch.rand(3, *image_shape) * 2 - 1, torch.randn(3, 5))
    assert [tuple(part.shape) for part in found] == [(3, *image_shape), (3, 5), (3, 5), (3, 5), (3, 1), (3, 1)]


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
def test_vae_generates_twice_the_sigmoid_of_the_logits_less_one(model: ConvVAE | MLPVAE) -> None:
    vae = model.build((1, 8, 8), 10)["vae"].eval()
    z = 10 * torch.randn(4, 5)
    torch.testing.assert_close(vae.generate(z), 2 * torch.sigmoid(vae.decode(z)) - 1)


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
def test_vae_reconstructs_from_the_posterior_that_the_noise_selects(model: ConvVAE | MLPVAE) -> None:
    vae = model.build((1, 8, 8), 10)["vae"].eval()
    images, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 5)
    found = vae(images, noise)
    torch.testing.assert_close(found.parameters, vae.decode(found.mu + noise * found.logvar.exp().sqrt()))


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
def test_vae_with_several_latents_of_an_image_decodes_each(model: ConvVAE | MLPVAE) -> None:
    vae = model.build((1, 8, 8), 10)["vae"].eval()
    images, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 3, 5)
    found, alone = vae(images, noise), [vae(images, noise[:, k]) for k in range(3)]
    for k, one in enumerate(alone):
        torch.testing.assert_close(found.parameters.view(4, 3, 1, 8, 8)[:, k], one.parameters)
        torch.testing.assert_close((found.log_q[:, k : k + 1], found.log_p[:, k : k + 1]), (one.log_q, one.log_p))


def test_vae_densities_of_its_latents_equal_those_of_torch_distributions() -> None:
    vae = MLPVAE(hidden=16, latent_dim=5).build((1, 8, 8), 10)["vae"]
    found = vae(torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 3, 5))
    z = found.z.view(4, 3, 5)
    posterior = distributions.Normal(found.mu.unsqueeze(1), (0.5 * found.logvar).exp().unsqueeze(1))
    torch.testing.assert_close(found.log_q, posterior.log_prob(z).sum(dim=2))
    torch.testing.assert_close(found.log_p, distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=2))


@pytest.mark.parametrize("output", ["scale", "global-scale", "logistic-mixture"])
@pytest.mark.parametrize("cls", [ConvVAE, MLPVAE])
def test_vae_generates_images_in_range_whatever_its_decoder_says(cls: type, output: str) -> None:
    vae = cls(output=output).build((3, 16, 16), 0)["vae"].eval()
    images = vae.generate(100 * torch.randn(4, vae.latent_dim))
    assert images.shape == (4, 3, 16, 16)
    assert images.abs().max() <= 1


def test_vae_mean_of_a_mixture_weighs_the_means_of_its_logistics() -> None:
    vae = MLPVAE(output="logistic-mixture").build((3, 8, 8), 0)["vae"].eval()
    z = torch.randn(2, 20)
    weights, means, _ = mixture_parts(vae.decode(z))
    shares = weights.exp() / weights.exp().sum(dim=1, keepdim=True)
    expected = sum(shares[:, k : k + 1] * means[:, k] for k in range(10))
    torch.testing.assert_close(vae.generate(z), expected.clamp(-1, 1))


def test_vae_posterior_stays_finite_for_a_wild_encoder() -> None:
    vae = MLPVAE(hidden=16, latent_dim=5).build((1, 8, 8), 10)["vae"]
    _, logvar = vae.encode(1e9 * torch.randn(64, 1, 8, 8))
    assert (logvar.min(), logvar.max()) == LOGVAR_RANGE


def test_vae_posterior_in_bf16_is_fp32() -> None:
    vae = ConvVAE(width=4).build((1, 8, 8), 10)["vae"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, logvar = vae.encode(torch.randn(2, 1, 8, 8))
    assert (mu.dtype, logvar.dtype) == (torch.float32, torch.float32)


def test_conv_vae_refuses_sizes_that_it_cannot_make() -> None:
    with pytest.raises(ValueError) as caught:
        ConvVAE().check((1, 30, 30))
    assert str(caught.value) == (
        "model conv-vae cannot make images of 30 x 30 pixels: the smaller side must be 4 to 7 times a power of two "
        "from 2 on, and the other a multiple of that power; set data.image_size, e.g. to 28 28, or choose model mlp-vae"
    )


def test_mlp_vae_takes_any_size() -> None:
    MLPVAE().check((1, 7, 31))
    assert MLPVAE().build((1, 7, 31), 0)["vae"].generate(torch.zeros(1, 20)).shape == (1, 1, 7, 31)


@pytest.mark.parametrize(
    ("cls", "knob"), [(ConvVAE, "latent_dim"), (ConvVAE, "width"), (MLPVAE, "hidden"), (MLPVAE, "num_layers")]
)
def test_vae_refuses_a_knob_of_zero(cls: type, knob: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{knob}=0 must be at least 1$"):
        cls(**{knob: 0})


def test_flow_has_the_volume_of_its_jacobian_and_looks_back_only() -> None:
    flow = AutoregressiveFlow(4)
    z, context = torch.randn(1, 1, 4), torch.randn(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, context)[0], z).view(4, 4)
    assert torch.equal(jacobian, jacobian.tril())
    assert (jacobian.tril(-1) != 0).sum() == 6
    torch.testing.assert_close(flow(z, context)[1].squeeze(), torch.linalg.slogdet(jacobian).logabsdet)


def test_vae_with_flows_has_the_density_of_its_latents() -> None:
    vae = MLPVAE(hidden=16, latent_dim=3, num_flows=2).build((1, 8, 8), 10)["vae"]
    images, noise = torch.rand(1, 1, 8, 8) * 2 - 1, torch.randn(1, 1, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: vae(images, x).z, noise).view(3, 3)
    expected = distributions.Normal(0.0, 1.0).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(vae(images, noise).log_q.squeeze(), expected)


def test_vae_with_pseudo_inputs_has_the_mixture_of_their_posteriors_as_prior() -> None:
    vae = MLPVAE(hidden=16, latent_dim=3, num_pseudo_inputs=5).build((1, 8, 8), 10)["vae"]
    found = vae(torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 2, 3))
    mu, logvar = vae.encode(torch.tanh(vae.pseudo_inputs))
    each = distributions.Independent(distributions.Normal(mu, (logvar / 2).exp()), 1)
    prior = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(5)), each)
    torch.testing.assert_close(found.log_p, prior.log_prob(found.z.view(4, 2, 3)))


def test_density_of_a_mixture_holds_where_its_components_are_narrow_and_far_away() -> None:
    mu, logvar = 10 * torch.randn(7, 5), torch.full((7, 5), -18.0)
    z = (mu[:6] + torch.exp(logvar[:6] / 2) * torch.randn(6, 5)).view(3, 2, 5)
    each = distributions.Independent(distributions.Normal(mu.double(), (logvar.double() / 2).exp()), 1)
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(7).double()), each)
    torch.testing.assert_close(
        mixture_log_density(z, mu, logvar), mixture.log_prob(z.double()).float(), rtol=0, atol=1e-3
    )


def test_vae_draws_from_its_pseudo_inputs_posteriors() -> None:
    vae = MLPVAE(hidden=16, latent_dim=2, num_pseudo_inputs=3).build((1, 8, 8), 10)["vae"]
    with torch.no_grad():
        vae.pseudo_inputs.mul_(9)
        vae.encoder[-1].weight[:2].mul_(20)
        z = vae.from_prior(torch.randn(40_000, 2))
        mu, logvar = vae.encode(torch.tanh(vae.pseudo_inputs))
    variance = logvar.exp().mean(0) + mu.var(0, correction=0)
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.05, rtol=0.05)
    torch.testing.assert_close(z.var(0), variance, atol=0.05, rtol=0.05)


def test_choice_by_noise_has_the_weights_and_leaves_noise_normal() -> None:
    noise, weights = torch.randn(200_000, 2), torch.tensor([0.1, 0.6, 0.3])
    place, left = choose(noise, weights)
    torch.testing.assert_close(torch.bincount(place) / 200_000, weights, atol=0.005, rtol=0)
    for k in range(3):
        own = left[place == k, 0]
        quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        torch.testing.assert_close(own.quantile(quantiles), torch.special.ndtri(quantiles), atol=0.04, rtol=0)
    assert torch.equal(left[:, 1], noise[:, 1])


def test_mixture_draws_have_its_mean_and_covariance() -> None:
    mixture = Mixture(2, 2)
    mixture.weights.copy_(torch.tensor([0.25, 0.75]))
    mixture.means.copy_(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    mixture.factors.copy_(torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[2.0, 0.0], [0.0, 0.5]]]))
    drawn = mixture(torch.randn(200_000, 2))
    means, factors = mixture.means, mixture.factors
    within = 0.25 * factors[0] @ factors[0].T + 0.75 * factors[1] @ factors[1].T
    mean = 0.25 * means[0] + 0.75 * means[1]
    between = 0.25 * torch.outer(means[0], means[0]) + 0.75 * torch.outer(means[1], means[1]) - torch.outer(mean, mean)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), within + between, atol=0.1, rtol=0.02)


def test_conditional_vae_reads_the_label_in_encoder_and_decoder() -> None:
    vae = MLPVAE(hidden=16, latent_dim=3, conditional=True).build((1, 8, 8), 10)["vae"]
    image, z = torch.rand(1, 1, 8, 8) * 2 - 1, torch.randn(1, 3)
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert not torch.allclose(vae.encode(image, zero)[0], vae.encode(image, one)[0])
    assert not torch.allclose(vae.decode(z, zero), vae.decode(z, one))
    with pytest.raises(ValueError, match=r"got no labels; pass labels \(B,\) from 0 to 9"):
        vae.generate(z)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_pseudo_inputs": 5, "conditional": True}, "model.num_pseudo_inputs=5 does not go with model.conditional"),
        ({"num_pseudo_inputs": 5, "num_flows": 1}, "model.num_pseudo_inputs=5 does not go with model.num_flows=1"),
        ({"num_pseudo_inputs": 5}, "model.num_pseudo_inputs=5 encodes learned images beside real ones"),
        ({"num_flows": -1}, "model.num_flows=-1 must be at least 0"),
    ],
)
def test_vae_refuses_latents_that_do_not_go_together(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ConvVAE(**knobs)
