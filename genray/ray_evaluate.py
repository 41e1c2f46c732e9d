"""Scores of a run's snapshots, off the training path: one Ray task at a time, while training goes on."""

import json
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from torch import Tensor

from genray import pictures, snapshot
from genray.checkpoint import BEST, EXTRACTOR, SCORES, SNAPSHOTS, step_of
from genray.config import Config
from genray.data.images import load_images
from genray.errors import GenrayError
from genray.evaluation import METRICS, card
from genray.evaluation.protocol import Score
from genray.evaluation.scoring import (
    load_extractor,
    logged,
    read_scores,
    reference_cache,
    score_snapshot,
    write_scores,
)
from genray.manifest import MANIFEST
from genray.paths import keep_private
from genray.storage import RunFolder
from genray.tracking import JsonlTracker

LOOK_EVERY_S = 1.0
RETRIES = 3

logger = logging.getLogger(__name__)


def score_step(config: dict[str, Any], storage: str, name: str) -> dict[str, NDArray[np.uint8]]:
    """Scores the snapshot `name` of a run, and leaves the result in the run's folder; its pictures, by kind."""
    keep_private()
    made = Config.from_dict(config)
    folder = RunFolder.open(storage, made.run.name)
    take_scores(made, folder, name, folder)
    try:
        return take_pictures(made, folder, name)
    except GenrayError as error:  # the run may have deleted it; its scores are there
        logger.warning("no pictures of snapshot %s: %s", name, error)
        return {}


def take_pictures(config: Config, folder: RunFolder, name: str) -> dict[str, NDArray[np.uint8]]:
    """What `tracking.pictures` asks of the snapshot `name` in `folder`, (H, W, 3), but for what it cannot make."""
    model = snapshot.load(folder.pull(f"{SNAPSHOTS}/{name}"))
    if model.product == "classifier":
        return {}
    extractor = folder.pull(EXTRACTOR)

    def nearest(samples: Tensor) -> NDArray[np.uint8]:
        train, network = load_images(config.data, "train"), load_extractor(extractor)
        return card.nearest_training_images(
            samples, train, network, config.eval.batch_size, reference_cache(config.data)
        )

    reals = load_images(config.data, config.eval.split)
    return pictures.drawn(config.tracking.pictures, model, reals, nearest if extractor.is_dir() else None)


def take_scores(config: Config, folder: RunFolder, name: str, extractor_of: RunFolder) -> list[Score]:
    """Scores of the snapshot `name` in the run's `folder`, left there; the extractor lies in `extractor_of`."""
    extractor = extractor_of.pull(EXTRACTOR)
    scores = score_snapshot(
        folder.pull(f"{SNAPSHOTS}/{name}"),
        data=config.data,
        settings=config.eval,
        extractor=extractor if extractor.is_dir() else None,
        cache=reference_cache(config.data),
    )
    (folder.local / SCORES).mkdir(exist_ok=True)
    write_scores(folder.local / SCORES / f"{name}.json", scores)
    folder.push(f"{SCORES}/{name}.json")
    return scores


class Scorer:
    """Scores every snapshot that appears in a run's folder, the newest first, until `finish`.

    Args:
        config: of the run.
        storage: where the run's folder is.
        on_ray: score in a Ray task with `eval.num_cpus` and `eval.num_gpus`; otherwise here, in `finish`.
    """

    def __init__(self, config: Config, storage: str, *, on_ray: bool) -> None:
        self.config, self.storage, self.on_ray = config, storage, on_ray
        self.folder = RunFolder.open(storage, config.run.name)
        self.tracker = JsonlTracker(self.folder.pull_journal("eval"), "eval")
        self.failed: set[str] = set()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._loop, name="scorer", daemon=True)

    def start(self) -> None:
        """Begins to look for snapshots, where there is a Ray to score them on."""
        if self.on_ray:
            self.thread.start()

    def finish(self) -> tuple[str, list[Score]] | None:
        """Waits until every snapshot is scored; name and scores of the best. None: not one could be scored."""
        self.closing.set()
        if self.thread.is_alive():
            self.thread.join()
        self._loop()
        self.tracker.close()
        path = self.folder.pull(BEST)
        if not path.is_file():
            return None
        name = json.loads(path.read_text())["name"]
        return name, read_scores(self.folder.pull(f"{SCORES}/{name}.json"))

    def _loop(self) -> None:
        while True:
            closing = self.closing.is_set()
            if name := self._next():
                self._score(name)
            elif closing:
                return
            else:
                self.closing.wait(LOOK_EVERY_S)

    def _next(self) -> str | None:
        scored = {Path(name).stem for name in self.folder.names(SCORES)}
        waiting = [name for name in self.folder.names(SNAPSHOTS) if name not in scored | self.failed]
        # one that is being copied to the storage has no manifest yet
        return next((name for name in reversed(waiting) if self.folder.holds(f"{SNAPSHOTS}/{name}/{MANIFEST}")), None)

    def _score(self, name: str) -> None:
        arguments = (self.config.to_dict(), self.storage, name)
        try:
            if self.on_ray and ray.is_initialized():
                settings = self.config.eval
                task = ray.remote(score_step).options(
                    num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_retries=RETRIES
                )
                drawn = _wait_for(lambda: task.remote(*arguments))
            else:
                drawn = score_step(*arguments)
        except (GenrayError, ray.exceptions.RayError) as error:
            cause = str(getattr(error, "cause", error))
            if name in self.folder.names(SNAPSHOTS):
                logger.warning("snapshot %s was not scored: %s", name, cause)
            else:
                cause = "the run deleted it first; train.keep says how many stay"
            self.tracker.event(step_of(name), "not_scored", cause=cause)
            self.folder.push_journal("eval")
            self.failed.add(name)
            return
        scores = read_scores(self.folder.pull(f"{SCORES}/{name}.json"))
        self.tracker.metrics(step_of(name), logged(scores))
        for kind, pixels in drawn.items():
            self.tracker.image(step_of(name), f"pictures/{kind}", pixels)
        self.folder.push_journal("eval")
        # what was deleted meanwhile can be neither registered nor gone back to
        if name in self.folder.names(SNAPSHOTS):
            note_best(self.folder, name, scores[0])


def note_best(folder: RunFolder, name: str, score: Score) -> None:
    """Makes the snapshot `name` the best of its run, if its score is."""
    path = folder.pull(BEST)
    if path.is_file():
        best = json.loads(path.read_text())
        if best["metric"] == score.metric and not _ahead(score, best["value"]):
            return
    note = {"name": name, "step": step_of(name), "metric": score.metric, "value": score.value}
    folder.write(BEST, json.dumps(note))


def _ahead(score: Score, best: float) -> bool:
    sign = 1 if METRICS[score.metric].direction == "max" else -1
    return math.isfinite(score.value) and (not math.isfinite(best) or sign * (score.value - best) > 0)


def _wait_for(submit: Callable[[], "ray.ObjectRef[Any]"]) -> Any:
    """Waits for a task, and submits it again where a node is lost meanwhile: Ray may wait minutes for its answer.

    A score that is taken twice is the same.
    """
    for _ in range(RETRIES):
        task, nodes = submit(), _nodes()
        while nodes <= _nodes():
            if ray.wait([task], timeout=LOOK_EVERY_S)[0]:
                return ray.get(task)
        ray.cancel(task, force=True)
    return ray.get(submit())


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
