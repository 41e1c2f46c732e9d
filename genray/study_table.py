"""A study in words: the table of its trials, the best so far, what it cost."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genray.errors import StorageError
from genray.evaluation import METRICS
from genray.search import VIOLATION
from genray.study import (
    ENDED,
    Report,
    Settings,
    Study,
    TrialRecord,
    confirmed,
    hours,
    luck,
    metric_names,
    ranking,
)

Trials = Mapping[int, TrialRecord]
_FREE = ("run.", "tracking.", "cluster.")


def natural(settings: Settings, report: Report | None, index: int = 0) -> float:
    """A metric as people read it, not turned to be made small; nan where there is none or the constraint is missed."""
    if report is None or not math.isfinite(report.objective[index]):
        return math.nan
    if misses(settings, report):
        return math.nan
    return report.objective[index] * (1 if better_is(metric_names(settings)[index]) == "lower" else -1)


def misses(settings: Settings, report: Report) -> bool:
    """Whether the constraint was missed."""
    return bool(settings.search.constraint) and report.objective[0] >= VIOLATION / 2


def better_is(metric: str) -> str:
    """Which way a metric is better: lower or higher."""
    return "lower" if METRICS[metric].direction == "min" else "higher"


def fmt(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Values by the shortest names that tell them apart."""
    short = {name: name.partition(".")[2] for name in values}
    seen = Counter(short.values())
    return " ".join(f"{short[n] if seen[short[n]] == 1 else n}={fmt(v)}" for n, v in values.items())


HEAD = ("trial", "phase", "status", "step")


def head(settings: Settings) -> tuple[str, ...]:
    """Names of the columns of `rows`."""
    return (*HEAD, *metric_names(settings), "hours", "values", "reason")


def rows(settings: Settings, trials: Trials) -> Iterator[tuple[str, ...]]:
    """One row a trial, its metrics at its best report."""
    for trial in trials.values():
        best = trial.best
        scores = [fmt(natural(settings, best, i)) for i in range(len(metric_names(settings)))]
        missed = "constraint missed" if best and misses(settings, best) else ""
        phase = trial.phase if trial.of is None else f"{trial.phase} {trial.of}"
        took = hours({trial.number: trial}, settings.config.train.num_steps)[0]
        reason = "; ".join(filter(None, (trial.reason, missed)))
        yield (
            str(trial.number),
            phase,
            trial.status,
            str(trial.step),
            *scores,
            f"{took:.2f}",
            values_text(trial.values),
            reason,
        )


def summary(settings: Settings, trials: Trials, now: float) -> list[str]:
    """Counts, what is running, the best so far, and what it cost, a sentence each."""
    counts: Counter[str] = Counter(trial.status for trial in trials.values())
    total = len(settings.points()) if settings.search.algorithm == "grid" else settings.search.num_trials
    raced = sum(trial.phase == "race" for trial in trials.values())
    said = ", ".join(f"{counts[status]} {status}" for status in ("running", *ENDED) if counts[status])
    lines = [f"{raced} of {total} trials begun" + (f": {said}" if said else "")]
    steps = settings.config.train.num_steps
    for trial in trials.values():
        if trial.status == "running":
            last = trial.reports[-1].time if trial.reports else trial.started
            lines.append(
                f"trial {trial.number} runs: step {trial.step} of {steps}, last heard of {_ago(now - last)} ago"
            )
    if best := next(iter(ranking(trials)), None):
        lines.append(f"best so far: trial {best.number}, {scores_text(settings, best.best)} at step {_step(best)}")
    used, saved = hours(trials, steps)
    lines.append(f"{used:.2f} hours used, about {saved:.2f} saved by ending trials early")
    return lines


def scores_text(settings: Settings, report: Report | None) -> str:
    """The metrics of the objective in one line."""
    if report is not None and misses(settings, report):
        return f"misses {settings.search.constraint}"
    return ", ".join(f"{name} {fmt(natural(settings, report, i))}" for i, name in enumerate(metric_names(settings)))


def confirmation(settings: Settings, trials: Trials) -> list[tuple[str, ...]]:
    """Finalists over seeds: trial, its score in the race, mean, spread, every seed, run of the best seed."""
    sign = 1 if better_is(metric_names(settings)[0]) == "lower" else -1
    return [
        (
            str(finalist.number),
            fmt(sign * finalist.raced),
            fmt(sign * finalist.mean),
            fmt(finalist.spread) if len(finalist.values) > 1 else "unknown",
            " ".join(fmt(sign * value) for value in finalist.values),
            str(finalist.best_trial),
        )
        for finalist in confirmed(trials)
    ]


CONFIRMATION = ("finalist", "in the race", "mean", "spread", "seeds", "best run")


def differing(study: Study, trial: TrialRecord) -> dict[str, tuple[Any, Any]]:
    """Fields of the trial's recorded config that differ from the study's: theirs and its own."""
    ours = study.settings.config.flat()
    try:
        own = study.config_of(trial.number).flat()
    except StorageError:  # its folder was cleaned up; the journal still knows what was tried
        own = study.settings.trial_config(trial.number, trial.values, trial.phase).flat()
    names = [name for name in own if not name.startswith(_FREE) and own[name] != ours.get(name)]
    return {name: (ours.get(name), own[name]) for name in names}


def show(study: Study, console: Console) -> None:
    """Prints all that is known of a study."""
    settings, trials = study.settings, study.trials()
    console.print(_table(head(settings), rows(settings, trials)))
    for line in summary(settings, trials, time.time()):
        console.print(Text(line))
    if best := next(iter(ranking(trials)), None):
        fields = differing(study, best)
        named = ((name, fmt(ours), fmt(own)) for name, (ours, own) in fields.items())
        console.print(_table(("field", "preset", f"trial {best.number}"), named))
    if finalists := confirmation(settings, trials):
        console.print(_table(CONFIRMATION, finalists))
        console.print(Text(luck(confirmed(trials))))


def _table(names: Sequence[str], lines: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> Table:
    table = Table()
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name not in ("values", "reason", "seeds", "field"))
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _step(trial: TrialRecord) -> int:
    return trial.best.step if trial.best else trial.step


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"
