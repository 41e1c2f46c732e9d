"""Training time lost to checkpoints: written while training goes on, against waited for.

One run takes short turns of three kinds: without a checkpoint, with one that is written beside the next steps
(`background`), and with one that is waited for (`waiting`). What a checkpoint costs is the median, over all
rounds, of a turn's time less that of the turn without one next to it; the share lost is that cost over the time
of as many steps as the preset has between two checkpoints. Training computes with `--threads` cores.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace

import torch
from turns import Others, conditions, finish, parser

from genray.checkpoint import CHECKPOINTS, TENSORS, FolderStore
from genray.config import Cluster, Config
from genray.data.images import load_images
from genray.distributed import current
from genray.paths import resolved
from genray.presets import preset
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

KINDS = ("none", "background", "waiting")
GOAL = 0.02


class Turns:
    """The one run, and how long its turns take."""

    def __init__(self, config: Config, num_steps: int) -> None:
        self.folder, self.num_steps = RunFolder.open(config.run.storage, config.run.name), num_steps
        self.trainer = Trainer(
            config,
            load_images(config.data, "train"),
            self.folder,
            store=FolderStore(self.folder),
            tracker=NullTracker(),
            world=current(use_gpu=False),
        )

    def take(self, kind: str) -> float:
        """Seconds of the steps, and of a checkpoint of that kind after the first."""
        began = time.perf_counter()
        self.trainer.update()
        if kind != "none":
            self.trainer.save()
        if kind == "waiting":
            self.trainer.store.wait()
        for _ in range(self.num_steps - 1):
            self.trainer.update()
        took = time.perf_counter() - began
        self.trainer.store.wait()
        return took

    def mib(self) -> float:
        """Size of the newest checkpoint."""
        (newest,) = self.folder.names(CHECKPOINTS)[-1:]
        return (self.folder.local / CHECKPOINTS / newest / TENSORS).stat().st_size / 2**20


def main() -> None:
    made = parser(__doc__, turns=60)
    made.set_defaults(threads=1)
    made.add_argument("--preset", default="digits-dcgan", help="what is trained")
    made.add_argument("--steps", type=int, default=20, help="steps a turn; a checkpoint must be written within them")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    base = preset(options.preset)
    with tempfile.TemporaryDirectory() as storage:
        config = replace(
            base,
            run=replace(base.run, storage=storage),
            train=replace(base.train, num_steps=10**9, sample_every=0, keep=2),
            cluster=Cluster(num_workers=0),
        )
        figures = measure(Turns(resolved(config), options.steps), base.train.checkpoint_every, options)
    finish("checkpoint_stall", figures | conditions(options))


def measure(turns: Turns, interval: int, options: argparse.Namespace) -> dict[str, object]:
    """Shares lost, and what they come from."""
    for kind in KINDS * 2:
        turns.take(kind)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    meter = Others()
    for turn in range(options.turns):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            seconds[kind].append(turns.take(kind))
    step = statistics.median(seconds["none"]) / options.steps
    cost = {
        kind: statistics.median(b - a for a, b in zip(seconds["none"], seconds[kind], strict=True))
        for kind in KINDS[1:]
    }
    lost = {kind: value / (value + interval * step) for kind, value in cost.items()}
    return {
        "preset": options.preset,
        "checkpoint_every": interval,
        "seconds_a_step": round(step, 4),
        "mib": round(turns.mib(), 1),
        "seconds_background": round(cost["background"], 4),
        "seconds_waiting": round(cost["waiting"], 4),
        "lost_background": round(lost["background"], 4),
        "lost_waiting": round(lost["waiting"], 4),
        "goal": GOAL,
        "reached": lost["background"] <= GOAL,
        "others_percent": round(meter.percent(), 1),
    }


if __name__ == "__main__":
    main()
