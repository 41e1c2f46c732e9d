"""Autoencoders with a map of codes, or of continuous latents, between encoder and decoder: image tokenizers.

van den Oord et al. 2017, arXiv:1711.00937 (vector quantisation); Mentzer et al. 2023, arXiv:2309.15505
(finite scalar quantisation); continuous latents: `latent_map.py`.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray.models.knobs import at_least, check_halvings
from genray.models.latent_map import Unquantized

USE_DECAY = 0.99
"""Per step: how much of the past the running use of the codes, and the codes themselves, keep."""
DEAD_USE = 0.03
"""Running use, as a multiple of an even one, below which a code is dead."""


class Tokenized(NamedTuple):
    """What one forward pass of a tokenizer gives."""

    logits: Tensor
    """(B, C, H, W): the sigmoid is the pixel in [0, 1]."""
    codes: Tensor
    """(B, h, w), int64: which code each place has; or continuous latents (B, code_dim, h, w), see `encode`."""
    features: Tensor
    """(B, code_dim, h, w): what was quantised; or the means of the continuous latents."""
    quantized: Tensor | None
    """(B, code_dim, h, w): the codes that it became, without gradient; None where codes are not learned."""
    logvar: Tensor | None = None
    """(B, code_dim, h, w): log variances of continuous latents; None where there are codes."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Residual convolutions down by halves to a map of codes, and back.

    Level i, counted from the image, has `width * 2**i` channels, at most `max_width`; group norm.
    """

    modules: ClassVar[tuple[str, ...]] = ("tokenizer",)

    quantizer: Literal["vq", "fsq", "none"] = "vq"
    """vq: the nearest of learned codes; fsq: every feature rounded to a few levels, a code for each combination; none:
    continuous latents with a normal posterior (KL autoencoder)."""
    num_codes: int = 512
    """Learned codes; vq only."""
    code_dim: int = 32
    """Numbers in a code, or in the latent of a place; not fsq."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each feature, at least 2; fsq only."""
    width: int = 32
    """Channels next to the image."""
    max_width: int = 256
    """Most channels of any level."""
    num_downsamplings: int = 2
    """Halvings of each side on the way to the codes."""
    num_blocks: int = 1
    """Residual blocks of each level, on each side."""

    def __post_init__(self) -> None:
        at_least(0, self, "num_downsamplings")
        at_least(1, self, "code_dim", "width", "max_width", "num_blocks")
        at_least(2, self, "num_codes")
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"model.levels={self.levels!r} must each be at least 2, e.g. 8 5 5 5")

    @property
    def kind(self) -> str:
        """What it competes with in the registry: generators of codes and of latents start from one or the other."""
        return "kl-tokenizer" if self.quantizer == "none" else "tokenizer"

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be halved as often."""
        check_halvings("tokenizer", "num_downsamplings", self.num_downsamplings, image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `tokenizer` for images of (C, H, W); it has no use for labels.

        Raises:
            ValueError: a size that cannot be halved as often.
        """
        self.check(image_shape)
        quantizer, dim = self._quantizer()
        widths = [min(self.max_width, self.width * 2**level) for level in range(self.num_downsamplings + 1)]
        encoder = _encoder(image_shape[0], widths, dim * (1 + (self.quantizer == "none")), self.num_blocks)
        decoder = _decoder(image_shape[0], widths, dim, self.num_blocks)
        height, width = (side >> self.num_downsamplings for side in image_shape[1:])
        return {"tokenizer": TokenizerNetwork(encoder, quantizer, decoder, (dim, height, width))}

    def _quantizer(self) -> tuple[nn.Module, int]:
        """A fresh quantiser, and the channels that go through it."""
        match self.quantizer:
            case "vq":
                return VQ(self.num_codes, self.code_dim), self.code_dim
            case "fsq":
                return FSQ(self.levels), len(self.levels)
            case "none":
                return Unquantized(self.code_dim), self.code_dim


