"""ResNet-18, 34 and 50 whose weights have torchvision's names and shapes, so that its files fit.

He et al. 2016, arXiv:1512.03385; the stride of a bottleneck is in its 3 x 3 convolution, as torchvision has it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genray.models.knobs import at_least, check_classes

Activation = Literal["relu", "silu", "gelu"]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
# of pixels in [0, 1], as torchvision's own weights expect them
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class TorchvisionResNet:
    """Four stages of residual blocks, the features of an image their mean over space.

    Batch norm takes its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("classifier",)

    depth: Literal[18, 34, 50] = 18
    """Layers with weights: 18 and 34 of two convolutions a block, 50 of three (bottlenecks)."""
    width: int = 64
    """Channels of the first stage; 64 is torchvision's."""
    stem: Literal["auto", "large", "small"] = "auto"
    """First convolution: large, 7 x 7 with stride 2; small, 3 x 3 with stride 1; auto: small up to 64 pixels."""
    max_pool: bool = True
    """Whether maps are halved by 3 x 3 max pooling after the first convolution."""
    hidden: int = 0
    """Units of a fully connected layer before the last; 0: none."""
    dropout: float = 0.0
    """Share of what the last layer sees that is set to 0 in training."""
    activation: Activation = "relu"
    """Nonlinearity of every layer."""
    statistics: Literal["data", "imagenet"] = "data"
    """Mean and deviation by which channels are normalised: of the training images, or of ImageNet."""

    def __post_init__(self) -> None:
        if self.depth not in _BLOCKS:
            raise ValueError(f"model.depth={self.depth!r} must be 18, 34 or 50")
        at_least(1, self, "width")
        if self.hidden < 0:
            raise ValueError(f"model.hidden={self.hidden!r} must be at least 0, units of a layer")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout!r} must lie in [0, 1), e.g. 0.2")
        for name, known in (("activation", _ACTIVATIONS), ("stem", ("auto", "large", "small"))):
            if getattr(self, name) not in known:
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be one of {', '.join(known)}")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError where images (C, H, W) have no ImageNet statistics, or are too small for the stem."""
        if self.statistics == "imagenet" and image_shape[0] != 3:
            raise ValueError(
                f"model.statistics='imagenet' is of 3 channels, and the images have {image_shape[0]}; "
                "set data.channels to 3, or model.statistics to data"
            )

    def is_small(self, image_shape: tuple[int, int, int]) -> bool:
        """Whether the first convolution is the small one."""
        return self.stem == "small" or (self.stem == "auto" and max(image_shape[1:]) <= SMALL_SIDE)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `classifier` of images (C, H, W) into `num_classes` classes.

        Raises:
            ValueError: fewer than two classes.
        """
        check_classes("torchvision-resnet", num_classes)
        return {"classifier": Classifier(self, image_shape, num_classes)}


class Standardise(nn.Module):
    """Images in [-1, 1] with each channel moved to mean 0 and deviation 1, by statistics kept with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, *, imagenet: bool) -> None:
        super().__init__()
        mean = 2 * torch.tensor(_IMAGENET_MEAN) - 1 if imagenet else torch.zeros(channels)
        std = 2 * torch.tensor(_IMAGENET_STD) if imagenet else torch.ones(channels)
        self.measures = not imagenet
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def measure(self, pixels: Tensor) -> None:
        """Takes the statistics of uint8 `pixels` (N, C, H, W), exactly, unless they are those of ImageNet."""
        if not self.measures:
            return
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)])
        shares = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64, device=shares.device) / 127.5 - 1
        mean = shares @ levels
        self.mean.copy_(mean)
        self.std.copy_((shares @ levels**2 - mean**2).clamp_min(1e-6).sqrt())

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B, K) of their classes."""

    def __init__(self, knobs: TorchvisionResNet, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, width = image_shape[0], knobs.width
        small = knobs.is_small(image_shape)
        self.standardise = Standardise(channels, imagenet=knobs.statistics == "imagenet")
        self.conv1 = _conv(channels, width, 3 if small else 7, 1 if small else 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = _ACTIVATIONS[knobs.activation]()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if knobs.max_pool else nn.Identity()
        before = width
        for stage, count in enumerate(_BLOCKS[knobs.depth]):
            inner = width * 2**stage
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                block = Bottleneck if knobs.depth == 50 else Basic
                blocks.append(block(before, inner, stride, _ACTIVATIONS[knobs.activation]))
                before = inner * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.feature_dim = knobs.hidden or before
        self.hidden = (
            nn.Sequential(nn.Linear(before, knobs.hidden), _ACTIVATIONS[knobs.activation]())
            if knobs.hidden
            else nn.Identity()
        )
        self.dropout = nn.Dropout(knobs.dropout)
        self.fc = nn.Linear(self.feature_dim, num_classes)

    @property
    def stages(self) -> tuple[tuple[nn.Module, ...], ...]:
        """The network from the image to the logits, in parts that may be frozen one by one; the head is last."""
        body = ((getattr(self, f"layer{n}"),) for n in (1, 2, 3, 4))
        return ((self.standardise, self.conv1, self.bn1), *body, (self.hidden, self.fc))

    @property
    def map_layer(self) -> nn.Module:
        """The layer whose maps the features are means of."""
        return self.get_submodule("layer4")

    def maps(self, images: Tensor) -> Tensor:
        """Maps (B, D, h, w) of the last stage."""
        hidden = self.maxpool(self.act(self.bn1(self.conv1(self.standardise(images)))))
        for stage in (1, 2, 3, 4):
            hidden = getattr(self, f"layer{stage}")(hidden)
        found: Tensor = hidden
        return found

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of images (B, C, H, W) in [-1, 1]: (B, feature_dim)."""
        found: Tensor = self.hidden(self.maps(images).mean(dim=(2, 3)))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), unbounded."""
        logits: Tensor = self.fc(self.dropout(self.features(images)))
        return logits


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: (B, before, H, W) to (B, inner, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, before: int, inner: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, 1), nn.BatchNorm2d(inner)
        self.act = activation()
        self.downsample = _shortcut(before, inner, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block."""
        hidden = self.bn2(self.conv2(self.act(self.bn1(self.conv1(maps)))))
        found: Tensor = self.act(hidden + self.downsample(maps))
        return found


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut: to (B, 4 * inner, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, before: int, inner: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        after = inner * self.expansion
        self.conv1, self.bn1 = _conv(before, inner, 1, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _conv(inner, after, 1, 1), nn.BatchNorm2d(after)
        self.act = activation()
        self.downsample = _shortcut(before, after, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the block."""
        hidden = self.act(self.bn1(self.conv1(maps)))
        hidden = self.bn3(self.conv3(self.act(self.bn2(self.conv2(hidden)))))
        found: Tensor = self.act(hidden + self.downsample(maps))
        return found


def _conv(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))
