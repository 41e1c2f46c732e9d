"""The journal: nothing missing, nothing doubled, whatever the crash."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genray.errors import StorageError
from genray.tracking import JsonlTracker, NullTracker, Tracker, read_journal


def entries(directory: Path, name: str = "train") -> list[dict]:
    return read_journal(directory / f"{name}.jsonl")[0]


def test_journal_returns_what_was_written(tmp_path: Path) -> None:
    tracker: Tracker = JsonlTracker(tmp_path, "train")
    tracker.metrics(10, {"generator/loss": 0.5, "perf/img_s": 3})
    tracker.event(10, "restart", worker=2, reason="lost")
    tracker.close()
    metrics, event = entries(tmp_path)
    assert metrics["step"] == 10 and metrics["metrics"] == {"generator/loss": 0.5, "perf/img_s": 3.0}
    assert event["event"] == "restart" and event["fields"] == {"worker": 2, "reason": "lost"}


def test_journal_is_strict_json_and_keeps_non_finite_values(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    tracker.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    tracker.event(1, "skipped", loss=math.nan, norms=(math.inf, 1.0))
    text = (tmp_path / "train.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not strict JSON"))
    values = entries(tmp_path)[0]["metrics"]
    assert math.isnan(values["a"]) and values["b"] == math.inf and values["c"] == -math.inf


def test_first_write_wins_over_a_resumed_run(tmp_path: Path) -> None:
    first = JsonlTracker(tmp_path, "train")
    for step in (10, 20, 30):
        first.metrics(step, {"loss": float(step)})
    first.event(20, "checkpoint", path="a")
    first.close()
    before = entries(tmp_path)

    resumed = JsonlTracker(tmp_path, "train")  # from a checkpoint at step 20
    resumed.event(20, "checkpoint", path="b")
    resumed.metrics(30, {"loss": -1.0, "late": 1.0})
    resumed.metrics(40, {"loss": 40.0})
    resumed.close()

    after = entries(tmp_path)
    assert after[: len(before)] == before
    assert [(e["step"], e["metrics"]) for e in after[len(before) :]] == [(30, {"late": 1.0}), (40, {"loss": 40.0})]


def test_first_write_wins_within_one_run(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    tracker.metrics(1, {"loss": 1.0})
    tracker.metrics(1, {"loss": 2.0})
    assert [e["metrics"] for e in entries(tmp_path)] == [{"loss": 1.0}]


def test_image_is_a_png_beside_the_journal_and_the_first_stays(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tracker.image(20, "samples/fixed", pixels)
    tracker.image(20, "samples/fixed", 255 - pixels)
    (entry,) = entries(tmp_path)
    assert entry["image"] == "samples/fixed"
    assert np.array_equal(np.asarray(Image.open(tmp_path / entry["path"])), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_image_of_another_shape_or_type_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        JsonlTracker(tmp_path, "train").image(1, "samples", pixels)


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "fid@50k", "a b", "ü", "a\n", "a" * 251])
def test_key_that_mlflow_or_a_path_cannot_hold_is_refused(tmp_path: Path, key: str) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    for call in (
        lambda: tracker.metrics(1, {key: 1.0}),
        lambda: tracker.image(1, key, np.zeros((1, 1, 3), np.uint8)),
        lambda: tracker.event(1, key),
    ):
        with pytest.raises(ValueError, match="must be words"):
            call()
    assert entries(tmp_path) == []


def test_torn_last_line_is_left_by_the_reader_and_cut_by_the_writer(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    tracker.metrics(1, {"loss": 1.0})
    tracker.metrics(2, {"loss": 2.0})
    tracker.close()
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    found, offset = read_journal(path)
    assert [e["step"] for e in found] == [1] and offset < path.stat().st_size

    resumed = JsonlTracker(tmp_path, "train")
    resumed.metrics(2, {"loss": 2.5})
    assert [e["metrics"]["loss"] for e in entries(tmp_path)] == [1.0, 2.5]


def test_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    path, offset, steps = tmp_path / "train.jsonl", 0, []
    assert read_journal(tmp_path / "missing.jsonl") == ([], 0)
    for step in range(7):
        tracker.metrics(step, {"loss": 0.0})
        if step % 3 == 0:
            found, offset = read_journal(path, offset, limit=2)
            steps += [e["step"] for e in found]
    found, offset = read_journal(path, offset)
    assert steps + [e["step"] for e in found] == list(range(7)) and offset == path.stat().st_size


@pytest.mark.parametrize(
    "line", [b"garbage", b"\0\0\0", b"[]", b"{}", b'{"time":1,"step":1}', b'{"time":1,"step":1,"metrics":{"a":"x"}}']
)
def test_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    tracker.metrics(1, {"loss": 1.0})
    path = tmp_path / "train.jsonl"
    at = path.stat().st_size
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(StorageError, match=f"train.jsonl is damaged at byte {at}"):
        read_journal(path)


def test_journal_shorter_than_what_was_read_is_refused(tmp_path: Path) -> None:
    JsonlTracker(tmp_path, "train").metrics(1, {"loss": 1.0})
    with pytest.raises(StorageError, match="restore it"):
        read_journal(tmp_path / "train.jsonl", offset=10_000)


def test_disk_that_is_full_raises_and_leaves_whole_lines(tmp_path: Path) -> None:
    # RLIMIT_FSIZE cuts a write short just as a full disk does.
    code = f"""
import resource, signal
from pathlib import Path
from genray.errors import StorageError
from genray.tracking import JsonlTracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tracker = JsonlTracker(Path({str(tmp_path)!r}), "train")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for step in range(1000):
        tracker.metrics(step, {{"loss": 1.0}})
except StorageError:
    print("refused", step)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    stopped_at = int(output.removeprefix("refused "))
    assert [e["step"] for e in entries(tmp_path)] == list(range(stopped_at))
    assert (tmp_path / "train.jsonl").read_bytes().endswith(b"\n")


def test_killed_writer_and_its_successor_leave_every_step_once(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from genray.tracking import JsonlTracker
tracker = JsonlTracker(Path({str(tmp_path)!r}), "train")
for step in range(10**9):
    tracker.metrics(step, {{"loss": float(step)}})
    if step == 200:
        print("running", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
    last = entries(tmp_path)[-1]["step"]
    resumed = JsonlTracker(tmp_path, "train")
    for step in range(last - 50, last + 50):
        resumed.metrics(step, {"loss": -1.0})
    assert [e["step"] for e in entries(tmp_path)] == list(range(last + 50))
    assert entries(tmp_path)[last]["metrics"] == {"loss": float(last)}


def test_null_tracker_takes_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker: Tracker = NullTracker()
    tracker.metrics(0, {"any thing": math.nan})
    tracker.image(0, "x", np.zeros((1, 1, 3), np.uint8))
    tracker.event(0, "x", a=1)
    tracker.flush()
    tracker.close()
    assert list(tmp_path.iterdir()) == []
