"""A study from end to end: race, confirm over seeds, register, promote, report."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from genray import mlflow_champion, mlflow_registry, mlflow_tracking, ray_train, ray_tune, study_plots
from genray.checkpoint import BEST, EXTRACTOR, SNAPSHOTS
from genray.data.images import load_images
from genray.data.mix import training_images
from genray.errors import ConfigError, ProtocolError, RegistryError, ResumeError, TrackingError
from genray.estimate import seconds_per_step
from genray.evaluation import needs_extractor
from genray.mlflow_study import StudyDrain
from genray.paths import base_directory, is_path
from genray.preemption import sigterm_raises
from genray.ray_job import DELIVERY_TIMEOUT_S, bring_extractor, end_tracking
from genray.search import pareto_front, racing_metrics
from genray.space import check_space
from genray.study import ENDED, Confirmed, Settings, Study, confirmed, hours, luck, ranking

REPORT, IMAGES = "report", "images.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """What a study leaves behind."""

    best: int
    """Trial of the champion's run."""
    version: int
    verdict: str
    finalists: list[Confirmed]


def plan(settings: Settings) -> dict[str, Any]:
    """What `run` would ask of the cluster that is reachable now, and how long it would take; trains nothing.

    Raises:
        ClusterError: no trial fits.
        ConfigError: the space has a value that cannot be tried.
    """
    check_space(settings.space, settings.config)
    search, config = settings.search, settings.config
    started = ray_train.connect(_cores(settings), log_to_driver=False)
    try:
        concurrent = ray_tune.capacity(config, search)
    finally:
        if started:
            ray_train.disconnect()
    num_trials = len(settings.points()) if search.algorithm in ("random", "grid") else search.num_trials
    seconds = seconds_per_step(config)
    full = num_trials * config.train.num_steps * seconds / concurrent / 3600
    again = search.confirm_top * search.confirm_seeds * config.train.num_steps * seconds / concurrent / 3600
    return {
        "settings": settings.to_dict(),
        "trials": num_trials,
        "trials_at_once": concurrent,
        "resources_per_trial": ray_tune.bundles(config, search),
        "seconds_per_step": round(seconds, 4),
        "hours_if_nothing_is_pruned": round(full, 3),
        "hours_of_confirmation": round(again, 3),
    }


def run(settings: Settings) -> Ending:
    """Searches, or goes on with a study of the same name and settings; prints what came of it.

    Raises:
        GenrayError: what was wrong; before a trial is started where that can be known.
    """
    check_space(settings.space, settings.config)
    _check_sources(settings)
    uri = mlflow_tracking.resolve_uri(settings.config.tracking.uri, base_directory())
    training_images(settings.config.data, settings.config.mix)
    settings = replace(settings, config=replace(settings.config, data=replace(settings.config.data, download=False)))
    ray_train.connect(_cores(settings), log_to_driver=False)
    try:
        concurrent = ray_tune.capacity(settings.config, settings.search)
        study = Study.claim(settings)
        study.folder.probe()
        bring_extractor(study.folder, settings.config, uri)
        _check_extractor(study)
        _check_images(study)
        return _recorded(study, uri, concurrent)
    finally:
        ray_train.disconnect()


def _check_sources(settings: Settings) -> None:
    """Makes sure that what trials begin with can be found by every one of them.

    Raises:
        ConfigError: a model is named as it is in the registry, which may have another of that name for the next trial.
    """
    named = {
        "transfer.source": settings.config.transfer.source,
        "objective.perceptual": getattr(settings.config.objective, "perceptual", None),
    }
    for field, source in named.items():
        if source and not is_path(source):
            raise ConfigError(
                f"{field}={source!r} is a name of the registry, and the trials of a search need a folder that stays as "
                f"it is; `genray pull {source} --to DIR`, and give DIR, where all nodes find it"
            )


def _check_extractor(study: Study) -> None:
    """Makes sure that the trials can be scored by what they are compared with.

    Raises:
        RegistryError: a metric compares features, and there is no classifier that gives them.
    """
    settings, product = study.settings, study.settings.config.objective.product
    wanting = [m for m in racing_metrics(settings.config, settings.search) if needs_extractor(m, product)]
    if wanting and not study.folder.pull(EXTRACTOR).is_dir():
        raise RegistryError(
            f"no trial could be scored: {wanting[0]} compares features, and no classifier gives them; train the preset "
            f"{settings.config.data.name}-classifier first, or set eval.extractor"
        )


def _check_images(study: Study) -> None:
    """Makes sure that trials to come are trained on, and compared with, the images that earlier ones were.

    Raises:
        ResumeError: there are other images now; says of which splits.
    """
    config, path = study.settings.config, study.folder.pull(IMAGES)
    held_out = load_images(config.data, config.eval.split)
    found = {"train": training_images(config.data, config.mix).digest, held_out.split: held_out.digest}
    known = json.loads(path.read_text()) if path.is_file() else found
    changed = [f"{name}: {known[name][:12]}… -> {new[:12]}…" for name, new in found.items() if known[name] != new]
    if changed:
        raise ResumeError(
            f"the images of study {study.settings.search.name!r} have changed, so that scores could not be compared "
            f"(digests of {', '.join(changed)}); give the same images, or choose another search.name"
        )
    study.folder.write(IMAGES, json.dumps(found) + "\n")


def resume(study: Study) -> int:
    """Goes on with `study`; the exit status."""
    run(study.settings)
    return 0


