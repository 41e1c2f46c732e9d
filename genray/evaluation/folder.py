"""A folder of images that anything made, as a set that can be scored."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from genray.data.cache import pixel_digest
from genray.data.images import ImageSet
from genray.data.pixels import decode
from genray.errors import CorruptImageError, DataError

EXTENSIONS = (".png", ".jpg", ".jpeg")


def load_folder(folder: Path, channels: int) -> ImageSet:
    """Every PNG and JPEG of a folder, in the order of their names, or of a folder with one folder a class.

    Nothing is resized: that would be scored, too. Hidden files and other kinds of files are left out.

    Args:
        folder: images right in it, which have no class, or in folders that are named by their class.
        channels: 1 grey, 3 colour; images of the other kind are converted.

    Raises:
        DataError: no images, images of several sizes, or some in a class and some in none.
        CorruptImageError: an image does not decode.
    """
    loose, classes = _listed(folder)
    names = tuple(sorted(classes))
    files = [(path, 0) for path in loose] or [
        (path, label) for label, name in enumerate(names) for path in classes[name]
    ]
    pixels = _decoded([path for path, _ in files], channels)
    labels = np.array([label for _, label in files], dtype=np.int64)
    return ImageSet(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels),
        classes=names,
        name=str(folder),
        split="all",
        digest=pixel_digest(pixels, labels),
        num_skipped=0,
    )


def holds_images(folder: Path) -> bool:
    """Whether there is an image in the folder, or in a folder of it: a snapshot has none."""
    if not folder.is_dir():
        return False
    return any(_images(folder)) or any(_images(inner) for inner in folder.iterdir() if inner.is_dir())


def _listed(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """Images right in the folder, and those of each class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with PNG or JPEG images")
    loose = _images(folder)
    inner = {path.name: _images(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    classes = {name: images for name, images in inner.items() if images}
    if not loose and not classes:
        raise DataError(f"{folder} holds no PNG or JPEG images; give a folder of images, or of one folder a class")
    if loose and classes:
        raise DataError(
            f"{folder} has {loose[0].name!r} beside the class {min(classes)!r}; put all images into classes, or none"
        )
    return loose, classes


def _images(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    return [folder / name for name in names if name.lower().endswith(EXTENSIONS)]


def _decoded(paths: list[Path], channels: int) -> NDArray[np.uint8]:
    """Pixels (N, H, W, C) of images that are all of the size of the first."""
    width, height = _size(paths[0])
    pixels = np.empty((len(paths), height, width, channels), dtype=np.uint8)
    for index, path in enumerate(paths):
        size = _size(path)
        if size != (width, height):
            raise DataError(
                f"{path} has {size[0]} x {size[1]} pixels, and {paths[0]} has {width} x {height}; "
                "images that are scored together must be of one size: nothing is resized"
            )
        try:
            pixels[index] = decode(path.read_bytes(), (channels, height, width))
        except ValueError as error:
            raise CorruptImageError(f"{path} does not decode ({error}); repair or remove it") from error
    return pixels


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{path} does not decode ({error}); repair or remove it") from error
