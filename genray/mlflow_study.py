"""A study in MLflow: a parent run, and a child run for every trial, fed from the journals by one thread."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Metric

from genray import mlflow_tracking
from genray.errors import StorageError, TrackingError
from genray.mlflow_drain import deliver
from genray.mlflow_store import cause, connect, reporting
from genray.space import pairs
from genray.study import ENDED, Study, TrialRecord, hours, ranking

STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "stopped": "FINISHED",
    "failed": "FAILED",
}
logger = logging.getLogger(__name__)


class StudyDrain:
    """A thread that keeps parent and children up to date with the study's folder; raises nothing.

    Args:
        study: what is recorded.
        uri: what `resolve_uri` returned.
        interval: seconds between two rounds.

    Raises:
        TrackingError: the server does not answer at the first start of the study.
    """

    def __init__(self, study: Study, uri: str, interval: float = 3.0) -> None:
        self.study, self.uri, self.interval = study, uri, interval
        self.closed: set[int] = set()
        """Trials whose child run has all there is, and has ended."""
        self.unsent = 0
        self.run_id = self._parent()
        self.children: dict[int, str] = {}
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._loop, name="study-drain", daemon=True)

    def start(self) -> None:
        """Begins to deliver; returns at once."""
        self.thread.start()

    def finish(self, timeout: float) -> int:
        """Delivers what is left, for about `timeout` seconds; the number of trials that MLflow has not completely."""
        self.closing.set()
        self.thread.join(timeout)
        open_trials = [n for n, t in self.study.trials().items() if t.status in ENDED and n not in self.closed]
        return len(open_trials)

    def child(self, number: int) -> str:
        """The run of a trial; to be asked after `finish`."""
        with reporting(self.uri):
            return self.children.get(number) or self._child(self.study.trials()[number])

    def _parent(self) -> str:
        settings = self.study.settings
        space = {f"space.{name}": text for name, _, text in (pair.partition("=") for pair in pairs(settings.space))}
        search = {k: v for k, v in settings.to_dict()["search"].items() if k != "space"}
        return mlflow_tracking.run_of(
            self.study.folder,
            self.uri,
            experiment=experiment(self.study),
            name=settings.search.name,
            params={f"search.{k}": v for k, v in search.items()} | space | settings.config.flat(),
            config=settings.to_dict(),
            tags=mlflow_tracking.provenance_tags() | {"genray.kind": "study", "genray.task": settings.config.task},
        )

    def _loop(self) -> None:
        while True:
            closing = self.closing.is_set()
            try:
                client = connect(self.uri)
                with reporting(self.uri):
                    self._round(client)
            except (TrackingError, StorageError, OSError) as error:
                logger.warning("delivery of the study to MLflow waits: %s", cause(error))
                if closing:
                    return
            if closing:
                return
            self.closing.wait(self.interval)

    def _round(self, client: MlflowClient) -> None:
        trials = self.study.trials()
        for number, trial in trials.items():
            if number not in self.closed:
                self._deliver(client, trial)
        self._summary(client, trials)

    def _deliver(self, client: MlflowClient, trial: TrialRecord) -> None:
        folder = self.study.trial_folder(trial.number)
        run_id = self.children.get(trial.number) or self._child(trial)
        self.children[trial.number] = run_id
        _, damaged = deliver(client, run_id, folder.mirror.follow_journals())
        if damaged:
            raise damaged
        if trial.status in ENDED:
            tags = {"genray.trial.status": trial.status, "genray.trial.reason": trial.reason or "all steps are done"}
            if trial.lineage:
                tags["genray.trial.lineage"] = ", ".join(f"step {step}: trial {donor}" for step, donor in trial.lineage)
            mlflow_tracking.end_run(self.uri, run_id, STATUS[trial.status], tags)
            self.closed.add(trial.number)

    def _child(self, trial: TrialRecord) -> str:
        settings = self.study.settings
        config = settings.trial_config(trial.number, trial.values, trial.phase)
        return mlflow_tracking.run_of(
            self.study.trial_folder(trial.number),
            self.uri,
            experiment=experiment(self.study),
            name=f"{settings.search.name}/{trial.name}",
            params=config.flat(),
            config=config.to_dict(),
            tags={
                "mlflow.parentRunId": self.run_id,
                "genray.kind": "trial",
                "genray.trial": str(trial.number),
                "genray.phase": trial.phase,
                "genray.task": config.task,
            },
        )

    def _summary(self, client: MlflowClient, trials: Mapping[int, TrialRecord]) -> None:
        """Counts and the best so far, on the parent: its charts would be empty otherwise."""
        ended = [trial for trial in trials.values() if trial.status in ENDED]
        counts = {f"study/{status}": float(sum(t.status == status for t in ended)) for status in ENDED}
        used, saved = hours(trials, self.study.settings.config.train.num_steps)
        values = counts | {"study/trials": float(len(ended)), "study/hours": used, "study/hours_saved": saved}
        if (best := ranking(trials)) and best[0].best:
            values["study/best_objective"] = best[0].best.objective[0]
        now = time.time_ns() // 1_000_000
        client.log_batch(
            self.run_id, metrics=[Metric(k, v, now, len(ended)) for k, v in values.items()], synchronous=True
        )

    def attach(self, directory: Path) -> None:
        """Files of `directory` as artifacts of the parent."""
        with reporting(self.uri):
            connect(self.uri).log_artifacts(self.run_id, str(directory), "study")


def experiment(study: Study) -> str:
    """Name of the experiment of a study and its trials."""
    config = study.settings.config
    return config.tracking.experiment or f"genray/{config.data.name}"
