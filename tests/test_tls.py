"""Certificates for a cluster, and a Ray of two nodes that speaks TLS with them, behind a token."""

import os
import socket
import ssl
import stat
import subprocess
import sys

import certificates
import demo
import grpc
import psutil
import pytest
from ray.util import get_node_ip_address

from genray.ray_train import ALIVE

LONG = pytest.mark.skipif("GENRAY_LONG" not in os.environ, reason="two nodes and a job; set GENRAY_LONG=1")
JOB = """
import time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init()
nodes, deadline = [], time.monotonic() + 120
while len(nodes) < 2 and time.monotonic() < deadline:
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    time.sleep(1)
where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
assert len(nodes) == 2 and nodes == ray.get([where.options(scheduling_strategy=On(n, False)).remote() for n in nodes])
print("both nodes answered")
"""


def variables(folder, host) -> dict[str, str]:
    names = {"RAY_TLS_CA_CERT": "ca.crt", "RAY_TLS_SERVER_CERT": f"{host}.crt", "RAY_TLS_SERVER_KEY": f"{host}.key"}
    return {"RAY_USE_TLS": "1"} | {name: str(folder / file) for name, file in names.items()}


@pytest.fixture
def folder(tmp_path):
    hosts = [get_node_ip_address(), "node-2.example.org"]
    command = [sys.executable, certificates.__file__, "--to", str(tmp_path / "tls"), *hosts]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "tls"


def test_keys_are_for_their_owner_only(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = list(folder.glob("*.key"))
    assert len(keys) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Both sides of one connection, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=name)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking, answering):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def contexts(folder, host, trusted) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=trusted / "ca.crt")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=trusted / "ca.crt")
    server.load_cert_chain(folder / f"{host}.crt", folder / f"{host}.key")
    client.load_cert_chain(folder / f"{host}.crt", folder / f"{host}.key")
    return server, client


def test_nodes_accept_one_another_and_no_stranger(folder, tmp_path):
    host = "node-2.example.org"
    handshake(*contexts(folder, host, folder), host)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(*contexts(folder, host, folder), "node-3.example.org")
    certificates.make(tmp_path / "other", [host], 1)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(*contexts(tmp_path / "other", host, folder), host)


@LONG
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_runs_on_two_nodes_that_speak_tls_behind_a_token(folder, tmp_path, monkeypatch):
    for name, value in variables(folder, get_node_ip_address()).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "job.py").write_text(JOB)
    with demo.local_ray(joinable=True) as environment:
        words = [word for p in psutil.Process().children(recursive=True) for word in p.cmdline()]
        gcs = (
            f"{get_node_ip_address()}:{next(w for w in words if w.startswith('--gcs_server_port=')).partition('=')[2]}"
        )
        command = [str(demo.BIN / "ray"), "start", "--address", gcs, "--num-cpus", "1", "--block"]
        command += ["--dashboard-agent-listen-port", str(demo.free_port())]
        node = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with socket.create_connection(gcs.split(":"), 5), grpc.insecure_channel(gcs) as channel:
                with pytest.raises(grpc.RpcError) as refused:
                    token = [("authorization", f"Bearer {environment['RAY_AUTH_TOKEN']}")]
                    channel.unary_unary(ALIVE)(b"", timeout=20, metadata=token)
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            submit = [str(demo.BIN / "ray"), "job", "submit", "--working-dir", str(tmp_path / "code"), "--"]
            submit += ["python", "job.py"]
            job = subprocess.run(submit, env=environment, capture_output=True, text=True, check=False)
            said = job.stdout + job.stderr
            assert job.returncode == 0 and "both nodes answered" in said, said[-3000:]
        finally:
            node.terminate()
            node.wait(60)
