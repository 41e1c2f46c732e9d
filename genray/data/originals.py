"""A split as it lies on disk: which files, which images, and how to decode them."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genray.data import DATASETS
from genray.data.cache import Corrupt, Row, locked
from genray.data.folder import LAYOUT, Folder, list_folder
from genray.data.pixels import Shape, decode, fit_array
from genray.data.splits import check_split, draw_split
from genray.errors import DataError

if TYPE_CHECKING:
    from genray.config import Data

_CIFAR10_ZIP = "cifar10-jpeg.zip"
_TASK_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Original:
    """A split as it lies on disk."""

    root: Path
    files: list[Path]
    """The files its bytes are in."""
    classes: tuple[str, ...]
    settings: dict[str, Any]
    """What else decides which images these are, in JSON values."""
    rows: Callable[[Shape], Iterator[Row]]
    """Decodes it, in order."""
    full_name: Callable[[str], str] = str


def open_original(data: "Data", split: str) -> Original:
    """`split` of a data set that is read from disk; nothing is decoded yet.

    Raises:
        DataError: files that are missing or laid out otherwise, or no such split.
    """
    root = _find_root(data)
    folder = root if data.name == "folder" else _cifar10_folder(root) if data.name == "cifar10" else None
    return _open_named(data, root, split) if folder is None else _open_folder(data, folder, split)


def _find_root(data: "Data") -> Path:
    """Where the files are, or will be after a download."""
    root = data.root or os.environ.get("GENRAY_DATA")
    if root:
        return Path(root).expanduser()
    fetched = Path(data.cache).expanduser() / "originals"
    if data.name == "folder" or not (data.download or fetched.exists()):
        raise DataError(
            f"data.root is not set, and neither is $GENRAY_DATA: {data.name!r} is read from disk; {_cure(data)}"
        )
    return fetched


def _cure(data: "Data") -> str:
    if data.name == "folder":
        return f"give a directory or zip with {LAYOUT} as --data.root"
    return "give its folder with --data.root or set GENRAY_DATA, or fetch it with --data.download"


def _cifar10_folder(root: Path) -> Path | None:
    """CIFAR-10 in ImageFolder layout: `root`, or a zip in it where the original batches are not."""
    if root.is_file() or (root / "train").is_dir():
        return root
    archive = root / _CIFAR10_ZIP
    return archive if archive.is_file() and not (root / "cifar-10-batches-py").is_dir() else None


def _open_folder(data: "Data", root: Path, split: str) -> Original:
    folder = list_folder(root)
    expected = DATASETS[data.name].num_classes
    if expected and len(folder.classes) != expected:
        raise DataError(
            f"data.root={str(root)!r} has {len(folder.classes)} classes, and {data.name!r} has {expected}; "
            "give another --data.root, or say --data.name folder"
        )
    settings: dict[str, Any] = {"split": split}
    if "" in folder.splits:
        every = folder.splits[""]
        chosen = draw_split(data, np.array([label for _, label in every], dtype=np.int64), split)
        images = [every[i] for i in chosen]
        settings |= {"train_fraction": data.train_fraction, "split_seed": data.split_seed}
    else:
        check_split(str(root), split, folder.splits)
        images = list(folder.splits[split])
    return Original(
        root=root,
        files=folder.files(path for path, _ in images),
        classes=folder.classes,
        settings=settings,
        rows=lambda shape: _decode_folder(folder, images, shape),
        full_name=folder.full_name,
    )


def _decode_folder(folder: Folder, images: list[tuple[str, int]], shape: Shape) -> Iterator[Row]:
    """Rows in the order of `images`; threads are enough, as Pillow decodes outside Python's lock."""
    num_threads = torch.get_num_threads()
    tasks = (images[i : i + _TASK_IMAGES] for i in range(0, len(images), _TASK_IMAGES))
    with folder.reader() as read, ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[list[Row]]] = deque()
        for task in tasks:
            ahead.append(pool.submit(_decode_task, read, task, shape))
            if len(ahead) > 2 * num_threads:  # bounds the memory
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _decode_task(read: Callable[[str], bytes], images: list[tuple[str, int]], shape: Shape) -> list[Row]:
    rows: list[Row] = []
    for path, label in images:
        try:
            rows.append((decode(read(path), shape), label))
        except ValueError as error:
            rows.append((Corrupt(path, str(error)), label))
    return rows


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A data set that torchvision reads."""

    torchvision: str
    files: dict[str, tuple[str, ...]]
    """Files below the root that hold each split."""
    classes: tuple[str, ...]


def _idx_files(folder: str) -> dict[str, tuple[str, ...]]:
    prefixes = {"train": "train", "test": "t10k"}
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return {split: tuple(f"{folder}/raw/{prefix}-{kind}" for kind in kinds) for split, prefix in prefixes.items()}


_NAMED = {
    "mnist": _Named(torchvision="MNIST", files=_idx_files("MNIST"), classes=tuple("0123456789")),
    "fashion-mnist": _Named(
        torchvision="FashionMNIST",
        files=_idx_files("FashionMNIST"),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "cifar10": _Named(
        torchvision="CIFAR10",
        files={
            "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "test": ("cifar-10-batches-py/test_batch",),
        },
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
}


def _open_named(data: "Data", root: Path, split: str) -> Original:
    named = _NAMED[data.name]
    check_split(data.name, split, named.files)
    if data.download and _missing(named, root):
        _fetch(data, named, root)
    missing = _missing(named, root)
    if missing:
        raise DataError(f"{data.name!r} is not under {str(root)!r}: {missing} is missing; {_cure(data)}")
    return Original(
        root=root,
        files=[root / file for file in named.files[split]],
        classes=named.classes,
        settings={"name": data.name, "split": split},
        rows=lambda shape: _read_named(named, root, split, shape),
    )


def _missing(named: _Named, root: Path) -> str | None:
    """The first file that torchvision would look for in vain."""
    return next((file for files in named.files.values() for file in files if not (root / file).is_file()), None)


def _fetch(data: "Data", named: _Named, root: Path) -> None:
    import torchvision

    with locked(Path(data.cache).expanduser() / f"{data.name}.download"):
        try:
            getattr(torchvision.datasets, named.torchvision)(root, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{data.name!r} could not be fetched into {str(root)!r} ({error}); {_cure(data)}"
            ) from error


def _read_named(named: _Named, root: Path, split: str, shape: Shape) -> Iterator[Row]:
    import torchvision

    try:
        original = getattr(torchvision.datasets, named.torchvision)(root, train=split == "train")
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise DataError(
            f"{named.torchvision} under {str(root)!r} is damaged ({error}); remove it and fetch it again"
        ) from error
    for pixels, label in zip(np.asarray(original.data), np.asarray(original.targets).tolist(), strict=True):
        yield fit_array(pixels, shape), label
