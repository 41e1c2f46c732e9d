"""A study's runs in MLflow while its trials write: every point once, every end with its reason."""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
from made_studies import settings_of
from mlflow import MlflowClient
from mlflow_server import Server, new_server

from genray.mlflow_study import StudyDrain
from genray.study import Study
from genray.tracking import JsonlTracker

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]

NUM_TRIALS, NUM_POINTS = 64, 40
ENDS = {
    "finished": ("FINISHED", "all steps are done"),
    "pruned": ("KILLED", "by asha at step 20"),
    "stopped": ("FINISHED", "score rule: fid 900 above 1.5 times its best"),
    "failed": ("FAILED", "its process died"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = new_server(tmp_path / "server")
    made.start()
    yield made
    made.kill()


def status_of(number: int) -> str:
    return list(ENDS)[number % len(ENDS)]


def train(study: Study, number: int) -> None:
    """What the process of a trial writes."""
    tracker = JsonlTracker(study.trial_folder(number).local / "journal", "train")
    for step in range(NUM_POINTS):
        tracker.metrics(step, {"vae/loss": number + step / 7, "vae/elbo": math.nan if step == 3 else -float(step)})
        time.sleep(0.05)
    tracker.close()


def test_sixty_four_trials_that_write_at_once_lose_nothing_though_the_server_dies(
    server: Server, tmp_path: Path
) -> None:
    study = Study.claim(settings_of(tmp_path, num_trials=NUM_TRIALS))
    for number in range(NUM_TRIALS):
        study.note(number, "started", phase="race", values={"optim.lr": 1e-3})
    drain = StudyDrain(study, server.uri, interval=0.2)
    drain.start()
    trials = [threading.Thread(target=train, args=(study, number)) for number in range(NUM_TRIALS)]
    for trial in trials:
        trial.start()
    server.kill()  # while all of them write
    for number, trial in enumerate(trials):
        trial.join()
        _, reason = ENDS[status_of(number)]
        study.note(number, status_of(number), reason="" if status_of(number) == "finished" else reason)
    server.start()
    assert drain.finish(120) == 0

    client = MlflowClient(server.uri)
    for number in range(NUM_TRIALS):
        run = client.get_run(drain.child(number))
        losses = client.get_metric_history(run.info.run_id, "vae/loss")
        assert sorted((m.step, m.value) for m in losses) == [(s, number + s / 7) for s in range(NUM_POINTS)]
        assert len(client.get_metric_history(run.info.run_id, "vae/elbo")) == NUM_POINTS
        status, reason = ENDS[status_of(number)]
        assert (run.info.status, run.data.tags["genray.trial.reason"]) == (status, reason)
        assert run.data.tags["mlflow.parentRunId"] == drain.run_id
    children = client.search_runs([run.info.experiment_id], "tags.`genray.kind` = 'trial'", max_results=1000)
    assert len(children) == NUM_TRIALS
