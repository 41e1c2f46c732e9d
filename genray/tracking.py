"""The record of a run: an append-only journal that outlives the process that writes it.

A journal is a file of JSON lines in the run's directory. Every line has `time` (milliseconds since
the epoch) and `step`, and one of: `metrics` (values by key), `image` (a key) with `path` (a PNG
beside the journal), `event` (a name) with `fields`. Lines are never changed, and the first value
of a (step, key) stays: a resumed run repeats the steps after its last checkpoint, and neither
misses nor doubles a point, nor moves it in time.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from genray.errors import StorageError

# What MLflow takes as a metric, image and tag name, and every file system as a path.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*")
_KINDS = ("metrics", "image", "event")


class Tracker(Protocol):
    """Where a run writes down what happens; calls return at once and never wait for a network."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values by `phase/name`; non-finite ones too."""

    def image(self, step: int, key: str, pixels: np.ndarray) -> None:
        """One picture, (H, W, 3) uint8."""

    def event(self, step: int, name: str, **fields: Any) -> None:
        """Something that happened, with JSON values."""

    def flush(self) -> None:
        """Everything so far is on the disk when this returns: called before a checkpoint becomes valid."""

    def close(self) -> None:
        """Flushes; nothing is written afterwards."""


class NullTracker:
    """Writes nothing: what every rank but the first receives."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def image(self, step: int, key: str, pixels: np.ndarray) -> None:
        pass

    def event(self, step: int, name: str, **fields: Any) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class JsonlTracker:
    """Appends to the journal `directory/name.jsonl`; one writer a name.

    What the journal already has of a (step, key) wins over what comes later. A last line that a
    crash left without its end is cut off when the journal is opened.

    Args:
        directory: made if missing; images go to `directory/name/KEY/STEP.png`.
        name: of the journal, e.g. `train`.

    Raises:
        StorageError: the journal has a damaged line, or cannot be written.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = _checked(name)
        path = directory / f"{name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise StorageError(f"the journal {path} cannot be opened: {error.strerror}") from error
        self._path = path
        # One shared frozenset for all steps with the same keys: a long run stays at about 200 bytes a logged step.
        self._seen: dict[tuple[str, int], frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        entries, end = read_journal(path)
        os.ftruncate(self._file, end)
        for entry in entries:
            kind = next(kind for kind in _KINDS if kind in entry)
            self._remember(kind, entry["step"], entry["metrics"] if kind == "metrics" else (entry[kind],))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        seen = self._seen.get(("metrics", step), frozenset())
        fresh = {_checked(key): _strict(float(value)) for key, value in values.items() if key not in seen}
        if fresh:
            self._append(step, {"metrics": fresh})
            self._remember("metrics", step, fresh)

    def image(self, step: int, key: str, pixels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image {key!r} must be (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
        if key in self._seen.get(("image", step), ()):
            return
        relative = f"{self._name}/{_checked(key)}/{step:09d}.png"
        _write_png(self._directory / relative, pixels)
        self._append(step, {"image": key, "path": relative})
        self._remember("image", step, (key,))

    def event(self, step: int, name: str, **fields: Any) -> None:
        if name not in self._seen.get(("event", step), ()):
            self._append(step, {"event": _checked(name), "fields": _strict(fields)})
            self._remember("event", step, (name,))

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    def _remember(self, kind: str, step: int, keys: Iterable[str]) -> None:
        grown = self._seen.get((kind, step), frozenset()).union(keys)
        self._seen[kind, step] = self._sets.setdefault(grown, grown)

    def _append(self, step: int, what: dict[str, Any]) -> None:
        entry = {"time": time.time_ns() // 1_000_000, "step": int(step)} | what
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were taken; is the disk full?")
        except OSError as error:
            os.ftruncate(self._file, end)  # a torn line in the middle would make the journal unreadable
            raise StorageError(f"the journal {self._path} cannot be written: {error}") from error


def read_journal(path: Path, offset: int = 0, limit: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The complete entries of a journal from byte `offset` on, and the offset after the last of them.

    A last line without its end is left for the next call. Values of `metrics` are floats again,
    non-finite ones included.

    Args:
        path: a file that `JsonlTracker` wrote; one that does not exist yet is empty.
        offset: 0, or what an earlier call returned.
        limit: most entries to return; None: all.

    Raises:
        StorageError: a complete line is not an entry, or the journal is shorter than `offset`. Nothing
            is skipped.
    """
    entries: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < offset:
                raise StorageError(f"the journal {path} has {size} bytes, but {offset} were read before; restore it")
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") or len(entries) == limit:
                    break
                entries.append(_parse(line, path, offset))
                offset += len(line)
    except FileNotFoundError:
        return [], offset
    return entries, offset


def _parse(line: bytes, path: Path, offset: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if [type(entry["time"]), type(entry["step"])] != [int, int] or sum(kind in entry for kind in _KINDS) != 1:
            raise ValueError("not an entry")
        if "metrics" in entry:
            entry["metrics"] = {str(key): float(value) for key, value in entry["metrics"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(
            f"the journal {path} is damaged at byte {offset}: {line[:60]!r} is not an entry; "
            f"restore the file, or move it away to begin a new one"
        ) from error
    return dict(entry)


def _checked(key: str) -> str:
    if len(key) > 250 or not _KEY.fullmatch(key):
        raise ValueError(
            f"key {key!r} must be words of letters, digits and _ . - joined by '/', "
            f"at most 250 characters, e.g. 'generator/loss'"
        )
    return key


def _strict(value: Any) -> Any:
    """`value` with non-finite floats as the strings 'NaN', 'Infinity' and '-Infinity', which strict JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _write_png(path: Path, pixels: np.ndarray) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(beside, format="png")
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"the image {path} cannot be written: {error}") from error
