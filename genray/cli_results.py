"""`genray results`: the table of what registered models have scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from genray.paths import base_directory


@dataclass(frozen=True)
class Results:
    """Writes a Markdown table: model, data, score, protocol, hardware, time in training steps, command; each version of
    the registry that has a score, by its last `genray evaluate`, or else by its own run.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Registered names. None: all."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def results(args: Sequence[str]) -> int:
    """Writes a table of what registered models have scored."""
    asked = tyro.cli(Results, args=args, prog="genray results")
    from genray import mlflow_results, mlflow_tracking

    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    print(mlflow_results.markdown(mlflow_results.results(uri, asked.models)), end="")  # noqa: T201
    return 0
