"""Images as points: the features of a network that was trained to see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genray.errors import ProtocolError
from genray.sampling import to_float
from genray.snapshot import Snapshot


@dataclass(frozen=True)
class Extractor:
    """A network that gives features of images; `extractors` makes them from weight files."""

    task: str
    """Name in protocols, e.g. `resnet18`."""
    digest: str
    """SHA-256 of the weights' file."""
    resize: str
    """How images are brought to the network's size, e.g. `bilinear-antialias-224`."""
    prepare: Callable[[Tensor], Tensor]
    """Images, uint8 (B, C, H, W), as the network takes them."""
    observe: Callable[[Tensor], Tensor]
    """Prepared images -> features (B, D), or (B, D, 1, 1)."""
    classify: Callable[[Tensor], Tensor] | None
    """Prepared images -> class probabilities (B, K). None: the network has no classes."""
    device: torch.device


@torch.no_grad()
def extract(extractor: Snapshot | Extractor, images: Tensor, batch_size: int = 256) -> Tensor:
    """Features of the images, float32 (N, D), on the CPU.

    Args:
        extractor: snapshot of a classifier, its module on any device, or a network from a file.
        images: uint8 (N, C, H, W); for a snapshot of exactly the classifier's shape: nothing is resized.
        batch_size: images per forward pass.

    Raises:
        ProtocolError: the snapshot is no classifier, the images have another shape than the network
            takes, or a feature is not finite.
    """
    network = _network(extractor, images)
    # an empty batch tells the width where there are no images at all
    starts = range(0, max(1, len(images)), batch_size)
    found = torch.cat([_pass(network, network.observe, images[s : s + batch_size]) for s in starts])
    bad = int((~found.isfinite()).any(1).sum())
    if bad:
        raise ProtocolError(
            f"{bad} of {len(found)} images have non-finite features under extractor {extractor.task!r}, expected "
            "finite numbers; its weights have diverged, take another extractor"
        )
    return found


@torch.no_grad()
def class_probabilities(extractor: Snapshot | Extractor, images: Tensor, batch_size: int = 256) -> Tensor:
    """Probabilities of the extractor's classes, float32 (N, K), on the CPU; arguments as for `extract`.

    Raises:
        ProtocolError: as `extract` does, or the network has no classes.
    """
    network = _network(extractor, images)
    if network.classify is None:
        raise ProtocolError(
            f"extractor {extractor.task!r} gives features and no classes, so inception_score is not defined; "
            "take a classifier, or a module that returns (features, logits)"
        )
    starts = range(0, max(1, len(images)), batch_size)
    return torch.cat([_pass(network, network.classify, images[s : s + batch_size]) for s in starts])


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


def resize_of(extractor: Snapshot | Extractor) -> str:
    """How the extractor brings images to its size, for the protocol; `none` for a snapshot."""
    return extractor.resize if isinstance(extractor, Extractor) else "none"


def resized(images: Tensor, size: int) -> Tensor:
    """Images in [-1, 1], float32 (B, 3, size, size), of uint8 (B, 1 or 3, H, W): bilinear, antialiased."""
    pixels = to_float(images).expand(-1, 3, -1, -1)
    if tuple(pixels.shape[2:]) == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _network(extractor: Snapshot | Extractor, images: Tensor) -> Extractor:
    """The extractor as a network, after the checks that a snapshot needs."""
    if isinstance(extractor, Extractor):
        return extractor
    if extractor.product != "classifier":
        raise ProtocolError(
            f"extractor is a {extractor.product} ({extractor.task!r}), expected a classifier; "
            "set eval.extractor to the snapshot of one"
        )
    check_shape("extractor", extractor, images)
    module: Any = extractor.module.eval()
    return Extractor(
        task=extractor.task,
        digest=extractor.digest,
        resize="none",
        prepare=to_float,
        observe=module.features,
        classify=lambda prepared: module(prepared).softmax(1),
        device=next(module.parameters()).device,
    )


def _pass(network: Extractor, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    try:
        return function(network.prepare(images.to(network.device))).float().flatten(1).cpu()
    except (RuntimeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[-1][:200]
        raise ProtocolError(
            f"extractor {network.task!r} does not take images of {tuple(images.shape[1:])} with resize "
            f"{network.resize!r} ({reason}); name the size that it wants, e.g. torchscript-299:PATH"
        ) from error
