"""Writes a generated data set: python jobs/generate.py MODEL --out DIR [--num N] [--num-workers N] [...]."""

import sys

from genray import cli, cli_generate

if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: cli_generate.generate(sys.argv[1:], prog="python jobs/generate.py")))
