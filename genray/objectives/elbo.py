"""The evidence lower bound of a variational autoencoder.

Kingma and Welling 2014, arXiv:1312.6114, equation 10; beta: Higgins et al. 2017; binarisation drawn
anew for every batch: Burda et al. 2016, arXiv:1509.00519.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules

ACTIVE_VARIANCE = 0.01
"""Variance of a posterior mean over images from which on its dimension counts as used (Burda et al., section 5.2)."""


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """Reconstruction loss plus beta times the divergence of posterior from prior, in nats per image."""

    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Distribution of a pixel in [0, 1] given z: bernoulli for near-binary greys, gaussian for colour."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the bound itself."""
    kl_warmup_samples: int = 0
    """Images over which that weight rises linearly from zero."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    binarize: bool = True
    """Draw each pixel black or white with its grey as the probability; bernoulli only."""

    def __post_init__(self) -> None:
        for name in ("beta", "kl_warmup_samples"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 0")
        if not self.sigma > 0:
            raise ValueError(f"objective.sigma={self.sigma!r} must be above 0, e.g. 0.1")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The autoencoder."""
        return (Phase("vae"),)

    @property
    def product(self) -> str:
        """The autoencoder."""
        return "vae"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules."""
        require_modules("elbo", ("vae",), model)

    def beta_at(self, samples_seen: int) -> float:
        """Weight of the KL term after `samples_seen` images."""
        return self.beta * min(1.0, samples_seen / self.kl_warmup_samples) if self.kl_warmup_samples else self.beta

    def prepare(self, networks: Networks, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the encoder sees, (B, C, H, W) in [-1, 1], and the observations, the same in [0, 1]."""
        pixels = (batch.images.float() + 1) / 2
        if self.likelihood == "bernoulli" and self.binarize:
            pixels = (batch.draws.uniform("binarize", *pixels.shape[1:]) < pixels).float()
            return 2 * pixels - 1, pixels
        return batch.images, pixels

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative bound per image, its KL weighted by beta, and metrics; `shared` is what `prepare` gave."""
        inputs, observations = shared
        bare: Any = networks.bare["vae"]
        noise = batch.draws.normal("posterior", bare.latent_dim)
        logits, mu, logvar = networks.wrapped["vae"](inputs, noise)
        recon_loss = self._nll(logits.float(), observations).mean()
        kl = gaussian_kl(mu.float(), logvar.float()).sum(dim=1).mean()
        beta = self.beta_at(batch.samples_seen)
        loss = recon_loss + beta * kl
        metrics = {"vae/loss": loss, "vae/recon_loss": recon_loss, "vae/kl": kl, "vae/elbo": -(recon_loss + kl)}
        metrics["vae/active_units"] = (mu.detach().float().var(0, correction=0) > ACTIVE_VARIANCE).float().sum()
        if self.kl_warmup_samples:
            metrics["vae/beta"] = torch.full_like(loss, beta)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _nll(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.likelihood == "bernoulli":
            return bernoulli_nll(logits, targets)
        return gaussian_nll(torch.sigmoid(logits), targets, self.sigma)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mu, exp(logvar)) from N(0, 1) per dimension, in nats: (B, latent_dim), non-negative.

    Args:
        mu: (B, latent_dim).
        logvar: (B, latent_dim).
    """
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def bernoulli_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log probability of images whose pixels are 1 with probability sigmoid(logits), in nats: (B,).

    Args:
        logits: (B, C, H, W), unbounded.
        targets: (B, C, H, W) in {0, 1}; greys in between give a cross-entropy that is no likelihood.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).sum(dim=1)


def gaussian_nll(means: Tensor, targets: Tensor, sigma: float) -> Tensor:
    """Negative log density of images whose pixels are N(mean, sigma), in nats, may be negative: (B,).

    Args:
        means: (B, C, H, W) in [0, 1].
        targets: (B, C, H, W) in [0, 1].
        sigma: on the same scale, above 0.
    """
    constant = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return (0.5 * ((targets - means) / sigma).square() + constant).flatten(1).sum(dim=1)
