"""What a person sees of a run under way: a bar on a terminal, plain lines in a log."""

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from genray.distributed import World

SHOWN = ("loss", "elbo", "accuracy", "accuracy_reals", "accuracy_fakes")


def hardware(device: torch.device) -> dict[str, Any]:
    """What this process computes on: the GPU's name, or None, and the processor's, its cores and the threads in use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": next(named, "") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 is slower than fp32 here: on a processor without instructions for it."""
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and not any(there for name, there in has.items() if "bf16" in name)


class Progress:
    """Speed, waiting and time left of a run; shown by rank 0, measured by every rank."""

    def __init__(self, num_steps: int, global_batch_size: int, world: World) -> None:
        self.num_steps, self.global_batch_size, self.world = num_steps, global_batch_size, world
        self.bar: Bar | None = None
        self.process = psutil.Process()
        self.begin(0)

    def start(self, step: int) -> None:
        """Begins to measure, at `step`, and to show it."""
        self.begin(step)
        if self.world.rank == 0 and sys.stdout.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Bar(*columns)
            self.bar.add_task("", total=self.num_steps, completed=step)
            self.bar.start()

    def begin(self, step: int) -> None:
        """Sets the clocks at `step`."""
        self.first_step = self.last_step = step
        self.first_time = self.last_time = time.perf_counter()
        self.waited = 0.0
        psutil.cpu_percent()

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time of the block as waiting for the next batch."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def report(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Speed and system figures since the last report, which is shown together with `values`."""
        now = time.perf_counter()
        seconds, steps = max(now - self.last_time, 1e-9), max(step - self.last_step, 1)
        figures = {
            "perf/images_per_second": steps * self.global_batch_size / seconds,
            "perf/step_ms": 1000 * seconds / steps,
            "perf/data_wait": self.waited / seconds,
            **self.system(),
        }
        self.last_time, self.last_step, self.waited = now, step, 0.0
        if self.world.rank == 0:
            self._show(step, values, figures)
        return figures

    def say(self, line: str) -> None:
        """Shows a line above the bar, or among the lines of the log."""
        if self.world.rank == 0:
            print_line = print if self.bar is None else self.bar.console.print
            print_line(line)

    def system(self) -> dict[str, float]:
        """Load of this node and memory of this process: percent and MiB."""
        figures = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_percent": psutil.virtual_memory().percent,
            "system/process_memory_mb": self.process.memory_info().rss / 2**20,
        }
        if self.world.device.type == "cuda":
            figures["system/gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.world.device) / 2**20
        return figures

    def _show(self, step: int, values: Mapping[str, float], figures: Mapping[str, float]) -> None:
        said = [f"{k}={v:.3g}" for k, v in values.items() if k.rpartition("/")[2] in SHOWN]
        said += [f"{k}={v:.0f}" for k, v in values.items() if k.endswith("/skipped") and v]
        shown = " ".join(said)
        speed = f"{figures['perf/images_per_second']:.0f} images/s, {figures['perf/data_wait']:.0%} waiting"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=step, description=f"{speed} {shown}")
            return
        left = (time.perf_counter() - self.first_time) / max(step - self.first_step, 1) * (self.num_steps - step)
        eta = time.strftime("%H:%M:%S", time.gmtime(left))
        print(f"step {step}/{self.num_steps} · {speed} · {eta} left · {shown}", flush=True)  # noqa: T201
