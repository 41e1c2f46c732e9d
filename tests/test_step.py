"""One step: what is not finite leaves no trace."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from genray.checkpoint import NullStore
from genray.config import Train
from genray.data.images import ImageSet
from genray.distributed import World
from genray.models.dcgan import DCGAN
from genray.models.vae import ConvVAE
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN
from genray.storage import RunFolder
from genray.tracking import NullTracker
from genray.trainer import Trainer

CASES = {
    "vae": (ConvVAE(latent_dim=2, width=4), ELBO(binarize=False)),
    "gan": (DCGAN(latent_dim=8, width=8, generator_norm="batch", discriminator_norm="batch"), GAN()),
}


@pytest.mark.parametrize("name", CASES)
def test_infinite_pixel_leaves_no_trace_in_running_statistics_and_training_goes_on(name, tmp_path, digits: ImageSet):
    model, objective = CASES[name]
    train = Train(num_steps=8, global_batch_size=16, log_every=2, sample_every=0)
    config = replace(tiny_config(), model=model, objective=objective, train=train)
    world = World(0, 1, torch.device("cpu"))
    folder = RunFolder.open(str(tmp_path), name)
    trainer = Trainer(config, digits, folder, store=NullStore(), tracker=NullTracker(), world=world)
    trainer.update()
    before = buffers_of(trainer)
    batch = trainer.loader.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loader, "batch", lambda step: (batch(step)[0] * float("inf"), batch(step)[1]))
        trainer.update()
    assert trainer.phases[0].skipped == 1
    assert before and all(torch.equal(value, before[key]) for key, value in buffers_of(trainer).items())
    trainer.update()
    assert not any(torch.equal(value, before[key]) for key, value in buffers_of(trainer).items())


def buffers_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of the buffers of all networks."""
    bare = trainer.networks.bare.items()
    return {
        f"{name}.{key}": value.clone()
        for name, module in bare
        for key, value in module.named_buffers()
        if value.is_floating_point()
    }
