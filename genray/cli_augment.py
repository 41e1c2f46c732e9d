"""`jobs/augment.py`: whether generated images help.

Every generator and classifier is a training of its own on --cluster.num-workers workers; all of them run at once as far
as the cluster has room; 0: one after another in this process. The same command goes on after a kill.

Fields of the classifier are said as for `genray train`, those of the generator as --generator.SECTION.FIELD VALUE.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genray import cli
from genray.augment import Experiment
from genray.errors import ConfigError
from genray.paths import base_directory, resolved


def augment(args: Sequence[str], prog: str) -> int:
    """Runs the experiment, and prints its table and its verdict."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--mix.ratios",
        dest="ratios",
        default="0,0.5,1,2",
        help="generated images for each real one; 0 is compared with",
    )
    parser.add_argument("--mix.real-fraction", dest="fractions", default="0.01,0.1,1", help="shares of the real images")
    parser.add_argument("--mix.copy-quantile", dest="copy_quantile", type=float, default=0.0, help="leave out copies")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm")
    parser.add_argument("--generator", help="preset; DATASET-dcgan by default")
    parser.add_argument("--generator-steps", type=int, help="as --generator.train.num-steps")
    parser.add_argument("--out", type=Path, default=Path("augment"), help="folder of the report")
    asked, rest = parser.parse_known_args(args)
    own, of_generator = _split(rest)
    classifier, dry_run = cli.parse_run(own, prog)
    if asked.generator_steps is not None:
        of_generator += ["--train.num-steps", str(asked.generator_steps)]
    generator, _ = cli.parse_run([asked.generator or f"{classifier.data.name}-dcgan", *of_generator], prog)
    experiment = Experiment(
        classifier=resolved(classifier),
        generator=resolved(replace(generator, data=classifier.data)),
        ratios=_numbers("--mix.ratios", asked.ratios),
        real_fractions=_numbers("--mix.real-fraction", asked.fractions),
        seeds=asked.seeds,
        copy_quantile=asked.copy_quantile,
    )
    from genray import ray_augment

    if dry_run:
        print(json.dumps(ray_augment.plan(experiment), indent=2))  # noqa: T201
    else:
        ray_augment.run(experiment, base_directory() / asked.out.expanduser())
    return 0


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Fields of the classifier and, without `--generator.`, those of the generator."""
    own: list[str] = []
    of_generator: list[str] = []
    place = own
    for arg in args:
        if arg.startswith("--"):
            place = of_generator if arg.startswith("--generator.") else own
        place.append(arg.replace("--generator.", "--", 1) if place is of_generator else arg)
    return own, of_generator


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} must be numbers with commas in between, e.g. 0,0.5,1") from error
