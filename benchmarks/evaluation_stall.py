"""Training time lost to evaluation: snapshots scored by a Ray task of its own against scored in the loop.

One run takes turns of three kinds, of equally many steps and one snapshot each: without any score, with
genray's scorer beside it (`asynchronous`), and with the same scores taken before the next step (`blocking`).
The share lost is that of the turn's time, against the turn without a score next to it; the median over all
rounds counts. What the scorer still has to do when a turn ends is not training time; it is given as `after`.
The scoring task asks for one core; training computes with `--threads` others.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from turns import Others, conditions, finish, parser, say

from genray import ray_train
from genray.checkpoint import EXTRACTOR, SCORES, SNAPSHOTS, FolderStore, step_name
from genray.config import Cluster, Config
from genray.data.images import load_images
from genray.distributed import current
from genray.paths import resolved
from genray.presets import preset
from genray.ray_evaluate import Scorer
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer, train

KINDS = ("none", "asynchronous", "blocking")
GOAL = 0.02
EXTRACTOR_STEPS = 100


class Turns:
    """The one run, and how long its turns take."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = RunFolder.open(config.run.storage, config.run.name)
        images = load_images(config.data, "train")
        store = FolderStore(self.folder)
        self.trainer = Trainer(
            config, images, self.folder, store=store, tracker=NullTracker(), world=current(use_gpu=False)
        )
        self.after: list[float] = []

    def take(self, kind: str, num_steps: int) -> float:
        """Seconds of `num_steps` steps and a snapshot, with scores of that kind."""
        scorer = Scorer(self.config, self.config.run.storage, on_ray=kind == "asynchronous")
        began = time.perf_counter()
        self.trainer.update()
        self.trainer.save()
        if kind == "asynchronous":
            scorer.start()
        elif kind == "blocking":
            self.trainer.store.wait()
            scorer.finish()
        for _ in range(num_steps - 1):
            self.trainer.update()
        took = time.perf_counter() - began
        self.trainer.store.wait()
        name = step_name(self.trainer.step - num_steps + 1)
        if kind == "asynchronous":
            scorer.finish()
            self.after.append(time.perf_counter() - began - took)
        if kind == "none":
            self.folder.remove(f"{SNAPSHOTS}/{name}")
        elif f"{name}.json" not in self.folder.names(SCORES):
            raise SystemExit(f"snapshot {name} was not scored; see the warning above")
        return took


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as storage, Path(os.devnull).open("w") as nowhere:
        config = run_config(options, storage)
        with contextlib.redirect_stdout(nowhere):
            train_extractor(config)
            turns = Turns(config)
            ray_train.connect(1)
        try:
            figures = measure(turns, options)
        finally:
            ray_train.disconnect()
    finish("evaluation_stall", figures | conditions(options, "ray"))


def arguments() -> argparse.Namespace:
    made = parser(__doc__, turns=5, seconds=20.0)
    made.set_defaults(threads=1)
    made.add_argument("--preset", default="digits-dcgan", help="what is trained; a generator")
    made.add_argument("--num-samples", type=int, default=10_000, help="images generated per score")
    return made.parse_args()


def run_config(options: argparse.Namespace, storage: str) -> Config:
    """The run, which never ends by itself."""
    base = preset(options.preset)
    return resolved(
        replace(
            base,
            run=replace(base.run, storage=storage),
            train=replace(base.train, num_steps=10**9, sample_every=0),
            eval=replace(base.eval, num_samples=options.num_samples, num_seeds=1),
            cluster=Cluster(num_workers=0),
        )
    )


def train_extractor(config: Config) -> None:
    """A classifier whose features the scores compare, as a job brings it: in the folder of the run."""
    base = preset(f"{config.data.name}-classifier")
    quick = replace(base.train, num_steps=EXTRACTOR_STEPS, checkpoint_every=EXTRACTOR_STEPS)
    classifier = replace(base, data=config.data, train=quick)
    folder = RunFolder.open(config.run.storage, classifier.run.name)
    train(classifier, load_images(classifier.data, "train"), folder, current(use_gpu=False))
    target = RunFolder.open(config.run.storage, config.run.name).local / EXTRACTOR
    (folder.local / SNAPSHOTS / step_name(EXTRACTOR_STEPS)).rename(target)


def measure(turns: Turns, options: argparse.Namespace) -> dict[str, object]:
    """Shares lost, and what they come from."""
    for kind in KINDS:  # starts the process of the scoring task, and fills the cache of the reference
        turns.take(kind, 5)
    turns.after.clear()
    began = time.perf_counter()
    turns.take("none", 20)
    num_steps = max(10, round(20 * options.seconds / (time.perf_counter() - began)))
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    meter = Others()
    for turn in range(options.turns):
        for kind in KINDS if turn % 2 else KINDS[::-1]:
            seconds[kind].append(turns.take(kind, num_steps))
        say(" ".join(f"{kind} {values[-1]:.2f} s" for kind, values in seconds.items()))
    lost = {kind: [1 - a / b for a, b in zip(seconds["none"], seconds[kind], strict=True)] for kind in KINDS[1:]}
    middle = {kind: statistics.median(values) for kind, values in lost.items()}
    return {
        "preset": options.preset,
        "num_samples": options.num_samples,
        "steps_a_turn": num_steps,
        "lost_asynchronous": round(middle["asynchronous"], 4),
        "lost_asynchronous_range": [round(min(lost["asynchronous"]), 4), round(max(lost["asynchronous"]), 4)],
        "lost_blocking": round(middle["blocking"], 4),
        "after_seconds": round(statistics.median(turns.after), 2),
        "goal": GOAL,
        "reached": middle["asynchronous"] <= GOAL,
        "others_percent": round(meter.percent(), 1),
    }


if __name__ == "__main__":
    main()
