"""`genray export` and `genray import`: a model as one encrypted file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from genray.paths import base_directory


@dataclass(frozen=True)
class Export:
    """Encrypts a model into one file for those whose public keys are given; `genray import` opens it."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder."""
    to: Path
    """File to make, e.g. model.age."""
    recipient: tuple[str, ...]
    """Public keys of who may open it: age1…, ssh-ed25519 … or ssh-rsa …."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


@dataclass(frozen=True)
class Import:
    """Opens a file that `genray export` made, checked block by block; runs nothing that it carries."""

    file: tyro.conf.Positional[Path]
    """The encrypted file."""
    to: Path
    """Snapshot folder to make."""
    identity: Path
    """File with the secret key, made by age-keygen or ssh-keygen."""


def export(args: Sequence[str]) -> int:
    """Encrypts a model into one file."""
    asked = tyro.cli(Export, args=args, prog="genray export")
    from genray import handover, mlflow_champion, mlflow_tracking

    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    with mlflow_champion.local_snapshot(asked.model, uri) as directory:
        handover.export(directory, asked.to, asked.recipient)
    print(asked.to)  # noqa: T201
    return 0


def bring(args: Sequence[str]) -> int:
    """Opens an encrypted model."""
    asked = tyro.cli(Import, args=args, prog="genray import")
    from genray import handover

    handover.bring(asked.file, asked.to, asked.identity)
    print(asked.to)  # noqa: T201
    return 0
