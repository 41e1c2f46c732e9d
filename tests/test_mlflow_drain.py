"""The drain against a real server that dies, and a real SQLite store: every point once."""

import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlflow", reason="needs genray[mlflow]")
from mlflow import MlflowClient
from mlflow_server import Server, new_server, new_store
from PIL import Image

from genray.errors import StorageError, TrackingError
from genray.mlflow_drain import Delivery, Drain, sync
from genray.mlflow_store import wait_for
from genray.mlflow_tracking import start_run
from genray.tracking import JsonlTracker

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with new_store(tmp_path_factory.mktemp("store")) as address:
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = new_server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def start(uri: str) -> str:
    return start_run(uri, experiment="genray/drain", name="r", params={}, config={}, tags={})


def write(directory: Path, steps: range, name: str = "train") -> None:
    tracker = JsonlTracker(directory, name)
    for step in steps:
        tracker.metrics(step, {"generator/loss": step / 7, "discriminator/loss": -float(step)})
    tracker.close()


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key))


def look(client: MlflowClient, run_id: str, path: str) -> np.ndarray:
    with Image.open(client.download_artifacts(run_id, path)) as picture:
        return np.asarray(picture)


def test_every_value_arrives_with_its_time_and_step(uri: str, tmp_path: Path) -> None:
    run_id = start(uri)
    write(tmp_path, range(1500))
    write(tmp_path, range(2000, 2003), name="eval")
    assert sync(tmp_path, uri, run_id) == Delivery(sent=3006, stored=3006, unsent=0)
    expected = [(step, step / 7) for step in (*range(1500), *range(2000, 2003))]
    assert history(uri, run_id, "generator/loss") == expected
    line = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    points = MlflowClient(uri).get_metric_history(run_id, "generator/loss")
    assert min(point.timestamp for point in points) == line["time"]


def test_replay_of_everything_changes_nothing(uri: str, tmp_path: Path) -> None:
    run_id = start(uri)
    tracker = JsonlTracker(tmp_path, "train")
    for step in range(50):
        tracker.metrics(step, {"a": 0.1 * step, "nan": math.nan, "inf": math.inf, "minus": -math.inf})
    tracker.image(7, "samples/fixed", np.zeros((8, 8, 3), np.uint8))
    tracker.close()
    first = sync(tmp_path, uri, run_id)
    pictures = [file.path for file in MlflowClient(uri).list_artifacts(run_id, "images")]
    tmp_path.with_name(f"{tmp_path.name}.ack.json").unlink()
    assert sync(tmp_path, uri, run_id) == first == Delivery(sent=200, stored=200, unsent=0)
    assert [file.path for file in MlflowClient(uri).list_artifacts(run_id, "images")] == pictures
    assert all(math.isnan(value) for _, value in history(uri, run_id, "nan"))


def test_ack_of_another_run_is_not_believed(uri: str, tmp_path: Path) -> None:
    write(tmp_path, range(10))
    sync(tmp_path, uri, start(uri))
    run_id = start(uri)
    drain = Drain(uri, run_id, tmp_path, interval=0.01)
    drain.start()
    assert drain.finish(30) == Delivery(sent=20, stored=20, unsent=0)


