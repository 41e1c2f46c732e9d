"""Images as points: the penultimate features of a classifier."""

import torch
from torch import Tensor

from genray.errors import ProtocolError
from genray.sampling import to_float
from genray.snapshot import Snapshot


@torch.no_grad()
def extract(extractor: Snapshot, images: Tensor, batch_size: int = 256) -> Tensor:
    """Features of the images under a classifier, float32 (N, D), on the CPU.

    Args:
        extractor: snapshot of a classifier, its module on any device.
        images: uint8 (N, C, H, W) of exactly the classifier's shape; nothing is resized.
        batch_size: images per forward pass.

    Raises:
        ProtocolError: the snapshot is no classifier, the images have another shape, or a feature is not finite.
    """
    if extractor.product != "classifier":
        raise ProtocolError(
            f"extractor is a {extractor.product} ({extractor.task!r}), expected a classifier; "
            "set eval.extractor to the snapshot of one"
        )
    check_shape("extractor", extractor, images)
    module = extractor.module.eval()
    device = next(module.parameters()).device
    features = []
    for start in range(0, len(images), batch_size):
        batch = to_float(images[start : start + batch_size].to(device))
        features.append(module.features(batch).float().cpu())  # type: ignore[operator]
    found = torch.cat(features) if features else torch.empty(0, int(module.feature_dim))  # type: ignore[arg-type]
    bad = int((~found.isfinite()).any(1).sum())
    if bad:
        raise ProtocolError(
            f"{bad} of {len(found)} images have non-finite features under extractor {extractor.task!r}, expected "
            "finite numbers; its weights have diverged, take another extractor"
        )
    return found


def check_shape(role: str, snapshot: Snapshot, images: Tensor) -> None:
    """Raises ProtocolError when a snapshot of image shape (C, H, W) cannot go with `images` (N, C, H, W).

    Args:
        role: what the snapshot is in this evaluation, for the message.
        snapshot: of any product.
        images: the images that it meets.
    """
    shape = tuple(images.shape[1:])
    if shape != snapshot.image_shape:
        raise ProtocolError(
            f"images are {shape}, but {role} {snapshot.task!r} was trained on {snapshot.image_shape} (C, H, W); "
            f"score with data of its shape, or take another {role}: images are never resized to fit"
        )
