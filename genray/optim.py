"""Optimisers, and schedules as pure functions of images seen."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genray.config import Optim


def build(
    module: nn.Module, optim: Optim, lr: float, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """A fused Adam or AdamW over all parameters of `module`, in `groups` where those are given.

    Fused, because its kernel leaves weights and moments alone where `found_inf` is set: a
    non-finite update is skipped on the device, and the host need not look.
    """
    kind: type[torch.optim.Optimizer] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optim.name]
    knobs: dict[str, Any] = {
        "lr": lr,
        "betas": optim.betas,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "fused": True,
    }
    return kind(groups or module.parameters(), **knobs)


def lr_factor(optim: Optim, samples_seen: int, total_samples: int) -> float:
    """Share of the peak learning rate, in [0, 1], after `samples_seen` of `total_samples` images."""
    warmup = optim.warmup_samples
    if samples_seen < warmup:
        return samples_seen / warmup
    progress = (samples_seen - warmup) / max(1, total_samples - warmup)
    match optim.schedule:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1 - progress)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rates(optimizer: torch.optim.Optimizer, lr: float, betas: tuple[float, float]) -> None:
    """The learning rate, times the `share` of a group that has one, and the decays of the moments of the next step."""
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = lr * group.get("share", 1.0), betas


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the optimiser's state, named `INDEX/KEY` by the order of its parameters."""
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{index}/{key}", value


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The state that `state_tensors` named, in the memory layout of each parameter.

    The fused kernels walk parameter and moments by address: a moment in another layout than its
    parameter would be paired with the wrong weights, silently.
    """
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for name in [n for n in tensors if n.startswith(f"{index}/")]:
            value = tensors[name]
            like = parameter if value.shape == parameter.shape else value
            device = parameter.device
            made = torch.empty_like(like, dtype=value.dtype, device=device).copy_(value)
            optimizer.state[parameter][name.partition("/")[2]] = made
