"""What is whole or is not there: a file, or a folder that knows the digests of its files; written beside, renamed."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from genray.errors import CheckpointError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` at the end of the block, or goes where it fails."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def seal(directory: Path, write: Callable[[Path], None]) -> str:
    """Fills a new folder by `write(folder)`, adds its manifest and puts it at `directory`.

    A folder that is already there is replaced: nobody ever sees half of the new one.

    Returns:
        Digest of the manifest, and so of everything in the folder.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp"
    beside.mkdir()
    try:
        write(beside)
        files = sorted(path for path in beside.iterdir())
        manifest = {"format": 1, "files": {path.name: sha256(path) for path in files}}
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        for path in [*files, beside / MANIFEST, beside]:
            _fsync(path)
        if directory.exists():
            old = beside.with_suffix(".old")
            directory.rename(old)
            shutil.rmtree(old)
        beside.rename(directory)
        _fsync(directory.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return sha256(directory / MANIFEST)


def sweep(parent: Path) -> None:
    """Deletes what killed writers have left of folders in `parent`, which nobody writes to just now."""
    for path in parent.glob(".*"):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path)


def verify(directory: Path, expected: Iterable[str]) -> str:
    """Digest of the manifest of a folder that holds exactly the files `expected`, all undamaged.

    Raises:
        CheckpointError: a file is missing, foreign, a link, or has another digest than the manifest says.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not there; expected a folder with {MANIFEST}")
    allowed = {*expected, MANIFEST}
    for path in sorted(directory.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is not a plain file; expected only {', '.join(sorted(allowed))}")
        if path.name not in allowed:
            raise CheckpointError(f"{path} does not belong there; expected only {', '.join(sorted(allowed))}")
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        listed = {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{directory / MANIFEST} is missing or damaged: {error}") from error
    if set(listed) != allowed - {MANIFEST}:
        raise CheckpointError(f"{directory / MANIFEST} lists {sorted(listed)}; expected {sorted(allowed - {MANIFEST})}")
    for name, digest in listed.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; the manifest lists it")
        actual = sha256(path)
        if actual != digest:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is {actual[:12]}…, the manifest says {digest[:12]}…")
    return sha256(directory / MANIFEST)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
