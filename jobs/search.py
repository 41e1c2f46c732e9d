"""Searches for the best values of a preset: python jobs/search.py PRESET [--search.field VALUE ...] [--dry-run]."""

import sys

from genray import cli

if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: cli.search(sys.argv[1:], prog="python jobs/search.py")))
