"""Cross-entropy of a classifier.

Label smoothing: Szegedy et al. 2016, arXiv:1512.00567. Focal loss: Lin et al. 2017, arXiv:1708.02002.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Negative log probability of the true class, in nats."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: tuple[float, ...] = ()
    """Factor on the loss of the images of each class, in the order of the classes; none given: 1 for all."""
    focal_gamma: float = 0.0
    """Power of 1 - p(true class) that the loss is multiplied by, so that easy images count less; 0: cross-entropy."""

    def __post_init__(self) -> None:
        if not self.focal_gamma >= 0:
            raise ValueError(f"objective.focal_gamma={self.focal_gamma!r} must be at least 0; 2 is usual")
        if not all(0 <= weight < float("inf") for weight in self.class_weights) or (
            self.class_weights and not any(self.class_weights)
        ):
            raise ValueError(
                f"objective.class_weights={self.class_weights!r} must be numbers of at least 0, and not all of them 0"
            )
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
        """Mean loss, and the share of images whose largest logit is the true class."""
        logits = networks.wrapped["classifier"](batch.images).float()
        loss = self._weighted(logits, batch.labels)
        accuracy = (logits.detach().argmax(dim=1) == batch.labels).float().mean()
        return loss, {"classifier/loss": loss.detach(), "classifier/accuracy": accuracy}

    def _weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over images, each times its factors: not divided by their sum, which differs from rank to rank."""
        if not self.focal_gamma and not self.class_weights:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        each = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.focal_gamma:
            others = -torch.expm1(-F.cross_entropy(logits, labels, reduction="none"))
            each = each * others.clamp_min(torch.finfo(others.dtype).tiny) ** self.focal_gamma
        if self.class_weights:
            each = each * torch.tensor(self.class_weights, device=labels.device)[labels]
        return each.mean()
