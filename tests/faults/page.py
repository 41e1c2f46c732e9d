"""`docs/faults.md`, made from what `python -m faults` and `python -m faults.soak` have measured."""

import json
import os
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

from faults.cases import FAULTS, Fault
from faults.job import CHECKPOINT_EVERY, NUM_STEPS, ROOT
from faults.judge import Verdict

PAGE, LOG, SOAK_LOG = (ROOT / "docs" / name for name in ("faults.md", "logs/faults.json", "logs/soak.json"))
COMMAND = "make faults"
PACKAGES = ("torch", "ray", "mlflow", "pyarrow", "moto")

HEAD = """# Faults, and what each has cost

Each of these was injected into a real run on {dates} by `{command}`, and the run compared with one that nothing had
happened to: the same {num_steps} steps over the digits, a checkpoint every {every}, every step a log point. The table
is written by that command, from [its log](logs/faults.json), which has the commit of each line.
{versions}; {cores} cores, shared with others.

- **repeated**: steps done a second time, since the last whole checkpoint. Checkpoints are written beside training: one
  that is damaged, or could not be written, costs an interval more.
- **lost**, **twice**: points of the journal and of MLflow that are missing, are others, or stand there twice.
- **same weights**: weights, averages and moments after the last step are those of the undisturbed run, to the bit; or,
  where the number of workers has changed, which add up gradients in another order, to the share of the largest weight
  that is said.
- **pause**: longest time without a step since the fault, in seconds; starting Python, torch and Ray included, and the
  time that the fault itself lasts.
- **commands**: how often the same command was given.

No command has left a process behind, or a half-written folder, or one that passes for whole and is not, except where
the last column says so.

Tested elsewhere: 64 trials that write to one MLflow server, which dies meanwhile (`tests/test_mlflow_study.py`); a
learning rate that blows up, which ends the run in an error (`tests/test_health_runs.py`);
a server that hangs (`tests/test_mlflow_tracking.py`).

| fault | how it was injected | commands | repeated | lost | twice | same weights | pause | besides |
| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | --- |
"""


SOAK = """
## Many faults, one after another

`make soak` draws a hundred by a seed: kills of commands, ranks, raylets and the MLflow server, SIGTERM, a stopped
process, a full disk, a folder that cannot be written and damaged checkpoints; most over one run of one process, the
others over a study on two nodes, whose trials have two ranks each and run two at a time. One in five comes within 20 s
of the one before it, perhaps while the job still recovers from that. [The log](logs/soak.json) has each, with the
longest time without a step until the next.

| | seed | commit | faults | commands | minutes | lost | twice | same weights | median, longest pause |
| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |
"""


def entry_of(fault: Fault, verdict: Verdict) -> dict[str, Any]:
    """What the log has of one fault."""
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, cwd=ROOT, check=True)
    made = {"date": datetime.now(UTC).date().isoformat(), "commit": commit.stdout.strip()}
    return {"name": fault.name, "injected": fault.injected, **made, "clean": verdict.clean, **asdict(verdict)}


def put(name: str, entry: dict[str, Any] | None) -> None:
    """Writes the result of a fault into the log, in place of an older one, and the page anew; None: it has none."""
    known = json.loads(LOG.read_text())["faults"] if LOG.is_file() else []
    entries = {e["name"]: e for e in [*known, *([entry] if entry else [])] if entry or e["name"] != name}
    log = {
        "command": COMMAND,
        "versions": {name: version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "faults": [entries[fault.name] for fault in FAULTS if fault.name in entries],
    }
    LOG.write_text(json.dumps(log, indent=1) + "\n")
    write_page()


def write_page() -> None:
    """The page of the logs."""
    soak = json.loads(SOAK_LOG.read_text()) if SOAK_LOG.is_file() else {}
    PAGE.write_text(page(json.loads(LOG.read_text()), soak))


def page(made: dict[str, Any], soak: dict[str, Any]) -> str:
    """The page of both logs."""
    head = HEAD.format(
        dates=" and ".join(sorted({entry["date"] for entry in made["faults"]})),
        command=made["command"],
        versions=", ".join(f"{name} {value}" for name, value in made["versions"].items()),
        num_steps=f"{NUM_STEPS:,}",
        every=CHECKPOINT_EVERY,
        cores=made["cores"],
    )
    table = head + "".join(_row(entry) for entry in made["faults"])
    return table + (SOAK + "".join(_soak_row(what, part) for what, part in soak.items()) if soak else "")


def _soak_row(what: str, part: dict[str, Any]) -> str:
    verdict, pauses = part["verdict"], [fault["pause_s"] for fault in part["faults"]]
    cells = [
        what,
        part["seed"],
        part["commit"],
        len(pauses),
        verdict["starts"],
        f"{part['minutes']:.0f}",
        verdict["lost"],
        verdict["doubled"],
        "yes" if verdict["same_weights"] else "no",
        f"{median(pauses):.0f} s, {max(pauses):.0f} s",
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _row(entry: dict[str, Any]) -> str:
    kinds = ("damaged", "left_over", "orphans")
    besides = [f"{len(entry[kind])} {kind.replace('_', ' ')}" for kind in kinds if entry[kind]]
    if entry["exit_codes"][-1]:
        besides.append(f"exit code {entry['exit_codes'][-1]}")
    cells = [
        entry["name"],
        entry["injected"],
        entry["starts"],
        entry["steps_repeated"],
        entry["points_lost"] + (entry["mlflow_lost"] or 0),
        entry["points_doubled"],
        _same(entry["apart"], entry["allowed"]),
        f"{entry['pause_s']:.1f}" if entry["pause_s"] else "",
        ", ".join(besides),
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _same(apart: float | None, allowed: float) -> str:
    if apart is None or apart > allowed:
        return "no"
    return f"to {apart:.0e}" if apart else "yes"
