"""An experiment from end to end: on Ray and in this process, in MLflow, and when a training fails."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import ray
from made_experiments import done, experiment
from mlflow import MlflowClient
from mlflow.entities import Run

from genray import cli_augment, ray_augment
from genray.augment import Experiment
from genray.config import Cluster, Tracking
from genray.errors import ClusterError, ConfigError, GenrayError
from genray.mlflow_augment import Record
from genray.ray_augment import State

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where MLflow's database is; no Ray is found there, and none is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        yield tmp_path_factory.mktemp("experiments")
    ray.shutdown()


def recorded(place: Path, name: str, num_workers: int) -> Experiment:
    made = experiment(place / name, real_fractions=(0.1,))
    own = replace(
        made.classifier,
        cluster=Cluster(num_workers=num_workers),
        tracking=Tracking(uri=f"sqlite:///{place}/mlflow.db", experiment=name),
    )
    return replace(made, classifier=own)


def runs_of(place: Path, name: str) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    found = client.get_experiment_by_name(name)
    assert found is not None
    return {str(run.info.run_name): run for run in client.search_runs([found.experiment_id])}


@pytest.fixture(scope="module")
def on_ray(place: Path) -> Experiment:
    """An experiment that has run on Ray."""
    made = recorded(place, "on_ray", num_workers=1)
    ray_augment.run(made, place / "on_ray" / "out")
    return made


def test_experiment_on_ray_finds_the_numbers_of_one_process(on_ray: Experiment, place: Path) -> None:
    found = json.loads((place / "on_ray" / "out" / "augment.json").read_text())
    alone = recorded(place, "alone", num_workers=0)
    arms = [vars(arm) for arm in alone.arms(done(alone))]
    assert found["arms"] == json.loads(json.dumps(arms))


def test_every_training_is_a_run_below_that_of_the_experiment(on_ray: Experiment, place: Path) -> None:
    runs = runs_of(place, "on_ray")
    parent = runs.pop("tiny-augment")
    assert set(runs) == {training.name for training in on_ray.trainings()}
    for name, run in runs.items():
        assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
        if name.startswith("tiny"):
            scores = json.loads((place / "on_ray" / name / "result.json").read_text())["scores"]
            assert {key: run.data.metrics[f"eval/{key}"] for key in scores} == scores
            assert "classifier/loss" in run.data.metrics
        else:
            assert "generator/loss" in run.data.metrics


def test_run_of_the_experiment_has_its_report(on_ray: Experiment, place: Path) -> None:
    parent = runs_of(place, "on_ray")["tiny-augment"]
    files = MlflowClient(f"sqlite:///{place}/mlflow.db").list_artifacts(parent.info.run_id)
    assert {"report.md", "augment.json", "augment.png"} <= {file.path for file in files}
    report = (place / "on_ray" / "out" / "report.md").read_text()
    assert parent.info.status == "FINISHED" and parent.data.tags["mlflow.note.content"] == report
    assert report.startswith(parent.data.tags["genray.augment.verdict"])
    arms = json.loads((place / "on_ray" / "out" / "augment.json").read_text())["arms"]
    assert parent.data.metrics["gain/real_0.1/ratio_1"] == arms[1]["gain"]


def test_training_that_mlflow_has_already_is_looked_at_again_and_left_as_it_is(on_ray: Experiment, place: Path) -> None:
    record = Record(on_ray, f"sqlite:///{place}/mlflow.db")
    training = on_ray.trainings()[0]
    record.begin(training)
    assert record.deliver() == 0
    record.end(training, "FAILED", "again")
    assert record.close("FINISHED", 1) == 0
    run = runs_of(place, "on_ray")[training.name]
    assert (run.info.status, run.data.tags["genray.augment.said"]) == ("FINISHED", "150 images generated")


def test_training_that_fails_is_named_after_the_others_are_done_and_the_same_call_does_it_again(place: Path) -> None:
    made = recorded(place, "failing", num_workers=0)
    bad, out = place / "failing" / "tiny-augment-0.1-1-0", place / "failing" / "out"
    bad.mkdir(parents=True)
    other = replace(made.classifier, optim=replace(made.classifier.optim, lr=1.0))
    (bad / "result.json").write_text(json.dumps({"config": other.to_dict(), "scores": {}}))
    with pytest.raises(
        GenrayError, match=r"1 trainings .* failed, .*: tiny-augment-0\.1-1-0: run\.name=.* optim\.lr: 1\.0"
    ):
        ray_augment.run(made, out)
    runs = runs_of(place, "failing")
    failed = {name for name, run in runs.items() if run.info.status == "FAILED"}
    assert failed == {bad.name, "tiny-augment"} and len(runs) == 6
    assert {run.info.status for name, run in runs.items() if name not in failed} == {"FINISHED"}
    assert not out.exists()

    (bad / "result.json").unlink()
    kept = (bad.with_name("tiny-augment-0.1-1-1") / "result.json").stat().st_mtime_ns
    ray_augment.run(made, out)
    assert (bad.with_name("tiny-augment-0.1-1-1") / "result.json").stat().st_mtime_ns == kept
    assert (out / "report.md").is_file()
    assert {run.info.status for run in runs_of(place, "failing").values()} == {"FINISHED"}


def test_experiment_whose_ray_does_not_start_says_why_and_is_a_failed_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/ray")
    with pytest.raises(ClusterError, match=r"^Ray could not be started on this machine: .*Not a directory"):
        ray_augment.run(recorded(place, "no_ray", num_workers=1), place / "no_ray" / "out")
    assert {name: run.info.status for name, run in runs_of(place, "no_ray").items()} == {"tiny-augment": "FAILED"}


def test_classifiers_of_a_generator_that_failed_are_not_begun_and_baselines_are() -> None:
    state = State(experiment(real_fractions=(0.1,)).trainings())
    generator = state.next()
    assert generator is not None and generator.ratio is None
    begun = [state.next(), state.next(), state.next()]
    assert [t.ratio for t in begun if t] == [0.0, 0.0]
    state.failures[generator.name] = "it diverged"
    assert state.next() is None and not state.waiting


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    cli_augment.augment(["digits-classifier", *args, "--dry-run"], "augment")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_fields_of_generator_and_classifier_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--optim.lr", "1e-3", "--generator.optim.lr", "1e-4", "--generator.optim.betas", "0.1", "0.2"]
    plan = planned(capsys, *args, "--generator-steps", "7", "--train.num-steps", "9", "--mix.ratios", "0,1")
    classifier, generator = (plan[name]["config"] for name in ("classifier", "generator"))
    assert (classifier["optim"]["lr"], classifier["train"]["num_steps"]) == (1e-3, 9)
    assert (generator["optim"]["lr"], generator["optim"]["betas"], generator["train"]["num_steps"]) == (
        1e-4,
        [0.1, 0.2],
        7,
    )
    assert len(plan["trainings"]) == 3 * (1 + 2 * 5) and generator["run"]["name"] == "digits-dcgan"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mix.ratios", "0,x"], r"--mix\.ratios='0,x' must be numbers with commas"),
        (["--generator", "digits-vae"], "'digits-vae' is unconditional"),
        (["--generator.optim.ls", "1"], r"unknown field 'optim\.ls'"),
        (["--mix.copy-quantile", "2"], r"mix\.copy_quantile=2\.0 must lie in \[0, 1\)"),
    ],
)
def test_command_refuses_what_cannot_be_compared(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(capsys, *args)
