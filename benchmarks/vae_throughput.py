"""Training VAEs: genray's trainer against pythae's.

pythae 0.1.2's `BaseTrainer.train_step` with its defaults (Adam, a DataLoader in this process, fp32,
progress bar, the loss read every step) against `Trainer.update` and `log`. pythae's encoder and
decoder are wrappers of genray's own, so both train the same networks, at equal batch and Adam settings,
on the same images, with the same loss: cross-entropy for the fully connected VAE (28 x 28, grey, batch
128), squared error for the convolutional one (32 x 32, RGB, batch 128, 1.1 million parameters).

pythae is fetched into a temporary environment beside this one; what it shares with genray (torch,
numpy) is taken from here. bf16 is genray's autocast against pythae in fp32. Each side lives in a process
of its own, since genray's keeps freed memory and pythae's does not.
"""

import argparse
import contextlib
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from remote import processes, serve
from torch import Tensor
from trainers import Steps, config, smooth_images, trainer
from turns import Side, compare, conditions, finish, parser, say, timed

from genray.config import Config, Optim
from genray.data.images import ImageSet
from genray.models.vae import MLPVAE, ConvVAE
from genray.objectives.elbo import ELBO

PYTHAE = "pythae==0.1.2"
BESIDE_PYTHAE = ("imageio", "tqdm", "pydantic", "cloudpickle")
NUM_IMAGES, BATCH = 20_000, 128
GOALS = {("mlp", "fp32"): 1.4, ("mlp", "bf16"): 2.2, ("conv", "fp32"): 1.15, ("conv", "bf16"): 1.45}


def runs(precision: str) -> dict[str, Config]:
    """What each kind of network is trained with."""
    common: dict[str, Any] = {"optim": Optim(lr=1e-3), "precision": precision, "global_batch_size": BATCH}
    bernoulli, gaussian = ELBO(binarize=False), ELBO(likelihood="gaussian", sigma=1.0)
    return {
        "mlp": config(image_shape=(1, 28, 28), model=MLPVAE(latent_dim=10, hidden=512), objective=bernoulli, **common),
        "conv": config(image_shape=(3, 32, 32), model=ConvVAE(latent_dim=40, width=48), objective=gaussian, **common),
    }


def fetch_pythae(folder: Path) -> None:
    """Installs pythae into `folder`."""
    venv.create(folder, with_pip=True)
    missing = [name for name in BESIDE_PYTHAE if find_spec(name) is None]
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", "--no-deps", PYTHAE, *missing], check=True)


class Endless:
    """Batches of `loader`, epoch after epoch; an iteration yields the next `num` of them."""

    def __init__(self, loader: Any) -> None:
        self.dataset, self.num = loader.dataset, 1
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.batches, self.num)


def pythae_steps(run: Config, images: ImageSet, folder: Path) -> Callable[[int], float]:
    """n steps of pythae's trainer."""
    from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found]
    from pythae.models import VAE, VAEConfig  # type: ignore[import-not-found]
    from pythae.models.base.base_utils import ModelOutput  # type: ignore[import-not-found]
    from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore[import-not-found]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found]

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self, vae: Any) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, images: Tensor) -> Any:
            mu, logvar = self.vae.encode(images)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self, vae: Any) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(self.vae.decode(z)))

    torch.manual_seed(run.train.seed)
    built: Any = run.model.build(run.data.image_shape, 1)["vae"]
    loss = "mse" if run.objective.likelihood == "gaussian" else "bce"  # type: ignore[attr-defined]
    knobs = VAEConfig(input_dim=run.data.image_shape, latent_dim=built.latent_dim, reconstruction_loss=loss)
    settings = BaseTrainerConfig(
        output_dir=str(folder), per_device_train_batch_size=BATCH, learning_rate=run.optim.lr, no_cuda=True
    )
    pixels = BaseDataset(images.images.contiguous() / 255, images.labels)
    made = BaseTrainer(VAE(knobs, Encoder(built), Decoder(built)), pixels, training_config=settings)
    made.prepare_training()
    made.train_loader = Endless(made.train_loader)

    def steps(num_steps: int) -> float:
        made.train_loader.num = num_steps
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return timed(lambda: made.train_step(1))(1)

    return steps


def measure(kind: str, precision: str, options: argparse.Namespace, environment: str) -> dict[str, float]:
    """Ratio of one kind of network at one precision; pythae is in `environment`."""
    arguments = ["--kinds", kind, "--precisions", precision, "--threads", str(options.threads)]
    with processes(("genray", "pythae"), *arguments, "--environment", environment) as (desk, _):
        desk.wait_for("genray", "pythae")
        ours = Side(f"genray {kind} {precision}", desk.run(("genray",), "train"))
        return compare(ours, Side("pythae", desk.run(("pythae",), "train")), options)


def side(name: str, kind: str, precision: str, environment: str) -> None:
    """The process of one side."""
    run = runs(precision)[kind]
    images = smooth_images(NUM_IMAGES, run.data.image_shape)
    with tempfile.TemporaryDirectory() as folder:
        if name == "genray":
            serve(name, {"train": Steps(trainer(run, images, Path(folder))).run})
        else:
            sys.path += [str(path) for path in Path(environment).glob("lib/python*/site-packages")]
            logging.disable(logging.INFO)  # pythae's
            serve(name, {"train": pythae_steps(run, images, Path(folder))})


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--kinds", nargs="+", choices=("mlp", "conv"), default=["mlp", "conv"])
    made.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    made.add_argument("--process", choices=("genray", "pythae"), help=argparse.SUPPRESS)
    made.add_argument("--environment", help=argparse.SUPPRESS)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    if options.process:
        side(options.process, *options.kinds, *options.precisions, options.environment)
        return
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        fetch_pythae(Path(folder))
        for kind in options.kinds:
            for precision in options.precisions:
                found = measure(kind, precision, options, folder)
                say(f"{kind} {precision}: {found} (goal {GOALS[kind, precision]})")
                size = runs(precision)[kind].data.image_shape[1]
                figures |= {f"{kind}_vae_{size}px_{precision}_{key}": value for key, value in found.items()}
    finish("vae_throughput", figures | {"global_batch_size": BATCH, "peer": PYTHAE} | conditions(options))


if __name__ == "__main__":
    main()
