"""Whether generated images make a classifier better: which generators and classifiers are trained, and on what."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genray import snapshot
from genray.augment_report import METRICS, Arm, compared
from genray.checkpoint import SNAPSHOTS
from genray.config import Config, Run
from genray.data import generated
from genray.data.images import ImageSet, load_images
from genray.data.leaks import heed_leak
from genray.data.mix import SPARE, Mix, training_images
from genray.errors import ConfigError, DataError, DivergenceError
from genray.evaluation.scoring import logged, score_snapshot
from genray.storage import RunFolder
from genray.tracking import JsonlTracker
from genray.trainer import Outcome, check_same_run, train_here

RESULT, GENERATED = "result.json", "generated"

Fit = Callable[[Config], Outcome]
"""Trains a config in its folder, from where it was left."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One generator or classifier of an experiment."""

    config: Config
    fraction: float
    ratio: float | None = None
    """Generated images for each real one that a classifier is trained on; None: a generator."""
    after: str = ""
    """Of a classifier: name of the run that makes its images."""

    @property
    def name(self) -> str:
        """Of its run."""
        return self.config.run.name


@dataclass(frozen=True)
class Done:
    """What came of a training."""

    scores: Mapping[str, float]
    """Of a classifier, by metric."""
    said: str = ""
    """Of a generator, what it has made."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared."""

    classifier: Config
    generator: Config
    """Trained on the same share of the real images as the classifiers that its images are for."""
    ratios: tuple[float, ...]
    """Generated images for each real one; 0, the baseline, is among them."""
    real_fractions: tuple[float, ...]
    seeds: int
    """Trainings of each arm, with `train.seed` 0, 1, …; all arms of a fraction have the same images."""
    copy_quantile: float = 0.0
    """`mix.copy_quantile` of the classifiers."""

    def __post_init__(self) -> None:
        if 0 not in self.ratios or len(set(self.ratios)) < 2:
            raise ConfigError(f"ratios={self.ratios!r} must have 0, the baseline, and another, e.g. 0,0.5,1")
        if min(self.ratios) < 0 or not all(0 < f <= 1 for f in self.real_fractions) or not self.real_fractions:
            raise ConfigError(
                f"ratios={self.ratios!r} must be at least 0, and real fractions {self.real_fractions!r} lie in (0, 1]"
            )
        for name, values in (("ratios", self.ratios), ("real fractions", self.real_fractions)):
            if len({f"{value:g}" for value in values}) < len(values):
                raise ConfigError(f"{name} {values!r} are not all different in six digits; name each once")
        if self.seeds < 2:
            raise ConfigError(f"seeds={self.seeds!r} must be at least 2: a single training has no spread; 5 is usual")
        self._check_presets()
        self.trainings()  # their configs are checked, too

    def _check_presets(self) -> None:
        classifier, generator = self.classifier, self.generator
        if classifier.objective.product != "classifier" or generator.objective.product not in ("generator", "vae"):
            raise ConfigError(
                "the experiment trains a preset of a classifier on images of a preset of a generator or VAE, and got "
                f"a {classifier.objective.product} ({classifier.run.name!r}) and a {generator.objective.product} "
                f"({generator.run.name!r})"
            )
        if not getattr(generator.model, "conditional", False):
            raise ConfigError(
                f"the generator {generator.run.name!r} is unconditional, and its images would be of no class; choose "
                "a preset whose model.conditional is True"
            )
        if classifier.data.image_shape != generator.data.image_shape:
            raise ConfigError(
                f"the generator makes images {generator.data.image_shape}, and the classifier takes "
                f"{classifier.data.image_shape} (C, H, W); choose presets of one size"
            )
        if generator.transfer.source:
            raise ConfigError(
                f"transfer.source={generator.transfer.source!r} of the generator may have seen images that the "
                "classifiers have not; leave it out"
            )
        for config, free in ((classifier, ("seed",)), (generator, ())):
            given = [k for k, v in vars(config.mix).items() if k not in free and v != getattr(Mix(), k)]
            if given:
                raise ConfigError(
                    f"mix.{given[0]} of {config.run.name!r} is set by the experiment itself; leave it out"
                )

    @property
    def name(self) -> str:
        """Of its folder, and of its run in MLflow."""
        return f"{self.classifier.run.name}-augment"

    def trainings(self) -> list[Training]:
        """All of them, each generator before the classifiers that need it."""
        found = []
        for fraction in self.real_fractions:
            generator = self._named(self.generator, self._mix(fraction), "generator", self.generator.train.seed)
            found.append(Training(config=generator, fraction=fraction))
            for ratio in self.ratios:
                made = f"{self.classifier.run.storage}/{generator.run.name}/{GENERATED}"
                mix = self._mix(fraction)
                if ratio:
                    mix = replace(mix, sources=(made,), ratio=ratio, copy_quantile=self.copy_quantile)
                after = generator.run.name if ratio else ""
                found += [
                    Training(
                        config=self._named(self.classifier, replace(mix, ratio=ratio), f"{ratio:g}", seed),
                        fraction=fraction,
                        ratio=ratio,
                        after=after,
                    )
                    for seed in range(self.seeds)
                ]
        return found

    def arms(self, scores: Mapping[str, Mapping[str, float]]) -> list[Arm]:
        """The arms, compared; `scores` are those of all classifiers, by name of run and metric."""
        trainings, arms = self.trainings(), []
        for fraction in self.real_fractions:
            for ratio in self.ratios:
                own = [scores[t.name] for t in trainings if (t.fraction, t.ratio) == (fraction, ratio)]
                arms.append(Arm(fraction, ratio, {name: tuple(found[name] for found in own) for name in METRICS}))
        return compared(arms)

    def check_images(self) -> None:
        """Makes sure, before anything is trained, that the images go together.

        Raises:
            DataError: training images are in the test split too, or the generator would be trained on others.
        """
        test = load_images(self.classifier.data, self.classifier.eval.split)
        for fraction in self.real_fractions:
            real = self.real_images(fraction)
            heed_leak(self.classifier.data, real, test)
            _refuse_foreign(real, training_images(self.generator.data, self._mix(fraction)).digest)

    def real_images(self, fraction: float) -> ImageSet:
        """The share of the real images that all trainings of `fraction` have."""
        return training_images(self.classifier.data, self._mix(fraction))

    def _mix(self, fraction: float) -> Mix:
        return Mix(real_fraction=fraction, seed=self.classifier.mix.seed)

    def _named(self, config: Config, mix: Mix, arm: str, seed: int) -> Config:
        name = f"{config.run.name}-augment-{mix.real_fraction:g}-{arm}-{seed}"
        train = replace(config.train, seed=seed)
        run = Run(name=name, storage=self.classifier.run.storage)
        return replace(config, run=run, mix=mix, train=train, cluster=self.classifier.cluster)


