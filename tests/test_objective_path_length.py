"""How far images move with their styles, and a generator that learns to move them evenly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from test_objective_gan import make_batch
from torch import Tensor

from genray import checkpoint
from genray.config import Train
from genray.data.images import ImageSet
from genray.distributed import current
from genray.errors import ConfigError
from genray.models.stylegan2 import StyleGAN2
from genray.objectives import Networks
from genray.objectives.gan import GAN, PATH_EVERY
from genray.objectives.penalties import PathMean, path_lengths
from genray.storage import RunFolder
from genray.trainer import train

MODEL = StyleGAN2(latent_dim=8, style_dim=8, width=8, max_width=8)


def make_networks(objective: GAN) -> Networks:
    torch.manual_seed(0)
    networks = MODEL.build((1, 8, 8), 10) | objective.state()
    return Networks(networks, networks)


def test_path_length_of_a_linear_generator_is_the_length_of_its_transpose_times_the_noise() -> None:
    matrix, noise = torch.randn(2 * 4 * 3, 5, dtype=torch.float64), torch.randn(6, 2, 4, 3, dtype=torch.float64)
    styles = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    found = path_lengths((styles @ matrix.T).view(6, 2, 4, 3), styles, noise)
    torch.testing.assert_close(found, (noise.flatten(1) @ matrix / 12**0.5).norm(dim=1))


def test_path_lengths_of_a_generator_equal_those_of_its_jacobian() -> None:
    generator: Any = MODEL.build((1, 8, 8), 10)["generator"].double().eval()
    z, noise = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    images, styles = generator(z, with_styles=True)
    found = path_lengths(images, styles, noise)
    for i in range(3):
        jacobian: Any = torch.autograd.functional.jacobian(lambda w: generator.synthesise(w[None])[0], styles[i])
        expected = torch.einsum("chwd,chw->d", jacobian, noise[i]).norm() / 8
        # the generator gives images in single precision
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-7)


def test_path_mean_goes_a_hundredth_of_the_way_and_then_is_what_lengths_are_drawn_to() -> None:
    mean = PathMean()
    penalty = mean.penalty(torch.tensor([1.0, 3.0]))
    assert mean.length.item() == pytest.approx(0.02)
    torch.testing.assert_close(penalty, torch.tensor([0.98**2, 2.98**2]))


def test_path_lengths_cost_their_penalty_at_every_fourth_update_of_the_generator() -> None:
    objective, steps = GAN(path_length=2.0, num_discriminator_steps=2), range(2 * PATH_EVERY * 2)
    taken, extra = [], []
    for step in steps:
        with_paths, without = make_networks(objective), make_networks(objective)
        batch = make_batch(step=step)
        shared = objective.prepare(with_paths, batch)
        taken += [step] if isinstance(shared, tuple) else []
        if objective.phases[1].due(step):
            loss, metrics = objective.loss("generator", "fakes", with_paths, batch, shared)
            plain = replace(objective, path_length=0.0)
            other, _ = plain.loss("generator", "fakes", without, batch, plain.prepare(without, batch))
            if "generator/path_length" in metrics:
                fakes, styles = shared
                noise = batch.draws.normal("path lengths", *fakes.shape[1:])
                penalty = PathMean().penalty(path_lengths(fakes, styles, noise)).mean()
                torch.testing.assert_close(loss - other, PATH_EVERY * 2.0 * penalty, rtol=1e-4, atol=1e-5)
                extra += [step]
            else:
                torch.testing.assert_close(loss, other)
    assert taken == extra == [1, 9]


def test_path_length_penalty_evens_out_the_lengths() -> None:
    generator: Any = make_networks(GAN()).bare["generator"]
    mean, optimizer = PathMean(), torch.optim.Adam(generator.parameters(), 3e-2)
    source = torch.Generator().manual_seed(1)

    def lengths(num: int) -> Tensor:
        z, noise = (torch.randn(num, *shape, generator=source) for shape in ((8,), (1, 8, 8)))
        return path_lengths(*generator(z, with_styles=True), noise)

    def unevenness() -> float:
        found = lengths(512).detach()
        return (found.std() / found.mean()).item()

    before = unevenness()
    mean.length.fill_(lengths(512).mean().item())
    for _ in range(40):
        optimizer.zero_grad()
        mean.penalty(lengths(32)).mean().backward()
        optimizer.step()
    assert unevenness() < 0.8 * before


def test_path_mean_is_part_of_the_checkpoint(digits: ImageSet, tmp_path: Path) -> None:
    steps = Train(num_steps=1, global_batch_size=16, checkpoint_every=1, sample_every=0)
    config = tiny_config(model=MODEL, objective=GAN(path_length=2.0), train=steps)
    folder = RunFolder.open(str(tmp_path), "run")
    train(config, digits, folder, current(use_gpu=False))
    assert checkpoint.load(folder, 1).tensors["modules/path_lengths/length"] > 0


def test_path_length_of_a_generator_without_styles_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^objective\.path_length=2\.0 measures paths of styles, .* stylegan2, or "):
        tiny_config(objective=GAN(path_length=2.0))
