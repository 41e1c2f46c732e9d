"""Real MLflow stores: a `mlflow server` on a free loopback port, which tests may kill and start again, and SQLite.

With GENRAY_MLFLOW=services both are servers with sign-in, over PostgreSQL and S3, as `make services` starts them.
"""

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A command in a process group of its own that answers HTTP when it is up."""

    def __init__(self, command: list[str], health: str, log: Path, environment: dict[str, str]) -> None:
        self._command, self._health, self._log = command, health, log
        self._environment = {**os.environ, **QUIET, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                cwd=self._log.parent,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self._health, timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"{self._command} did not come up:\n{self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL for the whole group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


SERVICES = os.environ.get("GENRAY_MLFLOW") == "services"


@functools.cache
def services():
    """PostgreSQL and S3 for the length of the test session, and what signs in to their MLflow servers."""
    from services import Services

    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    made = stack.enter_context(Services())
    os.environ.update(made.mlflow.environment)
    del os.environ["MLFLOW_TRACKING_URI"]
    return made


class ServiceServer:
    """One more server of the services, with databases and a bucket of its own."""

    def __init__(self) -> None:
        self._server = services().server(f"s{uuid.uuid4().hex}")
        self.uri = self._server.uri

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.stop(signal.SIGKILL)


@contextlib.contextmanager
def new_store(folder: Path) -> Iterator[str]:
    """The address of an empty MLflow store."""
    if not SERVICES:
        yield f"sqlite:///{folder / 'mlflow.db'}"
        return
    server = ServiceServer()
    server.start()
    try:
        yield server.uri
    finally:
        server.kill()


class Server(Process):
    """`mlflow server` over SQLite in `folder`."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        super().__init__(command, f"{self.uri}/health", folder / "server.log", {})


def new_server(folder: Path) -> Server | ServiceServer:
    """A server, not yet started, with a store of its own."""
    return ServiceServer() if SERVICES else Server(folder)
