"""Experiments on generated images that take a second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import tiny_config

from genray.augment import Experiment, Training, do
from genray.config import Cluster, Config, Data, Optim, Run, Train
from genray.models.dcgan import DCGAN
from genray.models.resnet import ResNetClassifier
from genray.objectives.classification import Classification


def experiment(storage: Path | str = "runs", **changes: Any) -> Experiment:
    quick = Train(num_steps=3, global_batch_size=16, checkpoint_every=3, log_every=3, sample_every=0)
    classifier = Config(
        run=Run(name="tiny", storage=str(storage)),
        data=Data(name="digits"),
        model=ResNetClassifier(width=4, num_stages=2),
        objective=Classification(),
        optim=Optim(lr=1e-2),
        train=quick,
        cluster=Cluster(num_workers=0),
    )
    generator = tiny_config(
        run=Run(name="made"),
        model=DCGAN(latent_dim=8, width=8, conditional=True, generator_norm="none", discriminator_norm="none"),
        train=quick,
    )
    values: dict[str, Any] = {"ratios": (0.0, 1.0), "real_fractions": (0.1, 0.2), "seeds": 2}
    return Experiment(**({"classifier": classifier, "generator": generator} | values | changes))


def done(made: Experiment) -> Mapping[str, Mapping[str, float]]:
    """Scores of all trainings, one after another in this process."""
    return {training.name: do(made, training).scores for training in made.trainings()}


def training_of(made: Experiment, name: str) -> Training:
    return next(training for training in made.trainings() if training.name == name)
