"""Maps of twice and of half the sides, without aliasing, and with gradients that are the same in every run."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)
"""Weights of four neighbours along one side, before they are brought to a sum."""


class Resample(nn.Module):
    """The same filter for every channel, a step of two pixels apart; how its taps sum up is `gain`."""

    kernel: Tensor
    halves: bool

    def __init__(self, gain: float) -> None:
        super().__init__()
        taps = torch.tensor(TAPS)
        self.register_buffer("kernel", gain * torch.outer(taps, taps) / taps.sum() ** 2, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of half or twice the sides, which are even; outside of the border is zero."""
        resampled: Tensor = _Resampled.apply(maps, self.kernel.to(maps.dtype), self.halves)
        return resampled


class Double(Resample):
    """Maps (B, C, H, W) to (B, C, 2 H, 2 W): each new pixel 3/4 and 1/4 of the nearest two, along both sides."""

    halves = False

    def __init__(self) -> None:
        super().__init__(gain=4.0)


class Halve(Resample):
    """Maps (B, C, H, W) to (B, C, H / 2, W / 2): each new pixel 1, 3, 3, 1 eighths of four, along both sides."""

    halves = True

    def __init__(self) -> None:
        super().__init__(gain=1.0)


class _Resampled(torch.autograd.Function):
    """Halving and doubling by one kernel are each other's gradient, and so the gradients of that, and on.

    torch's own second derivative of a convolution of each channel by itself takes many times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, kernel: Tensor, halves: bool) -> Tensor:
        kernels = kernel.expand(maps.shape[1], 1, -1, -1)
        filtered = F.conv2d if halves else F.conv_transpose2d
        with nullcontext() if maps.is_meta else torch.autocast(maps.device.type, enabled=False):  # as it comes
            return filtered(maps, kernels, stride=2, padding=1, groups=maps.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernel, ctx.halves = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Resampled.apply(gradients[0], *ctx.saved_tensors, not ctx.halves), None, None
