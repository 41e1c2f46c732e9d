"""Models in a real registry: found by name, fetched only when they are what was registered."""

import json
import os
import pickle
import re
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import evaluation_snapshots as snapshots
from mlflow import MlflowClient
from mlflow_server import Server, new_server, new_store

from genray import mlflow_registry, snapshot
from genray.errors import RegistryError
from genray.mlflow_registry import parse_ref, pull, register, resolve
from genray.mlflow_tracking import provenance_tags, resolve_uri, start_run
from genray.sampling import sample

pytestmark = pytest.mark.mlflow
TASK = "digits-generator"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_store(tmp_path_factory.mktemp("my store")) as address:
        yield address


@pytest.fixture(scope="module")
def run_id(uri: str) -> str:
    return start(uri)


def start(uri: str) -> str:
    tags = provenance_tags() | {"genray.ray.job_id": "0a"}
    return start_run(uri, experiment="genray/registry", name="r", params={}, config={}, tags=tags)


@pytest.fixture
def version(uri: str, run_id: str, tmp_path: Path) -> tuple[int, Path, Path]:
    """Number of a version of its own, its snapshot, and its files in the store."""
    seed = int.from_bytes(os.urandom(4), "big")
    directory = snapshots.save_generator(tmp_path / "snapshot", seed=seed)
    number = register(uri, directory, run_id=run_id, task=TASK, tags={"genray.run": "r"})
    client = MlflowClient(uri)
    model = client.get_logged_model(resolve(uri, f"{TASK}/{number}").model_id)
    return number, directory, Path(urllib.request.url2pathname(model.artifact_location.removeprefix("file://")))


def in_a_folder(version: tuple[int, Path, Path]) -> Path:
    """The files of a version, to be tampered with; the test is skipped where they are behind a server."""
    if not version[2].is_dir():
        pytest.skip("tampers with files of the store, which are in S3")
    return version[2]


def test_version_carries_what_is_needed_to_do_it_again(uri: str, version: tuple[int, Path, Path]) -> None:
    number, directory, _ = version
    found = resolve(uri, f"{TASK}@candidate")
    assert found.number == number and found.digest == snapshot.load(directory).digest
    wanted = {"genray.run": "r", "genray.step": "1", "genray.seed": "0", "genray.data.sha256": "0" * 64}
    wanted |= {"genray.ray.job_id": "0a", "genray.product": "generator", "genray.model_id": found.model_id}
    assert wanted.items() <= found.tags.items()
    assert {"genray.torch.version", "genray.config_sha256", "genray.git.commit"} <= set(found.tags)


def test_model_belongs_to_its_run(uri: str, run_id: str, version: tuple[int, Path, Path]) -> None:
    model = MlflowClient(uri).get_logged_model(resolve(uri, f"{TASK}/{version[0]}").model_id)
    assert (model.source_run_id, str(model.status), model.model_type) == (
        run_id,
        "READY",
        "generator",
    )
    outputs = MlflowClient(uri).get_run(run_id).outputs.model_outputs
    assert model.model_id in {output.model_id for output in outputs}


def test_snapshot_registered_again_by_its_run_keeps_its_version(
    uri: str, run_id: str, version: tuple[int, Path, Path]
) -> None:
    number, directory, _ = version
    assert register(uri, directory, run_id=run_id, task=TASK, tags={}) == number
    assert register(uri, directory, run_id=start(uri), task=TASK, tags={}) == number + 1


def test_snapshot_of_another_task_is_refused(uri: str, run_id: str, tmp_path: Path) -> None:
    directory = snapshots.save_classifier(tmp_path / "snapshot")
    with pytest.raises(RegistryError, match="is of task 'digits-classifier', not 'digits-generator'"):
        register(uri, directory, run_id=run_id, task=TASK, tags={})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("mnist-generator@champion", ("mnist-generator", "champion")),
        ("mnist-generator/12", ("mnist-generator", 12)),
        ("models:/a.b_c@x", ("a.b_c", "x")),
    ],
)
def test_reference_is_a_name_with_an_alias_or_a_version(text: str, parsed: tuple[str, str | int]) -> None:
    assert parse_ref(text) == parsed


@pytest.mark.parametrize("text", ["a", "a@", "a/0", "a/latest", "a'b/1", "../a/1", "a/1/b", "runs:/a/1", "a@b@c", ""])
def test_reference_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_ref(text)
    assert str(caught.value) == (
        f"model {text!r} must be written NAME@ALIAS or NAME/VERSION, e.g. mnist-generator@champion or mnist-generator/3"
    )


def test_unknown_model_alias_and_version_are_named_with_what_there_is(tmp_path: Path) -> None:
    uri = resolve_uri("sqlite:///mlflow.db", tmp_path)
    where = f"(in the registry at tracking.uri={uri!r})"

    def message(reference: str) -> str:
        with pytest.raises(RegistryError) as caught:
            resolve(uri, reference)
        return str(caught.value)

    assert message("digits-generatr@champion") == f"unknown model 'digits-generatr'; there is none yet {where}"
    directory = snapshots.save_generator(tmp_path / "snapshot")
    register(uri, directory, run_id=start(uri), task=TASK, tags={})
    assert message("digits-generatr@champion") == (
        f"unknown model 'digits-generatr'; choose from digits-generator (did you mean 'digits-generator'?) {where}"
    )
    assert message(f"{TASK}@champion") == f"unknown alias of '{TASK}' 'champion'; choose from candidate"
    assert message(f"{TASK}/7") == f"unknown version of '{TASK}' '7'; choose from 1"


