"""SNGAN: residual networks, of which the discriminator, or both, have spectral normalisation.

Miyato et al. 2018, arXiv:1802.05957; at 32 x 32 pixels, width 256 and discriminator_width 128 it is their network for
CIFAR-10. Labels: class-conditional batch norm (Dumoulin et al. 2017, arXiv:1610.07629) in the generator, projection
(Miyato and Koyama 2018, arXiv:1802.05637) in the discriminator. Attention: Zhang et al. 2019, arXiv:1805.08318.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class SNGAN:
    """Knobs of both networks.

    The generator doubles a base of 4 to 7 pixels on the smaller side; level i, counted from the image, has
    `min(max_width, width * 2**i)` channels. The discriminator halves the image to twice that base, and has two more
    blocks there; its widths follow `discriminator_width` in the same way.
    Batch norm takes its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    latent_dim: int = 128
    """Numbers in a latent z."""
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
    attention: bool = False
    """Self-attention in both networks, over maps of half of the image's sides; of 8 to 15 pixels: of the whole."""
    spectral: Literal["discriminator", "both", "none"] = "discriminator"
    """Networks whose weights are divided by their largest singular value; none for a gradient penalty alone."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "discriminator_width", "max_width", "max_discriminator_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be at least 1")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        _num_doublings(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """Fresh `generator` and `discriminator` for images of (C, H, W).

        Raises:
            ValueError: a size that cannot be made, or labels asked of fewer than two classes.
        """
        if self.conditional and num_classes < 2:
            raise ValueError(
                f"model.conditional needs 2 classes or more, and the data have {num_classes}; "
                "set model.conditional to false"
            )
        num_labels = num_classes if self.conditional else 0
        return {
            "generator": Generator(self, image_shape, num_labels),
            "discriminator": Discriminator(self, image_shape, num_labels),
        }


class Generator(nn.Module):
    """Latents (B, latent_dim), and labels (B,) if conditional, to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, knobs: SNGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        levels = _num_doublings(image_shape)
        *widths, top = [min(knobs.max_width, knobs.width * 2**level) for level in range(levels + 1)]
        self.base = (top, image_shape[1] >> levels, image_shape[2] >> levels)
        self.project = _initialised(nn.Linear(knobs.latent_dim, self.base[0] * self.base[1] * self.base[2]))
        blocks: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            blocks += [UpBlock(top, width, num_labels)]
            if knobs.attention and level == min(1, levels - 1):
                blocks += [Attention(width)]
            top = width
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(top, num_labels)
        self.last = _initialised(nn.Conv2d(top, image_shape[0], 3, padding=1))
        if knobs.spectral == "both":
            _normalise(self)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        if self.num_labels:
            labels = _given(labels, self.num_labels)
        maps = self.project(z).unflatten(1, self.base)
        for block in self.blocks:
            maps = block(maps, labels) if isinstance(block, UpBlock) else block(maps)
        return torch.tanh(self.last(F.relu(self.norm(maps, labels))).float())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): above 0 for real."""

    def __init__(self, knobs: SNGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        halvings = _num_doublings(image_shape) - 1
        sizes = [min(knobs.max_discriminator_width, knobs.discriminator_width * 2**i) for i in range(halvings + 1)]
        width = sizes[0]
        blocks: list[nn.Module] = [DownBlock(image_shape[0], width, halve=halvings > 0, first=True)]
        if knobs.attention:
            blocks += [Attention(width)]
        for after in sizes[1:halvings]:
            blocks += [DownBlock(width, after, halve=True)]
            width = after
        for _ in range(2):
            blocks += [DownBlock(width, sizes[-1], halve=False)]
            width = sizes[-1]
        self.blocks = nn.Sequential(*blocks)
        self.head = _initialised(nn.Linear(width, 1))
        self.embedding = nn.Embedding(num_labels, width) if num_labels else None
        if self.embedding is not None:
            nn.init.xavier_uniform_(self.embedding.weight)
        if knobs.spectral != "none":
            _normalise(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,), unbounded."""
        features = F.relu(self.blocks(images)).sum(dim=(2, 3))
        # the layer itself would give its weight a gradient of transposed strides, which DDP copies, and warns about
        logits: Tensor = features @ self.head.weight.flatten() + self.head.bias
        if self.embedding is not None:
            logits = logits + (features * self.embedding(_given(labels, self.num_labels))).sum(dim=1)
        return logits


