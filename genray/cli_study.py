"""The commands that read a study: `genray study`, and `genray train PRESET --from-trial STUDY/TRIAL`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from genray.config import Config, Run
from genray.errors import ConfigError
from genray.paths import base_directory
from genray.presets import PRESETS, preset
from genray.study import Study, trial_name


@dataclass(frozen=True)
class Review:
    """Shows a study: its trials, the best so far, what is running, what was stopped and why, hours used and saved."""

    name: tyro.conf.Positional[str]
    """search.name of the study."""
    storage: str = Run.storage
    """run.storage of its search."""
    plots: Path | None = None
    """Folder for pictures and a page: history, learning curves, importance of each parameter, and more."""
    resume: bool = False
    """Go on with the study from where it was."""


def study(args: Sequence[str]) -> int:
    """Shows a study, draws it, or goes on with it."""
    asked = tyro.cli(Review, args=args, prog="genray study")
    found = Study.open(_storage(asked.storage), asked.name)
    if asked.resume:
        from genray import ray_study

        code = int(ray_study.resume(found))
        if asked.plots is None:
            return code
    else:
        from genray import study_table

        study_table.show(found, Console(width=None if sys.stdout.isatty() else 200))
        code = 0
    if asked.plots is not None:
        from genray import study_plots

        for path in study_plots.write(found, asked.plots):
            print(path)  # noqa: T201
    return code


def _storage(said: str) -> str:
    """An absolute path, or a URI."""
    return said if "://" in said else str(base_directory() / Path(said).expanduser())


@dataclass(frozen=True)
class Again:
    """Does a trial of a search again, alone: its recorded config, as it is."""

    preset: tyro.conf.Positional[str]
    """Preset that was searched."""
    from_trial: str
    """STUDY/TRIAL, e.g. digits-dcgan-study/7."""
    storage: str = Run.storage
    """run.storage of the search, and of this run."""
    run_name: Annotated[str, tyro.conf.arg(name="run.name")] = ""
    """Name of the run. Empty: that of the study, the trial and 'again'."""


def is_again(args: Sequence[str]) -> bool:
    """Whether `args` say --from-trial."""
    return any(arg.partition("=")[0].replace("_", "-") == "--from-trial" for arg in args)


def parse_again(args: Sequence[str], prog: str) -> tuple[Config, bool]:
    """The config that `PRESET --from-trial STUDY/TRIAL` describes, and whether it is a dry run.

    Raises:
        ConfigError: a field is given besides, or the trial is not one of this preset.
        StorageError: there is no such study or trial.
    """
    known = ("from-trial", "storage", "run.name", "dry-run", "help")
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").replace("_", "-")
        if arg.startswith("--") and name not in known:
            raise ConfigError(
                f"--{name} cannot be given with --from-trial, which takes the trial's config as it is; "
                "leave one of them out"
            )
    asked = tyro.cli(Again, args=[arg for arg in args if arg != "--dry-run"], prog=prog)
    name, _, number = asked.from_trial.rpartition("/")
    if not (name and number.isdecimal()):
        raise ConfigError(
            f"--from-trial {asked.from_trial!r} is not of the form STUDY/TRIAL, e.g. {asked.preset}-study/7"
        )
    storage = _storage(asked.storage)
    found = Study.open(storage, name)
    config = found.config_of(int(number))
    _check_fit(asked.preset, found.settings.config, asked.from_trial)
    if (trial := found.trials().get(int(number))) and trial.lineage:
        said = f"trial {trial.number} took over weights of others; alone, with its last values, it ends elsewhere"
        print(said, file=sys.stderr)  # noqa: T201
    run = Run(name=asked.run_name or f"{name}-{trial_name(int(number))}-again", storage=storage)
    return dataclasses.replace(config, run=run), "--dry-run" in args


def _check_fit(name: str, searched: Config, trial: str) -> None:
    """Raises ConfigError unless `searched` is what preset `name` may have become."""
    default, made_from = preset(name), searched.run.name
    if made_from == name:
        return
    ours, theirs = default.flat(), searched.flat()
    differing = [n for n in ("data.name", "model.name", "objective.name") if ours[n] != theirs[n]]
    if differing or made_from in PRESETS:
        why = f" ({differing[0]}={theirs[differing[0]]!r})" if differing else ""
        use = f"; use {made_from}" if made_from in PRESETS else ""
        raise ConfigError(f"trial {trial!r} is of {made_from!r}{why}, not of preset {name!r}{use}")
