"""StyleGAN2: modulated convolutions against weights of each image, styles, truncation, deviations."""

import math

import pytest
import torch
from test_model_r3gan import halved_by_hand
from torch import Tensor
from torch.nn import functional as F

from genray.models.stylegan2 import Linear, ModulatedConv, StyleGAN2, _deviations

TINY = StyleGAN2(latent_dim=6, style_dim=8, width=4, max_width=8)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_equals_one_with_weights_of_each_image_in_float64(demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(3, 5, 3, 8, demodulate=demodulate).double()
    maps, style = torch.randn(4, 3, 6, 7, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    expected = []
    for image, scales in zip(maps, layer.affine(style), strict=True):
        weight = layer.weight * layer.scale * scales[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected.append(F.conv2d(image[None], weight, padding=1))
    torch.testing.assert_close(layer(maps, style), torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_linear_layer_starts_at_variance_one_whatever_its_learning_rate() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2000, 64)
    deviations = [Linear(64, 256, lr=lr)(inputs).std().item() for lr in (1.0, 0.01)]
    assert deviations == pytest.approx([1.0, 1.0], rel=0.05)


def test_styles_depend_on_the_direction_of_the_latent_only() -> None:
    generator, z = TINY.build((1, 8, 8), 10)["generator"].eval(), torch.randn(3, 6)
    torch.testing.assert_close(generator.styles(z), generator.styles(5 * z))


@pytest.mark.parametrize("conditional", [False, True])
def test_truncation_to_zero_gives_every_image_the_mean_style_of_its_class(conditional: bool) -> None:
    model = StyleGAN2(latent_dim=6, style_dim=8, width=4, max_width=8, conditional=conditional)
    generator = model.build((1, 8, 8), 10)["generator"].eval()
    generator.mean_style.normal_()
    z, labels = torch.randn(4, 6), torch.tensor([3, 3, 5, 5])
    images = generator.generate(z, labels, truncation=0.0)
    means = generator.mean_style[labels] if conditional else generator.mean_style.expand(4, -1)
    torch.testing.assert_close(images, generator.synthesise(means))


def test_truncation_goes_along_the_line_from_mean_to_style() -> None:
    generator = TINY.build((1, 8, 8), 10)["generator"].eval()
    generator.mean_style.normal_()
    z = torch.randn(4, 6)
    expected = generator.mean_style + 0.3 * (generator.styles(z) - generator.mean_style)
    torch.testing.assert_close(generator.styles(z, truncation=0.3), expected)


def test_mean_style_moves_to_the_mean_of_each_class_that_is_in_the_batch() -> None:
    model = StyleGAN2(latent_dim=6, style_dim=8, width=4, max_width=8, conditional=True)
    generator = model.build((1, 8, 8), 10)["generator"]
    z, labels = torch.randn(4, 6), torch.tensor([3, 3, 3, 5])
    before = generator.mean_style.normal_().clone()
    styles, expected = generator.styles(z, labels).detach(), before.clone()
    for label, mean in ((3, styles[:3].mean(dim=0)), (5, styles[3])):
        expected[label] = before[label] + 0.002 * (mean - before[label])
    torch.testing.assert_close(generator.mean_style, expected)


def test_mean_style_rests_in_eval_mode_and_without_gradients() -> None:
    generator = TINY.build((1, 8, 8), 10)["generator"]
    with torch.no_grad():
        generator(torch.randn(4, 6))
    generator.eval()(torch.randn(4, 6))
    assert torch.equal(generator.mean_style, torch.zeros(1, 8))


def test_every_layer_reads_its_own_style() -> None:
    torch.manual_seed(0)
    generator = TINY.build((1, 16, 16), 10)["generator"].eval()
    styles = torch.randn(1, generator.num_styles, 8)
    plain = generator.synthesise(styles)
    assert generator.num_styles == 8
    for layer in range(generator.num_styles):
        other = styles.clone()
        other[:, layer] = torch.randn(8)
        assert not torch.allclose(generator.synthesise(other), plain)


def test_deviations_are_of_groups_of_neighbours_and_no_others() -> None:
    maps = torch.randn(8, 3, 4, 5, dtype=torch.float32)
    found = _deviations(maps, 4)
    assert found.shape == (8, 1, 4, 5)
    for start in (0, 4):
        expected = maps[start : start + 4].std(dim=0, correction=0).mean()
        torch.testing.assert_close(found[start : start + 4], expected.expand(4, 1, 4, 5))


def test_deviations_of_equal_images_have_a_finite_gradient() -> None:
    maps = torch.ones(4, 3, 4, 4, requires_grad=True)
    _deviations(maps, 4).sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all()


def test_discriminator_equals_one_written_by_hand_in_float64() -> None:
    torch.manual_seed(0)
    model = StyleGAN2(latent_dim=6, style_dim=8, width=4, max_width=8, conditional=True)
    network = model.build((3, 16, 16), 10)["discriminator"].double()
    weights = {name: torch.nn.init.normal_(p).detach() for name, p in network.named_parameters()}

    def rectified(x: Tensor) -> Tensor:
        return 2**0.5 * torch.maximum(x, 0.2 * x)

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        size = weight.shape[-1]
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), weights.get(f"{name}.bias"), padding=size // 2)

    def linear(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return x @ weight.T / math.sqrt(weight.shape[1]) + weights[f"{name}.bias"]

    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    x = rectified(conv("levels.0", images))
    for level in (2, 3):
        hidden = rectified(conv(f"levels.{level}.second", rectified(conv(f"levels.{level}.first", x))))
        x = (halved_by_hand(hidden) + conv(f"levels.{level}.shortcut", halved_by_hand(x))) / math.sqrt(2)
    spread = [(group.var(dim=0, correction=0) + 1e-8).sqrt().mean() for group in x.split(4)]
    plane = torch.stack(spread).repeat_interleave(4).view(8, 1, 1, 1).expand(-1, 1, 4, 4)
    features = rectified(linear("hidden", rectified(conv("last", torch.cat([x, plane], dim=1))).flatten(1)))
    classes = weights["embedding.weight"][labels]
    classes = classes / (classes.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    expected = (linear("head", features) * classes).sum(dim=1) / math.sqrt(6)
    torch.testing.assert_close(network(images, labels), expected, atol=1e-6, rtol=1e-6)
