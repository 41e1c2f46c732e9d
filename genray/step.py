"""One step: every due phase updated once, in order, and nothing that is not finite reaches the weights."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genray import distributed
from genray.objectives import Batch, Networks, Objective, Phase


@dataclass
class PhaseState:
    """One phase at work: its module's optimiser and the updates it skipped."""

    phase: Phase
    optimizer: torch.optim.Optimizer
    skipped: Tensor
    """Updates skipped so far, () on the device."""
    in_a_row: Tensor
    """How many of them just now, one after the other, () on the device."""
    own_fault: Tensor
    """Non-finite losses of this rank, () on the device."""

    @property
    def counts(self) -> dict[str, Tensor]:
        """What it has counted, by name."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "own_fault": self.own_fault}


def train_step(
    objective: Objective,
    phases: list[PhaseState],
    networks: Networks,
    batch: Batch,
    autocast: AbstractContextManager[Any],
) -> dict[str, Tensor]:
    """Metrics of one step: every due phase updated once, in order. No host sync."""
    buffers = [b for module in networks.bare.values() for b in module.buffers() if b.is_floating_point()]
    before = flat(buffers)
    skipped = batch.images.new_zeros((), dtype=torch.float32)
    networks.require_gradients(*networks.bare)
    with autocast:
        shared = objective.prepare(networks, batch)
    metrics: dict[str, Tensor] = {}
    for state in phases:
        phase = state.phase
        if not phase.due(batch.step):
            continue
        networks.require_gradients(phase.module)
        state.optimizer.zero_grad(set_to_none=True)
        for part in phase.parts:
            with distributed.no_sync(networks.wrapped[phase.module]) if part != phase.parts[-1] else nullcontext():
                with autocast:
                    loss, logged = objective.loss(phase.module, part, networks, batch, shared)
                metrics |= logged
                loss.backward(first_gradient(loss, state.own_fault))  # type: ignore[no-untyped-call]
        metrics[f"{phase.module}/grad_norm"] = norm = guarded_update(state)
        skipped = skipped + ~norm.isfinite()
    restore_where(skipped > 0, buffers, before)
    return metrics


def flat(tensors: list[Tensor]) -> Tensor | None:
    """A copy of all values, (N,); None: there are none."""
    return torch.cat([t.detach().flatten() for t in tensors]) if tensors else None


@torch.no_grad()
def restore_where(skipped: Tensor, buffers: list[Tensor], before: Tensor | None) -> None:
    """Puts the values `before`, (N,), back into `buffers`, in place, where `skipped`, (), is true.

    Running statistics would never lose an infinity again, and no snapshot either.
    """
    now = flat(buffers)
    if now is None or before is None:
        return
    kept = torch.split(torch.where(skipped, before, now), [b.numel() for b in buffers])
    torch._foreach_copy_(buffers, [values.view_as(b) for values, b in zip(kept, buffers, strict=True)])


def first_gradient(loss: Tensor, fault: Tensor) -> Tensor:
    """1, or NaN where `loss` is not finite: averaged over ranks such gradients stop every rank's update."""
    finite = loss.detach().isfinite()
    fault += ~finite
    return torch.where(finite, 1.0, torch.nan)


def guarded_update(state: PhaseState) -> Tensor:
    """Norm of the phase's gradients, which move the weights only if it is finite: decided on the device."""
    gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    bad = (~norm.isfinite()).to(torch.float32)
    state.optimizer.found_inf = bad  # type: ignore[attr-defined]
    state.optimizer.step()
    state.skipped += bad
    state.in_a_row.add_(1).mul_(bad)
    return norm
