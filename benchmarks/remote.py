"""Sides that live in processes of their own, and take their turns when they are told to."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

ADDRESS = "GENRAY_BENCHMARK_ADDRESS"


def serve(name: str, sides: dict[str, Callable[[int], float]], address: str | None = None) -> None:
    """Runs steps as a `Desk` asks for them, until it closes; called in the other process.

    Args:
        name: of this process.
        sides: by name, what n steps are: gives the seconds that they took.
        address: of the desk. None: from the environment.
    """
    with Client(address or os.environ[ADDRESS], "AF_UNIX") as desk:
        desk.send(name)
        while True:
            try:
                side, num_steps = desk.recv()
            except EOFError:
                return
            desk.send(sides[side](num_steps))


class Desk:
    """Where processes that `serve` report, and whence they are told to run."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.address = str(Path(self.folder.name) / "desk")
        self.listener = Listener(self.address, "AF_UNIX")
        self.workers: dict[str, Connection] = {}

    def wait_for(self, *names: str) -> None:
        """Returns when processes of these names have reported."""
        while not set(names) <= self.workers.keys():
            worker = self.listener.accept()
            self.workers[worker.recv()] = worker

    def run(self, names: tuple[str, ...], side: str) -> Callable[[int], float]:
        """n steps of `side` in these processes at once; the seconds are their mean."""

        def steps(num_steps: int) -> float:
            for name in names:
                self.workers[name].send((side, num_steps))
            took: list[float] = [self.workers[name].recv() for name in names]
            return sum(took) / len(took)

        return steps

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.listener.close()
        self.folder.cleanup()


@contextmanager
def processes(names: Sequence[str], *arguments: str) -> Iterator[tuple[Desk, dict[str, subprocess.Popen[bytes]]]]:
    """A desk, and this script started once for each of `names` with `--process NAME` and `arguments`."""
    desk = Desk()
    environment = os.environ | {ADDRESS: desk.address}
    command = [sys.executable, sys.argv[0], *arguments, "--process"]
    started = {name: subprocess.Popen([*command, name], env=environment) for name in names}
    try:
        yield desk, started
    finally:
        desk.close()
        for process in started.values():
            process.wait()
