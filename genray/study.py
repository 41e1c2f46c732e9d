"""The record of a study: its settings, and the journal of what became of its trials.

A study lives in a folder of its own in `run.storage`: `study.json` says what it tries, `study.jsonl`
what happened, and `trials/00007` is the run of trial 7. The driver alone writes the first two.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from genray.config import Config
from genray.errors import ConfigError, ResumeError, StorageError
from genray.fields import build_section
from genray.search import Search, best_first, objective_metrics, racing_config
from genray.space import Space, Values, apply, draw, grid, pairs, space_of
from genray.storage import RunFolder
from genray.tracking import JsonlTracker, read_journal

FORMAT = 1
TRIALS, SETTINGS, JOURNAL = "trials", "study.json", "study"
Phase = Literal["race", "confirm"]
Status = Literal["running", "finished", "pruned", "stopped", "failed"]
ENDED = ("finished", "pruned", "stopped", "failed")
_FREE = ("name", "max_concurrent", "max_failures", "gpu_fraction", "confirm_top", "confirm_seeds")


@dataclass(frozen=True)
class Report:
    """What a trial said at one of its checkpoints."""

    step: int
    objective: tuple[float, ...]
    """To be made small; see `search.objectives`."""
    metrics: dict[str, float]
    """Scores by the names of the journal, e.g. `eval/fid`."""
    time: float
    """Seconds since the epoch."""


@dataclass
class TrialRecord:
    """What is known of one trial."""

    number: int
    phase: Phase = "race"
    values: Values = field(default_factory=dict)
    status: Status = "running"
    """finished: all steps; pruned: by the scheduler; stopped: by a health rule; failed: by an error."""
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    lineage: list[tuple[int, int]] = field(default_factory=list)
    """Steps at which it took over the weights of another trial, and that trial's number."""
    history: list[tuple[int, Values]] = field(default_factory=list)
    """Its values from each step on at which they changed, the first at step 0."""
    of: int | None = None
    """The trial that it confirms."""
    started: float = 0.0
    """Seconds since the epoch."""
    ended: float = 0.0

    @property
    def name(self) -> str:
        """Folder of its run."""
        return trial_name(self.number)

    @property
    def step(self) -> int:
        """Steps done, as far as it has reported."""
        return self.reports[-1].step if self.reports else 0

    @property
    def best(self) -> Report | None:
        """The report with the smallest first objective."""
        finite = [report for report in self.reports if math.isfinite(report.objective[0])]
        return min(finite, key=lambda report: report.objective[0]) if finite else None


