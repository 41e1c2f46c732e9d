"""Maps of twice and of half the sides, without aliasing, and with gradients that are the same in every run."""

from torch import Tensor, nn
from torch.nn import functional as F


class Double(nn.Module):
    """Maps (B, C, H, W) to (B, C, 2 H, 2 W): each new pixel 3/4 and 1/4 of the nearest two, along both sides."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of twice the sides; outside of the border is zero."""
        # as bilinear interpolation, whose gradient on a GPU would be another in every run
        return _smoothed(F.interpolate(maps, scale_factor=2.0, mode="nearest"))


class Halve(nn.Module):
    """Maps (B, C, H, W) to (B, C, H / 2, W / 2): each new pixel 1, 3, 3, 1 eighths of four, along both sides."""

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of half the sides; outside of the border is zero."""
        # means of two neighbours, three times over: a convolution a channel is many times slower to differentiate twice
        return F.avg_pool2d(_smoothed(maps), 2)


def _smoothed(maps: Tensor) -> Tensor:
    """Each pixel 1, 2, 1 quarters of three, along both sides; outside of the border is zero."""
    return F.avg_pool2d(F.avg_pool2d(maps, 2, 1, padding=1), 2, 1)
