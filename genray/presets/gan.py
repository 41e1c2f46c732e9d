"""Runs of adversarial generators."""

from genray.config import Config, Data, Eval, Optim, Run, Train
from genray.models.dcgan import DCGAN
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


GANS = (digits_dcgan, mnist_dcgan, cifar10_dcgan, folder_dcgan)
