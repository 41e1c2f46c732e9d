"""What the README's first command does, and that nothing of it stays when it is interrupted."""

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
DEMO = [sys.executable, str(ROOT / "jobs" / "demo.py")]
pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]


SCRATCH = "/tmp/genray-demo-"


@pytest.fixture
def remains():
    """What this demo has left by now: its processes, and its folders in /tmp."""
    others = set(Path("/tmp").glob("genray-demo-*"))

    def look() -> list[str]:
        own = [str(path) for path in Path("/tmp").glob("genray-demo-*") if path not in others]
        lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        theirs = tuple(str(path) for path in others) or ("\0",)
        return own + [line[:200] for line in lines if SCRATCH in line and not any(t in line for t in theirs)]

    return look


@pytest.mark.timeout(600)
def test_demo_ends_with_a_grid_drawn_from_the_champion(remains):
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    done = subprocess.run(DEMO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    grid = Path(re.search(r"^samples +(\S+)$", done.stdout, flags=re.MULTILINE)[1])
    pixels = Image.open(grid)
    assert pixels.size[0] > 300 and len(set(pixels.convert("L").tobytes())) > 50
    uri = f"sqlite:///{grid.parent / 'mlflow.db'}"
    assert mlflow_registry.resolve(uri, "digits-generator@champion").number == 1
    assert mlflow_registry.resolve(uri, "digits-classifier@champion").number == 1
    assert remains() == []


@pytest.mark.timeout(300)
def test_interrupted_demo_leaves_nothing_running_behind(remains):
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while b"Tailing logs" not in (line := demo.stdout.readline()):
        assert line, "the demo ended before its first job"
    assert remains()
    time.sleep(3)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert remains() == []
