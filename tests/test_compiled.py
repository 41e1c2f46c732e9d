"""Compiled networks train as the others do, gradient penalties included."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import tiny_config

from genray.checkpoint import NullStore
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.dcgan import DCGAN
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

SMALL = DCGAN(latent_dim=4, width=4, generator_norm="none", discriminator_norm="none")


def gradients(digits: ImageSet, compiled: bool) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    base = tiny_config(model=SMALL)
    config = replace(base, train=replace(base.train, compile=compiled))
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, RunFolder(Path("unused")), store=NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    networks = trainer.networks.bare.items()
    return {f"{n}.{k}": p.grad for n, m in networks for k, p in m.named_parameters()}, trainer.meter.collect()  # type: ignore[misc]


def test_compiled_networks_have_the_gradients_of_eager_ones_with_a_penalty(digits: ImageSet) -> None:
    eager, eager_metrics = gradients(digits, compiled=False)
    compiled, metrics = gradients(digits, compiled=True)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] >= 2  # generator and discriminator
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    assert metrics["discriminator/r1"] > 0
    torch.testing.assert_close(metrics, eager_metrics, atol=1e-4, rtol=1e-4)
