"""What the README's first command does, in fewer steps, and that nothing of it stays when it is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from genray import mlflow_registry

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, str(ROOT / "jobs" / "demo.py"), "--train.num-steps", "300"]
pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]


SCRATCH = "/tmp/genray-demo-"


def folders():
    return set(Path("/tmp").glob("genray-demo-*"))


def remains(others):
    """What a demo has left by now, its processes and its folders in /tmp, where `others` were there before it."""
    own = [str(path) for path in folders() - others]
    lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    theirs = tuple(str(path) for path in others) or ("\0",)
    return own + [line[:200] for line in lines if SCRATCH in line and not any(t in line for t in theirs)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Exit code and output of the demo, the addresses that its processes have listened on, and what it has left."""
    others = folders()
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    said, heard = tmp_path_factory.mktemp("demo") / "said", set()
    with said.open("w") as file:
        demo = psutil.Popen(DEMO, env=environment, stdout=file, stderr=file)
        try:
            while demo.poll() is None:
                heard |= {
                    address for process in (demo, *demo.children(recursive=True)) for address in listening(process)
                }
                time.sleep(1)
        finally:
            if demo.poll() is None:  # this test has timed out: the next ones shall not run beside it
                demo.send_signal(signal.SIGINT)
                demo.wait(60)
    return demo.returncode, said.read_text(), heard, remains(others)


def listening(process):
    try:
        return {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


@pytest.mark.timeout(1500)
def test_demo_ends_with_a_grid_drawn_from_the_champion(finished):
    code, said, _, left = finished
    assert code == 0, said[-6000:]
    grid = Path(re.search(r"^samples +(\S+)$", said, flags=re.MULTILINE)[1])
    pixels = Image.open(grid)
    assert pixels.size[0] > 300 and len(set(pixels.convert("L").tobytes())) > 50
    uri = f"sqlite:///{grid.parent / 'mlflow.db'}"
    assert mlflow_registry.resolve(uri, "digits-generator@champion").number == 1
    assert mlflow_registry.resolve(uri, "digits-classifier@champion").number == 1
    assert left == []


@pytest.mark.timeout(1500)
def test_demo_listens_to_nobody_beyond_this_machine(finished):
    assert finished[2] <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and "127.0.0.1" in finished[2]


@pytest.mark.timeout(900)
def test_interrupted_demo_leaves_nothing_running_behind():
    others = folders()
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = []
    while not said or b"Tailing logs" not in said[-1]:
        said.append(demo.stdout.readline())
        assert said[-1], b"".join(said).decode()
    assert remains(others)
    time.sleep(3)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert remains(others) == []
