"""A Ray whose nodes have a network namespace and an address each, so that a link can be cut or slowed."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from faults.inject import sleep_until
from mlflow_server import free_port

SUBNET = "10.213.77"
BRIDGE = "genray-br"
RAY = str(Path(sys.executable).with_name("ray"))
HEAD = f"{SUBNET}.1"
INSIDE = "eth0"
NO_SERVICES = {"RAY_AUTH_MODE": "disabled", "RES_OPTIONS": "timeout:1 attempts:1"}
# inside a namespace the host's name is no address: gloo is told which interface to use
AT_NODE = NO_SERVICES | {"GLOO_SOCKET_IFNAME": INSIDE}
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

# Ray gives a node up that it has not heard of for a quarter of a minute, and the node then ends itself
SUPERVISED = ["sh", "-c", 'while :; do "$@"; sleep 1; done', "supervisor"]


def ip(*words: str) -> None:
    """`ip WORDS`.

    Raises:
        PermissionError: this user may not change the network.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Networked:
    """A head without cores in this namespace, and nodes of one core, each in one of its own, behind a bridge.

    Args:
        num_nodes: besides the head.
        remembers: the head keeps what it knows in Redis; and a command that is given `on` a node has no other near it.

    Raises:
        PermissionError: this user may not make namespaces.
        FileNotFoundError: there is no `redis-server`.
    """

    def __init__(self, num_nodes: int, *, remembers: bool = False) -> None:
        self._undo, self.apart = ExitStack(), remembers
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            self._undo.callback(ip, "link", "delete", BRIDGE)
            ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            redis = self._redis() if remembers else {}
            port = free_port()
            self.address = f"{HEAD}:{port}"
            options = [f"--node-ip-address={HEAD}", f"--port={port}", "--num-cpus=0", "--include-dashboard=False"]
            options.append(f"--dashboard-port={free_port()}")  # another Ray of this machine may have the usual one
            self.head = self._ray("--head", *options, **redis)
            assert sleep_until(lambda: _answers(HEAD, port), 120), "Ray's head did not start"
            for number in range(1, num_nodes + 1):
                self.add(number)
        except BaseException:
            self.close()
            raise

    def add(self, number: int) -> None:
        """Node `number`, from 1 on, begins to join."""
        name, link = self.namespace(number), self.link(number)
        ip("netns", "add", name)
        self._undo.callback(ip, "netns", "delete", name)
        ip("link", "add", link, "type", "veth", "peer", "name", INSIDE, "netns", name)
        self._undo.callback(ip, "link", "delete", link)
        ip("link", "set", link, "master", BRIDGE, "up")
        ip("-n", name, "addr", "add", f"{SUBNET}.{number + 1}/24", "dev", INSIDE)
        ip("-n", name, "link", "set", INSIDE, "up")
        ip("-n", name, "link", "set", "lo", "up")
        options = [f"--address={self.address}", f"--node-ip-address={SUBNET}.{number + 1}", "--num-cpus=1"]
        self.nodes[number] = self._ray(*options, namespace=name)

    def kill_head(self) -> None:
        """SIGKILL for all processes of the head; it is started again, and remembers what Redis has, if it has one."""
        for process in _family(self.head.pid)[1:]:
            process.kill()

    def namespace(self, number: int) -> str:
        """The name of the network of node `number`."""
        return f"genray{number}"

    def on(self, number: int) -> list[str]:
        """What stands before a command that is given on node `number`."""
        supervisor = psutil.Process(self.nodes[number].pid).children()[0]
        return ["nsenter", "--target", str(supervisor.pid), "--net", "--pid", "--mount"]

    def link(self, number: int) -> str:
        """The interface by which node `number` is reached."""
        return f"genray{number}-up"

    def cut(self, number: int) -> None:
        """Nothing goes to node `number` or comes from it, and nobody is told."""
        ip("link", "set", self.link(number), "down")

    def lose(self, number: int) -> None:
        """Node `number` is silent from now on, and then nothing of it is left."""
        self.cut(number)
        for process in _family(self.nodes[number].pid):
            process.kill()

    @contextmanager
    def without(self, number: int) -> Iterator[None]:
        """The link of node `number` is down during the block."""
        self.cut(number)
        try:
            yield
        finally:
            ip("link", "set", self.link(number), "up")

    def slow(self, number: int, kbit: int) -> None:
        """So much a second goes to node `number`, and no more."""
        shape = ["tbf", "rate", f"{kbit}kbit", "burst", "32kbit", "latency", "400ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", self.link(number), "root", *shape], check=True)

    def close(self) -> None:
        self._undo.close()

    def _redis(self) -> dict[str, str]:
        """What a head is told that remembers."""
        port = free_port()
        self._start(["redis-server", "--bind", HEAD, "--port", str(port), "--save", "", "--protected-mode", "no"])
        assert sleep_until(lambda: _answers(HEAD, port)), "Redis did not start"
        return {"RAY_REDIS_ADDRESS": f"{HEAD}:{port}"}

    def _ray(self, *options: str, namespace: str | None = None, **told: str) -> subprocess.Popen[bytes]:
        place = tempfile.mkdtemp(prefix="ray-")  # nodes that start together would take each other's sockets
        self._undo.callback(shutil.rmtree, place, ignore_errors=True)
        command = [RAY, "start", "--block", "--disable-usage-stats", f"--temp-dir={place}", *options]
        if not namespace:
            return self._start([*SUPERVISED, *command], **NO_SERVICES, **told)
        inside = ["ip", "netns", "exec", namespace]
        # a driver takes the raylet that it sees, and the head's before others
        command = [*inside, *APART, *SUPERVISED, *command] if self.apart else [*SUPERVISED, *inside, *command]
        return self._start(command, **AT_NODE, **told)

    def _start(self, command: list[str], **told: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=os.environ | told, stdout=quiet, stderr=quiet)
        self._undo.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for one in _family(process.pid):
        one.kill()
    process.wait()


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, as far as they are there."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _answers(host: str, port: int) -> bool:
    with socket.socket() as asked:
        asked.settimeout(1)
        return asked.connect_ex((host, port)) == 0
