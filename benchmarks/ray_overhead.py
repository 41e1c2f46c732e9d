"""What Ray Train costs per step: its one worker against the same trainer in a plain process.

The Ray side is a run as `ray_train.fit` starts it (cluster on this machine, controller, worker, process
group of one); its worker trains in bursts, when it is told to. While the plain process has its turn,
every process of Ray is stopped by a signal: what its daemons take from the cores counts against Ray,
and only against Ray. Both train DCGAN at 32 pixels, width 64, RGB, batch 128. `ratio` is the time of a
step with Ray over that without. Unless `--threads` says otherwise training leaves one core to the
daemons, which wake up a thousand times a second: where it takes every core of a small machine, they
interrupt it, and a step costs about a tenth more (1.12 on two cores).
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from remote import processes, serve
from trainers import Steps, dcgan, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say

from genray.config import Cluster, Config
from genray.data.images import ImageSet
from genray.distributed import World
from genray.storage import RunFolder
from genray.trainer import Outcome

SIZE, BATCH, NUM_IMAGES = 32, 128, 4000
GOAL = 1.03


def a_run(options: argparse.Namespace) -> Config:
    """The run of both sides."""
    return dcgan(SIZE, options.precision, BATCH, Cluster(num_workers=1, cpus_per_worker=options.threads))


def plain(options: argparse.Namespace) -> None:
    """The process without Ray."""
    torch.set_num_threads(options.threads)
    run = a_run(options)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(run, smooth_images(NUM_IMAGES, run.data.image_shape), Path(folder))
        serve("plain", {"train": Steps(made).run})


def driver(options: argparse.Namespace) -> None:
    """The process that starts Ray and the run."""
    from genray import ray_train

    ray_train.connect(options.threads)
    with tempfile.TemporaryDirectory() as storage, mock.patch.object(ray_train, "work", in_bursts):
        ray_train.fit(a_run(options), storage)


def in_bursts(task: dict[str, Any]) -> dict[str, Any]:
    """`ray_train.work`, on made-up images, with a loop that trains when it is told to."""
    from genray import ray_train

    def train(config: Config, images: ImageSet, folder: RunFolder, world: World) -> Outcome:
        made = trainer(config, images, folder.local, world)
        serve("ray", {"train": Steps(made).run})
        return Outcome(made.step, made.samples_seen, 0, {})

    with (
        mock.patch.object(ray_train, "train", train),
        mock.patch.object(ray_train, "load_images", lambda data, split: smooth_images(NUM_IMAGES, data.image_shape)),
    ):
        return ray_train.work(task)


def while_stopped(process: int, run: Callable[[int], float]) -> Callable[[int], float]:
    """`run`, while `process` and all its descendants are stopped."""

    def steps(num_steps: int) -> float:
        root = psutil.Process(process)
        family = [root, *root.children(recursive=True)]
        for member in family:
            member.suspend()
        try:
            return run(num_steps)
        finally:
            for member in reversed(family):
                member.resume()

    return steps


def measure(options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--threads", str(options.threads), "--precision", options.precision]
    with processes(("plain", "driver"), *arguments) as (desk, started):
        desk.wait_for("plain", "ray")
        without = Side("plain", while_stopped(started["driver"].pid, desk.run(("plain",), "train")))
        return compare(without, Side("ray", desk.run(("ray",), "train")), options)


def main() -> None:
    made = parser(__doc__, turns=9, seconds=3.0)
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    made.set_defaults(threads=max(1, (os.cpu_count() or 2) - 1))
    made.add_argument("--process", choices=("plain", "driver"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.process:
        {"plain": plain, "driver": driver}[options.process](options)
        return
    found = measure(options)
    say(f"{found} (goal {GOAL})")
    setting = {"size": SIZE, "precision": options.precision, "global_batch_size": BATCH}
    finish("ray_overhead", setting | found | conditions(options, "ray"))


if __name__ == "__main__":
    main()
