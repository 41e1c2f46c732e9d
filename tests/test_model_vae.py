"""Variational autoencoders: shapes, ranges, and the draw from the posterior."""

import pytest
import torch

from genray.models.vae import LOGVAR_RANGE, MLPVAE, ConvVAE

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 32, 64), (3, 128, 128)]
MODELS = [ConvVAE(width=4, latent_dim=5), MLPVAE(hidden=16, latent_dim=5, num_layers=2)]


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_vae_forward_gives_logits_of_the_image_and_a_posterior_per_image(
    model: ConvVAE | MLPVAE, image_shape: tuple[int, int, int]
) -> None:
    outputs = model.build(image_shape, 10)["vae"](torch.rand(3, *image_shape) * 2 - 1, torch.randn(3, 5))
    assert [tuple(output.shape) for output in outputs] == [(3, *image_shape), (3, 5), (3, 5)]


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
def test_vae_generates_twice_the_sigmoid_of_the_logits_less_one(model: ConvVAE | MLPVAE) -> None:
    vae = model.build((1, 8, 8), 10)["vae"].eval()
    z = 10 * torch.randn(4, 5)
    torch.testing.assert_close(vae.generate(z), 2 * torch.sigmoid(vae.decode(z)) - 1)


@pytest.mark.parametrize("model", MODELS, ids=["conv", "mlp"])
def test_vae_reconstructs_from_the_posterior_that_the_noise_selects(model: ConvVAE | MLPVAE) -> None:
    vae = model.build((1, 8, 8), 10)["vae"].eval()
    images, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 5)
    logits, mu, logvar = vae(images, noise)
    torch.testing.assert_close(logits, vae.decode(mu + noise * logvar.exp().sqrt()))


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
