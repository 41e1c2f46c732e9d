"""What a search tries: domains of config fields, and the values of one trial.

Everything here is a pure function of the search's settings, so a study that lost its driver makes the
same trials again.
"""

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
            found = [low ** (1 - share) * high**share for share in shares]
        else:
            found = [low * (1 - share) + high * share for share in shares]
        within = sorted(min(high, max(low, value)) for value in found)  # neighbours may be rounded past each other
        return sorted({round(value) for value in within}) if self.kind == "int" else within

    def has(self, value: Any) -> bool:
        """Whether `draw` may give `value`."""
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, int | float) and bool(self.values[0] <= value <= self.values[1])

    def extremes(self) -> list[Any]:
        """The values at which a field refuses the domain, if it refuses any."""
        return list(self.values)


Space = dict[str, Domain]


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


def pairs(space: Space) -> Iterator[str]:
    """The space as `search.space` takes it."""
    for name, domain in space.items():
        yield f"{name}={domain}"


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
