"""Whether a run is still worth its machines: rules on the history of its signals and scores, and verdicts.

Rules are pure functions of histories. The score rule, with its defaults, stops the five CIFAR-10 GANs that end
above 2.5 times their best FID, and no other, among the 30 learning curves that StudioGAN published (Kang et al.
2022, arXiv:2206.09479). The thresholds of the other rules are no more than plausible, so they only warn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from genray import distributed
from genray.evaluation import METRICS
from genray.evaluation.features import Extractor
from genray.evaluation.protocol import Score
from genray.health_rules import Health
from genray.health_signals import (
    ACCURACY,
    CODES_USED,
    DIVERSITY,
    GENERATOR_LOSS,
    KL,
    SKIPPED,
    diversity,
    feature_signals,
    signals,
)
from genray.snapshot import Snapshot

WATCHED = ("fid", "kid", "accuracy")
"""Metrics of the score rule; a ratio of likelihoods in nats, which may have either sign, would say nothing."""
GREY_LEVEL = 1 / 255
"""Images closer than this are one image, however close they were before."""
Finding = tuple[float, str]
"""Value and reason of a rule that holds."""


@dataclass(frozen=True)
class Scored:
    """One score of one snapshot."""

    step: int
    metric: str
    value: float
    spread: float


@dataclass(frozen=True)
class Verdict:
    """A rule that holds, and what is done about it."""

    rule: str
    action: Literal["warn", "stop", "rollback"]
    value: float
    reason: str
    to_step: int | None = None
    """Step whose weights a rollback takes."""


@dataclass
class Past:
    """What decisions depend on besides the scores: part of every checkpoint."""

    history: dict[str, list[float]] = field(default_factory=dict)
    """Signals by name, oldest first, as far back as a rule looks."""
    log_step: int = 0
    """The last log point."""
    skipped: float = 0.0
    """Updates of all phases skipped until then."""
    holding: list[str] = field(default_factory=list)
    """Rules that hold, and have been told of."""
    lr_scale: float = 1.0
    """Factor on every learning rate, for the rollbacks so far."""
    rollbacks: int = 0
    since: int = 0
    """Step of the last rollback."""
    stopped: dict[str, Any] | None = None
    """`rule`, `step` and `reason` of a run that was stopped."""


def score_verdict(
    history: Sequence[float],
    ratio: float,
    patience: int,
    *,
    higher_is_better: bool = False,
    spreads: Sequence[float] = (),
) -> bool:
    """Whether each of the last `patience` scores is worse than the best by more than the factor `ratio`.

    A score that is not finite is worse than any. A best that is lower than its own spread counts as its
    spread: the unbiased KID of a good model is zero or below it, by chance.

    Args:
        history: scores in order of their steps.
        ratio: at least 1.
        patience: at least 1.
        higher_is_better: of scores above 0.
        spreads: of the scores, where they have any.
    """
    finite = [(v, s) for v, s in zip(history, spreads or [0.0] * len(history), strict=True) if math.isfinite(v)]
    if not finite or len(history) <= patience:
        return False
    recent = history[-patience:]
    if higher_is_better:
        limit = max(finite)[0] / ratio
        return all(not v >= limit for v in recent)
    best, spread = min(finite)
    limit = ratio * max(best, spread if math.isfinite(spread) else 0.0)
    return all(not v <= limit for v in recent)


def collapse_verdict(history: Sequence[float], share: float) -> bool:
    """Whether the last of the diversities is below `share` of the largest, or the images are one and the same."""
    return bool(history) and history[-1] < max(GREY_LEVEL, share * max(history))


def balance_verdict(accuracies: Sequence[float], losses: Sequence[float], accuracy: float, patience: int) -> bool:
    """Whether a discriminator wins for good.

    At each of the last `patience` log points it was right more often than `accuracy`, and the generator's
    loss higher than at the one before.
    """
    if len(losses) <= patience:
        return False
    recent = losses[-patience - 1 :]
    rising = all(after > before for before, after in pairwise(recent))
    return rising and all(a > accuracy for a in accuracies[-patience:])


def posterior_verdict(history: Sequence[float], kl: float, patience: int) -> bool:
    """Whether each of the last `patience` divergences was below `kl` nats."""
    return len(history) >= patience and all(value < kl for value in history[-patience:])


def watched(scores: Mapping[int, Sequence[Score]]) -> list[Scored]:
    """The scores that the score rule looks at, in order of their steps."""
    return [
        Scored(step, score.metric, score.value, score.spread)
        for step in sorted(scores)
        for score in scores[step]
        if score.metric in WATCHED
    ]


def late_finding(health: Health, scores: Mapping[int, Sequence[Score]]) -> str | None:
    """Why the score rule, if it is on, would have acted on all scores of a run that is over."""
    found = score_finding(health, watched(scores), since=0) if health.score_rule != "off" else None
    return found[1] if found else None


def score_finding(health: Health, scores: Sequence[Scored], since: int) -> Finding | None:
    """What the score rule finds in scores in order of their steps, of which those from `since` on may be too bad."""
    for metric in WATCHED:
        rows = [scored for scored in scores if scored.metric == metric]
        values, spreads = [row.value for row in rows], [row.spread for row in rows]
        higher = METRICS[metric].direction == "max"
        if sum(row.step >= since for row in rows) < health.score_patience or not score_verdict(
            values, health.score_ratio, health.score_patience, higher_is_better=higher, spreads=spreads
        ):
            continue
        sign = -1 if higher else 1
        best = min((row for row in rows if math.isfinite(row.value)), key=lambda row: sign * row.value)
        return values[-1], (
            f"{metric} {values[-1]:.4g} of step {rows[-1].step} is the last of {health.score_patience} scores in a "
            f"row that are worse than the best, {best.value:.4g} of step {best.step}, by more than the factor "
            f"{health.score_ratio:g}"
        )
    return None


def collapse_finding(health: Health, diversities: Sequence[float]) -> Finding | None:
    """What the collapse rule finds."""
    if not collapse_verdict(diversities, health.collapse_share):
        return None
    return diversities[-1], (
        f"images of the fixed latents are {diversities[-1]:.3g} of the grey range apart, "
        f"and were {max(diversities):.3g} apart before: the generator collapses"
    )


def balance_finding(health: Health, accuracies: Sequence[float], losses: Sequence[float]) -> Finding | None:
    """What the balance rule finds."""
    if not balance_verdict(accuracies, losses, health.balance_accuracy, health.patience):
        return None
    return accuracies[-1], (
        f"the discriminator is right on {accuracies[-1]:.1%} of the images, and the generator's loss has risen at "
        f"{health.patience} log points in a row, to {losses[-1]:.3g}"
    )


def posterior_finding(health: Health, divergences: Sequence[float]) -> Finding | None:
    """What the posterior rule finds."""
    if not posterior_verdict(divergences, health.posterior_kl, health.patience):
        return None
    return divergences[-1], (
        f"the KL is {divergences[-1]:.3g} nats, below {health.posterior_kl:g} for {health.patience} log points: "
        "the posterior has collapsed, and the latents say nothing"
    )


def codebook_finding(health: Health, shares: Sequence[float]) -> Finding | None:
    """What the codebook rule finds, by the verdict of the posterior rule on shares instead of divergences."""
    if not posterior_verdict(shares, health.codebook_share, health.patience):
        return None
    return shares[-1], (
        f"{shares[-1]:.1%} of the codes are used, less than {health.codebook_share:.0%} for {health.patience} log "
        "points: the codebook has collapsed; use fewer codes, or quantizer=fsq"
    )


def skipped_finding(health: Health, share: float) -> Finding | None:
    """What the rule about skipped updates finds."""
    if not share > health.skipped_share:
        return None
    return share, f"{share:.2g} updates per step were skipped for non-finite gradients since the last log point"


class Monitor:
    """The health of one run: takes what is seen, and says once per step what to do about it, alike on all ranks."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.past = Past()
        self.seen: dict[str, float] = {}
        self.scores: list[Scored] | None = None

    def state(self) -> dict[str, Any]:
        """JSON values that `load` takes."""
        return asdict(self.past)

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`; a run that was stopped may go on where its rule does not stop it any more."""
        self.past = Past(**state)
        if self.past.stopped and self.action(self.past.stopped["rule"]) != "stop":
            self.past.stopped = None

    @property
    def stopped(self) -> str | None:
        """Why the run was stopped; None: it was not."""
        by = self.past.stopped
        return f"health.{by['rule']}_rule at step {by['step']}: {by['reason']}" if by else None

    def action(self, rule: str) -> str:
        """What is done where `rule` holds; no rollback is left when all are used up."""
        action: str = getattr(self.health, f"{rule}_rule")
        return "stop" if action == "rollback" and self.past.rollbacks >= self.health.max_rollbacks else action

    def log_point(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Signals of a log point, which it remembers together with `values`."""
        skipped = sum(value for name, value in values.items() if name.endswith("/skipped"))
        share = (skipped - self.past.skipped) / max(1, step - self.past.log_step)
        found = signals(values) | {SKIPPED: share}
        self.seen |= {**values, **found}
        self.past.log_step, self.past.skipped = step, skipped
        return found

    def samples(
        self, images: Tensor, labels: Tensor | None, extractor: Snapshot | Extractor | None = None
    ) -> dict[str, float]:
        """Signals of the images of the fixed latents, which it remembers; see `diversity` and `feature_signals`."""
        found = {DIVERSITY: diversity(images, labels)}
        if extractor is not None:
            found |= feature_signals(extractor, images, labels)
        self.seen |= found
        return found

    def score(self, scores: Mapping[int, Sequence[Score]]) -> None:
        """Takes all scores so far, by step of their snapshot; those that are not there yet come with a later call."""
        self.scores = watched(scores)

    def answers_skipping(self, share: float) -> bool:
        """Whether a rule stops the run or takes it back for this share of skipped updates: no error then."""
        return share > self.health.skipped_share and self.action("skipped") in ("stop", "rollback")

    def decide(self, step: int, target: Callable[[], int | None]) -> list[Verdict]:
        """What the rules say of what was seen in this step. The last verdict alone may be other than a warning.

        Args:
            step: of the run; all ranks ask in the same ones.
            target: step of the checkpoint that a rollback would take, as rank 0 sees it; None: there is none.
        """
        if not self.seen and self.scores is None:
            return []
        self.seen, self.scores = distributed.from_rank_zero((self.seen, self.scores))
        self._remember()
        found = self._judged()
        self.seen, self.scores = {}, None
        holding = [rule for rule, what in found.items() if what]
        news = [rule for rule in holding if self.action(rule) != "warn" or rule not in self.past.holding]
        self.past.holding = sorted({*holding, *self.past.holding} - (found.keys() - set(holding)))
        verdicts = [Verdict(rule, self.action(rule), *found[rule]) for rule in news]  # type: ignore[misc,arg-type]
        warnings = [verdict for verdict in verdicts if verdict.action == "warn"]
        acting = [v for v in verdicts if v.action == "stop"] + [v for v in verdicts if v.action == "rollback"]
        return warnings + [self._act(step, verdict, target) for verdict in acting[:1]]

    def _remember(self) -> None:
        """Adds what was seen to the history, and drops what no rule will look at again."""
        pairs = (ACCURACY, GENERATOR_LOSS) if {ACCURACY, GENERATOR_LOSS} <= self.seen.keys() else ()
        for name in (*pairs, *({KL, CODES_USED, DIVERSITY} & self.seen.keys())):
            before = self.past.history.get(name, [])
            kept = [max(before)] if before and name == DIVERSITY else before[-self.health.patience :]
            self.past.history[name] = [*kept, self.seen[name]]

    def _judged(self) -> dict[str, Finding | None]:
        """What each rule finds that is on and has something new to look at; None where it does not hold."""
        health, history, found = self.health, self.past.history, dict[str, Finding | None]()
        if self.scores is not None:
            found["score"] = score_finding(health, self.scores, self.past.since)
        if DIVERSITY in self.seen:
            found["collapse"] = collapse_finding(health, history[DIVERSITY])
        if {ACCURACY, GENERATOR_LOSS} <= self.seen.keys():
            found["balance"] = balance_finding(health, history[ACCURACY], history[GENERATOR_LOSS])
        if KL in self.seen:
            found["posterior"] = posterior_finding(health, history[KL])
        if CODES_USED in self.seen:
            found["codebook"] = codebook_finding(health, history[CODES_USED])
        if SKIPPED in self.seen:
            found["skipped"] = skipped_finding(health, self.seen[SKIPPED])
        return {rule: what for rule, what in found.items() if self.action(rule) != "off"}

    def _act(self, step: int, verdict: Verdict, target: Callable[[], int | None]) -> Verdict:
        """The verdict with what a rollback goes back to; a stop where it has nothing to go back to."""
        past = self.past
        if verdict.action == "rollback":
            to_step = distributed.from_rank_zero(target())
            if to_step is not None:
                past.rollbacks, past.lr_scale = past.rollbacks + 1, past.lr_scale * self.health.rollback_lr_factor
                past.since, past.holding = step, []
                past.history = {name: values for name, values in past.history.items() if name == DIVERSITY}
                return replace(verdict, to_step=to_step)
            verdict = replace(verdict, action="stop", reason=f"{verdict.reason}; there is no checkpoint to go back to")
        elif past.rollbacks:
            verdict = replace(verdict, reason=f"{verdict.reason}; {past.rollbacks} rollbacks were made before")
        past.stopped = {"rule": verdict.rule, "step": step, "reason": verdict.reason}
        return verdict
