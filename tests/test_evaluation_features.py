import pytest
import torch
from evaluation_snapshots import save_classifier, save_generator
from torch import nn

from genray import snapshot
from genray.config import Data
from genray.errors import DivergenceError, ProtocolError
from genray.evaluation.accuracy import predict
from genray.evaluation.features import extract


def images(num, *shape):
    return torch.randint(256, (num, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture
def classifier(tmp_path):
    return snapshot.load(save_classifier(tmp_path / "classifier"))


def test_features_are_the_classifiers_of_images_from_minus_one_to_one(classifier):
    pixels = images(5, 1, 8, 8)
    with torch.no_grad():
        expected = classifier.module.features(pixels.double().div(255).mul(2).sub(1).float())
    torch.testing.assert_close(extract(classifier, pixels), expected)


def test_features_are_float32_of_the_classifiers_width(classifier):
    features = extract(classifier, images(5, 1, 8, 8))
    assert features.dtype == torch.float32 and features.shape == (5, classifier.module.feature_dim)


def test_features_do_not_depend_on_the_batch_size(classifier):
    pixels = images(50, 1, 8, 8)
    torch.testing.assert_close(extract(classifier, pixels, 7), extract(classifier, pixels, 50))


def test_features_of_no_images_are_none(classifier):
    assert extract(classifier, images(0, 1, 8, 8)).shape == (0, classifier.module.feature_dim)


def test_features_of_images_of_another_size_are_refused(classifier):
    with pytest.raises(ProtocolError) as caught:
        extract(classifier, images(2, 3, 16, 16))
    assert str(caught.value) == (
        "images are (3, 16, 16), but extractor 'digits-classifier' was trained on (1, 8, 8) (C, H, W); "
        "score with data of its shape, or take another extractor: images are never resized to fit"
    )


def test_features_of_a_generator_are_refused(tmp_path):
    generator = snapshot.load(save_generator(tmp_path / "generator"))
    with pytest.raises(ProtocolError, match=r"extractor is a generator \('digits-generator'\), expected a classifier"):
        extract(generator, images(2, 1, 8, 8))


def test_features_that_are_not_finite_are_refused_and_counted(tmp_path):
    def spoil(module):
        first = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
        first.weight.fill_(float("inf"))

    spoilt = snapshot.load(save_classifier(tmp_path / "spoilt", change=spoil))
    with pytest.raises(ProtocolError, match="2 of 2 images have non-finite features under extractor 'digits-class"):
        extract(spoilt, images(2, 1, 8, 8))
    with pytest.raises(DivergenceError, match="gives non-finite logits for images 0 to 1"):
        predict(spoilt, images(2, 1, 8, 8))


def test_predictions_are_the_classes_of_the_largest_logits(classifier):
    pixels = images(20, 1, 8, 8)
    expected = classifier.module(pixels.float() / 127.5 - 1).argmax(1)
    assert torch.equal(predict(classifier, pixels, batch_size=6), expected)


def test_predictions_of_images_of_another_size_are_refused(tmp_path):
    other = snapshot.load(save_classifier(tmp_path / "other", data=Data(name="digits", image_size=(16, 16))))
    with pytest.raises(ProtocolError, match=r"images are \(1, 8, 8\), but classifier .* was trained on \(1, 16, 16\)"):
        predict(other, images(2, 1, 8, 8))
