"""Reconstruction through discrete codes, whose codebook follows the encoder, or through continuous latents.

van den Oord et al. 2017, arXiv:1711.00937, equation 3 and appendix A.1 (codes as running means); dead codes
revived: Dhariwal et al. 2020, arXiv:2005.00341, section 3.2; continuous latents with a slight charge on their
divergence from the normal distribution: Rombach et al. 2022, arXiv:2112.10752, section 3.1.
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
from genray.objectives.regularisers import gaussian_kl


@dataclass(frozen=True, kw_only=True)
class Tokenization:
    """Reconstruction loss in nats per image, plus what the encoder pays for its distance to the codes or the prior."""

    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    """Distribution of a pixel in [0, 1] given the codes."""
    sigma: float = 0.1
    """Standard deviation of a pixel, on a scale of 0 to 1; gaussian only."""
    commitment: float = 0.25
    """Weight of the squared distance of the features to their codes, in 1 / (2 sigma²) if gaussian; vq only."""
    beta: float = 0.1
    """Weight of the divergence of continuous latents from N(0, 1), in nats; model.quantizer=none only."""

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"objective.sigma={self.sigma!r} must be above 0, e.g. 0.1")
        for name in ("commitment", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)!r} must be at least 0")

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
        """Mean loss per image, and metrics; the codebook, or the scale of the latents, moves with it."""
        found = tokenize(networks, batch)
        loss, metrics = reconstruction_loss(self, found, batch)
        bare: Any = networks.bare["tokenizer"]
        metrics |= learn_codes(bare.quantizer, found, loss, batch)
        return loss, {name: value.detach() for name, value in metrics.items()}


def tokenize(networks: Networks, batch: Batch) -> Any:
    """What the tokenizer gives of the batch, with its graph; continuous latents are drawn from their posteriors."""
    bare: Any = networks.bare["tokenizer"]
    noise = batch.draws.normal("posterior", *bare.latent_shape) if bare.continuous else None
    return networks.wrapped["tokenizer"](batch.images, noise)


def reconstruction_loss(objective: Any, found: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log likelihood of what a tokenizer gave, with its commitment or divergence, and their metrics."""
    targets = (batch.images.float() + 1) / 2
    recon_loss = likelihoods.nll(objective.likelihood, found.logits.float(), targets, objective.sigma).mean()
    squared_error = (torch.sigmoid(found.logits.float()) - targets).square().mean()
    metrics = {
        "tokenizer/loss": recon_loss,
        "tokenizer/recon_loss": recon_loss,
        "tokenizer/squared_error": squared_error,
    }
    if found.logvar is not None:
        kl = gaussian_kl(found.features, found.logvar).flatten(1).sum(dim=1).mean()
        loss = recon_loss + objective.beta * kl
        return loss, metrics | {"tokenizer/loss": loss, "tokenizer/kl": kl}
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
def learn_codes(quantizer: Any, found: Any, loss: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Moves use and codes by what all ranks have seen, and says how much of the codebook is used.

    Of continuous latents it moves the scale, and says what deviation they have. A step whose loss is not finite on
    any rank moves nothing.
    """
    if found.logvar is not None:
        square = found.features.square() + found.logvar.exp()
        moments = torch.stack([each.mean(dim=(0, 2, 3)) for each in (found.features, square)])
        quantizer.learn(*distributed.mean(moments))
        return {"tokenizer/latent_deviation": quantizer.variance.mean().sqrt()}
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
