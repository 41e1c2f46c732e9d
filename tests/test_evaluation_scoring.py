import json
from dataclasses import replace

import pytest
import torch
from evaluation_snapshots import save, save_classifier, save_generator, save_vae

from genray import snapshot
from genray.config import Data, Eval
from genray.data.images import ImageSet, load_images
from genray.errors import ConfigError, DivergenceError, ProtocolError, StorageError
from genray.evaluation import METRICS, reference
from genray.evaluation.accuracy import accuracy, predict
from genray.evaluation.features import extract
from genray.evaluation.frechet import Moments, frechet_distance
from genray.evaluation.likelihood import bounds
from genray.evaluation.protocol import better, differences
from genray.evaluation.samples import TAKERS
from genray.evaluation.scoring import read_scores, reference_labels, score_images, score_snapshot, write_scores
from genray.models.vae import MLPVAE
from genray.objectives.rae import RAE
from genray.sampling import generate, latents, sample

PRDC = ["precision", "recall", "density", "coverage"]
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


def test_scores_of_a_classifier_are_accuracy_precision_and_recall_on_the_split(tmp_path, data, reals):
    directory = save_classifier(tmp_path / "model")
    first, *others = score_snapshot(directory, data=data, settings=SETTINGS, extractor=None)
    expected = accuracy(predict(snapshot.load(directory), reals.images), reals.labels)
    assert [first.metric, *(score.metric for score in others)] == ["accuracy", "precision", "recall"]
    assert (first.value, first.spread) == expected
    assert first.protocol.num_samples == len(reals) and first.protocol.num_seeds == 1


def test_scores_of_a_generator_are_fid_and_kid_over_seeds(tmp_path, data, reals, extractor):
    directory = save_generator(tmp_path / "model")
    settings = replace(SETTINGS, truncation=0.7)
    fid, kid, *_ = score_snapshot(directory, data=data, settings=settings, extractor=extractor)
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
    fid, kid, *_ = score_snapshot(save_generator(tmp_path / "model"), data=data, settings=settings, extractor=extractor)
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
    fid, *_ = score_snapshot(directory, data=data, settings=settings, extractor=extractor)
    fakes = generate(snapshot.load(directory).module, latents(100, 8, 5), reference_labels(reals, 100, 5), 64)
    moments = [Moments.of(extract(snapshot.load(extractor), images)) for images in (reals.images, fakes)]
    assert fid.value == pytest.approx(frechet_distance(*moments), rel=1e-6)
    assert fid.spread == 0 and fid.protocol.labels == "reference"


def test_scores_of_a_vae_end_with_its_elbo_over_seeds(tmp_path, data, reals, extractor):
    directory = save_vae(tmp_path / "model")
    scores = score_snapshot(directory, data=data, settings=SETTINGS, extractor=extractor)
    assert [score.metric for score in scores] == ["fid", "kid", *PRDC, "elbo"]
    values = [float(bounds(snapshot.load(directory), reals.images, seed).elbo.mean()) for seed in (5, 6)]
    assert scores[-1].value == pytest.approx(sum(values) / 2)
    assert scores[-1].protocol.extra == {"likelihood": "bernoulli", "binarize": True, "draws": 1}


def test_scores_of_a_vae_without_an_extractor_are_its_elbo(tmp_path, data):
    (score,) = score_snapshot(save_vae(tmp_path / "model"), data=data, settings=SETTINGS, extractor=None)
    assert score.metric == "elbo" and score.spread > 0


def test_scores_of_an_autoencoder_without_a_likelihood_or_an_extractor_are_refused(tmp_path, data):
    directory = save(tmp_path / "rae", MLPVAE(latent_dim=2, hidden=8), RAE())
    with pytest.raises(ProtocolError, match=r"^fid of 'digits-generator' needs an extractor, and none was given"):
        score_snapshot(directory, data=data, settings=SETTINGS, extractor=None)


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


def by_name(scores):
    return {score.metric: score for score in scores}


def test_scores_of_a_generator_default_to_the_cheap_ones(tmp_path, data, extractor):
    scores = score_snapshot(save_generator(tmp_path / "m"), data=data, settings=SETTINGS, extractor=extractor)
    assert [score.metric for score in scores] == ["fid", "kid", *PRDC]
    assert [score.protocol.extra for score in scores[2:]] == [{"k": 3}, {"k": 3}, {"k": 5}, {"k": 5}]


def test_every_metric_of_samples_can_be_asked_for_by_name(tmp_path, data, extractor):
    directory = save_generator(tmp_path / "model", conditional=True)
    settings = replace(SETTINGS, num_samples=300, metrics=tuple(TAKERS), classifier_steps=3)
    scores = score_snapshot(directory, data=data, settings=settings, extractor=extractor, cache=tmp_path / "cache")
    assert [score.metric for score in scores] == list(TAKERS)
    assert all(score.value == score.value for score in scores)
    found = by_name(scores)
    assert len(found["ifid"].details["per_class"]) == 10
    assert found["cas"].protocol.extra == {"steps": 3, "batch_size": 128}
    train = load_images(data, "train")
    assert found["auth_pct"].protocol.extra == {"train_digest": train.digest}


def test_every_metric_of_a_vae_can_be_asked_for_by_name(tmp_path, data, extractor):
    names = tuple(name for name, metric in METRICS.items() if metric.products == ("vae",))
    settings = replace(SETTINGS, metrics=names, importance_samples=3)
    scores = score_snapshot(save_vae(tmp_path / "m"), data=data, settings=settings, extractor=extractor)
    assert [score.metric for score in scores] == ["fid", *names]
    found = by_name(scores)
    assert found["elbo"].value == pytest.approx(-found["recon_nll"].value - found["kl"].value)
    assert found["bits_per_dim"].value == pytest.approx(-found["elbo"].value / (64 * 0.6931471805599453))
    assert found["nll"].protocol.extra["draws"] == 3
    assert len(found["kl"].details["per_dimension"]) == 3


