"""Where a run's files go when its config says it relatively."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from genray.config import Config
from genray.errors import ConfigError
from genray.evaluation import extractors

RAY_COPY = "working_dir_files"


def base_directory() -> Path:
    """What relative paths of storage and tracking are relative to: absolute.

    In a job that was submitted with a working directory that is Ray's copy of it, which is deleted
    after the job; ~/genray takes its place.
    """
    here = Path.cwd()
    if RAY_COPY not in here.parts:
        return here
    home = Path.home() / "genray"
    home.mkdir(exist_ok=True)
    return home


def resolved(config: Config) -> Config:
    """`config` with every path absolute and the name of its data folder filled in, ready to leave this process.

    Raises:
        ConfigError: `eval.extractor` looks like a path, or names a file, that is not there.
    """
    base = base_directory()
    storage = config.run.storage
    if "://" not in storage:
        storage = str(base / Path(storage).expanduser())
    root = config.data.root or os.environ.get("GENRAY_DATA")
    data = replace(
        config.data,
        root=str(Path(root).expanduser().absolute()) if root else None,
        cache=str(Path(config.data.cache).expanduser().absolute()),
    )
    objective: Any = config.objective
    eye = getattr(config.objective, "perceptual", None)
    if eye and is_path(eye):
        objective = replace(objective, perceptual=_absolute(eye))
    source = config.transfer.source
    if source and is_path(source):
        source = str(Path(source).expanduser().absolute())
    sources = tuple(_absolute(source) if is_path(source) else source for source in config.mix.sources)
    extractor = config.eval.extractor
    if extractor and (weights := extractors.parse(extractor)):
        extractor = f"{extractor.partition(':')[0]}:{weights[2].absolute()}"
    elif extractor and is_path(extractor):
        path = Path(extractor).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError(
                f"eval.extractor={extractor!r} is no folder; give a snapshot folder, NAME@ALIAS of the registry, "
                "or KIND:PATH of a weights' file"
            )
        extractor = str(path)
    return replace(
        config,
        run=replace(config.run, storage=storage),
        data=data,
        objective=objective,
        transfer=replace(config.transfer, source=source),
        mix=replace(config.mix, sources=sources, judge=_absolute(config.mix.judge)),
        eval=replace(config.eval, extractor=extractor),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path and "://" not in path else path


def keep_private() -> None:
    """Files that this process makes from now on can be read by its own user alone."""
    os.umask(0o077)


def is_path(model: str) -> bool:
    """Whether a model is named by a folder rather than as NAME@ALIAS or NAME/VERSION of the registry."""
    if "@" in model:
        return False
    name, _, version = model.partition("/")
    return Path(model).expanduser().exists() or not (name and version.isdigit())
