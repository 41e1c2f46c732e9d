"""Trains a preset: python jobs/train.py PRESET [--section.field VALUE ...] [--dry-run]."""

import sys

from genray import cli

if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: cli.train(sys.argv[1:], prog="python jobs/train.py")))
