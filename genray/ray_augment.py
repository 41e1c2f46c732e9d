"""An experiment on generated images from end to end: trainings at the same time on Ray, recorded, and a verdict."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from genray import augment, augment_report, mlflow_tracking, ray_job, ray_train, ray_tune
from genray.augment import Done, Experiment, Training
from genray.errors import GenrayError
from genray.mlflow_augment import Record, Status
from genray.paths import base_directory, keep_private
from genray.preemption import sigterm_asks, sigterm_raises
from genray.ray_train import SHARED
from genray.ray_trial import isolate
from genray.search import Search
from genray.storage import RunFolder
from genray.trainer import train_here

LOOK_EVERY_S = 3.0


@dataclass
class State:
    """Which trainings are done, and which cannot be."""

    waiting: list[Training]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each training that is done, by its name."""
    failures: dict[str, str] = field(default_factory=dict)

    def next(self) -> Training | None:
        """The first training that can begin; those whose generator has failed cannot."""
        for training in list(self.waiting):
            if training.after in self.failures:
                self.waiting.remove(training)
            elif not training.after or training.after in self.scores:
                self.waiting.remove(training)
                return training
        return None


def plan(experiment: Experiment) -> dict[str, Any]:
    """What `run` would train and ask for; asks for nothing."""
    generator, classifier = (ray_job.plan(config) for config in (experiment.generator, experiment.classifier))
    return {
        "generator": generator,
        "classifier": classifier,
        "trainings": [training.name for training in experiment.trainings()],
        "resources_per_training": ray_tune.bundles(experiment.classifier, Search()),
    }


def run(experiment: Experiment, out: Path) -> None:
    """Trains all that is not trained yet, compares, and writes the report into `out`; the same call goes on.

    Raises:
        GenrayError: what was wrong, before anything is trained where that can be known; or which trainings failed,
            after all others are done.
    """
    config = experiment.classifier
    uri = mlflow_tracking.resolve_uri(config.tracking.uri, base_directory())
    experiment.check_images()
    experiment = _offline(experiment)
    RunFolder.open(config.run.storage, experiment.name).probe()
    record = Record(experiment, uri)
    state = State(experiment.trainings())
    status: Status = "FAILED"
    arms: list[augment_report.Arm] = []
    report: Path | None = None
    try:
        with sigterm_raises():
            (_do_on_ray if config.cluster.num_workers else _do_here)(experiment, state, record)
            _check(state)
        arms, report = experiment.arms(state.scores), out
        augment_report.write_report(out, arms)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ray_train.disconnect()
        missing = record.close(status, ray_job.DELIVERY_TIMEOUT_S, arms, report)
        if missing:
            print(f"MLflow    {missing} trainings are not completely delivered: the same command delivers them")  # noqa: T201
    print((out / "report.md").read_text(), flush=True)  # noqa: T201


def _do_here(experiment: Experiment, state: State, record: Record) -> None:
    """One after another, in this process."""
    while training := state.next():
        record.begin(training)
        with sigterm_asks() as asked:
            fit = partial(train_here, asked=asked)
            _note(training, partial(augment.do, experiment, training, fit), state, record)
        record.deliver()


def _do_on_ray(experiment: Experiment, state: State, record: Record) -> None:
    """As many at once as the cluster has room for, each a task that Ray starts again where its process dies."""
    config, cluster = experiment.classifier, experiment.classifier.cluster
    ray_train.connect(cluster.num_workers * cluster.cpus_per_worker, log_to_driver=False)
    ray_tune.capacity(config, Search())
    token = uuid.uuid4().hex
    record.folder.write(SHARED, token)
    alone = cluster.num_workers == 1
    task = ray.remote(work).options(
        num_cpus=cluster.cpus_per_worker if alone else 0,
        num_gpus=int(alone and cluster.use_gpu),
        max_retries=cluster.max_failures,
    )
    running: dict[ray.ObjectRef[Done], Training] = {}
    while True:
        while len(running) < _room(experiment) and (training := state.next()):
            record.begin(training)
            running[task.remote(experiment, training, token)] = training
        if not running:
            return
        for ref in ray.wait(list(running), timeout=LOOK_EVERY_S)[0]:
            _note(running.pop(ref), partial(ray.get, ref), state, record)
        record.deliver()


def work(experiment: Experiment, training: Training, token: str) -> Done:
    """One training, in a process of Ray's: the only worker of it, or the one that starts them."""
    keep_private()
    config = experiment.classifier
    isolate(config.cluster.cpus_per_worker)
    ray_train.check_shared(RunFolder.open(config.run.storage, experiment.name), config.run.storage, token)
    if config.cluster.num_workers == 1:
        return augment.do(experiment, training)
    return augment.do(experiment, training, lambda own: ray_train.fit(own, own.run.storage))


def _room(experiment: Experiment) -> int:
    """Trainings that the cluster has room for now; one, which waits, where nodes have gone away."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, ray_tune.num_fitting(ray_tune.bundles(experiment.classifier, Search()), nodes))


def _note(training: Training, result: Callable[[], Done], state: State, record: Record) -> None:
    """Writes down what came of a training; one that failed is no reason to end the others."""
    try:
        done = result()
    except Exception as error:
        cause = _cause(error)
        state.failures[training.name] = cause
        record.end(training, "FAILED", cause)
        print(f"failed    {training.name}: {cause}", flush=True)  # noqa: T201
        return
    state.scores[training.name] = dict(done.scores)
    said = done.said or ", ".join(f"{name} {value:.4f}" for name, value in done.scores.items())
    record.end(training, "FINISHED", said)
    print(f"trained   {training.name}: {said}", flush=True)  # noqa: T201


def _cause(error: Exception) -> str:
    inner = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return str(inner) if isinstance(inner, GenrayError) else f"{type(inner).__name__}: {(lines or [''])[-1]}"


def _check(state: State) -> None:
    """Raises GenrayError where a training has failed."""
    if state.failures:
        causes = "; ".join(f"{name}: {cause}" for name, cause in state.failures.items())
        raise GenrayError(
            f"{len(state.failures)} trainings of the experiment failed, and there is no verdict; the others are kept, "
            f"and the same command does these again: {causes}"
        )


def _offline(experiment: Experiment) -> Experiment:
    """Trainings find what the driver has fetched."""
    classifier, generator = (
        replace(config, data=replace(config.data, download=False))
        for config in (experiment.classifier, experiment.generator)
    )
    return replace(experiment, classifier=classifier, generator=generator)
