"""What can be done to a run, its files and its services: for real, and nothing beside them."""

import errno
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from mlflow_server import Process, free_port

from genray.checkpoint import CHECKPOINTS, STATE, TENSORS, step_of
from genray.manifest import MANIFEST
from genray.storage import RunFolder


def ray_processes(title: str) -> list[psutil.Process]:
    """Processes that Rays of this process have started, by a part of their title."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.is_running() and title in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_all(processes: list[psutil.Process]) -> None:
    assert processes, "there is nothing to kill"
    for process in processes:
        process.kill()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for a process, and SIGCONT after the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[Path]:
    """A file system of `kib` KiB at `place`.

    Raises:
        PermissionError: this user may not mount one.
    """
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave_kib: int) -> Path:
    """A file that takes all of a disk but `leave_kib` KiB."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        while True:
            state = os.statvfs(disk)
            try:
                os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - leave_kib * 1024)
            except OSError as error:  # somebody else has just taken some of it
                if error.errno != errno.ENOSPC:
                    raise
                continue
            return ballast


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made, renamed or deleted in `folder`, not even by root."""
    if os.geteuid():
        folder.chmod(0o500)
    else:
        subprocess.run(["chattr", "+i", str(folder)], check=True)
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)


def checkpoints(folder: RunFolder) -> list[int]:
    """Steps of the checkpoints of a run."""
    return [step_of(name) for name in folder.names(CHECKPOINTS)]


def newest_checkpoint(run: Path) -> Path:
    return max(p for p in (run / CHECKPOINTS).iterdir() if not p.name.startswith("."))


def truncate(checkpoint: Path) -> None:
    path = checkpoint / TENSORS
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(checkpoint: Path) -> None:
    path = checkpoint / TENSORS
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 0x10
    path.write_bytes(data)


def delete_half(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink(missing_ok=True)  # it may have been hit before
    (checkpoint / STATE).unlink(missing_ok=True)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "flipped": flip_a_byte, "halved": delete_half}


class ObjectStore(Process):
    """An S3-compatible server, which can be away (503) and slow."""

    def __init__(self, folder: Path, kib_a_second: float = 0) -> None:
        port = free_port()
        self.down = folder / "down"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        command = [sys.executable, "-m", "faults.object_store", str(port), str(self.down), str(kib_a_second)]
        here = {"PYTHONPATH": str(Path(__file__).parents[1])}
        super().__init__(command, f"http://127.0.0.1:{port}/moto-api/data.json", folder / "s3.log", here)

    def make_bucket(self, name: str) -> None:
        made = urllib.request.Request(f"{self.environment['AWS_ENDPOINT_URL']}/{name}", method="PUT")
        urllib.request.urlopen(made, timeout=10).close()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.down.write_text("0")
        try:
            yield
        finally:
            assert int(self.down.read_text()) > 0, "nobody asked the server while it was away"
            self.down.unlink()


def wait_for_half_a_folder(place: Path, timeout: float = 60) -> None:
    """Returns the moment that a folder is being written in `place`, which is looked at without a pause."""
    deadline = time.monotonic() + timeout
    while not any(place.glob(".*.tmp")):
        assert time.monotonic() < deadline, f"nothing was written to {place}"


def sleep_until(condition: Callable[[], bool], timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
