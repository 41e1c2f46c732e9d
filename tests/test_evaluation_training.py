"""The classification accuracy score on real digits: good images teach, noise and wrong labels do not."""

import pytest
import torch

from genray.config import Data
from genray.data.images import load_images
from genray.errors import ProtocolError
from genray.evaluation.training import share_right, train_classifier


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    data = Data(name="digits", cache=str(tmp_path_factory.mktemp("cache")))
    return load_images(data, "train"), load_images(data, "test")


def learned(images, labels, test, num_steps=60):
    return share_right(train_classifier(images, labels, 10, seed=0, num_steps=num_steps), test.images, test.labels)


def test_classifier_of_real_images_knows_the_test_split(splits):
    train, test = splits
    assert learned(train.images, train.labels, test) > 0.9


def test_classifier_of_images_with_wrong_labels_does_not(splits):
    train, test = splits
    assert learned(train.images, (train.labels + 1) % 10, test) < 0.1


def test_classifier_is_the_same_twice_and_leaves_the_global_numbers_alone(splits):
    train, _ = splits
    before = torch.random.get_rng_state()
    first, second = (train_classifier(train.images, train.labels, 10, seed=3, num_steps=3) for _ in range(2))
    assert torch.equal(first.head.weight, second.head.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_classifier_of_one_class_is_refused(splits):
    with pytest.raises(ProtocolError, match="cannot be trained on 5 images of 1 classes"):
        train_classifier(splits[0].images[:5], splits[0].labels[:5], 1, seed=0, num_steps=1)
