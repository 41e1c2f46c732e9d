"""One job, end to end: train, track, score, register, promote."""

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from genray import (
    mlflow_champion,
    mlflow_registry,
    mlflow_sources,
    mlflow_store,
    mlflow_tracking,
    pictures,
    ray_train,
)
from genray.checkpoint import EXTRACTOR, SNAPSHOTS, FolderStore, step_of
from genray.config import Config
from genray.data.images import ImageSet, load_images
from genray.data.leaks import describe, heed_leak
from genray.data.mix import training_images
from genray.errors import ConfigError, GenrayError, ProtocolError, RegistryError, TrackingError
from genray.estimate import memory_mb, num_parameters
from genray.evaluation.protocol import Score
from genray.health import late_finding
from genray.mlflow_drain import Delivery, Drain
from genray.mlflow_promotion import score_tags
from genray.objectives.elbo import bound_of
from genray.paths import base_directory, is_path
from genray.preemption import sigterm_asks, sigterm_raises
from genray.ray_evaluate import Scorer
from genray.start import PERCEPTUAL, START, build_frozen, start_from
from genray.storage import JOURNAL, RunFolder
from genray.trainer import Outcome, check_same_run, train_here

DELIVERY_TIMEOUT_S = 60.0
REGISTER_TRIES = 4
EXIT_STOPPED = 3
Status = Literal["FINISHED", "FAILED", "KILLED"]
Best = tuple[str, list[Score]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a job leaves behind."""

    outcome: Outcome
    run_id: str
    delivery: Delivery
    scores: list[Score]
    version: int
    verdict: str

    @property
    def exit_code(self) -> int:
        """0: all steps are done; 3: a health rule stopped the run, and its best snapshot so far is registered."""
        return EXIT_STOPPED if self.outcome.stopped else 0


def plan(config: Config) -> dict[str, Any]:
    """What `run` would do and ask for; asks for nothing."""
    cluster = config.cluster
    workers = max(1, cluster.num_workers)
    return {
        "config": config.to_dict(),
        "parameters": num_parameters(config),
        "memory_mb_per_worker": memory_mb(config),
        "resources": {
            "workers": cluster.num_workers,
            "CPU": workers * cluster.cpus_per_worker,
            "GPU": workers * int(cluster.use_gpu),
            "scoring": {"CPU": config.eval.num_cpus, "GPU": config.eval.num_gpus},
        },
    }


def run(config: Config) -> Report:
    """Trains, tracks, scores, registers and promotes `config`, whose paths are absolute; prints what came of it.

    Raises:
        GenrayError: what was wrong; before anything is asked of Ray where that can be known.
    """
    uri = mlflow_tracking.resolve_uri(config.tracking.uri, base_directory())
    asked, config = config, mlflow_sources.drawn(config, uri)
    images = training_images(config.data, config.mix)
    if images.left_out:
        print(f"mix       left out {images.left_out}", flush=True)  # noqa: T201
    config = replace(config, data=replace(config.data, download=False))  # workers find what the driver has fetched
    folder = RunFolder.open(config.run.storage, config.run.name)
    folder.probe()
    _note_splits(folder, config, images)
    _claim(folder, asked)
    _bring_start(folder, config, uri, images)
    _bring_perceptual(folder, config, uri)
    can_score = bring_extractor(folder, config, uri)
    run_id = _start_tracking(folder, config, uri, images)
    followed = folder.mirror
    drain = Drain(uri, run_id, followed.local / JOURNAL, refresh=lambda: followed.follow_journals())
    drain.start()
    status: Status = "FAILED"
    tags: dict[str, str] = {}
    try:
        with sigterm_raises():
            outcome, best = _train_and_score(config, can_score)
            tags["genray.stopped"] = outcome.stopped or "no"
            version, verdict = _register(config, folder, uri, run_id, best, tags)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ray_train.disconnect()
        delivery = drain.finish(DELIVERY_TIMEOUT_S)
        with tempfile.TemporaryDirectory() as place:
            end_tracking(uri, run_id, status, tags, _film(followed.local, Path(place)))
    report = Report(outcome, run_id, delivery, best[1] if best else [], version, verdict)
    _print(config, uri, report)
    return report


def _film(run: Path, place: Path) -> list[Path]:
    """The time-lapse of the grids of a run, made in the folder `place`; none where it has no grids."""
    try:
        pictures.time_lapse(run, place / pictures.FILM)
    except (ConfigError, OSError):
        return []
    return [place / pictures.FILM]


def end_tracking(uri: str, run_id: str, status: Status, tags: Mapping[str, str], files: Iterable[Path] = ()) -> None:
    """Says in MLflow how the run ended; a server that is away is only reported."""
    try:
        mlflow_tracking.end_run(uri, run_id, status, tags, files)
    except TrackingError as error:
        logger.warning("MLflow was not told that the run is %s: %s", status, error)


def _claim(folder: RunFolder, config: Config) -> None:
    """Notes the config of a new run; refuses another one under the name of an old run."""
    path = folder.pull("config.json")
    if path.is_file():
        check_same_run(Config.from_dict(json.loads(path.read_text())), config)
    folder.write("config.json", json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def _note_splits(folder: RunFolder, config: Config, train_images: ImageSet) -> None:
    """Writes down which images a classifier is trained and which it is tested on: digests and counts of each class.

    Raises:
        DataError: an image is in both, and `data.on_leak` is 'stop'.
    """
    if config.objective.product != "classifier":
        return
    test = load_images(config.data, config.eval.split)
    heed_leak(config.data, train_images, test)
    noted = {images.split: describe(images) for images in (train_images, test)}
    folder.write("splits.json", json.dumps({"split_seed": config.data.split_seed} | noted, indent=2) + "\n")


def _bring_start(folder: RunFolder, config: Config, uri: str, images: ImageSet) -> None:
    """Puts the registry's model that the run starts from into its folder; says, and notes, what is taken of it."""
    source = config.transfer.source
    if not source:
        return
    if not is_path(source) and not folder.pull(START).is_dir():
        mlflow_champion.fetch(source, uri, folder.local / START)
        folder.push(START)
    with torch.random.fork_rng(devices=[]):
        module = config.model.build(config.data.image_shape, len(images.classes))[config.objective.product]
    fit, digest = start_from(module, config, folder)
    print(f"starts    from {source} ({digest[:12]}…): {fit}", flush=True)  # noqa: T201
    noted = {"source": source, "sha256": digest, **asdict(fit)}
    folder.write("transfer.json", json.dumps(noted, indent=2) + "\n")


def _bring_perceptual(folder: RunFolder, config: Config, uri: str) -> None:
    """Puts the classifier of a perceptual term into the run's folder, where every worker and every resume finds it."""
    source = getattr(config.objective, "perceptual", None)
    if source and not folder.pull(PERCEPTUAL).is_dir():
        mlflow_champion.fetch(source, uri, folder.local / PERCEPTUAL)
        folder.push(PERCEPTUAL)
        try:
            build_frozen(config, folder)
        except GenrayError:
            folder.remove(PERCEPTUAL)
            raise


def bring_extractor(folder: RunFolder, config: Config, uri: str) -> bool:
    """Puts the classifier that scores need into the run's folder; whether there is anything to score with."""
    if config.objective.product == "classifier":
        return True
    if not folder.pull(EXTRACTOR).is_dir():
        model = config.eval.extractor or f"{config.data.name}-classifier@champion"
        try:
            mlflow_champion.fetch(model, uri, folder.local / EXTRACTOR)
            folder.push(EXTRACTOR)
        except (RegistryError, TrackingError) as error:  # a run goes on without MLflow
            if config.eval.extractor:
                raise
            logger.warning(
                "no FID for this run: %s; train the preset %s-classifier first, or set eval.extractor",
                error,
                config.data.name,
            )
            return config.objective.product == "tokenizer" or bound_of(config.objective) is not None
    return True


def _start_tracking(folder: RunFolder, config: Config, uri: str, images: ImageSet) -> str:
    """The MLflow run of this run: a new one, or the one that an earlier start of it noted in its folder."""
    data = mlflow_tracking.TrainingData(
        name=config.data.name,
        source=config.data.root or config.data.name,
        digest=images.digest,
        num_images=len(images.images),
    )
    try:
        run_id = mlflow_tracking.run_of(
            folder,
            uri,
            experiment=config.tracking.experiment or f"genray/{config.data.name}",
            name=config.run.name,
            params=config.flat(),
            config=config.to_dict(),
            tags=mlflow_tracking.provenance_tags()
            | {"genray.task": config.task, "genray.images_skipped": str(images.num_skipped)}
            | ({"genray.mix.left_out": images.left_out} if images.left_out else {}),
            dataset=data,
        )
    except TrackingError as error:
        noted = folder.local / mlflow_tracking.NOTE
        if not noted.is_file():
            raise
        logger.warning("the run goes on, and its journal is delivered later: %s", error)
        return str(json.loads(noted.read_text())["run_id"])
    print(f"MLflow run {run_id} in {mlflow_store.redact(uri)}", flush=True)  # noqa: T201
    return run_id


def _train_and_score(config: Config, can_score: bool) -> tuple[Outcome, Best | None]:
    """Trains on Ray, or here with `cluster.num_workers=0`, while snapshots are scored; the best of them."""
    on_ray = config.cluster.num_workers > 0
    storage = config.run.storage
    if on_ray:
        ray_train.connect(config.cluster.num_workers * config.cluster.cpus_per_worker)
        if warning := ray_train.check_resources(config):
            logger.warning(warning)
    scorer = Scorer(config, storage, on_ray=on_ray)
    if can_score:
        scorer.start()
    if on_ray:
        outcome = ray_train.fit(config, storage)
    else:
        with sigterm_asks() as asked:
            outcome = train_here(config, asked)
    best = scorer.finish() if can_score else None
    if not outcome.stopped and (late := late_finding(config.health, FolderStore(scorer.folder).scores())):
        logger.warning("the run was not stopped only because its scores came after its last step: %s", late)
    return outcome, best


def _register(
    config: Config, folder: RunFolder, uri: str, run_id: str, best: Best | None, tags: Mapping[str, str]
) -> tuple[int, str]:
    """Registers the best snapshot, or the last where there are no scores, and lets it compete."""
    name = best[0] if best else folder.names(SNAPSHOTS)[-1]
    tags = {**tags, "genray.run": config.run.name, "genray.step": str(step_of(name))}
    if best:
        tags |= score_tags(best[1][0])
    for score in best[1] if best else []:
        tags[f"genray.eval.{score.metric}"] = f"{score.value:.6g}"
    directory = folder.pull(f"{SNAPSHOTS}/{name}")
    version = _stored(uri, directory, run_id, config.task, tags)
    if best is None or not config.eval.promote:
        return version, "not compared with the champion" + ("" if best else ": there is no score")
    extractor = folder.local / EXTRACTOR
    own = extractor if extractor.is_dir() else None
    try:
        decision = mlflow_champion.promote(uri, f"{config.task}/{version}", config.data, config.eval, own)
    except ProtocolError as error:
        return version, f"not promoted: {error}"
    return version, decision.reason


def _stored(uri: str, directory: Path, run_id: str, task: str, tags: Mapping[str, str]) -> int:
    """Registers; days of training shall not fail by a server that is restarted, or by an upload that breaks off."""
    deadline = time.monotonic() + DELIVERY_TIMEOUT_S
    for _ in range(REGISTER_TRIES - 1):
        if not mlflow_store.wait_for(uri, deadline - time.monotonic()):
            break
        try:
            return mlflow_registry.register(uri, directory, run_id=run_id, task=task, tags=tags)
        except TrackingError as error:
            logger.warning("the model is registered again: %s", error)
    return mlflow_registry.register(uri, directory, run_id=run_id, task=task, tags=tags)


def _print(config: Config, uri: str, report: Report) -> None:
    lines = [f"trained   {report.outcome.step} steps, {report.outcome.samples_seen} images"]
    if report.outcome.stopped:
        lines += [f"stopped   by {report.outcome.stopped}"]
        lines += ["          switch that rule off or to warn to go on, or choose another run.name"]
    lines += [f"score     {s.metric} {s.value:.4f} ± {s.spread:.4f}" for s in report.scores]
    lines += [f"MLflow    run {report.run_id} in {mlflow_store.redact(uri)}"]
    if not report.delivery.complete:
        lines += [f"          {report.delivery.unsent} values are still unsent: the same command delivers them"]
    lines += [f"registry  {config.task} version {report.version}: {report.verdict}"]
    print("\n".join(lines), flush=True)  # noqa: T201
