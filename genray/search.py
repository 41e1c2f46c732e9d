"""What a search tries: domains of config fields, the values of one trial, and what makes a trial better.

Everything here is a pure function of the search's settings, so a study that lost its driver makes the
same trials again.
"""

import dataclasses
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from genray.config import Config
from genray.errors import ConfigError, unknown
from genray.evaluation import METRICS, check_names
from genray.evaluation.protocol import Score
from genray.streams import derive_seed

Kind = Literal["log", "uniform", "int", "choice"]
Values = dict[str, Any]
"""Values of a trial by dotted name of their fields; `optim.betas.0` is the first of two."""
_UNSEARCHABLE = {
    "run": "a study names and places its runs itself",
    "eval": "scores under different protocols cannot be compared",
    "cluster": "all trials of a study ask for the same resources",
    "tracking": "a study has one record",
}
VIOLATION = 1e6
"""Added to the objective of a trial that misses its constraint, so that any that keeps it is better."""


@dataclass(frozen=True)
class Domain:
    """The values that one field may take."""

    kind: Kind
    """log: floats, uniform in their logarithm; uniform: floats; int: whole numbers; choice: one of `values`."""
    values: tuple[Any, ...]
    """Lowest and highest, both included; or the choices."""
    when: tuple[str, Any] | None = None
    """Field and value of the space that this one depends on; at other values the preset's own stays."""

    def __post_init__(self) -> None:
        if self.kind == "choice":
            if not self.values:
                raise ConfigError("a choice needs at least one value, e.g. 'choice 1 2 4'")
            return
        whole = self.kind == "int"
        kinds = int if whole else (int, float)
        if len(self.values) != 2 or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in self.values):
            raise ConfigError(
                f"{self} needs a lowest and a highest {'whole number' if whole else 'number'}, e.g. '{self.kind} 1 10'"
            )
        low, high = self.values
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{self} is empty: the lowest value must be below the highest")
        if self.kind == "log" and low <= 0:
            raise ConfigError(f"{self} must be above 0: a logarithm has no other values")

    def __str__(self) -> str:
        values = " ".join(map(_word, self.values))
        condition = f" if {self.when[0]}={json.dumps(self.when[1])}" if self.when else ""
        return f"{self.kind} {values}{condition}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The domain that `str` wrote, e.g. 'log 1e-4 1e-2' or 'int 1 5 if model.norm="none"'.

        Raises:
            ConfigError: it is not one.
        """
        words = [found[0] for found in _WORDS.finditer(text)]
        end = words.index("if") if "if" in words else len(words)
        kind, kinds = words[0] if words else "", Kind.__args__  # type: ignore[attr-defined]
        if kind not in kinds:
            raise ConfigError(unknown("domain", kind, kinds))
        return cls(kind, tuple(map(_value, words[1:end])), _condition(words[end:]))  # type: ignore[arg-type]

    def draw(self, source: random.Random) -> Any:
        """A value of the domain, at random."""
        if self.kind == "choice":
            return source.choice(self.values)
        low, high = self.values
        if self.kind == "int":
            return source.randint(low, high)
        if self.kind == "uniform":
            return source.uniform(low, high)
        return min(high, max(low, math.exp(source.uniform(math.log(low), math.log(high)))))

    def points(self, num: int) -> list[Any]:
        """All choices, or `num` values evenly over the range."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        shares = [i / (num - 1) for i in range(num)]
        if self.kind == "log":
            return [min(high, max(low, low ** (1 - share) * high**share)) for share in shares]
        found = [min(high, max(low, low * (1 - share) + high * share)) for share in shares]
        return sorted({round(v) for v in found}) if self.kind == "int" else found

    def has(self, value: Any) -> bool:
        """Whether `draw` may give `value`."""
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, int | float) and bool(self.values[0] <= value <= self.values[1])

    def extremes(self) -> list[Any]:
        """The values at which a field refuses the domain, if it refuses any."""
        return list(self.values)


