"""From the journals of a run to MLflow, whenever MLflow is there.

Every point goes out with the time it was made at, so MLflow drops what it already has: delivery is
at least once, the record exactly once. Pictures get names made from the run, key and step, so a
second upload overwrites the first. How far the journals of a folder were delivered stands in `FOLDER.ack.json`.
"""

import json
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from genray.errors import StorageError
from genray.mlflow_store import cause, connect, reporting
from genray.mlflow_tracking import set_tags
from genray.tracking import read_journal

_log = logging.getLogger(__name__)

_METRICS_A_BATCH = 1000  # MLflow's limit
_ENTRIES_A_ROUND = 1000
_LONGEST_PAUSE = 30.0  # seconds
_TAG_CHARACTERS = 5000
_PREVIEW_PIXELS = 256
_OTHER = ""  # stands among metric keys for pictures and events


@dataclass(frozen=True)
class Delivery:
    """What became of the journals of a run."""

    sent: int
    """Metric values that MLflow confirmed."""
    stored: int
    """Metric values that MLflow has under the same keys; 0 if it could not be asked."""
    unsent: int
    """Metric values, pictures and events that MLflow has not taken, or that are lost."""

    @property
    def complete(self) -> bool:
        """Whether MLflow has all, and nothing twice."""
        return self.unsent == 0 and self.sent == self.stored


class Drain:
    """A thread of the driver that keeps an MLflow run up to date with the journals of a folder.

    A server that is away is asked again for as long as the run lasts, with growing pauses up to half
    a minute; one line on the log says so, and another that it is back. Nothing is ever raised.

    Args:
        uri: what `resolve_uri` returned.
        run_id: of an existing MLflow run.
        directory: its `*.jsonl` files are the journals; new ones are noticed.
        refresh: called before every reading, where the folder is a copy of a remote one; it copies
            pictures before the journal that names them.
        interval: seconds between two readings.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        directory: Path,
        *,
        refresh: Callable[[], object] | None = None,
        interval: float = 1.0,
    ) -> None:
        self._uri, self._run_id, self._directory = uri, run_id, directory
        self._refresh = refresh or (lambda: None)
        self._interval = interval
        self._finishing = threading.Event()
        self._deadline = float("inf")
        self._delivery: Delivery | None = None
        self._lost = 0
        self._client: MlflowClient | None = None
        self._thread = threading.Thread(target=self._run, name="genray-drain", daemon=True)

    def start(self) -> None:
        """Begins to deliver; returns at once."""
        self._thread.start()

    def finish(self, timeout: float) -> Delivery:
        """Delivers what is left, for at most about `timeout` seconds, and compares both sides' counts.

        The journals must be closed. What stays unsent is still in them: `sync` delivers it later.
        """
        self._deadline = time.monotonic() + timeout
        self._finishing.set()
        self._thread.join(timeout + 1)
        delivery = self._delivery or self._unfinished()
        if not delivery.complete:
            _log.warning("MLflow run %s: %s; the journals are in %s", self._run_id, delivery, self._directory)
        return delivery

    def _unfinished(self) -> Delivery:
        sent, unsent = _tally(self._directory, self._run_id)
        return Delivery(sent=sent.total(), stored=0, unsent=unsent + self._lost)

    def _run(self) -> None:
        # urllib3 would log every retry of a long outage; this thread says it once.
        transport = logging.getLogger("urllib3.connectionpool")
        transport.addFilter(self._not_of_this_thread)
        try:
            self._keep_up()
        finally:
            transport.removeFilter(self._not_of_this_thread)

    def _keep_up(self) -> None:
        pause, away_since = self._interval, 0.0
        while self._delivery is None:
            finishing = self._finishing.is_set()
            try:
                self._refresh()
                self._deliver_once(finishing)
            except Exception as error:  # whatever it is, the journals are safe and training goes on
                if not away_since:
                    away_since = time.monotonic()
                    _log.warning("delivery to MLflow waits: %s; trying on", cause(error))
                pause = min(2 * pause, 1.0 if finishing else _LONGEST_PAUSE)
                if finishing and time.monotonic() + pause > self._deadline:
                    return
            else:
                if away_since:
                    _log.warning("delivery to MLflow goes on after %.0f s", time.monotonic() - away_since)
                pause, away_since = self._interval, 0.0
            if finishing:
                time.sleep(pause)  # the event is set and would not wait
            else:
                self._finishing.wait(pause)

    def _deliver_once(self, finishing: bool) -> None:
        self._client = self._client or connect(self._uri)
        lost, damaged = deliver(self._client, self._run_id, self._directory)
        self._lost += lost
        if damaged:
            raise damaged
        if finishing:
            self._delivery = _count(self._client, self._run_id, self._directory, self._lost)

    def _not_of_this_thread(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread.ident


def sync(directory: Path, uri: str, run_id: str) -> Delivery:
    """Delivers all journals of a folder to an MLflow run from their beginning; doing it again changes nothing.

    Raises:
        TrackingError: the server does not answer or refuses.
        StorageError: a journal is damaged.
    """
    client = connect(uri)
    with reporting(uri):
        lost, damaged = deliver(client, run_id, directory, again=True)
        if damaged:
            raise damaged
        return _count(client, run_id, directory, lost)


def deliver(
    client: MlflowClient, run_id: str, directory: Path, *, again: bool = False
) -> tuple[int, StorageError | None]:
    """Sends what the journals have beyond what was confirmed.

    Args:
        client: of the store that has the run.
        run_id: of an existing MLflow run.
        directory: its `*.jsonl` files are the journals.
        again: send everything, whatever was confirmed.

    Returns:
        The number of pictures that are gone, and what is wrong with a journal that could only be sent in part.
    """
    lost, damaged = 0, None
    offsets = {} if again else _confirmed(directory, run_id)
    for path in _journals(directory):
        try:
            while (chunk := read_journal(path, offsets.get(path.name, 0), _ENTRIES_A_ROUND))[0]:
                lost += _send(client, run_id, directory, chunk[0])
                offsets[path.name] = chunk[1]
                _confirm(directory, run_id, offsets)
        except StorageError as error:
            damaged = error
    return lost, damaged


def _send(client: MlflowClient, run_id: str, directory: Path, entries: Sequence[dict[str, Any]]) -> int:
    points = [Metric(k, v, e["time"], e["step"]) for e in entries for k, v in e.get("metrics", {}).items()]
    for start in range(0, len(points), _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_A_BATCH], synchronous=True)
    events = {f"genray.event.{e['event']}": _event_text(e) for e in entries if "event" in e}
    set_tags(client, run_id, events)
    pictures = [e for e in entries if "image" in e]
    found = [e for e in pictures if (directory / e["path"]).is_file()]
    if found:
        _send_pictures(client, run_id, directory, found)
    for entry in pictures:
        if entry not in found:
            _log.warning("picture %s is gone; MLflow will not show it", directory / entry["path"])
    return len(pictures) - len(found)


def _send_pictures(client: MlflowClient, run_id: str, directory: Path, entries: Sequence[dict[str, Any]]) -> None:
    """What `MlflowClient.log_image` does, except that doing it again does not show the picture twice."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            stem = Path(folder) / _picture_stem(run_id, entry)
            with Image.open(directory / entry["path"]) as picture:
                picture.convert("RGB").save(f"{stem}.png")
                picture.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
                picture.convert("RGB").save(f"{stem}+compressed.webp")
        client.log_artifacts(run_id, folder, "images")
    client.set_tag(run_id, "mlflow.loggedImages", "True")


