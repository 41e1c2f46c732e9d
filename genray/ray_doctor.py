"""Looks at everything a run needs, and says what to do about what is missing."""

import os
import platform
import uuid
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import ray
import requests
import torch
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray._raylet import PlacementGroupID
from ray.util import state
from ray.util.placement_group import PlacementGroup, remove_placement_group

from genray import __version__, mlflow_store, mlflow_tracking, ray_train
from genray.config import Data
from genray.data import DATASETS
from genray.data.images import load_images
from genray.errors import ClusterError, GenrayError
from genray.paths import base_directory

LISTED = 10_000
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "safetensors")


def examine(root: str | None, uri: str | None, *, fix: bool = False) -> int:
    """Prints a line for each thing; 0 if a run can start, 1 if it cannot.

    Args:
        root: folder of the data sets.
        uri: MLflow server or database.
        fix: free what ended jobs still hold.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("ray", _ray),
        ("jobs", _jobs),
        ("leaks", lambda: _leaks(fix)),
        ("gpus", _gpus),
        ("mlflow", lambda: _mlflow(uri)),
        ("data", lambda: _data(root or os.environ.get("GENRAY_DATA"))),
    ]
    failed = 0
    for name, check in checks:
        try:
            print(f"{name:9} OK    {check()}", flush=True)  # noqa: T201
        except (GenrayError, RuntimeError, OSError, PackageNotFoundError) as error:
            failed += 1
            print(f"{name:9} FAIL  {error}", flush=True)  # noqa: T201
    return 1 if failed else 0


def _versions() -> str:
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"genray {__version__}, python {platform.python_version()}, {found}"


def _ray() -> str:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "RAY_ADDRESS is not set: a run starts Ray on this machine"
    try:
        ray_train.join(address)
        resources = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
    finally:
        ray_train.disconnect()
    token = "with a token" if os.environ.get("RAY_AUTH_MODE") == "token" else "WITHOUT authentication"
    return f"{address}: {nodes} nodes, {resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {token}"


def _jobs() -> str:
    """Whether the server that `ray job submit` talks to takes jobs from us."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        return "RAY_API_SERVER_ADDRESS is not set: nothing to look at"
    url = f"{address.rstrip('/')}/api/jobs/"
    try:
        answer = requests.get(url, headers=get_auth_headers_if_auth_enabled({}), timeout=ray_train.CONNECT_TIMEOUT_S)
    except requests.RequestException:
        raise ClusterError(
            f"RAY_API_SERVER_ADDRESS={address!r} does not answer; start the cluster, or the tunnel to it"
        ) from None
    if answer.status_code in (401, 403):
        raise ClusterError(ray_train.refused(f"RAY_API_SERVER_ADDRESS={address!r}"))
    if answer.status_code != 200:
        raise ClusterError(f"RAY_API_SERVER_ADDRESS={address!r} answers {answer.status_code}, not as Ray's job server")
    return f"{address}: takes jobs"


def _leaks(fix: bool) -> str:
    """Placement groups whose job has ended: Ray keeps their cores and GPUs from everybody."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return "RAY_ADDRESS is not set: nothing to look at"
    try:
        ray_train.join(address)
        where = ray.get_runtime_context().gcs_address
        running = {job.job_id for job in state.list_jobs(where, limit=LISTED) if job.status == "RUNNING"}
        groups = state.list_placement_groups(where, detail=True, limit=LISTED)
        leaked = [g for g in groups if g.state != "REMOVED" and g.creator_job_id not in running]
        if leaked and not fix:
            raise ClusterError(
                f"{len(leaked)} placement groups of ended jobs hold resources "
                f"({', '.join(g.placement_group_id[:12] for g in leaked)}); genray doctor --fix frees them"
            )
        for group in leaked:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group.placement_group_id))))
    finally:
        ray_train.disconnect()
    return (
        f"{len(leaked)} placement groups of ended jobs were freed" if leaked else "no placement group of an ended job"
    )


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none on this machine: runs use the CPU; set cluster.use_gpu for workers that have them"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def _mlflow(uri: str | None) -> str:
    resolved = mlflow_tracking.resolve_uri(uri, base_directory())
    client = mlflow_store.connect(resolved)
    with mlflow_store.reporting(resolved):
        experiment = mlflow_tracking.experiment_id(client, resolved, "genray/doctor")
        run = client.create_run(experiment, run_name=f"doctor-{uuid.uuid4().hex[:8]}")
        client.log_metric(run.info.run_id, "doctor/value", 1.0)
        client.set_terminated(run.info.run_id)
        client.delete_run(run.info.run_id)
    return f"{mlflow_store.redact(resolved)}: reachable and writable"


def _data(root: str | None) -> str:
    found, missing = [], []
    for name, source in DATASETS.items():
        if source.shape is None:
            continue
        try:
            load_images(Data(name=name, root=root), "test")
            found.append(name)
        except GenrayError:
            missing.append(name)
    where = f"under {root}" if root else "without GENRAY_DATA"
    return f"{where}: {', '.join(found)}" + (f" (not there: {', '.join(missing)})" if missing else "")
