"""Complete named runs.

A preset is a function that returns a config. Its docstring says what to expect: `Hardware:`,
`Time:` and `Score:` are what `genray presets` shows, measured with the command `genray train NAME`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from genray.config import Config, Data, Eval, Optim, Run, Train
from genray.errors import ConfigError, unknown
from genray.models.dcgan import DCGAN
from genray.models.resnet import ResNetClassifier
from genray.models.vae import ConvVAE
from genray.objectives.classification import Classification
from genray.objectives.elbo import ELBO
from genray.objectives.gan import GAN


def digits_dcgan() -> Config:
    """Class-conditional DCGAN on scikit-learn's 8 x 8 digits, which need no file and no network.

    Hardware: 2 CPU cores, 2 workers
    Time: 1 minute
    Score: FID 1.8 ± 0.1 (features of digits-classifier, 2,000 samples)
    """
    return Config(
        run=Run(name="digits-dcgan"),
        data=Data(name="digits"),
        model=DCGAN(latent_dim=64, width=64, min_base=2, conditional=True),
        objective=GAN(),
        optim=Optim(lr=1e-3, betas=(0.5, 0.999)),
        train=Train(num_steps=1500, global_batch_size=64, checkpoint_every=250, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def digits_vae() -> Config:
    """Convolutional VAE on scikit-learn's 8 x 8 digits.

    Hardware: one CPU core
    Time: 35 seconds
    Score: test ELBO -23.7 ± 0.1 nats, FID 18.1
    """
    return Config(
        run=Run(name="digits-vae"),
        data=Data(name="digits"),
        model=ConvVAE(latent_dim=16, width=32),
        objective=ELBO(kl_warmup_samples=10_000),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=1500, global_batch_size=64, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def digits_classifier() -> Config:
    """Residual classifier of scikit-learn's digits: the feature extractor of every score on them.

    Hardware: 2 CPU cores
    Time: 20 seconds
    Score: test accuracy 99.2 %
    """
    return Config(
        run=Run(name="digits-classifier"),
        data=Data(name="digits"),
        model=ResNetClassifier(),
        objective=Classification(),
        optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05, schedule="cosine", warmup_samples=2_000),
        train=Train(num_steps=400, global_batch_size=64, checkpoint_every=200, sample_every=0, ema_half_life=1_000),
    )


def mnist_dcgan() -> Config:
    """Class-conditional DCGAN on MNIST, 28 x 28.

    Hardware: one CPU core
    Time: 17 minutes
    Score: FID 0.13 ± 0.02, KID 0.001 (features of mnist-classifier, 10,000 samples)
    """
    return Config(
        run=Run(name="mnist-dcgan"),
        data=Data(name="mnist"),
        model=DCGAN(latent_dim=100, width=64, conditional=True, discriminator_norm="none"),
        objective=GAN(gamma=0.1),
        optim=Optim(lr=1e-3, betas=(0.5, 0.99)),
        train=Train(num_steps=3000, global_batch_size=128, checkpoint_every=500, ema_half_life=20_000),
    )


def mnist_vae() -> Config:
    """Convolutional VAE on MNIST with stochastic binarisation; its score is the test ELBO in nats.

    Hardware: one CPU core
    Time: 6 minutes
    Score: test ELBO -99.4 ± 0.1 nats, FID 15.2
    """
    return Config(
        run=Run(name="mnist-vae"),
        data=Data(name="mnist"),
        model=ConvVAE(latent_dim=32, width=32),
        objective=ELBO(kl_warmup_samples=50_000),
        optim=Optim(lr=1e-3),
        train=Train(num_steps=3000, global_batch_size=128, ema_half_life=20_000),
    )


def mnist_classifier() -> Config:
    """Residual classifier of MNIST: the feature extractor of every score on it.

    Hardware: one CPU core
    Time: 8 minutes
    Score: test accuracy 99.4 %
    """
    return Config(
        run=Run(name="mnist-classifier"),
        data=Data(name="mnist"),
        model=ResNetClassifier(),
        objective=Classification(),
        optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05, schedule="cosine", warmup_samples=10_000),
        train=Train(num_steps=1500, global_batch_size=128, sample_every=0, ema_half_life=5_000),
    )


def cifar10_dcgan() -> Config:
    """Class-conditional DCGAN on CIFAR-10, 32 x 32.

    Hardware: one GPU, or 2 CPU cores and patience
    Time: not measured
    Score: not measured
    """
    return Config(
        run=Run(name="cifar10-dcgan"),
        data=Data(name="cifar10", flip=True),
        model=DCGAN(latent_dim=100, width=64, conditional=True),
        objective=GAN(),
        optim=Optim(lr=2e-4, betas=(0.5, 0.999)),
        train=Train(num_steps=40_000, global_batch_size=128, checkpoint_every=2000, sample_every=2000),
    )


def folder_dcgan() -> Config:
    """DCGAN on any folder or zip in ImageFolder layout; set data.root, and data.image_size to 32, 64 or 128.

    Hardware: one GPU
    Time: not measured
    Score: none: the extractor is a classifier of your own data
    """
    return Config(
        run=Run(name="folder-dcgan"),
        data=Data(name="folder", image_size=(64, 64), flip=True),
        model=DCGAN(latent_dim=100, width=64),
        objective=GAN(),
        optim=Optim(lr=2e-4, betas=(0.5, 0.999)),
        train=Train(num_steps=40_000, global_batch_size=128, checkpoint_every=2000, sample_every=2000),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "digits-dcgan": digits_dcgan,
    "digits-vae": digits_vae,
    "digits-classifier": digits_classifier,
    "mnist-dcgan": mnist_dcgan,
    "mnist-vae": mnist_vae,
    "mnist-classifier": mnist_classifier,
    "cifar10-dcgan": cifar10_dcgan,
    "folder-dcgan": folder_dcgan,
}


@dataclass(frozen=True)
class Expectation:
    """What the docstring of a preset promises."""

    summary: str
    hardware: str
    time: str
    score: str


def preset(name: str) -> Config:
    """The config of a preset.

    Raises:
        ConfigError: there is none of that name; says the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]()


def expectation(name: str) -> Expectation:
    """What to expect of a preset, read from its docstring."""
    text = PRESETS[name].__doc__ or ""
    found = dict(re.findall(r"^ *(Hardware|Time|Score): (.+)$", text, flags=re.MULTILINE))
    return Expectation(text.strip().splitlines()[0], found["Hardware"], found["Time"], found["Score"])