def do(experiment: Experiment, training: Training, fit: Fit = train_here) -> Done:
    """Does one training, or what is left of it: a generator makes its images, a classifier is scored.

    Raises:
        DataError: a generator has seen other images than its classifiers, or makes too few that are no copies.
        ResumeError: the storage has another experiment under these names.
        DivergenceError: a health rule has stopped the training.
    """
    return _generate(experiment, training, fit) if training.ratio is None else _score(training.config, fit)


def _generate(experiment: Experiment, training: Training, fit: Fit) -> Done:
    """Trains a generator on its share of the real images and no other, and writes the images of the classifiers."""
    config, real = training.config, experiment.real_images(training.fraction)
    folder, directory = _trained(config, fit)
    made = snapshot.load(directory)
    _refuse_foreign(real, made.data_digest, config.run.name)
    per_class = max(round(max(experiment.ratios) * int(n)) for n in np.bincount(real.labels.numpy()))
    num = per_class * len(made.classes) * (SPARE if experiment.copy_quantile else 1)
    request = generated.request_for(made, config.run.name, None, num=num)
    place = folder.pull(GENERATED)
    for index in generated.claim(place, request):
        generated.write_shard(place, request, made, index)
    generated.finish(place, request)
    folder.push(GENERATED)
    # too few of a class is better known before the classifiers are trained
    mix = next(
        t.config.mix for t in experiment.trainings() if t.after == training.name and t.ratio == max(experiment.ratios)
    )
    left_out = training_images(experiment.classifier.data, mix).left_out
    return Done({}, f"{num} images generated" + (f", left out {left_out}" if left_out else ""))


def _score(config: Config, fit: Fit) -> Done:
    """Scores of one classifier, by metric; taken once."""
    path = RunFolder.open(config.run.storage, config.run.name).pull(RESULT)
    if path.is_file():
        known = json.loads(path.read_text())
        before = Config.from_dict(known["config"])
        check_same_run(before, config)
        if (before.train.num_steps, before.eval.split) == (config.train.num_steps, config.eval.split):
            return Done(known["scores"])
    folder, directory = _trained(config, fit)
    scores = score_snapshot(directory, data=config.data, settings=replace(config.eval, metrics=METRICS), extractor=None)
    tracker = JsonlTracker(folder.pull_journal("eval"), "eval")
    tracker.metrics(config.train.num_steps, logged(scores))
    tracker.close()
    folder.push_journal("eval")
    found = {score.metric: score.value for score in scores}
    folder.write(RESULT, json.dumps({"config": config.to_dict(), "scores": found}, indent=2) + "\n")
    return Done(found)


def _trained(config: Config, fit: Fit) -> tuple[RunFolder, Path]:
    """The folder of a run that is trained to its end, and its last snapshot."""
    outcome = fit(config)
    if outcome.stopped:
        raise DivergenceError(
            f"run {config.run.name!r} was stopped by {outcome.stopped}, and a comparison needs all its steps; train it "
            "with other values, or switch the rule to warn"
        )
    folder = RunFolder.open(config.run.storage, config.run.name)
    return folder, folder.pull(f"{SNAPSHOTS}/{folder.names(SNAPSHOTS)[-1]}")


def _refuse_foreign(real: ImageSet, digest: str, name: str = "") -> None:
    if digest != real.digest:
        who = f"of {name!r} was" if name else "would be"
        raise DataError(
            f"the generator {who} trained on other images ({digest[:12]}…) than the classifiers have "
            f"({real.digest[:12]}…); give both the same data.*, on every node"
        )
