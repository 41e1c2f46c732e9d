"""Variational autoencoders: shapes, ranges, and the draw from the posterior."""

import pytest
import torch
from torch import distributions

from genray.models.vae import LOGVAR_RANGE, MLPVAE, ConvVAE, mixture_parts

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
        "model conv-vae cannot make images of 30 x 30 pixels: the smaller side must be 4 to 7 times a power of two, "
        "and the other a multiple of that power; set data.image_size, e.g. to 28 28, or choose model mlp-vae"
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
