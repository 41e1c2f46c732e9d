"""An experiment on generated images in MLflow: a parent run, and a run below it for every training."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Metric

from genray import mlflow_tracking
from genray.augment import Experiment, Training
from genray.augment_report import METRICS, Arm
from genray.errors import StorageError, TrackingError
from genray.mlflow_drain import deliver
from genray.mlflow_store import cause, connect, reporting, wait_for
from genray.storage import RunFolder

ENDED = "mlflow-ended"
"""Is in the folder of a training whose run in MLflow has all there is."""
Status = Literal["FINISHED", "FAILED", "KILLED"]
logger = logging.getLogger(__name__)


@dataclass
class _Known:
    training: Training
    status: Status | None = None
    said: str = ""
    run_id: str = ""


class Record:
    """Keeps MLflow up to date with an experiment; a server that is away is tried again at the next call.

    Args:
        experiment: what is recorded.
        uri: what `resolve_uri` returned.

    Raises:
        TrackingError: the server does not answer when the experiment begins.
    """

    def __init__(self, experiment: Experiment, uri: str) -> None:
        self.uri, config = uri, experiment.classifier
        self.where = config.tracking.experiment or f"genray/{config.data.name}"
        self.folder = RunFolder.open(config.run.storage, experiment.name)
        self.name = experiment.name
        self.known: dict[str, _Known] = {}
        own = {f"augment.{key}": getattr(experiment, key) for key in ("ratios", "real_fractions", "seeds")}
        self.run_id = mlflow_tracking.run_of(
            self.folder,
            uri,
            experiment=self.where,
            name=experiment.name,
            params=own
            | {"augment.copy_quantile": experiment.copy_quantile, "augment.generator": experiment.generator.run.name}
            | config.flat(),
            config={"classifier": config.to_dict(), "generator": experiment.generator.to_dict()},
            tags=mlflow_tracking.provenance_tags() | {"genray.kind": "augment", "genray.task": config.task},
        )

    def begin(self, training: Training) -> None:
        """A training is under way, or is looked at once more; MLflow may have all of it already."""
        if not _folder(training).pull(ENDED).is_file():
            self.known[training.name] = _Known(training)

    def end(self, training: Training, status: Status, said: str) -> None:
        """It has ended; `said` is what is to be told of it."""
        if training.name in self.known:
            self.known[training.name].status, self.known[training.name].said = status, said

    def deliver(self) -> int:
        """Sends what is new of all trainings; the number of those that MLflow has not completely."""
        try:
            client = connect(self.uri)
            with reporting(self.uri):
                for known in list(self.known.values()):
                    self._deliver(client, known)
        except (TrackingError, StorageError, OSError) as error:
            logger.warning("delivery of the experiment to MLflow waits: %s", cause(error))
        return len(self.known)

    def close(self, status: Status, timeout: float, arms: Sequence[Arm] = (), report: Path | None = None) -> int:
        """Ends the experiment's run, with what is in the folder `report`; what `deliver` says at the end.

        Args:
            status: of the experiment; trainings that are under way were killed with it.
            timeout: seconds for which a server that is away is waited for.
            arms: what was found; none where the experiment has not ended.
            report: of `write_report`.
        """
        for known in self.known.values():
            known.status = known.status or "KILLED"
        wait_for(self.uri, timeout)
        missing = self.deliver()
        try:
            with reporting(self.uri):
                client = connect(self.uri)
                tags = {}
                if report is not None:
                    client.log_artifacts(self.run_id, str(report))
                    verdict = json.loads((report / "augment.json").read_text())["verdict"]
                    tags = {
                        "genray.augment.verdict": verdict,
                        "mlflow.note.content": (report / "report.md").read_text()[:8000],
                    }
                now = time.time_ns() // 1_000_000
                values = [Metric(key, value, now, 0) for arm in arms for key, value in _means(arm).items()]
                client.log_batch(self.run_id, metrics=values, synchronous=True)
            mlflow_tracking.end_run(self.uri, self.run_id, status, tags)
        except TrackingError as error:
            logger.warning("MLflow was not told how the experiment ended: %s", error)
        return missing

    def _deliver(self, client: MlflowClient, known: _Known) -> None:
        config, status = known.training.config, known.status
        folder = _folder(known.training)
        known.run_id = known.run_id or mlflow_tracking.run_of(
            folder,
            self.uri,
            experiment=self.where,
            name=config.run.name,
            params=config.flat(),
            config=config.to_dict(),
            tags={
                "mlflow.parentRunId": self.run_id,
                "genray.kind": "training",
                "genray.task": config.task,
                "genray.augment.fraction": f"{known.training.fraction:g}",
            }
            | ({} if known.training.ratio is None else {"genray.augment.ratio": f"{known.training.ratio:g}"}),
        )
        _, damaged = deliver(client, known.run_id, folder.mirror.follow_journals())
        if damaged:
            raise damaged
        if status is None:
            return
        mlflow_tracking.end_run(
            self.uri, known.run_id, status, {"genray.augment.said": known.said} if known.said else {}
        )
        if status == "FINISHED":
            folder.write(ENDED, self.uri)
        del self.known[config.run.name]


def _folder(training: Training) -> RunFolder:
    return RunFolder.open(training.config.run.storage, training.name)


def _means(arm: Arm) -> dict[str, float]:
    """Of an arm, by names that sort as the table does."""
    place = f"real_{arm.fraction:g}/ratio_{arm.ratio:g}"
    means = {f"{metric}/{place}": arm.interval(metric)[0] for metric in METRICS}
    return means | {f"gain/{place}": arm.gain, f"p/{place}": arm.p} if arm.ratio else means
