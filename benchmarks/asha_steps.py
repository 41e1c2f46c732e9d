"""Steps that ASHA needs to find what full-length random search finds, on mnist-dcgan.

Two studies over the preset's own space (learning rates, gamma, beta1, discriminator steps) draw the same
random trials: one trains each of them to its end, the other lets ASHA end those that are behind. A trial is
the same run in both, to the bit, so the only question is whether ASHA keeps the good ones. Scores are FID on
features of a classifier that is trained first. `ratio` is ASHA's steps over the other's, `gap` is by how
much its best is worse.

    python benchmarks/asha_steps.py --data DIR
"""

import argparse
import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import ray
from studies import extractor, race
from turns import conditions, finish, parser, say

from genray import ray_train
from genray.config import Cluster, Config, Run
from genray.presets import preset
from genray.search import Search
from genray.spaces import SPACES
from genray.study import Settings, Study

PRESET = "mnist-dcgan"
RUNGS = 16
"""Scores of a full-length trial; the first is ASHA's first rung."""


def studied(folder: Path, features: Path, scheduler: str, options: argparse.Namespace) -> Study:
    """The study under one scheduler, raced to its end; every trial is said in a line."""
    base = preset(PRESET)
    config: Config = replace(
        base,
        run=Run(name="trial", storage=str(folder)),
        data=replace(base.data, root=options.data),
        train=replace(base.train, num_steps=options.steps, global_batch_size=options.batch),
        cluster=Cluster(num_workers=1),
    )
    search = Search(
        name=scheduler,
        num_trials=options.trials,
        scheduler=scheduler,  # type: ignore[arg-type]
        num_samples=1000,
        report_every=options.steps // RUNGS,
        reduction_factor=4,
        max_concurrent=options.at_once,
        confirm_top=0,
        seed=options.seed,
    )
    study, _ = race(Settings(config, search, SPACES[PRESET]), features)
    for number, trial in sorted(study.trials().items()):
        score = f"{trial.best.objective[0]:.4f} at {trial.best.step}" if trial.best else "none"
        values = " ".join(f"{name}={value:.4g}" for name, value in trial.values.items())
        say(f"{scheduler} {number:02d} {trial.status} after {trial.step} steps, best FID {score}; {values}")
    return study


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", default=os.environ.get("GENRAY_DATA"), help="folder of MNIST's files")
    made.add_argument("--trials", type=int, default=24, help="trials of each study")
    made.add_argument("--steps", type=int, default=480, help="steps of a full-length trial")
    made.add_argument("--batch", type=int, default=64, help="images a step")
    made.add_argument("--classifier-steps", type=int, default=400, help="steps of the classifier")
    made.add_argument("--seed", type=int, default=0, help="seed of what is tried")
    made.add_argument("--at-once", type=int, default=2, help="trials at once")
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = replace(preset(PRESET).data, root=options.data)
        features = extractor(Path(folder), data, options.classifier_steps)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            ray_train.connect(1, log_to_driver=False)
        trials = {name: studied(Path(folder), features, name, options).trials() for name in ("fifo", "asha")}
        ray.shutdown()
    steps = {name: sum(trial.step for trial in found.values()) for name, found in trials.items()}
    best = {name: min(t.best.objective[0] for t in found.values() if t.best) for name, found in trials.items()}
    figures = {"ratio": round(steps["asha"] / steps["fifo"], 3), "gap": round(best["asha"] - best["fifo"], 4)}
    say(f"{figures} (at most 0.333, and 0)")
    counted = {f"{name}_steps": steps[name] for name in steps} | {f"{name}_fid": round(best[name], 4) for name in best}
    asked = {name: getattr(options, name) for name in ("trials", "steps", "batch", "seed", "at_once")}
    finish("asha_steps", figures | counted | asked | {"versions": conditions(options, "ray")["versions"]})


if __name__ == "__main__":
    main()
