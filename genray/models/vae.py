"""Variational autoencoders with a normal posterior of independent dimensions.

Kingma and Welling 2014, arXiv:1312.6114. Decoders end in logits: the sigmoid of them is the
probability (Bernoulli) or the mean (Gaussian) of a pixel in [0, 1].
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

LOGVAR_RANGE = (-20.0, 10.0)
"""Bounds of the posterior's log variance: its exponential stays finite whatever the encoder says."""


@dataclass(frozen=True, kw_only=True)
class ConvVAE:
    """Strided convolutions down to a base of 4 to 7 pixels on the smaller side, and back.

    Level i, counted from the image, has `min(max_width, width * 2**i)` channels. Batch norm takes
    its statistics from one rank's share of the batch.
    """

    modules: ClassVar[tuple[str, ...]] = ("vae",)

    latent_dim: int = 32
    """Numbers in a latent z."""
    width: int = 32
    """Channels at the level next to the image."""
    max_width: int = 256
    """Most channels of any level."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation after every convolution but the decoder's last."""

    def __post_init__(self) -> None:
        _at_least_one(self, "latent_dim", "width", "max_width")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be made by doubling a base."""
        _num_doublings(image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); it has no use for labels.

        Raises:
            ValueError: a size that cannot be made.
        """
        return {"vae": VAE(_conv_encoder(self, image_shape), _conv_decoder(self, image_shape), self.latent_dim)}


@dataclass(frozen=True, kw_only=True)
class MLPVAE:
    """Fully connected layers on the flattened image; any size, best below 32 x 32 pixels."""

    modules: ClassVar[tuple[str, ...]] = ("vae",)

    latent_dim: int = 20
    """Numbers in a latent z."""
    hidden: int = 400
    """Units of each hidden layer."""
    num_layers: int = 1
    """Hidden layers of the encoder, and of the decoder."""

    def __post_init__(self) -> None:
        _at_least_one(self, "latent_dim", "hidden", "num_layers")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Any size will do."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); it has no use for labels."""
        num_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        hidden = [self.hidden] * self.num_layers
        encoder = nn.Sequential(nn.Flatten(), *_dense([num_pixels, *hidden, 2 * self.latent_dim]))
        decoder = nn.Sequential(*_dense([self.latent_dim, *hidden, num_pixels]), nn.Unflatten(1, image_shape))
        return {"vae": VAE(encoder, decoder, self.latent_dim)}


class VAE(nn.Module):
    """An encoder to (B, 2 * latent_dim) and a decoder from (B, latent_dim) to logits (B, C, H, W)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_labels = 0
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of images (B, C, H, W) in [-1, 1], each (B, latent_dim), fp32."""
        mu, logvar = self.encoder(images).float().chunk(2, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Logits (B, C, H, W) of the pixels, unbounded, of the latents (B, latent_dim)."""
        logits: Tensor = self.decoder(z)
        return logits

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim); labels are not used."""
        return 2 * torch.sigmoid(self.decode(z).float()) - 1

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the reconstruction (B, C, H, W), and `mu`, `logvar` of the posterior that z is drawn from.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, latent_dim), standard normal.
        """
        mu, logvar = self.encode(images)
        z = mu + noise * torch.exp(0.5 * logvar)
        return self.decode(z), mu, logvar


def _conv_encoder(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> nn.Module:
    widths = [image_shape[0], *_widths(knobs, image_shape)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=knobs.norm == "none"), *_norm_relu(knobs.norm, after)]
    height, width = _base(image_shape)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, 2 * knobs.latent_dim))


def _conv_decoder(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> nn.Module:
    widths = _widths(knobs, image_shape)[::-1]
    base = (widths[0], *_base(image_shape))
    layers: list[nn.Module] = [nn.Linear(knobs.latent_dim, base[0] * base[1] * base[2]), nn.Unflatten(1, base)]
    layers += _norm_relu(knobs.norm, widths[0])
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=knobs.norm == "none")]
        layers += _norm_relu(knobs.norm, after)
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], image_shape[0], 4, 2, 1))


def _dense(sizes: list[int]) -> list[nn.Module]:
    """Linear layers through these sizes with ReLU in between."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _norm_relu(kind: str, channels: int) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(channels)] if kind == "batch" else []
    return [*norm, nn.ReLU(inplace=True)]


def _num_doublings(image_shape: tuple[int, int, int]) -> int:
    """Levels between the base and the image."""
    _, height, width = image_shape
    doublings = max(0, (min(height, width) // 4).bit_length() - 1)
    step = 2**doublings
    if doublings == 0:
        problem, use = "each side must be at least 8", (max(height // 2 * 2, 8), max(width // 2 * 2, 8))
    else:
        problem = "the smaller side must be 4 to 7 times a power of two, and the other a multiple of that power"
        use = (height // step * step, width // step * step)
    if doublings == 0 or height % step or width % step:
        raise ValueError(
            f"model conv-vae cannot make images of {height} x {width} pixels: {problem}; "
            f"set data.image_size, e.g. to {use[0]} {use[1]}, or choose model mlp-vae"
        )
    return doublings


def _base(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the smallest map."""
    step = 2 ** _num_doublings(image_shape)
    return image_shape[1] // step, image_shape[2] // step


def _widths(knobs: ConvVAE, image_shape: tuple[int, int, int]) -> list[int]:
    """Channels of each level, from the image inwards."""
    return [min(knobs.max_width, knobs.width * 2**level) for level in range(_num_doublings(image_shape))]


def _at_least_one(knobs: ConvVAE | MLPVAE, *names: str) -> None:
    for name in names:
        if getattr(knobs, name) < 1:
            raise ValueError(f"model.{name}={getattr(knobs, name)!r} must be at least 1")
