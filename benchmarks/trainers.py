"""Real trainers on made-up images: genray's side of every comparison."""

import contextlib
import os
from pathlib import Path

import torch
from torch.nn import functional as F
from turns import timed

from genray import cpu
from genray.checkpoint import NullStore
from genray.config import Cluster, Config, Data, Optim, Run, Train
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models import Model
from genray.models.dcgan import DCGAN
from genray.objectives import Objective
from genray.objectives.gan import GAN
from genray.storage import RunFolder
from genray.tracking import JsonlTracker, NullTracker
from genray.trainer import Trainer

LOG_EVERY = 50


def smooth_images(num: int, shape: tuple[int, int, int], seed: int = 0) -> ImageSet:
    """Coloured clouds (num, C, H, W), uint8, in one class; channels last in memory, as decoded images are."""
    source = torch.Generator().manual_seed(seed)
    images = torch.empty(num, *shape[1:], shape[0], dtype=torch.uint8).permute(0, 3, 1, 2)
    for start in range(0, num, 1000):
        coarse = torch.rand(min(1000, num - start), shape[0], 5, 5, generator=source)
        smooth = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True)
        images[start : start + 1000] = smooth.mul(255).round().clamp(0, 255).to(torch.uint8)
    labels = torch.zeros(num, dtype=torch.int64)
    return ImageSet(images, labels, ("cloud",), "clouds", "train", digest="", num_skipped=0)


def dcgan(size: int, precision: str, global_batch_size: int, cluster: Cluster | None = None) -> Config:
    """The run that GAN benchmarks time: batch norm in both networks, width 64, Adam as in the DCGAN paper."""
    return config(
        image_shape=(3, size, size),
        model=DCGAN(),
        objective=GAN(),
        optim=Optim(lr=2e-4, betas=(0.5, 0.999)),
        precision=precision,
        global_batch_size=global_batch_size,
        cluster=cluster,
    )


def config(
    *,
    image_shape: tuple[int, int, int],
    model: Model,
    objective: Objective,
    optim: Optim,
    precision: str,
    global_batch_size: int,
    cluster: Cluster | None = None,
) -> Config:
    """A run that never ends by itself, with an EMA and a log point every 50 steps."""
    return Config(
        run=Run(name="benchmark"),
        data=Data(name="cifar10", channels=image_shape[0], image_size=image_shape[1:]),  # type: ignore[arg-type]
        model=model,
        objective=objective,
        optim=optim,
        train=Train(
            num_steps=10**9,
            global_batch_size=global_batch_size,
            log_every=LOG_EVERY,
            sample_every=0,
            precision=precision,  # type: ignore[arg-type]
        ),
        cluster=cluster or Cluster(num_workers=0),
    )


def trainer(run: Config, images: ImageSet, folder: Path, world: World | None = None) -> Trainer:
    """The trainer of one rank, with a journal on rank 0, that checkpoints nothing."""
    cpu.prepare()
    world = world or World(0, 1, torch.device("cpu"))
    tracker = JsonlTracker(folder / "journal", "train") if world.rank == 0 else NullTracker()
    return Trainer(run, images, RunFolder(folder), store=NullStore(), tracker=tracker, world=world)


class Steps:
    """The loop of `Trainer.fit` between two checkpoints; its progress lines go nowhere."""

    def __init__(self, made: Trainer) -> None:
        self.trainer = made
        self.run = timed(self.step)

    def step(self) -> None:
        self.trainer.update()
        if self.trainer.step % LOG_EVERY == 0:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                self.trainer.log()
