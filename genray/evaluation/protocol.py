"""What makes two scores comparable, and when one is better than another."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from genray.errors import ProtocolError, unknown
from genray.evaluation import METRICS

Value = int | float | str
_JSON_TYPES: dict[Any, Any] = {str: str, bool: bool, int: int, float: int | float}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that a score depends on besides the model."""

    metric: str
    """Name in `METRICS`."""
    data: str
    """Name of the data set."""
    split: str
    """Its split that is the reference."""
    data_digest: str
    """SHA-256 of that split's pixels and labels."""
    num_samples: int
    """Images generated per seed; for metrics of reals, the reals that were scored."""
    num_seeds: int
    """Times the value was taken with other random numbers; 1 where nothing is random."""
    seed: int = 0
    """First of the seeds."""
    extractor: str = "none"
    """Task of the classifier whose features were compared, e.g. `mnist-classifier`, or kind of network: `resnet18`."""
    extractor_digest: str = ""
    """Snapshot digest of that classifier, or SHA-256 of the file of a network's weights."""
    resize: str = "none"
    """How images are brought to the extractor's size, e.g. `bilinear-antialias-299`; a snapshot takes its own alone."""
    ema: bool = True
    """Whether the weights are the moving average; those of a classifier beside a generator are not."""
    truncation: float = 1.0
    """Factor on the latents."""
    labels: str = "none"
    """How the classes of fakes are chosen where a model takes any: `reference`, with the reference's frequencies.
    The same word for unconditional models, so that both kinds compete; `none` for metrics without fakes."""
    extra: dict[str, Value] = field(default_factory=dict)
    """What this metric alone depends on, e.g. the subsets of `kid`."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ProtocolError(unknown("metric", self.metric, METRICS))
        for name, value in [("truncation", self.truncation), *self.extra.items()]:
            if not isinstance(value, int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
                raise ProtocolError(f"{name}={value!r} of a protocol is no text and no finite number")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal protocol."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The protocol that `to_dict` made these values from.

        Raises:
            ProtocolError: a field is missing or unknown.
        """
        return cls(**_known(cls, values))

    @property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON: equal exactly when the protocols are."""
        text = json.dumps(_canonical(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def differences(a: Protocol, b: Protocol) -> list[str]:
    """Fields in which the protocols differ, as `name: a != b`, in order of their names."""
    left, right = _canonical(a), _canonical(b)
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)!r} != {right.get(n)!r}" for n in names if left.get(n) != right.get(n)]


@dataclass(frozen=True)
class Score:
    """A value, how far chance moves it, and under which protocol it was taken."""

    metric: str
    value: float
    spread: float
    """Standard deviation over seeds or subsets, or standard error, not negative. 0 where the protocol has one seed,
    so that chance is unknown: take more."""
    protocol: Protocol
    details: dict[str, Any] = field(default_factory=dict)
    """What the value is a summary of, as JSON values, e.g. the FID of each class; has no part in comparisons."""

    def __post_init__(self) -> None:
        if self.metric != self.protocol.metric:
            raise ProtocolError(
                f"score of {self.metric!r} carries a protocol of {self.protocol.metric!r}; make its own"
            )

    @classmethod
    def of(cls, values: Sequence[float], protocol: Protocol, details: dict[str, Any] | None = None) -> Self:
        """Mean of `values`, at least one, with their standard deviation (n - 1; 0 for a single value)."""
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        spread = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        return cls(protocol.metric, mean, spread, protocol, details or {})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; non-finite numbers become null."""
        return {
            "metric": self.metric,
            "value": self.value if math.isfinite(self.value) else None,
            "spread": self.spread if math.isfinite(self.spread) else None,
            "protocol": self.protocol.to_dict(),
            "details": self.details,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The score that `to_dict` made these values from; null becomes nan.

        Raises:
            ProtocolError: a field is missing or unknown.
        """
        numbers = ("value", "spread")
        made = _known(cls, {n: math.nan if n in numbers and v is None else v for n, v in _object(cls, values).items()})
        return cls(**made | {"protocol": Protocol.from_dict(made["protocol"])})


def better(candidate: Score, champion: Score) -> bool:
    """Whether the candidate's value beats the champion's by more than the larger of the two spreads.

    A candidate with a non-finite value or spread never does; any other one beats a champion whose
    own value or spread is not finite.

    Raises:
        ProtocolError: the protocols differ; names every field that does.
    """
    found = differences(candidate.protocol, champion.protocol)
    if found:
        raise ProtocolError(
            f"scores of different protocols cannot be compared ({'; '.join(found)}); score both under one protocol"
        )
    if not _finite(candidate):
        return False
    if not _finite(champion):
        return True
    sign = 1 if METRICS[candidate.metric].direction == "max" else -1
    return sign * (candidate.value - champion.value) > max(candidate.spread, champion.spread)


def _finite(score: Score) -> bool:
    return math.isfinite(score.value) and math.isfinite(score.spread)


def _canonical(protocol: Protocol) -> dict[str, Value]:
    """Fields by name, those of `extra` by dotted name; floats stay floats whatever type they came in."""
    values = protocol.to_dict()
    extra = {f"extra.{name}": value for name, value in values.pop("extra").items()}
    return values | extra | {"truncation": float(protocol.truncation)}


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """A copy of `values`, which must hold exactly fields of the dataclass, and all without a default."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in _object(cls, values):
        if name not in fields:
            raise ProtocolError(unknown(f"field of a {cls.__name__.lower()}", name, fields))
    for name, value in values.items():
        kind = _JSON_TYPES.get(fields[name].type, dict)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ProtocolError(f"{name} of a {cls.__name__.lower()} is {value!r:.60}; expected {fields[name].type}")
    needed = dataclasses.MISSING
    missing = [n for n, f in fields.items() if f.default is needed and f.default_factory is needed and n not in values]
    if missing:
        raise ProtocolError(f"{cls.__name__.lower()} lacks {', '.join(missing)}; it was not written by genray, or torn")
    return dict(values)


def _object(cls: type, values: Any) -> dict[str, Any]:
    """`values`, refused unless JSON gave an object."""
    if not isinstance(values, dict):
        raise ProtocolError(f"a {cls.__name__.lower()} is an object of fields and values, not {values!r:.60}")
    return values
