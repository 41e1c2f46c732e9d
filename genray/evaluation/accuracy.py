"""How often a classifier names the right class, each share with its standard error."""

import torch
from torch import Tensor

from genray.errors import DivergenceError, ProtocolError
from genray.evaluation.features import check_shape
from genray.sampling import to_float
from genray.snapshot import Snapshot


@torch.no_grad()
def predict(classifier: Snapshot, images: Tensor, batch_size: int = 256) -> Tensor:
    """The likeliest class of every image, int64 (N,), on the CPU.

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
    classes = []
    for start in range(0, len(images), batch_size):
        logits = module(to_float(images[start : start + batch_size].to(device)))
        if not bool(logits.isfinite().all()):
            raise DivergenceError(
                f"classifier {classifier.task!r} gives non-finite logits for images {start} to "
                f"{start + len(logits) - 1}; its weights have diverged, take an earlier snapshot"
            )
        classes.append(logits.argmax(1).cpu())
    return torch.cat(classes)


def accuracy(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right predictions in [0, 1], and its binomial standard error.

    Args:
        predicted: (N,), int64.
        labels: (N,), int64.

    Raises:
        ProtocolError: N is 0.
    """
    _check_some(labels)
    share = float((predicted == labels).double().mean())
    return share, (share * (1 - share) / len(labels)) ** 0.5


def macro_recall(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy per class, averaged over the classes that occur in `labels`, and its standard error.

    Every class counts the same, however many images it has; arguments as for `accuracy`.
    """
    _check_some(labels)
    per_class = [
        accuracy(predicted[labels == k], labels[labels == k]) for k in torch.bincount(labels).nonzero().flatten()
    ]
    value = sum(share for share, _ in per_class) / len(per_class)
    variance = sum(error**2 for _, error in per_class) / len(per_class) ** 2
    return value, variance**0.5


def _check_some(labels: Tensor) -> None:
    if len(labels) == 0:
        raise ProtocolError("accuracy of 0 images is not defined; choose a split that has some")
