"""A study on Ray Tune: what it asks of the cluster, who chooses values, who goes on, and what is written down."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from genray.config import Config
from genray.errors import ClusterError
from genray.population import boundaries
from genray.ray_population import Generations
from genray.ray_trial import ENDED, WORST, Trial
from genray.search import Search, racing_config
from genray.space import Space, Values
from genray.study import Phase, Settings, Study, metric_names, trial_name

MAX_CONCURRENT = 1000
DEATHS = 100
"""Times that Tune starts a trial again; one that gets no further says so itself (`search.max_failures`), and Tune
may count the loss of one node several times."""
_COUNT_BYTES = 8
logger = logging.getLogger(__name__)

Bundles = list[dict[str, float]]


def bundles(config: Config, search: Search) -> Bundles:
    """What one trial asks of Ray, one bundle a rank: given whole or not at all."""
    cluster = config.cluster
    gpu = (search.gpu_fraction if cluster.num_workers <= 1 else 1.0) if cluster.use_gpu else 0.0
    one = {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": gpu} if gpu else {})
    return [dict(one) for _ in range(max(1, cluster.num_workers))]


def num_fitting(wanted: Bundles, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials of the bundles `wanted` fit on `nodes` (resources of each) at once, packed greedily."""
    free = [dict(node) for node in nodes]
    for number in range(MAX_CONCURRENT):
        for bundle in wanted:
            room = next((n for n in free if all(n.get(k, 0) >= v - 1e-9 for k, v in bundle.items())), None)
            if room is None:
                return number
            for kind, amount in bundle.items():
                room[kind] -= amount
    return MAX_CONCURRENT


def capacity(config: Config, search: Search) -> int:
    """How many trials run at once on the cluster as it is.

    Raises:
        ClusterError: not one fits, so that the study would wait for ever; says what is there.
    """
    wanted = bundles(config, search)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = num_fitting(wanted, nodes)
    if fits == 0:
        have = "; ".join(", ".join(f"{n.get(k, 0):g} {k}" for k in wanted[0]) for n in nodes)
        asks = ", ".join(f"{amount:g} {kind}" for kind, amount in wanted[0].items())
        raise ClusterError(
            f"no trial fits on the cluster: {len(wanted)} workers of {asks} each are asked for, and its nodes have "
            f"{have}; lower cluster.num_workers or cluster.cpus_per_worker, or add nodes"
        )
    return min(fits, search.max_concurrent or fits)


def run_trials(study: Study, tasks: Sequence[Mapping[str, Any]], phase: Phase, concurrent: int) -> None:
    """Runs trials until all have ended; goes on where an earlier driver was stopped.

    Tune gives a trial up, whatever it was told, when a process dies that is just passing from another trial to it.
    Such a trial has not ended and is run again, `search.max_failures` times without any other ending meanwhile.

    Args:
        study: what they belong to.
        tasks: `number`, `phase` and `values` of each; in the race of a sampler or a population they are only counted.
        phase: race or confirm.
        concurrent: most trials at once.
    """
    left = [int(task["number"]) for task in tasks]
    failures = 0
    while failures <= study.settings.search.max_failures:
        errors = _run(study, tasks, phase, concurrent).num_errors
        before, left = left, [number for number in left if not study.trial_folder(number).pull(ENDED).is_file()]
        if not errors or not left:
            return
        failures = failures + 1 if left == before else 1
    for number in left:
        study.trial_folder(number).write(ENDED, json.dumps({"status": "failed", "step": 0, "objective": [WORST]}))
        study.note(number, "failed", reason=f"its process died before it began, {failures} times in a row")


