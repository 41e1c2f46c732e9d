"""DDP training on Ray Train: the same trainer, on many workers.

Ray starts the workers and restarts them when one dies. Resuming is the trainer's own: a restarted
group finds the newest whole checkpoint in the run's storage, so nothing hangs on what Ray remembers.
"""

import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.train
import torch
from ray._private.grpc_utils import init_grpc_channel
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from genray import cpu, distributed
from genray.config import Config
from genray.data.mix import training_images
from genray.distributed import World
from genray.errors import ClusterError, DivergenceError, GenrayError, ResumeError, StorageError
from genray.paths import keep_private
from genray.preemption import Request
from genray.storage import RunFolder
from genray.trainer import Outcome, train

CONNECT_TIMEOUT_S = 5
POLL_INTERVAL_S = 0.5
ASK_RAY_EVERY_S = 3.0
LOOK_FOR_NODES_EVERY_S = 30.0
START_TIMEOUT_S = 20
SHARED = ".shared"
LOOPBACK = "127.0.0.1"
ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
# Ray would print every line of a worker a second time
QUIET = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
# raised by every rank at once, after a decision that all of them took: to start again would end the same way
FINAL = {"DivergenceError": DivergenceError, "ResumeError": ResumeError}


def connect(num_cpus: float, *, log_to_driver: bool = True) -> bool:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine; whether it was started here.

    Args:
        num_cpus: cores that the workers will ask for.
        log_to_driver: whether lines that workers print appear here.

    Raises:
        ClusterError: RAY_ADDRESS does not answer, or this machine has fewer than `num_cpus` cores, or Ray does not
            start on it.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    os.environ.update({"RAY_CHDIR_TO_TRIAL_DIR": "0"} | QUIET)
    if address:
        join(address, log_to_driver=log_to_driver)
        return False
    cores = os.cpu_count() or 1
    if num_cpus > cores:
        raise ClusterError(
            f"the workers ask for {num_cpus:g} cores, and this machine has {cores}; lower cluster.num_workers or "
            "cluster.cpus_per_worker, or set RAY_ADDRESS"
        )
    try:  # "local": not one that happens to run here
        with _same_signals():
            ray.init("local", num_cpus=cores, dashboard_host=LOOPBACK, log_to_driver=log_to_driver)
    except Exception as error:  # of any class: a node that is not up in 30 seconds is an Exception
        ray.shutdown()
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        raise ClusterError(
            f"Ray could not be started on this machine: {cause}; give the same command again where it was only busy, "
            "set RAY_TMPDIR to a folder with room, or use --cluster.num-workers 0"
        ) from error
    token = Path("~/.ray/auth_token").expanduser()
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)  # Ray has just made it, readable by everybody
    return True


@contextmanager
def _same_signals() -> Iterator[None]:
    """Has SIGTERM and SIGINT mean after the block what they meant before; Ray has them end the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def join(address: str, *, log_to_driver: bool = True) -> None:
    """Joins the cluster at `address`.

    Raises:
        ClusterError: nobody listens there, or not to us.
    """
    try:
        # Ray itself would try for five minutes, and then end the process
        if found := re.fullmatch(r"(?:ray://)?([^:/]+|\[.+\]):(\d+)", address):
            with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=CONNECT_TIMEOUT_S):
                pass
            _check_token(address, f"{found[1]}:{found[2]}")
        with _same_signals():
            ray.init(address, log_to_driver=log_to_driver)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        raise ClusterError(
            f"RAY_ADDRESS={address!r} does not answer: {cause}; start the cluster, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN if it asks for a token, or unset RAY_ADDRESS to use this machine"
        ) from error


def _check_token(address: str, endpoint: str) -> None:
    """Asks once, where Ray itself would ask on for half a minute and call it a lost connection.

    Raises:
        ClusterError: the cluster takes another token, or one where we have none.
    """
    with init_grpc_channel(endpoint) as channel:
        try:
            channel.unary_unary(ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ClusterError(refused(f"RAY_ADDRESS={address!r}")) from None


def refused(who: str) -> str:
    """What to do about a cluster that does not take our token."""
    own = "our token" if os.environ.get("RAY_AUTH_MODE") == "token" else "those without a token"
    return (
        f"{who} refuses {own}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or the file ~/.ray/auth_token) to the "
        "token that the cluster was started with"
    )


def disconnect() -> None:
    """Leaves the cluster, or stops the Ray of this machine; its last lines come before ours."""
    if ray.is_initialized():
        ray.shutdown()


def check_resources(config: Config) -> str | None:
    """A warning where the cluster, as it is now, has not what the run asks for; an autoscaler may bring it."""
    cluster, total = config.cluster, ray.cluster_resources()
    fewest = cluster.sizes[0]
    wanted = {"CPU": fewest * cluster.cpus_per_worker, "GPU": float(fewest * cluster.use_gpu)}
    short = [f"{n:g} {kind}, it has {total.get(kind, 0):g}" for kind, n in wanted.items() if n > total.get(kind, 0)]
    return f"the run asks for {' and '.join(short)}: waiting for the cluster to grow" if short else None


def fit(config: Config, storage: str) -> Outcome:
    """Trains `config` on the workers it asks for; the run's folder is in `storage`, which all nodes see.

    Raises:
        DivergenceError, ResumeError: as the trainer raised them.
        ClusterError: workers died more often than `cluster.max_failures`; says of what.
        KeyboardInterrupt: Ctrl-C.
    """
    cluster = config.cluster
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_INTERVAL_S))
    if len(cluster.sizes) > 1:  # Ray believes in a lost node for a while, and would wait for it as long as this
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    folder = RunFolder.open(storage, config.run.name)
    token = uuid.uuid4().hex
    folder.write(SHARED, token)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.use_gpu else {})
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config.to_dict(), "storage": storage, "token": token},
        torch_config=Meeting(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers if len(cluster.sizes) == 1 else (cluster.sizes[0], cluster.sizes[-1]),
            elastic_resize_monitor_interval_s=LOOK_FOR_NODES_EVERY_S,
            use_gpu=cluster.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=token,  # a name of its own: Ray would call a run of a known name finished, or resume it its own way
            storage_path=f"{storage}/{config.run.name}/.ray",
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    try:
        with _same_signals():
            result = trainer.fit()
    except SystemExit:  # what Ray makes of Ctrl-C, with exit code 0
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        folder.remove(".ray")
    returned: dict[str, Any] = result.return_value
    if returned.get("error") in FINAL:
        raise FINAL[returned["error"]](returned["message"])
    return Outcome(**returned)


class Meeting(TorchConfig):  # type: ignore[misc]
    """Ranks that meet as `distributed.join` has them."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray calls for each group of workers."""
        return _Meeting


