"""Scores a registry model or a snapshot: python jobs/evaluate.py MODEL [--num-samples N ...]."""

import sys

from genray import cli

if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: cli.evaluate(sys.argv[1:], prog="python jobs/evaluate.py")))
