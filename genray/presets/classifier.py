"""Runs of classifiers."""

from genray.config import Config, Data, Optim, Run, Train
from genray.models.resnet import ResNetClassifier
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


CLASSIFIERS = (digits_classifier, mnist_classifier)
