"""`genray fit`: a distribution over the latents of a trained autoencoder."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from genray import snapshot
from genray.data.images import load_images
from genray.fitting import NUM_STEPS, Distribution
from genray.fitting import fit as fit_latents
from genray.paths import base_directory


@dataclass(frozen=True)
class Fit:
    """Fits a distribution to the latents of a VAE's training images, and makes both one model."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder of a VAE or a regularised autoencoder."""
    to: Path
    """Snapshot folder to make: it samples from what was fitted."""
    distribution: Distribution = "mixture"
    """A mixture of normal distributions, a second VAE, or masked autoregressive flows."""
    num_components: int = 10
    """Normal distributions in a mixture."""
    num_steps: int = NUM_STEPS
    """Batches of 256 latents that a second VAE or flows are trained on."""
    seed: int = 0
    """Seed of the fit."""
    register: bool = False
    """Register the new snapshot beside the model, as its candidate; the model must be NAME@ALIAS or NAME/VERSION."""
    root: str | None = None
    """Folder of the data set's files. None: where the run had them, or $GENRAY_DATA."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def fit(args: Sequence[str]) -> int:
    """Fits a distribution to the latents of a VAE, and makes both one model."""
    asked = tyro.cli(Fit, args=args, prog="genray fit", config=(tyro.conf.FlagConversionOff,))
    from genray import mlflow_champion, mlflow_registry, mlflow_tracking

    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    version = mlflow_registry.resolve(uri, asked.model) if asked.register else None
    with mlflow_champion.local_snapshot(asked.model, uri) as directory:
        data = snapshot.load(directory).config.data
        data = dataclasses.replace(data, root=asked.root or os.environ.get("GENRAY_DATA") or data.root)
        images = load_images(data, "train")
        fit_latents(
            directory,
            asked.to,
            images,
            distribution=asked.distribution,
            num_components=asked.num_components,
            num_steps=asked.num_steps,
            seed=asked.seed,
        )
    print(asked.to)  # noqa: T201
    if version is not None:
        run_id = str(version.run_id)
        number = mlflow_registry.register(uri, asked.to, run_id=run_id, task=version.name, tags={})
        print(f"{version.name}/{number}")  # noqa: T201
    return 0
