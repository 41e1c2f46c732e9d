"""Studies without MLflow, for benchmarks: what is raced, and a classifier to score with."""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from genray import ray_tune
from genray.checkpoint import EXTRACTOR, SNAPSHOTS, step_name
from genray.config import Data
from genray.data.images import load_images
from genray.distributed import current
from genray.presets import preset
from genray.storage import RunFolder
from genray.study import Settings, Study
from genray.trainer import train


def extractor(folder: Path, data: Data, num_steps: int) -> Path:
    """Snapshot of a classifier of `data` after a few steps, whose features are compared."""
    base = preset(f"{data.name}-classifier")
    made = replace(base, data=data, train=replace(base.train, num_steps=num_steps, checkpoint_every=num_steps))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(made, load_images(data, "train"), RunFolder.open(str(folder), "extractor"), current(use_gpu=False))
    return folder / "extractor" / SNAPSHOTS / step_name(num_steps)


def race(settings: Settings, features: Path | None) -> tuple[Study, float]:
    """A new study, all of its trials ended, and the seconds that they took."""
    study = Study.claim(settings)
    if features:
        (study.folder.local / EXTRACTOR).symlink_to(features)
    tasks = [{"number": n, "phase": "race", "values": values} for n, values in enumerate(settings.points())]
    concurrent = ray_tune.capacity(settings.config, settings.search)
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        ray_tune.run_trials(study, tasks, "race", concurrent)
    return study, time.perf_counter() - began