Space = dict[str, Domain]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a study tries, and how it chooses."""

    name: str = ""
    """Name of the study; the same name in the same storage goes on. Empty: run.name and '-study'."""
    num_trials: int = 16
    """Trials, each a run of its own; algorithm grid makes as many as its grid has points."""
    algorithm: Literal["random", "grid", "tpe", "nsga2"] = "random"
    """Where values come from: at random, from a grid, or from Optuna's samplers, which learn from earlier trials."""
    scheduler: Literal["fifo", "asha", "median", "hyperband", "pbt", "pb2"] = "asha"
    """Which trials go on: all (fifo), the best at each rung (asha, hyperband), those above the median, or a
    population whose worst members take over weights of the best (pbt, pb2)."""
    space: tuple[str, ...] = ()
    """FIELD=DOMAIN, e.g. optim.lr='log 1e-4 1e-2', or a JSON file of such pairs. They are added to the preset's
    space; FIELD=fixed takes a field out of it. Empty: the preset's own."""
    metric: tuple[str, ...] = ()
    """What is to be better; several make a Pareto front (nsga2 or tpe, with fifo). Empty: the product's first."""
    constraint: str = ""
    """What a trial must keep besides, e.g. recall>=0.4; one that does not is worse than any that does."""
    num_samples: int = 1000
    """Images generated per score while trials race; the finalists have the preset's full protocol."""
    num_seeds: int = 1
    """Seeds per score while trials race."""
    report_every: int = 0
    """Steps between two scores of a trial, each with a checkpoint. 0: a tenth of its steps."""
    grace_steps: int = 0
    """Steps that every trial may do before a scheduler stops it. 0: those of one report."""
    reduction_factor: int = 3
    """One of how many trials goes on at a rung of asha or hyperband."""
    grid_points: int = 3
    """Values of a range in a grid."""
    max_concurrent: int = 0
    """Most trials at once. 0: as many as the cluster fits."""
    gpu_fraction: float = 1.0
    """Share of a GPU that a trial of one worker takes, with cluster.use_gpu: 0.25 packs four on a GPU."""
    max_failures: int = 2
    """Times a trial whose process died is started again from its last checkpoint."""
    confirm_top: int = 2
    """Best trials that are trained again, over seeds; 0: none, the best trial competes as it is."""
    confirm_seeds: int = 3
    """Seeds of each of them."""
    seed: int = 0
    """Seed of the values that are tried."""

    def __post_init__(self) -> None:
        for name, least in (("num_trials", 1), ("num_samples", 2), ("num_seeds", 1), ("reduction_factor", 2)):
            _at_least(self, name, least)
        for name in ("report_every", "grace_steps", "max_concurrent", "max_failures", "confirm_top", "seed"):
            _at_least(self, name, 0)
        _at_least(self, "grid_points", 2)
        _at_least(self, "confirm_seeds", 1)
        if not 0 < self.gpu_fraction <= 1:
            raise ConfigError(f"search.gpu_fraction={self.gpu_fraction!r} must lie in (0, 1], e.g. 0.25")
        if self.populates and self.algorithm != "random":
            raise ConfigError(
                f"search.scheduler={self.scheduler!r} makes its own values after the first; use search.algorithm=random"
            )
        if self.populates and self.num_trials < 2:
            raise ConfigError(
                f"search.scheduler={self.scheduler!r} needs a population; set search.num_trials to 4 or more"
            )
        if self.algorithm == "nsga2" and self.scheduler != "fifo":
            raise ConfigError("search.algorithm=nsga2 compares finished trials; use search.scheduler=fifo")
        if len(self.metric) > 1 and (self.scheduler != "fifo" or self.algorithm == "grid"):
            raise ConfigError(
                f"search.metric={' '.join(self.metric)}: a scheduler needs one number to go by; "
                "use search.scheduler=fifo, or one metric and search.constraint"
            )
        check_names(self.metric, field="search.metric")
        if self.constraint:
            parse_constraint(self.constraint)

    @property
    def populates(self) -> bool:
        """Whether trials take over the weights of others."""
        return self.scheduler in ("pbt", "pb2")


