"""A run under watch: a training command, given again while it fails, and the steps it says it takes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from faults.network import AT_NODE

from genray.storage import RunFolder
from genray.tracking import read_journal

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"(?:pid=(\d+).*?)?\bstep (\d+)/\d+ ")
MARK = "GENRAY_FAULTS_JOB"
NUM_STEPS, CHECKPOINT_EVERY, CORES, NORM = 1000, 100, 0.9, "batch"
# a VAE of 8 x 8 digits, scored by its ELBO: a step takes milliseconds, and every step is a log point
RUN = {
    "model.width": 4,
    "model.latent-dim": 2,
    "objective.binarize": False,
    "train.num-steps": NUM_STEPS,
    "train.global-batch-size": 16,
    "train.checkpoint-every": CHECKPOINT_EVERY,
    "train.log-every": 1,
    "train.sample-every": 0,
    "eval.num-samples": 64,
    "eval.num-seeds": 1,
    "eval.promote": False,
    "eval.num-cpus": 1 - CORES,
    "cluster.cpus-per-worker": CORES,
}


class Step(NamedTuple):
    """A step that a run says it has taken."""

    at: float
    step: int
    pid: int
    """The process that took it."""


class Job:
    """One run in `storage`, and the processes that its command starts.

    Args:
        storage: path or URI; the run's folder is below it.
        ranks: of the run; on Ray, or with `bare` as processes of the training loop alone, without services.
        address: of the Ray that the job joins.
        uri: of MLflow.
        poison: KIND:RANK:STEP, see `faults.bare`.
        on: what stands before the command, to give it on a node of its own.
        norm: of the network; batch norm takes its statistics from one rank's share, so it ties a run to its ranks.
        fields: of the config, by dotted name.
    """

    script = "train.py"

    def __init__(
        self,
        storage: str,
        ranks: int = 1,
        *,
        bare: bool = False,
        address: str | None = None,
        uri: str | None = None,
        poison: str | None = None,
        on: Sequence[str] = (),
        norm: str = NORM,
        **fields: Any,
    ) -> None:
        self.storage, self.ranks, self.uri, self.norm, self.name = storage, ranks, uri, norm, "digits"
        on_ray = ranks if address else 0
        told = RUN | {"run.name": self.name, "run.storage": storage, "cluster.num-workers": on_ray, "model.norm": norm}
        told |= {name.replace("__", ".").replace("_", "-"): value for name, value in fields.items()}
        self.num_steps = int(told["train.num-steps"])
        start = ["-m", "faults.bare", str(ranks), poison or "none"] if bare else [str(ROOT / "jobs" / self.script)]
        self.command = [sys.executable, *start, "digits-vae"]
        for name, value in told.items():
            self.command += [f"--{name}", str(value)]
        if uri:
            self.command += ["--tracking.uri", uri]
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT / "tests"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "RAY_DEDUP_LOGS": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **({"RAY_ADDRESS": address} if address else {}),
        }
        if on:
            self.command, self.environment = [*on, *self.command], self.environment | AT_NODE
        self.mark = self.environment[MARK] = uuid.uuid4().hex
        self.steps: list[Step] = []
        self.output: list[str] = []
        self.starts = 0
        """Times that the command was given."""
        self.exit_codes: list[int] = []
        self.done_at_fault = 0
        self.fault_at = float("inf")

    @property
    def folder(self) -> RunFolder:
        return RunFolder.open(self.storage, self.name)

    def start(self) -> "Job":
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            cwd=ROOT,
        )
        self.starts += 1
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if found := STEP.search(line):
                self.steps.append(Step(time.monotonic(), int(found[2]), int(found[1] or process.pid)))
            elif len(self.output) < 2000:
                self.output.append(line.rstrip())

    def step(self) -> int:
        """The newest step that is known of: printed, or, as lines of another node come late, in the journal."""
        said = self.steps[-1].step if self.steps else 0
        journal = Path(self.storage) / self.name / "journal" / "train.jsonl"
        return max([said, *(entry["step"] for entry in read_journal(journal)[0])])

    def wait_for(self, step: int, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while self.step() < step:
            assert self.process.poll() is None, f"the run ended before step {step}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"step {step} was not reached in {timeout} s:\n{self.tail()}"
            time.sleep(0.02)
        assert self.step() < self.num_steps, f"the run was over before the fault of step {step}"

    @contextmanager
    def fault_at_step(self, step: int) -> Iterator[None]:
        """From `step` on, the block injects a fault: the clock of the loss runs from its beginning."""
        self.wait_for(step)
        self.fault_at = time.monotonic()
        yield
        self.done_at_fault = self.step()

    def kill(self) -> None:
        """SIGKILL for the command itself, and nothing that it started."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.exit_codes.append(self.process.wait())

    def finish(self, again: int = 3, timeout: float = 600) -> int:
        """Waits for the end; the command is given again, at most `again` times, while it fails. The last exit code."""
        while True:
            if self.process.returncode is None:
                self.exit_codes.append(self.process.wait(timeout))
                self.reader.join(5)
            if self.exit_codes[-1] in (0, 3) or self.starts > again:
                return self.exit_codes[-1]
            self.start()

    def tail(self) -> str:
        return "\n".join(self.output[-30:])

    def end(self) -> None:
        """Kills whatever the command has left."""
        for process in self.orphans():
            process.kill()

    def orphans(self) -> list[psutil.Process]:
        """Processes that the command has started, however indirectly, and itself; a Ray that it joined is another's."""
        return [process for process in psutil.process_iter() if _mark(process) == self.mark]


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (OSError, psutil.Error):
        return None
