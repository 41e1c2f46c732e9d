"""Training on a real Ray of two raylets: what a user of a cluster relies on."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from conftest import tiny_config
from ranks import run_ranks
from ray.cluster_utils import Cluster as Raylets

from genray import checkpoint, ray_train
from genray.config import Cluster, Config, Data, Health, Train
from genray.data.images import load_images
from genray.distributed import current
from genray.errors import ClusterError, DivergenceError, StorageError
from genray.storage import RunFolder
from genray.tracking import read_journal
from genray.trainer import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """Two raylets of one core each, joined through RAY_ADDRESS as on a cluster."""
    before = {"RAY_ADDRESS": os.environ.get("RAY_ADDRESS")}
    raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_host": "127.0.0.1"})
    raylets.add_node(num_cpus=1)
    raylets.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = raylets.address
    ray_train.connect(2)
    yield raylets
    ray.shutdown()
    raylets.shutdown()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def two_worker_config(name: str, **train_fields: int) -> Config:
    fields = {"num_steps": 300, "global_batch_size": 16, "checkpoint_every": 50, "log_every": 10, "sample_every": 0}
    base = tiny_config(train=Train(**(fields | train_fields)), cluster=Cluster(num_workers=2))
    return replace(base, run=replace(base.run, name=name))


def _train_undisturbed(config: Config, storage: str) -> None:
    train(config, load_images(config.data, "train"), RunFolder.open(storage, config.run.name), current(False))


def _kill_a_worker_after(step: int, folder: RunFolder, killed: list[int]) -> None:
    journal = folder.local / "journal" / "train.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if journal.is_file() and any(entry["step"] >= step for entry in read_journal(journal)[0]):
            ours = psutil.Process().children(recursive=True)  # not those of another Ray on this machine
            workers = [p for p in ours if "RayTrainWorker" in " ".join(p.cmdline())]
            if workers:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)
                return
        time.sleep(0.01)


@pytest.mark.timeout(600)
def test_killed_worker_is_replaced_and_the_run_ends_bit_identical_without_anything_of_ray(two_nodes, tmp_path):
    config = two_worker_config("killed", num_steps=400)
    folder = RunFolder.open(str(tmp_path), "killed")
    killed: list[int] = []
    killer = threading.Thread(target=_kill_a_worker_after, args=(70, folder, killed))
    killer.start()
    outcome = ray_train.fit(config, str(tmp_path))
    killer.join()
    assert killed, "the run ended before a worker could be killed"
    assert outcome.resumed_from >= 50
    alone = replace(config, run=replace(config.run, name="alone"))
    run_ranks(_train_undisturbed, 2, alone, str(tmp_path))
    left = checkpoint.load(folder, 400).tensors
    right = checkpoint.load(RunFolder.open(str(tmp_path), "alone"), 400).tensors
    assert [name for name in right if not torch.equal(left[name], right[name])] == []
    steps = [e["step"] for e in read_journal(folder.local / "journal" / "train.jsonl")[0] if "metrics" in e]
    assert steps == list(range(10, 401, 10))
    assert sorted(p.name for p in folder.local.iterdir()) == [".shared", "checkpoints", "journal", "snapshots"]


def _drain_a_node_after(step: int, folder: RunFolder, address: str, drained: list[int]) -> None:
    """Tells Ray that the node of rank 1 will be taken away in ten seconds."""
    journal = folder.local / "journal" / "train.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if journal.is_file() and any(entry["step"] >= step for entry in read_journal(journal)[0]):
            head = ray.get_runtime_context().get_node_id()
            node = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != head)
            reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            command = [RAY, "drain-node", "--address", address, "--node-id", node, *reason]
            drained.append(subprocess.run([*command, "--deadline-remaining-seconds", "10"], check=False).returncode)
            return
        time.sleep(0.05)


@pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="must outlast a node's notice; set GENRAY_LONG=1")
@pytest.mark.timeout(600)
def test_a_node_that_is_taken_away_costs_no_more_than_a_log_interval(two_nodes, tmp_path):
    config = two_worker_config("spot", num_steps=2500, checkpoint_every=2500)
    folder = RunFolder.open(str(tmp_path), "spot")
    two_nodes.add_node(num_cpus=1)
    drained: list[int] = []
    drain = threading.Thread(target=_drain_a_node_after, args=(20, folder, two_nodes.address, drained))
    drain.start()
    outcome = ray_train.fit(config, str(tmp_path))
    drain.join()
    assert drained == [0]
    assert outcome.step == 2500 and 20 <= outcome.resumed_from < 2500
    steps = [e["step"] for e in read_journal(folder.local / "journal" / "train.jsonl")[0] if "metrics" in e]
    assert steps == list(range(10, 2501, 10))


@pytest.mark.timeout(300)
def test_diverged_run_is_not_restarted_and_says_why(two_nodes, tmp_path):
    base = two_worker_config("diverged", num_steps=200, max_skipped=5)
    config = replace(base, optim=replace(base.optim, lr=1e30), objective=replace(base.objective, gamma=0.0))
    with pytest.raises(DivergenceError, match=r"phase '.*' diverged at step .* first on rank"):
        ray_train.fit(config, str(tmp_path))


@pytest.mark.timeout(300)
def test_run_stopped_by_a_health_rule_ends_on_all_workers_and_says_why(two_nodes, tmp_path):
    base = two_worker_config("sick", num_steps=200, max_skipped=5)
    config = replace(
        base,
        optim=replace(base.optim, lr=1e30),
        objective=replace(base.objective, gamma=0.0),
        health=Health(skipped_rule="stop"),
    )
    outcome = ray_train.fit(config, str(tmp_path))
    assert outcome.stopped is not None and outcome.stopped.startswith("health.skipped_rule at step ")
    names = RunFolder.open(str(tmp_path), "sick").names("snapshots")
    assert names[-1] == checkpoint.step_name(outcome.step)


@pytest.mark.timeout(300)
def test_error_of_a_worker_arrives_as_it_was_raised(two_nodes, tmp_path):
    base = two_worker_config("dataless", num_steps=20)
    data = Data(name="mnist", root=str(tmp_path / "nowhere"), image_size=(28, 28))
    config = replace(base, data=data, cluster=replace(base.cluster, max_failures=0))
    with pytest.raises(Exception, match="nowhere") as caught:
        ray_train.fit(config, str(tmp_path))
    assert type(caught.value).__module__ == "genray.errors"


def test_storage_that_another_node_does_not_share_is_refused(tmp_path):
    folder = RunFolder.open(str(tmp_path), "a")
    with pytest.raises(StorageError, match="is not the same folder on node"):
        ray_train.check_shared(folder, str(tmp_path), "token")


def test_more_workers_than_this_machine_has_cores_are_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="the workers ask for 4096 cores, and this machine has"):
        ray_train.connect(4096)
