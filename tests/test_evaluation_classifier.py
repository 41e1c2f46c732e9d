"""Metrics of classifiers against torchmetrics and scikit-learn."""

import pytest
import torch
from sklearn import metrics as oracle
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from genray.errors import ProtocolError
from genray.evaluation.accuracy import (
    confusion_matrix,
    macro_f1,
    macro_precision,
    macro_recall,
    per_class,
    top_k_accuracy,
)
from genray.evaluation.calibration import calibration_error, calibration_errors


@pytest.fixture
def logits():
    return torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def labels(logits):
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)) * 2
    return (logits + noise).argmax(1)


@pytest.mark.parametrize("k", [1, 2, 6])
def test_top_k_accuracy_agrees_with_torchmetrics(logits, labels, k):
    theirs = MulticlassAccuracy(6, top_k=k, average="micro")(logits, labels)
    assert top_k_accuracy(logits, labels, k)[0] == pytest.approx(float(theirs), rel=1e-6)


def test_top_k_accuracy_of_more_than_all_classes_is_refused(logits, labels):
    with pytest.raises(ProtocolError, match="top-7 accuracy of 6 classes is not defined; take k from 1 to 6"):
        top_k_accuracy(logits, labels, 7)


def test_macro_precision_and_recall_agree_with_sklearn(logits, labels):
    predicted = logits.argmax(1)
    precision = oracle.precision_score(labels, predicted, average="macro")
    recall = oracle.recall_score(labels, predicted, average="macro")
    assert macro_precision(predicted, labels)[0] == pytest.approx(precision, rel=1e-9)
    assert macro_recall(predicted, labels)[0] == pytest.approx(recall, rel=1e-9)


def test_f1_of_every_class_and_their_mean_agree_with_sklearn(logits, labels):
    predicted = logits.argmax(1)
    expected = oracle.f1_score(labels, predicted, average=None)
    assert per_class(confusion_matrix(predicted, labels, 6))["f1"] == pytest.approx(list(expected), rel=1e-9)
    assert macro_f1(predicted, labels, 6)[0] == pytest.approx(expected.mean(), rel=1e-9)


def test_f1_leaves_out_classes_that_do_not_occur_as_recall_does():
    predicted, labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1, 0])
    assert macro_f1(predicted, labels, 4)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_spread_of_f1_is_about_the_standard_error_of_as_even_a_share():
    labels = torch.arange(2).repeat(500)
    predicted = torch.where(torch.arange(1000) % 10 == 3, 1 - labels, labels)
    assert 0.5 < macro_f1(predicted, labels, 2)[1] / (0.9 * 0.1 / 1000) ** 0.5 < 2


def test_f1_of_no_images_is_refused():
    with pytest.raises(ProtocolError, match="of 0 images is not defined"):
        macro_f1(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 3)


def test_class_that_is_never_predicted_has_precision_0():
    assert macro_precision(torch.tensor([0, 0]), torch.tensor([0, 1]))[0] == 0.25


def test_confusion_matrix_agrees_with_sklearn(logits, labels):
    ours = confusion_matrix(logits.argmax(1), labels, 6)
    assert ours.tolist() == oracle.confusion_matrix(labels, logits.argmax(1)).tolist()


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_confusion_matrices_of_shards_add_up(logits, labels, num_shards):
    whole = confusion_matrix(logits.argmax(1), labels, 6)
    parts = zip(logits.argmax(1).tensor_split(num_shards), labels.tensor_split(num_shards), strict=True)
    assert torch.equal(sum(confusion_matrix(p, y, 6) for p, y in parts), whole)


def test_precision_and_recall_per_class_agree_with_sklearn(logits, labels):
    predicted = logits.argmax(1)
    found = per_class(confusion_matrix(predicted, labels, 6))
    assert found["precision"] == pytest.approx(oracle.precision_score(labels, predicted, average=None).tolist())
    assert found["recall"] == pytest.approx(oracle.recall_score(labels, predicted, average=None).tolist())


def test_recall_of_a_class_that_does_not_occur_is_none():
    found = per_class(confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 3))
    assert found == {"precision": [1.0, 0.0, None], "recall": [0.5, None, None], "f1": [2 / 3, 0.0, None]}


def test_calibration_error_agrees_with_torchmetrics(logits, labels):
    theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), labels)
    assert calibration_error(logits.softmax(1), labels) == pytest.approx(float(theirs), rel=1e-5)


def test_calibration_error_of_certain_and_right_is_0_and_of_certain_and_wrong_is_1():
    assert calibration_error(torch.eye(4), torch.arange(4)) == 0
    assert calibration_error(torch.eye(4), (torch.arange(4) + 1) % 4) == 1


def test_calibration_error_has_the_same_spread_twice(logits, labels):
    first = calibration_errors(logits.softmax(1), labels)
    assert first == calibration_errors(logits.softmax(1), labels)
    assert 0 < first[1] < 0.1


def test_calibration_error_of_no_images_is_refused():
    with pytest.raises(ProtocolError, match="calibration error of 0 images is not defined"):
        calibration_error(torch.zeros(0, 3), torch.zeros(0).long())
