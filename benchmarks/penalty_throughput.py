"""Training GANs under a gradient penalty: second derivatives by `models/double_backward.py` against torch's own.

One trainer of the same config a side, in one process: `mnist-r3gan`, `mnist-stylegan2` and `mnist-dcgan`. The other
side differentiates `F.conv2d`, `F.leaky_relu` and three means of neighbours (what resampling is without a filter of its
own) as torch does. The losses of the first two steps must be equal to 1e-4 of them before anything is timed.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from trainers import Steps, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say

from genray.config import Cluster, Config
from genray.data.images import ImageSet
from genray.models import double_backward, resampling
from genray.presets import preset

PRESETS = ("mnist-r3gan", "mnist-stylegan2", "mnist-dcgan")
NUM_IMAGES = 2_000


def pooled(self: resampling.Resample, maps: Tensor) -> Tensor:
    """Resampling by means of two neighbours."""

    def smoothed(maps: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(maps, 2, 1, padding=1), 2, 1)

    return F.avg_pool2d(smoothed(maps), 2) if self.halves else smoothed(F.interpolate(maps, scale_factor=2.0))


@contextmanager
def torch_alone() -> Iterator[None]:
    """Inside of it every layer is differentiated by torch's own rules."""
    once, filtered = double_backward._differentiated_once, resampling.Resample.forward
    double_backward._differentiated_once = lambda maps: True
    resampling.Resample.forward = pooled  # type: ignore[method-assign]
    try:
        yield
    finally:
        double_backward._differentiated_once = once
        resampling.Resample.forward = filtered  # type: ignore[method-assign]


def steps(run: Config, images: ImageSet, folder: Path, *, alone: bool) -> tuple[Steps, Callable[[int], float]]:
    """A trainer, and n steps of it by torch alone or not."""
    made = Steps(trainer(run, images, folder))

    def by_torch(num_steps: int) -> float:
        with torch_alone():
            return made.run(num_steps)

    return made, by_torch if alone else made.run


def first_losses(run: Config, images: ImageSet, folder: Path, *, alone: bool) -> dict[str, float]:
    """Sums of the losses of two steps."""
    made, run_steps = steps(run, images, folder, alone=alone)
    run_steps(2)
    return {name: float(value) for name, value in made.trainer.meter.sums.items() if "loss" in name}


def main() -> int:
    options = parser(__doc__, turns=5, seconds=4.0).parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, object] = {}
    for name in PRESETS:
        base = preset(name)
        run = replace(base, cluster=Cluster(num_workers=0), train=replace(base.train, sample_every=0))
        images = smooth_images(NUM_IMAGES, run.data.image_shape)
        images = replace(images, labels=torch.arange(NUM_IMAGES) % 10, classes=tuple("0123456789"))
        with tempfile.TemporaryDirectory() as made:
            ours, theirs = (first_losses(run, images, Path(made) / str(alone), alone=alone) for alone in (False, True))
            for loss, value in ours.items():
                if abs(value - theirs[loss]) > 1e-4 * abs(value):
                    raise SystemExit(f"{name}: {loss} is {value!r} by genray and {theirs[loss]!r} by torch; no ratio")
            sides = [
                Side(side, steps(run, images, Path(made) / side, alone=side == "torch")[1])
                for side in ("genray", "torch")
            ]
            figures[name] = compare(sides[0], sides[1], options)
        say(f"{name}: {figures[name]}")
    finish("penalty_throughput", figures | conditions(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
