"""Whether generated images help: python jobs/augment.py PRESET --mix.ratios 0,1 --mix.real-fraction 0.1,1 --seeds 5."""

import sys

from genray import cli, cli_augment

if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: cli_augment.augment(sys.argv[1:], prog="python jobs/augment.py")))
