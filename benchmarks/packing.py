"""Small trials that share a device, against the same trials one after another: images a second in total.

The device is this machine's cores, or with `--gpu` one GPU, of which each trial takes a fraction
(`search.gpu_fraction`). One after another, a trial has the whole device. The sides take turns in one Ray.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from studies import extractor, race
from turns import Side, conditions, finish, parser, say

from genray import ray_train
from genray.config import Cluster, Data, Run
from genray.presets import preset
from genray.search import Search
from genray.space import Domain
from genray.study import Settings

PRESET = "digits-dcgan"


class Packed:
    """Studies of the same trials, `at_once` of them at a time."""

    def __init__(self, folder: Path, features: Path, at_once: int, options: argparse.Namespace) -> None:
        self.folder, self.features, self.at_once, self.options, self.turn = folder, features, at_once, options, 0

    def images_per_second(self) -> float:
        """Of all trials together, from the start of the first to the end of the last."""
        self.turn += 1
        options, base = self.options, preset(PRESET)
        share = 1.0 if options.gpu else max(1, (os.cpu_count() or 1) // self.at_once)
        config = replace(
            base,
            run=Run(name="trial", storage=str(self.folder)),
            data=replace(base.data, cache=str(self.folder / "cache")),
            train=replace(base.train, num_steps=options.steps),
            cluster=Cluster(num_workers=1, use_gpu=options.gpu, cpus_per_worker=share),
        )
        search = Search(
            name=f"{self.at_once}-at-once-{self.turn}",
            num_trials=options.trials,
            scheduler="fifo",
            num_samples=64,
            report_every=options.steps,
            max_concurrent=self.at_once,
            gpu_fraction=1 / self.at_once if options.gpu else 1.0,
            confirm_top=0,
        )
        study, seconds = race(Settings(config, search, {"optim.lr": Domain("log", (1e-4, 1e-3))}), self.features)
        steps = sum(trial.step for trial in study.trials().values())
        return steps * base.train.global_batch_size / seconds


def main() -> None:
    made = parser(__doc__, turns=3)
    made.add_argument("--at-once", type=int, default=2, help="trials that share the device")
    made.add_argument("--trials", type=int, default=4, help="trials of a study")
    made.add_argument("--steps", type=int, default=400, help="steps of a trial")
    made.add_argument("--gpu", action="store_true", help="the device is a GPU")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features = extractor(folder, Data(name="digits", cache=str(folder / "cache")), 20)
        ray_train.connect(1, log_to_driver=False)
        sides = [Packed(folder, features, at_once, options) for at_once in (options.at_once, 1)]
        found = {side.at_once: Side(f"{side.at_once} at once", lambda _: 0.0) for side in sides}
        for turn in range(-1, options.turns):
            for side in sides if turn % 2 else sides[::-1]:
                speed = side.images_per_second()
                if turn >= 0:  # the first turn starts the processes
                    found[side.at_once].speeds.append(speed)
                    say(f"{side.at_once} at once: {speed:.0f} images/s")
        ray_train.disconnect()
    packed, alone = found[options.at_once].speed, found[1].speed
    figures = {"ratio": round(packed / alone, 3), "packed": round(packed), "one_after_another": round(alone)}
    asked = {name: getattr(options, name) for name in ("at_once", "trials", "steps", "gpu")}
    finish("packing", figures | asked | conditions(options, "ray"))


if __name__ == "__main__":
    main()
