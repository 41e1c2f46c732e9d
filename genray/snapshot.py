"""What people use: EMA weights and the configuration that made them.

A snapshot is a sealed folder of three files: `model.safetensors`, `config.json`, `manifest.json`.
Nothing in it is code, and nothing is unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genray import __version__
from genray.config import Config
from genray.errors import CheckpointError, ConfigError
from genray.manifest import seal, verify
from genray.objectives import classifier_of

WEIGHTS, CARD = "model.safetensors", "config.json"
FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """A trained module with everything that must be known to use it."""

    module: nn.Module
    """In eval mode, on the CPU, in fp32."""
    config: Config
    task: str
    product: str
    """Which network of the run it is: generator, vae, tokenizer or classifier."""
    classifier: nn.Module | None
    """Images (B, C, H, W) in [-1, 1] to logits (B, K), trained beside a product that is none; no moving average."""
    step: int
    samples_seen: int
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    classes: tuple[str, ...]
    data_digest: str
    """SHA-256 of the training images and labels."""
    digest: str
    """SHA-256 of the manifest: the identity of the snapshot."""


def save(
    directory: Path,
    weights: Mapping[str, Tensor],
    config: Config,
    *,
    step: int,
    samples_seen: int,
    classes: tuple[str, ...],
    data_digest: str,
) -> str:
    """Writes a snapshot at `directory`: `weights` are the state of the product of a run with `config`.

    Those of the module that names classes beside it, if there is one, have its name and a slash before theirs.

    Returns:
        Its digest.
    """
    card = {
        "format": FORMAT,
        "genray": __version__,
        "task": config.task,
        "product": config.objective.product,
        "step": step,
        "samples_seen": samples_seen,
        "image_shape": list(config.data.image_shape),
        "classes": list(classes),
        "data": {"name": config.data.name, "digest": data_digest},
        "config": config.to_dict(),
    }
    # each tensor a copy: none may share memory with another in the file
    on_cpu = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}

    def write(folder: Path) -> None:
        save_file(on_cpu, folder / WEIGHTS)
        (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")

    return seal(directory, write)


def load(directory: Path) -> Snapshot:
    """The snapshot at `directory`.

    Raises:
        CheckpointError: the folder is not a snapshot, is damaged, or does not fit its own configuration.
    """
    digest = verify(directory, (WEIGHTS, CARD))
    card = read_card(directory / CARD)
    try:
        config = Config.from_dict(card["config"])
        shape = tuple(int(n) for n in card["image_shape"])
        if len(shape) != 3 or not all(1 <= n <= 4096 for n in shape):
            raise CheckpointError(f"{directory / CARD}: image_shape={shape} is no (C, H, W) of 1 to 4096 each")
        classes = tuple(str(name) for name in card["classes"])
        product = config.objective.product
        with torch.random.fork_rng(devices=[]):
            built = config.model.build(shape, len(classes))
        beside = classifier_of(config.objective)
        tensors = load_file(directory / WEIGHTS)
        if beside is not None:
            own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{beside}/")}
            built[beside].load_state_dict({k.removeprefix(f"{beside}/"): v for k, v in own.items()}, strict=True)
        built[product].load_state_dict(tensors, strict=True)
        return Snapshot(
            module=built[product].eval().requires_grad_(False),
            classifier=None if beside is None else built[beside].classifier().eval().requires_grad_(False),  # type: ignore[operator]
            config=config,
            task=config.task,
            product=product,
            step=int(card["step"]),
            samples_seen=int(card["samples_seen"]),
            image_shape=shape,
            classes=classes,
            data_digest=str(card["data"]["digest"]),
            digest=digest,
        )
    except (ConfigError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} does not hold what its {CARD} says: {error}") from error


def as_classifier(made: Snapshot) -> Snapshot:
    """`made` where it is a classifier, or else the one that was trained beside it.

    Raises:
        ConfigError: there is none.
    """
    if made.product == "classifier":
        return made
    if made.classifier is None:
        raise ConfigError(f"snapshot of {made.task!r} is a {made.product}; give a classifier's")
    return replace(made, module=made.classifier, product="classifier", classifier=None)


def read_card(path: Path) -> dict[str, Any]:
    """What the card at `path` of a snapshot says.

    Raises:
        CheckpointError: it is none, or one of another format.
    """
    try:
        card = json.loads(path.read_text())
        version = card["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is no snapshot configuration: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}; this genray reads format {FORMAT}: update genray")
    return dict(card)
