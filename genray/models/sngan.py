"""SNGAN: residual networks, of which the discriminator, or both, have spectral normalisation.

Miyato et al. 2018, arXiv:1802.05957; at 32 x 32 pixels, width 256 and discriminator_width 128 it is their network for
CIFAR-10. Labels: class-conditional batch norm (Dumoulin et al. 2017, arXiv:1610.07629) in the generator, projection
(Miyato and Koyama 2018, arXiv:1802.05637) in the discriminator, or an auxiliary classifier (Odena et al. 2017,
arXiv:1610.09585). Attention: Zhang et al. 2019, arXiv:1805.08318.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from genray.models.double_backward import Conv2d
from genray.models.knobs import at_least, check_classes, check_conditioning, given, levels, num_labels
from genray.models.trunk import TrunkClassifier

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
    conditioning: Literal["projection", "auxiliary-classifier"] = "projection"
    """What the discriminator does with labels: it is told them, or names them itself (AC-GAN)."""
    attention: bool = False
    """Self-attention in both networks, over maps of half of the image's sides; of 8 to 15 pixels: of the whole."""
    spectral: Literal["discriminator", "both", "none"] = "discriminator"
    """Networks whose weights are divided by their largest singular value; none for a gradient penalty alone."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim", "width", "discriminator_width", "max_width", "max_discriminator_width")
        check_conditioning(self.conditioning, self.conditional)

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        levels("sngan", image_shape, self.width, self.max_width)

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
    """Latents (B, latent_dim), and labels (B,) if conditional, to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, knobs: SNGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        (*widths, top), base = levels("sngan", image_shape, knobs.width, knobs.max_width)
        self.base = (top, *base)
        self.project = _initialised(nn.Linear(knobs.latent_dim, self.base[0] * self.base[1] * self.base[2]))
        blocks: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            blocks += [UpBlock(top, width, num_labels)]
            if knobs.attention and level == min(1, len(widths) - 1):
                blocks += [Attention(width)]
            top = width
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(top, num_labels)
        self.last = _initialised(nn.Conv2d(top, image_shape[0], 3, padding=1))
        if knobs.spectral == "both":
            normalise_spectrally(self)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        if self.num_labels:
            labels = given(labels, self.num_labels)
        maps = self.project(z).unflatten(1, self.base)
        for block in self.blocks:
            maps = block(maps, labels) if isinstance(block, UpBlock) else block(maps)
        return torch.tanh(self.last(F.relu(self.norm(maps, labels))).float())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): above 0 for real.

    An auxiliary classifier gives logits (B, K) of the classes beside them.
    """

    def __init__(self, knobs: SNGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        (*sizes, _), _ = levels("sngan", image_shape, knobs.discriminator_width, knobs.max_discriminator_width)
        width = sizes[0]
        blocks: list[nn.Module] = [DownBlock(image_shape[0], width, halve=len(sizes) > 1, first=True)]
        if knobs.attention:
            blocks += [Attention(width)]
        for after in sizes[1:-1]:
            blocks += [DownBlock(width, after, halve=True)]
            width = after
        for _ in range(2):
            blocks += [DownBlock(width, sizes[-1], halve=False)]
            width = sizes[-1]
        self.blocks = nn.Sequential(*blocks)
        self.pool = SumPool()
        self.head = _initialised(nn.Linear(width, 1))
        projects = knobs.conditioning == "projection"
        self.embedding = nn.Embedding(num_labels, width) if num_labels and projects else None
        self.class_head = _initialised(nn.Linear(width, num_labels)) if num_labels and not projects else None
        if self.embedding is not None:
            nn.init.xavier_uniform_(self.embedding.weight)
        if knobs.spectral != "none":
            normalise_spectrally(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B,), unbounded, and those of an auxiliary classifier (B, K)."""
        features = self.pool(self.blocks(images))
        # the layer itself would give its weight a gradient of transposed strides, which DDP copies, and warns about
        logits: Tensor = features @ self.head.weight.flatten() + self.head.bias
        if self.embedding is not None:
            logits = logits + (features * self.embedding(given(labels, self.num_labels))).sum(dim=1)
        return logits if self.class_head is None else (logits, self.class_head(features))

    def classifier(self) -> TrunkClassifier:
        """The auxiliary classifier by itself, of the same weights."""
        assert self.class_head is not None
        return TrunkClassifier("blocks", self.blocks, self.pool, self.class_head)


class SumPool(nn.Module):
    """Maps (B, C, H, W), rectified and summed over all places, to features (B, C)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Not negative."""
        return F.relu(maps).sum(dim=(2, 3))


@dataclass(frozen=True, kw_only=True)
class SNGANClassifier:
    """A classifier whose trunk is the discriminator of an `SNGAN` with the same knobs, so that its weights fit."""

    modules: ClassVar[tuple[str, ...]] = ("classifier",)

    discriminator_width: int = 64
    """As the GAN's."""
    max_discriminator_width: int = 512
    """As the GAN's."""
    attention: bool = False
    """As the GAN's."""
    spectral: Literal["discriminator", "both", "none"] = "discriminator"
    """As the GAN's; the head's weights are never divided."""

    def __post_init__(self) -> None:
        self.gan()

    def gan(self) -> SNGAN:
        """The GAN with these knobs."""
        return SNGAN(**{f.name: getattr(self, f.name) for f in fields(self)})

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, where the GAN does."""
        self.gan().check(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `classifier` of images (C, H, W) into `num_classes` classes.

        Raises:
            ValueError: fewer than two classes.
        """
        check_classes("sngan-classifier", num_classes)
        trunk = Discriminator(self.gan(), image_shape, 0)
        head = nn.Linear(trunk.head.in_features, num_classes)
        return {"classifier": TrunkClassifier("blocks", trunk.blocks, trunk.pool, head)}


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
        hidden = self.first(F.interpolate(F.relu(self.norms[0](maps, labels)), scale_factor=2.0))
        hidden = self.second(F.relu(self.norms[1](hidden, labels)))
        # a 1 x 1 convolution goes before or after alike
        doubled: Tensor = hidden + F.interpolate(self.shortcut(maps), scale_factor=2.0)
        return doubled


class DownBlock(nn.Module):
    """Maps (B, before, H, W) to maps (B, after, H, W), or half of those sides."""

    def __init__(self, before: int, after: int, *, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.begins = halve, first
        self.first = _initialised(Conv2d(before, after, 3, padding=1), 2**0.5)
        self.second = _initialised(Conv2d(after, after, 3, padding=1), 2**0.5)
        changes = before != after or halve
        self.shortcut: nn.Module = _initialised(Conv2d(before, after, 1)) if changes else nn.Identity()

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


def _initialised(layer: Layer, gain: float = 1.0) -> Layer:
    """`layer` with uniform weights that keep variance times gain² on the way there and back, and no bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def normalise_spectrally(network: nn.Module) -> None:
    """Spectral normalisation of every weight of `network` but those of `Norm`."""
    of_norms = {id(m) for norm in network.modules() if isinstance(norm, Norm) for m in norm.modules()}
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) and id(layer) not in of_norms:
            spectral_norm(layer)
