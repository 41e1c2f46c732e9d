"""Scores of a classifier on every image of a split."""

from collections.abc import Sequence
from typing import Any

from genray.config import Eval
from genray.data.images import ImageSet
from genray.evaluation.accuracy import (
    NUM_RESAMPLES,
    accuracy,
    confusion_matrix,
    logits_of,
    macro_f1,
    macro_precision,
    macro_recall,
    per_class,
    top_k_accuracy,
)
from genray.evaluation.calibration import NUM_BINS, calibration_errors
from genray.evaluation.protocol import Protocol, Score
from genray.snapshot import Snapshot

TOP_K = 5
MAX_MATRIX_CLASSES = 100
"""Classes up to which the confusion matrix is kept beside the accuracy."""


def classifier_scores(names: Sequence[str], model: Snapshot, reals: ImageSet, settings: Eval) -> list[Score]:
    """The metrics `names` in this order; accuracy has the confusion matrix, precision and recall their classes.

    Raises:
        ProtocolError: there are no images.
        DivergenceError: a logit is not finite.
    """
    logits, labels = logits_of(model, reals.images, settings.batch_size), reals.labels
    predicted, num_classes = logits.argmax(1), logits.shape[1]
    confusion = confusion_matrix(predicted, labels, num_classes)
    each = per_class(confusion)
    k = min(TOP_K, num_classes)
    taken = {
        "accuracy": lambda: accuracy(predicted, labels),
        "precision": lambda: macro_precision(predicted, labels),
        "recall": lambda: macro_recall(predicted, labels),
        "f1": lambda: macro_f1(predicted, labels, num_classes),
        "top_k_accuracy": lambda: top_k_accuracy(logits, labels, k),
        "calibration_error": lambda: calibration_errors(logits.softmax(1), labels),
    }
    extra: dict[str, dict[str, Any]] = {
        "top_k_accuracy": {"k": k},
        "calibration_error": {"bins": NUM_BINS, "resamples": NUM_RESAMPLES},
        "f1": {"resamples": NUM_RESAMPLES},
    }
    details: dict[str, dict[str, Any]] = {
        "accuracy": {"confusion": confusion.tolist()} if num_classes <= MAX_MATRIX_CLASSES else {},
        "precision": {"per_class": each["precision"]},
        "recall": {"per_class": each["recall"]},
        "f1": {"per_class": each["f1"]},
    }
    common = of_reals(reals, num_seeds=1, seed=0)
    scores = []
    for name in names:
        protocol = Protocol(metric=name, extra=extra.get(name, {}), **common)
        scores.append(Score(name, *taken[name](), protocol, details.get(name, {})))
    return scores


def of_reals(reals: ImageSet, *, num_seeds: int, seed: int) -> dict[str, Any]:
    """Fields of the protocol of a metric that looks at every image of the split, and at no fakes."""
    return {
        "data": reals.name,
        "split": reals.split,
        "data_digest": reals.digest,
        "num_samples": len(reals.images),
        "num_seeds": num_seeds,
        "seed": seed,
    }
