"""Adversarial losses.

Goodfellow et al. 2014, arXiv:1406.2661 (non-saturating); Lim and Ye 2017, arXiv:1705.02894 (hinge);
Mescheder et al. 2018, arXiv:1801.04406 (gradient penalty on reals).
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class GAN:
    """The discriminator tells reals from fakes, in two backward passes; the generator makes its logits of fakes rise.

    Both phases of a step see the same fakes, made from one set of latents and, if the networks are
    conditional, the labels of the reals.
    """

    form: Literal["non-saturating", "hinge"] = "non-saturating"
    """How logits become a loss."""
    gamma: float = 0.0
    """Weight of the gradient penalty on reals (R1); 0: none."""
    num_discriminator_steps: int = 1
    """Steps, each of one discriminator update, to one update of the generator."""

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"objective.gamma={self.gamma!r} must be at least 0")
        if not self.num_discriminator_steps >= 1:
            raise ValueError(f"objective.num_discriminator_steps={self.num_discriminator_steps!r} must be at least 1")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, then generator."""
        return (
            Phase("discriminator", parts=("reals", "fakes")),
            Phase("generator", parts=("fakes",), every=self.num_discriminator_steps),
        )

    @property
    def product(self) -> str:
        """The generator."""
        return "generator"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one whose batch norm spoils the gradient penalty."""
        require_modules("gan", ("generator", "discriminator"), model)
        if self.gamma > 0 and getattr(model, "discriminator_norm", "none") == "batch":
            raise ValueError(
                f"objective.gamma={self.gamma!r} penalises a gradient per sample, and "
                "model.discriminator_norm='batch' mixes the samples of a batch; "
                "set --model.discriminator-norm none, or --objective.gamma 0"
            )

    def prepare(self, networks: Networks, batch: Batch) -> Tensor:
        """Fakes (B, C, H, W) in [-1, 1], with the generator's graph when its phase is due in this step."""
        generator: Any = networks.bare["generator"]
        z = batch.draws.normal("latents", generator.latent_dim)
        labels = _labels(networks, batch)
        if self.phases[1].due(batch.step):
            fakes: Tensor = networks.wrapped["generator"](z, labels)
        else:
            with torch.no_grad():
                fakes = generator(z, labels)
        return fakes

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a part of a phase, and its metrics; `shared` are the fakes."""
        if phase == "generator":
            return self._generator_loss(networks, batch, shared)
        if part == "reals":
            return self._reals_loss(networks, batch)
        return self._fakes_loss(networks, batch, shared)

    def _generator_loss(self, networks: Networks, batch: Batch, fakes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = _one_per_sample(networks.bare["discriminator"](fakes, _labels(networks, batch)), fakes)
        loss = F.softplus(-logits).mean() if self.form == "non-saturating" else -logits.mean()
        return loss, {"generator/loss": loss.detach()}

    def _fakes_loss(self, networks: Networks, batch: Batch, fakes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = _one_per_sample(networks.wrapped["discriminator"](fakes.detach(), _labels(networks, batch)), fakes)
        loss = F.softplus(logits).mean() if self.form == "non-saturating" else F.relu(1 + logits).mean()
        return loss, {
            "discriminator/loss_fakes": loss.detach(),
            "discriminator/logits_fakes": logits.detach().mean(),
            "discriminator/accuracy_fakes": (logits.detach() < 0).float().mean(),
        }

    def _reals_loss(self, networks: Networks, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reals = batch.images.detach().requires_grad_(self.gamma > 0)
        # a gradient of gradients in bf16 keeps 2 to 3 digits of nothing much
        exact = torch.autocast(reals.device.type, enabled=False) if self.gamma > 0 else nullcontext()
        with exact:
            logits = _one_per_sample(networks.wrapped["discriminator"](reals, _labels(networks, batch)), reals)
            loss = F.softplus(-logits).mean() if self.form == "non-saturating" else F.relu(1 - logits).mean()
            metrics = {
                "discriminator/loss_reals": loss.detach(),
                "discriminator/logits_reals": logits.detach().mean(),
                "discriminator/accuracy_reals": (logits.detach() > 0).float().mean(),
            }
            if self.gamma > 0:
                penalty = zero_centered_gradient_penalty(reals, logits).mean()
                metrics["discriminator/r1"] = penalty.detach()
                loss = loss + self.gamma / 2 * penalty
        return loss, metrics


def zero_centered_gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """How steeply each logit depends on its own sample: the squared length of that gradient.

    R1 for reals, R2 for fakes (Mescheder et al. 2018, arXiv:1801.04406). Differentiable, so that
    it can be part of a loss.

    Args:
        samples: (B, *sample_shape), requires grad; `logits` were computed from this tensor itself.
        logits: (B,), unbounded; each depends on its own sample only.

    Returns:
        (B,), non-negative, without a weight: the caller takes the mean and multiplies by gamma / 2.

    Raises:
        ValueError: `logits` is not (B,).
    """
    _one_per_sample(logits, samples)
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.square().sum(dim=tuple(range(1, gradient.ndim)))


def _one_per_sample(logits: Tensor, samples: Tensor) -> Tensor:
    """`logits` in fp32, refused unless (B,): (B, 1) would pair every real with every fake, silently."""
    if logits.shape != samples.shape[:1]:
        raise ValueError(
            f"logits must have shape (B,) = ({len(samples)},), got {tuple(logits.shape)}; "
            "end the discriminator with .flatten()"
        )
    return logits.float()


def _labels(networks: Networks, batch: Batch) -> Tensor | None:
    """Labels of reals and fakes alike; None for unconditional networks."""
    generator: Any = networks.bare["generator"]
    return batch.labels if generator.num_labels else None