def test_picture_has_the_name_and_look_that_mlflow_gives_it(uri: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    tracker = JsonlTracker(tmp_path, "train")
    tracker.image(20, "samples/fixed", pixels)
    tracker.close()
    ours, theirs = start(uri), start(uri)
    assert sync(tmp_path, uri, ours).complete
    client = MlflowClient(uri)
    client.log_image(theirs, pixels, key="samples/fixed", step=20, timestamp=1)
    found = [sorted(file.path for file in client.list_artifacts(run_id, "images")) for run_id in (ours, theirs)]
    anonymous = [[re.sub(r"timestamp\+\d+\+[0-9a-f-]{36}", "", path) for path in paths] for paths in found]
    assert anonymous[0] == anonymous[1] and len(found[0]) == 2
    for run_id in (ours, theirs):
        assert client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
    sizes = []
    for run_id, paths in zip((ours, theirs), found, strict=True):
        preview, full = (look(client, run_id, path) for path in paths)
        assert np.array_equal(full, pixels)
        sizes.append(preview.shape)
    assert sizes[0] == sizes[1]


def test_event_becomes_a_tag_with_its_latest_fields(uri: str, tmp_path: Path) -> None:
    run_id = start(uri)
    tracker = JsonlTracker(tmp_path, "train")
    tracker.event(10, "restart", worker=1)
    tracker.event(20, "restart", worker=2)
    tracker.close()
    sync(tmp_path, uri, run_id)
    fields = json.loads(MlflowClient(uri).get_run(run_id).data.tags["genray.event.restart"])
    assert (fields["step"], fields["worker"]) == (20, 2)


def test_picture_that_is_gone_is_counted_and_costs_no_metric(uri: str, tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path, "train")
    tracker.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    tracker.metrics(2, {"loss": 1.0})
    tracker.close()
    (tmp_path / "train/samples/000000001.png").unlink()
    assert sync(tmp_path, uri, start(uri)) == Delivery(sent=1, stored=1, unsent=1)


def test_damaged_journal_is_told_and_costs_the_others_nothing(uri: str, tmp_path: Path) -> None:
    write(tmp_path, range(5))
    write(tmp_path, range(5), name="a")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    run_id = start(uri)
    drain = Drain(uri, run_id, tmp_path, interval=0.01)
    drain.start()
    delivery = drain.finish(1)
    assert (delivery.sent, delivery.complete) == (10, False) and len(history(uri, run_id, "generator/loss")) == 5
    with pytest.raises(StorageError, match=r"a\.jsonl is damaged at byte 0"):
        sync(tmp_path, uri, run_id)


def test_drain_follows_a_journal_that_grows_and_refreshes_first(uri: str, tmp_path: Path) -> None:
    calls = []
    run_id = start(uri)
    drain = Drain(uri, run_id, tmp_path / "later", refresh=lambda: calls.append(1), interval=0.01)
    drain.start()
    tracker = JsonlTracker(tmp_path / "later", "train")
    for step in range(300):
        tracker.metrics(step, {"loss": float(step)})
        time.sleep(0.001)
    tracker.close()
    assert drain.finish(60) == Delivery(sent=300, stored=300, unsent=0)
    assert calls and history(uri, run_id, "loss") == [(step, float(step)) for step in range(300)]


def test_server_killed_and_started_again_has_every_point_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start(server.uri)
    caplog.set_level(logging.INFO)
    drain = Drain(server.uri, run_id, tmp_path, interval=0.05)
    drain.start()
    tracker = JsonlTracker(tmp_path, "train")

    def log(steps: range) -> None:
        for step in steps:
            tracker.metrics(step, {"loss": float(step), "nan": math.nan, "inf": math.inf})
            time.sleep(0.002)

    log(range(300))
    tracker.image(300, "samples/fixed", np.zeros((8, 8, 3), np.uint8))
    server.kill()  # in the middle of what the drain does
    log(range(300, 900))
    time.sleep(1)
    server.start()
    log(range(900, 1000))
    tracker.close()
    assert drain.finish(60) == Delivery(sent=3000, stored=3000, unsent=0)
    assert history(server.uri, run_id, "loss") == [(step, float(step)) for step in range(1000)]
    assert len(MlflowClient(server.uri).list_artifacts(run_id, "images")) == 2
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2 and "trying on" in lines[0] and "goes on" in lines[1]


def test_server_that_stays_away_leaves_the_rest_to_sync(server: Server, tmp_path: Path) -> None:
    run_id = start(server.uri)
    write(tmp_path, range(100))
    drain = Drain("http://127.0.0.1:9", run_id, tmp_path, interval=0.01)
    drain.start()
    assert drain.finish(1) == Delivery(sent=0, stored=0, unsent=200)
    with pytest.raises(TrackingError, match="does not answer"):
        sync(tmp_path, "http://127.0.0.1:9", run_id)
    assert sync(tmp_path, server.uri, run_id) == Delivery(sent=200, stored=200, unsent=0)


def test_server_that_is_being_restarted_is_waited_for(server: Server) -> None:
    server.kill()
    assert not wait_for(server.uri, 0)
    starter = threading.Timer(1, server.start)
    starter.start()
    assert wait_for(server.uri, 60)
    starter.join()


def test_driver_killed_between_sending_and_confirming_doubles_nothing(uri: str, tmp_path: Path) -> None:
    run_id = start(uri)
    write(tmp_path, range(400))
    tracker = JsonlTracker(tmp_path, "train")
    tracker.image(400, "samples", np.zeros((2, 2, 3), np.uint8))
    tracker.close()
    code = (
        "import os, genray.mlflow_drain as d; from pathlib import Path; "
        "d._confirm = lambda *_: os.kill(os.getpid(), 9); "  # everything is sent, nothing is noted
        f"d.sync(Path({str(tmp_path)!r}), {uri!r}, {run_id!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(history(uri, run_id, "generator/loss")) == 400
    drain = Drain(uri, run_id, tmp_path, interval=0.01)
    drain.start()
    assert drain.finish(30) == Delivery(sent=800, stored=800, unsent=0)
    assert len(MlflowClient(uri).list_artifacts(run_id, "images")) == 2
