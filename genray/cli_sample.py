"""`genray sample`: pictures of models and of runs."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from genray import pictures, sampling, snapshot
from genray.data.images import load_images
from genray.paths import base_directory

NUM, ROWS = {"grid": 64, "reconstructions": 32}, 8


@dataclass(frozen=True)
class Sample:
    """Draws images from a model and writes them as one picture."""

    model: tyro.conf.Positional[str]
    """NAME@ALIAS, NAME/VERSION, or a snapshot folder; the folder of a run for a time-lapse."""
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
    """PNG file, or GIF for a time-lapse. None: KIND.png or time-lapse.gif."""
    root: str | None = None
    """Folder of the data set's files, for kinds that need images. None: where the run had them, or $GENRAY_DATA."""
    extractor: str | None = None
    """Classifier whose features say what is nearest, as for genray evaluate. None: DATASET-classifier@champion."""
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
        sampling.save_png(out, _picture(asked))
    print(out)  # noqa: T201
    return 0


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
