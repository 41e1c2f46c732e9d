"""Deterministic autoencoders whose latents are kept together, and whose decoder is kept smooth.

Ghosh et al. 2020, arXiv:1903.12436, equations 9 to 11: RAE-L2 with `decoder_l2`, RAE-GP with `gradient_penalty`.
To draw from one, fit a distribution to its latents afterwards: `genray fit`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genray.objectives import likelihoods
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.elbo import ACTIVE_VARIANCE
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class RAE:
    """Reconstruction loss, half the squared length of the latents, and a charge on the decoder, per image."""

    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    """What the reconstruction loss is the negative log of; greys are not binarised."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    beta: float = 1.0
    """Weight of half the squared length of a latent."""
    decoder_l2: float = 0.0
    """Weight of the squared length of the decoder's weights."""
    gradient_penalty: float = 0.0
    """Weight of the squared derivatives of all pixels by the latent."""

    def __post_init__(self) -> None:
        for name in ("beta", "decoder_l2", "gradient_penalty"):
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
        """Raises ValueError for a model of other modules, or with a prior or posterior that is not trained here."""
        require_modules("rae", ("vae",), model)
        likelihoods.check_output(self.likelihood, model)
        for name in ("num_flows", "num_pseudo_inputs", "blocks_per_level"):
            if getattr(model, name, 0):
                raise ValueError(
                    f"model.{name}={getattr(model, name)} has no part in objective rae, whose latents are the "
                    "encoder's means; choose model mlp-vae or conv-vae without it, or objective elbo"
                )

    def prepare(self, networks: Networks, batch: Batch) -> None:
        """Nothing: one phase shares nothing."""

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss per image, and metrics."""
        bare: Any = networks.bare["vae"]
        labels = batch.labels if bare.num_labels else None
        no_noise = torch.zeros(len(batch.images), bare.latent_dim, device=batch.images.device)
        found = networks.wrapped["vae"](batch.images, no_noise, labels)
        parameters = found.parameters.float()
        targets = (batch.images.float() + 1) / 2
        recon_loss = likelihoods.nll(self.likelihood, parameters, targets, self.sigma).mean()
        length = 0.5 * found.mu.float().square().sum(dim=1).mean()
        loss = recon_loss + self.beta * length
        metrics = {"vae/recon_loss": recon_loss, "vae/half_squared_latent": length}
        if self.decoder_l2:
            metrics["vae/decoder_l2"] = torch.stack([p.square().sum() for p in bare.decoder.parameters()]).sum()
            loss = loss + self.decoder_l2 * metrics["vae/decoder_l2"]
        if self.gradient_penalty:
            pixels = torch.sigmoid(parameters.chunk(parameters.shape[1] // targets.shape[1], dim=1)[0])
            directions = batch.draws.normal("directions", *pixels.shape[1:])
            metrics["vae/gradient_penalty"] = squared_derivatives(pixels, found.z, directions).mean()
            loss = loss + self.gradient_penalty * metrics["vae/gradient_penalty"]
        metrics["vae/loss"] = loss
        metrics["vae/active_units"] = (found.mu.detach().float().var(0, correction=0) > ACTIVE_VARIANCE).float().sum()
        return loss, {name: value.detach() for name, value in metrics.items()}


def squared_derivatives(pixels: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    """Sum of the squared derivatives of all pixels of an image by its latent, estimated without bias: (B,).

    The mean over standard normal `directions` v of the squared length of J^T v is the sum of the squares of J
    (Hutchinson 1990); differentiable.

    Args:
        pixels: (B, C, H, W), computed from `z` itself, each image from its own row.
        z: (B, latent_dim).
        directions: (B, C, H, W).
    """
    (products,) = torch.autograd.grad((pixels * directions).sum(), z, create_graph=True)
    return products.square().sum(dim=1)
