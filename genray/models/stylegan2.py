"""StyleGAN2: styles made from the latent scale the weights of every layer of the generator.

Karras et al. 2020, arXiv:1912.04958, as arXiv:2006.06676 has it for CIFAR-10: no style mixing while training; path
length regularisation is the objective's. Without the noise per pixel, whose weights begin at zero.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models.double_backward import convolve, leaky_relu
from genray.models.knobs import at_least, given, levels, num_labels
from genray.models.resampling import Double, Halve

SLOPE = 0.2
"""Of leaky-relu below zero."""
MEAN_DECAY = 0.998
"""Of the mean style, per step."""


@dataclass(frozen=True, kw_only=True)
class StyleGAN2:
    """Knobs of both networks.

    The generator doubles a base of 4 to 7 pixels on the smaller side, the discriminator mirrors it; level i, counted
    from the image, has `min(max_width, width * 2**i)` channels. The last layers of the discriminator see how much
    images vary within groups of neighbours in the batch: of `deviation_group`, where a rank's share of the batch is a
    multiple of that; then any number of ranks sees the same groups.
    """

    modules: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    latent_dim: int = 128
    """Numbers in a latent z."""
    style_dim: int = 128
    """Numbers in a style w; 512 in the paper."""
    num_mapping_layers: int = 2
    """Layers from z to w; 8 in the paper, 2 for CIFAR-10."""
    mapping_lr: float = 0.01
    """Learning rate of those layers, as a multiple of that of the others."""
    width: int = 64
    """Channels at the level of the image."""
    max_width: int = 512
    """Most channels of any level."""
    deviation_group: int = 4
    """Images whose deviation from each other the discriminator sees; 1: none."""
    conditional: bool = False
    """Give class labels to both networks; needs two classes or more."""

    def __post_init__(self) -> None:
        at_least(1, self, "latent_dim", "style_dim", "num_mapping_layers", "width", "max_width", "deviation_group")
        if not self.mapping_lr > 0:
            raise ValueError(f"model.mapping_lr={self.mapping_lr!r} must be above 0, e.g. 0.01")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        levels("stylegan2", image_shape, self.width, self.max_width)

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
    """Latents (B, latent_dim), and labels (B,) if conditional, to images (B, C, H, W), nearly all in [-1, 1].

    `mean_style`, (K, style_dim) or (1, style_dim), is the running mean of the styles of each class, of one rank's share
    of the batch between two checkpoints: what truncation goes towards.
    """

    mean_style: Tensor

    def __init__(self, knobs: StyleGAN2, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.latent_dim = knobs.latent_dim
        self.num_labels = num_labels
        self.embedding = nn.Embedding(num_labels, knobs.latent_dim) if num_labels else None
        size = knobs.latent_dim * (2 if num_labels else 1)
        layers: list[nn.Module] = []
        for _ in range(knobs.num_mapping_layers):
            layers += [Linear(size, knobs.style_dim, lr=knobs.mapping_lr), Rectifier()]
            size = knobs.style_dim
        self.mapping = nn.Sequential(*layers)
        self.register_buffer("mean_style", torch.zeros(max(1, num_labels), knobs.style_dim))
        widths, base = levels("stylegan2", image_shape, knobs.width, knobs.max_width)
        widths.reverse()
        self.constant = nn.Parameter(torch.randn(1, widths[0], *base))
        synthesis = [
            SynthesisLevel(widths[max(0, i - 1)], width, knobs.style_dim, image_shape[0], doubles=i > 0)
            for i, width in enumerate(widths)
        ]
        self.levels = nn.ModuleList(synthesis)
        self.num_styles = sum(level.num_styles for level in synthesis)

    def styles(self, z: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Styles (B, style_dim) of latents (B, latent_dim) and, if conditional, labels (B,).

        Args:
            z: only its direction counts.
            labels: of each image.
            truncation: share of the way from the mean style (of the class) at which each style lies.
        """
        z = _unit(z)
        if self.embedding is not None:
            # as long as a one-hot label: one as long as z would drown it, and each class be one image
            told = _unit(self.embedding(given(labels, self.num_labels))) * self.embedding.embedding_dim**-0.5
            z = torch.cat([z, told], dim=1)
        w: Tensor = self.mapping(z)
        if self.training and torch.is_grad_enabled():
            self._move_mean(w.detach().float(), labels)
        if truncation != 1:
            w = torch.lerp(self._means(labels, len(w)).to(w.dtype), w, truncation)
        return w

    def synthesise(self, styles: Tensor) -> Tensor:
        """Images (B, C, H, W), meant to lie in [-1, 1].

        Args:
            styles: (B, style_dim) for all layers, or (B, num_styles, style_dim) for one after the other.
        """
        if styles.ndim == 2:
            styles = styles[:, None].expand(-1, self.num_styles, -1)
        maps, image = self.constant.expand(len(styles), -1, -1, -1), torch.zeros(())
        rest = iter(styles.unbind(1))
        for level in self.levels:
            maps, image = level(maps, image, rest)
        return image.float()

    def generate(self, z: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Images (B, C, H, W) of the latents (B, latent_dim) and, if conditional, labels (B,)."""
        return self.synthesise(self.styles(z, labels, truncation))

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, with_styles: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The same as `generate`, without truncation; and, if asked for, the styles (B, style_dim)."""
        styles = self.styles(z, labels)
        images = self.synthesise(styles)
        return (images, styles) if with_styles else images

    def _means(self, labels: Tensor | None, num: int) -> Tensor:
        return self.mean_style.expand(num, -1) if self.embedding is None else self.mean_style[labels]

    @torch.no_grad()
    def _move_mean(self, styles: Tensor, labels: Tensor | None) -> None:
        members = styles.new_ones(1, len(styles))
        if self.embedding is not None:
            members = F.one_hot(given(labels, self.num_labels), self.num_labels).T.to(styles.dtype)
        counts = members.sum(dim=1, keepdim=True)
        means = members @ styles / counts.clamp(min=1)
        self.mean_style.lerp_(means, counts.clamp(max=1) * (1 - MEAN_DECAY))  # classes without members stay


class SynthesisLevel(nn.Module):
    """Maps of the level before, its image and styles to maps and an image of this level."""

    def __init__(self, before: int, width: int, style_dim: int, channels: int, *, doubles: bool) -> None:
        super().__init__()
        self.num_styles = 3 if doubles else 2
        self.upsample = Double()
        self.first = ModulatedConv(before, width, 3, style_dim) if doubles else None
        self.second = ModulatedConv(width, width, 3, style_dim)
        self.to_image = ModulatedConv(width, channels, 1, style_dim, demodulate=False)
        self.biases = nn.Parameter(torch.zeros(2 if doubles else 1, width, 1, 1))
        self.image_bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, maps: Tensor, image: Tensor, styles: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, width, H, W) and an image (B, C, H, W), of twice the sides where the level doubles.

        Takes `num_styles` of `styles`; the image of a level that does not double is not read.
        """
        if self.first is not None:
            maps, image = self.upsample(maps), self.upsample(image)
            maps = _rectified(self.first(maps, next(styles)) + self.biases[0])
        maps = _rectified(self.second(maps, next(styles)) + self.biases[-1])
        own = self.to_image(maps, next(styles)) + self.image_bias
        return maps, image + own if self.first is not None else own


class ModulatedConv(nn.Module):
    """A convolution whose weights are, for each image, scaled by its style and then brought to length 1.

    Scaling the input before and the output after gives the same numbers without weights of each image.
    """

    def __init__(self, before: int, after: int, kernel: int, style_dim: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.affine = Linear(style_dim, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.scale, self.demodulate = (before * kernel**2) ** -0.5, demodulate

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Maps (B, after, H, W) of maps (B, before, H, W) and style (B, style_dim)."""
        scales = self.affine(style)  # (B, before)
        weight = self.weight * self.scale
        made = convolve(maps * scales[:, :, None, None], weight, padding=(weight.shape[-1] // 2,) * 2)
        if self.demodulate:
            lengths = scales.float().square() @ weight.float().square().sum(dim=(2, 3)).T  # squared: (B, after)
            made = made * torch.rsqrt(lengths + 1e-8)[:, :, None, None].to(made.dtype)
        return made


class Discriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if conditional, to logits (B,): above 0 for real."""

    def __init__(self, knobs: StyleGAN2, image_shape: tuple[int, int, int], num_labels: int) -> None:
        super().__init__()
        self.num_labels, self.deviation_group = num_labels, knobs.deviation_group
        widths, base = levels("stylegan2", image_shape, knobs.width, knobs.max_width)
        layers: list[nn.Module] = [Conv(image_shape[0], widths[0], 1), Rectifier()]
        for before, after in itertools.pairwise(widths):
            layers += [DiscriminatorLevel(before, after)]
        self.levels = nn.Sequential(*layers)
        top = widths[-1]
        self.last = Conv(top + (knobs.deviation_group > 1), top, 3)
        self.hidden = Linear(top * math.prod(base), top)
        self.head = Linear(top, knobs.latent_dim if num_labels else 1)
        self.embedding = nn.Embedding(num_labels, knobs.latent_dim) if num_labels else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,), unbounded."""
        maps = self.levels(images)
        if self.deviation_group > 1:
            maps = torch.cat([maps, _deviations(maps, self.deviation_group)], dim=1)
        features = _rectified(self.hidden(_rectified(self.last(maps)).flatten(1)))
        logits: Tensor = self.head(features)
        if self.embedding is None:
            return logits.squeeze(1)
        embedded = _unit(self.embedding(given(labels, self.num_labels)))
        projected: Tensor = (logits * embedded).sum(dim=1) / embedded.shape[1] ** 0.5
        return projected


class DiscriminatorLevel(nn.Module):
    """Maps (B, before, H, W) to maps (B, after, H / 2, W / 2), by two convolutions and a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = Conv(before, before, 3)
        self.second = Conv(before, after, 3)
        self.shortcut = Conv(before, after, 1, bias=False)
        self.halve = Halve()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the level."""
        hidden = self.halve(_rectified(self.second(_rectified(self.first(maps)))))
        total: Tensor = (hidden + self.shortcut(self.halve(maps))) * 0.5**0.5
        return total


class Linear(nn.Module):
    """A linear layer whose weights are kept at variance 1, and scaled when used: Adam then moves all layers alike."""

    def __init__(self, before: int, after: int, *, lr: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / lr)
        self.bias = nn.Parameter(torch.full((after,), bias / lr))
        self.scale, self.lr = lr * before**-0.5, lr

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, after) of (B, before)."""
        return F.linear(inputs, self.weight * self.scale, self.bias * self.lr)


class Conv(nn.Module):
    """A convolution whose weights are kept at variance 1, and scaled when used."""

    def __init__(self, before: int, after: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale = (before * kernel**2) ** -0.5

    def forward(self, maps: Tensor) -> Tensor:
        """(B, after, H, W) of (B, before, H, W)."""
        return convolve(maps, self.weight * self.scale, self.bias, padding=(self.weight.shape[-1] // 2,) * 2)


class Rectifier(nn.Module):
    """Leaky-relu that keeps the variance."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Of the same shape."""
        return _rectified(inputs)


def _rectified(inputs: Tensor) -> Tensor:
    return leaky_relu(inputs, SLOPE) * 2**0.5


def _unit(vectors: Tensor) -> Tensor:
    """Each of `vectors` (B, D) with a mean square of 1."""
    return vectors * torch.rsqrt(vectors.square().mean(dim=1, keepdim=True) + 1e-8)


def _deviations(maps: Tensor, group: int) -> Tensor:
    """Mean standard deviation within each group of neighbours in the batch, (B, 1, H, W)."""
    group = math.gcd(group, len(maps))
    exact = torch.promote_types(maps.dtype, torch.float32)
    grouped = maps.to(exact).reshape(-1, group, *maps.shape[1:])
    # torch's own variance takes many times as long along this dimension
    variances = (grouped - grouped.mean(dim=1, keepdim=True)).square().mean(dim=1)
    deviations: Tensor = (variances + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviations.repeat_interleave(group)[:, None, None, None].expand(-1, 1, *maps.shape[2:]).to(maps.dtype)
