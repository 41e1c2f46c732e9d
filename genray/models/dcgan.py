"""DCGAN: a generator and a discriminator of strided convolutions.

Radford et al. 2016, arXiv:1511.06434; labels enter the discriminator by projection (Miyato and
Koyama 2018, arXiv:1802.05637), or are what it names (AC-GAN, Odena et al. 2017, arXiv:1610.09585).
At 64 x 64 pixels the defaults are the network of the first paper.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genray.models.double_backward import Conv2d
from genray.models.knobs import at_least, check_classes, check_conditioning, given, levels, num_labels
from genray.models.trunk import TrunkClassifier


@dataclass(frozen=True, kw_only=True)
class DCGAN:
    """Knobs of both networks.

    Each level halves or doubles the image, down to a base of at least `min_base` and less than twice
    as many pixels on the smaller side; level i, counted from the image, has
    `min(max_width, width * 2**i)` channels.
    Batch norm takes its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    latent_dim: int = 100
    """Numbers in a latent z."""
    width: int = 64
    """Channels at the level next to the image."""
    max_width: int = 512
    """Most channels of any level."""
    min_base: int = 4
    """Fewest pixels on the smaller side of the smallest map; 2 gives images of 8 to 15 pixels a second level."""
    conditional: bool = False
    """Give class labels to both networks; needs two classes or more."""
    conditioning: Literal["projection", "auxiliary-classifier"] = "projection"
    """What the discriminator does with labels: it is told them, or names them itself (AC-GAN)."""
    generator_norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution of the generator but the last."""
    discriminator_norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution of the discriminator but the first; none for a gradient penalty."""
    activation: Literal["relu", "leaky-relu"] = "relu"
    """Non-linearity of the generator; the discriminator's is leaky-relu."""
    negative_slope: float = 0.2
    """Slope of leaky-relu below zero."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim", "width", "max_width", "min_base")
        check_conditioning(self.conditioning, self.conditional)
        if not 0 <= self.negative_slope < 1:
            raise ValueError(f"model.negative_slope={self.negative_slope!r} must lie in [0, 1), e.g. 0.2")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        _levels(self, image_shape)

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

    def __init__(self, knobs: DCGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        (*widths, top), base = _levels(knobs, image_shape)
        bias = knobs.generator_norm == "none"
        slope = knobs.negative_slope if knobs.activation == "leaky-relu" else 0.0
        self.base = (top, *base)
        self.embedding = nn.Embedding(num_labels, knobs.latent_dim) if num_labels else None
        in_features = knobs.latent_dim * (2 if num_labels else 1)
        # a matrix product: what a transposed convolution of a 1 x 1 map with a kernel of the base's size is
        self.project = nn.Linear(in_features, self.base[0] * self.base[1] * self.base[2], bias=bias)
        layers: list[nn.Module] = [*_norm(knobs.generator_norm, top), _rectifier(slope)]
        for width in reversed(widths):
            layers += [nn.ConvTranspose2d(top, width, 4, 2, 1, bias=bias)]
            layers += [*_norm(knobs.generator_norm, width), _rectifier(slope)]
            top = width
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(top, image_shape[0], 4, 2, 1, bias=bias))
        self.apply(_initialise)
        if self.embedding is not None:
            # as long as a one-hot label: one as long as z would drown it, and each class be one image
            nn.init.normal_(self.embedding.weight, 0.0, knobs.latent_dim**-0.5)

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(given(labels, self.num_labels))], dim=1)
        images = self.layers(self.project(z).unflatten(1, self.base))
        return torch.tanh(images.float())  # in bf16 tanh is flat, and gives no gradient, above 0.998

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): above 0 for real.

    An auxiliary classifier gives logits (B, K) of the classes beside them.
    """

    def __init__(self, knobs: DCGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        (first, *widths), base = _levels(knobs, image_shape)
        bias = knobs.discriminator_norm == "none" or not widths  # without a batch norm nothing else shifts
        slope = knobs.negative_slope
        layers: list[nn.Module] = [Conv2d(image_shape[0], first, 4, 2, 1, bias=bias), _rectifier(slope)]
        top = first
        for width in widths:
            layers += [Conv2d(top, width, 4, 2, 1, bias=bias)]
            layers += [*_norm(knobs.discriminator_norm, width), _rectifier(slope)]
            top = width
        self.layers = nn.Sequential(*layers)
        num_features = top * base[0] * base[1]
        self.head = nn.Linear(num_features, 1, bias=bias)
        projects = knobs.conditioning == "projection"
        self.embedding = nn.Embedding(num_labels, num_features) if num_labels and projects else None
        self.class_head = nn.Linear(num_features, num_labels) if num_labels and not projects else None
        self.apply(_initialise)
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)  # begins as an unconditional discriminator

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B,), unbounded, and those of an auxiliary classifier (B, K)."""
        features = self.layers(images).flatten(1)
        # the layer itself would give its weight a gradient of transposed strides, which DDP copies, and warns about
        logits: Tensor = features @ self.head.weight.flatten()
        if self.head.bias is not None:
            logits = logits + self.head.bias
        if self.embedding is not None:
            embedded = self.embedding(given(labels, self.num_labels))
            logits = logits + (features * embedded).sum(dim=1)
        return logits if self.class_head is None else (logits, self.class_head(features))

    def classifier(self) -> TrunkClassifier:
        """The auxiliary classifier by itself, of the same weights."""
        assert self.class_head is not None
        return TrunkClassifier("layers", self.layers, nn.Flatten(), self.class_head)


@dataclass(frozen=True, kw_only=True)
class DCGANClassifier:
    """A classifier whose trunk is the discriminator of a `DCGAN` with the same knobs, so that its weights fit."""

    modules: ClassVar[tuple[str, ...]] = ("classifier",)

    width: int = 64
    """As the GAN's."""
    max_width: int = 512
    """As the GAN's."""
    min_base: int = 4
    """As the GAN's."""
    discriminator_norm: Literal["batch", "none"] = "batch"
    """As the GAN's."""
    negative_slope: float = 0.2
    """As the GAN's."""

    def __post_init__(self) -> None:
        self.gan()

    def gan(self) -> DCGAN:
        """The GAN with these knobs."""
        return DCGAN(**{f.name: getattr(self, f.name) for f in fields(self)})

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, where the GAN does."""
        self.gan().check(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `classifier` of images (C, H, W) into `num_classes` classes.

        Raises:
            ValueError: fewer than two classes.
        """
        check_classes("dcgan-classifier", num_classes)
        trunk = Discriminator(self.gan(), image_shape, 0)
        head = nn.Linear(trunk.head.in_features, num_classes)
        return {"classifier": TrunkClassifier("layers", trunk.layers, nn.Flatten(), head)}


def _levels(knobs: DCGAN, image_shape: tuple[int, int, int]) -> tuple[list[int], tuple[int, int]]:
    """Channels of each level that has a convolution, from the image inwards, and the sides of the smallest map."""
    widths, base = levels("dcgan", image_shape, knobs.width, knobs.max_width, knobs.min_base)
    return widths[:-1], base


def _norm(kind: str, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if kind == "batch" else []


def _rectifier(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def _initialise(module: nn.Module) -> None:
    """The paper's initial weights: N(0, 0.02), N(1, 0.02) for the scales of batch norm, no bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
