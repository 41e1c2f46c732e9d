"""The classifier: shapes, features, and how far it halves."""

import pytest
import torch
from torch import nn

from genray.models.resnet import ResNetClassifier

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 32, 64), (3, 64, 64), (1, 3, 5)]


@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_resnet_gives_one_logit_per_class(image_shape: tuple[int, int, int]) -> None:
    classifier = ResNetClassifier(width=4).build(image_shape, 7)["classifier"]
    assert classifier(torch.randn(2, *image_shape)).shape == (2, 7)


def test_resnet_features_have_the_dimension_that_it_says() -> None:
    classifier = ResNetClassifier(width=4, num_stages=3).build((1, 8, 8), 7)["classifier"]
    assert classifier.features(torch.randn(2, 1, 8, 8)).shape == (2, classifier.feature_dim) == (2, 16)


def test_resnet_logits_are_a_linear_map_of_the_features() -> None:
    classifier = ResNetClassifier(width=4).build((1, 8, 8), 7)["classifier"].eval()
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(classifier(images), classifier.head(classifier.features(images)))


@pytest.mark.parametrize(("side", "smallest"), [(8, 2), (28, 2), (32, 2), (64, 2), (5, 3), (3, 3)])
def test_resnet_of_many_stages_halves_no_map_below_four_pixels(side: int, smallest: int) -> None:
    classifier = ResNetClassifier(width=1, num_stages=6).build((1, side, side), 2)["classifier"]
    assert classifier.layers(torch.randn(2, 1, side, side)).shape[2:] == (smallest, smallest)


def test_resnet_has_as_many_blocks_as_asked_for() -> None:
    classifier = ResNetClassifier(width=2, num_stages=2, blocks_per_stage=3).build((1, 8, 8), 2)["classifier"]
    assert sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in classifier.modules()) == 13


def test_resnet_needs_two_classes() -> None:
    with pytest.raises(
        ValueError, match=r"^model resnet-classifier needs 2 classes or more, and the data have 1; set "
    ):
        ResNetClassifier().build((1, 8, 8), 1)


@pytest.mark.parametrize("knob", ["width", "num_stages", "blocks_per_stage"])
def test_resnet_refuses_a_knob_of_zero(knob: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{knob}=0 must be at least 1$"):
        ResNetClassifier(**{knob: 0})
