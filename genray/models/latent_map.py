"""A map of continuous latents between an encoder and a decoder, with a normal posterior at every place.

Kingma and Welling 2014, arXiv:1312.6114; between image and latent generator: Rombach et al. 2022, arXiv:2112.10752,
section 3.1 and appendix G, which scales latents to a deviation of 1.
"""

import torch
from torch import Tensor, nn

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds of the posterior's log variance: its exponential stays finite whatever the encoder says."""
MOMENTS_DECAY = 0.99
"""Per step: how much of the past the running moments of the latents keep."""
LEAST_VARIANCE = 1e-6
"""Below this a latent that never changes is not scaled any further."""


class Unquantized(nn.Module):
    """Latents as they are; `mean` and `square` are running means of each channel and of its square.

    Whoever trains calls `learn` after each step, with what all ranks have seen.
    """

    mean: Tensor
    square: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.ones(dim))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents drawn from their posteriors, the means of these, and their log variances, each (B, D, h, w).

        Args:
            features: (B, 2 D, h, w).
            noise: (B, D, h, w), standard normal. None: the means are taken.
        """
        mu, logvar = features.float().chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR_RANGE)
        return (mu if noise is None else mu + noise * torch.exp(0.5 * logvar)), mu, logvar

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents (B, D, h, w) as numbers of mean 0 and deviation 1 in each channel, over the images of training."""
        return (latents - self._mean()) / self._deviation()

    def values(self, scaled: Tensor) -> Tensor:
        """The latents (B, D, h, w) that `scaled` made these of."""
        return scaled * self._deviation() + self._mean()

    @torch.no_grad()
    def learn(self, mean: Tensor, square: Tensor) -> None:
        """Moves the moments by those, (D,), that the latents of a step had over all ranks."""
        self.mean.lerp_(mean, 1 - MOMENTS_DECAY)
        self.square.lerp_(square, 1 - MOMENTS_DECAY)

    @property
    def variance(self) -> Tensor:
        """Running variance of each channel, (D,)."""
        return (self.square - self.mean.square()).clamp(min=LEAST_VARIANCE)

    def _mean(self) -> Tensor:
        return self.mean.view(-1, 1, 1)

    def _deviation(self) -> Tensor:
        return self.variance.sqrt().view(-1, 1, 1)
