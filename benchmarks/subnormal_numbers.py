"""Training with subnormal numbers taken for zero, as `cpu.prepare` has it, against training with them, one core.

One trainer of the same config a side, in one process, on scikit-learn's digits in black and white at 28 x 28:
`mnist-iwae` with the 50 samples that it ends with, and two presets without importance samples, which have nothing to
win. Both sides train for some steps before anything is timed, since images that a decoder is sure of are what makes
gradients small; the losses of these steps must be equal to the bit.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from trainers import Steps, trainer
from turns import Side, compare, conditions, finish, parser, say

from genray.anneal import Anneal
from genray.config import Cluster, Config, Data
from genray.data.images import load_images
from genray.objectives.elbo import ELBO
from genray.presets import preset

PRESETS = ("mnist-iwae", "mnist-mlp-vae", "mnist-dcgan")
NUM_SAMPLES = 50
STEPS_BEFORE = 40


def config_of(name: str) -> Config:
    """The preset on digits, with all of its samples from the first step."""
    base = preset(name)
    objective = base.objective
    if isinstance(objective, ELBO) and objective.bound == "iwae":
        objective = replace(objective, num_samples=NUM_SAMPLES)
    return replace(
        base,
        data=Data(name="digits", image_size=(28, 28)),
        objective=objective,
        anneal=Anneal(),
        cluster=Cluster(num_workers=0),
        train=replace(base.train, sample_every=0),
    )


def with_subnormals(made: Steps, *, flushed: bool) -> Callable[[int], float]:
    """n steps of `made`."""

    def run_steps(num_steps: int) -> float:
        torch.set_flush_denormal(flushed)
        return made.run(num_steps)

    return run_steps


def main() -> int:
    options = parser(__doc__, turns=5, seconds=4.0).parse_args()
    options.threads = 1  # threads that compute keep what they began with
    torch.set_num_threads(options.threads)
    figures: dict[str, object] = {}
    for name in PRESETS:
        run = config_of(name)
        grey = load_images(run.data, "train")
        images = replace(grey, images=(grey.images > 127).to(torch.uint8) * 255)
        with tempfile.TemporaryDirectory() as made:
            sides, losses = [], []
            for side in ("flushed", "kept"):
                steps = Steps(trainer(run, images, Path(made) / side))
                sides.append(Side(side, with_subnormals(steps, flushed=side == "flushed")))
                sides[-1].run(STEPS_BEFORE)
                losses.append({key: float(value) for key, value in steps.trainer.meter.sums.items()})
            if losses[0] != losses[1]:
                raise SystemExit(f"{name}: losses are {losses[0]} flushed and {losses[1]} kept; no ratio")
            figures[name] = compare(sides[0], sides[1], options)
        say(f"{name}: {figures[name]}")
    finish("subnormal_numbers", figures | conditions(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
