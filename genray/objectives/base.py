"""What the loop and an objective say to each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from genray.streams import Draws


@dataclass(frozen=True)
class Phase:
    """One module, one optimiser, one update.

    `parts` are the backward passes of the update, in order. Gradients add up over them and are
    averaged over ranks in the last, which must therefore reach every parameter of the module.
    """

    module: str
    parts: tuple[str, ...] = ("all",)
    every: int = 1
    """Steps between two updates of this phase."""

    def due(self, step: int) -> bool:
        """Whether the phase is updated in `step` (counted from 0)."""
        return (step + 1) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of the global batch of one step."""

    images: Tensor
    """(B, C, H, W) in [-1, 1]."""
    labels: Tensor
    """(B,), int64."""
    step: int
    samples_seen: int
    """Real images consumed before this step, over all ranks."""
    draws: Draws


@dataclass(frozen=True)
class Networks:
    """The networks of a run, twice: as they are, and as their own phase must call them."""

    bare: Mapping[str, nn.Module]
    wrapped: Mapping[str, nn.Module]
    """The same modules, averaging gradients over ranks; called at most once between two backward passes."""
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    """Others that losses look through, which nobody trains."""

    @cached_property
    def _parameters(self) -> dict[str, tuple[nn.Parameter, ...]]:
        return {name: tuple(module.parameters()) for name, module in self.bare.items()}

    def require_gradients(self, *names: str) -> None:
        """Gradients are on in the modules `names`, and off in all others."""
        for name, parameters in self._parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name in names)


class Objective(Protocol):
    """The mathematics of a run: pure, no devices, no optimiser, no logging."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What one step updates, in order."""

    @property
    def product(self) -> str:
        """The module that the run is for: it has an EMA, and becomes the snapshot."""

    def check(self, model: Any) -> None:
        """Raises ValueError, with the cure, when `model` (of `MODELS`) cannot be trained by it."""

    def prepare(self, networks: Networks, batch: Batch) -> Any:
        """What the phases of this step share, computed once; gradients of all modules are on."""

    def loss(
        self, phase: str, part: str, networks: Networks, batch: Batch, shared: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over this rank's batch, and detached scalars to log by `phase/name`.

        Gradients of the modules of other phases are off meanwhile.
        """


@runtime_checkable
class Classifying(Protocol):
    """An objective that may train a classifier beside its product: every snapshot then holds both."""

    @property
    def classifier(self) -> str | None:
        """The module that names classes, whose `classifier()` gives images to logits (B, K); None: none does."""


def classifier_of(objective: Objective) -> str | None:
    """The module of a run that names classes beside its product; None: none does."""
    return objective.classifier if isinstance(objective, Classifying) else None


@runtime_checkable
class Stateful(Protocol):
    """An objective that remembers something from step to step."""

    def state(self) -> dict[str, nn.Module]:
        """Modules that hold it as buffers, beside the model's: part of every checkpoint, trained by no phase."""
