"""How often a classifier names the right class, each share with its standard error."""

import torch
from torch import Tensor

from genray.errors import DivergenceError, ProtocolError
from genray.evaluation.features import check_shape
from genray.sampling import to_float
from genray.snapshot import Snapshot
from genray.streams import generator

NUM_RESAMPLES = 50


@torch.no_grad()
def logits_of(classifier: Snapshot, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits of the classes of every image, float32 (N, K), on the CPU.

    Args:
        classifier: snapshot of a classifier, its module on any device.
        images: uint8 (N, C, H, W) of the classifier's shape.
        batch_size: images per forward pass.

    Raises:
        ProtocolError: the images have another shape.
        DivergenceError: a logit is not finite.
    """
    check_shape("classifier", classifier, images)
    module = classifier.module.eval()
    device = next(module.parameters()).device
    found = []
    for start in range(0, len(images), batch_size):
        logits = module(to_float(images[start : start + batch_size].to(device)))
        if not bool(logits.isfinite().all()):
            raise DivergenceError(
                f"classifier {classifier.task!r} gives non-finite logits for images {start} to "
                f"{start + len(logits) - 1}; its weights have diverged, take an earlier snapshot"
            )
        found.append(logits.float().cpu())
    return torch.cat(found)


def predict(classifier: Snapshot, images: Tensor, batch_size: int = 256) -> Tensor:
    """The likeliest class of every image, int64 (N,), on the CPU; arguments and errors as for `logits_of`."""
    return logits_of(classifier, images, batch_size).argmax(1)


def accuracy(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right predictions in [0, 1], and its binomial standard error.

    Args:
        predicted: (N,), int64.
        labels: (N,), int64.

    Raises:
        ProtocolError: N is 0.
    """
    return _share(predicted == labels)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> tuple[float, float]:
    """Share of images whose class is among the `k` likeliest, and its binomial standard error.

    Args:
        logits: (N, K), of any scale.
        labels: (N,), int64.
        k: from 1 to K.

    Raises:
        ProtocolError: N is 0, or `k` is out of range.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ProtocolError(
            f"top-{k} accuracy of {logits.shape[1]} classes is not defined; take k from 1 to {logits.shape[1]}"
        )
    return _share((logits.topk(k, dim=1).indices == labels[:, None]).any(1))


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often class i was called j, int64 (num_classes, num_classes); those of several shards add up."""
    cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def macro_recall(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy per class, averaged over the classes that occur in `labels`, and its standard error.

    Every class counts the same, however many images it has; arguments as for `accuracy`.
    """
    return _macro(predicted, labels, labels)


def macro_precision(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right predictions per predicted class, averaged, and its standard error.

    A class that occurs in `labels` and is never predicted counts 0; arguments as for `accuracy`.
    """
    return _macro(predicted, labels, predicted)


def macro_f1(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[float, float]:
    """Harmonic mean of precision and recall per class, averaged over the classes that occur in `labels`.

    Its spread is the standard deviation over bootstrap resamples of the images, always the same ones.

    Raises:
        ProtocolError: N is 0.
    """
    _share(predicted == labels)
    source, found = generator(0, "f1/resamples"), []
    for _ in range(NUM_RESAMPLES):
        chosen = torch.randint(len(labels), (len(labels),), generator=source)
        found.append(_mean_f1(confusion_matrix(predicted[chosen], labels[chosen], num_classes)))
    value = _mean_f1(confusion_matrix(predicted, labels, num_classes))
    return value, float(torch.tensor(found, dtype=torch.float64).std())


def _mean_f1(confusion: Tensor) -> float:
    each = 2 * confusion.diagonal().double() / (confusion.sum(0) + confusion.sum(1))
    return float(each[confusion.sum(1) > 0].mean())


def per_class(confusion: Tensor) -> dict[str, list[float | None]]:
    """`precision`, `recall` and `f1` of every class; None where nothing was called so, nothing is so, or neither."""
    hits, called, being = confusion.diagonal().double(), confusion.sum(0), confusion.sum(1)
    shares = {"precision": hits / called, "recall": hits / being, "f1": 2 * hits / (called + being)}
    return {name: [None if s.isnan() else float(s) for s in values] for name, values in shares.items()}


def _macro(predicted: Tensor, labels: Tensor, by: Tensor) -> tuple[float, float]:
    """Mean over the classes that occur of the share of right ones among the images that `by` puts there."""
    right = predicted == labels
    occurring = torch.bincount(labels).nonzero().flatten()
    if len(occurring) == 0:
        _share(right)
    shares = [_share(right[by == k]) if bool((by == k).any()) else (0.0, 0.0) for k in occurring]
    variance = sum(error**2 for _, error in shares) / len(shares) ** 2
    return sum(share for share, _ in shares) / len(shares), variance**0.5


def _share(right: Tensor) -> tuple[float, float]:
    if len(right) == 0:
        raise ProtocolError("accuracy of 0 images is not defined; choose a split that has some")
    share = float(right.double().mean())
    return share, (share * (1 - share) / len(right)) ** 0.5