def parse_constraint(text: str) -> tuple[str, float, float]:
    """Metric, sign and bound of 'recall>=0.4' (sign 1) or 'kid<=0.01' (sign -1).

    Raises:
        ConfigError: it is not of that form, or no metric.
    """
    found = re.fullmatch(r"\s*([\w]+)\s*(>=|<=)\s*(\S+)\s*", text)
    try:
        if found is None:
            raise ValueError
        bound = float(found[3])
        if not math.isfinite(bound):
            raise ValueError
    except ValueError:
        raise ConfigError(f"search.constraint={text!r} is not of the form METRIC>=NUMBER, e.g. recall>=0.4") from None
    check_names((found[1],), field="search.constraint")
    return found[1], 1.0 if found[2] == ">=" else -1.0, bound


def objectives(scores: Sequence[Score], metrics: Sequence[str], constraint: str) -> list[float]:
    """What is to be made small, one number a metric: non-finite scores are infinite, missed constraints cost."""
    values = {score.metric: score.value for score in scores}
    penalty = 0.0
    if constraint:
        metric, sign, bound = parse_constraint(constraint)
        short = sign * (bound - values[metric])
        penalty = VIOLATION * (1 + short) if not short <= 0 else 0.0
    found = []
    for metric in metrics:
        value = values[metric] * (-1 if METRICS[metric].direction == "max" else 1) + penalty
        found.append(value if math.isfinite(value) else math.inf)
    return found


def space_of(base: Space, said: Sequence[str]) -> Space:
    """The preset's space `base`, with what the user `said` added, replaced and taken out.

    Raises:
        ConfigError: a domain or a file cannot be understood.
    """
    space = dict(base)
    for text in said:
        field, equals, domain = text.partition("=")
        pairs = {field.strip(): domain.strip()} if equals else _read(Path(text))
        for name, value in pairs.items():
            if value == "fixed":
                if name not in space:
                    raise ConfigError(f"search.space: {unknown('field of the space', name, space)}")
                del space[name]
                continue
            try:
                space[name] = Domain.parse(value)
            except ConfigError as error:
                raise ConfigError(f"search.space: {name}: {error}") from error
    return space


def check_space(space: Space, config: Config) -> None:
    """Tries the ends of every domain, before anything is started.

    Raises:
        ConfigError: a field is unknown, or its config refuses a value of its domain.
    """
    if not space:
        raise ConfigError("the search space is empty; give one, e.g. --search.space optim.lr='log 1e-4 1e-2'")
    for name, domain in space.items():
        section = name.partition(".")[0]
        if section in _UNSEARCHABLE:
            raise ConfigError(f"search.space: {name} cannot be searched: {_UNSEARCHABLE[section]}; take it out")
        given = _conditions(space, name)
        for value in domain.extremes():
            try:
                apply(config, {**given, name: value})
            except ConfigError as error:
                raise ConfigError(f"search.space: {name}={value!r} cannot be tried: {error}") from error


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with `values` in place.

    Raises:
        ConfigError: a field is unknown, or a value is refused.
    """
    sections = config.to_dict()
    for name, value in values.items():
        section, _, rest = name.partition(".")
        field, _, index = rest.partition(".")
        if field not in sections.get(section, {}):
            raise ConfigError(unknown("field", name, config.flat()))
        if not index:
            sections[section][field] = value
        elif (
            isinstance(sections[section][field], list)
            and index.isdigit()
            and int(index) < len(sections[section][field])
        ):
            sections[section][field][int(index)] = value
        else:
            raise ConfigError(
                f"field {name!r} has no part {index!r}; {section}.{field} is {sections[section][field]!r}"
            )
    return Config.from_dict(sections)


def draw(space: Space, seed: int, number: int) -> Values:
    """The values of trial `number`, at random."""
    values = {
        name: domain.draw(random.Random(derive_seed(seed, f"search/{name}", number))) for name, domain in space.items()
    }
    return active(space, values)


def grid(space: Space, num: int) -> list[Values]:
    """Every combination, ranges in `num` points; combinations that differ only where they do not count are one."""
    combinations = itertools.product(*(domain.points(num) for domain in space.values()))
    found: dict[str, Values] = {}
    for combination in combinations:
        values = active(space, dict(zip(space, combination, strict=True)))
        found.setdefault(json.dumps(values), values)
    return list(found.values())


def active(space: Space, values: Mapping[str, Any]) -> Values:
    """Those of `values` whose condition holds."""

    def holds(name: str) -> bool:
        when = space[name].when
        return when is None or (values.get(when[0]) == when[1] and holds(when[0]))

    return {name: value for name, value in values.items() if holds(name)}


def best_first(objective: Mapping[int, Sequence[float]]) -> list[int]:
    """Trials by their first objective; of equal ones the earlier."""
    return sorted(
        (number for number, values in objective.items() if math.isfinite(values[0])), key=lambda n: (objective[n][0], n)
    )


def pareto_front(objective: Mapping[int, Sequence[float]]) -> list[int]:
    """Trials that no other is at least as good as in all, and better than in one."""

    def beaten(values: Sequence[float]) -> bool:
        return any(_dominates(other, values) for other in objective.values())

    return [number for number, values in sorted(objective.items()) if not beaten(values)]


def racing_config(config: Config, search: Search) -> Config:
    """The config of a trial: the run's, scored cheaply and often, and not promoted."""
    every = search.report_every or max(1, config.train.num_steps // 10)
    metrics = racing_metrics(config, search)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, checkpoint_every=min(every, config.train.num_steps), sample_every=0, keep=1
        ),
        eval=dataclasses.replace(
            config.eval, metrics=metrics, num_samples=search.num_samples, num_seeds=search.num_seeds, promote=False
        ),
    )