def test_model_that_genray_did_not_register_is_refused(uri: str) -> None:
    client = MlflowClient(uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "s3://elsewhere/model")
    with pytest.raises(RegistryError, match="foreign/1 was not registered by genray"):
        resolve(uri, "foreign/1")


def test_pulled_model_is_the_snapshot_for_this_user_alone(
    uri: str, version: tuple[int, Path, Path], tmp_path: Path
) -> None:
    number, directory, _ = version
    to = pull(uri, f"{TASK}/{number}", tmp_path / "a" / "model")
    original, copy = snapshot.load(directory), snapshot.load(to)
    assert copy.digest == original.digest and np.array_equal(sample(copy, 3, 0), sample(original, 3, 0))
    assert stat.S_IMODE(to.stat().st_mode) == 0o700
    assert {path.name for path in to.iterdir()} == {"model.safetensors", "config.json", "manifest.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in to.iterdir()} == {0o600}
    assert [path.name for path in to.parent.iterdir()] == ["model"]


def test_pull_is_done_once_and_overwrites_nothing(uri: str, version: tuple[int, Path, Path], tmp_path: Path) -> None:
    number, stored = version[0], in_a_folder(version)
    to = pull(uri, f"{TASK}/{number}", tmp_path / "model")
    (stored / "artifacts" / "model.safetensors").unlink()
    assert pull(uri, f"{TASK}/{number}", to) == to
    other = snapshots.save_generator(tmp_path / "other", seed=1)
    with pytest.raises(RegistryError, match=f"other holds something else than {TASK}/{number}; choose another folder"):
        pull(uri, f"{TASK}/{number}", other)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RegistryError):
        pull(uri, f"{TASK}/{number}", tmp_path / "notes")
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("name", ["artifacts/weights.pkl", "python_model.pkl", "code/evil.py", "artifacts/sub/a.json"])
def test_file_that_was_added_is_refused_and_never_run(
    uri: str, version: tuple[int, Path, Path], tmp_path: Path, name: str
) -> None:
    number, stored = version[0], in_a_folder(version)
    (stored / name).parent.mkdir(exist_ok=True)
    (stored / name).write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    assert "which genray did not register" in refusal(uri, number, tmp_path)
    assert not (tmp_path / "trace").exists()


def refusal(uri: str, number: int, tmp_path: Path) -> str:
    """Why a version is not pulled; nothing of it is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RegistryError) as raised:
        pull(uri, f"{TASK}/{number}", tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before
    return str(raised.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_one_flipped_byte_is_refused(uri: str, version: tuple[int, Path, Path], tmp_path: Path, name: str) -> None:
    number, stored = version[0], in_a_folder(version)
    content = bytearray((stored / "artifacts" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (stored / "artifacts" / name).write_bytes(content)
    assert "do not use it" in refusal(uri, number, tmp_path)


def test_another_whole_snapshot_in_its_place_is_refused(
    uri: str, version: tuple[int, Path, Path], tmp_path: Path
) -> None:
    number, stored = version[0], in_a_folder(version)
    other = snapshots.save_generator(tmp_path / "other", seed=1)
    for path in other.iterdir():
        (stored / "artifacts" / path.name).write_bytes(path.read_bytes())
    assert f"{TASK}/{number} was changed after it was registered" in refusal(uri, number, tmp_path)


def test_missing_file_is_refused(uri: str, version: tuple[int, Path, Path], tmp_path: Path) -> None:
    number, stored = version[0], in_a_folder(version)
    (stored / "artifacts" / "config.json").unlink()
    assert "lacks artifacts/config.json" in refusal(uri, number, tmp_path)


def test_file_that_is_too_large_is_refused(
    uri: str, version: tuple[int, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_registry, "MAX_MODEL_BYTES", 100)
    assert re.search(r"model\.safetensors has \d+ bytes, expected at most 100", refusal(uri, version[0], tmp_path))


def test_code_that_was_changed_is_not_even_fetched(uri: str, version: tuple[int, Path, Path], tmp_path: Path) -> None:
    number, stored = version[0], in_a_folder(version)
    (stored / "model.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'trace')!r}).touch()")
    pull(uri, f"{TASK}/{number}", tmp_path / "model")
    assert not (tmp_path / "trace").exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = new_server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_model_of_a_server_opens_by_its_alias_for_strangers_and_for_genray(server: Server, tmp_path: Path) -> None:
    directory = snapshots.save_generator(tmp_path / "snapshot", conditional=True)
    register(server.uri, directory, run_id=start(server.uri), task=TASK, tags={})
    code = (
        "import sys; sys.modules['genray'] = None; import mlflow.pyfunc, json; "
        f"model = mlflow.pyfunc.load_model('models:/{TASK}@candidate'); "
        "print(json.dumps(model.predict({'n': [4], 'seed': [9]}).tolist()))"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    pulled = snapshot.load(pull(server.uri, f"{TASK}@candidate", tmp_path / "model"))
    expected = sample(pulled, 4, 9).permute(0, 2, 3, 1)
    assert json.loads(done.stdout.splitlines()[-1]) == expected.tolist()
