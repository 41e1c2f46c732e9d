"""Scores that were taken outside a training run, as a small run of their own in MLflow."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis

from genray.evaluation.protocol import Score
from genray.mlflow_store import connect, reporting
from genray.mlflow_tracking import end_run, provenance_tags, start_run


def log_scores(
    uri: str,
    subject: str,
    scores: Sequence[Score],
    *,
    experiment: str,
    tags: Mapping[str, str],
    step: int = 0,
    files: Sequence[Path] = (),
) -> str:
    """Id of a finished run `evaluate SUBJECT` with the metrics `eval/NAME`, their spreads, and `scores.json`.

    A run of its own: the run that trained the model is over, and its own scores stay what they were.

    Args:
        uri: what `resolve_uri` returned.
        subject: what was scored: NAME/VERSION, or a folder.
        scores: at least one.
        experiment: made if it is missing.
        tags: of the run, besides where it comes from.
        step: of the metrics.
        files: kept as artifacts in the folder `card`.

    Raises:
        TrackingError: the server does not answer.
    """
    protocol = scores[0].protocol
    params: dict[str, Any] = {
        name: value for name, value in protocol.to_dict().items() if name not in ("metric", "extra")
    }
    kind = {"genray.kind": "evaluation", "genray.subject": subject}
    written = [score.to_dict() for score in scores]
    run_id = start_run(
        uri,
        experiment=experiment,
        name=f"evaluate {subject}",
        params=params,
        config={"subject": subject, "protocols": [score["protocol"] for score in written]},
        tags=provenance_tags() | kind | dict(tags),
    )
    client, now = connect(uri), get_current_time_millis()
    values = {f"eval/{s.metric}": s.value for s in scores} | {f"eval/{s.metric}_spread": s.spread for s in scores}
    metrics = [Metric(key, value, now, step) for key, value in values.items() if math.isfinite(value)]
    with reporting(uri):
        client.log_batch(run_id, metrics=metrics, synchronous=True)
        client.log_dict(run_id, {"scores": written}, "scores.json")
        for path in files:
            client.log_artifact(run_id, str(path), "card")
    end_run(uri, run_id, "FINISHED")
    return run_id
