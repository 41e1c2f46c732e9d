"""`genray sample`: pictures of models and of runs."""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from genray import pictures, sampling, snapshot
from genray.checkpoint import SNAPSHOTS
from genray.data.images import load_images
from genray.errors import ConfigError, StorageError
from genray.manifest import written_whole
from genray.paths import base_directory, is_path

NUM, ROWS = {"grid": 64, "reconstructions": 32}, 8


@dataclass(frozen=True)
class Sample:
    """Draws images from a model and writes them as one picture."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder; or the folder of a run for its time-lapse."""
    kind: Literal[
        "grid",
        "interpolation",
        "classes",
        "truncation",
        "styles",
        "nearest",
        "reconstructions",
        "traversals",
        "time-lapse",
    ] = "grid"
    """Samples; rows that go from one latent to another; one latent a row in each class, or at each truncation; styles
    of two images mixed; samples beside the training images nearest to them; test images beside what an autoencoder
    makes of them; an image whose latent changes in one dimension a row; or the sample grids of a run, one after the
    other."""
    num: int | None = None
    """Images of a grid, pairs of reconstructions, rows of other pictures. None: 64, 32 or 8."""
    seed: int = 0
    """Seed of the latents, or of the choice of images: the same seed gives the same picture."""
    label: int | None = None
    """Class of every image, for a conditional model. None: all classes in turn."""
    truncation: float = 1.0
    """Factor on the latents, or on the styles around their mean; below 1 trades diversity for quality."""
    out: Path | None = None
    """Name of a PNG file, or of a GIF for a time-lapse. None: KIND.png or time-lapse.gif."""
    root: str | None = None
    """Folder of the data set's files, for kinds that need images. None: where the run had them, or $GENRAY_DATA."""
    extractor: str | None = None
    """Classifier whose features say what is nearest, as for genray evaluate. None: DATASET-classifier@champion."""
    uri: str | None = None
    """MLflow server or database. None: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""


def sample(args: Sequence[str]) -> int:
    """Draws images from a model and writes a grid or another picture of them."""
    asked = tyro.cli(Sample, args=args, prog="genray sample")
    suffix = ".gif" if asked.kind == "time-lapse" else ".png"
    out = asked.out or Path(f"{asked.kind}{suffix}")
    if out.suffix.lower() != suffix or out.is_dir():
        raise ConfigError(f"--out={out} must be the name of a file that ends in {suffix}")
    draws_none = asked.kind in (*pictures.OF_IMAGES, "time-lapse")
    if asked.label is not None and (draws_none or asked.kind == "classes"):
        raise ConfigError(f"--label={asked.label}: --kind={asked.kind} draws no images of one class; leave it out")
    if asked.truncation != 1 and draws_none:
        raise ConfigError(f"--truncation={asked.truncation}: --kind={asked.kind} draws no latents; leave it out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if asked.kind == "time-lapse":
            _film(asked, out)
        else:
            sampling.save_png(out, _picture(asked))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error}") from error
    print(out)  # noqa: T201
    return 0


def _film(asked: Sample, out: Path) -> None:
    """The time-lapse of the run that a model is of: of its folder, or as MLflow has it."""
    from genray import mlflow_registry, mlflow_tracking

    run = Path(asked.model).expanduser()
    if is_path(asked.model):
        of_snapshot = run.parent.parent if run.parent.name == SNAPSHOTS else run
        pictures.time_lapse(of_snapshot, out)
        return
    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    version = mlflow_registry.resolve(uri, asked.model)
    with tempfile.TemporaryDirectory() as folder, written_whole(out) as beside:
        shutil.copy(mlflow_tracking.bring(uri, str(version.run_id), pictures.FILM, Path(folder)), beside)


def _picture(asked: Sample) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    from genray import mlflow_champion, mlflow_tracking

    num = asked.num if asked.num is not None else NUM.get(asked.kind, ROWS)
    uri = mlflow_tracking.resolve_uri(asked.uri, base_directory())
    with mlflow_champion.local_snapshot(asked.model, uri) as directory:
        model = snapshot.load(directory)
        root = asked.root or os.environ.get("GENRAY_DATA") or model.config.data.root
        data = dataclasses.replace(model.config.data, root=root)
        if asked.kind == "nearest":
            samples = sampling.sample(model, num, asked.seed, label=asked.label, truncation=asked.truncation)
            settings = dataclasses.replace(model.config.eval, extractor=asked.extractor)
            return mlflow_champion.nearest(samples, uri, data, settings).pixels
    if asked.kind in pictures.OF_IMAGES:
        images, columns = pictures.draw_of(asked.kind, model, load_images(data, "test"), num, asked.seed)
    else:
        images, columns = pictures.draw(asked.kind, model, num, asked.seed, asked.label, asked.truncation)
    return sampling.grid(images, columns)
