"""What a run is asked while it goes on: to be somewhere safe soon, or to end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Request = Literal["go on", "save", "stop"]
"""save: a checkpoint now, since a node may be taken away; stop: a checkpoint now, and no further step."""
Asked = Callable[[], Request]
"""Answers the same on every rank; all of them ask in the same steps."""


class Stopped(KeyboardInterrupt):
    """SIGTERM: the job is asked to end."""


def go_on() -> Request:
    """Nobody asks for anything."""
    return "go on"


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises `Stopped`, so that the run is closed properly."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    with _on_sigterm(stop):
        yield


@contextmanager
def sigterm_asks() -> Iterator[Asked]:
    """Within the block the first SIGTERM asks for a checkpoint and the end; a second one raises `Stopped` at once."""
    came = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            raise Stopped
        came.set()

    with _on_sigterm(ask):
        yield lambda: "stop" if came.is_set() else "go on"


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles SIGTERM within the block, where this thread can say how."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
