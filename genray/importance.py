"""Which parameters of a study decided on its objective.

A random forest learns the objective's rank from the values of some trials, and predicts it for the others;
a parameter matters as much as the prediction suffers when its values are shuffled among those. Ranks, since
a collapsed run may be worse by any factor; other trials, since a forest knows its own by heart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

from genray.space import Domain, Space, Values
from genray.study import TrialRecord, ranking

MIN_TRIALS = 8
"""Trials with a score, below which nothing is said."""
_SHUFFLES, _TREES, _FOLDS = 8, 60, 4


@dataclass(frozen=True)
class Importance:
    """How much of the objective each parameter explains."""

    shares: dict[str, float]
    """Of all parameters, the largest first; they sum to 1, or are all 0 where nothing was found."""
    explained: float
    """Share of the ranks' variance that is predicted for trials not learned from; at 0 or below, nothing is."""
    num_trials: int


def importance(space: Space, trials: Mapping[int, TrialRecord]) -> Importance | None:
    """The importance of every field of the space; None: fewer than `MIN_TRIALS` trials with a score."""
    ranked = ranking(trials)
    if len(ranked) < MIN_TRIALS:
        return None
    order = np.random.default_rng(0).permutation(len(ranked))
    ranks = (order / (len(ranked) - 1)).astype(float)
    # ranking is sorted: without a shuffle the folds would be the best, the second best, ...
    columns = {name: _columns(name, space[name], [ranked[i].values for i in order]) for name in space}
    features = np.concatenate(list(columns.values()), axis=1)
    suffered, errors = dict.fromkeys(space, 0.0), 0.0
    for fold, (learned, held) in enumerate(KFold(_FOLDS).split(features)):
        forest = RandomForestRegressor(_TREES, random_state=fold, max_features=0.5)
        forest.fit(features[learned], ranks[learned])
        error = _error(forest, features[held], ranks[held])
        errors += error
        source = np.random.default_rng(fold)
        for name in columns:
            shuffled = _error(forest, _shuffled(columns, name, held, source), np.tile(ranks[held], _SHUFFLES))
            suffered[name] += shuffled / _SHUFFLES - error
    total = sum(max(0.0, value) for value in suffered.values())
    shares = {name: max(0.0, value) / total if total > 0 else 0.0 for name, value in suffered.items()}
    explained = 1 - errors / float(((ranks - ranks.mean()) ** 2).sum())
    return Importance(dict(sorted(shares.items(), key=lambda item: -item[1])), explained, len(ranked))


def _error(forest: Any, features: np.ndarray, ranks: np.ndarray) -> float:
    return float(((forest.predict(features) - ranks) ** 2).sum())


def _shuffled(
    columns: Mapping[str, np.ndarray], name: str, held: np.ndarray, source: np.random.Generator
) -> np.ndarray:
    """The held features `_SHUFFLES` times, those of `name` shuffled: all columns of a choice together."""
    same = np.tile(held, _SHUFFLES)
    rows = np.concatenate([source.permutation(held) for _ in range(_SHUFFLES)])
    return np.concatenate([column[rows if n == name else same] for n, column in columns.items()], axis=1)


def _columns(name: str, domain: Domain, values: Sequence[Values]) -> np.ndarray:
    """(trials, columns): one column of a range, one a choice; where the field does not count, the middle or none."""
    if domain.kind == "choice":
        return np.array([[float(name in v and v[name] == choice) for choice in domain.values] for v in values])
    low, high = (place(domain, end) for end in domain.values)
    return np.array([[place(domain, v[name]) if name in v else (low + high) / 2] for v in values])


def place(domain: Domain, value: Any) -> float:
    """Where a value lies on the axis of its domain: its logarithm, itself, or the number of the choice."""
    if domain.kind == "choice":
        return float(domain.values.index(value)) if value in domain.values else math.nan
    return math.log(max(value, 1e-300)) if domain.kind == "log" else float(value)
