"""A GAN of MNIST that was made to collapse, on Ray: the default rule stops it, and lets its healthy sibling run."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from genray import cli, mlflow_registry
from genray.checkpoint import SNAPSHOTS, FolderStore, best_step, step_name
from genray.health import watched
from genray.storage import RunFolder
from genray.tracking import read_journal

pytestmark = [
    pytest.mark.data,
    pytest.mark.mlflow,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
]

NUM_STEPS = 400
# mnist-dcgan, narrower, and scored on few images
QUICK = {
    "model.width": 16,
    "train.num-steps": NUM_STEPS,
    "train.global-batch-size": 32,
    "train.checkpoint-every": 50,
    "train.keep": 100,
    "train.sample-every": 0,
    "train.ema-half-life": 1000,
    "eval.num-samples": 500,
    "eval.num-seeds": 1,
    "eval.metrics": "kid",
}
# 50 times the preset's learning rate, no R1, no norms; by a warm-up, since a run that is dead from its first step
# has no good score that the others could be compared with
# it is stopped after some 500 steps; on a busy machine scores come late
SICK = {
    "train.num-steps": 8 * NUM_STEPS,
    "optim.lr": 0.05,
    "optim.warmup-samples": 8_000,
    "objective.gamma": 0,
    "model.generator-norm": "none",
    "model.discriminator-norm": "none",
}


def train(storage: Path, preset: str, fields: dict[str, object]) -> int:
    common = {"run.storage": storage, "tracking.uri": f"sqlite:///{storage / 'mlflow.db'}"}
    given = [part for name, value in (common | fields).items() for part in (f"--{name}", str(value))]
    return cli.train(
        [preset, *given, "--tracking.pictures"]
    )  # none: a score takes less time than the steps to the next


@pytest.fixture(scope="module")
def storage(tmp_path_factory, data_root):
    """A folder with a registry, and in it a classifier good enough to tell digits from noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRAY_DATA", str(data_root))
        patch.delenv("RAY_ADDRESS", raising=False)
        storage = tmp_path_factory.mktemp("collapse")
        quick = {"model.width": 16, "train.num-steps": 150, "train.checkpoint-every": 150, "cluster.num-workers": 0}
        quick["train.global-batch-size"] = 64
        assert train(storage, "mnist-classifier", quick) == 0
        yield storage


def findings(storage: Path, name: str) -> list[dict[str, object]]:
    entries = read_journal(storage / name / "journal" / "train.jsonl")[0]
    return [e for e in entries if e.get("event", "").startswith("health.")]


def test_gan_that_collapses_is_stopped_with_its_best_snapshot_registered(storage):
    assert train(storage, "mnist-dcgan", QUICK | SICK | {"run.name": "sick"}) == 3
    folder = RunFolder.open(str(storage), "sick")
    event = next(e for e in findings(storage, "sick") if e["event"] == "health.score")
    assert event["step"] < 8 * NUM_STEPS and event["fields"]["action"] == "stop"
    assert "5 scores in a row that are worse than the best" in event["fields"]["reason"]
    assert folder.names(SNAPSHOTS)[-1] == step_name(event["step"])
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"], "attributes.run_name = 'sick'")
    reason = f"health.score_rule at step {event['step']}: {event['fields']['reason']}"
    assert (run.info.status, run.data.tags["genray.stopped"]) == ("FINISHED", reason)
    best = best_step(folder)
    fids = {s.step: s.value for s in watched(FolderStore(folder).scores()) if s.metric == "fid"}
    assert fids[best] == min(fids.values()) < max(fids.values()) / 3
    version = client.get_model_version(
        "mnist-generator", str(mlflow_registry.resolve(uri, "mnist-generator@candidate").number)
    )
    assert (version.run_id, version.tags["genray.step"]) == (run.info.run_id, str(best))


def test_healthy_gan_of_the_same_length_is_not_stopped(storage):
    assert train(storage, "mnist-dcgan", QUICK | {"run.name": "well"}) == 0
    assert findings(storage, "well") == []
    scores = FolderStore(RunFolder.open(str(storage), "well")).scores()
    assert len(scores) == NUM_STEPS // QUICK["train.checkpoint-every"]
    (run,) = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").search_runs(["1"], "attributes.run_name = 'well'")
    assert run.data.tags["genray.stopped"] == "no"
