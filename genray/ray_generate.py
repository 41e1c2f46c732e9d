"""A generated data set by many workers of Ray."""

import shutil
from dataclasses import asdict
from pathlib import Path

import ray
from ray.util import ActorPool

from genray import ray_train, snapshot
from genray.data import generated
from genray.data.generated import Request
from genray.errors import CheckpointError
from genray.snapshot import Snapshot

GENERATOR = ".generator"
"""Copy of the snapshot below the data set's folder, where every worker finds it."""


def write(folder: Path, request: Request, source: Path, *, num_workers: int, num_gpus: float = 0) -> str:
    """Makes what is missing of the data set in `folder`, and closes it; the digest of its manifest.

    Args:
        folder: which all nodes see.
        request: what the data set holds.
        source: the snapshot's folder.
        num_workers: Ray's workers, of one core each; 0: this process, without Ray.
        num_gpus: of each worker; GPUs and CPUs draw images that may differ by a grey level.

    Raises:
        ConfigError: the folder has another data set.
        ClusterError: no Ray where it was expected.
    """
    missing = generated.claim(folder, request)
    if missing and num_workers:
        copy = folder / GENERATOR
        if not copy.is_dir():
            shutil.copytree(source, copy)
        started = ray_train.connect(num_workers)
        try:
            actor = ray.remote(num_cpus=1, num_gpus=num_gpus)(Worker)
            pool = ActorPool(
                [actor.remote(str(folder), asdict(request)) for _ in range(min(num_workers, len(missing)))]
            )
            for _ in pool.map_unordered(lambda worker, index: worker.write.remote(index), missing):
                pass
        finally:
            if started:
                ray_train.disconnect()
        shutil.rmtree(copy)
    elif missing:
        made = load(source, request)
        for index in missing:
            generated.write_shard(folder, request, made, index)
    return generated.finish(folder, request)


def load(source: Path, request: Request, device: str = "cpu") -> Snapshot:
    """The generator that the request is for."""
    made = snapshot.load(source)
    if made.digest != request.generator_digest:
        raise CheckpointError(f"{source} is another snapshot than the one that the data set was begun with")
    made.module.to(device)
    return made


class Worker:
    """Draws shards in a process of its own."""

    def __init__(self, folder: str, request: dict[str, object]) -> None:
        self.folder, self.request = Path(folder), Request(**request)  # type: ignore[arg-type]
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.made = load(self.folder / GENERATOR, self.request, device)

    def write(self, index: int) -> int:
        """Makes one shard."""
        generated.write_shard(self.folder, self.request, self.made, index)
        return index