@dataclass(frozen=True)
class Settings:
    """What a study tries: everything that a resumed driver must find again."""

    config: Config
    """Of the preset, with what the user said."""
    search: Search
    space: Space

    def __post_init__(self) -> None:
        if self.config.cluster.min_workers is not None:
            raise ConfigError(
                f"cluster.min_workers={self.config.cluster.min_workers!r} is for a run of its own: a trial has all of "
                "its workers or none; leave it out"
            )
        if self.search.scheduler == "pb2":
            for name, domain in self.space.items():
                if domain.kind == "choice" or domain.when:
                    raise ConfigError(
                        f"search.scheduler='pb2' explores ranges without conditions, and {name} is '{domain}'; take it "
                        f"out of the space with --search.space {name}=fixed, or use pbt"
                    )

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` takes."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "search": dataclasses.asdict(self.search),
            "space": list(pairs(self.space)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that `to_dict` made these values from."""
        search: Search = build_section("search", Search, values["search"])
        return cls(Config.from_dict(values["config"]), search, space_of({}, values["space"]))

    def differences(self, other: "Settings") -> list[str]:
        """What makes `other` another study, as `name: ours -> theirs`."""
        ours, theirs = self._flat(), other._flat()
        names = sorted(ours.keys() | theirs.keys())
        return [f"{n}: {ours.get(n)!r} -> {theirs.get(n)!r}" for n in names if ours.get(n) != theirs.get(n)]

    def _flat(self) -> dict[str, Any]:
        free = ("run.", "cluster.", "tracking.", "data.root", "data.cache", "data.download")
        config = {n: v for n, v in self.config.flat().items() if not n.startswith(free)}
        search = {f"search.{n}": v for n, v in dataclasses.asdict(self.search).items() if n not in (*_FREE, "space")}
        return config | search | {f"space {name}": str(domain) for name, domain in self.space.items()}

    def points(self) -> list[Values]:
        """The values of all racing trials, where they do not depend on scores."""
        if self.search.algorithm == "grid":
            return grid(self.space, self.search.grid_points)
        return [draw(self.space, self.search.seed, number) for number in range(self.search.num_trials)]

    def trial_config(self, number: int, values: Values, phase: Phase) -> Config:
        """The config of one trial, complete: training it again alone gives the same weights and scores.

        Raises:
            ConfigError: the values do not go together.
        """
        base = racing_config(self.config, self.search) if phase == "race" else self.config
        made = apply(base, values)
        storage = f"{self.config.run.storage}/{self.search.name}/{TRIALS}"
        return dataclasses.replace(
            made,
            run=dataclasses.replace(made.run, name=trial_name(number), storage=storage),
            train=dataclasses.replace(made.train, sample_every=0),
            eval=dataclasses.replace(made.eval, promote=False),
        )


class Study:
    """The folder of a study."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self._journal: JsonlTracker | None = None

    @classmethod
    def claim(cls, settings: Settings) -> Self:
        """The study of these settings, new or as it was left.

        Raises:
            ResumeError: another study has this name; says what differs.
        """
        folder = RunFolder.open(settings.config.run.storage, settings.search.name)
        path = folder.pull(SETTINGS)
        if path.is_file():
            if fields := _read_settings(path).differences(settings):
                raise ResumeError(
                    f"search.name={settings.search.name!r} exists with other settings: {'; '.join(fields)}; "
                    "use those values to resume it, or another search.name"
                )
        elif folder.names("."):
            raise ResumeError(
                f"{folder.local} exists and is no study; choose another search.name than {settings.search.name!r}"
            )
        folder.write(SETTINGS, json.dumps(settings.to_dict(), indent=2, sort_keys=True) + "\n")
        return cls(folder, settings)

    @classmethod
    def open(cls, storage: str, name: str) -> Self:
        """The study `name` in `storage`.

        Raises:
            StorageError: there is none.
        """
        missing = StorageError(
            f"there is no study {name!r} in {storage!r}; give --storage as run.storage of its search"
        )
        if "://" not in storage and not (Path(storage).expanduser() / name).is_dir():
            raise missing
        folder = RunFolder.open(storage, name)
        path = folder.pull(SETTINGS)
        if not path.is_file():
            raise missing
        return cls(folder, _read_settings(path))

    def trial_folder(self, number: int) -> RunFolder:
        """The folder of a trial's run."""
        return RunFolder.open(
            f"{self.settings.config.run.storage}/{self.settings.search.name}/{TRIALS}", trial_name(number)
        )

    def note(self, number: int, event: str, **fields: Any) -> None:
        """Writes to the journal what happened to a trial; the first note of an event counts."""
        if self._journal is None:
            self.folder.pull(f"{JOURNAL}.jsonl")
            self._journal = JsonlTracker(self.folder.local, JOURNAL)
        self._journal.event(number, event, **fields)
        self._journal.flush()
        self.folder.push(f"{JOURNAL}.jsonl")

    def trials(self) -> dict[int, TrialRecord]:
        """All trials so far, by number."""
        found: dict[int, TrialRecord] = {}
        entries, _ = read_journal(self.folder.pull(f"{JOURNAL}.jsonl"))
        for entry in entries:
            _add(found.setdefault(entry["step"], TrialRecord(entry["step"])), entry)
        return dict(sorted(found.items()))

    def config_of(self, number: int) -> Config:
        """The recorded config of a trial.

        Raises:
            StorageError: there is no such trial.
        """
        path = self.folder.pull(f"{TRIALS}/{trial_name(number)}/config.json")
        if not path.is_file():
            trials, name = self.trials(), self.settings.search.name
            if number in trials:
                raise StorageError(
                    f"trial {number} of study {name!r} left no config.json; it is {trials[number].status}"
                )
            known = ", ".join(map(str, trials)) or "none yet"
            raise StorageError(f"study {name!r} has no trial {number}; it has {known}")
        return Config.from_dict(json.loads(path.read_text()))


def trial_name(number: int) -> str:
    """Folder name of a trial; names sort as numbers do."""
    return f"{number:05d}"


def ranking(trials: Mapping[int, TrialRecord], phase: Phase = "race") -> list[TrialRecord]:
    """Trials of a phase that have a score, the best first."""
    own = {n: t.best.objective for n, t in trials.items() if t.phase == phase and t.best is not None}
    return [trials[number] for number in best_first(own)]


@dataclass(frozen=True)
class Confirmed:
    """A finalist over seeds."""

    number: int
    """Of the trial that it was in the race."""
    raced: float
    """Its objective there."""
    values: tuple[float, ...]
    """Its objective for each seed, under the full protocol."""
    trials: tuple[int, ...]
    """The runs of these seeds, in the same order."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one seed: unknown."""
        if len(self.values) < 2:
            return 0.0
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1))

    @property
    def best_trial(self) -> int:
        """The run of the best seed."""
        return self.trials[self.values.index(min(self.values))]


def confirmed(trials: Mapping[int, TrialRecord]) -> list[Confirmed]:
    """Finalists all of whose seeds have ended with a score, by the mean over seeds."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in trials.values():
        if trial.phase == "confirm" and trial.of is not None:
            groups.setdefault(trial.of, []).append(trial)
    found = [
        Confirmed(
            of,
            trials[of].best.objective[0] if trials[of].best else math.inf,  # type: ignore[union-attr]
            tuple(t.reports[-1].objective[0] for t in group),
            tuple(t.number for t in group),
        )
        for of, group in groups.items()
        if all(t.status in ENDED and t.reports for t in group)
    ]
    return sorted(found, key=lambda c: (c.mean, c.number))


def luck(finalists: Sequence[Confirmed]) -> str:
    """How much of the race's lead stood up to other seeds, in one sentence."""
    if len(finalists) < 2:
        return "one finalist: nothing to compare its lead with"
    by_race = sorted(finalists, key=lambda c: c.raced)
    lead = by_race[1].raced - by_race[0].raced
    kept = by_race[1].mean - by_race[0].mean
    spread = max(by_race[0].spread, by_race[1].spread)
    first, second = by_race[0].number, by_race[1].number
    led = f"trial {first} led trial {second} by {lead:.4g} in the race and by {kept:.4g}"
    if any(len(finalist.values) < 2 for finalist in by_race[:2]):
        return f"{led} with another seed: one seed does not tell how much was luck"
    said = f"{led} over seeds"
    if kept <= 0:
        return f"{said}: its lead was luck"
    if kept <= spread:
        return f"{said}, within the spread of {spread:.4g}: the lead may be luck"
    return (
        f"{said}, above the spread of {spread:.4g}: {max(0.0, 1 - kept / lead) if lead > 0 else 0.0:.0%} of it was luck"
    )


def hours(trials: Mapping[int, TrialRecord], num_steps: int) -> tuple[float, float]:
    """Hours that the trials took, and that were saved by not finishing those that were pruned or stopped."""
    used = saved = 0.0
    for trial in trials.values():
        took = max(0.0, (trial.ended or (trial.reports[-1].time if trial.reports else trial.started)) - trial.started)
        used += took
        if trial.status in ("pruned", "stopped") and trial.step:
            saved += took * (num_steps / trial.step - 1)
    return used / 3600, saved / 3600


def metric_names(settings: Settings) -> tuple[str, ...]:
    """What the objective is made of."""
    return objective_metrics(settings.config, settings.search)


def _read_settings(path: Path) -> Settings:
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ConfigError(f"format {values['format']!r}, this genray reads {FORMAT}")
        return Settings.from_dict(values)
    except (ConfigError, ValueError, LookupError, TypeError) as error:
        raise StorageError(f"{path} is no record of a study: {error}") from error


def _add(trial: TrialRecord, entry: Mapping[str, Any]) -> None:
    """One entry of the journal, added to what is known of its trial."""
    kind, _, rest = entry["event"].partition("/")
    fields, seconds = entry["fields"], entry["time"] / 1000
    if kind == "started":
        trial.values, trial.phase, trial.of = fields["values"], fields["phase"], fields.get("of")
        trial.started = seconds
        trial.history.append((0, trial.values))
    elif kind == "report":
        objective = tuple(map(float, fields["objective"]))
        metrics = {name: float(value) for name, value in fields["metrics"].items()}
        trial.reports.append(Report(int(rest), objective, metrics, seconds))
    elif kind == "exploit":
        trial.lineage.append((int(rest), fields["donor"]))
        trial.values = fields["values"]
        trial.history.append((int(rest), trial.values))
    elif kind in ENDED:
        trial.status, trial.reason, trial.ended = kind, fields.get("reason", ""), seconds
