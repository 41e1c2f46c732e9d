"""Lower bounds of the log likelihood of a variational autoencoder, and charges on its posterior.

Kingma and Welling 2014, arXiv:1312.6114, equation 10; beta: Higgins et al. 2017; binarisation drawn
anew for every batch: Burda et al. 2016, arXiv:1509.00519. Bounds of several samples: `bounds.py`;
charges: `regularisers.py`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genray.objectives import likelihoods
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.bounds import (
    combined_bound,
    doubly_reparametrised,
    importance_bound,
    log_ratio_of_latents,
    partial_bound,
)
from genray.objectives.matching import require_modules
from genray.objectives.regularisers import (
    distance_to_capacity,
    gaussian_kl,
    squared_mmd,
    total_correlation,
    with_free_bits,
)

ACTIVE_VARIANCE = 0.01
"""Variance of a posterior mean over images from which on its dimension counts as used (Burda et al., section 5.2)."""


@dataclass(frozen=True, kw_only=True)
class ELBO:
    """Reconstruction loss plus weighted charges on the posterior, in nats per image; or a tighter bound.

    beta-VAE: `beta`. Disentangled beta-VAE: `capacity`. beta-TC-VAE: `total_correlation`, beyond its share in the KL.
    InfoVAE: `mmd` with `beta` below 1; Wasserstein autoencoder: with `beta` 0. IWAE and its relatives: `bound`.
    """

    WHOLE_MOVABLE: ClassVar[tuple[str, ...]] = ("num_samples",)

    likelihood: Literal["bernoulli", "gaussian", "logistic-mixture"] = "bernoulli"
    """Distribution of a pixel in [0, 1] given z: bernoulli for near-binary greys, gaussian or logistic-mixture for
    colour; model.output must fit."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian with model.output=logits only."""
    binarize: bool = True
    """Draw each pixel black or white with its grey as the probability; bernoulli only."""
    bound: Literal["elbo", "iwae", "ciwae", "piwae"] = "elbo"
    """What is raised: elbo; iwae, the log of mean importance weights (MIWAE with several groups); ciwae, a mixture of
    both; piwae, iwae over all samples for the decoder and MIWAE for the encoder."""
    num_samples: int = 1
    """Latents of an image in each group; above 1 for tighter bounds than elbo."""
    num_groups: int = 1
    """Groups of them, over which bounds are averaged; iwae and piwae only."""
    estimator: Literal["pathwise", "dreg"] = "pathwise"
    """Gradient of the encoder: pathwise, whose noise grows with num_samples beside its signal; dreg, the same in the
    mean with less noise, iwae with a normal prior and posterior only."""
    elbo_share: float = 0.5
    """Weight of the ELBO in the mixture; ciwae only."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the bound itself."""
    kl_warmup_samples: int = 0
    """Images over which that weight, and those below, rise linearly from zero."""
    free_bits: float = 0.0
    """Nats that the mean KL of each latent dimension may have for nothing."""
    capacity: float = 0.0
    """Nats that the mean KL is drawn to, instead of 0."""
    capacity_samples: int = 0
    """Images over which the capacity rises linearly from 0 to its value."""
    total_correlation: float = 0.0
    """Weight of the dependence between latent dimensions, added to its share in the KL term."""
    mmd: float = 0.0
    """Nats that a discrepancy (MMD, from 0 to 14) of 1 between the latents of the batch and the prior costs."""

    def __post_init__(self) -> None:
        for name in ("beta", "kl_warmup_samples", "capacity_samples", *_CHARGES):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 0")
        for name in ("num_samples", "num_groups"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 1")
        if not self.sigma > 0:
            raise ValueError(f"objective.sigma={self.sigma!r} must be above 0, e.g. 0.1")
        if not 0 <= self.elbo_share <= 1:
            raise ValueError(f"objective.elbo_share={self.elbo_share!r} must lie in [0, 1], e.g. 0.5")
        self._check_together()

    def _check_together(self) -> None:
        """Raises ValueError for knobs that would have no effect beside the others."""
        if self.bound == "elbo" and self.num_samples * self.num_groups > 1:
            raise ValueError(
                f"objective.bound='elbo' takes one latent of an image, and num_samples={self.num_samples}, "
                f"num_groups={self.num_groups} ask for more; set --objective.bound iwae, or both to 1"
            )
        if self.bound == "ciwae" and self.num_groups > 1:
            raise ValueError(f"objective.num_groups={self.num_groups} with bound='ciwae', expected 1; set it to 1")
        if self.estimator == "dreg" and self.bound != "iwae":
            raise ValueError(
                f"objective.estimator='dreg' with bound={self.bound!r}, expected 'iwae'; set it to pathwise"
            )
        charges = [name for name in _CHARGES if getattr(self, name) > 0]
        if self.bound != "elbo" and charges:
            raise ValueError(
                f"objective.{charges[0]}={getattr(self, charges[0])!r} is a charge on the KL of the ELBO, which "
                f"bound={self.bound!r} has not; set it to 0, or --objective.bound elbo"
            )
        if self.free_bits > 0 and self.capacity > 0:
            raise ValueError(
                f"objective.free_bits={self.free_bits!r} and capacity={self.capacity!r} both change what the KL costs; "
                "set one of them to 0"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The autoencoder."""
        return (Phase("vae"),)

    @property
    def product(self) -> str:
        """The autoencoder."""
        return "vae"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one whose decoder says something else of the pixels."""
        require_modules("elbo", ("vae",), model)
        likelihoods.check_output(self.likelihood, model)
        bent = [name for name in ("num_flows", "num_pseudo_inputs", "blocks_per_level") if getattr(model, name, 0)]
        if bent and self.estimator == "dreg":
            raise ValueError(
                f"objective.estimator='dreg' is for a normal prior and posterior, and model.{bent[0]}="
                f"{getattr(model, bent[0])} makes others; set objective.estimator to pathwise"
            )
        own = [name for name in ("num_pseudo_inputs", "blocks_per_level") if getattr(model, name, 0)]
        if own and self.bound == "piwae":
            raise ValueError(
                f"objective.bound='piwae' tells encoder from decoder by their latents, and model.{own[0]}="
                f"{getattr(model, own[0])} makes a prior that learns beside both; set objective.bound to iwae"
            )
        charged = [name for name in ("free_bits", "total_correlation", "mmd") if getattr(self, name) > 0]
        if bent and charged:
            raise ValueError(
                f"objective.{charged[0]}={getattr(self, charged[0])!r} is for a normal prior and posterior, and "
                f"model.{bent[0]}={getattr(model, bent[0])} makes others; set objective.{charged[0]} to 0"
            )

    def beta_at(self, samples_seen: int) -> float:
        """Weight of the KL term after `samples_seen` images."""
        return self.beta * self._warmth(samples_seen)

    def capacity_at(self, samples_seen: int) -> float:
        """Nats that the KL is drawn to after `samples_seen` images."""
        return self.capacity * (min(1.0, samples_seen / self.capacity_samples) if self.capacity_samples else 1.0)

    def nll(self, parameters: Tensor, observations: Tensor) -> Tensor:
        """-log p(observations | z), in nats, (B,), of what the decoder says; observations (B, C, H, W) in [0, 1]."""
        return likelihoods.nll(self.likelihood, parameters, observations, self.sigma)

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
        """Negative bound per image with its weighted charges, and metrics; `shared` is what `prepare` gave."""
        inputs, observations = shared
        bare: Any = networks.bare["vae"]
        num = self.num_samples * self.num_groups
        noise = batch.draws.normal("posterior", *(() if num == 1 else (num,)), bare.latent_dim)
        found = networks.wrapped["vae"](inputs, noise, batch.labels if bare.num_labels else None)
        if self.bound == "elbo":
            loss, metrics = self.bound_loss(found, observations, batch, bare.closed_kl)
        else:
            loss, metrics = self._importance_loss(found, observations, batch)
        metrics["vae/loss"] = loss
        metrics["vae/active_units"] = (found.mu.detach().float().var(0, correction=0) > ACTIVE_VARIANCE).float().sum()
        if self.kl_warmup_samples:
            metrics["vae/beta"] = torch.full_like(loss, self.beta_at(batch.samples_seen))
        return loss, {name: value.detach() for name, value in metrics.items()}

    def bound_loss(
        self, found: Any, observations: Tensor, batch: Batch, closed_kl: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative bound of one draw with its weighted charges, and its metrics, of what a VAE gave."""
        mu, logvar = found.mu.float(), found.logvar.float()
        recon_loss = self.nll(found.parameters.float(), observations).mean()
        per_dimension = gaussian_kl(mu, logvar)
        kl = per_dimension.sum(dim=1).mean() if closed_kl else (found.log_q - found.log_p).mean()
        metrics = {"vae/recon_loss": recon_loss, "vae/kl": kl, "vae/elbo": -(recon_loss + kl)}
        charged = kl
        if self.free_bits:
            charged = with_free_bits(per_dimension, self.free_bits)
        elif self.capacity:
            charged = distance_to_capacity(kl, self.capacity_at(batch.samples_seen))
        loss = recon_loss + self.beta_at(batch.samples_seen) * charged
        if self.total_correlation:
            metrics["vae/total_correlation"] = total_correlation(found.z.float(), mu, logvar)
            loss = loss + self.total_correlation * self._warmth(batch.samples_seen) * metrics["vae/total_correlation"]
        if self.mmd:
            prior = batch.draws.normal("prior", mu.shape[1])
            metrics["vae/mmd"] = squared_mmd(found.z.float(), prior)
            loss = loss + self.mmd * self._warmth(batch.samples_seen) * metrics["vae/mmd"]
        return loss, metrics

    def _importance_loss(self, found: Any, observations: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        num = self.num_samples * self.num_groups
        targets = observations.repeat_interleave(num, dim=0)
        log_likelihood = -self.nll(found.parameters.float(), targets).view(-1, num)
        if self.estimator == "dreg":
            log_ratio = log_ratio_of_latents(found.z, found.mu, found.logvar, num)
        else:
            log_ratio = (found.log_p - found.log_q).float()
        beta = self.beta_at(batch.samples_seen)
        weighted = beta * log_ratio
        log_weights = (log_likelihood + weighted).view(-1, self.num_groups, self.num_samples)

        def scale_gradient(factors: Tensor) -> None:
            if found.z.requires_grad:
                found.z.register_hook(lambda gradient: gradient * factors.flatten().unsqueeze(1))

        if self.bound == "piwae":
            bound = partial_bound(log_likelihood, weighted, scale_gradient, self.num_groups)
        elif self.bound == "ciwae":
            bound = combined_bound(log_weights, self.elbo_share)
        else:
            bound = importance_bound(log_weights)
            if self.estimator == "dreg":
                scale_gradient(doubly_reparametrised(log_weights.detach(), beta))
        recon_loss, kl = -log_likelihood.mean(), -log_ratio.mean()
        metrics = {"vae/recon_loss": recon_loss, "vae/kl": kl, "vae/elbo": -(recon_loss + kl)}
        return -bound.mean(), metrics

    def _warmth(self, samples_seen: int) -> float:
        return min(1.0, samples_seen / self.kl_warmup_samples) if self.kl_warmup_samples else 1.0


_CHARGES = ("free_bits", "capacity", "total_correlation", "mmd")


def bound_of(objective: Any) -> ELBO | None:
    """The bound of the likelihood that an objective raises, alone or beside other things; None: it raises none."""
    bound = getattr(objective, "elbo", objective)
    return bound if isinstance(bound, ELBO) else None
