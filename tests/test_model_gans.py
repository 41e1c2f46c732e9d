"""What SNGAN, BigGAN, R3GAN and StyleGAN2 have in common: shapes, sizes that they refuse, and what labels do."""

from typing import Any

import pytest
import torch
from torch import nn

from genray.models.biggan import BigGAN
from genray.models.dcgan import DCGAN
from genray.models.r3gan import R3GAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2

TINY: dict[str, dict[str, Any]] = {
    "sngan": {"width": 4, "discriminator_width": 4, "max_width": 8, "max_discriminator_width": 8},
    "biggan": {"width": 8, "discriminator_width": 4, "max_width": 16, "max_discriminator_width": 8, "label_dim": 4},
    "r3gan": {"width": 4, "max_width": 8, "group_width": 2, "num_blocks": 1},
    "stylegan2": {"width": 4, "max_width": 8, "style_dim": 8},
}
KINDS: dict[str, type] = {"sngan": SNGAN, "biggan": BigGAN, "r3gan": R3GAN, "stylegan2": StyleGAN2}
SIZED: dict[str, type] = KINDS | {"dcgan": DCGAN}
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 48), (3, 128, 128), (3, 256, 256)]


def built(name: str, image_shape: tuple[int, int, int] = (1, 8, 8), **knobs: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    networks = KINDS[name](**(TINY[name] | knobs)).build(image_shape, 10)
    return networks["generator"], networks["discriminator"]


def several(name: str) -> dict[str, Any]:
    return {"attention": True, "spectral": "both"} if name == "sngan" else {}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_gan_makes_images_of_the_shape_that_was_asked_for_and_judges_each(
    name: str, image_shape: tuple[int, int, int]
) -> None:
    generator, discriminator = built(name, image_shape, **several(name))
    images = generator(torch.randn(2, generator.latent_dim))
    assert images.shape == (2, *image_shape)
    assert discriminator(images).shape == (2,)


@pytest.mark.parametrize("name", KINDS)
def test_gan_label_changes_the_image_of_a_latent_and_the_logit_of_an_image(name: str) -> None:
    generator, discriminator = built(name, conditional=True)
    if name == "sngan":
        nn.init.normal_(generator.norm.scales_shifts.weight)  # scales and shifts begin alike
    z, labels = torch.randn(1, generator.latent_dim).expand(2, -1), torch.tensor([0, 1])
    images, logits = generator.eval()(z, labels), discriminator(torch.ones(2, 1, 8, 8), labels)
    assert not torch.allclose(images[0], images[1]) and not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("name", KINDS)
def test_gan_with_labels_refuses_to_work_without_them(name: str) -> None:
    generator, discriminator = built(name, conditional=True)
    z, images = torch.randn(2, generator.latent_dim), torch.zeros(2, 1, 8, 8)
    for call, inputs in ((generator.generate, z), (discriminator, images)):
        with pytest.raises(ValueError, match=r"got no labels; pass labels \(B,\) from 0 to 9"):
            call(inputs)


@pytest.mark.parametrize("name", KINDS)
def test_gan_with_labels_needs_two_classes(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.conditional needs 2 classes or more, and the data have 1"):
        KINDS[name](conditional=True).build((1, 8, 8), 1)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(("size", "use"), [((30, 30), "28 28"), ((32, 36), "32 32"), ((4, 4), "8 8")])
def test_gan_refuses_sizes_that_it_cannot_make_and_makes_the_one_that_it_proposes(
    name: str, size: tuple[int, int], use: str
) -> None:
    with pytest.raises(ValueError) as caught:
        SIZED[name]().check((3, *size))
    assert str(caught.value) == (
        f"model {name} cannot make images of {size[0]} x {size[1]} pixels: the smaller side must be 4 to 7 times a "
        f"power of two from 2 on, and the other a multiple of that power; set data.image_size, e.g. to {use}"
    )
    height, width = map(int, use.split())
    SIZED[name]().check((3, height, width))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("knob", ["latent_dim", "width", "max_width"])
def test_gan_refuses_knobs_below_one(name: str, knob: str) -> None:
    with pytest.raises(ValueError, match=f"model.{knob}=0 must be at least 1"):
        KINDS[name](**{knob: 0})


@pytest.mark.parametrize("name", KINDS)
def test_gan_in_bf16_has_images_in_fp32_and_gradients_everywhere(name: str) -> None:
    generator, discriminator = built(name, conditional=True, **several(name))
    labels = torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = generator(torch.randn(4, generator.latent_dim), labels)
        logits = discriminator(images, labels)
    logits.float().sum().backward()
    assert images.dtype == torch.float32
    parameters = [*generator.parameters(), *discriminator.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", KINDS)
def test_gan_gradient_penalty_has_the_gradient_of_finite_differences(name: str) -> None:
    _, discriminator = built(name, (1, 16, 16), **({"spectral": "none"} if name == "sngan" else {}))
    discriminator.double().eval()  # the vectors of spectral norm stay where they are
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    first = next(p for p in discriminator.parameters() if p.ndim == 4)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # no branch at its initial zero

    def penalty() -> Any:
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return gradient.square().sum()

    (analytic,) = torch.autograd.grad(penalty(), first)
    step, direction = 1e-6, torch.randn_like(first)
    first.data += step * direction
    above = penalty().item()
    first.data -= 2 * step * direction
    assert (analytic * direction).sum().item() == pytest.approx((above - penalty().item()) / (2 * step), rel=1e-4)
