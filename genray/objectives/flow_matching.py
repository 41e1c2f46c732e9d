"""The velocity at which noise becomes latents, learned along straight lines between the two.

Lipman et al. 2023, arXiv:2210.02747, equation 23 with a deviation of 0 at the end; times from a logit-normal
distribution: Esser et al. 2024, arXiv:2403.03206, section 3.1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genray.objectives.base import Batch, Networks, Phase
from genray.objectives.matching import require_modules


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Mean squared error of the velocity; latents are drawn from their posteriors."""

    time_spread: float = 1.0
    """Standard deviation of the logit of the time; smaller: more often half way, where the velocity is hardest to
    know."""

    def __post_init__(self) -> None:
        if not self.time_spread > 0:
            raise ValueError(f"objective.time_spread={self.time_spread!r} must be above 0, e.g. 1.0")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The transformer."""
        return (Phase("generator"),)

    @property
    def product(self) -> str:
        """The transformer with the decoder of its latents."""
        return "generator"

    def check(self, model: Any) -> None:
        """Raises ValueError for a model of other modules, or one that draws no latents."""
        require_modules("flow-matching", ("generator",), model, draws="latents")

    def prepare(self, networks: Networks, batch: Batch) -> Tensor:
        """Latents (B, D, h, w) of the images."""
        bare: Any = networks.bare["generator"]
        latents: Tensor = bare.latents(batch.images, batch.draws.normal("posterior", *bare.latent_shape))
        return latents

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss per number of a latent, and metrics; `shared` is what `prepare` gave."""
        bare: Any = networks.bare["generator"]
        noise = batch.draws.normal("noise", *bare.latent_shape)
        times = torch.sigmoid(self.time_spread * batch.draws.normal("times"))
        points = torch.lerp(noise, shared, times.view(-1, 1, 1, 1))
        velocity = networks.wrapped["generator"](points, times, batch.labels if bare.num_labels else None)
        loss = (velocity.float() - (shared - noise)).square().mean()
        return loss, {"generator/loss": loss.detach()}
