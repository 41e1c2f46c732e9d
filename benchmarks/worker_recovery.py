"""How long a run stands still when a worker dies: genray's against the plainest loop that Ray Train can restart.

Two workers on one Ray of this machine; SIGKILL of one of them. Sides, which take turns: `genray` (a run of
`digits-vae` that logs every step: networks, optimisers, moments, sampler and journal come back from its last
checkpoint), and `ray` (Ray Train's own process group and DDP around one linear layer, which has nothing to load and
begins anew). A pause is the longest time between two steps that were not there before. `ratio` is that of the medians.
"""

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from turns import conditions, finish, parser, say

from genray import ray_train
from genray.config import Cluster, Config, Run
from genray.paths import resolved
from genray.presets import preset
from genray.tracking import read_journal

WORKERS, CORES = 2, 0.9
KILL_AT, MORE_STEPS, CHECKPOINT_EVERY = 150, 300, 100


def a_run(storage: Path) -> Config:
    """The run of genray's side."""
    base = preset("digits-vae")
    train = replace(base.train, num_steps=KILL_AT + 3 * MORE_STEPS, global_batch_size=16, log_every=1)
    return resolved(
        replace(
            base,
            run=Run(name="killed", storage=str(storage)),
            train=replace(train, checkpoint_every=CHECKPOINT_EVERY, sample_every=0),
            cluster=Cluster(num_workers=WORKERS, cpus_per_worker=CORES),
        )
    )


def genray(storage: Path) -> list[float]:
    """When each step of a killed run was first done, in seconds."""
    journal = storage / "killed" / "journal" / "train.jsonl"

    def steps() -> list[float]:
        return [e["time"] / 1000 for e in read_journal(journal)[0] if "metrics" in e] if journal.is_file() else []

    with killed(lambda: len(steps())):
        ray_train.fit(a_run(storage), str(storage))
    return steps()


def plain(storage: Path) -> list[float]:
    """The same of the plainest loop."""
    journal = storage / "steps"
    journal.touch()

    def steps() -> list[float]:
        return [float(line) for line in journal.read_text().split()]

    with killed(lambda: len(steps())):
        TorchTrainer(
            loop,
            train_loop_config={"journal": str(journal)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": CORES}),
            run_config=RunConfig(storage_path=str(storage), failure_config=FailureConfig(max_failures=3)),
        ).fit()
    return steps()


def loop(config: dict[str, Any]) -> None:
    """Of one worker: until it is killed, and the second time for `MORE_STEPS`."""
    torch.set_num_threads(1)
    journal = Path(config["journal"])
    again = journal.stat().st_size > 0
    module = ray.train.torch.prepare_model(torch.nn.Linear(64, 64))
    optimizer = torch.optim.Adam(module.parameters())
    steps = 0
    while not again or steps < MORE_STEPS:
        module(torch.rand(8, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if ray.train.get_context().get_world_rank() == 0:
            with journal.open("a") as file:
                file.write(f"{time.time()}\n")


class killed:  # noqa: N801 reads as what is done in its block
    """One worker gets SIGKILL when `steps()` says that there are enough."""

    def __init__(self, steps: Callable[[], int]) -> None:
        self.steps = steps
        self.thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive(), "nobody was killed"

    def _kill(self) -> None:
        while self.steps() < KILL_AT:
            time.sleep(0.05)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[0].send_signal(signal.SIGKILL)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(ray_train.POLL_INTERVAL_S)  # for both
    pauses: dict[str, list[float]] = {"genray": [], "ray": []}
    ray_train.connect(WORKERS)
    for turn in range(options.turns):
        sides = [("genray", genray), ("ray", plain)]
        for name, run in sides if turn % 2 else sides[::-1]:
            with tempfile.TemporaryDirectory() as storage:
                times = run(Path(storage))
            pauses[name].append(max(b - a for a, b in pairwise(times)))
            say(f"{name}: {pauses[name][-1]:.1f} s")
    medians = {name: statistics.median(found) for name, found in pauses.items()}
    return {
        "ratio": round(medians["genray"] / medians["ray"], 2),
        "genray_s": [round(value, 1) for value in pauses["genray"]],
        "ray_s": [round(value, 1) for value in pauses["ray"]],
    }


def main() -> None:
    options = parser(__doc__, turns=3).parse_args()
    finish("worker_recovery", measure(options) | conditions(options, "ray"))


if __name__ == "__main__":
    main()
