"""Where faults are injected: a folder, and the services that runs of it share, begun when they are asked for."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from faults.inject import ObjectStore
from faults.job import Job
from faults.judge import Verdict, judge, twin
from faults.network import HEAD, RAY, Networked
from faults.proxy import Proxy
from mlflow_server import Server
from ray.cluster_utils import Cluster as Raylets


class Lab:
    """A place for runs, their twins, a Ray of two nodes and an MLflow server."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._services = ExitStack()
        self._server: Server | None = None
        self._raylets: Raylets | None = None

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self._services.close()

    @property
    def server(self) -> Server:
        """MLflow's own, over SQLite."""
        if self._server is None:
            folder = self.place / "mlflow"
            folder.mkdir(parents=True)
            self._server = Server(folder)
            self._services.callback(self._server.kill)
            self._server.start()
        return self._server

    @property
    def raylets(self) -> Raylets:
        """A head and one node, of one core each."""
        if self._raylets is None:
            head = {"num_cpus": 1, "dashboard_host": "127.0.0.1"}
            self._raylets = Raylets(initialize_head=True, head_node_args=head)
            self._services.callback(self._raylets.shutdown)
            self._node = self._raylets.add_node(num_cpus=1)
            self._raylets.wait_for_nodes()
        return self._raylets

    def announce_loss(self, seconds: int) -> None:
        """Tells Ray that the second node will be taken away in `seconds`."""
        command = [RAY, "drain-node", "--address", self.raylets.address, "--node-id", self._node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "its price has risen"]
        subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True)

    def replace_node(self) -> None:
        """SIGKILL for the second raylet; a new node takes its place."""
        self.raylets.remove_node(self._node, allow_graceful=False)
        self._node = self.raylets.add_node(num_cpus=1)

    def folder(self) -> Path:
        made = self.place / f"run-{uuid.uuid4().hex[:8]}"
        made.mkdir(parents=True)
        return made

    @contextmanager
    def job(self, storage: Path | str | None = None, ranks: int = 1, **more: Any) -> Iterator[Job]:
        """A training command, begun; whatever it leaves behind is killed."""
        job = Job(str(storage or self.folder()), ranks, **more)
        try:
            yield job.start()
        finally:
            job.end()

    @contextmanager
    def tracked(self, **more: Any) -> Iterator[Job]:
        """One process with the whole job around it, and MLflow."""
        with self.job(uri=self.server.uri, **more) as job:
            yield job

    @contextmanager
    def behind_a_proxy(self, **more: Any) -> Iterator[tuple[Proxy, Job]]:
        """As `tracked`, with a proxy between the job and MLflow."""
        with Proxy(self.server.uri) as proxy, self.job(uri=proxy.uri, **more) as job:
            yield proxy, job

    @contextmanager
    def on_ray(self, **more: Any) -> Iterator[Job]:
        """Two workers on the two nodes, with MLflow."""
        with self.tracked(ranks=2, address=self.raylets.address, **more) as job:
            yield job

    @contextmanager
    def networked(self, num_nodes: int, *, remembers: bool = False, **more: Any) -> Iterator[tuple[Networked, Job]]:
        """Up to two workers, on nodes with networks of their own, with MLflow.

        The command is given beside the head; where that remembers, and need not live for it, on the first node.
        """
        uri = self.server.uri  # not while nodes start
        with ExitStack() as stack:
            nodes = Networked(num_nodes, remembers=remembers)
            stack.callback(nodes.close)
            if remembers:
                uri = stack.enter_context(Proxy(uri, HEAD)).uri
                more["on"] = nodes.on(1)
            yield nodes, stack.enter_context(self.job(uri=uri, ranks=2, address=nodes.address, **more))

    def verdict(self, job: Job, *, poison: str | None = None, but: int | None = None, allowed: float = 0.0) -> Verdict:
        """What became of a run; it is waited for, and its command given again while it fails."""
        job.finish()
        return judge(job, twin(self.place / "twins", job.ranks, poison, job.norm), job.uri, but=but, allowed=allowed)

    @contextmanager
    def object_store(self, kib_a_second: float = 0) -> Iterator[tuple[ObjectStore, str]]:
        """An S3-compatible server and a storage in it, which this process reaches too."""
        folder = self.folder()
        store = ObjectStore(folder, kib_a_second)
        before = dict(os.environ)
        store.start()
        try:
            os.environ.update(store.environment | {"HOME": str(folder)})
            store.make_bucket("genray")
            yield store, "s3://genray/runs"
        finally:
            os.environ.clear()
            os.environ.update(before)
            store.kill()
