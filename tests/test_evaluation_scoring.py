import json
from dataclasses import replace

import pytest
import torch
from evaluation_snapshots import save_classifier, save_generator, save_vae

from genray import snapshot
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import DivergenceError, ProtocolError, StorageError
from genray.evaluation import reference
from genray.evaluation.accuracy import accuracy, predict
from genray.evaluation.features import extract
from genray.evaluation.frechet import Moments, frechet_distance
from genray.evaluation.likelihood import bounds
from genray.evaluation.protocol import better, differences
from genray.evaluation.scoring import read_scores, reference_labels, score_snapshot, write_scores
from genray.sampling import generate, latents, sample

SETTINGS = Eval(num_samples=100, num_seeds=2, seed=5, batch_size=64)


@pytest.fixture
def data(tmp_path):
    return Data(name="digits", cache=str(tmp_path / "data"))


@pytest.fixture
def reals(data):
    return load_images(data, "test")


@pytest.fixture
def extractor(tmp_path):
    return save_classifier(tmp_path / "extractor")


def test_scores_of_a_classifier_are_accuracy_and_recall_on_the_split(tmp_path, data, reals):
    directory = save_classifier(tmp_path / "model")
    first, second = score_snapshot(directory, data=data, settings=SETTINGS, extractor=None)
    expected = accuracy(predict(snapshot.load(directory), reals.images), reals.labels)
    assert (first.metric, second.metric) == ("accuracy", "recall")
    assert (first.value, first.spread) == expected
    assert first.protocol.num_samples == len(reals) and first.protocol.num_seeds == 1


def test_scores_of_a_generator_are_fid_and_kid_over_seeds(tmp_path, data, reals, extractor):
    directory = save_generator(tmp_path / "model")
    settings = replace(SETTINGS, truncation=0.7)
    fid, kid = score_snapshot(directory, data=data, settings=settings, extractor=extractor)
    model, classifier = snapshot.load(directory), snapshot.load(extractor)
    real = Moments.of(extract(classifier, reals.images))
    values = [
        frechet_distance(real, Moments.of(extract(classifier, sample(model, 100, seed, truncation=0.7, batch_size=64))))
        for seed in (5, 6)
    ]
    assert (fid.metric, kid.metric) == ("fid", "kid")
    assert fid.value == pytest.approx(sum(values) / 2, rel=1e-6)
    assert fid.spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-4)
    assert kid.spread > 0


def test_protocol_of_a_fid_says_all_that_it_was_taken_with(tmp_path, data, reals, extractor):
    settings = replace(SETTINGS, truncation=0.7)
    fid, kid = score_snapshot(save_generator(tmp_path / "model"), data=data, settings=settings, extractor=extractor)
    assert fid.protocol.to_dict() == {
        "metric": "fid",
        "data": "digits",
        "split": "test",
        "data_digest": reals.digest,
        "num_samples": 100,
        "num_seeds": 2,
        "seed": 5,
        "extractor": "digits-classifier",
        "extractor_digest": snapshot.load(extractor).digest,
        "resize": "none",
        "ema": True,
        "truncation": 0.7,
        "labels": "reference",
        "extra": {},
    }
    assert kid.protocol.extra == {"num_subsets": 50, "subset_size": 100}


def test_scores_twice_are_equal(tmp_path, data, extractor):
    directory = save_generator(tmp_path / "model", conditional=True)
    first, second = (score_snapshot(directory, data=data, settings=SETTINGS, extractor=extractor) for _ in range(2))
    assert first == second


def test_scores_with_a_cached_reference_are_equal_and_do_not_compute_it_again(tmp_path, data, extractor, monkeypatch):
    directory = save_generator(tmp_path / "model")
    options = {"data": data, "settings": SETTINGS, "extractor": extractor}
    plain = score_snapshot(directory, **options)
    assert score_snapshot(directory, **options, cache=tmp_path / "cache") == plain
    monkeypatch.setattr(reference, "extract", None)
    assert score_snapshot(directory, **options, cache=tmp_path / "cache") == plain


def test_labels_of_fakes_have_the_frequencies_of_the_reference():
    labels = torch.tensor([0] * 60 + [2] * 30 + [3] * 10)
    reals = ImageSet(torch.zeros(100, 1, 1, 1, dtype=torch.uint8), labels, tuple("abcd"), "letters", "test", "", 0)
    drawn = torch.bincount(reference_labels(reals, 20_000, seed=1), minlength=4) / 20_000
    assert drawn[1] == 0
    torch.testing.assert_close(drawn, torch.tensor([0.6, 0.0, 0.3, 0.1]), rtol=0, atol=4 * (0.25 / 20_000) ** 0.5)


def test_scores_of_a_conditional_generator_are_of_fakes_with_those_labels(tmp_path, data, reals, extractor):
    directory = save_generator(tmp_path / "model", conditional=True)
    settings = replace(SETTINGS, num_seeds=1)
    fid, _ = score_snapshot(directory, data=data, settings=settings, extractor=extractor)
    fakes = generate(snapshot.load(directory).module, latents(100, 8, 5), reference_labels(reals, 100, 5), 64)
    moments = [Moments.of(extract(snapshot.load(extractor), images)) for images in (reals.images, fakes)]
    assert fid.value == pytest.approx(frechet_distance(*moments), rel=1e-6)
    assert fid.spread == 0 and fid.protocol.labels == "reference"


