"""From a snapshot to its scores."""

import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genray import snapshot as snapshots
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import ProtocolError, StorageError
from genray.evaluation.accuracy import accuracy, macro_recall, predict
from genray.evaluation.features import check_shape, extract
from genray.evaluation.frechet import Moments, frechet_distance
from genray.evaluation.kernel import NUM_SUBSETS, SUBSET_SIZE, kernel_distances
from genray.evaluation.likelihood import bounds, objective_of
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.reference import reference_of
from genray.sampling import generate, latents
from genray.snapshot import Snapshot
from genray.streams import generator

FORMAT = 1


def score_snapshot(
    directory: Path, *, data: Data, settings: Eval, extractor: Path | None, cache: Path | None = None
) -> list[Score]:
    """Every score of the snapshot at `directory`, the one that decides on promotion first.

    Classifier: accuracy, recall. Generator: fid, kid. VAE: fid, kid, elbo; without an extractor
    elbo alone. On CUDA when `settings.num_gpus` is above 0 and there is one, otherwise on the CPU.

    Args:
        directory: a snapshot.
        data: the reference images, read from files that are there.
        settings: the protocol; its `extractor` is a name, and not read here.
        extractor: snapshot of a classifier of the same image shape; not used for classifiers.
        cache: folder in which the features of the reference are kept between calls.

    Raises:
        ProtocolError: snapshot, data and extractor do not go together, or a generator has no extractor.
        CheckpointError: a snapshot is damaged.
        DivergenceError: the model gives non-finite pixels or logits.
    """
    device = "cuda" if settings.num_gpus > 0 and torch.cuda.is_available() else "cpu"
    model = _load(directory, device)
    reals = load_images(data, settings.split)
    check_shape("model", model, reals.images)
    if model.product == "classifier":
        return _classifier_scores(model, reals, settings)
    if extractor is None:
        if model.product != "vae":
            raise ProtocolError(
                f"fid of {model.task!r} needs an extractor, and none was given; "
                f"train {reals.name}-classifier and set eval.extractor to its snapshot"
            )
        return [_elbo_score(model, reals, settings)]
    scores = _distance_scores(model, reals, settings, _load(extractor, device), cache)
    return [*scores, _elbo_score(model, reals, settings)] if model.product == "vae" else scores


def reference_labels(reals: ImageSet, num: int, seed: int) -> Tensor:
    """Classes for `num` fakes, drawn with the frequencies that they have among the reals: (num,), int64."""
    frequencies = torch.bincount(reals.labels, minlength=len(reals.classes)).double()
    source = generator(seed, "evaluation/labels")
    return torch.multinomial(frequencies, num, replacement=True, generator=source)


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Writes the scores as JSON, in their order; a reader sees the old file or the whole new one."""
    text = json.dumps({"format": FORMAT, "scores": [score.to_dict() for score in scores]}, indent=2, allow_nan=False)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_text(text + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_scores(path: Path) -> list[Score]:
    """The scores that `write_scores` put at `path`, in their order.

    Raises:
        StorageError: the file cannot be read.
        ProtocolError: it holds something else, or scores of another format.
    """
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ProtocolError(f"format is {values['format']!r}, this genray reads {FORMAT}")
        return [Score.from_dict(score) for score in values["scores"]]
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; score the snapshot first") from error
    except (ProtocolError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ProtocolError(f"{path} holds no scores ({error}); delete it and score the snapshot again") from error


def _classifier_scores(model: Snapshot, reals: ImageSet, settings: Eval) -> list[Score]:
    _check_classes(model, reals)
    predicted = predict(model, reals.images, settings.batch_size)
    found = {"accuracy": accuracy(predicted, reals.labels), "recall": macro_recall(predicted, reals.labels)}
    common = _of_reals(reals, num_seeds=1, seed=0)
    return [Score(name, *figures, Protocol(metric=name, **common)) for name, figures in found.items()]


def _elbo_score(model: Snapshot, reals: ImageSet, settings: Eval) -> Score:
    """Mean bound of an image of the split, over seeds of latent and binarisation."""
    objective = objective_of(model)
    means = [float(bounds(model, reals.images, seed, settings.batch_size).elbo.mean()) for seed in _seeds(settings)]
    extra: dict[str, Any] = {"likelihood": objective.likelihood, "draws": 1}
    if objective.likelihood == "bernoulli":
        extra["binarize"] = objective.binarize
    else:
        extra["sigma"] = objective.sigma
    common = _of_reals(reals, num_seeds=settings.num_seeds, seed=settings.seed)
    return Score.of(means, Protocol(metric="elbo", extra=extra, **common))


def _distance_scores(
    model: Snapshot, reals: ImageSet, settings: Eval, extractor: Snapshot, cache: Path | None
) -> list[Score]:
    """Fid over seeds, and kid over the subsets of all seeds."""
    if _num_labels(model) > 0:
        _check_classes(model, reals)
    reference = reference_of(reals, extractor, settings.batch_size, cache)
    subset_size = min(SUBSET_SIZE, len(reference.features), settings.num_samples)
    fid, kid = [], []
    for seed in _seeds(settings):
        fakes = torch.cat([extract(extractor, f, settings.batch_size) for f in _fakes(model, reals, settings, seed)])
        fid.append(frechet_distance(reference.moments, Moments.of(fakes), reference.root))
        kid += kernel_distances(reference.features, fakes, seed, NUM_SUBSETS, subset_size)
    common: dict[str, Any] = {
        "data": reals.name,
        "split": reals.split,
        "data_digest": reals.digest,
        "num_samples": settings.num_samples,
        "num_seeds": settings.num_seeds,
        "seed": settings.seed,
        "extractor": extractor.task,
        "extractor_digest": extractor.digest,
        "truncation": settings.truncation,
        "labels": "reference",
    }
    subsets: dict[str, Any] = {"num_subsets": NUM_SUBSETS, "subset_size": subset_size}
    return [
        Score.of(fid, Protocol(metric="fid", **common)),
        Score.of(kid, Protocol(metric="kid", extra=subsets, **common)),
    ]


def _fakes(model: Snapshot, reals: ImageSet, settings: Eval, seed: int) -> Iterator[Tensor]:
    """`settings.num_samples` images, in batches."""
    z = latents(settings.num_samples, int(model.module.latent_dim), seed, settings.truncation)  # type: ignore[arg-type]
    labels = reference_labels(reals, settings.num_samples, seed) if _num_labels(model) else None
    for start in range(0, len(z), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        yield generate(model.module, z[part], None if labels is None else labels[part], settings.batch_size)


def _of_reals(reals: ImageSet, *, num_seeds: int, seed: int) -> dict[str, Any]:
    """Fields of the protocol of a metric that looks at every image of the split, and at no fakes."""
    return {
        "data": reals.name,
        "split": reals.split,
        "data_digest": reals.digest,
        "num_samples": len(reals.images),
        "num_seeds": num_seeds,
        "seed": seed,
    }


def _load(directory: Path, device: str) -> Snapshot:
    model = snapshots.load(directory)
    model.module.to(device)
    return model


def _seeds(settings: Eval) -> range:
    return range(settings.seed, settings.seed + settings.num_seeds)


def _num_labels(model: Snapshot) -> int:
    return int(model.module.num_labels)  # type: ignore[arg-type]


def _check_classes(model: Snapshot, reals: ImageSet) -> None:
    if model.classes != reals.classes:
        raise ProtocolError(
            f"model {model.task!r} knows the classes {', '.join(model.classes)}; the {reals.split} split of "
            f"{reals.name!r} has {', '.join(reals.classes)}; score with the data that it was trained on"
        )
