"""Compiled networks train as the others do, gradient penalties included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config

from genray.checkpoint import NullStore
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.dcgan import DCGAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
from genray.objectives.gan import GAN
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

PLAIN = DCGAN(latent_dim=4, width=4, generator_norm="none", discriminator_norm="none")
STYLES = StyleGAN2(latent_dim=4, style_dim=4, width=4, max_width=4, num_mapping_layers=1)
SPECTRAL = SNGAN(latent_dim=4, width=4, discriminator_width=4, max_width=4, conditional=True)
# weights that make the gradients of penalties as large as the others, so that a lost one would be seen
CASES = {
    "r1-r2-gp": (PLAIN, GAN(form="relativistic", gamma=300.0, penalised="both", gradient_penalty=10.0)),
    "r1-paths": (STYLES, GAN(gamma=300.0, path_length=2.0)),
    "spectral": (SPECTRAL, GAN(form="relativistic")),
}


def gradients(digits: ImageSet, model: Any, objective: GAN, compiled: bool) -> dict[str, torch.Tensor]:
    """Of the second step, which weights that have moved, and vectors of spectral norms, are behind."""
    base = tiny_config(model=model, objective=objective)
    config = replace(base, train=replace(base.train, compile=compiled))
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, RunFolder(Path("unused")), store=NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    trainer.update()
    networks = trainer.networks.bare.items()
    return {f"{n}.{k}": p.grad for n, m in networks for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("model", "objective"), CASES.values(), ids=CASES)
def test_compiled_networks_have_the_gradients_of_eager_ones(model: Any, objective: GAN, digits: ImageSet) -> None:
    eager = gradients(digits, model, objective, compiled=False)
    compiled = gradients(digits, model, objective, compiled=True)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] >= 1
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    if objective.gamma:
        without = gradients(digits, model, replace(objective, gamma=0.0), compiled=False)
        assert max((without[name] - gradient).abs().max() for name, gradient in eager.items()) > 0.1