@dataclass(frozen=True, kw_only=True)
class AdversarialTokenizer(Tokenizer):
    """The same beside a discriminator that judges patches of an image, each by itself."""

    modules: ClassVar[tuple[str, ...]] = ("tokenizer", "discriminator")

    discriminator_width: int = 32
    """Channels of the discriminator next to the image; they double with each halving."""
    discriminator_halvings: int = 2
    """Halvings of each side on the way to the patches' logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "discriminator_width", "discriminator_halvings")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be halved as often."""
        super().check(image_shape)
        if min(image_shape[1:]) < 2**self.discriminator_halvings:
            raise ValueError(
                f"model.discriminator_halvings={self.discriminator_halvings} leaves nothing of {image_shape[1]} x "
                f"{image_shape[2]} pixels; set it lower"
            )

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `tokenizer` and `discriminator` for images of (C, H, W)."""
        patches = PatchDiscriminator(image_shape[0], self.discriminator_width, self.discriminator_halvings)
        return super().build(image_shape, num_classes) | {"discriminator": patches}


class PatchDiscriminator(nn.Module):
    """Strided convolutions to one logit a patch."""

    def __init__(self, channels: int, width: int, num_halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(num_halvings):
            layers += [nn.Conv2d(channels, width * 2**level, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width * 2**level
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, 1, h, w) of the patches of images (B, C, H, W) in [-1, 1]; labels are not used."""
        logits: Tensor = self.layers(images)
        return logits


class VQ(nn.Module):
    """The nearest of K codes; `codebook` is a running mean of what each was nearest to.

    Nothing here is trained by gradients: whoever trains calls `start` once and `learn` after each step,
    with what all ranks have seen.
    """

    codebook: Tensor
    use: Tensor
    weights: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.register_buffer("codebook", torch.randn(num_codes, dim))
        self.register_buffer("use", torch.full((num_codes,), 1 / num_codes))
        # the codebook is sums / weights; unlike the use, the weight of a revived code starts anew
        self.register_buffer("weights", torch.full((num_codes,), 1 / num_codes))
        self.register_buffer("sums", self.codebook / num_codes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The values of the codes with the gradient of the features, the codes, and the values alone.

        Args:
            features: (B, D, h, w).
        """
        features = features.float()
        codes = nearest(features.permute(0, 2, 3, 1), self.codebook)
        quantized = self.values(codes)
        return features + (quantized - features).detach(), codes, quantized

    def values(self, codes: Tensor) -> Tensor:
        """(B, D, h, w) of codes (B, h, w)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def start(self, points: Tensor, order: Tensor, num_rounds: int = 10) -> None:
        """Places the codes by k-means on `points` (N, D), from those that `order` (N,), a permutation, names first."""
        chosen = order[torch.arange(self.num_codes, device=order.device) % len(order)]
        centres = points[chosen].clone()
        for _ in range(num_rounds):
            share, total = self.seen(points, nearest(points, centres))
            centres = torch.where(share.unsqueeze(1) > 0, total / share.clamp(min=1e-12).unsqueeze(1), centres)
        self.codebook.copy_(centres)
        self.weights.fill_(1 / self.num_codes)
        self.sums.copy_(centres / self.num_codes)

    def seen(self, points: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Share of `points` (N, D) that each code has, (K,), and the sum of them over N, (K, D)."""
        share = torch.zeros_like(self.use).index_add_(0, codes, torch.ones(len(codes), device=codes.device))
        total = torch.zeros_like(self.sums).index_add_(0, codes, points.to(self.sums.dtype))
        return share / len(codes), total / len(codes)

    @torch.no_grad()
    def learn(self, share: Tensor, total: Tensor, candidates: Tensor) -> None:
        """Moves use and codes by what `seen` gave over all ranks; dead codes become candidates.

        Where anything is not finite nothing moves: decided on the device.

        Args:
            share: (K,).
            total: (K, D).
            candidates: (M, D), features of this step.
        """
        use, weights = self.use.lerp(share, 1 - USE_DECAY), self.weights.lerp(share, 1 - USE_DECAY)
        sums = self.sums.lerp(total, 1 - USE_DECAY)
        dead = weights < DEAD_USE / self.num_codes
        # the n-th dead code takes the n-th candidate, and around again
        turn = (dead.cumsum(0) - 1).clamp(min=0) % len(candidates)
        weights = torch.where(dead, 1 / self.num_codes, weights)
        sums = torch.where(dead.unsqueeze(1), candidates[turn].to(sums.dtype) / self.num_codes, sums)
        finite = sums.isfinite().all() & use.isfinite().all()
        codebook = sums / weights.unsqueeze(1)
        for buffer, value in zip(
            (self.use, self.weights, self.sums, self.codebook), (use, weights, sums, codebook), strict=True
        ):
            buffer.copy_(torch.where(finite, value, buffer))


class FSQ(nn.Module):
    """Each feature squeezed into its levels and rounded; a code is a combination of levels, none has to be learned."""

    use: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.num_codes = math.prod(levels)
        self.register_buffer("use", torch.full((self.num_codes,), 1 / self.num_codes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values in [-1, 1] with a gradient as if they were not rounded, the codes, and None: codes are not learned."""
        levels = self._levels(features)
        # an even number of levels has no middle: half a step aside, and the rounding is symmetric all the same
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0).to(levels.dtype) / 2
        bounded = torch.tanh(features.float() + torch.atanh(offset / half)) * half - offset
        rounded = bounded.round()
        width = (levels - levels % 2) / 2
        digits = (rounded + width).detach().long()
        codes = (digits * self._places(features)).sum(dim=1)
        return (bounded + (rounded - bounded).detach()) / width, codes, None

    def values(self, codes: Tensor) -> Tensor:
        """(B, D, h, w) of codes (B, h, w)."""
        levels = torch.tensor(self.levels, device=codes.device).view(-1, 1, 1)
        digits = codes.unsqueeze(1) // self._places(codes) % levels
        width = (levels - levels % 2) / 2
        return (digits - width) / width

    @torch.no_grad()
    def learn(self, share: Tensor) -> None:
        """Moves the running use by the share (K,) that each code had over all ranks."""
        self.use.lerp_(share, 1 - USE_DECAY)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.levels, device=like.device, dtype=torch.float32).view(-1, 1, 1)

    def _places(self, like: Tensor) -> Tensor:
        places = [math.prod(self.levels[:index]) for index in range(len(self.levels))]
        return torch.tensor(places, device=like.device).view(-1, 1, 1)


