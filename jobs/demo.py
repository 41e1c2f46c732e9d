"""One job, end to end, on this machine: make demo.

Starts a Ray of its own on loopback, submits the training jobs to it as one would to a cluster, samples
the champion in another process, and stops what it started, also when it is interrupted. Options are handed on to the
training of the generator, e.g. --train.num-steps 300.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 180
SCRATCH = Path("/tmp/genray-demo-")  # noqa: S108


def main() -> int:
    """Runs the demo; 0 when the champion has been sampled."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    out = ROOT / "runs" / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True)
    tracking = f"sqlite:///{out / 'mlflow.db'}"
    shared = ["--run.storage", str(out), "--tracking.uri", tracking]
    began = time.monotonic()
    try:
        with local_ray() as environment:
            submit(environment, ["digits-classifier", "--cluster.num-workers", "0", *shared])
            submit(environment, ["digits-dcgan", "--cluster.num-workers", "2", *shared, *sys.argv[1:]])
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {out}", file=sys.stderr)
        return 130
    except (subprocess.CalledProcessError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    grid = out / "grid.png"
    sample = [str(BIN / "genray"), "sample", "digits-generator@champion", "--uri", tracking, "--out", str(grid)]
    subprocess.run([*sample, "--num", "80"], check=True, stdout=subprocess.DEVNULL)
    run = json.loads((out / "digits-dcgan" / "mlflow.json").read_text())["run_id"]
    print(f"\ndone in {time.monotonic() - began:.0f} s")
    print(f"MLflow run        {run}   (mlflow ui --backend-store-uri {tracking})")
    print("registry version  digits-generator@champion, version 1")
    print(f"samples           {grid}")
    return 0


@contextmanager
def local_ray(*, joinable: bool = False) -> Iterator[dict[str, str]]:
    """A Ray head with its job server, on loopback and behind a token; the environment to submit jobs in.

    Args:
        joinable: other nodes may join: all but the job server listens for them.
    """
    port, dashboard = free_port(), free_port()
    # not in $TMPDIR: Ray's sockets live below, and the path of a socket has 107 characters at most
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH.name, dir=SCRATCH.parent))
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # 0: Ray listens on 127.0.0.1, which it otherwise takes for the address by which others reach this machine
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(joinable)),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    # another Ray of this machine may hold the port that agents, who take jobs in, have by default
    command += ["--dashboard-agent-listen-port", str(free_port())]
    command += ["--num-cpus", str(max(2, os.cpu_count() or 1)), "--temp-dir", str(scratch)]
    with (scratch / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_jobs(environment, head, scratch / "start.log")
        yield environment
    finally:
        _stop(head, scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def submit(environment: dict[str, str], arguments: list[str]) -> None:
    """Submits `jobs/train.py` with these arguments and follows its log to the end.

    Raises:
        subprocess.CalledProcessError: the job failed.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    variables = json.dumps({"env_vars": {"GENRAY_GIT_COMMIT": commit.stdout.strip()}})
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json", variables]
    command += ["--", "python", "jobs/train.py"]
    print(f"\n$ ray job submit --working-dir . -- python jobs/train.py {' '.join(arguments)}", flush=True)
    subprocess.run([*command, *arguments], env=environment, check=True)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_jobs(environment: dict[str, str], head: "subprocess.Popen[bytes]", log: Path) -> None:
    request = urllib.request.Request(  # noqa: S310
        f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/",
        headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=2):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"Ray did not start within {START_TIMEOUT_S} s: {log.read_text()[-2000:]}")


def _stop(head: "subprocess.Popen[bytes]", scratch: Path) -> None:
    """Ends the head and every process that it started, here and now."""
    head.terminate()
    try:
        head.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(scratch).encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended by itself


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
