"""The experiment on generated images: its statistics, and all of it on the digits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from scipy import stats

from genray import augment, snapshot
from genray.augment import Arm, Experiment, compared, verdict
from genray.config import Config, Data, Optim, Train
from genray.data.mix import Mix, training_images
from genray.errors import ConfigError
from genray.models.dcgan import DCGAN
from genray.models.resnet import ResNetClassifier
from genray.objectives.classification import Classification


def arm(ratio: float, *values: float, fraction: float = 0.1) -> Arm:
    return Arm(fraction, ratio, {"accuracy": values, "recall": values})


def experiment(**changes: Any) -> Experiment:
    quick = Train(num_steps=3, global_batch_size=16, checkpoint_every=3, log_every=3, sample_every=0)
    classifier = Config(
        data=Data(name="digits"),
        model=ResNetClassifier(width=4, num_stages=2),
        objective=Classification(),
        optim=Optim(lr=1e-2),
        train=quick,
    )
    generator = tiny_config(
        model=DCGAN(latent_dim=8, width=8, conditional=True, generator_norm="none", discriminator_norm="none"),
        train=quick,
    )
    values: dict[str, Any] = {"ratios": (0.0, 1.0), "real_fractions": (0.1, 0.2), "seeds": 2}
    return Experiment(classifier=classifier, generator=generator, **(values | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Arm]]:
    storage = tmp_path_factory.mktemp("augment")
    return storage, augment.run(experiment(), str(storage))


def test_experiment_has_every_arm_with_every_seed(finished: tuple[Path, list[Arm]]) -> None:
    arms = finished[1]
    assert [(a.fraction, a.ratio) for a in arms] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert all(len(a.values[name]) == 2 for a in arms for name in ("accuracy", "recall"))


def test_generator_of_the_experiment_has_seen_the_share_of_the_real_images_alone(
    finished: tuple[Path, list[Arm]],
) -> None:
    for fraction in (0.1, 0.2):
        (place,) = (finished[0] / f"tiny-augment-{fraction:g}-generator-0" / "snapshots").iterdir()
        expected = training_images(Data(name="digits"), Mix(real_fraction=fraction))
        assert snapshot.load(place).data_digest == expected.digest


def test_experiment_called_again_trains_nothing_again(finished: tuple[Path, list[Arm]]) -> None:
    storage, arms = finished
    files = {path: path.stat().st_mtime_ns for path in storage.rglob("step-*")}
    assert augment.run(experiment(), str(storage)) == arms
    assert files == {path: path.stat().st_mtime_ns for path in storage.rglob("step-*")}


def test_report_has_a_row_for_every_arm_a_picture_and_the_verdict(
    finished: tuple[Path, list[Arm]], tmp_path: Path
) -> None:
    sentence = augment.write_report(tmp_path, finished[1])
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(sentence) and sum(line.startswith(("| 10%", "| 20%")) for line in text.splitlines()) == 4
    assert json.loads((tmp_path / "augment.json").read_text())["verdict"] == sentence
    assert (tmp_path / "augment.png").stat().st_size > 5000


def test_gain_is_that_of_the_paired_t_test_of_scipy() -> None:
    base, more = (0.80, 0.82, 0.81, 0.85), (0.83, 0.84, 0.84, 0.87)
    found = compared([arm(0, *base), arm(1, *more)])[1]
    test = stats.ttest_rel(more, base)
    low, high = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.gain - found.gain_error, found.gain + found.gain_error) == pytest.approx((low, high))


def test_p_is_corrected_for_the_number_of_arms() -> None:
    base = (0.80, 0.82, 0.81, 0.85)
    near, far = (0.81, 0.82, 0.83, 0.84), (0.83, 0.84, 0.84, 0.87)
    raw = [stats.ttest_rel(values, base).pvalue for values in (near, far)]
    found = compared([arm(0, *base), arm(1, *near), arm(2, *far)])
    assert found[2].p == pytest.approx(2 * raw[1])
    assert found[1].p == pytest.approx(max(raw[0], 2 * raw[1]))


@pytest.mark.parametrize(
    ("shift", "begins"),
    [
        (0.05, "Gain: with 10% of the real images, 1 generated for each bring +5.00%"),
        (-0.05, "No gain: no arm is better than real images alone, and with 10% of them 1"),
        (0.0, "No gain: no arm differs from real images alone by more than chance"),
    ],
)
def test_verdict_says_what_the_values_say(shift: float, begins: str) -> None:
    base = np.array([0.8, 0.82, 0.81, 0.83, 0.8])
    noise = np.array([1, -1, 2, -2, 0]) * 1e-3
    arms = compared([arm(0, *base), arm(1, *(base + shift + noise))])
    assert verdict(arms).startswith(begins)


def test_verdict_of_arms_that_are_equal_is_no_gain() -> None:
    assert verdict(compared([arm(0, 0.5, 0.6), arm(1, 0.5, 0.6)])).startswith("No gain: no arm differs")


def test_verdict_of_noise_is_rarely_a_gain() -> None:
    source = np.random.default_rng(0)
    trials = [compared([arm(r, *source.normal(0.9, 0.01, 5)) for r in (0, 0.5, 1, 2)]) for _ in range(200)]
    # 2.5 % at most, and 3 standard errors of 200 trials
    assert np.mean([verdict(arms).startswith("Gain") for arms in trials]) < 0.058


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": (0.5, 1.0)}, "must have 0, the baseline, and another"),
        ({"ratios": (0.0,)}, "must have 0, the baseline, and another"),
        ({"real_fractions": (0.0,)}, r"lie in \(0, 1\]"),
        ({"seeds": 1}, "seeds=1 must be at least 2: a single training has no spread"),
    ],
)
def test_experiment_without_a_comparison_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**changes)


def test_experiment_of_two_sizes_is_refused() -> None:
    whole = experiment()
    data = Data(name="digits", image_size=(16, 16))
    with pytest.raises(ConfigError, match=r"makes images \(1, 8, 8\), and the classifier takes \(1, 16, 16\)"):
        replace(whole, classifier=replace(whole.classifier, data=data))
