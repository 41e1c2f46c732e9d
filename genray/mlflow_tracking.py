"""The MLflow run of a training run: begun, resumed and ended by the driver, never by the training thread.

What happens in between arrives by the journal and the drain (`mlflow_drain`).
"""

import contextlib
import getpass
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from genray.errors import RegistryError, TrackingError
from genray.mlflow_store import connect, database, redact, reporting, resolve_uri
from genray.storage import RunFolder

__all__ = ["NOTE", "TrainingData", "bring", "end_run", "provenance_tags", "resolve_uri", "run_of", "start_run"]

NOTE = "mlflow.json"
COMMIT_VARIABLE = "GENRAY_GIT_COMMIT"
_PARAMS_A_BATCH = 100
_DIGEST_CHARACTERS = 36  # most that MLflow keeps of a data set's digest


@dataclass(frozen=True)
class TrainingData:
    """The images that a run is trained on."""

    name: str
    source: str
    """Path or URI that they were read from."""
    digest: str
    """SHA-256 of pixels and labels."""
    num_images: int


def start_run(
    uri: str,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: TrainingData | None = None,
    run_id: str | None = None,
) -> str:
    """Id of an MLflow run that is RUNNING: a new one, or `run_id` once more.

    Parameters are written once. A resumed run whose parameters differ (more workers, say) keeps the
    old ones, and has the new value in a tag `genray.resumed.PARAMETER`.

    Args:
        uri: what `resolve_uri` returned.
        experiment: made if it is missing. Its files lie beside a SQLite database, else where the server keeps them.
        name: of the run.
        params: by dotted name.
        config: JSON values, kept as the artifact `config.json`.
        tags: e.g. `provenance_tags()`.
        dataset: what the run is trained on.
        run_id: of the run to resume.

    Raises:
        TrackingError: the server does not answer, or the run or experiment was deleted.
    """
    client = connect(uri)
    with reporting(uri):
        run = _resume(client, uri, run_id) if run_id else _create(client, uri, experiment, name)
        run_id = str(run.info.run_id)
        changed = _log_params(client, run, params)
        own = {} if dataset is None else _log_dataset(client, run_id, dataset)
        values = {**tags, **own, **{f"genray.resumed.{key}": value for key, value in changed.items()}}
        set_tags(client, run_id, values)
        client.log_dict(run_id, dict(config), "config.json")
    return run_id


def run_of(folder: RunFolder, uri: str, **values: Any) -> str:
    """Id of the MLflow run of a folder, RUNNING: the one that is noted there, or a new one, noted from now on.

    Args:
        folder: of a run, a study or a trial.
        uri: what `resolve_uri` returned.
        values: as `start_run` takes them.

    Raises:
        TrackingError: as `start_run` does.
    """
    path = folder.pull(NOTE)
    known = json.loads(path.read_text())["run_id"] if path.is_file() else None
    run_id = start_run(uri, run_id=known, **values)
    folder.write(NOTE, json.dumps({"uri": redact(uri), "run_id": run_id}) + "\n")
    return run_id


def end_run(
    uri: str,
    run_id: str,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    tags: Mapping[str, str] = MappingProxyType({}),
    files: Iterable[Path] = (),
) -> None:
    """Closes the run with its last `tags` and `files`.

    FINISHED as planned, or by a health rule; FAILED by an error; KILLED by a signal or by somebody.
    """
    with reporting(uri):
        client = connect(uri)
        set_tags(client, run_id, tags)
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, status)


def bring(uri: str, run_id: str, name: str, to: Path) -> Path:
    """The file `name` of a run, in the folder `to`.

    Raises:
        RegistryError: the run has no such file.
        TrackingError: the server does not answer.
    """
    client = connect(uri)
    with reporting(uri):
        if name not in {file.path for file in client.list_artifacts(run_id)}:
            raise RegistryError(f"MLflow run {run_id} has no {name}; a run with train.sample_every has one at its end")
        return Path(client.download_artifacts(run_id, name, str(to)))


def provenance_tags() -> dict[str, str]:
    """What must be known to do it again: program, user, versions, git state of the current folder, Ray job.

    No arguments, environment or remote addresses, which may hold secrets.
    """
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "JOB" if "RAY_JOB_ID" in os.environ else "LOCAL",
        "genray.python.version": platform.python_version(),
    }
    with contextlib.suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    for package in ("genray", "torch", "ray", "mlflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tags["genray.version" if package == "genray" else f"genray.{package}.version"] = importlib.metadata.version(
                package
            )
    for variable in ("RAY_JOB_ID", "RAY_JOB_SUBMISSION_ID"):
        if value := os.environ.get(variable):
            tags[f"genray.{variable.lower().replace('_', '.', 1)}"] = value
    return tags | _git_tags()


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Writes all tags of a run in as few calls as MLflow allows."""
    found = [RunTag(key, str(value)) for key, value in tags.items()]
    for start in range(0, len(found), _PARAMS_A_BATCH):
        client.log_batch(run_id, tags=found[start : start + _PARAMS_A_BATCH], synchronous=True)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment `name`, made if it is missing; several processes may ask at once."""
    location = None
    if (path := database(uri)) is not None:
        # MLflow's own default is relative to wherever each process happens to stand.
        location = (path.parent / "mlartifacts" / re.sub(r"[^\w.-]+", "-", name)).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment={name!r} was deleted; choose another name, "
            f"or `mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    return str(found.experiment_id)


def _create(client: MlflowClient, uri: str, experiment: str, name: str) -> Run:
    return client.create_run(experiment_id(client, uri, experiment), run_name=name)


def _resume(client: MlflowClient, uri: str, run_id: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(
            f"MLflow run {run_id!r} is not at tracking.uri={redact(uri)!r}; "
            f"give the address that the run was begun with, or another run.name"
        ) from error
    if run.info.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow run {run_id!r} was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
        )
    client.update_run(run_id, status="RUNNING")
    return run


def _log_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> dict[str, str]:
    """Writes parameters that the run lacks; returns those that it has with another value."""
    present = run.data.params
    fresh = [Param(key, str(value)) for key, value in params.items() if key not in present]
    for start in range(0, len(fresh), _PARAMS_A_BATCH):
        client.log_batch(run.info.run_id, params=fresh[start : start + _PARAMS_A_BATCH], synchronous=True)
    return {key: str(value) for key, value in params.items() if present.get(key, str(value)) != str(value)}


def _log_dataset(client: MlflowClient, run_id: str, data: TrainingData) -> dict[str, str]:
    entity = Dataset(
        name=data.name,
        digest=data.digest[:_DIGEST_CHARACTERS],
        source_type="genray",
        source=json.dumps({"uri": data.source}),
        profile=json.dumps({"num_images": data.num_images}),
    )
    inputs = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        # MLflow looks for the data set, then writes it: another run of the experiment wrote the same in between
        client.log_inputs(run_id, inputs)
    return {"genray.data.name": data.name, "genray.data.sha256": data.digest}


def _git_tags() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:
        # a submitted job runs in a copy without .git: the submission may say what it is a copy of
        told = os.environ.get(COMMIT_VARIABLE)
        return {"mlflow.source.git.commit": told} if told else {}
    branch = _git("rev-parse", "--abbrev-ref", "HEAD") or "HEAD"
    dirty = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    tags = {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": dirty}
    return tags if branch == "HEAD" else tags | {"mlflow.source.git.branch": branch}


def _git(*arguments: str) -> str | None:
    """Output of `git`; None outside a checkout, or without git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