class UpBlock(nn.Module):
    """Maps (B, before, H, W), and labels (B,) if conditional, to maps (B, after, 2 H, 2 W)."""

    def __init__(self, before: int, after: int, num_labels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([Norm(before, num_labels), Norm(after, num_labels)])
        self.first = _initialised(nn.Conv2d(before, after, 3, padding=1), 2**0.5)
        self.second = _initialised(nn.Conv2d(after, after, 3, padding=1), 2**0.5)
        self.shortcut = _initialised(nn.Conv2d(before, after, 1))

    def forward(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        """Maps of the block, unbounded."""
        hidden = self.first(_doubled(F.relu(self.norms[0](maps, labels))))
        hidden = self.second(F.relu(self.norms[1](hidden, labels)))
        doubled: Tensor = hidden + _doubled(self.shortcut(maps))  # a 1 x 1 convolution goes before or after alike
        return doubled


class DownBlock(nn.Module):
    """Maps (B, before, H, W) to maps (B, after, H, W), or half of those sides."""

    def __init__(self, before: int, after: int, *, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.begins = halve, first
        self.first = _initialised(nn.Conv2d(before, after, 3, padding=1), 2**0.5)
        self.second = _initialised(nn.Conv2d(after, after, 3, padding=1), 2**0.5)
        changes = before != after or halve
        self.shortcut: nn.Module = _initialised(nn.Conv2d(before, after, 1)) if changes else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block, unbounded."""
        hidden = self.first(maps if self.begins else F.relu(maps))  # images have no use for a rectifier
        hidden = self.second(F.relu(hidden))
        total: Tensor = hidden + self.shortcut(maps)
        return F.avg_pool2d(total, 2) if self.halve else total


class Norm(nn.Module):
    """Batch norm whose scales and shifts are, if conditional, those of the label of each image."""

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_labels)
        self.scales_shifts = nn.Embedding(num_labels, 2 * channels) if num_labels else None
        if self.scales_shifts is not None:
            nn.init.ones_(self.scales_shifts.weight[:, :channels])
            nn.init.zeros_(self.scales_shifts.weight[:, channels:])

    def forward(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        """Maps (B, C, H, W), normalised."""
        normal: Tensor = self.norm(maps)
        if self.scales_shifts is None:
            return normal
        scales, shifts = self.scales_shifts(labels)[:, :, None, None].chunk(2, dim=1)
        scaled: Tensor = normal * scales + shifts
        return scaled


class Attention(nn.Module):
    """Every place of maps (B, C, H, W) with what others have that fits it, times a weight that begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries, self.keys = (nn.Conv2d(channels, max(1, channels // 8), 1, bias=False) for _ in range(2))
        self.values = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.out = nn.Conv2d(max(1, channels // 2), channels, 1, bias=False)
        for layer in (self.queries, self.keys, self.values, self.out):
            _initialised(layer)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape."""
        queries = self.queries(maps).flatten(2)  # (B, C / 8, places)
        keys = F.max_pool2d(self.keys(maps), 2).flatten(2)  # (B, C / 8, places / 4)
        values = F.max_pool2d(self.values(maps), 2).flatten(2)
        shares = torch.softmax((queries.transpose(1, 2) @ keys).float(), dim=2).to(values.dtype)
        seen = (values @ shares.transpose(1, 2)).view(len(maps), -1, *maps.shape[2:])
        attended: Tensor = maps + self.weight * self.out(seen)
        return attended


def _num_doublings(image_shape: tuple[int, int, int]) -> int:
    """Levels between a base of 4 to 7 pixels and the image."""
    _, height, width = image_shape
    doublings = max(0, (min(height, width) // 4).bit_length() - 1)
    step = 2 ** max(1, doublings)
    if doublings == 0 or height % step or width % step:
        use = [max(8, side // step * step) for side in (height, width)]
        raise ValueError(
            f"model sngan cannot make images of {height} x {width} pixels: the smaller side must be 4 to 7 times a "
            "power of two from 2 on, and the other a multiple of that power; "
            f"set data.image_size, e.g. to {use[0]} {use[1]}"
        )
    return doublings


def _doubled(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0, mode="nearest")


def _initialised(layer: Layer, gain: float = 1.0) -> Layer:
    """`layer` with uniform weights that keep variance times gain² on the way there and back, and no bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _normalise(network: nn.Module) -> None:
    """Spectral normalisation of every weight of `network` but those of `Norm`."""
    of_norms = {id(m) for norm in network.modules() if isinstance(norm, Norm) for m in norm.modules()}
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) and id(layer) not in of_norms:
            spectral_norm(layer)


def _given(labels: Tensor | None, num_labels: int) -> Tensor:
    if labels is None:
        raise ValueError(f"this network is conditional, and got no labels; pass labels (B,) from 0 to {num_labels - 1}")
    return labels
