"""Values of a config that move while it runs, as pure functions of images seen."""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from genray.errors import ConfigError, unknown

if TYPE_CHECKING:
    from genray.config import Config, Optim, Train
    from genray.objectives import Objective

MOVABLE = ("optim.lr", "optim.discriminator_lr", "optim.betas.0", "optim.betas.1", "train.ema_half_life")
"""Fields that may move, besides every number of the objective that is not a whole one, and its `WHOLE_MOVABLE`."""


@dataclass(frozen=True, kw_only=True)
class Anneal:
    """Values that move from what their own section says to an end, and stay there."""

    to: tuple[str, ...] = ()
    """Fields with their ends, e.g. optim.lr=5e-5 objective.gamma=0.005 optim.betas.1=0.99."""
    samples: int = 0
    """Images after which they are at their ends; 0: those of the whole run."""
    shape: Literal["cosine", "linear", "geometric"] = "cosine"
    """Path from start to end; geometric: by the same factor for every image, from above 0 to above 0."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"anneal.samples={self.samples!r} must be at least 0")
        for text in self.to:
            _parsed(text)
        names = [_parsed(text)[0] for text in self.to]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"anneal.to names {', '.join(twice)} twice; give each field one end")

    @property
    def ends(self) -> dict[str, float]:
        """Last values by dotted name of their fields."""
        return dict(_parsed(text) for text in self.to)

    def between(self, start: float, end: float, samples_seen: int, total_samples: int) -> float:
        """Value after `samples_seen` of `total_samples` images, on the way from `start` to `end`."""
        progress = min(1.0, samples_seen / (self.samples or total_samples))
        if self.shape == "geometric":
            return start * math.exp(math.log(end / start) * progress)
        share = progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return start + (end - start) * share


@dataclass(frozen=True)
class Annealed:
    """The sections that have moving values, as they are at one moment."""

    optim: "Optim"
    train: "Train"
    objective: "Objective"


def annealed(config: "Config", samples_seen: int) -> Annealed:
    """What holds in the step that begins after `samples_seen` images."""
    sections = {"optim": config.optim, "train": config.train, "objective": config.objective}
    total = config.train.num_steps * config.train.global_batch_size
    for name, end in config.anneal.ends.items():
        section, start = name.partition(".")[0], _start(config, name)
        sections[section] = _moved(sections[section], name, config.anneal.between(start, end, samples_seen, total))
    return Annealed(**sections)  # type: ignore[arg-type]


def check_ends(config: "Config") -> None:
    """Refuses ends of fields that cannot move, or that the config would not take.

    Raises:
        ConfigError: names the field.
    """
    whole = getattr(config.objective, "WHOLE_MOVABLE", ())
    of_objective = [f.name for f in fields(config.objective) if f.type in (float, float | None) or f.name in whole]  # type: ignore[arg-type]
    known = [*MOVABLE, *(f"objective.{name}" for name in of_objective)]
    for name, end in config.anneal.ends.items():
        if name not in known:
            raise ConfigError(f"anneal.to: {unknown('moving field', name, known)}")
        start = _start(config, name)
        if config.anneal.shape == "geometric" and not min(start, end) > 0:
            raise ConfigError(
                f"anneal.shape='geometric' goes by a factor, and {name} goes from {start!r} to {end!r}; both must be "
                "above 0, or set --anneal.shape linear"
            )
        section: Any = getattr(config, name.partition(".")[0])
        try:
            moved = _moved(section, name, end)
            if name.startswith("objective."):
                moved.check(config.model)
                _check_begun(section, moved, name, start)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"anneal.to {name}={end!r}: {error}") from error


def _check_begun(section: Any, moved: Any, name: str, start: float) -> None:
    """Raises ValueError where `moved` has a part of a phase, or a state, that the run does not begin with."""
    before, after = (
        {(phase.module, part) for phase in each.phases for part in phase.parts}
        | set(each.state() if hasattr(each, "state") else ())
        for each in (section, moved)
    )
    if after - before:
        raise ValueError(
            f"{name}={start!r} leaves out what it weighs, which a run has from its first step or never; begin above 0, "
            f"e.g. --{name.replace('_', '-')} 1e-6"
        )


def _start(config: "Config", name: str) -> float:
    section, field, *place = name.split(".")
    value = getattr(getattr(config, section), field)
    if value is None:
        raise ConfigError(f"anneal.to names {name}, which has no value to start from; set --{name}")
    return float(value[int(place[0])] if place else value)


def _moved(section: Any, name: str, value: float) -> Any:
    _, field, *place = name.split(".")
    if not place:
        whole = field in getattr(section, "WHOLE_MOVABLE", ())
        return replace(section, **{field: round(value) if whole else value})
    values = list(getattr(section, field))
    values[int(place[0])] = value
    return replace(section, **{field: tuple(values)})


def _parsed(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        end = float(value)
    except ValueError:
        end = math.nan
    if not equals or not math.isfinite(end):
        raise ConfigError(f"anneal.to: {text!r} is not FIELD=NUMBER, e.g. optim.lr=5e-5")
    return name.replace("-", "_"), end
