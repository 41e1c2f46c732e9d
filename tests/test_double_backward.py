"""Layers that are differentiated twice: torch's own values and gradients, faster."""

from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models import double_backward
from genray.models.double_backward import Conv2d, convolve, leaky_relu, of_maps_alone
from genray.models.resampling import Double, Halve
from genray.objectives.penalties import zero_centered_gradient_penalty

SETTINGS = pytest.mark.parametrize(
    ("channels", "made", "size", "stride", "padding", "groups"),
    [(4, 6, 3, 1, 1, 2), (3, 5, 4, 2, 1, 1), (4, 4, 1, 1, 0, 1), (2, 3, 3, 2, 0, 1)],
    ids=["grouped", "strided", "pointwise", "remainder"],
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@SETTINGS
def test_convolution_has_torch_s_values_and_its_first_and_second_derivatives_are_right(
    channels: int, made: int, size: int, stride: int, padding: int, groups: int
) -> None:
    torch.manual_seed(0)
    inputs = numbers(2, channels, 6, 8), numbers(made, channels // groups, size, size), numbers(made)

    def ours(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolve(maps, weight, bias, (stride, stride), (padding, padding), groups)

    torch.testing.assert_close(ours(*inputs), F.conv2d(*inputs, stride, padding, 1, groups))
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


@pytest.mark.parametrize("resample", [Halve, Double])
def test_resampling_s_first_and_second_derivatives_are_right(resample: type[nn.Module]) -> None:
    maps = numbers(2, 3, 4, 6)
    assert torch.autograd.gradcheck(resample(), maps)
    assert torch.autograd.gradgradcheck(lambda x: resample()(x) ** 3, maps)


def test_leaky_relu_s_first_and_second_derivatives_are_right() -> None:
    maps = numbers(20)
    torch.testing.assert_close(leaky_relu(maps, 0.3), F.leaky_relu(maps, 0.3))
    assert torch.autograd.gradcheck(lambda x: leaky_relu(x, 0.3), maps)
    assert torch.autograd.gradgradcheck(lambda x: leaky_relu(x**2, 0.3) * x, maps)


def small_discriminator(convolution: type[nn.Conv2d]) -> nn.Module:
    torch.manual_seed(0)
    layers = [convolution(1, 8, 3, padding=1), nn.SiLU(), convolution(8, 8, 4, 2, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 1), nn.Flatten(0))


@pytest.mark.parametrize("gamma", [0.0, 5.0], ids=["plain", "penalised"])
def test_discriminator_gets_the_gradients_of_torch_s_convolutions(gamma: float) -> None:
    images = torch.randn(6, 1, 8, 8).requires_grad_()
    found = []
    for convolution in (Conv2d, nn.Conv2d):
        network = small_discriminator(convolution)
        logits = network(images)
        loss = F.softplus(-logits).mean() + gamma * zero_centered_gradient_penalty(images, logits).mean()
        found.append(torch.autograd.grad(loss, [images, *network.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_penalty_takes_no_gradient_of_weights_for_that_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, forward = count(), double_backward._WeightGradient.forward

    def counted(*inputs: object) -> Tensor:
        next(taken)
        return forward(*inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(double_backward._WeightGradient, "forward", staticmethod(counted))
    images = torch.randn(2, 1, 8, 8).requires_grad_()
    logits = small_discriminator(Conv2d)(images)
    zero_centered_gradient_penalty(images, logits)
    assert next(taken) == 0
    torch.autograd.grad(logits.sum(), images, create_graph=True)  # and with them, where nobody says so
    assert next(taken) == 3


def test_gradients_of_weights_count_again_after_an_error() -> None:
    images = torch.randn(2, 1, 8, 8).requires_grad_()
    network = small_discriminator(Conv2d)
    with pytest.raises(RuntimeError), of_maps_alone():
        torch.autograd.grad(images, images)
    network(images).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
