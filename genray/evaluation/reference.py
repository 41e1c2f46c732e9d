"""What is known of the reals under an extractor: computed once, kept by digest, never taken when damaged."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from genray.data.images import ImageSet
from genray.errors import CheckpointError, StorageError
from genray.evaluation.features import Extractor, extract, resize_of
from genray.evaluation.frechet import Moments
from genray.manifest import seal, verify
from genray.snapshot import Snapshot

FILE = "reference.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """The reals' side of the distances."""

    features: Tensor
    """(N, D), float32."""
    moments: Moments
    root: Tensor
    """Root of their covariance, (D, D), float64."""


def reference_of(
    reals: ImageSet, extractor: Snapshot | Extractor, batch_size: int = 256, cache: Path | None = None
) -> Reference:
    """Features of the reals and what the distances need of them.

    Args:
        reals: a split of real images.
        extractor: snapshot of a classifier of their shape, or a network from a file.
        batch_size: images per forward pass.
        cache: folder for the result, one sealed folder per split and extractor, both by digest.
            Of several processes that ask at once, one computes and the others wait. None: computed.

    Raises:
        ProtocolError: as `features.extract` does.
        StorageError: the cache cannot be read or written.
    """
    if cache is None:
        return _compute(reals, extractor, batch_size)
    key = f"{FORMAT}/{reals.digest}/{reals.split}/{extractor.digest}"
    if isinstance(extractor, Extractor):  # one file may be read as two kinds, or at two sizes
        key += f"/{extractor.task}/{resize_of(extractor)}"
    place = cache.expanduser() / f"reference-{hashlib.sha256(key.encode()).hexdigest()}"
    try:
        with _locked(place):
            kept = _read(place)
            if kept is None:
                kept = _compute(reals, extractor, batch_size)
                seal(place, lambda folder: _write(folder / FILE, kept))
            return kept
    except OSError as error:
        raise StorageError(
            f"cache {cache} cannot be used: {error}; give a folder that this user may write to"
        ) from error


def _compute(reals: ImageSet, extractor: Snapshot | Extractor, batch_size: int) -> Reference:
    features = extract(extractor, reals.images, batch_size)
    moments = Moments.of(features)
    return Reference(features, moments, moments.root)


def _write(path: Path, reference: Reference) -> None:
    moments = reference.moments
    tensors = {"features": reference.features, "mean": moments.mean, "scatter": moments.scatter, "root": reference.root}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _read(place: Path) -> Reference | None:
    """What `_write` kept, or None where nothing is, or nothing whole."""
    try:
        verify(place, (FILE,))
    except CheckpointError:
        return None
    tensors = load_file(place / FILE)
    features = tensors["features"]
    return Reference(features, Moments(len(features), tensors["mean"], tensors["scatter"]), tensors["root"])


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Alone with `place` among all processes that ask so; the lock goes with the process that held it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f".{place.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