class TokenizerNetwork(nn.Module):
    """Encoder, quantiser, decoder; images in [-1, 1] to codes, or to continuous latents, and these to images."""

    num_labels = 0

    def __init__(
        self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, latent_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self.continuous = isinstance(quantizer, Unquantized)
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def features(self, images: Tensor) -> Tensor:
        """(B, D, h, w), fp32, of images (B, C, H, W), before the quantiser."""
        return self.encoder(images).float()  # type: ignore[no-any-return]

    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, h, w), int64, of images (B, C, H, W); or continuous latents (B, code_dim, h, w).

        These are the means of their posteriors, scaled to mean 0 and deviation 1 over the images of training.
        """
        found = self.quantizer(self.features(images))
        codes: Tensor = self.quantizer.scaled(found[1]) if self.continuous else found[1]  # type: ignore[operator]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Logits (B, C, H, W) of what `encode` gives."""
        logits: Tensor = self.decoder(self.quantizer.values(codes))  # type: ignore[operator]
        return logits

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as they come back from their codes; labels are not used."""
        return 2 * torch.sigmoid(self.decode(self.encode(images)).float()) - 1

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tokenized:
        """Everything that the losses read of images (B, C, H, W) in [-1, 1].

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, *latent_shape), standard normal, with which continuous latents are drawn. None: their means.
        """
        features = self.features(images)
        if self.continuous:
            z, mu, logvar = self.quantizer(features, noise)
            return Tokenized(self.decoder(z), self.quantizer.scaled(mu), mu, None, logvar)  # type: ignore[operator]
        taken, codes, quantized = self.quantizer(features)
        return Tokenized(self.decoder(taken), codes, features, quantized)


def with_buffers_alone(module: nn.Module) -> nn.Module:
    """`module`, every parameter of which has become a buffer of the same name."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the centre nearest to each point: points (..., D), centres (K, D), (...), int64."""
    # the square of the point itself is the same for all centres; bf16 would not tell near centres apart
    kind = points.device.type
    with torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext():
        return (centres.square().sum(dim=1) - 2 * points.float() @ centres.T).argmin(dim=-1)


class _Block(nn.Module):
    """Two normalised convolutions beside a shortcut; the second starts at zero."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, 1, 1))
        self.second = nn.Sequential(_norm(after), nn.SiLU(), nn.Conv2d(after, after, 3, 1, 1))
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        nn.init.zeros_(self.second[2].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.shortcut(x) + self.second(self.first(x))
        return result


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _encoder(channels: int, widths: list[int], dim: int, num_blocks: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1)]
    for level, width in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width, 4, 2, 1))
        layers += [_Block(width, width) for _ in range(num_blocks)]
    return nn.Sequential(*layers, _norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], dim, 1))


def _decoder(channels: int, widths: list[int], dim: int, num_blocks: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(dim, widths[-1], 3, 1, 1)]
    for level in reversed(range(len(widths))):
        layers += [_Block(widths[level], widths[level]) for _ in range(num_blocks)]
        if level:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[level], widths[level - 1], 3, 1, 1)]
    return nn.Sequential(*layers, _norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, 1, 1))