def racing_metrics(config: Config, search: Search) -> tuple[str, ...]:
    """The metrics that a trial's scores need, the objective's first.

    Raises:
        ConfigError: one is not of this product.
    """
    constraint = (parse_constraint(search.constraint)[0],) if search.constraint else ()
    metrics = tuple(dict.fromkeys((*objective_metrics(config, search), *constraint)))
    check_names(metrics, config.objective.product, field="search.metric")
    return metrics


def objective_metrics(config: Config, search: Search) -> tuple[str, ...]:
    """What is to be better."""
    first = {"classifier": "accuracy", "vae": "elbo"}.get(config.objective.product, "fid")
    return search.metric or (first,)


def pairs(space: Space) -> Iterator[str]:
    """The space as `search.space` takes it."""
    for name, domain in space.items():
        yield f"{name}={domain}"


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def _conditions(space: Space, name: str) -> Values:
    """The values that must hold for field `name` to count."""
    given: Values = {}
    field, when = name, space[name].when
    while when is not None:
        parent, value = when
        if parent not in space:
            raise ConfigError(f"search.space: {field} depends on {parent!r}, which is not in the space")
        if parent == name or parent in given:
            raise ConfigError(f"search.space: {name} depends on itself; take out one of the conditions")
        if not space[parent].has(value):
            raise ConfigError(
                f"search.space: {field} counts if {parent}={json.dumps(value)}, which '{space[parent]}' never gives"
            )
        given[parent] = value
        field, when = parent, space[parent].when
    return given


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("not an object of FIELD: DOMAIN")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"search.space={str(path)!r} is neither FIELD=DOMAIN nor a JSON file of such pairs: {error}"
        ) from error
    return {str(name): str(value) for name, value in found.items()}


_WORDS = re.compile(r'(?:[\w.]+=)?"(?:[^"\\]|\\.)*"|\[.*?\](?=\s|$)|\S+')
"""Words of a domain: JSON strings and lists may have spaces in them."""


def _condition(words: Sequence[str]) -> tuple[str, Any] | None:
    """What `if FIELD=VALUE` says; no words: nothing."""
    if not words:
        return None
    field, equals, value = "".join(words[1:]).partition("=")
    if not (field and equals and value):
        raise ConfigError(f"the condition {' '.join(words)!r} is not of the form 'if FIELD=VALUE'")
    return field, _value(value)


def _word(value: Any) -> str:
    """`value` such that `_value` gives it back."""
    plain = isinstance(value, str) and value != "if" and _value(value) == value
    return value if plain and re.fullmatch(r'[^\s"\[=]+', value) else json.dumps(value)


def _value(word: str) -> Any:
    try:
        return json.loads(word.lower() if word in ("True", "False") else word)
    except ValueError:
        return word


def _at_least(search: Search, name: str, least: int) -> None:
    if getattr(search, name) < least:
        raise ConfigError(f"search.{name}={getattr(search, name)!r} must be at least {least}")
