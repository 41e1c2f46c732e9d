"""A hundred faults over one run and one study, drawn by a seed: `python -m faults.soak [SEED [run] [study]]`.

What was injected, when, and how long nothing was done after it goes to `docs/logs/soak.json`.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from faults import inject
from faults.job import CHECKPOINT_EVERY, ROOT, Job
from faults.judge import distance, judge, load_or_none, not_whole, outlived, stored_in_mlflow, train_points, twin
from faults.lab import Lab
from faults.page import SOAK_LOG, write_page

from genray.study import Study

NUM_FAULTS = {"run": 72, "study": 28}
STEPS_BETWEEN = 40, 240
"""Least and most steps between one fault and the next."""
AT_ONCE = 0.2
"""How often a fault does not wait for steps, but strikes within seconds of the one before it."""
NO_LIMIT = 10_000


@dataclass(frozen=True)
class Due:
    """A fault to come."""

    kind: str
    after_steps: int
    """It strikes so many steps after the one before it, when there is somebody to strike;"""
    after_s: float | None
    """or so many seconds after that, if these are over first."""
    seconds: float
    """How long it lasts, where it lasts."""


def schedule(seed: int, kinds: list[str], num: int) -> list[Due]:
    """`num` faults, every kind about as often."""
    source = random.Random(seed)
    drawn = [kinds[i % len(kinds)] for i in range(num)]
    source.shuffle(drawn)
    due = []
    for kind in drawn:
        steps, soon = source.randint(*STEPS_BETWEEN), source.random() < AT_ONCE
        due.append(Due(kind, steps, source.uniform(0, 20) if soon else None, source.uniform(0.5, 8)))
    return due


class Searching(Job):
    """A study under watch, of trials of two ranks each, two at once."""

    script = "search.py"

    def __init__(self, storage: str, num_steps: int, num_trials: int, **more: Any) -> None:
        each = num_steps // num_trials // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        super().__init__(storage, 2, train__num_steps=each, cluster__cpus_per_worker=0.45, **more)
        search = {"name": self.name, "num-trials": num_trials, "scheduler": "fifo", "report-every": CHECKPOINT_EVERY}
        search |= {"num-samples": 64, "confirm-top": 0, "max-failures": NO_LIMIT}
        for name, value in search.items():
            self.command += [f"--search.{name}", str(value)]

    def step(self) -> int:
        """Steps of all trials together."""
        trials = (Path(self.storage) / self.name / "trials").glob("*/journal/train.jsonl")
        return sum(newest(path) for path in trials)


class Running(Job):
    """A run under watch, of one process: with a Ray around it, it would start again in a minute, not in seconds."""

    def __init__(self, storage: str, num_steps: int, *, uri: str, address: str | None = None) -> None:
        super().__init__(storage, uri=uri, train__num_steps=num_steps)

    def step(self) -> int:
        """The newest step that is written down."""
        return newest(Path(self.storage) / self.name / "journal" / "train.jsonl")


def newest(journal: Path, tail: int = 4096) -> int:
    """Step of the last whole line of a journal."""
    try:
        with journal.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail))
            lines = file.read().rpartition(b"\n")[0].splitlines()
    except OSError:
        return 0
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


class Soak:
    """What is done to a job, one fault after the other."""

    def __init__(self, lab: Lab, job: Job, disk: Path) -> None:
        self.lab, self.job, self.disk = lab, job, disk
        self.server_back = threading.Thread()
        self.quiet_s, self.seen, self.seen_at = 0.0, 0, time.monotonic()

    def kinds(self) -> dict[str, Callable[[float], None]]:
        """Faults by name; each has the seconds that it lasts."""
        both: dict[str, Callable[[float], None]] = {
            "SIGKILL of the command": lambda _: self._kill_command(),
            "SIGTERM for the command": lambda _: self.job.process.terminate(),
            "SIGKILL of the MLflow server": self._kill_server,
            "a process stopped": self._stop,
            "the disk full": self._fill,
        }
        if isinstance(self.job, Searching):
            return both | {
                "SIGKILL of a rank": lambda _: self._kill(1),
                "SIGKILL of all ranks": lambda _: self._kill(NO_LIMIT),
                "SIGKILL of a raylet": lambda _: self.lab.replace_node(),
            }
        return both | {
            "the checkpoints' folder read-only": self._read_only,
            "SIGKILL of the command, the newest checkpoint cut short": lambda _: self._damage("truncated"),
            "SIGKILL of the command, a bit of the newest checkpoint flipped": lambda _: self._damage("flipped"),
            "SIGKILL of the command, the newest checkpoint half deleted": lambda _: self._damage("halved"),
        }

    def _processes(self) -> list[psutil.Process]:
        """Those that train."""
        if isinstance(self.job, Searching):
            return [p for title in ("ray::Trial", "ray::Rank") for p in inject.ray_processes(title)]
        return [psutil.Process(self.job.process.pid)] if self.job.process.poll() is None else []

    def _kill(self, most: int) -> None:
        for process in self._processes()[:most]:
            process.kill()

    def _kill_command(self) -> None:
        if self.job.process.poll() is None:
            self.job.kill()

    def _kill_server(self, seconds: float) -> None:
        """It comes back while other things break."""
        if not self.server_back.is_alive():
            self.lab.server.kill()
            self.server_back = threading.Timer(seconds, self.lab.server.start)
            self.server_back.start()

    def _stop(self, seconds: float) -> None:
        found = self._processes()
        with inject.stopped(found[0]) if found else nullcontext():
            time.sleep(seconds)

    def _fill(self, seconds: float) -> None:
        ballast = inject.fill(self.disk, leave_kib=16)
        time.sleep(seconds)
        ballast.unlink()

    def _read_only(self, seconds: float) -> None:
        with inject.read_only(self.job.folder.local / "checkpoints"):
            time.sleep(seconds)

    def _damage(self, how: str) -> None:
        self._kill_command()
        inject.DAMAGES[how](inject.newest_checkpoint(self.job.folder.local))

    def keep_going(self) -> None:
        """Gives the command again, when it has ended."""
        if self.job.process.poll() is not None:
            if len(self.job.exit_codes) < self.job.starts:
                self.job.exit_codes.append(self.job.process.returncode)
            assert self.job.exit_codes[-1] != 0, f"the job was over before the last fault\n{self.job.tail()}"
            self.job.start()

    def until(self, condition: Callable[[], bool], timeout: float = 400) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self.keep_going()
            self.look()
            assert time.monotonic() < deadline, f"nothing was done in {timeout} s:\n{self.job.tail()}"
            time.sleep(0.05)

    def look(self) -> int:
        """The step, and the clock of how long there was no other."""
        now, step = time.monotonic(), self.job.step()
        self.quiet_s = max(self.quiet_s, now - self.seen_at)
        if step != self.seen:
            self.seen, self.seen_at = step, now
        return step

    def endure(self, faults: list[Due]) -> Iterator[dict[str, Any]]:
        """Injects `faults`; what came of each, when the next one comes."""
        self.until(lambda: self.job.step() > 3 * CHECKPOINT_EVERY)  # a run has to have a whole checkpoint left
        kinds, last, reached, entry = self.kinds(), time.monotonic(), self.job.step(), dict[str, Any]()
        for number, due in enumerate(faults, 1):
            self.wait_for(due, last, reached)
            if number > 1:
                yield entry | {"pause_s": round(self.quiet_s, 1)}
            last, reached, self.quiet_s, self.seen_at = time.monotonic(), self.look(), 0.0, time.monotonic()
            entry = asdict(due) | {"number": number, "at_step": reached}
            kinds[due.kind](due.seconds)
        self.until(lambda: self.job.step() > reached + CHECKPOINT_EVERY)
        yield entry | {"pause_s": round(self.quiet_s, 1)}

    def wait_for(self, due: Due, last: float, reached: int) -> None:
        """Until a fault is due, after the one at `last`, when the job had `reached` a step."""
        then = last + (float("inf") if due.after_s is None else due.after_s)

        def is_due() -> bool:
            return time.monotonic() >= then or (
                self.job.step() >= reached + due.after_steps and self._processes() != []
            )

        self.until(is_due)


@contextmanager
def soaked(lab: Lab, make: Callable[..., Job], num_steps: int) -> Iterator[Soak]:
    """A job that has begun, in a small file system of its own."""
    server, address = lab.server, lab.raylets.address if make is not Running else None
    with inject.small_disk(lab.folder(), kib=256 * 1024) as disk:
        job = make(str(disk), num_steps, address=address, uri=server.uri)
        try:
            job.start()
            yield Soak(lab, job, disk)
        finally:
            job.end()


def soak_run(lab: Lab, seed: int, num: int) -> dict[str, Any]:
    num_steps = length(seed, num)
    undisturbed = twin(lab.place / "twins", 1, num_steps=num_steps)
    with soaked(lab, Running, num_steps) as soak:
        faults = injected("run", soak, schedule(seed, list(soak.kinds()), num))
        soak.job.finish(again=20)
        verdict = judge(soak.job, undisturbed, lab.server.uri)
        found = asdict(verdict) | {
            "steps": num_steps,
            "lost": verdict.points_lost + (verdict.mlflow_lost or 0),
            "doubled": verdict.points_doubled,
            "same_weights": verdict.same_weights,
        }
        return {"faults": faults, "verdict": found, "clean": clean(found)}


def clean(verdict: dict[str, Any]) -> bool:
    """Whether nothing was lost but time."""
    bad = [verdict[kind] for kind in ("lost", "doubled", "damaged", "left_over", "orphans")]
    return not any(bad) and verdict["same_weights"] and verdict["exit_codes"][-1] == 0


def length(seed: int, num: int) -> int:
    """Steps of a job that `num` faults are done to: half as many again as they wait for, and some."""
    waited = sum(due.after_steps for due in schedule(seed, ["any"], num))
    return (waited * 3 // 2 // CHECKPOINT_EVERY + 10) * CHECKPOINT_EVERY


def injected(what: str, soak: Soak, faults: list[Due]) -> list[dict[str, Any]]:
    found = []
    for entry in soak.endure(faults):
        found.append(entry)
        print(f"{what} {entry['number']}/{len(faults)} {entry}", flush=True)
    return found


def soak_study(lab: Lab, seed: int, num: int, num_trials: int = 12) -> dict[str, Any]:
    def make(storage: str, num_steps: int, **more: Any) -> Job:
        return Searching(storage, num_steps, num_trials, **more)

    num_steps = length(seed, num) + CHECKPOINT_EVERY * num_trials
    calm = make(str(lab.folder()), num_steps, address=lab.raylets.address, uri=lab.server.uri)
    assert calm.start().finish(again=0) == 0, calm.tail()
    with soaked(lab, make, num_steps) as soak:
        faults = injected("study", soak, schedule(seed, list(soak.kinds()), num))
        soak.job.finish(again=20)
        found = compare(calm, soak.job, lab.server.uri)
        return {"faults": faults, "verdict": found, "clean": clean(found)}


def compare(calm: Job, torn: Job, uri: str) -> dict[str, Any]:
    """A study against the same one undisturbed, trial by trial."""
    studies = [Study.open(job.storage, job.name) for job in (calm, torn)]
    wanted, trials = (study.trials() for study in studies)
    lost = sum(n not in trials or trials[n].status != trial.status for n, trial in wanted.items())
    doubled, same, damaged, left_over = len(trials) - len(wanted), True, list[str](), list[str]()
    for number in wanted.keys() & trials.keys():
        before, after = (study.trial_folder(number) for study in studies)
        end = load_or_none(before, calm.num_steps)
        assert end is not None
        same &= distance(load_or_none(after, calm.num_steps), end) == 0
        said = [{r.step: r.objective for r in found[number].reports} for found in (wanted, trials)]
        points = train_points(before), train_points(after)
        missing, twice = stored_in_mlflow(after, uri)
        lost += (said[0] != said[1]) + (points[0] - points[1]).total() + missing
        doubled += len(trials[number].reports) - len(said[1]) + (points[1] - points[0]).total() + twice
        damaged += not_whole(after)
        left_over += [str(path) for path in after.local.glob("*/.step-*")]
    return {
        "trials": len(trials),
        "steps": calm.num_steps,
        "starts": torn.starts,
        "exit_codes": torn.exit_codes,
        "lost": lost,
        "doubled": doubled,
        "same_weights": same,
        "damaged": damaged,
        "left_over": left_over,
        "orphans": outlived(torn),
    }


def main(words: list[str]) -> int:
    seed, chosen = int(words[0]) if words else 0, words[1:] or list(NUM_FAULTS)
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, cwd=ROOT, check=True)
    parts = json.loads(SOAK_LOG.read_text()) if SOAK_LOG.is_file() else {}
    with tempfile.TemporaryDirectory() as place, Lab(Path(place)) as lab:
        for what in chosen:
            began, soak = time.monotonic(), {"run": soak_run, "study": soak_study}[what]
            parts[what] = {"seed": seed, "commit": commit.stdout.strip(), "date": datetime.now(UTC).date().isoformat()}
            parts[what] |= soak(lab, seed, NUM_FAULTS[what]) | {"minutes": round((time.monotonic() - began) / 60, 1)}
            print(f"{what}: {parts[what]['verdict']}", flush=True)
            SOAK_LOG.write_text(json.dumps(parts, indent=1) + "\n")
            write_page()
    return 0 if all(parts[what]["clean"] for what in chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
