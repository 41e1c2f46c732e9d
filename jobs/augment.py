"""Whether generated images help: python jobs/augment.py PRESET --mix.ratios 0,1 --mix.real-fraction 0.1,1 --seeds 5.

Further: --generator PRESET (DATASET-dcgan by default), --generator-steps N, --out DIR, and any field of the classifier.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genray import augment, cli
from genray.errors import ConfigError
from genray.paths import resolved
from genray.presets import preset


def main(args: Sequence[str]) -> int:
    """Runs the experiment, and prints its table and its verdict."""
    parser = argparse.ArgumentParser(prog="python jobs/augment.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--mix.ratios", dest="ratios", default="0,0.5,1,2")
    parser.add_argument("--mix.real-fraction", dest="fractions", default="0.01,0.1,1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generator")
    parser.add_argument("--generator-steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("augment"))
    asked, rest = parser.parse_known_args(args)
    config = resolved(cli.parse_run(rest, "python jobs/augment.py")[0])
    generator = resolved(replace(preset(asked.generator or f"{config.data.name}-dcgan"), data=config.data))
    if asked.generator_steps:
        generator = replace(generator, train=replace(generator.train, num_steps=asked.generator_steps))
    experiment = augment.Experiment(
        classifier=config,
        generator=generator,
        ratios=_numbers("--mix.ratios", asked.ratios),
        real_fractions=_numbers("--mix.real-fraction", asked.fractions),
        seeds=asked.seeds,
    )
    arms = augment.run(experiment, config.run.storage)
    augment.write_report(asked.out, arms)
    print((asked.out / "report.md").read_text())
    return 0


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} must be numbers with commas in between, e.g. 0,0.5,1") from error


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: main(sys.argv[1:])))
