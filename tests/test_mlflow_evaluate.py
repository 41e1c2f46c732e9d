"""`genray evaluate` on snapshots, registry models and folders, under extractors of every kind."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
import evaluation_snapshots as snapshots
from conftest import tiny_config
from mlflow import MlflowClient
from mlflow_server import new_store
from PIL import Image
from torchvision import models

from genray import cli, mlflow_champion, snapshot
from genray.config import Data, Eval
from genray.data.images import load_images
from genray.errors import ConfigError, ProtocolError
from genray.evaluation import card, every, extractors
from genray.evaluation.protocol import Protocol
from genray.evaluation.scoring import read_scores
from genray.manifest import sha256
from genray.mlflow_registry import register
from genray.mlflow_tracking import start_run
from genray.paths import resolved
from genray.sampling import sample

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_store(tmp_path_factory.mktemp("store")) as address:
        yield address


@pytest.fixture
def extractor(tmp_path):
    return str(snapshots.save_classifier(tmp_path / "extractor"))


@pytest.fixture
def written(tmp_path):
    """The digits' test split as PNG files, one folder a class."""
    reals = load_images(Data(name="digits"), "test")
    for index, (image, label) in enumerate(zip(reals.images, reals.labels.tolist(), strict=True)):
        path = tmp_path / "images" / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return tmp_path / "images"


def test_sample_shows_samples_beside_the_nearest_training_images(tmp_path, extractor):
    model = snapshots.save_generator(tmp_path / "model")
    command = ["sample", str(model), "--kind", "nearest", "--num", "5", "--seed", "2", "--extractor", extractor]
    assert cli.main(command) == 0
    samples = sample(snapshot.load(model), 5, 2)
    train = load_images(Data(name="digits"), "train")
    expected = card.nearest_training_images(samples, train, snapshot.load(Path(extractor)), 64, None)
    with Image.open("nearest.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache of reference features is this test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def evaluated(tmp_path, *args):
    out = tmp_path / "scores.json"
    assert cli.main(["evaluate", *args, "--out", str(out)]) == 0
    return {score.metric: score for score in read_scores(out)}


def refused(capsys, *args):
    assert cli.main(["evaluate", *args]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_folder_of_the_reference_itself_scores_perfectly(tmp_path, written, extractor):
    found = evaluated(
        tmp_path, str(written), "--data", "digits", "--extractor", extractor, "--metrics", "ifid", "recall"
    )
    assert list(found) == ["fid", "ifid", "recall"]
    assert found["fid"].value == pytest.approx(0, abs=1e-6)
    assert found["ifid"].value == pytest.approx(0, abs=1e-6)
    assert found["recall"].value == 1
    assert found["fid"].protocol.labels == "given" and found["fid"].protocol.num_seeds == 1


def test_folder_leaves_no_trace_in_mlflow_unless_told_where(tmp_path, written, extractor, uri):
    evaluated(tmp_path, str(written), "--data", "digits", "--extractor", extractor)
    assert not (tmp_path / "mlflow.db").exists()
    evaluated(tmp_path, str(written), "--data", "digits", "--extractor", extractor, "--uri", uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("genray/digits")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`genray.subject` = '{written}'")
    assert run.data.metrics["eval/fid"] == pytest.approx(0, abs=1e-6)


def test_folder_without_data_is_refused(capsys, written):
    assert refused(capsys, str(written)).endswith("say what to compare them with, e.g. --data mnist")


def test_folder_of_another_size_than_the_data_is_refused(capsys, written, extractor):
    args = [str(written), "--data", "digits", "--image-size", "16", "16", "--extractor", extractor]
    assert "(1, 8, 8), those of 'digits' (1, 16, 16)" in refused(capsys, *args)


def test_registry_model_is_scored_and_noted_as_a_run_of_its_own(tmp_path, extractor, uri):
    trained = start_run(uri, experiment="genray/digits", name="r", params={}, config={}, tags={})
    directory = snapshots.save_generator(tmp_path / "model", conditional=True)
    register(uri, directory, run_id=trained, task="digits-generator", tags={})
    args = ["digits-generator@candidate", "--extractor", extractor, "--uri", uri, "--num-samples", "60"]
    found = evaluated(tmp_path, *args, "--num-seeds", "2", "--metrics", "kid")
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_run(trained).info.experiment_id], "tags.`genray.kind` = 'evaluation'")
    (run,) = [run for run in runs if run.data.tags["genray.subject"] == "digits-generator/1"]
    assert run.info.status == "FINISHED" and run.info.run_id != trained
    assert run.data.metrics["eval/kid"] == pytest.approx(found["kid"].value)
    assert run.data.params["extractor_digest"] == found["fid"].protocol.extractor_digest
    path = client.download_artifacts(run.info.run_id, "scores.json", str(tmp_path))
    assert [score["metric"] for score in json.loads(Path(path).read_text())["scores"]] == ["fid", "kid"]


def test_weights_file_scores_a_snapshot_and_stands_in_its_protocol(tmp_path):
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None, num_classes=4).state_dict(), tmp_path / "weights.pth")
    directory = snapshots.save_generator(tmp_path / "model")
    args = [str(directory), "--extractor", "resnet18:weights.pth", "--num-samples", "20", "--num-seeds", "1"]
    found = evaluated(tmp_path, *args, "--metrics", "inception_score")
    assert found["fid"].protocol.extractor == "resnet18"
    assert found["fid"].protocol.resize == "bilinear-antialias-224"
    assert len(found["fid"].protocol.extractor_digest) == 64
    assert 1 <= found["inception_score"].value <= 4