def _run(study: Study, tasks: Sequence[Mapping[str, Any]], phase: Phase, concurrent: int) -> tune.ResultGrid:
    """Once through Tune, from its own record of the study where there is one."""
    settings, storage = study.settings, study.settings.config.run.storage
    name = f".tune-{phase}"
    where = f"{storage}/{settings.search.name}"
    path = f"{where}/{name}"
    racing = phase == "race"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the record is the study's
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that it was told not to write
    needs = tune.PlacementGroupFactory(bundles(settings.config, settings.search))
    trainable = tune.with_resources(Trial, needs)
    if racing and settings.search.populates:
        study.folder.remove(name)  # members go on from their folders
    elif tune.Tuner.can_restore(path):
        try:
            return tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True).fit()
        except (ValueError, RuntimeError, EOFError, OSError) as error:
            logger.warning("Tune's own record cannot be used (%s): trials go on from their folders", error)
            study.folder.remove(name)
    known = {"storage": storage, "name": settings.search.name}
    searcher: Searcher | None = None
    num_samples = len(tasks)
    if racing and settings.search.populates:
        searcher = Generations(known)
        num_samples *= len(boundaries(settings.config, settings.search))
    elif racing and settings.search.algorithm in ("tpe", "nsga2"):
        searcher = Numbered(settings, known)
    space = {"study": known, "trial": tune.grid_search([dict(task) for task in tasks])}
    return tune.Tuner(
        trainable,
        param_space=space if searcher is None else {},
        tune_config=tune.TuneConfig(
            # several metrics go to the sampler alone
            metric="objective" if searcher is None else None,
            mode="min" if searcher is None else None,
            num_samples=num_samples if searcher else 1,
            max_concurrent_trials=concurrent,
            scheduler=scheduler(settings) if racing else FIFOScheduler(),
            search_alg=searcher,
            reuse_actors=True,
            trial_dirname_creator=_folder_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=where,
            callbacks=[Notes(known, phase)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's own checkpoints are enough
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            verbose=0,
        ),
    ).fit()


def scheduler(settings: Settings) -> TrialScheduler:
    """Who decides which trials go on."""
    search, train = settings.search, racing_config(settings.config, settings.search).train
    grace = search.grace_steps or train.checkpoint_every
    # a sampler makes Tune ask the scheduler for the metric
    judge = {"metric": "objective", "mode": "min"} if search.algorithm in ("tpe", "nsga2") else {}
    match search.scheduler:
        case "asha":
            return ASHAScheduler(
                time_attr="step",
                max_t=train.num_steps,
                grace_period=min(grace, train.num_steps),
                reduction_factor=search.reduction_factor,
                **judge,
            )
        case "median":
            return MedianStoppingRule(time_attr="step", grace_period=grace, min_samples_required=3, **judge)
        case "hyperband":
            reports = -(-train.num_steps // train.checkpoint_every)
            return HyperBandScheduler(
                time_attr="reports", max_t=max(2, reports), reduction_factor=search.reduction_factor, **judge
            )
        case _:
            return FIFOScheduler()


class Numbered(Searcher):  # type: ignore[misc]
    """A sampler of Optuna's whose suggestions are numbered; the values of a number that is known stay.

    Args:
        settings: of the study.
        study: its storage and name.
    """

    def __init__(self, settings: Settings, study: Mapping[str, str]) -> None:
        super().__init__(metric="objective", mode="min")
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        search = settings.search
        several = [f"objective_{i}" if i else "objective" for i in range(len(metric_names(settings)))]
        samplers = optuna.samplers
        self.inner = OptunaSearch(
            space=partial(_suggest, settings.space),
            metric=several if len(several) > 1 else several[0],
            mode=["min"] * len(several) if len(several) > 1 else "min",
            sampler=samplers.NSGAIISampler(seed=search.seed)
            if search.algorithm == "nsga2"
            else samplers.TPESampler(seed=search.seed),
        )
        self.study, self.count = dict(study), 0
        self.known = self._values()

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Nothing that the study has not said already."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial."""
        values = self.inner.suggest(trial_id)
        if values is None or values == Searcher.FINISHED:
            return values  # type: ignore[no-any-return]
        number, self.count = self.count, self.count + 1
        return {
            "study": self.study,
            "trial": {"number": number, "phase": "race", "values": self.known.get(number, values)},
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells the sampler."""
        self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the sampler."""
        self.inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """State of the sampler, and behind it how many trials it has numbered: Tune keeps one file."""
        self.inner.save(checkpoint_path)
        with Path(checkpoint_path).open("ab") as file:
            file.write(self.count.to_bytes(_COUNT_BYTES, "big"))

    def restore(self, checkpoint_path: str) -> None:
        """State of the sampler, from Tune's own record."""
        self.inner.restore(checkpoint_path)  # reads no further than its own state
        self.count = int.from_bytes(Path(checkpoint_path).read_bytes()[-_COUNT_BYTES:], "big")
        self.known = self._values()

    def _values(self) -> dict[int, Values]:
        return {number: trial.values for number, trial in Study.open(**self.study).trials().items()}


class Notes(tune.Callback):  # type: ignore[misc]
    """Writes down in the study's journal what becomes of its trials."""

    def __init__(self, study: Mapping[str, str], phase: Phase) -> None:
        self.known, self.phase = dict(study), phase
        self.study: Study | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"study": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins, or goes on."""
        task = trial.config["trial"]
        of = {"of": task["of"]} if "of" in task else {}
        self._record.note(task["number"], "started", phase=self.phase, values=task["values"], **of)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has reported."""
        if "failed" in result:
            return
        number, step = number_of(trial), result["step"]
        objective = [result[key] for key in sorted(result) if key == "objective" or key.startswith("objective_")]
        self._record.note(number, f"report/{step}", objective=objective, metrics=result["scores"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended: by itself, or because the scheduler wanted it to."""
        result = trial.last_result or {}
        if "failed" in result:
            self._end(trial, "failed", result["failed"])
        elif "stopped" in result:
            self._end(trial, "stopped", result["stopped"])
        elif result.get("done") is True and result.get("step", 0) >= self._num_steps:
            self._end(trial, "finished", "")
        elif result.get("step", 0) < trial.config["trial"].get("until", math.inf):  # else a member, at the boundary
            self._end(trial, "pruned", f"by {self._record.settings.search.scheduler} at step {result.get('step', 0)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died more often than anything explains; or only once, see `run_trials`."""
        if trial.should_recover():
            return
        error = trial.get_pickled_error() if trial.pickled_error_file else None
        lines = [line for line in str(error or "its process died").splitlines() if line.strip()]
        self._end(trial, "failed", lines[-1])

    @property
    def _record(self) -> Study:
        if self.study is None:
            self.study = Study.open(**self.known)
        return self.study

    @property
    def _num_steps(self) -> int:
        return self._record.settings.config.train.num_steps

    def _end(self, trial: Any, status: str, reason: str) -> None:
        number, result = number_of(trial), trial.last_result or {}
        objective = [result[key] for key in sorted(result) if key == "objective" or key.startswith("objective_")]
        folder = self._record.trial_folder(number)
        if folder.pull(ENDED).is_file():  # and was told of by the driver before this one
            return
        said = {"status": status, "step": result.get("step", 0), "objective": objective or [WORST]}
        folder.write(ENDED, json.dumps(said))
        self._record.note(number, status, reason=reason)
        shown = f"objective {objective[0]:.5g} at step {said['step']}" if objective else ""
        print(f"trial {trial_name(number)} {status} {shown} {reason}".rstrip(), flush=True)  # noqa: T201


def number_of(trial: Any) -> int:
    """The study's number of one of Tune's trials."""
    return int(trial.config["trial"]["number"])


def _folder_of(trial: Any) -> str:
    return str(trial.trial_id)


def _suggest(space: Space, trial: Any) -> None:
    """Asks Optuna's `trial` for a value of every active field, those that others depend on first."""
    found: Values = {}
    for name in _parents_first(space):
        domain = space[name]
        if domain.when and found.get(domain.when[0]) != domain.when[1]:
            continue
        low, high = domain.values[0], domain.values[-1]
        if domain.kind == "choice":
            found[name] = trial.suggest_categorical(name, list(domain.values))
        elif domain.kind == "int":
            found[name] = trial.suggest_int(name, low, high)
        else:
            found[name] = trial.suggest_float(name, low, high, log=domain.kind == "log")


def _parents_first(space: Space) -> list[str]:
    """Fields in an order in which none comes before the one that it depends on."""

    def depth(name: str) -> int:
        when = space[name].when
        return 0 if when is None else 1 + depth(when[0])

    return sorted(space, key=depth)
