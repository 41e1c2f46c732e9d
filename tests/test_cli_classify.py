"""`genray classify`: files in, classes with probabilities out."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_snapshots import save_classifier, save_generator
from image_folders import paint

from genray import cli, snapshot
from genray.config import Data
from genray.data.images import load_images
from genray.sampling import save_png, to_float


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = save_classifier(tmp_path_factory.mktemp("classify") / "snapshot")
    return directory


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(["classify", *args]) == 1
    return capsys.readouterr().err


def test_classify_gives_each_file_the_probabilities_of_its_pixels(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_images(Data(name="digits"), "test").images[:3]
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(files, images, strict=True):
        save_png(path, image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    out = tmp_path / "out.json"
    assert cli.main(["classify", str(classifier), *map(str, files), "--top", "2", "--out", str(out)]) == 0
    expected = snapshot.load(classifier).module(to_float(images)).softmax(1)
    found = json.loads(out.read_text())
    assert list(found) == [str(path) for path in files]
    torch.testing.assert_close(torch.tensor([list(row.values()) for row in found.values()]), expected)
    rows = [line for line in capsys.readouterr().out.splitlines() if ".png" in line]
    for row, probabilities in zip(rows, expected, strict=True):
        assert f"{int(probabilities.argmax())} {float(probabilities.max()):.4f}" in row


def test_classify_names_the_file_that_is_no_image(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    error = refused(capsys, str(classifier), str(tmp_path / "good.png"), str(tmp_path / "bad.png"))
    assert f"{tmp_path / 'bad.png'} does not decode (8 bytes that are no image); give PNG or JPEG files" in error


def test_classify_names_the_file_that_is_not_there(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none.png cannot be read (No such file" in refused(capsys, str(classifier), str(tmp_path / "none.png"))


def test_classify_refuses_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(0).save(tmp_path / "image.png")
    directory = save_generator(tmp_path / "snapshot")
    error = refused(capsys, str(directory), str(tmp_path / "image.png"))
    assert "snapshot of 'digits-generator' is a generator; give a classifier's" in error


@pytest.mark.parametrize(
    ("args", "message"),
    [([], "no files given; use genray classify MODEL FILE"), (["a.png", "--top", "0"], "--top=0 must be at least 1")],
)
def test_classify_refuses_what_it_cannot_do(
    classifier: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert message in refused(capsys, str(classifier), *args)
