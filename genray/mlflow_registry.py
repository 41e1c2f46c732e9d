"""Snapshots in the MLflow registry: registered, named, and fetched safely.

One registered model a task, whatever the architecture. Aliases: `candidate` (registered last),
`champion` (the best under its protocol), `previous` (the champion before). MLflow keeps no checksums
and lets stored files be overwritten, so a version carries the digest of its snapshot's manifest as
the tag `genray.manifest_sha256`, and nothing is used that does not match it.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import FileInfo, LoggedModel, LoggedModelOutput, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from genray import snapshot
from genray.errors import CheckpointError, RegistryError, unknown
from genray.manifest import verify
from genray.mlflow_model import MODEL_FILES, SNAPSHOT_FILES, package
from genray.mlflow_store import connect, redact, reporting
from genray.snapshot import Snapshot

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
DIGEST_TAG, MODEL_ID_TAG = "genray.manifest_sha256", "genray.model_id"
MAX_MODEL_BYTES = 16 << 30
MAX_TEXT_BYTES = 1 << 20

_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<number>[1-9]\d*))")
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_FOLDER = "artifacts"


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: int
    model_id: str
    """Of the MLflow LoggedModel that holds the files."""
    run_id: str | None
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Digest that the snapshot had when it was registered."""
        return self.tags[DIGEST_TAG]

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


def parse_ref(reference: str) -> tuple[str, str | int]:
    """Name, and alias or version, of `NAME@ALIAS` or `NAME/VERSION`, with or without `models:/`.

    Raises:
        RegistryError: the text is neither.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise RegistryError(
            f"model {reference!r} must be written NAME@ALIAS or NAME/VERSION, "
            f"e.g. mnist-generator@champion or mnist-generator/3"
        )
    return found["name"], found["alias"] or int(found["number"])


def resolve(uri: str, reference: str) -> Version:
    """The version that `NAME@ALIAS` or `NAME/VERSION` stands for now.

    Raises:
        RegistryError: there is no such model, alias or version; names those that there are.
        TrackingError: the server does not answer.
    """
    name, which = parse_ref(reference)
    client = connect(uri)
    with reporting(uri):
        model = _registered_model(client, uri, name)
        if isinstance(which, str):
            if which not in model.aliases:
                raise RegistryError(_missing(f"alias of {name!r}", which, model.aliases))
            which = int(model.aliases[which])
        found = _versions(client, name)
        if which not in found:
            raise RegistryError(_missing(f"version of {name!r}", str(which), map(str, sorted(found))))
        return _as_version(found[which])


def register(uri: str, snapshot_dir: Path, *, run_id: str, task: str, tags: Mapping[str, str]) -> int:
    """Stores the snapshot as a model of the run, and gives it the alias `candidate` under the name `task`.

    The version carries what the run says of its origin (git, versions, data, Ray job), the snapshot's
    step, seed and digests, and `tags`. A snapshot that the run registered before keeps its version, and gets
    the new `tags`.

    Returns:
        The number of the version.

    Raises:
        CheckpointError: the snapshot is damaged.
        RegistryError: the snapshot is of another task.
        TrackingError: the server does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = package(snapshot_dir, Path(folder) / "model")
        if made.task != task:
            raise RegistryError(f"the snapshot at {snapshot_dir} is of task {made.task!r}, not {task!r}")
        client = connect(uri)
        with reporting(uri):
            _ensure_registered_model(client, task)
            number = _number_of(client, task, run_id, made.digest)
            if number is None:
                run = client.get_run(run_id)
                own = _origin(run) | _description(made) | dict(tags)
                model = _upload(client, run, made, Path(folder) / "model", own)
                own |= {MODEL_ID_TAG: model.model_id}
                # A database would look models:/ up in this process's global tracking address, a server in its own.
                source = f"models:/{model.model_id}" if uri.startswith("http") else model.artifact_location
                version = client.create_model_version(
                    task, source, run_id=run_id, tags=own, model_id=model.model_id, await_creation_for=0
                )
                number = int(version.version)
            else:
                for key, value in tags.items():
                    client.set_model_version_tag(task, str(number), key, value)
            client.set_registered_model_alias(task, CANDIDATE, str(number))
    return number


