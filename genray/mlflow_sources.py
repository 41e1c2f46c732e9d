"""Generated images that a run draws for itself: `mix.sources` may name generators instead of data sets."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from genray import mlflow_champion, mlflow_registry, ray_generate, snapshot
from genray.config import Config
from genray.data.generated import MANIFEST, request_for
from genray.data.mix import SPARE, Mix, check_fits, num_generated, training_images
from genray.errors import ResumeError
from genray.paths import is_path
from genray.snapshot import CARD
from genray.storage import RunFolder

DRAWN = "drawn-{}"
"""Folder of a run with the images of the generator that is so many-th of its sources."""


def drawn(config: Config, uri: str) -> Config:
    """`config` with a data set in place of each source that is a snapshot's folder, NAME@ALIAS or NAME/VERSION.

    The data set lies in the run's folder and is drawn once, by `mix.seed`: as many images as the run can take of each
    class, and twice as many where some may be left out. A run that is resumed has those it began with, whatever has
    become the champion since.

    Raises:
        RegistryError: the registry has no such model.
        ConfigError: it makes no images, or has no classes.
        DataError: its classes or sizes are not those of the real images.
        ResumeError: the run has begun with images of others.
        StorageError: its folder cannot be written.
    """
    sources = list(config.mix.sources)
    if not any(map(is_generator, sources)):
        return config
    folder = RunFolder.open(config.run.storage, config.run.name)
    folder.probe()
    begun = folder.pull("config.json")
    before = Config.from_dict(json.loads(begun.read_text())).mix.sources if begun.is_file() else config.mix.sources
    for index, source in enumerate(sources):
        if not is_generator(source):
            continue
        if before[index : index + 1] != (source,):
            raise ResumeError(
                f"run {config.run.name!r} has images of mix.sources={' '.join(before) or 'none'}, and is now given "
                f"{' '.join(config.mix.sources)}; give those again, or another run.name"
            )
        name = DRAWN.format(index)
        place = folder.pull(name)
        if not (place / MANIFEST).is_file():
            _draw(config, source, place, uri)
            folder.push(name)
        sources[index] = f"{config.run.storage}/{config.run.name}/{name}"
    return replace(config, mix=replace(config.mix, sources=tuple(sources)))


def is_generator(source: str) -> bool:
    """Whether a source is a model rather than images."""
    return "://" not in source and (not is_path(source) or (Path(source).expanduser() / CARD).is_file())


def _draw(config: Config, source: str, place: Path, uri: str) -> None:
    mix = config.mix
    real = training_images(config.data, Mix(real_fraction=mix.real_fraction, seed=mix.seed))
    subject = source if is_path(source) else str(mlflow_registry.resolve(uri, source))
    with mlflow_champion.local_snapshot(subject, uri) as directory:
        made = snapshot.load(directory)
        request = partial(request_for, made, subject, None, seed=mix.seed)
        check_fits(source, made.image_shape, request(num=1).classes, real)
        counts = torch.bincount(real.labels, minlength=len(real.classes))
        most = max(1, *(num_generated(mix, counts, label) for label in range(len(real.classes))))
        most *= SPARE if mix.judge or mix.copy_quantile else 1
        ray_generate.write(place, request(num=most * len(made.classes)), directory, num_workers=0)
