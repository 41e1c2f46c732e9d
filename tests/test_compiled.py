"""Compiled networks train as the others do, gradient penalties included."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config

from genray.checkpoint import NullStore
from genray.compiled import compile_all
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.dcgan import DCGAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
from genray.objectives.gan import GAN
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

LONG = pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="minutes of a compiler; set GENRAY_LONG=1")
PLAIN = DCGAN(latent_dim=4, width=4, generator_norm="none", discriminator_norm="none")
STYLES = StyleGAN2(latent_dim=4, style_dim=4, width=4, max_width=4, num_mapping_layers=1)
# a weight that makes the gradients of penalties as large as the others, so that a lost one would be seen
PENALISED = GAN(form="relativistic", gamma=300.0, penalised="both", gradient_penalty=10.0)
CASES = [
    pytest.param(PLAIN, PENALISED, id="r1-r2-gp"),
    pytest.param(STYLES, GAN(gamma=300.0, path_length=2.0), id="r1-paths", marks=LONG),
]


def gradients(digits: ImageSet, model: Any, objective: GAN, compiled: bool) -> dict[str, torch.Tensor]:
    """Of the second step, with weights that have moved."""
    base = tiny_config(model=model, objective=objective)
    config = replace(base, train=replace(base.train, compile=compiled))
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, RunFolder(Path("unused")), store=NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    trainer.update()
    networks = trainer.networks.bare.items()
    return {f"{n}.{k}": p.grad for n, m in networks for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("model", "objective"), CASES)
def test_compiled_networks_have_the_gradients_of_eager_ones(model: Any, objective: GAN, digits: ImageSet) -> None:
    eager, compiled = (gradients(digits, model, objective, compiled) for compiled in (False, True))
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] >= 1
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    without = gradients(digits, model, replace(objective, gamma=0.0), compiled=False)
    assert max((without[name] - gradient).abs().max() for name, gradient in eager.items()) > 0.1


def test_networks_whose_weights_are_computed_are_not_compiled() -> None:
    made = SNGAN(width=4, discriminator_width=4, max_width=4).build((1, 8, 8), 10)
    compile_all(made.values())
    assert {name: network._compiled_call_impl is not None for name, network in made.items()} == {
        "generator": True,
        "discriminator": False,  # of spectral normalisation
    }