def pull(uri: str, reference: str, to: Path) -> Path:
    """Copies the snapshot of a registered model to `to`, and returns `to`.

    Only the three files of the snapshot are fetched; none is code, none is run or unpickled. They are
    readable by this user alone, and are all there or not at all. A folder `to` that already holds this
    very snapshot is left as it is.

    Raises:
        RegistryError: no such model; files that do not belong to a model of genray, are too large or
            differ from what was registered; or `to` holds something else.
        TrackingError: the server does not answer.
    """
    version = resolve(uri, reference)
    if to.exists():
        if _digest_at(to) == version.digest:
            return to
        raise RegistryError(f"{to} holds something else than {version}; choose another folder, or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))  # 0700, on the same disk as `to`
    try:
        with reporting(uri):
            address = _address(connect(uri), version)
            _check_listing(uri, address, version)
            for name in SNAPSHOT_FILES:
                _download(uri, address, version, name, beside)
        if (digest := _digest_at(beside)) != version.digest:
            raise RegistryError(
                f"{version} was changed after it was registered: its manifest has the SHA-256 {digest[:12]}…, "
                f"the tag {DIGEST_TAG} says {version.digest[:12]}…; do not use it"
            )
        beside.rename(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return to


def _registered_model(client: MlflowClient, uri: str, name: str) -> RegisteredModel:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        where = f"in the registry at tracking.uri={redact(uri)!r}"
        raise RegistryError(f"{_missing('model', name, names)} ({where})") from error


def _missing(kind: str, value: str, choices: Iterable[str]) -> str:
    names = list(choices)
    return unknown(kind, value, names) if names else f"unknown {kind} {value!r}; there is none yet"


def _versions(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    return {int(version.version): version for version in client.search_model_versions(f"name='{name}'")}


def with_alias(client: MlflowClient, name: str, alias: str) -> Version | None:
    """The version that has the alias now; None: no version has it."""
    try:
        return _as_version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _as_version(found: ModelVersion) -> Version:
    model_id = found.tags.get(MODEL_ID_TAG, "")
    if not _MODEL_ID.fullmatch(model_id) or DIGEST_TAG not in found.tags:
        raise RegistryError(
            f"{found.name}/{found.version} was not registered by genray: it lacks the tags {DIGEST_TAG} and "
            f"{MODEL_ID_TAG}; register the snapshot by genray"
        )
    return Version(found.name, int(found.version), model_id, found.run_id or None, dict(found.tags))


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _number_of(client: MlflowClient, name: str, run_id: str, digest: str) -> int | None:
    """The version as which this run registered this snapshot before."""
    found = _versions(client, name)
    return next((n for n, v in found.items() if v.run_id == run_id and v.tags.get(DIGEST_TAG) == digest), None)


def _origin(run: Run) -> dict[str, str]:
    """What the run's tags say of where it comes from, under names of our own."""
    tags = {key.replace("mlflow.source.git.", "genray.git."): value for key, value in run.data.tags.items()}
    return {k: v for k, v in tags.items() if re.match(r"genray\.(?!event\.|resumed\.)", k)}


def _description(made: Snapshot) -> dict[str, str]:
    config = json.dumps(made.config.to_dict(), sort_keys=True)
    return {
        DIGEST_TAG: made.digest,
        "genray.product": made.product,
        "genray.step": str(made.step),
        "genray.samples_seen": str(made.samples_seen),
        "genray.seed": str(made.config.train.seed),
        "genray.config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "genray.data.sha256": made.data_digest,
    }


def _upload(client: MlflowClient, run: Run, made: Snapshot, folder: Path, tags: Mapping[str, str]) -> LoggedModel:
    """A READY LoggedModel of the run with the files of `folder`."""
    model = client.create_logged_model(
        run.info.experiment_id, name=made.task, source_run_id=run.info.run_id, tags=dict(tags), model_type=made.product
    )
    try:
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, made.step)])
    return model


def _address(client: MlflowClient, version: Version) -> str:
    """Where the version's files are; `models:/` addresses would go by this process's global tracking address."""
    try:
        return str(client.get_logged_model(version.model_id).artifact_location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"the files of {version} were deleted; register the snapshot again") from error


def _check_listing(uri: str, address: str, version: Version) -> None:
    """Refuses a model that has other files than `register` stores, or files that are too large."""
    top, inside = _listing(uri, address), _listing(uri, f"{address}/{_FOLDER}")
    foreign = sorted(top.keys() - {*MODEL_FILES, _FOLDER})
    foreign += [f"{_FOLDER}/{name}" for name in sorted(inside.keys() - set(SNAPSHOT_FILES))]
    foreign += [name for name, file in (top | inside).items() if file.is_dir and name != _FOLDER]
    if foreign:
        raise RegistryError(
            f"{version} holds {', '.join(foreign)}, which genray did not register: somebody added it; do not use it"
        )
    for name in SNAPSHOT_FILES:
        if name not in inside:
            raise RegistryError(f"{version} lacks {_FOLDER}/{name}; register the snapshot again")
        _check_size(version, name, inside[name].file_size or 0)


def _listing(uri: str, address: str) -> dict[str, FileInfo]:
    found = mlflow.artifacts.list_artifacts(artifact_uri=address, tracking_uri=uri)
    return {Path(file.path).name: file for file in found}


def _download(uri: str, address: str, version: Version, name: str, to: Path) -> None:
    source = f"{address}/{_FOLDER}/{name}"
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f"{to.name}.") as folder:
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=uri))
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(Path(folder).resolve()):
            raise RegistryError(f"{version}: {_FOLDER}/{name} is not a plain file; do not use it")
        _check_size(version, name, path.stat().st_size)
        path.chmod(0o600)
        path.rename(to / name)


def _check_size(version: Version, name: str, size: int) -> None:
    most = MAX_MODEL_BYTES if name == snapshot.WEIGHTS else MAX_TEXT_BYTES
    if size > most:
        raise RegistryError(f"{version}: {_FOLDER}/{name} has {size} bytes, expected at most {most}; do not use it")


def _digest_at(directory: Path) -> str:
    try:
        return verify(directory, (snapshot.WEIGHTS, snapshot.CARD))
    except CheckpointError as error:
        raise RegistryError(f"{error}; do not use it") from error