def _recorded(study: Study, uri: str, concurrent: int) -> Ending:
    drain = StudyDrain(study, uri)
    drain.start()
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    tags: dict[str, str] = {}
    try:
        with sigterm_raises():
            _race(study, concurrent)
            finalists = _confirm(study, concurrent)
            ending = _champion(study, uri, drain, finalists)
            _draw(study, drain)
        tags = {"genray.study.champion": str(ending.best), "genray.study.verdict": ending.verdict[:4000]}
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        missing = drain.finish(DELIVERY_TIMEOUT_S)
        end_tracking(uri, drain.run_id, status, tags)
    _print(study, ending, missing)
    return ending


def _cores(settings: Settings) -> float:
    return max(1, settings.config.cluster.num_workers) * settings.config.cluster.cpus_per_worker


def _race(study: Study, concurrent: int) -> None:
    settings = study.settings
    points = settings.points()
    tasks = [{"number": n, "phase": "race", "values": values} for n, values in enumerate(points)]
    trials = study.trials()
    if sum(trial.phase == "race" and trial.status in ENDED for trial in trials.values()) < len(tasks):
        ray_tune.run_trials(study, tasks, "race", concurrent)


def _confirm(study: Study, concurrent: int) -> list[Confirmed]:
    """Trains the best trials again, each over seeds, under the full protocol."""
    search, trials = study.settings.search, study.trials()
    best = ranking(trials)[: search.confirm_top]
    first = len(study.settings.points())
    tasks = [
        {
            "number": first + place * search.confirm_seeds + index,
            "phase": "confirm",
            "values": trial.values | {"train.seed": study.settings.config.train.seed + index},
            "of": trial.number,
        }
        for place, trial in enumerate(best)
        for index in range(search.confirm_seeds)
    ]
    if any(task["number"] not in trials or trials[task["number"]].status not in ENDED for task in tasks):
        ray_tune.run_trials(study, tasks, "confirm", concurrent)
    return confirmed(study.trials())


def _champion(study: Study, uri: str, drain: StudyDrain, finalists: Sequence[Confirmed]) -> Ending:
    """Registers the best seed of the best finalist, and lets it compete."""
    settings, raced = study.settings, ranking(study.trials())
    if finalists:
        number = finalists[0].best_trial
    elif raced:
        number = raced[0].number
    else:
        raise ProtocolError(
            f"no trial of study {settings.search.name!r} has a score; genray study {settings.search.name} says why"
        )
    folder, config = study.trial_folder(number), study.config_of(number)
    name = _best_snapshot(folder.names(SNAPSHOTS), folder.pull(BEST).read_text() if folder.pull(BEST).is_file() else "")
    drain.finish(DELIVERY_TIMEOUT_S)
    tags = {"genray.study": settings.search.name, "genray.trial": str(number), "genray.run": config.run.name}
    directory = folder.pull(f"{SNAPSHOTS}/{name}")
    version = mlflow_registry.register(uri, directory, run_id=drain.child(number), task=config.task, tags=tags)
    verdict = "not compared with the champion"
    if settings.config.eval.promote:
        extractor = study.folder.pull(EXTRACTOR)
        own = extractor if extractor.is_dir() else None
        try:
            decision = mlflow_champion.promote(uri, f"{config.task}/{version}", config.data, settings.config.eval, own)
            verdict = decision.reason
        except ProtocolError as error:
            verdict = f"not promoted: {error}"
    return Ending(number, version, verdict, list(finalists))


def _draw(study: Study, drain: StudyDrain) -> None:
    """Pictures and page of the study, into its folder and its MLflow run."""
    directory = study.folder.local / REPORT
    study_plots.write(study, directory)
    study.folder.push(REPORT)
    try:
        drain.attach(directory)
    except TrackingError as error:
        logger.warning("the pictures of the study are in %s, and not in MLflow: %s", directory, error)


def _best_snapshot(names: Sequence[str], best: str) -> str:
    """Name of the best-scored snapshot that is still there, or else of the newest."""
    return next((name for name in names if f'"{name}"' in best), names[-1])


def _print(study: Study, ending: Ending, missing: int) -> None:
    settings, trials = study.settings, study.trials()
    counts = {status: sum(t.status == status for t in trials.values()) for status in ENDED}
    used, saved = hours(trials, settings.config.train.num_steps)
    lines = [f"trials    {', '.join(f'{n} {status}' for status, n in counts.items())}"]
    lines += [f"time      {used:.2f} trial hours, {saved:.2f} saved"]
    lines += [
        f"finalist  trial {c.number}: {c.mean:.5g} ± {c.spread:.2g} over {len(c.values)} seeds, {c.raced:.5g} raced"
        for c in ending.finalists
    ]
    if len(settings.search.metric) > 1:
        front = {n: t.reports[-1].objective for n, t in trials.items() if t.reports and t.phase == "race"}
        lines += [f"front     trials {', '.join(map(str, pareto_front(front)))}"]
    lines += [
        f"lead      {luck(ending.finalists)}",
        f"champion  trial {ending.best}; again: genray train PRESET --from-trial {settings.search.name}/{ending.best}",
    ]
    if missing:
        lines += [f"MLflow    {missing} trials are not completely delivered: the same command delivers them"]
    lines += [f"registry  {settings.config.task} version {ending.version}: {ending.verdict}"]
    print("\n".join(lines), flush=True)  # noqa: T201
