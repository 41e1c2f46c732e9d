"""`genray generate`: a data set of generated images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from genray import snapshot
from genray.data.generated import request_for
from genray.errors import ConfigError
from genray.paths import base_directory, is_path


@dataclass(frozen=True)
class Generate:
    """Writes images of a generator as zips in ImageFolder layout, with a manifest; the same command resumes.

    The images depend on the generator, the seed and the sizes alone, not on the number of workers.
    """

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder."""
    out: Path
    """Folder of the data set, which all workers see."""
    num: int = 10_000
    """Images, all classes in turn."""
    seed: int = 0
    """Seed of the latents."""
    truncation: float = 1.0
    """Factor on the latents; below 1 trades diversity for quality."""
    shard_size: int = 1000
    """Images in a zip."""
    as_class: str | None = None
    """Class of all images of an unconditional generator."""
    num_workers: int = 1
    """Workers of Ray, of one core each; 0: this process, without Ray."""
    num_gpus: float = 0
    """GPUs of each worker."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def generate(args: Sequence[str], prog: str = "genray generate") -> int:
    """Writes a data set of generated images."""
    asked = tyro.cli(Generate, args=args, prog=prog)
    if asked.num_workers < 0:
        raise ConfigError(f"--num-workers={asked.num_workers!r} must be at least 0")
    from genray import mlflow_champion, mlflow_registry, mlflow_tracking, ray_generate

    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    subject = asked.model if is_path(asked.model) else str(mlflow_registry.resolve(uri, asked.model))
    with mlflow_champion.local_snapshot(subject, uri) as directory:
        name = subject if not is_path(asked.model) else Path(asked.model).name
        request = request_for(
            snapshot.load(directory),
            name,
            asked.as_class,
            num=asked.num,
            seed=asked.seed,
            truncation=asked.truncation,
            shard_size=asked.shard_size,
        )
        folder = base_directory() / asked.out.expanduser()
        digest = ray_generate.write(folder, request, directory, num_workers=asked.num_workers, num_gpus=asked.num_gpus)
    print(f"{folder}: {request.num} images in {request.num_shards} zips, digest {digest}")  # noqa: T201
    return 0
