"""The MLflow run of a training run, in a real SQLite store."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
from mlflow import MlflowClient
from mlflow_server import SERVICES, new_store

from genray import mlflow_store
from genray.errors import TrackingError
from genray.mlflow_store import database
from genray.mlflow_tracking import TrainingData, end_run, provenance_tags, resolve_uri, start_run

pytestmark = pytest.mark.mlflow
SHA256 = "ab" * 32


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_store(tmp_path_factory.mktemp("store")) as address:
        yield address


def start(uri: str, **changes: object) -> str:
    arguments: dict = {"experiment": "genray/digits", "name": "r", "params": {}, "config": {}, "tags": {}} | changes
    return start_run(uri, **arguments)


def test_uri_is_sqlite_beside_the_run_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, Path("/base")) == "sqlite:////base/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert resolve_uri(None, Path("/base")) == "http://host:5000"
    assert resolve_uri("sqlite:///a/b.db", Path("/base")) == "sqlite:////base/a/b.db"
    assert resolve_uri("sqlite:////c/d.db", Path("/base")) == "sqlite:////c/d.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlflow.db", "sqlite://", "sqlite:///:memory:"])
def test_uri_that_cannot_keep_runs_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri="):
        resolve_uri(uri, Path("/base"))


def test_secrets_of_a_uri_are_not_in_messages() -> None:
    with pytest.raises(TrackingError) as caught:
        start("http://alice:hunter2@127.0.0.1:9")
    assert "127.0.0.1:9" in str(caught.value) and "hunter2" not in str(caught.value)


def test_server_that_is_not_there_is_named_with_the_cure() -> None:
    with pytest.raises(TrackingError) as caught:
        start("http://127.0.0.1:9")
    assert str(caught.value) == (
        "tracking.uri='http://127.0.0.1:9': the MLflow server does not answer (connection refused); "
        "start one with `mlflow server`, or leave tracking.uri out for sqlite:///mlflow.db"
    )


def test_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "_PROBE_SECONDS", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(TrackingError, match=r"does not answer \(no answer in time\)"):
        start(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_run_has_parameters_tags_config_and_data(uri: str) -> None:
    params = {f"section.field_{i}": i for i in range(250)} | {"run.name": "", "data.flip": True}
    data = TrainingData("digits", "/data/digits", SHA256, 1437)
    run_id = start(uri, params=params, config={"a": [1, 2]}, tags={"genray.kind": "train"}, dataset=data)
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING" and run.info.run_name == "r"
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert run.data.tags["genray.kind"] == "train" and run.data.tags["genray.data.sha256"] == SHA256
    (logged,) = run.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("digits", SHA256[:36])
    assert json.loads(Path(client.download_artifacts(run_id, "config.json")).read_text()) == {"a": [1, 2]}


@pytest.mark.skipif(SERVICES, reason="about SQLite")
def test_files_of_a_sqlite_store_lie_beside_it_wherever_one_stands(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = start(uri, experiment="genray/elsewhere")
    folder = database(uri).parent
    assert (folder / "mlartifacts" / "genray-elsewhere" / run_id / "artifacts" / "config.json").is_file()
    assert list(tmp_path.iterdir()) == []


def test_resumed_run_goes_on_under_its_id_and_keeps_old_parameters(uri: str) -> None:
    run_id = start(uri, params={"train.num_steps": 10, "train.seed": 0})
    end_run(uri, run_id, "FAILED")
    again = start(uri, params={"train.num_steps": 20, "train.seed": 0, "new": 1}, run_id=run_id)
    run = MlflowClient(uri).get_run(run_id)
    assert again == run_id and run.info.status == "RUNNING"
    assert run.data.params == {"train.num_steps": "10", "train.seed": "0", "new": "1"}
    assert {k: v for k, v in run.data.tags.items() if "resumed" in k} == {"genray.resumed.train.num_steps": "20"}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_run_ends_with_its_status(uri: str, status: str) -> None:
    run_id = start(uri)
    end_run(uri, run_id, status)  # type: ignore[arg-type]
    assert MlflowClient(uri).get_run(run_id).info.status == status


def test_run_that_is_not_there_cannot_be_resumed(uri: str) -> None:
    with pytest.raises(TrackingError, match=rf"MLflow run 'f00' is not at tracking\.uri='{uri}"):
        start(uri, run_id="f00")


def test_deleted_run_and_experiment_are_named_with_the_cure(uri: str) -> None:
    run_id = start(uri, experiment="genray/deleted")
    client = MlflowClient(uri)
    client.delete_run(run_id)
    with pytest.raises(TrackingError, match="mlflow runs restore"):
        start(uri, run_id=run_id)
    client.delete_experiment(client.get_experiment_by_name("genray/deleted").experiment_id)
    with pytest.raises(TrackingError, match=r"tracking\.experiment='genray/deleted' was deleted.*restore"):
        start(uri, experiment="genray/deleted")


@pytest.mark.slow
def test_new_store_and_experiment_survive_processes_that_begin_at_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from genray.mlflow_tracking import start_run, resolve_uri; "
        f"uri = resolve_uri('sqlite:///new.db', Path({str(tmp_path)!r})); "
        "print(start_run(uri, experiment='e', name='n', params={'a': 1}, config={}, tags={}))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    run_ids = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4 and len(run_ids) == 4


def test_runs_that_begin_at_once_share_the_record_of_their_data(uri: str) -> None:
    start(uri, experiment="genray/at-once")
    ready = threading.Barrier(8)

    def begin(number: int) -> str:
        data = TrainingData(f"set-{number // 8}", "/data/digits", SHA256, 1437)
        ready.wait(60)
        return start(uri, experiment="genray/at-once", dataset=data)

    with ThreadPoolExecutor(8) as threads:
        run_ids = list(threads.map(begin, range(32)))
    client = MlflowClient(uri)
    inputs = [client.get_run(run_id).inputs.dataset_inputs for run_id in run_ids]
    assert [[each.dataset.name for each in one] for one in inputs] == [[f"set-{n // 8}"] for n in range(32)]


def test_provenance_names_versions_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_ID", "0a000000")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not any("git" in key for key in provenance_tags())
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "init", "-q", "-b", "trunk"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
    tags = provenance_tags()
    assert len(tags["mlflow.source.git.commit"]) == 40 and tags["mlflow.source.git.branch"] == "trunk"
    assert tags["mlflow.source.git.dirty"] == "false" and tags["genray.ray.job_id"] == "0a000000"
    assert {"genray.torch.version", "genray.mlflow.version", "mlflow.source.name"} <= set(tags)
    (tmp_path / "a").write_text("2")
    assert provenance_tags()["mlflow.source.git.dirty"] == "true"


def test_provenance_holds_no_arguments_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/someone/train.py", "--token=hunter2"])
    monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", "hunter3")
    text = json.dumps(provenance_tags())
    assert "hunter" not in text and "/home" not in text


def test_provenance_outside_a_checkout_takes_the_commit_that_the_submission_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENRAY_GIT_COMMIT", "c0ffee")
    assert provenance_tags()["mlflow.source.git.commit"] == "c0ffee"
