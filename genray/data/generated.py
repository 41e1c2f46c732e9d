"""Generated data sets: zips in ImageFolder layout, each a function of (generator, seed, its number) alone."""

import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genray import __version__
from genray.data.cache import locked, pixel_digest
from genray.data.images import ImageSet
from genray.data.pixels import decode
from genray.errors import ConfigError, DataError, DivergenceError
from genray.fields import check_at_least
from genray.manifest import sha256
from genray.sampling import generate, latents
from genray.storage import RunFolder
from genray.streams import derive_seed

if TYPE_CHECKING:
    from genray.snapshot import Snapshot

REQUEST, MANIFEST = "request.json", "manifest.json"
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that decides which images a data set holds."""

    generator: str
    """Name and version in the registry, or the folder, of the snapshot."""
    generator_digest: str
    classes: tuple[str, ...]
    """Names by which images are filed; those of the snapshot, or one for all its images."""
    image_shape: tuple[int, int, int]
    num: int
    seed: int = 0
    truncation: float = 1.0
    shard_size: int = 1000
    genray: str = __version__

    def __post_init__(self) -> None:
        check_at_least("generate", self, 1, "num", "shard_size")
        check_at_least("generate", self, 0, "seed", "truncation")

    @property
    def num_shards(self) -> int:
        """Zips of the data set; the last may hold fewer images."""
        return -(-self.num // self.shard_size)


def shard_name(index: int) -> str:
    """File name of a zip."""
    return f"shard-{index:05d}.zip"


def request_for(made: "Snapshot", name: str, as_class: str | None, **settings: float) -> Request:
    """What `genray generate` asks of a snapshot.

    Raises:
        ConfigError: the snapshot makes no images, or has no classes to file them by, or has and needs no other.
    """
    if made.product == "classifier":
        raise ConfigError(f"snapshot of {made.task!r} is a classifier, which makes no images; give a generator's")
    num_labels = int(getattr(made.module, "num_labels", 0))
    if num_labels and as_class is not None:
        raise ConfigError(f"--as-class={as_class!r} is for a generator without classes, and {name} has {num_labels}")
    if not num_labels and not as_class:
        raise ConfigError(f"{name} is unconditional: say which class its images are of, with --as-class NAME")
    classes = made.classes if num_labels else (str(as_class),)
    if any(not c or "/" in c or c.startswith(".") for c in classes):
        raise ConfigError(
            f"classes {classes!r} are names of folders, and must not be empty, have '/' or begin with '.'"
        )
    return Request(
        generator=name,
        generator_digest=made.digest,
        classes=classes,
        image_shape=made.image_shape,
        **settings,  # type: ignore[arg-type]
    )


def claim(folder: Path, request: Request) -> list[int]:
    """Notes the request in `folder`; the shards that are still to be made.

    Raises:
        ConfigError: the folder has another data set, or a part of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / REQUEST, json.loads(json.dumps(asdict(request)))
    if path.exists():
        found = json.loads(path.read_text())
        if differing := [f"{k}: {found.get(k)!r} -> {v!r}" for k, v in wanted.items() if found.get(k) != v]:
            raise ConfigError(
                f"{folder} has another data set: {'; '.join(differing)}; use those values, or another folder"
            )
    elif any(folder.glob("*.zip")):
        raise ConfigError(f"{folder} has zips that genray did not make; choose another folder")
    else:
        _write(path, json.dumps(wanted, indent=2).encode() + b"\n")
    return [index for index in range(request.num_shards) if not (folder / shard_name(index)).exists()]


