"""BigGAN: every block of the generator is told its own part of the latent beside the label; both networks are spectral.

Brock et al. 2019, arXiv:1809.11096, as its appendix has it for small images: the networks are SNGAN's, with labels
embedded once for all layers, latents split over the blocks, weights that begin orthogonal, and attention. For the
hinge loss, with a few updates of the discriminator to one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models.knobs import at_least, given, levels, num_labels
from genray.models.sngan import SNGAN, Attention, Discriminator, normalise_spectrally


@dataclass(frozen=True, kw_only=True)
class BigGAN:
    """Knobs of both networks; what a level of them is, and its channels, is as in `SNGAN`.

    Batch norm takes its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    latent_dim: int = 128
    """Numbers in a latent z, split evenly over the first layer and the blocks."""
    label_dim: int = 128
    """Numbers that a label becomes, for all layers of the generator."""
    width: int = 64
    """Channels of the generator at the level next to the image."""
    discriminator_width: int = 64
    """Channels of the discriminator at that level."""
    max_width: int = 512
    """Most channels of any level of the generator."""
    max_discriminator_width: int = 512
    """Most channels of any level of the discriminator."""
    conditional: bool = False
    """Give class labels to both networks; needs two classes or more."""
    attention: bool = True
    """Self-attention in both networks, over maps of half of the image's sides; of 8 to 15 pixels: of the whole."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim", "label_dim", "width", "discriminator_width")
        at_least(1, self, "max_width", "max_discriminator_width")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base, or there are
        more blocks than numbers in a latent.
        """
        num = len(levels("biggan", image_shape, self.width, self.max_width)[0])
        if self.latent_dim < num:
            raise ValueError(
                f"model.latent_dim={self.latent_dim!r} is split over the first layer and {num - 1} blocks, and each "
                f"needs a number or more; set it to {num} at least"
            )

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """Fresh `generator` and `discriminator` for images of (C, H, W).

        Raises:
            ValueError: a size that cannot be made, or labels asked of fewer than two classes.
        """
        self.check(image_shape)
        labels = num_labels(self.conditional, num_classes)
        judge = SNGAN(
            discriminator_width=self.discriminator_width,
            max_discriminator_width=self.max_discriminator_width,
            conditional=self.conditional,
            attention=self.attention,
            spectral="none",
        )
        networks = {
            "generator": BigGenerator(self, image_shape, labels),
            "discriminator": Discriminator(judge, image_shape, labels),
        }
        for network in networks.values():
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                    nn.init.orthogonal_(layer.weight)
            normalise_spectrally(network)
        return networks


class BigGenerator(nn.Module):
    """Latents (B, latent_dim), and labels (B,) if conditional, to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, knobs: BigGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        (*widths, top), base = levels("biggan", image_shape, knobs.width, knobs.max_width)
        self.base = (top, *base)
        first, *rest = (len(part) for part in torch.arange(knobs.latent_dim).tensor_split(len(widths) + 1))
        self.embedding = nn.Embedding(num_labels, knobs.label_dim) if num_labels else None
        self.project = nn.Linear(first, top * base[0] * base[1])
        blocks: list[nn.Module] = []
        for size, (level, width) in zip(rest, reversed(list(enumerate(widths))), strict=True):
            blocks += [Block(top, width, size + (knobs.label_dim if num_labels else 0))]
            if knobs.attention and level == min(1, len(widths) - 1):
                blocks += [Attention(width)]
            top = width
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(top)
        self.last = nn.Conv2d(top, image_shape[0], 3, padding=1)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        parts = iter(z.tensor_split(1 + sum(isinstance(block, Block) for block in self.blocks), dim=1))
        told = [] if self.embedding is None else [self.embedding(given(labels, self.num_labels))]
        maps = self.project(next(parts)).unflatten(1, self.base)
        for block in self.blocks:
            maps = block(maps, torch.cat([next(parts), *told], dim=1)) if isinstance(block, Block) else block(maps)
        return torch.tanh(self.last(F.relu(self.norm(maps))).float())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Block(nn.Module):
    """Maps (B, before, H, W) and a code (B, code_dim), of latent and label, to maps (B, after, 2 H, 2 W)."""

    def __init__(self, before: int, after: int, code_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([CodedNorm(before, code_dim), CodedNorm(after, code_dim)])
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        """Maps of the block, unbounded."""
        hidden = self.first(F.interpolate(F.relu(self.norms[0](maps, code)), scale_factor=2.0))
        hidden = self.second(F.relu(self.norms[1](hidden, code)))
        # a 1 x 1 convolution goes before or after alike
        doubled: Tensor = hidden + F.interpolate(self.shortcut(maps), scale_factor=2.0)
        return doubled


class CodedNorm(nn.Module):
    """Batch norm whose scales, around 1, and shifts are linear in a code (B, code_dim)."""

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scales, self.shifts = (nn.Linear(code_dim, channels, bias=False) for _ in range(2))

    def forward(self, maps: Tensor, code: Tensor) -> Tensor:
        """Maps (B, C, H, W), normalised."""
        scales, shifts = (layer(code)[:, :, None, None] for layer in (self.scales, self.shifts))
        scaled: Tensor = self.norm(maps) * (1 + scales) + shifts
        return scaled
