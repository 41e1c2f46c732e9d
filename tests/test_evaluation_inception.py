"""The Inception Score against torchmetrics' formula and closed forms."""

import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore

from genray.errors import ProtocolError
from genray.evaluation.inception import inception_score, inception_scores


def test_inception_score_is_1_where_every_image_has_the_same_classes():
    assert inception_score(torch.full((50, 4), 0.25)) == pytest.approx(1, abs=1e-12)


def test_inception_score_is_the_number_of_classes_where_each_is_certain_and_equally_frequent():
    assert inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10, rel=1e-12)


def test_inception_score_of_a_collapsed_generator_is_1():
    assert inception_score(torch.eye(10)[:1].expand(50, -1)) == pytest.approx(1, abs=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_score_agrees_with_torchmetrics():
    logits = torch.randn(60, 10, generator=torch.Generator().manual_seed(0)).double() * 3
    theirs = InceptionScore(nn.Identity(), splits=1).double()
    theirs.update(logits)
    assert inception_score(logits.softmax(1)) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


def test_inception_scores_of_splits_are_those_of_the_parts_in_order():
    found = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert inception_scores(found, 3) == [inception_score(found[i : i + 10]) for i in (0, 10, 20)]


def test_inception_scores_of_fewer_images_than_splits_are_refused():
    with pytest.raises(ProtocolError, match="over 10 splits needs at least 10 images, got 9"):
        inception_scores(torch.eye(9))


def test_inception_score_of_a_probability_that_is_not_finite_is_refused():
    with pytest.raises(ProtocolError, match="with 3 that are not finite"):
        inception_score(torch.full((1, 3), float("nan")))
