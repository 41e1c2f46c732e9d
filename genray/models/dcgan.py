"""DCGAN: a generator and a discriminator of strided convolutions.

Radford et al. 2016, arXiv:1511.06434; labels enter the discriminator by projection (Miyato and
Koyama 2018, arXiv:1802.05637). At 64 x 64 pixels the defaults are the network of that paper.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


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
    generator_norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution of the generator but the last."""
    discriminator_norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution of the discriminator but the first; none for a gradient penalty."""
    activation: Literal["relu", "leaky-relu"] = "relu"
    """Non-linearity of the generator; the discriminator's is leaky-relu."""
    negative_slope: float = 0.2
    """Slope of leaky-relu below zero."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "max_width", "min_base"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be at least 1")
        if not 0 <= self.negative_slope < 1:
            raise ValueError(f"model.negative_slope={self.negative_slope!r} must lie in [0, 1), e.g. 0.2")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        _num_doublings(self, image_shape)

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

    def __init__(self, knobs: DCGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        *widths, top = _widths(knobs, image_shape)
        bias = knobs.generator_norm == "none"
        slope = knobs.negative_slope if knobs.activation == "leaky-relu" else 0.0
        self.base = (top, *_base(knobs, image_shape))
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
            z = torch.cat([z, self.embedding(_given(labels, self.num_labels))], dim=1)
        images = self.layers(self.project(z).unflatten(1, self.base))
        return torch.tanh(images.float())  # in bf16 tanh is flat, and gives no gradient, above 0.998

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same as `generate`."""
        return self.generate(z, labels)


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): above 0 for real."""

    def __init__(self, knobs: DCGAN, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        first, *widths = _widths(knobs, image_shape)
        bias = knobs.discriminator_norm == "none" or not widths  # without a batch norm nothing else shifts
        slope = knobs.negative_slope
        layers: list[nn.Module] = [nn.Conv2d(image_shape[0], first, 4, 2, 1, bias=bias), _rectifier(slope)]
        top = first
        for width in widths:
            layers += [nn.Conv2d(top, width, 4, 2, 1, bias=bias)]
            layers += [*_norm(knobs.discriminator_norm, width), _rectifier(slope)]
            top = width
        self.layers = nn.Sequential(*layers)
        height, width = _base(knobs, image_shape)
        num_features = top * height * width
        self.head = nn.Linear(num_features, 1, bias=bias)
        self.embedding = nn.Embedding(num_labels, num_features) if num_labels else None
        self.apply(_initialise)
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.weight)  # begins as an unconditional discriminator

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,), unbounded."""
        features = self.layers(images).flatten(1)
        # the layer itself would give its weight a gradient of transposed strides, which DDP copies, and warns about
        logits: Tensor = features @ self.head.weight.flatten()
        if self.head.bias is not None:
            logits = logits + self.head.bias
        if self.embedding is not None:
            embedded = self.embedding(_given(labels, self.num_labels))
            logits = logits + (features * embedded).sum(dim=1)
        return logits


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
        if num_classes < 2:
            raise ValueError(f"model dcgan-classifier needs 2 classes or more, and the data have {num_classes}")
        return {"classifier": DiscriminatorClassifier(self.gan(), image_shape, num_classes)}


class DiscriminatorClassifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, K) of their classes."""

    def __init__(self, knobs: DCGAN, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        trunk = Discriminator(knobs, image_shape, 0)
        self.layers = trunk.layers
        self.feature_dim = trunk.head.in_features
        self.head = nn.Linear(self.feature_dim, num_classes)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The network from the image to the logits, in parts that may be frozen one by one; the head is last."""
        starts = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Conv2d)]
        parts = (tuple(self.layers[a:b]) for a, b in zip(starts, [*starts[1:], len(self.layers)], strict=True))
        return (*parts, (self.head,))

    @property
    def map_layer(self) -> nn.Module:
        """The layer whose maps the features are."""
        return self.layers

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of images (B, C, H, W) in [-1, 1]: (B, feature_dim)."""
        maps: Tensor = self.layers(images)
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), unbounded."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _num_doublings(knobs: DCGAN, image_shape: tuple[int, int, int]) -> int:
    """Levels between the base and the image."""
    _, height, width = image_shape
    base = knobs.min_base
    doublings = max(0, (min(height, width) // base).bit_length() - 1)
    step = 2**doublings
    if doublings == 0:
        problem = f"each side must be at least {2 * base}"
        use = (max(height // 2 * 2, 2 * base), max(width // 2 * 2, 2 * base))
    else:
        problem = (
            f"the smaller side must be {base} to {2 * base - 1} times a power of two, "
            "and the other a multiple of that power"
        )
        use = (height // step * step, width // step * step)
    if doublings == 0 or height % step or width % step:
        raise ValueError(
            f"model dcgan cannot make images of {height} x {width} pixels: {problem}; "
            f"set data.image_size, e.g. to {use[0]} {use[1]}"
        )
    return doublings


def _base(knobs: DCGAN, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the smallest map."""
    step = 2 ** _num_doublings(knobs, image_shape)
    return image_shape[1] // step, image_shape[2] // step


def _widths(knobs: DCGAN, image_shape: tuple[int, int, int]) -> list[int]:
    """Channels of each level, from the image inwards."""
    return [min(knobs.max_width, knobs.width * 2**level) for level in range(_num_doublings(knobs, image_shape))]


def _norm(kind: str, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if kind == "batch" else []


def _rectifier(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def _given(labels: Tensor | None, num_labels: int) -> Tensor:
    if labels is None:
        raise ValueError(f"this network is conditional, and got no labels; pass labels (B,) from 0 to {num_labels - 1}")
    return labels


def _initialise(module: nn.Module) -> None:
    """The paper's initial weights: N(0, 0.02), N(1, 0.02) for the scales of batch norm, no bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
