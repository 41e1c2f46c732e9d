"""Whether generated images make a classifier better: arms over seeds, paired tests, and a sentence that says so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from genray import distributed, snapshot
from genray.checkpoint import SNAPSHOTS
from genray.config import Config, Run, differences
from genray.data import generated
from genray.data.images import load_images
from genray.data.leaks import refuse_leak
from genray.data.mix import Mix, training_images
from genray.errors import ConfigError, DataError
from genray.evaluation.scoring import score_snapshot
from genray.storage import RunFolder
from genray.trainer import train

METRICS = ("accuracy", "recall")
SIGNIFICANCE = 0.05
RESULT = "result.json"


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

    def __post_init__(self) -> None:
        if 0 not in self.ratios or len(set(self.ratios)) < 2:
            raise ConfigError(f"ratios={self.ratios!r} must have 0, the baseline, and another, e.g. 0,0.5,1")
        if min(self.ratios) < 0 or not all(0 < f <= 1 for f in self.real_fractions) or not self.real_fractions:
            raise ConfigError(
                f"ratios={self.ratios!r} must be at least 0, and real fractions {self.real_fractions!r} lie in (0, 1]"
            )
        if self.seeds < 2:
            raise ConfigError(f"seeds={self.seeds!r} must be at least 2: a single training has no spread; 5 is usual")
        if self.classifier.objective.product != "classifier" or self.generator.objective.product == "classifier":
            raise ConfigError("the experiment trains a preset of a classifier on images of a preset of a generator")
        if self.classifier.data.image_shape != self.generator.data.image_shape:
            raise ConfigError(
                f"the generator makes images {self.generator.data.image_shape}, and the classifier takes "
                f"{self.classifier.data.image_shape} (C, H, W); choose presets of one size"
            )


@dataclass(frozen=True)
class Arm:
    """One ratio at one fraction, its values over seeds, and how they compare with those of ratio 0."""

    fraction: float
    ratio: float
    values: Mapping[str, tuple[float, ...]]
    """By metric, in the order of the seeds."""
    gain: float = 0.0
    """Mean difference of accuracy to the baseline, seed by seed."""
    gain_error: float = 0.0
    """Half the width of its 95 % interval (Student's t)."""
    p: float = 1.0
    """Of the paired t-test, after Holm's correction for all arms that are compared."""

    def interval(self, metric: str) -> tuple[float, float]:
        """Mean, and half the width of its 95 % interval."""
        return _interval(self.values[metric])


def run(experiment: Experiment, storage: str) -> list[Arm]:
    """Trains all that is not trained yet, and compares; the same call goes on after a kill.

    Raises:
        DataError: a generator has seen other images than its classifiers.
        ResumeError: the storage has another experiment under these names.
    """
    arms = []
    for fraction in experiment.real_fractions:
        source = _generated_for(experiment, fraction, storage)
        for ratio in experiment.ratios:
            mix = Mix(real_fraction=fraction, sources=(source,) if ratio else (), ratio=ratio)
            runs = [
                _trained(experiment.classifier, mix, f"{ratio:g}", seed, storage) for seed in range(experiment.seeds)
            ]
            arms.append(Arm(fraction, ratio, {name: tuple(found[name] for found in runs) for name in METRICS}))
    return compared(arms)


def compared(arms: Sequence[Arm]) -> list[Arm]:
    """`arms` with their gains over the baseline of their fraction, and Holm's corrected p (1979)."""
    base = {arm.fraction: np.array(arm.values["accuracy"]) for arm in arms if arm.ratio == 0}
    found, ps = [], []
    for arm in arms:
        change = np.array(arm.values["accuracy"]) - base[arm.fraction]
        if arm.ratio == 0:
            found.append(arm)
            continue
        gain, error = _interval(tuple(change))
        same = np.ptp(change) == 0  # the test divides by the spread
        ps.append(float(change[0] == 0) if same else float(stats.ttest_rel(change, np.zeros_like(change)).pvalue))
        found.append(replace(arm, gain=gain, gain_error=error))
    corrected = iter(_holm(ps))
    return [arm if arm.ratio == 0 else replace(arm, p=next(corrected)) for arm in found]


def verdict(arms: Sequence[Arm]) -> str:
    """One sentence: whether generated images changed the accuracy by more than chance, and where."""
    tested = [arm for arm in arms if arm.ratio > 0]
    better = [arm for arm in tested if arm.p < SIGNIFICANCE and arm.gain > 0]
    worse = [arm for arm in tested if arm.p < SIGNIFICANCE and arm.gain < 0]
    seeds = len(arms[0].values["accuracy"])
    if better:
        best = max(better, key=lambda arm: arm.gain)
        also = f"; {len(worse)} of {len(tested)} arms lose" if worse else ""
        return (
            f"Gain: with {best.fraction:.0%} of the real images, {best.ratio:g} generated for each bring "
            f"{best.gain:+.2%} ± {best.gain_error:.2%} accuracy (p = {best.p:.2g}, {seeds} seeds){also}."
        )
    if worse:
        worst = min(worse, key=lambda arm: arm.gain)
        return (
            f"No gain: no arm is better than real images alone, and with {worst.fraction:.0%} of them {worst.ratio:g} "
            f"generated for each cost {worst.gain:+.2%} ± {worst.gain_error:.2%} (p = {worst.p:.2g}, {seeds} seeds)."
        )
    best = max(tested, key=lambda arm: arm.gain)
    return (
        f"No gain: no arm differs from real images alone by more than chance; the largest difference is "
        f"{best.gain:+.2%} ± {best.gain_error:.2%} (p = {best.p:.2g}, {seeds} seeds)."
    )


def write_report(folder: Path, arms: Sequence[Arm]) -> str:
    """Puts `report.md`, `augment.json` and `augment.png` into `folder`; the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    sentence = verdict(arms)
    rows = ["| real images | generated for each | accuracy | macro recall | gain | p |", "| ---: " * 6 + "|"]
    for arm in arms:
        shares = " | ".join(f"{mean:.2%} ± {error:.2%}" for mean, error in map(arm.interval, METRICS))
        compared_to = f"{arm.gain:+.2%} ± {arm.gain_error:.2%} | {arm.p:.2g}" if arm.ratio else "baseline | "
        rows.append(f"| {arm.fraction:.0%} | {arm.ratio:g} | {shares} | {compared_to} |")
    note = (
        "± is half a 95 % interval of Student's t over seeds of training, on one draw of the real images and one "
        "generator; p of the paired t-test against the baseline, Holm-corrected over all arms."
    )
    (folder / "report.md").write_text("\n".join([sentence, "", *rows, "", note, ""]))
    values = [{**vars(arm), "values": dict(arm.values)} for arm in arms]
    (folder / "augment.json").write_text(json.dumps({"verdict": sentence, "arms": values}, indent=2) + "\n")
    _plot(arms).savefig(folder / "augment.png", dpi=110)
    return sentence


def _generated_for(experiment: Experiment, fraction: float, storage: str) -> str:
    """Folder of the images of a generator that was trained on this share of the real images and no other."""
    mix = Mix(real_fraction=fraction)
    config = _named(experiment.generator, mix, "generator", experiment.generator.train.seed, storage)
    real = training_images(experiment.classifier.data, mix)
    refuse_leak(real, load_images(experiment.classifier.data, experiment.classifier.eval.split))
    folder = RunFolder.open(storage, config.run.name)
    train(config, training_images(config.data, mix), folder, distributed.current(use_gpu=False))
    directory = folder.pull(f"{SNAPSHOTS}/{folder.names(SNAPSHOTS)[-1]}")
    made = snapshot.load(directory)
    if made.data_digest != real.digest:
        raise DataError(
            f"the generator of {config.run.name!r} was trained on other images ({made.data_digest[:12]}…) than the "
            f"classifiers have ({real.digest[:12]}…); give both presets the same data.*"
        )
    per_class = max(round(max(experiment.ratios) * int(n)) for n in np.bincount(real.labels.numpy()))
    request = generated.request_for(made, config.run.name, None, num=per_class * len(made.classes))
    place = folder.local / "generated"
    for index in generated.claim(place, request):
        generated.write_shard(place, request, made, index)
    generated.finish(place, request)
    return str(place)


def _trained(config: Config, mix: Mix, arm: str, seed: int, storage: str) -> dict[str, float]:
    """Scores of one training, by metric; taken once."""
    config = _named(config, mix, arm, seed, storage)
    folder = RunFolder.open(storage, config.run.name)
    path = folder.pull(RESULT)
    if path.is_file():
        known = json.loads(path.read_text())
        if not differences(Config.from_dict(known["config"]), config):
            return dict(known["scores"])
    train(config, training_images(config.data, mix), folder, distributed.current(use_gpu=False))
    directory = folder.pull(f"{SNAPSHOTS}/{folder.names(SNAPSHOTS)[-1]}")
    settings = replace(config.eval, metrics=METRICS)
    scores = score_snapshot(directory, data=config.data, settings=settings, extractor=None)
    found = {score.metric: score.value for score in scores}
    path.write_text(json.dumps({"config": config.to_dict(), "scores": found}, indent=2) + "\n")
    folder.push(RESULT)
    return found


def _named(config: Config, mix: Mix, arm: str, seed: int, storage: str) -> Config:
    name = f"{config.run.name}-augment-{mix.real_fraction:g}-{arm}-{seed}"
    return replace(config, run=Run(name=name, storage=storage), mix=mix, train=replace(config.train, seed=seed))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    error = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return float(np.mean(values)), error


def _holm(ps: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order of `ps`."""
    corrected: NDArray[np.float64] = np.empty(len(ps))
    highest = 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return [float(p) for p in corrected]


def _plot(arms: Sequence[Arm]) -> Figure:
    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    for fraction in dict.fromkeys(arm.fraction for arm in arms):
        own = sorted((arm for arm in arms if arm.fraction == fraction), key=lambda arm: arm.ratio)
        means, errors = zip(*(arm.interval("accuracy") for arm in own), strict=True)
        label = f"{fraction:.0%} of the real images"
        axes.errorbar([arm.ratio for arm in own], means, errors, marker="o", capsize=4, label=label)
    axes.set(xlabel="generated images for each real one", ylabel="accuracy, 95 % interval")
    axes.legend()
    axes.grid(alpha=0.25)
    return figure
