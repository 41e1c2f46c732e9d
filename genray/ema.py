"""Exponential moving average of a module's weights."""

import copy
import math

import torch
from torch import Tensor, nn


class EMA:
    """A copy of `module` whose weights follow those of `module`, a difference halving in `half_life` images.

    While less than `half_life / ramp` images have been seen the half-life is `ramp` times their number, so
    that a short run's average is not one of its first weights (as in StyleGAN2, arXiv:1912.04958).
    Buffers, such as running statistics, are copied.
    """

    def __init__(self, module: nn.Module, half_life: float, ramp: float | None = 0.05) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.half_life, self.ramp = half_life, math.inf if ramp is None else ramp
        self._source = _tensors(module)
        self._average = _tensors(self.module)

    def decay(self, num_images: int, samples_seen: int) -> float:
        """Factor of the old average in an update that `num_images` more images brought."""
        half_life = min(self.half_life, self.ramp * samples_seen)
        return float(0.5 ** (num_images / half_life)) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, num_images: int, samples_seen: int) -> None:
        """Moves the average towards the source, which has seen `samples_seen` images, `num_images` of them new."""
        (average, average_buffers), (source, source_buffers) = self._average, self._source
        torch._foreach_lerp_(average, source, 1 - self.decay(num_images, samples_seen))
        if source_buffers:
            torch._foreach_copy_(average_buffers, source_buffers)


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers."""
    return list(module.parameters()), list(module.buffers())
