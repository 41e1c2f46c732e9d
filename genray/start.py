"""The networks that a run starts from."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genray import checkpoint, snapshot
from genray.config import Config
from genray.data.images import ImageSet
from genray.errors import CheckpointError, ConfigError
from genray.manifest import MANIFEST, sha256, verify
from genray.objectives import Stateful
from genray.paths import is_path
from genray.storage import RunFolder
from genray.transfer import Fit, take

START = "start"
"""Folder of a run with the snapshot of the registry that it starts from."""
PERCEPTUAL = "perceptual"
"""Folder of a run with the classifier that its perceptual term compares by, as it was when the run began."""


def build_networks(config: Config, images: ImageSet, folder: RunFolder) -> dict[str, nn.Module]:
    """Networks of the run, fresh or with weights of another; those that normalise images have measured theirs.

    Initial weights come from torch's global generator, which the caller seeds.

    Raises:
        ConfigError: the objective weighs another number of classes than the images have, or the model is to have
            what is fitted to latents after training.
        CheckpointError: what the run is to start from cannot be read, or does not fit.
    """
    weights = getattr(config.objective, "class_weights", ())
    if weights and len(weights) != len(images.classes):
        raise ConfigError(
            f"objective.class_weights has {len(weights)} numbers, and the images have {len(images.classes)} classes "
            f"({', '.join(images.classes[:10])}); give one for each"
        )
    if fitted := getattr(config.model, "fitted", ""):
        raise ConfigError(
            f"model.{fitted}={getattr(config.model, fitted)} is fitted to latents after training, by genray fit; "
            "set it to 0"
        )
    try:
        built: dict[str, nn.Module] = config.model.build(config.data.image_shape, len(images.classes))
    except ValueError as error:  # of classes, which no config knows
        raise ConfigError(str(error)) from error
    if isinstance(config.objective, Stateful):
        built |= config.objective.state()
    for module in built.values():
        standardise: Any = getattr(module, "standardise", None)
        if standardise is not None:
            standardise.measure(images.images)
    if config.transfer.source:
        start_from(built[config.objective.product], config, folder)
    return built


def build_frozen(config: Config, folder: RunFolder) -> dict[str, nn.Module]:
    """Networks that the losses of the run look through: the classifier of a perceptual term.

    Raises:
        CheckpointError: there is no snapshot of it, or it is damaged.
        ConfigError: it is none of a classifier, or of images of another size.
    """
    source = getattr(config.objective, "perceptual", None)
    if not source:
        return {}
    brought = folder.pull(PERCEPTUAL)
    made = snapshot.load(brought if brought.is_dir() else Path(source).expanduser())
    if made.product != "classifier":
        raise ConfigError(f"objective.perceptual={source!r} is a snapshot of a {made.product}, expected a classifier's")
    if made.image_shape != config.data.image_shape:
        raise ConfigError(
            f"objective.perceptual={source!r} sees images of {made.image_shape}, and those of the run are "
            f"{config.data.image_shape}; give a classifier of the same"
        )
    return {"perceptual": made.module.eval().requires_grad_(False)}


def start_from(module: nn.Module, config: Config, folder: RunFolder) -> tuple[Fit, str]:
    """What `module` took of `transfer.source`, and the digest of that: SHA-256 of the file or of the manifest."""
    source = config.transfer.source
    place = Path(source).expanduser() if is_path(source) else folder.pull(START)
    tensors, digest = read_weights(place)
    return take(module, tensors, source), digest


def read_weights(place: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a file, a snapshot or a checkpoint by name, and the digest of what was read.

    Raises:
        CheckpointError: there is nothing, it is damaged, a generator's, or it holds more than tensors.
    """
    if place.is_dir():
        kinds = {checkpoint.TENSORS: checkpoint.STATE, snapshot.WEIGHTS: snapshot.CARD}
        for file, beside in kinds.items():
            if (place / file).is_file():
                digest = verify(place, (file, beside))
                tensors = load_file(place / file)
                of_generator = beside == snapshot.CARD and snapshot.read_card(place / beside)["product"] == "generator"
                if of_generator and not any("/" in name for name in tensors):
                    raise CheckpointError(
                        f"transfer.source={str(place)!r} is a snapshot of a generator, which no classifier has a trunk "
                        "of; give a checkpoint of its run, which has the discriminator"
                    )
                return tensors, digest
        raise CheckpointError(f"transfer.source={str(place)!r} holds no {MANIFEST} of a snapshot or checkpoint")
    try:
        if place.suffix == ".safetensors":
            return load_file(place), sha256(place)
        found = torch.load(place, map_location="cpu", weights_only=True)
        found = found.get("state_dict", found)
        return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}, sha256(place)
    except Exception as error:  # the unpickler raises whatever the damage leads it to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"transfer.source={str(place)!r} cannot be read as weights ({reason}); give a .pth or "
            ".safetensors file of tensors, a snapshot, a checkpoint, or NAME@ALIAS"
        ) from error
