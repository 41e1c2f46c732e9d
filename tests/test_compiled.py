"""Compiled networks train as the others do, gradient penalties included."""

from dataclasses import replace
from pathlib import Path

import torch
from conftest import tiny_config
from test_objective_gan import make_batch

from genray.checkpoint import NullStore
from genray.compiled import compile_all
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.dcgan import DCGAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
from genray.objectives import Networks
from genray.objectives.gan import GAN
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

PLAIN = DCGAN(latent_dim=4, width=4, generator_norm="none", discriminator_norm="none")
STYLES = StyleGAN2(latent_dim=4, style_dim=4, width=4, max_width=4, num_mapping_layers=1)
# a weight that makes the gradients of penalties as large as the others, so that a lost one would be seen
PENALISED = GAN(form="relativistic", gamma=300.0, penalised="both", gradient_penalty=10.0)


def gradients(digits: ImageSet, objective: GAN, compiled: bool) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Of the second step, with weights that have moved; and the metrics of both."""
    base = tiny_config(model=PLAIN, objective=objective)
    config = replace(base, train=replace(base.train, compile=compiled))
    world = World(0, 1, torch.device("cpu"))
    trainer = Trainer(config, digits, RunFolder(Path("unused")), store=NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    trainer.update()
    networks = trainer.networks.bare.items()
    return {f"{n}.{k}": p.grad for n, m in networks for k, p in m.named_parameters()}, trainer.meter.collect()  # type: ignore[misc]


def num_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def test_compiled_networks_have_the_gradients_of_eager_ones_with_penalties(digits: ImageSet) -> None:
    eager, eager_metrics = gradients(digits, PENALISED, compiled=False)
    before = num_graphs()
    compiled, metrics = gradients(digits, PENALISED, compiled=True)
    assert num_graphs() >= before + 2  # generator and discriminator
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    assert metrics["discriminator/r1"] > 0
    torch.testing.assert_close(metrics, eager_metrics, atol=1e-4, rtol=1e-4)
    without, _ = gradients(digits, replace(PENALISED, gamma=0.0), compiled=False)
    assert max((without[name] - gradient).abs().max() for name, gradient in eager.items()) > 0.1


def test_generator_whose_path_lengths_are_minded_runs_as_it_was_written() -> None:
    before, objective, found = num_graphs(), GAN(path_length=2.0), []
    for compiled in (False, True):
        torch.manual_seed(0)
        bare = STYLES.build((1, 8, 8), 10) | objective.state()
        if compiled:
            compile_all([bare["generator"]])
        networks, batch = Networks(bare, bare), make_batch()
        loss, _ = objective.loss("generator", "fakes", networks, batch, objective.prepare(networks, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([parameter.grad for parameter in bare["generator"].parameters()])
    assert num_graphs() == before
    torch.testing.assert_close(*found)


def test_networks_whose_weights_are_computed_are_not_compiled() -> None:
    made = SNGAN(width=4, discriminator_width=4, max_width=4).build((1, 8, 8), 10)
    compile_all(made.values())
    assert {name: network._compiled_call_impl is not None for name, network in made.items()} == {
        "generator": True,
        "discriminator": False,  # of spectral normalisation
    }
