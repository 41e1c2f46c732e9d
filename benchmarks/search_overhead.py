"""What a trial costs beside its training: genray's against Ray Tune's own ways.

A trial builds a small DCGAN of 8 x 8 digits and does one step. Sides, which take turns in one Ray:
`genray` (a trial of a study: config, checkpoint, snapshot, score and journal written), `reused` (Ray
Tune's plain function trainable, actors reused), `default` (the same without reuse), and `train` (a Ray
Train run of one worker inside each trial, the documented arrangement). With `--workers 2` the trials of
genray and of the last have two workers each, and only those two are compared.
"""

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchTrainer
from studies import extractor, race
from turns import Others, conditions, finish, parser, say

from genray import ray_train
from genray.config import Cluster, Config, Data, Eval, Optim, Run, Train
from genray.models.dcgan import DCGAN
from genray.objectives.gan import GAN
from genray.search import Search
from genray.space import Domain
from genray.study import Settings

GOALS = {"reused": 1.3, "default": 1 / 7, "train": 1 / 50}
EXTRACTOR_STEPS = 20


def one_step(config: dict[str, Any]) -> float:
    """The body of a plain trial: the networks, and one step of them by hand."""
    torch.set_num_threads(1)
    networks = DCGAN(latent_dim=8, width=8, generator_norm="none", discriminator_norm="none").build((1, 8, 8), 10)
    generator, discriminator = networks["generator"], networks["discriminator"]
    optimizers = [torch.optim.Adam(module.parameters(), lr=config["lr"]) for module in (discriminator, generator)]
    reals, fakes = torch.rand(16, 1, 8, 8), generator(torch.randn(16, 8))
    loss = torch.nn.functional.softplus(discriminator(fakes.detach()) - discriminator(reals)).mean()
    loss.backward()
    optimizers[0].step()
    score = torch.nn.functional.softplus(-discriminator(fakes)).mean()
    score.backward()
    optimizers[1].step()
    return float(score)


def plain(config: dict[str, Any]) -> None:
    """Tune's function trainable."""
    tune.report({"objective": one_step(config)})


def nested(config: dict[str, Any]) -> None:
    """The documented arrangement: a driver function that starts a run of Ray Train."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            one_step,
            train_loop_config={"lr": config["lr"]},
            scaling_config=train.ScalingConfig(
                num_workers=config["workers"], resources_per_worker={"CPU": config["cpus"]}
            ),
            run_config=train.RunConfig(storage_path=folder),
        ).fit()
    tune.report({"objective": 0.0})


def tuned(
    function: Callable[[dict[str, Any]], None], own_cpus: float, concurrent: int, *, reuse: bool, **constants: Any
) -> Callable[[int], float]:
    """Seconds of n trials of `function` by Tune."""

    def run(num: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            tune.Tuner(
                tune.with_resources(function, {"CPU": own_cpus}),
                param_space={"lr": tune.loguniform(1e-4, 1e-2), **constants},
                tune_config=tune.TuneConfig(
                    num_samples=num,
                    max_concurrent_trials=concurrent,
                    reuse_actors=reuse,
                    metric="objective",
                    mode="min",
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            ).fit()
            return time.perf_counter() - began

    return run


def studied(folder: Path, features: Path, workers: int, cpus: float) -> Callable[[int], float]:
    """Seconds of n trials of a study."""
    taken = iter(range(10**6))

    def run(num: int) -> float:
        settings = Settings(
            a_run(folder, workers, cpus),
            Search(
                name=f"study-{next(taken)}",
                num_trials=num,
                scheduler="fifo",
                num_samples=64,
                confirm_top=0,
                max_concurrent=2 if workers == 1 else 1,
            ),
            {"optim.lr": Domain("log", (1e-4, 1e-2))},
        )
        study, took = race(settings, features)
        ended = [trial.status for trial in study.trials().values()]
        if ended != ["finished"] * num:
            raise SystemExit(f"trials ended as {ended}")
        return took

    return run


def a_run(folder: Path, workers: int, cpus: float) -> Config:
    """The run of every trial of a study."""
    return Config(
        run=Run(name="trial", storage=str(folder)),
        data=Data(name="digits", cache=str(folder / "cache")),
        model=DCGAN(latent_dim=8, width=8, generator_norm="none", discriminator_norm="none"),
        objective=GAN(),
        optim=Optim(),
        train=Train(num_steps=1, global_batch_size=16, log_every=1, sample_every=0, checkpoint_every=1),
        eval=Eval(num_samples=64, num_seeds=1, promote=False),
        cluster=Cluster(num_workers=workers, cpus_per_worker=cpus),
    )


def main() -> None:
    made = parser(__doc__, turns=2)
    made.add_argument("--trials", type=int, default=24, help="trials of a turn of the quick sides")
    made.add_argument("--slow-trials", type=int, default=2, help="trials of a turn of the side with Ray Train")
    made.add_argument("--workers", type=int, default=1, choices=(1, 2), help="workers of a trial")
    options = made.parse_args()
    options.threads = 1
    cpus = 1.0 if options.workers == 1 else 0.5
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        features = extractor(Path(folder), Data(name="digits", cache=f"{folder}/cache"), EXTRACTOR_STEPS)
        with contextlib.redirect_stdout(nowhere):
            ray_train.connect(2, log_to_driver=False)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        sides = {"genray": studied(Path(folder), features, options.workers, cpus)}
        if options.workers == 1:
            sides |= {"reused": tuned(plain, 1.0, 2, reuse=True), "default": tuned(plain, 1.0, 2, reuse=False)}
        sides["train"] = tuned(nested, 0.01, 1, reuse=False, workers=options.workers, cpus=cpus)
        seconds = measure(sides, options)
        ray.shutdown()
    found = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    ratios = {f"ratio_to_{name}": round(found["genray"] / found[name], 3) for name in found if name != "genray"}
    goals = GOALS if options.workers == 1 else {"train": 1.1}
    say(f"{ratios} (at most {goals})")
    figures = {f"{name}_seconds": value for name, value in found.items()}
    finish(
        "search_overhead",
        {"workers": options.workers, "trials": options.trials} | figures | ratios | conditions(options, "ray"),
    )


def measure(sides: dict[str, Callable[[int], float]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a trial, of every side, a turn each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    meter = Others()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        sides["genray"](2)
    for turn in range(options.turns):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            num = options.slow_trials if name == "train" else options.trials
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                seconds[name].append(sides[name](num) / num)
            say(f"{name}: {seconds[name][-1]:.3f} s a trial; others {meter.percent():.1f} %")
    return seconds


if __name__ == "__main__":
    main()
