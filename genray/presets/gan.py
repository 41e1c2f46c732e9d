"""Runs of adversarial generators."""

from genray.anneal import Anneal
from genray.config import Config, Data, Eval, Optim, Run, Train
from genray.models.biggan import BigGAN
from genray.models.dcgan import DCGAN
from genray.models.r3gan import R3GAN
from genray.models.sngan import SNGAN
from genray.models.stylegan2 import StyleGAN2
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


def digits_acgan() -> Config:
    """DCGAN of the digits whose discriminator names their classes, and is scored as a classifier, too.

    Hardware: one CPU core
    Time: 1 minute
    Score: FID 2.1 ± 0.2 (features of digits-classifier, 2,000 samples), test accuracy 97.8 %
    """
    return Config(
        run=Run(name="digits-acgan"),
        data=Data(name="digits"),
        model=DCGAN(latent_dim=64, width=64, min_base=2, conditional=True, conditioning="auxiliary-classifier"),
        objective=GAN(class_loss=1.0),
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
    Score: not measured; published: FID 29 without labels (Inception features)
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


def digits_r3gan() -> Config:
    """Class-conditional R3GAN on scikit-learn's 8 x 8 digits.

    Hardware: one CPU core
    Time: 2 minutes
    Score: FID 1.7 ± 0.1 (features of digits-classifier, 2,000 samples)
    """
    return Config(
        run=Run(name="digits-r3gan"),
        data=Data(name="digits"),
        model=R3GAN(latent_dim=32, width=32, max_width=64, num_blocks=1, conditional=True),
        objective=GAN(form="relativistic", gamma=0.5, penalised="both"),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
        anneal=Anneal(to=("optim.lr=2e-4", "objective.gamma=0.05", "optim.betas.1=0.99")),
        train=Train(num_steps=1500, global_batch_size=64, checkpoint_every=250, sample_every=250, ema_half_life=5_000),
        eval=Eval(num_samples=2_000),
    )


def mnist_sngan() -> Config:
    """Class-conditional SNGAN on MNIST, 28 x 28.

    Hardware: one CPU core
    Time: 46 minutes
    Score: FID 4.50 ± 0.02, KID 0.08 (features of mnist-classifier, 10,000 samples)
    """
    return Config(
        run=Run(name="mnist-sngan"),
        data=Data(name="mnist"),
        model=SNGAN(latent_dim=100, width=32, discriminator_width=32, conditional=True),
        objective=GAN(form="hinge"),
        optim=Optim(lr=5e-4, discriminator_lr=1e-3, betas=(0.0, 0.9), schedule="linear"),
        train=Train(num_steps=1000, global_batch_size=128, checkpoint_every=500, ema_half_life=20_000),
    )


def mnist_r3gan() -> Config:
    """Class-conditional R3GAN on MNIST, 28 x 28.

    Hardware: one CPU core
    Time: 19 minutes
    Score: FID 1.20 ± 0.03, KID 0.03 (features of mnist-classifier, 10,000 samples)
    """
    return Config(
        run=Run(name="mnist-r3gan"),
        data=Data(name="mnist"),
        model=R3GAN(latent_dim=64, width=16, max_width=64, num_blocks=1, group_width=8, conditional=True),
        objective=GAN(form="relativistic", gamma=0.5, penalised="both"),
        optim=Optim(lr=2e-3, betas=(0.0, 0.9)),
        anneal=Anneal(to=("optim.lr=2e-4", "objective.gamma=0.05", "optim.betas.1=0.99")),
        train=Train(num_steps=1000, global_batch_size=128, checkpoint_every=500, ema_half_life=20_000),
    )


def mnist_stylegan2() -> Config:
    """Class-conditional StyleGAN2 on MNIST, 28 x 28.

    Hardware: one CPU core
    Time: 17 minutes
    Score: FID 20.1 ± 0.4, KID 1.07 (features of mnist-classifier, 10,000 samples)
    """
    return Config(
        run=Run(name="mnist-stylegan2"),
        data=Data(name="mnist"),
        model=StyleGAN2(latent_dim=64, style_dim=64, width=16, max_width=64, mapping_lr=0.1, conditional=True),
        objective=GAN(gamma=0.1),
        optim=Optim(lr=2.5e-3, betas=(0.0, 0.99)),
        train=Train(num_steps=1000, global_batch_size=128, checkpoint_every=500, ema_half_life=20_000),
    )


def cifar10_sngan() -> Config:
    """Class-conditional SNGAN on CIFAR-10, 32 x 32: the paper's networks, five updates of the discriminator to one.

    Hardware: one GPU
    Time: not measured
    Score: not measured; published: FID 10.8 (Inception features)
    """
    return Config(
        run=Run(name="cifar10-sngan"),
        data=Data(name="cifar10", flip=True),
        model=SNGAN(width=256, max_width=256, discriminator_width=128, max_discriminator_width=128, conditional=True),
        objective=GAN(form="hinge", num_discriminator_steps=5),
        optim=Optim(lr=2e-4, betas=(0.0, 0.9), schedule="linear"),
        train=Train(num_steps=200_000, global_batch_size=64, checkpoint_every=5000, sample_every=5000),
    )


def cifar10_biggan() -> Config:
    """Class-conditional BigGAN on CIFAR-10, 32 x 32, four updates of the discriminator to one.

    Hardware: one GPU
    Time: not measured
    Score: not measured; published: FID 4.2 (Inception features), of a wider network
    """
    return Config(
        run=Run(name="cifar10-biggan"),
        data=Data(name="cifar10", flip=True),
        model=BigGAN(width=64, max_width=256, max_discriminator_width=64, conditional=True),
        objective=GAN(form="hinge", num_discriminator_steps=4),
        optim=Optim(lr=2e-4, betas=(0.0, 0.999)),
        train=Train(
            num_steps=200_000, global_batch_size=64, checkpoint_every=5000, sample_every=5000, ema_half_life=100_000
        ),
    )


def cifar10_r3gan() -> Config:
    """Class-conditional R3GAN on CIFAR-10, 32 x 32, with the paper's schedules over its first 20 million images.

    Hardware: one GPU
    Time: not measured
    Score: not measured; published: FID 1.96 (Inception features), of a wider network
    """
    ends = ("optim.lr=5e-5", "objective.gamma=0.005", "optim.betas.1=0.99", "objective.augment_probability=0.55")
    return Config(
        run=Run(name="cifar10-r3gan"),
        data=Data(name="cifar10", flip=True),
        model=R3GAN(latent_dim=64, width=256, max_width=768, group_width=8, conditional=True),
        objective=GAN(
            form="relativistic",
            gamma=0.05,
            penalised="both",
            augment=("color", "translation", "cutout"),
            augment_probability=0.0,
        ),
        optim=Optim(lr=2e-4, betas=(0.0, 0.9)),
        anneal=Anneal(to=(*ends, "train.ema_half_life=5e6"), samples=20_000_000),
        train=Train(
            num_steps=60_000,
            global_batch_size=512,
            checkpoint_every=2000,
            sample_every=2000,
            ema_half_life=0,
            ema_ramp=None,
        ),
    )


def cifar10_stylegan2() -> Config:
    """Class-conditional StyleGAN2 on CIFAR-10, 32 x 32, with augmentation whose probability adapts.

    Hardware: one GPU
    Time: not measured
    Score: not measured; published: FID 2.4 (Inception features)
    """
    return Config(
        run=Run(name="cifar10-stylegan2"),
        data=Data(name="cifar10", flip=True),
        model=StyleGAN2(latent_dim=512, style_dim=512, width=512, max_width=512, conditional=True),
        objective=GAN(gamma=0.01, augment=("color", "translation", "cutout"), augment_target=0.6),
        optim=Optim(lr=2.5e-3, betas=(0.0, 0.99)),
        train=Train(
            num_steps=100_000, global_batch_size=64, checkpoint_every=5000, sample_every=5000, ema_half_life=500_000
        ),
    )


GANS = (
    digits_dcgan,
    digits_acgan,
    digits_r3gan,
    mnist_dcgan,
    mnist_sngan,
    mnist_r3gan,
    mnist_stylegan2,
    cifar10_dcgan,
    cifar10_sngan,
    cifar10_biggan,
    cifar10_r3gan,
    cifar10_stylegan2,
    folder_dcgan,
)
