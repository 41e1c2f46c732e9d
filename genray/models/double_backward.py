"""Layers that are cheap to differentiate twice, for networks whose gradients are penalised.

What torch has by itself for that is slow: of a convolution it swaps images with channels, copies all maps for it, and
goes through a kernel of the maps' size; of a rectifier it adds zeros to every gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Settings = tuple[tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, groups."""
_weights_count = True


@contextmanager
def of_maps_alone() -> Iterator[None]:
    """Inside of it `torch.autograd.grad` may be asked for gradients of samples, and wastes no time on those of weights.

    A function written in Python is not told which of its gradients are wanted.
    """
    global _weights_count
    _weights_count = False
    try:
        yield
    finally:
        _weights_count = True


class Conv2d(nn.Conv2d):
    """torch's, whose second derivative is made of convolutions as fast as the first; padded by zeros."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return convolve(input, weight, bias, self.stride, self.padding, self.groups)


def convolve(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """As `F.conv2d`: maps (B, O, H', W') of maps (B, C, H, W), weight (O, C / groups, h, w) and bias (O,)."""
    if _differentiated_once(maps):
        return F.conv2d(maps, weight, bias, stride, padding, 1, groups)
    made: Tensor = _Convolution.apply(maps, weight, bias, (stride, padding, groups))
    return made


def leaky_relu(maps: Tensor, slope: float) -> Tensor:
    """As `F.leaky_relu`, which `slope` times what is below zero is let through by."""
    if _differentiated_once(maps):
        return F.leaky_relu(maps, slope)
    rectified: Tensor = _LeakyReLU.apply(maps, slope)
    return rectified


def _differentiated_once(maps: Tensor) -> bool:
    """Whether no gradient of these can be penalised: without values or a graph, compiled, or in a lower precision."""
    without = maps.is_meta or not torch.is_grad_enabled()
    return without or torch.compiler.is_compiling() or torch.is_autocast_enabled(maps.device.type)


class _Convolution(torch.autograd.Function):
    """Linear in maps and in weight; its gradients are the two functions below, and theirs this one and each other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
        return F.conv2d(maps, weight, bias, settings[0], settings[1], 1, settings[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps, weight, _, ctx.settings = inputs
        ctx.save_for_backward(maps, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (maps, weight), settings = gradients, ctx.saved_tensors, ctx.settings
        of_maps, of_weight, of_bias = (
            needs and (not i or _weights_count) for i, needs in enumerate(ctx.needs_input_grad[:3])
        )
        if not torch.is_grad_enabled():  # nothing is differentiated again
            return *_backward(gradient, maps, weight, settings, (of_maps, of_weight, of_bias)), None
        return (
            _MapsGradient.apply(gradient, weight, maps, settings) if of_maps else None,
            _WeightGradient.apply(gradient, maps, weight, settings) if of_weight else None,
            gradient.sum(dim=(0, 2, 3)) if of_bias else None,
            None,
        )


class _MapsGradient(torch.autograd.Function):
    """What a gradient (B, O, H', W') of the result says of maps like `maps`, whose values do not count."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, maps: Tensor, settings: Settings) -> Tensor:
        of_maps: Tensor = _backward(gradient, maps, weight, settings, (True, False, False))[0]
        return of_maps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gradient, weight, _, ctx.settings = inputs
        ctx.save_for_backward(gradient, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, weight), settings, needs = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad
        return (
            _Convolution.apply(gradients[0], weight, None, settings) if needs[0] else None,
            _WeightGradient.apply(gradient, gradients[0], weight, settings) if needs[1] else None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """What a gradient (B, O, H', W') of the result says of a weight like `weight`, whose values do not count."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, maps: Tensor, weight: Tensor, settings: Settings) -> Tensor:
        of_weight: Tensor = _backward(gradient, maps, weight, settings, (False, True, False))[1]
        return of_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gradient, maps, _, ctx.settings = inputs
        ctx.save_for_backward(gradient, maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient, maps), settings, needs = ctx.saved_tensors, ctx.settings, ctx.needs_input_grad
        return (
            _Convolution.apply(maps, gradients[0], None, settings) if needs[0] else None,
            _MapsGradient.apply(gradient, gradients[0], maps, settings) if needs[1] else None,
            None,
            None,
        )


def _backward(
    gradient: Tensor, maps: Tensor, weight: Tensor, settings: Settings, wanted: tuple[bool, bool, bool]
) -> tuple[Any, ...]:
    stride, padding, groups = settings
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
        gradient, maps, weight, (len(weight),), stride, padding, (1, 1), False, (0, 0), groups, wanted
    )
    return found


class _LeakyReLU(torch.autograd.Function):
    """Its gradient is linear, and the gradient of that the same again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(maps, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps, ctx.slope = inputs
        ctx.save_for_backward(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Rectified.apply(gradients[0], *ctx.saved_tensors, ctx.slope), None


class _Rectified(torch.autograd.Function):
    """Gradients times `slope` where `maps` are below zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, maps: Tensor, slope: float) -> Tensor:
        rectified: Tensor = torch.ops.aten.leaky_relu_backward(gradient, maps, slope, False)
        return rectified

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, maps, ctx.slope = inputs
        ctx.save_for_backward(maps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Rectified.apply(gradients[0], *ctx.saved_tensors, ctx.slope), None, None
