"""DCGAN: shapes, sizes that it refuses, and what labels do."""

from typing import Literal

import pytest
import torch
from torch import nn

from genray.models.dcgan import DCGAN

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 32, 64), (3, 48, 48), (1, 64, 64), (3, 128, 128)]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_dcgan_makes_images_of_the_shape_that_was_asked_for(image_shape: tuple[int, int, int]) -> None:
    generator = DCGAN(width=4).build(image_shape, 10)["generator"]
    assert generator(torch.randn(2, 100)).shape == (2, *image_shape)


@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_dcgan_discriminator_gives_one_logit_per_image(image_shape: tuple[int, int, int]) -> None:
    discriminator = DCGAN(width=4).build(image_shape, 10)["discriminator"]
    assert discriminator(torch.randn(3, *image_shape)).shape == (3,)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dcgan_logit_is_the_last_layer_of_the_flattened_features(norm: Literal["batch", "none"]) -> None:
    discriminator = DCGAN(width=4, discriminator_norm=norm).build((1, 28, 28), 10)["discriminator"].eval()
    if discriminator.head.bias is not None:
        nn.init.ones_(discriminator.head.bias)
    images = torch.randn(3, 1, 28, 28)
    expected = discriminator.head(discriminator.layers(images).flatten(1)).flatten()
    torch.testing.assert_close(discriminator(images), expected)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_dcgan_gradients_lie_in_memory_as_their_parameters_do(name: str) -> None:
    network = DCGAN(width=4).build((1, 28, 28), 10)[name]
    network(torch.randn(2, 100) if name == "generator" else torch.randn(2, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in network.parameters())


def test_dcgan_images_lie_between_minus_one_and_one() -> None:
    generator = DCGAN(width=4).build((1, 8, 8), 10)["generator"]
    assert generator(1e6 * torch.randn(16, 100)).abs().max() <= 1


def test_dcgan_at_64_pixels_has_the_parameters_of_the_classic_network() -> None:
    networks = DCGAN().build((3, 64, 64), 10)
    assert {name: num_parameters(module) for name, module in networks.items()} == {
        "generator": 3_576_704,
        "discriminator": 2_765_568,
    }


def test_dcgan_projection_equals_a_transposed_convolution_of_one_pixel() -> None:
    generator = DCGAN(width=4, latent_dim=6).build((1, 28, 28), 10)["generator"]
    channels, height, width = generator.base
    convolution = nn.ConvTranspose2d(6, channels, (height, width), bias=False)
    convolution.weight.data = generator.project.weight.data.T.reshape(6, channels, height, width)
    z = torch.randn(5, 6)
    expected = convolution(z[:, :, None, None])
    torch.testing.assert_close(generator.project(z).unflatten(1, generator.base), expected)


def test_dcgan_begins_with_the_weights_of_the_paper() -> None:
    torch.manual_seed(0)
    generator = DCGAN().build((3, 64, 64), 10)["generator"]
    scales = torch.cat([m.weight.detach() for m in generator.modules() if isinstance(m, nn.BatchNorm2d)])
    others = [m.weight.detach().flatten() for m in generator.layers if isinstance(m, nn.ConvTranspose2d)]
    figures = torch.stack([scales.mean(), scales.std(), torch.cat(others).mean(), torch.cat(others).std()])
    torch.testing.assert_close(figures, torch.tensor([1.0, 0.02, 0.0, 0.02]), atol=2e-3, rtol=0)


def test_dcgan_channels_stop_at_max_width() -> None:
    networks = DCGAN(width=4, max_width=8).build((3, 64, 64), 10)
    widths = [m.out_channels for m in networks["discriminator"].modules() if isinstance(m, nn.Conv2d)]
    assert widths == [4, 8, 8, 8]


def test_dcgan_makes_every_size_that_it_proposes_instead() -> None:
    for height in range(1, 140):
        for width in (height, 2 * height, 41, 5):
            try:
                DCGAN().check((1, height, width))
            except ValueError as error:
                proposed = str(error).rsplit("e.g. to ", 1)[1].split()
                DCGAN().check((1, int(proposed[0]), int(proposed[1])))


def test_dcgan_smaller_base_gives_small_images_more_levels() -> None:
    generators = [DCGAN(width=4, min_base=min_base).build((1, 8, 8), 10)["generator"] for min_base in (4, 2)]
    assert [generator.base for generator in generators] == [(4, 4, 4), (8, 2, 2)]


def test_dcgan_with_labels_needs_two_classes() -> None:
    with pytest.raises(ValueError) as caught:
        DCGAN(conditional=True).build((1, 8, 8), 1)
    assert str(caught.value) == (
        "model.conditional needs 2 classes or more, and the data have 1; set model.conditional to false"
    )


def test_dcgan_with_labels_refuses_to_generate_without_them() -> None:
    generator = DCGAN(conditional=True, width=4).build((1, 8, 8), 10)["generator"]
    with pytest.raises(ValueError, match=r"got no labels; pass labels \(B,\) from 0 to 9"):
        generator.generate(torch.randn(2, 100))


def test_dcgan_num_labels_is_zero_unless_conditional() -> None:
    built = [DCGAN(conditional=conditional, width=4).build((1, 8, 8), 10) for conditional in (False, True)]
    assert [networks["generator"].num_labels for networks in built] == [0, 10]


def test_dcgan_label_changes_the_image_of_a_latent() -> None:
    generator = DCGAN(conditional=True, width=4).build((1, 8, 8), 10)["generator"].eval()
    z = torch.randn(1, 100)
    assert not torch.equal(generator(z, torch.tensor([0])), generator(z, torch.tensor([1])))


def test_dcgan_label_adds_its_projection_of_the_features_to_the_logit() -> None:
    discriminator = DCGAN(conditional=True, width=4).build((1, 8, 8), 10)["discriminator"].eval()
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 5, 9])
    unconditional = discriminator(images, labels)  # the embedding begins at zero
    discriminator.embedding.weight.data.normal_()
    features = discriminator.layers(images).flatten(1)
    expected = unconditional + torch.stack([features[i] @ discriminator.embedding.weight[labels[i]] for i in range(3)])
    torch.testing.assert_close(discriminator(images, labels), expected)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"latent_dim": 0}, "model.latent_dim=0 must be at least 1"),
        ({"width": -1}, "model.width=-1 must be at least 1"),
        ({"negative_slope": 1.5}, "model.negative_slope=1.5 must lie in [0, 1), e.g. 0.2"),
    ],
)
def test_dcgan_refuses_knobs_out_of_range(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DCGAN(**knobs)
    assert str(caught.value) == message


def test_dcgan_in_bf16_ends_in_fp32() -> None:
    generator = DCGAN(width=4).build((1, 8, 8), 10)["generator"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generator(torch.randn(2, 100)).dtype == torch.float32
