"""Faults, each injected for real into a real run, and what each has cost.

`python -m faults` (in `tests/`) injects all of them and writes `docs/faults.md`.
"""
