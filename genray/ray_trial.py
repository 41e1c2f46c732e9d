"""One trial of a search, in a process of Tune's that serves many trials, one after another.

A trial is a training run in a folder of its own. Rank 0 lives in Tune's process; further ranks are
actors in the other bundles of the same placement group, which Ray gives whole or not at all: trials
cannot wait for one another with half of their workers.
"""

import gc
import json
import random
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from genray import cpu
from genray.checkpoint import (
    CHECKPOINTS,
    SCORES,
    SNAPSHOTS,
    step_name,
    store_for,
)
from genray.config import Config, Data
from genray.data.images import ImageSet
from genray.data.mix import Mix, training_images
from genray.distributed import World, join, leave
from genray.errors import ClusterError, ConfigError, GenrayError
from genray.evaluation.protocol import Score
from genray.evaluation.scoring import logged, read_scores
from genray.paths import keep_private
from genray.ray_evaluate import note_best, take_scores
from genray.search import objectives
from genray.storage import RunFolder
from genray.study import Study, metric_names
from genray.tracking import JsonlTracker, NullTracker, Tracker
from genray.trainer import Trainer

WORST = 1e30
"""Stands for an objective that is not finite: schedulers and samplers compute with it."""
ENDED, STARTS = "ended.json", "starts.json"


