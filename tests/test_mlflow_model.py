"""A registered model opens without genray and without pickle, and makes the images that genray makes."""

import importlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import evaluation_snapshots as snapshots
from image_folders import paint
from mlflow_server import Process, free_port

import genray.models
from genray import mlflow_model, snapshot
from genray.cli_classify import probabilities_of
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
        "acgan": snapshots.save_acgan(base / "acgan"),
        "stylegan2": snapshots.save_stylegan2(base / "stylegan2"),
        "sngan": snapshots.save_sngan(base / "sngan"),
        "vae": snapshots.save_vae(base / "vae"),
        "tokenizer": snapshots.save_tokenizer(base / "tokenizer"),
        "continuous": snapshots.save_tokenizer(base / "continuous", quantizer="none"),
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


@pytest.mark.parametrize("kind", ["plain", "conditional", "vae", "tokenizer", "classifier"])
def test_model_folder_holds_these_files_and_no_pickle(folders: dict[str, tuple[Path, Path]], kind: str) -> None:
    model = folders[kind][1]
    found = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert found == {*MODEL_FILES, *(f"artifacts/{name}" for name in SNAPSHOT_FILES)}
    for name in SNAPSHOT_FILES:
        assert (model / "artifacts" / name).read_bytes() == (folders[kind][0] / name).read_bytes()


@pytest.mark.parametrize("kind", ["tokenizer", "continuous"])
def test_served_tokenizer_gives_the_codes_of_its_snapshot(folders: dict[str, tuple[Path, Path]], kind: str) -> None:
    directory, model = folders[kind]
    images = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    served = mlflow_model.mlflow.pyfunc.load_model(str(model)).predict(nhwc(images))
    network: torch.nn.Module = snapshot.load(directory).module
    assert (served == network.encode(to_float(images)).numpy()).all()  # type: ignore[operator]


def test_model_folder_tells_no_path_of_this_machine(folders: dict[str, tuple[Path, Path]]) -> None:
    for name in ("MLmodel", "model.py", "conda.yaml", "requirements.txt", "python_env.yaml"):
        text = (folders["conditional"][1] / name).read_text()
        assert "/tmp" not in text and str(Path(__file__).parents[1]) not in text


def test_requirements_are_exact_and_public(folders: dict[str, tuple[Path, Path]]) -> None:
    lines = (folders["vae"][1] / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in lines] == [
        "torch",
        "safetensors",
        "numpy",
        "pillow",
        "pandas",
        "mlflow",
    ]
    assert all("==" in line and "+" not in line for line in lines)


@pytest.mark.parametrize(
    ("kind", "label", "truncation"),
    [
        ("plain", None, 1.0),
        ("conditional", 7, 0.5),
        ("acgan", None, 1.0),
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
    body = """
table = model.predict(np.load(sys.argv[2]))
assert list(table.columns) == list("0123456789")
np.save(sys.argv[3], table)
"""
    stranger(model, body, str(tmp_path / "in.npy"), str(tmp_path / "out.npy"))
    found = np.load(tmp_path / "out.npy")
    expected = snapshot.load(directory).module(to_float(images)).softmax(1)
    assert found.dtype == np.float32 and found.shape == (300, 10)
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_stranger_prepares_encoded_images_as_genray_does(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    directory, model = folders["classifier"]
    files = [tmp_path / "large.png", tmp_path / "photo.jpg"]
    for seed, path in enumerate(files):
        paint(seed, (30, 44)).save(path)
    body = """
import base64, pandas
encoded = [open(path, "rb").read() for path in sys.argv[2:4]]
for request in (encoded, pandas.DataFrame({"image": encoded}),
                pandas.DataFrame({"image": [base64.b64encode(e).decode() for e in encoded]})):
    print(json.dumps(model.predict(request).to_numpy().tolist()))
"""
    expected = probabilities_of(snapshot.load(directory), files)
    for line in stranger(model, body, *map(str, files)).splitlines():
        torch.testing.assert_close(torch.tensor(json.loads(line)), expected)


def test_scoring_server_reads_arrays_and_encoded_images(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """As the server does it, without the server: request text in, answer text out."""
    directory, model = folders["classifier"]
    paint(3, (8, 8)).convert("L").save(tmp_path / "image.png")
    body = """
import base64
from mlflow.pyfunc.scoring_server import invocations
encoded = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
pixels = json.loads(sys.argv[3])
for request in ({"dataframe_records": [{"image": encoded}]}, {"instances": pixels}, {"inputs": pixels}):
    answer = invocations(json.dumps(request), "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    print(answer.response)
"""
    pixels = np.asarray(Image.open(tmp_path / "image.png"))[None, :, :, None].tolist()
    expected = probabilities_of(snapshot.load(directory), [tmp_path / "image.png"])[0].tolist()
    for line in stranger(model, body, str(tmp_path / "image.png"), json.dumps(pixels)).splitlines():
        answer = json.loads(line)["predictions"]
        assert answer == [pytest.approx(dict(zip("0123456789", expected, strict=True)), abs=1e-6)]


def test_stranger_is_told_which_image_is_none(folders: dict[str, tuple[Path, Path]]) -> None:
    body = """
import pandas
requests = [[b"text"], pandas.DataFrame({"image": ["%%"]}), pandas.DataFrame({"path": ["a.png"]}),
            np.zeros((1, 9, 8, 1)), np.full((1, 8, 8, 1), 0.5), np.zeros((1025, 8, 8, 1), np.uint8)]
for request in requests:
    try:
        model.predict(request)
    except ValueError as error:
        print(error)
"""
    lines = stranger(folders["classifier"][1], body).splitlines()
    assert lines[0] == "image 0 of the request does not decode: 4 bytes that are no image"
    assert lines[1].startswith("image 0 of the request does not decode: ")
    assert lines[2:] == [
        "columns ['path'] were given, expected one, 'image', of encoded images",
        "pixels of shape (1, 9, 8, 1) were given, expected (B, 8, 8, 1); encoded images (PNG, JPEG) may have any size",
        "pixels of type float64 were given, expected whole numbers from 0 to 255",
        "1025 images in one request, expected at most 1024; ask several times",
    ]


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
        ("import numpy.random", r"genray/models/odd\.py imports numpy\.random, expected only torch"),
        ("class ServedModel: pass", r"genray/mlflow_served\.py defines ServedModel, as genray/models/odd\.py does"),
        ("EXTENSIONS = 3", r"genray/data/pixels\.py defines EXTENSIONS, as genray/models/odd\.py does"),
    ],
)
def test_architecture_that_cannot_stand_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    made = snapshot.load(snapshots.save_generator(tmp_path / "snapshot"))
    knobs = type(made.config.model)
    source = Path(str(sys.modules[knobs.__module__].__file__)).read_text()
    (tmp_path / "odd.py").write_text(f"{source}\n{line}\n")
    monkeypatch.setattr(genray.models, "__path__", [*genray.models.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "genray.models.odd", None)  # gone again after the test
    del sys.modules["genray.models.odd"]
    importlib.import_module("genray.models.odd")
    monkeypatch.setattr(knobs, "__module__", "genray.models.odd")
    with pytest.raises(RegistryError, match=message):
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