class _Meeting(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        host, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_torch_distributed_env_vars)
        size, use_gpu = len(worker_group), bool(worker_group.get_resources_per_worker().get("GPU"))
        ray.get([worker_group.execute_single_async(n, _join, n, (host, port), size, use_gpu) for n in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Takes no group down: a rank that still trains would go on as a world of one. Its process ends next."""


def _join(rank: int, meeting: tuple[str, int], size: int, use_gpu: bool) -> None:
    distributed.join(*meeting, rank, size, use_gpu=use_gpu)


def worker_environment() -> dict[str, str]:
    """What workers need to know of the driver's environment."""
    names = ("GENRAY_DATA", "RAY_AUTH_MODE")  # no secrets, nor addresses that may hold one: Ray shows them all
    found = {name: os.environ[name] for name in names if name in os.environ}
    return (
        found
        | {
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "PYTHONUNBUFFERED": "1",
        }
        | QUIET
    )


@cpu.prepared()
def work(task: dict[str, Any]) -> dict[str, Any]:
    """What one worker does: joins the ranks that Ray has set up, and trains."""
    keep_private()
    config = Config.from_dict(task["config"])
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    folder = RunFolder.open(task["storage"], config.run.name)
    check_shared(folder, task["storage"], task["token"])
    images = training_images(config.data, config.mix)
    here = distributed.current(use_gpu=False)
    world = World(here.rank, here.world_size, get_device())
    try:
        outcome = train(config, images, folder, world, NodeWatch())
        distributed.leave()
        return asdict(outcome)
    except tuple(FINAL.values()) as error:
        return {"error": type(error).__name__, "message": str(error)}


class NodeWatch:
    """Asks for a checkpoint when Ray says that a node of the run will be taken away; Ray starts the run again then."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self) -> Request:
        # ranks ask Ray together, through one of its actors: too dear for every log point
        if not distributed.from_rank_zero(time.monotonic() - self.last >= ASK_RAY_EVERY_S):
            return "go on"
        self.last = time.monotonic()
        return "go on" if ray.train.get_preemption_info() is None else "save"


def check_shared(folder: RunFolder, storage: str, token: str) -> None:
    """Makes sure that this node sees the folder that the driver wrote `token` to.

    Raises:
        StorageError: it sees another one.
    """
    path = folder.pull(SHARED)
    if not path.is_file() or path.read_text() != token:
        raise StorageError(
            f"run.storage={storage!r} is not the same folder on node {ray.util.get_node_ip_address()} as on the "
            "driver's; give a path that all nodes share, or an s3:// or gs:// URI"
        )


def _cause(error: Exception) -> GenrayError:
    """The error behind a failed run, as short as it can be said."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        inner = getattr(failure, "cause", failure) or failure
        if isinstance(inner, GenrayError):
            return inner
        lines = [line.strip() for line in str(inner).splitlines() if line.strip()] or [repr(inner)]
        return ClusterError(f"worker of rank {rank} failed: {lines[-1]}")
    return ClusterError(f"Ray could not run the workers: {str(error).strip().splitlines()[-1]}")