def write_shard(folder: Path, request: Request, made: "Snapshot", index: int) -> None:
    """Draws the images of shard `index` and writes them as one zip, which is whole or not there."""
    start = index * request.shard_size
    stop = min(request.num, start + request.shard_size)
    filed = torch.arange(start, stop) % len(request.classes)
    images = draw(made, request, index, filed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, label, image in zip(range(start, stop), filed.tolist(), images, strict=True):
            png = io.BytesIO()
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(png, format="PNG")
            archive.writestr(zipfile.ZipInfo(f"{request.classes[label]}/{number:08d}.png"), png.getvalue())
    _write(folder / shard_name(index), buffer.getvalue())


def draw(made: "Snapshot", request: Request, index: int, labels: Tensor) -> Tensor:
    """Images of one shard, uint8 (len(labels), C, H, W); of all its latents, whoever draws them.

    One thread draws: how many there are can change the last bit of an image.
    """
    module = made.module
    seed = derive_seed(request.seed, "generated", index)
    z = latents(len(labels), int(getattr(module, "latent_dim", 0)), seed)
    conditional = int(getattr(module, "num_labels", 0)) > 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return generate(module, z, labels if conditional else None, BATCH_SIZE, truncation=request.truncation)
    except DivergenceError as error:
        raise DivergenceError(f"shard {index} of {request.generator}: {error}") from error
    finally:
        torch.set_num_threads(threads)


def finish(folder: Path, request: Request) -> str:
    """Writes the manifest, with the digest of every shard; its own digest is that of the data set."""
    shards = {name: sha256(folder / name) for name in map(shard_name, range(request.num_shards))}
    text = json.dumps({"request": asdict(request), "shards": shards}, indent=2, sort_keys=True) + "\n"
    _write(folder / MANIFEST, text.encode())
    return hashlib.sha256(text.encode()).hexdigest()


def local_folder(source: str) -> Path:
    """Where a data set can be read on this machine: `source`, or a copy of it, kept, where it is a URI.

    Raises:
        DataError: a URI of another form than `STORAGE/RUN/FOLDER`.
        StorageError: a storage that cannot be reached.
    """
    if "://" not in source:
        return Path(source).expanduser()
    storage, _, rest = source.partition("://")
    *parents, run, name = rest.rstrip("/").split("/")
    if not all(parents) or not parents or not run or not name:
        raise DataError(f"{source!r} is no folder of a run in a storage; expected e.g. s3://bucket/RUN/generated")
    return copied(RunFolder.open(f"{storage}://{'/'.join(parents)}", run), name)


def copied(folder: RunFolder, name: str) -> Path:
    """Where the data set `name` of a run's folder can be read on this machine; copied from the storage where needed."""
    place = folder.local / name
    with locked(place):  # all trainings of a machine read one copy
        if folder.remote is not None and place.is_dir() and not _whole(place):
            shutil.rmtree(place)
        return folder.pull(name)


def _whole(folder: Path) -> bool:
    try:
        shards = json.loads((folder / MANIFEST).read_text())["shards"]
        return all(sha256(folder / name) == digest for name, digest in shards.items())
    except (OSError, ValueError, LookupError):
        return False


def load(folder: Path) -> ImageSet:
    """All images of a finished data set, in order.

    Raises:
        DataError: it is not one, is not finished, or a shard is missing or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        shards = dict(manifest["shards"])
        values = manifest["request"] | {k: tuple(manifest["request"][k]) for k in ("classes", "image_shape")}
        request = Request(**values)
    except OSError as error:
        hint = "is not finished: run the same genray generate again" if (folder / REQUEST).exists() else "is none"
        raise DataError(f"{str(folder)!r} {hint}; expected a folder that genray generate has finished") from error
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} is damaged ({error}); generate the data set again") from error
    pixels, labels = [], []
    for name, digest in sorted(shards.items()):
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            raise DataError(f"{path} is missing or damaged; delete it and run the same genray generate again")
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                pixels.append(decode(archive.read(member), request.image_shape))
                labels.append(request.classes.index(member.partition("/")[0]))
    stacked, numbers = np.stack(pixels), np.array(labels, dtype=np.int64)
    return ImageSet(
        images=torch.from_numpy(stacked).permute(0, 3, 1, 2),
        labels=torch.from_numpy(numbers),
        classes=request.classes,
        name=request.generator,
        split="generated",
        digest=pixel_digest(stacked, numbers),
        num_skipped=0,
    )


def _write(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a process that follows a killed one, sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
