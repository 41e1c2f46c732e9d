"""Training on a set that is larger than the memory that there is: how fast, against all of it in memory.

Makes `--images` images of 64 x 64 pixels in a zip file, and trains a small VAE on them: first with all memory, never
disturbed, then in a control group of `--limit` of the set's size, killed with SIGKILL after a third and after two
thirds of the steps and started again. Weights must be equal to the bit. Needs root, and free disk of twice the set's
size; the images are decoded inside the group too. The figure is the ratio of images a second, over the steps after the
first, and the share of the time that training waits for images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from genray.checkpoint import CHECKPOINTS, load, step_name
from genray.config import Cluster, Config, Data, Optim, Run, Train
from genray.data.images import load_images
from genray.distributed import current
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.storage import RunFolder
from genray.tracking import read_journal
from genray.trainer import train

SIDE, BATCH, LOG_EVERY = 64, 64, 25


def make_images(path: Path, num: int) -> None:
    """A zip of `num` images, blocks of random colours, in two classes."""
    source = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for start in range(0, num, 1000):
            blocks = source.integers(0, 256, (min(1000, num - start), 8, 8, 3), dtype=np.uint8)
            for number, pixels in enumerate(blocks.repeat(8, 1).repeat(8, 2), start):
                encoded = BytesIO()
                Image.fromarray(pixels).save(encoded, "BMP")
                archive.writestr(f"train/{'ab'[number % 2]}/{number:06d}.bmp", encoded.getvalue())


def config(place: Path, name: str, num_steps: int) -> Config:
    return Config(
        run=Run(name=name, storage=str(place)),
        data=Data(
            name="folder",
            root=str(place / "images.zip"),
            image_size=(SIDE, SIDE),
            channels=3,
            cache=str(place / f"cache-{name}"),
        ),
        model=MLPVAE(latent_dim=4, hidden=16),
        objective=ELBO(binarize=False),
        optim=Optim(lr=1e-3),
        train=Train(
            num_steps=num_steps,
            global_batch_size=BATCH,
            log_every=LOG_EVERY,
            checkpoint_every=num_steps // 10,
            sample_every=0,
        ),
        cluster=Cluster(num_workers=0),
    )


def one_process(place: Path, name: str, num_steps: int) -> None:
    """The run, from wherever it was."""
    torch.set_num_threads(1)
    made = config(place, name, num_steps)
    folder = RunFolder.open(str(place), name)
    train(made, load_images(made.data, "train"), folder, current(use_gpu=False))


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group of at most `limit` bytes, the cached pages of files included; the file to join it by."""
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").is_file()
    group = (root if unified else root / "memory") / f"genray-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        yield group / "cgroup.procs"
    finally:
        time.sleep(1)
        group.rmdir()


def start(arguments: list[str], joins: Path | None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "--child", *arguments]
    if joins:
        command = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(joins), *command]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def entries(place: Path, name: str) -> list[dict[str, float]]:
    """The training figures of a run by log point, the first of every process left out: it pays for the start."""
    found = [e["metrics"] for e in read_journal(place / name / "journal" / "train.jsonl")[0] if "metrics" in e]
    return [e for e in found if "perf/images_per_second" in e][1:]


def forget(files: list[Path]) -> None:
    """Leaves no page of these files in memory."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def digest_of(place: Path, name: str, num_steps: int) -> dict[str, torch.Tensor]:
    return load(RunFolder.open(str(place), name), num_steps).tensors


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=200_000)
    options.add_argument("--limit", type=float, default=0.65, help="memory, as a share of the set's size")
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--at", default="/var/tmp", help="folder with room for the set, twice")
    given = options.parse_args()
    size = given.images * SIDE * SIDE * 3
    with tempfile.TemporaryDirectory(dir=given.at) as made:
        place = Path(made)
        make_images(place / "images.zip", given.images)
        assert start([str(place), "roomy", str(given.steps)], None).wait() == 0
        forget([place / "images.zip"])
        tight = [str(place), "tight", str(given.steps)]
        with memory_group(int(size * given.limit)) as joins:
            for part in (1, 2):
                running = start(tight, joins)
                wanted = place / "tight" / CHECKPOINTS / step_name(given.steps // 10 * (3 * part))
                while not wanted.is_dir():
                    assert running.poll() is None, "it ended by itself"
                    time.sleep(0.05)
                running.kill()
                running.wait()
            assert start(tight, joins).wait() == 0
        weights = [digest_of(place, name, given.steps) for name in ("roomy", "tight")]
        equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        speeds = {
            name: median(e["perf/images_per_second"] for e in entries(place, name)) for name in ("roomy", "tight")
        }
        waits = {name: median(e["perf/data_wait"] for e in entries(place, name)) for name in ("roomy", "tight")}
    report = {"images": given.images, "set_mib": size >> 20, "limit_mib": int(size * given.limit) >> 20}
    report |= {"kills": 2, "equal": equal, "ratio": round(speeds["tight"] / speeds["roomy"], 3)}
    report |= {f"{name}_images_per_s": round(speeds[name]) for name in speeds}
    report |= {f"{name}_waiting": round(waits[name], 3) for name in waits}
    print(json.dumps(report))
    return 0 if equal else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        one_process(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())
