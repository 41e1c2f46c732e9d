"""A named data set, a folder or a zip -> one split of it as uint8 pixels and labels.

Images on disk are decoded once, into a file of `data.cache` whose name is a digest of the bytes they
came from and of everything done to them; every process of a machine maps that file.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genray.data import cache
from genray.data.originals import Original, open_original
from genray.data.pixels import fit_array
from genray.data.splits import draw_split
from genray.errors import CorruptImageError, DataError

if TYPE_CHECKING:
    from genray.config import Data

_DIGITS = ("datasets", "data", "digits.csv.gz")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split, decoded."""

    images: Tensor
    """(N, C, H, W) uint8, channels last in memory; perhaps a read-only mapped file: never write to it."""
    labels: Tensor
    """(N,) int64, positions in `classes`."""
    classes: tuple[str, ...]
    name: str
    split: str
    digest: str
    """SHA-256 (hex) of pixels, labels and shape, in order."""
    num_skipped: int
    """Images left out because they do not decode."""
    left_out: str = ""
    """How many generated images `mix` has left out, and why."""

    def __len__(self) -> int:
        return len(self.labels)


def load_images(data: "Data", split: str) -> ImageSet:
    """The images of `split`, in an order that depends on nothing but the files.

    Sets with splits of their own have 'train' and 'test' (a folder: what its directories are called).
    The others are drawn into 'train' and 'test' by `data.split_seed`, class by class; 'all' is everything.

    Raises:
        CorruptImageError: an image does not decode, and `data.on_corrupt` is 'stop'.
        DataError: no files, no images, no such split, or a cache folder that cannot be written.
    """
    if data.name == "digits":
        return _load_digits(data, split)
    original = open_original(data, split)
    cached = _through_cache(data, original, split)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        pixels = torch.from_numpy(cached.pixels)
    return ImageSet(
        images=pixels.permute(0, 3, 1, 2),
        labels=torch.from_numpy(cached.labels),
        classes=original.classes,
        name=data.name,
        split=split,
        digest=cached.digest,
        num_skipped=len(cached.skipped),
    )


def _read_digits() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images (1797, 8, 8) in 0..16 and labels of sklearn.datasets.load_digits, whose import takes seconds."""
    package = find_spec("sklearn")
    files = [Path(place, *_DIGITS) for place in (package.submodule_search_locations or [])] if package else []
    if not files or not files[0].is_file():
        raise DataError(f"'digits' needs scikit-learn with its {'/'.join(_DIGITS)}: pip install scikit-learn")
    table = np.loadtxt(files[0], delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _load_digits(data: "Data", split: str) -> ImageSet:
    """Not cached: 1,797 images are soon read."""
    images, labels = _read_digits()
    chosen = draw_split(data, labels, split)
    grey = np.rint(images[chosen] * (255 / 16)).astype(np.uint8)
    pixels = np.stack([fit_array(image, data.image_shape) for image in grey])
    labels = labels[chosen]
    return ImageSet(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels),
        classes=tuple(map(str, range(10))),
        name=data.name,
        split=split,
        digest=cache.pixel_digest(pixels, labels),
        num_skipped=0,
    )


def _through_cache(data: "Data", original: Original, split: str) -> cache.Cached:
    """`original` from the cache; decoded into it first where it is not there, or damaged."""
    folder = Path(data.cache).expanduser()
    try:
        source = cache.source_digest(original.files, original.root, folder)
        settings = original.settings | {"source": source, "classes": original.classes, "shape": data.image_shape}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        path = folder / f"{data.name}-{key}.pixels"
        cached = cache.load(path) or _decode_into(path, data, original)
    except OSError as error:
        raise DataError(
            f"data.cache={data.cache!r} cannot be used ({error}); give a folder with free space as --data.cache"
        ) from error
    if cached is None:
        raise DataError(f"data.root={str(original.root)!r}: not one image of split {split!r} decodes; check the files")
    if cached.skipped and data.on_corrupt == "stop":
        raise _corrupt_error(original, cached.skipped[0])
    return cached


def _decode_into(path: Path, data: "Data", original: Original) -> cache.Cached | None:
    """`original`, decoded into the cache file `path`, unless another process does it first."""
    with cache.locked(path):
        cached = cache.load(path)
        if cached is None:
            cache.store(path, _checked(data, original, original.rows(data.image_shape)), data.image_shape)
            cached = cache.load(path)
        return cached


def _checked(data: "Data", original: Original, rows: Iterator[cache.Row]) -> Iterator[cache.Row]:
    """`rows`, up to the first corrupt one unless those are skipped."""
    for pixels, label in rows:
        if isinstance(pixels, cache.Corrupt) and data.on_corrupt == "stop":
            raise _corrupt_error(original, pixels)
        yield pixels, label


def _corrupt_error(original: Original, corrupt: cache.Corrupt) -> CorruptImageError:
    return CorruptImageError(
        f"{original.full_name(corrupt.path)} does not decode ({corrupt.reason}); "
        "repair or remove it, or leave such images out with --data.on-corrupt skip"
    )
