import dataclasses
import json
import math

import pytest

from genray.errors import ProtocolError
from genray.evaluation import METRICS
from genray.evaluation.protocol import Protocol, Score, better, differences


def fid_protocol(**changes):
    fields = {
        "metric": "fid",
        "data": "mnist",
        "split": "test",
        "data_digest": "d" * 64,
        "num_samples": 10_000,
        "num_seeds": 3,
        "extractor": "mnist-classifier",
        "extractor_digest": "e" * 64,
    }
    return Protocol(**(fields | changes))


def score(value, spread=0.0, **changes):
    protocol = fid_protocol(**changes)
    return Score(protocol.metric, value, spread, protocol)


def test_protocol_survives_json():
    protocol = fid_protocol(extra={"subset_size": 1000, "rule": "threshold"})
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


def test_score_survives_json():
    there = score(12.5, 0.25)
    assert Score.from_dict(json.loads(json.dumps(there.to_dict()))) == there


def test_score_that_is_not_finite_is_valid_json_and_comes_back_as_nan():
    text = json.dumps(score(math.inf, math.nan).to_dict(), allow_nan=False)
    back = Score.from_dict(json.loads(text))
    assert math.isnan(back.value) and math.isnan(back.spread)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Protocol)])
def test_protocol_digest_depends_on_every_field(name):
    other = {
        "metric": "kid", "ema": False, "extra": {"subset_size": 50}, "truncation": 0.7, "seed": 9, "num_seeds": 4,
        "num_samples": 5, "labels": "reference",
    }  # fmt: skip
    assert fid_protocol(**{name: other.get(name, "another")}).digest != fid_protocol().digest


def test_protocol_digest_does_not_depend_on_the_order_of_extra_or_int_versus_float_truncation():
    a = fid_protocol(extra={"a": 1, "b": 2}, truncation=1)
    b = fid_protocol(extra={"b": 2, "a": 1}, truncation=1.0)
    assert a.digest == b.digest and differences(a, b) == []


def test_protocol_digest_is_pinned():
    # A changed digest would orphan every champion's protocol in a registry.
    assert fid_protocol().digest == "01b6173ad73f857d9f020aaa7b4ab5ed277ea5bb18e7c17990e6cf91dad834ef"


def test_differences_name_each_field_with_both_values():
    a = fid_protocol(extra={"subset_size": 1000})
    b = fid_protocol(num_samples=5000, extra={"subset_size": 500, "num_subsets": 10})
    assert differences(a, b) == [
        "extra.num_subsets: None != 10",
        "extra.subset_size: 1000 != 500",
        "num_samples: 10000 != 5000",
    ]


def test_protocol_of_an_unknown_metric_is_refused():
    with pytest.raises(ProtocolError, match=r"unknown metric 'fed'.*did you mean 'fid'"):
        fid_protocol(metric="fed")


def test_protocol_with_an_unknown_field_is_refused():
    with pytest.raises(ProtocolError, match=r"unknown field of a protocol 'num_sample'.*did you mean 'num_samples'"):
        Protocol.from_dict(fid_protocol().to_dict() | {"num_sample": 5})


def test_protocol_without_a_needed_field_is_refused():
    values = fid_protocol().to_dict()
    del values["data_digest"], values["split"]
    with pytest.raises(ProtocolError, match="protocol lacks split, data_digest; it was not written by genray, or torn"):
        Protocol.from_dict(values)


def test_score_with_the_protocol_of_another_metric_is_refused():
    with pytest.raises(ProtocolError, match="score of 'kid' carries a protocol of 'fid'"):
        Score("kid", 1.0, 0.0, fid_protocol())


def test_better_of_different_protocols_raises_and_lists_every_difference():
    with pytest.raises(ProtocolError) as caught:
        better(score(1.0, split="train", truncation=0.5), score(2.0))
    assert str(caught.value) == (
        "scores of different protocols cannot be compared (split: 'train' != 'test'; truncation: 0.5 != 1.0); "
        "score both under one protocol"
    )


@pytest.mark.parametrize(
    ("candidate", "champion", "expected"),
    [
        ((9.0, 0.5), (10.0, 0.5), True),
        ((9.0, 1.0), (10.0, 0.5), False),  # a gain of exactly the larger spread is not more than it
        ((9.0, 0.5), (10.0, 1.0), False),
        ((8.9, 0.5), (10.0, 1.0), True),
        ((10.0, 0.0), (10.0, 0.0), False),
        ((11.0, 0.0), (10.0, 0.0), False),
    ],
)
def test_better_fid_is_lower_by_more_than_the_larger_spread(candidate, champion, expected):
    assert better(score(*candidate), score(*champion)) is expected


def test_better_accuracy_is_higher():
    assert better(score(0.9, 0.01, metric="accuracy"), score(0.8, 0.01, metric="accuracy"))
    assert not better(score(0.8, 0.01, metric="accuracy"), score(0.9, 0.01, metric="accuracy"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_better_is_false_for_a_candidate_that_is_not_finite(value):
    assert not better(score(value), score(10.0))
    assert not better(score(1.0, abs(value)), score(10.0))
    assert not better(score(value), score(value))


def test_better_is_true_for_a_finite_candidate_against_a_champion_that_is_not():
    assert better(score(1e9), score(math.nan))


def test_metrics_directions_are_the_known_ones():
    lower = {name for name, metric in METRICS.items() if metric.direction == "min"}
    distances = {"fid", "kid", "ifid", "reconstruction_fid"}
    assert lower == distances | {"recon_nll", "kl", "nll", "bits_per_dim", "calibration_error"}


def test_score_keeps_its_details_and_does_not_compare_them():
    plain = score(9.0)
    detailed = dataclasses.replace(plain, details={"per_class": [8.0, 10.0]})
    assert Score.from_dict(json.loads(json.dumps(detailed.to_dict()))) == detailed
    assert not better(plain, detailed) and differences(plain.protocol, detailed.protocol) == []


def test_score_without_details_written_before_there_were_any_is_read():
    values = score(9.0).to_dict()
    del values["details"]
    assert Score.from_dict(values) == score(9.0)
