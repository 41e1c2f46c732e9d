"""What the models of the registry have scored: one row a version, from MLflow alone."""

import json
import math
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from genray.config import Config
from genray.errors import RegistryError, unknown
from genray.evaluation import METRICS
from genray.mlflow_promotion import PROTOCOL_TAG
from genray.mlflow_store import connect, reporting
from genray.presets import PRESETS, preset

HARDWARE = "genray.event.hardware"
"""Tag of a run: what rank 0 was trained on."""
COLUMNS = ("model", "data", "score", "protocol", "hardware", "time", "command")
# these say where a run is and who scores it, not what is trained
_ELSEWHERE = ("run.", "tracking.", "eval.", "cluster.", "data.root", "data.cache", "data.download", "data.on_leak")
_SUBJECT = "genray.subject"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is known of one version of a model."""

    model: str
    """NAME/VERSION."""
    data: str
    scores: Mapping[str, tuple[float, float]]
    """Values and spreads by metric, that by which champions are made first."""
    protocol: Mapping[str, Any]
    hardware: str
    seconds: float
    """In training steps, without start and scores."""
    command: str
    """That trains it."""
    commit: str
    """Of the code that did, shortened, with a + where it had been changed; empty: not recorded."""


def results(uri: str, models: Sequence[str] = ()) -> list[Result]:
    """The versions that have a score, by name and number, with the scores of their last `genray evaluate`, or else
    those that their runs took.

    Args:
        uri: what `resolve_uri` returned.
        models: registered names; none: all.

    Raises:
        RegistryError: there is no such model; says which there are.
        TrackingError: the server does not answer.
    """
    client = connect(uri)
    with reporting(uri):
        known = sorted(model.name for model in _pages(client.search_registered_models))
        for name in models:
            if name not in known:
                raise RegistryError(unknown("model", name, known))
        evaluated = _evaluations(client)
        found = []
        for name in models or known:
            versions = [v for v in _pages(client.search_model_versions, f"name = '{name}'") if v.run_id]
            for version in sorted(versions, key=lambda v: int(v.version)):
                if result := _result(client, version, evaluated.get(f"{name}/{version.version}")):
                    found.append(result)
        return found


def markdown(found: Iterable[Result]) -> str:
    """The table."""
    rows = [
        (
            f"`{one.model}`",
            one.data,
            ", ".join(f"{metric} {value:.4g} ± {spread:.1g}" for metric, (value, spread) in one.scores.items()),
            _said(one.protocol),
            one.hardware,
            _duration(one.seconds),
            f"`{one.command}`" + (f" at {one.commit}" if one.commit else ""),
        )
        for one in found
    ]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _pages(search: Any, *arguments: Any) -> list[Any]:
    """All that a search of MLflow finds."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(*arguments, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def _evaluations(client: MlflowClient) -> dict[str, Run]:
    """The newest evaluation of each subject."""
    experiments = [one.experiment_id for one in _pages(client.search_experiments)]
    query = "tags.`genray.kind` = 'evaluation' and attributes.status = 'FINISHED'"
    runs = _pages(lambda **page: client.search_runs(experiments, query, **page))
    runs.sort(key=lambda run: int(run.info.start_time))
    return {run.data.tags[_SUBJECT]: run for run in runs if _SUBJECT in run.data.tags}


def _result(client: MlflowClient, version: ModelVersion, evaluation: Run | None) -> Result | None:
    run, tagged = client.get_run(version.run_id), json.loads(version.tags.get(PROTOCOL_TAG, "{}"))
    if evaluation is not None:
        scores, protocol = _scores(evaluation.data.metrics), dict(evaluation.data.params)
    elif tagged:
        step = int(version.tags["genray.step"])
        keys = [key for key in run.data.metrics if key.startswith("eval/")]
        history = {key: client.get_metric_history(run.info.run_id, key) for key in keys}
        scores = _scores({key: p.value for key, points in history.items() for p in points if p.step == step})
        protocol = tagged
    else:
        return None
    config = _config(client, run)
    if "nll" in scores:
        protocol |= {"importance_samples": config["eval"]["importance_samples"]}
    hardware = json.loads(run.data.tags[HARDWARE]) if HARDWARE in run.data.tags else {}
    return Result(
        model=f"{version.name}/{version.version}",
        data=str(config["data"]["name"]),
        scores=dict(sorted(scores.items(), key=lambda one: one[0] != tagged.get("metric"))),
        protocol=protocol,
        hardware=_machine(hardware, int(config["cluster"]["num_workers"])),
        seconds=_seconds(client, run),
        command=_command(_flat(config)),
        commit=_commit(run.data.tags),
    )


def _scores(metrics: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    values = {name: f"eval/{name}" for name in METRICS}
    return {name: (metrics[key], metrics.get(f"{key}_spread", 0.0)) for name, key in values.items() if key in metrics}


def _config(client: MlflowClient, run: Run) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, dict[str, Any]] = json.loads(
            Path(client.download_artifacts(run.info.run_id, "config.json", folder)).read_text()
        )
        return made


def _flat(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}


def _seconds(client: MlflowClient, run: Run) -> float:
    """What the steps took that the run has kept; the clock of a log point is that of the steps since the last."""
    points = sorted(client.get_metric_history(run.info.run_id, "perf/step_ms"), key=lambda point: point.step)
    befores = [0, *(point.step for point in points)]
    return math.fsum(p.value * (p.step - before) / 1000 for p, before in zip(points, befores, strict=False))


def _command(config: Mapping[str, Any]) -> str:
    """Of the preset that is nearest, with what is not as in it."""

    def other(name: str) -> dict[str, Any]:
        base = json.loads(json.dumps(Config.flat(preset(name))))
        told = {key: value for key, value in config.items() if not key.startswith(_ELSEWHERE)}
        return {key: value for key, value in told.items() if key not in base or base[key] != value}

    nearest = min(PRESETS, key=lambda name: len(other(name)))
    words = ["genray", "train", nearest]
    for key, value in other(nearest).items():
        words += [f"--{key.replace('_', '-')}", _word(value)]
    return shlex.join(words)


def _commit(tags: Mapping[str, str]) -> str:
    changed = tags.get("mlflow.source.git.dirty", "").lower() == "true"
    return tags.get("mlflow.source.git.commit", "")[:7] + "+" * changed


def _word(value: Any) -> str:
    return ",".join(str(one) for one in value) if isinstance(value, list) else str(value)


def _machine(hardware: Mapping[str, Any], num_workers: int) -> str:
    if not hardware:
        return "not recorded"
    device = hardware["gpu"] or f"{hardware['threads']} of {hardware['cores']} cores of {hardware['processor']}"
    return f"{num_workers} workers, each {device}" if num_workers > 1 else str(device)


def _said(protocol: Mapping[str, Any]) -> str:
    seeds = "1 seed" if int(protocol["num_seeds"]) == 1 else f"{protocol['num_seeds']} seeds"
    said = f"{int(protocol['num_samples']):,} images, {seeds}, {protocol['split']} split"
    if "importance_samples" in protocol:
        said += f", nll by {protocol['importance_samples']} importance samples"
    if protocol.get("extractor", "none") == "none":
        return said
    return f"{said}, features of `{protocol['extractor']}` {protocol['extractor_digest'][:8]}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
