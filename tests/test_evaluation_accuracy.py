import pytest
import torch

from genray.errors import ProtocolError
from genray.evaluation.accuracy import accuracy, macro_recall


def test_accuracy_is_the_share_of_right_answers_with_its_binomial_error():
    predicted, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 1])
    assert accuracy(predicted, labels) == pytest.approx((0.75, (0.75 * 0.25 / 4) ** 0.5))


def test_accuracy_of_only_right_answers_is_one_without_error():
    labels = torch.arange(5)
    assert accuracy(labels, labels) == (1.0, 0.0)


def test_accuracy_error_is_the_deviation_over_repeated_draws():
    source = torch.Generator().manual_seed(0)
    right = (torch.rand(4000, 200, generator=source) < 0.8).long()
    values = right.double().mean(1)
    _, error = accuracy(right[0], torch.ones(200, dtype=torch.int64))
    assert error == pytest.approx(float(values.std()), rel=0.1)


def test_macro_recall_counts_every_class_alike():
    labels = torch.tensor([0] * 8 + [1] * 2)
    always_zero = torch.zeros(10, dtype=torch.int64)
    assert accuracy(always_zero, labels)[0] == 0.8
    assert macro_recall(always_zero, labels)[0] == 0.5


def test_macro_recall_of_balanced_classes_is_the_accuracy():
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(25)
    predicted = torch.randint(4, (100,), generator=source)
    assert macro_recall(predicted, labels)[0] == pytest.approx(accuracy(predicted, labels)[0])


def test_macro_recall_error_adds_the_classes_variances():
    predicted, labels = torch.tensor([0, 0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 0, 1, 1])
    expected = (0.75 * 0.25 / 4 + 0.5 * 0.5 / 2) ** 0.5 / 2
    assert macro_recall(predicted, labels) == pytest.approx((0.625, expected))


def test_macro_recall_leaves_out_classes_that_do_not_occur():
    assert macro_recall(torch.tensor([0, 7]), torch.tensor([0, 7])) == (1.0, 0.0)


@pytest.mark.parametrize("measure", [accuracy, macro_recall])
def test_accuracy_of_no_images_is_refused(measure):
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ProtocolError, match="accuracy of 0 images is not defined"):
        measure(empty, empty)
