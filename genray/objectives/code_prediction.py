"""Every code of an image predicted from those before it.

Esser et al. 2021, arXiv:2012.09841, equation 9; codes replaced at random in what the transformer sees: their
released code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class CodePrediction:
    """Negative log likelihood of the codes of an image, in nats per image."""

    corruption: float = 0.0
    """Share of the codes that are replaced by others, drawn evenly, in what the transformer sees; against learning
    few images by heart."""

    def __post_init__(self) -> None:
        if not 0 <= self.corruption < 1:
            raise ValueError(f"objective.corruption={self.corruption!r} must lie in [0, 1), e.g. 0.1")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The transformer."""
        return (Phase("generator"),)

    @property
    def product(self) -> str:
        """The transformer with the decoder of its codes."""
        return "generator"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one that draws no codes."""
        require_modules("code-prediction", ("generator",), model, draws="codes")

    def prepare(self, networks: Networks, batch: Batch) -> Tensor:
        """Codes (B, L) of the images."""
        bare: Any = networks.bare["generator"]
        codes: Tensor = bare.codes(batch.images)
        return codes

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss per image, and metrics; `shared` is what `prepare` gave."""
        bare: Any = networks.bare["generator"]
        seen = shared
        if self.corruption:
            other = batch.draws.integers("other codes", bare.num_codes, shared.shape[1])
            seen = torch.where(batch.draws.uniform("corruption", shared.shape[1]) < self.corruption, other, shared)
        logits = networks.wrapped["generator"](seen, batch.labels if bare.num_labels else None)
        nats = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), shared.flatten())
        loss = nats * shared.shape[1]
        return loss, {"generator/loss": loss.detach(), "generator/perplexity": nats.detach().exp()}
