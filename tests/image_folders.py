"""Folders and zips of painted images."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genray.config import Data


def paint(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def make_folder(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(i).save(path)
    return root


def make_zip(folder: Path) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, path.relative_to(folder))
    return archive


def folder_data(root: Path, tmp_path: Path, **changes: Any) -> Data:
    values: dict[str, Any] = {"name": "folder", "root": str(root), "image_size": (8, 8)}
    return Data(**(values | {"cache": str(tmp_path / "cache")} | changes))


def break_image(root: Path, name: str) -> None:
    encoded = (root / name).read_bytes()
    (root / name).write_bytes(encoded[: len(encoded) // 2])
