"""A registered model opens without genray and without pickle, and makes the images that genray makes."""

import json
import os
import subprocess
import sys
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import evaluation_snapshots as snapshots
from mlflow_server import Process, free_port

from genray import mlflow_model, snapshot
from genray.errors import CheckpointError, RegistryError
from genray.mlflow_model import MODEL_FILES, SNAPSHOT_FILES, package, render
from genray.sampling import sample, to_float

pytestmark = pytest.mark.mlflow

STRANGER = """
import sys
sys.modules["genray"] = None
import json, warnings
warnings.simplefilter("ignore")
import mlflow.pyfunc, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
{body}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Snapshot and packaged model by kind."""
    base = tmp_path_factory.mktemp("models")
    made = {
        "plain": snapshots.save_generator(base / "plain"),
        "conditional": snapshots.save_generator(base / "conditional", conditional=True),
        "stylegan2": snapshots.save_stylegan2(base / "stylegan2"),
        "sngan": snapshots.save_sngan(base / "sngan"),
        "vae": snapshots.save_vae(base / "vae"),
        "classifier": snapshots.save_classifier(base / "classifier"),
    }
    for kind, directory in made.items():
        package(directory, base / f"{kind}-model")
    return {kind: (directory, base / f"{kind}-model") for kind, directory in made.items()}


def stranger(model: Path, body: str, *arguments: str) -> str:
    """Output of `body` in a process that cannot import genray and may not unpickle."""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", STRANGER.format(body=body), str(model), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("kind", ["plain", "conditional", "vae", "classifier"])
def test_model_folder_holds_these_files_and_no_pickle(folders: dict[str, tuple[Path, Path]], kind: str) -> None:
    model = folders[kind][1]
    found = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert found == {*MODEL_FILES, *(f"artifacts/{name}" for name in SNAPSHOT_FILES)}
    for name in SNAPSHOT_FILES:
        assert (model / "artifacts" / name).read_bytes() == (folders[kind][0] / name).read_bytes()


def test_model_folder_tells_no_path_of_this_machine(folders: dict[str, tuple[Path, Path]]) -> None:
    for name in ("MLmodel", "model.py", "conda.yaml", "requirements.txt", "python_env.yaml"):
        text = (folders["conditional"][1] / name).read_text()
        assert "/tmp" not in text and str(Path(__file__).parents[1]) not in text


def test_requirements_are_exact_and_public(folders: dict[str, tuple[Path, Path]]) -> None:
    lines = (folders["vae"][1] / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in lines] == ["torch", "safetensors", "numpy", "pandas", "mlflow"]
    assert all("==" in line and "+" not in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "label", "truncation"),
    [
        ("plain", None, 1.0),
        ("conditional", 7, 0.5),
        ("conditional", None, 1.0),
        ("stylegan2", 7, 0.5),
        ("sngan", None, 1.0),
        ("vae", None, 1.0),
    ],
)
def test_stranger_draws_the_images_of_genray_bit_for_bit(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str, label: int | None, truncation: float
) -> None:
    directory, model = folders[kind]
    rows = [{"n": 5, "seed": 3}, {"n": 300, "seed": 2**40}]
    if label is not None:
        rows = [row | {"label": label} for row in rows]
    body = "np.save(sys.argv[3], model.predict(json.loads(sys.argv[2]), params=json.loads(sys.argv[4])))"
    out = tmp_path / "images.npy"
    stranger(model, body, json.dumps(rows), str(out), json.dumps({"truncation": truncation}))
    made = snapshot.load(directory)
    expected = [nhwc(sample(made, row["n"], row["seed"], label=label, truncation=truncation)) for row in rows]
    images = np.load(out)
    assert images.dtype == np.uint8 and np.array_equal(images, np.concatenate(expected))


def test_stranger_classifies_as_genray_does(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    directory, model = folders["classifier"]
    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8)
    np.save(tmp_path / "in.npy", nhwc(images))
    body = "np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))"
    stranger(model, body, str(tmp_path / "in.npy"), str(tmp_path / "out.npy"))
    found = np.load(tmp_path / "out.npy")
    expected = snapshot.load(directory).module(to_float(images)).softmax(1)
    assert found.dtype == np.float32 and found.shape == (300, 10)
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_stranger_is_told_what_was_wrong_with_a_request(folders: dict[str, tuple[Path, Path]]) -> None:
    body = """
requests = [{"n": 0, "seed": 1}, {"n": 1, "seed": -1}, {"n": 1, "seed": 1, "label": 10}, {"n": 1025, "seed": 1}]
for request in requests:
    try:
        model.predict([request])
    except ValueError as error:
        print(error)
for rows, params in (([{"n": 600, "seed": 1}] * 2, {}), ([{"n": 1, "seed": 1}], {"truncation": -1.0})):
    try:
        model.predict(rows, params=params)
    except ValueError as error:
        print(error)
"""
    assert stranger(folders["conditional"][1], body).splitlines() == [
        "n=0 must be at least 1",
        "seed=-1 must be at least 0",
        "label=10 must lie between 0 and 9",
        "n=1025 images in one request, expected at most 1024; ask several times",
        "n=1200 images in one request, expected at most 1024; ask several times",
        "truncation=-1.0 must be at least 0, e.g. 1.0",
    ]


def test_model_with_a_flipped_byte_does_not_load(tmp_path: Path) -> None:
    model = tmp_path / "model"
    package(snapshots.save_generator(tmp_path / "snapshot"), model)
    weights = model / "artifacts" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AssertionError, match=r"model\.safetensors is damaged"):
        stranger(model, "")


def test_damaged_snapshot_is_not_packaged(tmp_path: Path) -> None:
    directory = snapshots.save_generator(tmp_path / "snapshot")
    (directory / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        package(directory, tmp_path / "model")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import scipy.stats", "imports scipy"),
        ("from genray.streams import generator", "imports genray"),
        ("from . import x", r"imports \."),
        ("class ServedModel: pass", "defines ServedModel"),
        ("SERVED_BATCH_SIZE: int = 3", "defines SERVED_BATCH_SIZE"),
    ],
)
def test_architecture_that_cannot_stand_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    made = snapshot.load(snapshots.save_generator(tmp_path / "snapshot"))
    inspect = types.SimpleNamespace(getsource=lambda module: module.__source__)
    for name in (type(made.config.model).__module__, "genray.mlflow_served"):
        source = Path(str(sys.modules[name].__file__)).read_text()
        monkeypatch.setattr(sys.modules[name], "__source__", source, raising=False)
    model = sys.modules[type(made.config.model).__module__]
    monkeypatch.setattr(model, "__source__", f"{model.__source__}\n{line}\n")  # type: ignore[attr-defined]
    monkeypatch.setattr(mlflow_model, "inspect", inspect)
    with pytest.raises(RegistryError, match=f"genray/models/dcgan.py {message}"):
        render(made)


@pytest.mark.slow
def test_scoring_server_answers_with_images(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    directory, model = folders["conditional"]
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # The scoring server finds its uvicorn on the path.
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    server = Process(command, f"{address}/ping", tmp_path / "serve.log", environment)
    server.start()
    try:
        body = {"dataframe_records": [{"n": 4, "seed": 11, "label": 3}], "params": {"truncation": 0.7}}
        request = urllib.request.Request(
            f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            images = np.array(json.load(answer)["predictions"], dtype=np.uint8)
        assert np.array_equal(images, nhwc(sample(snapshot.load(directory), 4, 11, label=3, truncation=0.7)))
    finally:
        server.kill()
