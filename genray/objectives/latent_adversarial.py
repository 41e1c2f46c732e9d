"""VAEs whose latents a discriminator judges.

Factor VAE: Kim and Mnih 2018, arXiv:1802.05983, section 3; adversarial autoencoder: Makhzani et al. 2015,
arXiv:1511.05644, section 2.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genray import distributed
from genray.objectives import likelihoods
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.elbo import ELBO
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class LatentAdversarial:
    """Negative bound, plus what a discriminator tells of the latents of the batch.

    factor: apart from latents whose dimensions are shuffled, each by itself, over the batch: their log odds are the
    total correlation. adversarial: apart from draws of the prior; then `beta` is 0, and the discriminator does
    what the KL would.
    """

    form: Literal["factor", "adversarial"] = "factor"
    """What the latents are told apart from: shuffled latents, or the prior."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Distribution of a pixel in [0, 1] given z."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    binarize: bool = True
    """Draw each pixel black or white with its grey as the probability; bernoulli only."""
    beta: float = 1.0
    """Weight of the KL term; 0 for an adversarial autoencoder."""
    gamma: float = 5.0
    """Weight of what the discriminator tells, in nats."""

    def __post_init__(self) -> None:
        self.elbo  # noqa: B018  its own checks
        if not self.gamma >= 0:
            raise ValueError(f"objective.gamma={self.gamma!r} must be at least 0")

    @property
    def elbo(self) -> ELBO:
        """The bound that it is built on, and scored by."""
        return ELBO(likelihood=self.likelihood, sigma=self.sigma, binarize=self.binarize, beta=self.beta)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, then autoencoder."""
        return Phase("discriminator", parts=("reals", "fakes")), Phase("vae")

    @property
    def product(self) -> str:
        """The autoencoder."""
        return "vae"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one whose decoder says something else of the pixels."""
        require_modules("latent-adversarial", ("vae", "discriminator"), model, judges="latents")
        likelihoods.check_output(self.likelihood, model)
        learned = getattr(model, "num_pseudo_inputs", 0)
        if learned and self.form == "adversarial":
            raise ValueError(
                f"objective.form='adversarial' draws latents to a normal prior, and model.num_pseudo_inputs={learned} "
                "learns another, which nothing would train; set model.num_pseudo_inputs to 0"
            )

    def prepare(self, networks: Networks, batch: Batch) -> tuple[Any, Tensor]:
        """What the autoencoder gives of the batch, with its graph, and the observations (B, C, H, W) in [0, 1]."""
        inputs, observations = self.elbo.prepare(networks, batch)
        bare: Any = networks.bare["vae"]
        noise = batch.draws.normal("posterior", bare.latent_dim)
        return networks.wrapped["vae"](inputs, noise, batch.labels if bare.num_labels else None), observations

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: tuple[Any, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a part of a phase, and its metrics; `shared` is what `prepare` gave."""
        found, observations = shared
        z = found.z.float()
        if phase == "discriminator":
            return self._discriminator_loss(part, networks, batch, z.detach())
        bare: Any = networks.bare["vae"]
        loss, metrics = self.elbo.bound_loss(found, observations, batch, bare.closed_kl)
        logits = networks.bare["discriminator"](z).float()
        told = logits.mean() if self.form == "factor" else F.softplus(logits).mean()
        loss = loss + self.gamma * told
        metrics |= {"vae/loss": loss, "vae/told": told}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _discriminator_loss(
        self, part: str, networks: Networks, batch: Batch, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        sign = 1.0
        if part == "reals":
            sign = -1.0
            z = shuffled(z, batch) if self.form == "factor" else batch.draws.normal("prior", z.shape[1])
        logits = networks.wrapped["discriminator"](z).float()
        loss = F.softplus(-sign * logits).mean()
        return loss, {
            f"discriminator/loss_{part}": loss.detach(),
            f"discriminator/accuracy_{part}": (sign * logits.detach() > 0).float().mean(),
        }


@torch.no_grad()
def shuffled(z: Tensor, batch: Batch) -> Tensor:
    """Latents (B, latent_dim) whose every dimension is permuted by itself over the global batch."""
    everywhere = distributed.gather(z)
    order = distributed.gather(batch.draws.uniform("shuffle", z.shape[1])).argsort(dim=0)
    return everywhere.gather(0, order)[batch.draws.start : batch.draws.stop]
