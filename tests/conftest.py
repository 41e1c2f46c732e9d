"""What every test may ask for."""

import os
from pathlib import Path

import pytest
import torch

from genray.config import Config, Data, Eval, Optim, Run, Train
from genray.data.images import ImageSet, load_images
from genray.models.dcgan import DCGAN
from genray.objectives.gan import GAN

# several processes share few cores here, and threads that wait for each other cost more than they bring
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Ray reads this once a process: two clusters of one test session, one with a token and one without, do not go together
os.environ["RAY_AUTH_MODE"] = "disabled"

SHARED_DATA = Path(os.environ.get("GENRAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with real MNIST, CIFAR-10 as JPEG in a zip, and text; tests that need it carry `@pytest.mark.data`."""
    if not (SHARED_DATA / "MNIST").is_dir():
        pytest.skip(f"needs the data sets of $GENRAY_DATA, and {SHARED_DATA} has none")
    return SHARED_DATA


def tiny_config(**sections: object) -> Config:
    """A GAN on 8 x 8 digits, width 8, without batch statistics: a step takes milliseconds."""
    defaults: dict[str, object] = {
        "run": Run(name="tiny"),
        "data": Data(name="digits"),
        "model": DCGAN(latent_dim=8, width=8, generator_norm="none", discriminator_norm="none"),
        "objective": GAN(gamma=1.0),
        "optim": Optim(lr=1e-3, betas=(0.5, 0.99)),
        "train": Train(num_steps=8, global_batch_size=16, checkpoint_every=4, log_every=2, sample_every=4),
        "eval": Eval(num_samples=64, num_seeds=2),
    }
    return Config(**(defaults | sections))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """The training images of the digits."""
    return load_images(Data(name="digits"), "train")
