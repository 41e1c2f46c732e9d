"""A thousand trials through the whole search path: memory stays flat, and no trial takes longer than the first.

A trial is a VAE of 8 x 8 digits that does one step, and everything that belongs to a trial: config,
checkpoint, snapshot, score, journal, child run in MLflow; then pictures, report, registry. Written down while
it runs: seconds a trial, and the memory of the driver and of the processes that trials share. `seconds_ratio`
and `driver_ratio` compare the last fifth of the trials with the second (the first warms up); `--plot` draws
the curve.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import psutil
from matplotlib import pyplot as plt
from mlflow import MlflowClient
from turns import conditions, finish, parser, say

from genray import ray_study
from genray.config import Cluster, Config, Data, Eval, Optim, Run, Tracking, Train
from genray.models.vae import MLPVAE
from genray.objectives.elbo import ELBO
from genray.search import Search
from genray.space import Domain
from genray.study import ENDED, Settings, Study

MIB = 2**20
Point = tuple[int, float, float]
"""Trials ended, MiB of the driver, MiB of the largest process of trials."""


def settings(folder: Path, num_trials: int) -> Settings:
    """A search whose trials do next to nothing."""
    config = Config(
        run=Run(name="trial", storage=str(folder)),
        data=Data(name="digits", cache=str(folder / "cache")),
        model=MLPVAE(latent_dim=2, hidden=8),
        objective=ELBO(),
        optim=Optim(),
        train=Train(num_steps=1, global_batch_size=16, log_every=1, sample_every=0, checkpoint_every=1),
        eval=Eval(num_samples=64, num_seeds=1, promote=False),
        cluster=Cluster(num_workers=1),
        tracking=Tracking(uri=f"sqlite:///{folder}/mlflow.db"),
    )
    search = Search(name="many", num_trials=num_trials, scheduler="fifo", num_samples=64, confirm_top=0)
    return Settings(config, search, {"optim.lr": Domain("log", (1e-4, 1e-2))})


class Watch:
    """A thread that notes memory as trials end."""

    def __init__(self, made: Settings, every: float) -> None:
        self.made, self.every, self.points = made, every, list[Point]()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def stop(self) -> list[Point]:
        """What it noted."""
        self.done.set()
        self.thread.join()
        return self.points

    def _loop(self) -> None:
        this = psutil.Process()
        journal = Path(self.made.config.run.storage) / self.made.search.name / "study.jsonl"
        while not self.done.wait(self.every):
            ended = journal.read_text().count('"event":"finished"') if journal.is_file() else 0
            if not 0 < ended < self.made.search.num_trials:  # before the first, or while pictures are drawn
                continue
            trials = [0.0]
            for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
                if "ray::" in " ".join(process.info["cmdline"] or [process.info["name"] or ""]):
                    trials.append(process.info["memory_info"].rss / MIB)
            self.points.append((ended, this.memory_info().rss / MIB, max(trials)))


def per_trial(study: Study) -> list[float]:
    """Seconds between the end of a trial and that of the one before, in order of their ends."""
    ends = sorted(trial.ended for trial in study.trials().values() if trial.status in ENDED)
    return [after - before for before, after in itertools.pairwise(ends)]


def fifth(values: Sequence[float], which: int) -> float:
    """Mean of the values of one fifth of the trials, from 0 to 4."""
    share = len(values) // 5
    return statistics.fmean(values[which * share : (which + 1) * share])


def recorded(made: Settings) -> int:
    """Child runs that MLflow has, ended and with a score."""
    client = MlflowClient(made.config.tracking.uri)
    experiments = [client.get_experiment_by_name("genray/digits").experiment_id]
    runs = client.search_runs(experiments, "tags.`genray.kind` = 'trial'", max_results=10_000)
    return sum(run.info.status == "FINISHED" and "eval/elbo" in run.data.metrics for run in runs)


def plot(seconds: Sequence[float], points: Sequence[Point], path: Path) -> None:
    """Seconds a trial, and memory, over the number of trials."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    width = max(1, len(seconds) // 40)
    means = [statistics.fmean(seconds[i : i + width]) for i in range(0, len(seconds) - width + 1, width)]
    above.plot([i * width for i in range(len(means))], means, color="#1f6f8b")
    above.set(ylabel="seconds a trial", ylim=(0, None))
    ended = [point[0] for point in points]
    below.plot(ended, [point[1] for point in points], color="#1f6f8b", label="driver")
    below.plot(ended, [point[2] for point in points], color="#c8553d", label="largest process of trials")
    below.set(xlabel="trials ended", ylabel="memory in MiB", ylim=(0, None))
    below.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=1000, help="trials of the study")
    made.add_argument("--every", type=float, default=0.5, help="seconds between two looks at the memory")
    made.add_argument("--plot", type=Path, help="where to draw the curve (PNG)")
    options: argparse.Namespace = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = settings(Path(folder), options.trials)
        watch = Watch(asked, options.every)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            ray_study.run(asked)
        points, study = watch.stop(), Study.open(folder, asked.search.name)
        statuses = [trial.status for trial in study.trials().values()]
        seconds, in_mlflow = per_trial(study), recorded(asked)
    if statuses != ["finished"] * options.trials:
        raise SystemExit(f"not every trial has finished: {statuses}")
    if options.plot:
        plot(seconds, points, options.plot)
    drivers, processes = [p[1] for p in points], [p[2] for p in points]
    figures = {
        "seconds_a_trial": round(statistics.fmean(seconds), 3),
        "seconds_ratio": round(fifth(seconds, 4) / fifth(seconds, 1), 3),
        "driver_mib": round(fifth(drivers, 4)),
        "driver_ratio": round(fifth(drivers, 4) / fifth(drivers, 1), 3),
        "trials_mib": round(fifth(processes, 4)),
        "trials_ratio": round(fifth(processes, 4) / fifth(processes, 1), 3),
        "in_mlflow": in_mlflow,
    }
    say(f"{figures}")
    finish("many_trials", {"trials": options.trials} | figures | {"versions": conditions(options, "ray")["versions"]})


if __name__ == "__main__":
    main()