def test_scores_follow_the_protocol_of_a_file_and_say_where_they_cannot(tmp_path, capsys, extractor):
    first = snapshots.save_generator(tmp_path / "first")
    second = snapshots.save_generator(tmp_path / "second", seed=1)
    args = ["--extractor", extractor, "--num-samples", "50", "--num-seeds", "2", "--metrics", "kid"]
    wanted = evaluated(tmp_path, str(first), *args)
    (tmp_path / "scores.json").rename(tmp_path / "wanted.json")
    found = evaluated(tmp_path, str(second), "--extractor", extractor, "--protocol", "wanted.json")
    assert {name: s.protocol for name, s in found.items()} == {name: s.protocol for name, s in wanted.items()}
    other = str(snapshots.save_classifier(tmp_path / "other", seed=5))
    message = refused(capsys, str(second), "--extractor", other, "--protocol", "wanted.json")
    assert message.startswith("error: fid cannot be taken under the protocol of wanted.json (extractor_digest: ")


def test_folder_with_fewer_images_than_the_protocol_asks_for_is_refused(tmp_path, capsys, written, extractor):
    args = [str(written), "--data", "digits", "--extractor", extractor]
    evaluated(tmp_path, *args)
    (tmp_path / "scores.json").rename(tmp_path / "wanted.json")
    least, *_ = written.glob("3/*.png")
    least.unlink()
    assert refused(capsys, *args, "--protocol", "wanted.json") == (
        "error: fid cannot be taken under the protocol of wanted.json (num_samples: 358 != 359); "
        "give as many images as it asks for"
    )


@pytest.mark.parametrize("files", [(), ("notes.txt",), (".hidden.png",)])
def test_folder_without_images_is_refused(tmp_path, capsys, files):
    (tmp_path / "empty").mkdir()
    for name in files:
        (tmp_path / "empty" / name).write_text("")
    assert refused(capsys, "empty", "--data", "digits") == (
        "error: empty holds neither PNG or JPEG images nor a snapshot; give a folder of images, or of one folder a "
        "class, or a snapshot"
    )


def test_folder_of_mixed_sizes_is_refused_by_both_names(capsys, written, extractor):
    first, second = sorted((written / "0").glob("*.png"))[:2]
    Image.new("L", (9, 8)).save(second)
    assert refused(capsys, str(written), "--data", "digits", "--extractor", extractor) == (
        f"error: {second} has 9 x 8 pixels, and {first} has 8 x 8; images that are scored together must be of one "
        "size: nothing is resized"
    )


def test_extractor_of_another_input_size_is_refused(tmp_path, capsys, written):
    other = snapshots.save_classifier(tmp_path / "other", data=Data(name="digits", image_size=(16, 16)))
    assert refused(capsys, str(written), "--data", "digits", "--extractor", str(other)) == (
        "error: images are (1, 8, 8), but extractor 'digits-classifier' was trained on (1, 16, 16) (C, H, W); "
        "score with data of its shape, or take another extractor: images are never resized to fit"
    )


def test_extractor_whose_features_are_not_finite_is_refused(tmp_path, capsys, written):
    spoilt = snapshots.save_classifier(tmp_path / "spoilt", change=lambda m: next(m.parameters()).fill_(torch.inf))
    message = refused(capsys, str(written), "--data", "digits", "--extractor", str(spoilt))
    assert message == (
        "error: 256 of 256 images have non-finite features under extractor 'digits-classifier', expected finite "
        "numbers; its weights have diverged, take another extractor"
    )


def test_extractor_of_other_weights_than_the_protocols_is_refused(tmp_path, capsys, written, extractor):
    args = [str(written), "--data", "digits", "--extractor"]
    fid = evaluated(tmp_path, *args, extractor)["fid"]
    (tmp_path / "scores.json").rename(tmp_path / "wanted.json")
    other = snapshots.save_classifier(tmp_path / "other", seed=5)
    digests = f"'{snapshot.load(other).digest}' != '{fid.protocol.extractor_digest}'"
    assert refused(capsys, *args, str(other), "--protocol", "wanted.json") == (
        f"error: fid cannot be taken under the protocol of wanted.json (extractor_digest: {digests}); "
        "give the data and the extractor that it names"
    )


