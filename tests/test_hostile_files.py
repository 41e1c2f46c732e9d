"""Whatever a file says, what reads it either understands or refuses it by one of genray's own errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from genray import checkpoint, snapshot
from genray.checkpoint import STATE, TENSORS
from genray.config import Config
from genray.errors import ConfigError, GenrayError, ProtocolError
from genray.evaluation.protocol import Protocol, Score
from genray.evaluation.scoring import read_scores
from genray.manifest import MANIFEST, seal, verify
from genray.search import parse_constraint
from genray.space import space_of
from genray.study import SETTINGS, Study
from genray.tracking import read_journal

EXAMPLES = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
PROTOCOL = Protocol(metric="fid", data="digits", split="test", data_digest="ab", num_samples=10, num_seeds=1)
CONFIG = tiny_config().to_dict()
CARD = {
    "format": 1,
    "config": CONFIG,
    "image_shape": [1, 8, 8],
    "classes": list("0123456789"),
    "step": 1,
    "samples_seen": 16,
    "data": {"digest": "ab"},
}
ENTRY = {"time": 1, "step": 2, "metrics": {"generator/loss": 0.5}}


@st.composite
def damaged(draw: st.DrawFn, whole: dict[str, Any]) -> Any:
    """`whole` with one value, at any depth, replaced by anything or taken away."""
    copy = json.loads(json.dumps(whole))
    node, key = copy, draw(st.sampled_from(sorted(copy)))
    while isinstance(node[key], dict) and node[key] and draw(st.booleans()):
        node = node[key]
        key = draw(st.sampled_from(sorted(node)))
    if draw(st.booleans()):
        node[key] = draw(JSON)
    else:
        del node[key]
    return copy


@EXAMPLES
@given(damaged(CONFIG) | JSON)
@example(CONFIG | {"model": {"name": []}})
@example(CONFIG | {"model": {"name": None}})
def test_a_config_is_built_or_refused(values: Any) -> None:
    try:
        made = Config.from_dict(values)
    except ConfigError:
        return
    assert Config.from_dict(made.to_dict()) == made


@EXAMPLES
@given(damaged(PROTOCOL.to_dict()) | JSON)
def test_a_protocol_is_read_or_refused(values: Any) -> None:
    try:
        made = Protocol.from_dict(values)
    except ProtocolError:
        return
    assert Protocol.from_dict(made.to_dict()) == made and len(made.digest) == 64


@EXAMPLES
@given(damaged({"format": 1, "scores": [Score("fid", 1.0, 0.1, PROTOCOL).to_dict()]}) | JSON)
def test_a_file_of_scores_is_read_or_refused(tmp_path: Path, values: Any) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(values))
    try:
        found = read_scores(tmp_path / "scores.json")
    except ProtocolError:
        return
    assert [score.metric for score in found] == [score["metric"] for score in values["scores"]]


@EXAMPLES
@given(st.binary(max_size=200) | (damaged(ENTRY) | JSON).map(lambda entry: json.dumps(entry).encode() + b"\n"))
def test_a_journal_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    try:
        entries, end = read_journal(tmp_path / "train.jsonl")
    except GenrayError:
        return
    assert end <= len(content) and len(entries) == content[:end].count(b"\n")


@EXAMPLES
@given(st.binary(max_size=100) | (damaged({"format": 1, "files": {"a": "0" * 64}}) | JSON).map(json.dumps))
def test_a_manifest_that_was_not_sealed_here_is_refused(tmp_path: Path, content: bytes | str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GenrayError):
        verify(tmp_path, ("a",))


@EXAMPLES
@given(damaged({"step": 1, "config": CONFIG, "world_size": 1}) | JSON)
def test_a_checkpoint_whose_digests_are_right_is_read_or_refused(tmp_path: Path, state: Any) -> None:
    def write(folder: Path) -> None:
        (folder / STATE).write_text(json.dumps(state))
        save_file({"a": torch.zeros(1)}, folder / TENSORS)

    seal(tmp_path / "c", write)
    try:
        found = checkpoint.read(tmp_path / "c")
    except GenrayError:
        return
    assert isinstance(found.step, int)


@settings(EXAMPLES, max_examples=60)
@given(damaged(CARD) | JSON)
def test_a_snapshot_whose_digests_are_right_is_opened_or_refused(tmp_path: Path, card: Any) -> None:
    def write(folder: Path) -> None:
        (folder / snapshot.CARD).write_text(json.dumps(card))
        save_file({"a": torch.zeros(1)}, folder / snapshot.WEIGHTS)

    seal(tmp_path / "s", write)
    with pytest.raises(GenrayError):  # at the latest for its weights
        snapshot.load(tmp_path / "s")


@EXAMPLES
@given(JSON)
def test_the_record_of_a_study_is_read_or_refused(tmp_path: Path, values: Any) -> None:
    (tmp_path / "s").mkdir(exist_ok=True)
    (tmp_path / "s" / SETTINGS).write_text(json.dumps(values))
    with pytest.raises(GenrayError):
        Study.open(str(tmp_path), "s")


@EXAMPLES
@given(st.text(max_size=40) | st.from_regex(r"optim\.lr=(log|uniform|int|choice|fixed)( \S+){0,3}", fullmatch=True))
def test_what_is_typed_is_understood_or_refused(text: str) -> None:
    for read in (lambda: space_of({}, [text]), lambda: parse_constraint(text)):
        try:
            assert isinstance(read(), dict | tuple)
        except ConfigError as error:
            assert str(error).startswith("search.")


@EXAMPLES
@given(st.binary(max_size=300))
def test_weights_that_are_no_tensors_are_refused(tmp_path: Path, content: bytes) -> None:
    def write(folder: Path) -> None:
        (folder / STATE).write_text(json.dumps({"step": 1}))
        (folder / TENSORS).write_bytes(content)

    seal(tmp_path / "c", write)
    with pytest.raises(GenrayError):
        checkpoint.read(tmp_path / "c")
