"""Weights of another network: which of them fit, and how far they may move."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genray.errors import CheckpointError, ConfigError
from genray.fields import check_at_least

MOST_NAMED = 5
MEASURED = ("standardise.",)
"""What a network has measured of its own images, and takes from nobody."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a classifier or a transformer of codes starts from, and how fast its trunk, all but its head, may change."""

    source: str = ""
    """Weights to start from: a file of torchvision's (.pth) or of safetensors; a snapshot; a checkpoint, of whose
    networks the one that fits is taken; NAME@ALIAS or NAME/VERSION of the registry. Empty: fresh weights."""
    trunk_lr: float = 1.0
    """Factor on the learning rate of the trunk; 0: frozen, its batch norm too, so that the head is a linear probe."""
    thaw_samples: int = 0
    """Images after which one stage of the trunk more begins to train, the last one first; 0: all at once."""

    def __post_init__(self) -> None:
        check_at_least("transfer", self, 0, "trunk_lr", "thaw_samples")
        if self.thaw_samples and not self.trunk_lr:
            raise ConfigError(
                f"transfer.thaw_samples={self.thaw_samples} of a trunk that is frozen by transfer.trunk_lr=0.0; "
                "set one of them only"
            )

    @property
    def on(self) -> bool:
        """Whether anything here is asked for."""
        return self != Transfer()


@dataclass(frozen=True)
class Fit:
    """How the tensors of a source meet those of a network, by name."""

    taken: tuple[str, ...]
    left: tuple[str, ...]
    """Of the source, and of no use."""
    new: tuple[str, ...]
    """Of the network, and as initialised."""

    def __str__(self) -> str:
        parts = (("taken", self.taken), ("left", self.left), ("new", self.new))
        return "; ".join(f"{len(names)} {kind}" + (f" ({named(names)})" if names else "") for kind, names in parts)


def named(names: tuple[str, ...] | list[str]) -> str:
    """The first few of `names`, and how many more."""
    more = f", … {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def take(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Fit:
    """Copies the tensors of equal name and shape into `module`: its whole trunk, and the head where it fits.

    Args:
        module: with `stages`, the last of which is the head.
        tensors: by name; networks of a checkpoint have `modules/NAME/` before it, those of a VAE `encoder.`.
        source: what to call them in a message.

    Raises:
        CheckpointError: a tensor of the trunk is not there, or has another shape; nothing is changed.
    """
    own = module.state_dict()
    head = {id(value) for part in stages_of(module)[-1] for value in part.state_dict(keep_vars=True).values()}
    in_head = {name for name, value in module.state_dict(keep_vars=True).items() if id(value) in head}
    trunk = [name for name in own if name not in in_head and not name.startswith(MEASURED)]
    found = max(_views(tensors), key=lambda view: sum(_fits(view, own, name) for name in trunk))
    if wrong := [name for name in trunk if not _fits(found, own, name)]:
        shapes = [f"{n} {tuple(own[n].shape)} against {_shape(found, n)}" for n in wrong]
        raise CheckpointError(
            f"transfer.source={source!r} is of another architecture: of {len(trunk)} tensors of the trunk "
            f"{len(wrong)} do not fit: {named(shapes)}; choose the model that it was trained as"
        )
    taken = [name for name in own if _fits(found, own, name) and not name.startswith(MEASURED)]
    module.load_state_dict({name: found[name] for name in taken}, strict=False)
    left = tuple(sorted(found.keys() - set(taken)))
    return Fit(tuple(taken), left, tuple(name for name in own if name not in taken))


def stages_of(module: Any) -> tuple[tuple[nn.Module, ...], ...]:
    """Parts of a network from the image to the logits, the head last.

    Raises:
        ConfigError: it is not made of stages.
    """
    stages: tuple[tuple[nn.Module, ...], ...] | None = getattr(module, "stages", None)
    if stages is None:
        raise ConfigError(
            "transfer.* is for classifiers, code-transformer and latent-flow, and "
            f"{type(module).__name__} has no stages; leave it at its defaults"
        )
    return stages


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """One group of parameters for each stage that has any."""
    groups = [[p for part in stage for p in part.parameters()] for stage in stages_of(module)]
    return [{"params": params} for params in groups if params]


def thaw(transfer: Transfer, module: nn.Module, optimizer: torch.optim.Optimizer, samples_seen: int) -> None:
    """Sets how far each stage moves in the next step: `share` of its group, and batch norm at rest where that is 0.

    A function of images seen alone, so that a resumed run needs no memory of it.
    """
    stages = stages_of(module)
    groups = iter(optimizer.param_groups)
    for depth, stage in zip(reversed(range(len(stages))), stages, strict=True):  # depth 0: the head
        started = not transfer.thaw_samples or samples_seen >= depth * transfer.thaw_samples
        share = 1.0 if depth == 0 else transfer.trunk_lr * started
        for part in stage:
            part.train(share > 0)
        if any(True for part in stage for _ in part.parameters()):
            next(groups)["share"] = share


def _views(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """`tensors` as they are, and those below each prefix that may stand before a network's own names."""
    prefixes = {name.rpartition("/")[0] + "/" for name in tensors if "/" in name}
    prefixes |= {f"{prefix}encoder." for prefix in (*prefixes, "")}
    below = [{n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in sorted(prefixes)]
    return [dict(tensors), *below]


def _fits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    return name in tensors and tensors[name].shape == own[name].shape


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "none"
