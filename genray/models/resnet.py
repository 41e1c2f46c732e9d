"""A small residual network that names the class of an image, and whose features compare images.

Basic blocks of He et al. 2016, arXiv:1512.03385.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from genray.models.knobs import at_least, check_classes


@dataclass(frozen=True, kw_only=True)
class ResNetClassifier:
    """Stages of residual blocks, each stage with half the size and twice the channels of the one before.

    Made for sides of 8 to 64 pixels: above 32 the first convolution halves them, and maps below
    4 pixels are not halved further. Batch norm takes its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("classifier",)

    width: int = 32
    """Channels of the first stage; the features have `width * 2**(num_stages - 1)` dimensions."""
    num_stages: int = 3
    """Stages of blocks."""
    blocks_per_stage: int = 1
    """Blocks, of two convolutions each, per stage."""

    def __post_init__(self) -> None:
        at_least(1, self, "width", "num_stages", "blocks_per_stage")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Any size will do."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `classifier` of images (C, H, W) into `num_classes` classes.

        Raises:
            ValueError: fewer than two classes.
        """
        check_classes("resnet-classifier", num_classes)
        return {"classifier": ResNet(self, image_shape, num_classes)}


class ResNet(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, K) of their classes."""

    def __init__(self, knobs: ResNetClassifier, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, *sides = image_shape
        side, width = min(sides), knobs.width
        stride = 2 if side > 32 else 1
        layers = [_conv_norm(channels, width, stride), nn.ReLU(inplace=True)]
        side = -(-side // stride)
        for stage in range(knobs.num_stages):
            stride = 2 if stage and side >= 4 else 1
            after = width * 2 if stage else width
            layers += [Block(width, after, stride)]
            layers += [Block(after, after, 1) for _ in range(knobs.blocks_per_stage - 1)]
            width, side = after, -(-side // stride)
        self.feature_dim = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The network from the image to the logits, in parts that may be frozen one by one; the head is last."""
        stem, relu, *blocks = self.layers
        return ((stem, relu), *((block,) for block in blocks), (self.head,))

    @property
    def map_layer(self) -> nn.Module:
        """The layer whose maps the features are means of."""
        return self.layers

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of images (B, C, H, W) in [-1, 1]: (B, feature_dim), not negative."""
        maps: Tensor = self.layers(images)
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), unbounded."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Block(nn.Module):
    """Two convolutions and a shortcut: (B, before, H, W) to (B, after, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(before, after, stride)
        self.second = _conv_norm(after, after, 1)
        changes = before != after or stride > 1
        self.shortcut = _conv_norm(before, after, stride, kernel=1) if changes else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block, not negative."""
        hidden = F.relu(self.first(maps))
        return F.relu(self.second(hidden) + self.shortcut(maps))


def _conv_norm(before: int, after: int, stride: int, kernel: int = 3) -> nn.Module:
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after))
