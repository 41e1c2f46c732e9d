"""Tokenizers whose decoder also has to please a patch discriminator, and a classifier's eye.

Esser et al. 2021, arXiv:2012.09841, section 3.1: the adversarial weight follows the ratio of the two gradients at the
decoder's last layer (equation 7), here bounded; hinge loss: Lim and Ye 2017, arXiv:1705.02894.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genray import distributed
from genray.models.tokenizer import VQ
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules
from genray.objectives.tokenizer import learn_codes, reconstruction_loss, start_codebook, tokenize


@dataclass(frozen=True, kw_only=True)
class AdversarialTokenization:
    """Losses of `Tokenization` with a perceptual and an adversarial one; a hinge loss of the discriminator."""

    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    """Distribution of a pixel in [0, 1] given the codes."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    commitment: float = 0.25
    """Weight of the squared distance of the features to their codes, in 1 / (2 sigma²) if gaussian; vq only."""
    beta: float = 0.1
    """Weight of the divergence of continuous latents from N(0, 1), in nats; model.quantizer=none only."""
    perceptual: str | None = None
    """Classifier whose features of image and reconstruction are compared: NAME@ALIAS, NAME/VERSION or a snapshot
    folder, e.g. mnist-classifier@champion. None: no perceptual term."""
    perceptual_weight: float = 100.0
    """Nats that a cosine distance of 1 between the features of image and reconstruction costs."""
    adversarial: float = 0.5
    """Length of the adversarial gradient at the decoder's last layer, in lengths of that of the other losses."""
    adversarial_start_samples: int = 50_000
    """Images that the discriminator is trained on before its gradient reaches the decoder."""
    adversarial_warmup_samples: int = 50_000
    """Images from then on over which that gradient rises to its length."""
    max_adversarial_weight: float = 1e4
    """Bound of the weight that gives it this length."""

    def __post_init__(self) -> None:
        for name in (
            "commitment", "beta", "perceptual_weight", "adversarial", "adversarial_start_samples",
            "adversarial_warmup_samples", "max_adversarial_weight",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 0")
        if not self.sigma > 0:
            raise ValueError(f"objective.sigma={self.sigma!r} must be above 0, e.g. 0.1")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Discriminator, then tokenizer."""
        return Phase("discriminator", parts=("reals", "fakes")), Phase("tokenizer")

    @property
    def product(self) -> str:
        """The tokenizer."""
        return "tokenizer"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules."""
        require_modules("adversarial-tokenization", ("tokenizer", "discriminator"), model)

    def warmth(self, samples_seen: int) -> float:
        """Share of the adversarial gradient's length after `samples_seen` images, in [0, 1]."""
        beyond = samples_seen - self.adversarial_start_samples
        if beyond < 0:
            return 0.0
        return min(1.0, beyond / self.adversarial_warmup_samples) if self.adversarial_warmup_samples else 1.0

    def prepare(self, networks: Networks, batch: Batch) -> Any:
        """What the tokenizer gives of the batch, with its graph."""
        bare: Any = networks.bare["tokenizer"]
        if batch.step == 0 and isinstance(bare.quantizer, VQ):
            start_codebook(bare, batch)
        return tokenize(networks, batch)

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of a part of a phase, and its metrics; `shared` is what `prepare` gave."""
        fakes = 2 * torch.sigmoid(shared.logits.float()) - 1
        if phase == "tokenizer":
            return self._tokenizer_loss(networks, batch, shared, fakes)
        images, sign = (batch.images, -1.0) if part == "reals" else (fakes.detach(), 1.0)
        logits = networks.wrapped["discriminator"](images).float()
        loss = F.relu(1 + sign * logits).mean()
        return loss, {
            f"discriminator/loss_{part}": loss.detach(),
            f"discriminator/logits_{part}": logits.detach().mean(),
            f"discriminator/accuracy_{part}": (sign * logits.detach() < 0).float().mean(),
        }

    def _tokenizer_loss(
        self, networks: Networks, batch: Batch, found: Any, fakes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        bare: Any = networks.bare["tokenizer"]
        loss, metrics = reconstruction_loss(self, found, batch)
        if self.perceptual:
            distances = feature_distance(networks.frozen["perceptual"], batch.images, fakes)
            metrics["tokenizer/perceptual"] = distances.mean()
            loss = loss + self.perceptual_weight * metrics["tokenizer/perceptual"]
        adversarial = -networks.bare["discriminator"](fakes).float().mean()
        weight = adaptive_weight(loss, adversarial, bare.decoder[-1].weight, self.max_adversarial_weight)
        weight = weight * self.adversarial * self.warmth(batch.samples_seen)
        loss = loss + weight * adversarial
        metrics |= {
            "tokenizer/loss": loss,
            "tokenizer/adversarial": adversarial,
            "tokenizer/adversarial_weight": weight,
        }
        metrics |= learn_codes(bare.quantizer, found, loss, batch)
        return loss, {name: value.detach() for name, value in metrics.items()}


def adaptive_weight(loss: Tensor, adversarial: Tensor, last: Tensor, most: float) -> Tensor:
    """Ratio of the lengths of the gradients of two losses by `last`, over all ranks, at most `most`: ().

    Args:
        loss: (), whose gradient is the measure.
        adversarial: (), whose weight is wanted.
        last: the weights of the decoder's last layer, which both depend on.
        most: bound.
    """
    gradients = [torch.autograd.grad(each, last, retain_graph=True)[0].detach().float() for each in (loss, adversarial)]
    lengths = distributed.mean(torch.stack(gradients)).flatten(1).square().sum(dim=1).sqrt()
    return (lengths[0] / lengths[1].clamp(min=1e-8)).clamp(max=most)


def feature_distance(network: nn.Module, images: Tensor, fakes: Tensor) -> Tensor:
    """Cosine distance of the features of images and of their reconstructions, (B,), in [0, 2]."""
    with torch.no_grad():
        wanted = network.features(images)  # type: ignore[operator]
    return 1 - F.cosine_similarity(network.features(fakes).float(), wanted.float(), dim=1)  # type: ignore[operator]