def test_scores_of_a_vae_end_with_its_elbo_over_seeds(tmp_path, data, reals, extractor):
    directory = save_vae(tmp_path / "model")
    scores = score_snapshot(directory, data=data, settings=SETTINGS, extractor=extractor)
    assert [score.metric for score in scores] == ["fid", "kid", "elbo"]
    values = [float(bounds(snapshot.load(directory), reals.images, seed).elbo.mean()) for seed in (5, 6)]
    assert scores[2].value == pytest.approx(sum(values) / 2)
    assert scores[2].protocol.extra == {"likelihood": "bernoulli", "binarize": True, "draws": 1}


def test_scores_of_a_vae_without_an_extractor_are_its_elbo(tmp_path, data):
    (score,) = score_snapshot(save_vae(tmp_path / "model"), data=data, settings=SETTINGS, extractor=None)
    assert score.metric == "elbo" and score.spread > 0


def test_scores_of_a_generator_without_an_extractor_are_refused(tmp_path, data):
    with pytest.raises(ProtocolError) as caught:
        score_snapshot(save_generator(tmp_path / "model"), data=data, settings=SETTINGS, extractor=None)
    assert str(caught.value) == (
        "fid of 'digits-generator' needs an extractor, and none was given; "
        "train digits-classifier and set eval.extractor to its snapshot"
    )


def test_scores_against_images_of_another_size_are_refused(tmp_path, data, extractor):
    other = Data(name="digits", image_size=(16, 16), cache=data.cache)
    with pytest.raises(
        ProtocolError, match=r"images are \(1, 8, 8\), but model 'digits-generator' was trained on \(1, 1"
    ):
        score_snapshot(save_generator(tmp_path / "m", data=other), data=data, settings=SETTINGS, extractor=extractor)


def test_scores_under_an_extractor_of_another_size_are_refused(tmp_path, data):
    other = save_classifier(tmp_path / "other", data=Data(name="digits", image_size=(16, 16)))
    with pytest.raises(ProtocolError, match=r"images are \(1, 8, 8\), but extractor .* was trained on \(1, 16, 16\)"):
        score_snapshot(save_generator(tmp_path / "model"), data=data, settings=SETTINGS, extractor=other)


def test_scores_of_a_model_of_other_classes_are_refused(tmp_path, data):
    directory = save_classifier(tmp_path / "model", classes=("cat", "dog"))
    with pytest.raises(ProtocolError, match="knows the classes cat, dog; the test split of 'digits' has 0, 1, 2"):
        score_snapshot(directory, data=data, settings=SETTINGS, extractor=None)


def test_scores_of_a_diverged_generator_are_an_error(tmp_path, data, extractor):
    directory = save_generator(tmp_path / "model", change=lambda module: next(module.parameters()).fill_(float("nan")))
    with pytest.raises(DivergenceError, match="generated images have non-finite pixels"):
        score_snapshot(directory, data=data, settings=SETTINGS, extractor=extractor)


def test_scores_under_two_extractors_cannot_be_compared(tmp_path, data, extractor):
    directory, other = save_generator(tmp_path / "model"), save_classifier(tmp_path / "other", seed=1)
    a, b = (score_snapshot(directory, data=data, settings=SETTINGS, extractor=e)[0] for e in (extractor, other))
    with pytest.raises(ProtocolError, match=r"cannot be compared \(extractor_digest: '\w{64}' != '\w{64}'\)"):
        better(a, b)


def test_scores_survive_their_file(tmp_path, data):
    scores = score_snapshot(save_classifier(tmp_path / "model"), data=data, settings=SETTINGS, extractor=None)
    write_scores(tmp_path / "scores.json", scores)
    assert read_scores(tmp_path / "scores.json") == scores
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["metric"] == "accuracy"


def test_scores_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, data):
    path = tmp_path / "here" / "scores.json"
    path.parent.mkdir()
    write_scores(path, [])
    with pytest.raises(AttributeError):
        write_scores(path, [object()])
    assert read_scores(path) == [] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "scores": [{}]}', '{"format": 2}'])
def test_scores_file_that_holds_something_else_is_refused_by_name(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ProtocolError, match=r"scores\.json holds no scores .*; delete it and score the snapshot again"):
        read_scores(tmp_path / "scores.json")


def test_scores_file_that_is_not_there_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"scores\.json cannot be read: .*score the snapshot first"):
        read_scores(tmp_path / "scores.json")


def test_conditional_generator_and_vae_compete_under_one_protocol(tmp_path, data, extractor):
    generator, vae = save_generator(tmp_path / "generator", conditional=True), save_vae(tmp_path / "vae")
    ours, theirs = (score_snapshot(d, data=data, settings=SETTINGS, extractor=extractor)[0] for d in (generator, vae))
    assert differences(ours.protocol, theirs.protocol) == []
