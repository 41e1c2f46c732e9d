"""Decoded images on disk: one file a set, written once by whichever process comes first, mapped by all.

Layout of a file: pixels (N, H, W, C) uint8, labels (N,) int64 little-endian, a JSON footer, its length
(8 bytes), a mark (8 bytes). The end is written last, and the file gets its name after that.
"""

import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from genray.data.pixels import Pixels, Shape
from genray.errors import DataError

_MARK = b"genray\x00\x01"
_TAIL_BYTES = 8 + len(_MARK)


@dataclass(frozen=True)
class Corrupt:
    """An image that does not decode."""

    path: str
    reason: str


Row = tuple[Pixels | Corrupt, int]
"""Pixels (H, W, C), or why there are none, and the label."""


@dataclass(frozen=True)
class Footer:
    """What a cache file says about itself."""

    shape: tuple[int, int, int, int]
    """(N, H, W, C)."""
    digest: str
    """SHA-256 of pixels, labels and shape."""
    skipped: tuple[Corrupt, ...]
    mtime: int
    """Seconds; set on the file too, so that a touched file is known and read again before it is trusted."""


@dataclass(frozen=True)
class Cached:
    """A cache file, mapped."""

    pixels: Pixels
    """(N, H, W, C), read-only."""
    labels: NDArray[np.int64]
    digest: str
    skipped: tuple[Corrupt, ...]


def pixel_digest(pixels: Pixels, labels: NDArray[np.int64]) -> str:
    """SHA-256 (hex) over pixels (N, H, W, C), labels and shape: equal exactly when the sets are."""
    sha = hashlib.sha256(np.ascontiguousarray(pixels).data)
    return _finish_digest(sha, labels, pixels.shape)


def load(path: Path) -> Cached | None:
    """The set in `path`; None when there is none, or it is not whole."""
    try:
        with path.open("rb") as file:
            footer = _read_footer(file)
            if footer is None:
                return None
            file.seek(math.prod(footer.shape))
            labels = np.frombuffer(file.read(8 * footer.shape[0]), dtype="<i8").astype(np.int64)
            pixels = np.memmap(file, np.uint8, mode="r", shape=footer.shape)
            unchanged = os.fstat(file.fileno()).st_mtime_ns == footer.mtime * 10**9
    except FileNotFoundError:
        return None
    if not unchanged:
        if pixel_digest(pixels, labels) != footer.digest:
            return None
        _set_mtime(path, footer.mtime)
    return Cached(pixels, labels, footer.digest, footer.skipped)


def store(path: Path, rows: Iterable[Row], shape: Shape) -> None:
    """Writes `rows`, pixels of `shape` (C, H, W), to `path`, in order, the corrupt ones left out and listed.

    Whatever `rows` raises passes through, and leaves nothing behind.
    """
    part = _part(path)
    try:
        with part.open("wb", buffering=1 << 20) as file:
            footer = _write(file, rows, shape)
            file.flush()
            os.fsync(file.fileno())
        _set_mtime(part, footer.mtime)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path`.lock: of several processes on it, one at a time.

    Where the file system has no locks all go ahead: they do the same work, and the last to finish wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("wb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            _remove_leftovers(path)
        yield


def source_digest(files: Sequence[Path], root: Path, folder: Path) -> str:
    """SHA-256 (hex) over name below `root` and bytes of `files`: equal for copies at other places.

    It reads every byte (about a second a gigabyte), and only when one of the files has another size or
    time than the last time: `folder` remembers.
    """
    stats = [(path.relative_to(root).as_posix(), *_size_and_time(path)) for path in files]
    seen = hashlib.sha256(json.dumps([str(root.resolve()), stats]).encode()).hexdigest()
    memo = folder / f"{seen[:32]}.source"
    if not memo.exists():
        with locked(memo):
            if not memo.exists():
                _write_text(memo, _hash_files(files, root))
    return memo.read_text()


def _size_and_time(path: Path) -> tuple[int, int]:
    with _readable(path):
        status = path.stat()
        return status.st_size, status.st_mtime_ns


def _hash_files(files: Iterable[Path], root: Path) -> str:
    sha = hashlib.sha256()
    for path in files:
        with _readable(path), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sha.update(json.dumps([path.relative_to(root).as_posix(), digest]).encode())
    return sha.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); restore it, or remove what is left of it"
        ) from error


def _write_text(path: Path, text: str) -> None:
    """Writes a small file so that no reader sees half of it."""
    part = _part(path)
    part.write_text(text)
    part.replace(path)


def _part(path: Path) -> Path:
    """Where `path` is written before it gets its name."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")


def _write(file: BinaryIO, rows: Iterable[Row], shape: Shape) -> Footer:
    channels, height, width = shape
    sha = hashlib.sha256()
    kept: list[int] = []
    skipped: list[Corrupt] = []
    for pixels, label in rows:
        if isinstance(pixels, Corrupt):
            skipped.append(pixels)
            continue
        assert pixels.shape == (height, width, channels), (pixels.shape, shape)
        encoded = pixels.tobytes()
        sha.update(encoded)
        file.write(encoded)
        kept.append(label)
    labels = np.array(kept, dtype="<i8")
    full_shape = (len(kept), height, width, channels)
    seconds = int(os.fstat(file.fileno()).st_mtime)
    footer = Footer(full_shape, _finish_digest(sha, labels, full_shape), tuple(skipped), seconds)
    encoded = json.dumps(asdict(footer)).encode()
    file.write(labels.tobytes() + encoded + len(encoded).to_bytes(8, "little") + _MARK)
    return footer


def _read_footer(file: BinaryIO) -> Footer | None:
    """The footer of `file`, if it ends as a whole file does and is as long as its footer says."""
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL_BYTES:
        return None
    file.seek(size - _TAIL_BYTES)
    tail = file.read(_TAIL_BYTES)
    length = int.from_bytes(tail[:8], "little")
    if tail[8:] != _MARK or length > size - _TAIL_BYTES:
        return None
    file.seek(size - _TAIL_BYTES - length)
    try:
        values = json.loads(file.read(length))
        skipped = tuple(Corrupt(**image) for image in values["skipped"])
        footer = Footer(tuple(values["shape"]), values["digest"], skipped, values["mtime"])
    except (ValueError, KeyError, TypeError):
        return None
    whole = math.prod(footer.shape) + 8 * footer.shape[0] + length + _TAIL_BYTES
    return footer if whole == size and footer.shape[0] else None


def _finish_digest(sha: "hashlib._Hash", labels: NDArray[np.int64], shape: Sequence[int]) -> str:
    sha.update(labels.astype("<i8").tobytes())
    sha.update(json.dumps(list(shape)).encode())
    return sha.hexdigest()


def _set_mtime(path: Path, seconds: int) -> None:
    try:
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9))
    except OSError:
        return  # somebody else's file: it is read in full at each start instead


def _remove_leftovers(path: Path) -> None:
    """What killed processes of this host left of `path`; only for who holds its lock, which may not bind others."""
    for part in path.parent.glob(f"{path.name}.{socket.gethostname()}-*.part"):
        part.unlink(missing_ok=True)
