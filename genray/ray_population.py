"""A population on Ray Tune: each member's stretch from one boundary to the next is a trial of Tune's."""

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from genray.population import Explore, next_generation, perturbed
from genray.space import Space, Values
from genray.study import Study, TrialRecord


class Generations(Searcher):  # type: ignore[misc]
    """Gives Tune the members of one generation, and those of the next when all of them have got there.

    Tune's own population schedulers pause members in their processes, which it then loses or starts anew;
    here processes are free between two members, and no state but the study's is to be kept.

    Args:
        study: its storage and name.
    """

    def __init__(self, study: Mapping[str, str]) -> None:
        super().__init__(metric="objective", mode="min")
        self.study = dict(study)
        self.waiting: list[dict[str, Any]] = []
        self.training: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Nothing that the study has not said already."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next member; None while others are on their way to the boundary."""
        if not self.waiting and not self.training:
            study = Study.open(**self.study)
            self.waiting = next_generation(study, EXPLORE[study.settings.search.scheduler])
            if not self.waiting:
                return Searcher.FINISHED  # type: ignore[no-any-return]
        if not self.waiting:
            return None
        self.training.add(trial_id)
        return {"study": self.study, "trial": self.waiting.pop(0)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A member has reached the boundary, or has ended."""
        self.training.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """The journal has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """The journal has it all."""


def bandit(study: Study, trials: Mapping[int, TrialRecord], donor: int, step: int, source: random.Random) -> Values:
    """Values that promise the largest improvement a step: a Gaussian process over all that members did so far.

    Parker-Holder et al., 2020, https://arxiv.org/abs/2002.02518; the process and its optimiser are Ray's. Before
    a member has reported twice under the same values there is nothing to learn from, and the donor's are perturbed.
    """
    from ray.tune.schedulers.pb2 import _select_config

    space = study.settings.space
    bounds = {name: list(domain.values) for name, domain in space.items()}
    rows, gains, own = [], [], None
    for number, trial in sorted(trials.items()):
        for row, gain in improvements(trial, trials, space):
            rows.append(row)
            gains.append(gain)
            own = row if number == donor else own
    if own is None:
        return perturbed(study, trials, donor, step, source)
    np.random.seed(source.randrange(2**32))  # Ray's optimiser starts from numpy's own generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few points leave a length scale at its bound
        chosen = _select_config(np.array(rows), np.array(gains), None, np.array(own[:2]), bounds, num_f=2)
    found: Values = {}
    for (name, domain), value in zip(space.items(), map(float, chosen), strict=True):
        low, high = domain.values
        found[name] = min(max(round(value) if domain.kind == "int" else value, low), high)
    return found


def improvements(
    trial: TrialRecord, trials: Mapping[int, TrialRecord], space: Space
) -> list[tuple[list[float], float]]:
    """What a member gained a step between its reports, each with the step, its reward before, and its values.

    After it took over another's weights it stands where that one stood.
    """
    donors, found = dict(trial.lineage), []
    for before, after in zip(trial.reports, trial.reports[1:], strict=False):
        reward = -before.objective[0]
        if before.step in donors:
            reward = -next(r.objective[0] for r in trials[donors[before.step]].reports if r.step == before.step)
        values = next(values for at, values in reversed(trial.history) if at <= before.step)
        row = [float(after.step), reward, *(float(values[name]) for name in space)]
        found.append((row, (-after.objective[0] - reward) / (after.step - before.step)))
    return found


EXPLORE: dict[str, Explore] = {"pbt": perturbed, "pb2": bandit}
