"""Variational autoencoders with a normal posterior of independent dimensions.

Kingma and Welling 2014, arXiv:1312.6114. What a decoder says of the pixels is named by `output`:
`logits`, whose sigmoid is the probability (Bernoulli) or the mean (Gaussian) of a pixel in [0, 1];
the same with a log standard deviation per pixel, or one for all (Rybkin et al. 2021,
arXiv:2006.13202); or a mixture of logistic distributions (Salimans et al. 2017, arXiv:1701.05517).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

LOGVAR_RANGE = (-20.0, 10.0)
"""Bounds of the posterior's log variance: its exponential stays finite whatever the encoder says."""
LEAST_LOG_SIGMA = -6.0
"""Least log standard deviation of a pixel on a scale of 0 to 1: well below a grey level."""
NUM_LOGISTICS = 10
"""Logistic distributions in the mixture of a pixel."""

Output = Literal["logits", "scale", "global-scale", "logistic-mixture"]


class Pass(NamedTuple):
    """What one forward pass says of B images with K latents of each."""

    parameters: Tensor
    """(B * K, P, H, W): of the distribution of the pixels, unbounded, the latents of an image in a row."""
    mu: Tensor
    """(B, latent_dim): mean of the normal distribution that the encoder names."""
    logvar: Tensor
    """(B, latent_dim): its log variance."""
    z: Tensor
    """(B * K, latent_dim): as the decoder took them; a hook here sees the decoder's gradient alone."""
    log_q: Tensor
    """(B, K), nats: log density of the latents under the posterior."""
    log_p: Tensor
    """(B, K), nats: and under the prior."""


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
    output: Output = "logits"
    """What the decoder says of a pixel: logits, with its own or one global scale beside them, or a mixture."""

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
        encoder, decoder = _conv_encoder(self, image_shape), _conv_decoder(self, image_shape)
        return {"vae": VAE(encoder, decoder, self.latent_dim, self.output)}


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
    output: Output = "logits"
    """What the decoder says of a pixel: logits, with its own or one global scale beside them, or a mixture."""

    def __post_init__(self) -> None:
        _at_least_one(self, "latent_dim", "hidden", "num_layers")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Any size will do."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); it has no use for labels."""
        num_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        hidden = [self.hidden] * self.num_layers
        encoder = nn.Sequential(nn.Flatten(), *_dense([num_pixels, *hidden, 2 * self.latent_dim]))
        shape = (num_outputs(self.output, image_shape[0]), *image_shape[1:])
        decoder = nn.Sequential(*_dense([self.latent_dim, *hidden, math.prod(shape)]), nn.Unflatten(1, shape))
        return {"vae": VAE(encoder, decoder, self.latent_dim, self.output)}


class VAE(nn.Module):
    """An encoder to (B, 2 * latent_dim) and a decoder from (B, latent_dim) to (B, P, H, W), of which `output` says P.

    Channels of a scale follow those of the logits; of a mixture see `mixture_parts`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, output: Output = "logits") -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_labels = 0
        self.output = output
        self.encoder = encoder
        self.decoder = decoder
        if output == "global-scale":
            self.log_sigma = nn.Parameter(torch.zeros(()))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior of images (B, C, H, W) in [-1, 1], each (B, latent_dim), fp32."""
        mu, logvar = self.encoder(images).float().chunk(2, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """What is said of the pixels, (B, P, H, W), unbounded, of the latents (B, latent_dim)."""
        decoded: Tensor = self.decoder(z)
        if self.output == "global-scale":
            decoded = torch.cat([decoded, self.log_sigma.to(decoded.dtype).expand_as(decoded)], dim=1)
        return decoded

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images (B, C, H, W) in [-1, 1] of the latents (B, latent_dim); labels are not used."""
        decoded = self.decode(z).float()
        if self.output == "logistic-mixture":
            weights, means, _ = mixture_parts(decoded)
            return (weights.softmax(dim=1).unsqueeze(2) * means).sum(dim=1).clamp(-1, 1)
        logits = decoded if self.output == "logits" else decoded.chunk(2, dim=1)[0]
        return 2 * torch.sigmoid(logits) - 1

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as they come back through the mean of their posterior."""
        return self.generate(self.encode(images)[0], labels)

    def forward(self, images: Tensor, noise: Tensor) -> Pass:
        """The posterior of each image, latents drawn from it, and what the decoder says of them.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, latent_dim) or (B, K, latent_dim), standard normal.
        """
        mu, logvar = self.encode(images)
        noise = noise if noise.ndim == 3 else noise.unsqueeze(1)
        z = mu.unsqueeze(1) + noise * torch.exp(0.5 * logvar).unsqueeze(1)
        taken = z.flatten(0, 1)
        log_q = normal_log_density(noise) - 0.5 * logvar.sum(dim=1, keepdim=True)
        return Pass(self.decode(taken), mu, logvar, taken, log_q, normal_log_density(z))


def num_outputs(output: Output, channels: int) -> int:
    """Channels that a decoder ends in, for images of `channels`."""
    return {
        "logits": channels,
        "global-scale": channels,
        "scale": 2 * channels,
        "logistic-mixture": NUM_LOGISTICS * (1 + 2 * channels),
    }[output]


def mixture_parts(decoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before the softmax (B, K, H, W), means on [-1, 1], log scales, each (B, K, C, H, W), of K logistics."""
    weights, rest = decoded[:, :NUM_LOGISTICS], decoded[:, NUM_LOGISTICS:]
    means, log_scales = rest.view(len(rest), 2, NUM_LOGISTICS, -1, *rest.shape[2:]).unbind(dim=1)
    return weights, means, log_scales


def normal_log_density(z: Tensor) -> Tensor:
    """Log density of a standard normal distribution, in nats, over the last dimension of `z`."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)


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
    last = num_outputs(knobs.output, image_shape[0])
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], last, 4, 2, 1))


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