def _picture_stem(run_id: str, entry: dict[str, Any]) -> str:
    key, step, made = entry["image"], entry["step"], entry["time"]
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"genray:{run_id}/{key}/{step}")
    return f"{re.sub('/', '~', key)}+step+{step}+timestamp+{made}+{name}"


def _event_text(entry: dict[str, Any]) -> str:
    return json.dumps({"step": entry["step"], "time": entry["time"]} | entry["fields"])[:_TAG_CHARACTERS]


def _journals(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def _ack_path(directory: Path) -> Path:
    """Beside the folder and not in it: a refreshed copy of a remote folder replaces what is inside."""
    return directory.with_name(f"{directory.name}.ack.json")


def _confirmed(directory: Path, run_id: str) -> dict[str, int]:
    """Bytes of each journal that this run already has; nothing where that is not known: a replay costs only time."""
    try:
        ack = json.loads(_ack_path(directory).read_text())
        return {str(k): int(v) for k, v in ack["offsets"].items()} if ack["run_id"] == run_id else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _confirm(directory: Path, run_id: str, offsets: dict[str, int]) -> None:
    ack = _ack_path(directory)
    beside = ack.with_name(f".{ack.name}.{os.getpid()}.{threading.get_ident()}")
    beside.write_text(json.dumps({"run_id": run_id, "offsets": offsets}))
    beside.replace(ack)


def _count(client: MlflowClient, run_id: str, directory: Path, lost: int) -> Delivery:
    sent, unsent = _tally(directory, run_id)
    stored = sum(len(client.get_metric_history(run_id, key)) for key in sent)
    return Delivery(sent=sent.total(), stored=stored, unsent=unsent + lost)


def _tally(directory: Path, run_id: str) -> tuple[Counter[str], int]:
    """Confirmed metric values by key, and the number of all things that are not confirmed."""
    sent: Counter[str] = Counter()
    unsent = 0
    confirmed = _confirmed(directory, run_id)
    for path in _journals(directory):
        rest = _contents(path, confirmed.get(path.name, 0))
        sent += _contents(path, 0) - rest
        unsent += rest.total()
    del sent[_OTHER]
    return sent, unsent


def _contents(path: Path, offset: int) -> Counter[str]:
    """Metric values by key, pictures and events, from `offset` to the end or the first damage."""
    found: Counter[str] = Counter()
    try:
        while (chunk := read_journal(path, offset, _ENTRIES_A_ROUND))[0]:
            for entry in chunk[0]:
                found.update(list(entry.get("metrics", (_OTHER,))))
            offset = chunk[1]
    except StorageError:
        found[_OTHER] += 1
    return found