class Rank:
    """One rank of one trial at a time."""

    def __init__(self) -> None:
        keep_private()
        self.trainer: Trainer | None = None

    def address(self) -> tuple[str, int]:
        """Where the ranks of a trial may meet, if this one is their first."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), int(free.getsockname()[1])

    @cpu.prepared()
    def open(self, config: dict[str, Any], rank: int, size: int, meeting: tuple[str, int]) -> None:
        """Takes a seat in a trial, which goes on from its newest checkpoint."""
        self.close()
        made = Config.from_dict(config)
        isolate(made.cluster.cpus_per_worker)
        device = torch.device("cuda", 0) if made.cluster.use_gpu else torch.device("cpu")
        if size > 1:
            join(*meeting, rank, size, use_gpu=made.cluster.use_gpu)
        folder = RunFolder.open(made.run.storage, made.run.name)
        tracker: Tracker = JsonlTracker(folder.pull_journal("train"), "train") if rank == 0 else NullTracker()
        world = World(rank, size, device)
        store = store_for(folder, rank)
        self.trainer = Trainer(made, images_of(made.data, made.mix), folder, store=store, tracker=tracker, world=world)
        self.trainer.resume()
        self.trainer.progress.begin(self.trainer.step)

    @cpu.prepared()
    def advance(self) -> None:
        """Trains to the next checkpoint, together with all other ranks."""
        assert self.trainer is not None
        self.trainer.advance()

    def close(self) -> None:
        """Leaves the trial, and forgets all of it."""
        if self.trainer is not None:
            self.trainer.close()
        self.trainer = None
        leave()


class Trial(tune.Trainable):  # type: ignore[misc]
    """A trial as Tune knows it: each step trains to the next checkpoint and reports its score.

    Its config has `study` (storage and name) and `trial`: number, phase, values, and in a population the step
    `until` which it trains.
    """

    folder: RunFolder
    made: Config

    def setup(self, config: dict[str, Any]) -> None:
        """Begins the first trial of this process."""
        self.rank, self.members = Rank(), list[Any]()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins another trial in this process, and with the same further ranks."""
        self.rank.close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the process."""
        self.rank.close()
        self._disband()

    def step(self) -> dict[str, Any]:
        """The next report of the trial.

        A trial that goes on after an interruption first says again what it last said. An error of the
        trial's own is a report, too: nothing would be gained by starting it again.
        """
        try:
            if self.ended:
                return self._said(self.ended["step"], self.ended["objective"], {}, done=True)
            if self.refused is not None:
                raise self.refused
            if self.rank.trainer is None:
                self._count_start()
                self._assemble()
            self._train()
            return self._score()
        except GenrayError as error:
            return self._said(0, [WORST] * len(self.metrics), {}, done=True) | {"failed": str(error)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For Tune, which pauses trials of hyperband: nothing, since the trial has its own checkpoints."""
        (Path(checkpoint_dir) / "trial.json").write_text(json.dumps({"number": self.number}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the trial finds its own checkpoint."""

    @property
    def _trainer(self) -> Trainer:
        assert self.rank.trainer is not None
        return self.rank.trainer

    def _begin(self, config: dict[str, Any]) -> None:
        task = config["trial"]
        self.study = Study.open(**config["study"])
        self.number, self.phase, self.values = task["number"], task["phase"], task["values"]
        self.until: int | None = task.get("until")
        self.metrics = metric_names(self.study.settings)
        self.num_reports = 0
        self.folder = self.study.trial_folder(self.number)
        path = self.folder.pull(ENDED)
        self.ended: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if self.ended:
            return
        self.refused: GenrayError | None = None
        try:
            self.made = self.study.settings.trial_config(self.number, self.values, self.phase)
        except ConfigError as error:
            self.refused = error
            return
        self.folder.write("config.json", json.dumps(self.made.to_dict(), indent=2, sort_keys=True) + "\n")

    def _count_start(self) -> None:
        """Notes that this driver starts the trial from its newest checkpoint.

        A node may be lost any number of times; a trial that dies again and again before it gets any further does so
        by its own fault.

        Raises:
            ClusterError: it was started from there more often than `search.max_failures` allows.
        """
        newest = (self.folder.names(CHECKPOINTS) or ["its beginning"])[-1]
        place = {"from": newest, "job": ray.get_runtime_context().get_job_id() if ray.is_initialized() else ""}
        path = self.folder.pull(STARTS)
        known = json.loads(path.read_text()) if path.is_file() else {}
        starts = known["starts"] + 1 if place.items() <= known.items() else 1
        if starts > 1 + self.study.settings.search.max_failures:
            raise ClusterError(f"its process died {starts - 1} times after {newest}, and never got any further")
        self.folder.write(STARTS, json.dumps(place | {"starts": starts}))

    def _assemble(self) -> None:
        """Gives every rank its seat; all of them find the same checkpoint."""
        cluster = self.made.cluster
        size = max(1, cluster.num_workers)
        if len(self.members) != size - 1:
            self._disband()
            needs = ray.remote(Rank).options(num_cpus=cluster.cpus_per_worker, num_gpus=int(cluster.use_gpu))
            self.members = [needs.remote() for _ in range(size - 1)]
        meeting = self.rank.address() if size > 1 else ("", 0)
        config = self.made.to_dict()
        waiting = [member.open.remote(config, n + 1, size, meeting) for n, member in enumerate(self.members)]
        self.rank.open(config, 0, size, meeting)
        if waiting:
            ray.get(waiting)

    def _disband(self) -> None:
        for member in self.members:
            ray.kill(member)
        self.members = []

    def _train(self) -> None:
        """To the next checkpoint; in the confirmation to the end. A rank that died is replaced."""
        unsaid = self.num_reports == 0 and step_name(self._trainer.step) in self.folder.names(SNAPSHOTS)
        if unsaid and self.phase == "race":
            return
        failures = 0
        while not self._trainer.finished:
            try:
                waiting = [member.advance.remote() for member in self.members]
                self.rank.advance()
                if waiting:
                    ray.get(waiting)
            except GenrayError:
                raise
            except Exception:
                failures += 1
                if not self.members or failures > self.study.settings.search.max_failures:
                    raise
                self.rank.close()
                self._disband()
                self._assemble()
                continue
            if self.phase == "race":
                return

    def _score(self) -> dict[str, Any]:
        """Scores of the newest snapshot, taken once."""
        trainer = self._trainer
        trainer.store.wait()
        name = step_name(trainer.step)
        if f"{name}.json" in self.folder.names(SCORES):
            scores = read_scores(self.folder.pull(f"{SCORES}/{name}.json"))
        else:
            scores = take_scores(self.made, self.folder, name, self.study.folder)
            note_best(self.folder, name, scores[0])
        self._log(trainer.step, scores)
        constraint = self.study.settings.search.constraint if self.phase == "race" else ""
        found = objectives(scores, self.metrics, constraint)
        stopped = {"stopped": trainer.monitor.stopped} if trainer.monitor.stopped else {}
        done = trainer.finished or (self.until is not None and trainer.step >= self.until)
        return self._said(trainer.step, found, logged(scores), done=done) | stopped

    def _log(self, step: int, scores: list[Score]) -> None:
        tracker = JsonlTracker(self.folder.pull_journal("eval"), "eval")
        tracker.metrics(step, logged(scores))
        tracker.close()
        self.folder.push_journal("eval")

    def _said(self, step: int, found: list[float], metrics: dict[str, float], *, done: bool) -> dict[str, Any]:
        self.num_reports += 1
        numbers = {"objective" if not i else f"objective_{i}": min(v, WORST) for i, v in enumerate(found)}
        return numbers | {"step": step, "reports": self.num_reports, "scores": metrics, "done": done}


@lru_cache(maxsize=2)
def images_of(data: Data, mix: Mix) -> ImageSet:
    """The training images, decoded once a process."""
    return training_images(data, mix)


def isolate(cpus: float) -> None:
    """Sets back what an earlier trial of this process may have left behind."""
    if torch.cuda.is_available():  # on a CPU Python's own collections are enough, and one of all takes 0.3 s
        gc.collect()
        torch.cuda.empty_cache()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(max(1, int(cpus)))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
