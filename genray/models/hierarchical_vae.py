"""A variational autoencoder with a hierarchy of latent maps, drawn from the coarsest to the finest.

In the manner of Child 2021, arXiv:2011.10650: both posterior and prior of a map depend on all coarser ones, and
the encoder's maps enter at their own resolution.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from genray.models.knobs import at_least, check_halvings
from genray.models.latent_distributions import Pass
from genray.models.pixel_distributions import mean_images, num_outputs

LOGVAR_RANGE = (-10.0, 4.0)
"""Bounds of log variances: of posteriors and priors alike."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalVAE:
    """Levels of residual blocks from the image down by halves, and as many of latent blocks back up."""

    modules: ClassVar[tuple[str, ...]] = ("vae",)

    width: int = 64
    """Channels of every level."""
    latent_channels: int = 8
    """Channels of every latent map."""
    num_halvings: int = 2
    """Halvings of each side from the image to the coarsest map."""
    blocks_per_level: int = 2
    """Latent maps of each level, and residual blocks of the encoder's."""
    output: Literal["logits", "scale", "logistic-mixture"] = "logits"
    """What the decoder says of a pixel: logits, with a scale beside them, or a mixture."""

    def __post_init__(self) -> None:
        at_least(1, self, "width", "latent_channels", "num_halvings", "blocks_per_level")

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError, with the cure, when images of (C, H, W) cannot be halved as often."""
        check_halvings("hierarchical-vae", "num_halvings", self.num_halvings, image_shape)

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, nn.Module]:
        """A fresh `vae` for images of (C, H, W); it has no use for labels.

        Raises:
            ValueError: a size that cannot be halved as often.
        """
        self.check(image_shape)
        return {"vae": HierarchicalNetwork(self, image_shape)}


class HierarchicalNetwork(nn.Module):
    """Encoder maps at every resolution; latent blocks, coarse to fine, shared by posterior and prior."""

    closed_kl = False
    num_labels = 0

    def __init__(self, knobs: HierarchicalVAE, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.output = knobs.output
        width, count = knobs.width, knobs.blocks_per_level
        # coarsest first
        sizes = [(image_shape[1] // 2**level, image_shape[2] // 2**level) for level in range(knobs.num_halvings, 0, -1)]
        self.shapes = [(knobs.latent_channels, *size) for size in sizes for _ in range(count)]
        self.latent_dim = sum(math.prod(shape) for shape in self.shapes)
        self.stem = nn.Conv2d(image_shape[0], width, 3, 1, 1)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(2), *(Residual(width, width) for _ in range(count))) for _ in sizes
        )
        self.start = nn.Parameter(torch.zeros(1, width, *sizes[0]))
        self.latents = nn.ModuleList(LatentBlock(width, knobs.latent_channels) for _ in self.shapes)
        last = num_outputs(knobs.output, image_shape[0])
        self.head = nn.Sequential(Residual(width, width), nn.SiLU(), nn.Conv2d(width, last, 3, 1, 1))

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of all posteriors, each given the means of coarser ones, each (B, latent_dim), fp32."""
        found = self(images, torch.zeros(len(images), self.latent_dim, device=images.device))
        return found.mu, found.logvar

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean images (B, C, H, W) in [-1, 1] of normal numbers (B, latent_dim), through the priors."""
        return mean_images(self._descend(None, z)[0], self.output)

    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as they come back through the means of their posteriors."""
        noise = torch.zeros(len(images), self.latent_dim, device=images.device)
        return mean_images(self._descend(self._maps(images), noise)[0], self.output)

    def forward(self, images: Tensor, noise: Tensor, labels: Tensor | None = None) -> Pass:
        """The posteriors of each image, latents drawn from them, and what the decoder says of them.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, latent_dim) or (B, K, latent_dim), standard normal.
            labels: not used.
        """
        noise = noise if noise.ndim == 3 else noise.unsqueeze(1)
        num = noise.shape[1]
        maps = [each.repeat_interleave(num, dim=0) for each in self._maps(images)]
        parameters, drawn = self._descend(maps, noise.flatten(0, 1))
        z, mu, logvar, log_q, log_p = (torch.cat([part[i] for part in drawn], dim=1) for i in range(5))
        log_q, log_p = (x.sum(dim=1).view(-1, num) for x in (log_q, log_p))
        return Pass(parameters, mu[::num], logvar[::num], z, log_q, log_p)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The encoder's maps, coarsest first."""
        maps, x = [], self.stem(images)
        for down in self.downs:
            x = down(x)
            maps.append(x)
        return maps[::-1]

    def _descend(self, maps: list[Tensor] | None, noise: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """What is said of the pixels, and of every map its flat latents, posterior and log densities."""
        x = self.start.expand(len(noise), -1, -1, -1)
        drawn, sizes = [], [math.prod(shape) for shape in self.shapes]
        per_level = len(self.shapes) // len(self.downs)
        for index, (block, own) in enumerate(zip(self.latents, torch.split(noise, sizes, dim=1), strict=True)):
            if index and index % per_level == 0:
                x = nn.functional.interpolate(x, scale_factor=2)
            seen = None if maps is None else maps[index // per_level]
            x, parts = block(x, seen, own.view(-1, *self.shapes[index]))
            drawn.append(tuple(part.flatten(1) for part in parts))
        return self.head(nn.functional.interpolate(x, scale_factor=2)), drawn


class LatentBlock(nn.Module):
    """One latent map: prior from what is above, posterior from that and the encoder's map; added to the stream."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.prior = Residual(width, 2 * channels + width)
        self.posterior = Residual(2 * width, 2 * channels)
        self.project = nn.Conv2d(channels, width, 1)
        self.mix = Residual(width, width)
        self.channels = channels

    def forward(self, x: Tensor, seen: Tensor | None, noise: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The stream after the map, and z, mean, log variance, log q, log p of every number of it, (B, D, h, w).

        Args:
            x: (B, width, h, w).
            seen: the encoder's map, (B, width, h, w). None: z is drawn from the prior.
            noise: (B, D, h, w).
        """
        about = self.prior(x)
        prior_mu, prior_logvar = about[:, : 2 * self.channels].float().chunk(2, dim=1)
        prior_logvar = prior_logvar.clamp(*LOGVAR_RANGE)
        mu, logvar = prior_mu, prior_logvar
        if seen is not None:
            mu, logvar = self.posterior(torch.cat([x, seen], dim=1)).float().chunk(2, dim=1)
            logvar = logvar.clamp(*LOGVAR_RANGE)
        z = mu + noise * torch.exp(0.5 * logvar)
        log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
        deviations = (z - prior_mu) * torch.exp(-0.5 * prior_logvar)
        log_p = -0.5 * (deviations.square() + prior_logvar + math.log(2 * math.pi))
        return self.mix(x + about[:, 2 * self.channels :] + self.project(z)), (z, mu, logvar, log_q, log_p)


class Residual(nn.Module):
    """Two convolutions beside a shortcut where widths agree; the last starts near zero."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(before, before, 3, 1, 1), nn.Conv2d(before, after, 3, 1, 1)
        self.shortcut = before == after
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, after, h, w) of (B, before, h, w)."""
        silu = nn.functional.silu
        changed: Tensor = self.last(silu(self.first(silu(x))))
        return x + changed if self.shortcut else changed
