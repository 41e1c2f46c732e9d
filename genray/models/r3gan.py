"""R3GAN: residual networks of grouped convolutions, without any normalisation.

Huang et al. 2024, arXiv:2501.05441; initial weights after Zhang et al. 2019, arXiv:1901.09321: the variance does not
grow with depth, and every block begins as the identity. Made for the relativistic loss with R1 and R2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genray.models.double_backward import Conv2d, leaky_relu
from genray.models.knobs import at_least, given, levels, num_labels
from genray.models.resampling import Double, Halve

SLOPE = 0.2
"""Of leaky-relu below zero."""


@dataclass(frozen=True, kw_only=True)
class R3GAN:
    """Knobs of both networks.

    The generator doubles a base of 4 to 7 pixels on the smaller side, the discriminator mirrors it; level i, counted
    from the image, has `min(max_width, width * 2**i)` channels.
    """

    modules: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    latent_dim: int = 64
    """Numbers in a latent z."""
    width: int = 64
    """Channels at the level of the image."""
    max_width: int = 512
    """Most channels of any level."""
    num_blocks: int = 2
    """Residual blocks of each level."""
    expansion: int = 2
    """Channels inside of a block, as a multiple of those of its level."""
    group_width: int = 16
    """Channels of a level to one group of its 3 x 3 convolutions; 8 in the paper's network for CIFAR-10."""
    conditional: bool = False
    """Give class labels to both networks; needs two classes or more."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim", "width", "max_width", "num_blocks", "expansion", "group_width")
        for name in ("width", "max_width"):
            if getattr(self, name) % min(self.group_width, self.width):
                raise ValueError(
                    f"model.{name}={getattr(self, name)!r} must be a multiple of model.group_width={self.group_width}"
                )

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base, or when the
        channels of a level cannot be grouped.
        """
        for width in levels("r3gan", image_shape, self.width, self.max_width)[0]:
            if width > self.group_width and width % self.group_width:
                raise ValueError(
                    f"model.group_width={self.group_width} does not divide the {width} channels of a level; set it to "
                    f"{math.gcd(self.width, self.max_width)}, or model.width to a multiple of it"
                )

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """Fresh `generator` and `discriminator` for images of (C, H, W).

        Raises:
            ValueError: a size that cannot be made, or labels asked of fewer than two classes.
        """
        labels = num_labels(self.conditional, num_classes)
        return {
            "generator": Generator(self, image_shape, labels),
            "discriminator": Discriminator(self, image_shape, labels),
        }


class Generator(nn.Module):
    """Latents (B, latent_dim), and labels (B,) if conditional, to images (B, C, H, W), nearly all in [-1, 1]."""

    def __init__(self, knobs: R3GAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        widths, base = levels("r3gan", image_shape, knobs.width, knobs.max_width)
        widths.reverse()
        self.embedding = _embedding(num_labels, knobs.latent_dim)
        if self.embedding is not None:
            # as long as a one-hot label: as long as z it would drown it, and the images of a class be nearly one
            nn.init.normal_(self.embedding.weight, 0.0, knobs.latent_dim**-0.5)
        self.project = nn.Linear(knobs.latent_dim * (2 if num_labels else 1), widths[0], bias=False)
        nn.init.normal_(self.project.weight, 0.0, self.project.in_features**-0.5)
        self.basis = nn.Parameter(torch.randn(widths[0], *base))
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i:
                layers += [*_matched(widths[i - 1], width), Double()]
            layers += [Block(knobs, width, len(widths)) for _ in range(knobs.num_blocks)]
        self.levels = nn.Sequential(*layers)
        self.last = _scaled(Conv2d(widths[-1], image_shape[0], 1, bias=False))

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W), meant for [-1, 1], of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(given(labels, self.num_labels))], dim=1)
        maps = self.project(z)[:, :, None, None] * self.basis
        images: Tensor = self.last(self.levels(maps)).float()
        return images

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): higher for what is more real."""

    def __init__(self, knobs: R3GAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        widths, base = levels("r3gan", image_shape, knobs.width, knobs.max_width)
        layers: list[nn.Module] = [_scaled(Conv2d(image_shape[0], widths[0], 1, bias=False))]
        for i, width in enumerate(widths):
            if i:
                layers += [Halve(), *_matched(widths[i - 1], width)]
            layers += [Block(knobs, width, len(widths)) for _ in range(knobs.num_blocks)]
        self.levels = nn.Sequential(*layers)
        # one weight a channel and place: the mirror image of the generator's basis
        self.basis = nn.Parameter(torch.randn(widths[-1], *base) / math.prod(base) ** 0.5)
        self.head = nn.Linear(widths[-1], knobs.latent_dim if num_labels else 1, bias=False)
        nn.init.normal_(self.head.weight, 0.0, widths[-1] ** -0.5)
        self.embedding = _embedding(num_labels, knobs.latent_dim)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,), unbounded."""
        features = (self.levels(images) * self.basis).sum(dim=(2, 3))
        if self.embedding is None:
            # the layer itself would give its weight a gradient of transposed strides, which DDP copies, and warns about
            logits: Tensor = features @ self.head.weight.flatten()
            return logits
        embedded = self.embedding(given(labels, self.num_labels))
        projected: Tensor = (self.head(features) * embedded).sum(dim=1) / embedded.shape[1] ** 0.5
        return projected


class Block(nn.Module):
    """Maps (B, C, H, W) plus what a bottleneck turned inside out makes of them."""

    def __init__(self, knobs: R3GAN, width: int, num_levels: int) -> None:
        super().__init__()
        inner = width * knobs.expansion
        # three layers a branch: each takes its share of keeping the sum over all blocks from growing with their number
        gain = (2 / (1 + SLOPE**2)) ** 0.5 * (num_levels * knobs.num_blocks) ** -0.25
        groups = max(1, width // knobs.group_width)
        self.first = _scaled(Conv2d(width, inner, 1), gain)
        self.second = _scaled(Conv2d(inner, inner, 3, padding=1, groups=groups), gain)
        self.third = _scaled(Conv2d(inner, width, 1, bias=False), 0.0)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        hidden = leaky_relu(self.first(maps), SLOPE)
        hidden = leaky_relu(self.second(hidden), SLOPE)
        total: Tensor = maps + self.third(hidden)
        return total


def _matched(before: int, after: int) -> list[nn.Module]:
    """What changes the number of channels, where it changes."""
    return [] if before == after else [_scaled(Conv2d(before, after, 1, bias=False))]


def _embedding(num_labels: int, size: int) -> nn.Embedding | None:
    return nn.Embedding(num_labels, size) if num_labels else None  # of standard normal numbers, as z is


def _scaled(layer: nn.Conv2d, gain: float = 1.0) -> nn.Conv2d:
    """`layer` with normal weights that multiply the variance by gain², and no bias."""
    nn.init.normal_(layer.weight, 0.0, gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
