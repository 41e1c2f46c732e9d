"""Runs of classifiers."""

from dataclasses import replace

from genray.config import Config, Data, Optim, Run, Train
from genray.models import Model
from genray.models.dcgan import DCGANClassifier
from genray.models.resnet import ResNetClassifier
from genray.models.sngan import SNGANClassifier
from genray.models.torchvision_resnet import TorchvisionResNet
from genray.models.vae_classifier import ConvVAEClassifier
from genray.objectives.classification import Classification


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


def cifar10_resnet18() -> Config:
    """ResNet-18 at half its width on CIFAR-10 as JPEG files, with random crops and flips, for 31 epochs.

    At full width one core trains 300 images a second, and at half of it 1,050.

    Hardware: one CPU core
    Time: 30 minutes
    Score: test accuracy 86.7 %
    """
    return Config(
        run=Run(name="cifar10-resnet18"),
        data=Data(name="cifar10", flip=True, crop_padding=4),
        model=TorchvisionResNet(depth=18, width=32),
        objective=Classification(label_smoothing=0.1),
        optim=Optim(name="adamw", lr=4e-3, weight_decay=0.05, schedule="cosine", warmup_samples=70_000),
        train=Train(
            num_steps=6_000,
            global_batch_size=256,
            checkpoint_every=400,
            sample_every=0,
            precision="bf16",
            ema_half_life=20_000,
        ),
    )


def folder_resnet50() -> Config:
    """ResNet-50 on any folder or zip of classes in ImageFolder layout, at 224 x 224; set data.root.

    Hardware: one GPU
    Time: not measured
    Score: that of your data
    """
    return Config(
        run=Run(name="folder-resnet50"),
        data=Data(name="folder", image_size=(224, 224), flip=True, crop_padding=28),
        model=TorchvisionResNet(depth=50, statistics="imagenet"),
        objective=Classification(label_smoothing=0.1),
        optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, schedule="cosine", warmup_samples=100_000),
        train=Train(num_steps=50_000, global_batch_size=128, sample_every=0, precision="bf16"),
    )


def _other(config: Config, name: str, model: Model) -> Config:
    """The same run, of another network."""
    return replace(config, run=Run(name=name), model=model)


def digits_dcgan_classifier() -> Config:
    """The digits-classifier with the trunk of digits-dcgan's discriminator; transfer.source is a checkpoint of it.

    Hardware: one CPU core
    Time: 6 seconds
    Score: test accuracy 98.1 % from scratch
    """
    return _other(digits_classifier(), "digits-dcgan-classifier", DCGANClassifier(min_base=2))


def digits_vae_classifier() -> Config:
    """The digits-classifier with the trunk of digits-vae's encoder; transfer.source is a snapshot of it.

    Hardware: one CPU core
    Time: 2 seconds
    Score: test accuracy 97.5 % from scratch
    """
    return _other(digits_classifier(), "digits-vae-classifier", ConvVAEClassifier())


def mnist_dcgan_classifier() -> Config:
    """The mnist-classifier with the trunk of mnist-dcgan's discriminator; transfer.source is a checkpoint of it.

    Hardware: one CPU core
    Time: 2 minutes
    Score: 600 labels: test accuracy 91.9 % after an unlabelled mnist-dcgan, 89.5 % from scratch
    """
    return _other(mnist_classifier(), "mnist-dcgan-classifier", DCGANClassifier(discriminator_norm="none"))


def mnist_sngan_classifier() -> Config:
    """The mnist-classifier with the trunk of mnist-sngan's discriminator; transfer.source is a checkpoint of it.

    Hardware: one CPU core
    Time: 10 minutes, estimated
    Score: test accuracy 92.5 % from scratch by 300 steps in place of its 1,500
    """
    return _other(mnist_classifier(), "mnist-sngan-classifier", SNGANClassifier(discriminator_width=32))


def mnist_vae_classifier() -> Config:
    """The mnist-classifier with the trunk of mnist-vae's encoder; transfer.source is a snapshot of it.

    Hardware: one CPU core
    Time: 2 minutes, estimated
    Score: 600 labels: test accuracy 93.4 % after an unlabelled mnist-vae, 91.9 % from scratch
    """
    return _other(mnist_classifier(), "mnist-vae-classifier", ConvVAEClassifier())


CLASSIFIERS = (
    digits_classifier,
    digits_dcgan_classifier,
    digits_vae_classifier,
    mnist_classifier,
    mnist_dcgan_classifier,
    mnist_sngan_classifier,
    mnist_vae_classifier,
    cifar10_resnet18,
    folder_resnet50,
)
