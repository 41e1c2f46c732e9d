"""Whether images that a model is tested on were trained on."""

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genray.data.images import ImageSet
from genray.errors import DataError

if TYPE_CHECKING:
    from genray.config import Data

logger = logging.getLogger(__name__)


def shared_images(a: ImageSet, b: ImageSet) -> list[tuple[int, int]]:
    """Positions of equal images, one pair for each image of `b` that is in `a`, whatever their labels."""
    places = {digest: index for index, digest in reversed(list(enumerate(_digests(a.images))))}
    return [(places[digest], index) for index, digest in enumerate(_digests(b.images)) if digest in places]


def refuse_leak(train: ImageSet, test: ImageSet) -> None:
    """Nothing, where no image of `test` is in `train`.

    Raises:
        DataError: says how many are, and where the first is.
    """
    if pairs := shared_images(train, test):
        first, second = pairs[0]
        raise DataError(
            f"{len(pairs)} of {len(test)} images of split {test.split!r} of {test.name!r} are in split "
            f"{train.split!r} too (pixel by pixel; the first is image {second}, there image {first}), so that scores "
            "would be too good; remove the copies, or go on with --data.on-leak warn"
        )


def heed_leak(data: "Data", train: ImageSet, test: ImageSet) -> None:
    """Does as `data.on_leak` says where an image of `test` is in `train`.

    Raises:
        DataError: as `refuse_leak`, where it says stop.
    """
    try:
        refuse_leak(train, test)
    except DataError as error:
        if data.on_leak == "stop":
            raise
        logger.warning("%s", error)


def describe(images: ImageSet) -> dict[str, Any]:
    """What a split is, in JSON values: its digest, and how many images each class has."""
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    return {"digest": images.digest, "images": len(images), "classes": dict(zip(images.classes, counts, strict=True))}


def _digests(images: Tensor) -> list[bytes]:
    rows = images.permute(0, 2, 3, 1).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
