"""Every GAN trains the same on two ranks as on one, and resumes exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gan_cases import CASES, INVARIANT, WIDE
from ranks import run_ranks
from torch import Tensor

from genray import checkpoint
from genray.config import Config
from genray.data.images import ImageSet, load_images
from genray.distributed import World, current
from genray.evaluation.frechet import Moments, frechet_distance
from genray.sampling import generate, latents
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


def trainer_of(config: Config, images: ImageSet, folder: RunFolder, world: World) -> Trainer:
    store = checkpoint.FolderStore(folder)
    return Trainer(config, images, folder, store=store, tracker=NullTracker(), world=world)


def _gradients_and_metrics(cases: dict[str, Config]) -> dict[str, dict[str, Tensor]]:
    """Gradients of the first step, and losses and other means over ranks of each of three steps, of each case."""
    images, found = load_images(next(iter(cases.values())).data, "train"), {}
    for name, config in cases.items():
        trainer = trainer_of(config, images, RunFolder(Path("unused")), current(False))
        values = {}
        for step in range(3):
            trainer.update()
            if step == 0:
                buffers = trainer.networks.bare["discriminator"].named_buffers()
                values |= {f"buffer {n}": buffer.clone() for n, buffer in buffers}
                for module, network in trainer.networks.bare.items():
                    reached = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
                    values |= {f"gradient of {module}.{n}": gradient.clone() for n, gradient in reached.items()}
            means = trainer.meter.collect()
            values |= {f"{key} at step {step}": torch.tensor(v) for key, v in means.items() if key[-9:] != "grad_norm"}
        found[name] = values
    return found


@pytest.fixture(scope="module")
def worlds() -> list[dict[str, dict[str, Tensor]]]:
    """What one process found, and what each of two ranks did."""
    return [_gradients_and_metrics(CASES), *run_ranks(_gradients_and_metrics, 2, CASES)]


@pytest.mark.parametrize("name", INVARIANT)
def test_gan_on_two_ranks_has_the_gradients_and_losses_of_one_process(name: str, worlds: Any) -> None:
    alone, *ranks = (world[name] for world in worlds)
    for rank in ranks:
        assert rank.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_spectral_norm_on_two_ranks_has_the_singular_vectors_of_one_process(worlds: Any) -> None:
    alone, *ranks = ({k: v for k, v in world["sngan"].items() if k.endswith("._u")} for world in worlds)
    assert len(alone) > 5
    for rank in ranks:
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_gan_resumed_after_two_steps_ends_with_the_very_state_of_a_run_without_a_stop(
    name: str, tmp_path: Path, digits: ImageSet
) -> None:
    config = replace(CASES[name], train=replace(CASES[name].train, num_steps=4, checkpoint_every=2, sample_every=0))
    whole, halves = (RunFolder.open(str(tmp_path), part) for part in ("whole", "halves"))
    trainer_of(config, digits, whole, CPU).fit()
    half = trainer_of(config, digits, halves, CPU)
    half.advance()
    half.close()
    outcome = trainer_of(config, digits, halves, CPU).fit()
    assert outcome.resumed_from == 2
    left, right = (checkpoint.load(folder, 4).tensors for folder in (whole, halves))
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


def distance(trainer: Trainer, images: ImageSet) -> float:
    """Squared Fréchet distance of the pixels of 500 samples to those of the reals."""
    module: Any = trainer.ema.module
    labels = torch.arange(500) % 10 if module.num_labels else None
    samples = generate(module, latents(500, module.latent_dim, 0), labels)
    sets = [Moments.of(x.flatten(1) / 255) for x in (images.images[:500], samples)]
    return frechet_distance(*sets)


@pytest.mark.parametrize("name", WIDE)
def test_gan_learns_the_digits(name: str, tmp_path: Path, digits: ImageSet) -> None:
    train = replace(WIDE[name].train, num_steps=150, global_batch_size=32, ema_half_life=500)
    trainer = trainer_of(replace(WIDE[name], train=train), digits, RunFolder(tmp_path), CPU)
    before = distance(trainer, digits)
    while not trainer.finished:
        trainer.update()
    after = distance(trainer, digits)
    collapsed = float((digits.images[:500].flatten(1).double() / 255).T.cov().trace())  # every image is the mean of all
    assert after < 0.4 * before and after < 0.9 * collapsed
