"""Cross-entropy of a classifier; label smoothing: Szegedy et al. 2016, arXiv:1512.00567."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Negative log probability of the true class, in nats."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing!r} must lie in [0, 1), e.g. 0.1")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The classifier."""
        return (Phase("classifier"),)

    @property
    def product(self) -> str:
        """The classifier."""
        return "classifier"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules."""
        require_modules("classification", ("classifier",), model)

    def prepare(self, networks: Networks, batch: Batch) -> None:
        """Nothing: one phase shares nothing."""

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy, and the share of images whose largest logit is the true class."""
        logits = networks.wrapped["classifier"](batch.images).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return loss, {"classifier/loss": loss.detach(), "classifier/accuracy": accuracy}
