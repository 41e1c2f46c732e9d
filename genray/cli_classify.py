"""`genray classify`: the classes of image files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genray import snapshot
from genray.data.pixels import decode
from genray.errors import ConfigError, CorruptImageError, DataError
from genray.evaluation.accuracy import logits_of
from genray.paths import base_directory
from genray.snapshot import Snapshot


@dataclass(frozen=True)
class Classify:
    """Names the class of each image file, with its probability; the model itself says how images are prepared."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder of a classifier."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """PNG, JPEG or other image files."""
    top: int = 3
    """Classes to name of each image, the likeliest first."""
    out: Path | None = None
    """JSON file for the probabilities of all classes, by file."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def classify(args: Sequence[str]) -> int:
    """Names the classes of image files."""
    asked = tyro.cli(Classify, args=args, prog="genray classify")
    if not asked.files:
        raise ConfigError("no files given; use genray classify MODEL FILE [FILE ...]")
    if asked.top < 1:
        raise ConfigError(f"--top={asked.top!r} must be at least 1")
    from genray import mlflow_champion, mlflow_tracking

    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    with mlflow_champion.local_snapshot(asked.model, uri) as directory:
        model = snapshot.load(directory)
    probabilities = probabilities_of(model, asked.files)
    table = Table("file", *(f"{word} class" for word in ("likeliest", *("next",) * (asked.top - 1))))
    found = {}
    for path, row in zip(asked.files, probabilities, strict=True):
        found[str(path)] = dict(zip(model.classes, row.tolist(), strict=True))
        best = row.topk(min(asked.top, len(row)))
        table.add_row(str(path), *(f"{model.classes[k]} {row[k]:.4f}" for k in best.indices.tolist()))
    Console(width=None if Console().is_terminal else 200).print(table)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def probabilities_of(classifier: Snapshot, files: Sequence[Path]) -> Tensor:
    """Probabilities of the classes of each image, (N, K).

    Raises:
        ConfigError: the snapshot is no classifier.
        DataError: a file cannot be read.
        CorruptImageError: a file is no image.
    """
    classifier = snapshot.as_classifier(classifier)
    images = []
    for path in files:
        try:
            images.append(torch.tensor(decode(path.read_bytes(), classifier.image_shape)))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); give image files") from error
        except ValueError as error:
            raise CorruptImageError(f"{path} does not decode ({error}); give PNG or JPEG files") from error
    return logits_of(classifier, torch.stack(images).permute(0, 3, 1, 2)).softmax(1)
