"""Reconstruction through discrete codes, whose codebook follows the encoder.

van den Oord et al. 2017, arXiv:1711.00937, equation 3 and appendix A.1 (codes as running means); dead codes
revived: Dhariwal et al. 2020, arXiv:2005.00341, section 3.2.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genray import distributed
from genray.models.tokenizer import DEAD_USE, VQ
from genray.objectives import likelihoods
from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """Reconstruction loss in nats per image, plus what the encoder pays for its distance to the codes."""

    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    """Distribution of a pixel in [0, 1] given the codes."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    commitment: float = 0.25
    """Weight of the squared distance of the features to their codes, in 1 / (2 sigma²) if gaussian; vq only."""

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"objective.sigma={self.sigma!r} must be above 0, e.g. 0.1")
        if not self.commitment >= 0:
            raise ValueError(f"objective.commitment={self.commitment!r} must be at least 0")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The tokenizer."""
        return (Phase("tokenizer"),)

    @property
    def product(self) -> str:
        """The tokenizer."""
        return "tokenizer"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules."""
        require_modules("tokenization", ("tokenizer",), model)

    def prepare(self, networks: Networks, batch: Batch) -> None:
        """Places learned codes where the features of the first batch lie; later nothing."""
        bare: Any = networks.bare["tokenizer"]
        if batch.step == 0 and isinstance(bare.quantizer, VQ):
            start_codebook(bare, batch)

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss per image, and metrics; the codebook moves with it."""
        found = networks.wrapped["tokenizer"](batch.images)
        loss, metrics = reconstruction_loss(self, found, batch)
        bare: Any = networks.bare["tokenizer"]
        metrics |= learn_codebook(bare.quantizer, found, loss, batch)
        return loss, {name: value.detach() for name, value in metrics.items()}


def reconstruction_loss(objective: Any, found: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log likelihood and commitment of what a tokenizer gave, and their metrics."""
    targets = (batch.images.float() + 1) / 2
    recon_loss = likelihoods.nll(objective.likelihood, found.logits.float(), targets, objective.sigma).mean()
    squared_error = (torch.sigmoid(found.logits.float()) - targets).square().mean()
    metrics = {
        "tokenizer/loss": recon_loss,
        "tokenizer/recon_loss": recon_loss,
        "tokenizer/squared_error": squared_error,
    }
    if found.quantized is None:
        return recon_loss, metrics
    commitment = (found.features - found.quantized).square().flatten(1).sum(dim=1).mean()
    scale = 1 / (2 * objective.sigma**2) if objective.likelihood == "gaussian" else 1.0
    loss = recon_loss + objective.commitment * scale * commitment
    return loss, metrics | {"tokenizer/loss": loss, "tokenizer/commitment": commitment}


@torch.no_grad()
def start_codebook(tokenizer: Any, batch: Batch) -> None:
    """K-means on the features of the global batch, alike on any number of ranks."""
    features = tokenizer.features(batch.images)
    points = distributed.gather(_points(features).view(len(features), -1, features.shape[1]))
    order = distributed.gather(batch.draws.uniform("codebook start", points.shape[1])).flatten().argsort()
    tokenizer.quantizer.start(points.flatten(0, 1), order)


@torch.no_grad()
def learn_codebook(quantizer: Any, found: Any, loss: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Moves use and codes by what all ranks have seen, and says how much of the codebook is used.

    A step whose loss is not finite on any rank moves nothing.
    """
    codes, num_codes = found.codes.flatten(), quantizer.num_codes
    points = _points(found.features)
    if isinstance(quantizer, VQ):
        share, total = quantizer.seen(points, codes)
        share = share + 0 * loss
        pooled = distributed.mean(torch.cat([share.unsqueeze(1), total], dim=1))
        share, total = pooled[:, 0], pooled[:, 1:]
        # one place of every image, the same whichever rank has the image
        places = points.view(len(found.codes), -1, points.shape[1])
        place = batch.draws.integers("revival", places.shape[1])
        candidates = places[torch.arange(len(places), device=place.device), place]
        quantizer.learn(share, total, distributed.gather(candidates))
    else:
        share = distributed.mean(torch.bincount(codes, minlength=num_codes) / len(codes))
        quantizer.learn(share)
    return {
        "tokenizer/perplexity": torch.special.entr(share).sum().exp(),
        "tokenizer/codes_used": (quantizer.use > DEAD_USE / num_codes).float().mean(),
    }


def _points(features: Tensor) -> Tensor:
    """(B * h * w, D) of features (B, D, h, w)."""
    return features.detach().permute(0, 2, 3, 1).flatten(0, 2)