def test_unknown_metric_is_refused_with_the_nearest(capsys, tmp_path, extractor):
    directory = snapshots.save_generator(tmp_path / "model")
    message = refused(capsys, str(directory), "--extractor", extractor, "--metrics", "precison")
    assert message.endswith("(did you mean 'precision'?)")


def test_champion_of_other_weights_is_named_with_the_file_that_is_wanted(uri, tmp_path):
    torch.save(models.resnet18(weights=None, num_classes=4).state_dict(), tmp_path / "weights.pth")
    own = extractors.bring("resnet18:weights.pth", tmp_path / "brought")
    fields = {"metric": "fid", "data": "digits", "split": "test", "data_digest": "", "num_samples": 9, "num_seeds": 1}
    protocol = Protocol(**fields, extractor="resnet18", extractor_digest="e" * 64)
    with (
        pytest.raises(ProtocolError, match="resnet18 weights of SHA-256 eeeeeeeeeeee…, not with those given"),
        mlflow_champion._same_extractor(uri, protocol, own),
    ):
        pass
    same = Protocol(**fields, extractor="resnet18", extractor_digest=sha256(tmp_path / "weights.pth"))
    with mlflow_champion._same_extractor(uri, same, own) as found:
        assert found == own


def test_weights_file_of_a_run_is_named_by_its_whole_path(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    config = resolved(tiny_config(eval=Eval(extractor="resnet18:weights.pth")))
    assert config.eval.extractor == f"resnet18:{tmp_path / 'weights.pth'}"
    with pytest.raises(ConfigError, match=r"eval\.extractor='resnet18:none\.pth': none\.pth is no file"):
        resolved(tiny_config(eval=Eval(extractor="resnet18:none.pth")))


def card_of(tmp_path, *args):
    assert cli.main(["evaluate", *args, "--card", str(tmp_path / "card")]) == 0
    return [score.metric for score in read_scores(tmp_path / "card" / "scores.json")]


@pytest.mark.slow
def test_card_of_a_registered_generator_has_all_metrics_and_a_picture_and_is_in_mlflow(tmp_path, extractor, uri):
    trained = start_run(uri, experiment="genray/digits", name="c", params={}, config={}, tags={})
    directory = snapshots.save_generator(tmp_path / "model", conditional=True, seed=3)
    version = register(uri, directory, run_id=trained, task="digits-generator", tags={})
    model = f"digits-generator/{version}"
    args = [model, "--extractor", extractor, "--uri", uri, "--num-samples", "300", "--num-seeds", "1"]
    assert card_of(tmp_path, *args) == list(every("generator", by_class=True, features=True))
    assert (tmp_path / "card" / "card.md").read_text().startswith(f"# digits-generator, step 1: {model}\n")
    with Image.open(tmp_path / "card" / "nearest.png") as picture:
        assert picture.size == (10 * 34 + 2 * 2 + 12, 10 * 34 + 2)
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"], f"tags.`genray.subject` = '{model}'")
    kept = [file.path for file in client.list_artifacts(run.info.run_id, "card")]
    assert kept == ["card/card.md", "card/nearest.png", "card/scores.json"]
    assert run.data.metrics["eval/cas"] >= 0


def test_card_of_a_vae_without_an_extractor_is_of_its_likelihood_and_has_no_picture(tmp_path):
    directory = str(snapshots.save_vae(tmp_path / "model"))
    found = card_of(tmp_path, directory, "--num-seeds", "1", "--uri", f"sqlite:///{tmp_path / 'own.db'}")
    assert found == list(every("vae", by_class=False, features=False))
    assert not (tmp_path / "card" / "nearest.png").exists()


def test_card_of_a_classifier_has_its_own_metrics(tmp_path, extractor):
    assert card_of(tmp_path, extractor)[0] == "accuracy"


@pytest.mark.slow
def test_card_of_a_folder_compares_class_by_class_where_it_has_classes(tmp_path, written, extractor):
    found = card_of(tmp_path, str(written), "--data", "digits", "--extractor", extractor)
    assert found == list(every("generator", by_class=True, features=True))
    (tmp_path / "flat").mkdir()
    for path in written.glob("*/*.png"):
        path.rename(tmp_path / "flat" / path.name)
    found = card_of(tmp_path, str(tmp_path / "flat"), "--data", "digits", "--extractor", extractor)
    assert found == list(every("generator", by_class=False, features=True))
