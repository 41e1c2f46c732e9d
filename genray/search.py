"""How a search chooses: its settings, and what makes a trial better."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from genray.config import Config
from genray.errors import ConfigError
from genray.evaluation import METRICS, check_names
from genray.evaluation.protocol import Score
from genray.fields import check_at_least
from genray.objectives import classifier_of
from genray.objectives.elbo import bound_of

VIOLATION = 1e6
"""Added to the objective of a trial that misses its constraint, so that any that keeps it is better."""


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
    """Times a trial whose process died is started again from the same checkpoint; any further one counts anew."""
    confirm_top: int = 2
    """Best trials that are trained again, over seeds; 0: none, the best trial competes as it is."""
    confirm_seeds: int = 3
    """Seeds of each of them."""
    seed: int = 0
    """Seed of the values that are tried."""

    def __post_init__(self) -> None:
        check_at_least("search", self, 1, "num_trials", "num_seeds", "confirm_seeds")
        check_at_least("search", self, 2, "num_samples", "reduction_factor", "grid_points")
        check_at_least(
            "search", self, 0, "report_every", "grace_steps", "max_concurrent", "max_failures", "confirm_top", "seed"
        )
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
    classifies = bool(classifier_of(config.objective))
    check_names(metrics, config.objective.product, classifies=classifies, field="search.metric")
    return metrics


def objective_metrics(config: Config, search: Search) -> tuple[str, ...]:
    """What is to be better."""
    first = {"classifier": "accuracy", "vae": "elbo", "tokenizer": "psnr"}.get(config.objective.product, "fid")
    if first == "elbo" and bound_of(config.objective) is None:
        first = "fid"
    return search.metric or (first,)


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))
