"""Who is champion: candidate and champion scored alike, and the alias moved only for the better one."""

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from genray.errors import ProtocolError, RegistryError
from genray.evaluation.protocol import Protocol, Score, better, differences
from genray.mlflow_registry import CANDIDATE, CHAMPION, PREVIOUS, Version, pull, resolve, with_alias
from genray.mlflow_store import connect, exclusive, redact, reporting

LOCKS = Path("~/.cache/genray/locks")
PROTOCOL_TAG = "genray.protocol"
_MOST_COMPARISONS = 10


@dataclass(frozen=True)
class Decision:
    """What became of a candidate, and why."""

    promoted: bool
    reason: str
    candidate_version: int
    champion_version: int | None
    """The champion that the candidate was compared with; None: there was none."""
    scores: Mapping[str, Score]
    """`candidate` and, if there was one, `champion`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return vars(self) | {"scores": {role: score.to_dict() for role, score in self.scores.items()}}


def champion_protocol(uri: str, task: str) -> Protocol | None:
    """The protocol that the champion of `task` was scored under; None: no champion, or none on record.

    Raises:
        TrackingError: the server does not answer.
    """
    client = connect(uri)
    with reporting(uri):
        champion = with_alias(client, task, CHAMPION)
    return _recorded_protocol(champion) if champion else None


def promote(uri: str, reference: str, *, score: Callable[[Path], Score]) -> Decision:
    """Makes a version champion of its name if it is better than the present one by more than the spread.

    Both are fetched by `pull` and scored here, by the same function. The first champion of a name only
    needs a finite score. On one host a file lock keeps promotions of a name apart. MLflow has no
    compare-and-set, so across hosts the alias is read just before and just after it is written, and
    who finds another champion than the one compared with compares again: two hosts would have to
    write within the same few milliseconds for the worse one to stay.

    Args:
        uri: what `resolve_uri` returned.
        reference: `NAME@ALIAS`, `NAME/VERSION`, or `NAME` for its candidate.
        score: from a snapshot folder to its score, under the champion's protocol (`champion_protocol`).

    Raises:
        ProtocolError: the champion is on record with another protocol than `score` uses.
        RegistryError: a version is missing or unsafe.
        TrackingError: the server does not answer.
    """
    plain = re.fullmatch(r"[\w.-]+", reference)
    candidate = resolve(uri, f"{reference}@{CANDIDATE}" if plain else reference)
    client = connect(uri)
    with tempfile.TemporaryDirectory() as folder, reporting(uri):
        known: dict[int, Score] = {}
        for _ in range(_MOST_COMPARISONS):
            champion = with_alias(client, candidate.name, CHAMPION)
            if champion and champion.number == candidate.number:
                reason = f"{candidate} is the champion already"
                return Decision(False, reason, candidate.number, champion.number, {})
            for version in (candidate, champion):
                if version and version.number not in known:
                    at = pull(uri, str(version), Path(folder) / str(version.number))
                    known[version.number] = score(at)
            decision = _decide(candidate, champion, known)
            if _carry_out(client, uri, decision, candidate):
                _record(client, candidate, decision)
                return decision
    raise RegistryError(
        f"the champion of {candidate.name!r} was replaced {_MOST_COMPARISONS} times while {candidate} was compared "
        f"with it; try again when fewer jobs promote"
    )


def _decide(candidate: Version, champion: Version | None, known: Mapping[int, Score]) -> Decision:
    own = known[candidate.number]
    if champion is None:
        finite = math.isfinite(own.value) and math.isfinite(own.spread)
        reason = f"{candidate} is the first champion" if finite else f"{candidate} has no finite score"
        return Decision(finite, f"{reason}: {_words(own)}", candidate.number, None, {CANDIDATE: own})
    other = known[champion.number]
    recorded = _recorded_protocol(champion)
    if recorded and (found := differences(recorded, other.protocol)):
        raise ProtocolError(
            f"the champion {champion} was scored under another protocol ({'; '.join(found)}); "
            f"score {candidate} with the champion's settings"
        )
    wins = better(own, other)
    verb = "beats" if wins else "does not beat"
    reason = f"{candidate} {verb} the champion {champion}: {_words(own)} against {_words(other)}"
    return Decision(wins, reason, candidate.number, champion.number, {CANDIDATE: own, CHAMPION: other})


def _carry_out(client: MlflowClient, uri: str, decision: Decision, candidate: Version) -> bool:
    """Moves the aliases if the decision says so; False: another champion appeared, nothing holds any more."""
    name, number = candidate.name, candidate.number
    with _promotion_lock(uri, name):
        present = with_alias(client, name, CHAMPION)
        if (present.number if present else None) != decision.champion_version:
            return False
        if not decision.promoted:
            return True
        _tag_score(client, candidate, decision.scores[CANDIDATE])
        if present:
            client.set_registered_model_alias(name, PREVIOUS, str(present.number))
        client.set_registered_model_alias(name, CHAMPION, str(number))
        written = with_alias(client, name, CHAMPION)
        return written is not None and written.number == number


@contextmanager
def _promotion_lock(uri: str, name: str) -> Iterator[None]:
    key = hashlib.sha256(f"{redact(uri)} {name}".encode()).hexdigest()[:32]
    with exclusive(LOCKS.expanduser() / f"{key}.lock"):
        yield


def score_tags(score: Score) -> dict[str, str]:
    """What a version says of the score that it competes by, or would."""
    return {
        f"genray.score.{score.metric}": f"{score.value:.9g}",
        f"genray.score.{score.metric}.spread": f"{score.spread:.9g}",
        PROTOCOL_TAG: json.dumps(score.protocol.to_dict(), sort_keys=True),
        "genray.protocol_sha256": score.protocol.digest,
    }


def _tag_score(client: MlflowClient, version: Version, score: Score) -> None:
    for key, value in score_tags(score).items():
        client.set_model_version_tag(version.name, str(version.number), key, value)


def _record(client: MlflowClient, candidate: Version, decision: Decision) -> None:
    _tag_score(client, candidate, decision.scores[CANDIDATE])
    client.set_model_version_tag(candidate.name, str(candidate.number), "genray.decision", decision.reason)
    if candidate.run_id:
        against = decision.champion_version or "none"
        path = f"decisions/{candidate.name}-{candidate.number}-against-{against}.json"
        client.log_dict(candidate.run_id, decision.to_dict(), path)


def _recorded_protocol(version: Version) -> Protocol | None:
    text = version.tags.get(PROTOCOL_TAG)
    return Protocol.from_dict(json.loads(text)) if text else None


def _words(score: Score) -> str:
    return f"{score.metric} {score.value:.6g} ± {score.spread:.2g}"
