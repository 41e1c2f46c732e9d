"""Two sides of a comparison that take turns, and how much faster one is than the other.

Only the ratio means anything: both sides run on the same machine within seconds of each other, in
alternating order, and the best turns of each are compared. A turn that other processes disturbed is
taken again; how busy they were is said with the figures.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import psutil
import torch

BEST = 3
SETTLE_STEPS = 2
QUIET_PERCENT = 8.0
"""Share of the cores that others may take before a turn counts as disturbed."""
RETRIES = 4
"""Times a disturbed turn is taken again before it counts as it is."""


@dataclass
class Side:
    """One of the two: `run(n)` does n steps and says how many seconds they took."""

    name: str
    run: Callable[[int], float]
    steps: int = 0
    """Steps of one turn; found by `calibrate`."""
    speeds: list[float] = field(default_factory=list)
    """Steps per second, a turn each."""

    @property
    def speed(self) -> float:
        """Mean of the best turns."""
        best = sorted(self.speeds)[-BEST:]
        return sum(best) / len(best)


def timed(step: Callable[[], object]) -> Callable[[int], float]:
    """`step`, as what a `Side` runs."""

    def run(num_steps: int) -> float:
        began = time.perf_counter()
        for _ in range(num_steps):
            step()
        return time.perf_counter() - began

    return run


def compare(ours: Side, theirs: Side, options: argparse.Namespace) -> dict[str, float]:
    """How many times as fast as `theirs` `ours` is, and how sure that is.

    `ratio` compares the best turns of both; `low` and `high` are the smallest and largest ratio of two
    neighbouring turns; `others_percent` is the share of the cores that other processes took meanwhile.
    """
    sides, others = (ours, theirs), []
    for side in sides:
        calibrate(side, options.seconds)
    for turn in range(options.turns):
        for side in sides if turn % 2 else sides[::-1]:
            speed, busy = quiet_turn(side, wait=not options.no_wait)
            side.speeds.append(speed)
            others.append(busy)
    pairs = [a / b for a, b in zip(ours.speeds, theirs.speeds, strict=True)]
    say(f"{ours.name}: {_list(ours.speeds)} steps/s; {theirs.name}: {_list(theirs.speeds)}; others {_list(others)} %")
    return {
        "ratio": round(ours.speed / theirs.speed, 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
        "others_percent": round(sum(others) / len(others), 1),
    }


def calibrate(side: Side, seconds: float) -> None:
    """Warms `side` up, and finds how many of its steps take about `seconds`."""
    side.run(SETTLE_STEPS)
    num_steps = 2
    while (took := side.run(num_steps)) < seconds / 4:
        num_steps *= 2
    side.steps = max(2, round(num_steps * seconds / took))


def quiet_turn(side: Side, wait: bool) -> tuple[float, float]:
    """Steps per second of one turn, and the share of the cores, in percent, that other processes took in it."""
    tries = []
    for _ in range(1 + RETRIES * wait):
        if wait:
            wait_for_idle()
        side.run(SETTLE_STEPS)  # caches, and what the other side's workers still had in hand
        meter = Others()
        speed = side.steps / side.run(side.steps)
        tries.append((speed, meter.percent()))
        if tries[-1][1] <= QUIET_PERCENT:
            return tries[-1]
    return min(tries, key=lambda a_try: a_try[1])


class Others:
    """Processor time that is not this process's nor that of its descendants, since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.busy, self.own = _busy(), _own()

    def percent(self) -> float:
        """Of all cores."""
        capacity = (time.perf_counter() - self.began) * (psutil.cpu_count() or 1)
        return max(0.0, 100 * (_busy() - self.busy - (_own() - self.own)) / capacity)


def wait_for_idle(patience: float = 60.0) -> None:
    """Returns when other processes leave the cores alone for half a second, or after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        meter = Others()
        time.sleep(0.5)
        if meter.percent() <= QUIET_PERCENT:
            return


def parser(doc: str | None, *, turns: int = 7, seconds: float = 1.5) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--turns", type=int, default=turns, help="turns of each side")
    made.add_argument("--seconds", type=float, default=seconds, help="about how long a turn lasts")
    made.add_argument("--threads", type=int, default=psutil.cpu_count(), help="cores to compute with")
    made.add_argument("--no-wait", action="store_true", help="do not wait for an idle machine")
    return made


def conditions(options: argparse.Namespace, *packages: str) -> dict[str, object]:
    """What the figures depend on."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", *packages)}
    bf16 = (
        "amx" if torch.cpu._is_amx_tile_supported() else "avx512" if torch.cpu._is_avx512_bf16_supported() else "none"
    )
    return {
        "turns": options.turns,
        "seconds": options.seconds,
        "threads": options.threads,
        "bf16_unit": bf16,
        "versions": versions,
    }


def say(line: str) -> None:
    """A line that is not the result."""
    print(line, file=sys.stderr, flush=True)


def finish(benchmark: str, figures: dict[str, object]) -> None:
    """The last line of output."""
    print(json.dumps({"benchmark": benchmark} | figures), flush=True)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _own() -> float:
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total + float(this.cpu_times().children_user + this.cpu_times().children_system)


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