def test_metrics_of_likelihood_need_no_extractor(tmp_path, data):
    settings = replace(SETTINGS, metrics=("kl", "active_units"))
    scores = score_snapshot(save_vae(tmp_path / "m"), data=data, settings=settings, extractor=None)
    assert [score.metric for score in scores] == ["elbo", "kl", "active_units"]


def test_metric_of_features_without_an_extractor_is_refused_of_a_vae_too(tmp_path, data):
    settings = replace(SETTINGS, metrics=("kl", "reconstruction_fid"))
    with pytest.raises(ProtocolError, match="reconstruction_fid of 'digits-generator' needs an extractor"):
        score_snapshot(save_vae(tmp_path / "m"), data=data, settings=settings, extractor=None)


def test_every_metric_of_a_classifier_can_be_asked_for_by_name(tmp_path, data):
    names = tuple(name for name, metric in METRICS.items() if "classifier" in metric.products)
    settings = replace(SETTINGS, metrics=names)
    scores = score_snapshot(save_classifier(tmp_path / "m"), data=data, settings=settings, extractor=None)
    assert [score.metric for score in scores] == list(dict.fromkeys(["accuracy", *names]))
    found = by_name(scores)
    matrix = torch.tensor(found["accuracy"].details["confusion"])
    assert int(matrix.sum()) == found["accuracy"].protocol.num_samples
    assert found["top_k_accuracy"].protocol.extra == {"k": 5}
    assert found["recall"].value == pytest.approx(sum(found["recall"].details["per_class"]) / 10)


def test_first_score_decides_whatever_is_asked_for(tmp_path, data, extractor):
    settings = replace(SETTINGS, metrics=("coverage",))
    scores = score_snapshot(save_generator(tmp_path / "m"), data=data, settings=settings, extractor=extractor)
    assert [score.metric for score in scores] == ["fid", "coverage"]


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match=r"eval.metrics: unknown metric 'coverag'; choose from .*mean 'coverage'"):
        Eval(metrics=("coverag",))


def test_metric_of_another_product_is_refused(tmp_path, data, extractor):
    settings = replace(SETTINGS, metrics=("elbo",))
    with pytest.raises(ConfigError, match=r"eval\.metrics: unknown metric of a generator 'elbo'; choose from"):
        score_snapshot(save_generator(tmp_path / "m"), data=data, settings=settings, extractor=extractor)


def test_metric_with_fewer_samples_than_neighbours_is_refused(tmp_path, data, extractor):
    settings = replace(SETTINGS, num_samples=3, metrics=("recall",))
    with pytest.raises(ProtocolError, match="the 3 nearest of 3 images are not defined, expected at least 4 images"):
        score_snapshot(save_generator(tmp_path / "m"), data=data, settings=settings, extractor=extractor)


def test_ifid_of_an_unconditional_generator_is_refused(tmp_path, data, extractor):
    settings = replace(SETTINGS, metrics=("ifid",))
    with pytest.raises(ProtocolError, match="ifid compares class by class, and these images were made for no class"):
        score_snapshot(save_generator(tmp_path / "m"), data=data, settings=settings, extractor=extractor)


def scored(images, data, extractor, *metrics):
    settings = replace(SETTINGS, metrics=metrics)
    return by_name(score_images(images, data=data, settings=settings, extractor=extractor))


def test_copy_of_the_training_set_is_called_memorised(data, extractor):
    found = scored(load_images(data, "train"), data, extractor, "auth_pct", "c_t", "train_distance")
    assert found["auth_pct"].value == 0
    assert found["c_t"].value < -5
    assert found["train_distance"].value == 0


def test_reals_that_were_not_trained_on_are_not_called_memorised(data, reals, extractor):
    found = scored(reals, data, extractor, "auth_pct", "c_t", "train_distance")
    assert found["auth_pct"].value > 40
    assert found["c_t"].value == pytest.approx(0, abs=1e-9)
    assert found["train_distance"].value == 1


def test_reals_score_perfectly_against_themselves(data, reals, extractor):
    found = scored(reals, data, extractor, *PRDC, "diversity", "ifid")
    assert found["fid"].value == pytest.approx(0, abs=1e-6)
    assert found["ifid"].value == pytest.approx(0, abs=1e-6)
    assert [found[name].value for name in ("precision", "recall", "coverage", "diversity")] == [1, 1, 1, 1]


def test_one_repeated_image_is_called_collapsed(data, reals, extractor):
    one = replace(reals, images=reals.images[:1].expand(len(reals), -1, -1, -1))
    found = scored(one, data, extractor, *PRDC, "diversity", "inception_score")
    assert found["recall"].value < 0.01
    assert found["coverage"].value < 0.1
    assert found["diversity"].value == pytest.approx(0, abs=1e-6)
    assert found["inception_score"].value == pytest.approx(1, abs=1e-4)


def test_copying_is_not_told_where_the_reference_is_the_training_set(data, extractor):
    settings = replace(SETTINGS, metrics=("c_t",), split="train")
    with pytest.raises(ProtocolError, match=r"eval\.split='train' is what was trained on"):
        score_images(load_images(data, "train"), data=data, settings=settings, extractor=extractor)


def test_images_of_another_size_than_the_reference_are_refused(data, extractor):
    other = load_images(replace(data, image_size=(16, 16)), "test")
    with pytest.raises(ProtocolError, match=r"images of 'digits' are \(1, 16, 16\), those of 'digits' \(1, 8, 8\)"):
        score_images(other, data=data, settings=SETTINGS, extractor=extractor)
