"""`genray evaluate`: scores of a registry model, a snapshot or a folder of images, noted in MLflow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genray import mlflow_champion, mlflow_registry, snapshot
from genray.config import Data, Eval
from genray.errors import ConfigError, DataError, ProtocolError
from genray.evaluation import ALL, card
from genray.evaluation.folder import holds_images
from genray.evaluation.protocol import Score, differences
from genray.evaluation.scoring import read_scores
from genray.manifest import MANIFEST
from genray.mlflow_scores import log_scores
from genray.paths import is_path


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score, and how; None: as the model's run did."""

    model: str
    """NAME@ALIAS, NAME/VERSION, a snapshot folder, or a folder of images."""
    data: str | None = None
    image_size: tuple[int, int] | None = None
    metrics: tuple[str, ...] = ()
    protocol: Path | None = None
    """Scores whose protocols are followed."""
    extractor: str | None = None
    split: str | None = None
    root: str | None = None
    num_samples: int | None = None
    num_seeds: int | None = None
    card: Path | None = None
    """Folder for the score card."""


def evaluate(asked: Request, uri: str, *, log: bool) -> list[Score]:
    """The scores that were asked for, the first one first; their card is written where one was asked for.

    Args:
        asked: what to score, and how.
        uri: what `resolve_uri` returned.
        log: whether to note the scores of folders, too; those of registry models are noted in any case.

    Raises:
        ConfigError: a folder of images without `data`, or an unknown metric.
        ProtocolError: what was asked for does not go together, or `asked.protocol` cannot be followed.
        DataError, RegistryError, CheckpointError, TrackingError: as their parts do.
    """
    place = Path(asked.model).expanduser()
    if holds_images(place):
        return _folder(asked, uri, log)
    if place.is_dir() and not (place / MANIFEST).exists():
        raise DataError(
            f"{asked.model} holds neither PNG or JPEG images nor a snapshot; give a folder of images, or of one "
            "folder a class, or a snapshot"
        )
    subject = asked.model if is_path(asked.model) else str(mlflow_registry.resolve(uri, asked.model))
    with mlflow_champion.local_snapshot(subject, uri) as directory:
        made = snapshot.load(directory)
        data, settings = _settings(asked, made.config.data, made.config.eval)
        scores = _checked(asked, mlflow_champion.evaluate(directory, uri, data, settings))
        files = []
        if asked.card is not None:
            pictures = mlflow_champion.pictures(directory, uri, data, settings)
            files = card.write(asked.card, f"{made.task}, step {made.step}: {subject}", scores, pictures)
    if log or not is_path(asked.model):
        tags = {mlflow_registry.DIGEST_TAG: made.digest, "genray.task": made.task}
        log_scores(uri, subject, scores, experiment=f"genray/{data.name}", tags=tags, step=made.step, files=files)
    return scores


def _folder(asked: Request, uri: str, log: bool) -> list[Score]:
    if asked.data is None and asked.protocol is None:
        raise ConfigError(f"{asked.model} holds images: say what to compare them with, e.g. --data mnist")
    name = asked.data or read_scores(_existing(asked.protocol))[0].protocol.data
    data, settings = _settings(asked, Data(name=name, image_size=asked.image_size), Eval())
    folder = Path(asked.model).expanduser()
    scores = _checked(asked, mlflow_champion.evaluate_folder(folder, uri, data, settings))
    files = []
    if asked.card is not None:
        pictures = mlflow_champion.pictures_of_folder(folder, uri, data, settings)
        files = card.write(asked.card, asked.model, scores, pictures)
    if log:
        log_scores(uri, asked.model, scores, experiment=f"genray/{data.name}", tags={}, files=files)
    return scores


def _settings(asked: Request, data: Data, settings: Eval) -> tuple[Data, Eval]:
    """Reference images and protocol of a run, with what the user said otherwise."""
    data = replace(
        data,
        name=asked.data or data.name,
        root=asked.root or os.environ.get("GENRAY_DATA") or data.root,
        image_size=asked.image_size or data.image_size,
    )
    settings = replace(settings, extractor=asked.extractor, metrics=asked.metrics)
    if asked.card is not None and not asked.metrics:
        settings = replace(settings, metrics=(ALL,))
    if asked.protocol is not None:
        wanted = read_scores(asked.protocol)
        settings = mlflow_champion.following(settings, wanted[0].protocol)
        settings = replace(settings, metrics=tuple(score.metric for score in wanted))
    return data, replace(
        settings,
        split=asked.split or settings.split,
        num_samples=asked.num_samples or settings.num_samples,
        num_seeds=asked.num_seeds or settings.num_seeds,
    )


def _checked(asked: Request, scores: Sequence[Score]) -> list[Score]:
    """`scores`, which must be of the protocols that were to be followed."""
    wanted = read_scores(asked.protocol) if asked.protocol is not None else []
    taken = {score.metric: score for score in scores}
    for score in wanted:
        found = differences(taken[score.metric].protocol, score.protocol)
        if found:
            few = taken[score.metric].protocol.num_samples < score.protocol.num_samples
            cure = "as many images as it asks for" if few else "the data and the extractor that it names"
            raise ProtocolError(
                f"{score.metric} cannot be taken under the protocol of {asked.protocol} ({'; '.join(found)}); "
                f"give {cure}"
            )
    return list(scores)


def _existing(path: Path | None) -> Path:
    assert path is not None
    return path
