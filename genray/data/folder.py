"""ImageFolder layout, `[prefix/][split/]<class>/**/<image>`, in a directory or inside one zip."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from genray.data.pixels import EXTENSIONS
from genray.errors import DataError

LAYOUT = "[train/ | test/]<class>/<image>"
_MAX_FILE_BYTES = 1 << 30

Parts = tuple[str, ...]
"""A path inside the root: directories, then the file."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a directory or zip holds; nothing is decoded, and nothing of a zip is written to disk."""

    root: Path
    classes: tuple[str, ...]
    """Sorted by name, of all splits together, so that a label means the same in each."""
    splits: dict[str, tuple[tuple[str, int], ...]]
    """Path inside `root` and label of each image by split, sorted by class, then path. One split '': no splits."""

    def full_name(self, path: str) -> str:
        """Where a person finds the image: `dir/path`, or `archive.zip!path`."""
        return f"{self.root}!{path}" if self.root.is_file() else str(self.root / path)

    def files(self, paths: Iterable[str]) -> list[Path]:
        """The files on disk that hold these images."""
        return [self.root] if self.root.is_file() else [self.root / path for path in paths]

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """A function from path to bytes, for several threads at once; it raises ValueError with the reason."""
        if not self.root.is_file():
            yield lambda path: _read_file(self.root / path)
            return
        with zipfile.ZipFile(self.root) as archive:
            yield lambda path: _read_member(archive, path)


def list_folder(root: Path) -> Folder:
    """Splits, classes and images of `root`, a directory (links are followed) or a zip.

    Hidden files and files without an image's extension are left out. Directories that all images
    share are a prefix. With a directory 'train' or 'test' below it, every directory there is a split.

    Raises:
        DataError: nothing there, no zip, no images, images outside a class, or splits beside classes.
    """
    if not root.exists():
        raise DataError(f"data.root={str(root)!r} does not exist; give a directory or zip with {LAYOUT}")
    names = _zip_names(root) if root.is_file() else _directory_names(root)
    paths = [tuple(name.split("/")) for name in names if _is_image(name)]
    if not paths:
        known = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"data.root={str(root)!r} holds no images ({known}); expected {LAYOUT}")
    prefix = _prefix_length(paths)
    _refuse_loose(root, paths, prefix)
    has_splits = _has_splits(root, paths, prefix)
    at = prefix + has_splits
    classes = tuple(sorted({parts[at] for parts in paths}))
    label = {name: index for index, name in enumerate(classes)}
    splits: dict[str, list[tuple[str, int]]] = {}
    for parts in sorted(paths, key=lambda parts: (parts[at], parts)):
        split = parts[prefix] if has_splits else ""
        splits.setdefault(split, []).append(("/".join(parts), label[parts[at]]))
    return Folder(root=root, classes=classes, splits={name: tuple(images) for name, images in splits.items()})


def _zip_names(root: Path) -> list[str]:
    try:
        with zipfile.ZipFile(root) as archive:
            return sorted({member.filename for member in archive.infolist() if not member.is_dir()})
    except zipfile.BadZipFile as error:
        raise DataError(
            f"data.root={str(root)!r} is not a readable zip ({error}); give a directory or zip with {LAYOUT}"
        ) from error


def _directory_names(root: Path) -> list[str]:
    names: list[str] = []
    for directory, _, files in os.walk(root, followlinks=True):
        base = Path(directory).relative_to(root)
        names += [(base / name).as_posix() for name in files]
    return names


def _is_image(name: str) -> bool:
    hidden = name.startswith((".", "__MACOSX")) or "/." in name
    dot = name.rfind(".")
    return not hidden and dot >= 0 and name[dot:].lower() in EXTENSIONS


def _prefix_length(paths: list[Parts]) -> int:
    """Directories shared by all images, short of the class and of a split."""
    directories = [parts[:-1] for parts in paths]
    low, high = min(directories), max(directories)
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    if low == high:
        shared = max(0, shared - 1)  # one directory for all: it is the class
    return next((i for i, name in enumerate(low[:shared]) if name in ("train", "test")), shared)


def _refuse_loose(root: Path, paths: list[Parts], prefix: int) -> None:
    for parts in paths:
        if len(parts) - 1 <= prefix:
            raise DataError(f"data.root={str(root)!r} has {'/'.join(parts)!r} outside any class; expected {LAYOUT}")


def _has_splits(root: Path, paths: list[Parts], prefix: int) -> bool:
    """Whether the directories below the prefix are splits; 'train' with images right in it is a class."""
    splits = {parts[prefix] for parts in paths if len(parts) - 1 > prefix + 1} & {"train", "test"}
    if not splits:
        return False
    for parts in paths:
        if len(parts) - 1 == prefix + 1:
            raise DataError(
                f"data.root={str(root)!r} has {'/'.join(parts)!r} beside the split {min(splits)!r}; expected {LAYOUT}"
            )
    return True


def _read_file(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ValueError(f"{size} bytes, more than the {_MAX_FILE_BYTES} that an image may have")
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); restore it, or remove what is left of it"
        ) from error


def _read_member(archive: zipfile.ZipFile, path: str) -> bytes:
    size = archive.getinfo(path).file_size
    if size > _MAX_FILE_BYTES:
        raise ValueError(f"unpacks to {size} bytes, more than the {_MAX_FILE_BYTES} that an image may have")
    try:
        return archive.read(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damage, or a password
        raise ValueError(str(error)) from error
