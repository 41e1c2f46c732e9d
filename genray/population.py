"""Population based training: members train side by side, and at each boundary the worst take over the best.

A member that takes over gets the donor's whole checkpoint, goes on from it with other values, and keeps
its own number (Jaderberg et al., 2017, https://arxiv.org/abs/1711.09846). All members stand still while
that happens, and what was decided is written down before it is done: a study that lost its driver at
any moment goes on as if it had not.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genray.checkpoint import CHECKPOINTS, SCORES, SNAPSHOTS, FolderStore, read, step_name, step_of
from genray.config import Config
from genray.errors import ConfigError
from genray.search import Search, racing_config
from genray.space import Space, Values, active
from genray.storage import RunFolder
from genray.streams import derive_seed
from genray.study import Settings, Study, TrialRecord

QUANTILE = 0.25
"""Share of the population that takes over, and share that is taken over."""
RESAMPLE = 0.25
"""How often a value is drawn anew instead of perturbed."""
FACTORS = (0.8, 1.2)
GENERATIONS = "generations"

Explore = Callable[[Study, Mapping[int, TrialRecord], int, int, random.Random], Values]
"""New values for a member: of the study and its trials, given the donor's number and the step of the boundary."""


def boundaries(config: Config, search: Search) -> list[int]:
    """Steps at which members stand still: whole reports, `search.grace_steps` or more apart; the last is the end."""
    train = racing_config(config, search).train
    every = train.checkpoint_every * max(1, math.ceil(search.grace_steps / train.checkpoint_every))
    return [*range(every, train.num_steps, every), train.num_steps]


def takeovers(objective: Mapping[int, float], source: random.Random) -> dict[int, int]:
    """Which members take over which.

    Args:
        objective: of each member, to be made small.
        source: chooses among the best.

    Returns:
        For each member of the worst quarter one of the best quarter that is better; at least one pair, if there is one.
    """
    order = sorted(objective, key=lambda number: (objective[number], number))
    count = min(math.ceil(len(order) * QUANTILE), len(order) // 2)
    pairs = {member: source.choice(order[:count]) for member in order[len(order) - count :]}
    return {member: donor for member, donor in pairs.items() if objective[donor] < objective[member]}


def perturb(space: Space, values: Values, source: random.Random) -> Values:
    """Values near `values` and within `space`: numbers times 0.8 or 1.2, choices one further, some drawn anew."""
    found: Values = {}
    for name, domain in space.items():
        old = values.get(name)
        if old is None or source.random() < RESAMPLE:
            found[name] = domain.draw(source)
        elif domain.kind == "choice":
            place = domain.values.index(old) + source.choice((-1, 1))
            found[name] = domain.values[min(max(place, 0), len(domain.values) - 1)]
        else:
            low, high = domain.values
            new = min(max(old * source.choice(FACTORS), low), high)
            found[name] = round(new) if domain.kind == "int" else new
    return active(space, found)


def perturbed(study: Study, trials: Mapping[int, TrialRecord], donor: int, step: int, source: random.Random) -> Values:
    """Values near the donor's: how population based training explores."""
    return perturb(study.settings.space, trials[donor].values, source)


def next_generation(study: Study, explore: Explore) -> list[dict[str, Any]]:
    """What the members do next: tasks up to the next boundary; none when all have ended.

    Members that take over others have done so when this returns. To be called while no member trains.
    """
    settings = study.settings
    trials = study.trials()
    numbers = range(settings.search.num_trials)
    alive = [n for n in numbers if n not in trials or trials[n].status == "running"]
    if not alive:
        return []
    steps = boundaries(settings.config, settings.search)
    passed = [step for step in steps[:-1] if all(n in trials and trials[n].step >= step for n in alive)]
    if passed:
        _take_over(study, trials, passed[-1], explore)
        trials = study.trials()
    first = settings.points()
    return [
        {
            "number": n,
            "phase": "race",
            "values": trials[n].values if n in trials else first[n],
            "until": steps[len(passed)],
        }
        for n in alive
    ]


def adopt(donor: Path, folder: RunFolder, config: Config) -> None:
    """Makes the checkpoint at `donor` the only one of the run of `config` in `folder`: weights, averages, moments, all.

    Raises:
        CheckpointError: it is torn or damaged.
    """
    found = read(donor)
    for kind in (CHECKPOINTS, SNAPSHOTS):
        for name in folder.names(kind):
            folder.remove(f"{kind}/{name}")
    for name in folder.names(SCORES):
        if step_of(Path(name).stem) >= found.step:
            folder.remove(f"{SCORES}/{name}")
    FolderStore(folder).save(replace(found, state=found.state | {"config": config.to_dict()}))


def _take_over(study: Study, trials: Mapping[int, TrialRecord], step: int, explore: Explore) -> None:
    """Does what was decided at the boundary `step`, or what is left of it."""
    for number, (donor, values) in _decided(study, trials, step, explore).items():
        if any(at == step for at, _ in trials[number].lineage):
            continue
        source = study.trial_folder(donor).pull(f"{CHECKPOINTS}/{step_name(step)}")
        adopt(source, study.trial_folder(number), study.settings.trial_config(number, values, "race"))
        study.note(number, f"exploit/{step}", donor=donor, values=values)


def _decided(
    study: Study, trials: Mapping[int, TrialRecord], step: int, explore: Explore
) -> dict[int, tuple[int, Values]]:
    """Donor and values of each member that takes over at `step`; decided once."""
    name = f"{GENERATIONS}/{step_name(step)}.json"
    path = study.folder.pull(name)
    if not path.is_file():
        source = random.Random(derive_seed(study.settings.search.seed, "population", step))
        objective = {n: _objective(trial, step) for n, trial in trials.items() if trial.status == "running"}
        pairs = takeovers(objective, source)
        found = {
            number: (
                donor,
                _accepted(study.settings, number, explore(study, trials, donor, step, source), trials[donor]),
            )
            for number, donor in pairs.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        study.folder.write(name, json.dumps(found) + "\n")
    return {int(number): (donor, values) for number, (donor, values) in json.loads(path.read_text()).items()}


def _objective(trial: TrialRecord, step: int) -> float:
    return next(report.objective[0] for report in trial.reports if report.step == step)


def _accepted(settings: Settings, number: int, values: Values, donor: TrialRecord) -> Values:
    """`values`, or the donor's own where the config refuses them together."""
    try:
        settings.trial_config(number, values, "race")
    except ConfigError:
        return donor.values
    return values
