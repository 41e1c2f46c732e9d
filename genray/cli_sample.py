"""`genray sample`: pictures of models and of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from genray import pictures, sampling, snapshot
from genray.paths import base_directory

GRID_IMAGES, ROWS = 64, 8


@dataclass(frozen=True)
class Sample:
    """Draws images from a model and writes them as one picture."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder; the folder of a run for a time-lapse."""
    kind: Literal["grid", "interpolation", "classes", "truncation", "styles", "time-lapse"] = "grid"
    """Samples; rows that go from one latent to another; one latent a row in each class, or at each truncation; styles
    of two images mixed; or the sample grids of a run, one after the other."""
    num: int | None = None
    """Images of a grid, rows of other pictures. None: 64 or 8."""
    seed: int = 0
    """Seed of the latents: the same seed gives the same images."""
    label: int | None = None
    """Class of every image, for a conditional model. None: all classes in turn."""
    truncation: float = 1.0
    """Factor on the latents, or on the styles around their mean; below 1 trades diversity for quality."""
    out: Path | None = None
    """PNG file, or GIF for a time-lapse. None: KIND.png or time-lapse.gif."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def sample(args: Sequence[str]) -> int:
    """Draws images from a model and writes a grid or another picture of them."""
    asked = tyro.cli(Sample, args=args, prog="genray sample")
    out = asked.out or Path("time-lapse.gif" if asked.kind == "time-lapse" else f"{asked.kind}.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    if asked.kind == "time-lapse":
        pictures.time_lapse(Path(asked.model), out)
    else:
        loaded = _loaded(asked.model, asked.uri)
        num = asked.num if asked.num is not None else GRID_IMAGES if asked.kind == "grid" else ROWS
        images, columns = pictures.draw(asked.kind, loaded, num, asked.seed, asked.label, asked.truncation)
        sampling.save_png(out, sampling.grid(images, columns))
    print(out)  # noqa: T201
    return 0


def _loaded(model: str, uri: str | None) -> snapshot.Snapshot:
    from genray import mlflow_champion, mlflow_tracking

    with mlflow_champion.local_snapshot(model, mlflow_tracking.resolve_uri(uri, base_directory())) as directory:
        return snapshot.load(directory)
