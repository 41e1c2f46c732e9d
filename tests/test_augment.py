"""The experiment on generated images: its statistics, and all of it on the digits."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from made_experiments import done, experiment, training_of
from scipy import stats

from genray import augment_report, distributed, snapshot
from genray.augment import do
from genray.augment_report import Arm, compared, verdict
from genray.config import Config, Data, Optim, Run
from genray.data.images import load_images
from genray.data.mix import Mix, training_images
from genray.errors import ConfigError, DataError, DivergenceError, ResumeError
from genray.preemption import Stopped
from genray.storage import RunFolder
from genray.trainer import Outcome, train, train_here
from genray.transfer import Transfer


def arm(ratio: float, *values: float, fraction: float = 0.1) -> Arm:
    return Arm(fraction, ratio, {"accuracy": values, "recall": values})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Arm]]:
    storage = tmp_path_factory.mktemp("augment")
    made = experiment(storage)
    return storage, made.arms(done(made))


def test_experiment_has_every_arm_with_every_seed(finished: tuple[Path, list[Arm]]) -> None:
    arms = finished[1]
    assert [(a.fraction, a.ratio) for a in arms] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert all(len(a.values[name]) == 2 for a in arms for name in ("accuracy", "recall"))


def test_generator_of_the_experiment_has_seen_the_share_of_the_real_images_alone(
    finished: tuple[Path, list[Arm]],
) -> None:
    for fraction in (0.1, 0.2):
        (place,) = (finished[0] / f"made-augment-{fraction:g}-generator-0" / "snapshots").iterdir()
        expected = training_images(Data(name="digits"), Mix(real_fraction=fraction))
        assert snapshot.load(place).data_digest == expected.digest


def test_experiment_called_again_trains_nothing_again(finished: tuple[Path, list[Arm]]) -> None:
    storage, arms = finished
    files = {path: path.stat().st_mtime_ns for path in storage.rglob("step-*")}
    made = experiment(storage)
    assert made.arms(done(made)) == arms
    assert files == {path: path.stat().st_mtime_ns for path in storage.rglob("step-*")}


def test_each_generator_comes_before_the_classifiers_that_need_it_and_baselines_need_none() -> None:
    order = experiment().trainings()
    names = [training.name for training in order]
    assert len(names) == len(set(names)) == 2 * (1 + 2 * 2)
    for place, training in enumerate(order):
        assert (training.ratio is not None and training.ratio > 0) == bool(training.after)
        if training.after:
            assert training.after in names[:place]
            assert training.config.mix.sources == (f"runs/{training.after}/generated",)


def test_training_that_was_interrupted_ends_with_the_scores_of_one_that_was_not(
    finished: tuple[Path, list[Arm]], tmp_path: Path
) -> None:
    made = experiment(tmp_path)
    steps = replace(made.classifier.train, log_every=1)
    made = replace(made, classifier=replace(made.classifier, train=steps))
    baseline = training_of(made, "tiny-augment-0.2-0-1")
    with pytest.raises(Stopped):
        do(made, baseline, partial(train_here, asked=lambda: "stop"))
    assert not (tmp_path / baseline.name / "result.json").exists()
    arm = next(arm for arm in finished[1] if (arm.fraction, arm.ratio) == (0.2, 0))
    assert do(made, baseline).scores == {name: values[1] for name, values in arm.values.items()}


def test_generator_that_has_seen_other_images_than_its_classifiers_is_refused(tmp_path: Path) -> None:
    made = experiment(tmp_path)

    def fit_on_all(config: Config) -> Outcome:
        folder = RunFolder.open(config.run.storage, config.run.name)
        return train(config, load_images(config.data, "train"), folder, distributed.current(use_gpu=False))

    with pytest.raises(DataError, match=r"generator of 'made-augment-0\.1-generator-0' was trained on other images"):
        do(made, made.trainings()[0], fit_on_all)
    assert not (tmp_path / "made-augment-0.1-generator-0" / "generated").exists()


def test_generator_of_another_split_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    made = experiment(tmp_path)
    made.check_images()
    other = replace(made.generator, data=Data(name="digits", split_seed=1))
    with pytest.raises(DataError, match=r"generator would be trained on other images .* give both the same data\.\*"):
        replace(made, generator=other).check_images()
    assert not list(tmp_path.iterdir())


def test_experiment_on_a_split_that_leaks_is_refused_unless_told_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    whole = experiment(real_fractions=(1.0,))
    leaky = replace(whole.classifier, eval=replace(whole.classifier.eval, split="all"))
    with pytest.raises(DataError, match="1438 of 1797 images of split 'all' of 'digits' are in split 'train' too"):
        replace(whole, classifier=leaky).check_images()
    warned = replace(leaky, data=replace(leaky.data, on_leak="warn"))
    replace(whole, classifier=warned, generator=replace(whole.generator, data=warned.data)).check_images()
    assert "1438 of 1797 images" in caplog.text


def test_experiment_leaves_out_copies_and_says_how_many(tmp_path: Path) -> None:
    made = experiment(tmp_path, real_fractions=(0.1,), copy_quantile=0.5)
    generator = made.trainings()[0]
    assert do(made, generator).said == "300 images generated, left out 0 of 300 as copies of real ones"
    assert {t.config.mix.copy_quantile for t in made.trainings() if t.ratio} == {0.5}


def test_training_that_a_health_rule_stops_is_no_part_of_a_comparison(tmp_path: Path) -> None:
    made = experiment(tmp_path)

    def stopped(config: Config) -> Outcome:
        return replace(train_here(config), stopped="score rule: fid 900 above 1.5 times its best")

    with pytest.raises(DivergenceError, match=r"'made-augment-0\.1-generator-0' was stopped by score rule: fid 900"):
        do(made, made.trainings()[0], stopped)


def test_experiment_under_the_names_of_another_one_is_refused(finished: tuple[Path, list[Arm]]) -> None:
    made = experiment(finished[0])
    other = replace(made, classifier=replace(made.classifier, optim=Optim(lr=1e-3)))
    with pytest.raises(ResumeError, match=r"'tiny-augment-0\.1-0-0' exists with another .* optim\.lr: 0\.01 -> 0\.001"):
        do(other, training_of(other, "tiny-augment-0.1-0-0"))


def test_report_has_a_row_for_every_arm_a_picture_and_the_verdict(
    finished: tuple[Path, list[Arm]], tmp_path: Path
) -> None:
    sentence = augment_report.write_report(tmp_path, finished[1])
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
        ({"ratios": (0.0, 1.0, 1.0)}, r"ratios \(0\.0, 1\.0, 1\.0\) are not all different"),
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


def changed(section: str, value: Any) -> Config:
    generator = experiment().generator
    return replace(generator, **{section: value})


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (
            tiny_config(run=Run(name="made"), train=experiment().generator.train),
            "'made' is unconditional, and its images would be of no class",
        ),
        (
            changed("transfer", Transfer(source="/w")),
            r"transfer\.source='/w' of the generator may have seen images that",
        ),
        (changed("mix", Mix(real_fraction=0.5)), r"mix\.real_fraction of 'made' is set by the experiment itself"),
        (experiment().classifier, r"got a classifier \('tiny'\) and a classifier \('tiny'\)"),
    ],
)
def test_experiment_with_a_generator_that_does_not_fit_is_refused(generator: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(experiment(), generator=generator)
